"""`captune caption`: captions of one image, a folder, or a collection of any size."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captune.cli.progress import caption_progress

if TYPE_CHECKING:
    from captune.bulk import Inputs, Job
    from captune.bulk.work import Captions
    from captune.captioner import Captioner

__all__ = ["caption", "register"]

_QUARANTINED = 2
"""Exit code when all is done but some images could not be captioned: the input is wrong there."""
_FILE_ENDINGS = (".json", ".csv", ".tsv", ".txt", ".xlsx", ".gz", ".tar", ".html", ".md")
"""Endings of which nobody names a folder."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("caption")(caption)


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
        typer.Option(help="A folder for one file a shard, or one file ending in .jsonl or .parquet. Default: stdout."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file at --out that this command did not write.")
    ] = False,
    txt: Annotated[bool, typer.Option("--txt", help="Write a .txt beside each image that has none.")] = False,
    output_format: Annotated[
        Literal["jsonl", "parquet"], typer.Option("--format", help="Of the files in the folder.")
    ] = "jsonl",
    instruction: Annotated[
        str | None, typer.Option(help="What is asked of every image, instead of what the model was tuned with.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest caption in tokens.")] = 40,
    beams: Annotated[int, typer.Option(help="Beams of beam search; 1 is greedy.")] = 1,
    length_penalty: Annotated[float, typer.Option(help="Exponent on a beam's length.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Divides the score of tokens already said.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Above 0, draw tokens; 0 takes the likeliest.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw among so many likeliest tokens only; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw among tokens of this share of probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws; with the image's id it decides its caption.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images captioned at once; fewer when memory runs out.")] = 32,
    shard_size: Annotated[int, typer.Option(help="Images of a shard cut from a list.", min=1)] = 1000,
    split: Annotated[str | None, typer.Option(help="Split of manifests; all by default.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column of images in parquet files.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of ids in parquet files.")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This process, or Ray actors.")] = "local",
    actors: Annotated[int | None, typer.Option(help="Ray actors; as many as fit by default.", min=1)] = None,
    actor_cpus: Annotated[float, typer.Option(help="Processors of a Ray actor.")] = 1,
    actor_gpus: Annotated[float | None, typer.Option(help="GPUs of a Ray actor; 1 where there are any.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Ray cluster to join; this machine alone by default.")] = None,
    part: Annotated[
        str | None, typer.Option(help="K/N: shards K, K+N, ... of the job, K from 0; torchrun sets it by itself.")
    ] = None,
    fast_decode: Annotated[
        bool, typer.Option("--fast-decode", help="Decode JPEG faster, at most one grey level apart.")
    ] = False,
    exif_rotation: Annotated[
        bool,
        typer.Option(help="Turn images upright as the camera noted in EXIF; the original MiniGPT-4 does not."),
    ] = True,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Decode with compiled steps of one shape; for long jobs on a GPU.")
    ] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help="Number format of the weights.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="Such as cuda:1; a GPU where there is one.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode images.", min=1)] = None,
) -> None:
    """Caption images; what is done already is skipped, and bad files are put aside with the reason.

    With --out FOLDER, killing the command at any point loses at most the shard that is under way: the same command
    goes on. Exit code 2 when images could not be captioned; they are listed in quarantine.jsonl.
    """
    from captune.bulk import read_inputs
    from captune.cli.caption_small import parts_of, print_captions, write_beside, write_one_file
    from captune.cli.extras import needs
    from captune.cli.preflight import check_named_model, require_extra
    from captune.data.locks import folder_lock

    part_number, parts = _part(part)
    images = read_inputs(inputs, split=split, image_column=image_column, id_column=id_column)
    if others := images.skipped.sentence():
        typer.echo(f"{others}.", err=True)
    if images.repeated:
        typer.echo(f"{images.repeated:,} images were named more than once; they are captioned once.", err=True)
    one_file = out is not None and out.suffix in (".jsonl", ".parquet") and not out.is_dir()
    if out is not None and not one_file and out.suffix.lower() in _FILE_ENDINGS and not out.is_dir():
        raise typer.BadParameter(
            f"--out {out} has the ending of a file, and captions are written as .jsonl or .parquet; a name without "
            "ending is a folder."
        )
    if one_file and parts > 1:
        raise typer.BadParameter("several parts write into a folder; give --out FOLDER.")
    if txt and (out is not None or engine == "ray" or parts > 1 or images.archives):
        raise typer.BadParameter("--txt writes beside image files: it takes no --out, tars, parquet, Ray or parts.")
    parquet = out is not None and (out.suffix == ".parquet" if one_file else output_format == "parquet")
    require_extra("captune caption", "train", *(["bulk"] if engine == "ray" or fast_decode or parquet else []))
    check_named_model(model)
    lock: AbstractContextManager[None] = nullcontext()
    folder, ending = out, output_format
    if out is not None:
        if one_file:
            folder, ending = parts_of(out), "parquet" if out.suffix == ".parquet" else "jsonl"
        _check_out(out, inputs, ending, one_file=one_file, overwrite=overwrite)
        share = f"part-{part_number}-of-{parts}" if parts > 1 else None
        lock = folder_lock(folder or out, "captune caption", part=share)
    with lock:
        with needs("captune caption", "train"):
            import torch

            from captune.bulk.work import Captions
            from captune.captioner import Captioner
            from captune.captioner.minigpt4 import MiniGPT4Backend
            from captune.decoding import DecodingOptions

        options = DecodingOptions(
            max_new_tokens=max_new_tokens,
            beams=beams,
            length_penalty=length_penalty,
            repetition_penalty=repetition_penalty,
            batch_size=batch_size,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            compiled=compiled,
        )
        load = partial(
            Captioner.from_pretrained,
            model,
            dtype=dtype,
            device=device,
            instruction=instruction,
            fast_decode=fast_decode,
            exif_rotation=exif_rotation,
        )
        captioner = load()
        if compiled and not isinstance(captioner.backend, MiniGPT4Backend):
            raise typer.BadParameter(
                f"--compile is for MiniGPT-4; {model} decodes by transformers' generate: leave it out."
            )
        captions = Captions(captioner, options, workers=workers)
        if folder is None or out is None:
            rejected = write_beside(captions, images) if txt else print_captions(captions, images)
            raise typer.Exit(_QUARANTINED if rejected else 0)
        actor = None
        if engine == "ray":
            gpus = actor_gpus if actor_gpus is not None else float(torch.cuda.is_available())
            from captune.bulk.ray_engine import Workers

            actor = Workers(load, options, None, actors, actor_cpus, gpus, ray_address)
        job, rejected = _run(
            folder,
            captions,
            images,
            ending=ending,
            shard_size=shard_size,
            actor=actor,
            part=(part_number, parts),
        )
        if one_file:
            write_one_file(out, job)
    raise typer.Exit(_QUARANTINED if rejected else 0)


