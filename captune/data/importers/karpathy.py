"""Importer of Karpathy's `dataset_{flickr8k,flickr30k,coco}.json`, and of the splits in them.

Layout: `{"images": [{"filename", "split", "sentences": [{"raw", "tokens", ...}], "filepath"?, "cocoid"?}, ...]}`;
COCO's file adds the folder (`filepath`, "val2014") and COCO's own id, and has a split `restval`.
Source: https://cs.stanford.edu/people/karpathy/deepimagesent/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from captune.data.ids import id_text
from captune.data.issues import Issue
from captune.data.json_stream import item_fault, json_items, string_field
from captune.data.rows import Row
from captune.data.text_files import SourceFile
from captune.errors import DataError

__all__ = ["UNLISTED", "karpathy_rows", "read_splits", "with_splits"]

UNLISTED = "unlisted"
"""The split of images that a list of splits does not name."""


def karpathy_rows(reading: SourceFile, *, restval: str = "restval") -> Iterator[Row | Issue]:
    """The images of Karpathy's JSON, one at a time.

    Args:
        reading: the open file; `.gz` is unpacked.
        restval: the split of COCO's `restval`; published numbers have it in "train".

    Yields:
        a row an image, or what is wrong with an entry.

    Raises:
        DataError: not JSON, or no list "images" in it.
    """
    number = 0
    for key, entry in json_items(reading):
        if key != "images":
            continue
        number += 1
        try:
            row = _row(entry)
            yield replace(row, split=restval) if row.split == "restval" else row
        except (KeyError, TypeError) as error:
            sentences = entry.get("sentences") if isinstance(entry, dict) else None
            captions = len(sentences) if isinstance(sentences, list) else 1
            yield Issue(
                reading.name, 0, "malformed", f"image {number} cannot be read: {item_fault(error)}.", max(1, captions)
            )
    if not number:
        raise DataError(f"'{reading.name}' is not Karpathy's JSON: there is no list \"images\" with entries in it.")


def read_splits(reading: SourceFile) -> dict[str, str]:
    """The split of every image that Karpathy's JSON names, by the name of the file without folder.

    Raises:
        DataError: see `karpathy_rows`; or an entry is malformed.
    """
    splits: dict[str, str] = {}
    for row in karpathy_rows(reading):
        if isinstance(row, Issue):
            raise DataError(str(row))
        name = _file_name(row.image)
        # Two images of one name and different splits: which split belongs to which is unknown.
        splits[name] = row.split if splits.get(name, row.split) == row.split else UNLISTED
    return splits


def with_splits(rows: Iterable[Row | Issue], splits: dict[str, str]) -> Iterator[Row | Issue]:
    """Rows of any importer with the splits of a list; images that it does not name become `unlisted`."""
    for row in rows:
        if isinstance(row, Issue):
            yield row
        else:
            yield replace(row, split=splits.get(_file_name(row.image), UNLISTED))


def _row(entry: Any) -> Row:
    """One entry; raises KeyError or TypeError where the layout is another."""
    name, split = string_field(entry, "filename"), string_field(entry, "split")
    folder = entry.get("filepath")
    image = f"{folder}/{name}" if isinstance(folder, str) and folder else name
    sentences = entry["sentences"]
    if not isinstance(sentences, list):
        raise TypeError("'sentences' must be a list")
    captions = tuple(string_field(sentence, "raw") for sentence in sentences)
    coco_id = entry.get("cocoid")
    return Row(0, image, captions, split, None if coco_id is None else id_text(coco_id, "cocoid"))


def _file_name(image: str) -> str:
    return image.rsplit("/", 1)[-1]
