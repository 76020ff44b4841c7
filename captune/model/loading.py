"""A model ready for use: found, loaded, put on its device in its number format."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captune.config import ModelConfig
from captune.errors import ConfigError
from captune.hub import check_model, resolve_model
from captune.model.minigpt4 import MiniGPT4
from captune.model.prompt import OriginalFaults
from captune.model.quantization import (
    GradientDeviation,
    compare_gradients,
    projection_gradient,
    quantization_config,
)

__all__ = [
    "EVERYTHING",
    "LANGUAGE",
    "TOWERS",
    "compute_dtype",
    "load_checked",
    "load_model",
    "named_device",
    "pick_device",
]

logger = logging.getLogger(__name__)

TOWERS = ("vision", "qformer")
LANGUAGE = ("llm",)
EVERYTHING = (*TOWERS, *LANGUAGE)


def pick_device(local_rank: int = 0) -> torch.device:
    """This process's GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def named_device(name: str) -> torch.device:
    """A device by its name, such as `cuda:1`.

    Raises:
        ConfigError: there is none of that name here.
    """
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or (device.type == "cuda" and (device.index or 0) >= len(here) - 1):
        raise ConfigError(f"There is no device '{name}'; here are: {', '.join(here)}.")
    return device


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The frozen parts' number format: as set, or bfloat16 on a GPU and float32 on a CPU."""
    if setting != "auto":
        chosen: torch.dtype = getattr(torch, setting)
        return chosen
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_model(
    config: ModelConfig, device: torch.device, *, recompute: bool = False, parts: Sequence[str] = EVERYTHING
) -> MiniGPT4:
    """Load the captioner of a configuration, or join the parts that it names.

    Args:
        config: which one, in which number format.
        device: where it goes.
        recompute: compute activations again in the backward pass instead of keeping them.
        parts: which of its large parts; with stored features `LANGUAGE` is enough, and to make them `TOWERS`.

    Returns:
        The model in eval mode; the projection, which is trained, in float32 whatever the frozen parts have.

    Raises:
        WeightsError: it is not there, is broken, or is no captune model.
        MissingExtraError: the quantization's library is not installed.
    """
    check_model(config)
    dtype = compute_dtype(config.dtype, device)
    options: dict[str, Any] = {"dtype": dtype}
    if config.quantization is not None and "llm" in parts:
        options["quantization_config"] = quantization_config(config.quantization, dtype)
        options["device_map"] = {"": device}
    if config.llm is not None:
        from captune.model.build import build

        model = build(llm=config.llm, vision=str(config.vision), parts=parts, **options)
    else:
        model = MiniGPT4.from_pretrained(resolve_model(config.path), parts=tuple(parts), **options)
    model.projection.float()
    if "quantization_config" not in options:
        model.to(device)
    model.checkpoint_activations(recompute)
    if model.processor is not None and config.faults:
        model.processor.use(faults=OriginalFaults.under("slides", config.faults))
    logger.info(
        "loaded %s (%s): %s%s on %s, projection in float32",
        config.name,
        ", ".join(parts),
        str(dtype).removeprefix("torch."),
        f", language model in {config.quantization}" if "quantization_config" in options else "",
        device,
    )
    return model


def load_checked(
    config: ModelConfig, device: torch.device, batch: Mapping[str, Tensor], *, recompute: bool = False
) -> tuple[MiniGPT4, GradientDeviation]:
    """Load a model with a quantised language model, after a look at how far that bends the gradient.

    The model as it is comes first and is let go of, so that the two are never in memory together.

    Args:
        config: which one, in which number format and quantization.
        device: where it goes; the model without quantization is run on the CPU where this one has no room for it.
        batch: a few rows: keyword arguments of `MiniGPT4.forward`, with labels and the images' features.
        recompute: compute activations again in the backward pass.

    Returns:
        The quantised model, without its towers, and how far its gradient of the projection deviates.

    Raises:
        WeightsError: as `load_model`; or the gradient deviates so far that training would lead elsewhere.
    """
    quantization = config.quantization
    assert quantization is not None
    exact = config.model_copy(update={"quantization": None})
    try:
        reference = projection_gradient(load_model(exact, device, recompute=True, parts=LANGUAGE).train(), batch)
    except torch.OutOfMemoryError:
        there = load_model(exact, torch.device("cpu"), recompute=True, parts=LANGUAGE)
        reference = projection_gradient(there.train(), batch)
    gc.collect()
    model = load_model(config, device, recompute=recompute, parts=LANGUAGE)
    deviation = compare_gradients(projection_gradient(model.train(), batch), reference)
    logger.info("quantization %s: %s", quantization, deviation)
    deviation.check(quantization)
    return model.eval(), deviation
