"""METEOR, SPICE and CLIPScore as metrics like the others: statistics of images, and scores from their sums.

What computes the statistics is slow and asks Java or a model, and stands in `meteor`, `spice` and `clipscore`. Here is
only what `Scores` and the tests of significance need once they are known.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from captune.metrics.scores import Scores

__all__ = ["ClipScore", "Meteor", "RefClipScore", "Spice", "with_metric"]


class Meteor:
    """METEOR 1.5 from its counts, (N, 23); corpus scores come from summed counts, as the jar computes them."""

    key: ClassVar[str] = "meteor"
    names: ClassVar[tuple[str, ...]] = ("METEOR",)

    def per_image(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """From (N, 23) counts to (N, 1) scores."""
        return self.from_sums(statistics, 1)

    def corpus(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """From (N, 23) counts to the score of their sum, (1,)."""
        scores: NDArray[np.float64] = self.from_sums(statistics.sum(axis=0, keepdims=True), len(statistics))[0]
        return scores

    def from_sums(self, sums: NDArray[np.float64], images: int) -> NDArray[np.float64]:
        """From (B, 23) summed counts to (B, 1) scores."""
        from captune.metrics.meteor import meteor_from_statistics

        scores: NDArray[np.float64] = meteor_from_statistics(sums)[:, None]
        return scores


class _MeanOfImages:
    """A corpus score that is the mean of the images' scores; the statistics are these scores, (N, 1)."""

    def per_image(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The scores as they are, (N, 1)."""
        return statistics

    def corpus(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        """The mean over images, (1,)."""
        return np.array([np.mean(statistics[:, 0])])

    def from_sums(self, sums: NDArray[np.float64], images: int) -> NDArray[np.float64]:
        """The mean of resampled sets, from (B, 1) sums."""
        return sums / images


class Spice(_MeanOfImages):
    """SPICE: the mean F-score of scene-graph tuples."""

    key: ClassVar[str] = "spice"
    names: ClassVar[tuple[str, ...]] = ("SPICE",)


class ClipScore(_MeanOfImages):
    """CLIPScore: 2.5 times the cosine between picture and caption."""

    key: ClassVar[str] = "clipscore"
    names: ClassVar[tuple[str, ...]] = ("CLIPScore",)


class RefClipScore(_MeanOfImages):
    """RefCLIPScore: the harmonic mean of CLIPScore and the closest reference."""

    key: ClassVar[str] = "refclipscore"
    names: ClassVar[tuple[str, ...]] = ("RefCLIPScore",)


def with_metric(
    scores: Scores,
    key: str,
    statistics: NDArray[Any],
    *,
    meteor: str | None = None,
    spice: str | None = None,
    clip: str | None = None,
    exif: str | None = None,
) -> Scores:
    """The same scores with one metric more.

    Args:
        scores: of one system.
        key: "meteor", "spice", "clipscore" or "refclipscore".
        statistics: one row for each image, in the order of `scores.ids`.
        meteor: version of METEOR for the signature.
        spice: version of SPICE for the signature.
        clip: name of the CLIP model for the signature.
        exif: "upright" where EXIF notes a rotation of some picture, for the signature.
    """
    own = scores.details
    details = replace(
        own, meteor=meteor or own.meteor, spice=spice or own.spice, clip=clip or own.clip, exif=exif or own.exif
    )
    return replace(scores, statistics={**scores.statistics, key: statistics}, details=details)
