"""`captune serve`: a page to try a model on, and an OpenAI-style endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from captune.cli.output import print_message, print_summary
from captune.cli.shared_options import Base, checked_model, with_shared_options
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.apps.serving import Example, Limits

__all__ = ["serve"]

EXAMPLES = 6
"""Number of example images on the page."""


@dataclass(frozen=True)
class _Limits:
    """Limits on requests and batches."""

    PANEL: ClassVar[str] = "Limits"

    slots: Annotated[
        int, typer.Option(help="Answers of one kind that are decoded at once; fewer take less memory.", min=1)
    ] = 32
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more get 429.", min=1)] = 256
    max_body: Annotated[int, typer.Option(help="Megabytes of a request; more gets 413.", min=1, max=1000)] = 20
    max_pixels: Annotated[int, typer.Option(help="Megapixels of an image; more gets 413.", min=1, max=89)] = 25

    def of_server(self) -> Limits:
        """These limits as the server takes them."""
        from captune.apps.serving import ImageLimits, Limits

        images = ImageLimits(pixels=self.max_pixels * 1_000_000)
        return Limits(body=self.max_body << 20, waiting=self.max_waiting, slots=self.slots, images=images)


@with_shared_options
def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="A run (its pretrained model and every epoch side by side), a checkpoint of one, a captune model, "
            "any image-text-to-text model of transformers, a hub id, toy or toy-vlm."
        ),
    ] = "toy",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8000,
    url: Annotated[
        str | None,
        typer.Option(help="Beginning of the page's address behind a proxy.", show_default="the address"),
    ] = None,
    allow_remote_images: Annotated[
        bool,
        typer.Option(
            "--allow-remote-images",
            help="Fetch images at http(s) addresses that are public; off by default because a request could make "
            "the server connect to addresses that only it can reach.",
        ),
    ] = False,
    examples: Annotated[
        list[Path] | None, typer.Option(help="An image to offer on the page; repeatable.", show_default="of the run")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="CAPTUNE_API_KEY",
            help="Key that clients must send as a bearer token (OpenAI's api_key), and browsers once as /?key=...",
            show_default=False,
        ),
    ] = None,
    base: Base = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as one JSON object on stdout.")] = False,
    *,
    limits: _Limits,
) -> None:
    """Serve a model: a page in the browser, and /v1/chat/completions for OpenAI's clients.

    Examples:
        captune serve
        captune serve runs/photos --port 8080
        captune serve runs/photos --host 0.0.0.0 --slots 8
    """
    from functools import partial

    from captune.cli.progress import working
    from captune.data import temporary_folder
    from captune.preflight import check_named_model, extra_imports, require_extra
    from captune.run_checkpoints import is_run

    require_extra("captune serve", "serve", "train")
    if is_run(model):  # it has its model in its configuration
        check_named_model(model if base is None else base)
    else:
        model = checked_model(model, base)
    with extra_imports("captune serve", "serve"):
        from captune.apps import answered_hosts, base_url, is_local, listening_socket, run_server
    with working("Loading torch"), extra_imports("captune serve", "train"):
        import torch  # noqa: F401  so that the message names the missing extra
    with extra_imports("captune serve", "serve"):
        from captune.apps.serving import Example, fetch_image, load_served, serving_application
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or not api_key.strip()):
        raise InputError("--api-key must be a text of printable ASCII characters; headers cannot carry others.")
    if missing := next((path for path in examples or [] if not path.is_file()), None):
        raise InputError(f"The example {missing} does not exist; give an image file.")
    run = _run_folder(model)
    hosts = answered_hosts(host, url)
    listener = listening_socket(host, port)
    with listener, temporary_folder("serve") as drawn:
        with working("Loading the model"):
            served = load_served(model, base)
        server_limits = limits.of_server()
        application = serving_application(
            served,
            limits=server_limits,
            hosts=hosts,
            site=url,
            examples=[Example(path) for path in examples] if examples else _examples(model, run, drawn),
            report=None if run is None else run / "report.html",
            fetch=partial(fetch_image, most_bytes=server_limits.body) if allow_remote_images else None,
            key=api_key,
        )
        if not is_local(host):
            open_to_all = "whoever reaches this machine can use the model, without a password; --api-key sets one"
            print_message(f"Listening on {host}: {open_to_all if api_key is None else 'clients need the key'}.")
        base = base_url(host, listener.getsockname()[1])
        if as_json:
            print_summary({"page": f"{base}/", "endpoint": f"{base}/v1", "models": list(served.names)})
        else:
            print(base, flush=True)
        print_message(f"{', '.join(served.names)}: page at {base}/, endpoint at {base}/v1. Stop with Ctrl-C.")
        try:
            run_server(application, listener)
        except KeyboardInterrupt:
            print_message("Stopped; running requests have been answered.")


def _run_folder(model: str) -> Path | None:
    """The folder of the run that a run or a checkpoint names."""
    from captune.run_checkpoints import is_run, run_of

    if (named := run_of(model)) is not None:
        return named[0]
    folder = Path(model).expanduser().resolve()
    return folder.parents[1] if len(folder.parents) > 1 and is_run(folder.parents[1]) else None


def _examples(model: str, run: Path | None, folder: Path) -> list[Example]:
    """Images for the page: thumbnails of the run's evaluation with their references, or drawn scenes."""
    from captune.apps.serving import Example

    if run is not None:
        from captune.report import read_scores, thumbnail_path

        try:
            references = read_scores(run).references
        except InputError:
            references = {}
        captions = {thumbnail_path(run, image).name: tuple(texts) for image, texts in references.items()}
        thumbnails = sorted((run / "thumbnails").glob("*.jpg"))
        selected = thumbnails[:: max(1, len(thumbnails) // EXAMPLES)][:EXAMPLES]
        return [Example(path, captions.get(path.name, ())) for path in selected]
    from captune.hub import TOY

    if model not in TOY:
        return []
    from itertools import islice

    from captune.toy import draw_scene, sample_scenes

    files = []
    for number, scene in enumerate(islice(sample_scenes(7, held_out=True), EXAMPLES)):
        files.append(folder / f"scene-{number}.png")
        draw_scene(scene).save(files[-1])
    return [Example(file) for file in files]
