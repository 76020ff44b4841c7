"""PAC-S and RefPAC-S: the formulas of CLIPScore on a CLIP whose projections were tuned for captions.

    PAC-S    = 2 * max(cos(caption, picture), 0)
    RefPAC-S = harmonic mean of PAC-S and max(max over references cos, 0)

Source: Sarto et al., "Positive-Augmented Contrastive Learning for Image and Video Captioning Evaluation" (CVPR 2023).
Captions are prefixed with "A photo depicts " as in the original. The weights are the user's: a folder of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.errors import MetricInputError, MissingExtraError
from captune.metrics.external.clipscore import shared_scorer
from captune.metrics.metric import Column, MeanOfImages
from captune.metrics.options import ScoringOptions
from captune.metrics.references import PredictionBatch

__all__ = ["PacScore"]

_WEIGHT = 2.0


class PacScore(MeanOfImages):
    """PAC-S, and RefPAC-S with the references."""

    # The largest harmonic mean is that of 2 and 1.
    columns: ClassVar[tuple[Column, ...]] = (
        Column("PAC-S", _WEIGHT, description="How well the caption fits the image by a CLIP tuned for captions."),
        Column("RefPAC-S", 4 / 3, description="PAC-S combined with the similarity to the references."),
    )
    needs: ClassVar[frozenset[str]] = frozenset({"images"})

    @classmethod
    def check_requirements(cls, options: ScoringOptions) -> None:
        """Raise if there is no folder of weights, or if transformers or torch is not installed."""
        if options.pac is None:
            raise MetricInputError(
                "PAC-S needs its own weights; give --pac FOLDER (pac=...), a CLIP model of transformers that has them."
            )
        if not Path(options.pac).is_dir():
            raise MetricInputError(f"--pac is {options.pac}, and there is no such folder; give that of a CLIP model.")
        if find_spec("torch") is None or find_spec("transformers") is None:
            raise MissingExtraError("PAC-S", "train")

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """Both scores of each image, (N, 2)."""
        from captune.data import has_rotation

        files = predictions.image_files
        self._rotated = any(map(has_rotation, files))
        model = shared_scorer(predictions, str(self.options.pac))
        captions = list(predictions.captions)
        result = model.score(files, captions, predictions.reference_captions, weight=_WEIGHT)
        assert result.ref_clip_score is not None
        self._cut = model.truncation_note(captions, "PAC-S")
        return np.column_stack((result.clip_score, result.ref_clip_score))

    def notes(self) -> Sequence[str]:
        """The share of text beyond the model's limit, if there is any."""
        return [self._cut] if self._cut else []

    def signature(self) -> Mapping[str, str]:
        """The folder of the weights, and that rotated images are shown upright."""
        assert self.options.pac is not None
        return {"pac": Path(self.options.pac).resolve().name} | ({"exif": "upright"} if self._rotated else {})
