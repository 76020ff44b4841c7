"""`captune fetch`: download what is too large, or licensed too differently, to be included."""

from __future__ import annotations

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from captune.cli.output import print_summary
from captune.cli.output import settings as output_settings
from captune.cli.progress import download_progress
from captune.cli.shared_options import AsJson

__all__ = ["fetch"]


class What(StrEnum):
    """Things that can be fetched."""

    SPICE = "spice"


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
    as_json: AsJson = False,
) -> None:
    """Download what captune does not include, with progress and checksum; an interrupted download resumes.

    Examples:
        captune fetch spice
        captune fetch spice --to /data/spice
        captune fetch spice --archive stanford-corenlp-full-2015-12-09.zip
    """
    from captune.metrics.external import CORENLP_SHA1, CORENLP_URL, fetch_models

    output_settings.resumes = True
    with download_progress() if archive is None else nullcontext() as progress:
        jars = fetch_models(
            to,
            url=url or CORENLP_URL,
            archive=archive,
            checksum=checksum or CORENLP_SHA1,
            progress=progress,
        )
    if as_json:
        print_summary({"files": list(jars)})
        return
    for jar in jars:
        print(jar)
