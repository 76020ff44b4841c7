"""Loading of captioning backends: models, peft adapters and the processors of transformers models.

Some processors (Qwen-VL, SmolVLM) include one for videos, which needs torchvision; it is disabled if torchvision is
missing. Settings that older releases did not save are completed from the model's configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from captune.captioner.minigpt4 import MiniGPT4Backend
from captune.captioner.model_inputs import probe_images
from captune.captioner.transformers_model import TransformersBackend
from captune.common import error_text
from captune.decoding import DecodingOptions
from captune.errors import ConfigError, InputError, WeightsError
from captune.hub import ResolvedModel, resolve_model
from captune.model import MiniGPT4Config, compute_dtype, default_device, load_model, parse_device
from captune.parsing import load_json
from captune.transformers_compat import fetch_file, has_auto_class, processor_class
from captune.weights import (
    attach_adapter,
    base_model_of,
    find_adapter,
    full_hash,
    load_strictly,
    missing_library,
    read_adapter,
    read_config,
    unreadable_reason,
)

__all__ = [
    "DisabledVideoProcessor",
    "ImageOnlyProcessor",
    "complete_settings",
    "disable_video_processor",
    "image_text_config",
    "load_backend",
    "load_processor",
    "probe_scores",
    "processor_folder",
    "require_effect",
]


def load_backend(
    path: str | Path,
    *,
    dtype: str,
    device: str | None,
    instruction: str | None,
    fast_decode: bool,
    exif_rotation: bool = True,
) -> MiniGPT4Backend | TransformersBackend:
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
    config = None if source.kind == "checkpoint" else image_text_config(source.path, base_name)
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
            require_effect(wrapped, adapter, lambda: model(**batch, pixel_values=pixels).logits)
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
        require_effect(wrapped, adapter, lambda: probe_scores(backend))
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


def probe_scores(backend: TransformersBackend) -> Tensor:
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


def require_effect(wrapped: Any, adapter: Path, scores: Callable[[], Tensor]) -> None:
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


def image_text_config(path: str, name: str) -> Any:
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


def load_processor(path: str, config: Any, name: str) -> Any:
    """Load the processor of a model.

    Args:
        path: folder or hub id.
        config: the model's configuration.
        name: of the model in messages.

    Raises:
        WeightsError: there is none, or it has no image processor.
        InputError: it needs a library that is not installed.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # a processor's own code may raise anything
        if "torchvision" in str(error).lower():
            processor = _without_videos(path, config, name)
        elif isinstance(error, ImportError):
            raise missing_library(f"The processor of {name}", error) from error
        else:
            raise _unloadable(name, error) from error
    if _is_complete(processor):
        return processor
    try:
        return _pair(path)
    except Exception as error:
        raise _unloadable(name, error) from error


def processor_folder(adapter: Path, base: str) -> str:
    """The folder or hub id of an adapter's processor: the adapter if it was saved there, otherwise the base model.

    Args:
        adapter: folder of the adapter.
        base: folder or hub id of its base model.
    """
    has_image_processor = any(
        (adapter / name).is_file() for name in ("processor_config.json", "preprocessor_config.json")
    )
    has_tokenizer = any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return str(adapter) if has_image_processor and has_tokenizer else base


def complete_settings(processor: Any, model: Any) -> None:
    """Complete the settings of a processor from the configuration and weights of its model.

    Processors of LLaVA in early releases have no patch size, and no setting for the class token of the vision encoder;
    those of BLIP-2 have no number of queries, and its configuration has no image token.

    Args:
        processor: of the model; changed in place.
        model: the model.
    """
    config = model.config
    vision = getattr(config, "vision_config", None)
    if getattr(processor, "patch_size", "") is None:
        processor.num_additional_image_tokens = _tokens_before_patches(model)
        kept = "default" if processor.num_additional_image_tokens else "full"
        if getattr(processor, "vision_feature_select_strategy", "") is None:
            processor.vision_feature_select_strategy = getattr(config, "vision_feature_select_strategy", kept)
    for name in ("patch_size", "vision_feature_select_strategy", "num_query_tokens"):
        if getattr(processor, name, "") is None:
            setattr(processor, name, getattr(config, name, None) or getattr(vision, name, None))
    if getattr(processor, "num_image_tokens", "") is None:
        processor.num_image_tokens = _patches(vision)
    token = getattr(processor, "image_token", None)
    if token is not None and getattr(config, "image_token_index", "") is None:
        number = processor.tokenizer.convert_tokens_to_ids(str(getattr(token, "content", token)))
        if number < model.get_input_embeddings().weight.shape[0]:
            config.image_token_index = number


