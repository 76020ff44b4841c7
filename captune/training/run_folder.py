"""The folder of a run: what lies where, and whether a run may begin, go on or rest there."""

from __future__ import annotations

import re
import shutil
from enum import Enum
from pathlib import Path

from captune.config import RunConfig, commented_yaml, load_config
from captune.data.atomic import atomic_file
from captune.data.manifest import manifest_hash
from captune.errors import ConfigError, InputError
from captune.evaluation import checkpoint_name
from captune.model.adapter import read_record
from captune.report import read_scores
from captune.training.state import FOLDER as RESUME
from captune.training.state import newest_position

__all__ = ["RunStatus", "checkpoint_folder", "checkpoint_folders", "open_run_folder", "run_status"]

HEADING = "The configuration of this run, with every default filled in."
PARTS = ("checkpoints", "captions", RESUME, "log.jsonl", "scores.json", "rating.json", "config.yaml")


class RunStatus(Enum):
    """What the output folder of a configuration holds."""

    EMPTY = "nothing of a run that could go on"
    UNFINISHED = "this very run, saved somewhere on its way"
    FINISHED = "this very run, with its last epoch scored"
    OTHER = "a run with another configuration or on other data"


def checkpoint_folder(output: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch lies in a run."""
    return output / "checkpoints" / f"epoch-{epoch:03d}"


def checkpoint_folders(output: Path) -> list[Path]:
    """The checkpoints of a run in the order of training."""
    found = [path for path in (output / "checkpoints").glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("epoch-")))


def run_status(config: RunConfig) -> RunStatus:
    """What the run's folder holds, seen from this configuration and its training data.

    Raises:
        ConfigError: the output is a file.
        DataError: the training manifest cannot be read.
    """
    output = config.output
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output is {output}, which is a file; give the name of a folder.")
    written = output / "config.yaml"
    if not written.is_file():
        return RunStatus.EMPTY
    if not _is_of(written, config):
        return RunStatus.OTHER
    data = manifest_hash(config.data.train)
    last = config.train.epochs - 1
    try:
        rows = [row.name for row in read_scores(output).checkpoints]
    except InputError:
        return RunStatus.EMPTY
    if rows[-1] == checkpoint_name(last):
        try:
            trained_on = read_record(checkpoint_folder(output, last)).manifest_hash
        except InputError:
            return RunStatus.EMPTY
        return RunStatus.FINISHED if trained_on == data else RunStatus.OTHER
    position = newest_position(output)
    if position is None:
        return RunStatus.EMPTY
    return RunStatus.UNFINISHED if position.manifest_hash == data else RunStatus.OTHER


def open_run_folder(config: RunConfig, status: RunStatus, *, overwrite: bool) -> None:
    """Make the run's folder ready for a new run.

    Args:
        config: of the run; written into the folder with every default filled in.
        status: what the folder holds.
        overwrite: remove another run that the folder holds.

    Raises:
        ConfigError: the folder holds another run.
    """
    output = config.output
    if status is RunStatus.OTHER and not overwrite:
        raise ConfigError(
            f"{output} already holds a run with another configuration or on other data; give another folder with "
            "output=..., or replace it with --overwrite."
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


def _is_of(written: Path, config: RunConfig) -> bool:
    """Whether a run was begun with this configuration.

    By what it says, not by its text: a newer captune explains a field in other words, and has fields that an older one
    had not written, which then have their defaults.
    """
    try:
        return load_config(written) == config
    except ConfigError:
        return False
