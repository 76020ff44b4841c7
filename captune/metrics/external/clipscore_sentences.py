"""CLIPScore of a long caption as the mean of its sentences, each of which fits into CLIP's 77 tokens.

A sentence ends at ".", "!" or "?" followed by white space, or at their ideographic forms. The mean does not see what
sentences say jointly, and a caption of one sentence has the CLIPScore it always had.
"""

from __future__ import annotations

import re
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from captune.metrics.external.clipscore import WEIGHT, ClipScore, shared_scorer
from captune.metrics.metric import Column
from captune.metrics.references import PredictionBatch

__all__ = ["ClipScoreSentences", "split_sentences"]

_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")


class ClipScoreSentences(ClipScore):
    """The mean CLIPScore of the sentences of a caption."""

    columns: ClassVar[tuple[Column, ...]] = (
        Column("CLIPScore-sent", WEIGHT, description="The mean CLIPScore of the caption's sentences."),
    )

    def statistics(self, predictions: PredictionBatch) -> NDArray[np.float64]:
        """The score of each image, (N, 1)."""
        from captune.data import has_rotation

        files = predictions.image_files
        self._rotated = any(map(has_rotation, files))
        split = [split_sentences(caption) for caption in predictions.captions]
        sentences = [sentence for group in split for sentence in group]
        image_of = np.repeat(np.arange(len(split)), [len(group) for group in split])
        model = shared_scorer(predictions, self.options.clip)
        scores = model.score([files[row] for row in image_of], sentences).clip_score
        self._cut = model.truncation_note(sentences, self.columns[0].name).replace("caption", "sentence")
        sums = np.bincount(image_of, scores, len(split))
        return (sums / np.bincount(image_of, minlength=len(split)))[:, None]


def split_sentences(caption: str) -> list[str]:
    """The sentences of a caption in order; one empty sentence for an empty caption."""
    return [sentence for sentence in _END.split(caption.strip()) if sentence] or [""]
