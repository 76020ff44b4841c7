"""Greedy decoding and sampling: the next token of each row, and the state of rows that are decoded one token at a time.

Letters: R rows, V vocabulary, M longest caption in tokens.
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
    """The M uniform numbers in [0, 1) that sample an image's tokens; only seed and key decide them.

    Returns:
        (M,) float64 on the CPU.
    """
    digest = hashlib.sha256(f"{options.seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)


_SMALLEST = 1e-6
"""Below this temperature the quotient could overflow, so the largest score is subtracted first: 0 stays 0."""


def apply_repetition_penalty(scores: Tensor, generated: Tensor, penalty: float) -> Tensor:
    """Scores (R, V), those of generated tokens, (R, V) bool, divided by the penalty (multiplied below 0)."""
    return torch.where(generated, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def warp_logits(scores: Tensor, options: DecodingOptions) -> Tensor:
    """Logits (R, V) divided by the temperature, -inf outside of `top_k` and `top_p`, in transformers' order."""
    if options.temperature < _SMALLEST:
        scores = scores - scores.amax(dim=1, keepdim=True)
    scores = scores / options.temperature
    if 0 < options.top_k < scores.shape[1]:
        least = scores.topk(options.top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.top_p < 1:
        ordered, indices = scores.sort(dim=1)
        outside = ordered.softmax(dim=1).cumsum(dim=1) <= 1 - options.top_p
        outside[:, -1] = False
        scores = scores.masked_fill(outside.scatter(1, indices, outside), -torch.inf)
    return scores


def sample(scores: Tensor, uniforms: Tensor) -> Tensor:
    """One token a row, by inverting the cumulative distribution.

    Args:
        scores: (R, V) warped logits.
        uniforms: (R,) in [0, 1).

    Returns:
        (R,) int64 ids; the same for a row in any batch.
    """
    cumulative = scores.double().softmax(dim=1).cumsum(dim=1)
    # The last step is 1 but for rounding; a number beyond it would name no token.
    threshold = uniforms.to(scores.device).unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=scores.shape[1] - 1)


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What a step decided.

    Attributes:
        tokens: (R,) int64, the next input of each row.
        parents: (R,) int64, the row whose keys and values each row continues; None where each continues its own.
        progress: of each group of rows that has any to report.
        ended: indices of the groups that have ended, ascending.
        faulty: those of them with non-finite scores.
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
    uniforms: Tensor | None
    stop: StopRule


class SamplingState:
    """The state of R rows that are decoded greedily or by sampling.

    Args:
        options: how to choose tokens.
        stop: when a row has ended whose request has no stop rule.
    """

    group = 1
    """Rows of a request."""

    def __init__(self, options: DecodingOptions, stop: StopRule) -> None:
        self._options = options
        self._stop = stop
        self._rows: list[_Row] = []
        self._generated: Tensor | None = None

    def admit(self, requests: Sequence[Request]) -> None:
        """Append new rows."""
        sampled = self._options.sampled
        self._rows += [
            _Row(r.number, [], row_uniforms(self._options, r.key) if sampled else None, r.stop or self._stop)
            for r in requests
        ]

    def advance(self, logits: Tensor, faulty_rows: Tensor | None = None) -> StepOutput:
        """Choose the next token of every row.

        Args:
            logits: (R, V), after the newest token of each row.
            faulty_rows: (R,) bool, rows that end as faulty whatever their logits are.
        """
        scores = logits.float()
        if self._options.repetition_penalty != 1.0:
            scores = apply_repetition_penalty(scores, self._generated_mask(scores), self._options.repetition_penalty)
        if self._options.sampled:
            uniforms = torch.stack([row.uniforms[len(row.ids)] for row in self._rows if row.uniforms is not None])
            tokens = sample(warp_logits(scores, self._options), uniforms)
            highest = scores.amax(dim=1)
        else:
            tokens = scores.argmax(dim=1)
            # Of a row with NaN, argmax returns the index of a NaN: the highest score shows whether any is in it.
            highest = scores.gather(1, tokens.unsqueeze(1)).squeeze(1)
        usable = highest.isfinite()
        if faulty_rows is not None:
            usable &= ~faulty_rows
        if self._generated is not None:
            self._generated[torch.arange(len(tokens), device=tokens.device), tokens] = True
        progress, ended, faulty = [], [], []
        # Both in one transfer: on a GPU the step waits for the tokens anyway.
        newest, is_usable = torch.stack([tokens, usable.to(tokens.dtype)]).tolist()
        for index, (row, token) in enumerate(zip(self._rows, newest, strict=True)):
            done = not is_usable[index] or row.stop.ended(row.ids, token)
            row.ids.append(token)
            done = done or len(row.ids) >= self._options.max_new_tokens
            if done:
                ended.append(index)
            if not is_usable[index]:
                faulty.append(index)
            progress.append(Progress(row.number, row.ids, done, not is_usable[index]))
        return StepOutput(tokens, None, progress, ended, faulty)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep the rows at these indices, in this order."""
        self._rows = [self._rows[index] for index in indices]
        if self._generated is not None:
            self._generated = self._generated[list(indices)]

    def _generated_mask(self, scores: Tensor) -> Tensor:
        """(R, V) bool, the tokens that each row generated; new rows have none."""
        known = 0 if self._generated is None else len(self._generated)
        new = torch.zeros(len(scores) - known, scores.shape[1], dtype=torch.bool, device=scores.device)
        self._generated = new if self._generated is None else torch.cat([self._generated, new])
        return self._generated
