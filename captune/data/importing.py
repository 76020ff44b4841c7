"""From an annotation file to a manifest: the steps that all importers share.

An importer (`captune.data.importers`) is a generator that knows one format and nothing else: for every image
it yields a `Row`, or an `Issue` with its line for what it could not read. Everything that is the same for all
formats happens here, in one pass: ids, unsafe names, blank captions, duplicates, missing and broken images, the
paths of the manifest, and the summary.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeAlias

from captune.data.atomic import is_stream
from captune.data.ids import SeenIds
from captune.data.image_files import SPELLINGS, file_name, without_windows
from captune.data.images import check_image
from captune.data.issues import Issue, Issues, plural, printable
from captune.data.leaks.guard import ImageFile
from captune.data.manifest import (
    Sample,
    check_image_name,
    invalid_text_reason,
    iter_manifest,
    missing_reason,
    write_manifest,
)
from captune.data.outputs import check_output
from captune.data.prefetch import prefetch_map
from captune.data.rows import Row
from captune.data.splits import Division, Shares, divide
from captune.errors import DataError

__all__ = ["ImageCheck", "Summary", "image_prefix", "prepare"]

ImageCheck: TypeAlias = Literal["none", "exist", "decode"]
"""How images are checked: not at all, for existence, or by decoding them completely."""

_SAMPLES_SHOWN = 5
_PROGRESS_EVERY = 32  # rows


@dataclass
class Summary:
    """What an import found and wrote.

    Attributes:
        images: number written.
        captions: number written; with `problems.rows` they are all captions, and all rows that could not be read.
        splits: images written per split, in the order of first appearance.
        captions_per_image: how many images have how many captions.
        words_per_caption: how many captions have how many words, split at white space.
        problems: of the rows and images.
        unreadable: images per split that are counted and whose file is missing or cannot be decoded.
        samples: five images drawn evenly, the same ones in every run.
    """

    images: int = 0
    captions: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    captions_per_image: Counter[int] = field(default_factory=Counter)
    words_per_caption: Counter[int] = field(default_factory=Counter)
    problems: Issues = field(default_factory=Issues)
    unreadable: Counter[str] = field(default_factory=Counter)
    samples: list[Sample] = field(default_factory=list)
    _respelt: dict[str, tuple[int, str]] = field(default_factory=dict, repr=False)
    _division: list[str] = field(default_factory=list, repr=False)
    _dice: random.Random = field(default_factory=lambda: random.Random(0), repr=False)

    @property
    def notes(self) -> list[str]:
        """How splits were drawn, and how images were found whose files have other names, a sentence each."""
        spelt = [f"{SPELLINGS[way]} ({count:,}, such as {example})" for way, (count, example) in self._respelt.items()]
        return [*self._division, *spelt]

    def divide(self, splits: dict[str, str], shares: Shares, division: Division) -> None:
        """Count images by the splits that were drawn for their ids."""
        self.splits = Counter(dict.fromkeys(shares.shares, 0))
        self.splits.update(splits.values())
        self.samples = [replace(sample, split=splits[sample.id]) for sample in self.samples]
        self._division = [f"splits are drawn by image with seed {shares.seed}"]
        if division.copies:
            self._division[0] += f"; {division.copies:,} of the images show another one's picture, and are in its split"
        if division.unread:
            self._division.append(f"{plural(division.unread, 'image')} could not be compared with the others")

    def add_spelling(self, way: str, name: str, file: str) -> None:
        """Count a name that differs from its file's."""
        count, example = self._respelt.get(way, (0, f"'{printable(name)}' for '{printable(file)}'"))
        self._respelt[way] = count + 1, example

    def add(self, sample: Sample) -> None:
        """Count a sample; keep it among the five with the chance that makes the draw even (Vitter's R)."""
        self.images += 1
        self.captions += len(sample.captions)
        self.splits[sample.split] += 1
        self.captions_per_image[len(sample.captions)] += 1
        for caption in sample.captions:
            self.words_per_caption[len(caption.split())] += 1
        if len(self.samples) < _SAMPLES_SHOWN:
            self.samples.append(sample)
        elif (index := self._dice.randrange(self.images)) < _SAMPLES_SHOWN:
            self.samples[index] = sample


