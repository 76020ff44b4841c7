"""The best epoch of a run: the link `checkpoints/best`, early stopping, and which checkpoints are kept.

All three are functions of the run's scores, so a resumed run decides as an uninterrupted one. Scores that are marked
LEAK select nothing.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from captune.common import did_you_mean
from captune.config import TrainConfig
from captune.data import atomic_link, remove_folder
from captune.errors import ConfigError, InputError
from captune.evaluation import START
from captune.metrics import METRICS, find_column
from captune.report import CheckpointScores
from captune.run_checkpoints import BEST, CheckpointRecord, checkpoint_folder, checkpoint_folders, read_record

if TYPE_CHECKING:
    from captune.evaluation import Evaluation

__all__ = ["EarlyStop", "best_row", "link_best", "remove_others", "selected_metric"]

logger = logging.getLogger(__name__)

_LEVEL = 0.05
"""A rise is significant where the p-value of the paired bootstrap is below this."""


def selected_metric(config: TrainConfig, metrics: Sequence[str]) -> str:
    """The score that selects the best epoch.

    Args:
        config: of the training.
        metrics: of the protocol.

    Raises:
        ConfigError: `train.select` is no score of these metrics.
    """
    names = [column.name for metric in metrics for column in METRICS[metric].columns]
    if config.select is None:
        return "CIDEr" if "CIDEr" in names else names[0]
    same = [name for name in names if name.lower() == config.select.lower()]
    if not same:
        hint = did_you_mean(config.select, names, f"choose out of {', '.join(names)}.", cutoff=0.5)
        raise ConfigError(f"train.select is '{config.select}', which is no score of this run's protocol; {hint}")
    return same[0]


def best_row(rows: Sequence[CheckpointScores], metric: str, output: Path) -> CheckpointScores | None:
    """The epoch with the best score, of those with a checkpoint; the earliest of equal ones.

    Args:
        rows: of the run.
        metric: the score.
        output: folder of the run.

    Returns:
        Its row; None if no epoch is scored, or the scores are marked LEAK.
    """
    sign = _sign(metric)
    candidates = [
        row
        for row in rows
        if row.epoch is not None
        and row.leak is None
        and math.isfinite(row.corpus.get(metric, math.nan))
        and (checkpoint_folder(output, row.epoch) / "checkpoint.json").is_file()
    ]
    return max(candidates, key=lambda row: sign * row.corpus[metric], default=None)


def _sign(metric: str) -> int:
    column = find_column(metric)
    return 1 if column is None or column.higher_is_better else -1


def link_best(output: Path, best: CheckpointScores) -> None:
    """Let `checkpoints/best` point to the best checkpoint; a file system without links is warned about.

    Args:
        output: folder of the run.
        best: row of the best epoch.
    """
    assert best.epoch is not None
    target, link = checkpoint_folder(output, best.epoch).name, output / "checkpoints" / BEST
    if link.is_symlink() and os.readlink(link) == target:
        return
    if link.is_dir() and not link.is_symlink() and not _is_copy(link):
        logger.warning(
            "%s is a folder that captune did not write, so no link there names the best epoch, %s.", link, target
        )
        return
    try:
        if link.is_dir() and not link.is_symlink():
            # The run was copied by a program that follows links.
            shutil.rmtree(link)
        atomic_link(link, target)
    except OSError as error:
        logger.warning("%s cannot be written (%s); the best epoch is %s.", link, error.strerror, target)


def _is_copy(folder: Path) -> bool:
    """Whether a folder is a copy of one of the checkpoints next to it."""
    try:
        record = (folder / "checkpoint.json").read_bytes()
        return any((path / "checkpoint.json").read_bytes() == record for path in folder.parent.glob("epoch-*"))
    except OSError:
        return False


def remove_others(
    output: Path,
    keep: int | None,
    rows: Sequence[CheckpointScores],
    best: CheckpointScores | None,
    run: CheckpointRecord,
) -> list[Path]:
    """Delete the checkpoints of a run except for the newest ones and the best one.

    Args:
        output: folder of the run.
        keep: number of newest checkpoints; None deletes nothing.
        rows: of the run; a checkpoint that is not scored yet is kept.
        best: row of the best epoch.
        run: record of the run's checkpoints; one of another run or data is kept.

    Returns:
        The folders that were deleted.
    """
    if keep is None:
        return []
    scored = {row.epoch for row in rows if row.epoch is not None}
    removed = []
    for folder in checkpoint_folders(output)[:-keep]:
        try:
            record = read_record(folder)
        except InputError:
            continue
        epoch = record.epoch
        is_ours = folder == checkpoint_folder(output, epoch) and not folder.is_symlink()
        same_run = (record.manifest_hash, record.frozen, record.seed) == (run.manifest_hash, run.frozen, run.seed)
        if is_ours and same_run and epoch in scored and (best is None or epoch != best.epoch):
            remove_folder(folder)
            removed.append(folder)
    return removed


class EarlyStop:
    """Counts the newest epochs without a significant rise of a metric.

    The first epoch, or the row of the checkpoint that the run starts from, sets the mark; a later epoch that differs
    from it significantly, in the direction of improvement, sets a new mark. The test is the paired bootstrap over
    images.

    Args:
        epochs: after how many such epochs the run stops; None is never.
        metric: the score.
        evaluation: with the scores of all epochs.
    """

    def __init__(self, epochs: int | None, metric: str, evaluation: Evaluation) -> None:
        self._epochs, self._metric, self._evaluation = epochs, metric, evaluation
        self._mark: CheckpointScores | None = None
        self._seen: set[int | None] = set()
        self._without = 0

    def reason(self) -> str | None:
        """Why the run stops now, or None."""
        if self._epochs is None:
            return None
        for row in self._evaluation.rows:
            counts = row.epoch is not None or row.name == START
            if not counts or row.leak is not None or row.epoch in self._seen:
                continue
            self._seen.add(row.epoch)
            if self._mark is None or self._rises(row, self._mark):
                self._mark, self._without = row, 0
            else:
                self._without += 1
        if self._mark is None or self._without < self._epochs:
            return None
        times = f"{self._without} epochs" if self._without > 1 else "1 epoch"
        return f"{self._metric} did not rise significantly over {self._mark.name} in {times} (train.early_stop)"

    def _rises(self, row: CheckpointScores, mark: CheckpointScores) -> bool:
        test = self._evaluation.compare(row.epoch, mark.epoch)[self._metric]
        better = _sign(self._metric) * test.difference > 0
        return better and test.is_tested and test.p_value < _LEVEL
