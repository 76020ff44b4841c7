"""Importer of caption files in COCO's layout (2014, 2017, NoCaps and others that follow it).

Layout: `{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}`, the two lists in
either order. The id of an image is COCO's number as a string, as results files have it. MiniGPT-4's `filter_cap.json`
has the annotations alone; there the file of image 2 is `2.jpg`, or `2` with another ending.
Source: https://cocodataset.org/#format-data,
https://github.com/Vision-CAIR/MiniGPT-4/blob/main/dataset/README_2_STAGE.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from captune.data.formats import is_image_name
from captune.data.gathering import CaptionRow, gathered
from captune.data.ids import id_text
from captune.data.importing import Row
from captune.data.json_stream import json_items, require_object, string_field
from captune.data.problems import Problem
from captune.data.text import Reading
from captune.errors import DataError

__all__ = ["coco_rows"]


def coco_rows(reading: Reading, *, split: str) -> Iterator[Row | Problem]:
    """The images of a COCO caption file with their captions.

    Args:
        reading: the open file; `.gz` is unpacked.
        split: what the images are given. NoCaps' domain of an image is kept beside it.

    Yields:
        a row an image that has captions, or what is wrong with an entry.

    Raises:
        DataError: not JSON, or no list "annotations" is in it.
    """
    images: dict[str, tuple[str, str | None]] = {}
    unclear: set[str] = set()  # ids of several images
    is_minigpt4 = False

    def add_image(entry: Any) -> Problem | None:
        number, image = _number(entry, "id"), (string_field(entry, "file_name"), _domain(entry))
        known = images.setdefault(number, image)
        if known[0] == image[0]:
            return None
        unclear.add(number)
        message = f"the image id {number} is in the list of images twice: '{known[0]}' and '{image[0]}'."
        return Problem(reading.name, 0, "duplicate", message, 0)

    def captions() -> Iterator[CaptionRow | Problem]:
        counts = {"images": 0, "annotations": 0}
        for key, entry in json_items(reading):
            if key not in counts:
                continue
            counts[key] += 1
            try:
                if key == "images":
                    if problem := add_image(entry):
                        yield problem
                else:
                    number = _number(entry, "image_id")
                    yield CaptionRow(0, number, string_field(entry, "caption"), split, number)
            except (KeyError, TypeError) as error:
                what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
                message = f"entry {counts[key]} of {key} cannot be read: {what}."
                yield Problem(reading.name, 0, "malformed", message, int(key == "annotations"))
        if not counts["annotations"]:
            lists = " and ".join(f'"{key}"' for key, count in counts.items() if not count)
            raise DataError(f"'{reading.name}' is not in COCO's layout: no list {lists} with entries is in it.")
        if not counts["images"]:
            nonlocal is_minigpt4
            is_minigpt4 = True
            reading.notes.append(
                "there is no list of images; an image's file is its image_id with an ending, as in MiniGPT-4's data"
            )

    for row in gathered(captions(), reading.name):
        if isinstance(row, Problem):
            yield row
        elif row.image in unclear:
            message = f"the image id {row.image} is of several images; its {len(row.captions)} captions are left out."
            yield Problem(reading.name, 0, "duplicate", message, len(row.captions))
            del images[row.image]
        elif row.image in images:
            name, domain = images.pop(row.image)
            yield replace(row, image=name, domain=domain)
        elif is_minigpt4:
            yield replace(row, image=_with_ending(row.image), any_ending=True)
        else:
            message = f"captions are given for the image {row.image}, which is not in the list of images."
            yield Problem(reading.name, 0, "malformed", message, len(row.captions))
    for number, (name, _) in images.items():
        yield Problem(reading.name, 0, "empty", f"the image {number} ('{name}') has no caption.", 0)


def _with_ending(name: str) -> str:
    """The file of an image that is named without its ending: ".jpg" in MiniGPT-4's own code."""
    return name if is_image_name(name) else f"{name}.jpg"


def _domain(entry: Any) -> str | None:
    """NoCaps' "in-domain", "near-domain" or "out-domain"; other files have none."""
    domain = entry.get("domain")
    return domain if isinstance(domain, str) and domain else None


def _number(entry: Any, key: str) -> str:
    """An id as a string: a number in COCO, a string in some files that follow it."""
    require_object(entry, key)
    return id_text(entry[key], key)
