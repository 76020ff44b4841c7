"""Find the images and the captions in a folder or a file without a description."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from captune.data.image_files import (
    SkippedFiles,
    file_name,
    raise_unreadable_folder,
    searched_folders,
    without_windows,
)
from captune.data.image_formats import is_image_name
from captune.data.importers.coco import coco_rows
from captune.data.importers.folder import FolderSource, text_of
from captune.data.importers.karpathy import karpathy_rows
from captune.data.importers.table import Columns, table_rows
from captune.data.importers.table_guess import TABLE_SUFFIXES, TableGuess, TableKind, guess_table
from captune.data.issues import Issue
from captune.data.manifest import scan_manifest
from captune.data.rows import Row
from captune.data.tar_parquet import InlineImages
from captune.data.text_files import SourceFile
from captune.errors import DataError, MissingExtraError

__all__ = ["CaptionSource", "Discovery", "SourceKind", "discover", "source_of_file"]

SourceKind: TypeAlias = TableKind | Literal["folder"]
"""Where captions are: text files next to the images, or a file of one of several layouts."""

_IMAGE_FOLDERS = ("images", "image", "Images", "flickr30k-images")  # next to an annotation file
_SAMPLE = 200  # images of an annotation file that are looked for
_TABLES = 20  # files that are looked into
_TEXT_LINES = 5  # a .txt of fewer lines next to images is a note


@dataclass(frozen=True)
class CaptionSource:
    """Captions of the images of one folder.

    Attributes:
        kind: their form.
        path: the folder, or the file.
        images: the folder that names of images are relative to.
        matched: how many images of `tried` exist.
        tried: images that were looked for, the first ones of a file.
        guess: the layout of a table.
    """

    kind: SourceKind
    path: Path
    images: Path
    matched: int
    tried: int
    guess: TableGuess | None = None

    def rows(
        self,
        columns: Columns | None = None,
        *,
        split: str = "train",
        encoding: str | None = None,
        inline_images: InlineImages | None = None,
    ) -> tuple[FolderSource | SourceFile, Iterator[Row | Issue]]:
        """The open source and its images, for `captune.data.importing.prepare`; not of a manifest.

        Args:
            columns: of a table; by default as guessed.
            split: what images are given that have none in the source.
            encoding: of a text file; by default that of the guess.
            inline_images: where images that come inside a table are written to.

        Raises:
            DataError: a column is not there.
        """
        if self.kind == "folder":
            folder = FolderSource(self.path, split=split)
            return folder, folder.rows()
        reading = SourceFile(self.path, encoding or (None if self.guess is None else self.guess.encoding))
        if self.kind == "coco":
            return reading, coco_rows(reading, split=split)
        if self.kind == "karpathy":
            return reading, karpathy_rows(reading)
        columns = columns or (self.guess.columns if self.guess is not None else None) or Columns()
        return reading, table_rows(reading, columns, split=split, inline_images=inline_images)


@dataclass(frozen=True)
class Discovery:
    """What a folder or a file holds.

    Attributes:
        root: the folder that was searched.
        images: names of the images, relative to it.
        skipped: files that are not images by their ending.
        sources: captions, those of the most images first; none where there are images only.
        unclear: tables whose columns could not be recognized.
        unreadable: what is wrong with tables that cannot be read.
    """

    root: Path
    images: list[str]
    skipped: SkippedFiles
    sources: list[CaptionSource]
    unclear: list[tuple[Path, TableGuess]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def endings(self) -> Counter[str]:
        """Images by the ending of their names, in lower case."""
        return Counter(os.path.splitext(name)[1].lower() for name in self.images)


def discover(path: Path, encoding: str | None = None) -> Discovery:
    """Search a folder with its subfolders for images and captions, or look at a file and at its folder.

    Args:
        path: a folder, a table, an annotation file or a manifest.
        encoding: of a table; by default detected.

    Raises:
        DataError: there is no such path, it cannot be read, or the file holds no captions.
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    if not path.exists():
        raise DataError(f"there is no '{path}'; give a folder of images, a table of captions or a manifest.")
    root = path if path.is_dir() else path.parent
    images, texts, tables, skipped = _files(root)
    if not path.is_dir():
        guess = guess_table(path, encoding)
        if not guess.has_header or (guess.kind == "table" and guess.columns is None):
            return Discovery(root, images, skipped, [], [(path, guess)])
        return Discovery(root, images, skipped, [source_of_file(path, guess, root, images)])
    sources: list[CaptionSource] = []
    unclear: list[tuple[Path, TableGuess]] = []
    unreadable: list[str] = []
    captioned = sum(text_of(name, texts) in texts for name in images)
    if captioned:
        sources.append(CaptionSource("folder", root, root, captioned, len(images)))
    for name in tables[:_TABLES]:
        try:
            guess = guess_table(root / name, encoding)
        except MissingExtraError:
            raise
        except DataError as error:  # many files of JSON are no tables
            if name.lower().endswith((".csv", ".tsv", ".tab")):
                unreadable.append(str(error))
            continue
        if not guess.has_header or (guess.kind == "table" and guess.columns is None):
            unclear.append((root / name, guess))
            continue
        source = source_of_file(root / name, guess, root, images)
        if source.matched:
            sources.append(source)
    # A manifest is usually the output of an earlier command on one of the others.
    sources.sort(key=lambda source: (source.kind == "manifest", -source.matched))
    return Discovery(root, images, skipped, sources, unclear, unreadable)


