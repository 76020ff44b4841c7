"""`Scores`: numbers of a corpus and of its images, what they were computed from, and how they print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from captune.errors import MetricInputError
from captune.metrics.inputs import ImageId
from captune.metrics.registry import METRICS
from captune.metrics.signature import Signature

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scores"]


_FORMAT = "captune scores 1"


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of one system on one set of references.

    Attributes:
        ids: the images, as the references name them.
        statistics: for each metric's key one row of numbers for an image, (N, K).
        details: the signature as a record.
    """

    ids: tuple[ImageId, ...]
    statistics: Mapping[str, NDArray[Any]]
    details: Signature

    @property
    def signature(self) -> str:
        """Data, images, references, tokenizer and all else that the numbers depend on, in one line."""
        return str(self.details)

    @cached_property
    def corpus(self) -> dict[str, float]:
        """Every score of the complete set, on coco-caption's scale: CIDEr 0 to 10, the others 0 to 1."""
        return {
            name: value
            for key, rows in self.statistics.items()
            for name, value in zip(METRICS[key].names(), METRICS[key].corpus(rows).tolist(), strict=True)
        }

    @cached_property
    def image_scores(self) -> dict[str, NDArray[np.float64]]:
        """Every score of every image, (N,) float64 each, in the order of `ids`."""
        return {
            name: values
            for key, rows in self.statistics.items()
            for name, values in zip(METRICS[key].names(), METRICS[key].per_image(rows).T, strict=True)
        }

    @cached_property
    def per_image(self) -> dict[ImageId, dict[str, float]]:
        """Every score of every image, by image."""
        names = tuple(self.image_scores)
        columns = [values.tolist() for values in self.image_scores.values()]
        return {
            image: dict(zip(names, row, strict=True))
            for image, row in zip(self.ids, zip(*columns, strict=True), strict=True)
        }

    def __str__(self) -> str:
        return f"{self.format()}\n{self.signature}"

    def format(self, names: Sequence[str] | None = None, digits: int = 4) -> str:
        """One line of names and numbers, "BLEU-1 0.5794  BLEU-2 0.4044 ...".

        Args:
            names: the scores to print, all by default.
            digits: digits after the point.
        """
        printed = self.corpus if names is None else {name: self.corpus[name] for name in names}
        return "  ".join(f"{name} {value:.{digits}f}" for name, value in printed.items())

    def to_dict(self, *, images: bool = True) -> dict[str, Any]:
        """A record for JSON, from which `from_dict` makes equal scores.

        Args:
            images: whether scores and statistics of single images are in it; without them there is no bootstrap.
        """
        record: dict[str, Any] = {"format": _FORMAT, "signature": self.signature, "corpus": self.corpus}
        if images:
            record["ids"] = list(self.ids)
            record["per_image"] = {str(image): scores for image, scores in self.per_image.items()}
            record["statistics"] = {key: rows.tolist() for key, rows in self.statistics.items()}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Scores:
        """Read what `to_dict` made.

        Raises:
            MetricInputError: the record is something else or holds no statistics of images.
        """
        if record.get("format") != _FORMAT:
            raise MetricInputError(
                f"this is no record of scores; its 'format' is {record.get('format')!r}, not {_FORMAT!r}"
            )
        if "statistics" not in record or "ids" not in record:
            raise MetricInputError("this record of scores holds the corpus only; write it with to_dict(images=True)")
        statistics = {key: np.array(rows) for key, rows in record["statistics"].items()}
        if "refclipscore" in statistics:  # a metric by itself in older records
            references = statistics.pop("refclipscore")
            statistics["clipscore"] = np.concatenate([statistics["clipscore"], references], axis=1)
        unknown = [key for key in statistics if key not in METRICS]
        if unknown:
            raise MetricInputError(f"this record holds the unknown metrics {', '.join(sorted(unknown))}")
        if any(rows.ndim != 2 or len(rows) != len(record["ids"]) for rows in statistics.values()):
            raise MetricInputError("this record of scores does not have one row of statistics for each image")
        return cls(tuple(record["ids"]), statistics, Signature.parse(record["signature"]))