def prepare(
    rows: Iterable[Row | Issue],
    *,
    source: str,
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    check: ImageCheck = "decode",
    strict: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    on_issue: Callable[[Issue], None] | None = None,
    workers: int | None = None,
    shares: Shares | None = None,
    compared: Callable[[int, int], None] | None = None,
    command: str = "prepare",
) -> Summary:
    """Write the manifest of an import.

    Args:
        rows: what an importer yields.
        source: name of the annotation file, for messages.
        images: the folder that the rows' image names are relative to.
        out: the manifest; it is written completely or not at all.
        check: how images are checked.
        strict: write nothing if there is any problem; otherwise bad rows are left out and counted.
        overwrite: replace a file at `out` that an import did not write.
        progress: called now and then with the number of rows done.
        on_issue: called with every problem as it is met.
        workers: threads that decode images; as many as processors by default, at most eight.
        shares: divide the images into these splits, whatever split the rows have.
        compared: called now and then with the number of images compared with the others for `shares`, and of all.
        command: that writes the manifest, as it is recorded.

    Returns:
        what was written and what was left out.

    Raises:
        InputError: `out` must not be written; see `captune.data.outputs.check_output`.
        DataError: the image folder is absent, no image is left, or `strict` and any problem; the message
            lists the bad rows.
        OSError: from the file system, with the name of the manifest.
    """
    folder = Path(images)
    if check != "none" and not folder.is_dir():
        raise DataError(
            f"the image folder '{images}' is not there; give it with --images, "
            "or pass --check-images none to prepare without the image files."
        )
    check_output(out, command=command, reads=[source], overwrite=overwrite)
    summary = Summary(problems=Issues(on_issue=on_issue))
    checked = _cleaned(_portable(rows, folder, check, summary), source)
    if check != "none":
        checked = _with_images(checked, source, folder, check, summary, workers)
    with contextlib.closing(checked):
        samples = _counted(checked, summary, image_prefix(folder, Path(out)), progress)
        accepted = _accepted(samples, summary, source, strict)
        if shares is not None:
            accepted = _divided(accepted, summary, shares, Path(out), compared)
        write_manifest(out, accepted, command=command)
    return summary


def _divided(
    samples: Iterator[Sample],
    summary: Summary,
    shares: Shares,
    out: Path,
    compared: Callable[[int, int], None] | None,
) -> Iterator[Sample]:
    """The samples with splits that are drawn when all are known; until then they are on the disk."""
    base = Path.cwd() if is_stream(out) else out.absolute().parent
    images: list[ImageFile] = []

    def kept() -> Iterator[Sample]:
        for sample in samples:
            images.append(ImageFile(sample.id, os.path.join(base, sample.image)))
            yield sample

    with tempfile.TemporaryDirectory(prefix="captune-", ignore_cleanup_errors=True) as folder:
        rows = Path(folder) / "rows.jsonl"
        write_manifest(rows, kept())
        division = divide(images, shares, progress=compared)
        splits = dict(zip((image.id for image in images), division.splits, strict=True))
        summary.divide(splits, shares, division)
        for sample in iter_manifest(rows):
            yield replace(sample, split=splits[sample.id])


def _portable(rows: Iterable[Row | Issue], folder: Path, check: ImageCheck, summary: Summary) -> Iterator[Row | Issue]:
    """Rows without paths of Windows in them."""
    for row in rows:
        if isinstance(row, Row) and (name := without_windows(row.image, folder, check=check != "none")) != row.image:
            summary.add_spelling("windows", row.image, name)
            row = replace(row, image=name)
        yield row


def _cleaned(rows: Iterable[Row | Issue], source: str) -> Generator[Row | Issue, None, None]:
    """Rows with an id, a safe image name and no blank captions; a second row of an id becomes a problem."""
    seen = SeenIds()
    for row in rows:
        if isinstance(row, Issue):
            yield row
            continue
        try:
            check_image_name(row.image)
        except DataError as error:
            yield Issue(source, row.line, "path", str(error), len(row.captions))
            continue
        captions, problems = _cleaned_captions(row, source)
        yield from problems
        name = posixpath.splitext(posixpath.basename(row.image))[0] if row.id is None else row.id
        if not captions:
            continue
        if fault := invalid_text_reason(name):
            yield Issue(source, row.line, "malformed", f"the id of '{row.image}' {fault}.", len(captions))
        elif fault := invalid_text_reason(row.split):
            yield Issue(source, row.line, "malformed", f"the split of '{row.image}' {fault}.", len(captions))
        elif row.domain is not None and (fault := invalid_text_reason(row.domain)):
            yield Issue(source, row.line, "malformed", f"the domain of '{row.image}' {fault}.", len(captions))
        elif (first := seen.line_of(name)) is not None:
            where = f"is on line {first} already" if first else "is given twice"
            message = f"the id '{name}' {where}; '{row.image}' and its captions are left out."
            yield Issue(source, row.line, "duplicate", message, len(captions))
        else:
            seen.add(name, row.line)
            yield replace(row, captions=captions, id=name)


