"""Rewrite a manifest: without bad rows and leaks, or with other splits. The original is only read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from captune.data.importing import image_prefix
from captune.data.issues import Issue
from captune.data.leaks.guard import ImageFile, find_leaks, images_by_role
from captune.data.manifest import Sample, iter_manifest, scan_manifest, write_manifest
from captune.data.splits import Division, Shares, divide
from captune.errors import DataError

__all__ = ["leaked_training_rows", "rewrite_manifest", "split_manifest"]


def leaked_training_rows(
    manifest: str | os.PathLike[str],
    *,
    train_splits: Collection[str],
    against: Sequence[str | os.PathLike[str]] = (),
    skipped: Collection[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Issue]:
    """The training images of a manifest that show a picture of its other splits, or of other manifests.

    Without these rows the leak guard reports nothing. The evaluation images stay, so that scores remain comparable.

    Args:
        manifest: its path.
        train_splits: splits that are trained on.
        against: further manifests with evaluation images, as in `captune.data.leaks.compare_manifests`.
        skipped: lines of the manifest that do not count.
        progress: called now and then with the number of files read and their total.

    Returns:
        one issue for each row to leave out, with its line.

    Raises:
        DataError: a file is not there.
        MissingExtraError: the library of perceptual hashes is absent.
    """
    trained, others = (
        [image for image in images if image.line not in skipped] for images in images_by_role(manifest, train_splits)
    )
    issues: dict[int, Issue] = {}
    for source in [None, *against]:
        if source is None:
            evaluated = others
        else:
            of_training, of_others = images_by_role(source, train_splits)
            is_itself = os.path.samefile(manifest, source)
            evaluated = [] if is_itself else of_others or of_training
        # The guard names one training image for each evaluated one; others with the same picture come in the next pass.
        while evaluated and (remaining := [image for image in trained if image.line not in issues]):
            report = find_leaks(remaining, evaluated, progress=progress)
            for leak in report.leaks:
                image, twin = remaining[leak.trained], report.evaluated[leak.evaluated]
                of = f"'{twin.id}' of '{source}'" if source is not None else f"'{twin.id}' on line {twin.line}"
                how = {"id": "has the id of", "bytes": "has the bytes of", "picture": "shows the picture of"}[leak.kind]
                message = f"the training image '{image.id}' {how} {of}, which is evaluated."
                issues[image.line] = Issue(str(manifest), image.line, "leak", message)
            evaluated = [evaluated[leak.evaluated] for leak in report.leaks]
    return [issues[line] for line in sorted(issues)]


def rewrite_manifest(
    manifest: str | os.PathLike[str], out: str | Path, *, skipped: Collection[int] = (), command: str
) -> Counter[str]:
    """Write the good rows of a manifest to another file; paths of images are adapted to its folder.

    Args:
        manifest: its path.
        out: the new manifest, written completely or not at all.
        skipped: lines to leave out, besides those that cannot be read.
        command: that writes it; see `captune.data.outputs`.

    Returns:
        the number of images of each split.

    Raises:
        DataError: no row is left.
    """
    out = Path(out)
    splits: Counter[str] = Counter()

    def kept() -> Iterator[Sample]:
        for line, row in scan_manifest(manifest):
            if not isinstance(row, Issue) and line not in skipped:
                splits[row.split] += 1
                yield row
        if not splits:
            raise DataError(f"no row of the manifest '{manifest}' is left; nothing is written.")

    write_manifest(out, _moved(kept(), Path(manifest), out), command=command)
    return splits


def split_manifest(
    manifest: str | os.PathLike[str],
    out: str | Path,
    shares: Shares,
    *,
    command: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Counter[str], Division]:
    """Write a manifest with its images divided into splits, whatever splits it has.

    Args:
        manifest: its path.
        out: the new manifest, written completely or not at all.
        shares: how the images are divided; those that show the same picture are in one split.
        command: that writes it; see `captune.data.outputs`.
        progress: called now and then with the number of files read and their total.

    Returns:
        the number of images of each split, and the division.

    Raises:
        DataError: bad rows, or fewer different pictures than splits.
        MissingExtraError: the library of perceptual hashes is absent.
    """
    out = Path(out)
    folder = Path(manifest).parent
    images = [ImageFile(sample.id, os.path.join(folder, sample.image)) for sample in iter_manifest(manifest)]
    division = divide(images, shares, progress=progress)
    samples = (
        replace(sample, split=split) for sample, split in zip(iter_manifest(manifest), division.splits, strict=True)
    )
    write_manifest(out, _moved(samples, Path(manifest), out), command=command)
    return Counter(division.splits), division


def _moved(samples: Iterable[Sample], manifest: Path, out: Path) -> Iterator[Sample]:
    """Samples with paths relative to another manifest."""
    prefix = image_prefix(manifest.parent, out)
    for sample in samples:
        yield sample if os.path.isabs(sample.image) else replace(sample, image=prefix + sample.image)
