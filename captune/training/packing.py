"""Rows for the language model: the captions of an image behind one image-and-prompt prefix.

Letters: B rows, S tokens of a row, P of them prompt, C of these in front of the image, N targets of the batch.

    row         [ text  image  text | caption 1 | caption 2 | ... ]
    positions     0 ......... P-1     P ...       P ...               each caption starts again behind the prompt
    may see       everything before | prompt and its own caption only

Every hidden state is the one of a row of its own: the prompt never sees a caption, a caption sees what it would see
alone, and rotary positions are its own. The last prompt state predicts the first token of each caption; the last token
of a caption predicts nothing and is not fed. One caption a row is the same layout with a single caption.

What captions have in common at their beginnings is the same for them all, as the prompt is, and stands there once: they
are a tree whose root is the prompt. "a dog runs", "a dog sits" and "two dogs" are six tokens and not eight:

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

from captune.model import IMAGE_SLOT

__all__ = ["PackedBatch", "constant_prefix_length", "fed_tokens", "pack", "row_multiple"]

ROUNDED_TO = 8
"""On a GPU rows are padded to a multiple of this; attention kernels are quicker on it and see fewer shapes."""
_NONE = 1 << 62
"""Stands for a caption behind all others."""


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
    trees = [_Tree(row) for row in captions]
    width = -(-(start + max(len(tree.tokens) for tree in trees)) // multiple) * multiple
    input_ids = torch.zeros(len(captions), width, dtype=torch.int64)
    position_ids = torch.zeros(len(captions), width, dtype=torch.int64)
    # The first and the last caption that a token is part of. The prompt is part of all, padding of none.
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
    mask = _may_look(firsts, lasts, cached)
    return PackedBatch(input_ids, position_ids, mask, *map(torch.tensor, (rows, columns, targets)))


class _Tree:
    """The tokens that are fed of an image's captions; N targets, M tokens.

    In sorted order captions that begin alike stand side by side, so each token is part of a run of them.

    Args:
        captions: target ids, stop symbol included.

    Attributes:
        tokens: M ids, a caption's own behind those that it shares with the one before.
        depths: M, tokens of the caption in front of each.
        firsts: M, the first caption, in sorted order, that a token is part of.
        lasts: M, the last one.
        targets: N ids, one caption after the other as given.
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
    """How many tokens of an image's captions, given as target ids, stand in a row behind its prompt."""
    return len(_Tree(captions).tokens)


def _may_look(firsts: Tensor, lasts: Tensor, cached: int) -> Tensor:
    """(B, 1, S, C + S): backwards, to tokens that are part of a caption that the own one is part of, and to the cache.

    Tokens stand in the order of their first captions, so an earlier one shares one if its last caption is late enough.
    Padding looks at the first token, for a row of a mask that allows nothing gives undefined numbers.
    """
    width = firsts.shape[1]
    backwards = torch.ones(width, width, dtype=torch.bool).tril()
    sees = backwards & (firsts.unsqueeze(2) <= lasts.unsqueeze(1))
    sees[:, :, 0] |= lasts < 0
    whole_cache = torch.ones(len(firsts), width, cached, dtype=torch.bool)
    return torch.cat([whole_cache, sees], dim=2).unsqueeze(1)
