"""Being told to stop: finish the step, save, and leave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["StopRequest", "listen_for_stop"]


class StopRequest:
    """Whether the process was told to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
            # Told twice: the person does not want to wait for the step. Under torchrun a signal to all processes comes
            # twice by itself, since torchrun passes on its own.
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def listen_for_stop() -> Iterator[StopRequest]:
    """Turn SIGTERM and Ctrl-C into a request while the block runs; a second one interrupts, except under torchrun.

    Yields:
        The request. Outside the main thread, where signals cannot be caught, it never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, request._receive) for number in caught]
    try:
        yield request
    finally:
        for number, handler in zip(caught, before, strict=True):
            signal.signal(number, handler)
