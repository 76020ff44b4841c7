"""Checkpoints of a training run: the trained tensors and a record of the model that they belong to.

A checkpoint has the trained tensors only (12.6 MB for a 7B projection), in `trained.safetensors`, or in peft's
`adapter_model.safetensors` for LoRA on a transformers model. `checkpoint.json` records the frozen parts, prompt and
data of the training. Loading a checkpoint into a model with other frozen parts is an error.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from captune.config import ModelConfig
from captune.errors import ConfigError, WeightsError
from captune.hub import TOY, recorded_name
from captune.model.lora import attach_lora
from captune.model.minigpt4 import MiniGPT4
from captune.model.prompt import ChatTemplate
from captune.parsing import load_json
from captune.run_checkpoints import (
    ADAPTER,
    RECORD,
    TENSORS_HASH,
    TRAINED,
    CheckpointRecord,
    checkpoint_folder,
    read_record,
    require_kind,
    tensor_file,
)
from captune.transformers_compat import fetch_file
from captune.weights import (
    attach_adapter,
    check_keys,
    check_values,
    frozen_fingerprint,
    load_adapter_tensors,
    parse_header,
    refuse_pointer,
)

__all__ = [
    "copy_checkpoint",
    "fetch_checkpoint",
    "is_checkpoint",
    "load_start",
    "load_trained",
    "load_tuned",
    "mark_tuned",
    "read_trained",
    "recorded_base",
    "restore_chat_template",
    "save_trained",
    "tuned_instruction",
]

_DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
"""Files of a checkpoint of a transformers model on the hub: weights, settings and its processor."""


def recorded_base(config: ModelConfig, output: Path) -> tuple[str, str | None]:
    """The base model as the checkpoints of a run record it.

    Args:
        config: of the model.
        output: folder of the run.

    Returns:
        A hub id, an absolute folder, or a model that comes with captune; and that folder relative to a checkpoint's.
    """
    if config.llm is not None:
        return config.name, None
    name = recorded_name(config.path)
    if not Path(name).is_absolute():
        return name, None
    return name, os.path.relpath(name, checkpoint_folder(output, 0))


def save_trained(folder: Path, state: Mapping[str, Tensor], record: CheckpointRecord, file: str = TRAINED) -> None:
    """Write a checkpoint into an existing folder.

    Args:
        folder: of the checkpoint.
        state: the trained tensors, on the CPU.
        record: of the checkpoint.
        file: name of the file of the tensors.
    """
    text = json.dumps(asdict(record), indent=2, ensure_ascii=False)
    # peft's readers expect a format.
    metadata = {"captune": text} if file == TRAINED else {"captune": text, "format": "pt"}
    data = save(dict(state), metadata=metadata)
    described = {**asdict(record), TENSORS_HASH: hashlib.sha256(data).hexdigest()}
    # Written with Python, so that a full disk raises OSError.
    (folder / file).write_bytes(data)
    (folder / RECORD).write_text(json.dumps(described, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_trained(folder: Path) -> dict[str, Tensor]:
    """Read the trained tensors of a checkpoint.

    Raises:
        WeightsError: they are missing, or tensors or record were changed after they were written.
    """
    path = tensor_file(folder)
    refuse_pointer(path)
    try:
        data = path.read_bytes()
        state: dict[str, Tensor] = load(data)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is missing or broken; train this epoch again.") from error
    described = load_json((folder / RECORD).read_text(encoding="utf-8"))
    # Checkpoints of older versions have no hash.
    if described.get(TENSORS_HASH, "") not in ("", hashlib.sha256(data).hexdigest()):
        raise WeightsError(
            f"{path} is damaged: its SHA-256 is not the one in checkpoint.json; copy it again from an intact copy, "
            "or train this epoch again."
        )
    if TENSORS_HASH in described:
        record = load_json(parse_header(io.BytesIO(data), len(data)).metadata["captune"])
        # The paths of models may change.
        same = set(record) & set(described) - {"model", "parts", "relative_model"}
        differing = sorted(name for name in same if described[name] != record[name])
        if differing:
            raise WeightsError(
                f"{folder / 'checkpoint.json'} was changed or is damaged: its '{differing[0]}' differs from "
                f"{path.name}; copy it again from an intact copy, or train this epoch again."
            )
    return state


def copy_checkpoint(checkpoint: Path, folder: Path, base_id: str | None = None) -> CheckpointRecord:
    """Copy trained tensors, record and peft's settings into an existing folder, after comparing them with their hash.

    The copy names no folder of the training: of the checkpoints that the run started from it has the names, and of a
    model that comes with captune the name. Only the folder of another base model is kept, without which the copy could
    not be loaded here.

    Args:
        checkpoint: its folder.
        folder: of the copy.
        base_id: hub id of the base model, which the copy records instead of a folder of this machine.

    Returns:
        The record of the copy.

    Raises:
        WeightsError: the checkpoint is broken.
    """
    record, state, file = read_record(checkpoint), read_trained(checkpoint), tensor_file(checkpoint)
    copied = replace(record, ancestors=tuple(map(_without_folders, record.ancestors)))
    if base_id is not None:
        copied = replace(copied, model=base_id, relative_model=None)
    if copied == record:
        for path in (file, checkpoint / RECORD):
            shutil.copyfile(path, folder / path.name)
    else:
        save_trained(folder, state, copied, file.name)
    adapter_settings = checkpoint / "adapter_config.json"
    if adapter_settings.is_file():
        settings = load_json(adapter_settings.read_text(encoding="utf-8"))
        if base_id is not None or record.model in TOY:
            settings["base_model_name_or_path"] = copied.model
        (folder / adapter_settings.name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return copied


def _without_folders(ancestor: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `CheckpointRecord.ancestors` with the run and the epoch only of its folder."""
    described = {name: value for name, value in ancestor.items() if name != "manifest"}
    name = str(ancestor["checkpoint"])
    return {**described, "checkpoint": "/".join(Path(name).parts[-3:]) if Path(name).is_absolute() else name}


