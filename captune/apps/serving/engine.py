"""Decoding for many askers at once: requests join the captions under way at the next step and leave when they end.

One thread owns the model. Requests that can share a forward (the same checkpoint, the same decoding) form a group with
a `DecodingEngine` of its own; groups take steps in turns, so that two checkpoints side by side grow side by side.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captune.apps.serving.checkpoints import ServedModel
from captune.apps.serving.errors import APIError
from captune.apps.serving.group import Group
from captune.apps.serving.jobs import Event, Job, Pixels
from captune.apps.serving.measurements import Measurements
from captune.apps.serving.waiting import Waiting
from captune.decoding import DecodingOptions
from captune.decoding.oom import is_out_of_memory

__all__ = ["Engine"]

logger = logging.getLogger(__name__)

MOST_GROUPS = 4
"""Kinds of requests that are decoded in turns; each may hold the memory of all slots."""

PATIENCE = 1.0
"""Seconds after which a request of a kind that has no group yet keeps later ones from filling the others up."""

GATHERED = 0.003
"""Seconds that the first request after a rest waits for company: a forward of many costs little more than of one."""

REMEMBERED = 128
"""Images whose features are kept: a dialogue and a comparison of checkpoints ask of the same image again."""


class Engine(Waiting):
    """Owns a model and answers jobs.

    Args:
        served: the model and its checkpoints.
        measurements: what is counted.
        slots: answers of one group decoded at once.
        most_waiting: jobs that may wait for a slot; more are refused.
    """

    def __init__(
        self, served: ServedModel, measurements: Measurements, *, slots: int = 32, most_waiting: int = 256
    ) -> None:
        super().__init__(measurements, most_waiting, "captune-decoding")
        self.served = served
        self._slots = slots
        self._groups: dict[Any, Group] = {}
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._groups or self._stopping):
                    self._changed.wait()
                if self._stopping and not self._waiting and not self._groups:
                    return
                rested = not self._groups
            if rested:
                time.sleep(GATHERED)
            self._admit()
            for key, group in list(self._groups.items()):
                self._step(key, group)
            self._measurements.decoding.set(sum(group.active for group in self._groups.values()))

    def _admit(self) -> None:
        """Bring waiting jobs into their groups, as many as there is room for."""
        coming: dict[Any, list[Job]] = {}
        with self._changed:
            kept: deque[Job] = deque()
            now, closed = time.monotonic(), False
            while self._waiting:
                job = self._waiting.popleft()
                if job.cancelled:
                    continue
                key = _kind(job, self.served.context)
                taken = len(coming.get(key, ()))
                room = self._groups[key].free if key in self._groups else self._slots
                is_new = key not in self._groups and key not in coming
                if is_new and len(self._groups.keys() | coming.keys()) >= MOST_GROUPS:
                    closed = closed or now - job.arrived > PATIENCE
                    kept.append(job)
                elif closed or taken >= room:
                    kept.append(job)
                else:
                    coming.setdefault(key, []).append(job)
            self._waiting = kept
            self._measurements.waiting.set(len(kept))
        try:
            self._encode([picture for jobs in coming.values() for job in jobs for picture in job.images])
        except Exception as error:
            logger.exception("encoding images failed")
            _tell_all([job for jobs in coming.values() for job in jobs], error)
            return
        for key, jobs in coming.items():
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(self.served, jobs[0], self._slots, longest=key[2])
            try:
                group.admit(jobs, [self._features_of(job) for job in jobs])
            except Exception as error:
                self._give_up(key, group, error)
            else:
                self._measurements.batch.observe(group.active)

    def _step(self, key: Any, group: Group) -> None:
        try:
            group.step()
        except Exception as error:
            self._give_up(key, group, error)
            return
        if not group.active:
            del self._groups[key]

    def _give_up(self, key: Any, group: Group, error: Exception) -> None:
        """End a group that failed; where memory was short, its jobs begin again with fewer at once."""
        del self._groups[key]
        if isinstance(error, RuntimeError) and is_out_of_memory(error) and self._slots > 1:
            # What was told already comes out the same and is not told twice.
            self._slots = max(1, self._slots // 2)
            logger.warning("out of memory: going on with %d answers at once", self._slots)
            with self._changed:
                self._waiting.extendleft(reversed(group.jobs))
            return
        logger.error("decoding failed", exc_info=error)
        _tell_all(group.jobs, error)

    def _encode(self, pictures: Sequence[Pixels]) -> None:
        """Bring the features of images into memory, those that are not there yet in one batch."""
        new = {picture.key: picture.values for picture in pictures if picture.key not in self._features}
        if new:
            features = self.served.encode(list(new.values()))
            self._measurements.images.inc(len(new))
            for place, key in enumerate(new):
                self._features[key] = features[place : place + 1]
        for picture in pictures:
            self._features.move_to_end(picture.key)
        while len(self._features) > max(REMEMBERED, len(pictures)):
            self._features.popitem(last=False)

    def _features_of(self, job: Job) -> Tensor | None:
        return torch.cat([self._features[picture.key] for picture in job.images]) if job.images else None


def _kind(job: Job, context: int) -> tuple[str, DecodingOptions, int]:
    """What jobs share that are decoded together; prompts of nearly the same length fit the same slots."""
    length = 64
    while length < len(job.prompt):
        length *= 2
    return job.checkpoint, job.options, max(len(job.prompt), min(length, context - job.options.max_new_tokens))


def _tell_all(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.tell(Event(error=_as_api_error(error)))


def _as_api_error(error: Exception) -> APIError:
    if isinstance(error, APIError):
        return error
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return APIError(503, "There is not enough memory for this request; ask for fewer tokens.", code="out_of_memory")
    return APIError(500, "Decoding failed; the server's log says why.", code="decoding_failed")
