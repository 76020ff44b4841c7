"""From the messages of a request to a prompt, and the limits on its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from captune.apps.serving.request_images import ImageLimits, image_bytes, is_remote
from captune.apps.serving.schema import APIError, ImagePart, Message
from captune.model import IMAGE_PLACEHOLDER, PromptLayout

__all__ = [
    "CHARACTERS_PER_TOKEN",
    "Dialogue",
    "Prompt",
    "has_remote_images",
    "layout_prompt",
    "read_messages",
]

CHARACTERS_PER_TOKEN = 64
"""A text of more characters per token of the context is refused before it is tokenized, which takes long."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The texts of a dialogue, with `<ImageHere>` in the place of each image.

    Attributes:
        turns: questions with their answers.
        question: the one to answer.
        images: the bytes of the image files, in order.
    """

    turns: tuple[tuple[str, str], ...]
    question: str
    images: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The prompt of a model, without the images.

    Attributes:
        ids: token ids, for a model that is decoded token by token.
        question: text for any other captioner; may be empty.
        tokens: its length.
    """

    ids: tuple[int, ...] = ()
    question: str = ""
    tokens: int = 0


def read_messages(
    messages: Sequence[Message], instruction: str, limits: ImageLimits, fetch: Callable[[str], bytes] | None = None
) -> Dialogue:
    """Read the messages of a request.

    Args:
        messages: system, user and assistant messages; consecutive ones of one role are joined.
        instruction: the question for an image without a text.
        limits: on images.
        fetch: downloads a remote image; None refuses it.

    Raises:
        APIError: 400 or 413, with the part of the request.
    """
    images: list[bytes] = []
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        text = _text(message, f"messages.{number}.content", images, limits, fetch)
        if message.role in ("system", "developer"):
            system.append(text)
        elif turns and turns[-1][0] == message.role:
            turns[-1] = (message.role, " ".join(filter(None, (turns[-1][1], text))))
        else:
            turns.append((message.role, text))
    if not turns or turns[-1][0] != "user" or turns[0][0] != "user":
        raise APIError(400, "The messages must begin and end with one of the user.", param="messages")
    if not images:
        raise APIError(
            400,
            "The messages hold no image, and this model answers about images; send a part of the type image_url.",
            code="image_missing",
            param="messages",
        )
    questions = [_question(text, instruction) for role, text in turns if role == "user"]
    questions[0] = " ".join([*system, questions[0]])
    answers = [text for role, text in turns if role == "assistant"]
    return Dialogue(tuple(zip(questions, answers, strict=False)), questions[-1], tuple(images))


def layout_prompt(layout: PromptLayout, dialogue: Dialogue, context: int, max_tokens: int) -> tuple[int, ...]:
    """Token ids of a dialogue's prompt.

    Raises:
        APIError: 400 when prompt plus answer are longer than the model's context.
    """
    characters = len(dialogue.question) + sum(len(text) for turn in dialogue.turns for text in turn)
    if characters > CHARACTERS_PER_TOKEN * context:
        raise APIError(
            400,
            f"The messages hold {characters:,} characters, and the model reads {context} tokens in all; shorten them.",
            code="context_length_exceeded",
            param="messages",
        )
    ids = layout.dialogue_prompt(dialogue.turns, dialogue.question).ids
    if len(ids) + max_tokens > context:
        raise APIError(
            400,
            f"The messages take {len(ids)} tokens and the answer up to {max_tokens}, but the model reads {context} in "
            "all; shorten the dialogue or lower max_tokens.",
            code="context_length_exceeded",
            param="messages",
        )
    return ids


def has_remote_images(messages: Sequence[Message]) -> bool:
    """Whether a request has remote images."""
    return any(
        isinstance(part, ImagePart) and is_remote(part.image_url.url)
        for message in messages
        for part in message.content
    )


def _text(
    message: Message, where: str, images: list[bytes], limits: ImageLimits, fetch: Callable[[str], bytes] | None
) -> str:
    """The text of a message, with a placeholder for each image, whose bytes are added to `images`."""
    pieces = []
    for number, part in enumerate(message.content):
        if not isinstance(part, ImagePart):
            pieces.append(_plain(part.text))
            continue
        if message.role != "user":
            raise APIError(400, "Only messages of the user may hold images.", param=f"{where}.{number}")
        if len(images) >= limits.count:
            raise APIError(400, f"A request may hold {limits.count} images.", param=where)
        images.append(image_bytes(part.image_url.url, limits, f"{where}.{number}.image_url", fetch))
        pieces.append(f"<Img>{IMAGE_PLACEHOLDER}</Img>")
    return " ".join(filter(None, pieces))


def _plain(text: str) -> str:
    """The text of a user without the placeholder of an image."""
    return text.replace(IMAGE_PLACEHOLDER, " ").strip()


def _question(text: str, instruction: str) -> str:
    """The question of a text; an image alone gets the instruction that the model was tuned with."""
    bare = text.replace(f"<Img>{IMAGE_PLACEHOLDER}</Img>", "").strip()
    return text if bare else " ".join(filter(None, (text, instruction)))