def load_tuned(
    model: Any, folder: Path, adapter: Any = None, *, keeps_other_modules: bool = False
) -> tuple[CheckpointRecord, Any]:
    """Load a checkpoint of a transformers model into it.

    Args:
        model: of transformers, with the frozen parts that the checkpoint was trained on; all of it is frozen, or the
            parts that the checkpoint holds are trainable.
        folder: `checkpoints/epoch-NNN` of a run.
        adapter: peft's wrapper of the model if LoRA is attached; otherwise LoRA is attached as in the checkpoint.
        keeps_other_modules: as in `load_adapter_tensors`.

    Returns:
        The record of the checkpoint; peft's wrapper, None if complete parts were trained.

    Raises:
        WeightsError: the checkpoint is broken, or belongs to other frozen or trained parts.
    """
    record = read_record(folder)
    require_kind(record, "transformers", folder)
    state = read_trained(folder)
    path = tensor_file(folder)
    what = f"The checkpoint {path}"
    check_values(what, state.items())
    if path.name == ADAPTER:
        _check_frozen(frozen_fingerprint(model, record.quantized), record, folder)
        if adapter is None:
            return record, attach_adapter(model, folder, state, trained=True)
        load_adapter_tensors(adapter, state, what, keeps_other_modules=keeps_other_modules)
        return record, adapter
    parameters = dict(model.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad} or state.keys()
    check_keys(
        what,
        count=len(trained),
        missing=trained - state.keys(),
        unexpected=state.keys() - (trained & parameters.keys()),
        mismatched=[
            (name, tuple(tensor.shape), tuple(parameters[name].shape))
            for name, tensor in state.items()
            if name in parameters and parameters[name].shape != tensor.shape
        ],
        misfit="does not fit the parts that this model trains",
    )
    for name in state:
        parameters[name].requires_grad_(True)
    _check_frozen(frozen_fingerprint(model, record.quantized), record, folder)
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
    return record, None


def _check_frozen(frozen: str, record: CheckpointRecord, folder: Path) -> None:
    """Refuse a model with other frozen parts than a checkpoint's."""
    if record.frozen != frozen:
        raise WeightsError(
            f"{folder} was trained on the frozen parts {record.frozen} (of {record.model}), but this model has "
            f"{frozen}; load the model it was trained on."
        )


