"""Ids of images as text, whatever number types a file gave them."""

from __future__ import annotations

import re
from decimal import Decimal

__all__ = ["id_text", "without_fraction"]

_LARGEST = 2**53  # larger whole numbers lose digits as floats, so that two ids can become one
_WHOLE = re.compile(r"-?\d+\.0+")


def id_text(value: object, what: str) -> str:
    """An id as text: 391895, 391895.0 and "391895" are one id.

    pandas makes floats of whole numbers as soon as one row of a column has none.

    Args:
        value: as it came out of a file.
        what: what the value is called in messages.

    Raises:
        TypeError: it is neither text nor a whole number that a float can hold.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float | Decimal):
        if not value == value or value in (float("inf"), float("-inf")) or value != int(value):
            raise TypeError(f"'{what}' must be text or a whole number, not {value}")
        if isinstance(value, float) and abs(value) >= _LARGEST:
            raise TypeError(f"'{what}' is {value:.0f} as a float, which can have lost digits; write it as text")
        return str(int(value))
    raise TypeError(f"'{what}' must be text or a whole number, not {_kind(value)}")


def without_fraction(text: str) -> str:
    """Text of a whole number without the ".0" that pandas writes into CSV; other text unchanged."""
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), type(value).__name__)
