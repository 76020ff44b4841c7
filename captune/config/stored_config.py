"""The stored configuration of a run, whose relative paths are found from any working directory.

A run stores the working directory in which it was trained, absolute and relative to its folder (`paths.json`), so that
a run that was moved with its data, or is used from another directory, reads the same files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captune.config.files import parse_config, read_stored
from captune.config.sections import RunConfig
from captune.parsing import load_json

__all__ = ["PATHS_FILE", "load_stored_config", "working_directory_record"]

PATHS_FILE = "paths.json"
_CONFIG = "config.yaml"
_FILES = (("data", "train"), ("data", "evaluate"), ("evaluate", "protocol"))
_FOLDERS = (("data", "features"), ("model", "path"), ("model", "llm"), ("model", "vision"))


def working_directory_record(output: str | Path) -> str:
    """The content of `paths.json`, which a run writes into its output folder."""
    output = Path(output)
    directory = os.getcwd()
    record = {"working_directory": directory, "relative": os.path.relpath(directory, output.absolute())}
    return json.dumps(record, ensure_ascii=False) + "\n"


def load_stored_config(run: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read the stored configuration of a run.

    Args:
        run: its folder, which may have been moved, with or without its data.
        overrides: `section.key=value` strings; paths in them are relative to the current directory.

    Returns:
        The configuration; its output is `run` unless overridden. Paths that exist nowhere are unchanged.

    Raises:
        ConfigError: as `load_config`.
    """
    run = Path(run)
    content = read_stored(run / _CONFIG)
    for names, is_folder in ((_FILES, False), (_FOLDERS, True)):
        for section, key in names:
            settings = content.get(section)
            if isinstance(settings, dict) and isinstance(settings.get(key), str):
                settings[key] = _located(settings[key], run, is_folder=is_folder)
    content["output"] = str(run)
    return parse_config(content, overrides, source=str(run / _CONFIG))


def _located(path: str, run: Path, *, is_folder: bool) -> str:
    """A path of the configuration from the current directory; unchanged if the file exists nowhere."""
    exists = _is_plain_folder if is_folder else os.path.isfile
    expanded = os.path.expanduser(path)
    for candidate in _candidates(expanded, run):
        if exists(candidate):
            same = exists(expanded) and os.path.samefile(candidate, expanded)
            return path if same else os.path.normpath(candidate)
    return path


def _is_plain_folder(path: str) -> bool:
    """Whether a folder holds no run: a run called `toy` is not the included model of this name."""
    return os.path.isdir(path) and not os.path.isfile(os.path.join(path, _CONFIG))


def _candidates(path: str, run: Path) -> Iterator[str]:
    """Where a file may be: in the directory of the training, which may have moved with the run, and in the current."""
    folder = str(run.absolute())
    recorded = _recorded(run)
    directory, relative = recorded.get("working_directory", ""), recorded.get("relative", "")
    if os.path.isabs(path):
        yield path
        if directory and relative and os.path.commonpath([path, directory]) == directory:
            yield os.path.join(folder, relative, os.path.relpath(path, directory))
        return
    if directory and relative:
        yield os.path.join(folder, relative, path)
        yield os.path.join(directory, path)
    yield path
    # A run of an earlier version records no directory; most were trained in one above it.
    yield from (os.path.join(parent, path) for parent in Path(folder).parents)


def _recorded(run: Path) -> dict[str, str]:
    try:
        content: Any = load_json((run / PATHS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    values = content if isinstance(content, dict) else {}
    return {name: value for name, value in values.items() if isinstance(value, str) and value}
