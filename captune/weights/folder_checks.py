"""What the folder of a model, adapter or checkpoint holds; refusal of git-lfs pointers and broken settings.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from captune.common import error_text
from captune.errors import WeightsError
from captune.parsing import load_json

__all__ = [
    "ADAPTER_CONFIG",
    "SINGLE_FILES",
    "adapter_settings_hash",
    "base_model_of",
    "has_image_processor",
    "holds_adapter",
    "refuse_pointer",
    "refuse_pointers",
    "require_complete_model",
]

ADAPTER_CONFIG = "adapter_config.json"
"""Name of the file with the settings of a peft adapter."""
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file, in the order of preference of transformers; `NAME.index.json` lists shards."""

_WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "peft_version", "revision"),
    "task_type",
)
"""Settings of an adapter that do not change its captions."""
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "adapter_config.json",
)
_VOCABULARIES = ("*.model", "*.spm", "*.tiktoken", "vocab.json", "vocab.txt", "merges.txt", "tekken.json")
"""Vocabularies, which are used if there is no tokenizer.json."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
"""Largest size of a pointer in the specification of git-lfs."""


def refuse_pointer(file: Path) -> None:
    """Refuse a git-lfs pointer in place of a file.

    Raises:
        WeightsError: it is one.
    """
    try:
        if file.stat().st_size > _POINTER_BYTES:
            return
        with file.open("rb") as stream:
            is_pointer = stream.read(len(_POINTER)) == _POINTER
    except OSError:
        return
    if is_pointer:
        raise WeightsError(
            f"{file} is a git-lfs pointer, not the file itself; run `git lfs pull` in {file.parent}, or download the "
            "file again."
        )


def refuse_pointers(model: str | Path) -> None:
    """Refuse a model's folder whose settings or vocabulary are git-lfs pointers, or whose settings are broken.

    transformers ignores some broken files silently, such as generation_config.json.

    Args:
        model: a folder; a hub id is not checked, since its files are never pointers.

    Raises:
        WeightsError: a file is a pointer, or its JSON is broken or no object.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    for name in _SETTINGS:
        refuse_pointer(folder / name)
        if name.endswith(".json"):
            _refuse_broken(folder / name)
    refuse_pointer(folder / "tokenizer.json")
    if not (folder / "tokenizer.json").is_file():
        for pattern in _VOCABULARIES:
            for file in sorted(folder.glob(pattern)):
                refuse_pointer(file)


def _refuse_broken(file: Path) -> None:
    try:
        if file.is_file() and not isinstance(load_json(file.read_text(encoding="utf-8")), dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error}; copy it again from its source.") from error


def require_complete_model(model: str | Path) -> None:
    """Refuse a peft adapter or a checkpoint of a run where a complete model is needed.

    Args:
        model: a folder; a hub id is not checked.

    Raises:
        WeightsError: it is a peft adapter, or a checkpoint of a run.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return
    for record, kind in (("adapter_config.json", "a peft adapter"), ("checkpoint.json", "a checkpoint of a run")):
        if (folder / record).is_file():
            raise WeightsError(
                f"{model} is {kind}, but a complete model is needed here; give its base model, or merge it into "
                "that. `captune caption`, `captune serve` and `captune evaluate --captioner` accept it directly."
            )


def holds_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter and not a complete model."""
    complete = (*SINGLE_FILES, *(f"{name}.index.json" for name in SINGLE_FILES))
    return (folder / ADAPTER_CONFIG).is_file() and not any((folder / name).is_file() for name in complete)


def adapter_settings_hash(folder: Path) -> str:
    """A hash of the settings of an adapter that its captions depend on, 16 hexadecimal digits.

    Equal tensors with another `lora_alpha` or `use_rslora` are another model.
    """
    settings = {name: value for name, value in _settings(folder).items() if name not in _WITHOUT_EFFECT}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def has_image_processor(folder: Path) -> bool:
    """Whether a folder holds the settings of an image processor."""
    return any((folder / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))


def base_model_of(folder: Path) -> tuple[str, str | None]:
    """The base model of an adapter: a folder, or a hub id.

    A relative path is resolved in the adapter's folder first, then in the current one.

    Returns:
        An existing folder, or the name in the adapter's settings; and the revision of a hub id, if the settings have
        one.

    Raises:
        WeightsError: the settings have no base model.
    """
    config = _settings(folder)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise WeightsError(
            f"{folder / ADAPTER_CONFIG} names no base model; set base_model_name_or_path to its folder or hub id."
        )
    for candidate in (folder / Path(base).expanduser(), Path(base).expanduser()):
        if candidate.is_dir() and candidate.resolve() != folder.resolve():
            return str(candidate), None
    return base, config.get("revision")


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    refuse_pointer(file)
    try:
        settings = load_json(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"it holds a {type(settings).__name__}")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file} cannot be read: {error_text(error)}; copy it again from its source.") from error
    return settings
