"""From a request to its answer, complete or as a stream."""

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

from captune.apps.serving.jobs import Event, Job, JobQueue, Metrics
from captune.apps.serving.messages import Prompt, has_remote_images, read_messages
from captune.apps.serving.request_images import ImageLimits
from captune.apps.serving.schema import APIError, ChatRequest, Choice, Completion, Reply, Usage, refuse_unsupported
from captune.apps.serving.served_models import ImagePool, ServedCaptioner, ServedModel
from captune.decoding import DecodingOptions
from captune.errors import ConfigError

__all__ = ["Answering", "Answers", "Limits"]

NEW_TOKENS = 160
"""Default of max_tokens."""

FETCHING = 16
"""Threads that fetch remote images."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on requests.

    Attributes:
        body: bytes of a request; base64 takes a third more than an image file.
        waiting: requests that wait to be decoded; more are answered with 429.
        slots: answers of one kind decoded at once.
        images: on images.
        preparing: requests whose images are being read; more are answered with 429.
    """

    body: int = 20 << 20
    waiting: int = 256
    slots: int = 32
    images: ImageLimits = field(default_factory=ImageLimits)
    preparing: int = 256


@dataclass(frozen=True, slots=True)
class Answers:
    """The running answers of one request.

    Attributes:
        jobs: one for each answer.
        events: of the engine: the number of an answer and its event.
        prompt_tokens: length of their common prompt.
    """

    jobs: Sequence[Job]
    events: asyncio.Queue[tuple[int, Event]]
    prompt_tokens: int

    def cancel(self) -> None:
        """The client no longer waits for the answers."""
        for job in self.jobs:
            job.cancelled = True


class Answering:
    """Turns requests into jobs, and the events of the jobs into answers.

    Args:
        served: the model with its checkpoints.
        engine: decodes.
        pool: decodes images.
        metrics: of the server.
        limits: on requests.
        fetch: downloads a remote image; None refuses them.
    """

    def __init__(
        self,
        served: ServedModel | ServedCaptioner,
        engine: JobQueue,
        pool: ImagePool,
        metrics: Metrics,
        limits: Limits,
        fetch: Callable[[str], bytes] | None,
    ) -> None:
        self._served, self._engine, self._pool = served, engine, pool
        self._metrics, self._limits, self._fetch = metrics, limits, fetch
        self._preparing = 0
        # Separate threads: a slow site only delays requests with remote images.
        self._fetching = ThreadPoolExecutor(FETCHING, thread_name_prefix="captune-fetching")

    def close(self) -> None:
        """Stop the threads."""
        self._fetching.shutdown(wait=False, cancel_futures=True)

    def check_model(self, name: str) -> None:
        """Refuse an unknown model name.

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
        """Read a request and pass it to the engine.

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
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def on_event(number: int, event: Event) -> None:
            # After the event loop has closed, nothing reads the events.
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, (number, event))

        seed = request.seed if request.seed is not None else random.getrandbits(48)
        jobs = []
        for number in range(request.n or 1):
            # The first of several answers equals the only answer with n=1; the others use other random streams.
            key = f"{seed}/{number}" if number else f"{seed}"
            stops = tuple(request.stop or ())
            callback = partial(on_event, number)
            jobs.append(Job(request.model, prompt.ids, images, options, key, callback, stops, prompt.question))
        self._engine.submit(*jobs)
        self._metrics.prompt_tokens.inc(prompt.tokens)
        return Answers(jobs, events, prompt.tokens)

    async def complete(
        self, request: ChatRequest, answers: Answers, name: str, disconnected: asyncio.Future[None]
    ) -> Completion:
        """Wait for the end of all answers.

        Args:
            request: the request.
            answers: its answers, from `submit`.
            name: id of the completion.
            disconnected: done when the client has closed the connection.

        Raises:
            APIError: decoding failed, or the client has disconnected.
        """
        ended: dict[int, Event] = {}
        try:
            while len(ended) < len(answers.jobs):
                number, event = await _next_event(answers, disconnected)
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

    async def first(self, answers: Answers, disconnected: asyncio.Future[None]) -> tuple[int, Event]:
        """The number and the event that a stream begins with; a failure before it is answered with its status.

        Args:
            answers: from `submit`.
            disconnected: done when the client has closed the connection.

        Raises:
            APIError: decoding failed, or the client has disconnected.
        """
        try:
            return await _next_event(answers, disconnected)
        except BaseException:
            answers.cancel()
            raise

    async def stream(
        self, request: ChatRequest, answers: Answers, name: str, first: tuple[int, Event]
    ) -> AsyncIterator[str]:
        """Server-sent events of the growing answers, in OpenAI's format.

        Args:
            request: the request.
            answers: its answers, from `submit`.
            name: id of the completion.
            first: from `first`.
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
            pending: tuple[int, Event] | None = first
            while len(ended) < len(answers.jobs):
                number, event = pending or await answers.events.get()
                pending = None
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
            # When the client disconnects, the generator ends here.
            answers.cancel()

    def _read(self, request: ChatRequest, options: DecodingOptions) -> tuple[Prompt, tuple[bytes, ...]]:
        """A request's prompt, and its image files."""
        instruction = self._served.instructions[request.model]
        dialogue = read_messages(request.messages, instruction, self._limits.images, self._fetch)
        return self._served.lay_out(dialogue, options.max_new_tokens), dialogue.images

    def _usage(self, answers: Answers, ended: Mapping[int, Event]) -> Usage:
        """Token counts of all answers, which are added to the metrics; their common prompt counts once."""
        tokens = sum(event.tokens for event in ended.values())
        self._metrics.tokens.inc(tokens)
        return Usage(
            prompt_tokens=answers.prompt_tokens,
            completion_tokens=tokens,
            total_tokens=answers.prompt_tokens + tokens,
        )

    def _options(self, request: ChatRequest) -> DecodingOptions:
        most = request.max_completion_tokens or request.max_tokens or min(NEW_TOKENS, self._served.context // 2)
        settings = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "beams": request.num_beams,
            "length_penalty": request.length_penalty,
            "repetition_penalty": request.repetition_penalty,
        }
        options: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
        if not options.get("temperature"):
            # Greedy: sampling options must not keep requests from sharing a batch.
            options = {name: value for name, value in options.items() if name not in ("top_p", "top_k", "temperature")}
        try:
            return DecodingOptions(max_new_tokens=most, **options)
        except ConfigError as error:
            raise APIError(400, str(error)) from None


async def _next_event(answers: Answers, disconnected: asyncio.Future[None]) -> tuple[int, Event]:
    """The next event of the engine.

    Raises:
        APIError: decoding failed, or the client has disconnected.
    """
    event_task = asyncio.ensure_future(answers.events.get())
    try:
        await asyncio.wait((event_task, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if not event_task.done():
            raise APIError(499, "The client has left.")
    finally:
        event_task.cancel()
    number, event = event_task.result()
    if event.error is not None:
        raise event.error
    return number, event


def _finish(event: Event) -> Literal["stop", "length"]:
    return "stop" if event.finish == "stop" else "length"


def _chunk(head: dict[str, Any], number: int, delta: dict[str, str], finish: str | None = None) -> str:
    return _data({**head, "choices": [{"index": number, "delta": delta, "logprobs": None, "finish_reason": finish}]})


def _data(tree: dict[str, Any]) -> str:
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n"
