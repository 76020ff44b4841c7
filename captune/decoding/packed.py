"""One forward over rows under way and prompts that come in, laid end to end.

Letters: R rows under way, B prompts of T tokens, H heads, D width of a head, N slots, W columns of a slot.

    tokens    r1 r2 ... rR | prompt 1 (T tokens) | prompt 2 | ... | prompt B

All that a layer does token by token, which is nearly everything, runs over the R + B * T tokens at once: the weights
are read once instead of twice, and a product of 100 rows costs little more than one of 30. Attention alone looks at
each part in its own shape, in transformers' own kernel, so a token sees exactly what it sees in a forward of its own.
Serving engines call this piggybacked prefill (Agrawal et al. 2023, SARATHI).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface

__all__ = ["PACKED", "Pack", "attention"]

PACKED = "captune_packed"
"""Attention of a packed forward, as transformers knows it."""


class Pack(NamedTuple):
    """Where the tokens of a packed forward go, and what they see.

    Attributes:
        columns: (R,) int64, the column of each row's newest token; row r is in slot r.
        seen: (R, 1, 1, width) bool, what it sees of its slot.
        first: slot of the first prompt, R or more.
        start: first column of the prompts.
        begun: (1, 1, T, start + T) bool, what the tokens of a prompt see of their slot.
    """

    columns: Tensor
    seen: Tensor
    first: int
    start: int
    begun: Tensor

    @property
    def width(self) -> int:
        """Columns that rows under way look at."""
        return self.seen.shape[3]

    @property
    def stop(self) -> int:
        """The column behind the prompts."""
        return self.begun.shape[3]

    def store(self, states: Tensor, slots: Tensor) -> None:
        """Write (1, H, R + B * T, D) keys or values of a layer into its (N, H, W, D) slots."""
        rows = len(self.columns)
        places = torch.arange(rows, device=states.device)
        # Two index tensors around a slice: the indexed dimensions come first.
        slots[places, :, self.columns] = states[0, :, :rows].transpose(0, 1)
        if states.shape[2] == rows:
            return
        prompts = self._prompts(states)
        slots[self.first : self.first + len(prompts), :, self.start : self.stop] = prompts

    def attend(self, module: Any, query: Tensor, keys: Tensor, values: Tensor, **settings: Any) -> Tensor:
        """What (1, H, R + B * T, D) queries find in the slots, (1, R + B * T, H, D)."""
        rows, kernel = len(self.columns), AttentionInterface()["sdpa"]
        parts = []
        if rows:
            newest = query[0, :, :rows].transpose(0, 1).unsqueeze(2)
            seen = _look(keys, values, slice(0, rows), self.width)
            parts.append(kernel(module, newest, *seen, self.seen, **settings)[0])
        if query.shape[2] > rows:
            prompts = self._prompts(query)
            slots = slice(self.first, self.first + len(prompts))
            parts.append(kernel(module, prompts, *_look(keys, values, slots, self.stop), self.begun, **settings)[0])
        return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)

    def ends(self, columns: Tensor) -> Pack:
        """The same without the prompts but for one token of each, which is a row's newest like the others.

        Args:
            columns: (R + B,) int64, the columns of all rows' newest tokens.
        """
        width = max(self.width, self.stop)
        seen = torch.arange(width, device=columns.device) <= columns.unsqueeze(1)
        return self._replace(columns=columns, seen=seen[:, None, None], first=len(columns))

    def _prompts(self, states: Tensor) -> Tensor:
        """(B, H, T, D) of (1, H, R + B * T, D)."""
        _, heads, _, width = states.shape
        prompts = states[0, :, len(self.columns) :].reshape(heads, -1, self.begun.shape[2], width)
        return prompts.transpose(0, 1)


def _look(keys: Tensor, values: Tensor, rows: slice, width: int) -> tuple[Tensor, Tensor]:
    return keys[rows, :, :width], values[rows, :, :width]


def _attend(
    module: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, pack: Pack, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' attention function for a packed forward; a model that does not hand on `pack` fails its trial."""
    return pack.attend(module, query, keys, values, **settings), None


AttentionInterface.register(PACKED, _attend)


@contextmanager
def attention(config: Any, name: str) -> Iterator[None]:
    """Let a model's layers attend by another function, for the length of a forward.

    Args:
        config: of the model.
        name: of a function that transformers' `AttentionInterface` knows.
    """
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
