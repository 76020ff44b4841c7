"""The application: page, chat completions, models, health and metrics."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from captune.apps.security import LOCAL_HOSTS, KeyMiddleware, SecurityMiddleware
from captune.apps.serving.completions import Answering, Limits
from captune.apps.serving.engine import CaptionerEngine, Engine
from captune.apps.serving.jobs import JobQueue, Metrics
from captune.apps.serving.schema import (
    APIError,
    BoundedRoute,
    ChatRequest,
    Completion,
    Failure,
    ModelCard,
    ModelList,
    error_body,
    refusal,
    validation_failure,
)
from captune.apps.serving.served_models import ImagePool, ServedCaptioner, ServedModel
from captune.common import __version__

if TYPE_CHECKING:
    from captune.apps.security import Application

__all__ = ["PAGE_FILES", "Example", "index", "page_file", "serving_application"]

PAGE_FILES = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
"""Files that the page loads -> their types."""


_REPORT_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">')
"""What a report allows itself: one inline script, by its hash."""


@dataclass(frozen=True, slots=True)
class Example:
    """An image that the page offers.

    Attributes:
        image: its file.
        references: captions of people, which are shown next to the answers.
    """

    image: Path
    references: tuple[str, ...] = ()


def index(
    names: Sequence[str], instructions: Mapping[str, str], examples: Sequence[Example], described: str, *, report: bool
) -> str:
    """The HTML of the page.

    Args:
        names: of the checkpoints, in the order of training.
        instructions: name -> the instruction that it was tuned with.
        examples: images that are offered.
        described: name and size of the model.
        report: whether there is a report to link to.
    """
    facts = {
        "models": list(names),
        "instructions": dict(instructions),
        "examples": [example.references for example in examples],
        "described": described,
        "report": report,
    }
    # In an attribute: the content security policy forbids inline scripts.
    return page_file("index.html").replace("{{facts}}", escape(json.dumps(facts), quote=True))


@cache
def page_file(name: str) -> str:
    """A file of the page."""
    return (files("captune.apps.serving") / "page_files" / name).read_text(encoding="utf-8")


_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure, "description": meaning}
    for status, meaning in {
        400: "The request is not understood, or an image cannot be read.",
        401: "The server has a key, and the request does not have it.",
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
    examples: Sequence[Example] = (),
    report: Path | None = None,
    fetch: Callable[[str], bytes] | None = None,
    key: str | None = None,
) -> Application:
    """The application for a loaded model.

    Args:
        served: the model with its checkpoints.
        limits: on requests.
        hosts: accepted names in the Host header; None accepts any.
        site: beginning of the page's address behind a proxy.
        examples: images that the page offers.
        report: page of the run, which is linked while it exists.
        fetch: downloads a remote image; None refuses them.
        key: needed by all requests except /health; None answers without one.
    """
    limits = limits or Limits()
    metrics = Metrics()
    slots, waiting = limits.slots, limits.waiting
    engine: JobQueue
    if isinstance(served, ServedCaptioner):
        engine = CaptionerEngine(served, metrics, slots=slots, most_waiting=waiting)
    else:
        engine = Engine(served, metrics, slots=slots, most_waiting=waiting)
    pool = ImagePool(served)
    answering = Answering(served, engine, pool, metrics, limits, fetch)

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
        description="Image captions and dialogues about images, with the API of OpenAI's chat completions.",
        docs_url=None,
        redoc_url=None,
        lifespan=running,
    )
    application.router.route_class = BoundedRoute
    _add_failures(application)
    _add_endpoint(application, served, engine, metrics, answering)
    _add_page(application, served, examples, report)
    keyed: Any = application
    if key is not None:
        keyed = KeyMiddleware(application, key, public=("/health",), refusal=refusal)
    guarded = SecurityMiddleware(
        keyed, max_body=limits.body, max_waiting=8 * limits.body, hosts=hosts, site=site, refusal=refusal
    )
    return _Counting(guarded, metrics)


def _add_endpoint(
    application: FastAPI,
    served: ServedModel | ServedCaptioner,
    engine: JobQueue,
    metrics: Metrics,
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
    async def chat_completions(request: Request, chat: ChatRequest) -> Response:
        """Answer a question about images, or continue a dialogue."""
        answers = await answering.submit(chat)
        name = f"chatcmpl-{secrets.token_hex(12)}"
        disconnected = asyncio.ensure_future(_disconnected(request))
        try:
            if chat.stream:
                first = await answering.first(answers, disconnected)
                return StreamingResponse(
                    answering.stream(chat, answers, name, first),
                    media_type="text/event-stream",
                    headers={"cache-control": "no-store"},
                )
            completion = await answering.complete(chat, answers, name, disconnected)
        finally:
            disconnected.cancel()
        return JSONResponse(completion.model_dump())

    @application.get("/v1/models", response_model=ModelList)
    async def models() -> ModelList:
        """The served checkpoints."""
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
    async def prometheus() -> Response:
        """Metrics in Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(
    application: FastAPI, served: ServedModel | ServedCaptioner, examples: Sequence[Example], report: Path | None
) -> None:
    @application.get("/", include_in_schema=False)
    async def page() -> Response:
        has_report = report is not None and report.is_file()
        text = index(served.names, served.instructions, examples, served.described, report=has_report)
        return Response(text, media_type="text/html; charset=utf-8", headers={"cache-control": "no-store"})

    @application.get("/page/{name}", include_in_schema=False)
    async def files(name: str) -> Response:
        if name not in PAGE_FILES:
            raise APIError(404, "There is no such file.")
        return Response(page_file(name), media_type=PAGE_FILES[name])

    @application.get("/examples/{number}", include_in_schema=False)
    async def example(number: str) -> Response:
        if not (number.isascii() and number.isdecimal() and len(number) < 4 and int(number) < len(examples)):
            raise APIError(404, "There is no such example.")
        return FileResponse(examples[int(number)].image)

    @application.get("/report", include_in_schema=False)
    def report_page() -> Response:
        try:
            text = "" if report is None else report.read_text(encoding="utf-8")
        except OSError:
            text = ""
        policy = _REPORT_POLICY.search(text)
        if policy is None:
            raise APIError(404, "There is no report.")
        headers = {"cache-control": "no-store", "content-security-policy": f"{policy[1]}; frame-ancestors 'none'"}
        return HTMLResponse(text, headers=headers)


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
        return JSONResponse(error_body(500, "The server failed; see its log."), 500)


class _Counting:
    """Counts requests by path and status, and how long they took.

    Args:
        application: the counted one.
        metrics: receives the counts.
    """

    def __init__(self, application: Any, metrics: Metrics) -> None:
        self._application = application
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._application(scope, receive, sending)
        finally:
            # Only known paths: the inventions of a scanner would fill the memory.
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.seconds.labels(path).observe(time.perf_counter() - started)


async def _disconnected(request: Request) -> None:
    """Return when the client has closed the connection."""
    with suppress(asyncio.CancelledError):
        while (await request.receive())["type"] != "http.disconnect":
            pass
