"""`captune caption`: captions of one image, a folder, or a collection of any size."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from captune.cli.output import print_error, print_message, print_summary
from captune.cli.output import settings as output_settings
from captune.cli.progress import caption_progress, working
from captune.cli.shared_options import AsJson, Base, checked_model, with_shared_options

if TYPE_CHECKING:
    from captune.bulk import Captions, CaptionTemplate, Entry, Existing, Inputs, Job, Row, Workers
    from captune.captioner import Captioner

__all__ = ["caption"]

_QUARANTINED = 2
"""Exit code when some images could not be captioned: their files are wrong."""
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
class _Decoding:
    """Fields of `captune.decoding.DecodingOptions`."""

    PANEL: ClassVar[str] = "Decoding"

    max_new_tokens: Annotated[int, typer.Option(help="Maximum length of a caption in tokens.")] = 40
    beams: Annotated[int, typer.Option(help="Beams of beam search; 1 is greedy.")] = 1
    length_penalty: Annotated[float, typer.Option(help="Exponent on a beam's length.")] = 1.0
    repetition_penalty: Annotated[
        float, typer.Option(help="Divides the scores of tokens that the caption already contains.")
    ] = 1.0
    temperature: Annotated[float, typer.Option(help="Above 0, sample tokens; 0 takes the likeliest.")] = 0.0
    top_k: Annotated[int, typer.Option(help="Sample from this number of likeliest tokens; 0 is all.")] = 0
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens with this total probability.")] = 1.0
    seed: Annotated[int, typer.Option(help="Seed of sampling; with the image's id it determines the caption.")] = 0
    batch_size: Annotated[int, typer.Option(help="Images captioned at once; fewer when memory runs out.")] = 32
    compiled: Annotated[
        bool, typer.Option("--compile", help="Use torch.compile for decoding; for long jobs on a GPU.")
    ] = False


@dataclass(frozen=True)
class _Loading:
    """Arguments of `Captioner.from_pretrained`."""

    PANEL: ClassVar[str] = "Model and images"

    instruction: Annotated[
        str | None, typer.Option(help="Instruction for every image, instead of the one that the model was tuned with.")
    ] = None
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode JPEG faster; values differ by at most one level.")
    ] = False
    exif_rotation: Annotated[
        bool,
        typer.Option(help="Rotate images as recorded in EXIF; the original MiniGPT-4 does not."),
    ] = True
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Number format of the weights.")
    ] = "auto"
    device: Annotated[str | None, typer.Option(help="Device such as cuda:1; by default a GPU, if there is one.")] = None
    base: Base = None


@dataclass(frozen=True)
class _Text:
    """The text that is written for a caption."""

    PANEL: ClassVar[str] = "Text of a caption"

    trigger: Annotated[str | None, typer.Option(help="Trigger word; written before the caption and a comma.")] = None
    template: Annotated[
        str | None,
        typer.Option(
            help="Text with {caption}, {trigger}, {stem} and {folder} of the image, and {existing} text next to it.",
            show_default="'{caption}', with --trigger '{trigger}, {caption}'",
        ),
    ] = None
    prefix: Annotated[str, typer.Option(help="Text before each caption, as it is.", show_default=False)] = ""
    suffix: Annotated[str, typer.Option(help="Text after each caption, as it is.", show_default=False)] = ""
    existing: Annotated[
        Literal["skip", "overwrite", "append", "prepend", "error"] | None,
        typer.Option(
            help="With --txt, for images that have a text; a replaced text is kept in .captune/texts.jsonl.",
            show_default="skip",
        ),
    ] = None

    def parsed(self, *, txt: bool) -> CaptionTemplate:
        """The template of all texts.

        Raises:
            ConfigError: it is wrong.
            typer.BadParameter: --existing does not fit the other options.
        """
        from captune.bulk import parse_template

        if self.existing is not None and not txt:
            raise typer.BadParameter(f"--existing {self.existing} is for text files next to images; add --txt.")
        template = parse_template(self.template, trigger=self.trigger, prefix=self.prefix, suffix=self.suffix)
        if txt and template.reads_existing and self.existing in ("append", "prepend"):
            raise typer.BadParameter(
                f"--template has {{existing}}, and --existing {self.existing} would add it again; give --existing "
                "overwrite."
            )
        return template


@dataclass(frozen=True)
class _Engine:
    """Where a job runs."""

    PANEL: ClassVar[str] = "Cluster"

    engine: Annotated[Literal["local", "ray"], typer.Option(help="This process, or Ray actors.")] = "local"
    actors: Annotated[int | None, typer.Option(help="Ray actors; as many as fit by default.", min=1)] = None
    actor_cpus: Annotated[float, typer.Option(help="Processors of a Ray actor.")] = 1
    actor_gpus: Annotated[float | None, typer.Option(help="GPUs of a Ray actor; 1 where there are any.")] = None
    ray_address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; by default one is started on this machine.")
    ] = None

    def workers(self, load: Callable[[], Captioner], captions: Captions) -> Workers:
        """The Ray actors of a job."""
        import torch

        from captune.bulk import Workers

        gpus = self.actor_gpus if self.actor_gpus is not None else float(torch.cuda.is_available())
        options, template = captions.options, captions.template
        return Workers(load, options, None, self.actors, self.actor_cpus, gpus, self.ray_address, template)


@with_shared_options
def caption(
    model: Annotated[
        str,
        typer.Argument(
            help="toy, a captune model, a run's checkpoint, a transformers image-text-to-text model or a peft adapter."
        ),
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="Images, folders, manifests (.jsonl), lists of paths (.txt), parquet files, webdataset tars."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for one file a shard, or one file: .jsonl, .parquet, .csv for spreadsheets, or .json as "
            "coco-caption reads it. Default: stdout."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file at --out that this command did not write.")
    ] = False,
    txt: Annotated[
        bool, typer.Option("--txt", help="Write a .txt next to each image that has none; see --existing.")
    ] = False,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Exit with 0 if some images could not be captioned, but not all.")
    ] = False,
    output_format: Annotated[
        Literal["jsonl", "parquet"], typer.Option("--format", help="Format of the files in the folder.")
    ] = "jsonl",
    shard_size: Annotated[int, typer.Option(help="Images of a shard cut from a list.", min=1)] = 1000,
    split: Annotated[str | None, typer.Option(help="Split of manifests; all by default.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images in parquet files.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of ids in parquet files.")] = None,
    part: Annotated[
        str | None, typer.Option(help="K/N: shards K, K+N, ... of the job, K from 0; torchrun sets it automatically.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode images.", min=1)] = None,
    as_json: AsJson = False,
    *,
    text: _Text,
    decoding: _Decoding,
    loading: _Loading,
    engine: _Engine,
) -> None:
    """Caption images; finished ones are skipped, and unreadable files are put into quarantine with the reason.

    With --out FOLDER, killing the command at any point loses at most the current shard: the same command resumes. Exit
    code 2 when images could not be captioned; they are listed in quarantine.jsonl (--allow-failed: 0).

    Examples:
        captune caption runs/photos/checkpoints/epoch-002 photo.jpg
        captune caption toy photos --out captions.jsonl
        captune caption Salesforce/blip-image-captioning-base photos --txt --trigger sks
    """
    from captune.preflight import extra_imports, require_extra

    part_number, parts = _part(part)
    template = text.parsed(txt=txt)
    images = _read_inputs(inputs, split, image_column, id_column)
    output, uses_ray = _output(out, output_format), engine.engine == "ray"
    if output is not None and output.file is not None and parts > 1:
        raise typer.BadParameter("several parts write into a folder; give --out FOLDER.")
    if txt and (output is not None or uses_ray or parts > 1 or images.archives):
        raise typer.BadParameter("--txt writes next to image files: it takes no --out, tars, parquet, Ray or parts.")
    if as_json and output is None and not txt:
        raise typer.BadParameter("--json prints a summary instead of the captions; add --out or --txt.")
    if template.reads_existing and images.archives:
        raise typer.BadParameter("--template has {existing}, which images in tars and parquet files do not have.")
    if txt:
        _check_texts(images, text.existing)
    needs_bulk = uses_ray or loading.fast_decode or (output is not None and output.ending == "parquet")
    require_extra("captune caption", "train", *(["bulk"] if needs_bulk else []))
    model = checked_model(model, loading.base)
    if output is not None:
        _check_output(output, inputs, overwrite=overwrite)
    with nullcontext() if output is None else _locked(output, part_number, parts):
        with extra_imports("captune caption", "train"):
            from captune.captioner import Captioner

        load = partial(Captioner.from_pretrained, model, **asdict(loading))
        with working("Loading torch and the model"):
            captions = _captions(load(), decoding, workers, template)
        output_settings.resumes = txt or output is not None
        if txt:
            count = _write_texts_next_to_images(captions, images, text.existing or "skip")
        elif output is None:
            count = _print_captions(captions, images)
        else:
            actor = engine.workers(load, captions) if uses_ray else None
            count = _run_job(output, captions, images, shard_size, actor, (part_number, parts))
    if as_json:
        path = None if output is None else output.path
        print_summary({"captions": path, "captioned": count.captioned, "failed": count.rejected})
    if count.rejected and not (allow_failed and count.captioned):
        raise typer.Exit(_QUARANTINED)
    _show_next(output, inputs, txt=txt)


@dataclass(frozen=True)
class _Count:
    """Images of a command, those of earlier calls included."""

    captioned: int
    rejected: int


def _show_next(output: _Output | None, inputs: list[str], *, txt: bool) -> None:
    """Name the command that uses the captions next."""
    from captune.cli.next_command import show_next

    folder = inputs[0] if len(inputs) == 1 and os.path.isdir(inputs[0]) else None
    if txt and folder is not None:
        show_next(["review", folder], "look through the captions and correct them")
    elif output is not None and output.file is not None and output.file.suffix in (".jsonl", ".csv"):
        show_next(["review", output.file], "look through the captions and correct them")
    elif output is not None and output.file is not None and output.file.suffix != ".parquet":
        show_next(["score", "--references", "REFERENCES", "--predictions", output.file], "score the captions")


def _check_texts(images: Inputs, existing: str | None) -> None:
    """Refuse images with a text under --existing error, before a model is loaded.

    Raises:
        DataError: there are such images.
    """
    from captune.bulk import TextFiles

    if existing == "error":
        TextFiles("error", "").waiting(images.paths)


def _captions(captioner: Captioner, decoding: _Decoding, workers: int | None, template: CaptionTemplate) -> Captions:
    """What captions images with a loaded model.

    Raises:
        typer.BadParameter: the model does not decode in compiled steps.
    """
    from captune.bulk import Captions
    from captune.captioner import MiniGPT4Backend
    from captune.decoding import DecodingOptions

    if decoding.compiled and not isinstance(captioner.backend, MiniGPT4Backend):
        raise typer.BadParameter(
            f"--compile is for MiniGPT-4; {captioner.name} decodes by transformers' generate: leave it out."
        )
    return Captions(captioner, DecodingOptions(**asdict(decoding)), workers=workers, template=template)


def _read_inputs(inputs: list[str], split: str | None, image_column: str | None, id_column: str | None) -> Inputs:
    """List the images; files that are skipped and repeated images are reported on stderr."""
    from captune.bulk import read_inputs

    images = read_inputs(inputs, split=split, image_column=image_column, id_column=id_column)
    if skipped := images.skipped.sentence():
        print_message(f"{skipped}.")
    if images.repeated:
        print_message(f"{images.repeated:,} images were named more than once; they are captioned once.")
    return images


@dataclass(frozen=True)
class _Output:
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


def _output(out: Path | None, output_format: str) -> _Output | None:
    """The output of --out and --format; None without --out."""
    if out is None:
        return None
    if out.suffix in _OUTPUT_FILES and not out.is_dir():
        return _Output(_parts_of(out), "parquet" if out.suffix == ".parquet" else "jsonl", out)
    if out.suffix.lower() in _FILE_ENDINGS and not out.is_dir():
        raise typer.BadParameter(
            f"--out {out} has the ending of a file, and captions are written as {', '.join(_OUTPUT_FILES[:-1])} or "
            f"{_OUTPUT_FILES[-1]}; a name without ending is a folder."
        )
    return _Output(out, output_format)


def _check_output(output: _Output, inputs: list[str], *, overwrite: bool) -> None:
    """Check that captions replace neither inputs nor files of others, and are not read as inputs the next time.

    Raises:
        InputError: they would.
    """
    from captune.bulk import COMMAND
    from captune.data import check_output, is_inside
    from captune.errors import InputError

    if output.file is not None:
        for file in (output.file, _quarantine_of(output.file)):
            check_output(file, command=COMMAND, reads=inputs, overwrite=overwrite)
    for path in inputs:
        if output.ending == "parquet" and os.path.isdir(path) and is_inside(output.path, path):
            raise InputError(
                f"'{output.path}' is inside '{path}', which is read here, and its .parquet files would be captioned "
                "the next time; give --out a name outside of it."
            )


def _locked(output: _Output, part: int, parts: int) -> AbstractContextManager[None]:
    """The lock of the job's folder, or of one part of the job."""
    from captune.data import folder_lock

    return folder_lock(output.folder, "captune caption", part=f"part-{part}-of-{parts}" if parts > 1 else None)