def _cleaned_captions(row: Row, source: str) -> tuple[tuple[str, ...], list[Issue]]:
    """The captions that are text, unchanged, and a problem for each of the others."""
    good: list[str] = []
    problems = []
    for number, caption in enumerate(row.captions, 1):
        fault = invalid_text_reason(caption)
        if fault is None:
            good.append(caption)
            continue
        kind = "malformed" if caption.strip() else "empty"
        message = f"caption {number} of {len(row.captions)} of '{row.image}' {fault}."
        problems.append(Issue(source, row.line, kind, message))
    if not good:
        message = f"'{row.image}' has no caption with text in it."
        problems = [Issue(source, row.line, "empty", message, len(row.captions))]
    return tuple(good), problems


def _with_images(
    rows: Iterator[Row | Issue],
    source: str,
    folder: Path,
    check: ImageCheck,
    summary: Summary,
    workers: int | None,
) -> Generator[Row | Issue, None, None]:
    """Rows whose image is there, and decodes to the last byte if that is requested; the order is kept."""
    ways: dict[str, str] = {}  # of files with other names than in the annotation file

    def verdict(row: Row | Issue) -> Row | Issue:
        if isinstance(row, Issue):
            return row
        path = folder / row.image
        if missing := missing_reason(path):
            other = file_name(row.image, folder, any_ending=row.any_ending)
            if other is None:
                return Issue(source, row.line, "missing", missing, len(row.captions))
            row = replace(row, image=other[0])
            path, ways[row.image] = folder / row.image, other[1]
        if check == "decode":
            try:
                check_image(path)
            except DataError as error:
                return Issue(source, row.line, "undecodable", str(error), len(row.captions))
        return row

    with contextlib.closing(prefetch_map(rows, verdict, workers)) as verdicts:
        for before, row in verdicts:
            if isinstance(row, Row) and isinstance(before, Row) and (way := ways.pop(row.image, None)):
                summary.add_spelling(way, before.image, row.image)
            yield row


def image_prefix(images: Path, out: Path) -> str:
    """The prefix of image names in the manifest: the relative path from the manifest to the image folder."""
    base = Path.cwd() if is_stream(out) else Path(os.path.abspath(out)).parent
    try:
        way = os.path.relpath(os.path.abspath(images), base)
        if way.startswith(os.pardir):  # `..` after a symbolic link means its target's parent
            way = os.path.relpath(os.path.realpath(images), os.path.realpath(base))
    except ValueError:  # another drive of Windows
        way = os.path.abspath(images)
    return "" if way == os.curdir else Path(way).as_posix() + "/"


def _counted(
    rows: Iterator[Row | Issue], summary: Summary, prefix: str, progress: Callable[[int], None] | None
) -> Iterator[Sample]:
    """The good rows as samples of the manifest; everything is counted."""
    for done, row in enumerate(rows, 1):
        if isinstance(row, Issue):
            summary.problems.add(row)
        else:
            sample = Sample(str(row.id), prefix + row.image, row.captions, row.split, row.domain)
            summary.add(sample)
            yield sample
        if progress is not None and done % _PROGRESS_EVERY == 0:
            progress(done)


def _accepted(samples: Iterator[Sample], summary: Summary, source: str, strict: bool) -> Iterator[Sample]:
    """The samples, and after the last an error if they must not become a manifest."""
    yield from samples
    problems = summary.problems
    if strict and problems.fatal:
        raise DataError(
            f"'{source}' has {plural(problems.fatal, 'problem')} ({problems.in_words()}); "
            f"with --strict nothing is written:\n{problems.listing()}"
        )
    if not summary.images and problems:
        hint = " Is the image folder the right one (--images)?" if problems.counts["missing"] else ""
        raise DataError(f"no image of '{source}' can be used ({problems.in_words()}).{hint}\n{problems.listing()}")
    if not summary.images:
        raise DataError(f"'{source}' holds no images.")
