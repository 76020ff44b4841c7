"""Importer of `image#n<TAB>caption` lines: Flickr8k, Flickr30k's `results_20130124.token`, Flickr30k-CN, COCO-CN.

Copies in the wild have a few spaces where the tab should be, and Flickr8k one key that ends in `.jpg.1`; both are
repaired and said. Kaggle's Flickr8k `captions.txt` (`image,caption`) is read as well.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from captune.data.delimited import delimited_rows
from captune.data.gathering import CaptionRow, gathered
from captune.data.importing import Row
from captune.data.problems import Problem
from captune.data.text import Reading, checked_lines, text_lines
from captune.errors import DataError

__all__ = ["listed_splits", "read_image_list", "token_rows"]

_LISTS = {
    "Flickr_8k.trainImages.txt": "train",
    "Flickr_8k.devImages.txt": "val",
    "Flickr_8k.testImages.txt": "test",
}
_LINE = re.compile(r"(?P<image>[^#\t]+)#(?P<number>[^\t ]*)(?P<gap>[\t ]\s*)(?P<caption>.*)")
_NUMBERED = re.compile(r"(.+\.jpg)\.\d+")


def token_rows(reading: Reading, *, split: str = "train") -> Iterator[Row | Problem]:
    """The images of a token file, or of Kaggle's `captions.txt`.

    Args:
        reading: the open file.
        split: what the images are given; the layout has none.

    Returns:
        an iterator over the images, and over what is wrong with a line. A name without ending gets `.jpg`.
    """
    lines = checked_lines(reading, windows=True)
    first = next(lines, "")
    if isinstance(first, str) and [field.strip() for field in first.split(",")] == ["image", "caption"]:
        return gathered(_comma_captions(chain([first], lines), reading.name, split), reading.name)
    return gathered(_token_captions(chain([first], lines), reading.name, split), reading.name)


def read_image_list(reading: Reading) -> list[str]:
    """The names of images in a list, one a line, as `Flickr_8k.trainImages.txt`.

    Raises:
        DataError: the list is empty.
    """
    names = [line.strip() for line in text_lines(reading)]
    names = [name for name in names if name]
    if not names:
        raise DataError(f"the list of images '{reading.name}' is empty.")
    return names


def _token_captions(lines: Iterable[str | DataError], name: str, split: str) -> Iterator[CaptionRow | Problem]:
    repaired = ""
    for line, text in enumerate(lines, 1):
        if isinstance(text, DataError):
            yield Problem(name, line, "encoding", str(text))
            continue
        if not text.strip():
            continue
        found = _LINE.fullmatch(text)
        if found is None:
            yield Problem(name, line, "malformed", f"'image#number<TAB>caption' is expected, not {text[:80]!r}.")
            continue
        image = found["image"]
        # Flickr30k-CN has `image#zhb#0` and a space by design.
        if "\t" not in found["gap"] and not found["number"].startswith("zh"):
            yield Problem(name, line, "repaired", "a space stands where a tab is expected; the caption is kept.")
        if numbered := _NUMBERED.fullmatch(image):
            if image != repaired:
                yield Problem(name, line, "repaired", f"the image '{image}' is taken for '{numbered[1]}'.")
            repaired, image = image, numbered[1]
        if not posixpath.splitext(image)[1]:
            image += ".jpg"
        yield CaptionRow(line, image, found["caption"], split)


def _comma_captions(lines: Iterable[str | DataError], name: str, split: str) -> Iterator[CaptionRow | Problem]:
    rows = delimited_rows(lines)
    next(rows)
    for line, row in rows:
        if isinstance(row, DataError):
            yield Problem(name, line, "malformed", str(row))
        elif len(row) != 2:
            yield Problem(name, line, "malformed", f"'image,caption' is expected, and there are {len(row)} fields.")
        else:
            yield CaptionRow(line, row[0], row[1], split)


def listed_splits(folder: Path) -> dict[str, str]:
    """The splits that Flickr8k's lists tell, as far as they lie in a folder; empty where none does."""
    splits: dict[str, str] = {}
    for name, split in _LISTS.items():
        if (folder / name).is_file():
            splits |= dict.fromkeys(read_image_list(Reading(folder / name)), split)
    return splits
