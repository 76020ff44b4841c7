"""Images and prompts to the inputs of a transformers model, in the documented format of its family.

`ModelInputs` reads the format from the processor or tests it with two small images: whether there is a chat template
and where it is saved, whether the caller writes the image token, whether images are nested per text, and whether the
tokenizer appends EOS to a prompt that the model should continue.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captune.common import error_text
from captune.errors import ConfigError, WeightsError
from captune.model import warn_date_is_fixed, with_fixed_clock

__all__ = ["ModelInputs", "Prompt", "describe_error", "probe_images"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """The prompt format of a family without a chat template.

    Attributes:
        before: text before the question, with the image token if the caller has to write it.
        after: text after the question.
        question: the default question; None is captune's default instruction.
    """

    before: str = ""
    after: str = ""
    question: str | None = None


DOCUMENTED_PROMPTS = {
    "chameleon": Prompt(after="<image>"),
    "florence2": Prompt(question="<CAPTION>"),
    "fuyu": Prompt(after="\n", question="Generate a coco-style caption."),
    "idefics": Prompt("User: ", "<end_of_utterance>\nAssistant:"),
    "kosmos-2": Prompt("<grounding>", question="An image of"),
    "llava": Prompt("USER: <image>\n", " ASSISTANT:"),
    "llava_next": Prompt("[INST] <image>\n", " [/INST]"),
    "paligemma": Prompt(question="caption en"),
    "vipllava": Prompt("###Human: <image>\n", "###Assistant:"),
}
"""Prompts by model type, from the documentation of families without a chat template in their folders."""

_IMAGE_NAMES = ("image_token_id", "image_token_index")
_PLACEHOLDERS = ("boi_token", "image_token")
_NAMES_OF_CLASSES = ("image_processor_type", "processor_class", "auto_map")
_PRINTED_PARTS = ("{'type'", '{"type"')
"""What a template for string messages renders for a message in parts."""


def probe_images() -> list[Image.Image]:
    """Two different small images of one shape."""
    return [Image.linear_gradient("L").resize((64, 64)).convert("RGB"), Image.new("RGB", (64, 64), (200, 40, 90))]


def describe_error(error: BaseException) -> str:
    """The type and text of an exception on one line."""
    text = error_text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class ModelInputs:
    """Makes the inputs of one model.

    Args:
        processor: of the model; the padding of its tokenizer is set here.
        model: the model; only its configuration and its class are used.
        name: of the model in messages.

    Attributes:
        takes_text: whether the model takes text input.
        encodes_text: whether an encoder reads the text, as in encoder-decoder models.
        question: the documented default question of the family; None if there is none.

    Raises:
        WeightsError: the tokenizer has neither a padding token nor EOS, or no prompt fits the processor.
    """

    def __init__(self, processor: Any, model: Any, name: str = "model") -> None:
        self.processor = processor
        self.name = name
        self._config = model.config
        self.encodes_text = bool(getattr(model.config, "is_encoder_decoder", False)) or bool(
            getattr(model.config.get_text_config(), "is_encoder_decoder", False)
        )
        self._set_padding()
        self.takes_text = bool(getattr(processor, "takes_text", True))
        template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
        self._template = template if self.takes_text else None
        self._prompts: dict[str | None, str] = {}
        self._warned: set[str] = set()
        self._parts = True
        self._nested = self._template is not None
        self._drop_end = False
        self._prompt = DOCUMENTED_PROMPTS.get(model.config.model_type, Prompt())
        if self._template is not None:
            self._fit_template(of_tokenizer=getattr(processor, "chat_template", None) is None)
        if self._template is None and self.takes_text:
            self._fit_prompt(type(model))
        self.question = None if self.has_template else self._prompt.question

    @property
    def has_template(self) -> bool:
        """Whether prompts are rendered with a chat template."""
        return self._template is not None

    @property
    def accepts_image_only(self) -> bool:
        """Whether the processor accepts an image without text and adds the image tokens itself."""
        if not self.takes_text:
            return True
        if self.has_template or not self._is_possible(None):
            return False
        return not self._writes_image or self._shows_image(None, strict=True)

    @property
    def _writes_image(self) -> bool:
        """Whether the prompt contains an image token, since the processor adds none."""
        tokens = [token for token in map(self._token, _PLACEHOLDERS) if token is not None]
        return any(token in self._prompt.before + self._prompt.after for token in tokens)

    @property
    def fingerprint(self) -> str:
        """Hash of the prompt format and of the image processor's settings."""
        settings = self.processor.image_processor.to_dict()
        made = {name: value for name, value in settings.items() if name not in _NAMES_OF_CLASSES}
        text = json.dumps([self.prompt("?") if self.takes_text else None, made], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def prompt(self, question: str | None) -> str | None:
        """The text for the processor; None for images without text.

        Args:
            question: the question; None is no question.

        Raises:
            ConfigError: there is a question, but the model takes no text.
            WeightsError: the model's chat template fails.
        """
        if not self.takes_text:
            if question is not None:
                raise ConfigError(f"{self.name} takes no instruction; omit it.")
            return None
        if self._template is not None:
            if question not in self._prompts:
                self._prompts[question] = self._render(question)
            return self._prompts[question]
        return None if question is None else f"{self._prompt.before}{question}{self._prompt.after}"

    def warn_special_tokens(self, question: str) -> None:
        """Warn once about special tokens in a question, which the processor cannot treat as text."""
        if question == self.question or question in self._warned:
            return
        self._warned.add(question)
        tokenizer = self.processor.tokenizer
        special = {str(token) for token in tokenizer.all_special_tokens}
        special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        if held := sorted(token for token in special if token and token in question):
            words = ", ".join(map(repr, held))
            logger.warning(
                "The instruction contains %s, which %s parses as a special token, not as text.", words, self.name
            )

    def batch(
        self,
        images: Sequence[Image.Image],
        prompt: str | None,
        *,
        is_continued: bool = True,
        suffix: Sequence[str] | None = None,
    ) -> Any:
        """The inputs of a batch, on the CPU.

        Args:
            images: B images in mode RGB.
            prompt: the result of `prompt`, for all of them.
            is_continued: whether the model continues the text; otherwise the tokenizer may end it.
            suffix: B answers, for processors with such an argument.

        Returns:
            A `BatchFeature` of B rows.
        """
        words: dict[str, Any] = {}
        if prompt is not None:
            words = {"text": [prompt] * len(images), "padding": True, **({"suffix": suffix} if suffix else {})}
            bos = self.processor.tokenizer.bos_token
            if self._template is not None and bos is not None and prompt.startswith(bos):
                # The template has added the BOS already.
                words["add_special_tokens"] = False
        shown: Any = [[image] for image in images] if self._nested and prompt is not None else list(images)
        made = self.processor(images=shown, return_tensors="pt", **words)
        made.pop("labels", None)
        return _without_last(made) if self._drop_end and is_continued and prompt is not None else made

    def pads_images(self, images: Sequence[Image.Image], prompt: str | None) -> bool:
        """Whether images of several shapes are padded to one shape in a batch.

        Args:
            images: images of several shapes.
            prompt: the result of `prompt`.
        """

        def values(some: Sequence[Image.Image]) -> int:
            made = self.batch(some, prompt).values()
            return sum(v.numel() for v in made if isinstance(v, Tensor) and v.is_floating_point())

        return values(images) != sum(values([image]) for image in images)

    def _set_padding(self) -> None:
        tokenizer = self.processor.tokenizer
        if not self.encodes_text:
            # Generation continues the prompt, so padding is before it.
            tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise WeightsError(f"The tokenizer of {self.name} has neither a padding token nor EOS.")
            tokenizer.pad_token = tokenizer.eos_token

    def _fit_template(self, *, of_tokenizer: bool) -> None:
        """Test whether the template takes a message in parts, or as one string with the image token.

        Args:
            of_tokenizer: whether only the tokenizer has the template. If it then renders no images, and the processor
                adds the image token itself, it is the template of the language model, and is not used.

        Raises:
            WeightsError: it takes neither, or renders no image token.
        """
        failure: WeightsError | None = None
        for parts in (True, False):
            self._parts = parts
            if not parts and of_tokenizer and self._shows_image("?"):
                self._template, self._nested = None, False
                return
            try:
                text = self._render("?")
            except WeightsError as error:
                failure = failure or error
                continue
            if not any(printed in text for printed in _PRINTED_PARTS) and self._shows_image(text):
                return
        self._parts = True
        if failure is None and self._is_possible("?"):
            failure = WeightsError(
                f"The chat template of {self.name} renders no image token; expected one that takes "
                '{"type": "image"} as a part of a message.'
            )
        if failure is not None:
            raise failure

    def conversation(self, question: str | None, answer: str, role: str = "assistant") -> str:
        """The text of a conversation with an answer, rendered by the chat template.

        Args:
            question: the question; None is no question.
            answer: the answer.
            role: name of the role that answers.

        Raises:
            WeightsError: the chat template fails.
        """
        return self._render(question, answer, role)

    def _render(self, question: str | None, answer: str | None = None, role: str = "assistant") -> str:
        content: Any = [{"type": "image"}, *([{"type": "text", "text": question}] if question else [])]
        if not self._parts:
            content = "\n".join(part for part in (self._token("image_token"), question) if part)
        reply: Any = [{"type": "text", "text": answer}] if self._parts else answer
        replies = [] if answer is None else [{"role": role, "content": reply}]
        template = self._template
        if isinstance(template, dict):
            template = template.get("default", next(iter(template.values())))
        if "strftime_now" in str(template):
            warn_date_is_fixed(self.name)
        try:
            text: str = self.processor.apply_chat_template(
                [{"role": "user", "content": content}, *replies],
                chat_template=with_fixed_clock(str(template)),
                add_generation_prompt=answer is None,
                tokenize=False,
            )
        except Exception as error:  # a template is a program, and may raise anything
            raise WeightsError(f"The chat template of {self.name} fails ({describe_error(error)}).") from error
        return text

    def _fit_prompt(self, kind: type) -> None:
        """Test who adds the image token, whether images are nested, and whether the tokenizer appends EOS."""
        documented = self._prompt
        plain = self._image_ids_of(self.prompt("?"))
        self._nested = False
        if not self._writes_image:
            for token in filter(None, map(self._token, _PLACEHOLDERS)):
                self._prompt = Prompt(f"{token}{documented.before}", documented.after, documented.question)
                written = self._image_ids_of(self.prompt("?"))
                # If the processor adds the token itself, another one would be a second image.
                if written and (not plain or written == plain):
                    break
            else:
                self._prompt = documented
        text = self.prompt("?")
        self._nested = self._is_nested(text)
        try:
            probe = self.batch(probe_images()[:1], text)
        except Exception:  # the error is reported when an image is captioned
            return
        self._drop_end = self._is_continued(probe, kind) and self._tokenizer_ends_texts()

    def _is_continued(self, made: Any, kind: type) -> bool:
        """Whether generation continues these ids: they are no encoder input, and `generate` is not overridden."""
        from transformers import GenerationMixin

        if "decoder_input_ids" in made:
            return True
        overrides_generate = getattr(kind, "generate", None) is not GenerationMixin.generate
        return "input_ids" in made and not self.encodes_text and not overrides_generate

    def _is_nested(self, text: str | None) -> bool:
        """Whether the processor needs a list of images for each text."""
        self._nested = False
        return not self._rows(text, 2)

    def _is_possible(self, question: str | None) -> bool:
        return self._rows(self.prompt(question), 1)

    def _rows(self, text: str | None, count: int) -> bool:
        """Whether the processor makes `count` rows of text and images."""
        try:
            made = self.batch(probe_images()[:count], text)
        except Exception:  # processors may raise anything for an unsupported input
            return False
        ids = _ids(made)
        return bool(ids is None or ids.shape[0] == count)

    def _shows_image(self, text: str | None, *, strict: bool = False) -> bool:
        """Whether the ids of a text contain image tokens; if not `strict`, models without such tokens pass."""
        image_ids = self._image_ids_of(text)
        return bool(image_ids) or (image_ids is not None and not strict and not set(self._image_ids()))

    def _image_ids_of(self, text: str | None) -> list[int] | None:
        """The ids of a text and an image if they contain image tokens; None if it cannot be processed."""
        try:
            image_ids = _ids(self.batch(probe_images()[:1], text))
        except Exception:  # processors may raise anything for an unsupported input
            return None
        ids: list[int] = [] if image_ids is None else image_ids[0].tolist()
        return ids if not set(self._image_ids()).isdisjoint(ids) else []

    def _image_ids(self) -> Iterator[int]:
        for name in _IMAGE_NAMES:
            value = getattr(self._config, name, None)
            # Negative ids have no embedding, such as those of a Q-Former whose outputs are put before the text.
            if isinstance(value, int) and value >= 0:
                yield value

    def _token(self, name: str) -> str | None:
        token = getattr(self.processor, name, None) or getattr(self.processor.tokenizer, name, None)
        return None if token is None else str(getattr(token, "content", token))

    def _tokenizer_ends_texts(self) -> bool:
        """Whether the tokenizer appends EOS to every text."""
        tokenizer = self.processor.tokenizer
        return tokenizer("?").input_ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id)


def _ids(made: Any) -> Tensor | None:
    for name in ("decoder_input_ids", "input_ids"):
        if isinstance(made.get(name), Tensor):
            ids: Tensor = made[name]
            return ids
    return None


def _without_last(made: Any) -> Any:
    """The inputs without the last id, and without the last column of tensors of the same shape."""
    ids = _ids(made)
    if ids is None:
        return made
    for name, value in list(made.items()):
        if isinstance(value, torch.Tensor) and value.shape == ids.shape:
            made[name] = value[:, :-1]
    return made
