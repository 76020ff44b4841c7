"""Importer of TextCaps (`TextCaps_0.1_{train,val}.json`): captions of pictures with text in them.

Layout: `{"data": [{"image_id", "caption_str", "set_name", ...}, ...]}`, an entry a caption; the image is
`<image_id>.jpg` in `train_images`, also those of the split val.
Source: https://textvqa.org/textcaps/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from captune.data.gathering import CaptionRow, gathered
from captune.data.importing import Row
from captune.data.json_stream import json_items, string_field
from captune.data.problems import Problem
from captune.data.text import Reading
from captune.errors import DataError

__all__ = ["textcaps_rows"]


def textcaps_rows(reading: Reading) -> Iterator[Row | Problem]:
    """The images of TextCaps with their captions; the id is TextCaps' own, the split its `set_name`.

    Args:
        reading: the open file; `.gz` is unpacked.

    Returns:
        an iterator over the images, and over what is wrong with an entry.

    Raises:
        DataError: not JSON, or no list "data" in it.
    """
    return gathered(_captions(reading), reading.name)


def _captions(reading: Reading) -> Iterator[CaptionRow | Problem]:
    number = 0
    for key, entry in json_items(reading):
        if key != "data":
            continue
        number += 1
        try:
            yield _caption(entry)
        except (KeyError, TypeError) as error:
            what = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)
            yield Problem(reading.name, 0, "malformed", f"entry {number} of data cannot be read: {what}.")
    if not number:
        raise DataError(f"'{reading.name}' is not TextCaps' JSON: there is no list \"data\" with entries in it.")


def _caption(entry: Any) -> CaptionRow:
    name = string_field(entry, "image_id")
    return CaptionRow(0, f"{name}.jpg", string_field(entry, "caption_str"), string_field(entry, "set_name"), name)
