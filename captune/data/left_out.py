"""What a folder or an archive holds and captune does not read as an image, counted by ending and said in one line."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable

from captune.data.formats import HEIF_EXTRA, HEIF_SUFFIXES, is_image_name

__all__ = ["LeftOut", "is_companion"]

_COMPANIONS = frozenset(
    {".txt", ".json", ".jsonl", ".caption", ".tags", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".cls"}
    | {".npy", ".npz", ".pt", ".pth", ".safetensors", ".pyd", ".pickle", ".index", ".url", ".id", ".log"}
)
"""Endings of what is kept with an image: captions, annotations, embeddings."""

_OF_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})
_SHOWN = 8


class LeftOut:
    """Counts files by ending.

    Attributes:
        counts: ending in lower case, "" where there is none -> files.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count a file."""
        self.counts[posixpath.splitext(name.lower())[1]] += 1

    def add_folder(self, names: Iterable[str]) -> None:
        """Count the files of one folder that are no images and belong to none.

        Args:
            names: of all files of the folder. A text file belongs to the file of another kind that has its name
                without ending, `a.txt` to `a.jpg`, or its name with the ending, `a.jpg.txt`.
        """
        listed = [name for name in names if not name.startswith(".") and name.lower() not in _OF_SYSTEMS]
        owners = {owner for name in listed if not is_companion(name) for owner in (name, posixpath.splitext(name)[0])}
        for name in listed:
            if is_image_name(name) or (is_companion(name) and posixpath.splitext(name)[0] in owners):
                continue
            self.add(name)

    def sentence(self, what: str = "file") -> str | None:
        """One line for all of them, or None where there are none.

        Args:
            what: they are, as a singular noun.
        """
        total = self.counts.total()
        if not total:
            return None
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        parts = [f"{count:,} {ending or 'without an ending'}" for ending, count in ranked[:_SHOWN]]
        if rest := sum(count for _, count in ranked[_SHOWN:]):
            parts.append(f"{rest:,} of other endings")
        subject = f"1 {what} is not an image by its" if total == 1 else f"{total:,} {what}s are not images by their"
        heif = HEIF_SUFFIXES & self.counts.keys()
        hint = f"; to read {' and '.join(sorted(heif))}: {HEIF_EXTRA}" if heif else ""
        return f"{subject} ending: {', '.join(parts)}{hint}"


def is_companion(name: str) -> bool:
    """Whether a file is kept with an image by its ending: a caption, an annotation, an embedding."""
    return posixpath.splitext(name.lower())[1] in _COMPANIONS
