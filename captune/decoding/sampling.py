"""Greedy decoding and sampling: which token comes next in each row.

Letters: B or A rows, V vocabulary, M longest caption in tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captune.decoding.options import DecodingOptions, Progress, Request, StopRule

__all__ = ["SamplingState", "StepOutput", "apply_repetition_penalty", "row_uniforms", "sample", "warp_logits"]


def row_uniforms(options: DecodingOptions, key: str) -> Tensor:
    """The M numbers in [0, 1) that draw an image's tokens; seed and key decide them, and nothing else.

    Returns:
        (M,) float64 on the CPU.
    """
    digest = hashlib.sha256(f"{options.seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)


_SMALLEST = 1e-6
"""Below this temperature the quotient could overflow, so the largest score is taken off first: 0 stays 0."""


def apply_repetition_penalty(scores: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Scores (B, V) with those of tokens already said, (B, V) bool, divided by the penalty (multiplied below 0)."""
    return torch.where(said, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def warp_logits(scores: Tensor, options: DecodingOptions) -> Tensor:
    """Logits (B, V) sharpened by the temperature, -inf outside of `top_k` and `top_p`, in transformers' order."""
    if options.temperature < _SMALLEST:
        scores = scores - scores.amax(dim=1, keepdim=True)
    scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[1]:
        least = scores.topk(options.top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.top_p < 1:
        ordered, places = scores.sort(dim=1)
        outside = ordered.softmax(dim=1).cumsum(dim=1) <= 1 - options.top_p
        outside[:, -1] = False
        scores = scores.masked_fill(outside.scatter(1, places, outside), -torch.inf)
    return scores


def sample(scores: Tensor, numbers: Tensor) -> Tensor:
    """One token a row, by inverting the distribution function.

    Args:
        scores: (B, V) restricted logits.
        numbers: (B,) in [0, 1).

    Returns:
        (B,) int64 ids; the same for a row whatever rows lie beside it.
    """
    steps = scores.double().softmax(dim=1).cumsum(dim=1)
    # The last step is 1 but for rounding; a number beyond it would name no token.
    wanted = numbers.to(scores.device).unsqueeze(1) * steps[:, -1:]
    return torch.searchsorted(steps, wanted, right=True).squeeze(1).clamp(max=scores.shape[1] - 1)


@dataclass(frozen=True, slots=True)
class StepOutput:
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


class SamplingState:
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
            _Row(r.number, [], row_uniforms(self._options, r.key) if sampled else None, r.stop or self._stop)
            for r in requests
        ]

    def advance(self, logits: Tensor, spoiled: Tensor | None = None) -> StepOutput:
        """Choose the next token of every row.

        Args:
            logits: (A, V), of the newest token of each row.
            spoiled: (A,) bool, rows that end as faulty whatever their logits are.
        """
        scores = logits.float()
        if self._options.repetition_penalty != 1.0:
            said = self._already_said(scores)
            scores = apply_repetition_penalty(scores, said, self._options.repetition_penalty)
        if self._options.sampled:
            numbers = torch.stack([row.numbers[len(row.ids)] for row in self._rows if row.numbers is not None])
            tokens = sample(warp_logits(scores, self._options), numbers)
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
        return StepOutput(tokens, None, progress, ended, faulty)

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
