"""Where `captune caption` writes captions: stdout, text files next to images, a folder of shards, or one file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from captune.cli.output import print_error, print_message
from captune.cli.output import settings as output_settings
from captune.cli.progress import caption_progress

if TYPE_CHECKING:
    from captune.bulk import Captions, Entry, Existing, Inputs, Job, Row, Workers

__all__ = ["CaptionCount", "CaptionOutput", "print_captions", "run_job", "write_texts_next_to_images"]

_OUTPUT_FILES = (".jsonl", ".parquet", ".csv", ".json")
"""Endings of single output files."""
_FILE_ENDINGS = (
    ".gz",
    ".html",
    ".md",
    ".ndjson",
    ".tar",
    ".tsv",
    ".txt",
    ".xls",
    ".xlsx",
    ".xml",
    ".yaml",
    ".yml",
    ".zip",
)
"""Endings of files, which are refused as names of folders."""


@dataclass(frozen=True)
class CaptionCount:
    """Images of a command, those of earlier calls included.

    Attributes:
        captioned: images with a caption.
        rejected: images without one.
        thinking: captions of which thinking text was removed, as far as this call has read them.
        unclosed: those of them whose thinking text never ends.
    """

    captioned: int
    rejected: int
    thinking: int = 0
    unclosed: int = 0

    @classmethod
    def of_rows(cls, rows: Iterable[Row], rejected: int) -> CaptionCount:
        """The counts of captions."""
        kinds = [row.get("thinking") for row in rows]
        thinking = [kind for kind in kinds if kind is not None]
        return cls(len(kinds), rejected, len(thinking), thinking.count("unclosed"))


@dataclass(frozen=True)
class CaptionOutput:
    """The files of --out.

    Attributes:
        folder: of the job with its shards.
        ending: of the shards, "jsonl" or "parquet".
        file: receives all captions of the job; None keeps one file per shard.
    """

    folder: Path
    ending: str
    file: Path | None = None

    @property
    def path(self) -> Path:
        """The value of --out."""
        return self.file or self.folder

    @classmethod
    def of(cls, out: Path | None, output_format: str) -> CaptionOutput | None:
        """The output of --out and --format; None without --out."""
        if out is None:
            return None
        if out.suffix in _OUTPUT_FILES and not out.is_dir():
            return cls(_parts_of(out), "parquet" if out.suffix == ".parquet" else "jsonl", out)
        if out.suffix.lower() in _FILE_ENDINGS and not out.is_dir():
            raise typer.BadParameter(
                f"--out {out} has the ending of a file, and captions are written as {', '.join(_OUTPUT_FILES[:-1])} or "
                f"{_OUTPUT_FILES[-1]}; a name without ending is a folder."
            )
        return cls(out, output_format)

    def check(self, inputs: list[str], *, overwrite: bool) -> None:
        """Check that captions replace neither inputs nor files of others, and are not read as inputs the next time.

        Raises:
            InputError: they would.
        """
        from captune.bulk import COMMAND
        from captune.data import check_output, is_inside
        from captune.errors import InputError

        if self.file is not None:
            for file in (self.file, _quarantine_of(self.file)):
                check_output(file, command=COMMAND, reads=inputs, overwrite=overwrite)
        for path in inputs:
            if self.ending == "parquet" and os.path.isdir(path) and is_inside(self.path, path):
                raise InputError(
                    f"'{self.path}' is inside '{path}', which is read here, and its .parquet files would be captioned "
                    "the next time; give --out a name outside of it."
                )

    def locked(self, part: int, parts: int) -> AbstractContextManager[None]:
        """The lock of the job's folder, or of one part of the job."""
        from captune.data import folder_lock

        return folder_lock(self.folder, "captune caption", part=f"part-{part}-of-{parts}" if parts > 1 else None)


def run_job(
    output: CaptionOutput,
    captions: Captions,
    images: Inputs,
    shard_size: int,
    actor: Workers | None,
    part: tuple[int, int],
) -> CaptionCount:
    """Caption the open shards of a job, and say on stderr what was done.

    Args:
        output: the files of the job.
        captions: what captions images.
        images: all that the job captions.
        shard_size: images of a shard that is cut from a list.
        actor: makes the captions in Ray; None is this process.
        part: number of the part that this process captions, and the number of parts.
    """
    from captune.bulk import Job, JobIdentity, Progress, make_ids_unique, run_shards, run_with_ray
    from captune.data import plural

    captioner = captions.captioner
    identity = JobIdentity(
        captioner.name, captioner.fingerprint, captioner.instruction, str(captions.options), str(captions.template)
    )
    job = Job(output.folder, images, identity, ending=output.ending, shard_size=shard_size)
    shards = job.shards[part[0] :: part[1]]
    open_shards = job.open_shards(*part)
    counts = [shard.count for shard in open_shards]
    total = None if None in counts else sum(count for count in counts if count is not None)
    with caption_progress() as show:
        progress = Progress(len(shards), total, len(shards) - len(open_shards), listener=show)
        if actor is not None:
            run_with_ray(actor, job, open_shards, progress)
        else:
            run_shards(captions, job, open_shards, progress)
    if all(job.is_done(shard) for shard in job.shards) and (prefixed := make_ids_unique(job)):
        print_message(
            f"Some ids are in several archives; the ids of {plural(len(prefixed), 'archive')} begin with the "
            f"archive's name now ('{prefixed[0]}/...')."
        )
    rejected = job.gather_quarantine()
    skipped = f"; {plural(job.skipped, 'image')} captioned before" if job.skipped else ""
    summary = progress if open_shards else "nothing is left to do"
    if output.file is not None:
        _write_one_file(output.file, job)
    print_message(f"{summary}{skipped}; captions are in {output.path}")
    if rejected:
        quarantine = output.folder / "quarantine.jsonl" if output.file is None else _quarantine_of(output.file)
        print_error(f"{plural(rejected, 'image')} could not be captioned; {quarantine} lists the reasons.")
    # Reading all rows of a large job takes long; without a summary one row decides.
    rows = job.rows() if output_settings.as_json else islice(job.rows(), 1)
    return CaptionCount.of_rows(rows, rejected)


