"""References prepared for scoring: numbered, counted and weighed once, matched against any number of systems."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captune.errors import MetricInputError
from captune.metrics import bleu, cider, rouge
from captune.metrics.bleu import Bleu
from captune.metrics.encoding import Encoder, Rows
from captune.metrics.frequencies import DocumentFrequencies, NgramTable, image_counts
from captune.metrics.inputs import ImageId
from captune.metrics.matching import OrderIndex
from captune.metrics.ngrams import NgramCounts, count_ngrams

__all__ = ["ReferenceIndex"]

_CIDERS = frozenset(("cider", "cider-d"))


@dataclass(frozen=True, slots=True)
class _Weights:
    """CIDEr's view of the references.

    Attributes:
        grams: for each order (G,) float64, the weights of the references' n-grams.
        norms: (4, C) float64.
        unknown: the weight of an n-gram that stands in no reference of the corpus.
    """

    grams: tuple[NDArray[np.float64], ...]
    norms: NDArray[np.float64]
    unknown: float


class ReferenceIndex:
    """The references of N images, C captions in all.

    Args:
        encoder: what numbered the references, and will number the predictions.
        tokens: C rows of token numbers.
        offsets: (N + 1,) int64, where each image's references begin.
        ids: the images' names, for messages.
        metrics: keys of the metrics that will be asked for.
        frequencies: document frequencies of another corpus for CIDEr; None for those of these references.

    Raises:
        MetricInputError: CIDEr is asked for and no reference has a word.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokens: Rows,
        offsets: NDArray[np.int64],
        ids: Sequence[ImageId],
        metrics: Collection[str],
        frequencies: DocumentFrequencies | None,
    ) -> None:
        self._encoder, self._tokens, self._offsets, self._ids = encoder, tokens, offsets, ids
        self._metrics, self._frequencies = metrics, frequencies
        self._weights: _Weights | None = None
        words = encoder.words(tokens)
        self._lengths = words.lengths
        if _CIDERS.intersection(metrics) and not len(words.values):
            raise MetricInputError("no reference has a word, so CIDEr has nothing to weigh; look at the references")
        if _CIDERS.intersection(metrics) or "bleu" in metrics:
            self._index(words)

    def _index(self, words: Rows) -> None:
        """Count the references' n-grams and, for CIDEr, weigh them."""
        weigh = bool(_CIDERS.intersection(self._metrics))
        images = len(self._offsets) - 1
        image_of = np.repeat(np.arange(images, dtype=np.int32), np.diff(self._offsets))
        base = self._encoder.vocabulary_size
        foreign = _ForeignCounts(self._frequencies, self._encoder) if self._frequencies is not None else None
        size = images if self._frequencies is None else self._frequencies.images
        keys, orders, weights, norms = [], [], [], []
        for order, counts in enumerate(count_ngrams(words, base), start=1):
            keys.append(counts.keys)
            orders.append(OrderIndex.of(counts, len(words)))
            if weigh:
                known = foreign.of(counts, order, base) if foreign is not None else image_counts(counts, image_of)
                weights.append(cider.inverse_document_frequencies(known, size))
                norms.append(cider.norms(counts, weights[-1], words.offsets))
        self._table = NgramTable(tuple(keys), base)
        self._orders = tuple(orders)
        if weigh:
            self._weights = _Weights(tuple(weights), np.array(norms), float(np.log(float(size))))

    def statistics(self, tokens: Rows) -> dict[str, NDArray[Any]]:
        """Score one prediction for each image.

        Args:
            tokens: N rows of token numbers from the same encoder.

        Returns:
            For each metric its statistics, (N, K).
        """
        words = self._encoder.words(tokens)
        clipped, scores = self._match(words) if self._metrics != ("rouge-l",) else (None, None)
        result: dict[str, NDArray[Any]] = {}
        for key in self._metrics:
            if key == "bleu" and clipped is not None:
                closest = bleu.closest_lengths(words.lengths, self._lengths, self._offsets)
                result[key] = Bleu.statistics(words.lengths, closest, clipped)
            elif key in _CIDERS and scores is not None:
                result[key] = scores[:, None]
            elif key == "rouge-l":
                rouge_l = rouge.scores_of_images(tokens, self._tokens, self._offsets, self._ids)
                result[key] = rouge_l[:, None]
        return result

    def _match(self, words: Rows) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Clipped counts of each image and order, (N, 4), and CIDEr of each image, (N,), if it is weighed."""
        base = self._encoder.vocabulary_size
        weights = self._weights
        foreign = _ForeignCounts(self._frequencies, self._encoder) if self._frequencies is not None else None
        clipped, overlap, norms = [], [], []
        located = np.zeros(0, np.int32)
        for order, counts in enumerate(count_ngrams(words, base), start=1):
            located = self._table.locate(counts, order, base, located)
            matches = self._orders[order - 1].match(counts, located, self._offsets)
            clipped.append(bleu.clipped_counts(matches, len(words)))
            if weights is None:
                continue
            grams = weights.grams[order - 1]
            overlap.append(cider.overlaps(matches, grams, len(self._lengths)))
            if foreign is not None:
                size = foreign.frequencies.images
                own = cider.inverse_document_frequencies(foreign.of(counts, order, base), size)
            else:
                own = np.append(grams, weights.unknown)[located]
            norms.append(cider.norms(counts, own, words.offsets))
        if weights is None:
            return np.column_stack(clipped), None
        scores = cider.scores_of_images(
            np.array(overlap), np.array(norms), weights.norms, words.lengths, self._lengths, self._offsets
        )
        return np.column_stack(clipped), scores


class _ForeignCounts:
    """Another corpus's document frequencies for n-grams of this encoder, order by order."""

    def __init__(self, frequencies: DocumentFrequencies, encoder: Encoder) -> None:
        self.frequencies = frequencies
        self._words = frequencies.words_of(encoder.vocabulary)
        self._located = np.zeros(0, np.int32)

    def of(self, counts: NgramCounts, order: int, base: int) -> NDArray[np.int32]:
        """(G,) int32, in how many of the corpus's images each n-gram stands; to be asked in ascending order."""
        self._located = self.frequencies.table.locate(counts, order, base, self._located, self._words)
        return np.append(self.frequencies.counts[order - 1], np.int32(0))[self._located]
