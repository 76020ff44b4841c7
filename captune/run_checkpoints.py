"""Checkpoints of a run: their folders, and the selection of one by its name or by its score.

    runs/photos                             the best checkpoint of a run
    runs/photos@epoch1                      that of an epoch; also @1, @epoch-001, @best and @last
    runs/photos/checkpoints/epoch-001       the same folder

Needs no torch, so that a command refuses a wrong name before its heavy imports.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from captune.errors import WeightsError
from captune.parsing import load_json

__all__ = [
    "BEST",
    "RUN_CONFIG",
    "SelectedCheckpoint",
    "checkpoint_folder",
    "checkpoint_folders",
    "is_run",
    "run_of",
    "select_checkpoint",
    "selected_checkpoint",
]

RUN_CONFIG = "config.yaml"
BEST = "best"
"""Name of the link to the best checkpoint."""
_LAST = "last"
_MODEL_FILES = ("config.json", "adapter_config.json", "checkpoint.json")
"""A folder with one of these is a model, adapter or checkpoint, also next to the config.yaml of another trainer."""
_METRIC = "CIDEr"
"""Decides in runs without a link to the best checkpoint."""


@dataclass(frozen=True)
class SelectedCheckpoint:
    """A checkpoint of a run.

    Attributes:
        folder: `checkpoints/epoch-NNN` of the run.
        reason: why this one, for a message: "the best of 5 by CIDEr (0.912)".
    """

    folder: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.folder}, {self.reason}"


def checkpoint_folder(output: Path, epoch: int) -> Path:
    """Where the checkpoint of an epoch is saved in a run."""
    return output / "checkpoints" / f"epoch-{epoch:03d}"


def checkpoint_folders(output: Path) -> list[Path]:
    """The checkpoints of a run in the order of training."""
    folders = [path for path in (output / "checkpoints").glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("epoch-")))


def is_run(folder: str | Path) -> bool:
    """Whether a folder is that of a run, and not of a model, an adapter or an evaluation."""
    path = Path(folder).expanduser()
    has_run = (path / RUN_CONFIG).is_file() or bool(checkpoint_folders(path))
    return has_run and not any((path / name).is_file() for name in _MODEL_FILES)


def run_of(name: str | Path) -> tuple[Path, str | None] | None:
    """The folder of a run and the name of a checkpoint in `RUN` or `RUN@CHECKPOINT`; None if it names no run."""
    if is_run(name):
        return Path(name).expanduser(), None
    run, at, checkpoint = str(name).rpartition("@")
    return (Path(run).expanduser(), checkpoint) if at and run and is_run(run) else None


def selected_checkpoint(name: str | Path) -> SelectedCheckpoint | None:
    """The checkpoint that `RUN` or `RUN@CHECKPOINT` names; None if it is not the name of a run.

    Raises:
        WeightsError: the run has no such checkpoint.
    """
    named = run_of(name)
    return None if named is None else select_checkpoint(*named)


def select_checkpoint(run: Path, checkpoint: str | int | None = None) -> SelectedCheckpoint:
    """Select a checkpoint of a run.

    Args:
        run: its folder.
        checkpoint: number of an epoch, its name (`epoch1`, `epoch-001`), `best` or `last`; None is the best.

    Raises:
        WeightsError: the run has no such checkpoint.
    """
    folders = {int(folder.name.removeprefix("epoch-")): folder for folder in checkpoint_folders(run)}
    if not folders:
        raise WeightsError(f"{run} is a run without checkpoints; train it, or give a model.")
    name = BEST if checkpoint is None else str(checkpoint)
    if name == BEST:
        return _best(run, folders)
    if name == _LAST:
        return SelectedCheckpoint(folders[max(folders)], "the last one")
    number = re.fullmatch(r"(?:epoch-?)?(\d+)", name)
    if number is None or int(number.group(1)) not in folders:
        saved = ", ".join(f"epoch{epoch}" for epoch in folders)
        raise WeightsError(f"{run} has no checkpoint {name}; it has {saved}, best and last.")
    return SelectedCheckpoint(folders[int(number.group(1))], "as named")


def _best(run: Path, folders: dict[int, Path]) -> SelectedCheckpoint:
    """The checkpoint that the link names; without a link, the best row of the scores, or the last checkpoint."""
    count = f"{len(folders)} checkpoint" + "s" * (len(folders) > 1)
    scores = _scores(run)
    scored = {epoch: scores[epoch] for epoch in folders if epoch in scores}
    try:
        linked = run / "checkpoints" / os.path.basename(os.readlink(run / "checkpoints" / BEST))
    except OSError:
        linked = None
    if linked is not None and linked in folders.values():
        return SelectedCheckpoint(linked, f"the best of {count}")
    if not scored:
        return SelectedCheckpoint(folders[max(folders)], f"the last of {count}, which have no scores")
    best = max(scored, key=lambda epoch: (scored[epoch], -epoch))
    return SelectedCheckpoint(folders[best], f"the best of {count} by {_METRIC} ({scored[best]:.3f})")


def _scores(run: Path) -> dict[int, float]:
    """The scores of the epochs; empty if they cannot be read."""
    try:
        rows = load_json((run / "scores.json").read_text(encoding="utf-8"))["checkpoints"]
        return {row["epoch"]: float(row["corpus"][_METRIC]) for row in rows if row.get("epoch") is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
