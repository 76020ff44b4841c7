"""What the captions of every checkpoint look like: length, vocabulary, words gained and lost, failures."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from captune.report.scores_json import RunScores

__all__ = [
    "WORD_CLASSES",
    "CaptionStatistics",
    "caption_statistics",
    "mean_lengths",
    "most_changed_words",
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
        failures: image id -> the failures of its caption, only where there is one.
    """

    lengths: tuple[int, ...]
    words: Counter[str]
    failures: Mapping[str, tuple[str, ...]]

    @property
    def mean_length(self) -> float:
        """Words a caption; NaN without captions."""
        return statistics.fmean(self.lengths) if self.lengths else float("nan")


def caption_statistics(run: RunScores) -> tuple[list[CaptionStatistics], CaptionStatistics]:
    """Measure the captions of every row, and the references.

    Args:
        run: rows with captions; a row without them has empty statistics.

    Returns:
        One entry a row, and one for all references.
    """
    name, tokenize = _tokenizer(run)
    rows = []
    for row in run.checkpoints:
        lengths, words = _count(row.captions.values(), tokenize)
        rows.append(CaptionStatistics(lengths, words, _failures(run, row.captions, row.unfinished, name)))
    lengths, words = _count((text for texts in run.references.values() for text in texts), tokenize)
    return rows, CaptionStatistics(lengths, words, {})


def mean_lengths(run: RunScores) -> tuple[list[float], float]:
    """Words a caption in every row, and in the references; NaN where there are none."""
    _, tokenize = _tokenizer(run)
    groups = [list(row.captions.values()) for row in run.checkpoints]
    groups.append([text for texts in run.references.values() for text in texts])
    *rows, references = [_count(group, tokenize)[0] for group in groups]
    means = [statistics.fmean(lengths) if lengths else math.nan for lengths in rows]
    return means, statistics.fmean(references) if references else math.nan


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


def _count(captions: Iterable[str], tokenize: Callable[[str], Sequence[str]]) -> tuple[tuple[int, ...], Counter[str]]:
    """Words of every caption, and how often each word occurs (in lower case, words and not marks)."""
    lengths, words = [], Counter[str]()
    for caption in captions:
        tokens = [token.lower() for token in tokenize(caption) if any(map(str.isalnum, token))]
        lengths.append(len(tokens))
        words.update(tokens)
    return tuple(lengths), words


def _failures(
    run: RunScores, captions: Mapping[str, str], unfinished: Sequence[str] | None, tokenizer_name: str
) -> dict[str, tuple[str, ...]]:
    """The failures of every caption that has one."""
    from captune.metrics import find_failures

    images = list(captions)
    references = [list(run.references.get(image, ())) for image in images] if run.references else None
    cut = None if unfinished is None else set(unfinished)
    by_caption = find_failures(
        list(captions.values()),
        references,
        finished=None if cut is None else [image not in cut for image in images],
        tokenize=tokenizer_name,
    )
    flagged = {image: tuple(by_caption.of(index)) for index, image in enumerate(images)}
    return {image: failures for image, failures in flagged.items() if failures}


def _tokenizer(run: RunScores) -> tuple[str, Callable[[str], Sequence[str]]]:
    """Name and function of the tokenizer that finds the words of the run's language."""
    from captune.metrics import tokenizer

    name = tokenizer_name(run)
    return name, tokenizer(name).tokenize


def tokenizer_name(run: RunScores) -> str:
    """The tokenizer that fits: "zh-char" where references (or captions) are mostly Chinese characters, else "ptb"."""
    texts: list[str] = [text for texts in run.references.values() for text in texts][:200]
    texts = texts or list(run.checkpoints[-1].captions.values())[:200]
    letters = [mark for text in texts for mark in text[:500] if mark.isalpha()]
    chinese = sum("\u4e00" <= mark <= "\u9fff" for mark in letters)
    return "zh-char" if chinese * 2 > len(letters) else "ptb"
