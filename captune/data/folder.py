"""Importer of a folder of images with a text file of the same name beside each, one caption a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from captune.data.formats import is_image_name
from captune.data.importing import Row
from captune.data.left_out import LeftOut
from captune.data.problems import Problem
from captune.data.text import Reading, decode_line, raw_lines
from captune.errors import DataError

__all__ = ["FolderReading", "refuse_unread"]


class FolderReading:
    """The images below a folder, and how many of them are done.

    Args:
        folder: searched with its subfolders; links to folders are not followed, so loops cannot arise.
        split: what the images are given.

    Attributes:
        left_out: the files that are not read, once the rows were.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str], *, split: str = "train") -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"there is no folder '{folder}'.")
        self.left_out = LeftOut()
        self._split = split
        self._done = 0
        self._total = 1

    @property
    def share(self) -> float:
        """How much is read, from 0 to 1."""
        return min(1.0, self._done / self._total)

    def rows(self) -> Iterator[Row | Problem]:
        """The images in the order of their names; the id is the path without ending.

        Yields:
            a row an image, or what is wrong with it.
        """
        images = sorted(self._images())
        self._total = max(1, len(images))
        for self._done, name in enumerate(images, 1):
            text = (self.folder / name).with_suffix(".txt")
            if not text.exists():
                yield Problem(
                    str(self.folder / name), 0, "empty", f"there is no '{text.name}' with captions beside it."
                )
                continue
            captions = _captions(text)
            if isinstance(captions, Problem):
                yield captions
            else:
                yield Row(0, name, captions, self._split, os.path.splitext(name)[0])

    def _images(self) -> Iterator[str]:
        """Paths of the images relative to the folder, with `/`."""
        for parent, _, names in os.walk(self.folder, onerror=refuse_unread):
            self.left_out.add_folder(names)
            for name in names:
                if is_image_name(name):
                    yield (Path(parent) / name).relative_to(self.folder).as_posix()


def _captions(file: Path) -> tuple[str, ...] | Problem:
    """The captions of an image, one a line, or what is wrong with the file."""
    captions = []
    try:
        for number, line in enumerate(raw_lines(Reading(file)), 1):
            text = decode_line(line)
            if isinstance(text, DataError):
                return Problem(str(file), number, "malformed", str(text))
            if text.strip():
                captions.append(text.strip())
    except DataError as error:
        return Problem(str(file), 0, "malformed", str(error))
    return tuple(captions)


def refuse_unread(error: OSError) -> None:
    """Told by `os.walk` of a folder that it cannot read, which it would pass over in silence.

    Raises:
        DataError: always.
    """
    raise DataError(
        f"the folder '{error.filename}' cannot be read ({error.strerror}); allow reading it, or move it elsewhere."
    ) from error
