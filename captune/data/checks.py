"""Everything that can be wrong with a manifest, found before a run fails on it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

from captune.data.ids import SeenIds
from captune.data.images import check_image
from captune.data.importing import ImageCheck, Summary
from captune.data.issues import Issue, Issues
from captune.data.manifest import Sample, missing_reason, resolve_image, scan_manifest
from captune.data.prefetch import prefetch_map
from captune.data.text_files import SourceFile
from captune.errors import DataError

__all__ = ["MAX_UNREADABLE", "TargetFlaw", "check_manifest"]

MAX_UNREADABLE: Final = 0.1
"""Share of the training images that training leaves out as unreadable; where more are, the folder may be wrong."""

TargetFlaw = Literal["truncated", "stopped", "special"]
"""Why a model cannot be trained on a complete caption, as a kind of issue."""

_FLAWS: Final[dict[TargetFlaw, str]] = {
    "truncated": "is longer than a target may be; training cuts its end.",
    "stopped": "holds what ends an answer of this model; generation would stop there.",
    "special": "spells out a special token of this model's prompts; it is trained on as plain text.",
}


def check_manifest(
    manifest: str | os.PathLike[str] | SourceFile,
    *,
    needed_splits: Sequence[str] = ("train",),
    check: ImageCheck = "decode",
    min_side: int = 32,
    max_words: int = 100,
    flaw: Callable[[str], TargetFlaw | None] | None = None,
    progress: Callable[[int], None] | None = None,
    on_issue: Callable[[Issue], None] | None = None,
    workers: int | None = None,
) -> Summary:
    """Check every row, caption and image of a manifest.

    What makes training fail, or leave out training images (`Summary.problems.fatal` counts it): malformed and
    non-UTF-8 rows, duplicate ids, missing and undecodable images, and a needed split without images. What is only
    worth knowing: images smaller than `min_side`, an image under two ids, a caption twice at one image, captions of
    more than `max_words` words, and captions that cannot be trained on completely.

    Args:
        manifest: its path, or the open file, for a progress bar.
        needed_splits: splits that a run will read.
        check: how images are checked; sizes are known only when they are decoded.
        min_side: least width and height in pixels that is not noted.
        max_words: longest caption, in words between white space, that is not noted.
        flaw: what is wrong with a caption as a model's target; None leaves this question out.
        progress: called now and then with the number of rows done.
        on_issue: called with every problem as it is met.
        workers: threads that decode images; as many as processors by default, at most eight.

    Returns:
        counts, lengths and problems; good rows are counted, also those with notes.

    Raises:
        DataError: there is no such file, or it is no text; bad rows are no exception here.
    """
    reading = manifest if isinstance(manifest, SourceFile) else SourceFile(manifest)
    name = reading.name
    summary = Summary(problems=Issues(on_issue=on_issue))

    def image_problems(row: tuple[int, Sample | Issue]) -> list[Issue]:
        line, sample = row
        if isinstance(sample, Issue):
            return []
        return _image_problems(name, line, resolve_image(reading.path, sample.image), check, min_side)

    paths = SeenIds()
    scanned = scan_manifest(reading)
    looked = _unseen(scanned) if check == "none" else prefetch_map(scanned, image_problems, workers)
    with contextlib.closing(looked) as rows:
        for done, ((line, sample), problems) in enumerate(rows, 1):
            if isinstance(sample, Issue):
                summary.problems.add(sample)
                continue
            summary.add(sample)
            path = os.path.normpath(sample.image)
            first = paths.line_of(path)
            if first is None:
                paths.add(path, line)
            else:
                message = f"the image '{sample.image}' of '{sample.id}' is on line {first} under another id."
                problems.append(Issue(name, line, "shared", message))
            problems += _caption_problems(name, line, sample, max_words, flaw)
            for problem in problems:
                summary.problems.add(problem)
                summary.unreadable[sample.split] += problem.kind in ("missing", "undecodable")
            if progress is not None and done % 32 == 0:
                progress(done)
    for split in needed_splits:
        if not summary.splits[split]:
            there = ", ".join(f"{split} ({count:,})" for split, count in summary.splits.most_common(20))
            message = f"no image is of the split '{split}'; there is {there or 'none'}."
            summary.problems.add(Issue(name, 0, "split", message))
    return summary


def _unseen(
    rows: Iterator[tuple[int, Sample | Issue]],
) -> Generator[tuple[tuple[int, Sample | Issue], list[Issue]], None, None]:
    """Rows without a look at their images, which no thread is needed for."""
    for row in rows:
        yield row, []


def _image_problems(name: str, line: int, path: Path, check: ImageCheck, min_side: int) -> list[Issue]:
    """What is wrong with an image; runs in a thread."""
    if missing := missing_reason(path):
        return [Issue(name, line, "missing", missing)]
    if check == "exist":
        return []
    try:
        width, height = check_image(path)
    except DataError as error:
        return [Issue(name, line, "undecodable", str(error))]
    if min(width, height) < min_side:
        message = f"the image '{path}' has {width} x {height} pixels, less than {min_side} on a side."
        return [Issue(name, line, "small", message)]
    return []


def _caption_problems(
    name: str, line: int, sample: Sample, max_words: int, flaw: Callable[[str], TargetFlaw | None] | None
) -> Iterator[Issue]:
    """What is remarkable about the captions of an image."""
    for number, caption in enumerate(sample.captions, 1):
        which = f"caption {number} of '{sample.id}'"
        first = sample.captions.index(caption) + 1
        if first < number:
            yield Issue(name, line, "repeated", f"{which} is the same as caption {first}.")
        words = len(caption.split())
        if words > max_words:
            yield Issue(name, line, "long", f"{which} has {words} words, more than {max_words}.")
        wrong = None if flaw is None else flaw(caption)
        if wrong is not None:
            yield Issue(name, line, wrong, f"{which} {_FLAWS[wrong]}")
