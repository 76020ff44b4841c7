"""Importers of COCO's caption layout (2014, 2017, NoCaps and others that follow it) and of TextCaps.

COCO: `{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "caption"}, ...]}`, the two lists in either
order. The id of an image is COCO's number as a string, as results files have it. MiniGPT-4's `filter_cap.json` has the
annotations alone; there the file of image 2 is `2.jpg`, or `2` with another ending.

TextCaps (`TextCaps_0.1_{train,val}.json`): `{"data": [{"image_id", "caption_str", "set_name", ...}, ...]}`, an entry a
caption; the image is `<image_id>.jpg` in `train_images`, also those of the split val.
Source: https://cocodataset.org/#format-data, https://textvqa.org/textcaps/,
https://github.com/Vision-CAIR/MiniGPT-4/blob/main/dataset/README_2_STAGE.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from captune.data.ids import id_text
from captune.data.image_formats import is_image_name
from captune.data.issues import Issue
from captune.data.json_stream import item_fault, json_items, require_object, string_field
from captune.data.rows import CaptionRow, Row, group_by_image
from captune.data.text_files import SourceFile
from captune.errors import DataError

__all__ = ["coco_rows", "textcaps_rows"]


def coco_rows(reading: SourceFile, *, split: str) -> Iterator[Row | Issue]:
    """The images of a COCO caption file with their captions.

    Args:
        reading: the open file; `.gz` is unpacked.
        split: what the images are given. NoCaps' domain of an image is kept as well.

    Yields:
        a row an image that has captions, or what is wrong with an entry.

    Raises:
        DataError: not JSON, or no list "annotations" is in it.
    """
    images: dict[str, tuple[str, str | None]] = {}
    unclear: set[str] = set()  # ids of several images
    is_minigpt4 = False

    def add_image(entry: Any) -> Issue | None:
        number, image = _number(entry, "id"), (string_field(entry, "file_name"), _domain(entry))
        known = images.setdefault(number, image)
        if known[0] == image[0]:
            return None
        unclear.add(number)
        message = f"the image id {number} is in the list of images twice: '{known[0]}' and '{image[0]}'."
        return Issue(reading.name, 0, "duplicate", message, 0)

    def captions() -> Iterator[CaptionRow | Issue]:
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
                message = f"entry {counts[key]} of {key} cannot be read: {item_fault(error)}."
                yield Issue(reading.name, 0, "malformed", message, int(key == "annotations"))
        if not counts["annotations"]:
            lists = " and ".join(f'"{key}"' for key, count in counts.items() if not count)
            raise DataError(f"'{reading.name}' is not in COCO's layout: no list {lists} with entries is in it.")
        if not counts["images"]:
            nonlocal is_minigpt4
            is_minigpt4 = True
            reading.notes.append(
                "there is no list of images; an image's file is its image_id with an ending, as in MiniGPT-4's data"
            )

    for row in group_by_image(captions(), reading.name):
        if isinstance(row, Issue):
            yield row
        elif row.image in unclear:
            message = f"the image id {row.image} is of several images; its {len(row.captions)} captions are left out."
            yield Issue(reading.name, 0, "duplicate", message, len(row.captions))
            del images[row.image]
        elif row.image in images:
            name, domain = images.pop(row.image)
            yield replace(row, image=name, domain=domain)
        elif is_minigpt4:
            yield replace(row, image=_with_ending(row.image), any_ending=True)
        else:
            message = f"captions are given for the image {row.image}, which is not in the list of images."
            yield Issue(reading.name, 0, "malformed", message, len(row.captions))
    for number, (name, _) in images.items():
        yield Issue(reading.name, 0, "empty", f"the image {number} ('{name}') has no caption.", 0)


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


def textcaps_rows(reading: SourceFile) -> Iterator[Row | Issue]:
    """The images of TextCaps with their captions; the id is TextCaps' own, the split its `set_name`.

    Args:
        reading: the open file; `.gz` is unpacked.

    Returns:
        an iterator over the images, and over what is wrong with an entry.

    Raises:
        DataError: not JSON, or no list "data" in it.
    """
    return group_by_image(_captions(reading), reading.name)


def _captions(reading: SourceFile) -> Iterator[CaptionRow | Issue]:
    number = 0
    for key, entry in json_items(reading):
        if key != "data":
            continue
        number += 1
        try:
            yield _caption(entry)
        except (KeyError, TypeError) as error:
            yield Issue(reading.name, 0, "malformed", f"entry {number} of data cannot be read: {item_fault(error)}.")
    if not number:
        raise DataError(f"'{reading.name}' is not TextCaps' JSON: there is no list \"data\" with entries in it.")


def _caption(entry: Any) -> CaptionRow:
    name = string_field(entry, "image_id")
    return CaptionRow(0, f"{name}.jpg", string_field(entry, "caption_str"), string_field(entry, "set_name"), name)
