"""Which samples each step trains on: a pure function of seed and step, independent of the number of processes."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from captune.config import TrainConfig
from captune.data import Sample
from captune.errors import ConfigError, DataError

if TYPE_CHECKING:
    from captune.model import PromptLayout

__all__ = ["TrainingSample", "TrainingSamples", "require_captions", "require_supported", "synthetic_samples"]

POOL = 1024
"""Samples of similar length are grouped within shuffled pools of about this many."""
SHOWN_STEPS = 4
"""Epochs of at most this many steps are described step by step."""
ROW_CHARACTERS = 200
"""Prompt and image of a row, in characters of a caption; only to compare many short rows with few long ones."""


@dataclass(frozen=True, slots=True)
class TrainingSample:
    """One image with the captions that a step trains on.

    Attributes:
        image: index of the image among the training images.
        captions: one or more targets, each a separate answer.
        instruction: the prompt, where the run mixes several; None is the run's default.
    """

    image: int
    captions: tuple[str, ...]
    instruction: str | None = None


def require_captions(images: Sequence[Sample]) -> None:
    """Check that there is something to train on.

    Raises:
        DataError: no image has a caption.
    """
    if not any(image.captions for image in images):
        raise DataError("The training images have no captions; there is nothing to train on.")


def require_supported(train: TrainConfig) -> None:
    """Refuse settings of a MiniGPT-4 for a transformers model.

    Raises:
        ConfigError: names the setting.
    """
    if train.sharding != "none":
        raise ConfigError(
            f"train.sharding is {train.sharding}, which supports MiniGPT-4 only; set it to none, and "
            "model.quantization to nf4 if the model does not fit into memory."
        )


class TrainingSamples:
    """All samples of a run, divided into steps.

    A step has `batch_size` captions, independent of the number of captions per image. A sample is never split; if
    `batch_size` is impossible, a step has the nearest possible number. Every pass has the same steps: the numbers of
    samples and captions per step are fixed, and the samples are shuffled.

    Args:
        images: the training images with their captions.
        config: targets, batch size and epochs.
        seed: of the run.
        length_fn: length of a sample, in tokens; samples of similar length share a step. Without it, the
            number of characters is used.

    Attributes:
        seed: of the run.
        step_captions: number of captions of each step of a pass; the order differs between passes.

    Raises:
        DataError: no image has a caption.
    """

    def __init__(
        self,
        images: Sequence[Sample],
        config: TrainConfig,
        seed: int,
        length_fn: Callable[[TrainingSample], int] | None = None,
    ) -> None:
        require_captions(images)
        self._images = images
        self._targets = config.caption_targets
        self._instructions = config.instructions
        self.seed = seed
        separate = config.caption_targets == "separate"
        per_sample = config.captions_per_image if separate else 1
        self._per_sample = per_sample
        # A slot is an image and which of its captions: `per_sample` of them from the first one named.
        self._slots = [
            (index, first)
            for index, image in enumerate(images)
            for first in range(
                0,
                len(image.captions) if config.caption_targets == "separate" else min(1, len(image.captions)),
                per_sample,
            )
        ]
        self._weights = np.array(
            [
                min(per_sample, len(images[index].captions) - first) if per_sample > 1 else 1
                for index, first in self._slots
            ]
        )
        self._heaviest = int(self._weights.max())
        self._even = bool((self._weights == self._heaviest).all())
        self._size = config.batch_size
        # Without a vocabulary, characters replace tokens.
        enabled = config.enabled_optimizations
        self._characters = _of_shared_row if enabled.shared_prefix and enabled.target_logits else _of_all_captions
        self._length = (length_fn or self._characters) if enabled.length_buckets else None
        self._shapes = self._shape_steps()
        counts = [sum(shape) for shape in self._shapes]
        self._sequence = np.concatenate([np.array(shape) for shape in self._shapes])
        # Position of each step's first sample in the pass, and of the end.
        self._edges: list[int] = np.cumsum([0, *map(len, self._shapes)]).tolist()
        # Samples of a full step; one more if that is nearer to the batch size.
        nearest = max(1, (2 * self._size + self._heaviest - 1) // (2 * self._heaviest))
        per_step = nearest if self._even else max(1, round(len(self._slots) / len(self._shapes)))
        self._full = nearest * self._heaviest if self._even else self._size
        self._pool = max(1, POOL // per_step)
        # Only in this case a step may have samples of two passes.
        self._across = per_step if self._even and config.steps_per_epoch is not None else None
        self.step_captions = tuple(counts)
        if self._across is not None:
            self.step_captions = (self._full,) * (config.steps_per_epoch or 1)
        self.steps_per_epoch = config.steps_per_epoch or len(counts)
        self.total_steps = self.steps_per_epoch * config.epochs
        self._shuffled: tuple[int, NDArray[np.int64]] | None = None
        self._arranged: tuple[tuple[int, int], list[NDArray[np.int64]]] | None = None

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def captions(self) -> int:
        """Targets of one pass."""
        if self._targets != "separate":
            return len(self._slots)
        return sum(len(image.captions) for image in self._images)

    @property
    def exact(self) -> bool:
        """Whether every step except the last has exactly `batch_size` captions."""
        return all(count == self._size for count in self.step_captions[:-1])

    def describe_steps(self) -> str:
        """The numbers of captions of the steps, as text: `10, 10, 4`, or `40 x 3,625`, or `38-42 (mean 40.0) x 900`."""
        counts = self.step_captions
        if len(counts) <= SHOWN_STEPS:
            return ", ".join(map(str, counts))
        kinds = Counter(counts).most_common()
        if len(kinds) <= 2:
            return ", ".join(f"{count} x {steps:,}" for count, steps in kinds)
        return f"{min(counts)}-{max(counts)} (mean {sum(counts) / len(counts):.1f}) x {len(counts):,}"

    def longest(self, count: int) -> list[TrainingSample]:
        """The samples with the most characters, to check limits in advance."""
        return [self._pick(slot, 0) for slot in self._longest_slots(np.arange(len(self._slots)), count)]

    def worst_case_step(self) -> list[TrainingSample]:
        """The longest samples that a step could have, longest first; if they fit into memory, every step does."""
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
        """The samples of optimizer step `step`, over all processes.

        With `steps_per_epoch`, epochs continue through consecutive shuffled passes; otherwise an epoch is one pass, and
        its last step has the remaining samples.
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
        if self._targets == "random":
            drawn = captions[self._draw(self._images[image].id, passed, len(captions))]
            return TrainingSample(image, (drawn,), self._instruction(image, first, passed))
        return TrainingSample(
            image, captions[first : first + self._per_sample], self._instruction(image, first, passed)
        )

    def _instruction(self, image: int, first: int, passed: int) -> str | None:
        """One of the configured instructions; the draw depends on sample and pass, not on the other data."""
        if not self._instructions:
            return None
        what = f"{self._images[image].id}/{first}/instruction"
        return self._instructions[self._draw(what, passed, len(self._instructions))]

    def _shuffle(self, passed: int) -> NDArray[np.int64]:
        """The slots of a pass in a random order; the most recent pass is cached."""
        if self._shuffled is None or self._shuffled[0] != passed:
            random = np.random.default_rng([self.seed, passed])
            slots = random.permutation(len(self._slots))
            self._shuffled = (passed, self._in_sequence(slots, 0, np.arange(len(slots))))
        return self._shuffled[1]

    def _in_sequence(self, slots: NDArray[np.int64], start: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Assign slots to positions from `start` on, each to a position with its number of captions.

        Args:
            slots: to be arranged.
            start: first position.
            order: rank of each slot among those with the same number of captions.
        """
        arranged = np.empty_like(slots)
        positions = np.argsort(self._sequence[start : start + len(slots)], kind="stable")
        arranged[positions] = slots[np.lexsort((order, self._weights[slots]))]
        return arranged

    def _shape_steps(self) -> list[tuple[int, ...]]:
        """The number of captions of each sample in each step of a pass.

        Samples with most captions are assigned first, the others fill the steps; steps are then shuffled, except for an
        incomplete last one.
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
            # One sample too many may be nearer than one too few, and a step is never empty.
            if left and (not shape or lightest < 2 * room):
                shape.append(lightest)
                left[lightest] -= 1
                left = {weight: count for weight, count in left.items() if count}
            shapes.append(tuple(shape))
        if self._even:
            return shapes
        random = np.random.default_rng([self.seed])
        return [*(shapes[index] for index in random.permutation(len(shapes) - 1)), shapes[-1]]

    def _batch(self, passed: int, step: int) -> NDArray[np.int64]:
        """The slots of a step of a pass.

        With length buckets, a pool of steps is sorted: among slots with the same number of captions, those of similar
        length are put together, and then the steps are shuffled. An incomplete step stays at the end.
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
            shuffled = np.random.default_rng([self.seed, passed, number]).permutation(len(batches) - incomplete)
            self._arranged = ((passed, number), [*(batches[k] for k in shuffled), *batches[len(shuffled) :]])
        return self._arranged[1][step - number * self._pool]

    def _draw(self, what: str, passed: int, count: int) -> int:
        """A number below `count` that depends on seed, pass and `what` only."""
        digest = hashlib.sha256(f"{self.seed}/{passed}/{what}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % count


def _of_all_captions(sample: TrainingSample) -> int:
    """Characters of all captions of a sample."""
    return sum(map(len, sample.captions))


def _of_shared_row(sample: TrainingSample) -> int:
    """The same, but a common beginning of captions counts once, as in a shared row."""
    common = sum(len(commonprefix(pair)) for pair in pairwise(sorted(sample.captions)))  # noqa: RUF071  # no paths
    return _of_all_captions(sample) - common


_WORDS = ("dog", "cat", "man", "bus", "sun", "hat", "pen", "toy", "red", "fox")
"""Words of synthetic captions; no two begin with the same letter."""


def synthetic_samples(config: TrainConfig, layout: PromptLayout, tokens: int) -> list[tuple[str, ...]]:
    """As many samples as a step has, with captions of `tokens` tokens, or as many as the layout allows."""
    per_sample = config.captions_per_image if config.caption_targets == "separate" else 1
    captions = tuple(_caption_of(layout, tokens, number) for number in range(per_sample))
    return [captions] * max(1, config.batch_size // per_sample)


def _caption_of(layout: PromptLayout, tokens: int, number: int) -> str:
    """One of several captions with different beginnings, so that a row shares no tokens among them."""
    further, first = divmod(number, len(_WORDS))
    words = [_WORDS[first]]
    while len(layout.target_ids(" ".join(words))[0]) < min(tokens, layout.max_target_tokens):
        words.append(_WORDS[further % len(_WORDS)])
    return " ".join(words)
