"""Pages of an application: templates, style sheets, scripts and their words in English and Chinese."""

from __future__ import annotations

import json
from functools import cached_property
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

__all__ = ["LANGUAGES", "PageFiles", "preferred_language"]

LANGUAGES = {"en": "English", "zh": "中文"}


class PageFiles:
    """The folder `page_files` of a package: `NAME.html`, static files and `words.json`.

    Args:
        package: its name, such as "captune.apps.rating".
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self._texts: dict[str, str] = {}

    def read(self, name: str) -> str:
        """The text of a file."""
        if name not in self._texts:
            self._texts[name] = (files(self._package) / "page_files" / name).read_text(encoding="utf-8")
        return self._texts[name]

    @cached_property
    def words(self) -> dict[str, dict[str, str]]:
        """The words of the pages by language and name."""
        words: dict[str, dict[str, str]] = json.loads(self.read("words.json"))
        return words

    @cached_property
    def _environment(self) -> Environment:
        return Environment(
            loader=FunctionLoader(self.read),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )

    def render(self, name: str, language: str, **values: Any) -> str:
        """A page.

        Args:
            name: of its template, without `.html`.
            language: "en" or "zh".
            values: for the template; all text is escaped.
        """
        template = self._environment.get_template(f"{name}.html")
        return template.render(words=self.words[language], language=language, languages=LANGUAGES, **values)


def preferred_language(accepted: str, selected: str | None) -> str:
    """The language of a visitor.

    Args:
        accepted: the header Accept-Language.
        selected: earlier selection of the visitor, from a cookie or the address.
    """
    if selected in LANGUAGES:
        return selected
    for part in accepted.split(","):
        language = part.strip()[:2].lower()
        if language in LANGUAGES:
            return language
    return "en"
