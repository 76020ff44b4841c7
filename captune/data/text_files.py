"""Text files of any size, in bounded memory, with a sentence for every fault.

Files that end in `.gz` are unpacked on the way. UTF-8 is expected. A byte order mark is read: files that begin with the
mark of UTF-16 or UTF-32 (Excel's "Unicode text") are converted. Windows line ends are accepted.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from captune.data.windows_text import is_western, western_language
from captune.errors import DataError

__all__ = ["BYTE_ORDER_MARKS", "MAX_LINE", "SourceFile", "checked_lines", "raw_lines", "text_lines"]

MAX_LINE = 16 * 1024 * 1024
"""Longest line in bytes; a longer one is no caption but a broken file."""

BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class _Bytes(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...

    def readline(self, size: int | None = -1, /) -> bytes: ...

    def close(self) -> None: ...


class SourceFile:
    """An open annotation file, and how much of it is read for a progress bar.

    Attributes:
        stream: the bytes of the file, unpacked, without a byte order mark; UTF-16 and UTF-32 come as UTF-8.
        notes: sentences on how the file was understood, for the summary.

    Args:
        path: the file.
        encoding: of its text, such as "cp1252"; by default UTF-8, or that of its byte order mark.

    Raises:
        DataError: it is not there, no regular file, or not readable; or there is no such encoding.
    """

    def __init__(self, path: str | os.PathLike[str], encoding: str | None = None) -> None:
        self.path = Path(path)
        self.name = str(path)
        self.notes: list[str] = []
        if not self.path.exists():
            raise DataError(f"there is no file '{path}'.")
        if not self.path.is_file():
            what = "a folder" if self.path.is_dir() else "no regular file"
            raise DataError(f"'{path}' is {what}, and a file is expected.")
        try:
            codec = None if encoding is None else codecs.lookup(encoding)
        except LookupError:
            raise DataError(f"there is no encoding '{encoding}'; give one such as cp1252, gb18030 or utf-8.") from None
        self.size = self.path.stat().st_size
        self._codec = codec
        self.reopen()

    def reopen(self) -> None:
        """Begin to read the file again."""
        self.notes.clear()
        try:
            self.file = open(self.path, "rb")  # noqa: SIM115  (closed by `close`, which every reader calls)
        except OSError as error:
            raise DataError(f"cannot read '{self.path}': {(error.strerror or str(error)).lower()}.") from error
        unpacked: io.BufferedReader | gzip.GzipFile = self.file
        if self.path.suffix == ".gz":
            unpacked = gzip.GzipFile(fileobj=self.file)
        self.stream: _Bytes = unpacked
        start = _start(unpacked)
        marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
        self.encoding = (self._codec.name if self._codec is not None else marked) or "utf-8"
        if self.encoding == "utf-8":
            if start.startswith(codecs.BOM_UTF8):
                unpacked.read(len(codecs.BOM_UTF8))
        else:
            self.stream = io.BufferedReader(_AsUtf8(unpacked, self.encoding, self.name))
            if self._codec is None:
                self.notes.append(f"the file is {marked} text, by its byte order mark")

    @property
    def share(self) -> float:
        """How much of the file is read, from 0 to 1, counted in bytes on the disk."""
        return self.file.tell() / self.size if self.size and not self.file.closed else 1.0

    def close(self) -> None:
        """Close the file."""
        self.stream.close()
        self.file.close()


def text_lines(reading: SourceFile) -> Iterator[str]:
    """The lines of a UTF-8 file of which every line is needed, such as a list of images.

    Raises:
        DataError: a line is not UTF-8, holds a NUL or is too long; names file and line.
    """
    for number, line in enumerate(checked_lines(reading), 1):
        if isinstance(line, DataError):
            raise DataError(
                f"{reading.name}:{number}: {line} Is the file in another encoding? Write it again as UTF-8, "
                f"for example with: iconv -f LATIN1 -t UTF-8 {reading.path.name}"
            )
        yield line


def checked_lines(reading: SourceFile, *, windows: bool = False) -> Iterator[str | DataError]:
    """The lines of a file, or why a line is no text; one bad line does not keep the others from being read.

    Args:
        reading: the open file; closed at the end.
        windows: take a file that is not UTF-8 for Windows-1252 where all of it can be, and note that. A file that has
            text in UTF-8 as well is UTF-8 with bad lines.

    Yields:
        each line without its end, or an error that names no place. Never more than `MAX_LINE` bytes are held.

    Raises:
        DataError: the gzip data are broken, or the text is not of the encoding that was given.
    """
    encoding, is_utf8 = "utf-8", False
    for number, line in enumerate(raw_lines(reading), 1):
        if isinstance(line, DataError):
            yield line
            continue
        try:
            text = line.decode(encoding)
            is_utf8 = is_utf8 or not line.isascii()
        except UnicodeDecodeError as error:
            wrong = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            if not windows or is_utf8 or encoding != "utf-8" or not _is_windows(reading.path):
                windows = False
                yield DataError(f"the line is not UTF-8 ({wrong}).")
                continue
            encoding, text = "cp1252", line.decode("cp1252")
            reading.encoding = "Windows-1252"
            reading.notes.append(
                f"the file is not UTF-8 (line {number}, {wrong}) and is read as Windows-1252; if letters are wrong "
                "below, write it again as UTF-8"
            )
        if "\0" in text:
            yield DataError(f"the line holds a NUL character (column {text.index(chr(0)) + 1}).")
        else:
            yield text


def _is_windows(path: Path) -> bool:
    return is_western(raw_lines(SourceFile(path))) or western_language(raw_lines(SourceFile(path))) is not None


def raw_lines(reading: SourceFile) -> Iterator[bytes | DataError]:
    """The lines of a file as bytes; one that is too long is passed over."""
    number = 0
    try:
        while line := reading.stream.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                while line and not line.endswith(b"\n"):
                    line = reading.stream.readline(MAX_LINE + 1)
                yield DataError(
                    f"the line is longer than {MAX_LINE // 2**20} MB; is this a file of captions, and does every line "
                    "end?"
                )
            else:
                yield line.rstrip(b"\r\n")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"'{reading.name}' cannot be unpacked after line {number}: {error}.") from error
    finally:
        reading.close()


def _start(stream: io.BufferedReader | gzip.GzipFile) -> bytes:
    """The first bytes of a file, which stay unread; none where unpacking fails, which reading reports."""
    try:
        return stream.peek(4)[:4]
    except (OSError, EOFError, zlib.error):
        return b""


class _AsUtf8(io.RawIOBase):
    """Text of another encoding as the bytes of UTF-8."""

    def __init__(self, stream: _Bytes, encoding: str, name: str) -> None:
        self._stream, self._encoding, self._name = stream, encoding, name
        # Halves of surrogate pairs, which UTF-16 can hold, get through and are bad lines of UTF-8 then.
        errors = "surrogatepass" if encoding.startswith("UTF") else "strict"
        self._decode = codecs.getincrementaldecoder(encoding)(errors).decode
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = b"more"
        while data and not self._ready:
            data = self._stream.read(1 << 16)
            try:
                self._ready = self._decode(data, not data).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise DataError(f"'{self._name}' is not valid {self._encoding} text: {error.reason}.") from error
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()
