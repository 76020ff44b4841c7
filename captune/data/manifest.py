"""The manifest: JSON Lines, one image a line, the one form of data that the rest of captune reads.

    {"id": "36979", "image": "flickr30k-images/36979.jpg", "captions": ["A dog .", ...], "split": "train"}

These four keys are needed, `domain` may be given too, and no others are known: a misspelt one is an error with a
suggestion, never silently dropped. `id` is a string ("0036979" is not 36979) and unique in a file, `image` is a
path relative to the manifest (an absolute path is taken as it is), `captions` holds at least one caption, none of them
blank. `domain` is a part of the split that is also scored separately, as NoCaps' "near-domain".
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.common import did_you_mean
from captune.data.atomic import atomic_file
from captune.data.ids import SeenIds
from captune.data.image_files import is_unicode
from captune.data.issues import Issue, Issues, plural, printable
from captune.data.json_stream import parse_json
from captune.data.outputs import output_file
from captune.data.text_files import SourceFile, checked_lines
from captune.errors import DataError

__all__ = [
    "Sample",
    "check_image_name",
    "data_name",
    "invalid_text_reason",
    "iter_manifest",
    "manifest_hash",
    "missing_reason",
    "read_manifest",
    "resolve_image",
    "safe_join",
    "scan_manifest",
    "write_manifest",
]

_KEYS = ("id", "image", "captions", "split")
_KNOWN = (*_KEYS, "domain")
_DRIVE = re.compile("[A-Za-z]:")
_UNDECODED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as Python's surrogateescape keeps it
_MACHINE_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
_encode = json.JSONEncoder(ensure_ascii=False).encode
_GENERIC_NAMES = frozenset(
    {
        "annotation",
        "annotations",
        "caption",
        "captions",
        "data",
        "dataset",
        "image",
        "images",
        "index",
        "labels",
        "list",
    }
    | {"m", "manifest", "metadata", "test", "train", "val", "validation"}
)
_ENDING_OF_OUTPUT = re.compile("-(split|clean|manifest)$")


def data_name(path: str | os.PathLike[str]) -> str:
    """A name for the data of a folder or file, such as `photos` for photos.jsonl and photos/manifest.jsonl.

    Args:
        path: a folder, a manifest or a table; one with a generic name, such as captions.csv, is named after its folder.
    """
    real = Path(os.path.abspath(path))
    stem = real.name if real.is_dir() else _ENDING_OF_OUTPUT.sub("", real.name.split(".")[0])
    name = real.parent.name if not real.is_dir() and stem.lower() in {"", *_GENERIC_NAMES} else stem
    return re.sub(r"[/\\\x00-\x1f]", "_", name)[:100] or "data"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its captions.

    Attributes:
        id: unique in its manifest.
        image: path relative to the manifest, with `/`, or absolute.
        captions: at least one.
        split: "train", "val", "test" or any other name.
        domain: the part of the split that it belongs to, where the data set has such parts.
    """

    id: str
    image: str
    captions: tuple[str, ...]
    split: str
    domain: str | None = None


def scan_manifest(manifest: str | os.PathLike[str] | SourceFile) -> Iterator[tuple[int, Sample | Issue]]:
    """Every row of a manifest, good or bad, with its line; of the ids, 16 bytes each are kept.

    Args:
        manifest: its path, or the open file, for a progress bar; `.gz` is unpacked.

    Yields:
        the line, counted from 1, and a sample or what is wrong with the row. Blank lines are passed over.

    Raises:
        DataError: no such file; see `captune.data.text_files.checked_lines`.
    """
    reading = manifest if isinstance(manifest, SourceFile) else SourceFile(manifest)
    seen = SeenIds()
    for number, text in enumerate(checked_lines(reading), 1):
        if isinstance(text, DataError):
            yield number, Issue(reading.name, number, "encoding", str(text))
            continue
        if not text.strip():
            continue
        try:
            sample = _parse(text)
        except ValueError as error:
            yield number, Issue(reading.name, number, "malformed", _sentence(error))
            continue
        first = seen.line_of(sample.id)
        if first is not None:
            message = f"the id '{sample.id}' is on line {first} already."
            yield number, Issue(reading.name, number, "duplicate", message)
        else:
            seen.add(sample.id, number)
            yield number, sample


def iter_manifest(path: str | os.PathLike[str], split: str | Collection[str] | None = None) -> Iterator[Sample]:
    """The samples of a manifest, one at a time; the error for bad rows comes after the last good one.

    Args:
        path: the manifest.
        split: give only samples of this split, or of these splits.

    Yields:
        the samples in the order of the file.

    Raises:
        DataError: bad rows (all of them in one error, with their lines), or no sample in a split; the message
            names the splits that there are.
    """
    selected = (split,) if isinstance(split, str) else split
    problems = Issues()
    splits: Counter[str] = Counter()
    for _, row in scan_manifest(path):
        if isinstance(row, Issue):
            problems.add(row)
            continue
        splits[row.split] += 1
        if selected is None or row.split in selected:
            yield row
    if problems:
        raise DataError(f"the manifest '{path}' has {plural(len(problems), 'bad row')}:\n{problems.listing()}")
    if not splits:
        raise DataError(f"the manifest '{path}' holds no images.")
    empty = next((name for name in selected or () if not splits[name]), None)
    if empty is not None:
        there = ", ".join(f"{name} ({count:,})" for name, count in splits.most_common(20))
        raise DataError(f"the manifest '{path}' has no images of the split '{empty}'; it has {there}.")


