"""Reports of a run: tables, charts, an analysis in words and an HTML page, from one file of scores.

`write_report` writes all of them; the other names are its parts. They read only the files of an evaluation, no model
and no data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.report.analysis import Analysis, analyse
    from captune.report.background import BackgroundReport
    from captune.report.chart import draw_chart, draw_heatmap
    from captune.report.columns import format_value, heading, order_metrics, shows_zero
    from captune.report.comparison import Comparison, compare_runs, matrices, most_different_lines, pair_tests
    from captune.report.files import atomic_write
    from captune.report.headline import comparison_headline
    from captune.report.learning_curve import TrainingLog, read_log, split_training_rows
    from captune.report.narrative import recommends_more_epochs, sentences
    from captune.report.page import LANGUAGES, build_page, style_sheet
    from captune.report.page_charts import nice_ticks
    from captune.report.rating import caption_hashes
    from captune.report.robustness_matrix import (
        MATRIX_FILE,
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
    from captune.report.settings import read_settings
    from captune.report.table import (
        cells,
        csv_table,
        daggers,
        latex_table,
        leak_reasons,
        markdown_table,
        notes,
        read_csv,
        row_marks,
        signatures,
    )
    from captune.report.thumbnails import thumbnail_path, thumbnail_sources, write_thumbnails
    from captune.report.write import COMPARISON_FILES, REPORT_FILES, write_comparison, write_page, write_report

__all__ = [
    "COMPARISON_FILES",
    "LANGUAGES",
    "MATRIX_FILE",
    "MATRIX_FILES",
    "REPORT_FILES",
    "Analysis",
    "BackgroundReport",
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
    "caption_hashes",
    "cells",
    "compare_runs",
    "comparison_headline",
    "csv_table",
    "daggers",
    "draw_chart",
    "draw_heatmap",
    "format_value",
    "heading",
    "latex_table",
    "leak_reasons",
    "markdown_table",
    "matrices",
    "matrix_csv",
    "matrix_markdown",
    "matrix_terminal",
    "matrix_to_json",
    "most_different_lines",
    "nice_ticks",
    "notes",
    "order_metrics",
    "pair_tests",
    "read_csv",
    "read_log",
    "read_scores",
    "read_settings",
    "recommends_more_epochs",
    "row_marks",
    "sentences",
    "shows_zero",
    "signatures",
    "split_training_rows",
    "style_sheet",
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
        "background": ["BackgroundReport"],
        "chart": ["draw_chart", "draw_heatmap"],
        "columns": ["format_value", "heading", "order_metrics", "shows_zero"],
        "comparison": ["Comparison", "compare_runs", "matrices", "most_different_lines", "pair_tests"],
        "files": ["atomic_write"],
        "robustness_matrix": [
            "MATRIX_FILE",
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
        "narrative": ["recommends_more_epochs", "sentences"],
        "page": ["LANGUAGES", "build_page", "style_sheet"],
        "page_charts": ["nice_ticks"],
        "rating": ["caption_hashes"],
        "scores_json": ["CheckpointScores", "RunScores", "read_scores", "write_scores"],
        "settings": ["read_settings"],
        "table": [
            "cells",
            "csv_table",
            "daggers",
            "latex_table",
            "leak_reasons",
            "markdown_table",
            "notes",
            "read_csv",
            "row_marks",
            "signatures",
        ],
        "thumbnails": ["thumbnail_path", "thumbnail_sources", "write_thumbnails"],
        "headline": ["comparison_headline"],
        "learning_curve": ["TrainingLog", "split_training_rows", "read_log"],
        "write": ["COMPARISON_FILES", "REPORT_FILES", "write_comparison", "write_page", "write_report"],
    },
)
