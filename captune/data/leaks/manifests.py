"""The leak guard over manifests: the training split of one against what another one holds to be evaluated on."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path

from captune.data.leaks.guard import ImageFile, LeakReport, find_leaks
from captune.data.manifest import scan_manifest
from captune.data.problems import Problem
from captune.errors import DataError

__all__ = ["compare_manifests", "leak_problems"]


def compare_manifests(
    manifest: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    train_split: str | Collection[str] = "train",
    progress: Callable[[int, int], None] | None = None,
) -> LeakReport:
    """Look for the images of one manifest among the training images of another; bad rows are passed over.

    Args:
        manifest: its images of the training split are those trained on.
        against: its images of all other splits are those evaluated on; of a file that has the training split only,
            and is not `manifest` itself, all images.
        train_split: name of the training split, or of several that are trained on together.
        progress: called now and then with the number of files done and their total.

    Raises:
        DataError: a file is not there, or it leaves nothing to compare.
        MissingExtraError: the library of perceptual hashes is absent.
    """
    splits = (train_split,) if isinstance(train_split, str) else tuple(train_split)
    named = " or ".join(f"'{split}'" for split in splits)
    trained, _ = _images(manifest, splits)
    of_training, others = _images(against, splits)
    itself = os.path.exists(manifest) and os.path.samefile(manifest, against)
    evaluated = others or ([] if itself else of_training)
    if not trained:
        raise DataError(f"the manifest '{manifest}' has no images of the split {named} that could leak.")
    if not evaluated:
        raise DataError(f"the manifest '{against}' has no images of other splits than {named} to look for.")
    return find_leaks(trained, evaluated, progress=progress)


def leak_problems(report: LeakReport, name: str) -> list[Problem]:
    """Each leaked image with the line of the manifest called `name` on which it stands."""
    return [
        Problem(name, report.evaluated[leak.evaluated].line, "leak", report.in_words(leak)) for leak in report.leaks
    ]


def _images(manifest: str | os.PathLike[str], train_splits: Collection[str]) -> tuple[list[ImageFile], list[ImageFile]]:
    """The images of the training splits, and those of all others."""
    folder = Path(manifest).parent
    of_training: list[ImageFile] = []
    others: list[ImageFile] = []
    for line, row in scan_manifest(manifest):
        if not isinstance(row, Problem):
            part = of_training if row.split in train_splits else others
            part.append(ImageFile(row.id, os.path.join(folder, row.image), line))
    return of_training, others
