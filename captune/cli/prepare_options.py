"""The options that the commands of `captune prepare` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = [
    "AsJson",
    "Check",
    "Images",
    "Out",
    "Overwrite",
    "ProblemsFile",
    "Seed",
    "SplitOrShares",
    "Splits",
    "Strict",
]

Images = Annotated[
    Path | None,
    typer.Option(help="Folder of the image files; by default looked for next to SOURCE.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The manifest to write.", show_default=False)]
Check = Annotated[
    Literal["none", "exist", "decode"],
    typer.Option("--check-images", help="Look at no image, see whether each is there, or decode each fully."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Write nothing and exit with 2 if anything is wrong.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object on stdout.")]
Splits = Annotated[
    Path | None,
    typer.Option(help="Karpathy's dataset_*.json; images that it does not name become 'unlisted'.", show_default=False),
]
ProblemsFile = Annotated[
    Path | None,
    typer.Option("--problems", help="Also write every problem to this file, JSON Lines.", show_default=False),
]
SplitOrShares = Annotated[
    str, typer.Option("--split", help="Split of all images, or shares to divide them: train=0.9,val=0.05,test=0.05.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the division into shares; another seed divides otherwise.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace files at --out and --problems that this command did not write.")
]
