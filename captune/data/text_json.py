"""Text and JSON files of any size, in bounded memory, with a sentence for every fault.

Files that end in `.gz` are unpacked on the way. UTF-8 is expected. A byte order mark is read: files that begin with the
mark of UTF-16 or UTF-32 (Excel's "Unicode text") are converted. Windows line ends are accepted.
"""

from __future__ import annotations

import ast
import codecs
import gzip
import io
import json
import os
import re
import tokenize
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from captune.errors import DataError
from captune.parsing import first_repeated, unique_keys_hook

__all__ = [
    "BYTE_ORDER_MARKS",
    "MAX_LINE",
    "BadItem",
    "SourceFile",
    "checked_lines",
    "item_fault",
    "json_items",
    "json_parts",
    "parse_json",
    "parse_list",
    "require_object",
    "string_field",
    "text_lines",
]

MAX_LINE = 16 * 1024 * 1024
"""Longest line in bytes; a longer one is no caption but a broken file."""

BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_HIGH = re.compile(rb"[\x80-\xff]+")
# In Windows-1252 the letters, and the quotation marks, dashes and dots of word processors.
_WESTERN = re.compile(rb"[\xc0-\xff\x80\x85\x91-\x97\xa0\xab\xb0\xbb]")
_WESTERN_SHARE = 0.8


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
    for number, line in enumerate(_raw_lines(reading), 1):
        if isinstance(line, DataError):
            yield line
            continue
        try:
            text = line.decode(encoding)
            is_utf8 = is_utf8 or not line.isascii()
        except UnicodeDecodeError as error:
            wrong = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            if not windows or is_utf8 or encoding != "utf-8" or not _is_western(reading.path):
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


def _raw_lines(reading: SourceFile) -> Iterator[bytes | DataError]:
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


def _is_western(path: Path) -> bool:
    """Whether a file can be Windows-1252: nothing beyond ASCII is UTF-8, and what is there are single letters.

    Chinese, Japanese, Cyrillic and Greek encodings have runs of high bytes, or bytes that are no letters here.
    """
    runs = single = high = western = 0
    for line in _raw_lines(SourceFile(path)):
        if isinstance(line, DataError) or line.isascii():
            continue
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            pass
        else:
            return False
        try:
            line.decode("cp1252")
        except UnicodeDecodeError:
            return False
        high_runs = _HIGH.findall(line)
        runs += len(high_runs)
        single += sum(len(run) == 1 for run in high_runs)
        high += sum(map(len, high_runs))
        western += len(_WESTERN.findall(line))
    return single >= _WESTERN_SHARE * runs and western >= _WESTERN_SHARE * high


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


def parse_json(text: str) -> Any:
    """Parse JSON; a key given twice and nesting without end are errors too.

    NaN and Infinity are read as Python writes them: they occur in unused fields, such as similarities, and
    are no text where text is expected.

    Raises:
        ValueError: with a message fit for a sentence.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not valid JSON: it is nested too deeply") from error


def parse_list(text: str) -> list[str]:
    """The strings of a list that is written as text: in JSON, or as Python and numpy print it into a cell of pandas.

    Raises:
        ValueError: it is none; the message is about JSON.
    """
    try:
        value = parse_json(text)
    except ValueError as error:
        value = _printed_list(text)
        if value is None:
            raise error from None
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise ValueError("a JSON list of strings is expected")
    return value


def _printed_list(text: str) -> list[str] | None:
    """The strings of `['a', "b"]`, and of numpy's `['a' "b"]`, which to Python is one string."""
    try:
        if not isinstance(ast.literal_eval(text.strip()), list):
            return None
        tokens = list(tokenize.generate_tokens(io.StringIO(text.strip()).readline))
        strings = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
        return None
    others = {token.string for token in tokens if token.type in (tokenize.OP, tokenize.NAME, tokenize.NUMBER)}
    return strings if others <= {"[", "]", ","} and all(isinstance(entry, str) for entry in strings) else None


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys_hook)


_CHUNK = 1 << 20
# White space between JSON's tokens; always matches.
_SPACE = re.compile(r"[ \t\r\n]*")
_AFTER_VALUE = frozenset(",]}: \t\r\n")


class BadItem(str):
    """What is wrong with an item of a list, in the item's place."""

    __slots__ = ()


def json_items(reading: SourceFile) -> Iterator[tuple[str, Any]]:
    """The items of a JSON document that is a list, or an object that holds lists.

    Args:
        reading: the open file; closed at the end.

    Yields:
        `("", item)` for each item of a list; for an object `(key, item)` for each item of a list in it, and
        `(key, value)` for every other value. An item is held alone; objects in it are parsed as `json` does, but an
        item with a key twice, of which `json` would keep the last, is a `BadItem`.

    Raises:
        DataError: not JSON, or an item longer than `captune.data.text_json.MAX_LINE`; names the position.
    """
    for key, item, _ in json_parts(reading):
        yield key, item


