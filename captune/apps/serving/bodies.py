"""Request bodies: JSON within limits, the sentences for what does not fit the schema, and settings that are refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.concurrency import run_in_threadpool

from captune.apps.serving.errors import APIError
from captune.apps.serving.schema import NEUTRAL, NEUTRAL_IN_MESSAGES, WITHOUT_EFFECT, ChatRequest
from captune.common import did_you_mean

__all__ = ["MOST_VALUES", "BoundedRoute", "read_json", "refuse_unsupported", "validation_failure"]

MOST_VALUES = 100_000
"""Values in the JSON of a request. Each takes memory and time; a dialogue about images has some hundred."""

_PART_TYPES = ("text", "image_url")


class BoundedRoute(APIRoute):
    """A route whose JSON is read by `read_json`, in a thread: a large body keeps nobody else waiting."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with a request that reads its JSON so."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_BoundedRequest(request.scope, request.receive))

        return handle


class _BoundedRequest(Request):
    async def json(self) -> Any:
        return await run_in_threadpool(read_json, await self.body())


def read_json(body: bytes) -> Any:
    """Read the JSON of a body.

    Raises:
        APIError: 400 for what is no JSON, nested hundreds deep, or holds more than `MOST_VALUES` values.
    """
    # Every value but the first has one of these before it; in a text they count as well, at no loss.
    if sum(body.count(mark) for mark in b",[{") > MOST_VALUES:
        raise APIError(400, f"The request holds more than {MOST_VALUES:,} values, or as many commas; send less.")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise APIError(400, f"The request is not valid JSON: {error}.", code="invalid_json") from None


def validation_failure(error: RequestValidationError) -> APIError:
    """The first thing in a request that does not fit the schema."""
    first = error.errors()[0]
    steps = first["loc"]
    # The schema's name for the kind of a part, behind the number of the part, is no step of a path.
    path = ".".join(
        str(step) for before, step in itertools.pairwise(steps) if not (isinstance(before, int) and step in _PART_TYPES)
    )
    context = first.get("ctx", {})
    if first["type"] == "union_tag_invalid":
        sentence = f"The part type {str(context['tag'])[:50]!r} is not known; expected text or image_url"
    elif first["type"] in ("union_tag_not_found", "model_attributes_type") and isinstance(steps[-1], int):
        sentence = "Expected a part with a type, text or image_url"
    elif first["type"] == "missing":
        sentence = "It is required, and missing"
    else:
        sentence = first["msg"]
    return APIError(400, f"{path or 'The request'}: {sentence}.", code="invalid_request", param=path or None)


def refuse_unsupported(request: ChatRequest) -> None:
    """Refuse every setting that would change the answer if it were honoured, and every unknown one.

    Raises:
        APIError: 400.
    """
    _refuse(request.model_extra or {}, NEUTRAL, "", {*ChatRequest.model_fields, *WITHOUT_EFFECT})
    for number, message in enumerate(request.messages):
        _refuse(message.model_extra or {}, NEUTRAL_IN_MESSAGES, f"messages.{number}.", {"role", "content"})
    if request.max_tokens not in (None, request.max_completion_tokens or request.max_tokens):
        raise APIError(400, "max_tokens and max_completion_tokens differ; give one of them.", param="max_tokens")


def _refuse(
    extra: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]], path: str, supported: Collection[str]
) -> None:
    for name, value in extra.items():
        if value is None or name in supported or value in neutral.get(name, ()):
            continue
        short = path + name[:50]
        if name in neutral:
            raise APIError(400, f"{short} is not supported here; leave it out.", code="unsupported", param=short)
        hint = did_you_mean(name[:50], [*supported, *neutral], "leave it out.")
        raise APIError(400, f"There is no setting {short!r}; {hint}", code="unsupported", param=short)
