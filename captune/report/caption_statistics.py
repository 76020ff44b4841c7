"""Statistics of the captions of every checkpoint: length, vocabulary, words gained and lost, failures."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from captune.report.scores_json import CheckpointScores, RunScores

__all__ = [
    "WORD_CLASSES",
    "CaptionStatistics",
    "RunCaptions",
    "caption_statistics",
    "most_changed_words",
    "row_failures",
    "word_classes",
]

_CLASSES = """
people: man men woman women boy boys girl girls child children kid kids baby people person lady ladies guy guys crowd
people: group player players worker workers
colours: red orange yellow green blue purple pink brown black white gray grey beige tan golden silver dark light
numbers: one two three four five six seven eight nine ten several many few some couple both
places: in on at under over above below behind beside near between next front inside outside through across around
places: against along towards toward onto into
articles: a an the
"""


def _read_classes() -> dict[str, frozenset[str]]:
    """The lists above, by class."""
    classes: dict[str, frozenset[str]] = {}
    for line in _CLASSES.strip().splitlines():
        name, words = line.split(": ")
        classes[name] = classes.get(name, frozenset()) | frozenset(words.split())
    return classes


WORD_CLASSES: Mapping[str, frozenset[str]] = _read_classes()
"""Closed lists of English words; the class "actions" is any other word that ends in -ing."""


@dataclass(frozen=True, slots=True)
class CaptionStatistics:
    """The captions of one checkpoint, or all references.

    Attributes:
        lengths: words of every caption.
        words: how often every word occurs.
    """

    lengths: tuple[int, ...]
    words: Counter[str]

    @property
    def mean_length(self) -> float:
        """Words per caption; NaN without captions."""
        return statistics.fmean(self.lengths) if self.lengths else math.nan


@dataclass(frozen=True, slots=True)
class RunCaptions:
    """The captions of all rows, and the references.

    Attributes:
        rows: row name -> statistics, which are empty for a row without captions.
        references: statistics of all references.
    """

    rows: Mapping[str, CaptionStatistics]
    references: CaptionStatistics


def caption_statistics(run: RunScores) -> RunCaptions:
    """Tokenize and count the captions of every row, and the references."""
    from captune.metrics import tokenizer

    tokenize = tokenizer(tokenizer_name(run)).tokenize
    return RunCaptions(
        {row.name: _count(row.captions.values(), tokenize) for row in run.checkpoints},
        _count((text for texts in run.references.values() for text in texts), tokenize),
    )


def word_classes(words: Counter[str]) -> dict[str, float]:
    """The share of every word class among all words, 0 to 1; empty without words."""
    total = words.total()
    if not total:
        return {}
    shares = {name: sum(words[word] for word in members) / total for name, members in WORD_CLASSES.items()}
    listed = frozenset().union(*WORD_CLASSES.values())
    actions = sum(
        count for word, count in words.items() if len(word) > 4 and word.endswith("ing") and word not in listed
    )
    return {**shares, "actions": actions / total}


def most_changed_words(before: Counter[str], after: Counter[str], most: int = 20) -> tuple[list[str], list[str]]:
    """Words that only one of two checkpoints uses, the most frequent first.

    Returns:
        Words gained and words lost, at most `most` of each.
    """

    def only(left: Counter[str], right: Counter[str]) -> list[str]:
        # Equal counts in alphabetical order, so that the same captions give the same page.
        return sorted((word for word in left if word not in right), key=lambda word: (-left[word], word))[:most]

    return only(after, before), only(before, after)


def _count(captions: Iterable[str], tokenize: Callable[[str], Sequence[str]]) -> CaptionStatistics:
    """Count words, in lower case and without punctuation."""
    lengths, words = [], Counter[str]()
    for caption in captions:
        tokens = [token.lower() for token in tokenize(caption) if any(map(str.isalnum, token))]
        lengths.append(len(tokens))
        words.update(tokens)
    return CaptionStatistics(tuple(lengths), words)


def row_failures(run: RunScores, row: CheckpointScores) -> dict[str, tuple[str, ...]]:
    """Image id -> failures of its caption in one row, only for captions that have one."""
    from captune.metrics import find_failures

    captions, unfinished = row.captions, row.unfinished
    images = list(captions)
    references = [list(run.references.get(image, ())) for image in images] if run.references else None
    cut = None if unfinished is None else set(unfinished)
    by_caption = find_failures(
        list(captions.values()),
        references,
        finished=None if cut is None else [image not in cut for image in images],
        unclosed=[row.thinking.get(image) == "unclosed" for image in images],
        tokenize=tokenizer_name(run),
    )
    flagged = {image: tuple(by_caption.of(index)) for index, image in enumerate(images)}
    return {image: failures for image, failures in flagged.items() if failures}


def tokenizer_name(run: RunScores) -> str:
    """The tokenizer that fits: "zh-char" where references (or captions) are mostly Chinese characters, else "ptb"."""
    texts: list[str] = [text for texts in run.references.values() for text in texts][:200]
    texts = texts or list(run.checkpoints[-1].captions.values())[:200]
    letters = [mark for text in texts for mark in text[:500] if mark.isalpha()]
    chinese = sum("\u4e00" <= mark <= "\u9fff" for mark in letters)
    return "zh-char" if chinese * 2 > len(letters) else "ptb"
