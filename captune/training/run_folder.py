"""The folder of a run: what lies where, and whether a run may write there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from captune.config import RunConfig, commented_yaml
from captune.data.atomic import atomic_file
from captune.data.manifest import manifest_hash
from captune.errors import ConfigError, InputError
from captune.evaluation import checkpoint_name
from captune.model.adapter import read_record
from captune.report import read_scores

__all__ = ["checkpoint_folder", "checkpoint_folders", "is_finished", "open_run_folder"]

HEADING = "The configuration of this run, with every default filled in."
PARTS = ("checkpoints", "captions", "log.jsonl", "scores.json", "config.yaml")


def checkpoint_folder(output: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies in a run."""
    return output / "checkpoints" / f"epoch-{epoch:03d}"


def checkpoint_folders(output: Path) -> list[Path]:
    """The checkpoints of a run in the order of training."""
    found = [path for path in (output / "checkpoints").glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("epoch-")))


def is_finished(config: RunConfig) -> bool:
    """Whether the run's folder already holds all that this configuration would make of the same data."""
    last = config.train.epochs - 1
    try:
        same = _own_config(config.output) == commented_yaml(config, HEADING)
        trained_on = read_record(checkpoint_folder(config.output, last)).manifest_hash
        scored = read_scores(config.output).checkpoints[-1].name
    except (InputError, OSError):
        return False
    return same and trained_on == manifest_hash(config.data.train) and scored == checkpoint_name(last)


def open_run_folder(config: RunConfig, *, overwrite: bool) -> None:
    """Make the run's folder and write the resolved configuration into it.

    Args:
        config: of the run.
        overwrite: remove another run that the folder holds.

    Raises:
        ConfigError: the folder holds another run, or is a file.
    """
    output = config.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output is {output}, which is a file; give the name of a folder.")
    other = _own_config(output)
    if other is not None and other != commented_yaml(config, HEADING) and not overwrite:
        raise ConfigError(
            f"{output} already holds a run with another configuration; give another one with output=..., or replace it "
            "with --overwrite."
        )
    output.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with atomic_file(output / "config.yaml", "w") as stream:
        stream.write(commented_yaml(config, HEADING))


def _own_config(output: Path) -> str | None:
    path = output / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else None
