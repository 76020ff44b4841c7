"""Refusal of model folders with git-lfs pointers or broken settings, and of adapters and checkpoints.

Needs no torch.
"""

from __future__ import annotations

from pathlib import Path

from captune.errors import WeightsError
from captune.parsing import load_json

__all__ = ["refuse_pointer", "refuse_pointers", "require_complete_model"]

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