def _files(root: Path) -> tuple[list[str], set[str], list[str], SkippedFiles]:
    """Images, texts, possible tables and other files below a folder; hidden folders are not searched."""
    images: list[str] = []
    texts: set[str] = set()
    tables: list[str] = []
    skipped = SkippedFiles()
    for parent, folders, names in os.walk(root, onerror=raise_unreadable_folder):
        folders[:] = sorted(searched_folders(parent, folders))
        stems = {os.path.splitext(name)[0] for name in names if is_image_name(name)}
        listed = len(tables)
        for name in sorted(names):
            path = (Path(parent) / name).relative_to(root).as_posix()
            if name.startswith("."):
                continue
            if is_image_name(name):
                images.append(path)
                continue
            if name.lower().endswith(".txt"):
                texts.add(path)
            stem, ending = os.path.splitext(name.lower().removesuffix(".gz"))
            is_table = ending in TABLE_SUFFIXES and not stem.endswith(".left-out")
            if os.path.splitext(name)[0] not in stems and (is_table or _is_table_text(root / path)):
                tables.append(path)
        skipped.add_folder(set(names).difference(map(os.path.basename, tables[listed:])))
    tables.sort(key=lambda path: (path.count("/"), path))
    return sorted(images), texts, tables, skipped


def _is_table_text(path: Path) -> bool:
    """Whether a .txt can be a table of captions, as Kaggle's captions.txt is."""
    if path.suffix.lower() != ".txt":
        return False
    with path.open("rb") as stream:
        first = stream.readline(1000)
        return any(mark in first for mark in b",;\t|") and sum(1 for _ in islice(stream, _TEXT_LINES)) == _TEXT_LINES


def source_of_file(path: Path, guess: TableGuess, root: Path, images: Iterable[str]) -> CaptionSource:
    """The captions of a file, with the folder that has most of its images.

    Args:
        path: the file.
        guess: its layout.
        root: the folder that was searched.
        images: names of the images in it, relative to it.
    """
    if guess.inline_images:
        return CaptionSource(guess.kind, path, path.parent, len(guess.rows), len(guess.rows), guess)
    names = guess.image_names
    if guess.kind == "manifest":
        names = [row.image for _, row in islice(scan_manifest(path), _SAMPLE) if not isinstance(row, Issue)]
    elif not names:
        reading, rows = CaptionSource(guess.kind, path, root, 0, 0, guess).rows()
        with closing(reading):
            names = [row.image for row in islice(rows, _SAMPLE) if isinstance(row, Row)]
    data_name = path.name.split(".")[0].rsplit("_", 1)[-1]  # captions_val2017.json: val2017
    candidates = (
        [path.parent]
        if guess.kind == "manifest"
        else [
            *(path.parent / name for name in (*_IMAGE_FOLDERS, data_name)),
            path.parent,
            *(root / folder for folder in dict.fromkeys(os.path.dirname(name) for name in images)),
        ]
    )
    there = {folder: _matches(names, folder) for folder in dict.fromkeys(candidates) if folder.is_dir()}
    best = max(there, key=lambda folder: there[folder], default=path.parent)
    return CaptionSource(guess.kind, path, best, there.get(best, 0), len(names), guess)


def _matches(names: Iterable[str], folder: Path) -> int:
    """How many of the images a folder has."""
    count = 0
    for name in names:
        name = without_windows(name, folder, check=True)
        count += "\0" not in name and (
            (folder / name).is_file() or file_name(name, folder, any_ending=False) is not None
        )
    return count
