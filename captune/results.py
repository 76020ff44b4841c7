"""What `tune` and `evaluate` return: the scores in the folder that they wrote, and what is next to them."""

from __future__ import annotations

import base64
import math
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captune.common import html_table, text_table
from captune.errors import InputError, MissingExtraError
from captune.report import CheckpointScores, RunScores, cells, heading, read_scores, signatures
from captune.run_checkpoints import score_before_training

if TYPE_CHECKING:
    from pandas import DataFrame

    from captune.captioner import Captioner

__all__ = ["EvaluationResult", "TuningResult"]


class EvaluationResult:
    """The scores of an evaluation; a notebook displays table and chart.

    Args:
        folder: of the evaluation, with its `scores.json`.

    Attributes:
        folder: captions, scores, table, chart and page.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def scores(self) -> RunScores:
        """Everything that was measured, with captions, intervals and tests."""
        return read_scores(self.folder)

    @property
    def rows(self) -> tuple[CheckpointScores, ...]:
        """The rows of the table: models, or the pretrained model and every epoch."""
        return self.scores.checkpoints

    def __getitem__(self, name: str) -> CheckpointScores:
        """The row of a name, such as "pretrained" or "epoch1".

        Raises:
            KeyError: there is no such row.
        """
        row = next((row for row in self.rows if row.name == name), None)
        if row is None:
            raise KeyError(f"no row '{name}'; the rows are {', '.join(row.name for row in self.rows)}")
        return row

    @property
    def best(self) -> CheckpointScores:
        """The row with the highest CIDEr, or the highest first metric where there is no CIDEr."""
        return max(self.rows, key=self._decisive)

    @property
    def report(self) -> Path:
        """The page with every image and every caption."""
        return self.folder / "report.html"

    @property
    def chart(self) -> Path:
        """The chart of the scores, a PNG."""
        return self.folder / "metrics.png"

    def to_dataframe(self) -> DataFrame:
        """The scores as a pandas DataFrame.

        Returns:
            A row for each model or checkpoint, a column for each metric; the index has the names.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"{type(self).__name__}.to_dataframe", "notebook") from error
        index = pandas.Index([row.name for row in self.rows], name="checkpoint")
        return pandas.DataFrame([dict(row.corpus) for row in self.rows], index=index, columns=list(self.scores.metrics))

    def __repr__(self) -> str:
        header, rows, _, notes = self._table()
        return "\n".join([text_table(header, rows), *notes])

    def _repr_html_(self) -> str:
        header, rows, best, notes = self._table()
        chart = ""
        if len(rows) > 1 and self.chart.is_file():
            data = base64.b64encode(self.chart.read_bytes()).decode()
            chart = f'<img src="data:image/png;base64,{data}" alt="Chart of the scores" style="max-width:100%">'
        return html_table(header, rows, best=best, notes=notes) + chart

    def _table(self) -> tuple[list[str], list[list[str]], list[tuple[int, int]], list[str]]:
        """Header, rows, cells in bold, and notes."""
        scores = self.scores
        rows, best = [], []
        for index, (row, line) in enumerate(zip(self.rows, cells(scores), strict=True)):
            rows.append(
                [
                    row.name + (" LEAK" if row.leak else "") + (" not scored" if row.error else ""),
                    *(cell.value for cell in line),
                ]
            )
            best += [(index, column) for column, cell in enumerate(line, 1) if cell.best]
        notes = [f"{label}: {text}" if text else f"{label}." for label, text in signatures(scores)]
        return ["", *map(heading, scores.metrics)], rows, best, [*notes, f"Page with every image: {self.report}"]

    def _decisive(self, row: CheckpointScores) -> float:
        metric = "CIDEr" if "CIDEr" in self.scores.metrics else self.scores.metrics[0]
        value = row.corpus.get(metric, math.nan)
        return -math.inf if math.isnan(value) else value


class TuningResult(EvaluationResult):
    """A finished run: its scores before training and after each epoch, and its checkpoints.

    Args:
        folder: of the run.
    """

    @property
    def best(self) -> CheckpointScores:
        """The best epoch: the one that `train.select` chose, or the one with the highest CIDEr."""
        selected = self.folder / "checkpoints" / "best"
        epochs = [row for row in self.rows if row.epoch is not None]
        if selected.exists():
            name = selected.resolve().name
            return next((row for row in epochs if _folder_name(row) == name), max(epochs, key=self._decisive))
        return max(epochs, key=self._decisive)

    def _table(self) -> tuple[list[str], list[list[str]], list[tuple[int, int]], list[str]]:
        header, rows, best, notes = super()._table()
        before = score_before_training(self.folder)
        if before is not None:
            notes = [f"No epoch is better than {before.name} by {before.metric} ({before.score:.4f}).", *notes]
        return header, rows, best, notes

    @property
    def best_checkpoint(self) -> Path:
        """Folder of the best epoch's checkpoint."""
        return self.checkpoint(self.best.name)

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of all checkpoints that are kept, in the order of training."""
        folders = (path for path in (self.folder / "checkpoints").glob("epoch-*") if path.is_dir())
        return sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]))

    def checkpoint(self, name: str) -> Path:
        """Folder of a checkpoint.

        Args:
            name: of its row, such as "epoch1".

        Raises:
            InputError: the row has no checkpoint, or it was removed.
        """
        row = self[name]
        folder = self.folder / "checkpoints" / _folder_name(row)
        if row.epoch is None or not folder.is_dir():
            kept = ", ".join(f"epoch{int(path.name.rpartition('-')[2])}" for path in self.checkpoints)
            raise InputError(
                f"There is no checkpoint of {name} in {self.folder}; those of {kept or 'no epoch'} are kept."
            )
        return folder

    def captioner(self, name: str | None = None, **options: Any) -> Captioner:
        """Load a checkpoint as a captioner.

        Args:
            name: of its row, such as "epoch1"; the best epoch by default.
            **options: of `Captioner.from_pretrained`.

        Raises:
            InputError: there is no such checkpoint, or it cannot be loaded.
        """
        from captune.captioner import Captioner

        return Captioner.from_pretrained(self.best_checkpoint if name is None else self.checkpoint(name), **options)


def _folder_name(row: CheckpointScores) -> str:
    return "" if row.epoch is None else f"epoch-{row.epoch:03d}"
