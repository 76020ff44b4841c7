"""`captune export`: a checkpoint of a run as a folder for other programs and for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli.convert import NumberFormat
from captune.cli.output import print_summary
from captune.cli.shared_options import AsJson
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.model import CheckpointRecord

__all__ = ["export"]


def export(
    source: Annotated[Path, typer.Argument(help="Folder of a run, or one of its checkpoints/epoch-NNN.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it is new or empty.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a complete model with merged weights, not the trained tensors only.")
    ] = False,
    epoch: Annotated[int | None, typer.Option(min=0, help="Epoch of a run.", show_default="the last one")] = None,
    dtype: Annotated[
        NumberFormat, typer.Option(help="Number format of merged weights; auto is that of the base model's files.")
    ] = NumberFormat.AUTO,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Also upload the folder to the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository of --push private.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as an adapter folder for peft, transformers and vLLM, or as a merged model.

    Examples:
        captune export runs/photos --out adapter
        captune export runs/photos --epoch 2 --merge --out merged
        captune export runs/photos --out adapter --push me/photo-captions --private
    """
    from captune.cli.progress import working
    from captune.data import atomic_folder, check_output_folder
    from captune.preflight import extra_imports

    if dtype is not NumberFormat.AUTO and not merge:
        raise InputError("--dtype is the number format of merged weights; add --merge, or leave it out.")
    checkpoint = _checkpoint(source, epoch)
    check_output_folder(out, reads=[source, checkpoint])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already and is not empty; give another --out.")
    with working("Loading torch and transformers"), extra_imports("captune export", "train"):
        from captune.model import read_record, upload_folder
    record = read_record(checkpoint)
    with atomic_folder(out) as folder:
        card = _scores(checkpoint, record)
        if record.kind == "transformers":
            _export_transformers(checkpoint, folder, merge, dtype, card)
        else:
            _export_minigpt4(checkpoint, folder, merge, dtype, card)
    if not as_json:
        typer.echo(out)
    pushed = None
    if push is not None:
        message = "Upload captioner" if merge else "Upload trained tensors of a captioner"
        pushed = upload_folder(out, push, private=private or None, token=None, message=message)
    if as_json:
        print_summary({"output": out, "checkpoint": checkpoint, "epoch": record.epoch, "pushed": pushed})
    elif pushed is not None:
        typer.echo(pushed)


def _checkpoint(source: Path, epoch: int | None) -> Path:
    """The folder of the checkpoint to export."""
    from captune.training import checkpoint_folders

    if (source / "checkpoint.json").is_file():
        if epoch is not None:
            raise InputError(f"{source} is one checkpoint; give the run's folder, or leave out --epoch.")
        return source
    if not source.is_dir():
        raise InputError(f"There is no folder {source}; give the folder of a run or of a checkpoint.")
    folders = checkpoint_folders(source)
    if not folders:
        raise InputError(f"{source} holds no checkpoints; give the folder of a run, or checkpoints/epoch-NNN of one.")
    if epoch is None:
        return folders[-1]
    for folder in folders:
        if folder.name == f"epoch-{epoch:03d}":
            return folder
    saved = ", ".join(str(int(folder.name.removeprefix("epoch-"))) for folder in folders)
    raise InputError(f"{source} has no checkpoint of epoch {epoch}; it has those of {saved}.")


def _scores(checkpoint: Path, record: CheckpointRecord) -> dict[str, Any]:
    """Metrics and signature of a checkpoint for its model card, if its run was evaluated."""
    from captune.report import read_scores

    try:
        rows = read_scores(checkpoint.resolve().parent.parent).checkpoints
    except InputError:
        return {}
    row = next((row for row in rows if row.epoch == record.epoch), None)
    return {} if row is None else {"metrics": dict(row.corpus), "signature": row.signature}


def _export_transformers(
    checkpoint: Path, folder: Path, merge: bool, dtype: NumberFormat, card: dict[str, Any]
) -> None:
    from captune.vlm import export_merged, export_tuned

    if merge:
        export_merged(checkpoint, folder, dtype=dtype.value, **card)
    else:
        export_tuned(checkpoint, folder, **card)


def _export_minigpt4(checkpoint: Path, folder: Path, merge: bool, dtype: NumberFormat, card: dict[str, Any]) -> None:
    """Write a complete MiniGPT-4, whose LoRA stays separate, or the trained tensors as captune loads them."""
    import shutil

    import torch

    from captune.model import load_pretrained, read_trained

    if merge:
        options = {} if dtype is NumberFormat.AUTO else {"dtype": getattr(torch, dtype.value)}
        load_pretrained(checkpoint, **options).save_pretrained(folder, max_shard_size="4GB", **card)
        return
    read_trained(checkpoint)
    for name in ("trained.safetensors", "checkpoint.json"):
        shutil.copyfile(checkpoint / name, folder / name)
