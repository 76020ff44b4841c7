"""Any image-text-to-text model of transformers as a captioner: BLIP-2, Qwen-VL, SmolVLM, LLaVA and others.

The model is asked through its own chat template where it has one. Where it has none, an image token is put before the
instruction if the processor knows one, and BLIP-2, whose processor places the image itself, is asked nothing at all
unless somebody does: it was trained to caption without a question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captune.captioner.fast import FastDecoder
from captune.captioner.identity import sampled_hash
from captune.captioner.interface import Captioner, Picture
from captune.captioner.pictures import as_rgb
from captune.decoding import Caption, DecodingOptions
from captune.decoding.backoff import in_batches
from captune.decoding.reference import Draws
from captune.model.processor import DEFAULT_INSTRUCTION

__all__ = ["TransformersCaptioner"]


class TransformersCaptioner(Captioner):
    """A transformers model with its processor.

    Args:
        model: an image-text-to-text model in eval mode.
        processor: its processor.
        name: what it was loaded from.
        instruction: what is asked of an image; by default captune's, or nothing where the model wants nothing.
        fast_decode: decode JPEG files with libjpeg-turbo.

    Raises:
        ValueError: the tokenizer has neither padding nor an end of text.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "model",
        instruction: str | None = None,
        fast_decode: bool = False,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        tokenizer = processor.tokenizer
        # Generation goes on from the end of a prompt, so padding stands before it.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError("The tokenizer has neither a padding token nor an end of text.")
            tokenizer.pad_token = tokenizer.eos_token
        self._template = bool(getattr(processor, "chat_template", None))
        places_image = getattr(processor, "num_query_tokens", None) is not None
        token = getattr(processor, "image_token", None)
        self._image_token = "" if places_image or token is None else str(getattr(token, "content", token))
        self.instruction = instruction
        if instruction is None and (self._template or self._image_token):
            self.instruction = DEFAULT_INSTRUCTION
        self.fingerprint = f"{sampled_hash(model.named_parameters())}-{model.dtype}"
        self._fast = FastDecoder() if fast_decode else None
        if fast_decode:
            self.fingerprint += "-fast"

    def prepare(self, picture: Picture, name: str = "") -> Image.Image:
        """An upright RGB image: unlike the original MiniGPT-4, these models are shown images as EXIF turns them."""
        made = None if self._fast is None else self._fast.image(picture)
        return as_rgb(picture, name, exif=True) if made is None else made

    def generate(
        self,
        prepared: Sequence[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        keys: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption RGB images; see `Captioner.generate`."""
        chosen = options or DecodingOptions()
        streams = list(keys) if keys is not None else [""] * len(prepared)
        text = self.prompt(instruction)
        captions: list[Caption] = []

        def run(batch: Sequence[tuple[Any, str]]) -> list[Caption]:
            return self._batch([image for image, _ in batch], [key for _, key in batch], text, chosen)

        for _, made in in_batches(list(zip(prepared, streams, strict=True)), chosen.batch_size, run):
            captions.extend(made)
            if on_progress is not None:
                on_progress(len(captions), len(prepared))
        return captions

    def prompt(self, instruction: str | None = None) -> str | None:
        """The text that the processor gets with every image; None where the model is asked nothing."""
        asked = instruction if instruction is not None else self.instruction
        if self._template:
            content = [{"type": "image"}, *([{"type": "text", "text": asked}] if asked else [])]
            text: str = self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
            return text
        if self._image_token:
            return f"{self._image_token}\n{asked}"
        return asked

    @torch.inference_mode()
    def _batch(
        self, images: list[Image.Image], keys: Sequence[str], text: str | None, options: DecodingOptions
    ) -> list[Caption]:
        words: dict[str, Any] = {} if text is None else {"text": [text] * len(images), "padding": True}
        # A list a row: models that take several images would otherwise take these for one row's.
        inputs = self.processor(images=self._arranged(images), return_tensors="pt", **words)
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokenizer = self.processor.tokenizer
        settings: dict[str, Any] = {"length_penalty": options.length_penalty} if options.beams > 1 else {}
        if options.repetition_penalty != 1.0:
            settings["repetition_penalty"] = options.repetition_penalty
        if options.sampled:
            settings["logits_processor"] = [Draws(options, keys)]
        output = self.model.generate(
            **inputs,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.beams,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
            **settings,
        )
        rows = _new_ids(output, inputs.get("input_ids"))
        ends = set(self._ends())
        return [self._caption(row, ends) for row in rows.tolist()]

    def _arranged(self, images: list[Image.Image]) -> Any:
        return [[image] for image in images] if self._nested else images

    @property
    def _nested(self) -> bool:
        """Whether the processor takes a list of images for each row."""
        return "idefics" in type(self.processor).__name__.lower() or "smolvlm" in type(self.processor).__name__.lower()

    def _ends(self) -> Iterator[int]:
        """Ids that end an answer."""
        configured = self.model.generation_config.eos_token_id
        for given in (configured, self.processor.tokenizer.eos_token_id):
            if given is not None:
                yield from [given] if isinstance(given, int) else given

    def _caption(self, row: list[int], ends: set[int]) -> Caption:
        length = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        text = self.processor.tokenizer.decode(row[:length], skip_special_tokens=True)
        return Caption(text.strip(), length, any(token in ends for token in row[:length]))


def _new_ids(output: Tensor, prompt: Tensor | None) -> Tensor:
    """What was generated; some models give the prompt back in front of it."""
    if prompt is None or output.shape[1] < prompt.shape[1]:
        return output
    length = prompt.shape[1]
    return output[:, length:] if torch.equal(output[:, :length], prompt) else output
