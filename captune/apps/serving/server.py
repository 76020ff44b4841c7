"""The application: page, chat completions, models, health and measurements."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from captune import __version__
from captune.apps.http import LOCAL_HOSTS, Guard
from captune.apps.serving.bodies import BoundedRoute, validation_failure
from captune.apps.serving.captioners import CaptionerEngine, ServedCaptioner
from captune.apps.serving.checkpoints import ServedModel
from captune.apps.serving.completions import Answering, Limits
from captune.apps.serving.engine import Engine
from captune.apps.serving.errors import APIError, error_body, refusal
from captune.apps.serving.measurements import Measurements
from captune.apps.serving.page import PAGE_FILES, index, page_file
from captune.apps.serving.pool import ImagePool
from captune.apps.serving.schema import ChatRequest, Completion, Failure, ModelCard, ModelList
from captune.apps.serving.waiting import Waiting

if TYPE_CHECKING:
    from captune.apps.http import Application

__all__ = ["serving_application"]

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": meaning}
    for status, meaning in {
        400: "The request is not understood, or an image cannot be read.",
        404: "There is no such model.",
        408: "The request did not arrive in time.",
        413: "The request or an image is too large.",
        429: "Too many requests are waiting.",
        500: "Decoding failed.",
        503: "The server is stopping, or has no memory.",
    }.items()
}


def serving_application(
    served: ServedModel | ServedCaptioner,
    *,
    limits: Limits | None = None,
    hosts: Sequence[str] | None = LOCAL_HOSTS,
    site: str | None = None,
    examples: Mapping[str, Path] | None = None,
    fetch: Callable[[str], bytes] | None = None,
) -> Application:
    """The application for a loaded model.

    Args:
        served: the model with its checkpoints.
        limits: on requests.
        hosts: names under which the server answers; None is any.
        site: what the page's address begins with, where a proxy stands in front.
        examples: name -> image file, shown on the page.
        fetch: gets a remote image; None refuses them.
    """
    chosen = limits or Limits()
    measurements = Measurements()
    slots, waiting = chosen.slots, chosen.waiting
    engine: Waiting
    if isinstance(served, ServedCaptioner):
        engine = CaptionerEngine(served, measurements, slots=slots, most_waiting=waiting)
    else:
        engine = Engine(served, measurements, slots=slots, most_waiting=waiting)
    pool = ImagePool(served)
    answering = Answering(served, engine, pool, measurements, chosen, fetch)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await run_in_threadpool(engine.stop)
        pool.close()
        answering.close()

    application = FastAPI(
        title="captune",
        version=__version__,
        description="Image captions and dialogues about images, in the manner of OpenAI's chat completions.",
        docs_url=None,
        redoc_url=None,
        lifespan=running,
    )
    application.router.route_class = BoundedRoute
    _add_failures(application)
    _add_endpoint(application, served, engine, measurements, answering)
    _add_page(application, served, dict(examples or {}))
    guarded = Guard(
        application, max_body=chosen.body, max_waiting=8 * chosen.body, hosts=hosts, site=site, refusal=refusal
    )
    return _Counting(guarded, measurements)


def _add_endpoint(
    application: FastAPI,
    served: ServedModel | ServedCaptioner,
    engine: Waiting,
    measurements: Measurements,
    answering: Answering,
) -> None:
    created = int(time.time())

    @application.post(
        "/v1/chat/completions",
        response_model=Completion,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            **_FAILURES,
        },
    )
    async def chat_completions(request: Request, asked: ChatRequest) -> Response:
        """Answer a question about images, or go on with a dialogue."""
        answers = await answering.submit(asked)
        name = f"chatcmpl-{secrets.token_hex(12)}"
        gone = asyncio.ensure_future(_left(request))
        try:
            if asked.stream:
                first = await answering.first(answers, gone)
                return StreamingResponse(
                    answering.stream(asked, answers, name, first),
                    media_type="text/event-stream",
                    headers={"cache-control": "no-store"},
                )
            completion = await answering.whole(asked, answers, name, gone)
        finally:
            gone.cancel()
        return JSONResponse(completion.model_dump())

    @application.get("/v1/models", response_model=ModelList)
    async def models() -> ModelList:
        """The checkpoints that can be asked."""
        return ModelList(data=[ModelCard(id=name, created=created) for name in served.names])

    @application.get("/v1/models/{model}", response_model=ModelCard, responses={404: _FAILURES[404]})
    async def model(model: str) -> ModelCard:
        """One checkpoint."""
        answering.check_model(model)
        return ModelCard(id=model, created=created)

    @application.get("/health", responses={503: {"description": "It cannot answer."}})
    async def health() -> JSONResponse:
        """Whether requests are answered."""
        if engine.alive:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "stopping"}, 503)

    @application.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """What was counted, for Prometheus."""
        return Response(measurements.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(application: FastAPI, served: ServedModel | ServedCaptioner, examples: dict[str, Path]) -> None:
    names = list(examples)

    @application.get("/", include_in_schema=False)
    async def page() -> Response:
        text = index(served.names, served.instructions, len(names))
        return Response(text, media_type="text/html; charset=utf-8", headers={"cache-control": "no-store"})

    @application.get("/page/{name}", include_in_schema=False)
    async def files(name: str) -> Response:
        if name not in PAGE_FILES:
            raise APIError(404, "There is no such file.")
        return Response(page_file(name), media_type=PAGE_FILES[name])

    @application.get("/examples/{place}", include_in_schema=False)
    async def example(place: str) -> Response:
        if not (place.isascii() and place.isdecimal() and len(place) < 4 and int(place) < len(names)):
            raise APIError(404, "There is no such example.")
        return FileResponse(examples[names[int(place)]])


def _add_failures(application: FastAPI) -> None:
    @application.exception_handler(APIError)
    async def refused(_: Request, error: APIError) -> JSONResponse:
        headers = {"retry-after": "1"} if error.status == 429 else None
        return JSONResponse(error.body, error.status, headers)

    @application.exception_handler(RequestValidationError)
    async def not_understood(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse(validation_failure(error).body, 400)

    @application.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(error.status_code, f"{error.detail}."), error.status_code, error.headers)

    @application.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, "The server failed; its log says why."), 500)


class _Counting:
    """Counts requests by path and status, and how long they took.

    Args:
        application: what is counted.
        measurements: where.
    """

    def __init__(self, application: Any, measurements: Measurements) -> None:
        self._application = application
        self._measurements = measurements

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one connection event, as ASGI asks."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._application(scope, receive, sending)
        finally:
            # Only known paths: a scanner's inventions would fill the memory.
            path = getattr(scope.get("route"), "path", "other")
            self._measurements.requests.labels(path, str(status)).inc()
            self._measurements.seconds.labels(path).observe(time.perf_counter() - begun)


async def _left(request: Request) -> None:
    """Returns when the client has closed the connection."""
    with suppress(asyncio.CancelledError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
