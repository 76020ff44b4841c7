"""From a request to its answer, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool

from captune.apps.serving.bodies import refuse_unsupported
from captune.apps.serving.captioners import ServedCaptioner
from captune.apps.serving.checkpoints import ServedModel
from captune.apps.serving.errors import APIError
from captune.apps.serving.jobs import Event, Job
from captune.apps.serving.measurements import Measurements
from captune.apps.serving.pool import ImagePool
from captune.apps.serving.questions import ImageLimits, Prompt, has_remote_images, read_messages
from captune.apps.serving.schema import ChatRequest, Choice, Completion, Reply, Usage
from captune.apps.serving.waiting import Waiting
from captune.decoding import DecodingOptions
from captune.errors import ConfigError

__all__ = ["Answering", "Answers", "Limits"]

NEW_TOKENS = 160
"""Longest answer where a request does not say."""

FETCHING = 16
"""Requests at once whose remote images are fetched."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What requests may take.

    Attributes:
        body: bytes of a request; base64 takes a third more than an image file.
        waiting: requests that wait to be decoded; more are told 429.
        slots: answers of one kind decoded at once.
        images: on images.
        preparing: requests whose images are being read; more are told 429.
    """

    body: int = 20 << 20
    waiting: int = 256
    slots: int = 32
    images: ImageLimits = field(default_factory=ImageLimits)
    preparing: int = 256


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one request that are under way.

    Attributes:
        jobs: one for each answer.
        news: what the engine tells: the number of an answer, and its event.
        prompt_tokens: of the prompt that they share.
    """

    jobs: Sequence[Job]
    news: asyncio.Queue[tuple[int, Event]]
    prompt_tokens: int

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        for job in self.jobs:
            job.cancelled = True


