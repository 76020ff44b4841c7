"""Output of `captune caption` without a folder of shards: to the terminal, next to the images, or in one file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from captune.cli.progress import caption_progress

if TYPE_CHECKING:
    from captune.bulk import Captions, Entry, Inputs, Job, Row

__all__ = [
    "parts_of",
    "print_captions",
    "quarantine_of",
    "write_one_file",
    "write_texts_next_to_images",
]


def print_captions(captions: Captions, inputs: Inputs) -> int:
    """Print captions: plain text for one image, JSON Lines for several. Returns the number of failed images."""
    from captune.bulk import as_text, caption_entries, once

    alone = len(inputs.paths) == 1 and not inputs.archives
    rejected = 0
    for rows, bad in caption_entries(captions, once(_entries(inputs), "another archive")):
        for row in rows:
            line = row["caption"] if alone else json.dumps(as_text(row), ensure_ascii=False)
            sys.stdout.buffer.write(f"{line}\n".encode())
        sys.stdout.buffer.flush()
        rejected += _print_reasons(bad)
    return rejected


def write_texts_next_to_images(captions: Captions, inputs: Inputs) -> int:
    """Write a text file next to each image that has none. Returns the number of failed images."""
    from captune.bulk import Item, Progress, caption_entries, has_text, shared_texts, write_texts

    waiting = {name: path for name, path in inputs.paths.items() if not has_text(path)}
    skipped = len(inputs.paths) - len(waiting)
    rejected = 0
    for text, images in shared_texts(waiting.values()).items():
        named = " and ".join(f"'{image}'" for image in images)
        typer.echo(f"captune: the captions of {named} would be written to the same file '{text}'.", err=True)
        waiting = {name: path for name, path in waiting.items() if path not in images}
        rejected += len(images)
    with caption_progress() as show:
        progress = Progress(1, len(waiting), listener=show)
        entries: Iterator[Entry] = (Item(name, path, Path(path)) for name, path in waiting.items())
        for rows, bad in caption_entries(captions, entries, progress.count):
            write_texts(rows, waiting)
            rejected += _print_reasons(bad)
    before = f"; {skipped:,} had a text file already" if skipped else ""
    missing = f"; {rejected:,} could not be captioned" if rejected else ""
    written = "1 caption was" if progress.captioned == 1 else f"{progress.captioned:,} captions were"
    typer.echo(f"{written} written next to their images{before}{missing}.", err=True)
    return rejected


def parts_of(out: Path) -> Path:
    """The folder of the job whose rows are collected in one file; a later run with more images resumes from it."""
    return out.with_name(f"{out.name}.parts")


def quarantine_of(out: Path) -> Path:
    """The file next to a file of captions that lists the images that could not be captioned."""
    return out.with_name(f"{out.stem}.quarantine.jsonl")


def write_one_file(out: Path, job: Job) -> None:
    """Collect the rows of a job in one file, and its quarantine in a second one."""
    from captune.bulk import COMMAND, read_rows, write_rows
    from captune.data import is_own_output

    write_rows(out, chain.from_iterable(read_rows(path) for path in job.files()))
    combined, quarantine = job.folder / "quarantine.jsonl", quarantine_of(out)
    if combined.exists():
        write_rows(quarantine, read_rows(combined))
    elif is_own_output(quarantine, COMMAND):
        quarantine.unlink()
    typer.echo(f"All captions are in {out}", err=True)


def _entries(inputs: Inputs) -> Iterator[Entry]:
    """All images, file by file and archive by archive."""
    from captune.bulk import Item

    for name, path in inputs.paths.items():
        yield Item(name, path, Path(path))
    for archive in inputs.archives:
        yield from archive.items()


def _print_reasons(bad: list[Row]) -> int:
    for row in bad:
        typer.echo(f"captune: {row['reason']}", err=True)
    return len(bad)
