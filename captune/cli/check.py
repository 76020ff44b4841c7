"""`captune check`: everything that is wrong with a manifest, before a run fails on it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from captune.cli.importing import counts_in_words, summary_as_json, watched
from captune.cli.prepare import Check, ProblemsFile

__all__ = ["check", "register"]

_BARS = 12  # rows of the histogram, about
_BAR_WIDTH = 40  # characters of the longest bar


def register(program: typer.Typer) -> None:
    """Add the command to the program."""
    program.command("check")(check)


def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A manifest that captune prepare wrote.")],
    split: Annotated[list[str], typer.Option(help="A split that must be there; may be given again.")] = ["train"],  # noqa: B006
    check_images: Check = "decode",
    min_side: Annotated[int, typer.Option(min=1, help="Note images with fewer pixels on a side.")] = 32,
    max_words: Annotated[int, typer.Option(min=1, help="Note captions with more words.")] = 100,
    model: Annotated[
        str | None,
        typer.Option(help="A model (folder, hub id or toy): note captions longer than its targets may be."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 for notes, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
    problems: ProblemsFile = None,
) -> None:
    """Look at every row, caption and image of a manifest; exit with 2 when training would fail on it."""
    from captune.data.checks import check_manifest
    from captune.data.problems import plural
    from captune.data.text import Reading

    is_truncated = None if model is None else _truncation(model)
    reading = Reading(manifest)
    with watched(manifest.name, reading, problems) as callbacks:
        summary = check_manifest(
            reading,
            needed_splits=split,
            check=check_images,
            min_side=min_side,
            max_words=max_words,
            is_truncated=is_truncated,
            progress=callbacks.progress,
            on_problem=callbacks.on_problem,
        )
    fatal, notes = summary.problems.fatal, len(summary.problems) - summary.problems.fatal
    failed = bool(fatal or (strict and notes))
    if as_json:
        print(json.dumps({**summary_as_json(summary, manifest), "fatal": fatal, "ok": not failed}, ensure_ascii=False))
    else:
        verdict = f"training would fail ({plural(fatal, 'problem')})" if fatal else "training can read it"
        lines = [f"{manifest}: {verdict}", *counts_in_words(summary), *histogram(summary.words_per_caption)]
        print("\n".join(lines))
    if failed:
        raise typer.Exit(2)


def histogram(words: Counter[int]) -> list[str]:
    """How many captions have how many words, as bars of one width of words each."""
    if not words:
        return []
    longest = max(words)
    width = longest // _BARS + 1
    bars = Counter[int]()
    for length, count in words.items():
        bars[length // width] += count
    highest = max(bars.values())
    lines = ["  words a caption:"]
    for place in range(max(bars) + 1):
        first = place * width
        label = f"{first}" if width == 1 else f"{first}-{first + width - 1}"
        bar = "#" * math.ceil(bars[place] / highest * _BAR_WIDTH)
        lines.append(f"  {label:>9} {bars[place]:>10,} {bar}")
    return lines


def _truncation(model: str) -> Callable[[str], bool]:
    """Whether training of a model would cut a caption."""
    from captune.model.loading import resolve_model
    from captune.model.processor import MiniGPT4Processor

    layout = MiniGPT4Processor.from_pretrained(resolve_model(model)).layout
    return lambda caption: layout.target_ids(caption)[1]
