"""Export of checkpoints of transformers models: trained tensors with the processor, or complete merged models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from captune.captioner import copy_processor, image_text_config
from captune.hub import checkpoint_base
from captune.model import CardDetails, copy_checkpoint, mark_tuned
from captune.run_checkpoints import read_record
from captune.transformers_compat import fetch_file
from captune.vlm.card import tuned_card
from captune.vlm.checkpoints import load_adapter
from captune.vlm.loading import load_image_text_model

__all__ = ["export_merged", "export_tuned"]


def export_tuned(
    checkpoint: Path, folder: Path, *, base: str = "", base_id: str | None = None, details: CardDetails | None = None
) -> None:
    """Copy a checkpoint into an existing folder, with the processor of its base model.

    Args:
        checkpoint: `checkpoints/epoch-NNN` of a run.
        folder: the copy.
        base: folder or hub id of the base model; empty is the recorded one.
        base_id: hub id of the base model, which the copy records instead of a folder of this machine.
        details: for the card.

    Raises:
        WeightsError: the checkpoint is broken, or its base model does not exist.
    """
    record = read_record(checkpoint)
    model, _ = checkpoint_base(checkpoint, record, base)
    copied = copy_checkpoint(checkpoint, folder, base_id)
    copy_processor(model, folder)
    (folder / "README.md").write_text(tuned_card(copied, details=details), encoding="utf-8")


def export_merged(
    checkpoint: Path,
    folder: Path,
    *,
    dtype: str = "auto",
    base: str = "",
    details: CardDetails | None = None,
) -> None:
    """Write the complete model of a checkpoint into an existing folder: merged weights, configuration and processor.

    LoRA is added to the weights in float32, and their sum is rounded once.

    Args:
        checkpoint: `checkpoints/epoch-NNN` of a run.
        folder: of the model.
        dtype: number format of the weights; auto is that of the base model's files.
        base: folder or hub id of the base model; empty is the recorded one.
        details: for the card.

    Raises:
        WeightsError: the checkpoint is broken, changes no score, or its base model does not exist or is another one.
    """
    record = read_record(checkpoint)
    resolved, name = checkpoint_base(checkpoint, record, base)
    if dtype == "auto":
        stored = getattr(image_text_config(resolved.path, name), "dtype", None)
        dtype = str(stored or torch.float32).removeprefix("torch.")
    source = replace(resolved, dtype=dtype)
    model = load_image_text_model(source, torch.device("cpu"), instruction=record.instruction or None)
    load_adapter(model, checkpoint)
    merged = model.model if model.adapter is None else _merged(model.adapter)
    mark_tuned(merged.config, record)
    merged.save_pretrained(folder, max_shard_size="4GB")
    # Captioning with captune resets the decoding options in the model, not in the file.
    generation = fetch_file(resolved.path, "generation_config.json", require_connection=False)
    if generation is not None:
        shutil.copyfile(generation, folder / generation.name)
    copy_processor(resolved, folder)
    card = tuned_card(record, merged=True, details=details)
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
