"""The leak guard: whether images that a model is evaluated on were among those it was trained on.

Three questions, the cheap ones first: is the id the same, are the bytes of the file the same, is it the same picture
(re-encoded, resized, margins cut)? For the last, hashes of views propose pairs and the pixels decide. The same between
two manifests, and within one data set.
"""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from captune.data.content_hash import cached_map
from captune.data.issues import Issue, plural, printable
from captune.data.leaks.fingerprints import (
    FULL_IMAGE,
    INDEXED_RADIUS,
    VIEWS,
    Hashes,
    close_pairs,
    fingerprint,
    fingerprint_cache,
)
from captune.data.leaks.pixels import Thumbnail, compare, read_thumbnail
from captune.data.manifest import scan_manifest
from captune.errors import DataError

__all__ = [
    "RADIUS",
    "Candidates",
    "ImageFile",
    "Leak",
    "LeakKind",
    "LeakReport",
    "candidates",
    "compare_manifests",
    "find_leaks",
    "images_by_role",
    "leak_issues",
    "looks_same",
    "read_fingerprints",
    "read_picture",
    "same_picture_groups",
    "same_pictures",
]

RADIUS = INDEXED_RADIUS
"""Bits of 64 by which the hashes of a candidate pair may differ; see benchmarks/leaks.py."""

_CANDIDATES = 200  # trained images whose pixels are compared with one evaluated image, the nearest hashes first
_THUMBNAILS = 2048  # pictures kept for further pairs, 110 kB each
_BLOCK = 2000  # evaluated images whose candidates are held at once
_PROGRESS_EVERY = 64

LeakKind: TypeAlias = Literal["id", "bytes", "picture"]
_IN_WORDS: Final[dict[LeakKind, str]] = {"id": "by id", "bytes": "by file content", "picture": "as the same picture"}


class ImageFile(NamedTuple):
    """An image of a manifest.

    Attributes:
        id: its id.
        path: of its file.
        line: the manifest's line, for messages; 0 where it does not matter.
    """

    id: str
    path: str
    line: int = 0


@dataclass(frozen=True, slots=True)
class Leak:
    """An evaluated image that was trained on.

    Attributes:
        kind: how it was found.
        evaluated: its index among the evaluated images.
        trained: index of the image among the trained ones.
    """

    kind: LeakKind
    evaluated: int
    trained: int


@dataclass(frozen=True, slots=True)
class LeakReport:
    """The result of the guard.

    Attributes:
        trained: the images trained on.
        evaluated: the images evaluated on.
        leaks: one for each leaked image, in the order of `evaluated`.
        unread: images of either side whose file could not be read or decoded, so that only their id was compared.
    """

    trained: Sequence[ImageFile]
    evaluated: Sequence[ImageFile]
    leaks: tuple[Leak, ...]
    unread: int

    @property
    def counts(self) -> Counter[LeakKind]:
        """Leaked images by how they were found."""
        return Counter(leak.kind for leak in self.leaks)

    def in_words(self, leak: Leak) -> str:
        """One leak as a sentence without the place."""
        one, other = self.evaluated[leak.evaluated], self.trained[leak.trained]
        if leak.kind == "id":
            return f"the id '{one.id}' was trained on."
        how = "has the same bytes as" if leak.kind == "bytes" else "shows the same picture as"
        return f"the image '{one.path}' of '{one.id}' {how} '{other.path}' of '{other.id}', which was trained on."

    @property
    def reason(self) -> str | None:
        """Why results on these images are marked LEAK, as the predicate of a sentence; None if nothing leaked."""
        if not self.leaks:
            return None
        parts = ", ".join(f"{self.counts[kind]:,} {words}" for kind, words in _IN_WORDS.items() if self.counts[kind])
        first = printable(self.evaluated[self.leaks[0].evaluated].id)
        verb = "was" if len(self.leaks) == 1 else "were"
        of = f"{len(self.leaks):,} of {plural(len(self.evaluated), 'evaluated image')}"
        return f"{of} {verb} trained on: {parts}, such as '{first}'"


