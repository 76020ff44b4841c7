"""Loading of a transformers image-text-to-text model to be tuned, or without its weights.

`captune explain` and `captune plan` read a model before a run. It has its real configuration, names and shapes; every
parameter is a zero that is expanded to its shape, so that a 70B model takes no memory. Its forward is not run.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from captune.captioner import complete_settings, image_text_config, load_processor, set_pixel_limits
from captune.common import error_text
from captune.errors import WeightsError
from captune.hub import ResolvedModel
from captune.model import MiniGPT4Config, compute_dtype, quantization_config
from captune.run_checkpoints import read_record
from captune.vlm.decoder import Decoder
from captune.vlm.model import ImageTextModel
from captune.weights import load_strictly

__all__ = ["is_image_text_model", "load_image_text_model", "weightless_model"]

logger = logging.getLogger(__name__)


def is_image_text_model(source: ResolvedModel) -> bool:
    """Whether a model is one of transformers, and not a MiniGPT-4.

    Raises:
        WeightsError: it is neither, or a checkpoint of a transformers model.
    """
    if source.kind == "checkpoint" and read_record(Path(source.path)).kind == "transformers":
        raise WeightsError(
            f"{source.name} is a checkpoint of a transformers model; merge it before it is tuned further: "
            f"captune export {source.name} --merge --out FOLDER."
        )
    if source.kind not in ("model", "hub"):
        return False
    return not isinstance(image_text_config(source.path, source.name), MiniGPT4Config)


def load_image_text_model(
    source: ResolvedModel, device: torch.device, *, instruction: str | None = None
) -> ImageTextModel:
    """Load a model with its processor; all of its parameters are frozen.

    Args:
        source: the model, its number format, quantization and pixel limits.
        device: of the model.
        instruction: of samples without a separate instruction; by default the family's.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: it is missing or broken, or cannot be trained.
        ConfigError: its processor has no pixel limits.
        MissingExtraError: a library is not installed.
    """
    from transformers import AutoModelForImageTextToText

    config = image_text_config(source.path, source.name)
    processor = load_processor(source.path, config, source.name)
    set_pixel_limits(processor, source)
    dtype = compute_dtype(source.dtype, device)
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False}
    if source.quantization is not None:
        options["quantization_config"] = quantization_config(source.quantization, dtype, skipped=_kept_modules(config))
        options["device_map"] = {"": device}
    model = load_strictly(
        AutoModelForImageTextToText.from_pretrained, source.path, f"The model {source.name}", **options
    )
    complete_settings(processor, model)
    if source.quantization is None:
        model.to(device)
    logger.info("loaded %s: %s on %s", source.name, str(dtype).removeprefix("torch."), device)
    return ImageTextModel(model, processor, name=source.name, instruction=instruction)


def _kept_modules(config: Any) -> list[str]:
    """Names of the modules that are not quantized: all outside of the decoder, and the head."""
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    path = Decoder(model).path
    names = [name for name, _ in model.named_modules() if name and not f"{path}.".startswith(f"{name}.")]
    outside = [name for name in names if not name.startswith(f"{path}.")]
    tops = [name for name in outside if name.rpartition(".")[0] not in outside]
    return sorted({*tops, "lm_head"})


def weightless_model(
    source: ResolvedModel, *, dtype: torch.dtype = torch.float32, instruction: str | None = None
) -> ImageTextModel:
    """A model as `load_image_text_model` returns it, with expanded zeros instead of weights.

    Args:
        source: the model and its pixel limits; its weights are not read.
        dtype: of the parameters.
        instruction: of samples without a separate instruction; by default the family's.

    Raises:
        WeightsError: the model cannot be built or trained.
        ConfigError: its processor has no pixel limits.
        MissingExtraError: a library is not installed.
    """
    from transformers import AutoModelForImageTextToText

    config = image_text_config(source.path, source.name)
    processor = load_processor(source.path, config, source.name)
    set_pixel_limits(processor, source)
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    except (ValueError, TypeError, AttributeError, KeyError, ImportError, RuntimeError) as error:
        raise WeightsError(f"{source.name} cannot be built from its configuration: {error_text(error)}") from error
    with suppress(OSError):  # older folders have none; that of the configuration is used
        model.generation_config = GenerationConfig.from_pretrained(source.path)
    expand_parameters(model)
    complete_settings(processor, model)
    # The test of whether a model captions without text would run it.
    model.generate = _generate
    try:
        return ImageTextModel(model, processor, name=source.name, instruction=instruction)
    finally:
        del model.generate


def expand_parameters(model: Any) -> None:
    """Replace the parameters and buffers of a model on the meta device by expanded zeros on the CPU."""
    for part in model.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(_zeros(weight), requires_grad=False))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, _zeros(buffer))
    if hasattr(model, "tie_weights"):
        model.tie_weights()


def _zeros(like: torch.Tensor) -> torch.Tensor:
    return torch.zeros((), dtype=like.dtype).expand(like.shape)


def _generate(**settings: Any) -> torch.Tensor:
    """A caption of one token with different scores for each image, as of a model that captions without text."""
    scores = torch.arange(4.0).reshape(2, 2)
    for observer in settings["logits_processor"]:
        observer(torch.zeros(2, 1, dtype=torch.int64), scores)
    return torch.zeros(2, 1, dtype=torch.int64)
