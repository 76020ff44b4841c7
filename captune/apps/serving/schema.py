"""Requests and answers in the form of OpenAI's chat completions, the limits on them, and how a refusal reads."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Annotated, Any, Literal

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError, from_json
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from captune.common import did_you_mean

__all__ = [
    "MOST_VALUES",
    "NEUTRAL",
    "NEUTRAL_IN_MESSAGES",
    "WITHOUT_EFFECT",
    "APIError",
    "BoundedRoute",
    "ChatRequest",
    "Choice",
    "Completion",
    "Failure",
    "ImagePart",
    "ImageURL",
    "Message",
    "ModelCard",
    "ModelList",
    "Part",
    "Reply",
    "StreamOptions",
    "TextPart",
    "Usage",
    "error_body",
    "read_json",
    "refusal",
    "refuse_unsupported",
    "scores_error",
    "validation_failure",
]

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class APIError(HTTPException):
    """A refused request, with the error object of OpenAI's API.

    Args:
        status: of the HTTP answer.
        message: one sentence with the value and what was expected.
        code: for programs, such as "model_not_found".
        param: part of the request.
    """

    def __init__(self, status: int, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(status, message)
        self.status = status
        self.body = error_body(status, message, code=code, param=param)


def scores_error(reason: str) -> APIError:
    """The answer if the model's scores are not finite, which is a fault of the model and not of the request.

    Args:
        reason: `captune.decoding.options.NON_FINITE_SCORES`.
    """
    return APIError(500, f"{reason[0].upper()}{reason[1:]}.", code="scores_not_finite")


def error_body(status: int, message: str, *, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The JSON object of a refusal."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(status: int, sentence: str) -> tuple[str, bytes]:
    """Content type and body of a request that is refused before it is read; see `SecurityMiddleware`."""
    return "application/json", json.dumps(error_body(status, sentence)).encode()


MOST_NEW_TOKENS = 4096
LARGEST_SEED = 2**63 - 1
MOST_CHOICES = 16
MOST_MESSAGES = 256
MOST_PARTS = 256
LONGEST_STOP = 256

_UNKNOWN_FIELDS = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra={"additionalProperties": False})
"""Unknown fields are kept so that they can be refused by name; `null` and values without effect are accepted."""


def _as_image_url(value: Any) -> Any:
    """A plain URL, as many clients send it, as OpenAI's object."""
    address = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(address, str):
        raise PydanticCustomError("image_url", 'Expected {"url": "data:image/jpeg;base64,..."}')
    return value if isinstance(value, Mapping) else {"url": value}


def _as_parts(value: Any) -> Any:
    """A string is one part, and null is none."""
    if value is None:
        return []
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise PydanticCustomError("content", "Expected a string or a list of parts")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TextPart(BaseModel):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageURL(BaseModel):
    """Where an image is; its bytes in base64 as a `data:` URL. The model sees every image at one resolution."""

    url: str


class ImagePart(BaseModel):
    """An image."""

    type: Literal["image_url"]
    image_url: Annotated[ImageURL, BeforeValidator(_as_image_url, json_schema_input_type=ImageURL | str)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MOST_PARTS, fail_fast=True)]


class Message(BaseModel):
    """One message of a dialogue."""

    model_config = _UNKNOWN_FIELDS

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Parts, BeforeValidator(_as_parts, json_schema_input_type=str | Parts | None)] = []


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool = False


NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Settings of OpenAI's API that a captioner does not support -> values without effect; others are refused."""

WITHOUT_EFFECT = frozenset(
    {
        *("metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "user"),
    }
)
"""Settings of OpenAI's API that do not change the answer; any value is accepted."""

NEUTRAL_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
}
"""The same for a message, so that a reply of OpenAI's client can be sent back unchanged."""


class ChatRequest(BaseModel):
    """A request; decoding is greedy without a temperature."""

    model_config = _UNKNOWN_FIELDS

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    seed: int | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    num_beams: int | None = Field(None, ge=1, le=8)
    length_penalty: float | None = Field(None, ge=-5, le=5)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES)
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]],
            Field(max_length=4, fail_fast=True),
            BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
        ]
        | None
    ) = None


class Reply(BaseModel):
    """The text of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """One answer."""

    index: int = 0
    message: Reply
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class Usage(BaseModel):
    """Tokens; an image counts as many as it takes in the prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelCard(BaseModel):
    """A served checkpoint."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "captune"


class ModelList(BaseModel):
    """All of them, in the order of training."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Failure(BaseModel):
    """A refusal."""

    error: dict[str, Any]


MOST_VALUES = 100_000
"""Values in the JSON of a request. Each takes memory and time; a dialogue about images has some hundred."""

_PART_TYPES = ("text", "image_url")


class BoundedRoute(APIRoute):
    """A route whose JSON is parsed by `read_json` in a thread, so that a large body does not block other requests."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with such a request."""
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
        APIError: 400 for invalid JSON, hundreds of nested levels, or more than `MOST_VALUES` values.
    """
    # Every value but the first follows one of these; those inside of strings are counted too, which is harmless.
    if sum(body.count(mark) for mark in b",[{") > MOST_VALUES:
        raise APIError(400, f"The request holds more than {MOST_VALUES:,} values, or as many commas; send less.")
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise APIError(400, f"The request is not valid JSON: {error}.", code="invalid_json") from None


def validation_failure(error: RequestValidationError) -> APIError:
    """The first part of a request that does not fit the schema."""
    first = error.errors()[0]
    steps = first["loc"]
    # The name of a part's type, after the number of the part, is not a step of the path.
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
    """Refuse every unsupported setting that would change the answer, and every unknown one.

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
