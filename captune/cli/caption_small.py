"""What `captune caption` does without a folder of shards: print, write beside images, write one file, show progress."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from captune.bulk import Inputs, Progress
    from captune.bulk.output import Row
    from captune.bulk.shards import Entry
    from captune.bulk.work import Captions

__all__ = ["into_one_file", "print_captions", "shown_progress", "write_beside"]

_EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal."""


def print_captions(captions: Captions, found: Inputs) -> int:
    """Print captions: of one image the words alone, of several JSON Lines. How many could not be captioned."""
    from captune.bulk.work import caption_entries

    alone = len(found.paths) == 1 and not found.archives
    rejected = 0
    for rows, bad in caption_entries(captions, _entries(found)):
        for row in rows:
            line = row["caption"] if alone else json.dumps(row, ensure_ascii=False)
            # A path that is no valid text goes out as the bytes it came in with.
            sys.stdout.buffer.write(f"{line}\n".encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
        rejected += _complain(bad)
    return rejected


def write_beside(captions: Captions, found: Inputs) -> int:
    """Write a text file beside each image that has none. How many could not be captioned."""
    from captune.bulk.output import has_text, write_texts
    from captune.bulk.progress import Progress
    from captune.bulk.shards import Item
    from captune.bulk.work import caption_entries

    waiting = {name: path for name, path in found.paths.items() if not has_text(path)}
    rejected = 0
    with shown_progress(sys.stderr) as show:
        progress = Progress(1, len(waiting), listener=show)
        entries: Iterator[Entry] = (Item(name, path, Path(path)) for name, path in waiting.items())
        for rows, bad in caption_entries(captions, entries, progress.count):
            write_texts(rows)
            rejected += _complain(bad)
    skipped = len(found.paths) - len(waiting)
    before = f"; {skipped:,} had a text file already" if skipped else ""
    typer.echo(f"{progress.captioned:,} captions were written beside their images{before}.", err=True)
    return rejected


def into_one_file(out: Path, run: Callable[[Path], int]) -> int:
    """Run a job in a folder beside the file, then put its rows together. How many could not be captioned.

    The folder stays: it is what a later run with more images goes on from.
    """
    from captune.bulk.output import read_rows, write_rows

    folder = out.with_name(f"{out.name}.parts")
    rejected = run(folder)
    ending = out.suffix
    parts = sorted(path for path in folder.glob(f"*{ending}") if path.stem != "quarantine")
    write_rows(out, chain.from_iterable(read_rows(path) for path in parts))
    quarantine = out.with_name(f"{out.stem}.quarantine.jsonl")
    if rejected:
        shutil.copyfile(folder / "quarantine.jsonl", quarantine)
    else:
        quarantine.unlink(missing_ok=True)
    typer.echo(f"All captions together are in {out}", err=True)
    return rejected


@contextmanager
def shown_progress(stream: TextIO) -> Iterator[Callable[[Progress], None]]:
    """Show progress: one line that is written over on a terminal, one every half minute elsewhere.

    Args:
        stream: where to.

    Yields:
        What is told every change.
    """
    terminal = stream.isatty()
    last = time.monotonic() if not terminal else 0.0

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (0.2 if terminal else _EVERY):
            return
        last = now
        stream.write(f"\r\x1b[2K{progress}" if terminal else f"{progress}\n")
        stream.flush()

    try:
        yield show
    finally:
        if terminal:
            stream.write("\r\x1b[2K")
            stream.flush()


def _entries(found: Inputs) -> Iterator[Entry]:
    """All images, file by file and archive by archive."""
    from captune.bulk.shards import Item

    for name, path in found.paths.items():
        yield Item(name, path, Path(path))
    for archive in found.archives:
        yield from archive.items()


def _complain(bad: list[Row]) -> int:
    for row in bad:
        typer.echo(f"captune: {row['reason']}", err=True)
    return len(bad)
