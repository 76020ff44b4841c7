"""Captions as text files next to images (`captune caption --txt`), and what happens to texts that are stored there.

A text that is replaced or extended is kept in the history of its folder (`captune.data.text_history`), which also shows
what a job has done: the same command, run again after a kill, neither captions an image twice nor adds a caption twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from captune.bulk.caption_template import existing_text
from captune.bulk.output import COMMAND, Row
from captune.data import TextChange, apply_changes, atomic_file, read_history, read_text_file, text_path
from captune.errors import ChangedTextError, DataError

__all__ = ["Existing", "TextFiles", "has_text", "job_hash", "shared_texts"]

Existing: TypeAlias = Literal["skip", "overwrite", "append", "prepend", "error"]
"""What to do with images that have a text."""

SEPARATOR: Final = ", "
"""Between a text and the caption that is added to it."""


@dataclass
class TextFiles:
    """The text files of a job.

    Attributes:
        existing: what to do with texts that are there.
        job: identifies the model, its settings, the template and `existing`; see `job_hash`.
        done: images that this job captioned before.
        replaced: texts that this process replaced or extended.
        kept: images whose text appeared or changed while they were captioned, and was left alone.
    """

    existing: Existing
    job: str
    done: int = 0
    replaced: int = 0
    kept: int = 0
    _histories: dict[Path, dict[str, list[TextChange]]] = field(default_factory=dict)

    def waiting(self, paths: Mapping[str, str]) -> dict[str, str]:
        """The images that need a caption.

        Args:
            paths: id to path of each image file.

        Raises:
            DataError: an image has a text, and `existing` is "error".
        """
        if self.existing in ("skip", "error"):
            with_text = [path for path in paths.values() if has_text(path)]
            if with_text and self.existing == "error":
                more = f" and {len(with_text) - 1:,} more images" if len(with_text) > 1 else ""
                raise DataError(
                    f"'{with_text[0]}'{more} had a text already; --existing skip, append, prepend or overwrite handles "
                    "that."
                )
            skipped = set(with_text)
            return {name: path for name, path in paths.items() if path not in skipped}
        waiting = {name: path for name, path in paths.items() if not self._is_done(text_path(path))}
        self.done = len(paths) - len(waiting)
        return waiting

    def write(self, rows: Sequence[Row], paths: Mapping[str, str]) -> list[Row]:
        """Write captions next to their images.

        Args:
            rows: of captions.
            paths: id to path of each image file.

        Returns:
            Rows of a quarantine: images whose text could not be extended, and why.
        """
        if self.existing in ("skip", "error"):
            for row in rows:
                if has_text(paths[row["id"]]):  # written by another program meanwhile
                    self.kept += 1
                    continue
                with atomic_file(text_path(paths[row["id"]]), "w") as stream:
                    stream.write(row["caption"] + "\n")
            return []
        rejected: list[Row] = []
        changes: dict[Path, list[TextChange]] = {}
        for row in rows:
            path = text_path(paths[row["id"]])
            try:
                change = self._change(path, Path(paths[row["id"]]), row["caption"])
            except DataError as error:
                rejected.append({"id": row["id"], "image": row["image"], "reason": str(error)})
                continue
            changes.setdefault(path.parent, []).append(change)
        for folder, of_folder in changes.items():
            self._apply(folder, of_folder)
        return rejected

    def _apply(self, folder: Path, changes: list[TextChange]) -> None:
        try:
            apply_changes(folder, changes)
        except ChangedTextError:
            # One of them changed since it was read, a moment ago; the others are written.
            if len(changes) == 1:
                self.kept += 1
            else:
                for change in changes:
                    self._apply(folder, [change])
        else:
            self.replaced += sum(bool(change.before) for change in changes)

    def _change(self, path: Path, image: Path, caption: str) -> TextChange:
        before = read_text_file(path)
        parts = [caption]
        if self.existing in ("append", "prepend") and (text := existing_text(image)):
            parts = [text, caption] if self.existing == "append" else [caption, text]
        return TextChange(path.name, before, SEPARATOR.join(parts) + "\n", by=COMMAND, job=self.job)

    def _is_done(self, path: Path) -> bool:
        """Whether this job has written a text; if a person has edited it since, it stays edited."""
        folder = path.parent
        if folder not in self._histories:
            self._histories[folder] = read_history(folder)
        mine = [change for change in self._histories[folder].get(path.name, ()) if change.job == self.job]
        if not mine:
            return False
        # A job that was killed before it replaced the file has left the text from before, with a change to another one.
        return mine[-1].before == mine[-1].after or read_text_file(path) != mine[-1].before


def job_hash(*identity: object) -> str:
    """A short name of everything that determines the texts of a job."""
    return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]


def shared_texts(images: Iterable[str]) -> dict[str, list[str]]:
    """Images whose captions would be written to one text file, such as those of `a.jpg` and `a.png`.

    Args:
        images: paths of image files.

    Returns:
        The path of the text file, and its images.
    """
    groups: dict[str, list[str]] = {}
    for image in images:
        text = text_path(image)
        real = os.path.join(os.path.realpath(text.parent), text.name)
        # On a file system that does not distinguish capitals from small letters, `A.txt` is `a.txt`.
        folded = os.path.lexists(text.with_name(Path(image).name.swapcase()))
        groups.setdefault(real.casefold() if folded else real, []).append(image)
    return {str(text_path(group[0])): group for group in groups.values() if len(group) > 1}


def has_text(image: str) -> bool:
    """Whether a text file with something in it is next to an image."""
    try:
        return os.path.getsize(text_path(image)) > 0
    except OSError:
        return False
