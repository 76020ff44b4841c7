"""Image files by name: names as text, names that are spelt differently, files in a folder, files that are no images.

A file name on Linux is bytes and need not be UTF-8; Python carries the other bytes as lone surrogates, which no JSON
reader and no parquet file takes. `name_as_text` escapes such a name where it is written into a file, in one way for
every format:

    caf<E9>.jpg      caf\xe9.jpg
    a<E9>\b.jpg      a\xe9\x5cb.jpg      a backslash in such a name, so that every name can be read back

A name that is UTF-8 stays as it is, unless it holds what reads like an escape (`\xe9` as four letters).

`file_name` finds names of an annotation file that differ from a file's in one of four known ways: paths of Windows
(`C:\\data\a.jpg`), letters with accents in the other of Unicode's two forms (a folder that went through macOS), paths
that begin with the image folder (`images/a.jpg`), and names without an ending where the format leaves it out.
"""

from __future__ import annotations

import functools
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from captune.data.image_formats import HEIF_EXTRA, HEIF_SUFFIXES, image_suffixes, is_image_name
from captune.errors import DataError

__all__ = [
    "SPELLINGS",
    "ImageFolder",
    "SkippedFiles",
    "file_name",
    "is_companion",
    "is_evaluation_folder",
    "is_unicode",
    "name_as_text",
    "raise_unreadable_folder",
    "searched_folders",
    "text_as_name",
    "without_windows",
    "written_alike",
]

_SURROGATE = re.compile("[\ud800-\udfff]")
_THUMBNAILS = ("thumbnails", "images.json")  # as captune.report.thumbnails writes them
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


SPELLINGS: Final = {
    "windows": "image names are paths of Windows",
    "unicode": "image names have accents in another Unicode form than the files (NFC, NFD)",
    "ending": "image names have no ending",
    "folder": "image names begin with the name of the image folder",
}
"""How names can differ from the files', for a summary."""

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


class ImageFolder:
    """Finds pictures in a folder and below it; the tree is listed once, when a name is not where it is expected.

    Args:
        folder: with the pictures.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def find(self, image: str, file_name: str | None = None) -> Path | None:
        """The picture of an image, or None.

        Args:
            image: its id.
            file_name: the name of its file as the annotations give it, with or without folders (COCO's `file_name`).

        Returns:
            the file of that name, at that path or elsewhere below the folder; without a name, the file that is called
            like the id, with or without an ending.

        Raises:
            DataError: several files are as good.
        """
        name = image if file_name is None else file_name
        name = posixpath.normpath(name.replace("\\", "/"))
        if not name.startswith(("/", "..")) and (path := self.folder / name).is_file():
            return path
        # `val2014/x.jpg` is `x.jpg` where the folder is val2014 itself, and the other way round.
        files = self._by_name.get(posixpath.basename(name), ())
        if not files and file_name is None:
            files = self._by_stem.get(name, ()) or self._by_stem.get(posixpath.basename(name), ())
        fitting = [file for file in files if f"/{file}".endswith(f"/{name}")] or list(files)
        nearest = [file for file in fitting if file.count("/") == fitting[0].count("/")]
        if len(nearest) > 1:
            raise DataError(
                f"image '{image}' may be '{nearest[0]}' or '{nearest[1]}' in '{self.folder}'; give the folder that "
                "holds one of them."
            )
        return self.folder / nearest[0] if nearest else None

    def looked_for(self, image: str, file_name: str | None = None) -> str:
        """What `find` looks for, for a message."""
        return f"'{image}', with or without an ending" if file_name is None else f"'{file_name}'"

    @functools.cached_property
    def _files(self) -> list[str]:
        """Relative paths of all images, the nearest first."""
        paths = []
        for parent, folders, names in os.walk(self.folder):
            folders[:] = searched_folders(parent, folders)
            relative = Path(parent).relative_to(self.folder)
            paths += [(relative / name).as_posix() for name in names if is_image_name(name)]
        return sorted(paths, key=lambda path: (path.count("/"), path))

    @functools.cached_property
    def _by_name(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for file in self._files:
            index.setdefault(posixpath.basename(file), []).append(file)
        return index

    @functools.cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for file in self._files:
            for stem in {posixpath.splitext(file)[0], posixpath.splitext(posixpath.basename(file))[0]}:
                index.setdefault(stem, []).append(file)
        return index


_COMPANIONS = frozenset(
    {".txt", ".json", ".jsonl", ".caption", ".tags", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".md", ".html", ".cls"}
    | {".npy", ".npz", ".pt", ".pth", ".safetensors", ".pyd", ".pickle", ".index", ".url", ".id", ".log"}
)
"""Endings of what is kept with an image: captions, annotations, embeddings."""

_OF_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})
_SHOWN = 8


class SkippedFiles:
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


def is_evaluation_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is the output of a run or an evaluation, whose images are copies of evaluated ones."""
    return os.path.isfile(os.path.join(folder, *_THUMBNAILS))


def searched_folders(parent: str, folders: Iterable[str]) -> list[str]:
    """The subfolders that a search for the images of a user enters: no hidden ones and no outputs of captune.

    Args:
        parent: the folder.
        folders: names of its subfolders.
    """
    return [
        name for name in folders if not name.startswith(".") and not is_evaluation_folder(os.path.join(parent, name))
    ]


def raise_unreadable_folder(error: OSError) -> None:
    """The `onerror` of `os.walk` that refuses a folder it cannot read; by default it skips such a folder silently.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"the folder '{error.filename}' cannot be read ({error.strerror}); allow reading it, or move it elsewhere."
    ) from error


def is_unicode(text: str) -> bool:
    """Whether text can be written: JSON can contain halves of surrogate pairs, which no encoding takes."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
