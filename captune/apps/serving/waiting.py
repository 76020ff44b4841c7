"""Jobs that wait for the thread that owns a model."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque

from captune.apps.serving.errors import APIError
from captune.apps.serving.jobs import Job
from captune.apps.serving.measurements import Measurements

__all__ = ["Waiting"]


class Waiting(ABC):
    """A queue of jobs, and the thread that answers them.

    Args:
        measurements: what is counted.
        most_waiting: jobs that may wait; more are refused.
        name: of the thread.
    """

    def __init__(self, measurements: Measurements, most_waiting: int, name: str) -> None:
        self._measurements = measurements
        self._most_waiting = most_waiting
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def _run(self) -> None:
        """Answer jobs until the engine stops."""

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are answered."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, *jobs: Job) -> None:
        """Take in jobs, all or none.

        Raises:
            APIError: 429 when too many wait, 503 when the engine is stopping.
        """
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise APIError(503, "The server is stopping.", code="stopping")
            # More answers than may wait, of one request, come in when nothing else waits: else they never would.
            if len(self._waiting) + len(jobs) > max(self._most_waiting, len(jobs)):
                raise APIError(
                    429, f"{self._most_waiting} requests are waiting already; try again in a moment.", code="queue_full"
                )
            self._waiting.extend(jobs)
            self._measurements.waiting.set(len(self._waiting))
            self._changed.notify()

    def stop(self, seconds: float = 20.0) -> None:
        """Answer what was taken in, then end; give up after some seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(seconds)
