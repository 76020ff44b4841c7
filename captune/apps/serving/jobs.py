"""Jobs, the events about them, the queue in which they wait for the thread that owns a model, and its metrics."""

from __future__ import annotations

import hashlib
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from captune.apps.serving.schema import APIError
from captune.decoding import DecodingOptions, TextStream

__all__ = ["Event", "Job", "JobQueue", "Metrics", "Pixels"]


class Metrics:
    """Prometheus metrics of one server.

    Attributes:
        requests: answered requests, by path and status.
        seconds: time from a request to the end of its answer, by path.
        waiting: requests that wait for a slot.
        decoding: answers being decoded.
        batch: answers being decoded when another one joined.
        images: images encoded by the vision tower.
        prompt_tokens: prompt tokens.
        tokens: generated tokens.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter("captune_requests", "Answered requests.", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "captune_request_seconds", "From a request to the end of its answer.", ("path",), registry=registry
        )
        self.waiting = Gauge("captune_waiting", "Requests that wait for a slot.", registry=registry)
        self.decoding = Gauge("captune_decoding", "Answers being decoded.", registry=registry)
        self.batch = Histogram(
            "captune_batch_size",
            "Answers being decoded when another one joined.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.images = Counter("captune_images", "Images run through the frozen towers.", registry=registry)
        self.prompt_tokens = Counter("captune_prompt_tokens", "Tokens read.", registry=registry)
        self.tokens = Counter("captune_completion_tokens", "Tokens written.", registry=registry)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image ready for the model.

    Attributes:
        key: hash of its values.
        values: what the captioner's `prepare` gives, such as (3, S, S) float32 or a Pillow image.
    """

    key: str
    values: Any

    @classmethod
    def of(cls, values: Any) -> Pixels:
        """Pixels with the hash of their values as key."""
        return cls(hashlib.sha256(values.tobytes()).hexdigest(), values)


@dataclass(frozen=True, slots=True)
class Event:
    """A piece of a job's answer; the last one has its finish reason.

    Attributes:
        piece: new text.
        finish: None while decoding continues, then "stop" or "length".
        text: the complete answer, when it has ended.
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
    """One requested answer.

    Attributes:
        checkpoint: its name.
        prompt: token ids.
        images: those of the prompt's slots, in order.
        options: decoding options with seed 0; the seed of the request is in `sampling_key`.
        sampling_key: name of the random stream when sampling.
        on_event: called with every event, in the engine's thread.
        question: the prompt of a captioner that takes text instead of ids.
        stops: texts that end the answer and are cut off.
        cancelled: set when the client no longer waits.
        arrived: time of arrival on the monotonic clock.
        stream: the text sent so far; kept when the job restarts.
    """

    checkpoint: str
    prompt: tuple[int, ...]
    images: tuple[Pixels, ...]
    options: DecodingOptions
    sampling_key: str
    on_event: Callable[[Event], None]
    stops: tuple[str, ...] = ()
    question: str = ""
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)
    stream: TextStream | None = None


class JobQueue(ABC):
    """A queue of jobs, and the thread that answers them.

    Args:
        metrics: of the server.
        most_waiting: limit on waiting jobs; more are refused.
        name: of the thread.
    """

    def __init__(self, metrics: Metrics, most_waiting: int, name: str) -> None:
        self._metrics = metrics
        self._most_waiting = most_waiting
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def _run(self) -> None:
        """Answer jobs until the engine stops."""

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, *jobs: Job) -> None:
        """Add jobs, all or none.

        Raises:
            APIError: 429 when too many wait, 503 when the engine is stopping.
        """
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise APIError(503, "The server is stopping.", code="stopping")
            # One request with more answers than the limit is accepted if nothing waits; otherwise it never would be.
            if len(self._waiting) + len(jobs) > max(self._most_waiting, len(jobs)):
                raise APIError(
                    429, f"{self._most_waiting} requests are waiting already; try again in a moment.", code="queue_full"
                )
            self._waiting.extend(jobs)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def stop(self, seconds: float = 20.0) -> None:
        """Answer the accepted jobs, then stop; give up after some seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
