"""The web application of a study: personal pages for raters, results protected by a key; in English and Chinese."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from captune.apps.pages import PageFiles, preferred_language
from captune.apps.rating.create import picture_path
from captune.apps.rating.export import answers_csv
from captune.apps.rating.store import Store
from captune.apps.rating.study_design import CRITERIA, Trial
from captune.apps.rating.study_results import Results, compute_results
from captune.apps.security import LOCAL_HOSTS, SecurityMiddleware

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_BODY", "PAGES", "STATIC", "rating_application", "static_file"]

PAGES = PageFiles("captune.apps.rating")

STATIC = {"rating.css": "text/css; charset=utf-8", "rating.js": "text/javascript; charset=utf-8"}
"""Files that the pages load -> their types."""


def static_file(name: str) -> bytes:
    """A style sheet or script.

    Raises:
        KeyError: the name is unknown.
    """
    if name not in STATIC:
        raise KeyError(name)
    return PAGES.read(name).encode()


MAX_BODY = 16 << 10
"""Limit on the bytes of a request; an answer has a hundred."""

CHOICES = ("first", "second", "tie")

_LANGUAGE, _KEY = "captune_language", "captune_results"


class _Study:
    """The constant data of a study for the pages, and when each rater was shown a screen."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.texts = [caption.text for caption in store.captions()]
        self.pictures = len(store.images())
        self.parts = store.options.parts
        self._trials: dict[int, list[Trial]] = {}
        self._shown: dict[int, tuple[int, float]] = {}
        self._results: tuple[object, Results] | None = None
        self._computing = asyncio.Lock()

    def trials(self, rater: int) -> list[Trial]:
        if rater not in self._trials:
            self._trials[rater] = self.store.trials(rater)
        return self._trials[rater]

    def show(self, rater: int, position: int) -> None:
        """Note when a screen was first shown."""
        if self._shown.get(rater, (-1, 0.0))[0] != position:
            self._shown[rater] = (position, time.monotonic())

    def seconds(self, rater: int, position: int) -> float | None:
        """Seconds since a screen was shown; None if this process did not show it."""
        shown, since = self._shown.get(rater, (-1, 0.0))
        return round(time.monotonic() - since, 3) if shown == position else None

    async def results(self) -> Results:
        """The results, computed again only after a new answer."""
        async with self._computing:
            state = self.store.state()
            if self._results is None or self._results[0] != state:
                self._results = (state, await run_in_threadpool(compute_results, self.store))
            return self._results[1]


def rating_application(
    store: Store, *, hosts: Sequence[str] | None = LOCAL_HOSTS, site: str | None = None
) -> SecurityMiddleware:
    """The application of an open study.

    Args:
        store: the study; closed when the server stops.
        hosts: accepted names in the Host header; None accepts any.
        site: beginning of the links behind a proxy.
    """
    study = _Study(store)

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        store.close()

    application = FastAPI(title="captune rate", openapi_url=None, docs_url=None, redoc_url=None, lifespan=closing)
    _add_general_pages(application)
    _add_rater_pages(application, study)
    _add_results_pages(application, study, secure=site is not None and site.startswith("https://"))
    return SecurityMiddleware(application, max_body=MAX_BODY, hosts=hosts, site=site)


def _add_general_pages(application: FastAPI) -> None:
    @application.get("/")
    async def home(request: Request) -> Response:
        return _html(request, "message", heading="home_title", text="home")

    @application.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in STATIC:
            return Response("There is no such file.\n", 404)
        return Response(static_file(name), media_type=STATIC[name], headers={"cache-control": "max-age=3600"})


def _add_rater_pages(application: FastAPI, study: _Study) -> None:
    store = study.store

    @application.get("/r/{token}/")
    async def introduction(request: Request, token: str) -> Response:
        rater = store.rater_of(token)
        if rater is None:
            return _unknown(request)
        total, answered = len(study.trials(rater)), store.answered(rater)
        return _html(request, "intro", parts=study.parts, criteria=CRITERIA, total=total, answered=answered)

    @application.get("/r/{token}")
    async def without_slash(request: Request, token: str) -> Response:
        return _unknown(request) if store.rater_of(token) is None else RedirectResponse(f"/r/{token}/", 308)

    @application.get("/r/{token}/rate")
    async def screen(request: Request, token: str) -> Response:
        rater = store.rater_of(token)
        if rater is None:
            return _unknown(request)
        trials, position = study.trials(rater), store.answered(rater)
        if position >= len(trials):
            return _html(request, "done", total=len(trials))
        trial = trials[position]
        study.show(rater, position)
        notice = request.query_params.get("notice")
        return _html(
            request,
            "trial",
            position=position,
            total=len(trials),
            part=trial.part,
            picture=trial.image,
            captions=[study.texts[index] for index in trial.captions],
            criteria=CRITERIA,
            first_of_part=position == 0 or trials[position - 1].part != trial.part,
            notice=notice if notice in ("already", "incomplete", "undone") else None,
        )

    @application.post("/r/{token}/answer")
    async def answer(request: Request, token: str) -> Response:
        rater = store.rater_of(token)
        if rater is None:
            return _unknown(request)
        fields = await _form(request)
        position = _position(fields)
        trials = study.trials(rater)
        if position is None or position >= len(trials):
            return _next(token, "incomplete")
        value = _value(trials[position].part, fields)
        if value is None:
            return _next(token, "incomplete")
        # In a thread: other requests are served while the disk writes.
        is_saved = await run_in_threadpool(store.save_answer, rater, position, value, study.seconds(rater, position))
        return _next(token, None if is_saved else "already")

    @application.post("/r/{token}/undo")
    async def undo(request: Request, token: str) -> Response:
        rater = store.rater_of(token)
        if rater is None:
            return _unknown(request)
        position = _position(await _form(request))
        undone = position is not None and await run_in_threadpool(store.undo, rater, position)
        return _next(token, "undone" if undone else None)

    @application.get("/r/{token}/picture/{number}")
    async def picture(request: Request, token: str, number: str) -> Response:
        if store.rater_of(token) is None:
            return _unknown(request)
        if not number.isascii() or not number.isdecimal() or len(number) > 9 or int(number) >= study.pictures:
            return Response("There is no such picture.\n", 404)
        headers = {"cache-control": "private, max-age=86400"}
        return FileResponse(picture_path(store.folder, int(number)), media_type="image/jpeg", headers=headers)


