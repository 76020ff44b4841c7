"""A fixed slice of the training images, evaluated beside the others: what a model has learnt by heart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from captune.data.manifest import Sample
from captune.decoding import Caption
from captune.features import StoredFeatures
from captune.metrics import Scorer

__all__ = ["TrainSlice"]


class TrainSlice:
    """Every so manieth training image, against its own captions.

    Args:
        images: the training images.
        features: of these.
        count: how many are taken.

    Attributes:
        features: (N, Q, F) of the images that were taken.
    """

    def __init__(self, images: Sequence[Sample], features: Tensor | StoredFeatures, count: int) -> None:
        places = sorted({place * len(images) // count for place in range(count)}) if count else []
        places = [place for place in places if images[place].captions]
        self._ids = [images[place].id for place in places]
        # CIDEr of fewer than two images is undefined.
        self._scorer = Scorer({images[p].id: list(images[p].captions) for p in places}) if len(places) > 1 else None
        self.features: Tensor | None = features[places] if self._scorer is not None else None

    def scores(self, caption: Callable[[Tensor], list[Caption]]) -> dict[str, float]:
        """Corpus scores of the slice.

        Args:
            caption: captions all of the slice's images from their features.
        """
        if self._scorer is None or self.features is None:
            return {}
        captions = caption(self.features)
        texts = {image: found.text for image, found in zip(self._ids, captions, strict=True)}
        return dict(self._scorer.score(texts).corpus)
