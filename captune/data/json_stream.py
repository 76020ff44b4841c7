"""JSON documents of any size, parsed item by item in bounded memory, with a sentence for every fault."""

from __future__ import annotations

import ast
import codecs
import gzip
import io
import json
import re
import tokenize
import zlib
from collections.abc import Iterator
from typing import Any

from captune.data.text_files import MAX_LINE, SourceFile
from captune.errors import DataError
from captune.parsing import first_repeated, unique_keys_hook

__all__ = [
    "BadItem",
    "item_fault",
    "json_items",
    "json_parts",
    "parse_json",
    "parse_list",
    "require_object",
    "string_field",
]


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
        DataError: not JSON, or an item longer than `captune.data.text_files.MAX_LINE`; names the position.
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
