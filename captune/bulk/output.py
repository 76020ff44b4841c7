"""The output files of a job: JSON Lines, parquet, or a text file per image, each complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from captune.data import atomic_file, is_unicode, name_as_text, output_file
from captune.errors import DataError, MissingExtraError
from captune.parsing import load_json

__all__ = [
    "COMMAND",
    "FORMATS",
    "Row",
    "as_text",
    "has_text",
    "read_rows",
    "shared_texts",
    "text_path",
    "write_rows",
    "write_texts",
]

FORMATS: Final = ("jsonl", "parquet", "txt")
"""Formats of captions."""

COMMAND: Final = "caption"
"""Whose outputs these are, for `captune.data.outputs`."""

Row = dict[str, Any]
"""`id`, `image`, `caption`, and `stopped`: whether the caption ended with the stop token, not at the limit."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


def write_rows(path: Path, rows: Iterable[Row], note: dict[str, Any] | None = None) -> None:
    """Write rows into a file completely or not at all; its ending gives the format.

    Args:
        path: `.jsonl` or `.parquet`.
        rows: of captions, or of a quarantine (`id`, `image`, `reason`).
        note: what is kept about the file; see `captune.data.outputs.output_note`.

    Raises:
        MissingExtraError: parquet is requested and pyarrow is not installed.
        OSError: from the file system.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, list(map(as_text, rows)), note)
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


def read_rows(path: Path) -> Iterator[Row]:
    """Rows as `write_rows` wrote them.

    Raises:
        DataError: the file is broken.
    """
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


def text_path(image: str) -> Path:
    """Where the caption of an image is written as a text file: next to it, under its name."""
    return Path(image).with_suffix(".txt")


def write_texts(rows: Sequence[Row], paths: Mapping[str, str]) -> None:
    """Write each caption into a text file next to its image.

    Args:
        rows: of captions.
        paths: id to path of each image file.
    """
    for row in rows:
        with atomic_file(text_path(paths[row["id"]]), "w") as stream:
            stream.write(row["caption"] + "\n")


def shared_texts(images: Iterable[str]) -> dict[str, list[str]]:
    """Images whose captions would be written to one text file, such as those of `a.jpg` and `a.png`.

    Args:
        images: paths of image files.

    Returns:
        The path of the text file, and its images.
    """
    groups: dict[str, list[str]] = {}
    for image in images:
        text = text_path(image)
        real = os.path.join(os.path.realpath(text.parent), text.name)
        # On a file system that does not distinguish capitals from small letters, `A.txt` is `a.txt`.
        folded = os.path.lexists(text.with_name(Path(image).name.swapcase()))
        groups.setdefault(real.casefold() if folded else real, []).append(image)
    return {str(text_path(group[0])): group for group in groups.values() if len(group) > 1}


def has_text(image: str) -> bool:
    """Whether a text file with something in it is next to an image."""
    try:
        return os.path.getsize(text_path(image)) > 0
    except OSError:
        return False


def _write_parquet(path: Path, rows: list[Row], note: dict[str, Any] | None) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Writing parquet", "bulk") from error
    kinds = {"stopped": pyarrow.bool_()}
    names = list(rows[0]) if rows else ["id", "image", "caption", "stopped"]
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    with output_file(path, "wb", command=COMMAND, note=note) as stream:
        parquet.write_table(table, stream, compression="zstd")
