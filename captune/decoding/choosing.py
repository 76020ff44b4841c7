"""Which token comes next: the likeliest, or one drawn from a stream that belongs to the image.

Letters: B rows, V vocabulary, M longest caption in tokens.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from captune.decoding.options import DecodingOptions

__all__ = ["draw", "penalised", "restricted", "stream"]


def stream(options: DecodingOptions, key: str) -> Tensor:
    """The M numbers in [0, 1) that draw an image's tokens; seed and key decide them, and nothing else.

    Returns:
        (M,) float64 on the CPU.
    """
    digest = hashlib.sha256(f"{options.seed}/{key}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(options.max_new_tokens, generator=generator, dtype=torch.float64)


_SMALLEST = 1e-6
"""Below this temperature the quotient could overflow, so the largest score is taken off first: 0 stays 0."""


def penalised(scores: Tensor, said: Tensor, penalty: float) -> Tensor:
    """Scores (B, V) with those of tokens already said, (B, V) bool, divided by the penalty (multiplied below 0)."""
    return torch.where(said, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def restricted(scores: Tensor, options: DecodingOptions) -> Tensor:
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


def draw(scores: Tensor, numbers: Tensor) -> Tensor:
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
