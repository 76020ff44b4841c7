"""`captune check`: all faults of a manifest, before a run fails on them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.prepare_common import Callbacks, Check, ProblemsFile, counts_in_words, summary_as_json, with_progress

if TYPE_CHECKING:
    from captune.data import Summary, TargetFlaw

__all__ = ["check"]

_BARS = 12  # rows of the histogram, about
_BAR_WIDTH = 40  # characters of the longest bar


def check(
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="A manifest that captune prepare wrote.")],
    split: Annotated[
        list[str], typer.Option(help="A required split, or several as train,restval; this option is repeatable.")
    ] = ["train"],  # noqa: B006
    check_images: Check = "decode",
    min_side: Annotated[int, typer.Option(min=1, help="Note images with fewer pixels on a side.")] = 32,
    max_words: Annotated[int, typer.Option(min=1, help="Note captions with more words.")] = 100,
    model: Annotated[
        str | None,
        typer.Option(help="A model (folder, hub id or toy): note captions that it cannot be trained on completely."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="Another manifest, or this one again: search for its images among the training images."),
    ] = None,
    allow_leaks: Annotated[
        bool, typer.Option("--allow-leaks", help="Leaked images do not make it exit with 2.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 for notes, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON object.")] = False,
    problems: ProblemsFile = None,
) -> None:
    """Check every row, caption and image of a manifest; exit with 2 when training would fail on it.

    With --against, images of the other manifest that are among this one's training images (the first --split) are
    found by id, by file content and as the same picture, re-encoded, resized or with its margins cut.

    Examples:
        captune check photos/manifest.jsonl
        captune check photos/manifest.jsonl --split train,test --json
        captune check train.jsonl --against test.jsonl
    """
    from captune.config import split_names
    from captune.data import SourceFile, check_manifest, check_output, plural

    if problems is not None:
        check_output(problems, command="check", reads=[manifest, *(against or [])], option="--problems")
    flaw = None if model is None else _flaw_finder(model)
    reading = SourceFile(manifest)
    with with_progress(manifest.name, reading, problems, "check") as callbacks:
        summary = check_manifest(
            reading,
            needed_splits=[name for names in split for name in split_names(names)],
            check=check_images,
            min_side=min_side,
            max_words=max_words,
            flaw=flaw,
            progress=callbacks.progress,
            on_issue=callbacks.on_issue,
        )
        fatal, notes = summary.problems.fatal, len(summary.problems) - summary.problems.fatal
        leaks = [_compare(manifest, other, split_names(split[0]), summary, callbacks) for other in against or []]
    leaked = any(report["leaked"] for report in leaks)
    failed = bool(fatal or (strict and notes) or (leaked and not allow_leaks))
    if as_json:
        answer = {**summary_as_json(summary, manifest), "fatal": fatal, "leaks": leaks, "ok": not failed}
        print(json.dumps(answer, ensure_ascii=False))
    else:
        verdict = f"training would fail ({plural(fatal, 'problem')})" if fatal else "training can read it"
        lines = [f"{manifest}: {verdict}", *counts_in_words(summary), *histogram(summary.words_per_caption)]
        lines += [f"  {report['against']}: {report['in_words']}" for report in leaks]
        print("\n".join(lines))
    if failed:
        raise typer.Exit(2)


def _compare(
    manifest: Path, other: Path, train_splits: tuple[str, ...], summary: Summary, callbacks: Callbacks
) -> dict[str, object]:
    """Search for leaks; each one is added to the problems of the summary."""
    from captune.data import plural
    from captune.data.leaks import compare_manifests, leak_issues

    report = compare_manifests(manifest, other, train_split=train_splits, progress=callbacks.share)
    for problem in leak_issues(report, str(other)):
        summary.problems.add(problem)
    none = f"none of {plural(len(report.evaluated), 'image')} was trained on"
    unread = f"; of {plural(report.unread, 'image')} that cannot be read only the ids were compared"
    return {
        "against": str(other),
        "trained": len(report.trained),
        "evaluated": len(report.evaluated),
        "leaked": len(report.leaks),
        "by": dict(report.counts),
        "unread": report.unread,
        "in_words": (f"LEAK, {report.reason}" if report.reason else none) + (unread if report.unread else ""),
    }


def histogram(words: Counter[int]) -> list[str]:
    """A text histogram of the number of words per caption."""
    if not words:
        return []
    longest = max(words)
    width = longest // _BARS + 1
    bars = Counter[int]()
    for length, count in words.items():
        bars[length // width] += count
    highest = max(bars.values())
    lines = ["  words a caption:"]
    for index in range(max(bars) + 1):
        first = index * width
        label = f"{first}" if width == 1 else f"{first}-{first + width - 1}"
        bar = "#" * math.ceil(bars[index] / highest * _BAR_WIDTH)
        lines.append(f"  {label:>9} {bars[index]:>10,} {bar}")
    return lines


def _flaw_finder(model: str) -> Callable[[str], TargetFlaw | None]:
    """A function that returns why a model cannot be trained on a caption."""
    from captune.hub import require_available, resolve_model
    from captune.preflight import extra_imports, require_extra

    require_extra("captune check --model", "train")
    source = resolve_model(model)
    require_available(model)
    with extra_imports("captune check --model", "train"):
        from captune.model import IMAGE_PLACEHOLDER, load_config_and_processor
        from captune.vlm import is_image_text_model, weightless_model

    if is_image_text_model(source):
        conversation = weightless_model(source).conversation
        # Captions are never cut, and the text of an end of turn is no end.
        return lambda caption: "special" if conversation.has_special_token(caption) else None
    layout = load_config_and_processor(source)[1].layout
    stop = layout.stop_text.strip()

    def flaw(caption: str) -> TargetFlaw | None:
        if stop and stop in caption:
            return "stopped"
        if IMAGE_PLACEHOLDER in caption or layout.tokenizer.find_special_token(caption) is not None:
            return "special"
        return "truncated" if layout.target_ids(caption)[1] else None

    return flaw
