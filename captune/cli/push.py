"""`captune push`: a checkpoint with its card, to the Hugging Face hub or into a folder to share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from captune.cli.convert import NumberFormat
from captune.cli.export import Epoch, ExportRequest, License, checkpoint_to_export, write_export
from captune.cli.next_command import show_next
from captune.cli.output import print_error, print_message, print_summary
from captune.cli.shared_options import AsJson, Base
from captune.errors import InputError, ToolError
from captune.parsing import load_json
from captune.run_checkpoints import score_before_training

__all__ = ["push"]


def push(
    source: Annotated[
        Path, typer.Argument(help="A run (its best checkpoint, or RUN@epoch1), or one of its checkpoints/epoch-NNN.")
    ],
    to: Annotated[
        str,
        typer.Option(metavar="USER/NAME|FOLDER", help="Repository on the hub, or a folder such as ./photos."),
    ],
    merge: Annotated[
        bool, typer.Option("--merge", help="Push a complete model with merged weights, not the trained tensors only.")
    ] = False,
    epoch: Epoch = None,
    dtype: Annotated[
        NumberFormat, typer.Option(help="Number format of merged weights; auto is that of the base model's files.")
    ] = NumberFormat.AUTO,
    base: Base = None,
    base_id: Annotated[
        str | None,
        typer.Option(
            metavar="USER/NAME",
            help="Hub id of the base model, to record instead of a folder of this machine.",
            show_default="as recorded",
        ),
    ] = None,
    license: License = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write and check the files, print them, and upload nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a checkpoint with a model card to the Hugging Face hub, or write both into a folder to share.

    The card has the scores with intervals and signature, the base model and the prompt. A token of `hf auth login` or
    HF_TOKEN is needed for the hub.

    Examples:
        captune push runs/photos --to me/photo-captions --private
        captune push runs/photos@epoch2 --to me/photo-captions --merge
        captune push runs/photos --to ./photos
    """
    from captune.data import temporary_folder

    checkpoint = checkpoint_to_export(source, epoch)
    if (before := score_before_training(checkpoint.resolve().parent.parent)) is not None:
        print_error(
            f"Warning: no epoch of this run is better than {before.name} by {before.metric} ({before.score:.3f}); "
            "the model card says so."
        )
    target = _folder(to)
    if target is None:
        _check_hub(to, needs_connection=not dry_run)
    _check_base(checkpoint, base_id, merge=merge, shared=target is None)
    request = ExportRequest(checkpoint, merge, dtype, base or "", base_id, license)
    address: str | None
    if target is not None:
        write_export(request, target, [source])
        files, address = _files(target), os.fspath(target)
    else:
        with temporary_folder("push") as folder:
            write_export(request, folder / "model", [source])
            files = _files(folder / "model")
            address = None if dry_run else _upload(folder / "model", to, private=private, merge=merge)
    if as_json:
        print_summary({"checkpoint": checkpoint, "pushed": address, "files": list(files)})
        return
    from captune.cli.plan import size_in_words

    for name, size in files.items():
        print_message(f"  {name}  {size_in_words(size)}")
    if address is None:
        print_message(f"Nothing was uploaded (--dry-run); these files would be in {to}.")
        return
    typer.echo(address)
    show_next(["caption", to if target is None else target, "photo.jpg"], "caption on any machine with the base model")


def _folder(to: str) -> Path | None:
    """The target as a folder; None if it is a repository of the hub."""
    if re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", to) and not Path(to).is_dir():
        return None
    if to.startswith(("http://", "https://")):
        raise InputError(f"--to is {to}; give the repository as USER/NAME, or a folder.")
    if not to.startswith((".", "/", "~")) and not Path(to).is_dir():
        raise InputError(f"--to is {to!r}, which is no name of a repository; give USER/NAME, or ./{to} for a folder.")
    return Path(to).expanduser()


def _check_hub(repository: str, *, needs_connection: bool) -> None:
    """Refuse a push that cannot succeed, before anything is loaded.

    Raises:
        ToolError: there is no token, or no connection.
        InputError: the repository has no user.
    """
    from huggingface_hub import get_token

    from captune.hub import detect_offline

    if "/" not in repository:
        raise InputError(f"--to is {repository}; give USER/NAME for the hub, or ./{repository} for a folder.")
    if not needs_connection:
        return
    if get_token() is None:
        raise ToolError(
            "There is no token of the Hugging Face hub; log in with `hf auth login`, set HF_TOKEN, or give --to a "
            "folder."
        )
    if detect_offline():
        raise ToolError("There is no connection to the Hugging Face hub; push later, or give --to a folder.")


def _check_base(checkpoint: Path, base_id: str | None, *, merge: bool, shared: bool) -> None:
    """Refuse a checkpoint for the hub whose base model only this machine has.

    Raises:
        InputError: the checkpoint's record names a folder.
    """
    from captune.hub import is_hub_id

    if base_id is not None and not is_hub_id(base_id):
        raise InputError(f"--base-id is {base_id}; give a hub id, such as Qwen/Qwen3-VL-2B-Instruct.")
    if merge or base_id is not None or not shared:
        return
    try:
        model = load_json((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # reading the checkpoint reports what is wrong
    if Path(str(model)).expanduser().is_absolute() or Path(str(model)).is_dir():
        raise InputError(
            f"The base model of {checkpoint} is the folder {model}, which others do not have; give its hub id with "
            "--base-id, or push the complete model with --merge."
        )


def _files(folder: Path) -> dict[str, int]:
    """Names and sizes of the files in a folder."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def _upload(folder: Path, repository: str, *, private: bool, merge: bool) -> str:
    from captune.model import upload_folder

    message = "Upload captioner" if merge else "Upload trained tensors of a captioner"
    return upload_folder(folder, repository, private=private or None, token=None, message=message)
