"""Packed rows for the language model: all captions of an image after one shared prefix of prompt and image.

Letters: B rows, S tokens per row, P prompt tokens, C of these before the image, N targets of the batch.

    row         [ text  image  text | caption 1 | caption 2 | ... ]
    positions     0 ......... P-1     P ...       P ...               each caption restarts after the prompt
    attends to    all previous tokens | prompt and same caption only

Every hidden state equals that of a row with one caption: the prompt attends to no caption, and a caption has the same
context and rotary positions as in a separate row. The last prompt state predicts the first token of each caption; the
last token of a caption predicts nothing and is not an input. A row with one caption has the same layout.

A common beginning of captions is stored once, as the prompt is: captions form a tree whose root is the prompt. "a dog
runs", "a dog sits" and "two dogs" are six tokens instead of eight:

    caption 1     a  dog  runs                caption 2    sits                caption 3     two  dogs
    of captions  1-2 1-2   1                                2                                 3    3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Self

import torch
from torch import Tensor

from captune.model.prompt import IMAGE_SLOT

__all__ = ["CaptionTree", "PackedBatch", "constant_prefix_length", "fed_tokens", "pack", "row_multiple"]

ROUNDED_TO = 8
"""On a GPU rows are padded to a multiple of this; attention kernels are faster and see fewer shapes."""
_NONE = 1 << 62
"""Index greater than that of any caption."""


def row_multiple(device: torch.device) -> int:
    """Multiple to pad rows to; on a CPU padding would only cost time."""
    return 1 if device.type == "cpu" else ROUNDED_TO


@dataclass(frozen=True)
class PackedBatch:
    """One micro-batch.

    Attributes:
        input_ids: (B, S) int64; `IMAGE_SLOT` at image tokens, 0 at padding.
        position_ids: (B, S) int64.
        attention_mask: (B, 1, S, C + S) bool, True where a token attends. C is 0 unless a cache holds the text
            before the image.
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
    """C, the number of ids before the image; they are the same in every row."""
    return list(prompt).index(IMAGE_SLOT) if IMAGE_SLOT in prompt else 0


def pack(
    prompt: Sequence[int],
    captions: Sequence[Sequence[Sequence[int]]],
    *,
    cached: int = 0,
    multiple: int = ROUNDED_TO,
) -> PackedBatch:
    """Build packed rows that share the text of a prompt.

    Args:
        prompt: P ids, the same for every row.
        captions: the target ids of the captions in each row, stop symbol included.
        cached: C, leading ids of the prompt that a KV cache holds.
        multiple: S is a multiple of this.

    Returns:
        The micro-batch.
    """
    start = len(prompt) - cached
    trees = [CaptionTree(row) for row in captions]
    width = -(-(start + max(len(tree.tokens) for tree in trees)) // multiple) * multiple
    input_ids = torch.zeros(len(captions), width, dtype=torch.int64)
    position_ids = torch.zeros(len(captions), width, dtype=torch.int64)
    # The first and the last caption that contains a token. All captions contain the prompt, none contains padding.
    firsts, lasts = torch.full((len(captions), width), _NONE), torch.full((len(captions), width), -1)
    input_ids[:, :start] = torch.tensor(prompt[cached:])
    position_ids[:, :start] = torch.arange(cached, len(prompt))
    firsts[:, :start], lasts[:, :start] = 0, _NONE - 1
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, tree in enumerate(trees):
        target = row, slice(start, start + len(tree.tokens))
        input_ids[target] = torch.tensor(tree.tokens, dtype=torch.int64)
        position_ids[target] = torch.tensor(tree.depths, dtype=torch.int64) + len(prompt)
        firsts[target] = torch.tensor(tree.firsts, dtype=torch.int64)
        lasts[target] = torch.tensor(tree.lasts, dtype=torch.int64)
        rows.extend([row] * len(tree.targets))
        columns.extend(start + state for state in tree.states)
        targets.extend(tree.targets)
    mask = _attention_mask(firsts, lasts, cached)
    return PackedBatch(input_ids, position_ids, mask, *map(torch.tensor, (rows, columns, targets)))


class CaptionTree:
    """The input tokens of an image's captions; N targets, M tokens.

    In sorted order, captions with a common beginning are adjacent, so a range of captions contains each token.

    Args:
        captions: target ids, stop symbol included.

    Attributes:
        tokens: M ids; each caption adds those that it does not share with the previous one.
        depths: M, number of previous tokens of the caption.
        firsts: M, the first caption, in sorted order, that contains each token.
        lasts: M, the last one.
        targets: N ids, caption by caption in the original order.
        states: N, the token whose state predicts each target; -1 is the prompt's last.
    """

    def __init__(self, captions: Sequence[Sequence[int]]) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.firsts: list[int] = []
        self.lasts: list[int] = []
        self.targets = [target for caption in captions for target in caption]
        states: dict[int, list[int]] = {}
        path: list[int] = []
        order = sorted(range(len(captions)), key=lambda number: tuple(captions[number]))
        for number, index in enumerate(order):
            fed = tuple(captions[index][:-1])
            known = (self.tokens[token] for token in path)
            alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(known, fed, strict=False)))
            path = path[:alike]
            for token in path:
                self.lasts[token] = number
            path += range(len(self.tokens), len(self.tokens) + len(fed) - alike)
            self.tokens += fed[alike:]
            self.depths += range(alike, len(fed))
            self.firsts += [number] * (len(fed) - alike)
            self.lasts += [number] * (len(fed) - alike)
            states[index] = [-1, *path]
        self.states = [state for number in range(len(captions)) for state in states[number]]


def fed_tokens(captions: Sequence[Sequence[int]]) -> int:
    """Number of tokens after the prompt in the shared row of an image's captions, which are target ids."""
    return len(CaptionTree(captions).tokens)


def _attention_mask(firsts: Tensor, lasts: Tensor, cached: int) -> Tensor:
    """(B, 1, S, C + S) mask: a token attends to the cache and to previous tokens of captions that contain it.

    Tokens are in the order of their first captions, so an earlier token shares one if its last is late enough.
    Padding attends to the first token, because a completely masked row gives undefined numbers.
    """
    width = firsts.shape[1]
    backwards = torch.ones(width, width, dtype=torch.bool).tril()
    sees = backwards & (firsts.unsqueeze(2) <= lasts.unsqueeze(1))
    sees[:, :, 0] |= lasts < 0
    cache_columns = torch.ones(len(firsts), width, cached, dtype=torch.bool)
    return torch.cat([cache_columns, sees], dim=2).unsqueeze(1)
