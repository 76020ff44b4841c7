"""Blind human rating of captions: a study, its pages for raters, and what it found.

`material` reads systems, `design` and `trials` decide what is asked, `create` and `store` keep it in one folder,
`server` and `pages` ask, `results` counts and `export` writes.
"""

from __future__ import annotations

__all__: list[str] = []
