"""The pages of a study as HTML: Jinja templates with every value escaped, in English and Chinese."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

__all__ = ["LANGUAGES", "STATIC", "page", "preferred_language", "static_file"]

LANGUAGES = {"en": "English", "zh": "中文"}

STATIC = {"rating.css": "text/css; charset=utf-8", "rating.js": "text/javascript; charset=utf-8"}
"""Files that every page may load, with their types."""


def page(name: str, language: str, **values: Any) -> str:
    """A page.

    Args:
        name: of its template, without `.html`.
        language: "en" or "zh".
        values: what the template shows; all text in it is escaped.
    """
    words = _words()[language]
    template = _environment().get_template(f"{name}.html")
    return template.render(words=words, language=language, languages=LANGUAGES, **values)


def static_file(name: str) -> bytes:
    """A style sheet or script.

    Raises:
        KeyError: there is none of that name.
    """
    if name not in STATIC:
        raise KeyError(name)
    return _read(name).encode()


def preferred_language(accepted: str, chosen: str | None) -> str:
    """The language of a visitor.

    Args:
        accepted: the header Accept-Language.
        chosen: what the visitor chose before, from a cookie or the address.
    """
    if chosen in LANGUAGES:
        return chosen
    for part in accepted.split(","):
        language = part.strip()[:2].lower()
        if language in LANGUAGES:
            return language
    return "en"


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


@cache
def _words() -> dict[str, dict[str, str]]:
    words: dict[str, dict[str, str]] = json.loads(_read("words.json"))
    return words


@cache
def _read(name: str) -> str:
    return (files("captune.apps.rating") / "page_files" / name).read_text(encoding="utf-8")
