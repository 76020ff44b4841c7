"""Importer of the Chinese captions of Flickr30k and COCO: Flickr30k-CN and COCO-CN.

Both are lines `image#number<TAB>caption`; Flickr30k-CN has `image#zhb#0` and a space. Ids and image files are those of
the English data sets, so that a leak between the two is seen.
Source: https://github.com/li-xirong/coco-cn, https://github.com/weiyuk/fluent-cap
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from captune.data.importing import Row
from captune.data.problems import Problem
from captune.data.text import Reading
from captune.data.token_lines import read_image_list

__all__ = ["chinese_lists", "with_coco_names"]

_COCO = re.compile(r"COCO_((?:train|val|test)2014)_(\d{12})\.jpg")
_LISTS = re.compile(r"(?:coco|flickr30k)-?cn_(train|val|test)\.txt")


def chinese_lists(folder: Path) -> dict[str, str]:
    """The splits that lists of images (`coco-cn_train.txt`, ...) in a folder tell; empty where there is none.

    Returns:
        the name of an image file to its split.
    """
    splits: dict[str, str] = {}
    for path in sorted(folder.glob("*cn_*.txt")):
        if found := _LISTS.fullmatch(path.name):
            names = read_image_list(Reading(path))
            splits |= {name if name.endswith(".jpg") else f"{name}.jpg": found[1] for name in names}
    return splits


def with_coco_names(rows: Iterable[Row | Problem]) -> Iterator[Row | Problem]:
    """Rows whose COCO images have COCO's number as id, and their folder (`val2014/...`) in front; others unchanged."""
    for row in rows:
        if isinstance(row, Row) and (found := _COCO.fullmatch(row.image)):
            yield replace(row, image=f"{found[1]}/{row.image}", id=str(int(found[2])))
        else:
            yield row
