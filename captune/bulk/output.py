"""The output files of a job: JSON Lines, parquet, or a text file beside each image, each whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from captune.data.atomic import atomic_file
from captune.errors import DataError, MissingExtraError

__all__ = ["FORMATS", "Row", "has_text", "read_rows", "text_path", "write_rows", "write_texts"]

FORMATS: Final = ("jsonl", "parquet", "txt")
"""Formats of captions."""

Row = dict[str, Any]
"""`id`, `image`, `caption`, and `stopped`: whether the caption ended by itself and not at the length limit."""

_encode = json.JSONEncoder(ensure_ascii=False).encode


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows into a file that is whole or not there; its ending says the format.

    Args:
        path: `.jsonl` or `.parquet`.
        rows: of captions, or of a quarantine (`id`, `image`, `reason`).

    Raises:
        MissingExtraError: parquet is asked for and pyarrow is not installed.
        OSError: from the file system.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, list(rows))
        return
    # A path need not be valid text; it goes out as the bytes it came in with.
    with atomic_file(path, "wb") as stream:
        for row in rows:
            stream.write((_encode(row) + "\n").encode("utf-8", "surrogateescape"))


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
                yield json.loads(line.decode("utf-8", "surrogateescape"))
    except (ValueError, OSError) as error:
        raise DataError(f"'{path}' is no file of captions that captune wrote ({error}); remove it.") from error


def text_path(image: str) -> Path:
    """Where the caption of an image goes as a text file: beside it, under its name."""
    return Path(image).with_suffix(".txt")


def write_texts(rows: Sequence[Row]) -> None:
    """Write each caption into a text file beside its image."""
    for row in rows:
        with atomic_file(text_path(row["image"]), "w") as stream:
            stream.write(row["caption"] + "\n")


def has_text(image: str) -> bool:
    """Whether a text file with something in it stands beside an image."""
    try:
        return os.path.getsize(text_path(image)) > 0
    except OSError:
        return False


def _write_parquet(path: Path, rows: list[Row]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Writing parquet", "bulk") from error
    kinds = {"stopped": pyarrow.bool_()}
    names = list(rows[0]) if rows else ["id", "image", "caption", "stopped"]
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
    table = pyarrow.Table.from_pylist([{k: _text(v) for k, v in row.items()} for row in rows], schema=schema)
    with atomic_file(path, "wb") as stream:
        parquet.write_table(table, stream, compression="zstd")


def _text(value: Any) -> Any:
    """Text that parquet takes: bytes of a path that are no UTF-8 are escaped."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
