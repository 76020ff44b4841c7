"""A transformers model without its weights: what `captune explain` and `captune plan` read before a run.

The model has its real configuration, names and shapes; every parameter is a zero that is expanded to its shape, so that
a 70B model takes no memory. Its forward is not run.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from captune.captioner import complete_settings, image_text_config, load_processor, set_pixel_limits
from captune.common import error_text
from captune.errors import WeightsError
from captune.hub import ResolvedModel
from captune.vlm.model import ImageTextModel

__all__ = ["weightless_model"]


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
