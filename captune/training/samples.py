"""What is learnt in which step: a pure function of seed and step, whatever the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from captune.config import TrainConfig
from captune.data.manifest import Sample
from captune.errors import DataError

__all__ = ["TrainingSample", "TrainingSamples"]


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One image with one target.

    Attributes:
        image: index of the image among the training images.
        caption: what is learnt to say of it.
    """

    image: int
    caption: str


class TrainingSamples:
    """All samples of a run, dealt to steps.

    Args:
        images: the training images with their captions.
        config: targets, batch size and epochs.
        seed: of the run.

    Raises:
        DataError: no image has a caption.
    """

    def __init__(self, images: Sequence[Sample], config: TrainConfig, seed: int) -> None:
        self._images = images
        self._targets = config.targets
        self._batch = config.batch_size
        self._seed = seed
        captions = [(i, c) for i, image in enumerate(images) for c in range(len(image.captions))]
        self._slots = captions if config.targets == "each" else [(i, 0) for i, s in enumerate(images) if s.captions]
        if not self._slots:
            raise DataError("The training images have no captions; there is nothing to learn from.")
        whole_pass = -(-len(self._slots) // config.batch_size)
        self.steps_per_epoch = config.steps_per_epoch or whole_pass
        self.total_steps = self.steps_per_epoch * config.epochs
        self._counted = config.steps_per_epoch is not None
        self._ordered: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def batch(self, step: int) -> list[TrainingSample]:
        """The samples of optimiser step `step`, over all processes together.

        An epoch of a given number of steps goes on where the one before stopped, through one shuffled pass after
        another; otherwise an epoch is one pass, and its last batch holds what is left.
        """
        if self._counted:
            places = range(step * self._batch, (step + 1) * self._batch)
            return [self._sample(*divmod(place, len(self._slots))) for place in places]
        epoch, position = divmod(step, self.steps_per_epoch)
        places = range(position * self._batch, min((position + 1) * self._batch, len(self._slots)))
        return [self._sample(epoch, place) for place in places]

    def _sample(self, passed: int, place: int) -> TrainingSample:
        image, caption = self._slots[self._order(passed)[place]]
        captions = self._images[image].captions
        if self._targets == "joined":
            return TrainingSample(image, " ".join(captions))
        if self._targets == "one":
            caption = self._draw(self._images[image].id, passed, len(captions))
        return TrainingSample(image, captions[caption])

    def _order(self, passed: int) -> NDArray[np.int64]:
        """The shuffled order of a pass; the last one is kept, since steps ask for it one after the other."""
        if self._ordered is None or self._ordered[0] != passed:
            shuffled = np.random.default_rng([self._seed, passed]).permutation(len(self._slots))
            self._ordered = (passed, shuffled)
        return self._ordered[1]

    def _draw(self, image: str, passed: int, captions: int) -> int:
        """One caption of an image in a pass, the same whatever else is in the data."""
        digest = hashlib.sha256(f"{self._seed}/{passed}/{image}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % captions
