"""`captune prepare`: annotation files in, one manifest out; a subcommand a format."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from captune.data.importing import Row, Summary
    from captune.data.problems import Problem

__all__ = ["app", "import_rows", "register", "summary_in_words"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog="Example: captune prepare flickr30k flickr30k/flickr_annotations_30k.csv --out flickr30k/manifest.jsonl",
)

Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the image files; by default looked for beside SOURCE.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.", show_default=False)]
Check = Annotated[
    Literal["none", "exist", "decode"],
    typer.Option("--check-images", help="Look at no image, see whether each is there, or decode each fully."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing and exit with 2 if anything is wrong.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on stdout.")]
ProblemsFile = Annotated[
    Path | None,
    typer.Option("--problems", help="Also write every problem to this file, JSON Lines.", show_default=False),
]

_FLICKR30K_FILES = ("flickr_annotations_30k.csv", "results.csv")
_FLICKR30K_ORIGIN = "it and flickr30k-images.zip are files of the data set nlphuji/flickr30k on Hugging Face"
_FLICKR30K_IMAGES = ("flickr30k-images", "flickr30k_images/flickr30k_images", "flickr30k_images", "images")


def register(program: typer.Typer) -> None:
    """Add the commands to the program."""
    program.add_typer(app, name="prepare")


@app.callback()
def formats() -> None:
    """Turn annotation files into a manifest, the one form of data that captune reads.

    A manifest is JSON Lines, one image a line, paths relative to the manifest:

    \b
        {"id": "36979", "image": "images/36979.jpg", "captions": ["A dog ."], "split": "train"}

    Bad rows (missing or broken images, malformed lines, duplicate ids, empty captions) are listed with file and
    line, counted, and left out. The summary goes to stderr; it ends with five of the images.
    """


@app.command(short_help="Flickr30k: Hugging Face's or Kaggle's CSV.")
def flickr30k(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="flickr_annotations_30k.csv, results.csv, or the folder that holds one."),
    ],
    out: Out,
    images: Images = None,
    check_images: Check = "decode",
    strict: Strict = False,
    as_json: AsJson = False,
    problems: ProblemsFile = None,
) -> None:
    """Flickr30k from the Hugging Face CSV (all splits), or Kaggle's results.csv (no splits: all become train).

    Images are looked for in flickr30k-images, flickr30k_images or images beside the CSV.
    """
    from captune.data.flickr30k import flickr30k_rows
    from captune.data.text import Reading

    file = find_file(source, _FLICKR30K_FILES, _FLICKR30K_ORIGIN)
    reading = Reading(file)
    folder = images or find_folder(file.parent, _FLICKR30K_IMAGES)
    import_rows(
        flickr30k_rows(reading),
        source=file,
        share=lambda: reading.share,
        images=folder,
        out=out,
        check=check_images,
        strict=strict,
        as_json=as_json,
        problems=problems,
    )


def find_file(source: Path, names: Iterable[str], origin: str) -> Path:
    """The annotation file: SOURCE itself, or the one of the usual names in a folder.

    Args:
        source: what the user gave.
        names: usual names of the file.
        origin: where it comes from, as a clause, for those who do not have it.

    Raises:
        DataError: SOURCE is not there, or a folder that holds none of the names.
    """
    from captune.errors import DataError

    if not source.exists():
        raise DataError(f"there is no '{source}'; {origin}.")
    if not source.is_dir():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise DataError(f"the folder '{source}' holds no {' or '.join(names)}; give the annotation file itself.")


def find_folder(base: Path, names: Iterable[str]) -> Path:
    """The image folder beside an annotation file: the first of the usual names that is there, or the first."""
    folders = [base / name for name in names]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def import_rows(
    rows: Iterable[Row | Problem],
    *,
    source: Path,
    share: Callable[[], float],
    images: Path,
    out: Path,
    check: Literal["none", "exist", "decode"],
    strict: bool,
    as_json: bool = False,
    problems: Path | None = None,
) -> Summary:
    """Run an import with a progress bar on a terminal, and tell on stderr what came of it.

    Args:
        rows: what an importer yields.
        source: the annotation file, for messages.
        share: how much of it is read, from 0 to 1.
        images: the folder of images.
        out: the manifest.
        check: how far images are looked at.
        strict: whether anything wrong is fatal.
        as_json: print the summary as JSON on stdout instead.
        problems: a file for every problem.

    Returns:
        the summary.

    Raises:
        DataError: see `captune.data.importing.prepare`.
    """
    from captune.data.importing import prepare

    with (
        warnings.catch_warnings(),
        _problem_log(problems) as on_problem,
        _progress_bar(source.name, share) as progress,
    ):
        warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow warns of, the listing tells with its line
        try:
            summary = prepare(
                rows,
                source=str(source),
                images=images,
                out=out,
                check=check,
                strict=strict,
                progress=progress,
                on_problem=on_problem,
            )
        except KeyboardInterrupt as error:
            raise typer.Abort from error  # typer ends on a KeyboardInterrupt without a word
    if as_json:
        print(json.dumps(_summary_as_json(summary, out), ensure_ascii=False))
    else:
        print(summary_in_words(summary, source, out), file=sys.stderr)
    return summary


def summary_in_words(summary: Summary, source: Path, out: Path) -> str:
    """What an import wrote and left out, and five of the images, in a few lines."""
    from captune.data.problems import plural, printable

    words = summary.words_per_caption
    mean = sum(length * count for length, count in words.items()) / max(1, summary.captions)
    per_image = sorted(summary.captions_per_image)
    each = f"{per_image[0]}" if len(per_image) == 1 else f"{per_image[0]}-{per_image[-1]}"
    splits = ", ".join(f"{printable(name)} {count:,}" for name, count in summary.splits.items())
    lines = [
        f"{source} -> {out}",
        f"  images    {summary.images:>9,}   {splits}",
        f"  captions  {summary.captions:>9,}   {each} an image, {min(words)}-{max(words)} words, mean {mean:.1f}",
    ]
    if summary.problems:
        lines.append(f"  problems  {len(summary.problems):>9,}   {summary.problems.in_words()}")
        lines.append(summary.problems.listing())
    lines.append(f"  {plural(len(summary.samples), 'image')} of them:")
    for sample in summary.samples:
        lines.append(f"    {printable(sample.id)} ({printable(sample.split)})  {printable(sample.image)}")
        lines += [f"        {printable(caption)}" for caption in sample.captions[:5]]
    return "\n".join(lines)


def _summary_as_json(summary: Summary, out: Path) -> dict[str, object]:
    from captune.data.manifest import manifest_hash

    return {
        "manifest": str(out),
        "sha256": manifest_hash(out) if out.is_file() else None,
        "images": summary.images,
        "captions": summary.captions,
        "splits": dict(summary.splits),
        "captions_per_image": dict(sorted(summary.captions_per_image.items())),
        "words_per_caption": dict(sorted(summary.words_per_caption.items())),
        "problems": dict(summary.problems.counts),
    }


@contextlib.contextmanager
def _problem_log(path: Path | None) -> Iterator[Callable[[Problem], None] | None]:
    """A callback that writes every problem to a file; the file is kept when the import fails for its data."""
    from captune.data.atomic import atomic_file
    from captune.errors import DataError

    if path is None:
        yield None
        return
    failure: DataError | None = None
    with atomic_file(path) as stream:

        def write(problem: Problem) -> None:
            stream.write(json.dumps(dataclasses.asdict(problem), ensure_ascii=False) + "\n")

        try:
            yield write
        except DataError as error:
            failure = error
    if failure is not None:
        raise failure


@contextlib.contextmanager
def _progress_bar(title: str, share: Callable[[], float]) -> Iterator[Callable[[int], None] | None]:
    """A bar with images, rate and time left; only where someone watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    started = time.monotonic()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  {task.fields[images]:,} images, {task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(escape(title), total=1.0, images=0, rate=0.0)

        def update(done: int) -> None:
            rate = done / max(time.monotonic() - started, 1e-6)
            bar.update(task, completed=share(), images=done, rate=rate)

        yield update
