"""Blind human rating of captions: a study, its pages for raters, and its results.

`study_items` reads systems, `study_design` draws images and tasks, `create` and `store` keep the study in one folder,
`server` is the web application, `judgements`, `estimates`, `study_report` and `export` make the results.
"""

from __future__ import annotations

__all__: list[str] = []
