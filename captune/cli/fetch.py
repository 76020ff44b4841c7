"""`captune fetch`: download what is too large or too differently licensed to come along."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["fetch", "register"]


class What(StrEnum):
    """Things that can be fetched."""

    SPICE = "spice"


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("fetch")(fetch)


def fetch(
    what: Annotated[What, typer.Argument(help="'spice': the parser of SPICE, Stanford CoreNLP 3.6.0 (400 MB, GPL).")],
    to: Annotated[
        Path | None,
        typer.Option(envvar="CAPTUNE_SPICE_MODELS", help="Folder for it.", show_default="captune/spice in ~/.cache"),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Another address.", show_default="nlp.stanford.edu")] = None,
    archive: Annotated[
        Path | None, typer.Option(help="Unpack this file instead of downloading.", show_default=False)
    ] = None,
    checksum: Annotated[
        str | None,
        typer.Option(help="sha256:... or sha1:... of the archive.", show_default="sha1 pinned in public build scripts"),
    ] = None,
) -> None:
    """Download what captune does not bring, with progress and checksum; what broke off goes on."""
    from captune.metrics.corenlp import CORENLP_SHA1, CORENLP_URL, fetch_models

    jars = fetch_models(
        to,
        url=url or CORENLP_URL,
        archive=archive,
        checksum=checksum or CORENLP_SHA1,
        progress=None if archive is not None else _progress(),
    )
    for jar in jars:
        print(jar)


def _progress() -> Callable[[int, int | None], None]:
    """A line on stderr that rewrites itself on a terminal, and one line for each tenth elsewhere."""
    terminal = sys.stderr.isatty()
    last = -1

    def show(done: int, total: int | None) -> None:
        nonlocal last
        step = done * (100 if terminal else 10) // total if total else done >> (22 if terminal else 26)
        if step == last:
            return
        last = step
        size = f"{done / 1e6:,.0f} MB" + (f" of {total / 1e6:,.0f} MB ({done / total:.0%})" if total else "")
        end = "\n" if not terminal or done == total else ""
        print(f"\r{size}" if terminal else size, end=end, file=sys.stderr, flush=True)

    return show
