"""Answers that are decoded together: of one checkpoint, in one way."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from captune.apps.serving.checkpoints import ServedModel
from captune.apps.serving.errors import scores_error
from captune.apps.serving.jobs import Event, Job
from captune.decoding import DecodingEngine, Progress, Request, StopRule, generate_ids
from captune.decoding.capabilities import unsupported_reason
from captune.decoding.generate import as_caption
from captune.decoding.options import NON_FINITE_SCORES
from captune.decoding.text_stream import TextStream
from captune.errors import NonFiniteScoresError

__all__ = ["Group"]


class Group:
    """Some answers under way, each told piece by piece.

    Args:
        served: the model.
        first: a job of the kind that comes in.
        slots: most answers at once.
        longest: tokens of the longest prompt that comes in.
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
        self._whole: list[Request] = []
        if unsupported_reason(model.llm, longest + first.options.max_new_tokens) is None:
            stop = StopRule(served.processor)
            self._loop = DecodingEngine(model, first.options, stop, slots=slots, longest_prompt=longest)

    @property
    def jobs(self) -> list[Job]:
        """What is under way."""
        return list(self._jobs.values())

    @property
    def active(self) -> int:
        """How many answers are under way."""
        return len(self._jobs)

    @property
    def free(self) -> int:
        """How many may still come in."""
        return self._slots - len(self._jobs) if self._loop is None else self._loop.free

    def admit(self, jobs: Sequence[Job], features: Sequence[Tensor | None]) -> None:
        """Take in jobs.

        Args:
            jobs: at most `free` of them.
            features: (I, Q, F) of each one's images.
        """
        requests = []
        for job, image_features in zip(jobs, features, strict=True):
            stop = StopRule(self._served.processor, also=job.stops) if job.stops else None
            requests.append(Request(self._next, job.prompt, image_features, job.draws, stop))
            if job.stream is None:
                job.stream = TextStream(self._served.processor, job.stops)
            self._jobs[self._next] = job
            self._next += 1
        if self._loop is None:
            self._whole += requests
        else:
            self._served.select(self._checkpoint)
            self._loop.admit(requests)

    def step(self) -> None:
        """One more token for each; a language model that slots do not fit gives whole answers instead."""
        self._served.select(self._checkpoint)
        if self._loop is not None:
            for progress in self._loop.step():
                self._tell(progress)
            return
        requests, self._whole = self._whole, []
        faulty: set[int] = set()
        try:
            rows = generate_ids(self._served.model, requests, self._options)
        except NonFiniteScoresError as error:
            rows, faulty = [row or [] for row in error.captions], set(error.reasons)
        for place, (request, row) in enumerate(zip(requests, rows, strict=True)):
            self._tell(Progress(request.number, _up_to_stop(row, request.stop), True, place in faulty))

    def _tell(self, progress: Progress) -> None:
        job = self._jobs[progress.number]
        if progress.ended:
            del self._jobs[progress.number]
        if job.cancelled:
            return
        if progress.faulty:
            job.tell(Event(error=scores_error(NON_FINITE_SCORES)))
            return
        # With beams the best one may still become another.
        piece = ""
        assert job.stream is not None
        if progress.ended or self._options.beams == 1:
            piece = job.stream.push(progress.ids, ended=progress.ended)
        if progress.ended:
            stopped = job.stream.stopped or as_caption(self._served.processor, progress.ids).stopped
            job.tell(Event(piece, "stop" if stopped else "length", job.stream.text, len(progress.ids)))
        elif piece:
            job.tell(Event(piece, tokens=len(progress.ids)))


def _up_to_stop(ids: Sequence[int], stop: StopRule | None) -> Sequence[int]:
    """A row that was decoded without regard to its own rule, up to the token that ends it by that rule."""
    if stop is not None:
        for place, token in enumerate(ids):
            if stop.ended(ids[:place], token):
                return ids[: place + 1]
    return ids
