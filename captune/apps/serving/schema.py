"""The shapes of requests and answers: that part of OpenAI's chat completions which makes sense for a captioner."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "REFUSED",
    "ChatRequest",
    "Choice",
    "Completion",
    "Failure",
    "ImagePart",
    "ImageURL",
    "Message",
    "ModelCard",
    "ModelList",
    "Reply",
    "StreamOptions",
    "TextPart",
    "Usage",
]

MOST_NEW_TOKENS = 4096
LARGEST_SEED = 2**63 - 1


class _Part(BaseModel):
    # Clients send more than is understood here; what is unknown is left alone, as OpenAI's own server does.
    model_config = ConfigDict(extra="ignore")


class TextPart(_Part):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageURL(_Part):
    """Where an image is; its bytes in base64 as a `data:` URL."""

    url: str


class ImagePart(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageURL


class Message(_Part):
    """One message of a dialogue."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]] | None = None


class StreamOptions(_Part):
    """What a stream tells beside the text."""

    include_usage: bool = False


REFUSED = ("audio", "functions", "logit_bias", "logprobs", "modalities", "response_format", "stop", "tools")
"""What OpenAI's API has and a captioner has not; it is refused where it would change the answer."""


class ChatRequest(_Part):
    """A request; decoding is greedy unless a temperature is given."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1, max_length=256)
    max_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    seed: int | None = Field(None, ge=-LARGEST_SEED, le=LARGEST_SEED)
    num_beams: int | None = Field(None, ge=1, le=8)
    length_penalty: float | None = Field(None, ge=-5, le=5)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=1)


class Reply(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one answer."""

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