def print_captions(captions: Captions, inputs: Inputs) -> CaptionCount:
    """Print captions to stdout: plain text for one image, JSON Lines for several; reasons of failures go to stderr."""
    from captune.bulk import as_text, caption_entries, once

    alone = len(inputs.paths) == 1 and not inputs.archives
    captioned = rejected = 0
    for rows, bad in caption_entries(captions, once(_entries(inputs), "another archive")):
        for row in rows:
            line = row["caption"] if alone else json.dumps(as_text(row), ensure_ascii=False)
            sys.stdout.buffer.write(f"{line}\n".encode())
        sys.stdout.buffer.flush()
        captioned += len(rows)
        rejected += _print_reasons(bad)
    return CaptionCount(captioned, rejected)


def write_texts_next_to_images(captions: Captions, inputs: Inputs, existing: Existing) -> CaptionCount:
    """Write a text file next to each image, and say on stderr what was done.

    Args:
        captions: what captions images.
        inputs: image files; no archives.
        existing: what happens to texts that are there.
    """
    from captune.bulk import Item, Progress, TextFiles, caption_entries, job_hash, shared_texts
    from captune.data import plural
    from captune.events import thinking_note

    captioner = captions.captioner
    identity = (captioner.name, captioner.fingerprint, captioner.instruction, captions.options, captions.template)
    texts = TextFiles(existing, job_hash(*map(str, identity), existing))
    waiting = texts.waiting(inputs.paths)
    skipped = len(inputs.paths) - len(waiting) - texts.done
    captioned = rejected = thinking = unclosed = 0
    for text, images in shared_texts(waiting.values()).items():
        named = " and ".join(f"'{image}'" for image in images)
        print_error(f"the captions of {named} would be written to the same file '{text}'.")
        waiting = {name: path for name, path in waiting.items() if path not in images}
        rejected += len(images)
    with caption_progress() as show:
        progress = Progress(1, len(waiting), listener=show)
        entries: Iterator[Entry] = (Item(name, path, Path(path)) for name, path in waiting.items())
        for rows, bad in caption_entries(captions, entries, progress.count):
            failed = texts.write(rows, waiting)
            captioned += len(rows) - len(failed)
            part = CaptionCount.of_rows(rows, 0)
            thinking, unclosed = thinking + part.thinking, unclosed + part.unclosed
            rejected += _print_reasons([*bad, *failed])
    captioned -= texts.kept
    before = f"; {skipped + texts.kept:,} had a text file already" if skipped + texts.kept else ""
    done = f"; {plural(texts.done, 'image')} captioned before" if texts.done else ""
    missing = f"; {rejected:,} could not be captioned" if rejected else ""
    written = "1 caption was" if captioned == 1 else f"{captioned:,} captions were"
    print_message(f"{written} written next to their images{before}{done}{missing}.")
    if removed := thinking_note({"thinking": thinking, "unclosed": unclosed}):
        print_message(f"{removed[0].upper()}{removed[1:]}.")
    if texts.replaced:
        print_message(f"{plural(texts.replaced, 'earlier text')}: kept in .captune/texts.jsonl next to the images.")
    return CaptionCount(captioned + skipped + texts.kept + texts.done, rejected, thinking, unclosed)


def _parts_of(out: Path) -> Path:
    """The folder of the job whose rows are collected in one file; a later run with more images resumes from it."""
    return out.with_name(f"{out.name}.parts")


def _quarantine_of(out: Path) -> Path:
    """The file next to a file of captions that lists the images that could not be captioned."""
    return out.with_name(f"{out.stem}.quarantine.jsonl")


def _write_one_file(out: Path, job: Job) -> None:
    """Collect the rows of a job in one file, and its quarantine in a second one."""
    from captune.bulk import COMMAND, read_rows, write_rows
    from captune.data import is_own_output

    write_rows(out, chain.from_iterable(read_rows(path) for path in job.files()))
    combined, quarantine = job.folder / "quarantine.jsonl", _quarantine_of(out)
    if combined.exists():
        write_rows(quarantine, read_rows(combined))
    elif is_own_output(quarantine, COMMAND):
        quarantine.unlink()


def _entries(inputs: Inputs) -> Iterator[Entry]:
    """All images, file by file and archive by archive."""
    from captune.bulk import Item

    for name, path in inputs.paths.items():
        yield Item(name, path, Path(path))
    for archive in inputs.archives:
        yield from archive.items()


def _print_reasons(bad: list[Row]) -> int:
    for row in bad:
        print_error(row["reason"])
    return len(bad)
