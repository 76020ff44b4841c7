"""`captune export`: a checkpoint of a run as a folder for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.convert import NumberFormat, export_official
from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.cli.shared_options import AsJson, Base
from captune.errors import InputError
from captune.run_checkpoints import CheckpointRecord, read_record, run_of, select_checkpoint

if TYPE_CHECKING:
    from captune.model import CardDetails

__all__ = ["Epoch", "ExportRequest", "License", "checkpoint_to_export", "export", "write_export"]

Epoch = Annotated[int | None, typer.Option(min=0, help="Epoch of a run.", show_default="the best one")]
License = Annotated[
    str | None,
    typer.Option(help="License in the model card, such as apache-2.0.", show_default="that of the base model applies"),
]


def export(
    source: Annotated[
        Path, typer.Argument(help="A run (its best checkpoint, or RUN@epoch1), or one of its checkpoints/epoch-NNN.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write, which is new or empty; with --original the .pth file.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a complete model with merged weights, not the trained tensors only.")
    ] = False,
    original: Annotated[
        bool, typer.Option("--original", help="Write a MiniGPT-4 as a checkpoint of the original code, .pth.")
    ] = False,
    epoch: Epoch = None,
    dtype: Annotated[
        NumberFormat, typer.Option(help="Number format of merged weights; auto is that of the base model's files.")
    ] = NumberFormat.AUTO,
    base: Base = None,
    license: License = None,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as an adapter folder for peft, transformers and vLLM, or as a merged model.

    Examples:
        captune export runs/photos --out adapter
        captune export runs/photos@epoch2 --merge --out merged
        captune export runs/minigpt4 --original --out tuned.pth
    """
    if dtype is not NumberFormat.AUTO and not merge:
        raise InputError("--dtype is the number format of merged weights; add --merge, or leave it out.")
    if original and (merge or base or license):
        raise InputError("--original writes trained weights only; leave out --merge, --base and --license.")
    checkpoint = checkpoint_to_export(source, epoch)
    if original:
        from captune.data import check_output

        check_output(out, command="export", reads=[source, checkpoint], overwrite=False)
        export_official(checkpoint, out)
    else:
        write_export(ExportRequest(checkpoint, merge, dtype, base or "", None, license), out, [source])
    if as_json:
        print_summary({"output": out, "checkpoint": checkpoint})
        return
    typer.echo(out)
    if not original:
        show_next(["caption", out, "photo.jpg"], "caption an image with it")


@dataclass(frozen=True)
class ExportRequest:
    """What is written of a checkpoint.

    Attributes:
        checkpoint: its folder.
        merge: a complete model, not the trained tensors only.
        dtype: number format of merged weights.
        base: folder or hub id of the base model; empty is the recorded one.
        base_id: hub id of the base model to record.
        license: for the card.
    """

    checkpoint: Path
    merge: bool = False
    dtype: NumberFormat = NumberFormat.AUTO
    base: str = ""
    base_id: str | None = None
    license: str | None = None


def write_export(request: ExportRequest, out: Path, reads: list[Path]) -> None:
    """Write a checkpoint into a new or empty folder, atomically.

    Raises:
        InputError: the folder is not empty, or the checkpoint is broken.
    """
    from captune.cli.progress import working
    from captune.data import atomic_folder, check_output_folder
    from captune.preflight import extra_imports

    checkpoint = request.checkpoint
    check_output_folder(out, reads=[*reads, checkpoint])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already and is not empty; give another folder.")
    record = read_record(checkpoint)
    if request.base or request.merge:
        _require_base(checkpoint, record, request.base)
    with working("Loading torch and transformers"), extra_imports("captune export", "train"):
        pass
    with atomic_folder(out) as folder:
        details = _card_details(checkpoint, record.epoch, request.license)
        if record.kind == "transformers":
            _write_transformers(request, folder, details)
        else:
            _write_minigpt4(request, folder, details)


def _require_base(checkpoint: Path, record: CheckpointRecord, base: str) -> None:
    """Refuse a checkpoint whose base model cannot be read.

    Raises:
        WeightsError: names the base model.
    """
    from captune.hub import checkpoint_base

    if record.parts is None or base:
        checkpoint_base(checkpoint, record, base)


def checkpoint_to_export(source: Path, epoch: int | None) -> Path:
    """The folder of the checkpoint; a message says which one of a run it is.

    Raises:
        InputError: there is no such checkpoint.
    """
    if (source / "checkpoint.json").is_file():
        if epoch is not None:
            raise InputError(f"{source} is one checkpoint; give the run's folder, or leave out --epoch.")
        return source
    named = run_of(source)
    if named is None:
        kind = "holds no checkpoints" if source.is_dir() else "does not exist"
        raise InputError(f"{source} {kind}; give the folder of a run, or checkpoints/epoch-NNN of one.")
    run, name = named
    if name is not None and epoch is not None:
        raise InputError(f"{source} names a checkpoint already; leave out --epoch.")
    selected = select_checkpoint(run, name if epoch is None else epoch)
    print_message(f"Using {selected}.")
    return selected.folder


def _card_details(checkpoint: Path, epoch: int, license: str | None) -> CardDetails:
    """Scores of a checkpoint for its model card, if its run was evaluated."""
    from captune.model import CardDetails
    from captune.report import read_log, read_scores
    from captune.run_checkpoints import score_before_training

    run = checkpoint.resolve().parent.parent
    training_images = read_log(run / "log.jsonl").training_images
    try:
        scores = read_scores(run)
    except InputError:
        return CardDetails(license=license, training_images=training_images)
    row = next((row for row in scores.checkpoints if row.epoch == epoch), None)
    if row is None:
        return CardDetails(license=license, training_images=training_images)
    before = score_before_training(run)
    return CardDetails(
        metrics=row.corpus,
        signature=row.signature,
        intervals=row.intervals,
        data=scores.data,
        split=scores.split,
        images=scores.images or 0,
        leak=row.leak,
        license=license,
        training_images=training_images,
        better_before="" if before is None else f"{before.name}, {before.metric} {before.score:.4f}",
    )


def _write_transformers(request: ExportRequest, folder: Path, details: CardDetails) -> None:
    from captune.vlm import export_merged, export_tuned

    checkpoint = request.checkpoint
    if request.merge:
        export_merged(checkpoint, folder, dtype=request.dtype.value, base=request.base, details=details)
    else:
        export_tuned(checkpoint, folder, base=request.base, base_id=request.base_id, details=details)


def _write_minigpt4(request: ExportRequest, folder: Path, details: CardDetails) -> None:
    """Write a complete MiniGPT-4, whose LoRA stays separate, or the trained tensors as captune loads them."""
    import torch

    from captune.model import copy_checkpoint, load_pretrained
    from captune.vlm import tuned_card

    if request.merge:
        options = {} if request.dtype is NumberFormat.AUTO else {"dtype": getattr(torch, request.dtype.value)}
        model = load_pretrained(request.checkpoint, base_model=request.base or None, **options)
        model.save_pretrained(folder, max_shard_size="4GB", details=details)
        return
    record = copy_checkpoint(request.checkpoint, folder, request.base_id)
    (folder / "README.md").write_text(tuned_card(record, details=details), encoding="utf-8")
