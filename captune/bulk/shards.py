"""Shards: parts of a collection that one worker captions into one file, and whether their files are still the same.

Image files are cut into shards of equal size; a webdataset tar or a parquet file is one shard.

A file is identified by its bytes. Size, times and inode only save reading it again: where all of them are equal, so are
the bytes; where one differs (another machine, a copy), the hashes of the bytes are compared.
"""

from __future__ import annotations

import hashlib
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from captune.common import error_text
from captune.data import (
    HEIF_SUFFIXES,
    MAX_MEMBER,
    SkippedFiles,
    bounded_batches,
    id_text,
    is_companion,
    is_image_name,
    name_as_text,
    open_parquet,
    open_tar,
    too_large,
)
from captune.errors import DataError

__all__ = [
    "Entry",
    "FileState",
    "Item",
    "ParquetShard",
    "PathShard",
    "Rejected",
    "Shard",
    "TarShard",
    "file_state",
    "file_states",
    "is_changed",
]

_COMPLETE_HASH_LIMIT = 64 << 20
"""Bytes up to which a file is hashed completely; of a larger one (a tar) the size and samples."""
_SAMPLES, _SAMPLE = 16, 1 << 16

FileState: TypeAlias = list[Any]
"""Hash of the bytes, size, time of change, time of change of the inode, inode."""


def file_state(path: Path) -> FileState | None:
    """The state of a file, to be kept with its captions; None where it cannot be read."""
    try:
        return [_digest(path), *_key(path)]
    except OSError:
        return None


def is_changed(path: Path, state: FileState | None) -> bool:
    """Whether a file has other bytes than when its state was taken; one that is gone or had no state has not."""
    try:
        return state is not None and _key(path) != state[1:] and _digest(path) != state[0]
    except OSError:
        return False


def _key(path: Path) -> list[int]:
    entry = path.stat()
    return [entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino]


def _digest(path: Path) -> str:
    if not path.is_file():
        raise OSError(f"'{path}' is not a regular file")
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        digest.update(f"{size}\n".encode())
        if size <= _COMPLETE_HASH_LIMIT:
            while block := stream.read(1 << 20):
                digest.update(block)
        else:
            for number in range(_SAMPLES):
                stream.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()


logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes", "content")
_ID_COLUMNS = ("id", "image_id", "__key__", "key", "uid", "file_name", "filename", "path")
_ROWS = 64
"""Rows of a parquet file that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image.

    Attributes:
        id: names it in the output; a name that is not UTF-8 is escaped (`captune.data.image_files`).
        image: where it is, for people, escaped in the same way.
        payload: its path, or the bytes of its file.
    """

    id: str
    image: str
    payload: Path | bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """One image, or one place of an archive, that cannot be captioned.

    Attributes:
        id: names it.
        image: where it is.
        reason: a sentence.
    """

    id: str
    image: str
    reason: str


Entry: TypeAlias = Item | Rejected


@dataclass(frozen=True)
class PathShard:
    """Image files.

    Attributes:
        name: of the shard, and of its output file.
        entries: id and path of each image.
    """

    name: str
    entries: tuple[tuple[str, str], ...]

    @property
    def count(self) -> int | None:
        """Number of images."""
        return len(self.entries)

    def items(self) -> Iterator[Entry]:
        """The images, in order."""
        for name, path in self.entries:
            yield Item(name, name_as_text(path), Path(path))

    def files(self) -> dict[str, Path]:
        """The files that it is made of, by id."""
        return {name: Path(path) for name, path in self.entries}


@dataclass(frozen=True)
class TarShard:
    """A webdataset tar: members of one name and several endings are one sample, one of them an image.

    Attributes:
        name: of the shard, and of its output file.
        path: of the tar; `.tar.gz` is unpacked on the way.
    """

    name: str
    path: str

    @property
    def count(self) -> int | None:
        """Unknown before it is read."""
        return None

    def items(self) -> Iterator[Entry]:
        """The images, in order; where the archive is broken, what is wrong with it comes last."""
        skipped = SkippedFiles()
        try:
            with open(self.path, "rb") as stream, open_tar(stream) as archive:
                for member in archive:
                    name = PurePosixPath(member.name)
                    if not member.isfile():
                        continue
                    if not is_image_name(name.name) and name.suffix.lower() not in HEIF_SUFFIXES:
                        if not is_companion(name.name):
                            skipped.add(name.name)
                        continue
                    where = name_as_text(f"{self.path}:{member.name}")
                    # As in webdataset, the key of a sample ends at the first dot of its file's name.
                    key = name_as_text((name.parent / name.name.split(".", 1)[0]).as_posix())
                    if reason := too_large(member):
                        yield Rejected(key, where, reason)
                        continue
                    file = archive.extractfile(member)
                    data = b"" if file is None else file.read()
                    if len(data) != member.size:
                        yield Rejected(key, where, f"the archive '{self.path}' ends in the middle of this image.")
                    else:
                        yield Item(key, where, data)
        except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            shown = name_as_text(self.path)
            yield Rejected(shown, shown, f"the archive '{self.path}' is broken from here on: {reason}.")
        if others := skipped.sentence("member"):
            logger.warning("%s: %s.", self.path, others)

    def files(self) -> dict[str, Path]:
        """The file that it is."""
        return {"": Path(self.path)}


