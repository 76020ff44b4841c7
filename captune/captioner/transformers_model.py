"""The captioning backend of transformers' image-text-to-text models: BLIP-2, Qwen-VL, SmolVLM, LLaVA and others.

`ModelInputs` makes the inputs; this module forms batches and extracts captions from the output of `generate`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from itertools import dropwhile
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from captune.captioner.jpeg_decoder import TurboJpegDecoder
from captune.captioner.model_inputs import ModelInputs, describe_error, probe_images
from captune.common import decode_marks, has_marks, opened_block, special_marks, split_thinking
from captune.data import ImageInput, read_image
from captune.decoding import (
    NON_FINITE_SCORES,
    Caption,
    DecodingOptions,
    SamplingProcessor,
    ScoreCheck,
    in_batches,
    is_out_of_memory,
)
from captune.errors import CaptuneError, ConfigError, NonFiniteScoresError, RefusedImagesError, WeightsError
from captune.model import DEFAULT_INSTRUCTION
from captune.weights import sampled_hash

__all__ = [
    "FirstStepObserver",
    "TransformersBackend",
    "end_token_ids",
    "reset_decoding",
    "start_token_ids",
    "strip_prompt",
]


logger = logging.getLogger(__name__)

# Settings of transformers' `generate`, and extraction of captions from its output.

_KEPT_SETTINGS = {
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "decoder_start_token_id",
    "disable_compile",
    "eos_token_id",
    "forced_bos_token_id",
    "max_cache_len",
    "pad_token_id",
    "prefill_chunk_size",
    "transformers_version",
    "use_cache",
}
"""Settings for the beginning, end and computation of a text; all others change the decoding."""


def reset_decoding(model: Any, pad_token_id: int) -> None:
    """Reset the decoding settings in the generation configurations of a model and its parts.

    Args:
        model: the model; parts such as the language model of BLIP-2 have separate configurations.
        pad_token_id: the padding token, if the model has none.
    """
    neutral = GenerationConfig()
    for part in model.modules():
        settings = getattr(part, "generation_config", None)
        if not isinstance(settings, GenerationConfig):
            continue
        for name, value in vars(neutral).items():
            if name not in _KEPT_SETTINGS and not name.startswith("_"):
                setattr(settings, name, value)
        if settings.pad_token_id is None:
            settings.pad_token_id = pad_token_id


class FirstStepObserver(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Records the input of the first decoding step.

    Attributes:
        begin: number of ids before the first new one.
        scores: (B, V) scores of the first new id.
    """

    def __init__(self) -> None:
        self.begin = 0
        self.scores: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores unchanged; called once a step."""
        if self.scores is None:
            self.begin = int(input_ids.shape[1])
            self.scores = scores.detach().float()
        return scores


def strip_prompt(output: Tensor, prompt: Tensor | None, begin: int) -> tuple[Tensor, int]:
    """The ids of captions in the output of `generate`.

    A prompt at the start of the output is removed. A prompt that the model uses as the beginning of its text (BLIP,
    Pix2Struct) is part of the caption.

    Args:
        output: (B, T) ids.
        prompt: (B, P) input ids.
        begin: number of ids before the first new one.

    Returns:
        (B, T') ids, and how many of them are not new.
    """
    if prompt is not None and output.shape[1] >= prompt.shape[1]:
        length = prompt.shape[1]
        if torch.equal(output[:, :length], prompt.to(output.device)):
            return output[:, length:], max(0, begin - length)
    return output, min(begin, output.shape[1])


def start_token_ids(model: Any) -> set[int]:
    """BOS and decoder start ids, which are no part of a caption."""
    configs = [getattr(part, "generation_config", None) for part in model.modules()]
    configs += [model.config, model.config.get_text_config(decoder=True)]
    return set(_values(configs, ("bos_token_id", "decoder_start_token_id")))


def end_token_ids(model: Any, tokenizer: Any) -> tuple[set[int], set[int]]:
    """EOS ids, and padding ids after them.

    Args:
        model: with their configurations, also in its parts.
        tokenizer: of the model.
    """
    configs = [getattr(part, "generation_config", None) for part in model.modules()]
    configs += [model.config, model.config.get_text_config(decoder=True)]
    ends = set(_values(configs, ("eos_token_id", "sep_token_id"))) | set(_values([tokenizer], ("eos_token_id",)))
    fillers = set(_values([*configs, tokenizer], ("pad_token_id",)))
    return ends, fillers | ends


def _values(sources: Iterable[Any], names: tuple[str, ...]) -> Iterator[int]:
    for source in sources:
        for name in names:
            value = getattr(source, name, None)
            yield from value if isinstance(value, (list, tuple)) else [] if value is None else [int(value)]


_TOLERANCE = 1e-3
"""Largest relative difference of scores that rounding explains in float32; 50 times as much in other formats."""


_MAX_FAILED_RETRIES = 4
"""Failed retries of single images, after which the rest of a batch is not retried."""


class TransformersBackend:
    """Captions with a transformers model.

    Args:
        model: an image-text-to-text model in eval mode.
        processor: its processor.
        name: path or hub id, for messages.
        instruction: the default instruction; by default the question in the family's documentation, none if the model
            captions images without text, or captune's default.
        fast_decode: decode JPEG files with libjpeg-turbo.
        exif_rotation: apply the EXIF rotation of images.

    Raises:
        WeightsError: the tokenizer has neither a padding token nor EOS.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str = "model",
        instruction: str | None = None,
        fast_decode: bool = False,
        exif_rotation: bool = True,
    ) -> None:
        self.model = model
        self.processor = processor
        self.name = name
        self.inputs = ModelInputs(processor, model, name)
        reset_decoding(model, processor.tokenizer.pad_token_id)
        self._start_ids = start_token_ids(model)
        self._end_ids, self._filler_ids = end_token_ids(model, processor.tokenizer)
        self._marks = special_marks(processor.tokenizer)
        self._has_warned = False
        self.instruction = instruction
        if instruction is None:
            self.instruction = self.inputs.question
            if self.instruction is None and not (self.inputs.accepts_image_only and self._captions_without_text()):
                self.instruction = DEFAULT_INSTRUCTION if self.inputs.takes_text else None
        # An unsupported instruction is refused before any image is read.
        self.inputs.prompt(self.instruction)
        self.fingerprint = f"{sampled_hash(model.named_parameters())}-{model.dtype}-{self.inputs.fingerprint}"
        if has_marks(processor.tokenizer) or opened_block(self.inputs.prompt(self.instruction)):
            # Earlier versions removed less thinking text; their cached captions are not those of this one.
            self.fingerprint += "-thinking"
        self._fast = TurboJpegDecoder() if fast_decode else None
        if fast_decode:
            self.fingerprint += "-fast"
        self._exif = exif_rotation
        if not exif_rotation:
            self.fingerprint += "-stored"

    @property
    def follows_instructions(self) -> bool:
        """Whether it accepts any instruction: false for models with task prompts or without prompts."""
        return self.instruction is not None and self.inputs.question is None

    def prompt_text(self, instruction: str | None) -> str | None:
        """The instruction; see `CaptionBackend.prompt_text`."""
        return instruction

    def prepare(self, image: ImageInput, name: str = "") -> Image.Image:
        """An RGB image."""
        made = None if self._fast is None else self._fast.image(image, exif=self._exif)
        return read_image(image, name, exif=self._exif) if made is None else made

    def prompt(self, instruction: str | None = None) -> str | None:
        """The text for the processor; None without an instruction."""
        text = self.instruction if instruction is None else instruction
        if text is not None:
            self.inputs.warn_special_tokens(text)
        return self.inputs.prompt(text)

    def generate(
        self,
        prepared: Sequence[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        keys: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption RGB images; see `CaptionBackend.generate`."""
        decoding = options or DecodingOptions()
        streams = list(keys) if keys is not None else [""] * len(prepared)
        text = self.prompt(instruction)
        captions: list[Caption | None] = [None] * len(prepared)
        reasons: dict[int, str] = {}
        done = 0

        def run(batch: Sequence[int]) -> None:
            rows = self._isolated([prepared[n] for n in batch], [streams[n] for n in batch], text, decoding)
            for n, row in zip(batch, rows, strict=True):
                if isinstance(row, Caption):
                    captions[n] = row
                else:
                    reasons[n] = row

        for group in self._groups(prepared, decoding):
            for batch, _ in in_batches(group, decoding.batch_size, run):
                done += len(batch)
                if on_progress is not None:
                    on_progress(done, len(prepared))
        if not self._has_warned and any(caption and caption.thinking == "unclosed" for caption in captions):
            self._has_warned = True
            logger.warning(
                "%s writes thinking text that does not end within %d tokens; such captions are empty. Raise "
                "max_new_tokens, or take a model or prompt without thinking.",
                self.name,
                decoding.max_new_tokens,
            )
        if reasons:
            kind = NonFiniteScoresError if NON_FINITE_SCORES in reasons.values() else RefusedImagesError
            raise kind(captions, reasons)
        return [caption for caption in captions if caption is not None]

    def _groups(self, images: Sequence[Image.Image], options: DecodingOptions) -> list[list[int]]:
        """Indices of images that may share a batch: all, or those of one size if padding changes captions."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            sizes.setdefault(image.size, []).append(index)
        if options.batch_size == 1 or len(sizes) < 2 or self._batches_mixed_sizes:
            return [list(range(len(images)))]
        return list(sizes.values())

    @cached_property
    def _batches_mixed_sizes(self) -> bool:
        """Whether images of several shapes get the same scores in one batch as alone; tested once."""
        tall, wide = probe_images()
        images = [tall.resize((40, 120)), wide.resize((120, 40)), tall.resize((72, 56))]
        text = self.prompt(None)
        try:
            if not self.inputs.pads_images(images, text):
                return True
            mixed = self.first_scores(images, text)
            alone = torch.cat([self.first_scores([image], text) for image in images])
        except Exception:  # captioning of the real images reports the error
            return False
        room = _TOLERANCE if self.model.dtype == torch.float32 else 50 * _TOLERANCE
        known = torch.isfinite(alone) & torch.isfinite(mixed)
        if not bool(known.any()):
            return False
        return float((mixed - alone)[known].abs().max()) <= room * float(alone[known].abs().max())

    def _captions_without_text(self) -> bool:
        """Whether the model captions images without text, differently for different images."""
        try:
            scores = self.first_scores(probe_images(), None)
        except Exception:  # the model needs text
            return False
        return not torch.equal(scores[0], scores[1])

    def first_scores(self, images: list[Image.Image], text: str | None) -> Tensor:
        """(B, V) scores of the first token of a caption.

        Args:
            images: B results of `prepare`.
            text: the result of `prompt`.

        Raises:
            WeightsError: the model's `generate` does not call logits processors.
        """
        observer = FirstStepObserver()
        self._output(images, [""] * len(images), text, DecodingOptions(max_new_tokens=1), observer)
        if observer.scores is None:
            raise WeightsError(f"{self.name} generates without logits processors.")
        return observer.scores

    def _isolated(
        self, images: list[Image.Image], keys: list[str], text: str | None, options: DecodingOptions
    ) -> list[Caption | str]:
        """Captions of a batch, or the reason for each image that cannot be captioned.

        Raises:
            WeightsError: the model cannot caption any image with these settings.
            torch.OutOfMemoryError: the batch does not fit into memory.
        """
        try:
            rows = self._batch(images, keys, text, options)
            return self._retry_non_finite(rows, images, keys, text, options) if len(images) > 1 else rows
        except CaptuneError:
            raise
        except Exception as error:  # processors and models of hundreds of families raise anything
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            failure = error
        if len(images) > 1:
            return [row for n in range(len(images)) for row in self._isolated([images[n]], [keys[n]], text, options)]
        try:
            self._batch([probe_images()[0].resize((320, 240))], keys, text, options)
        except Exception:  # an ordinary image fails too
            raise WeightsError(
                f"{self.name} cannot caption with these settings ({describe_error(failure)})."
            ) from failure
        return [f"{self.name} refuses it ({describe_error(failure)})."]

    def _retry_non_finite(
        self,
        rows: list[Caption | str],
        images: list[Image.Image],
        keys: Sequence[str],
        text: str | None,
        options: DecodingOptions,
    ) -> list[Caption | str]:
        """Generate captions with non-finite scores again, one image at a time.

        Models that concatenate the patches of all images spread the NaN of one image to the others. A few failures
        show that the model itself is at fault.
        """
        failed = 0
        for n, row in enumerate(rows):
            if row == NON_FINITE_SCORES and failed < _MAX_FAILED_RETRIES:
                rows[n] = self._batch([images[n]], [keys[n]], text, options)[0]
                failed += rows[n] == NON_FINITE_SCORES
        return rows

    def _batch(
        self, images: list[Image.Image], keys: Sequence[str], text: str | None, options: DecodingOptions
    ) -> list[Caption | str]:
        observer, check = FirstStepObserver(), ScoreCheck()
        output, prompt = self._output(images, keys, text, options, observer, check)
        if options.sampled and observer.scores is None:
            raise ConfigError(
                f"{self.name} does not support sampling: its `generate` drops logits processors; keep temperature 0."
            )
        rows, old = strip_prompt(output, prompt, observer.begin)
        captions = [self._caption(row, old, text) for row in rows.tolist()]
        faulty = check.faulty([caption.tokens for caption in captions], beams=options.beams)
        return [NON_FINITE_SCORES if n in faulty else caption for n, caption in enumerate(captions)]

    @torch.inference_mode()
    def _output(
        self,
        images: list[Image.Image],
        keys: Sequence[str],
        text: str | None,
        options: DecodingOptions,
        *observers: LogitsProcessor,
    ) -> tuple[Tensor, Tensor | None]:
        """The output of `generate` for a batch, and its input ids."""
        inputs = self.inputs.batch(images, text).to(self.model.device, self.model.dtype)
        settings: dict[str, Any] = {"length_penalty": options.length_penalty} if options.beams > 1 else {}
        if options.repetition_penalty != 1.0:
            settings["repetition_penalty"] = options.repetition_penalty
        processors: list[Any] = [*observers, *([SamplingProcessor(options, keys)] if options.sampled else [])]
        output = self.model.generate(
            **inputs,
            max_new_tokens=options.max_new_tokens,
            num_beams=options.beams,
            do_sample=False,
            logits_processor=LogitsProcessorList(processors),
            **settings,
        )
        return output, inputs.get("input_ids")

    def caption_of(self, ids: list[int], instruction: str | None = None) -> Caption:
        """The caption of new ids after the prompt of an instruction."""
        return self._caption(ids, 0, self.prompt(instruction))

    def _caption(self, row: list[int], old: int, prompt: str | None = None) -> Caption:
        """A caption.

        Args:
            row: ids.
            old: number of ids that are not new; the decoder start token may be EOS.
            prompt: the text before it; a caption follows the block of thinking text that its end opens.
        """
        new = row[old:]
        length = len(new)
        for index, token in enumerate(new):
            # Only padding follows the end; an EOS that did not end generation is not the end.
            if token in self._end_ids and all(other in self._filler_ids for other in new[index + 1 :]):
                length = index + 1
                break
        # The tokenizer may not treat a start id as a special token (BLIP).
        words = list(dropwhile(self._start_ids.__contains__, row[:old])) + new[:length]
        stopped = length > 0 and new[length - 1] in self._end_ids
        if stopped and words[-1] in self._marks:
            # The end of the last channel, with which the model ends its answer.
            words.pop()
        text = decode_marks(words, self._marks, partial(self.processor.tokenizer.decode, skip_special_tokens=True))
        written = split_thinking(text, opened_block(prompt), is_complete=stopped)
        return Caption(written.text.strip(), length, stopped, written.thinking)

    def stream(
        self, image: ImageInput, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> Iterator[str]:
        """Caption one image; yields the complete text."""
        yield self.generate([self.prepare(image)], instruction, options)[0].text
