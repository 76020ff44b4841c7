"""Loading of the processors of transformers models.

Some processors (Qwen-VL, SmolVLM) include one for videos, which needs torchvision; it is disabled if torchvision is
missing. Settings that older releases did not save are completed from the model's configuration.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.image_processing_utils import BaseImageProcessor

from captune.common import error_text
from captune.errors import ConfigError, InputError, WeightsError
from captune.hub import ResolvedModel
from captune.parsing import load_json
from captune.transformers_compat import fetch_file, processor_class
from captune.weights import has_image_processor, missing_library

__all__ = [
    "DisabledVideoProcessor",
    "ImageOnlyProcessor",
    "complete_settings",
    "copy_processor",
    "disable_video_processor",
    "load_processor",
    "processor_folder",
    "set_pixel_limits",
]

_FILES = (
    "*processor*.json",
    "token*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*",
    "*tokenizer/*",
)
"""Names of the files of a processor and its tokenizers."""
_LIMITS = {"max_pixels": "longest_edge", "min_pixels": "shortest_edge"}
"""Names of the pixel limits, and of the same numbers in a processor's `size`."""


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
        # An adapter's folder has no config.json, from which the library would tell the kind of the video processor.
        if any(words in str(error).lower() for words in ("torchvision", "unrecognized video processor")):
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


def processor_folder(adapter: str | Path, base: str) -> str:
    """The folder or hub id of an adapter's processor: the adapter if it was saved there, otherwise the base model.

    Args:
        adapter: folder of the adapter.
        base: folder or hub id of its base model.
    """
    adapter = Path(adapter)
    has_tokenizer = any((adapter / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))
    return str(adapter) if has_image_processor(adapter) and has_tokenizer else base


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


def set_pixel_limits(processor: Any, source: ResolvedModel) -> None:
    """Set the pixel limits of a processor's images.

    Raises:
        ConfigError: it has no such limits.
    """
    images = processor.image_processor
    for name, edge in _LIMITS.items():
        value = getattr(source, name)
        if value is None:
            continue
        size = getattr(images, "size", None)
        if not _has_pixel_limits(images):
            raise ConfigError(
                f"model.{name} is {value:,}, and the processor of {source.name} has no pixel limits: its size is "
                f"{_set_values(size)}; set model.{name} to null."
            )
        if hasattr(images, name):
            setattr(images, name, value)
        if size is not None and edge in size:
            images.size = type(size)(**{**dict(size), edge: value})


def _set_values(size: Any) -> str:
    """The values of a processor's size that are set."""
    try:
        return ", ".join(f"{name} {value}" for name, value in dict(size).items() if value is not None)
    except (TypeError, ValueError):
        return str(size)


def _has_pixel_limits(images: Any) -> bool:
    """Whether an image processor scales images to a number of pixels, not to a side length."""
    kinds = type(images).__mro__
    return any(
        "max_pixels" in getattr(getattr(kind, "valid_kwargs", None), "__annotations__", {}) for kind in kinds
    ) or (any(hasattr(sys.modules.get(kind.__module__), "smart_resize") for kind in kinds))


def copy_processor(source: ResolvedModel, folder: str | Path) -> None:
    """Copy the files of a model's processor; pixel limits are written into its settings.

    The files are copied and not saved again, since a processor that is loaded without torchvision lacks the settings of
    its part for videos.

    Args:
        source: the model and its pixel limits.
        folder: the copy.

    Raises:
        ConfigError: the processor has no pixel limits.
    """
    folder = Path(folder)
    root = Path(source.path)
    if not root.is_dir():
        root = Path(snapshot_download(source.path, allow_patterns=list(_FILES)))
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        name = file.relative_to(root).as_posix()
        if any(fnmatch(name, pattern) for pattern in _FILES) and not name.startswith("."):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)
    limits = {name: value for name in _LIMITS if (value := getattr(source, name)) is not None}
    for name, part in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        file = folder / name
        if not limits or not file.is_file():
            continue
        content = load_json(file.read_text(encoding="utf-8"))
        settings = content if part is None else content.get(part)
        if settings is not None:
            _write_limits(settings, limits)
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_limits(settings: dict[str, Any], limits: dict[str, int]) -> None:
    """Set pixel limits in an image processor's settings, under the names that these have."""
    for name, value in limits.items():
        size, edge = settings.get("size"), _LIMITS[name]
        if isinstance(size, dict) and edge in size:
            size[edge] = value
            if name not in settings:
                continue
        settings[name] = value


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
