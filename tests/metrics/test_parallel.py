"""Several jobs give the same numbers as one, and a process that fails is reported."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from captune.errors import ExternalToolError, MetricInputError
from captune.metrics import score_captions
from captune.metrics.parallel import run_in_fork


@pytest.fixture
def forking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests' threads may still be there; what is forked here does not meet them."""
    if sys.platform != "linux":
        pytest.skip("processes are forked on Linux only")
    monkeypatch.setattr("captune.metrics.parallel.threading.active_count", lambda: 1)


forks = pytest.mark.usefixtures("forking")


@pytest.fixture
def everything_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.metrics.encoding._FEWEST_CAPTIONS", 1)
    monkeypatch.setattr("captune.metrics.scorer._FEWEST_IMAGES", 1)


@pytest.mark.usefixtures("everything_pays", "forking")
@pytest.mark.parametrize("compat", ["caption", "coco-caption"])
@pytest.mark.parametrize("jobs", [2, 3, 7])
def test_several_jobs_change_nothing(compat: str, jobs: int) -> None:
    references = {str(number): [f"a dog number {number} runs", "it's \ud800 odd"] for number in range(30)}
    predictions = {image: f"dog {image} runs" for image in references}
    # The tokens of these depend on the next caption of the call, across processes too.
    references |= {str(number): ["the letter p.", "", "A man ."] for number in range(30, 40)}
    predictions |= {str(number): "the letter p" for number in range(30, 40)}
    alone = score_captions(predictions, references, compat=compat)
    assert score_captions(predictions, references, compat=compat, jobs=jobs).per_image == alone.per_image


@forks
def test_another_process_does_the_work() -> None:
    with run_in_fork(os.getpid) as result:
        assert result() not in {os.getpid(), 0}


def test_a_program_with_threads_is_not_forked() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        with run_in_fork(os.getpid) as result:
            assert result() == os.getpid()
    finally:
        over.set()
        thread.join()


@forks
def test_where_no_process_can_be_had_this_one_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(os, "fork", full)
    with run_in_fork(os.getpid) as result:
        assert result() == os.getpid()
    assert gc.isenabled()


@forks
def test_an_error_is_raised_where_the_result_is_requested() -> None:
    def fail() -> None:
        raise MetricInputError("too long")

    with run_in_fork(fail) as result, pytest.raises(MetricInputError, match="too long"):
        result()


@forks
def test_a_process_that_dies_is_reported() -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with run_in_fork(die) as result, pytest.raises(ExternalToolError, match="without a result"):
        result()


@forks
def test_a_process_ends_when_its_result_is_never_read(tmp_path: Path) -> None:
    """The calling process fails meanwhile, and the answer is larger than a pipe."""
    name = tmp_path / "process"

    def work() -> bytes:
        name.write_text(str(os.getpid()))
        return bytes(1 << 20)

    def fail() -> None:
        with run_in_fork(work):
            while not (name.exists() and name.read_text()):
                time.sleep(0.001)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(ProcessLookupError):
        os.kill(int(name.read_text()), 0)
