"""Rows of a parquet file, a few hundred at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from captune.data.problems import Problem
from captune.data.text import Reading
from captune.errors import DataError, MissingExtraError

__all__ = ["column_type", "parquet_columns", "parquet_rows"]

_BATCH = 256


def parquet_columns(reading: Reading) -> list[str]:
    """The names of the columns.

    Raises:
        DataError: no parquet file.
        MissingExtraError: pyarrow is not installed.
    """
    return list(_opened(reading).schema_arrow.names)


def column_type(reading: Reading, name: str) -> str:
    """The type of a column in Arrow's words, or "" where there is no such column."""
    schema = _opened(reading).schema_arrow
    return str(schema.field(name).type) if schema.get_field_index(name) >= 0 else ""


def parquet_rows(reading: Reading, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]] | Problem]:
    """The values of some columns, row by row.

    Args:
        reading: the open file; closed at the end.
        columns: names that are there.

    Yields:
        the row, counted from 1, and a value for each column, or what is wrong with a row.

    Raises:
        DataError: the file is broken.
    """
    import pyarrow

    number = 0
    try:
        for batch in _opened(reading).iter_batches(batch_size=_BATCH, columns=list(columns)):
            parts = [batch.column(name) for name in columns]
            for place in range(batch.num_rows):
                number += 1
                try:
                    yield number, tuple(part[place].as_py() for part in parts)
                except UnicodeDecodeError:
                    yield Problem(reading.name, number, "encoding", "the row is not UTF-8.")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{reading.name}' is broken after row {number:,}: {_first_line(error)}.") from error
    finally:
        reading.close()


def _opened(reading: Reading) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading parquet", "data") from error
    try:
        # Buffered reads keep no more of a column than a page, however large its row groups are.
        return pyarrow.parquet.ParquetFile(reading.file, pre_buffer=False, buffer_size=1 << 20)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{reading.name}' is no parquet file that can be read: {_first_line(error)}.") from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
