"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Measurements"]


class Measurements:
    """Counters of one server.

    Attributes:
        requests: answered requests, by path and status.
        seconds: time from a request to the end of its answer, by path.
        waiting: requests that wait for a slot.
        decoding: answers under way.
        batch: answers under way when another one joined.
        images: images run through the frozen towers.
        prompt_tokens: tokens read.
        tokens: tokens written.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self.requests = Counter("captune_requests", "Answered requests.", ("path", "status"), registry=registry)
        self.seconds = Histogram(
            "captune_request_seconds", "From a request to the end of its answer.", ("path",), registry=registry
        )
        self.waiting = Gauge("captune_waiting", "Requests that wait for a slot.", registry=registry)
        self.decoding = Gauge("captune_decoding", "Answers under way.", registry=registry)
        self.batch = Histogram(
            "captune_batch_size",
            "Answers under way when another one joined.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.images = Counter("captune_images", "Images run through the frozen towers.", registry=registry)
        self.prompt_tokens = Counter("captune_prompt_tokens", "Tokens read.", registry=registry)
        self.tokens = Counter("captune_completion_tokens", "Tokens written.", registry=registry)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)
