"""Document frequencies of n-grams for CIDEr: in how many images an n-gram occurs in a reference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.encoding import Encoder
from captune.metrics.ngrams import ORDERS, NgramTable, sort_ngrams
from captune.metrics.tokenizers import tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["CorpusCounts", "DocumentFrequencies"]

_FORMAT = "captune document frequencies 1"


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """How many images of some corpus have an n-gram among their references.

    CIDEr weighs n-grams by these. Kept in a file they make scores of small or different sets comparable, and give
    a single image a CIDEr.

    Attributes:
        source: the corpus's name, which the signature shows.
        tokenizer: the tokenizer's name in signatures.
        images: how many images the corpus has.
        words: the vocabulary.
        table: the n-grams over that vocabulary.
        counts: for each order (G,) int32.
    """

    source: str
    tokenizer: str
    images: int
    words: tuple[str, ...]
    table: NgramTable
    counts: tuple[NDArray[np.int32], ...]

    @classmethod
    def from_references(
        cls, references: Mapping[Any, Sequence[str]], source: str, tokenize: str = "ptb"
    ) -> DocumentFrequencies:
        """Count the references of a corpus.

        Args:
            references: the reference captions of each image.
            source: the corpus's name, for signatures: letters, digits and `-_.`.
            tokenize: as in `score_captions`.

        Raises:
            MetricInputError: the name is not valid in a signature, or there is nothing to count.
        """
        if not source or not all(c.isalnum() or c in "-_." for c in source):
            raise MetricInputError(
                f"document frequencies need a name of letters, digits, '-', '_' and '.', and {source!r} is none"
            )
        tokens = tokenizer(tokenize)
        encoder = Encoder(tokens)
        words = encoder.words(encoder.encode(caption for captions in references.values() for caption in captions))
        if not len(words.values):
            raise MetricInputError(f"the references of {source!r} hold no words, so nothing can be counted")
        image_offsets = np.cumsum([0, *map(len, references.values())])
        base = encoder.vocabulary_size
        keys, counts = [], []
        for ngrams in sort_ngrams(words, base, words.owners, image_offsets):
            keys.append(ngrams.keys)
            counts.append(ngrams.images)
        return cls(
            source,
            tokens.name,
            len(references),
            tuple(encoder.vocabulary),
            NgramTable(tuple(keys), base),
            tuple(counts),
        )

    def save(self, path: str | Path) -> None:
        """Write to a file that `load` reads: a compressed numpy archive without pickled objects."""
        text = "\n".join((_FORMAT, self.source, self.tokenizer, str(self.images), *self.words))
        arrays: dict[str, NDArray[Any]] = {"text": np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)}
        for order in range(ORDERS):
            arrays[f"keys{order + 1}"] = self.table.keys[order]
            arrays[f"counts{order + 1}"] = self.counts[order]
        with open(path, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read what `save` wrote.

        Raises:
            MetricInputError: the file is not there or is something else.
        """
        from zipfile import BadZipFile  # slow to import, and not needed for scoring

        try:
            with np.load(path, allow_pickle=False) as archive:
                lines = archive["text"].tobytes().decode("utf-8", "surrogatepass").split("\n")
                keys = tuple(archive[f"keys{order + 1}"] for order in range(ORDERS))
                counts = tuple(archive[f"counts{order + 1}"] for order in range(ORDERS))
            header, source, tokenizer_name, images = lines[:4]
            if header != _FORMAT:
                raise ValueError(header)
            words = tuple(lines[4:])
            return cls(source, tokenizer_name, int(images), words, NgramTable(keys, len(words)), counts)
        except FileNotFoundError as error:
            raise MetricInputError(f"there is no file {str(path)!r} with document frequencies") from error
        except (KeyError, OSError, ValueError, BadZipFile) as error:
            raise MetricInputError(
                f"{str(path)!r} holds no document frequencies; write such a file with DocumentFrequencies.save"
            ) from error

    def words_of(self, vocabulary: Iterable[str]) -> NDArray[np.int32]:
        """(V,) int32, the number here of each word of an encoder's vocabulary, -1 for unknown ones."""
        number = {word: index for index, word in enumerate(self.words)}
        return np.array([number.get(word, -1) for word in vocabulary], np.int32)


class CorpusCounts:
    """The document frequencies of another corpus for the n-grams of an encoder, order by order.

    Args:
        frequencies: of the corpus.
        encoder: that numbered the words of the n-grams.
    """

    def __init__(self, frequencies: DocumentFrequencies, encoder: Encoder) -> None:
        self._frequencies = frequencies
        self._words = frequencies.words_of(encoder.vocabulary)
        self._order = 0
        self._located = np.zeros(0, np.int32)

    def next_order(self, keys: NDArray[np.int64], base: int) -> NDArray[np.int32]:
        """How many images of the corpus hold each n-gram, (G,) int32; called once for each order, from 1 on."""
        self._order += 1
        self._located = self._frequencies.table.locate(keys, self._order, base, self._located, self._words)
        return np.append(self._frequencies.counts[self._order - 1], np.int32(0)).take(self._located)
