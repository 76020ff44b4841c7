"""The text that is written for a caption: a prefix, a trigger word, a template with fields, a suffix.

    {caption}    what the model wrote
    {trigger}    the word of --trigger
    {stem}       name of the image's file without its ending; for archives the end of the id
    {folder}     name of the folder that contains the image; for archives the folder in the id
    {existing}   the text that is stored next to the image, without white space around it

An empty {existing} is dropped together with the separator after it (", ", "; " or white space). `{{` and `}}` are
braces.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Final

from captune.bulk.shards import Entry, Item
from captune.common import did_you_mean
from captune.data import is_image_name, read_text_file, text_path
from captune.errors import ConfigError, DataError

__all__ = ["PLAIN", "CaptionTemplate", "existing_text", "parse_template"]

FIELDS: Final = ("caption", "trigger", "stem", "folder", "existing")
PLAIN: Final = "{caption}"
"""The template of a caption alone."""

_SEPARATOR = re.compile(r"^[\s,;|]+")


@dataclass(frozen=True)
class CaptionTemplate:
    """How captions become texts.

    Attributes:
        parts: literal text and the field after it, None at the end; from `parse_template`.
    """

    parts: tuple[tuple[str, str | None], ...]

    def __str__(self) -> str:
        """The template in one line, with prefix, trigger and suffix in it; it identifies a job."""
        pieces = []
        for literal, field in self.parts:
            pieces.append(literal.replace("{", "{{").replace("}", "}}"))
            pieces.append("" if field is None else f"{{{field}}}")
        return "".join(pieces)

    @property
    def is_plain(self) -> bool:
        """Whether texts are the captions themselves."""
        return str(self) == PLAIN

    @property
    def reads_existing(self) -> bool:
        """Whether texts contain those that are stored next to the images."""
        return any(field == "existing" for _, field in self.parts)

    def text(self, caption: str, entry: Entry) -> str:
        """The text of one image.

        Args:
            caption: what the model wrote.
            entry: the image.

        Raises:
            DataError: {existing} is not UTF-8.
        """
        result, dropped = "", False
        for literal, field in self.parts:
            result += _SEPARATOR.sub("", literal) if dropped else literal
            value = "" if field is None else self._value(field, caption, entry)
            dropped = field == "existing" and not value
            result += value
        return result

    def _value(self, field: str, caption: str, entry: Entry) -> str:
        if field == "caption":
            return caption
        path = entry.payload if isinstance(entry, Item) and isinstance(entry.payload, Path) else None
        if field == "existing":
            return "" if path is None else existing_text(path)
        if path is not None:
            return path.stem if field == "stem" else path.absolute().parent.name
        name = PurePosixPath(entry.id)
        if field == "folder":
            return name.parent.name
        return name.stem if is_image_name(name.name) else name.name


def existing_text(image: Path) -> str:
    """The text that is stored next to an image, without white space around it; "" without one.

    Raises:
        DataError: it is not UTF-8.
    """
    path = text_path(image)
    text = (read_text_file(path) or "").removeprefix("\ufeff").strip()
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"the text '{path}' is not UTF-8, so nothing can be added to it; save it as UTF-8.")
    return text


def parse_template(template: str | None, *, trigger: str | None, prefix: str, suffix: str) -> CaptionTemplate:
    """The template of a job.

    Args:
        template: with fields; by default the caption, after the trigger word where there is one.
        trigger: a word.
        prefix: literal text before the template.
        suffix: literal text after it.

    Raises:
        ConfigError: the template has an unknown field or none for the caption, is not closed, or does not fit the
            trigger.
    """
    source = template if template is not None else (PLAIN if trigger is None else "{trigger}, {caption}")
    shown = f"--template is '{source}'"
    parts: list[tuple[str, str | None]] = []
    pending = prefix
    try:
        parsed = list(Formatter().parse(source))
    except ValueError as error:
        raise ConfigError(f"{shown}, and its braces do not match ({error}); write {{{{ and }}}} for braces.") from error
    for literal, field, specification, conversion in parsed:
        pending += literal
        if field is None:
            continue
        if field not in FIELDS or specification or conversion:
            # A format specification or conversion is shown as part of the name.
            name = field + (f"!{conversion}" if conversion else "") + (f":{specification}" if specification else "")
            fields = ", ".join(f"{{{known}}}" for known in FIELDS)
            hint = did_you_mean(field, FIELDS)
            raise ConfigError(
                f"{shown}, and there is no field {{{name}}}; {f'{hint} F' if hint else 'f'}ields are {fields}."
            )
        if field == "trigger":
            if trigger is None:
                raise ConfigError(f"{shown}, and {{trigger}} has no word; give one with --trigger.")
            pending += trigger
        else:
            parts.append((pending, field))
            pending = ""
    parts.append((pending + suffix, None))
    if not any(field == "caption" for _, field in parts):
        raise ConfigError(f"{shown}, and it has no {{caption}}; add it where the caption belongs.")
    if trigger is not None and not any(field == "trigger" for _, field, _, _ in parsed):
        raise ConfigError(f"--trigger is '{trigger}', and --template '{source}' does not use it; add {{trigger}}.")
    return CaptionTemplate(tuple(parts))
