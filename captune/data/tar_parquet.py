"""Tar and parquet files as streams, in bounded memory whatever a file claims, and the images inside them."""

from __future__ import annotations

import hashlib
import os
import posixpath
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Self

from captune.common import first_line
from captune.data.atomic import partial_file
from captune.data.ids import SeenIds
from captune.data.issues import Issue
from captune.data.manifest import safe_join
from captune.data.text_files import SourceFile
from captune.errors import DataError, MissingExtraError

__all__ = [
    "MAX_MEMBER",
    "InlineImages",
    "bounded_batches",
    "column_type",
    "open_parquet",
    "open_tar",
    "parquet_columns",
    "parquet_rows",
    "too_large",
]

MAX_MEMBER = 256 << 20
"""Bytes of the largest image file or member that is read; a larger one is a broken or hostile file, no photograph."""

_MAX_HEADER = 1 << 20
_EXTENDED = frozenset(
    {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
)


def open_tar(file: IO[bytes]) -> tarfile.TarFile:
    """Open a tar, packed or not, as a stream: one member at a time is read, and no index is made of the others.

    Args:
        file: at its start.

    Raises:
        tarfile.TarError, EOFError, OSError, zlib.error: it is no tar, or broken. So does iterating over the members.
    """
    return tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member)


def too_large(member: tarfile.TarInfo, limit: int = MAX_MEMBER) -> str | None:
    """A sentence about a member that unfolds to more than a limit, or None.

    The size is that of the member when it is read; a sparse or packed one may take a few bytes in the archive.
    """
    if member.size <= limit:
        return None
    return f"the member '{member.name}' has {member.size >> 20:,} MB, and {limit >> 20} MB is the limit."


class _Member(tarfile.TarInfo):
    """A member whose header is refused where Python would read gigabytes for a name, or end without a word."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """A member from its header of 512 bytes."""
        try:
            member = super().frombuf(buf, encoding, errors)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            # After the first member Python takes a damaged header for the end of the archive.
            raise tarfile.ReadError(f"the header of a member is damaged ({error})") from error
        if member.type in _EXTENDED and member.size > _MAX_HEADER:
            raise tarfile.ReadError(f"the name of a member claims {member.size >> 20:,} MB")
        return member


_BATCH = 256
_BATCH_BYTES = 64 << 20


def parquet_columns(reading: SourceFile) -> list[str]:
    """The names of the columns.

    Raises:
        DataError: no parquet file.
        MissingExtraError: pyarrow is not installed.
    """
    return list(_opened(reading).schema_arrow.names)


def column_type(reading: SourceFile, name: str) -> str:
    """The type of a column in Arrow's words, or "" where there is no such column."""
    schema = _opened(reading).schema_arrow
    return str(schema.field(name).type) if schema.get_field_index(name) >= 0 else ""


def parquet_rows(reading: SourceFile, columns: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]] | Issue]:
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
            for index in range(batch.num_rows):
                number += 1
                try:
                    yield number, tuple(part[index].as_py() for part in parts)
                except UnicodeDecodeError:
                    yield Issue(reading.name, number, "encoding", "the row is not UTF-8.")
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
    names = set(columns)
    for group in range(file.metadata.num_row_groups):
        about = file.metadata.row_group(group)
        parts = [about.column(number) for number in range(about.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] in names)
        rows = max(1, min(most_rows, about.num_rows * _BATCH_BYTES // max(1, size)))
        yield from file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns))


def open_parquet(file: IO[bytes] | str, columns: Sequence[str] = ()) -> Any:
    """Open a parquet file for reading in bounded memory.

    Args:
        file: its path, or the open file.
        columns: of bytes, or of `{bytes, path}`, whose values rows may share; a shared value is in memory once.

    Returns:
        a `pyarrow.parquet.ParquetFile`.

    Raises:
        pyarrow.ArrowException, OSError: it is no parquet file, or broken.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading parquet", "data") from error
    about = parquet.read_metadata(file)
    if not isinstance(file, str):
        file.seek(0)
    paths = {path for name in columns for path in (name, f"{name}.bytes")}
    leaves = [about.schema.column(number) for number in range(len(about.schema))]
    shared = [leaf.path for leaf in leaves if leaf.path in paths and leaf.physical_type == "BYTE_ARRAY"]
    # Buffered reads keep no more of a column than a page, however large its row groups are.
    return parquet.ParquetFile(file, metadata=about, pre_buffer=False, buffer_size=1 << 20, read_dictionary=shared)


def _opened(reading: SourceFile, columns: Sequence[str] = ()) -> Any:
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise MissingExtraError("reading parquet", "data") from error
    try:
        return open_parquet(reading.file, columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"'{reading.name}' is no parquet file that can be read: {first_line(error)}.") from error


_LONGEST_NAME = 200  # bytes; file systems stop at 255
_ENDINGS = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


class InlineImages:
    """The folder that images are written to. Nothing is ever written outside of it, and no link in it is followed.

    A file that is there already is never replaced by other bytes: it may belong to another manifest, or to the user.

    Args:
        folder: made when the first image comes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder = Path(folder)
        self._names = SeenIds()

    def add(self, data: bytes, name: str | None = None) -> str:
        """Write an image.

        Args:
            data: the bytes of the image file.
            name: as the data set calls it; its folders are dropped. The name of another image, or of a file with
                other bytes that is there already, and no name at all, become a hash of the bytes.

        Returns:
            name of the file in the folder; the same bytes under the same name are written once.

        Raises:
            DataError: too large, or no name for a file.
            OSError: from the file system.
        """
        if len(data) > MAX_MEMBER:
            raise DataError(f"the image has {len(data) >> 20} MB, and {MAX_MEMBER >> 20} MB is the limit.")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        mark = int.from_bytes(digest[:7], "big")
        ending = next((ending for start, ending in _ENDINGS.items() if data.startswith(start)), ".img")
        file_name = posixpath.basename((name or "").replace("\\", "/"))
        if len(os.fsencode(file_name)) > _LONGEST_NAME:
            file_name = ""
        before = self._names.line_of(file_name) if file_name else mark + 1
        if before is None and _holds_other_bytes(safe_join(self.folder, file_name), data):
            before = mark + 1
        if before is not None and before != mark:
            file_name = digest.hex() + ending
            before = self._names.line_of(file_name)
        if before is None:
            self._write(safe_join(self.folder, file_name), data)
            self._names.add(file_name, mark)
        return file_name

    def _write(self, target: Path, data: bytes) -> None:
        """Write a file completely or not at all; the same bytes are not written again."""
        if os.path.lexists(target) and not _holds_other_bytes(target, data):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with partial_file(target, "xb") as (stream, partial):
            try:
                with stream:
                    stream.write(data)
                os.replace(partial, target)
            except OSError as error:
                partial.unlink(missing_ok=True)
                error.filename = str(target)
                raise


def _holds_other_bytes(target: Path, data: bytes) -> bool:
    """Whether a name is taken by a link, a folder or a file of other bytes."""
    try:
        state = target.lstat()
    except OSError:
        return False
    return not (stat.S_ISREG(state.st_mode) and state.st_size == len(data) and target.read_bytes() == data)
