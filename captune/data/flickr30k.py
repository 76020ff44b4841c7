"""Importer of Flickr30k in its two layouts: the Hugging Face CSV and Kaggle's `results.csv`.

Hugging Face (nlphuji/flickr30k, `flickr_annotations_30k.csv`): a row an image, columns
`raw,sentids,split,filename,img_id`; `raw` is a JSON list of five captions, `split` Karpathy's.

Kaggle (`results.csv`): a row a caption, `image_name| comment_number| comment`, and no splits. One row of the
published file lacks its second bar (`2199200615.jpg| 4   A dog runs ...`); where it continues the captions of its
image it is repaired, and that is said.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import chain

from captune.common import shorten
from captune.data.delimited import delimited_rows
from captune.data.gathering import CaptionRow, gathered
from captune.data.importing import Row
from captune.data.manifest import Sample
from captune.data.outputs import check_output, output_file
from captune.data.problems import Problem, plural
from captune.data.text import Reading, checked_lines, parse_list
from captune.errors import DataError

__all__ = ["flickr30k_rows", "write_grounded_detail"]

_COLUMNS = ("raw", "split", "filename")
_LAYOUT = "raw,sentids,split,filename,img_id"
_KAGGLE = ["image_name", "comment_number", "comment"]
_MISSING_BAR = re.compile(r"\s*(\d+)\s{2,}(\S.*)")


def flickr30k_rows(reading: Reading, *, split: str = "train") -> Iterator[Row | Problem]:
    """The images of Flickr30k from either layout, told apart by the header.

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
        return gathered(_kaggle_captions(lines, reading.name, split), reading.name)
    return _hugging_face_rows(chain([header], lines), reading.name)


def write_grounded_detail(path: str | os.PathLike[str], samples: Iterable[Sample]) -> int:
    """Write the JSON that the original `prepare_flickr30k.py` made: all captions of an image joined by a space.

    Args:
        path: the file; it appears whole or not at all.
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


def _hugging_face_rows(lines: Iterable[str | DataError], name: str) -> Iterator[Row | Problem]:
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
            yield Problem(name, line, "malformed", str(row))
            continue
        if len(row) != len(columns):
            message = f"the row has {plural(len(row), 'column')}, and {len(columns)} are expected."
            yield Problem(name, line, "malformed", message)
            continue
        try:
            captions = tuple(parse_list(row[raw]))
        except ValueError as error:
            message = f"the captions of '{row[filename]}' cannot be read: {error}."
            yield Problem(name, line, "malformed", message)
            continue
        yield Row(line, row[filename], captions, row[split])


def _kaggle_captions(lines: Iterable[str | DataError], name: str, split: str) -> Iterator[CaptionRow | Problem]:
    """A caption a row; the quotation marks of this layout mean nothing."""
    image, expected = "", 0
    for line, text in enumerate(lines, 2):
        if isinstance(text, DataError):
            yield Problem(name, line, "encoding", str(text))
            continue
        if not text.strip():
            continue
        fields = [field.strip() for field in text.split("|", 2)]
        unbarred = _MISSING_BAR.fullmatch(fields[1]) if len(fields) == 2 else None
        if unbarred and fields[0] == image and unbarred[1] == str(expected):
            fields[1:] = unbarred.groups()
            yield Problem(name, line, "repaired", "the row lacks its second bar; its caption is kept.")
        if len(fields) != 3 or not fields[1].isdecimal():
            yield Problem(name, line, "malformed", f"{'| '.join(_KAGGLE)} is expected, not {_shown(text)}.")
            continue
        image, expected = fields[0], int(fields[1]) + 1
        yield CaptionRow(line, image, fields[2], split)


def _shown(text: str) -> str:
    """A line as far as a message should repeat it."""
    return repr(shorten(" ".join(text.split()), 80, " ..."))