def read_manifest(path: str | os.PathLike[str], split: str | Collection[str] | None = None) -> list[Sample]:
    """Read a complete manifest; see `iter_manifest`.

    Args:
        path: the manifest.
        split: keep only samples of this split, or of these splits.

    Returns:
        the samples in the order of the file, at least one.

    Raises:
        DataError: bad rows, all of them in one error, or no sample in a split.
    """
    return list(iter_manifest(path, split))


def write_manifest(path: str | os.PathLike[str], samples: Iterable[Sample], *, command: str | None = None) -> int:
    """Write a manifest completely or not at all.

    Args:
        path: the manifest; parents are made.
        samples: may be a generator; its exceptions leave the previous file.
        command: keeps a record that this command wrote it; see `captune.data.outputs`.

    Returns:
        how many were written.

    Raises:
        OSError: from the file system, with the name of the manifest.
    """
    count = 0
    with atomic_file(path) if command is None else output_file(path, command=command) as stream:
        for sample in samples:
            row = {"id": sample.id, "image": sample.image, "captions": sample.captions, "split": sample.split}
            if sample.domain is not None:
                row["domain"] = sample.domain
            stream.write(_encode(row) + "\n")
            count += 1
    return count


def manifest_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the bytes of a manifest, in hexadecimal: equal hashes mean the same data in the same order.

    Raises:
        DataError: no such file.
    """
    reading = SourceFile(path)
    try:
        return hashlib.file_digest(reading.file, "sha256").hexdigest()
    finally:
        reading.close()


def resolve_image(manifest: str | os.PathLike[str], image: str) -> Path:
    """The path of the image of a sample: relative to the manifest, or unchanged where absolute.

    Args:
        manifest: path of the manifest that names the image.
        image: `Sample.image`.

    Returns:
        a path to open; nothing is checked.
    """
    return Path(manifest).parent / image


def safe_join(folder: str | os.PathLike[str], name: str) -> Path:
    """A file below `folder` by a name that came with somebody else's data.

    Args:
        folder: the folder that must not be left.
        name: relative path as in the annotation file.

    Returns:
        the path, not checked to exist. Symbolic links inside the folder are its owner's and are followed.

    Raises:
        DataError: the name is empty, absolute, has a `..` or a NUL, or cannot be written as UTF-8.
    """
    check_image_name(name)
    return Path(folder) / name


def missing_reason(path: str | os.PathLike[str]) -> str | None:
    """Why there is no image file under a path, as a sentence; None where there is one.

    Raises:
        OSError: the machine failed, not the name.
    """
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return None
        why = ", it is no file"
    except ValueError:
        why = ", and a name cannot hold NUL"
    except OSError as error:
        if error.errno in _MACHINE_FAULTS:
            raise
        usual = error.errno in (errno.ENOENT, errno.ENOTDIR)
        why = "" if usual else f" ({(error.strerror or str(error)).lower()})"
    return f"the image '{path}' is not there{why}."


def check_image_name(name: str) -> None:
    """Refuse an image name that leads out of its folder on any system, or that is no file name.

    Raises:
        DataError: see `safe_join`.
    """
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or not parts[0] or _DRIVE.match(name):
        raise DataError(f"the image name {name!r} leads out of the image folder.")
    if not is_unicode(name):
        raise DataError(f"the image name '{printable(name)}' is not UTF-8; rename the file.")
    if parts[-1] in ("", ".") or "\0" in name:
        raise DataError(f"the image name {name!r} is no file name.")


def invalid_text_reason(text: str) -> str | None:
    """Why a string can be no caption, id or split; None if it can.

    Args:
        text: as it came out of a file.

    Returns:
        the predicate of a sentence ("is empty", "holds a NUL character", ...).
    """
    if not text or text.isspace():
        return "is empty"
    if "\0" in text:
        return "holds a NUL character"
    if not is_unicode(text):
        if byte := _UNDECODED.search(text):
            return f"is not UTF-8 (byte 0x{ord(byte[0]) - 0xDC00:02x})"
        return "holds half of a surrogate pair, which is no text"
    return None


def _parse(text: str) -> Sample:
    """A line as a sample; the message of its ValueError has no full stop."""
    row = parse_json(text)
    if not isinstance(row, dict):
        raise ValueError(f"a JSON object with the keys {', '.join(_KEYS)} is expected")
    for key in row:
        if key not in _KNOWN:
            hint = did_you_mean(key, _KNOWN, f"known are {', '.join(_KNOWN)}")
            raise ValueError(f"the key '{key}' is unknown; {hint}")
    for key in _KEYS:
        if key not in row:
            raise ValueError(f"the key '{key}' is missing")
    captions = row["captions"]
    for key in ("id", "image", "split"):
        _check_text(key, row[key])
    domain = row.get("domain")
    if domain is not None:
        _check_text("domain", domain)
    if not isinstance(captions, list):
        raise ValueError(f"captions must be a list of strings, not {_kind(captions)}")
    if not captions:
        raise ValueError("captions is empty; at least one caption is expected")
    for number, caption in enumerate(captions, 1):
        _check_text(f"caption {number} of {len(captions)}", caption)
    return Sample(row["id"], row["image"], tuple(captions), row["split"], domain)


def _sentence(error: Exception) -> str:
    """The message of an error with a mark at its end."""
    return str(error) if str(error).endswith("?") else f"{error}."


def _check_text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a string, not {_kind(value)}")
    if fault := invalid_text_reason(value):
        raise ValueError(f"{what} {fault}")


def _kind(value: Any) -> str:
    """What a JSON value is, in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), f"the number {value}")
