"""Blind human rating of captions: a study, its pages for raters, and its results.

`study_items` reads systems, `study_design` draws images and tasks, `create` and `store` keep the study in one folder,
`server` is the web application, `judgements`, `estimates`, `study_results` and `export` make the results.
"""

from __future__ import annotations

from captune.apps.rating.create import add_raters, create_study, picture_path, rated_rows
from captune.apps.rating.export import check_results, results_json, write_results
from captune.apps.rating.server import rating_application
from captune.apps.rating.store import DATABASE, Store
from captune.apps.rating.study_design import StudyOptions
from captune.apps.rating.study_items import StudyItems, choose_systems, read_study_items, with_human
from captune.apps.rating.study_results import Results, compute_results, judged_captions

__all__ = [
    "DATABASE",
    "Results",
    "Store",
    "StudyItems",
    "StudyOptions",
    "add_raters",
    "check_results",
    "choose_systems",
    "compute_results",
    "create_study",
    "judged_captions",
    "picture_path",
    "rated_rows",
    "rating_application",
    "read_study_items",
    "results_json",
    "with_human",
    "write_results",
]