def _add_results_pages(application: FastAPI, study: _Study, *, secure: bool) -> None:
    store = study.store

    def may_see(request: Request) -> bool:
        return store.is_results_key(request.cookies.get(_KEY, ""))

    def opened(key: str) -> Response:
        answer = RedirectResponse("/results", 303)
        # Strict: another site cannot make a browser send it.
        answer.set_cookie(_KEY, key, httponly=True, samesite="strict", secure=secure, path="/results")
        return answer

    @application.get("/results")
    async def results(request: Request) -> Response:
        key = request.query_params.get("key")
        if key is not None and store.is_results_key(key):
            return opened(key)
        if not may_see(request):
            return _html(request, "login", status=401 if key is None else 403, wrong=key is not None)
        current = await study.results()
        raters = {rater.number: rater.name for rater in store.raters()}
        return _html(request, "results", results=current, raters=raters, source=_names(store.setting("source")))

    @application.post("/results")
    async def log_in(request: Request) -> Response:
        key = (await _form(request)).get("key", "")
        if not store.is_results_key(key):
            return _html(request, "login", status=403, wrong=True)
        return opened(key)

    @application.get("/results/results.json")
    async def results_json(request: Request) -> Response:
        if not may_see(request):
            return JSONResponse({"error": "Open /results with the key first."}, 401)
        return JSONResponse((await study.results()).to_dict())

    @application.get("/results/answers.csv")
    async def answers(request: Request) -> Response:
        if not may_see(request):
            return Response("Open /results with the key first.\n", 401)
        headers = {"content-disposition": 'attachment; filename="answers.csv"', "cache-control": "no-store"}
        text = await run_in_threadpool(answers_csv, store)
        return Response(text.encode("utf-8"), media_type="text/csv; charset=utf-8", headers=headers)


def _html(request: Request, name: str, *, status: int = 200, **values: Any) -> HTMLResponse:
    """A page in the visitor's language, which a link on it changes."""
    selected = request.query_params.get("lang")
    language = preferred_language(
        request.headers.get("accept-language", ""), selected or request.cookies.get(_LANGUAGE)
    )
    answer = HTMLResponse(PAGES.render(name, language, **values), status, {"cache-control": "no-store"})
    if selected == language:
        answer.set_cookie(_LANGUAGE, language, max_age=365 * 86400, httponly=True, samesite="lax")
    return answer


def _names(source: str) -> str:
    """The names of a study's sources; without their folders."""
    return ", ".join(PurePath(path).name for path in source.split(", "))


def _unknown(request: Request) -> Response:
    return _html(request, "message", status=404, heading="no_link", text="no_link_text")


def _next(token: str, notice: str | None) -> Response:
    return RedirectResponse(f"/r/{token}/rate" + (f"?notice={notice}" if notice else ""), 303)


async def _form(request: Request) -> dict[str, str]:
    """The first value of every field of a form; empty for any other body."""
    body = (await request.body()).decode("utf-8", "replace")
    try:
        return {name: values[0] for name, values in parse_qs(body, max_num_fields=20).items()}
    except ValueError:
        return {}


def _position(fields: Mapping[str, str]) -> int | None:
    position = fields.get("position", "")
    return int(position) if position.isascii() and position.isdecimal() and len(position) <= 9 else None


def _value(part: str, fields: Mapping[str, str]) -> str | None:
    """The stored form of an answer; None for an incomplete form."""
    if part == "pairwise":
        choice = fields.get("choice")
        return choice if choice in CHOICES else None
    points = [fields.get(criterion, "") for criterion in CRITERIA]
    return "".join(points) if all(point in ("1", "2", "3", "4", "5") for point in points) else None
