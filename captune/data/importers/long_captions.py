"""Importers of data sets with captions of several sentences: DOCCI, DetailCaps, ShareGPT4V.

DOCCI is JSON Lines, `docci_descriptions.jsonlines`, a description an image:

    {"example_id": "train_00000", "split": "train", "image_file": "train_00000.jpg", "description": "..."}

The splits are train, test, qual_dev and qual_test. Source: https://google.github.io/docci/

DetailCaps-4870 is a parquet file of a row an image: the file in `binary`, its path in `image`, the data set that it is
from in `source`, three references (`GT_Caption_GPT4O`, `GT_Caption_GPT4V`, `GT_Caption_Gemini15Pro`), and captions of
three models (`CogVLM`, `ShareCaptioner`, `LLaVA_v15`). The same rows in JSON or JSON Lines hold `binary` in base64, or
leave it out. Source: https://huggingface.co/datasets/foundation-multimodal-models/DetailCaps-4870

ShareGPT4V is a JSON array (or JSON Lines) of conversations:

    {"id": "000000000009", "image": "coco/train2017/000000000009.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nDescribe it."}, {"from": "gpt", "value": "A dog. ..."}]}

Source: https://huggingface.co/datasets/Lin-Chen/ShareGPT4V
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

from captune.common import did_you_mean
from captune.data.ids import id_text
from captune.data.importers.json_table import Conversations, Entry, Turns, is_conversation, json_entries, json_layout
from captune.data.issues import Issue, plural
from captune.data.json_stream import item_fault, string_field
from captune.data.rows import CaptionRow, Row, group_by_image
from captune.data.tar_parquet import InlineImages, parquet_columns, parquet_rows
from captune.data.text_files import SourceFile
from captune.errors import DataError

__all__ = ["DETAILCAPS_REFERENCES", "detailcaps_has_images", "detailcaps_rows", "docci_rows", "sharegpt4v_rows"]

DETAILCAPS_REFERENCES = ("GT_Caption_GPT4O", "GT_Caption_GPT4V", "GT_Caption_Gemini15Pro")
"""The columns of DetailCaps that are references; the others with captions are of models."""

_FIRST_ROWS = 100  # of DetailCaps, one of which has each column
_TRIED = 1000  # rows without any of the fields before a file counts as one of another layout


def docci_rows(reading: SourceFile) -> Iterator[Row | Issue]:
    """The images of DOCCI with their descriptions, ids and splits.

    Args:
        reading: the open file; `.gz` is unpacked.

    Yields:
        an image, or what is wrong with a line.

    Raises:
        DataError: no line has DOCCI's fields.
    """
    good = 0
    for bad, entry in enumerate(json_entries(reading, "lines", "image_file", ("description",), Counter())):
        if isinstance(entry, Issue):
            yield entry
            continue
        record = entry.record
        try:
            image, text = string_field(record, "image_file"), string_field(record, "description")
            row = Row(entry.line, image, (text,), string_field(record, "split"), string_field(record, "example_id"))
        except (KeyError, TypeError) as error:
            if not good and bad + 1 >= _TRIED:
                break
            yield _malformed(reading, entry, error)
            continue
        good += 1
        yield row
    if not good:
        reading.close()
        raise DataError(
            f"'{reading.name}' is not DOCCI's JSON Lines: no line has 'example_id', 'split', 'image_file' and "
            "'description'."
        )


def sharegpt4v_rows(reading: SourceFile, *, split: str = "train", turns: Turns = "first") -> Iterator[Row | Issue]:
    """The images of ShareGPT4V with the answers of their conversations, without the marks of images.

    Args:
        reading: the open file, a JSON array or JSON Lines; instructions are counted in its notes.
        split: of all images, since the format has none.
        turns: which answers of a conversation are captions.

    Returns:
        an iterator over the images, and over what is wrong with an entry.

    Raises:
        DataError: there is no conversation in it.
    """
    return group_by_image(_sharegpt4v_captions(reading, split, turns), reading.name)


def _sharegpt4v_captions(reading: SourceFile, split: str, turns: Turns) -> Iterator[CaptionRow | Issue]:
    conversations = Conversations(turns)
    good = text_only = bad = 0
    for entry in json_entries(reading, json_layout(reading, "image"), "image", ("conversations",), Counter()):
        if isinstance(entry, Issue):
            yield entry
            continue
        record = entry.record
        if is_conversation(record) and not (record.get("image") or record.get("images")):
            text_only += 1
            yield Issue(reading.name, entry.line, "malformed", f"{entry.location}the conversation has no image.")
            continue
        try:
            if not is_conversation(record):
                raise ValueError("there is no conversation: 'conversations' is expected")
            image, captions, further = conversations.parts(record, "image")
            if not isinstance(image, str):
                raise ValueError("'image' must be the name of a file")
            name = None if record.get("id") is None else id_text(record["id"], "id")
        except (TypeError, ValueError) as error:
            bad += 1
            if not good and bad >= _TRIED:
                break
            yield Issue(reading.name, entry.line, "malformed", f"{entry.location}{str(error).removesuffix('.')}.")
            continue
        good += 1
        for caption in captions:
            yield CaptionRow(entry.line, image, caption, split, name)
        if further:
            message = f"{entry.location}{plural(further, 'further answer')} of the conversation left out."
            yield Issue(reading.name, entry.line, "unused", message)
    if not good:
        raise DataError(f"'{reading.name}' is not ShareGPT4V's JSON: no entry has 'image' and 'conversations'.")
    if text_only:
        are = "is" if text_only == 1 else "are"
        reading.notes.append(f"{plural(text_only, 'conversation')} without an image {are} left out")
    reading.notes += conversations.notes()


def detailcaps_has_images(path: Path) -> bool:
    """Whether a file of DetailCaps holds the images.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    with closing(SourceFile(path)) as reading:
        if _is_parquet(reading):
            return "binary" in parquet_columns(reading)
        first = next((entry for entry in _json_entries(reading) if isinstance(entry, Entry)), None)
    return first is not None and isinstance(_lower(first.record).get("binary"), str)


