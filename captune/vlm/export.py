"""Export of checkpoints of transformers models: trained tensors with the processor, or complete merged models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from captune.captioner import checkpoint_base, copy_processor, image_text_config
from captune.model import mark_tuned, read_record, read_trained, tensor_file
from captune.transformers_compat import fetch_file
from captune.vlm.card import tuned_card
from captune.vlm.files import load_adapter
from captune.vlm.loading import load_image_text_model

__all__ = ["export_merged", "export_tuned"]


def export_tuned(
    checkpoint: Path, folder: Path, *, metrics: Mapping[str, float] | None = None, signature: str | None = None
) -> None:
    """Copy a checkpoint into an existing folder, with the processor of its base model.

    Args:
        checkpoint: `checkpoints/epoch-NNN` of a run.
        folder: the copy.
        metrics: for the card: name to value.
        signature: of the metrics.

    Raises:
        WeightsError: the checkpoint is broken, or its base model does not exist.
    """
    record = read_record(checkpoint)
    base, _ = checkpoint_base(checkpoint, record)
    # Compares the tensors with their hash.
    read_trained(checkpoint)
    for file in (tensor_file(checkpoint), checkpoint / "checkpoint.json", checkpoint / "adapter_config.json"):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
    copy_processor(base, folder)
    (folder / "README.md").write_text(tuned_card(record, metrics=metrics, signature=signature), encoding="utf-8")


def export_merged(
    checkpoint: Path,
    folder: Path,
    *,
    dtype: str = "auto",
    metrics: Mapping[str, float] | None = None,
    signature: str | None = None,
) -> None:
    """Write the complete model of a checkpoint into an existing folder: merged weights, configuration and processor.

    LoRA is added to the weights in float32, and their sum is rounded once.

    Args:
        checkpoint: `checkpoints/epoch-NNN` of a run.
        folder: of the model.
        dtype: number format of the weights; auto is that of the base model's files.
        metrics: for the card: name to value.
        signature: of the metrics.

    Raises:
        WeightsError: the checkpoint is broken, changes no score, or its base model does not exist or is another one.
    """
    record = read_record(checkpoint)
    base, name = checkpoint_base(checkpoint, record)
    if dtype == "auto":
        stored = getattr(image_text_config(base.path, name), "dtype", None)
        dtype = str(stored or torch.float32).removeprefix("torch.")
    source = replace(base, dtype=dtype)
    model = load_image_text_model(source, torch.device("cpu"), instruction=record.instruction or None)
    load_adapter(model, checkpoint)
    merged = model.model if model.adapter is None else _merged(model.adapter)
    mark_tuned(merged.config, record)
    merged.save_pretrained(folder, max_shard_size="4GB")
    # Captioning with captune resets the decoding options in the model, not in the file.
    generation = fetch_file(base.path, "generation_config.json", require_connection=False)
    if generation is not None:
        shutil.copyfile(generation, folder / generation.name)
    copy_processor(base, folder)
    card = tuned_card(record, merged=True, metrics=metrics, signature=signature)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _merged(adapter: Any) -> Any:
    """The model with LoRA added to its weights, without peft's layers."""
    from peft.tuners.lora import LoraLayer

    for module in adapter.modules():
        if isinstance(module, LoraLayer):
            dtype = next(module.get_base_layer().parameters()).dtype
            module.to(torch.promote_types(dtype, torch.float32))
            module.merge()
            module.to(dtype)
    return adapter.unload()
