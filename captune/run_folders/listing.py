"""Runs below a folder: model, data, progress, state, best score, size and date of each."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from captune.config import RunConfig, load_run_config
from captune.data import folder_in_use
from captune.errors import ConfigError, InputError
from captune.metrics import find_column
from captune.report import CheckpointScores, RunScores, read_scores
from captune.run_checkpoints import (
    RECORD,
    BeforeTraining,
    checkpoint_folder,
    checkpoint_folders,
    is_run,
    score_before_training,
    tensor_file,
)
from captune.run_folders.files import CONFIG, folder_size, last_event

__all__ = ["RunSummary", "best_row", "find_runs", "require_run", "summarize"]

State = Literal["running", "unfinished", "finished", "stopped early", "damaged"]
_INNER = (
    "captions",
    "checkpoints",
    "evaluations",
    "features",
    "cache",
    "rating",
    "resume",
    "tensorboard",
    "thumbnails",
)
"""Folders of a run that contain no other runs."""
_SKIPPED = ("node_modules", "__pycache__", "site-packages")


@dataclass(frozen=True)
class RunSummary:
    """A run in a list.

    Attributes:
        folder: of the run.
        state: "running" while a process writes there, "finished" with its last epoch scored, "stopped early" by
            `train.early_stop`.
        reason: what is damaged, or which command is running.
        model: name of the model.
        data: training manifest.
        epochs: number of epochs that are scored.
        total: number of epochs in the configuration.
        best: name of the best checkpoint; None without scores.
        metric: that selects it.
        score: of the best checkpoint.
        before: the row before training, where it is better than every epoch.
        leak: whether the scores are marked LEAK.
        size: bytes on disk.
        changed: time of the last change of its log, scores or configuration.
    """

    folder: Path
    state: State
    reason: str
    model: str
    data: str
    epochs: int
    total: int
    best: str | None
    metric: str | None
    score: float | None
    before: BeforeTraining | None
    leak: bool
    size: int
    changed: datetime

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON values."""
        before = None if self.before is None else self.before._asdict()
        return {
            **asdict(self),
            "before": before,
            "folder": str(self.folder),
            "changed": self.changed.isoformat(timespec="seconds"),
        }


def find_runs(root: Path) -> list[Path]:
    """The folders of all runs at or below a folder, sorted; links and hidden folders are not followed.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"There is no folder {root}; give a folder that contains runs.")
    runs = []
    for parent, folders, files in os.walk(root, followlinks=False):
        contains = (CONFIG in files or "checkpoints" in folders) and is_run(parent)
        if contains:
            runs.append(Path(parent))
        hidden = _INNER if contains else ()
        folders[:] = sorted(
            name for name in folders if not (name.startswith(".") or name in hidden or name in _SKIPPED)
        )
    return sorted(runs)


def require_run(folder: Path) -> Path:
    """The folder of a run.

    Raises:
        InputError: it is not one.
    """
    if not is_run(folder):
        what = "holds no configuration of a run" if folder.is_dir() else "is not a folder"
        raise InputError(f"{folder} {what}; give the folder of a run, as `captune runs` lists them.")
    return folder


def summarize(folder: Path) -> RunSummary:
    """Read the state of a run; what is damaged is reported in the summary."""
    config, scores, problem = _read(folder)
    epochs = {row.epoch for row in scores.checkpoints if row.epoch is not None} if scores is not None else set()
    best, metric = best_row(config, scores) if scores is not None else (None, None)
    problem = problem or _missing(folder, epochs)
    writer = folder_in_use(folder)
    state: State
    if writer is not None:
        state, problem = "running", writer
    elif problem:
        state = "damaged"
    else:
        state = "unfinished" if config is None else _progress(folder, config, epochs)
    return RunSummary(
        folder=folder,
        state=state,
        reason=problem,
        model="" if config is None else config.model.name,
        data="" if config is None else str(config.data.train),
        epochs=max(epochs, default=-1) + 1,
        total=0 if config is None else config.train.epochs,
        best=None if best is None else best.name,
        metric=metric if best is not None else None,
        score=None if best is None or metric is None else best.corpus[metric],
        before=score_before_training(folder) if best is not None else None,
        leak=best is not None and best.leak is not None,
        size=folder_size(folder),
        changed=_changed(folder),
    )


def _read(folder: Path) -> tuple[RunConfig | None, RunScores | None, str]:
    """Configuration and scores of a run, and what is wrong with them."""
    problem, config, scores = "", None, None
    try:
        config = load_run_config(folder / CONFIG)
    except ConfigError as error:
        problem = str(error)
    if (folder / "scores.json").exists():
        try:
            scores = read_scores(folder)
        except InputError as error:
            problem = problem or str(error)
    return config, scores, problem


def _missing(folder: Path, epochs: set[int]) -> str:
    """What is missing in a run whose files can be read; checkpoints that `train.keep` deleted are not."""
    for path in checkpoint_folders(folder):
        for file in (path / RECORD, tensor_file(path)):
            if not file.is_file():
                return f"{file} is missing."
    if epochs and not checkpoint_folder(folder, max(epochs)).is_dir():
        return f"The checkpoint of epoch{max(epochs)} is missing."
    return ""


def _progress(folder: Path, config: RunConfig, epochs: set[int]) -> State:
    if config.train.epochs - 1 in epochs:
        return "finished"
    return "stopped early" if epochs and _stopped_early(folder, max(epochs)) else "unfinished"


def _stopped_early(folder: Path, epoch: int) -> bool:
    """Whether the log of a run ends with an early stop at its last epoch."""
    last = last_event(folder / "log.jsonl", ("run", "early_stop"))
    return bool(last.get("event") == "early_stop" and last.get("epoch") == epoch)


def best_row(config: RunConfig | None, scores: RunScores) -> tuple[CheckpointScores | None, str | None]:
    """The epoch with the best score and the metric that selects it.

    The metric is `train.select`, by default CIDEr or the first one. Epochs that are marked LEAK are selected only if
    there are no others.

    Returns:
        The row and the metric; None for a run without scored epochs.
    """
    rows = [row for row in scores.checkpoints if row.epoch is not None]
    if not rows:
        return None, None
    selected = config.train.select if config is not None else None
    same = [name for name in scores.metrics if selected is not None and name.lower() == selected.lower()]
    metric = same[0] if same else "CIDEr" if "CIDEr" in scores.metrics else scores.metrics[0]
    column = find_column(metric)
    sign = 1 if column is None or column.higher_is_better else -1
    scored = [row for row in rows if math.isfinite(row.corpus.get(metric, math.nan))]
    clean = [row for row in scored if row.leak is None]
    return max(clean or scored, key=lambda row: sign * row.corpus[metric], default=None), metric


def _changed(folder: Path) -> datetime:
    return datetime.fromtimestamp(max(_times(folder), default=0.0))


def _times(folder: Path) -> Iterator[float]:
    for name in ("log.jsonl", "scores.json", CONFIG):
        try:
            yield (folder / name).stat().st_mtime
        except OSError:
            continue
