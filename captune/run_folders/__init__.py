"""Folders of runs: their names and states, comparison and deletion, and the caches that they share.

Needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.run_folders.caches import Cache, empty_caches, find_caches, record_user
    from captune.run_folders.deletion import Deletion, delete_run, plan_deletion
    from captune.run_folders.files import CONFIG, IGNORED, RUN_FILES, UNTOUCHED, first_event, last_event
    from captune.run_folders.listing import RunSummary, best_row, find_runs, require_run, summarize
    from captune.run_folders.settings import (
        ADJUSTABLE,
        OVERWRITE,
        decisive_changes,
        other_configuration,
    )

__all__ = [
    "ADJUSTABLE",
    "CONFIG",
    "IGNORED",
    "OVERWRITE",
    "RUN_FILES",
    "UNTOUCHED",
    "Cache",
    "Deletion",
    "RunSummary",
    "best_row",
    "decisive_changes",
    "delete_run",
    "empty_caches",
    "find_caches",
    "find_runs",
    "first_event",
    "last_event",
    "other_configuration",
    "plan_deletion",
    "record_user",
    "require_run",
    "summarize",
]

__getattr__ = lazy_names(
    __name__,
    {
        "caches": ["Cache", "empty_caches", "find_caches", "record_user"],
        "deletion": ["Deletion", "delete_run", "plan_deletion"],
        "files": ["CONFIG", "IGNORED", "RUN_FILES", "UNTOUCHED", "first_event", "last_event"],
        "listing": ["RunSummary", "best_row", "find_runs", "require_run", "summarize"],
        "settings": [
            "ADJUSTABLE",
            "OVERWRITE",
            "decisive_changes",
            "other_configuration",
        ],
    },
)
