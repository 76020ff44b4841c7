"""Importers of Flickr8k, Flickr30k, Flickr30k-CN and COCO-CN.

Hugging Face (nlphuji/flickr30k, `flickr_annotations_30k.csv`): a row an image, columns
`raw,sentids,split,filename,img_id`; `raw` is a JSON list of five captions, `split` Karpathy's.

Kaggle's Flickr30k (`results.csv`): a row a caption, `image_name| comment_number| comment`, and no splits. One row of
the published file lacks its second bar (`2199200615.jpg| 4   A dog runs ...`); where it continues the captions of its
image it is repaired and reported.

Token files (Flickr8k, Flickr30k's `results_20130124.token`, Flickr30k-CN, COCO-CN): lines `image#n<TAB>caption`.
Copies in the wild have a few spaces where the tab should be, and Flickr8k one key that ends in `.jpg.1`; both are
repaired and reported. Kaggle's Flickr8k `captions.txt` (`image,caption`) is read as well. Flickr30k-CN has
`image#zhb#0` and a space. Ids and image files of the Chinese captions are those of the English data sets, so that a
leak between the two is detected.
Source: https://github.com/li-xirong/coco-cn, https://github.com/weiyuk/fluent-cap
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from captune.common import shorten
from captune.data.delimited import delimited_rows
from captune.data.issues import Issue, plural
from captune.data.json_stream import parse_list
from captune.data.manifest import Sample
from captune.data.outputs import check_output, output_file
from captune.data.rows import CaptionRow, Row, group_by_image
from captune.data.text_files import SourceFile, checked_lines, text_lines
from captune.errors import DataError

__all__ = [
    "chinese_lists",
    "flickr30k_rows",
    "listed_splits",
    "read_image_list",
    "token_rows",
    "with_coco_names",
    "write_grounded_detail",
]

_COLUMNS = ("raw", "split", "filename")
_LAYOUT = "raw,sentids,split,filename,img_id"
_KAGGLE = ["image_name", "comment_number", "comment"]
_MISSING_BAR = re.compile(r"\s*(\d+)\s{2,}(\S.*)")


def flickr30k_rows(reading: SourceFile, *, split: str = "train") -> Iterator[Row | Issue]:
    """The images of Flickr30k from either layout, which the header identifies.

    Args:
        reading: the open CSV.
        split: what images of Kaggle's layout, which has no splits, are given.

    Returns:
        an iterator over the images, and over what is wrong with a line.

    Raises:
        DataError: the columns are those of neither layout.
    """
    lines = checked_lines(reading, windows=True)
    header = next(lines, "")
    if isinstance(header, str) and [name.strip() for name in header.split("|")] == _KAGGLE:
        return group_by_image(_kaggle_captions(lines, reading.name, split), reading.name)
    return _hugging_face_rows(chain([header], lines), reading.name)


def write_grounded_detail(path: str | os.PathLike[str], samples: Iterable[Sample]) -> int:
    """Write the JSON that the original `prepare_flickr30k.py` made: all captions of an image joined by a space.

    Args:
        path: the file; it is written completely or not at all.
        samples: the images, of all splits, as the original mixed them.

    Returns:
        how many images were written.

    Raises:
        InputError: there is a file that captune did not write.
        OSError: from the file system, with the name of the file.
    """
    check_output(path, command="prepare")
    count = 0
    with output_file(path, command="prepare") as stream:
        for count, sample in enumerate(samples, 1):
            row = {"image_id": sample.id, "grounded_caption": " ".join(sample.captions)}
            stream.write(("[\n" if count == 1 else ",\n") + json.dumps(row, ensure_ascii=False))
        stream.write("\n]\n" if count else "[]\n")
    return count


def _hugging_face_rows(lines: Iterable[str | DataError], name: str) -> Iterator[Row | Issue]:
    """A row an image; columns are found by name, and further ones are passed over."""
    rows = delimited_rows(lines)
    _, header = next(rows, (1, [""]))
    columns = header if isinstance(header, list) else []
    columns = [column.strip() for column in columns]
    absent = [column for column in _COLUMNS if columns.count(column) != 1]
    if absent:
        raise DataError(
            f"{name}:1: the columns {_LAYOUT} are expected (or Kaggle's {'|'.join(_KAGGLE)}), and "
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not there exactly once; "
            f"the first line reads {_shown(','.join(columns))}."
        )
    raw, split, filename = (columns.index(column) for column in _COLUMNS)
    for line, row in rows:
        if isinstance(row, DataError):
            yield Issue(name, line, "malformed", str(row))
            continue
        if len(row) != len(columns):
            message = f"the row has {plural(len(row), 'column')}, and {len(columns)} are expected."
            yield Issue(name, line, "malformed", message)
            continue
        try:
            captions = tuple(parse_list(row[raw]))
        except ValueError as error:
            message = f"the captions of '{row[filename]}' cannot be read: {error}."
            yield Issue(name, line, "malformed", message)
            continue
        yield Row(line, row[filename], captions, row[split])


def _kaggle_captions(lines: Iterable[str | DataError], name: str, split: str) -> Iterator[CaptionRow | Issue]:
    """A caption a row; the quotation marks of this layout mean nothing."""
    image, expected = "", 0
    for line, text in enumerate(lines, 2):
        if isinstance(text, DataError):
            yield Issue(name, line, "encoding", str(text))
            continue
        if not text.strip():
            continue
        fields = [field.strip() for field in text.split("|", 2)]
        unbarred = _MISSING_BAR.fullmatch(fields[1]) if len(fields) == 2 else None
        if unbarred and fields[0] == image and unbarred[1] == str(expected):
            fields[1:] = unbarred.groups()
            yield Issue(name, line, "repaired", "the row lacks its second bar; its caption is kept.")
        if len(fields) != 3 or not fields[1].isdecimal():
            yield Issue(name, line, "malformed", f"{'| '.join(_KAGGLE)} is expected, not {_shown(text)}.")
            continue
        image, expected = fields[0], int(fields[1]) + 1
        yield CaptionRow(line, image, fields[2], split)


def _shown(text: str) -> str:
    """A line as far as a message should repeat it."""
    return repr(shorten(" ".join(text.split()), 80, " ..."))


_LISTS = {
    "Flickr_8k.trainImages.txt": "train",
    "Flickr_8k.devImages.txt": "val",
    "Flickr_8k.testImages.txt": "test",
}
_LINE = re.compile(r"(?P<image>[^#\t]+)#(?P<number>[^\t ]*)(?P<gap>[\t ]\s*)(?P<caption>.*)")
_NUMBERED = re.compile(r"(.+\.jpg)\.\d+")


def token_rows(reading: SourceFile, *, split: str = "train") -> Iterator[Row | Issue]:
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
        return group_by_image(_comma_captions(chain([first], lines), reading.name, split), reading.name)
    return group_by_image(_token_captions(chain([first], lines), reading.name, split), reading.name)


def read_image_list(reading: SourceFile) -> list[str]:
    """The names of images in a list, one a line, as `Flickr_8k.trainImages.txt`.

    Raises:
        DataError: the list is empty.
    """
    names = [line.strip() for line in text_lines(reading)]
    names = [name for name in names if name]
    if not names:
        raise DataError(f"the list of images '{reading.name}' is empty.")
    return names


def _token_captions(lines: Iterable[str | DataError], name: str, split: str) -> Iterator[CaptionRow | Issue]:
    repaired = ""
    for line, text in enumerate(lines, 1):
        if isinstance(text, DataError):
            yield Issue(name, line, "encoding", str(text))
            continue
        if not text.strip():
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            yield Issue(name, line, "malformed", f"'image#number<TAB>caption' is expected, not {text[:80]!r}.")
            continue
        image = match["image"]
        # Flickr30k-CN has `image#zhb#0` and a space by design.
        if "\t" not in match["gap"] and not match["number"].startswith("zh"):
            yield Issue(name, line, "repaired", "there is a space where a tab is expected; the caption is kept.")
        if numbered := _NUMBERED.fullmatch(image):
            if image != repaired:
                yield Issue(name, line, "repaired", f"the image '{image}' is taken for '{numbered[1]}'.")
            repaired, image = image, numbered[1]
        if not posixpath.splitext(image)[1]:
            image += ".jpg"
        yield CaptionRow(line, image, match["caption"], split)


def _comma_captions(lines: Iterable[str | DataError], name: str, split: str) -> Iterator[CaptionRow | Issue]:
    rows = delimited_rows(lines)
    next(rows)
    for line, row in rows:
        if isinstance(row, DataError):
            yield Issue(name, line, "malformed", str(row))
        elif len(row) != 2:
            yield Issue(name, line, "malformed", f"'image,caption' is expected, and there are {len(row)} fields.")
        else:
            yield CaptionRow(line, row[0], row[1], split)


def listed_splits(folder: Path) -> dict[str, str]:
    """The splits in Flickr8k's lists, as far as a folder has them; empty where it has none."""
    splits: dict[str, str] = {}
    for name, split in _LISTS.items():
        if (folder / name).is_file():
            splits |= dict.fromkeys(read_image_list(SourceFile(folder / name)), split)
    return splits


_COCO = re.compile(r"COCO_((?:train|val|test)2014)_(\d{12})\.jpg")
_CHINESE_LISTS = re.compile(r"(?:coco|flickr30k)-?cn_(train|val|test)\.txt")


def chinese_lists(folder: Path) -> dict[str, str]:
    """The splits that lists of images (`coco-cn_train.txt`, ...) in a folder specify; empty where there is none.

    Returns:
        the name of an image file to its split.
    """
    splits: dict[str, str] = {}
    for path in sorted(folder.glob("*cn_*.txt")):
        if match := _CHINESE_LISTS.fullmatch(path.name):
            names = read_image_list(SourceFile(path))
            splits |= {name if name.endswith(".jpg") else f"{name}.jpg": match[1] for name in names}
    return splits


def with_coco_names(rows: Iterable[Row | Issue]) -> Iterator[Row | Issue]:
    """Rows whose COCO images have COCO's number as id, and their folder (`val2014/...`) in front; others unchanged."""
    for row in rows:
        if isinstance(row, Row) and (match := _COCO.fullmatch(row.image)):
            yield replace(row, image=f"{match[1]}/{row.image}", id=str(int(match[2])))
        else:
            yield row
