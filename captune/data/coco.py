"""Importer of caption files in COCO's layout (2014, 2017, NoCaps and others that follow it).

Layout: `{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}`, the two lists in
either order. The id of an image is COCO's number as a string, as results files have it.
Source: https://cocodataset.org/#format-data
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from captune.data.gathering import CaptionRow, gathered
from captune.data.importing import Row
from captune.data.json_stream import json_items, string_field
from captune.data.problems import Problem
from captune.data.text import Reading
from captune.errors import DataError

__all__ = ["coco_rows", "split_of_name"]

_SPLIT = re.compile(r"train|val|test")


def split_of_name(name: str) -> str:
    """The split that a file name tells: "captions_val2017.json" is "val"; "train" where it tells none."""
    found = _SPLIT.search(name)
    return found[0] if found else "train"


def coco_rows(reading: Reading, *, split: str) -> Iterator[Row | Problem]:
    """The images of a COCO caption file with their captions.

    Args:
        reading: the open file; `.gz` is unpacked.
        split: what the images are given. NoCaps' domain of an image is kept beside it.

    Yields:
        a row an image that has captions, or what is wrong with an entry.

    Raises:
        DataError: not JSON, or the lists "images" and "annotations" are not in it.
    """
    images: dict[str, tuple[str, str | None]] = {}

    def captions() -> Iterator[CaptionRow | Problem]:
        counts = {"images": 0, "annotations": 0}
        for key, entry in json_items(reading):
            if key not in counts:
                continue
            counts[key] += 1
            try:
                if key == "images":
                    images[_number(entry, "id")] = (string_field(entry, "file_name"), _domain(entry))
                else:
                    number = _number(entry, "image_id")
                    yield CaptionRow(0, number, string_field(entry, "caption"), split, number)
            except (KeyError, TypeError) as error:
                what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
                message = f"entry {counts[key]} of {key} cannot be read: {what}."
                yield Problem(reading.name, 0, "malformed", message)
        absent = [key for key, count in counts.items() if not count]
        if absent:
            lists = " and ".join(f'"{key}"' for key in absent)
            raise DataError(f"'{reading.name}' is not in COCO's layout: no list {lists} with entries is in it.")

    for row in gathered(captions(), reading.name):
        if isinstance(row, Problem):
            yield row
        elif row.image in images:
            name, domain = images.pop(row.image)
            yield replace(row, image=name, domain=domain)
        else:
            message = f"captions are given for the image {row.image}, which is not in the list of images."
            yield Problem(reading.name, 0, "malformed", message)
    for number, (name, _) in images.items():
        yield Problem(reading.name, 0, "empty", f"the image {number} ('{name}') has no caption.")


def _domain(entry: Any) -> str | None:
    """NoCaps' "in-domain", "near-domain" or "out-domain"; other files have none."""
    domain = entry.get("domain")
    return domain if isinstance(domain, str) and domain else None


def _number(entry: Any, key: str) -> str:
    """An id as a string: a number in COCO, a string in some files that follow it."""
    if not isinstance(entry, dict):
        raise TypeError(f"an object with '{key}' is expected")
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"'{key}' must be a number or a string")
    return str(value)
