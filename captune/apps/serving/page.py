"""The page: one HTML file with a style sheet and a script of its own, nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from importlib.resources import files

__all__ = ["PAGE_FILES", "index", "page_file"]

PAGE_FILES = {"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8"}
"""Files that the page loads, with their types."""


def index(names: Sequence[str], instructions: Mapping[str, str], examples: int) -> str:
    """The HTML of the page.

    Args:
        names: of the checkpoints, in the order of training.
        instructions: what each was tuned to be asked.
        examples: how many example images there are.
    """
    facts = {"models": list(names), "instructions": dict(instructions), "examples": examples}
    # In an attribute and not in a script, which the content security policy forbids.
    return page_file("index.html").replace("{{facts}}", escape(json.dumps(facts), quote=True))


@cache
def page_file(name: str) -> str:
    """A file of the page."""
    return (files("captune.apps.serving") / "page_files" / name).read_text(encoding="utf-8")
