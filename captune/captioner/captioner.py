"""`Captioner`, which captions images with any supported model.

captioner = Captioner.from_pretrained("toy")
captioner("photo.jpg")                      one caption
captioner(["a.jpg", "b.jpg"])               a list of them
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, overload

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from captune.captioner.backend import CaptionBackend
from captune.captioner.minigpt4 import MiniGPT4Backend
from captune.captioner.model_inputs import probe_images
from captune.captioner.processor import complete_settings, load_processor, processor_folder
from captune.captioner.transformers_model import TransformersBackend
from captune.common import error_text
from captune.data import ImageInput, as_list, prefetch_map
from captune.decoding import Caption, DecodingOptions
from captune.errors import ConfigError, NonFiniteScoresError, RefusedImagesError, WeightsError
from captune.hub import ResolvedModel, resolve_model
from captune.model import MiniGPT4Config, compute_dtype, default_device, load_model, parse_device
from captune.transformers_compat import has_auto_class
from captune.weights import (
    attach_adapter,
    base_model_of,
    find_adapter,
    full_hash,
    load_strictly,
    read_adapter,
    read_config,
    unreadable_reason,
)

__all__ = ["Captioner", "load_backend"]


# Loading of the backend from a folder or hub id.


def load_backend(
    path: str | Path,
    *,
    dtype: str,
    device: str | None,
    instruction: str | None,
    fast_decode: bool,
    exif_rotation: bool = True,
) -> CaptionBackend:
    """Load a captioner; see `Captioner.from_pretrained`."""
    name = str(path)
    if instruction is not None and not instruction.strip():
        raise ConfigError("The instruction is empty; give a text, or omit it.")
    target = default_device(int(os.environ.get("LOCAL_RANK", "0"))) if device is None else parse_device(device)
    source = replace(resolve_model(name), dtype=dtype)
    adapter = find_adapter(source.path)
    base_name = name
    if adapter is not None:
        base, base_name = _resolve_base(adapter)
        source = replace(base, dtype=dtype)
    state = {} if adapter is None else read_adapter(adapter)
    config = None if source.kind == "checkpoint" else _config(source.path, base_name)
    settings: dict[str, Any] = {
        "name": name,
        "instruction": instruction,
        "fast_decode": fast_decode,
        "exif_rotation": exif_rotation,
    }
    if config is None or isinstance(config, MiniGPT4Config):
        model = load_model(source, target)
        tuned = MiniGPT4Backend(model, **settings)
        if adapter is not None:
            wrapped = attach_adapter(model, adapter, state)
            tuned.fingerprint += f"-{full_hash(state.items())}"
            batch = tuned.processor(probe_images()[:1], answers=["A photo."]).to(target)
            pixels = batch.pop("pixel_values").to(model.vision.embeddings.patch_embedding.weight.dtype)
            _require_effect(wrapped, adapter, lambda: model(**batch, pixel_values=pixels).logits)
        return tuned
    from transformers import AutoModelForImageTextToText

    processor = load_processor(source.path if adapter is None else processor_folder(adapter, source.path), config, name)
    loaded = load_strictly(
        AutoModelForImageTextToText.from_pretrained,
        source.path,
        f"The model {base_name}",
        dtype=compute_dtype(dtype, target),
        trust_remote_code=False,
    )
    wrapped = None if adapter is None else attach_adapter(loaded, adapter, state)
    complete_settings(processor, loaded)
    backend = TransformersBackend(loaded.to(target).eval(), processor, **settings)
    if adapter is not None:
        backend.fingerprint += f"-{full_hash(state.items())}"
        _require_effect(wrapped, adapter, lambda: _first_scores(backend))
    return backend


def _resolve_base(adapter: Path) -> tuple[ResolvedModel, str]:
    """The base model of a peft adapter, and its name in messages.

    Raises:
        WeightsError: it does not exist, or is an adapter itself.
    """
    name, revision = base_model_of(adapter)
    try:
        base = resolve_model(name)
        if revision is not None and base.kind == "hub":
            base = resolve_model(snapshot_download(name, revision=revision))
    except Exception as error:  # the hub's library raises errors of several kinds
        raise WeightsError(
            f"The adapter {adapter} was trained on the model {name}, which cannot be loaded: {error_text(error)} If it "
            "has moved, change base_model_name_or_path in adapter_config.json."
        ) from error
    if find_adapter(base.path) is not None:
        raise WeightsError(
            f"The base model {name} of the adapter {adapter} is an adapter itself; merge that one into its own base "
            "model first."
        )
    return base, f"{name} (base model of the adapter {adapter})"


def _first_scores(backend: TransformersBackend) -> Tensor:
    """Logits of the first token of two captions, from the LM head if `generate` uses no logits processors (Janus)."""
    try:
        return backend.first_scores(probe_images(), backend.prompt(None))
    except WeightsError:
        head = backend.model.get_output_embeddings()
        if head is None:
            raise
    outputs: list[Tensor] = []
    hook = head.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        backend.generate(probe_images(), None, DecodingOptions(max_new_tokens=1))
    finally:
        hook.remove()
    return torch.cat([scores[:, -1] for scores in outputs])


def _require_effect(wrapped: Any, adapter: Path, scores: Callable[[], Tensor]) -> None:
    """Require that an adapter changes the logits of the first token.

    Raises:
        WeightsError: it does not.
    """
    with torch.inference_mode():
        tuned = scores()
        with wrapped.disable_adapter():
            plain = scores()
    if torch.equal(tuned, plain):
        raise WeightsError(
            f"The adapter {adapter} changes no score of its base model, so its captions are the base model's; give "
            "a trained adapter, or the base model itself."
        )


def _config(path: str, name: str) -> Any:
    """The configuration of a model that takes images and text.

    Raises:
        WeightsError: there is none, or the model does not caption images.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = read_config(AutoConfig.from_pretrained, path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not Path(path).is_dir():
            raise WeightsError(f"The model {name} cannot be loaded: {unreadable_reason(path, error)}") from error
        raise WeightsError(
            f"{name} holds no model that captune or transformers supports; expected a captune model, a checkpoint of a "
            "run, or an image-text-to-text model of transformers."
        ) from error
    if not has_auto_class(AutoModelForImageTextToText, config):
        raise WeightsError(
            f"{name} is a {config.model_type}, which does not caption images; give an image-text-to-text model."
        )
    return config


_PREFETCHED_BATCHES = 4
"""Batches of image files that are decoded ahead."""


class Captioner:
    """Captions images.

    Args:
        backend: the model that captions.
    """

    def __init__(self, backend: CaptionBackend) -> None:
        self.backend = backend

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        instruction: str | None = None,
        fast_decode: bool = False,
        exif_rotation: bool = True,
    ) -> Self:
        """Load a captioner.

        Args:
            path: a captune model, a checkpoint of a training run, `toy`, a transformers image-text-to-text model
                (BLIP-2, Qwen-VL, SmolVLM, LLaVA, ...), or a peft adapter of one of these; a folder or a hub id.
            dtype: of the weights; auto is bfloat16 on a GPU and float32 on a CPU.
            device: such as `cuda:1`; by default this process's GPU (`LOCAL_RANK` of torchrun) or the CPU.
            instruction: the default instruction; by default the one that the model was tuned with.
            fast_decode: decode JPEG files with libjpeg-turbo and torch; a pixel may differ by one grey level.
            exif_rotation: apply the EXIF rotation of images; the original MiniGPT-4 does not.

        Returns:
            The captioner with its model in eval mode.

        Raises:
            WeightsError: the model does not exist, is broken, or does not caption images.
            MissingExtraError: it needs a library that is not installed.
        """
        return cls(
            load_backend(
                path,
                dtype=dtype,
                device=device,
                instruction=instruction,
                fast_decode=fast_decode,
                exif_rotation=exif_rotation,
            )
        )

    @property
    def name(self) -> str:
        """Path or hub id of the model, for tables and messages."""
        return self.backend.name

    @property
    def instruction(self) -> str | None:
        """The default instruction; None if the model takes none."""
        return self.backend.instruction

    @property
    def fingerprint(self) -> str:
        """Differs between models whose captions may differ."""
        return self.backend.fingerprint

    @property
    def follows_instructions(self) -> bool:
        """Whether it accepts any instruction; see `CaptionBackend.follows_instructions`."""
        return self.backend.follows_instructions

    def prompt_text(self, instruction: str | None) -> str | None:
        """The prompt in a signature; see `CaptionBackend.prompt_text`."""
        return self.backend.prompt_text(instruction)

    def prepare(self, image: ImageInput, name: str = "") -> Any:
        """Decode one image for `generate`; see `CaptionBackend.prepare`."""
        return self.backend.prepare(image, name)

    def generate(
        self,
        prepared: Sequence[Any],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        keys: Sequence[str] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption prepared images; see `CaptionBackend.generate`."""
        return self.backend.generate(prepared, instruction, options, keys=keys, on_progress=on_progress)

    def stream(
        self, image: ImageInput, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> Iterator[str]:
        """Caption one image and yield the text in pieces; see `CaptionBackend.stream`."""
        return self.backend.stream(image, instruction, options)

    def caption_files(
        self,
        files: Sequence[Path],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Caption image files, a few batches at a time.

        Args:
            files: N image files.
            instruction: for every image; by default `instruction` of the captioner.
            options: decoding options.
            on_progress: called with (done, N) after each part.

        Returns:
            N captions, in the order of `files`.

        Raises:
            DataError: an image cannot be read; names the file.
            RefusedImagesError: some images cannot be captioned, or their scores are not finite (NonFiniteScoresError);
                the error contains the captions of the others.
        """
        size = _PREFETCHED_BATCHES * (options or DecodingOptions()).batch_size
        captions: list[Caption | None] = []
        reasons: dict[int, str] = {}
        kind = RefusedImagesError
        for start in range(0, len(files), size):
            prepared = [item for _, item in prefetch_map(files[start : start + size], self.prepare)]
            try:
                captions += self.generate(prepared, instruction, options)
            except RefusedImagesError as error:
                kind = type(error) if isinstance(error, NonFiniteScoresError) else kind
                reasons |= {start + index: reason for index, reason in error.reasons.items()}
                captions += error.captions
            if on_progress is not None:
                on_progress(len(captions), len(files))
        if reasons:
            raise kind(captions, reasons, [str(file) for file in files])
        return [caption for caption in captions if caption is not None]

    @overload
    def __call__(
        self, images: list[Any], instruction: str | None = None, options: DecodingOptions | None = None
    ) -> list[str]: ...

    @overload
    def __call__(
        self, images: ImageInput, instruction: str | None = None, options: DecodingOptions | None = None
    ) -> str: ...

    def __call__(
        self,
        images: ImageInput | Sequence[ImageInput],
        instruction: str | None = None,
        options: DecodingOptions | None = None,
    ) -> str | list[str]:
        """Caption one image or several.

        Args:
            images: an image, or a list of images.
            instruction: for every image; by default `instruction` of the captioner.
            options: decoding options; greedy by default.

        Returns:
            A caption, or a list of captions in the order of the images.

        Raises:
            DataError: an image cannot be read; names the file.
        """
        items, is_one = as_list(images)
        prepared = [item for _, item in prefetch_map(items, self.prepare)]
        texts = [caption.text for caption in self.generate(prepared, instruction, options)]
        return texts[0] if is_one else texts