def _tokens_before_patches(model: Any) -> int:
    """Number of positions of a vision encoder before the patches, such as the class token of CLIP."""
    patches = _patches(model.config.vision_config)
    for name, weight in model.named_parameters():
        if "vision" in name and "position_embedding" in name and weight.ndim >= 2:
            return max(0, int(weight.shape[-2]) - patches)
    return 0


def _patches(vision: Any) -> int:
    """Number of patches of an image."""
    return (int(vision.image_size) // int(vision.patch_size)) ** 2


def _is_complete(processor: Any) -> bool:
    return getattr(processor, "image_processor", None) is not None and getattr(processor, "tokenizer", None) is not None


def _pair(path: str) -> Any:
    """The image processor and the tokenizer of a model without a combined processor."""
    from transformers import AutoImageProcessor, AutoTokenizer

    return ImageOnlyProcessor(
        AutoImageProcessor.from_pretrained(path, trust_remote_code=False),
        AutoTokenizer.from_pretrained(path, trust_remote_code=False),
    )


def _without_videos(path: str, config: Any, name: str) -> Any:
    """The processor with `DisabledVideoProcessor` for videos."""
    from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

    def make(part: str, settings: dict[str, Any]) -> Any:
        if part.startswith("video"):
            return DisabledVideoProcessor(**settings.get(part, {}) or _json(path, "video_preprocessor_config.json"))
        if part.endswith("tokenizer"):
            folder = "" if part == "tokenizer" else part
            return AutoTokenizer.from_pretrained(path, subfolder=folder, trust_remote_code=False)
        kind = AutoImageProcessor if part == "image_processor" else AutoFeatureExtractor
        return kind.from_pretrained(path, trust_remote_code=False)

    try:
        kind = disable_video_processor(_processor_class(path, config))
        settings, _ = kind.get_processor_dict(path)
        return kind.from_args_and_dict([make(part, settings) for part in kind.get_attributes()], settings)
    except ImportError as error:
        raise missing_library(f"The processor of {name}", error) from error
    except Exception as error:
        raise _unloadable(name, error) from error


def _processor_class(path: str, config: Any) -> Any:
    """The class in the processor's settings, otherwise the one that belongs to the configuration."""
    import transformers

    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        name = _json(path, file).get("processor_class")
        if name is not None and hasattr(transformers, name):
            return getattr(transformers, name)
    return processor_class(config)


def _json(path: str, file: str) -> dict[str, Any]:
    """The JSON object in a model's file; empty if there is none."""
    local = fetch_file(path, file, require_connection=False)
    if local is None:
        return {}
    content = load_json(local.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def _unloadable(name: str, error: Exception) -> InputError:
    if "torchvision" in str(error).lower():
        return missing_library(f"The processor of {name}", ImportError(str(error)))
    return WeightsError(
        f"The processor of {name} cannot be loaded: {error_text(error)}; expected processor_config.json or "
        "preprocessor_config.json and a tokenizer next to the weights."
    )


class ImageOnlyProcessor:
    """A processor of images without text.

    Args:
        image_processor: of the model.
        tokenizer: decodes captions.
    """

    takes_text = False

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer

    def __call__(self, images: Sequence[Any], **settings: Any) -> Any:
        """The model's inputs for images."""
        return self.image_processor(images=images, **settings)


class DisabledVideoProcessor(BaseImageProcessor):  # type: ignore[misc]  # transformers has no types here
    """Replaces a video processor; it has the settings of the model's folder only."""

    model_input_names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> None:
        """None for missing settings, since chat templates are rendered with some of them."""
        if name.startswith("_"):
            raise AttributeError(name)

    def __call__(self, videos: Any, *args: Any, **kwargs: Any) -> Any:
        """Refuse.

        Raises:
            InputError: always.
        """
        raise InputError("Videos need torchvision, which is not installed; captune captions images.")


def disable_video_processor(kind: Any) -> Any:
    """A subclass of a processor class that accepts `DisabledVideoProcessor`, whose type transformers refuses.

    Args:
        kind: such as `Qwen2VLProcessor`.

    Returns:
        The subclass; it has the same name, which transformers writes into files.
    """

    def check(self: Any, argument_name: str, argument: Any) -> Any:
        if isinstance(argument, DisabledVideoProcessor):
            return DisabledVideoProcessor
        return kind.check_argument_for_proper_class(self, argument_name, argument)

    made = type(kind.__name__, (kind,), {"check_argument_for_proper_class": check, "__module__": kind.__module__})
    return made
