"""From an image's name in an annotation file to the file in the image folder, where the two are spelt differently.

Names that differ from a file's in one of four known ways are found: paths of Windows (`C:\\data\\a.jpg`), letters with
accents in the other of Unicode's two forms (a folder that went through macOS), paths that begin with the image folder
(`images/a.jpg`), and names without an ending where the format leaves it out.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Final

from captune.data.formats import image_suffixes

__all__ = ["SPELLINGS", "file_name", "without_windows", "written_alike"]

SPELLINGS: Final = {
    "windows": "image names are paths of Windows",
    "unicode": "image names have accents in another Unicode form than the files (NFC, NFD)",
    "ending": "image names have no ending",
    "folder": "image names begin with the name of the image folder",
}
"""How names can differ from the files', as a summary says it."""

_USUAL = (".jpg", ".jpeg", ".png", ".webp")  # endings that are tried first
_WINDOWS_ROOT = re.compile(r"[A-Za-z]:[/\\]|[/\\]{2}")


def without_windows(name: str, folder: Path, *, check: bool) -> str:
    """A name with `/` where it has Windows' `\\`; of an absolute path of Windows the part below the image folder.

    Args:
        name: as the annotation file has it.
        folder: the image folder.
        check: whether the files are there to be looked at; otherwise an absolute path becomes its last part.

    Returns:
        the name itself where it is no path of Windows, or where a file has a backslash in its name.
    """
    root = _WINDOWS_ROOT.match(name)
    if "\\" not in name and not (root and name[1] == ":"):
        return name
    if check and os.path.lexists(folder / name.replace("\0", "")):
        return name
    if root is None:
        return name.replace("\\", "/")
    parts = [part for part in re.split(r"[/\\]", name[root.end() :]) if part]
    if ".." in parts:
        return name  # refused for its name
    tails = ["/".join(parts[start:]) for start in range(len(parts))]
    there = (tail for tail in tails if check and os.path.isfile(folder / tail))
    return next(there, tails[-1] if tails else name)


def file_name(name: str, folder: Path, *, any_ending: bool = False) -> tuple[str, str] | None:
    """The name of a file that is not there as it is written.

    Args:
        name: of an image, relative to `folder`.
        folder: the image folder.
        any_ending: whether any ending of an image may replace the name's own.

    Returns:
        the name of the file and how the two differ, a key of `SPELLINGS`; None where there is no such file.
    """
    for form in written_alike(name):
        if os.path.isfile(folder / form):
            return form, "unicode"
    below = name.removeprefix(f"{folder.resolve().name}/")
    if below != name and os.path.isfile(folder / below):
        return below, "folder"
    if any_ending:
        stem = os.path.splitext(name)[0]
        for ending in (*_USUAL, *sorted(image_suffixes().difference(_USUAL))):
            for form in (stem, *written_alike(stem)):
                if os.path.isfile(folder / (form + ending)):
                    return form + ending, "ending"
    return None


def written_alike(name: str) -> list[str]:
    """The other Unicode forms of a name: composed (é is one character) and decomposed (two, as macOS writes it)."""
    if name.isascii():
        return []
    return [form for kind in ("NFC", "NFD") if (form := unicodedata.normalize(kind, name)) != name]
