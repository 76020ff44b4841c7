"""What goes into a decoding loop, and what it says after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from captune.decoding.stop import StopRule
from captune.model import IMAGE_SLOT

__all__ = ["FeatureRows", "Progress", "Request", "common_prefix"]


class FeatureRows(Protocol):
    """Features of N images, in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: slice, /) -> Tensor:
        """Those of some images, (B, Q, F)."""
        ...


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """One caption that is asked for.

    Attributes:
        number: tells it from others; its place in a list of results.
        prompt: T token ids, `IMAGE_SLOT` where an image token goes.
        features: (I, Q, F) output of the frozen part for its images, or what gives it when it is needed; None for
            text alone.
        key: names the image's stream of draws beside the seed; requests with equal keys draw the same numbers.
        stop: when this caption has ended, where that is not the rule of the loop.
    """

    number: int
    prompt: tuple[int, ...]
    features: Tensor | Callable[[], Tensor] | None = None
    key: str = ""
    stop: StopRule | None = None

    def read_features(self) -> Tensor | None:
        """(I, Q, F), or None for text alone."""
        return self.features() if callable(self.features) else self.features


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one request stands after a step.

    Attributes:
        number: of the request.
        ids: all new ids so far, of the best beam where there are several; read it at once, the list goes on growing.
        ended: whether that was all.
        faulty: whether it ended because the model's scores are not numbers (`finite`); the ids are no answer then.
    """

    number: int
    ids: Sequence[int]
    ended: bool
    faulty: bool = False


def common_prefix(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Leading text that all prompts share, at most up to the first image and without the last token of any."""
    first = prompts[0]
    length = min(len(prompt) for prompt in prompts) - 1
    if IMAGE_SLOT in first:
        length = min(length, first.index(IMAGE_SLOT))
    for other in set(prompts):
        while other[:length] != first[:length]:
            length -= 1
    return first[: max(length, 0)]
