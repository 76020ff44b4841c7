"""What came out of a run: table, chart, analysis in words and a page to look through, from one file of scores.

`write_report` does everything; the other names are its parts. Only what an evaluation wrote is read, no model
and no data set is touched, and nothing here is estimated by eye.
"""

from __future__ import annotations

from captune.report.analysis import Analysis, analyse
from captune.report.chart import draw_chart
from captune.report.comparison import Comparison, compare_runs
from captune.report.narrative import sentences
from captune.report.page import LANGUAGES, build_page
from captune.report.schema import CheckpointScores, RunScores, read_scores, write_scores
from captune.report.table import csv_table, latex_table, markdown_table, read_csv
from captune.report.thumbnails import write_thumbnails
from captune.report.training_log import TrainingLog, read_log
from captune.report.write import write_comparison, write_page, write_report

__all__ = [
    "LANGUAGES",
    "Analysis",
    "CheckpointScores",
    "Comparison",
    "RunScores",
    "TrainingLog",
    "analyse",
    "build_page",
    "compare_runs",
    "csv_table",
    "draw_chart",
    "latex_table",
    "markdown_table",
    "read_csv",
    "read_log",
    "read_scores",
    "sentences",
    "write_comparison",
    "write_page",
    "write_report",
    "write_scores",
    "write_thumbnails",
]
