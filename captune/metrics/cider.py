"""CIDEr as coco-caption computes it, which is the variant that its paper calls CIDEr-D.

Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015): n-grams of order 1 to 4
weighted by term frequency and inverse document frequency, compared by cosine; the D variant clips a prediction's
weights to the reference's, and takes off for a difference in length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.document_frequencies import CorpusCounts, DocumentFrequencies
from captune.metrics.metric import Column, MeanOfImages
from captune.metrics.ngram_matching import Matches, NgramIndex, OrderMatches
from captune.metrics.ngrams import Ngrams
from captune.metrics.references import PredictionBatch, ReferenceIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Cider", "CiderD", "Weights", "bigram_counts", "norms", "overlaps", "scores_of_images"]

_SIGMA = 6.0
# From this difference on the length penalty is 0 in double precision.
_LONGEST_DIFFERENCE = 256
_PENALTY = np.array(
    [math.e ** (-(float(d) ** 2) / (2 * _SIGMA**2)) for d in range(_LONGEST_DIFFERENCE + 1)], np.float64
)


class Cider(MeanOfImages):
    """CIDEr; every image keeps its document frequencies in resampling."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "CIDEr",
            10.0,
            description="Agreement with all references, in which frequent words count less; the usual caption metric.",
        ),
    )
    uses_document_frequencies: ClassVar[bool] = True
    forks: ClassVar[bool] = True

    def prepare(self, references: ReferenceIndex) -> None:
        """Weigh the n-grams of the references.

        Raises:
            MetricInputError: no reference has a word, or there is one image only and no other corpus.
        """
        external = self.options.document_frequencies
        if external is not None and not isinstance(external, DocumentFrequencies):
            external = DocumentFrequencies.load(external)
        if external is None and len(references.ids) == 1:
            raise MetricInputError(
                "CIDEr of one image alone is undefined, since every n-gram is in every image; give the document "
                "frequencies of a corpus (DocumentFrequencies) or leave CIDEr out of the metrics"
            )
        if not len(references.words.values):
            raise MetricInputError("no reference has a word, so CIDEr has nothing to weigh; look at the references")
        self._external = external
        self._weights = Weights(len(references.ids) if external is None else external.images)
        self._corpus = None if external is None else CorpusCounts(external, references.encoder)
        self._counts: list[NDArray[np.int32]] = []
        self._norms: list[NDArray[np.float64]] = []
        references.require_ngrams(self._compare, self._weigh)

    def _weigh(self, ngrams: Ngrams, index: NgramIndex) -> None:
        """Note the document frequencies of an order's n-grams and the norms of the references' vectors."""
        known = ngrams.images if self._corpus is None else self._corpus.next_order(ngrams.keys, index.vocabulary)
        # Number -1 of an unknown n-gram selects the 0 at the end.
        self._counts.append(np.append(known, np.int32(0)))
        squares = self._weights.vector_squares(ngrams, known)
        self._norms.append(norms(squares, index.caption_at, index.references))

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """CIDEr of each image, (N, 1)."""
        overlap, prediction_norms = zip(*predictions.per_order(self._compare), strict=True)
        return scores_of_images(
            np.array(overlap),
            np.array(prediction_norms),
            np.array([norm[predictions.references_of] for norm in self._norms]),
            self.penalties(predictions),
            predictions.offsets,
        )[:, None]

    def penalties(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """The factor of each reference's similarity, (C,) float64: a Gaussian of the difference in length."""
        ours, others = bigram_counts(predictions)
        penalties: NDArray[np.float64] = _PENALTY[np.minimum(np.abs(ours - others), _LONGEST_DIFFERENCE)]
        return penalties

    def _compare(
        self, predictions: PredictionBatch
    ) -> Callable[[OrderMatches], tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """A function that computes the overlaps and the norms of the predictions for each order in turn."""
        external = None if self._external is None else CorpusCounts(self._external, predictions.encoder)

        def compare(order: OrderMatches) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            counts = self._counts[order.order - 1]
            weights = self._weights.of(counts.take(order.matches.gram))
            overlap = overlaps(order.matches, weights, len(predictions.reference_lengths))
            if external is None:
                known = counts.take(order.located)
            else:
                known = external.next_order(order.ngrams.keys, predictions.vocabulary)
            squares = self._weights.vector_squares(order.ngrams, known)
            return overlap, norms(squares, predictions.prediction_at, len(predictions))

        return compare

    @property
    def frequencies_source(self) -> str:
        """The corpus that document frequencies come from, as the signature shows it."""
        return "corpus" if self._external is None else f"{self._external.source}({self._external.images})"

    def signature(self) -> Mapping[str, str]:
        """The variant, and the corpus that document frequencies come from."""
        return {"cider": f"D,df={self.frequencies_source}"}


class CiderD(Cider):
    """The same number under the name that the paper gives the variant."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("CIDEr-D", 10.0, description="CIDEr with limited repetition and a penalty for a different length."),
    )


class Weights:
    """The weights of n-grams by their document frequency: ln(images) - ln(max(1, frequency)).

    Args:
        images: how many images the corpus has.
    """

    def __init__(self, images: int) -> None:
        frequencies = np.maximum(1.0, np.arange(images + 1, dtype=np.float64))
        self._values = np.log(float(images)) - np.log(frequencies)
        self._squares = _squares(self._values)
        self._squares_of_two = _squares(2 * self._values)
        self._buffer = np.empty(0)

    def of(self, frequencies: NDArray[np.int32]) -> NDArray[np.float64]:
        """The weight of each n-gram, (G,), from its document frequency."""
        weights: NDArray[np.float64] = self._values[frequencies]
        return weights

    def _buffer_of(self, size: int) -> NDArray[np.float64]:
        """A buffer of this size, reused between calls: allocating one takes as long as the sum."""
        if len(self._buffer) != size:
            self._buffer = np.empty(size)
        return self._buffer

    def vector_squares(self, ngrams: Ngrams, frequencies: NDArray[np.int32]) -> NDArray[np.float64]:
        """The squared components of all captions' vectors, where their n-grams first occur; 0 at other words.

        Args:
            ngrams: n-grams of one order.
            frequencies: (G,) document frequencies of the n-grams.

        Returns:
            (P,) float64, in memory that the next call writes to.
        """
        # Where no n-gram begins, number -1 finds the 0 at the end.
        of_gram = np.append(self._squares.take(frequencies), 0.0)
        squares = of_gram.take(ngrams.at, out=self._buffer_of(len(ngrams.at)), mode="wrap")
        first, times, later = ngrams.repeats
        squares[later] = 0.0
        frequency = frequencies.take(ngrams.at.take(first))
        squares[first] = self._squares_of_two.take(frequency)
        more = np.flatnonzero(times > 2)
        squares[first[more]] = _squares(times[more] * self._values.take(frequency[more]))
        return squares


def _squares(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The squares by `pow`, as in the original; a product differs in the last digit once in a thousand."""
    return np.fromiter(map(math.pow, weights.tolist(), repeat(2.0)), np.float64, len(weights))


def norms(squares: NDArray[np.float64], caption_of: NDArray[np.int64], captions: int) -> NDArray[np.float64]:
    """The length of each caption's vector of one order, (C,) float64.

    Args:
        squares: (P,) squared components in the order of the words.
        caption_of: (P,) int64, the caption of each word.
        captions: how many there are, C.
    """
    # bincount adds in the order of the words, and so does the original.
    return np.sqrt(np.bincount(caption_of, squares, captions))


def overlaps(matches: Matches, weight: NDArray[np.float64], references: int) -> NDArray[np.float64]:
    """Clipped dot product of each reference's vector with its prediction's, (C,) float64.

    Args:
        matches: shared n-grams of one order.
        weight: (M,) the weights of the shared n-grams.
        references: how many references there are, C.
    """
    predicted = matches.prediction_times * weight
    referred = matches.reference_times * weight
    products = np.minimum(predicted, referred) * referred
    return np.bincount(matches.reference, products, references).astype(np.float64, copy=False)


def bigram_counts(predictions: PredictionBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The length of each reference's prediction and of each reference, (C,) int64 each.

    The original measures length in bigrams, so captions of no word and of one word are equally long.
    """
    image_of = np.repeat(np.arange(len(predictions)), np.diff(predictions.offsets))
    ours = np.maximum(0, predictions.words.lengths - 1)[image_of]
    return ours, np.maximum(0, predictions.reference_lengths - 1)


def scores_of_images(
    overlap: NDArray[np.float64],
    prediction_norms: NDArray[np.float64],
    reference_norms: NDArray[np.float64],
    penalty: NDArray[np.float64],
    image_offsets: NDArray[np.int64],
) -> NDArray[np.float64]:
    """CIDEr of each image, (N,) float64.

    Args:
        overlap: (4, C) clipped dot products.
        prediction_norms: (4, N).
        reference_norms: (4, C).
        penalty: (C,) factor of each reference's similarity.
        image_offsets: (N + 1,) where each image's references begin.
    """
    per_image = np.diff(image_offsets)
    image_of = np.repeat(np.arange(len(per_image)), per_image)
    total = np.zeros(len(per_image))
    for order in range(len(overlap)):
        norm = prediction_norms[order][image_of] * reference_norms[order]
        norm[norm == 0] = 1.0
        similarity = overlap[order] / norm * penalty
        total += np.bincount(image_of, similarity, len(per_image))
    return total / len(overlap) / per_image * 10.0
