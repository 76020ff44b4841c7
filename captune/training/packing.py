"""Rows for the language model: the captions of an image behind one image-and-prompt prefix.

Letters: B rows, S tokens of a row, P of them prompt, C of these in front of the image, N targets of the batch.

    row         [ text  image  text | caption 1 | caption 2 | ... ]
    positions     0 ......... P-1     P ...       P ...               each caption starts again behind the prompt
    may see       everything before | prompt and its own caption only

Every hidden state is the one of a row of its own: the prompt never sees a caption, a caption sees what it would see
alone, and rotary positions are its own. The last prompt state predicts the first token of each caption; the last token
of a caption predicts nothing and is not fed. One caption a row is the same layout with a single caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from captune.model.prompt import IMAGE_SLOT

__all__ = ["PackedBatch", "constant_prefix_length", "pack", "row_multiple"]

ROUNDED_TO = 8
"""On a GPU rows are padded to a multiple of this; attention kernels are quicker on it and see fewer shapes."""


def row_multiple(device: torch.device) -> int:
    """What the width of rows is a multiple of; on a processor padding is only work."""
    return 1 if device.type == "cpu" else ROUNDED_TO


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch.

    Attributes:
        input_ids: (B, S) int64; `IMAGE_SLOT` where an image token goes, 0 where padding is.
        position_ids: (B, S) int64.
        attention_mask: (B, 1, S, C + S) bool, True where a token may look. C is 0 unless the text in front of the
            image is left to a cache.
        rows: (N,) int64, row of the state that predicts each target.
        columns: (N,) int64, its column.
        targets: (N,) int64 ids.
    """

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    rows: Tensor
    columns: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def constant_prefix_length(prompt: Sequence[int]) -> int:
    """C, how many ids stand in front of the image; they are the same in every row."""
    return list(prompt).index(IMAGE_SLOT) if IMAGE_SLOT in prompt else 0


def pack(
    prompt: Sequence[int],
    captions: Sequence[Sequence[Sequence[int]]],
    *,
    cached: int = 0,
    multiple: int = ROUNDED_TO,
) -> PackedBatch:
    """Lay out rows that share a prompt's text.

    Args:
        prompt: P ids, the same for every row.
        captions: for each row the target ids of its captions, stop symbol included.
        cached: C, leading ids of the prompt that are left to a key-value cache.
        multiple: S is one of this.

    Returns:
        The micro-batch.
    """
    start = len(prompt) - cached
    lengths = [start + sum(len(caption) - 1 for caption in row) for row in captions]
    width = -(-max(lengths) // multiple) * multiple
    input_ids = torch.zeros(len(captions), width, dtype=torch.int64)
    position_ids = torch.zeros(len(captions), width, dtype=torch.int64)
    # Part 0 is the prompt, part k the k-th caption, part -1 padding: a token sees its own part and the prompt.
    parts = torch.full((len(captions), width), -1, dtype=torch.int64)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    input_ids[:, :start] = torch.tensor(prompt[cached:])
    position_ids[:, :start] = torch.arange(cached, len(prompt))
    parts[:, :start] = 0
    for row, row_captions in enumerate(captions):
        column = start
        for number, caption in enumerate(row_captions, 1):
            fed = len(caption) - 1
            end = column + fed
            input_ids[row, column:end] = torch.tensor(caption[:-1], dtype=torch.int64)
            position_ids[row, column:end] = torch.arange(len(prompt), len(prompt) + fed)
            parts[row, column:end] = number
            rows.extend([row] * len(caption))
            columns.extend([start - 1, *range(column, end)])
            targets.extend(caption)
            column = end
    mask = _may_look(parts, cached)
    return PackedBatch(input_ids, position_ids, mask, *map(torch.tensor, (rows, columns, targets)))


def _may_look(parts: Tensor, cached: int) -> Tensor:
    """(B, 1, S, C + S): backwards, into the own part and the prompt, and into all of the cache.

    Padding looks at the first token, for a row of a mask that allows nothing gives undefined numbers.
    """
    width = parts.shape[1]
    asks, offers = parts.unsqueeze(2), parts.unsqueeze(1)
    backwards = torch.ones(width, width, dtype=torch.bool).tril()
    sees = backwards & ((asks == offers) | (offers == 0)) & (asks >= 0)
    sees[:, :, 0] |= parts < 0
    whole_cache = torch.ones(len(parts), width, cached, dtype=torch.bool)
    return torch.cat([whole_cache, sees], dim=2).unsqueeze(1)
