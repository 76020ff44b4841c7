"""Rows with named columns from JSON: JSON Lines, an array of objects, or one object that holds such an array.

What is inside tells the format, not the name of the file. An object may hold its rows under any key; under keys that
are names of splits (`{"train": [...], "val": [...]}`) they are of these splits. Read as well are captions by image
(`{"a.jpg": "A dog ."}`), objects under keys of their own (`{"7": {"image": "a.jpg", ...}}`), and the columns that
pandas writes (`{"image": {"0": "a.jpg"}, "caption": {"0": "A dog ."}}`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from captune.data.conversations import is_conversation
from captune.data.formats import is_image_name
from captune.data.json_stream import BadItem, json_parts
from captune.data.problems import Problem
from captune.data.text import Reading, checked_lines, parse_json
from captune.errors import DataError

__all__ = ["Entry", "json_entries", "json_layout"]

Layout: TypeAlias = Literal["lines", "array", "object"]

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a file.

    Attributes:
        line: its line; 0 where the format has none.
        place: what messages begin with where there is no line ("entry 3: ").
        record: its keys and values.
        split: that of the list it is in, where the list is called like one.
    """

    line: int
    place: str
    record: dict[str, Any]
    split: str | None = None


def json_layout(reading: Reading, image: str) -> Layout:
    """How a JSON file holds its rows; nothing is read from `reading`.

    Args:
        reading: the open file.
        image: key of the image.

    Raises:
        DataError: the gzip data are broken.
    """
    lines = (line for line in checked_lines(Reading(reading.path)) if isinstance(line, DataError) or line.strip())
    first = next(lines, "")
    if isinstance(first, DataError):
        return "lines"
    if first.lstrip().startswith("["):
        return "array"
    if any(ending in (".jsonl", ".ndjson") for ending in reading.path.suffixes):
        return "lines"
    is_last = next(lines, None) is None
    try:
        record = parse_json(first)
    except ValueError:
        return "object" if is_last or first.rstrip()[-1:] in ("{", "[", ",", ":") else "lines"
    is_row = isinstance(record, dict) and (isinstance(record.get(image), str) or is_conversation(record))
    return "lines" if is_row or not is_last else "object"


def json_entries(
    reading: Reading, layout: Layout, image: str, captions: tuple[str, ...], passed: Counter[str]
) -> Iterator[Entry | Problem]:
    """The objects of a file, and what is wrong with others.

    Args:
        reading: the open file.
        layout: from `json_layout`.
        image: key of the image.
        captions: keys of the captions.
        passed: is told the lists that hold no rows, and how many entries they have.

    Raises:
        DataError: an array or object that is not JSON.
    """
    if layout == "lines":
        yield from _of_lines(reading)
        return
    columns: dict[str, dict[str, Any]] = {}
    number, current, is_mapping = 0, "", None
    for key, item, in_list in json_parts(reading):
        if is_mapping is None:
            is_mapping = layout == "object" and is_image_name(key)
        if is_mapping:
            record = {image: key, **item} if isinstance(item, dict) else {image: key, captions[0]: item}
            yield Entry(0, f"key '{key}': ", record)
        elif not in_list:
            if isinstance(item, dict) and key in (image, *captions):
                columns[key] = item
            elif _is_row(item, image):
                yield Entry(0, f"key '{key}': ", item)
        elif layout == "object" and key in passed:
            passed[key] += 1
        elif layout == "object" and key != current and not _is_row(item, image):
            passed[key] = 1
        else:
            number, current = (number if key == current else 0) + 1, key
            place = f"entry {number} of {key}: " if key else f"entry {number}: "
            if isinstance(item, dict):
                yield Entry(0, place, item, _SPLITS.get(key.lower()))
            else:
                fault = str(item) if isinstance(item, BadItem) else "a JSON object is expected"
                yield Problem(reading.name, 0, "malformed", f"{place}{fault}.")
    for index in dict.fromkeys(index for column in columns.values() for index in column):
        record = {key: column[index] for key, column in columns.items() if index in column}
        yield Entry(0, f"row '{index}': ", record)


def _is_row(item: Any, image: str) -> bool:
    return isinstance(item, dict) and (image in item or is_conversation(item))


def _of_lines(reading: Reading) -> Iterator[Entry | Problem]:
    for line, text in enumerate(checked_lines(reading), 1):
        if isinstance(text, DataError):
            yield Problem(reading.name, line, "encoding", str(text))
        elif text.strip():
            try:
                record = parse_json(text)
                if not isinstance(record, dict):
                    raise ValueError("a JSON object is expected")
            except ValueError as error:
                yield Problem(reading.name, line, "malformed", f"{error}.")
            else:
                yield Entry(line, "", record)
