"""Write all files of a report into the folder of its run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from captune.report.analysis import Analysis, analyse
from captune.report.caption_statistics import RunCaptions, caption_statistics
from captune.report.chart import draw_chart
from captune.report.comparison import Comparison, comparison_markdown
from captune.report.files import atomic_write
from captune.report.learning_curve import TrainingLog, read_log
from captune.report.narrative import analysis_markdown
from captune.report.page import build_page
from captune.report.rating import rating_of
from captune.report.robustness_matrix import matrix_of
from captune.report.scores_json import RunScores, read_scores
from captune.report.table import csv_table, latex_table, markdown_table

__all__ = ["COMPARISON_FILES", "REPORT_FILES", "Writer", "write_comparison", "write_page", "write_report"]

REPORT_FILES: tuple[str, ...] = (
    "table.md",
    "table.csv",
    "table.tex",
    "analysis.md",
    "metrics.png",
    "metrics.svg",
    "metrics.pdf",
    "report.html",
)
"""Files of a report on one run."""
COMPARISON_FILES: tuple[str, ...] = ("table.md", "table.csv", "table.tex", "comparison.md", "report.html")
"""Files of a comparison of runs."""

Writer: TypeAlias = Callable[[Path, bytes | str], Path]
"""Writes one file atomically."""


def write_report(
    run_dir: str | Path,
    run: RunScores | None = None,
    *,
    intervals: bool = False,
    chart_formats: tuple[str, ...] = ("png", "svg"),
    language: str = "",
    source: str | Path | None = None,
    write: Writer = atomic_write,
) -> list[Path]:
    """Write table, chart, analysis and page; to be called after every evaluation.

    Args:
        run_dir: where `table.{md,csv,tex}`, `metrics.*`, `analysis.md` and `report.html` go.
        run: the scores; by default those in `run_dir/scores.json`.
        intervals: write confidence intervals into the Markdown and LaTeX tables.
        chart_formats: of "png", "svg" and "pdf".
        language: "en" or "zh", in which the page opens; by default the browser's.
        source: the run's folder, by default `run_dir`. The page shows its `thumbnails/`, the loss in its `log.jsonl`,
            the human ratings in its `rating.json` and the robustness in its `matrix.json`; all may be missing.
        write: writes each file.

    Returns:
        The files, in the order they were written; each complete under its name.

    Raises:
        InputError: `scores.json` is missing or invalid, or `rating.json` is invalid.
        MissingExtraError: a chart is requested and matplotlib is not installed.
        ToolError: a file cannot be written.
    """
    run_dir = Path(run_dir)
    source = None if source is None else Path(source)
    scores = read_scores(run_dir) if run is None else run
    captions = caption_statistics(scores)
    analysis = analyse(scores, captions)
    contents: dict[str, bytes | str] = {
        "table.md": markdown_table(scores, intervals=intervals),
        "table.csv": csv_table(scores),
        "table.tex": latex_table(scores, intervals=intervals),
        "analysis.md": analysis_markdown(scores, analysis),
    }
    contents |= {f"metrics.{name}": image for name, image in draw_chart(scores.scored, chart_formats).items()}
    contents["report.html"] = _page(source or run_dir, scores, language, captions, analysis)
    return [write(run_dir / name, content) for name, content in contents.items()]


def write_comparison(
    folder: str | Path,
    comparison: Comparison,
    pictures_of: str | Path | None = None,
    *,
    intervals: bool = False,
    language: str = "",
    write: Writer = atomic_write,
) -> list[Path]:
    """Write table, tests and page of several runs.

    Args:
        folder: where `table.{md,csv,tex}`, `comparison.md` and `report.html` go.
        comparison: the runs.
        pictures_of: a run directory whose `thumbnails/` hold the images; by default `folder`.
        intervals: write confidence intervals into the Markdown and LaTeX tables.
        language: "en" or "zh", in which the page opens; by default the browser's.
        write: writes each file.

    Returns:
        The files, in the order they were written; each complete under its name.

    Raises:
        ToolError: a file cannot be written.
    """
    folder = Path(folder)
    pictures_of = None if pictures_of is None else Path(pictures_of)
    table = comparison.table
    page = build_page(table, TrainingLog(), run_dir=pictures_of or folder, language=language, comparison=comparison)
    contents: dict[str, str] = {
        "table.md": markdown_table(table, intervals=intervals),
        "table.csv": csv_table(table),
        "table.tex": latex_table(table, intervals=intervals),
        "comparison.md": comparison_markdown(comparison),
        "report.html": page,
    }
    return [write(folder / name, content) for name, content in contents.items()]


def write_page(run_dir: str | Path, *, language: str = "") -> Path:
    """Write only the page, after a change of something other than the scores; see `write_report`."""
    run_dir = Path(run_dir)
    return atomic_write(run_dir / "report.html", _page(run_dir, read_scores(run_dir), language))


def _page(
    run_dir: Path,
    scores: RunScores,
    language: str,
    captions: RunCaptions | None = None,
    analysis: Analysis | None = None,
) -> str:
    return build_page(
        scores,
        read_log(run_dir / "log.jsonl"),
        run_dir=run_dir,
        language=language,
        rating=rating_of(run_dir, scores),
        matrix=matrix_of(run_dir, scores),
        captions=captions,
        analysis=analysis,
    )
