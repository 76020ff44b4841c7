"""How the words of one set of captions differ from those of another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from captune.metrics.ptb import tokenize_batch

__all__ = ["divergence", "unseen_share", "word_counts"]


def word_counts(captions: Iterable[str]) -> Counter[str]:
    """How often each token stands in captions, as coco-caption's metrics see them."""
    counts: Counter[str] = Counter()
    for tokens in tokenize_batch(list(captions)):
        counts.update(tokens)
    return counts


def unseen_share(words: Counter[str], known: Counter[str]) -> float:
    """The share of running words that stand nowhere in `known`, 0-1; 0 where there are no words."""
    total = words.total()
    return sum(count for word, count in words.items() if word not in known) / total if total else 0.0


def divergence(one: Counter[str], other: Counter[str]) -> float:
    """Jensen-Shannon divergence of two distributions of words, in bits (Lin 1991).

    Returns:
        0 where they are equal, 1 where they have no word in common, or one of them has none at all.
    """
    if not one or not other:
        return 0.0 if one == other else 1.0
    first, second = one.total(), other.total()
    parts = []
    for word in one.keys() | other.keys():
        p, q = one[word] / first, other[word] / second
        middle = (p + q) / 2
        parts += [share * math.log2(share / middle) for share in (p, q) if share]
    # Rounded once: a set's order differs from process to process, and the number must not.
    return min(1.0, max(0.0, math.fsum(parts) / 2))
