"""Checkpoints of tuned transformers models: peft's own format, with captune's record.

    adapter_config.json, adapter_model.safetensors   LoRA, and the projector if it was trained
    trained.safetensors                              instead of these, if complete parts were trained
    checkpoint.json                                  the model, frozen parts, prompt and data of the training
    README.md                                        a model card

Tensors have the dtype that the model computes with: bfloat16 on a GPU and float32 on a CPU. peft, transformers and
vLLM read the adapter; none of the files is needed by the others.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from captune.captioner import probe_scores, require_effect
from captune.errors import WeightsError
from captune.hub import locate_model
from captune.model import ADAPTER, CheckpointRecord, load_tuned, save_trained
from captune.vlm.card import tuned_card
from captune.vlm.model import ImageTextModel
from captune.weights import adapter_tensors, quantized_names

__all__ = ["load_adapter", "save_adapter"]


def save_adapter(folder: Path, model: ImageTextModel, record: CheckpointRecord) -> None:
    """Write a checkpoint into an existing folder.

    Args:
        folder: of the checkpoint.
        model: with its trained parts.
        record: of the checkpoint.
    """
    record = replace(record, kind="transformers", quantized=quantized_names(model.model))
    if model.adapter is None:
        state = {name: parameter.detach().cpu().contiguous() for name, parameter in model.trained_parameters()}
        save_trained(folder, state, record)
    else:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter_tensors(model.adapter).items()}
        save_trained(folder, tensors, record, ADAPTER)
        config = copy.copy(model.adapter.peft_config["default"])
        config.inference_mode = True
        config.base_model_name_or_path = _absolute(record.model)
        config.save_pretrained(folder)
    (folder / "README.md").write_text(tuned_card(record), encoding="utf-8")


def _absolute(name: str) -> str:
    """A hub id, or the absolute path of a model's folder, which other libraries read from any directory."""
    try:
        path = Path(locate_model(name))
    except WeightsError:
        return name
    return str(path.absolute()) if path.is_dir() else name


def load_adapter(model: ImageTextModel, folder: Path, *, check_effect: bool = True) -> CheckpointRecord:
    """Load a checkpoint into its base model.

    Args:
        model: with the trained parts of the checkpoint, or without any, which are then set as in the checkpoint.
        folder: `checkpoints/epoch-NNN` of a run.
        check_effect: refuse LoRA that changes no score.

    Returns:
        The record of the checkpoint.

    Raises:
        WeightsError: the checkpoint is broken, or belongs to another base model; its tensors are not those of the
            trained parts; or it changes no score.
    """
    record, model.adapter = load_tuned(model.model, folder, model.adapter)
    if check_effect and model.adapter is not None:
        require_effect(model.adapter, folder, lambda: probe_scores(model.backend))
    return record
