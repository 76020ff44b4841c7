"""A first signal is a request, a second one an order, unless torchrun doubles them."""

from __future__ import annotations

import os
import signal

import pytest

from captune.training.signals import handle_stop_signals


def test_the_second_signal_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with handle_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_torchrun_may_tell_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that Slurm stops gets SIGTERM from Slurm and from torchrun; its step is still finished and saved."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    with handle_stop_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.signal is signal.SIGTERM
