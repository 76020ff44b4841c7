"""Which samples each step trains on: a pure function of seed and step, independent of the number of processes."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from captune.config import RunConfig, TrainConfig
from captune.data.manifest import Sample
from captune.decoding import Caption
from captune.errors import DataError
from captune.evaluation import training_images
from captune.features import StoredFeatures
from captune.metrics import Scorer
from captune.model import PromptLayout

__all__ = ["TrainSlice", "TrainingSample", "TrainingSamples", "longest_samples", "made_up_samples"]

POOL = 1024
"""Samples of similar length are brought together within shuffled pools of about this many."""
SHOWN_STEPS = 4
"""Epochs of at most this many steps are described step by step."""
ROW_CHARACTERS = 200
"""Prompt and image of a row, in characters of a caption; only to compare many short rows with few long ones."""


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

    A step has `batch_size` captions, whatever number of them images have. Captions of an image stay together, so where
    they cannot add up to that, a step has the nearest number that they can. Every pass has the same steps: how many
    samples of how many captions each one takes is decided once, and which ones is shuffled.

    Args:
        images: the training images with their captions.
        config: targets, batch size and epochs.
        seed: of the run.

    Attributes:
        step_captions: how many captions the steps of a pass have; the order differs from pass to pass.

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
        self._weights = np.array(
            [min(together, len(images[index].captions) - first) if together > 1 else 1 for index, first in self._slots]
        )
        self._heaviest = int(self._weights.max())
        self._even = bool((self._weights == self._heaviest).all())
        self._size = config.batch_size
        # Without a vocabulary characters stand for tokens.
        fast = config.fast
        self._characters = _of_shared_row if fast.shared_prefix and fast.target_logits else _of_all_captions
        self._length: Callable[[TrainingSample], int] | None = self._characters if fast.length_buckets else None
        self._shapes = self._shape_steps()
        counts = [sum(shape) for shape in self._shapes]
        self._sequence = np.concatenate([np.array(shape) for shape in self._shapes])
        # Position of each step's first sample in the pass, and of the end.
        self._edges: list[int] = np.cumsum([0, *map(len, self._shapes)]).tolist()
        # Samples of a full step; one more is taken where that is nearer.
        nearest = max(1, (2 * self._size + self._heaviest - 1) // (2 * self._heaviest))
        per_step = nearest if self._even else max(1, round(len(self._slots) / len(self._shapes)))
        self._full = nearest * self._heaviest if self._even else self._size
        self._pool = max(1, POOL // per_step)
        # Only here a step may take its samples from two passes.
        self._across = per_step if self._even and config.steps_per_epoch is not None else None
        self.step_captions = tuple(counts)
        if self._across is not None:
            self.step_captions = (self._full,) * (config.steps_per_epoch or 1)
        self.steps_per_epoch = config.steps_per_epoch or len(counts)
        self.total_steps = self.steps_per_epoch * config.epochs
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None
        self._arranged: tuple[tuple[int, int], list[NDArray[np.int64]]] | None = None

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

    @property
    def exact(self) -> bool:
        """Whether every step but the last has the number of captions that was set."""
        return all(count == self._size for count in self.step_captions[:-1])

    def describe_steps(self) -> str:
        """How many captions steps have, for people: `10, 10, 4`, or `40 x 3,625`, or `38-42 (mean 40.0) x 900`."""
        counts = self.step_captions
        if len(counts) <= SHOWN_STEPS:
            return ", ".join(map(str, counts))
        kinds = Counter(counts).most_common()
        if len(kinds) <= 2:
            return ", ".join(f"{count} x {steps:,}" for count, steps in kinds)
        return f"{min(counts)}-{max(counts)} (mean {sum(counts) / len(counts):.1f}) x {len(counts):,}"

    def longest(self, count: int) -> list[TrainingSample]:
        """The samples with the most characters to be fed, with which limits are tried before they are met."""
        return [self._pick(slot, 0) for slot in self._longest_slots(np.arange(len(self._slots)), count)]

    def heaviest_step(self) -> list[TrainingSample]:
        """The longest samples that a step could have, longest first; memory that holds them holds every step."""
        steps = []
        for shape in set(self._shapes):
            slots = [
                slot
                for weight, count in Counter(shape).items()
                for slot in self._longest_slots(np.flatnonzero(self._weights == weight), count)
            ]
            samples = [self._pick(slot, 0) for slot in slots]
            steps.append(sorted(samples, key=self._characters, reverse=True))
        return max(steps, key=lambda step: len(step) * (ROW_CHARACTERS + self._characters(step[0])))

    def _longest_slots(self, slots: NDArray[np.int64], count: int) -> list[int]:
        lengths = np.array([self._characters(self._pick(slot, 0)) for slot in slots.tolist()])
        return [int(slot) for slot in slots[np.argsort(-lengths, kind="stable")[:count]]]

    def batch(self, step: int) -> list[TrainingSample]:
        """The samples of optimiser step `step`, over all processes together.

        An epoch of a set number of steps begins where the one before ended, through one shuffled pass after another;
        otherwise an epoch is one pass, and its last step has what is left.
        """
        if self._across is not None:
            positions = range(step * self._across, (step + 1) * self._across)
            return [self._sample(*divmod(position, len(self._slots))) for position in positions]
        passed, position = divmod(step, len(self._shapes))
        return [self._pick(int(slot), passed) for slot in self._batch(passed, position)]

    def _sample(self, passed: int, position: int) -> TrainingSample:
        step = bisect_right(self._edges, position) - 1
        return self._pick(int(self._batch(passed, step)[position - self._edges[step]]), passed)

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
            slots = random.permutation(len(self._slots))
            self._shuffled = (passed, self._in_sequence(slots, 0, np.arange(len(slots))))
        return self._shuffled[1]

    def _in_sequence(self, slots: NDArray[np.int64], start: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Slots for the positions from `start` on, each where the sequence wants as many captions as it has.

        Args:
            slots: to be arranged.
            start: first position.
            order: rank of each slot; of those with equally many captions the first comes first.
        """
        arranged = np.empty_like(slots)
        positions = np.argsort(self._sequence[start : start + len(slots)], kind="stable")
        arranged[positions] = slots[np.lexsort((order, self._weights[slots]))]
        return arranged

    def _shape_steps(self) -> list[tuple[int, ...]]:
        """How many captions each sample of each step of a pass has.

        The samples with most captions are dealt first and the others fill up; steps are then shuffled, and what is
        left comes last.
        """
        left = dict(sorted(Counter(self._weights.tolist()).items(), reverse=True))
        shapes: list[tuple[int, ...]] = []
        while left:
            shape: list[int] = []
            room = self._size
            for weight in left:
                count = min(left[weight], room // weight)
                shape += [weight] * count
                room -= count * weight
                left[weight] -= count
            left = {weight: count for weight, count in left.items() if count}
            lightest = min(left, default=0)
            # One sample too many may be nearer than one too few, and an empty step is none.
            if left and (not shape or lightest < 2 * room):
                shape.append(lightest)
                left[lightest] -= 1
                left = {weight: count for weight, count in left.items() if count}
            shapes.append(tuple(shape))
        if self._even:
            return shapes
        random = np.random.default_rng([self._seed])
        return [*(shapes[place] for place in random.permutation(len(shapes) - 1)), shapes[-1]]

    def _batch(self, passed: int, step: int) -> NDArray[np.int64]:
        """The slots of a step of a pass.

        Where lengths count, steps are brought together in pools: of slots with equally many captions those with similar
        lengths come together, and the steps are shuffled. An incomplete step stays at the very end.
        """
        if self._length is None:
            return self._shuffle(passed)[self._edges[step] : self._edges[step + 1]]
        number = step // self._pool
        if self._arranged is None or self._arranged[0] != (passed, number):
            first, after = number * self._pool, min((number + 1) * self._pool, len(self._shapes))
            slots = self._shuffle(passed)[self._edges[first] : self._edges[after]]
            lengths = np.array([self._length(self._pick(int(slot), passed)) for slot in slots])
            slots = self._in_sequence(slots, self._edges[first], lengths)
            batches = np.split(slots, np.array(self._edges[first + 1 : after]) - self._edges[first])
            incomplete = after == len(self._shapes) and sum(self._shapes[-1]) < self._full
            shuffled = np.random.default_rng([self._seed, passed, number]).permutation(len(batches) - incomplete)
            self._arranged = ((passed, number), [*(batches[k] for k in shuffled), *batches[len(shuffled) :]])
        return self._arranged[1][step - number * self._pool]

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


_WORDS = ("dog", "cat", "man", "bus", "sun", "hat", "pen", "toy", "red", "fox")
"""What made-up captions are made of; no two begin with the same letter."""


def longest_samples(config: RunConfig) -> list[tuple[str, ...]] | None:
    """What the longest samples of the data teach, a step's number of them; None where there is no data yet.

    Raises:
        DataError: there is data, and it cannot be read.
    """
    try:
        images = training_images(config)
    except DataError:
        if config.data.train.exists():
            raise
        return None
    samples = TrainingSamples(images, config.train, config.seed)
    return [sample.captions for sample in samples.heaviest_step()]


def made_up_samples(config: RunConfig, layout: PromptLayout, tokens: int) -> list[tuple[str, ...]]:
    """As many samples as a step has, with captions of so many tokens, or as many as the layout allows."""
    together = config.train.captions_per_image if config.train.targets == "each" else 1
    captions = tuple(_caption_of(layout, tokens, number) for number in range(together))
    return [captions] * max(1, config.train.batch_size // together)


def _caption_of(layout: PromptLayout, tokens: int, number: int) -> str:
    """One of several captions that begin otherwise, so that a row has no tokens of theirs in common."""
    further, first = divmod(number, len(_WORDS))
    words = [_WORDS[first]]
    while len(layout.target_ids(" ".join(words))[0]) < min(tokens, layout.max_target_tokens):
        words.append(_WORDS[further % len(_WORDS)])
    return " ".join(words)


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