def detailcaps_rows(
    reading: SourceFile,
    *,
    columns: Sequence[str] = DETAILCAPS_REFERENCES,
    inline_images: InlineImages | None = None,
) -> Iterator[Row | Issue]:
    """The images of DetailCaps with their references; the id is the path in `image`, the domain is `source`.

    Args:
        reading: the open file: parquet, JSON or JSON Lines.
        columns: of captions; those of a model give its captions of the same images. An empty cell is no caption.
        inline_images: where the images of `binary` are written to; None takes the files that `image` names.

    Returns:
        an iterator over the images, and over what is wrong with a row. The split is "test".

    Raises:
        DataError: a column is not there; the message names those that are.
    """
    records = _parquet_records(reading, columns, inline_images) if _is_parquet(reading) else _json_entries(reading)
    return _detailcaps(records, reading, columns, inline_images)


def _is_parquet(reading: SourceFile) -> bool:
    return reading.path.suffix.lower() in (".parquet", ".pq")


def _parquet_records(
    reading: SourceFile, columns: Sequence[str], inline_images: InlineImages | None
) -> Iterator[Entry | Issue]:
    there = parquet_columns(reading)
    try:
        _require(reading, columns, there)
    except DataError:
        reading.close()
        raise
    optional = ["source", *(["binary"] if inline_images is not None else [])]
    names = ["image", *columns, *(name for name in optional if name in there)]
    for row in parquet_rows(reading, names):
        yield row if isinstance(row, Issue) else Entry(row[0], "", dict(zip(names, row[1], strict=True)))


def _json_entries(reading: SourceFile) -> Iterator[Entry | Issue]:
    return json_entries(reading, json_layout(reading, "image"), "image", DETAILCAPS_REFERENCES, Counter())


def _require(reading: SourceFile, columns: Sequence[str], there: Iterable[str]) -> None:
    names = list(there)
    for name in ("image", *columns):
        if name not in names:
            hint = did_you_mean(name, names)
            raise DataError(
                f"'{reading.name}' has no column '{name}'; {f'{hint} The' if hint else 'the'} columns are "
                f"{', '.join(names[:20])}. --caption-column names columns of captions."
            )


def _lower(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record by keys in lower case, as some copies in JSON have them."""
    return {key.lower(): value for key, value in record.items()}


def _detailcaps(
    records: Iterator[Entry | Issue],
    reading: SourceFile,
    columns: Sequence[str],
    inline_images: InlineImages | None,
) -> Iterator[Row | Issue]:
    for entry in _with_columns(records, reading, columns):
        if isinstance(entry, Issue):
            yield entry
            continue
        record = _lower(entry.record)
        captions: list[str] = []
        try:
            image, source = string_field(record, "image"), record.get("source")
            captions = [text for name in columns if (text := _optional_text(record.get(name.lower()), name))]
            if not captions:
                raise TypeError(f"'{image}' has no caption in {', '.join(columns)}")
            if source is not None and not isinstance(source, str):
                raise TypeError("'source' must be a string")
            file = image
            if inline_images is not None:
                file = inline_images.add(_image_bytes(record.get("binary")), image)
        except (KeyError, TypeError, DataError) as error:
            yield _malformed(reading, entry, error, max(1, len(captions)))
            continue
        yield Row(entry.line, file, tuple(captions), "test", image, domain=source or None)


def _with_columns(
    records: Iterator[Entry | Issue], reading: SourceFile, columns: Sequence[str]
) -> Iterator[Entry | Issue]:
    """The records, once the first ones have all columns; JSON leaves out a field that is empty in a row."""
    first: list[Entry | Issue] = []
    needed = {"image", *(name.lower() for name in columns)}
    names: dict[str, None] = {}
    for entry in records:
        first.append(entry)
        if isinstance(entry, Entry):
            names.update(dict.fromkeys(entry.record))
            needed -= set(_lower(entry.record))
        if not needed or len(first) >= _FIRST_ROWS:
            break
    if names and needed:
        reading.close()
        _require(reading, columns, names)
    yield from chain(first, records)


def _optional_text(value: Any, name: str) -> str:
    """A caption, or "" where the cell is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError(f"'{name}' must be a string")
    return value if value.strip() else ""


def _image_bytes(value: Any) -> bytes:
    """An image file from bytes, `{"bytes": ...}` or base64."""
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, str):
        try:
            return base64.b64decode("".join(value.split()), validate=True)
        except binascii.Error as error:
            raise TypeError("'binary' is not base64") from error
    if not isinstance(value, bytes) or not value:
        raise TypeError("'binary' must hold the image file")
    return value


def _malformed(reading: SourceFile, entry: Entry, error: Exception, captions: int = 1) -> Issue:
    fault = (item_fault(error) if isinstance(error, KeyError) else str(error)).removesuffix(".")
    return Issue(reading.name, entry.line, "malformed", f"{entry.location}{fault}.", captions)
