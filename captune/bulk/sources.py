"""Inputs of `captune caption`: images, folders, lists, manifests, parquet files, webdataset tars."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from captune.bulk.shards import ParquetShard, TarShard
from captune.data import (
    HEIF_SUFFIXES,
    SkippedFiles,
    image_size,
    is_image_name,
    iter_manifest,
    name_as_text,
    raise_unreadable_folder,
    resolve_image,
    searched_folders,
)
from captune.errors import DataError

__all__ = ["Inputs", "read_inputs"]

_TARS = (".tar", ".tar.gz", ".tgz")
_RESERVED = re.compile(r"images(-\d+)?-\d{5,}|job|quarantine", re.IGNORECASE)
"""Names of the other files in a folder of captions."""
_LONGEST_NAME = 120
"""Bytes of an archive's name that are kept; file systems stop at 255, hidden and quarantine names are longer."""


@dataclass
class Inputs:
    """What there is to caption.

    Attributes:
        paths: id to path of each image file, in order; an id belongs to one image only.
        archives: tars and parquet files.
        repeated: how many images were named more than once; they are captioned once.
        skipped: the files of folders that are neither images nor belong to one.
    """

    paths: dict[str, str] = field(default_factory=dict)
    archives: list[TarShard | ParquetShard] = field(default_factory=list)
    repeated: int = 0
    skipped: SkippedFiles = field(default_factory=SkippedFiles)

    def add(self, name: str, path: str | Path) -> None:
        """Take in an image file; a name that is not UTF-8 becomes an id that is.

        Raises:
            DataError: another image has the same id.
        """
        name = name_as_text(name)
        if name not in self.paths:
            self.paths[name] = str(path)
        elif self.paths[name] == str(path):
            self.repeated += 1
        else:
            raise DataError(
                f"two images have the id '{name}': '{self.paths[name]}' and '{path}'; caption them separately."
            )


def read_inputs(
    inputs: Sequence[str],
    *,
    split: str | None = None,
    image_column: str | None = None,
    id_column: str | None = None,
) -> Inputs:
    """List what is to be captioned.

    Args:
        inputs: each an image, a folder (searched with its subfolders for images, tars and parquet files), a manifest
            (`.jsonl`), a list of paths (`.txt`, one a line, relative to the list), a tar or a parquet file.
        split: of manifests; all of them by default.
        image_column: of parquet files.
        id_column: of parquet files.

    Returns:
        The images. An id is the path as given, below a folder the path relative to it, in a manifest its id; where
        several folders are given, ids begin with the folder.

    Raises:
        DataError: an input is not there, is of no known kind, or holds nothing; or two images have one id.
    """
    listed = Inputs()
    folders = sum(os.path.isdir(entry) for entry in inputs)
    for entry in inputs:
        before = len(listed.paths) + len(listed.archives) + listed.repeated
        for name, path in _listed(entry, listed.skipped, many=folders > 1, split=split):
            lowered = path.name.lower()
            if lowered.endswith(_TARS):
                listed.archives.append(TarShard(_shard_name(name), str(path)))
            elif lowered.endswith(".parquet"):
                listed.archives.append(ParquetShard(_shard_name(name), str(path), image_column, id_column))
            else:
                listed.add(name, path)
        if len(listed.paths) + len(listed.archives) + listed.repeated == before:
            others = listed.skipped.sentence()
            raise DataError(
                f"there are no images in '{entry}'; expected files such as .jpg or .png, .tar or .parquet."
                f"{f' {others}.' if others else ''}"
            )
    _refuse_equal_names(listed.archives)
    return listed


def _refuse_equal_names(archives: Sequence[TarShard | ParquetShard]) -> None:
    """Check that no two archives are written to one file, on any file system.

    Raises:
        DataError: two are.
    """
    seen: dict[str, TarShard | ParquetShard] = {}
    for archive in archives:
        # Some file systems do not distinguish capitals from small letters, or composed letters from decomposed ones.
        other = seen.setdefault(unicodedata.normalize("NFC", archive.name).casefold(), archive)
        if other is not archive:
            raise DataError(
                f"'{other.path}' and '{archive.path}' would be written to the same file '{archive.name}'; "
                "caption them separately."
            )


def _listed(entry: str, skipped: SkippedFiles, *, many: bool, split: str | None) -> Iterator[tuple[str, Path]]:
    """Ids and paths of one input."""
    path = Path(entry)
    lowered = path.name.lower()
    if path.is_dir():
        for relative in sorted(_below(path, skipped)):
            yield (f"{path.as_posix().rstrip('/')}/{relative}" if many else relative), path / relative
    elif not path.exists():
        raise DataError(f"there is no file or folder '{entry}'.")
    elif lowered.endswith((".jsonl", ".jsonl.gz")):
        for sample in iter_manifest(path, split):
            yield sample.id, resolve_image(path, sample.image)
    elif lowered.endswith(".txt"):
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        if "\0" in text:
            raise DataError(f"'{entry}' is not a list of paths in UTF-8 (it holds NUL characters); save it as UTF-8.")
        for line in text.split("\n"):
            if line.strip():
                yield line.strip(), path.parent / line.strip()
    elif lowered.endswith((*_TARS, ".parquet")):
        yield path.name, path
    elif is_image_name(path.name) or path.suffix.lower() in HEIF_SUFFIXES or _is_image(path):
        yield entry, path
    else:
        raise DataError(
            f"'{entry}' is no image, folder, manifest (.jsonl), list of paths (.txt), .tar or .parquet that is known "
            "by its ending or its content."
        )


def _is_image(path: Path) -> bool:
    """Whether a file is an image by its content."""
    try:
        with open(path, "rb") as stream:
            return image_size(stream, str(path)) > (0, 0)
    except (OSError, DataError):
        return False


def _below(folder: Path, skipped: SkippedFiles) -> Iterator[str]:
    """Relative paths, with `/`, of what can be captioned; links to folders are not followed, so no loop arises."""
    for parent, folders, names in os.walk(folder, onerror=raise_unreadable_folder):
        folders[:] = searched_folders(parent, folders)
        archives = {name for name in names if name.lower().endswith((*_TARS, ".parquet"))}
        skipped.add_folder(name for name in names if name not in archives)
        for name in names:
            if not name.startswith(".") and (is_image_name(name) or name in archives):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _shard_name(name: str) -> str:
    """A file name for the output of an archive: its name where possible, else with a hash of it.

    The name follows from the archive's alone, so archives that are added later change no name.
    """
    stem = name
    for ending in (*_TARS, ".parquet"):
        stem = stem[: -len(ending)] if stem.lower().endswith(ending) else stem
    clean = "".join(c if c.isalnum() or c in "-_." else "-" for c in stem).lstrip(".")
    if clean == stem and not _RESERVED.fullmatch(clean) and len(clean.encode()) <= _LONGEST_NAME:
        return clean
    kept = clean.encode()[:_LONGEST_NAME].decode("utf-8", "ignore")
    return f"{kept}-{hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]}".lstrip("-")
