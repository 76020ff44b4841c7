"""The steps of every `captune prepare` command: find the files, run the import, print the summary."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_message
from captune.cli.progress import HasShare, import_progress

if TYPE_CHECKING:
    from captune.data import Issue, Row, Shares, Summary

__all__ = [
    "Callbacks",
    "Check",
    "Output",
    "ProblemsFile",
    "Strict",
    "counts_in_words",
    "find_file",
    "import_rows",
    "resplit",
    "samples_in_words",
    "summary_as_json",
    "with_progress",
]


class Source(HasShare, Protocol):
    """An annotation file, or what takes its place, that is being read."""

    notes: list[str]
    """Sentences on how it was understood."""


Check = Annotated[
    Literal["none", "exist", "decode"],
    typer.Option("--check-images", help="Open no image, check that each file exists, or decode each completely."),
]
ProblemsFile = Annotated[
    Path | None,
    typer.Option("--problems", help="Also write every problem to this file, as JSON Lines.", show_default=False),
]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing and exit with 2 if there is any problem.")]


@dataclasses.dataclass(frozen=True)
class Output:
    """The options of every format: what is written, and how strictly the source is checked."""

    out: Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.", show_default=False)]
    check_images: Check = "decode"
    strict: Strict = False
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on stdout.")] = False
    problems: ProblemsFile = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files at --out and --problems that this command did not write.")
    ] = False


def find_file(source: Path, name: str) -> Path:
    """The annotation file: SOURCE itself, or the one of the usual names in a folder.

    Args:
        source: as the user specified it.
        name: of the format, a key of `captune.data.importers.FORMATS`.

    Raises:
        DataError: SOURCE does not exist, or is a folder that holds none of the names.
    """
    from captune.data.importers import FORMATS
    from captune.errors import DataError

    names = FORMATS[name].annotations
    if not source.exists():
        raise DataError(f"there is no '{source}'; {FORMATS[name].origin}.")
    if not source.is_dir():
        return source
    for file in names:
        if (source / file).is_file():
            return source / file
    raise DataError(f"the folder '{source}' holds no {' or '.join(names)}; give the annotation file itself.")


def find_folder(base: Path, names: Iterable[str]) -> Path:
    """The image folder next to an annotation file: the first of the usual names that is there, or the first."""
    folders = [base / name for name in names]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def resplit(rows: Iterable[Row | Issue], splits: Path | None) -> Iterable[Row | Issue]:
    """Rows with the splits of Karpathy's JSON, where one is given."""
    if splits is None:
        return rows
    from captune.data import SourceFile
    from captune.data.importers import read_splits, with_splits

    return with_splits(rows, read_splits(SourceFile(splits)))


def import_rows(
    rows: Iterable[Row | Issue],
    source: Path,
    reading: Source,
    folders: Iterable[str],
    output: Output,
    *,
    images: Path | None = None,
    shares: Shares | None = None,
    split_origin: str | None = None,
    show_next_command: bool = True,
) -> None:
    """Run an import with progress, and print the summary on stderr.

    Args:
        rows: what an importer yields.
        source: the annotation file, for messages.
        reading: knows how much of it is read, and how it was understood.
        folders: usual names of the image folder next to the annotation file.
        output: options of the command line.
        images: folder of the images, where the user named one.
        shares: splits to divide the images into, where that is requested.
        split_origin: where the split of the images comes from, where it was guessed.
        show_next_command: print the command to run on the manifest.

    Raises:
        DataError: see `captune.data.importing.prepare`.
    """
    from captune.data import check_output, is_stream, prepare, printable
    from captune.errors import InputError

    check_output(output.out, command="prepare", reads=[source], overwrite=output.overwrite)
    if output.problems is not None:
        check_output(
            output.problems, command="prepare", reads=[source], overwrite=output.overwrite, option="--problems"
        )
        if os.path.realpath(output.problems) == os.path.realpath(output.out):
            raise InputError(f"'{output.out}' is the manifest; give --problems another name.")
    with with_progress(source.name, reading, output.problems, "prepare") as callbacks:
        summary = prepare(
            rows,
            source=str(source),
            images=images or find_folder(source.parent, folders),
            out=output.out,
            check=output.check_images,
            strict=output.strict,
            overwrite=output.overwrite,
            progress=callbacks.progress,
            on_issue=callbacks.on_issue,
            shares=shares,
            compared=callbacks.share,
        )
    notes = [*reading.notes, *summary.notes]
    if "restval" in summary.splits:
        notes.append(
            "restval is a separate split, and published numbers on COCO train on both train and restval: "
            "use --restval train, or data.train_split=[train,restval] in training"
        )
    if output.as_json:
        answer = {**summary_as_json(summary, output.out), "left_out": summary.problems.rows, "notes": notes}
        print(json.dumps(answer, ensure_ascii=False))
        return
    counts = counts_in_words(summary, split_origin, left_out=True)
    note_lines = [f"  note      {printable(note)}" for note in notes]
    lines = [printable(f"{source} -> {output.out}"), *counts, *note_lines, *samples_in_words(summary)]
    print_message("\n".join(lines))
    if show_next_command and not is_stream(output.out):
        show_next(["check", output.out], "check it as a run will read it")