class Answering:
    """Turns requests into jobs, and what the engine tells of them into answers.

    Args:
        served: the model with its checkpoints.
        engine: decodes.
        pool: reads images.
        measurements: what is counted.
        limits: on requests.
        fetch: gets a remote image; None refuses them.
    """

    def __init__(
        self,
        served: ServedModel | ServedCaptioner,
        engine: Waiting,
        pool: ImagePool,
        measurements: Measurements,
        limits: Limits,
        fetch: Callable[[str], bytes] | None,
    ) -> None:
        self._served, self._engine, self._pool = served, engine, pool
        self._measurements, self._limits, self._fetch = measurements, limits, fetch
        self._preparing = 0
        # Threads of their own: a slow site keeps requests waiting that name remote images, and no others.
        self._fetching = ThreadPoolExecutor(FETCHING, thread_name_prefix="captune-fetching")

    def close(self) -> None:
        """Let the threads end."""
        self._fetching.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str) -> None:
        """Refuse a checkpoint that there is not.

        Raises:
            APIError: 404.
        """
        if name not in self._served.names:
            raise APIError(
                404,
                f"There is no model {name[:100]!r}; there are: {', '.join(self._served.names)}.",
                code="model_not_found",
                param="model",
            )

    async def submit(self, request: ChatRequest) -> Answers:
        """Read a request and give it to the engine.

        Raises:
            APIError: it is refused.
        """
        self.check_model(request.model)
        refuse_unsupported(request)
        options = self._options(request)
        if self._preparing >= self._limits.preparing:
            raise APIError(429, "Too many images are being read; try again in a moment.", code="queue_full")
        self._preparing += 1
        loop = asyncio.get_running_loop()
        try:
            if self._fetch is not None and has_remote_images(request.messages):
                prompt, files = await loop.run_in_executor(self._fetching, self._read, request, options)
            else:
                prompt, files = await run_in_threadpool(self._read, request, options)
            images = await self._pool.pixels(files)
        finally:
            self._preparing -= 1
        news: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def tell(number: int, event: Event) -> None:
            # A loop that was closed has nobody left to be told.
            if not loop.is_closed():
                loop.call_soon_threadsafe(news.put_nowait, (number, event))

        seed = request.seed if request.seed is not None else random.getrandbits(48)
        jobs = []
        for number in range(request.n or 1):
            # The first of several answers is the one that there would be alone; the others draw other numbers.
            draws = f"{seed}/{number}" if number else f"{seed}"
            stops = tuple(request.stop or ())
            told = partial(tell, number)
            jobs.append(Job(request.model, prompt.ids, images, options, draws, told, stops, prompt.question))
        self._engine.submit(*jobs)
        self._measurements.prompt_tokens.inc(prompt.tokens)
        return Answers(jobs, news, prompt.tokens)

    async def whole(self, request: ChatRequest, answers: Answers, name: str, gone: asyncio.Future[None]) -> Completion:
        """Wait for the end of all answers.

        Args:
            request: the request.
            answers: what was submitted for it.
            name: of the completion.
            gone: done when the client has left.

        Raises:
            APIError: decoding failed, or the client has left.
        """
        ended: dict[int, Event] = {}
        try:
            while len(ended) < len(answers.jobs):
                number, event = await _told(answers, gone)
                if event.finish is not None:
                    ended[number] = event
        finally:
            answers.cancel()
        return Completion(
            id=name,
            created=int(time.time()),
            model=request.model,
            choices=[
                Choice(index=number, message=Reply(content=event.text), finish_reason=_finish(event))
                for number, event in sorted(ended.items())
            ],
            usage=self._usage(answers, ended),
        )

    async def first(self, answers: Answers, gone: asyncio.Future[None]) -> tuple[int, Event]:
        """The number and the event that a stream begins with: what fails at once has a status of its own.

        Args:
            answers: what was submitted.
            gone: done when the client has left.

        Raises:
            APIError: decoding failed, or the client has left.
        """
        try:
            return await _told(answers, gone)
        except BaseException:
            answers.cancel()
            raise

    async def stream(
        self, request: ChatRequest, answers: Answers, name: str, first: tuple[int, Event]
    ) -> AsyncIterator[str]:
        """Server-sent events of the answers as they grow, in OpenAI's form.

        Args:
            request: the request.
            answers: what was submitted for it.
            name: of the completion.
            first: what `first` gave.
        """
        head: dict[str, Any] = {
            "id": name,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request.model,
        }
        ended: dict[int, Event] = {}
        try:
            for number in range(len(answers.jobs)):
                yield _chunk(head, number, {"role": "assistant", "content": ""})
            coming: tuple[int, Event] | None = first
            while len(ended) < len(answers.jobs):
                number, event = coming or await answers.news.get()
                coming = None
                if event.error is not None:
                    yield _data(event.error.body)
                    return
                if event.piece:
                    yield _chunk(head, number, {"content": event.piece})
                if event.finish is not None:
                    ended[number] = event
                    yield _chunk(head, number, {}, event.finish)
            usage = self._usage(answers, ended)
            if request.stream_options is not None and request.stream_options.include_usage:
                yield _data({**head, "choices": [], "usage": usage.model_dump()})
            yield "data: [DONE]\n\n"
        finally:
            # A client that leaves ends this generator here.
            answers.cancel()

    def _read(self, request: ChatRequest, options: DecodingOptions) -> tuple[Prompt, tuple[bytes, ...]]:
        """A request's prompt, and its image files."""
        instruction = self._served.instructions[request.model]
        dialogue = read_messages(request.messages, instruction, self._limits.images, self._fetch)
        return self._served.lay_out(dialogue, options.max_new_tokens), dialogue.images

    def _usage(self, answers: Answers, ended: Mapping[int, Event]) -> Usage:
        """What all answers took, which is counted here; the prompt they share is one."""
        tokens = sum(event.tokens for event in ended.values())
        self._measurements.tokens.inc(tokens)
        return Usage(
            prompt_tokens=answers.prompt_tokens,
            completion_tokens=tokens,
            total_tokens=answers.prompt_tokens + tokens,
        )

    def _options(self, request: ChatRequest) -> DecodingOptions:
        most = request.max_completion_tokens or request.max_tokens or min(NEW_TOKENS, self._served.context // 2)
        given = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "beams": request.num_beams,
            "length_penalty": request.length_penalty,
            "repetition_penalty": request.repetition_penalty,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not chosen.get("temperature"):
            # Greedy: what only changes draws must not keep requests from being decoded together.
            chosen = {name: value for name, value in chosen.items() if name not in ("top_p", "top_k", "temperature")}
        try:
            return DecodingOptions(max_new_tokens=most, **chosen)
        except ConfigError as error:
            raise APIError(400, str(error)) from None


async def _told(answers: Answers, gone: asyncio.Future[None]) -> tuple[int, Event]:
    """What the engine tells next.

    Raises:
        APIError: decoding failed, or the client has left.
    """
    coming = asyncio.ensure_future(answers.news.get())
    try:
        await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise APIError(499, "The client has left.")
    finally:
        coming.cancel()
    number, event = coming.result()
    if event.error is not None:
        raise event.error
    return number, event


def _finish(event: Event) -> Literal["stop", "length"]:
    return "stop" if event.finish == "stop" else "length"


def _chunk(head: dict[str, Any], number: int, delta: dict[str, str], finish: str | None = None) -> str:
    return _data({**head, "choices": [{"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}]})


def _data(tree: dict[str, Any]) -> str:
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n"
