"""Captions shards with Ray actors: one model each, on this machine or on a cluster.

Ray carries names of shards and counts, never images or tensors: an actor reads its shard and writes its file itself. So
an actor that dies costs one shard in flight, which another one captions, and the files alone show what is done.

Ray Data is not used: its read tasks need separate processors and wait for ever when the actors hold all of them.
Here only the actors request processors, and the first one that is ready begins.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captune.bulk.caption_template import CaptionTemplate
from captune.bulk.job import Job
from captune.bulk.shards import Shard
from captune.bulk.work import Captions, Progress, caption_shard
from captune.common import error_text
from captune.errors import ConfigError, MissingExtraError, ToolError

if TYPE_CHECKING:
    from captune.captioner import Captioner
    from captune.decoding import DecodingOptions

__all__ = ["Workers", "run_with_ray"]

logger = logging.getLogger(__name__)

_TRIES = 3
"""Times that a shard is tried when the actor that works on it dies."""


@dataclass(frozen=True)
class Workers:
    """The actors.

    Attributes:
        load: makes the captioner; called in each actor.
        options: how it decodes.
        instruction: the prompt for every image.
        count: how many actors; as many as the machines hold by default.
        cpus: processors of each.
        gpus: graphics cards of each.
        address: of a cluster; a cluster of this machine alone is started by default.
        template: of the text that is written; None is the caption alone.
    """

    load: Callable[[], Captioner]
    options: DecodingOptions
    instruction: str | None = None
    count: int | None = None
    cpus: float = 1
    gpus: float = 0
    address: str | None = None
    template: CaptionTemplate | None = None


class _Worker:
    """One actor."""

    def __init__(self, workers: Workers, job: Job) -> None:
        threads = max(1, int(workers.cpus))
        self._captions = Captions(workers.load(), workers.options, workers.instruction, threads, workers.template)
        self._job = job

    def run(self, shard: Shard) -> tuple[int, int]:
        """Caption a shard and write its file; numbers of captions and of rejected images."""
        if self._job.is_done(shard):
            return 0, 0
        result = caption_shard(self._captions, shard)
        self._job.write(shard.name, result.captions, result.rejected, result.files)
        return len(result.captions), len(result.rejected)


def run_with_ray(workers: Workers, job: Job, shards: Sequence[Shard], progress: Progress | None = None) -> None:
    """Caption shards with Ray actors.

    Args:
        workers: the actors.
        job: whose shards they are; its folder must be on a disk that all machines see.
        shards: those to work on.
        progress: is updated shard by shard.

    Raises:
        MissingExtraError: ray is not installed.
        ConfigError: no machine has room for a single actor.
        ToolError: shards that failed several times; the others are done.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("--engine ray", "bulk") from error
    if not shards:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(address=workers.address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    try:
        _WorkerPool(ray, workers, job, shards, progress).work()
    finally:
        if started:
            ray.shutdown()


class _WorkerPool:
    """Hands shards to actors until all are done."""

    def __init__(
        self, ray: Any, workers: Workers, job: Job, shards: Sequence[Shard], progress: Progress | None
    ) -> None:
        self._ray = ray
        self._workers = workers
        self._job = ray.put(job)
        self._waiting = deque(shards)
        self._tries: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._progress = progress
        # Running call -> its actor and its shard.
        self._running: dict[Any, tuple[Any, Shard]] = {}
        self._kind = ray.remote(_Worker)

    def work(self) -> None:
        for _ in range(min(self._room(), len(self._waiting))):
            self._start_worker()
        while self._running:
            ready, _ = self._ray.wait(list(self._running), num_returns=1)
            for call in ready:
                actor, shard = self._running.pop(call)
                self._finish(call, actor, shard)
        if self._failed or self._waiting:
            names = ", ".join(list(self._failed)[:5])
            reason = next(iter(self._failed.values()), "no actor was left")
            raise ToolError(
                f"{len(self._failed) + len(self._waiting)} shards failed ({names}): {reason}; the others are done. "
                "Start the same command again to try them once more."
            )

    def _room(self) -> int:
        """How many actors the machines hold."""
        there = self._ray.cluster_resources()
        needed = {"CPU": self._workers.cpus, "GPU": self._workers.gpus}
        room = min(int(there.get(name, 0) // each) for name, each in needed.items() if each > 0)
        if room < 1:
            raise ConfigError(
                f"an actor needs {self._workers.cpus:g} CPUs and {self._workers.gpus:g} GPUs, and the machines have "
                f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}."
            )
        if self._workers.count is not None and self._workers.count > room:
            logger.warning("%d actors were requested; the machines hold %d", self._workers.count, room)
        return min(room, self._workers.count or room)

    def _start_worker(self) -> None:
        """Start an actor and give it a shard."""
        actor = self._kind.options(num_cpus=self._workers.cpus, num_gpus=self._workers.gpus).remote(
            self._workers, self._job
        )
        self._dispatch(actor)

    def _dispatch(self, actor: Any) -> None:
        if self._waiting:
            shard = self._waiting.popleft()
            self._running[actor.run.remote(shard)] = (actor, shard)

    def _finish(self, call: Any, actor: Any, shard: Shard) -> None:
        try:
            captioned, rejected = self._ray.get(call)
        except self._ray.exceptions.RayActorError as error:
            self._retry(shard, f"its actor died ({error_text(error)})")
            if self._waiting:
                self._start_worker()
            return
        except self._ray.exceptions.RayTaskError as error:
            # The work itself failed, and would with every actor.
            self._failed[shard.name] = error_text(error.cause)
        else:
            if self._progress is not None:
                self._progress.count(captioned, rejected)
                self._progress.shard_done()
        self._dispatch(actor)

    def _retry(self, shard: Shard, reason: str) -> None:
        self._tries[shard.name] = self._tries.get(shard.name, 0) + 1
        if self._tries[shard.name] >= _TRIES:
            self._failed[shard.name] = reason
        else:
            logger.warning("shard %s is tried again: %s", shard.name, reason)
            self._waiting.append(shard)
