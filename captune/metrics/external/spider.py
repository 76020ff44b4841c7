"""SPIDEr: the mean of SPICE and CIDEr, which weighs the content of a caption and its wording.

Source: Liu et al., "Improved Image Captioning via Policy Gradient Optimization of SPIDEr" (ICCV 2017). CIDEr is
coco-caption's (CIDEr-D), so an image's SPIDEr is between 0 and 5.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.metrics.cider import Cider
from captune.metrics.external.spice import Spice
from captune.metrics.metric import Column, MeanOfImages
from captune.metrics.options import ScoringOptions
from captune.metrics.references import PredictionBatch, ReferenceIndex

__all__ = ["Spider"]


class Spider(MeanOfImages):
    """The mean of SPICE and CIDEr of each image, and of the corpus."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "SPIDEr", 5.5, description="The mean of SPICE and CIDEr: content and wording in common with references."
        ),
    )
    needs: ClassVar[frozenset[str]] = Spice.needs
    english_only: ClassVar[bool] = True
    uses_document_frequencies: ClassVar[bool] = True

    def __init__(self, options: ScoringOptions) -> None:
        super().__init__(options)
        self._cider, self._spice = Cider(options), Spice(options)

    @classmethod
    def check_requirements(cls, options: ScoringOptions) -> None:
        """Raise if what SPICE needs is not installed."""
        Spice.check_requirements(options)

    def prepare(self, references: ReferenceIndex) -> None:
        """Weigh the n-grams of the references.

        Raises:
            MetricInputError: CIDEr is not defined for them.
        """
        self._cider.prepare(references)

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """SPIDEr of each image, (N, 1); SPICE runs once even if it is requested too."""
        scores: NDArray[np.float64] = (self._spice.statistics(predictions) + self._cider.statistics(predictions)) / 2
        return scores

    def signature(self) -> Mapping[str, str]:
        """The fields of both."""
        return {**self._cider.signature(), **self._spice.signature()}