def load_trained(model: MiniGPT4, folder: Path) -> CheckpointRecord:
    """Load a checkpoint into a model.

    Args:
        model: with the frozen parts that the checkpoint was trained on.
        folder: `checkpoints/epoch-NNN` of a run.

    Returns:
        The record of the checkpoint.

    Raises:
        WeightsError: the checkpoint is broken or belongs to other frozen parts.
    """
    record = read_record(folder)
    require_kind(record, "minigpt4", folder)
    if record.lora is not None and model.config.lora is None:
        settings = dict(record.lora)
        attach_lora(model, rank=settings["r"], alpha=settings["alpha"], targets=settings["targets"])
    _check_frozen(model.frozen_fingerprint(), record, folder)
    path = folder / "trained.safetensors"
    state = read_trained(folder)
    parameters = dict(model.trained_parameters())
    if set(state) != set(parameters) or any(state[name].shape != p.shape for name, p in parameters.items()):
        raise WeightsError(f"{path} holds other tensors than this model trains; expected {', '.join(parameters)}.")
    check_values(f"The checkpoint {path}", state.items())
    model.load_trained_state(state)
    restore_chat_template(model, record.wrapping, folder)
    if model.processor is not None:
        model.processor.instruction = record.instruction
    return record


def load_start(model: MiniGPT4, folder: Path) -> None:
    """Load the tensors of a checkpoint into a model that trains the same parts, or more of them.

    Args:
        model: with the frozen parts that the checkpoint was trained on. Its prompt is not changed, and trained tensors
            that the checkpoint does not have keep their values.
        folder: of the checkpoint.

    Raises:
        WeightsError: the checkpoint is broken, or belongs to other frozen parts or tensors.
    """
    record = read_record(folder)
    require_kind(record, "minigpt4", folder)
    _check_frozen(model.frozen_fingerprint(), record, folder)
    state, path = read_trained(folder), tensor_file(folder)
    parameters = dict(model.trained_parameters())
    if any(name not in parameters or parameters[name].shape != tensor.shape for name, tensor in state.items()):
        raise WeightsError(f"{path} holds other tensors than this model trains; expected {', '.join(parameters)}.")
    check_values(f"The checkpoint {path}", state.items())
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)


def restore_chat_template(model: MiniGPT4, wrapping: dict[str, Any] | None, source: Path) -> None:
    """Use the chat template that a run was trained with, also if the one in the model's folder has changed since.

    Args:
        model: the model; its processor is changed.
        wrapping: the fields of a `ChatTemplate` that the run stored.
        source: the file or folder of the run, for messages.

    Raises:
        WeightsError: the run did not store a template although it needs one, or the template cannot be used.
    """
    if wrapping is None:
        if model.config.library_tokens:
            raise WeightsError(
                f"{source} is of a run of an earlier captune, which did not store the text of its prompts; train "
                "again, or use it with the captune that wrote it."
            )
        return
    try:
        conversation = ChatTemplate(**wrapping)
        if model.processor is not None and model.processor.layout.chat_template != conversation:
            model.processor.use_chat_template(conversation)
    except (TypeError, AttributeError, ConfigError) as error:
        raise WeightsError(f"The prompt that {source} stores cannot be used: {error!r}.") from error
    model.config.wrapping = dict(wrapping)


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is the folder of a checkpoint, not of a complete model."""
    folder = Path(path)
    return (folder / RECORD).is_file() and not (folder / "config.json").is_file()


def fetch_checkpoint(name: str | Path, **hub_options: Any) -> Path | None:
    """The folder of a checkpoint, downloaded from the hub if necessary; None if the name is not that of a checkpoint.

    Args:
        name: a folder, or a hub id.
        hub_options: `revision`, `token`, `cache_dir` of a hub id.
    """
    if Path(name).is_dir():
        return Path(name) if is_checkpoint(name) else None

    try:
        record = fetch_file(name, RECORD, **hub_options)
        if record is None or fetch_file(name, "config.json", **hub_options) is not None:
            return None
        if read_record(record.parent).kind == "transformers":
            return Path(snapshot_download(str(name), allow_patterns=list(_DOWNLOADED), **hub_options))
    except OSError:
        # Loading the model reports what is wrong with the name.
        return None
    return None if fetch_file(name, TRAINED, **hub_options) is None else record.parent


_TUNED = "captune"
"""Name of captune's settings in the configuration of a transformers model."""


def mark_tuned(config: Any, record: CheckpointRecord) -> None:
    """Store the instruction of a checkpoint in the configuration of the merged model."""
    # A shared model names no folder of this machine.
    base = Path(record.model).name if Path(record.model).is_absolute() else record.model
    setattr(config, _TUNED, {"instruction": record.instruction, "base_model": base, "captune": record.captune})


def tuned_instruction(config: Any) -> str | None:
    """The instruction that a transformers model was tuned with, if captune tuned and merged it."""
    marked = getattr(config, _TUNED, None)
    text = marked.get("instruction") if isinstance(marked, dict) else None
    return text if isinstance(text, str) and text.strip() else None
