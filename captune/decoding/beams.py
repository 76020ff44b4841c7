"""Beam search over several images at once, each with its own number of steps.

It is the search of transformers' `generate` (early_stopping off), term by term in the same arithmetic, so that its
captions are the same; but a caption ends when its own search does, whatever the other images do.

Letters: A images in progress, K beams, M longest caption in tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from captune.decoding.options import DecodingOptions, Progress, Request, StopRule
from captune.decoding.sampling import StepOutput, apply_repetition_penalty

__all__ = ["Beams"]

_NEVER = -1.0e9
"""Score of candidates that must not be selected."""


class Beams:
    """The state of A searches of K beams.

    Args:
        options: how to search.
        stop: when a beam has ended whose request has no stop rule.
        device: of the logits.
    """

    def __init__(self, options: DecodingOptions, stop: StopRule, device: torch.device) -> None:
        self._options = options
        self._stop = stop
        self.group = K = options.beams
        self._numbers: list[int] = []
        self._stops: list[StopRule] = []
        self._counts: list[int] = []
        # Running beams: (A, K) summed log-probabilities, (A, K, M) ids. Ended ones: scores, ids, lengths, whether any.
        self._running = torch.zeros(0, K, device=device)
        self._ids = torch.zeros(0, K, options.max_new_tokens, dtype=torch.int64, device=device)
        self._done_scores = torch.zeros(0, K, device=device)
        self._done_ids = torch.zeros_like(self._ids)
        self._done_lengths = torch.zeros(0, K, dtype=torch.int64, device=device)
        self._is_done = torch.zeros(0, K, dtype=torch.bool, device=device)

    def admit(self, requests: Sequence[Request]) -> None:
        """Append new images."""
        self._numbers += [request.number for request in requests]
        self._stops += [request.stop or self._stop for request in requests]
        self._counts += [0] * len(requests)
        running = self._running.new_full((len(requests), self.group), _NEVER)
        # All beams are equal at the start: only one of them may be continued.
        running[:, 0] = 0
        never = self._running.new_full((len(requests), self.group), _NEVER)
        self._running = torch.cat([self._running, running])
        self._done_scores = torch.cat([self._done_scores, never])
        self._ids = _extended(self._ids, len(requests))
        self._done_ids = _extended(self._done_ids, len(requests))
        self._done_lengths = _extended(self._done_lengths, len(requests))
        self._is_done = _extended(self._is_done, len(requests))

    def advance(self, logits: Tensor, faulty_rows: Tensor | None = None) -> StepOutput:
        """Take one step of every search.

        Args:
            logits: (A * K, V), after the newest token of each beam.
            faulty_rows: (A * K,) bool, beams of images that end as faulty whatever their logits are.
        """
        A, K, V = len(self._numbers), self.group, logits.shape[1]
        log_probs = F.log_softmax(logits.float(), dim=-1)
        if self._options.repetition_penalty != 1.0:
            penalty = self._options.repetition_penalty
            log_probs = apply_repetition_penalty(log_probs, self._generated_mask(V), penalty)
        totals = (log_probs.view(A, K, V) + self._running.unsqueeze(2)).view(A, K * V)
        # Enough candidates that K continue when the best ones all end, whichever of the ids ends them.
        best, indices = totals.topk(min(max(2, 1 + len(self._stop.end_ids)) * K, K * V), dim=1)
        # A logit that is NaN or +inf makes all log-probabilities of its beam NaN, and NaN is the highest of `topk`.
        unusable = ~best[:, 0].isfinite()
        if faulty_rows is not None:
            unusable |= faulty_rows.view(A, K).any(dim=1)
        parents, tokens = indices // V, indices % V
        counts = torch.tensor(self._counts, device=logits.device)
        ids = self._ids.gather(1, parents.unsqueeze(2).expand(-1, -1, self._ids.shape[2]))
        ids.scatter_(2, counts.view(A, 1, 1).expand(-1, ids.shape[1], 1), tokens.unsqueeze(2))
        ends = self._ends(tokens, parents)

        scores = best + ends * _NEVER
        kept = scores.topk(K, dim=1).indices
        improvable = self._finish(best, ids, ends, scores.gather(1, kept)[:, :1])
        self._running = scores.gather(1, kept)
        self._ids = ids.gather(1, kept.unsqueeze(2).expand(-1, -1, ids.shape[2]))
        self._counts = [count + 1 for count in self._counts]
        over, failed = torch.stack([~improvable | ends.all(dim=1) | unusable, unusable]).tolist()
        ended = [index for index, is_over in enumerate(over) if is_over]
        faulty = [index for index in ended if failed[index]]
        offsets = torch.arange(A, device=logits.device).unsqueeze(1) * K
        rows = (parents.gather(1, kept) + offsets).view(-1)
        progress = [Progress(self._numbers[index], self._answer(index), True, failed[index]) for index in ended]
        return StepOutput(tokens.gather(1, kept).view(-1), rows, progress, ended, faulty)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep the images at these indices, in this order."""
        self._numbers = [self._numbers[index] for index in indices]
        self._stops = [self._stops[index] for index in indices]
        self._counts = [self._counts[index] for index in indices]
        for name in ("_running", "_ids", "_done_scores", "_done_ids", "_done_lengths", "_is_done"):
            setattr(self, name, getattr(self, name)[list(indices)])

    def _finish(self, best: Tensor, ids: Tensor, ends: Tensor, running: Tensor) -> Tensor:
        """Store candidates that ended; return whether (A,) a search may still find a better answer.

        Args:
            best: (A, C) summed log-probabilities of the C candidates, 2K or more, descending.
            ids: (A, C, M), their tokens.
            ends: (A, C) bool.
            running: (A, 1) score of the best beam that continues.
        """
        K = self.group
        lengths = torch.tensor([count + 1 for count in self._counts], device=best.device)
        powers = [float(count + 1) ** self._options.length_penalty for count in self._counts]
        divisors = torch.tensor(powers, dtype=best.dtype, device=best.device).unsqueeze(1)
        # The candidates after the first K only replace beams that end; they never end themselves.
        finished = ends.clone()
        finished[:, K:] = False
        scores = best / divisors + (~finished) * _NEVER
        merged = torch.cat([self._done_scores, scores], dim=1)
        self._done_scores, kept = merged.topk(K, dim=1)
        all_ids = torch.cat([self._done_ids, ids], dim=1)
        self._done_ids = all_ids.gather(1, kept.unsqueeze(2).expand(-1, -1, all_ids.shape[2]))
        new = lengths.unsqueeze(1).expand_as(finished)
        self._done_lengths = torch.cat([self._done_lengths, new], dim=1).gather(1, kept)
        self._is_done = torch.cat([self._is_done, finished], dim=1).gather(1, kept)
        worst = torch.where(self._is_done, self._done_scores.amin(dim=1, keepdim=True), _NEVER)
        return (running / divisors > worst).any(dim=1)

    def _ends(self, tokens: Tensor, parents: Tensor) -> Tensor:
        """Which candidates (A, C) end with their newest token."""
        ended = []
        for index, (row, row_parents) in enumerate(zip(tokens.tolist(), parents.tolist(), strict=True)):
            count = self._counts[index]
            if count + 1 >= self._options.max_new_tokens:
                ended.append([True] * len(row))
                continue
            before = self._ids[index, :, :count].tolist()
            stop = self._stops[index]
            ended.append([stop.ended(before[parent], token) for token, parent in zip(row, row_parents, strict=True)])
        return torch.tensor(ended, device=tokens.device)

    def _generated_mask(self, vocabulary: int) -> Tensor:
        """(A * K, V) bool, the tokens that each beam generated."""
        mask = torch.zeros(len(self._numbers), self.group, vocabulary, dtype=torch.bool, device=self._ids.device)
        for index, count in enumerate(self._counts):
            mask[index].scatter_(1, self._ids[index, :, :count], True)
        return mask.view(-1, vocabulary)

    def _answer(self, index: int) -> list[int]:
        answer: list[int] = self._done_ids[index, 0, : int(self._done_lengths[index, 0])].tolist()
        return answer


def _extended(state: Tensor, count: int) -> Tensor:
    """State with `count` empty entries appended."""
    return torch.cat([state, state.new_zeros(count, *state.shape[1:])])
