"""References prepared once for any number of systems, and the predictions that metrics compare with them.

N images, C references, n images of a batch. What several metrics need, such as the matched n-grams of BLEU and CIDEr,
is computed on first use and cached.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.encoding import Encoder, Rows
from captune.metrics.inputs import ImageId
from captune.metrics.ngram_matching import NgramIndex, OrderMatches
from captune.metrics.ngrams import Ngrams

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OrderConsumer", "PredictionBatch", "ReferenceIndex"]

OrderConsumer = Callable[["PredictionBatch"], Callable[[OrderMatches], Any]]


class ReferenceIndex:
    """The references of N images, C captions in all.

    Args:
        encoder: numbered the references, and will number the predictions.
        tokens: C rows of token numbers.
        offsets: (N + 1,) int64, where each image's references begin.
        captions: image id to references.
        image_files: image id to file, for metrics that need images.

    Attributes:
        ids: the images.
        ngrams: the n-grams of order 1 to 4, once `finish` has sorted them.
        order_consumers: what metrics compute from the matches of each order.
    """

    ngrams: NgramIndex

    def __init__(
        self,
        encoder: Encoder,
        tokens: Rows,
        offsets: NDArray[np.int64],
        captions: Mapping[ImageId, Sequence[str]],
        image_files: Mapping[ImageId, str | Path] | None = None,
    ) -> None:
        self.encoder, self.tokens, self.offsets, self.captions = encoder, tokens, offsets, captions
        self.image_files = None if image_files is None else {i: Path(file) for i, file in image_files.items()}
        self.ids = tuple(captions)
        self.order_consumers: list[OrderConsumer] = []
        self._consumers: list[Callable[[Ngrams, NgramIndex], None]] = []

    @cached_property
    def words(self) -> Rows:
        """C rows of word numbers."""
        return self.encoder.words(self.tokens)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """(C,) words of each reference."""
        return self.words.lengths

    def require_ngrams(
        self, order_consumer: OrderConsumer, consume: Callable[[Ngrams, NgramIndex], None] | None = None
    ) -> None:
        """Let `finish` sort the n-grams; called by `Metric.prepare`.

        Args:
            order_consumer: called with each batch of predictions; returns what `PredictionBatch.per_order` calls with
                the matches of order 1 to 4, in turn.
            consume: called with the references' n-grams of order 1 to 4, in turn.
        """
        self.order_consumers.append(order_consumer)
        if consume is not None:
            self._consumers.append(consume)

    def finish(self) -> None:
        """Sort what was required, once for all metrics."""
        if self.order_consumers:
            self.ngrams = NgramIndex(self.words, self.encoder.vocabulary_size, self.offsets, self._consumers)


class PredictionBatch:
    """The predictions of n consecutive images of a reference index, one for each.

    Args:
        references: of all images.
        tokens: n rows of token numbers from the same encoder.
        captions: the n predictions.
        first: the first of the images.

    Attributes:
        references_of: which of all references belong to these images.
        offsets: (n + 1,) int64, where each image's references begin among those.
    """

    def __init__(self, references: ReferenceIndex, tokens: Rows, captions: Sequence[str], first: int = 0) -> None:
        self.references, self.tokens, self.captions, self.first = references, tokens, captions, first
        bounds = references.offsets[first : first + len(tokens) + 1]
        self._shared: dict[Hashable, Any] = {}
        self.references_of = slice(int(bounds[0]), int(bounds[-1]))
        self.offsets = bounds - bounds[0]

    def __len__(self) -> int:
        return len(self.tokens)

    def shared(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What several metrics need, computed on first use.

        Args:
            key: names it.
            compute: returns it.
        """
        if key not in self._shared:
            self._shared[key] = compute()
        return self._shared[key]

    def part(self, start: int, end: int) -> PredictionBatch:
        """The images from `start` to before `end`."""
        return PredictionBatch(
            self.references, self.tokens.part(start, end), self.captions[start:end], self.first + start
        )

    @property
    def encoder(self) -> Encoder:
        """The encoder of all captions."""
        return self.references.encoder

    @property
    def vocabulary(self) -> int:
        """How many words the encoder knows."""
        return self.encoder.vocabulary_size

    @property
    def ids(self) -> Sequence[ImageId]:
        """The images."""
        return self.references.ids[self.first : self.first + len(self)]

    @property
    def reference_captions(self) -> list[Sequence[str]]:
        """The references of each image."""
        return [self.references.captions[image] for image in self.ids]

    @property
    def image_files(self) -> list[Path]:
        """The file of each image.

        Raises:
            MetricInputError: there are no images, or some have no file.
        """
        files = self.references.image_files
        if files is None:
            raise MetricInputError("a metric needs the images; pass image_files, a dictionary from image id to file")
        if missing := next((image for image in self.ids if image not in files), None):
            raise MetricInputError(f"a metric needs the images, and there is no file of image {missing!r}")
        return [files[image] for image in self.ids]

    @cached_property
    def words(self) -> Rows:
        """n rows of word numbers."""
        return self.encoder.words(self.tokens)

    @cached_property
    def prediction_at(self) -> NDArray[np.int64]:
        """(P,) the prediction of each word."""
        return self.words.owners

    @property
    def reference_tokens(self) -> Rows:
        """Token numbers of the images' references."""
        return self.references.tokens.part(self.references_of.start, self.references_of.stop)

    @cached_property
    def reference_lengths(self) -> NDArray[np.int64]:
        """Words of each of the images' references."""
        return self.references.lengths[self.references_of]

    def per_order(self, consumer: OrderConsumer) -> list[Any]:
        """What a metric computes from the matches of order 1 to 4.

        Args:
            consumer: was passed to `ReferenceIndex.require_ngrams`.
        """
        return self._per_order[consumer]

    @cached_property
    def _per_order(self) -> dict[OrderConsumer, list[Any]]:
        # All metrics see an order before the next one is matched: keeping the matches of all orders is slower.
        consumers = {consumer: consumer(self) for consumer in self.references.order_consumers}
        results: dict[OrderConsumer, list[Any]] = {consumer: [] for consumer in consumers}
        for matches in self.references.ngrams.match(self.words, self.vocabulary, self.prediction_at, self.first):
            for consumer, compute in consumers.items():
                results[consumer].append(compute(matches))
        return results

    @property
    def tokenized(self) -> list[str]:
        """The predictions as tokens, joined by a space."""
        return self._joined(self.tokens)

    @property
    def tokenized_references(self) -> list[list[str]]:
        """The references of each image as tokens, joined by a space."""
        lines = self._joined(self.reference_tokens)
        return [lines[start:end] for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True)]

    def _joined(self, rows: Rows) -> list[str]:
        vocabulary = self.encoder.vocabulary
        return [" ".join([vocabulary[token] for token in rows.row(index).tolist()]) for index in range(len(rows))]
