"""Signals that stop a run: finish the step, save, and exit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["GracefulStop", "handle_stop_signals"]


class GracefulStop:
    """Whether a signal stopped the run, and which one."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
            # A second signal: the user does not want to wait for the step. Under torchrun a signal to all processes
            # arrives twice, since torchrun passes on its own.
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextmanager
def handle_stop_signals() -> Iterator[GracefulStop]:
    """Turn SIGTERM and Ctrl-C into a request while the block runs; a second one interrupts, except under torchrun.

    Yields:
        The request. Outside the main thread, where signals cannot be handled, it is never set.
    """
    stop = GracefulStop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handled = (signal.SIGTERM, signal.SIGINT)
    previous = [signal.signal(number, stop._receive) for number in handled]
    try:
        yield stop
    finally:
        for number, handler in zip(handled, previous, strict=True):
            signal.signal(number, handler)
