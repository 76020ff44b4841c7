"""Rows of a parquet file, a few hundred at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from captune.common import first_line
from captune.data.problems import Problem
from captune.data.text import Reading
from captune.errors import DataError, MissingExtraError

__all__ = ["bounded_batches", "column_type", "parquet_columns", "parquet_rows", "shared_values"]

_BATCH = 256
_BATCH_BYTES = 64 << 20


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
        for batch in bounded_batches(_opened(reading, columns), list(columns), _BATCH):
            parts = [batch.column(name) for name in columns]
            for place in range(batch.num_rows):
                number += 1
                try:
                    yield number, tuple(part[place].as_py() for part in parts)
                except UnicodeDecodeError:
                    yield Problem(reading.name, number, "encoding", "the row is not UTF-8.")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{reading.name}' is broken after row {number:,}: {first_line(error)}.") from error
    finally:
        reading.close()


def bounded_batches(file: Any, columns: Sequence[str], most_rows: int) -> Iterator[Any]:
    """Record batches of a parquet file, with fewer rows where rows are large.

    Args:
        file: a `pyarrow.parquet.ParquetFile`.
        columns: names that are there.
        most_rows: of a batch.

    Yields:
        batches of about 64 MB at most, or of one row.
    """
    wanted = set(columns)
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        parts = [about.column(number) for number in range(about.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in wanted)
        rows = max(1, min(most_rows, about.num_rows * _BATCH_BYTES // max(1, size)))
        yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns))


def shared_values(schema: Any, columns: Sequence[str]) -> list[str]:
    """What pyarrow's `read_dictionary` is given, so that a value that many rows share is in memory once.

    Args:
        schema: a `pyarrow.parquet.ParquetSchema`.
        columns: of bytes, or of `{bytes, path}`.
    """
    wanted = {path for name in columns for path in (name, f"{name}.bytes")}
    leaves = [schema.column(number) for number in range(len(schema))]
    return [leaf.path for leaf in leaves if leaf.path in wanted and leaf.physical_type == "BYTE_ARRAY"]


def _opened(reading: Reading, columns: Sequence[str] = ()) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading parquet", "data") from error
    try:
        # Buffered reads keep no more of a column than a page, however large its row groups are.
        about = pyarrow.parquet.read_metadata(reading.file)
        shared = shared_values(about.schema, columns)
        reading.file.seek(0)
        return pyarrow.parquet.ParquetFile(
            reading.file, metadata=about, pre_buffer=False, buffer_size=1 << 20, read_dictionary=shared
        )
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{reading.name}' is no parquet file that can be read: {first_line(error)}.") from error
