"""Scores that are not numbers: found while decoding, never taken for a caption.

A broken weight, or an overflow in float16, makes logits NaN or infinite; the likeliest token is then any id, often the
end of text, and the caption an empty string. A row is faulty where a logit is NaN or +inf, or all are -inf; single
logits of -inf are how models and processors forbid tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from captune.errors import NonFiniteScoresError

__all__ = ["NOT_NUMBERS", "ScoreCheck", "refuse_faulty"]

NOT_NUMBERS = (
    "the model's scores are not numbers (NaN or infinite): a weight is broken, or the number format overflows; try "
    "--dtype bfloat16 or float32 (model.dtype in a run's configuration)"
)
"""Why an image has no caption."""

_NEVER = torch.iinfo(torch.int64).max


class ScoreCheck(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Sees which rows of transformers' `generate` get scores that are not numbers, without waiting for the device."""

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The (R, V) scores, unchanged; called once a step."""
        faulty = ~scores.amax(dim=-1).isfinite()
        now = torch.where(faulty, self._step, _NEVER)
        if self._first is not None and len(self._first) != len(now):
            # A family that changes its batch on the way: whose rows these were is not known.
            self._first = self._first.amin().expand(len(now))
        self._first = now if self._first is None else torch.minimum(self._first, now)
        self._step += 1
        return scores

    def faulty(self, lengths: Sequence[int], *, beams: int = 1) -> set[int]:
        """Places of the captions that were chosen by scores that are not numbers.

        Args:
            lengths: tokens of each of the N captions; what `generate` computes behind an end does not count.
            beams: rows of a caption.
        """
        if self._first is None:
            return set()
        whole = len(self._first) % len(lengths) == 0
        each = self._first.view(len(lengths), -1) if whole else self._first.expand(len(lengths), -1)
        first = each.amin(dim=1).tolist()
        # The steps of a beam search decide its answer even where they are more than the answer is long.
        ends = [_NEVER] * len(lengths) if beams > 1 else lengths
        return {n for n, (step, end) in enumerate(zip(first, ends, strict=True)) if step < end}


def refuse_faulty(captions: Sequence[Any], faulty: Collection[int], reason: str = NOT_NUMBERS) -> None:
    """See that no caption was chosen by scores that are not numbers.

    Args:
        captions: one for each image.
        faulty: places of those that were.
        reason: a sentence.

    Raises:
        NonFiniteScoresError: some were; it has the others.
    """
    if faulty:
        kept = [None if place in faulty else caption for place, caption in enumerate(captions)]
        raise NonFiniteScoresError(kept, dict.fromkeys(sorted(faulty), reason))
