"""Flickr30k's CSV to a manifest and to the JSON of the original project, under the original's default paths.

    python prepare_flickr30k.py

reads `flickr30k/flickr_annotations_30k.csv` and `flickr30k/flickr30k-images/` and writes `flickr30k/manifest.jsonl`,
which captune trains on, and `flickr30k/flickr30k_grounded_detail.json`, which the original trained on.
`captune prepare flickr30k` does the same for any paths, without the second file.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from captune.cli import call, run_program
from captune.cli.prepare import import_flickr30k
from captune.cli.prepare_common import Check, Output, ProblemsFile, Strict

program = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@program.command()
def prepare(
    annotations: Annotated[Path, typer.Option(help="The CSV to read.")] = Path("flickr30k/flickr_annotations_30k.csv"),
    images: Annotated[Path, typer.Option(help="The folder of images.")] = Path("flickr30k/flickr30k-images"),
    manifest: Annotated[Path, typer.Option(help="The manifest to write.")] = Path("flickr30k/manifest.jsonl"),
    out: Annotated[Path, typer.Option(help="The original's JSON.")] = Path("flickr30k/flickr30k_grounded_detail.json"),
    check_images: Check = "decode",
    strict: Strict = False,
    problems: ProblemsFile = None,
) -> None:
    """Turn Flickr30k's CSV into a manifest, and into the original project's JSON."""
    from captune.data.importers.flickr import write_grounded_detail
    from captune.data.manifest import iter_manifest
    from captune.data.outputs import check_output

    check_output(out, command="prepare", reads=[annotations])
    output = Output(manifest, check_images=check_images, strict=strict, problems=problems)
    import_flickr30k(annotations, output, images, show_next_command=False)
    count = write_grounded_detail(out, iter_manifest(manifest))
    print(f"{manifest} -> {out}: {count:,} images, the captions of each joined to one", file=sys.stderr)


if __name__ == "__main__":
    run_program(lambda: call(program))
