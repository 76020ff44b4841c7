"""Continuous batching for many clients: requests join the running decoding at the next step and leave when they end.

One thread owns the model. Requests that can share a forward pass (the same checkpoint, the same decoding options) form
a group with its own decoding engine; the groups take steps in turns, so that the answers of two checkpoints grow at the
same pace.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captune.apps.serving.jobs import Event, Job, JobQueue, Metrics, Pixels
from captune.apps.serving.schema import APIError, scores_error
from captune.apps.serving.served_models import ServedCaptioner, ServedModel
from captune.decoding import (
    NON_FINITE_SCORES,
    Caption,
    DecodingEngine,
    DecodingOptions,
    Progress,
    Request,
    StopRule,
    TextStream,
    as_caption,
    generate_ids,
    is_out_of_memory,
    unsupported_reason,
)
from captune.errors import InputError, NonFiniteScoresError, RefusedImagesError

__all__ = ["CaptionerEngine", "Engine", "Group"]

MOST_GROUPS = 4
"""Groups that are decoded in turns; each may take the memory of all slots."""

STARVATION_TIMEOUT = 1.0
"""Seconds after which a request without a group keeps later ones from joining the other groups."""

BATCH_WINDOW = 0.003
"""Seconds that the first request waits for others: a forward pass of many costs little more than of one."""

FEATURE_CACHE_SIZE = 128
"""Images whose features are kept: a dialogue and a comparison of checkpoints send the same image again."""


class Group:
    """Answers decoded in one batch: of one checkpoint, with the same options.

    Args:
        served: the model.
        first: a job of this kind.
        slots: limit on answers decoded at once.
        longest: tokens of the longest prompt of this kind.
    """

    def __init__(self, served: ServedModel, first: Job, slots: int, longest: int) -> None:
        self._served = served
        self._checkpoint = first.checkpoint
        self._options = first.options
        self._slots = slots
        self._jobs: dict[int, Job] = {}
        self._next = 0
        model = served.model
        self._loop: DecodingEngine | None = None
        self._requests: list[Request] = []
        if unsupported_reason(model.llm, longest + first.options.max_new_tokens) is None:
            stop = StopRule(served.processor)
            self._loop = DecodingEngine(model, first.options, stop, slots=slots, longest_prompt=longest)

    @property
    def jobs(self) -> list[Job]:
        """The jobs being decoded."""
        return list(self._jobs.values())

    @property
    def active(self) -> int:
        """Number of answers being decoded."""
        return len(self._jobs)

    @property
    def free(self) -> int:
        """Number of jobs that can be admitted."""
        return self._slots - len(self._jobs) if self._loop is None else self._loop.free

    def admit(self, jobs: Sequence[Job], features: Sequence[Tensor | None]) -> None:
        """Add jobs.

        Args:
            jobs: at most `free` of them.
            features: (I, Q, F) of the images of each job.
        """
        requests = []
        for job, image_features in zip(jobs, features, strict=True):
            stop = StopRule(self._served.processor, also=job.stops) if job.stops else None
            requests.append(Request(self._next, job.prompt, image_features, job.sampling_key, stop))
            if job.stream is None:
                job.stream = TextStream(self._served.processor, job.stops)
            self._jobs[self._next] = job
            self._next += 1
        if self._loop is None:
            self._requests += requests
        else:
            self._served.select(self._checkpoint)
            self._loop.admit(requests)

    def step(self) -> None:
        """Decode one more token of each answer, or complete answers if the model has no slotted KV cache."""
        self._served.select(self._checkpoint)
        if self._loop is not None:
            for progress in self._loop.step():
                self._send(progress)
            return
        requests, self._requests = self._requests, []
        faulty: set[int] = set()
        try:
            rows = generate_ids(self._served.model, requests, self._options)
        except NonFiniteScoresError as error:
            rows, faulty = [row or [] for row in error.captions], set(error.reasons)
        for row_index, (request, row) in enumerate(zip(requests, rows, strict=True)):
            self._send(Progress(request.number, _up_to_stop(row, request.stop), True, row_index in faulty))

    def _send(self, progress: Progress) -> None:
        job = self._jobs[progress.number]
        if progress.ended:
            del self._jobs[progress.number]
        if job.cancelled:
            return
        if progress.faulty:
            job.on_event(Event(error=scores_error(NON_FINITE_SCORES)))
            return
        # In beam search the best beam can still change.
        piece = ""
        assert job.stream is not None
        if progress.ended or self._options.beams == 1:
            piece = job.stream.push(progress.ids, ended=progress.ended)
        if progress.ended:
            stopped = job.stream.stopped or as_caption(self._served.processor, progress.ids).stopped
            job.on_event(Event(piece, "stop" if stopped else "length", job.stream.text, len(progress.ids)))
        elif piece:
            job.on_event(Event(piece, tokens=len(progress.ids)))


def _up_to_stop(ids: Sequence[int], stop: StopRule | None) -> Sequence[int]:
    """A row that was decoded without its stop rule, cut after the token that ends it by that rule."""
    if stop is not None:
        for index, token in enumerate(ids):
            if stop.ended(ids[:index], token):
                return ids[: index + 1]
    return ids


logger = logging.getLogger(__name__)


class Engine(JobQueue):
    """Owns a model and answers jobs token by token.

    Args:
        served: the model and its checkpoints.
        metrics: of the server.
        slots: answers of one group decoded at once.
        most_waiting: limit on jobs that wait for a slot; more are refused.
    """

    def __init__(self, served: ServedModel, metrics: Metrics, *, slots: int = 32, most_waiting: int = 256) -> None:
        super().__init__(metrics, most_waiting, "captune-decoding")
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
                idle = not self._groups
            if idle:
                time.sleep(BATCH_WINDOW)
            self._admit()
            for key, group in list(self._groups.items()):
                self._step(key, group)
            self._metrics.decoding.set(sum(group.active for group in self._groups.values()))

    def _admit(self) -> None:
        """Move waiting jobs into their groups, as many as fit."""
        admitted: dict[Any, list[Job]] = {}
        with self._changed:
            kept: deque[Job] = deque()
            now, closed = time.monotonic(), False
            while self._waiting:
                job = self._waiting.popleft()
                if job.cancelled:
                    continue
                key = _kind(job, self.served.context)
                count = len(admitted.get(key, ()))
                room = self._groups[key].free if key in self._groups else self._slots
                is_new = key not in self._groups and key not in admitted
                if is_new and len(self._groups.keys() | admitted.keys()) >= MOST_GROUPS:
                    closed = closed or now - job.arrived > STARVATION_TIMEOUT
                    kept.append(job)
                elif closed or count >= room:
                    kept.append(job)
                else:
                    admitted.setdefault(key, []).append(job)
            self._waiting = kept
            self._metrics.waiting.set(len(kept))
        try:
            self._encode([image for jobs in admitted.values() for job in jobs for image in job.images])
        except Exception as error:
            logger.exception("encoding images failed")
            _fail_all([job for jobs in admitted.values() for job in jobs], error)
            return
        for key, jobs in admitted.items():
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(self.served, jobs[0], self._slots, longest=key[2])
            try:
                group.admit(jobs, [self._features_of(job) for job in jobs])
            except Exception as error:
                self._give_up(key, group, error)
            else:
                self._metrics.batch.observe(group.active)

    def _step(self, key: Any, group: Group) -> None:
        try:
            group.step()
        except Exception as error:
            self._give_up(key, group, error)
            return
        if not group.active:
            del self._groups[key]

    def _give_up(self, key: Any, group: Group, error: Exception) -> None:
        """End a group that failed; after running out of memory its jobs restart with fewer at once."""
        del self._groups[key]
        if isinstance(error, RuntimeError) and is_out_of_memory(error) and self._slots > 1:
            # The restarted answers begin with the same text, which is not sent twice.
            self._slots = max(1, self._slots // 2)
            logger.warning("out of memory: continuing with %d answers at once", self._slots)
            with self._changed:
                self._waiting.extendleft(reversed(group.jobs))
            return
        logger.error("decoding failed", exc_info=error)
        _fail_all(group.jobs, error)

    def _encode(self, images: Sequence[Pixels]) -> None:
        """Cache the features of images; the missing ones are encoded in one batch."""
        new = {image.key: image.values for image in images if image.key not in self._features}
        if new:
            features = self.served.encode(list(new.values()))
            self._metrics.images.inc(len(new))
            for index, key in enumerate(new):
                self._features[key] = features[index : index + 1]
        for image in images:
            self._features.move_to_end(image.key)
        while len(self._features) > max(FEATURE_CACHE_SIZE, len(images)):
            self._features.popitem(last=False)

    def _features_of(self, job: Job) -> Tensor | None:
        return torch.cat([self._features[image.key] for image in job.images]) if job.images else None


def _kind(job: Job, context: int) -> tuple[str, DecodingOptions, int]:
    """The key of a group; prompts of nearly the same length fit the same slots."""
    length = 64
    while length < len(job.prompt):
        length *= 2
    return job.checkpoint, job.options, max(len(job.prompt), min(length, context - job.options.max_new_tokens))


def _fail_all(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.on_event(Event(error=_as_api_error(error)))


def _as_api_error(error: Exception) -> APIError:
    if isinstance(error, APIError):
        return error
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return APIError(503, "There is not enough memory for this request; request fewer tokens.", code="out_of_memory")
    return APIError(500, "Decoding failed; see the server's log.", code="decoding_failed")


class CaptionerEngine(JobQueue):
    """Answers jobs with any captioner in a separate thread: complete answers, those of one kind in a batch.

    Args:
        served: the captioner.
        metrics: of the server.
        slots: answers in one batch.
        most_waiting: limit on waiting jobs; more are refused.
    """

    def __init__(self, served: ServedCaptioner, metrics: Metrics, *, slots: int = 32, most_waiting: int = 256) -> None:
        super().__init__(metrics, most_waiting, "captune-captioning")
        self.served = served
        self._slots = slots

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._stopping):
                    self._changed.wait()
                if not self._waiting:
                    return
            time.sleep(BATCH_WINDOW)
            batch = self._next()
            if batch:
                self._metrics.batch.observe(len(batch))
                self._metrics.decoding.set(len(batch))
                self._answer(batch)
                self._metrics.decoding.set(0)

    def _next(self) -> list[Job]:
        """Waiting jobs with the checkpoint, the question and the options of the first one."""
        with self._changed:
            waiting = [job for job in self._waiting if not job.cancelled]
            kinds = [(job.checkpoint, job.question, job.options) for job in waiting]
            batch = [job for job, kind in zip(waiting, kinds, strict=True) if kind == kinds[0]][: self._slots]
            self._waiting = deque(job for job in waiting if job not in batch)
            self._metrics.waiting.set(len(self._waiting))
        return batch

    def _answer(self, batch: Sequence[Job]) -> None:
        for job, answer in zip(batch, self._captions(batch), strict=True):
            if isinstance(answer, APIError):
                job.on_event(Event(error=answer))
                continue
            text, ended = answer.text, answer.stopped
            for stop in job.stops:
                before, stop_text, _ = text.partition(stop)
                text, ended = before, ended or bool(stop_text)
            job.on_event(Event(text, "stop" if ended else "length", text, answer.tokens))

    def _captions(self, batch: Sequence[Job]) -> list[Caption | APIError]:
        """A caption for each job, or why there is none."""
        first = batch[0]
        images = [job.images[0].values for job in batch]
        self._metrics.images.inc(len(images))
        try:
            self.served.select(first.checkpoint)
            return list(
                self.served.captioner.generate(
                    images, first.question or None, first.options, keys=[job.sampling_key for job in batch]
                )
            )
        except RefusedImagesError as error:
            refused = {
                n: scores_error(text) if text == NON_FINITE_SCORES else APIError(400, text, code="invalid_image")
                for n, text in error.reasons.items()
            }
            return [refused.get(n) or caption for n, caption in enumerate(error.captions)]
        except InputError as error:
            failure = APIError(400, str(error), code="unsupported")
        except Exception as error:  # no error of a model may end the thread
            logger.exception("captioning failed")
            failure = APIError(500, "Captioning failed; see the server's log.", code="decoding_failed")
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                message = "There is not enough memory for this request; request fewer tokens."
                failure = APIError(503, message, code="out_of_memory")
        return [failure] * len(batch)
