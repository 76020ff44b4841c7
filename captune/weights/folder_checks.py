"""Folders that are not the model they are taken for: pointers of git-lfs, broken settings, adapters, checkpoints.

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
"""Vocabularies that are read where there is no tokenizer.json."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024
"""The most that a pointer may have, by git-lfs' specification."""


def refuse_pointer(file: Path) -> None:
    """Refuse a file that git-lfs left as a pointer to its content.

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
    """Refuse a model's folder whose settings or vocabulary are pointers of git-lfs, or whose settings are broken.

    Of broken settings the library passes over some without a word, such as the ends in generation_config.json.

    Args:
        model: a folder; a hub id, whose files are never pointers, is left alone.

    Raises:
        WeightsError: a file that would be read is a pointer, or is no JSON object where it should be one.
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
    """Refuse a folder that holds only what was trained, where a whole model is needed.

    Args:
        model: a folder; a hub id is left alone.

    Raises:
        WeightsError: it is a peft adapter, or a checkpoint of a run.
    """
    folder = Path(model)
    if (folder / "config.json").is_file():
        return
    for record, kind in (("adapter_config.json", "a peft adapter"), ("checkpoint.json", "a checkpoint of a run")):
        if (folder / record).is_file():
            raise WeightsError(
                f"{model} is {kind} and no whole model, which is needed here; give its base model, or merge it into "
                "that. `captune caption`, `captune serve` and `captune evaluate --captioner` take it as it is."
            )
