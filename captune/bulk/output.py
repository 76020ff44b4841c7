"""The output files of a job: JSON Lines, parquet, CSV, or coco-caption's result JSON, each complete or absent.

CSV is for people: UTF-8 with a byte order mark, without which Excel reads letters with accents wrongly, CRLF as Excel
writes it, and an apostrophe in front of a cell that a spreadsheet would compute. `captune score` and `captune prepare
table` read it back. The result JSON is a list of `{"image_id": ..., "caption": ...}` as `COCO.loadRes` of pycocotools
and evaluation servers take it: an id that is an integer, or a file name with COCO's twelve digits, is a number there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from captune.data import CsvWriter, is_unicode, name_as_text, output_file
from captune.errors import DataError, MissingExtraError
from captune.parsing import load_json

__all__ = [
    "COMMAND",
    "Row",
    "as_text",
    "read_rows",
    "write_rows",
]

COMMAND: Final = "caption"
"""Whose outputs these are, for `captune.data.outputs`."""

Row = dict[str, Any]
"""`id`, `image`, `caption`, `stopped`: whether the caption ended with the stop token, not at the limit; and `thinking`,
"removed" or "unclosed", where the model wrote thinking text."""

CSV_COLUMNS: Final = ("id", "image", "caption")

_INTEGER = re.compile(r"(0|[1-9]\d{0,17})", re.ASCII)
_COCO_FILE = re.compile(r"(?:.*/)?(?:COCO_[a-z]+\d{4}_)?(\d{12})\.\w+", re.ASCII)

_encode = json.JSONEncoder(ensure_ascii=False).encode


def write_rows(path: str | Path, rows: Iterable[Row], note: dict[str, Any] | None = None) -> None:
    """Write rows into a file completely or not at all; its ending gives the format.

    Args:
        path: `.jsonl`, `.parquet`, `.csv` or `.json`.
        rows: of captions, or of a quarantine (`id`, `image`, `reason`).
        note: what is kept about the file; see `captune.data.outputs.output_note`.

    Raises:
        MissingExtraError: parquet is requested and pyarrow is not installed.
        DataError: two images would have one number in coco-caption's JSON.
        OSError: from the file system.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        _write_parquet(path, list(map(as_text, rows)), note)
        return
    if path.suffix == ".csv":
        _write_csv(path, rows, note)
        return
    if path.suffix == ".json":
        _write_results(path, rows, note)
        return
    with output_file(path, command=COMMAND, note=note) as stream:
        for row in rows:
            stream.write(_encode(as_text(row)) + "\n")


def as_text(row: Row) -> Row:
    """A row that can be written as UTF-8, whatever the names in it are.

    Ids and images were escaped where they were read; messages quote paths as the system gives them.
    """
    return {
        key: value if not isinstance(value, str) or is_unicode(value) else name_as_text(value)
        for key, value in row.items()
    }


def read_rows(path: str | Path) -> Iterator[Row]:
    """Rows as `write_rows` wrote them.

    Raises:
        DataError: the file is broken.
    """
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            yield from parquet.read_table(path).to_pylist()
            return
        with open(path, "rb") as stream:
            for line in stream:
                yield load_json(line)
    except (ValueError, OSError) as error:
        raise DataError(f"'{path}' is no file of captions that captune wrote ({error}); remove it.") from error


def _write_parquet(path: Path, rows: list[Row], note: dict[str, Any] | None) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Writing parquet", "bulk") from error
    kinds = {"stopped": pyarrow.bool_()}
    names = list(dict.fromkeys(name for row in rows for name in row)) or ["id", "image", "caption", "stopped"]
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    with output_file(path, "wb", command=COMMAND, note=note) as stream:
        parquet.write_table(table, stream, compression="zstd")


def _write_csv(path: Path, rows: Iterable[Row], note: dict[str, Any] | None) -> None:
    with output_file(path, command=COMMAND, note=note, newline="") as stream:
        stream.write("\ufeff")
        writer = CsvWriter(stream, lineterminator="\r\n")
        writer.writerow(CSV_COLUMNS)
        for row in rows:
            texts = as_text(row)
            # A line break in a cell is read differently by spreadsheets and by line-based tools.
            writer.writerow([" ".join(str(texts[column]).splitlines()) for column in CSV_COLUMNS])


def _write_results(path: Path, rows: Iterable[Row], note: dict[str, Any] | None) -> None:
    """A list of one object a line."""
    seen: dict[str | int, str] = {}
    with output_file(path, command=COMMAND, note=note) as stream:
        stream.write("[")
        for number, row in enumerate(map(as_text, rows)):
            image = _coco_id(row["id"])
            if image in seen:
                raise DataError(
                    f"'{seen[image]}' and '{row['id']}' would have the same image_id {image} in '{path}'; give --out a "
                    "name with the ending .jsonl."
                )
            seen[image] = row["id"]
            stream.write(",\n" if number else "\n")
            stream.write(_encode({"image_id": image, "caption": row["caption"]}))
        stream.write("\n]\n")


def _coco_id(name: str) -> str | int:
    """The id of an image in a result file: a number where COCO has one."""
    match = _INTEGER.fullmatch(name) or _COCO_FILE.fullmatch(name)
    return name if match is None else int(match[1])
