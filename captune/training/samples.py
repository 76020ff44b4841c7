"""What is learnt in which step: a pure function of seed and step, whatever the number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix

import numpy as np
from numpy.typing import NDArray

from captune.config import TrainConfig
from captune.data.manifest import Sample
from captune.errors import DataError

__all__ = ["TrainingSample", "TrainingSamples"]

POOL = 1024
"""Samples of similar length are brought together within shuffled pools of about this many."""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One image with what a step learns to say of it.

    Attributes:
        image: index of the image among the training images.
        captions: one or more targets, each learnt as an answer of its own.
        instruction: what is asked, where the run mixes several; None is the run's own.
    """

    image: int
    captions: tuple[str, ...]
    instruction: str | None = None


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
        self._instructions = config.instructions
        self._seed = seed
        together = config.captions_per_image if config.targets == "each" else 1
        self._together = together
        # A slot is an image and which of its captions: `together` of them from the first one named.
        self._slots = [
            (index, first)
            for index, image in enumerate(images)
            for first in range(
                0, len(image.captions) if config.targets == "each" else min(1, len(image.captions)), together
            )
        ]
        if not self._slots:
            raise DataError("The training images have no captions; there is nothing to learn from.")
        self._batch = max(1, config.batch_size // together)
        # Without a vocabulary characters stand for tokens.
        fast = config.fast
        self._characters = _of_shared_row if fast.shared_prefix and fast.target_logits else _of_all_captions
        self._length: Callable[[TrainingSample], int] | None = self._characters if fast.length_buckets else None
        whole_pass = -(-len(self._slots) // self._batch)
        self.steps_per_epoch = config.steps_per_epoch or whole_pass
        self.total_steps = self.steps_per_epoch * config.epochs
        self._counted = config.steps_per_epoch is not None
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None
        self._arranged: tuple[tuple[int, int], NDArray[np.int64]] | None = None

    def measured_by(self, length: Callable[[TrainingSample], int]) -> TrainingSamples:
        """The same samples, of which those of similar `length` are brought together, where any are."""
        other = copy(self)
        other._length = None if self._length is None else length
        other._arranged = None
        return other

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def captions(self) -> int:
        """Targets of one pass."""
        if self._targets != "each":
            return len(self._slots)
        return sum(len(image.captions) for image in self._images)

    def longest(self, count: int) -> list[TrainingSample]:
        """The samples with the most characters to be fed, with which limits are tried before they are met."""
        lengths = np.array([self._characters(self._pick(slot, 0)) for slot in range(len(self._slots))])
        return [self._pick(int(slot), 0) for slot in np.argsort(-lengths, kind="stable")[:count]]

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
        if self._length is None:
            return self._pick(int(self._shuffle(passed)[place]), passed)
        pool, within = divmod(place, self._batch * max(1, POOL // self._batch))
        return self._pick(int(self._pool(passed, pool, self._length)[within]), passed)

    def _pick(self, slot: int, passed: int) -> TrainingSample:
        image, first = self._slots[slot]
        captions = self._images[image].captions
        if self._targets == "joined":
            return TrainingSample(image, (" ".join(captions),), self._instruction(image, first, passed))
        if self._targets == "one":
            drawn = captions[self._draw(self._images[image].id, passed, len(captions))]
            return TrainingSample(image, (drawn,), self._instruction(image, first, passed))
        return TrainingSample(image, captions[first : first + self._together], self._instruction(image, first, passed))

    def _instruction(self, image: int, first: int, passed: int) -> str | None:
        """One of the instructions that the run mixes, the same for a sample of a pass whatever else is in the data."""
        if not self._instructions:
            return None
        what = f"{self._images[image].id}/{first}/instruction"
        return self._instructions[self._draw(what, passed, len(self._instructions))]

    def _shuffle(self, passed: int) -> NDArray[np.int64]:
        """The slots of a pass in a random order; the last one is kept, since steps ask for it one after the other."""
        if self._shuffled is None or self._shuffled[0] != passed:
            random = np.random.default_rng([self._seed, passed])
            self._shuffled = (passed, random.permutation(len(self._slots)))
        return self._shuffled[1]

    def _pool(self, passed: int, number: int, length: Callable[[TrainingSample], int]) -> NDArray[np.int64]:
        """A pool of a pass, sorted by length and its batches shuffled; an incomplete batch stays at the very end."""
        if self._arranged is None or self._arranged[0] != (passed, number):
            size = self._batch * max(1, POOL // self._batch)
            chosen = self._shuffle(passed)[number * size : (number + 1) * size]
            lengths = np.array([length(self._pick(int(slot), passed)) for slot in chosen])
            chosen = chosen[np.argsort(lengths, kind="stable")]
            whole = len(chosen) // self._batch * self._batch
            random = np.random.default_rng([self._seed, passed, number])
            batches = random.permutation(chosen[:whole].reshape(-1, self._batch))
            self._arranged = ((passed, number), np.concatenate([batches.reshape(-1), chosen[whole:]]))
        return self._arranged[1]

    def _draw(self, what: str, passed: int, count: int) -> int:
        """One of `count` for a thing in a pass, the same whatever else is in the data."""
        digest = hashlib.sha256(f"{self._seed}/{passed}/{what}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % count


def _of_all_captions(sample: TrainingSample) -> int:
    """Characters of a sample's captions, one after the other."""
    return sum(map(len, sample.captions))


def _of_shared_row(sample: TrainingSample) -> int:
    """The same, but what captions begin with in common counts once, as it is fed once."""
    common = sum(len(commonprefix(pair)) for pair in pairwise(sorted(sample.captions)))  # noqa: RUF071  # no paths
    return _of_all_captions(sample) - common
