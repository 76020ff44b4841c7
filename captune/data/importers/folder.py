"""Importer of a folder of images with a text file of the same name next to each, one caption a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from captune.data.image_files import SkippedFiles, is_evaluation_folder, raise_unreadable_folder, written_alike
from captune.data.image_formats import is_image_name
from captune.data.issues import Issue
from captune.data.outputs import RECORDS
from captune.data.rows import Row
from captune.data.text_files import SourceFile, checked_lines
from captune.errors import DataError

__all__ = ["FolderSource", "text_of"]


class FolderSource:
    """The images below a folder, and how many of them are done.

    Args:
        folder: searched with its subfolders; links to folders are not followed, so loops cannot arise.
        split: what the images are given.

    Attributes:
        skipped: the files that are not read, once the rows were.

    Raises:
        DataError: there is no such folder.
    """

    def __init__(self, folder: str | os.PathLike[str], *, split: str = "train") -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"there is no folder '{folder}'.")
        self.skipped = SkippedFiles()
        self._split = split
        self.notes: list[str] = []
        self._done = 0
        self._total = 1

    @property
    def share(self) -> float:
        """How much is read, from 0 to 1."""
        return min(1.0, self._done / self._total)

    def close(self) -> None:
        """Nothing is open between two rows."""

    def rows(self) -> Iterator[Row | Issue]:
        """The images in the order of their names; the id is the path without ending.

        Yields:
            a row an image, or what is wrong with it, or with a text that has no image.
        """
        images, texts = self._files()
        self._total = max(1, len(images))
        texts_of = {name: text_of(name, texts) for name in images}
        images_of: dict[str, list[str]] = {}
        for name, text in texts_of.items():
            images_of.setdefault(text, []).append(name)
        for text in sorted(texts - images_of.keys()):
            yield _without_image(self.folder / text)
        for self._done, (name, text) in enumerate(texts_of.items(), 1):
            location = str(self.folder / name)
            if text not in texts:
                yield Issue(location, 0, "empty", f"there is no '{Path(text).name}' with captions next to it.", 0)
                continue
            if len(images_of[text]) > 1:
                sharing = " and ".join(f"'{other}'" for other in images_of[text])
                message = f"{sharing} share '{text}', so it is unknown whose captions it holds; rename one."
                captions, problems = _captions(self.folder / text)
                # The captions are lost once, however many images share them.
                count = len(captions) + len(problems) if name == images_of[text][0] else 0
                yield Issue(location, 0, "duplicate", message, count)
                continue
            captions, problems = _captions(self.folder / text)
            yield from problems
            if captions or not problems:
                yield Row(0, name, captions, self._split, os.path.splitext(name)[0])

    def _files(self) -> tuple[list[str], set[str]]:
        """Paths of the images, in order, and of the texts, relative to the folder, with `/`."""
        images: list[str] = []
        texts: set[str] = set()
        for parent, folders, names in os.walk(self.folder, onerror=raise_unreadable_folder):
            folders[:] = [name for name in folders if name != RECORDS and not is_evaluation_folder(Path(parent, name))]
            self.skipped.add_folder(names)
            for name in names:
                path = (Path(parent) / name).relative_to(self.folder).as_posix()
                if is_image_name(name):
                    images.append(path)
                elif name.lower().endswith(".txt"):
                    texts.add(path)
        return sorted(images), texts


def text_of(image: str, texts: set[str]) -> str:
    """The name of the text of an image, in whatever Unicode form; the usual name where there is none.

    Args:
        image: path of the image.
        texts: paths of all texts.
    """
    stem = os.path.splitext(image)[0]
    names = [form + ending for ending in (".txt", ".TXT") for form in (stem, *written_alike(stem))]
    return next((name for name in names if name in texts), names[0])


def _without_image(file: Path) -> Issue:
    """A text whose captions belong to no image."""
    captions, problems = _captions(file)
    message = f"there is no image of the name '{file.stem}' next to it."
    return Issue(str(file), 0, "missing", message, len(captions) + len(problems))


def _captions(file: Path) -> tuple[tuple[str, ...], list[Issue]]:
    """The captions of an image, one a line, and what is wrong with lines or with the file."""
    captions: list[str] = []
    problems: list[Issue] = []
    try:
        for number, text in enumerate(checked_lines(SourceFile(file)), 1):
            if isinstance(text, DataError):
                problems.append(Issue(str(file), number, "malformed", str(text)))
            elif text.strip():
                captions.append(text.strip())
    except DataError as error:
        problems.append(Issue(str(file), 0, "malformed", str(error)))
    return tuple(captions), problems
