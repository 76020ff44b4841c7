"""Rows that are decoded one token after the other, greedily or by drawing.

Letters: A rows that are alive, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captune.decoding.choosing import draw, penalised, restricted, stream
from captune.decoding.options import DecodingOptions
from captune.decoding.request import Progress, Request
from captune.decoding.stop import StopRule

__all__ = ["Advance", "SingleRows"]


@dataclass(frozen=True, slots=True)
class Advance:
    """What a step decided.

    Attributes:
        tokens: (R,) int64, the token that each row is fed next.
        parents: (R,) int64, the row whose keys and values each row goes on with; None where that is its own.
        progress: one for each group of rows that has something to tell.
        ended: places of the groups that are done, ascending.
        faulty: those of them whose scores are not numbers.
    """

    tokens: Tensor
    parents: Tensor | None
    progress: list[Progress]
    ended: list[int]
    faulty: list[int]


@dataclass(slots=True)
class _Row:
    number: int
    ids: list[int]
    numbers: Tensor | None
    stop: StopRule


class SingleRows:
    """The state of A rows, each one a group of its own.

    Args:
        options: how to choose.
        stop: when a row has ended whose request has no rule of its own.
    """

    group = 1
    """Rows of a group."""

    def __init__(self, options: DecodingOptions, stop: StopRule) -> None:
        self._options = options
        self._stop = stop
        self._rows: list[_Row] = []
        self._said: Tensor | None = None

    def admit(self, requests: Sequence[Request]) -> None:
        """Take in new rows behind those that are there."""
        sampled = self._options.sampled
        self._rows += [
            _Row(r.number, [], stream(self._options, r.key) if sampled else None, r.stop or self._stop)
            for r in requests
        ]

    def advance(self, logits: Tensor, spoiled: Tensor | None = None) -> Advance:
        """Choose the next token of every row.

        Args:
            logits: (A, V), of the newest token of each row.
            spoiled: (A,) bool, rows that end as faulty whatever their logits are.
        """
        scores = logits.float()
        if self._options.repetition_penalty != 1.0:
            said = self._already_said(scores)
            scores = penalised(scores, said, self._options.repetition_penalty)
        if self._options.sampled:
            numbers = torch.stack([row.numbers[len(row.ids)] for row in self._rows if row.numbers is not None])
            tokens = draw(restricted(scores, self._options), numbers)
            highest = scores.amax(dim=1)
        else:
            tokens = scores.argmax(dim=1)
            # Of a row with NaN, argmax gives the place of a NaN: the highest score tells of the whole row.
            highest = scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
        usable = highest.isfinite()
        if spoiled is not None:
            usable &= ~spoiled
        if self._said is not None:
            self._said[torch.arange(len(tokens), device=tokens.device), tokens] = True
        progress, ended, faulty = [], [], []
        # Both in one transfer: on a GPU the step waits for the tokens anyway.
        chosen, is_usable = torch.stack([tokens, usable.to(tokens.dtype)]).tolist()
        for place, (row, token) in enumerate(zip(self._rows, chosen, strict=True)):
            done = not is_usable[place] or row.stop.ended(row.ids, token)
            row.ids.append(token)
            done = done or len(row.ids) >= self._options.max_new_tokens
            if done:
                ended.append(place)
            if not is_usable[place]:
                faulty.append(place)
            progress.append(Progress(row.number, row.ids, done, not is_usable[place]))
        return Advance(tokens, None, progress, ended, faulty)

    def keep(self, places: Sequence[int]) -> None:
        """Leave the rows at these places, in this order."""
        self._rows = [self._rows[place] for place in places]
        if self._said is not None:
            self._said = self._said[list(places)]

    def _already_said(self, scores: Tensor) -> Tensor:
        """(A, V) bool; rows that came in since are empty."""
        known = 0 if self._said is None else len(self._said)
        fresh = torch.zeros(len(scores) - known, scores.shape[1], dtype=torch.bool, device=scores.device)
        self._said = fresh if self._said is None else torch.cat([self._said, fresh])
        return self._said
