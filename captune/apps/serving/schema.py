"""The shapes of requests and answers: that part of OpenAI's chat completions which makes sense for a captioner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

__all__ = [
    "NEUTRAL",
    "NEUTRAL_IN_MESSAGES",
    "WITHOUT_EFFECT",
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
]

MOST_NEW_TOKENS = 4096
LARGEST_SEED = 2**63 - 1
MOST_CHOICES = 16
MOST_MESSAGES = 256
MOST_PARTS = 256
LONGEST_STOP = 256

_UNKNOWN_FIELDS = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra={"additionalProperties": False})
"""Unknown fields are kept so that they can be refused by name; `null` and what changes nothing may be sent."""


def _as_image_url(value: Any) -> Any:
    """An image's address by itself, as many clients send it, is taken as OpenAI's object."""
    address = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(address, str):
        raise PydanticCustomError("image_url", 'Expected {"url": "data:image/jpeg;base64,..."}')
    return value if isinstance(value, Mapping) else {"url": value}


def _as_parts(value: Any) -> Any:
    """A text by itself is one part, and no content is none."""
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
    """What a stream tells beside the text."""

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
"""What OpenAI's API has and a captioner has not, with the values that change nothing; others are refused."""

WITHOUT_EFFECT = frozenset(
    {
        *("metadata", "prediction", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
        *("safety_identifier", "service_tier", "store", "user"),
    }
)
"""What OpenAI's API has and does not change the answer there either; any value may be sent."""

NEUTRAL_IN_MESSAGES: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
}
"""The same for a message: an answer of OpenAI's client may be sent back as it came."""


class ChatRequest(BaseModel):
    """A request; decoding is greedy unless a temperature is given."""

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
    """What the model said."""

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
    """A checkpoint that can be asked."""

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