def counts_in_words(summary: Summary, split_origin: str | None = None, *, left_out: bool = False) -> list[str]:
    """Images, captions and problems, a line each, and the list of problems.

    Args:
        summary: of an import or a check.
        split_origin: where the split of the images comes from, as a clause.
        left_out: whether problems are rows that were left out, which are counted then.
    """
    from captune.data import printable

    words = summary.words_per_caption
    mean = sum(length * count for length, count in words.items()) / max(1, summary.captions)
    per_image = sorted(summary.captions_per_image) or [0]
    each = f"{per_image[0]}" if len(per_image) == 1 else f"{per_image[0]}-{per_image[-1]}"
    shortest, longest = min(words, default=0), max(words, default=0)
    splits = ", ".join(f"{printable(name)} {count:,}" for name, count in summary.splits.items())
    lines = [
        f"  images    {summary.images:>10,}   {splits}{f', {printable(split_origin)}' if split_origin else ''}",
        f"  captions  {summary.captions:>10,}   {each} an image, {shortest}-{longest} words, mean {mean:.1f}",
    ]
    if left_out and summary.problems.rows:
        lines.append(f"  left out  {summary.problems.rows:>10,}   captions and unread rows; --problems FILE lists each")
    if summary.problems:
        lines.append(f"  problems  {len(summary.problems):>10,}   {summary.problems.in_words()}")
        lines.append(summary.problems.listing())
    return lines


def samples_in_words(summary: Summary) -> list[str]:
    """Five of the images with their captions."""
    from captune.data import plural, printable

    lines = [f"  {plural(len(summary.samples), 'image')} of them:"]
    for sample in summary.samples:
        lines.append(f"    {printable(sample.id)} ({printable(sample.split)})  {printable(sample.image)}")
        lines += [f"        {printable(caption)}" for caption in sample.captions[:5]]
    return lines


def summary_as_json(summary: Summary, manifest: Path) -> dict[str, object]:
    """Counts, lengths and problems for programs."""
    from captune.data import manifest_hash

    return {
        "manifest": str(manifest),
        "sha256": manifest_hash(manifest) if manifest.is_file() else None,
        "images": summary.images,
        "captions": summary.captions,
        "splits": dict(summary.splits),
        "captions_per_image": dict(sorted(summary.captions_per_image.items())),
        "words_per_caption": dict(sorted(summary.words_per_caption.items())),
        "problems": dict(summary.problems.counts),
    }


@dataclasses.dataclass(frozen=True)
class Callbacks:
    """What the library calls while it works.

    Attributes:
        progress: called with the number of images done.
        share: called with the number of images done and of all.
        on_issue: called with every problem.
    """

    progress: Callable[[int], None]
    share: Callable[[int, int], None]
    on_issue: Callable[[Issue], None] | None


@contextlib.contextmanager
def with_progress(title: str, reading: HasShare, problems: Path | None, command: str) -> Iterator[Callbacks]:
    """Show progress and write problems to a file while the block runs.

    Args:
        title: of the progress.
        reading: knows how much is read.
        problems: a file for every problem, or None.
        command: the command that writes it.

    Yields:
        the callbacks to give to the library.
    """
    with (
        warnings.catch_warnings(),
        _problem_log(problems, command) as on_issue,
        import_progress(title, reading) as update,
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")  # the listing reports it with its line
        try:
            yield Callbacks(update, update, on_issue)
        except KeyboardInterrupt as error:
            raise typer.Abort from error  # on a KeyboardInterrupt, typer exits without a message


@contextlib.contextmanager
def _problem_log(path: Path | None, command: str) -> Iterator[Callable[[Issue], None] | None]:
    """A callback that writes every problem to a file; the file is kept when the import fails for its data."""
    from captune.data import output_file
    from captune.errors import DataError

    if path is None:
        yield None
        return
    failure: DataError | None = None
    with output_file(path, command=command) as stream:

        def write(problem: Issue) -> None:
            line = json.dumps(dataclasses.asdict(problem), ensure_ascii=False)
            # Names that are not UTF-8, and halves of surrogate pairs, become JSON's escapes.
            stream.write(line.encode("utf-8", "backslashreplace").decode() + "\n")

        try:
            yield write
        except DataError as error:
            failure = error
    if failure is not None:
        raise failure