def _check_out(out: Path, inputs: list[str], ending: str, *, one_file: bool, overwrite: bool) -> None:
    """See that captions replace neither inputs nor files of others, and are not read as inputs the next time.

    Raises:
        InputError: they would.
    """
    from captune.bulk.output import COMMAND
    from captune.cli.caption_small import quarantine_of
    from captune.data.outputs import check_output, is_inside
    from captune.errors import InputError

    if one_file:
        for file in (out, quarantine_of(out)):
            check_output(file, command=COMMAND, reads=inputs, overwrite=overwrite)
    for source in inputs:
        if ending == "parquet" and os.path.isdir(source) and is_inside(out, source):
            raise InputError(
                f"'{out}' is inside '{source}', which is read here, and its .parquet files would be captioned the next "
                "time; give --out a name outside of it."
            )


def _run(
    folder: Path,
    captions: Captions,
    images: Inputs,
    *,
    ending: str,
    shard_size: int,
    actor: object,
    part: tuple[int, int],
) -> tuple[Job, int]:
    """Work on a job's folder; the job, and how many images are in quarantine."""
    from captune.bulk import Job, JobIdentity, Progress, make_ids_unique, run_shards
    from captune.bulk.ray_engine import Workers, run_with_ray
    from captune.data.issues import plural

    captioner: Captioner = captions.captioner
    identity = JobIdentity(captioner.name, captioner.fingerprint, captioner.instruction, str(captions.options))
    job = Job(folder, images, identity, ending=ending, shard_size=shard_size)
    mine = job.shards[part[0] :: part[1]]
    waiting = job.open_shards(*part)
    counts = [shard.count for shard in waiting]
    known = None if None in counts else sum(count for count in counts if count is not None)
    with caption_progress() as show:
        progress = Progress(len(mine), known, len(mine) - len(waiting), listener=show)
        if isinstance(actor, Workers):
            run_with_ray(actor, job, waiting, progress)
        else:
            run_shards(captions, job, waiting, progress)
    if all(job.is_done(shard) for shard in job.shards) and (prefixed := make_ids_unique(job)):
        typer.echo(
            f"Some ids are in several archives; the ids of {plural(len(prefixed), 'archive')} begin with the "
            f"archive's name now ('{prefixed[0]}/...').",
            err=True,
        )
    rejected = job.gather_quarantine()
    skipped = f"; {plural(job.skipped, 'image')} captioned before" if job.skipped else ""
    result = progress if waiting else "nothing is left to do"
    typer.echo(f"{result}{skipped}; captions are in {folder}", err=True)
    if rejected:
        many = plural(rejected, "image")
        typer.echo(f"{many} could not be captioned: {folder / 'quarantine.jsonl'} says why.", err=True)
    return job, rejected


def _part(text: str | None) -> tuple[int, int]:
    """Which part of the shards this process works on, and of how many."""
    if text is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise typer.BadParameter(f"--part is '{text}'; expected K/N with K from 0 to N-1, such as 0/4.")
    return int(first), int(count)
