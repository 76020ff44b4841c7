r"""File names as text.

A file name on Linux is bytes and need not be UTF-8; Python carries the other bytes as lone surrogates, which no JSON
reader and no parquet file takes. Where such a name goes into a file it is escaped, in one way for every format:

    caf<E9>.jpg      caf\xe9.jpg
    a<E9>\b.jpg      a\xe9\x5cb.jpg      a backslash in such a name, so that every name can be read back

A name that is UTF-8 stays as it is, unless it holds what reads like an escape (`\xe9` as four letters).
"""

from __future__ import annotations

import re

__all__ = ["name_as_text", "text_as_name"]

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def name_as_text(name: str) -> str:
    """A file name, or a path, as text that can be written as UTF-8.

    Args:
        name: as Python's functions return it.

    Returns:
        the text; different names have different texts.
    """
    if not _SURROGATE.search(name) and not _ESCAPE.search(name):
        return name
    return _SURROGATE.sub(_escaped, name.replace("\\", r"\x5c"))


def text_as_name(text: str) -> str:
    """The file name that `name_as_text` made a text of."""
    if not _ESCAPE.search(text):
        return text
    unescaped = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    return unescaped.decode("utf-8", "surrogateescape")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    # Python carries the byte 0xE9 as U+DCE9; any other half of a pair came from elsewhere, such as JSON.
    byte = [code - 0xDC00] if 0xDC80 <= code <= 0xDCFF else match[0].encode("utf-8", "surrogatepass")
    return "".join(f"\\x{value:02x}" for value in byte)
