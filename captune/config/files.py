"""Configurations from YAML files, captune's own or the original's, with `section.key=value` overrides."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.config.minigpt4_yaml import is_lavis, translate
from captune.config.sections import RunConfig
from captune.errors import ConfigError
from captune.parsing import load_yaml, validate

__all__ = ["STORED_HEADING", "convert_config", "load_config", "load_run_config", "parse_config"]

logger = logging.getLogger(__name__)


RENAMED: dict[str, tuple[str, dict[str, str]]] = {
    "track": ("tracker", {}),
    "model.faults": ("model.legacy_bugs", {"dollars_are_padding": "pad_is_dollar_sign"}),
    "train.targets": ("train.caption_targets", {"each": "separate", "one": "random"}),
    "train.shard": ("train.sharding", {"layers": "fsdp"}),
    "train.fast": ("train.debug", {}),
    "train.optimizations": ("train.debug", {}),
}
"""Keys of earlier versions: their new names, and the new names of their values."""
STORED_HEADING = "The configuration of this run, with every default filled in."
"""First line of a configuration that a run has stored. Keys of an earlier version are accepted only below it."""


def load_run_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the configuration that is stored in a run's folder, also one of an earlier captune.

    Args:
        path: the file.
        overrides: `section.key=value` strings.

    Raises:
        ConfigError: as `load_config`.
    """
    content = _read_yaml(Path(path))
    _rename_keys(content)
    return parse_config(content, overrides, source=str(path))


def _rename_keys(content: dict[str, Any]) -> None:
    for name, section, key in _renamed_keys(content):
        new_name, values = RENAMED[name]
        value = section.pop(key)
        value = [values.get(v, v) for v in value] if isinstance(value, list) else values.get(str(value), value)
        section.setdefault(new_name.rpartition(".")[2], value)


def _renamed_keys(content: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """The keys of an earlier version: full name, section that holds it, name in the section."""
    renamed = []
    for name in RENAMED:
        *sections, key = name.split(".")
        section = content.get(sections[0]) if sections else content
        if not isinstance(section, dict) or key not in section:
            continue
        # Today's key of this name is true or false.
        if name != "train.optimizations" or isinstance(section[key], dict):
            renamed.append((name, section, key))
    return renamed


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, captune's own or one of the original code.

    Args:
        path: the file.
        overrides: `section.key=value` strings; values are YAML. For a file of the original also in its words.

    Returns:
        The checked configuration. Relative paths in it are relative to the working directory.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is not of the kind expected.
    """
    content = _read_yaml(Path(path))
    if not is_lavis(content):
        return parse_config(content, overrides, source=str(path))
    config, notes = _from_lavis(content, overrides, str(path), int(os.environ.get("WORLD_SIZE", "1")))
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            logger.warning("%s: %s", path, note)
    return config


def convert_config(
    path: str | Path, overrides: Sequence[str] = (), *, processes: int = 1
) -> tuple[RunConfig, list[str]]:
    """Read a YAML file of the original code.

    Args:
        path: the file, with `model:`, `datasets:` and `run:`.
        overrides: `section.key=value` strings, in its words or captune's.
        processes: with which it was run; its batch size is that of each.

    Returns:
        The same run in captune's words, and what there is to say of keys that have no counterpart.

    Raises:
        ConfigError: the file cannot be read, is none of the original's, or asks for what captune does not do.
    """
    content = _read_yaml(Path(path))
    if not is_lavis(content):
        raise ConfigError(f"{path} is no configuration of the original; expected the sections model, datasets and run.")
    return _from_lavis(content, overrides, str(path), processes)


def _from_lavis(
    content: dict[str, Any], overrides: Sequence[str], source: str, processes: int
) -> tuple[RunConfig, list[str]]:
    translation = translate(content, overrides, source=source, processes=processes)
    return parse_config(translation.settings, translation.overrides, source=source), translation.notes


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration {path}; give the path of a YAML file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give the path of a YAML file.") from error
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected sections such as 'model:' and 'train:'.")
    if text.startswith(f"# {STORED_HEADING}"):
        _rename_keys(content)
    return content


def parse_config(
    content: dict[str, Any], overrides: Sequence[str] = (), *, source: str = "the configuration"
) -> RunConfig:
    """Check a dictionary as a configuration.

    Args:
        content: sections and keys, as YAML gives them.
        overrides: `section.key=value` strings that win over `content`.
        source: what error messages call it.

    Raises:
        ConfigError: a key is unknown, or a value is not of the kind expected.
    """
    for override in overrides:
        content = _override(content, override)
    renamed = []
    for name, section, key in _renamed_keys(content):
        inner = section[key]
        part = f".{next(iter(inner))}" if isinstance(inner, dict) and inner else ""
        renamed.append((f"{name}{part}", f"{RENAMED[name][0]}{part}"))
    if len(renamed) == 1:
        raise ConfigError(f"{source}: there is no key '{renamed[0][0]}'; did you mean '{renamed[0][1]}'?")
    if renamed:
        pairs = ", ".join(f"'{old}' is '{new}'" for old, new in renamed)
        raise ConfigError(f"{source} has keys of an earlier captune, which are renamed: {pairs}.")
    return validate(content, RunConfig, source, ConfigError)


def _override(content: dict[str, Any], override: str) -> dict[str, Any]:
    name, separator, value = override.partition("=")
    keys = name.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(f"'{override}' is not an override; expected section.key=value, such as train.epochs=3.")
    try:
        parsed = load_yaml(value)
    except ValueError:
        parsed = value
    merged = dict(content)
    node = merged
    for key in keys[:-1]:
        inner = node.get(key)
        node[key] = dict(inner) if isinstance(inner, dict) else {}
        node = node[key]
    node[keys[-1]] = parsed
    return merged