@dataclass(frozen=True)
class ParquetShard:
    """A parquet file with a column of images: the bytes of files, Hugging Face's `{bytes, path}`, or paths.

    Attributes:
        name: of the shard, and of its output file.
        path: of the file.
        image_column: None finds it by its name.
        id_column: None finds it by its name; without one, ids are the shard's name and the row.
    """

    name: str
    path: str
    image_column: str | None = None
    id_column: str | None = None

    @property
    def count(self) -> int | None:
        """Number of rows, read off the file's end."""
        from pyarrow import ArrowException, parquet

        try:
            rows: int = parquet.read_metadata(self.path).num_rows
        except (ArrowException, OSError):
            return None
        return rows

    def items(self) -> Iterator[Entry]:
        """The images, in order; where the file is broken, what is wrong with it comes last.

        Raises:
            DataError: there is no column of images; the message names those that there are.
        """
        from pyarrow import ArrowException, parquet

        row = 0
        try:
            names = parquet.read_schema(self.path).names
            image = self._column(names, self.image_column, _IMAGE_COLUMNS, "images")
            id_column = self._column(names, self.id_column, _ID_COLUMNS, None)
            key = None if id_column == image else id_column
            assert image is not None
            columns = [image] if key is None else [image, key]
            with open_parquet(self.path, [image]) as file:
                for batch in bounded_batches(file, columns, _ROWS):
                    for index in range(batch.num_rows):
                        row_id = None if key is None else batch.column(key)[index].as_py()
                        yield self._item(row, _row_id(row_id), batch.column(image)[index].as_py())
                        row += 1
        except (ArrowException, OSError) as error:
            reason = error_text(error)
            shown = name_as_text(self.path)
            yield Rejected(f"{shown}:{row}", shown, f"'{self.path}' is broken from row {row} on: {reason}.")

    def files(self) -> dict[str, Path]:
        """The file that it is."""
        return {"": Path(self.path)}

    def _item(self, row: int, key: str | None, value: Any) -> Entry:
        where = f"{name_as_text(self.path)}:{row}"
        name = key if key is not None else f"{self.name}:{row}"
        path = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        if isinstance(value, bytes):
            if len(value) > MAX_MEMBER:
                size = f"{len(value) >> 20:,} MB, and {MAX_MEMBER >> 20} MB is the limit"
                return Rejected(name, where, f"row {row} of '{self.path}' has {size}.")
            return Item(name, where, value)
        text = value if isinstance(value, str) else path
        if isinstance(text, str) and text:
            return Item(name, name_as_text(text), Path(self.path).parent / text)
        return Rejected(name, where, f"row {row} of '{self.path}' holds no image.")

    def _column(
        self, names: list[str], requested: str | None, usual: tuple[str, ...], needed: str | None
    ) -> str | None:
        if requested is not None:
            if requested not in names:
                raise DataError(f"'{self.path}' has no column '{requested}'; it has {', '.join(names)}.")
            return requested
        known = next((name for name in usual if name in names), None)
        if known is None and needed is not None:
            raise DataError(
                f"'{self.path}' has no column of {needed} that is known by its name; it has {', '.join(names)}. Name "
                "it with --image-column."
            )
        return known


def _row_id(value: object) -> str | None:
    """The id of a row as all commands write it; None without one, which is NaN where ids are floats."""
    if value is None or value != value:
        return None
    try:
        return id_text(value, "id")
    except TypeError:
        return str(value)


Shard: TypeAlias = PathShard | TarShard | ParquetShard


def file_states(shard: Shard) -> dict[str, FileState | None]:
    """The states of the files of a shard, by which it is seen later whether they are still the same."""
    return {name: file_state(path) for name, path in shard.files().items()}
