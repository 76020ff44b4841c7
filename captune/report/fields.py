"""Checked access to one JSON object: every wrong part ends in one sentence that names its place."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from captune.common import shorten
from captune.errors import InputError

__all__ = ["LARGEST", "Fields", "first_repeated"]

T = TypeVar("T")

LARGEST = 1e9
"""No score of captions comes near it; a larger one is a defect of the file and would break every chart."""


class Fields:
    """The fields of one JSON object, read by name and type.

    Args:
        tree: what should be a JSON object.
        source: the file, for messages.
        place: where in the file the object stands, for messages.

    Raises:
        InputError: `tree` is not an object.
    """

    def __init__(self, tree: object, source: str, place: str) -> None:
        if not isinstance(tree, dict):
            raise InputError(f"{source}: {place} is {_shown(tree)}, expected an object.")
        self._tree: dict[str, Any] = tree
        self._read: set[str] = set()
        self._source = source
        self._place = place

    def __contains__(self, name: str) -> bool:
        return name in self._tree

    def get(self, name: str) -> object:
        """The raw value.

        Raises:
            InputError: there is no such field.
        """
        if name not in self._tree:
            raise InputError(f"{self._source}: {self._place} has no field {name!r}; evaluate again to write it.")
        self._read.add(name)
        return self._tree[name]

    def wrong(self, name: str, expected: str, value: object = ...) -> InputError:
        """The error that says what stands in field `name` and what was expected there."""
        given = self._tree.get(name) if value is ... else value
        return InputError(f"{self._source}: {self._place}.{name} is {_shown(given)}, expected {expected}.")

    def text(self, name: str, *, empty: bool = True) -> str:
        """A string; with `empty=False` one that is not blank."""
        value = self.get(name)
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.wrong(name, "a text" if empty else "a text that is not empty")
        return value

    def integer(self, name: str, *, least: int = 0) -> int:
        """A whole number, `least` or more."""
        value = self.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(name, f"a whole number, {least} or more")
        return value

    def sequence(self, name: str) -> list[object]:
        """A JSON list."""
        value = self.get(name)
        if not isinstance(value, list):
            raise self.wrong(name, "a list")
        return value

    def mapping(self, name: str, check: Callable[[Fields, str, object], T]) -> dict[str, T]:
        """A JSON object whose every value passes `check` (one of the methods below)."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise self.wrong(name, "an object")
        return {key: check(self, f"{name}[{key!r}]", item) for key, item in value.items()}

    def score(self, name: str, value: object) -> float:
        """A number, or null for not a number."""
        if value is None:
            return math.nan
        # A bool is an int in Python; NaN is how Python's own writer spells null.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(_as_float(value)) > LARGEST:
            raise self.wrong(name, f"null or a number of at most {LARGEST:.0e}", value)
        return float(value)

    def scores(self, name: str, value: object) -> dict[str, float]:
        """An object of scores."""
        if not isinstance(value, dict):
            raise self.wrong(name, "an object of scores", value)
        return {metric: self.score(f"{name}[{metric!r}]", score) for metric, score in value.items()}

    def caption(self, name: str, value: object) -> str:
        """Any text, empty too."""
        if not isinstance(value, str):
            raise self.wrong(name, "a text", value)
        return value

    def texts(self, name: str, value: object) -> tuple[str, ...]:
        """A list of texts."""
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of texts", value)
        return tuple(value)

    def interval(self, name: str, value: object) -> tuple[float, float]:
        """Two finite numbers, the lower one first."""
        if isinstance(value, list) and len(value) == 2:
            low, high = (self.score(name, bound) for bound in value)
            if low <= high:
                return low, high
        raise self.wrong(name, "[low, high] with low <= high", value)

    def probabilities(self, name: str, value: object) -> dict[str, float]:
        """An object of probabilities between 0 and 1."""
        tests = self.scores(name, value)
        for rival, probability in tests.items():
            if not 0 <= probability <= 1:
                raise self.wrong(f"{name}[{rival!r}]", "a probability between 0 and 1", probability)
        return tests

    def named_intervals(self, name: str, value: object) -> dict[str, tuple[float, float]]:
        """An object of intervals."""
        if not isinstance(value, dict):
            raise self.wrong(name, "an object of intervals", value)
        return {rival: self.interval(f"{name}[{rival!r}]", bounds) for rival, bounds in value.items()}

    def finish(self) -> None:
        """Refuse fields that nobody asked for.

        Raises:
            InputError: names the first one, and the field it may have been meant to be.
        """
        for name in self._tree:
            if name not in self._read:
                near = difflib.get_close_matches(name, self._read, n=1)
                hint = f"; did you mean {near[0]!r}" if near else ""
                raise InputError(f"{self._source}: {self._place} has an unknown field {name!r}{hint}.")


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that stood there before, or None."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _as_float(value: int | float) -> float:
    """The number as a float, infinite when it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: object) -> str:
    """A value short enough for one sentence."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = "null" if value is None else repr(value)
    return shorten(text, 60, "...")
