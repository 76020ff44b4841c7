"""What reading the original's sections has in common: keys that must be known, values of the right kind, notes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from captune.common import did_you_mean
from captune.errors import ConfigError

__all__ = ["Reader"]


class Reader:
    """Reads one file and takes down what there is to say of it.

    Args:
        source: what messages call the file.
        processes: that torchrun started; the original's batch size is that of each process.

    Attributes:
        notes: sentences for a person, in the order of the file.
    """

    def __init__(self, source: str, processes: int) -> None:
        self.source = source
        self.processes = processes
        self.notes: list[str] = []

    def number(self, given: dict[str, Any], key: str, kind: Callable[[Any], Any]) -> Any:
        """A number of the run section."""
        return self.as_number(f"run.{key}", given[key], kind)

    def as_number(self, place: str, value: Any, kind: Callable[[Any], Any]) -> Any:
        """YAML 1.1 reads 3e-5 as text, and 5.0 is a whole number."""
        try:
            number = float(value)
            if isinstance(value, bool) or kind(number) != number:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            expected = "a whole number" if kind is int else "a number"
            raise self.error(f"{place} is {value!r}; expected {expected}") from None
        return kind(number)

    def text(self, place: str, value: Any) -> str:
        """A path."""
        if not isinstance(value, str):
            raise self.error(f"{place} is {value!r}; expected a path")
        if "${" in value:
            raise self.error(f"{place} is '{value}', which OmegaConf would fill in; write the path itself")
        return value

    def known(self, place: str, given: Any, known: Iterable[str]) -> None:
        """Refuse keys that the original does not know either; there they were silently ignored."""
        if not isinstance(given, dict):
            raise self.error(f"{place} is {given!r}; expected keys with values")
        known = sorted(known)
        for key in given:
            if key not in known:
                hint = did_you_mean(str(key), known, f"known keys are: {', '.join(known)}", cutoff=0.5)
                raise self.error(f"there is no key '{f'{place}.' if place else ''}{key}'; {hint}")

    def error(self, sentence: str) -> ConfigError:
        """What to raise where the file cannot be translated."""
        end = "" if sentence.endswith("?") else "."
        return ConfigError(f"{self.source} is a configuration of the original: {sentence}{end}")

    def note(self, sentence: str) -> None:
        """Take down something a person should know."""
        self.notes.append(sentence)

    def dead(self, place: str, reason: str) -> None:
        """Take down a key without effect."""
        self.note(f"{place} had no effect in the original: {reason}.")
