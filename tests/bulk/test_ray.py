"""The same files through Ray: actors on all processors, one of them killed, none that fits."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bulk_words import IDENTITY, Words, _Options, captions, draw, files_of

from captune.bulk import Job, Progress, read_inputs, run_shards
from captune.bulk.ray_engine import Workers, run_with_ray
from captune.errors import ConfigError, ToolError

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ray with two processors, whatever the machine has."""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


class Fragile(Words):
    """Its process is killed once, in the middle of a shard."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def generate(self, prepared: Any, instruction: Any, options: Any, *, keys: Any) -> Any:
        if "0013.png" in keys and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(prepared, instruction, options, keys=keys)


class Mortal(Words):
    """Dies of one image, in every worker."""

    def generate(self, prepared: Any, instruction: Any, options: Any, *, keys: Any) -> Any:
        if "0013.png" in keys:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(prepared, instruction, options, keys=keys)


def job_of(tmp_path: Path, folder: str) -> Job:
    return Job(tmp_path / folder, read_inputs([str(tmp_path / "images")]), IDENTITY, shard_size=10)


def workers(load: Any, **settings: Any) -> Workers:
    return Workers(load, _Options(), **settings)  # type: ignore[arg-type]


@pytest.mark.usefixtures("machine")
def test_actors_on_all_processors_and_one_killed(tmp_path: Path) -> None:
    draw(tmp_path / "images", 60)
    (tmp_path / "images" / "0025.png").write_bytes(b"no image")
    single = job_of(tmp_path, "single")
    run_shards(captions(), single, single.open_shards())
    job = job_of(tmp_path, "ray")
    progress = Progress(len(job.shards), 60)
    # One actor per processor, which leaves none free; more are requested than fit.
    run_with_ray(workers(partial(Fragile, tmp_path / "killed"), count=5), job, job.open_shards(), progress)
    assert (tmp_path / "killed").exists()
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "single")
    assert (progress.captioned, progress.rejected, progress.shards_done) == (59, 1, 6)


@pytest.mark.usefixtures("machine")
def test_a_shard_that_kills_every_actor(tmp_path: Path) -> None:
    draw(tmp_path / "images", 30)
    job = job_of(tmp_path, "ray")
    with pytest.raises(ToolError, match=r"1 shards failed \(images-00001\): its actor died"):
        run_with_ray(workers(Mortal), job, job.open_shards())
    assert [shard.name for shard in job.open_shards()] == ["images-00001"]
    run_with_ray(workers(Words), job, job.open_shards())
    assert job.open_shards() == []


@pytest.mark.usefixtures("machine")
def test_no_room_for_an_actor(tmp_path: Path) -> None:
    draw(tmp_path / "images", 2)
    job = job_of(tmp_path, "ray")
    with pytest.raises(ConfigError, match="an actor needs 9 CPUs and 0 GPUs, and the machines have 2 and 0"):
        run_with_ray(workers(Words, cpus=9), job, job.open_shards())