def json_parts(reading: SourceFile) -> Iterator[tuple[str, Any, bool]]:
    """What `json_items` yields, each with whether it is an item of a list."""
    document = _Document(reading)
    try:
        if document.peek() == "[":
            yield from document.items("")
        else:
            document.step("{")
            while document.peek() != "}":
                key = document.value()
                if not isinstance(key, str):
                    raise document.error("a key is expected")
                document.step(":")
                if document.peek() == "[":
                    yield from document.items(key)
                else:
                    yield key, document.value(), False
                if document.peek() != "}":
                    document.step(",")
            document.step("}")
        if document.peek():
            raise document.error("something follows the end")
    finally:
        reading.close()


def item_fault(error: KeyError | TypeError) -> str:
    """What is wrong with an item, from the error of reading it."""
    return f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else str(error)


def string_field(entry: Any, key: str) -> str:
    """The string under a key of an item.

    Raises:
        KeyError: the key is missing.
        TypeError: the item is no object, or the value no string.
    """
    require_object(entry, key)
    value = entry[key]
    if not isinstance(value, str):
        raise TypeError(f"'{key}' must be a string")
    return value


def require_object(entry: Any, key: str) -> None:
    """Refuse an item that is no object.

    Raises:
        TypeError: it is none, or a `BadItem`, whose fault is the message.
    """
    if not isinstance(entry, dict):
        raise TypeError(str(entry) if isinstance(entry, BadItem) else f"an object with '{key}' is expected")


class _Document:
    """The part of a document that is being parsed, and its position in the document."""

    def __init__(self, reading: SourceFile) -> None:
        self._reading = reading
        # A byte that is not UTF-8 becomes half of a surrogate pair, which is no text where that field is read.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._parse = json.JSONDecoder(object_pairs_hook=self._object).raw_decode
        # A number of thousands of digits is refused by int, and is no id.
        self._parse_large = json.JSONDecoder(object_pairs_hook=self._object, parse_int=float).raw_decode
        self._twice: str | None = None  # a key that the value being parsed has twice
        self._text = ""
        self._position = 0
        self._passed = 0  # characters dropped from the front
        self._complete = False

    def error(self, what: str) -> DataError:
        """The error at the current position."""
        position = self._passed + self._position + 1
        return DataError(f"'{self._reading.name}' is not valid JSON: {what} at character {position:,}.")

    def peek(self) -> str:
        """The next character that is no white space, or "" at the end."""
        while True:
            self._position = _SPACE.match(self._text, self._position).end()  # type: ignore[union-attr]
            if self._position < len(self._text):
                return self._text[self._position]
            if self._complete:
                return ""
            self._read()

    def step(self, expected: str) -> None:
        """Skip one character, which is required here."""
        if self.peek() != expected:
            raise self.error(f"'{expected}' is expected")
        self._position += 1

    def items(self, key: str) -> Iterator[tuple[str, Any, bool]]:
        """The items of the list that begins here."""
        self.step("[")
        while self.peek() != "]":
            value = self.value()
            yield key, value if self._twice is None else BadItem(f"the key '{self._twice}' is given twice"), True
            if self.peek() != "]":
                self.step(",")
        self.step("]")

    def value(self) -> Any:
        """Parse the next value, reading on until it is complete."""
        self.peek()
        parse = self._parse
        while True:
            self._twice = None
            try:
                value, end = parse(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._complete:
                    self._position = error.pos
                    raise self.error(error.msg[0].lower() + error.msg[1:]) from error
            except ValueError as error:
                if parse is self._parse_large:
                    raise self.error(str(error)) from error
                parse = self._parse_large
                continue
            except RecursionError as error:
                raise self.error("it is nested too deeply") from error
            else:
                # A number at the edge of a chunk may continue: "1", "1.", "1.5".
                if self._complete or self._text[end : end + 1] in _AFTER_VALUE:
                    self._position = end
                    return value
            if len(self._text) - self._position > MAX_LINE:
                raise self.error(f"an item longer than {MAX_LINE >> 20} MB, or broken, begins")
            self._read()

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            self._twice = first_repeated(key for key, _ in pairs)
        return entry

    def _read(self) -> None:
        """Append the next chunk to what is not parsed yet."""
        try:
            data = self._reading.stream.read(_CHUNK)
            fresh = self._decode(data, not data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"'{self._reading.name}' cannot be unpacked: {error}.") from error
        self._complete = not data
        self._passed += self._position
        self._text = self._text[self._position :] + fresh
        self._position = 0
