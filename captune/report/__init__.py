"""What came out of a run: table, chart, analysis in words and a page to look through, from one file of scores.

`write_report` does everything; the other names are its parts. Only what an evaluation wrote is read, no model
and no data set is touched, and nothing here is estimated by eye.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.report.analysis import Analysis, analyse
    from captune.report.chart import draw_chart, draw_heatmap
    from captune.report.columns import format_value, order_metrics, shows_zero
    from captune.report.comparison import Comparison, compare_runs, matrices, telling_lines
    from captune.report.files import atomic_write
    from captune.report.learning_curve import TrainingLog, course_of, read_log
    from captune.report.narrative import sentences
    from captune.report.page import LANGUAGES, build_page
    from captune.report.rating import captions_hashes
    from captune.report.robustness_matrix import (
        FILE,
        MATRIX_FILES,
        Cell,
        Column,
        Difference,
        Matrix,
        Row,
        matrix_csv,
        matrix_markdown,
        matrix_terminal,
        matrix_to_json,
    )
    from captune.report.scores_json import CheckpointScores, RunScores, read_scores, write_scores
    from captune.report.table import (
        cells,
        csv_table,
        daggers,
        latex_table,
        leak_reasons,
        markdown_table,
        notes,
        read_csv,
        signatures,
    )
    from captune.report.thumbnails import thumbnail_path, thumbnail_sources, write_thumbnails
    from captune.report.write import COMPARISON_FILES, REPORT_FILES, write_comparison, write_page, write_report

__all__ = [
    "COMPARISON_FILES",
    "FILE",
    "LANGUAGES",
    "MATRIX_FILES",
    "REPORT_FILES",
    "Analysis",
    "Cell",
    "CheckpointScores",
    "Column",
    "Comparison",
    "Difference",
    "Matrix",
    "Row",
    "RunScores",
    "TrainingLog",
    "analyse",
    "atomic_write",
    "build_page",
    "captions_hashes",
    "cells",
    "compare_runs",
    "course_of",
    "csv_table",
    "daggers",
    "draw_chart",
    "draw_heatmap",
    "format_value",
    "latex_table",
    "leak_reasons",
    "markdown_table",
    "matrices",
    "matrix_csv",
    "matrix_markdown",
    "matrix_terminal",
    "matrix_to_json",
    "notes",
    "order_metrics",
    "read_csv",
    "read_log",
    "read_scores",
    "sentences",
    "shows_zero",
    "signatures",
    "telling_lines",
    "thumbnail_path",
    "thumbnail_sources",
    "write_comparison",
    "write_page",
    "write_report",
    "write_scores",
    "write_thumbnails",
]

__getattr__ = lazy_names(
    __name__,
    {
        "analysis": ["Analysis", "analyse"],
        "chart": ["draw_chart", "draw_heatmap"],
        "columns": ["format_value", "order_metrics", "shows_zero"],
        "comparison": ["Comparison", "compare_runs", "matrices", "telling_lines"],
        "files": ["atomic_write"],
        "robustness_matrix": [
            "FILE",
            "MATRIX_FILES",
            "Cell",
            "Column",
            "Difference",
            "Matrix",
            "Row",
            "matrix_csv",
            "matrix_markdown",
            "matrix_terminal",
            "matrix_to_json",
        ],
        "narrative": ["sentences"],
        "page": ["LANGUAGES", "build_page"],
        "rating": ["captions_hashes"],
        "scores_json": ["CheckpointScores", "RunScores", "read_scores", "write_scores"],
        "table": [
            "cells",
            "csv_table",
            "daggers",
            "latex_table",
            "leak_reasons",
            "markdown_table",
            "notes",
            "read_csv",
            "signatures",
        ],
        "thumbnails": ["thumbnail_path", "thumbnail_sources", "write_thumbnails"],
        "learning_curve": ["TrainingLog", "course_of", "read_log"],
        "write": ["COMPARISON_FILES", "REPORT_FILES", "write_comparison", "write_page", "write_report"],
    },
)
