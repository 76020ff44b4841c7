"""METEOR 1.5 through its original jar, as coco-caption runs it.

Source: Denkowski and Lavie, "Meteor Universal" (WMT 2014); the jar, its paraphrases and its parameters are
those of pycocoevalcap. The jar aligns; corpus scores come from summed statistics, so that they are resampled
here without Java.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.errors import ExternalToolError, MetricInputError
from captune.metrics.external.java import JavaProcess, coco_caption_folder, find_java
from captune.metrics.metric import Column, Metric
from captune.metrics.options import ScoringOptions
from captune.metrics.references import PredictionBatch

__all__ = ["METEOR_JAR", "Meteor", "MeteorResult", "meteor", "meteor_from_statistics"]

METEOR_JAR = "meteor-1.5.jar"
STATISTICS = 23
# All characters that some Java reader treats as the end of a line.
LINE_BREAKS = re.compile("[\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029]")

# Parameters of the English task "ranking", and the weights of exact, stem, synonym and paraphrase matches.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])


class Meteor(Metric):
    """METEOR 1.5 from 23 counts of each image; corpus scores come from summed counts, as the jar computes them."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("METEOR", description="Alignment of words with a reference; stems and synonyms count."),
    )
    needs: ClassVar[frozenset[str]] = frozenset({"java"})
    english_only: ClassVar[bool] = True

    @classmethod
    def check_requirements(cls, options: ScoringOptions) -> None:
        """Raise if Java or the jar is not installed."""
        find_java(options.java)
        coco_caption_folder("meteor")

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """Counts of each image, (N, 23)."""
        return meteor(
            predictions.tokenized,
            predictions.tokenized_references,
            java=self.options.java,
            memory=self.options.java_memory or "2G",
            timeout=self.options.time_limit or 300.0,
        ).statistics

    @classmethod
    def from_sums(cls, sums: NDArray[Any], images: int) -> NDArray[np.float64]:
        """From (B, 23) summed counts to (B, 1) scores."""
        return meteor_from_statistics(sums)[:, None]

    def signature(self) -> Mapping[str, str]:
        """The version of the jar."""
        return {"meteor": "1.5"}


@dataclass(frozen=True)
class MeteorResult:
    """METEOR of a corpus and of each image, 0 to 1.

    Args:
        corpus: score from the summed statistics (not the mean of the images).
        per_image: float64 (images,).
        statistics: float64 (images, 23) of the best reference of each image: lengths of hypothesis and
            reference, function words of both; then for exact, stem, synonym and paraphrase matches the
            content words of both and the function words of both; then chunks, matched words of both.
            A caption that is its reference word for word counts no chunk, as the jar adds none for it.
    """

    corpus: float
    per_image: NDArray[np.float64]
    statistics: NDArray[np.float64]


def meteor(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    java: str | os.PathLike[str] | None = None,
    memory: str = "2G",
    timeout: float = 300.0,
    progress: Callable[[int], None] | None = None,
) -> MeteorResult:
    """Score captions that are already tokenized (words joined by one space), as coco-caption passes them.

    Args:
        predictions: one caption an image.
        references: the references of each image, at least one.
        java: a `java` program; found automatically by default.
        memory: heap of the Java machine; 2G is what the paraphrase table needs.
        timeout: longest silence of the program in seconds. Loading takes about 8 seconds.
        progress: called with the number of images done.

    Raises:
        MetricInputError: the two differ in length, or an image has no reference.
        MissingExtraError: Java or the jar is not installed.
        ExternalToolError: the program failed, hung, or answered something else than numbers.
    """
    if len(predictions) != len(references):
        raise MetricInputError(f"METEOR got {len(predictions)} predictions for {len(references)} images.")
    if any(not group for group in references):
        raise MetricInputError("METEOR needs at least one reference for every image.")
    if not predictions:
        return MeteorResult(0.0, np.zeros(0), np.zeros((0, STATISTICS)))
    runtime = find_java(java)
    folder = coco_caption_folder("meteor")
    options = ["-jar", METEOR_JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    command = [str(runtime.path), *runtime.flags(memory), *options]
    with JavaProcess("METEOR", command, cwd=folder, timeout=timeout) as process:
        process.send(_input_lines(predictions, references))
        answers = []
        for done in range(1, len(predictions) + 1):
            answers.append(process.answer())
            if progress is not None:
                progress(done)
        process.send(["EVAL ||| " + " ||| ".join(answers)])
        scores = [_number(process.answer()) for _ in range(len(predictions) + 1)]
    return MeteorResult(scores[-1], np.array(scores[:-1]), _parse_statistics(answers))


def meteor_from_statistics(statistics: NDArray[np.float64]) -> NDArray[np.float64]:
    """The score computed from METEOR's 23 counts.

    Args:
        statistics: float64 (..., 23), of an image or summed over images.

    Returns:
        float64 (...,), 0 to 1; equal to the jar's own to about 1e-12.

    Source: equations 1 to 6 of the paper, with content and function words weighted by delta.
    """
    counts = np.asarray(statistics, dtype=np.float64)
    lengths, function_words = counts[..., 0:2], counts[..., 2:4]
    stages = counts[..., 4:20].reshape(*counts.shape[:-1], 4, 4)
    matched = DELTA * stages[..., 0:2] + (1 - DELTA) * stages[..., 2:4]  # (..., stage, hypothesis | reference)
    weighted = np.einsum("s,...sk->...k", WEIGHTS, matched)
    total = DELTA * (lengths - function_words) + (1 - DELTA) * function_words
    precision, recall = np.moveaxis(np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0), -1, 0)
    chunks, matches = counts[..., 20], counts[..., 21:23].mean(axis=-1)
    weighted_sum = ALPHA * precision + (1 - ALPHA) * recall
    mean = np.divide(precision * recall, weighted_sum, out=np.zeros_like(precision), where=weighted_sum > 0)
    share = np.divide(chunks, matches, out=np.zeros_like(matches), where=matches > 0)
    score: NDArray[np.float64] = mean * (1 - GAMMA * share**BETA)
    return score


def _input_lines(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Iterator[str]:
    """One line an image; the separator and line breaks inside captions would shift every later answer."""
    for prediction, group in zip(predictions, references, strict=True):
        parts = [_one_line(reference) for reference in group]
        parts.append(_one_line(prediction).replace("  ", " "))
        yield "SCORE ||| " + " ||| ".join(parts)


def _one_line(caption: str) -> str:
    return LINE_BREAKS.sub(" ", caption).replace("|||", "")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ExternalToolError(f"METEOR answered '{text[:80]}' where a number was expected.") from None


def _parse_statistics(answers: Sequence[str]) -> NDArray[np.float64]:
    rows = [[_number(word) for word in answer.split()] for answer in answers]
    if wrong := next((row for row in rows if len(row) != STATISTICS), None):
        raise ExternalToolError(f"METEOR answered {len(wrong)} counts for an image where {STATISTICS} were expected.")
    counts = np.array(rows)
    complete = (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1]) & (counts[:, 20] == 1)
    counts[complete, 20] = 0.0
    return counts
