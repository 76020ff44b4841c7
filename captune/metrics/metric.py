"""The interface of a metric: one class gives its statistics, its scores, its columns and what it needs.

N images, K statistics of an image, B resamples, M columns. A metric computes one row of statistics for an image, and
every corpus score is a function of the sum of the rows and of the number of images. Confidence intervals and paired
tests therefore work for any metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from captune.metrics.options import ScoringOptions
from captune.metrics.references import PredictionBatch, ReferenceIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Column", "MeanOfImages", "Metric"]


class Column(NamedTuple):
    """One score of a metric, as tables, charts and the report print it.

    Attributes:
        name: heading of the column, such as "BLEU-4".
        top: upper end of the scale, which starts at 0; None for a score without bounds.
        higher_is_better: direction of improvement.
        description: what it measures, one sentence for a reader of a report; empty shows the metric's docstring.
    """

    name: str
    top: float | None = 1.0
    higher_is_better: bool = True
    description: str = ""

    @property
    def scale(self) -> str:
        """The scale in print, "0-10"."""
        return "unbounded" if self.top is None else f"0-{round(self.top, 1):g}"


class Metric(ABC):
    """Base class of all metrics.

    Attributes:
        columns: the M scores that it yields.
        needs: what must be there besides captions, out of "java", "clip" and "images".
        english_only: whether it knows English only.
        uses_document_frequencies: whether scores depend on how many images hold an n-gram, which is undefined for one
            image and is kept from the complete set in resampling.
        forks: whether `statistics` may run on a part of the images in a forked process.

    Args:
        options: of the scorer.
    """

    columns: ClassVar[tuple[Column, ...]]
    needs: ClassVar[frozenset[str]] = frozenset()
    english_only: ClassVar[bool] = False
    uses_document_frequencies: ClassVar[bool] = False
    forks: ClassVar[bool] = False

    def __init__(self, options: ScoringOptions) -> None:
        self.options = options

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in cls.columns)

    @classmethod  # noqa: B027 - optional
    def check_requirements(cls, options: ScoringOptions) -> None:
        """Raise, before anything is computed, the error of a program or file that is not installed."""

    def prepare(self, references: ReferenceIndex) -> None:  # noqa: B027 - optional
        """Compute once what all systems share."""

    @abstractmethod
    def statistics(self, predictions: PredictionBatch) -> NDArray[Any]:
        """Statistics of each image, (N, K)."""

    @classmethod
    def per_image(cls, statistics: NDArray[Any]) -> NDArray[np.float64]:
        """From (N, K) statistics to the scores of each image, (N, M)."""
        return cls.from_sums(statistics, 1)

    @classmethod
    def corpus(cls, statistics: NDArray[Any]) -> NDArray[np.float64]:
        """From (N, K) statistics to the scores of the corpus, (M,)."""
        scores: NDArray[np.float64] = cls.from_sums(statistics.sum(axis=0, keepdims=True), len(statistics))[0]
        return scores

    @classmethod
    @abstractmethod
    def from_sums(cls, sums: NDArray[Any], images: int) -> NDArray[np.float64]:
        """From (B, K) statistics, each row summed over `images` images, to the scores of B corpora, (B, M)."""

    def notes(self) -> Sequence[str]:
        """What a reader of the last scores must know, a sentence each; read after `statistics`."""
        return ()

    def signature(self) -> Mapping[str, str]:
        """Fields of the signature, such as {"meteor": "1.5"}; read after `statistics`."""
        return {}


class MeanOfImages(Metric):
    """A metric whose statistics are the scores of the images, and whose corpus score is their mean; K = M."""

    @classmethod
    def per_image(cls, statistics: NDArray[Any]) -> NDArray[np.float64]:
        """The scores as they are, (N, M)."""
        return statistics

    @classmethod
    def corpus(cls, statistics: NDArray[Any]) -> NDArray[np.float64]:
        """The mean of each column, (M,)."""
        # The sum of a contiguous column is pairwise, as in the original.
        return np.array([np.mean(np.ascontiguousarray(column)) for column in statistics.T])

    @classmethod
    def from_sums(cls, sums: NDArray[Any], images: int) -> NDArray[np.float64]:
        """The means of B resampled corpora, (B, M)."""
        scores: NDArray[np.float64] = sums / images
        return scores
