"""From a request to its answer, whole or as a stream."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.concurrency import run_in_threadpool

from captune.apps.serving.checkpoints import ServedModel
from captune.apps.serving.engine import Engine
from captune.apps.serving.errors import APIError
from captune.apps.serving.jobs import Event, Job
from captune.apps.serving.measurements import Measurements
from captune.apps.serving.pool import ImagePool
from captune.apps.serving.questions import ImageLimits, layout_prompt, read_messages
from captune.apps.serving.schema import REFUSED, ChatRequest, Choice, Completion, Reply, Usage
from captune.decoding import DecodingOptions
from captune.errors import ConfigError

__all__ = ["Answering", "Limits"]

NEW_TOKENS = 160
"""Longest answer where a request does not say."""


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
        served: ServedModel,
        engine: Engine,
        pool: ImagePool,
        measurements: Measurements,
        limits: Limits,
        fetch: Callable[[str], bytes] | None,
    ) -> None:
        self._served, self._engine, self._pool = served, engine, pool
        self._measurements, self._limits, self._fetch = measurements, limits, fetch
        self._preparing = 0

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

    async def submit(self, asked: ChatRequest) -> tuple[Job, asyncio.Queue[Event]]:
        """Read a request and give it to the engine.

        Returns:
            The job, and the queue that receives what the engine tells of it.

        Raises:
            APIError: it is refused.
        """
        self.check_model(asked.model)
        _refuse_what_is_not_there(asked)
        if self._preparing >= self._limits.preparing:
            raise APIError(429, "Too many images are being read; try again in a moment.", code="queue_full")
        self._preparing += 1
        try:
            dialogue = await run_in_threadpool(
                read_messages,
                asked.messages,
                self._served.instructions[asked.model],
                self._limits.images,
                self._fetch,
            )
            options = self._options(asked)
            prompt = layout_prompt(
                self._served.processor.layout, dialogue, self._served.context, options.max_new_tokens
            )
            images = await self._pool.pixels(dialogue.images)
        finally:
            self._preparing -= 1
        news: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            # A loop that was closed has nobody left to be told.
            if not loop.is_closed():
                loop.call_soon_threadsafe(news.put_nowait, event)

        seed = asked.seed if asked.seed is not None else random.getrandbits(48)
        job = Job(asked.model, prompt, images, options, f"{seed}", tell)
        self._engine.submit(job)
        self._measurements.prompt_tokens.inc(len(prompt))
        return job, news

    async def whole(
        self, asked: ChatRequest, job: Job, news: asyncio.Queue[Event], name: str, gone: asyncio.Future[None]
    ) -> Completion:
        """Wait for the end of an answer.

        Args:
            asked: the request.
            job: its job.
            news: what is told of it.
            name: of the answer.
            gone: done when the client has left.

        Raises:
            APIError: decoding failed, or the client has left.
        """
        while True:
            coming = asyncio.ensure_future(news.get())
            await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                job.cancelled = True
                raise APIError(499, "The client has left.")
            event = coming.result()
            if event.error is not None:
                raise event.error
            if event.finish is not None:
                break
        self._measurements.tokens.inc(event.tokens)
        return Completion(
            id=name,
            created=int(time.time()),
            model=asked.model,
            choices=[Choice(message=Reply(content=event.text), finish_reason=_finish(event))],
            usage=_usage(job, event),
        )

    async def stream(self, asked: ChatRequest, job: Job, news: asyncio.Queue[Event], name: str) -> AsyncIterator[str]:
        """Server-sent events of an answer as it grows, in OpenAI's form."""
        head: dict[str, Any] = {
            "id": name,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": asked.model,
        }
        try:
            yield _chunk(head, {"role": "assistant", "content": ""})
            while True:
                event = await news.get()
                if event.error is not None:
                    yield _data(event.error.body)
                    return
                if event.piece:
                    yield _chunk(head, {"content": event.piece})
                if event.finish is not None:
                    break
            self._measurements.tokens.inc(event.tokens)
            yield _chunk(head, {}, event.finish)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield _data({**head, "choices": [], "usage": _usage(job, event).model_dump()})
            yield "data: [DONE]\n\n"
        finally:
            # A client that leaves ends this generator here.
            job.cancelled = True

    def _options(self, asked: ChatRequest) -> DecodingOptions:
        most = asked.max_completion_tokens or asked.max_tokens or min(NEW_TOKENS, self._served.context // 2)
        given = {
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "beams": asked.num_beams,
            "length_penalty": asked.length_penalty,
            "repetition_penalty": asked.repetition_penalty,
        }
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if not chosen.get("temperature"):
            # Greedy: what only changes draws must not keep requests from being decoded together.
            chosen = {name: value for name, value in chosen.items() if name not in ("top_p", "top_k", "temperature")}
        try:
            return DecodingOptions(max_new_tokens=most, **chosen)
        except ConfigError as error:
            raise APIError(400, str(error)) from None


def _refuse_what_is_not_there(asked: ChatRequest) -> None:
    """Refuse settings that would change the answer if they were honoured.

    Raises:
        APIError: 400.
    """
    extra = asked.model_extra or {}
    for name in REFUSED:
        value = extra.get(name)
        if value and not (name == "response_format" and value == {"type": "text"}) and value != ["text"]:
            raise APIError(400, f"{name} is not supported here; leave it out.", code="unsupported", param=name)


def _usage(job: Job, event: Event) -> Usage:
    return Usage(
        prompt_tokens=len(job.prompt),
        completion_tokens=event.tokens,
        total_tokens=len(job.prompt) + event.tokens,
    )


def _finish(event: Event) -> Literal["stop", "length"]:
    return "stop" if event.finish == "stop" else "length"


def _chunk(head: dict[str, Any], delta: dict[str, str], finish: str | None = None) -> str:
    return _data({**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]})


def _data(tree: dict[str, Any]) -> str:
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n"
