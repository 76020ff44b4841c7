"""One large JSON document, item by item: annotation files of a gigabyte in a few megabytes of memory."""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

from captune.data.text import MAX_LINE, Reading, without_mark
from captune.errors import DataError

__all__ = ["json_items", "string_field"]

_CHUNK = 1 << 20
# White space between JSON's tokens; always matches.
_SPACE = re.compile(r"[ \t\r\n]*")
_AFTER_VALUE = frozenset(",]}: \t\r\n")


def json_items(reading: Reading) -> Iterator[tuple[str, Any]]:
    """The items of a JSON document that is a list, or an object that holds lists.

    Args:
        reading: the open file; closed at the end.

    Yields:
        `("", item)` for each item of a list; for an object `(key, item)` for each item of a list in it, and
        `(key, value)` for every other value. An item is held alone; objects in it are parsed as `json` does.

    Raises:
        DataError: not JSON, not UTF-8, or an item longer than `captune.data.text.MAX_LINE`; says where.
    """
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
                    yield key, document.value()
                if document.peek() != "}":
                    document.step(",")
            document.step("}")
        if document.peek():
            raise document.error("something follows the end")
    finally:
        reading.close()


def string_field(entry: Any, key: str) -> str:
    """The string under a key of an item.

    Raises:
        KeyError: the key is missing.
        TypeError: the item is no object, or the value no string.
    """
    if not isinstance(entry, dict):
        raise TypeError(f"an object with '{key}' is expected")
    value = entry[key]
    if not isinstance(value, str):
        raise TypeError(f"'{key}' must be a string")
    return value


class _Document:
    """The part of a document that is being parsed, and where in the whole it stands."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._text = ""
        self._position = 0
        self._passed = 0  # characters dropped from the front
        self._complete = False

    def error(self, what: str) -> DataError:
        """The error for what stands at the present position."""
        place = self._passed + self._position + 1
        return DataError(f"'{self._reading.name}' is not valid JSON: {what} at character {place:,}.")

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
        """Go over one character that must stand here."""
        if self.peek() != expected:
            raise self.error(f"'{expected}' is expected")
        self._position += 1

    def items(self, key: str) -> Iterator[tuple[str, Any]]:
        """The items of the list that begins here."""
        self.step("[")
        while self.peek() != "]":
            yield key, self.value()
            if self.peek() != "]":
                self.step(",")
        self.step("]")

    def value(self) -> Any:
        """Parse the next value, reading on until it is whole."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self._text, self._position)
            except json.JSONDecodeError as error:
                if self._complete:
                    self._position = error.pos
                    raise self.error(error.msg[0].lower() + error.msg[1:]) from error
            except (ValueError, RecursionError) as error:
                raise self.error(str(error)) from error
            else:
                # A number at the edge of a chunk may go on: "1", "1.", "1.5".
                if self._complete or self._text[end : end + 1] in _AFTER_VALUE:
                    self._position = end
                    return value
            if len(self._text) - self._position > MAX_LINE:
                raise self.error(f"an item longer than {MAX_LINE >> 20} MB, or broken, begins")
            self._read()

    def _read(self) -> None:
        """Put the next chunk behind what is not parsed yet."""
        try:
            data = self._reading.stream.read(_CHUNK)
            if not self._passed and not self._text:
                data = without_mark(data, self._reading.name)
            fresh = self._decode(data, not data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"'{self._reading.name}' cannot be unpacked: {error}.") from error
        except UnicodeDecodeError as error:
            place = self._passed + len(self._text) + error.start + 1
            wrong = f"byte 0x{error.object[error.start]:02x} near character {place:,}"
            raise DataError(f"'{self._reading.name}' is not UTF-8 ({wrong}).") from error
        self._complete = not data
        self._passed += self._position
        self._text = self._text[self._position :] + fresh
        self._position = 0
