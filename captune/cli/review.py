"""`captune review`: a page to look through images with their captions, accept and correct them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.errors import DataError, InputError

if TYPE_CHECKING:
    from captune.apps.review import CaptionTexts

__all__ = ["review"]


def review(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE",
            help="A folder of images with a .txt next to each, or a .jsonl or .csv file of captune caption, "
            "or a manifest.",
            show_default=False,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8766,
    url: Annotated[
        str | None,
        typer.Option(help="Beginning of the page's address behind a proxy.", show_default="the address"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object on stdout.")] = False,
) -> None:
    """Look through images with their captions in the browser: accept, edit, search, find and replace.

    Each change is on the disk before the page says that it is saved. Replaced texts are kept in .captune/texts.jsonl in
    the folder of their file.

    Examples:
        captune review photos
        captune review captions.jsonl --port 8080
    """
    from captune.preflight import extra_imports

    with extra_imports("captune review", "serve"):
        from captune.apps import answered_hosts, base_url, is_local, listening_socket, run_server
        from captune.apps.review import Review, review_application
    captions = Review(_captions(source))
    hosts = answered_hosts(host, url)
    listener = listening_socket(host, port)
    base = (url or base_url(host, listener.getsockname()[1])).rstrip("/")
    is_open = is_local(host) and url is None
    key = None if is_open else secrets.token_urlsafe(16)
    with listener:
        address = f"{base}/" if key is None else f"{base}/?key={key}"
        if as_json:
            print_summary({"page": address, "captions": len(captions)})
        else:
            print(address, flush=True)
        where = "this machine only" if is_open else f"{host}, for visitors with the key in the address"
        print_message(f"{len(captions):,} captions of {source}, on {where}. Stop with Ctrl-C.")
        title = source.resolve().name
        try:
            run_server(review_application(captions, title, hosts=hosts, site=url, key=key), listener)
        except KeyboardInterrupt:
            print_message("Stopped; every change is saved.")
    show_next(["init", source], "tune a model on these captions")


def _captions(source: Path) -> CaptionTexts:
    """The captions of a folder or a file.

    Raises:
        InputError: there is no such folder or file, or it is of another kind.
        DataError: the file is broken, or the folder has no images.
    """
    from captune.apps.review import FileTexts, SidecarTexts
    from captune.preflight import preparing_command

    if source.is_file() and (command := preparing_command(source)) is not None:
        if source.suffix.lower() not in (".jsonl", ".csv"):
            raise InputError(f"'{source}' is a table; make a manifest of it, and review that: {command}")
        try:
            return FileTexts(source)
        except DataError as error:
            raise DataError(f"{error} To review another table, make a manifest of it: {command}") from error
    if source.suffix.lower() in (".jsonl", ".csv") and source.is_file():
        return FileTexts(source)
    if not source.is_dir():
        problem = "is no folder and no .jsonl or .csv file" if source.exists() else "does not exist"
        raise InputError(f"'{source}' {problem}; give a folder of images, or captions in a .jsonl or .csv file.")
    _refuse_outputs(source)
    from captune.bulk import read_inputs, shared_texts
    from captune.data import text_path

    images = read_inputs([str(source)])
    if sentence := images.skipped.sentence():
        print_message(f"{sentence}.")
    if images.archives:
        print_message(f"Tars and parquet files are left out, such as '{images.archives[0].path}'.")
    if not images.paths:
        raise InputError(f"'{source}' has no image files outside of archives; unpack them to review their captions.")
    for text, several in shared_texts(images.paths.values()).items():
        print_message(f"{len(several)} images share the text '{text}', such as '{several[1]}'.")
    if not any(text_path(path).exists() for path in images.paths.values()):
        _point_out_table(source)
    return SidecarTexts(images.paths)


def _refuse_outputs(folder: Path) -> None:
    """Refuse the folder of a run or an evaluation, whose images are small copies and whose captions are results.

    Raises:
        InputError: names what can be reviewed.
    """
    import shlex

    from captune.data import is_evaluation_folder
    from captune.run_checkpoints import is_run

    if is_run(folder):
        command = shlex.join(["captune", "caption", str(folder), "FOLDER", "--txt"])
        raise InputError(
            f"'{folder}' is a run, whose captions are results and not edited; its page shows them. To review captions "
            f"of a folder of images, write them first: {command}"
        )
    if is_evaluation_folder(folder) or (folder.name == "thumbnails" and is_evaluation_folder(folder.parent)):
        raise InputError(
            f"'{folder}' is an output of captune with small copies of the images; give the folder of the images, or a "
            "manifest."
        )


def _point_out_table(folder: Path) -> None:
    """Say which captions are not shown, since they are in a table."""
    import shlex

    from captune.data import data_name
    from captune.data.importers import discover

    try:
        tables = [source.path for source in discover(folder).sources if source.kind != "folder"]
    except DataError:
        return
    if tables:
        commands = [
            shlex.join(["captune", *words])
            for words in (["init", str(folder)], ["review", f"{data_name(folder)}.jsonl"])
        ]
        print_message(
            f"The captions in {tables[0]} are not shown here. To review them in a manifest: {', then '.join(commands)}"
        )
