"""Loading of a MiniGPT-4: a complete model, a checkpoint of a run with its model, or a new captioner of two parts."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captune.config import ModelConfig
from captune.errors import ConfigError, WeightsError
from captune.hub import ResolvedModel, locate_base, locate_model, missing_base, require_available, resolve_model
from captune.model.build import build_model, config_and_processor_of_parts
from captune.model.checkpoint import fetch_checkpoint, load_trained
from captune.model.configuration import MiniGPT4Config
from captune.model.minigpt4 import MiniGPT4
from captune.model.processor import MiniGPT4Processor
from captune.model.prompt import LegacyBugs
from captune.model.quantization import (
    GradientDeviation,
    compare_gradients,
    projection_gradient,
    quantization_config,
)
from captune.run_checkpoints import read_record, require_kind
from captune.weights import read_config, require_complete_model, unreadable_reason

__all__ = [
    "EVERYTHING",
    "LANGUAGE",
    "TOWERS",
    "compute_dtype",
    "default_device",
    "load_config_and_processor",
    "load_model",
    "load_pretrained",
    "load_quantized",
    "parse_device",
]

logger = logging.getLogger(__name__)

TOWERS = ("vision", "qformer")
LANGUAGE = ("llm",)
EVERYTHING = (*TOWERS, *LANGUAGE)


def default_device(local_rank: int = 0) -> torch.device:
    """The GPU of this process if there is one, otherwise the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def parse_device(name: str) -> torch.device:
    """A device by its name, such as `cuda:1`.

    Raises:
        ConfigError: there is no such device.
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
    """The dtype of the frozen parts: `setting`, or for "auto" bfloat16 on a GPU and float32 on a CPU."""
    if setting != "auto":
        dtype: torch.dtype = getattr(torch, setting)
        return dtype
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_pretrained(name: str | Path, *, base_model: str | Path | None = None, **options: Any) -> MiniGPT4:
    """Load a complete model, or a checkpoint of a run with its model.

    Args:
        name: a folder that `MiniGPT4.save_pretrained` wrote, a checkpoint (`checkpoints/epoch-NNN` of a run), or the
            hub id of either.
        base_model: folder or hub id of the model of a checkpoint, if it has moved.
        options: of `MiniGPT4.from_pretrained`: `dtype`, `device_map`, `parts`, `revision`, ...

    Returns:
        The model in eval mode; a checkpoint sets the instruction that it was tuned with.

    Raises:
        WeightsError: a file is missing or broken, or the checkpoint belongs to other frozen parts.
    """
    hub_options = {key: options[key] for key in ("revision", "token", "cache_dir") if key in options}
    folder = fetch_checkpoint(name, **hub_options)
    if folder is None:
        complete: MiniGPT4 = MiniGPT4.from_pretrained(name, **options)
        return complete
    # The revision is that of the checkpoint, not of its model.
    options.pop("revision", None)
    record = read_record(folder)
    require_kind(record, "minigpt4", folder)
    if record.parts is not None and base_model is None:
        try:
            model = build_model(
                llm=locate_base(record.parts["llm"], folder),
                vision=locate_base(record.parts["vision"], folder),
                aligned=True,
                **options,
            )
        except WeightsError as error:
            raise WeightsError(
                f"The checkpoint {folder} was trained on {record.parts['llm']} and the vision encoder "
                f"{record.parts['vision']}, which cannot be loaded: {error} If they have moved, change 'parts' in its "
                "checkpoint.json."
            ) from error
    else:
        try:
            base = str(base_model or locate_base(record.model, folder, record.relative_model))
            require_available(locate_model(base))
        except WeightsError as error:
            name = str(base_model or record.model)
            raise missing_base(f"The checkpoint {folder}", name, record.frozen, error) from error
        model = load_pretrained(base, **options)
    load_trained(model, folder)
    model.eval()
    return model


def load_model(
    model: ModelConfig | ResolvedModel,
    device: torch.device,
    *,
    recompute: bool = False,
    parts: Sequence[str] = EVERYTHING,
) -> MiniGPT4:
    """Load a model for training or captioning, or join the parts of a new one.

    Args:
        model: the model; a configuration is resolved first.
        device: device of the model.
        recompute: recompute activations in the backward pass (activation checkpointing).
        parts: the large parts to load: `LANGUAGE` with stored features, `TOWERS` to encode images.

    Returns:
        The model in eval mode, its projection in float32.

    Raises:
        WeightsError: it does not exist, is broken, or is no captune model.
        MissingExtraError: the quantization's library is not installed.
    """
    source = resolve_model(model)
    dtype = compute_dtype(source.dtype, device)
    options: dict[str, Any] = {"dtype": dtype}
    if source.quantization is not None and "llm" in parts:
        options["quantization_config"] = quantization_config(source.quantization, dtype)
        options["device_map"] = {"": device}
    if source.kind == "parts":
        loaded = build_model(llm=source.llm, vision=source.vision, parts=parts, **options)
    else:
        loaded = load_pretrained(source.path, base_model=source.base or None, parts=tuple(parts), **options)
    loaded.projection.float()
    if "quantization_config" not in options:
        loaded.to(device)
    loaded.checkpoint_activations(recompute)
    if loaded.processor is not None and source.legacy_bugs:
        loaded.processor.configure(legacy_bugs=LegacyBugs(**dict.fromkeys(source.legacy_bugs, True)))
    logger.info(
        "loaded %s (%s): %s%s on %s, projection in float32",
        source.name,
        ", ".join(parts),
        str(dtype).removeprefix("torch."),
        f", language model in {source.quantization}" if "quantization_config" in options else "",
        device,
    )
    return loaded


def load_quantized(
    model: ModelConfig | ResolvedModel,
    device: torch.device,
    batch: Mapping[str, Tensor],
    *,
    recompute: bool = False,
) -> tuple[MiniGPT4, GradientDeviation]:
    """Load a model with a quantized language model, and check how far quantization changes the gradient.

    The model without quantization is loaded first and freed, so that only one of the two is in memory at a time.

    Args:
        model: the model with its quantization; a configuration is resolved first.
        device: device of the model; the model without quantization runs on the CPU if it does not fit on it.
        batch: a few rows: keyword arguments of `MiniGPT4.forward`, with labels and the images' features.
        recompute: recompute activations in the backward pass.

    Returns:
        The quantized model without towers, and the deviation of its gradient.

    Raises:
        WeightsError: as `load_model`; or the gradient deviates too much.
    """
    source = resolve_model(model)
    assert source.quantization is not None
    exact = replace(source, quantization=None)
    try:
        reference = projection_gradient(load_model(exact, device, recompute=True, parts=LANGUAGE).train(), batch)
    except torch.OutOfMemoryError:
        on_cpu = load_model(exact, torch.device("cpu"), recompute=True, parts=LANGUAGE)
        reference = projection_gradient(on_cpu.train(), batch)
    gc.collect()
    loaded = load_model(source, device, recompute=recompute, parts=LANGUAGE)
    deviation = compare_gradients(projection_gradient(loaded.train(), batch), reference)
    logger.info("quantization %s: %s", source.quantization, deviation)
    deviation.check(source.quantization)
    return loaded.eval(), deviation


def load_config_and_processor(model: ModelConfig | ResolvedModel) -> tuple[MiniGPT4Config, MiniGPT4Processor]:
    """Load the configuration and processor of a model without its weights.

    Raises:
        WeightsError: it does not exist, is broken, or is no captune model.
    """
    source = resolve_model(model)
    if source.kind == "parts":
        config, processor = config_and_processor_of_parts(source.llm, source.vision)
    else:
        config = _read_config(source)
        processor = MiniGPT4Processor.from_pretrained(source.path, config)
    if source.legacy_bugs:
        processor.configure(legacy_bugs=LegacyBugs(**dict.fromkeys(source.legacy_bugs, True)))
    return config, processor


def _read_config(source: ResolvedModel) -> MiniGPT4Config:
    require_complete_model(source.path)
    try:
        config: MiniGPT4Config = read_config(MiniGPT4Config.from_pretrained, source.path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"The configuration of the model {source.name} cannot be read: {unreadable_reason(source.path, error)}"
        ) from error
    if config.model_type != MiniGPT4Config.model_type:
        raise WeightsError(
            f"The model {source.name} is of the kind '{config.model_type}'; expected a captune model. Give the "
            "folder of one, or make one of a language model and a vision tower with captune convert."
        )
    return config
