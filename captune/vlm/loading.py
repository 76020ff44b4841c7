"""Loading of a transformers image-text-to-text model to be tuned."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from captune.captioner import complete_settings, image_text_config, load_processor, set_pixel_limits
from captune.errors import WeightsError
from captune.hub import ResolvedModel
from captune.model import MiniGPT4Config, compute_dtype, quantization_config, read_record
from captune.vlm.decoder import Decoder
from captune.vlm.model import ImageTextModel
from captune.weights import load_strictly

__all__ = ["is_image_text_model", "load_image_text_model"]

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
