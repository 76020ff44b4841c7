"""Configurations of MiniGPT-4 and LAVIS (`model:`, `datasets:`, `run:`) in the words of captune.

A translation is a plain dictionary for `captune.config` and a list of sentences: which keys had no effect in the
original, which are not needed here, and what to do where there is no counterpart. A key that the original does not know
either is an error, for there it was silently ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from captune.lavis.data_section import read_datasets
from captune.lavis.keys import MODEL_KEYS, SECTIONS
from captune.lavis.model_section import model_settings
from captune.lavis.reader import Reader
from captune.lavis.run_section import run_settings
from captune.parsing import load_yaml

__all__ = ["Translation", "is_lavis", "translate"]

OWN_SECTIONS = frozenset({"data", "train", "evaluate"})


@dataclass
class Translation:
    """An old configuration in new words.

    Attributes:
        settings: sections and keys of a `RunConfig`.
        overrides: those of the given overrides that are in new words already.
        notes: sentences for a person, in the order of the file.
    """

    settings: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_lavis(content: dict[str, Any]) -> bool:
    """Whether a YAML's content is a configuration of the original."""
    return bool({"run", "datasets"} & set(content)) and not OWN_SECTIONS & set(content)


def translate(
    content: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "the configuration", processes: int = 1
) -> Translation:
    """Translate a configuration of the original.

    Args:
        content: as YAML gives it.
        overrides: `section.key=value` strings, in old words or in new ones.
        source: what messages call it.
        processes: that torchrun started; the original's batch size is that of each process.

    Returns:
        The settings, the overrides that are left, and what there is to say.

    Raises:
        ConfigError: a key that the original does not know, or a setting without a counterpart.
    """
    reader = Reader(source, processes)
    reader.known("", content, SECTIONS)
    sections = {name: _section(reader, content, name) for name in ("model", "datasets", "run")}
    left = []
    for override in overrides:
        name, _, value = override.partition("=")
        section, _, key = name.strip().partition(".")
        if section in ("datasets", "run") or (section == "model" and key in MODEL_KEYS):
            _override(sections[section], key.split("."), value)
        else:
            left.append(override)
    datasets = read_datasets(reader, sections["datasets"])
    model = model_settings(reader, sections["model"], datasets)
    settings = run_settings(reader, sections["run"], datasets)
    for name in ("preprocess", "evaluation_datasets"):
        if name in content:
            reader.dead(name, "training reads datasets alone")
    settings["model"] = model
    if sections["model"].get("use_grad_checkpoint_llm"):
        settings["train"]["gradient_checkpointing"] = True
    return Translation(settings, left, reader.notes)


def _section(reader: Reader, content: dict[str, Any], name: str) -> dict[str, Any]:
    section = content.get(name)
    if not isinstance(section, dict):
        raise reader.error(f"it has no section '{name}:'; the original needs model, datasets and run")
    return dict(section)


def _override(section: dict[str, Any], keys: list[str], value: str) -> None:
    for key in keys[:-1]:
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, dict) else {}
        section = section[key]
    try:
        section[keys[-1]] = load_yaml(value)
    except ValueError:
        section[keys[-1]] = value
