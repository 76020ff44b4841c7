"""The stored configuration of a run for its page: what differs from the defaults or from another run; image files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from captune.parsing import load_json, load_yaml

__all__ = ["Setting", "changed_settings", "image_links", "read_settings", "run_differences"]

_LONGEST = 120
_ID = re.compile(rb'\{"id": "([^"\\]*)"')


class Setting(NamedTuple):
    """A setting of one or several runs.

    Attributes:
        name: with its sections, such as "train.epochs".
        values: one a column.
    """

    name: str
    values: Sequence[str]


def read_settings(run_dir: str | Path) -> dict[str, Any]:
    """The settings in a run's `config.yaml` by their names; empty if there is none that can be read."""
    run_dir = Path(run_dir)
    try:
        tree = load_yaml((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    settings: dict[str, Any] = {}

    def flatten(node: Mapping[Any, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict) and value and len(prefix) < _LONGEST:
                flatten(value, f"{prefix}{key}.")
            else:
                settings[f"{prefix}{key}"] = value

    if isinstance(tree, dict):
        flatten(tree, "")
    settings.pop("output", None)
    return settings


def changed_settings(settings: Mapping[str, Any]) -> list[Setting]:
    """The settings that differ from captune's defaults, each with its value and its default."""
    from captune.config import configuration_keys

    if not settings:
        return []
    defaults = {key.name: load_yaml(key.default) for key in configuration_keys()}
    return [
        Setting(name, (_shown(value), _shown(defaults[name]) if name in defaults else "–"))
        for name, value in settings.items()
        if name not in defaults or value != defaults[name]
    ]


def run_differences(runs: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The settings on which several runs differ, with the value of every run."""
    names = dict.fromkeys(name for run in runs for name in run)
    return [
        Setting(name, [_shown(run[name]) if name in run else "–" for run in runs])
        for name in names
        if any(run.get(name, _ABSENT) != runs[0].get(name, _ABSENT) for run in runs)
    ]


_ABSENT = object()


def _shown(value: Any) -> str:
    """A value on one line; an absolute path by its last parts, which do not depend on the machine."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.startswith("/"):
        return "…/" + "/".join(Path(value).parts[-2:])
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def image_links(run_dir: Path, images: Collection[str]) -> dict[str, str]:
    """Image id -> address of its file relative to the run, for images in the run's manifest whose files exist."""
    settings = read_settings(run_dir)
    manifest = settings.get("data.evaluate") or settings.get("data.train")
    if not isinstance(manifest, str):
        return {}
    file = next((path for path in (run_dir / manifest, Path(manifest)) if path.is_file()), None)
    ids, links = set(images), {}
    if file is None:
        return {}
    try:
        with open(file, "rb") as lines:
            for line in lines:
                written = _ID.match(line)
                if written and written[1].decode("utf-8", "replace") not in ids:
                    continue
                row = load_json(line)
                if isinstance(row, dict) and row.get("id") in ids and isinstance(row.get("image"), str):
                    path = file.parent / row["image"]
                    if path.is_file():
                        links[row["id"]] = quote(Path(os.path.relpath(path, run_dir)).as_posix())
    except (OSError, ValueError):
        return links
    return links
