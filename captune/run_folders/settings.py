"""Settings of a run that differ from those stored in its output folder."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ADJUSTABLE", "OVERWRITE", "decisive_changes", "other_configuration"]

ADJUSTABLE = frozenset({"train.epochs", "train.select", "train.early_stop", "train.keep"})
"""Settings that may change in the folder of a run: they decide how long it trains and what is kept of it."""
OVERWRITE = ", or pass --overwrite to move a run's files into a folder inside it."
"""End of the sentence that refuses an output folder."""
_SHOWN_CHANGES = 8
"""Changed settings that a message lists."""

Changes = dict[str, tuple[object, object]]
"""Settings with their values before and now."""


def decisive_changes(changes: Changes) -> Changes:
    """The changes with which a folder holds another run."""
    return {name: values for name, values in changes.items() if name not in ADJUSTABLE}


def other_configuration(output: Path, changes: Changes) -> str:
    """The beginning of the sentence that refuses the folder of a run with other settings."""
    return (
        f"{output} already holds a run with another configuration ({_shown_changes(changes)}); give another folder "
        "with output=..."
    )


def _shown_changes(changes: dict[str, tuple[object, object]]) -> str:
    """Settings with their values before and after, such as `seed: 1 -> 2`."""
    shown = [f"{name}: {_shown_value(before)} -> {_shown_value(now)}" for name, (before, now) in changes.items()]
    more = len(shown) - _SHOWN_CHANGES
    return ", ".join(shown[:_SHOWN_CHANGES]) + (f", and {more} more" if more > 0 else "")


def _shown_value(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"
