"""What happens before the first step: features of every image, unreadable images, the model, and records of these.

The records (`quarantine.json`, `images.json`, `prompt.json`) fix at the start of a run which images are left out, what
the images contain and which text surrounds the prompt; a resumed run must find the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.config import RunConfig
from captune.data import MAX_UNREADABLE, Sample, atomic_file, resolve_image
from captune.distributed import DistributedContext
from captune.errors import DataError
from captune.events import Listener
from captune.features import StoredImages, features_of
from captune.hub import ResolvedModel
from captune.parsing import load_json
from captune.training.run_folder import QUARANTINE, Inspection, left_out_images, open_run_folder

__all__ = [
    "FeaturesOf",
    "RunImages",
    "drop_unreadable",
    "prepare_images",
    "record_images",
    "record_quarantine",
    "run_features",
]

IMAGES = "images.json"
PROMPT = "prompt.json"


FeaturesOf = Callable[[Sequence[Path], str], StoredImages]
"""Function of image files and the name of the set."""


def run_features(
    source: ResolvedModel,
    config: RunConfig,
    files: Sequence[Path],
    name: str,
    *,
    dist: DistributedContext,
    listener: Listener | None,
) -> StoredImages:
    """Features of image files; each process encodes its shard of the missing ones.

    Args:
        source: the model of the towers.
        config: of the run.
        files: the images.
        name: of this set of images, in events and messages.
        dist: this process among the others.
        listener: receives the progress.
    """

    def report(done: int, count: int) -> None:
        if listener is not None and dist.is_main:
            listener({"event": "features", "what": name, "done": done, "count": count})

    return features_of(
        source, files, config.feature_folder, dist, exif_rotation=config.exif_rotation, on_progress=report
    )


@dataclass(frozen=True)
class RunImages:
    """The images of a run and their features.

    Attributes:
        images: I training images, without unreadable ones.
        features: of these.
        evaluation_features: of the evaluation images.
        quarantined: why training images are left out, by their ids.
    """

    images: list[Sample]
    features: Any
    evaluation_features: Any
    quarantined: dict[str, str]


def prepare_images(
    config: RunConfig,
    images: Sequence[Sample],
    evaluation_files: Sequence[Path],
    training_features: FeaturesOf,
    evaluation_features_of: FeaturesOf,
    dist: DistributedContext,
    listener: Listener | None,
    folder: Inspection | None,
) -> RunImages:
    """Encode every image of a run once; write or compare its records in the output folder.

    Args:
        config: of the run.
        images: all training images.
        evaluation_files: N evaluation images.
        training_features: features of the training images.
        evaluation_features_of: features of the evaluation images.
        dist: this process among the others.
        listener: receives the progress.
        folder: status of a new run's output folder, which is made ready; None if the run resumes.

    Raises:
        DataError: too many images are unreadable, or a resumed run finds other images.
    """
    output, resuming = config.output, folder is None
    files = [resolve_image(config.data.train, image.image) for image in images]
    training = training_features(files, "training images")
    evaluation = evaluation_features_of(evaluation_files, "evaluation images")
    evaluation_features = evaluation.require_all("evaluation images")
    readable = drop_unreadable(images, training)
    if dist.is_main and folder is not None:
        aside = open_run_folder(config, folder)
        if aside is not None and listener is not None:
            listener({"event": "replaced", "folder": str(output), "moved_to": str(aside)})
    quarantined = {}
    if dist.is_main or resuming:
        quarantined = record_quarantine(output, images, training, resuming=resuming)
        sets = {"training images": training, "evaluation images": evaluation}
        record_images(output, sets, resuming=resuming)
    dist.barrier()
    return RunImages(readable, training.features, evaluation_features, quarantined)


def drop_unreadable(images: Sequence[Sample], stored: StoredImages) -> list[Sample]:
    """The training images that can be read.

    Raises:
        DataError: more than a tenth cannot.
    """
    if len(stored.unreadable) > len(images) * MAX_UNREADABLE:
        reasons = " ".join(item.reason for item in stored.unreadable[:3])
        raise DataError(f"{len(stored.unreadable)} of {len(images)} training images cannot be read: {reasons}")
    return [images[index] for index in stored.readable]


def record_quarantine(
    output: Path, images: Sequence[Sample], stored: StoredImages, *, resuming: bool
) -> dict[str, str]:
    """Write which images are left out; a resumed run must leave out the same.

    Args:
        output: folder of the run.
        images: all its training images.
        stored: their features.
        resuming: whether the run resumes.

    Returns:
        Why each one is left out, by the image's id.

    Raises:
        DataError: other images are unreadable than when the run started.
    """
    unreadable = {images[item.position].id: item.reason for item in stored.unreadable}
    path = output / QUARANTINE
    if resuming:
        before = left_out_images(output).keys()
        if before != unreadable.keys():
            changed = sorted(before ^ unreadable.keys())
            then, now = (" not", "can") if changed[0] in before else ("", "cannot")
            raise DataError(
                f"The training image '{changed[0]}' ({len(changed)} in all) could{then} be read when this run began "
                f"and {now} be read now; put it back as it was, or start over with --resume never."
            )
    elif unreadable:
        with atomic_file(path, "w") as stream:
            json.dump(unreadable, stream, ensure_ascii=False, indent=2)
            stream.write("\n")
    return unreadable


def record_images(output: Path, stored: Mapping[str, StoredImages], *, resuming: bool) -> None:
    """Write the content hash of a run's images, or compare it with the one that is written.

    Args:
        output: folder of the run.
        stored: name of each set of images -> its features.
        resuming: whether the run resumes.

    Raises:
        DataError: images have changed since the run started.
    """
    path = output / IMAGES
    digests = {name: images.digest for name, images in stored.items()}
    if not resuming:
        with atomic_file(path) as stream:
            stream.write(json.dumps(digests) + "\n")
        return
    try:
        before = dict(load_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        # Runs of older versions have no such file.
        return
    for name, digest in digests.items():
        if before.get(name, digest) != digest:
            raise DataError(
                f"The {name} are not those that the run in {output} began with: at least one file has other content. "
                "Put them back as they were, or start over with --resume never."
            )
