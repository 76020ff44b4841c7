"""The split that the name of a file says."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["split_of_name"]

_WORDS: Final = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
_WORD = re.compile(r"[^\W\d_]+")


def split_of_name(name: str) -> tuple[str, str]:
    """The split that a file name says, and how it says it.

    Only a separate word counts, divided by anything that is no letter: "captions_val2017.json", "train-v2.csv" and
    "my_test.json" say a split, "latest.json" and "contest_2024.json" do not.

    Args:
        name: of a file, without folders.

    Returns:
        "train", "val" or "test", and the reason as a clause for the summary; "train" where the name says no split, or
        several.
    """
    said = dict.fromkeys(_WORDS[word] for word in _WORD.findall(name.lower()) if word in _WORDS)
    if len(said) == 1:
        return next(iter(said)), f"as the name '{name}' says; --split names another"
    why = "says several splits" if said else "says no split"
    return "train", f"since the name '{name}' {why}; --split names another"
