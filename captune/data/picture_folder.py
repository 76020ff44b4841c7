"""The picture of an image id in a folder: by the name that annotations give it, or by the id itself."""

from __future__ import annotations

import functools
import os
import posixpath
from pathlib import Path

from captune.data.formats import is_image_name
from captune.errors import DataError

__all__ = ["PictureFolder"]


class PictureFolder:
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
        found = []
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            relative = Path(parent).relative_to(self.folder)
            found += [(relative / name).as_posix() for name in names if is_image_name(name)]
        return sorted(found, key=lambda path: (path.count("/"), path))

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