def _run_job(
    output: _Output,
    captions: Captions,
    images: Inputs,
    shard_size: int,
    actor: Workers | None,
    part: tuple[int, int],
) -> _Count:
    """Caption the open shards of a job."""
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
    return _Count(sum(1 for _ in rows), rejected)


def _part(option: str | None) -> tuple[int, int]:
    """The part of the shards that this process captions, and the number of parts."""
    if option is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    first, _, count = option.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise typer.BadParameter(f"--part is '{option}'; expected K/N with K from 0 to N-1, such as 0/4.")
    return int(first), int(count)


def _print_captions(captions: Captions, inputs: Inputs) -> _Count:
    """Print captions: plain text for one image, JSON Lines for several."""
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
    return _Count(captioned, rejected)


def _write_texts_next_to_images(captions: Captions, inputs: Inputs, existing: Existing) -> _Count:
    """Write a text file next to each image, and treat existing ones as `existing` says."""
    from captune.bulk import Item, Progress, TextFiles, caption_entries, job_hash, shared_texts
    from captune.data import plural

    captioner = captions.captioner
    identity = (captioner.name, captioner.fingerprint, captioner.instruction, captions.options, captions.template)
    texts = TextFiles(existing, job_hash(*map(str, identity), existing))
    waiting = texts.waiting(inputs.paths)
    skipped = len(inputs.paths) - len(waiting) - texts.done
    captioned = rejected = 0
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
            rejected += _print_reasons([*bad, *failed])
    captioned -= texts.kept
    before = f"; {skipped + texts.kept:,} had a text file already" if skipped + texts.kept else ""
    done = f"; {plural(texts.done, 'image')} captioned before" if texts.done else ""
    missing = f"; {rejected:,} could not be captioned" if rejected else ""
    written = "1 caption was" if captioned == 1 else f"{captioned:,} captions were"
    print_message(f"{written} written next to their images{before}{done}{missing}.")
    if texts.replaced:
        print_message(f"{plural(texts.replaced, 'earlier text')}: kept in .captune/texts.jsonl next to the images.")
    return _Count(captioned + skipped + texts.kept + texts.done, rejected)


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
