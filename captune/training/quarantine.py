"""Training images that cannot be read: left out, named, and the same ones for as long as the run lasts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from captune.data.atomic import atomic_file
from captune.data.manifest import Sample
from captune.errors import DataError
from captune.features import StoredImages
from captune.parsing import load_json

__all__ = ["QUARANTINE", "keep_quarantine", "without_broken"]

QUARANTINE = "quarantine.json"
MOST_BROKEN = 0.1
"""Share of the training images; where more are broken, something else is wrong, such as the folder."""


def without_broken(images: Sequence[Sample], stored: StoredImages) -> list[Sample]:
    """The training images that can be read.

    Raises:
        DataError: more than a tenth cannot.
    """
    if len(stored.broken) > len(images) * MOST_BROKEN:
        named = " ".join(item.reason for item in stored.broken[:3])
        raise DataError(f"{len(stored.broken)} of {len(images)} training images cannot be read: {named}")
    return [images[place] for place in stored.whole]


def keep_quarantine(output: Path, images: Sequence[Sample], stored: StoredImages, *, resuming: bool) -> dict[str, str]:
    """Write down which images are left out; a run that goes on must leave out the same.

    Args:
        output: folder of the run.
        images: all its training images.
        stored: their features.
        resuming: whether the run goes on.

    Returns:
        Why each one is left out, by the image's id.

    Raises:
        DataError: other images are broken than when the run began.
    """
    broken = {images[item.place].id: item.reason for item in stored.broken}
    path = output / QUARANTINE
    if resuming:
        before = set(load_json(path.read_text(encoding="utf-8"))) if path.exists() else set()
        if before != set(broken):
            changed = sorted(before ^ set(broken))
            raise DataError(
                f"Image '{changed[0]}' ({len(changed)} in all) could be read when this run began and cannot now, or "
                "the other way round; put it back as it was, or start over with --resume never."
            )
    elif broken:
        with atomic_file(path, "w") as stream:
            json.dump(broken, stream, ensure_ascii=False, indent=2)
            stream.write("\n")
    return broken
