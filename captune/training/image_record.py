"""Which images a run began with, by their content: a run that resumes must have the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from captune.data.atomic import atomic_file
from captune.errors import DataError
from captune.features import StoredImages
from captune.parsing import load_json

__all__ = ["keep_image_record"]

IMAGES = "images.json"


def keep_image_record(output: Path, stored: Mapping[str, StoredImages], *, resuming: bool) -> None:
    """Write down what the images of a run contain, or compare them with what is written.

    Args:
        output: folder of the run.
        stored: what each set of images is called -> its features.
        resuming: whether the run resumes.

    Raises:
        DataError: images have changed since the run began.
    """
    path = output / IMAGES
    now = {what: images.digest for what, images in stored.items()}
    if not resuming:
        with atomic_file(path) as stream:
            stream.write(json.dumps(now) + "\n")
        return
    try:
        before = dict(load_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        # Runs of older versions have no such file.
        return
    for what, digest in now.items():
        if before.get(what, digest) != digest:
            raise DataError(
                f"The {what} are not those that the run in {output} began with: at least one file has other content. "
                "Put them back as they were, or start over with --resume never."
            )
