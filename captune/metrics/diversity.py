"""Diversity of a system's captions, without references.

A captioner that writes "a man riding a wave" for every third image can score well; these numbers show it.
All of them depend on the number of captions: compare them on the same images only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from captune.metrics.encoding import Encoder, Rows
from captune.metrics.tokenizers import tokenizer

__all__ = ["Diversity", "measure_diversity"]


@dataclass(frozen=True, eq=False)
class Diversity:
    """Diversity of N captions.

    Attributes:
        distinct_1: different words over all words, 0 to 1 (Li et al., NAACL 2016); nan where there is no word.
        distinct_2: different word pairs over all word pairs, 0 to 1; nan where no caption has two words.
        vocabulary: how many different words there are.
        mean_length: words a caption.
        unique: different captions over captions, 0 to 1, compared word by word.
        novel: captions that are no training caption, 0 to 1, compared word by word; None without training captions.
        lengths: (N,) int64, words of each caption.
        is_novel: (N,) bool, or None without training captions.
    """

    distinct_1: float
    distinct_2: float
    vocabulary: int
    mean_length: float
    unique: float
    novel: float | None
    lengths: NDArray[np.int64]
    is_novel: NDArray[np.bool_] | None

    def to_dict(self) -> dict[str, float | int | None]:
        """The numbers of the complete set by their printed names; nan becomes None."""
        numbers: dict[str, float | int | None] = {
            "distinct-1": self.distinct_1,
            "distinct-2": self.distinct_2,
            "vocabulary": self.vocabulary,
            "mean length": self.mean_length,
            "unique": self.unique,
        }
        if self.novel is not None:
            numbers["novel"] = self.novel
        return {name: None if value != value else value for name, value in numbers.items()}


def measure_diversity(
    captions: Sequence[str], *, tokenize: str = "ptb", training: Sequence[str] | None = None
) -> Diversity:
    """Measure diversity.

    Args:
        captions: one for an image, N of them.
        tokenize: name of the tokenizer that finds the words.
        training: captions that the system was trained on, in any order.

    Returns:
        Shares, counts, and flags of single captions.
    """
    encoder = Encoder(tokenizer(tokenize))
    words = encoder.words(encoder.encode(captions))
    is_novel = None
    if training is not None:
        known = _keys(encoder.words(encoder.encode(training)))
        is_novel = np.array([key not in known for key in _key_list(words)], np.bool_)
    total, lengths = len(words.values), words.lengths
    pairs = word_pairs(words)
    vocabulary = len(np.unique(words.values))
    return Diversity(
        distinct_1=vocabulary / total if total else float("nan"),
        distinct_2=len(np.unique(pairs)) / len(pairs) if len(pairs) else float("nan"),
        vocabulary=vocabulary,
        mean_length=float(lengths.mean()) if len(lengths) else float("nan"),
        unique=len(_keys(words)) / len(words) if len(words) else float("nan"),
        novel=None if is_novel is None else float(is_novel.mean()) if len(is_novel) else float("nan"),
        lengths=lengths,
        is_novel=is_novel,
    )


def word_pairs(words: Rows) -> NDArray[np.int64]:
    """A number for each pair of neighbouring words of a caption, equal for equal pairs."""
    values = words.values.astype(np.int64)
    if len(values) < 2:
        return np.zeros(0, np.int64)
    inside = np.ones(len(values) - 1, np.bool_)
    ends = words.offsets[1:-1]
    inside[ends[(ends > 0) & (ends < len(values))] - 1] = False
    pairs: NDArray[np.int64] = (values[:-1] << 32 | values[1:])[inside]
    return pairs


def _key_list(words: Rows) -> list[bytes]:
    """The words of each caption as bytes, which are quick to compare."""
    raw, bounds = words.values.tobytes(), (words.offsets * words.values.itemsize).tolist()
    return [raw[start:stop] for start, stop in pairwise(bounds)]


def _keys(words: Rows) -> set[bytes]:
    return set(_key_list(words))
