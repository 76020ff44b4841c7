"""`captune caption`: captions of one image, a folder, or a collection of any size."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from captune.cli.caption_output import CaptionOutput, print_captions, run_job, write_texts_next_to_images
from captune.cli.output import print_message, print_summary
from captune.cli.output import settings as output_settings
from captune.cli.progress import working
from captune.cli.shared_options import AsJson, Base, checked_model, with_shared_options

if TYPE_CHECKING:
    from captune.bulk import Captions, CaptionTemplate, Inputs, Workers
    from captune.captioner import Captioner

__all__ = ["caption"]

_QUARANTINED = 2
"""Exit code when some images could not be captioned: their files are wrong."""


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
    output, uses_ray = CaptionOutput.of(out, output_format), engine.engine == "ray"
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
        output.check(inputs, overwrite=overwrite)
    with nullcontext() if output is None else output.locked(part_number, parts):
        with extra_imports("captune caption", "train"):
            from captune.captioner import Captioner

        load = partial(Captioner.from_pretrained, model, **asdict(loading))
        with working("Loading torch and the model"):
            captions = _captions(load(), decoding, workers, template)
        output_settings.resumes = txt or output is not None
        if txt:
            count = write_texts_next_to_images(captions, images, text.existing or "skip")
        elif output is None:
            count = print_captions(captions, images)
        else:
            actor = engine.workers(load, captions) if uses_ray else None
            count = run_job(output, captions, images, shard_size, actor, (part_number, parts))
    if as_json:
        path = None if output is None else output.path
        thinking = {} if not count.thinking else {"thinking": count.thinking, "unclosed": count.unclosed}
        print_summary({"captions": path, "captioned": count.captioned, "failed": count.rejected, **thinking})
    if count.rejected and not (allow_failed and count.captioned):
        raise typer.Exit(_QUARANTINED)
    _show_next(output, inputs, txt=txt)


def _show_next(output: CaptionOutput | None, inputs: list[str], *, txt: bool) -> None:
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


def _part(option: str | None) -> tuple[int, int]:
    """The part of the shards that this process captions, and the number of parts."""
    if option is None:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    first, _, count = option.partition("/")
    if not (first.isdigit() and count.isdigit() and int(first) < int(count)):
        raise typer.BadParameter(f"--part is '{option}'; expected K/N with K from 0 to N-1, such as 0/4.")
    return int(first), int(count)
