"""A cache of generated captions, so that a repeated evaluation generates nothing.

A file holds the captions of one identity: model, checkpoint, prompt, decoding, versions. Its lines identify images by a
hash of their files, so a renamed image is recognized and a changed one is not.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from captune.common import Thinking
from captune.data import atomic_file, hash_file
from captune.decoding.options import Caption
from captune.parsing import load_json

__all__ = ["cached_captions", "image_key"]

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
    name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:20]
    path = folder / f"{name}.jsonl"
    known = _read(path)
    keys = [image_key(image) for image in images]
    # Two images with equal bytes have one caption.
    missing = list({key: index for index, key in reversed(list(enumerate(keys))) if key not in known}.values())[::-1]
    if missing:
        for index, caption in zip(missing, generate(missing), strict=True):
            known[keys[index]] = caption
        _write(path, identity, known)
    return [known[key] for key in keys]


def image_key(path: str | os.PathLike[str]) -> str:
    """Hash of an image file; its name if it cannot be read (decoding reports the error)."""
    try:
        return hash_file(path).hex()
    except OSError:
        return f"unread {os.fspath(path)}"


def _read(path: Path) -> dict[str, Caption]:
    """Captions in a file; damaged lines are ignored, and their captions generated again."""
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
            known[key] = Caption(**row)
            if known[key].thinking not in get_args(Thinking):
                raise ValueError("an unknown kind of thinking text")
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged += 1
    if damaged:
        logger.warning("%d captions in %s are damaged or of an older version and are generated again.", damaged, path)
    return known


def _write(path: Path, identity: Sequence[str], known: dict[str, Caption]) -> None:
    with atomic_file(path) as stream:
        stream.write(json.dumps({"identity": list(identity)}, ensure_ascii=False) + "\n")
        for key, caption in known.items():
            row = {"image": key, **asdict(caption)}
            if caption.thinking == "none":
                del row["thinking"]
            stream.write(json.dumps({**row, "check": _check(row)}, ensure_ascii=False) + "\n")


def _check(row: dict[str, Any]) -> str:
    """Hash of a line's content."""
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=8).hexdigest()
