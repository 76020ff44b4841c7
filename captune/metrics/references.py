"""References prepared for scoring: numbered, counted and weighed once, matched against any number of systems."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.errors import MetricInputError
from captune.metrics import bleu, cider, rouge
from captune.metrics.encoding import Encoder, Rows
from captune.metrics.frequencies import DocumentFrequencies, NgramTable
from captune.metrics.inputs import ImageId
from captune.metrics.matching import OrderIndex
from captune.metrics.ngrams import sort_ngrams
from captune.metrics.parallel import apart, can_fork, shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ReferenceIndex"]

_CIDERS = frozenset(("cider", "cider-d"))

# Below so many for each a process takes longer to come and go than it saves.
_FEWEST_IMAGES = 4_000


class ReferenceIndex:
    """The references of N images, C captions in all.

    Args:
        encoder: what numbered the references, and will number the predictions.
        tokens: C rows of token numbers.
        offsets: (N + 1,) int64, where each image's references begin.
        ids: the images' names, for messages.
        metrics: keys of the metrics that will be asked for.
        frequencies: document frequencies of another corpus for CIDEr; None for those of these references.
        jobs: how many processes score at most.

    Raises:
        MetricInputError: CIDEr is asked for, and no reference has a word or there is one image only.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokens: Rows,
        offsets: NDArray[np.int64],
        ids: Sequence[ImageId],
        metrics: Sequence[str],
        frequencies: DocumentFrequencies | None,
        jobs: int = 1,
    ) -> None:
        self._encoder, self._tokens, self._offsets, self._ids = encoder, tokens, offsets, ids
        self._metrics, self._frequencies, self._jobs = metrics, frequencies, jobs
        self._weights: cider.Weights | None = None
        words = encoder.words(tokens)
        self._lengths = words.lengths
        if _CIDERS.intersection(metrics):
            if frequencies is None and len(ids) == 1:
                raise MetricInputError(
                    "CIDEr of one image alone is undefined, since every n-gram is in every image; give the document "
                    "frequencies of a corpus (DocumentFrequencies) or leave CIDEr out of the metrics"
                )
            if not len(words.values):
                raise MetricInputError("no reference has a word, so CIDEr has nothing to weigh; look at the references")
            self._weights = cider.Weights(len(ids) if frequencies is None else frequencies.images)
        if self._weights is not None or "bleu" in metrics:
            self._index(words)

    def _index(self, words: Rows) -> None:
        """Count the references' n-grams and, for CIDEr, weigh them."""
        caption_at = words.owners
        base = self._encoder.vocabulary_size
        foreign = self._foreign_counts()
        keys, orders, frequencies, norms = [], [], [], []
        for ngrams in sort_ngrams(words, base, caption_at, self._offsets):
            keys.append(ngrams.keys)
            orders.append(OrderIndex(ngrams.slots, ngrams.bits))
            if self._weights is not None:
                known = ngrams.images if foreign is None else foreign.next_order(ngrams.keys, base)
                # The number -1 of an unknown n-gram finds the 0 at the end.
                frequencies.append(np.append(known, np.int32(0)))
                norms.append(cider.norms(self._weights.vector_squares(ngrams, known), caption_at, len(words)))
        self._table = NgramTable(tuple(keys), base)
        self._orders, self._counts, self._norms = tuple(orders), tuple(frequencies), np.array(norms)
        self._reference_at = caption_at
        self._image_bounds = words.offsets[self._offsets]

    def _foreign_counts(self) -> _ForeignCounts | None:
        if self._weights is None or self._frequencies is None:
            return None
        return _ForeignCounts(self._frequencies, self._encoder)

    def statistics(self, tokens: Rows) -> dict[str, NDArray[Any]]:
        """Score one prediction for each image; of several processes each scores a share of the images.

        Args:
            tokens: N rows of token numbers from the same encoder.

        Returns:
            For each metric its statistics, (N, K).

        Raises:
            MetricInputError: captions are too long to be compared.
            ExternalToolError: a process failed.
        """
        jobs = min(self._jobs, len(tokens) // _FEWEST_IMAGES) if can_fork() else 1
        first, *others = shares(len(tokens), jobs)
        with ExitStack() as processes:
            answers = [processes.enter_context(apart(partial(self._statistics, tokens, *share))) for share in others]
            parts = [self._statistics(tokens, *first), *(answer() for answer in answers)]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _statistics(self, tokens: Rows, start: int, end: int) -> dict[str, NDArray[Any]]:
        """The statistics of the images from `start` to before `end`."""
        captions = slice(self._offsets[start], self._offsets[end])
        offsets = self._offsets[start : end + 1] - captions.start
        tokens = tokens.part(start, end)
        words = self._encoder.words(tokens)
        result: dict[str, NDArray[Any]] = {}
        if self._weights is not None or "bleu" in self._metrics:
            clipped, scores = self._match(words, self._image_bounds[start : end + 1], captions, offsets)
        for key in self._metrics:
            if key == "bleu":
                closest = bleu.closest_lengths(words.lengths, self._lengths[captions], offsets)
                result[key] = bleu.Bleu.statistics(words.lengths, closest, clipped)
            elif key in _CIDERS:
                result[key] = scores[:, None]
            elif key == "rouge-l":
                theirs = self._tokens.part(captions.start, captions.stop)
                result[key] = rouge.scores_of_images(tokens, theirs, offsets, self._ids[start:end])[:, None]
        return result

    def _match(
        self, words: Rows, image_bounds: NDArray[np.int64], captions: slice, offsets: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Clipped counts of some images and orders, (n, 4), and their CIDEr, (n,), which is empty if it is not weighed.

        Args:
            words: the predictions of n images.
            image_bounds: (n + 1,) where the words of each image's references begin.
            captions: which references are theirs.
            offsets: (n + 1,) where each image's references begin among these.
        """
        base = self._encoder.vocabulary_size
        foreign = self._foreign_counts()
        prediction_at = words.owners
        clipped, overlap, norms = [], [], []
        located = np.zeros(0, np.int32)
        possible = np.ones(len(words.values), np.bool_)
        for order, ngrams in enumerate(sort_ngrams(words, base, prediction_at, np.arange(len(words) + 1))):
            if order:
                possible[:-1] &= possible[1:]
            located = self._table.locate(ngrams.keys, order + 1, base, located)
            matches = self._orders[order].match(
                ngrams, located, prediction_at, self._reference_at, image_bounds, possible
            )
            clipped.append(bleu.clipped_counts(matches, len(words)))
            if self._weights is None:
                continue
            weights = self._weights.of(self._counts[order].take(matches.gram))
            overlap.append(cider.overlaps(matches, weights, len(self._lengths))[captions])
            known = self._counts[order].take(located) if foreign is None else foreign.next_order(ngrams.keys, base)
            norms.append(cider.norms(self._weights.vector_squares(ngrams, known), prediction_at, len(words)))
        if self._weights is None:
            return np.column_stack(clipped), np.zeros(0)
        reference_norms, lengths = self._norms[:, captions], self._lengths[captions]
        return np.column_stack(clipped), cider.scores_of_images(
            np.array(overlap), np.array(norms), reference_norms, words.lengths, lengths, offsets
        )


class _ForeignCounts:
    """Another corpus's document frequencies for this encoder's n-grams, order by order."""

    def __init__(self, frequencies: DocumentFrequencies, encoder: Encoder) -> None:
        self._frequencies = frequencies
        self._words = frequencies.words_of(encoder.vocabulary)
        self._order = 0
        self._located = np.zeros(0, np.int32)

    def next_order(self, keys: NDArray[np.int64], base: int) -> NDArray[np.int32]:
        """(G,) int32, in how many of the corpus's images each n-gram stands; to be asked for every order in turn."""
        self._order += 1
        self._located = self._frequencies.table.locate(keys, self._order, base, self._located, self._words)
        return np.append(self._frequencies.counts[self._order - 1], np.int32(0)).take(self._located)
