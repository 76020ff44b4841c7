"""The web application of a review: one page, and the requests of its script as JSON.

    GET  /                      the page
    GET  /items?filter&search   numbers, names and statuses of captions, and counts
    GET  /items/N               a caption
    POST /items/N               {"text", "version", "accept"}: stores it, on the disk before the answer
    POST /undo                  takes the last action back
    POST /preview, /replace     {"find", "replace", "match_case", "filter", "search", "count"}
    GET  /images/N, /thumbnails/N

A caption that another program changed meanwhile is 409 with its current state, and is not written.
"""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from captune.apps.pages import PageFiles, preferred_language
from captune.apps.review.review import FILTERS, Replacement, Review, StaleTextError
from captune.apps.security import LOCAL_HOSTS, KeyMiddleware, SecurityMiddleware
from captune.data import reduced_image
from captune.errors import InputError

__all__ = ["MAX_BODY", "PAGES", "review_application"]

MAX_BODY = 256 << 10
"""Limit on the bytes of a request."""

PAGES = PageFiles("captune.apps.review")

_STATIC = {"review.css": "text/css; charset=utf-8", "review.js": "text/javascript; charset=utf-8"}
_IMAGE_PIXELS, _THUMBNAIL_PIXELS = 1600, 160
"""Longer side of images in pixels."""
_THUMBNAILS = 2000
"""Thumbnails kept in memory, 5 kB each."""
_LANGUAGE = "captune_language"

Handler = Callable[[Request], Awaitable[Response]]


def review_application(
    review: Review,
    title: str,
    *,
    hosts: Sequence[str] | None = LOCAL_HOSTS,
    site: str | None = None,
    key: str | None = None,
) -> SecurityMiddleware:
    """The application of a review.

    Args:
        review: the captions.
        title: of the page.
        hosts: accepted names in the Host header; None accepts any.
        site: beginning of the address behind a proxy.
        key: that visitors need once, as `?key=...` of the page; None lets all visitors in.
    """
    routes = _Routes(review, title)
    application = Starlette(
        routes=[
            Route("/", _with_errors(routes.page)),
            Route("/static/{name}", routes.static),
            Route("/items", _with_errors(routes.items)),
            Route("/items/{number:int}", _with_errors(routes.item), methods=["GET", "POST"]),
            Route("/undo", _with_errors(routes.undo), methods=["POST"]),
            Route("/preview", _with_errors(routes.replacement), methods=["POST"]),
            Route("/replace", _with_errors(routes.replacement), methods=["POST"]),
            Route("/images/{number:int}", _with_errors(routes.image)),
            Route("/thumbnails/{number:int}", _with_errors(routes.image)),
        ]
    )

    guarded: Any = application if key is None else KeyMiddleware(application, key, refusal=_refusal)
    return SecurityMiddleware(guarded, max_body=MAX_BODY, hosts=hosts, site=site, refusal=_refusal)


def _with_errors(handler: Handler) -> Handler:
    """A handler whose errors are JSON."""

    async def handle(request: Request) -> Response:
        if request.method == "POST" and not request.headers.get("content-type", "").startswith("application/json"):
            return _error(415, "The body must be JSON.")
        try:
            return await handler(request)
        except StaleTextError as error:
            return JSONResponse({"error": str(error), "current": error.detail}, 409)
        except InputError as error:
            return _error(409, str(error))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            return _error(500, f"Not saved: {error.strerror or error}{where}.")

    return handle


class _Routes:
    """The handlers of one review."""

    def __init__(self, review: Review, title: str) -> None:
        self._review, self._title = review, title
        self._thumbnails: OrderedDict[int, bytes] = OrderedDict()

    async def page(self, request: Request) -> Response:
        selected = request.query_params.get("lang")
        language = preferred_language(
            request.headers.get("accept-language", ""), selected or request.cookies.get(_LANGUAGE)
        )
        html = PAGES.render("index", language, source=self._title, filters=FILTERS)
        answer = HTMLResponse(html, headers={"cache-control": "no-store"})
        if selected == language:
            answer.set_cookie(_LANGUAGE, language, max_age=365 * 86400, httponly=True, samesite="lax")
        return answer

    async def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _STATIC:
            return _error(404, "There is no such file.")
        return Response(PAGES.read(name), media_type=_STATIC[name], headers={"cache-control": "no-cache"})

    async def items(self, request: Request) -> Response:
        status, search = request.query_params.get("filter", "all"), request.query_params.get("search", "")
        if status not in FILTERS:
            return _error(400, f"filter is {status!r}, expected one of: {', '.join(FILTERS)}.")
        return _json(await run_in_threadpool(self._review.items, status, search))

    async def item(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self._review):
            return _error(404, "There is no such caption.")
        if request.method == "GET":
            return _json(await run_in_threadpool(self._review.detail, number))
        match await _body(request):
            case {"text": str(text), "version": str(version), "accept": bool(accept)}:
                return _json(await run_in_threadpool(self._review.save, number, text, version, accept=accept))
        return _error(400, 'The body must be {"text": ..., "version": ..., "accept": true or false}.')

    async def undo(self, request: Request) -> Response:
        return _json({"undone": await run_in_threadpool(self._review.undo)})

    async def replacement(self, request: Request) -> Response:
        match await _body(request):
            case {
                "find": str(find),
                "replace": str(replace),
                "match_case": bool(match_case),
                "filter": str(status),
                "search": str(search),
                "count": int(count),
            } if status in FILTERS:
                made = Replacement(find, replace, match_case)
                if request.url.path == "/preview":
                    return _json(await run_in_threadpool(self._review.preview, made, status, search))
                return _json({"count": await run_in_threadpool(self._review.replace, made, status, search, count)})
        return _error(400, "The body must have find, replace, match_case, filter, search and count.")

    async def image(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self._review):
            return _error(404, "There is no such image.")
        is_thumbnail = request.url.path.startswith("/thumbnails/")
        data = self._thumbnails.get(number) if is_thumbnail else None
        if data is None:
            try:
                data = await run_in_threadpool(
                    _jpeg, self._review.image(number), _THUMBNAIL_PIXELS if is_thumbnail else _IMAGE_PIXELS
                )
            except (InputError, OSError) as error:
                return _error(404, str(error))
        if is_thumbnail:
            self._thumbnails[number] = data
            while len(self._thumbnails) > _THUMBNAILS:
                self._thumbnails.popitem(last=False)
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=300"})


def _jpeg(path: Any, pixels: int) -> bytes:
    """An image, upright and reduced, as a new JPEG: formats that browsers do not show are shown too."""
    with open(path, "rb") as stream:
        image = reduced_image(stream, str(path), pixels)
    image.thumbnail((pixels, pixels))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


async def _body(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError):
        return None


def _json(value: Any) -> Response:
    return JSONResponse(value, headers={"cache-control": "no-store"})


def _refusal(status: int, sentence: str) -> tuple[str, bytes]:
    return "application/json", json.dumps({"error": sentence}).encode()


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)