def find_leaks(
    trained: Sequence[ImageFile],
    evaluated: Sequence[ImageFile],
    *,
    store: Path | Literal["default"] | None = "default",
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> LeakReport:
    """Search for every evaluated image among the trained ones.

    Args:
        trained: N images.
        evaluated: Q images.
        store: database that keeps fingerprints between calls; None for none.
        progress: called now and then with the number of files done and their total.
        workers: threads that read images, as many as processors by default, at most eight.

    Returns:
        every leaked image with how it was found; memory is about 400 bytes an image.

    Raises:
        MissingExtraError: ImageHash is not installed.
    """
    ids = {image.id: index for index, image in enumerate(trained)}
    leaks = {index: Leak("id", index, ids[image.id]) for index, image in enumerate(evaluated) if image.id in ids}
    digests, hashes, readable = read_fingerprints([*trained, *evaluated], store, progress, workers)
    count = len(trained)
    known = {digest: index for index, digest in enumerate(digests[:count]) if digest is not None}
    for index, digest in enumerate(digests[count:]):
        if index not in leaks and digest is not None and digest in known:
            leaks[index] = Leak("bytes", index, known[digest])
    rest = np.array([index for index in np.flatnonzero(readable[count:]) if index not in leaks], np.int64)
    there = np.flatnonzero(readable[:count])
    corpus = hashes[there]
    thumbnail = functools.lru_cache(_THUMBNAILS)(read_picture)
    for start in range(0, len(rest), _BLOCK):
        block = rest[start : start + _BLOCK]

        def is_same(query: int, index: int, view: int, of_trained: bool, block: NDArray[np.int64] = block) -> bool:
            one, other = evaluated[block[query]].path, trained[there[index]].path
            return looks_same(thumbnail(one), thumbnail(other), view, of_trained)

        near = candidates(corpus, hashes[count + block])
        for query, index in same_pictures(near, is_same, first_only=True):
            leaks[int(block[query])] = Leak("picture", int(block[query]), int(there[index]))
    found_leaks = tuple(leaks[index] for index in sorted(leaks))
    return LeakReport(trained, evaluated, found_leaks, int(len(readable) - readable.sum()))


class Candidates(NamedTuple):
    """Pairs whose hashes agree, nearest first within an evaluated image; four arrays and one, all of length C.

    Attributes:
        evaluated: index among the evaluated.
        trained: index among the trained.
        view: which of the views agrees with the complete other image.
        of_trained: whether it is a view of the trained image, which makes the evaluated one a part of it.
        bits: by how many bits the hashes differ.
    """

    evaluated: NDArray[np.int64]
    trained: NDArray[np.int64]
    view: NDArray[np.int64]
    of_trained: NDArray[np.bool_]
    bits: NDArray[np.uint8]

    def at(self, places: NDArray[np.intp]) -> Candidates:
        """These of the candidates, in this order."""
        return Candidates(
            self.evaluated[places],
            self.trained[places],
            self.view[places],
            self.of_trained[places],
            self.bits[places],
        )


def candidates(trained: Hashes, evaluated: Hashes, radius: int = RADIUS) -> Candidates:
    """The pairs of images whose pixels are compared.

    Args:
        trained: (N, V) hashes of the views of each trained image.
        evaluated: (Q, V) those of each evaluated image.
        radius: bits by which hashes may differ.

    Returns:
        each pair once, with the view that agrees best.
    """
    parts = []
    for view in range(trained.shape[1]):
        rows, columns, bits = close_pairs(evaluated[:, 0], trained[:, view], radius)
        parts.append((rows, columns, np.full(len(rows), view), np.full(len(rows), True), bits))
        if view:
            rows, columns, bits = close_pairs(evaluated[:, view], trained[:, 0], radius)
            parts.append((rows, columns, np.full(len(rows), view), np.full(len(rows), False), bits))
    rows, columns, views, of_trained, bits = (np.concatenate(column) for column in zip(*parts, strict=True))
    pairs = Candidates(rows, columns, views, of_trained, bits)
    # The best view of each pair, then the nearest pairs of each evaluated image first.
    pairs = pairs.at(np.lexsort((pairs.bits, pairs.trained, pairs.evaluated)))
    fresh = np.ones(len(bits), np.bool_)
    fresh[1:] = (np.diff(pairs.evaluated) != 0) | (np.diff(pairs.trained) != 0)
    pairs = pairs.at(np.flatnonzero(fresh))
    return pairs.at(np.lexsort((pairs.bits, pairs.evaluated)))


def same_pictures(
    near: Candidates, is_same: Callable[[int, int, int, bool], bool], *, first_only: bool
) -> Iterator[tuple[int, int]]:
    """The candidates whose pixels agree.

    Args:
        near: from `candidates`.
        is_same: called with the evaluated and the trained image, the view and whose it is.
        first_only: stop at the first one of an evaluated image, and look at the nearest 200 only.

    Yields:
        indices of the evaluated and of the trained image.
    """
    looked: Counter[int] = Counter()
    done: set[int] = set()
    for evaluated, trained, view, of_trained in zip(
        near.evaluated.tolist(), near.trained.tolist(), near.view.tolist(), near.of_trained.tolist(), strict=True
    ):
        if first_only and (evaluated in done or looked[evaluated] >= _CANDIDATES):
            continue
        looked[evaluated] += 1
        if is_same(evaluated, trained, view, of_trained):
            done.add(evaluated)
            yield evaluated, trained


def looks_same(evaluated: Thumbnail | None, trained: Thumbnail | None, view: int, of_trained: bool) -> bool:
    """Whether two pictures are the same; the alignment begins where their hashes agree."""
    if evaluated is None or trained is None:
        return False
    view_of_evaluated, view_of_trained = (FULL_IMAGE, VIEWS[view]) if of_trained else (VIEWS[view], FULL_IMAGE)
    return compare(evaluated, trained, view_of_one=view_of_evaluated, view_of_other=view_of_trained).is_same


def read_picture(path: str) -> Thumbnail | None:
    """An image as it is compared with others, or None where it cannot be read."""
    try:
        return read_thumbnail(path)
    except (DataError, OSError):
        return None


def read_fingerprints(
    images: Sequence[ImageFile],
    store: Path | Literal["default"] | None,
    progress: Callable[[int, int], None] | None,
    workers: int | None,
) -> tuple[list[bytes | None], Hashes, NDArray[np.bool_]]:
    """Digest and hashes of each file, and whether it is an image that could be read."""
    digests: list[bytes | None] = [None] * len(images)
    hashes = np.zeros((len(images), len(VIEWS)), np.uint64)
    readable = np.zeros(len(images), np.bool_)

    def compute(path: str) -> tuple[bytes, bytes | None]:
        result = fingerprint(path)
        return result.digest, None if result.hashes is None else result.hashes.tobytes()

    with fingerprint_cache(store) as cache:
        results = cached_map([image.path for image in images], cache, compute, workers)
        for done, (index, values) in enumerate(results, 1):
            if not isinstance(values, OSError):
                digests[index], packed = values
                if packed is not None:
                    hashes[index], readable[index] = np.frombuffer(packed, np.uint64), True
            if progress is not None and done % _PROGRESS_EVERY == 0:
                progress(done, len(images))
    return digests, hashes, readable


def same_picture_groups(
    images: Sequence[ImageFile],
    *,
    store: Path | Literal["default"] | None = "default",
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> tuple[list[int], int]:
    """Group images that have the same bytes or show the same picture.

    Args:
        images: N images.
        store: database that keeps fingerprints between calls; None for none.
        progress: called now and then with the number of files done and their total.
        workers: threads that read images, as many as processors by default, at most eight.

    Returns:
        for each image the index of the first one of its group, and how many images could not be read, each of which
        is a group.

    Raises:
        MissingExtraError: ImageHash is not installed.
    """
    digests, hashes, readable = read_fingerprints(images, store, progress, workers)
    groups = list(range(len(images)))

    def first_of(index: int) -> int:
        while groups[index] != index:
            groups[index] = groups[groups[index]]
            index = groups[index]
        return index

    def join(one: int, other: int) -> None:
        low, high = sorted((first_of(one), first_of(other)))
        groups[high] = low

    known: dict[bytes, int] = {}
    for index, digest in enumerate(digests):
        if digest is not None:
            join(index, known.setdefault(digest, index))
    there = np.flatnonzero(readable)
    thumbnail = functools.lru_cache(_THUMBNAILS)(read_picture)
    for start in range(0, len(there), _BLOCK):
        block = there[start : start + _BLOCK]

        def is_same(query: int, index: int, view: int, of_other: bool, start: int = start) -> bool:
            one, other = int(there[start + query]), int(there[index])
            if first_of(one) == first_of(other):
                return False
            return looks_same(thumbnail(images[one].path), thumbnail(images[other].path), view, of_other)

        near = candidates(hashes[there], hashes[block])
        for query, index in same_pictures(near, is_same, first_only=False):
            join(int(block[query]), int(there[index]))
    return [first_of(index) for index in range(len(images))], int(len(images) - readable.sum())


def compare_manifests(
    manifest: str | os.PathLike[str],
    against: str | os.PathLike[str],
    *,
    train_split: str | Collection[str] = "train",
    progress: Callable[[int, int], None] | None = None,
) -> LeakReport:
    """Search for the images of one manifest among the training images of another; bad rows are skipped.

    Args:
        manifest: its images of the training split are those trained on.
        against: its images of all other splits are those evaluated on; of a file that has the training split only,
            and is not `manifest` itself, all images.
        train_split: name of the training split, or of several.
        progress: called now and then with the number of files done and their total.

    Raises:
        DataError: a file is not there, or it leaves nothing to compare.
        MissingExtraError: the library of perceptual hashes is absent.
    """
    splits = (train_split,) if isinstance(train_split, str) else tuple(train_split)
    named = " or ".join(f"'{split}'" for split in splits)
    trained, _ = images_by_role(manifest, splits)
    of_training, others = images_by_role(against, splits)
    itself = os.path.exists(manifest) and os.path.samefile(manifest, against)
    evaluated = others or ([] if itself else of_training)
    if not trained:
        raise DataError(f"the manifest '{manifest}' has no images of the split {named} that could leak.")
    if not evaluated:
        raise DataError(f"the manifest '{against}' has no images of other splits than {named} to compare.")
    return find_leaks(trained, evaluated, progress=progress)


def leak_issues(report: LeakReport, name: str) -> list[Issue]:
    """Each leaked image with its line in the manifest called `name`."""
    return [Issue(name, report.evaluated[leak.evaluated].line, "leak", report.in_words(leak)) for leak in report.leaks]


def images_by_role(
    manifest: str | os.PathLike[str], train_splits: Collection[str]
) -> tuple[list[ImageFile], list[ImageFile]]:
    """The images of the training splits, and those of all others; bad rows are skipped."""
    folder = Path(manifest).parent
    of_training: list[ImageFile] = []
    others: list[ImageFile] = []
    for line, row in scan_manifest(manifest):
        if not isinstance(row, Issue):
            part = of_training if row.split in train_splits else others
            part.append(ImageFile(row.id, os.path.join(folder, row.image), line))
    return of_training, others
