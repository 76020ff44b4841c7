"""A cache of generated captions, so that a repeated evaluation generates nothing.

`cached_captions` stores what a model generates when it is complete, `collect_captions` each caption as it arrives from
elsewhere.

A file holds the captions of one identity: model, checkpoint, prompt, decoding, versions. Its lines identify images by a
hash of their files, so a renamed image is recognized and a changed one is not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from captune.common import Thinking
from captune.data import atomic_file, hash_file
from captune.decoding.options import Caption
from captune.parsing import load_json

__all__ = ["CollectedCaptions", "cached_captions", "collect_captions", "has_captions", "image_key", "stored_identities"]

logger = logging.getLogger(__name__)


def cached_captions(
    folder: Path, identity: Sequence[str], images: Sequence[Path], generate: Callable[[list[int]], Sequence[Caption]]
) -> list[Caption]:
    """Captions of images; only those that are not cached are generated.

    Args:
        folder: of the cache; created when there are new captions.
        identity: everything that decides a caption, besides the image.
        images: N image files.
        generate: captions the images with these indices; called once, or not at all.

    Returns:
        N captions in the order of the images.
    """
    path = _file(folder, identity)
    known, keys = _read(path), [image_key(image) for image in images]
    missing = _missing(keys, known)
    if missing:
        for index, caption in zip(missing, generate(missing), strict=True):
            known[keys[index]] = caption
        _write(path, identity, known)
    return [known[key] for key in keys]


@dataclass(frozen=True)
class CollectedCaptions:
    """Captions of N images from `collect_captions`.

    Attributes:
        captions: in the order of the images; None for images without one.
        remarks: what was stored with each, by key; N dictionaries.
        reused: number of images whose captions were stored before.
        file: where they are stored.
    """

    captions: list[Caption | None]
    remarks: list[Mapping[str, str]]
    reused: int
    file: Path


def collect_captions(
    folder: Path,
    identity: Sequence[str],
    images: Sequence[Path],
    request: Callable[[list[int], Callable[[int, Caption, Mapping[str, str]], None]], None],
) -> CollectedCaptions:
    """Captions of images that arrive one by one; each is stored at once, so that a killed process loses none.

    Args:
        folder: of the cache; created when there are captions to request.
        identity: everything that decides a caption, besides the image.
        images: N image files.
        request: gets the indices of the images that are not stored, and a function to call with the index of an image,
            its caption and remarks to store with it; called once, or not at all.
    """
    path = _file(folder, identity)
    remarks: dict[str, Mapping[str, str]] = {}
    known, keys = _read(path, remarks), [image_key(image) for image in images]
    missing = _missing(keys, known)
    reused = sum(key in known for key in keys)
    if missing:
        if not path.is_file():
            _write(path, identity, {})
        with path.open("r+b") as stream:
            # A process that was killed may have left the beginning of a line.
            stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.seek(0, os.SEEK_END)

            def keep(index: int, caption: Caption, remark: Mapping[str, str]) -> None:
                known[keys[index]], remarks[keys[index]] = caption, remark
                stream.write(_line(keys[index], caption, remark).encode())
                stream.flush()

            request(missing, keep)
    return CollectedCaptions([known.get(key) for key in keys], [remarks.get(key, {}) for key in keys], reused, path)


def stored_identities(folder: Path) -> list[tuple[str, ...]]:
    """The identities whose captions are stored, the last changed first."""
    identities = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            with path.open("rb") as stream:
                identities.append(tuple(load_json(stream.readline())["identity"]))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return identities


def has_captions(folder: Path, identity: Sequence[str], images: Sequence[Path] | None = None) -> bool:
    """Whether captions of an identity are stored: of all of some images, or of any image."""
    known = _read(_file(folder, identity))
    return bool(known) if images is None else not _missing([image_key(image) for image in images], known)


def _file(folder: Path, identity: Sequence[str]) -> Path:
    name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:20]
    return folder / f"{name}.jsonl"


def _missing(keys: Sequence[str], known: Mapping[str, Caption]) -> list[int]:
    """Indices of the images without a caption; two images with equal bytes have one."""
    return list({key: index for index, key in reversed(list(enumerate(keys))) if key not in known}.values())[::-1]


def image_key(path: str | os.PathLike[str]) -> str:
    """Hash of an image file; its name if it cannot be read (decoding reports the error)."""
    try:
        return hash_file(path).hex()
    except OSError:
        return f"unread {os.fspath(path)}"


def _read(path: Path, remarks: dict[str, Mapping[str, str]] | None = None) -> dict[str, Caption]:
    """Captions in a file; damaged lines are ignored, and their captions generated again.

    Args:
        path: the file.
        remarks: receives those that are stored with captions.
    """
    known: dict[str, Caption] = {}
    damaged = 0
    try:
        lines = path.read_bytes().splitlines()[1:]
    except OSError:
        return {}
    for line in lines:
        try:
            row = load_json(line)
            check = row.pop("check")
            if check != _check(row):
                raise ValueError("another hash")
            key = str(row.pop("image"))
            remark = row.pop("remarks", {})
            known[key] = Caption(**row)
            if known[key].thinking not in get_args(Thinking):
                raise ValueError("an unknown kind of thinking text")
            if remarks is not None:
                remarks[key] = remark
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged += 1
    if damaged:
        logger.warning("%d captions in %s are damaged or of an older version and are generated again.", damaged, path)
    return known


def _write(path: Path, identity: Sequence[str], known: dict[str, Caption]) -> None:
    with atomic_file(path) as stream:
        stream.write(json.dumps({"identity": list(identity)}, ensure_ascii=False) + "\n")
        for key, caption in known.items():
            stream.write(_line(key, caption))


def _line(key: str, caption: Caption, remarks: Mapping[str, str] | None = None) -> str:
    row = {"image": key, **asdict(caption)}
    if caption.thinking == "none":
        del row["thinking"]
    row |= {"remarks": dict(remarks)} if remarks else {}
    return json.dumps({**row, "check": _check(row)}, ensure_ascii=False) + "\n"


def _check(row: dict[str, Any]) -> str:
    """Hash of a line's content."""
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).hexdigest()
