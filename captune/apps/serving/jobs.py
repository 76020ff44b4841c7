"""What is asked of the engine, and what it tells."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from captune.apps.serving.errors import APIError
from captune.decoding import DecodingOptions
from captune.decoding.text_stream import TextStream

__all__ = ["Event", "Job", "Pixels"]


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image ready for the model.

    Attributes:
        key: tells it from others.
        values: what the captioner's `prepare` gives, such as (3, S, S) float32 or a Pillow image.
    """

    key: str
    values: Any

    @classmethod
    def of(cls, values: Any) -> Pixels:
        """Pixels named after what they are."""
        return cls(hashlib.sha256(values.tobytes()).hexdigest(), values)


@dataclass(frozen=True, slots=True)
class Event:
    """News of a job: a piece of text, and with the last one how it ended.

    Attributes:
        piece: new text.
        finish: None while it goes on, then "stop" or "length".
        text: the whole answer, when it has ended.
        tokens: tokens of the answer so far.
        error: what went wrong; nothing follows.
    """

    piece: str = ""
    finish: str | None = None
    text: str = ""
    tokens: int = 0
    error: APIError | None = None


@dataclass(eq=False, slots=True)
class Job:
    """One answer that is asked for.

    Attributes:
        checkpoint: its name.
        prompt: token ids.
        images: those of the prompt's slots, in order.
        options: how to decode; their seed is 0, the asker's own is in `draws`.
        draws: names the stream of draws when sampling.
        tell: called with every event, in the engine's thread.
        question: what a captioner that reads no ids is asked.
        stops: texts that end the answer and are no part of it.
        cancelled: set by whoever does not want it any more.
        arrived: when, on the monotonic clock.
        stream: what was told so far; kept when the job begins again.
    """

    checkpoint: str
    prompt: tuple[int, ...]
    images: tuple[Pixels, ...]
    options: DecodingOptions
    draws: str
    tell: Callable[[Event], None]
    stops: tuple[str, ...] = ()
    question: str = ""
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)
    stream: TextStream | None = None
