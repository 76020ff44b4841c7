"""`captune check`: all faults of a manifest, before a run fails on them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.next_command import show_next
from captune.cli.prepare_common import Callbacks, Check, ProblemsFile, counts_in_words, summary_as_json, with_progress
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.data import Issue, Summary, TargetFlaw

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
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Write a manifest without bad rows and training images that are also evaluated."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="The file that --fix writes.", show_default="MANIFEST-clean.jsonl")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files at --out and --problems that this command did not write.")
    ] = False,
) -> None:
    """Check every row, caption and image of a manifest; exit with 2 when training would fail or leave out images.

    With --against, images of the other manifest that are among this one's training images (the first --split) are
    found by id, by file content and as the same picture, re-encoded, resized or with its margins cut.

    --fix writes the good rows to another file (--out) and leaves the original unchanged. If a picture is in the
    training split and in another one (of this manifest or of --against), the training image is left out. Each row that
    is left out is listed in the file of --problems, by default one next to the new manifest.

    Examples:
        captune check photos/manifest.jsonl
        captune check photos/manifest.jsonl --fix
        captune check photos/manifest.jsonl --fix --out photos/good.jsonl
        captune check photos/manifest.jsonl --split train --split test --json
        captune check train.jsonl --against test.jsonl
    """
    from captune.config import split_names
    from captune.data import SourceFile, check_manifest, check_output

    if out is not None and not fix:
        raise InputError("--out is the file that --fix writes; add --fix, or leave --out out.")
    _refuse_other_formats(manifest)
    reads = [manifest, *(against or [])]
    if fix:
        out = out or manifest.with_name(f"{manifest.name.removesuffix('.jsonl')}-clean.jsonl")
        problems = problems or out.with_name(f"{out.name.removesuffix('.jsonl')}.left-out.jsonl")
        check_output(out, command="check", reads=[*reads, problems], overwrite=overwrite)
    if problems is not None:
        check_output(problems, command="check", reads=reads, overwrite=overwrite, option="--problems")
    flaw = None if model is None else _flaw_finder(model)
    bad: set[int] = set()
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
            on_issue=_and_collect(bad, callbacks.on_issue),
        )
        fatal, notes = summary.problems.fatal, len(summary.problems) - summary.problems.fatal
        if out is not None:
            empty = _write_fixed(manifest, out, problems, split, against or [], bad, summary, callbacks, as_json)
        else:
            leaks = [_compare(manifest, other, split_names(split[0]), summary, callbacks) for other in against or []]
    # The file of the problems is complete now, also where the command fails.
    if out is not None:
        if empty:
            name = empty[0]
            typer.echo(f"captune: the new manifest has no images of the split '{name}', which was required.", err=True)
            raise typer.Exit(2)
        show_next(["init", out], "configure a run")
        return
    leaked = any(report["leaked"] for report in leaks)
    failed = bool(fatal or (strict and notes) or (leaked and not allow_leaks))
    if as_json:
        unreadable = dict(summary.unreadable)
        answer = {
            **summary_as_json(summary, manifest),
            "fatal": fatal,
            "unreadable": {name: count for name, count in unreadable.items() if count},
            "leaks": leaks,
            "ok": not failed,
        }
        print(json.dumps(answer, ensure_ascii=False))
    else:
        lines = [
            f"{manifest}: {_verdict(summary, fatal, split_names(split[0]))}",
            *counts_in_words(summary),
            *histogram(summary.words_per_caption),
        ]
        lines += [f"  {report['against']}: {report['in_words']}" for report in leaks]
        print("\n".join(lines))
    if failed:
        if summary.images and (bad or leaked):
            others = [word for other in against or [] for word in ("--against", str(other))]
            show_next(["check", manifest, *others, "--fix"], "write a manifest without them")
        raise typer.Exit(2)
    show_next(["init", manifest], "configure a run")


def _verdict(summary: Summary, fatal: int, train_splits: Sequence[str]) -> str:
    """What training does with a manifest that has `fatal` problems, in a few words."""
    from captune.data import MAX_UNREADABLE, plural, printable

    trained = sum(summary.splits[name] for name in train_splits)
    unread = sum(summary.unreadable[name] for name in train_splits)
    others = [(name, n) for name, n in summary.unreadable.items() if n and name not in train_splits]
    images = f"{unread:,} of {plural(trained, 'training image')}"
    if fatal > summary.unreadable.total():
        return f"training would fail ({plural(fatal, 'problem')})"
    verdicts = []
    if unread > trained * MAX_UNREADABLE:
        verdicts.append(f"training would fail, since {images} cannot be read (at most a tenth may be left out)")
    elif unread:
        verdicts.append(f"training would leave out {images}")
    for name, count in others:
        verdicts.append(f"evaluation on {printable(name)} would fail ({plural(count, 'unreadable image')})")
    return "; ".join(verdicts) or "training can read it"


def _refuse_other_formats(path: Path) -> None:
    """Refuse a folder or a table, with the command that makes a manifest of it.

    Raises:
        DataError: it is one.
    """
    import shlex

    from captune.errors import DataError
    from captune.preflight import preparing_command

    if path.suffix.lower() in (".yaml", ".yml"):
        raise DataError(
            f"'{path}' is a configuration and not a manifest; check the manifest that its data.train names."
        )
    if path.is_dir():
        command = shlex.join(["captune", "init", str(path)])
        raise DataError(f"'{path}' is a folder and not a manifest; make one with: {command}")
    if (command_of_table := preparing_command(path)) is not None:
        raise DataError(f"'{path}' is a table and not a manifest; make one with: {command_of_table}")


def _and_collect(lines: set[int], on_issue: Callable[[Issue], None] | None) -> Callable[[Issue], None]:
    """A callback that also collects the lines of rows that training would fail on or leave out."""
    from captune.data import NOTES

    def collect(issue: Issue) -> None:
        if issue.kind not in NOTES and issue.line:
            lines.add(issue.line)
        if on_issue is not None:
            on_issue(issue)

    return collect


def _write_fixed(
    manifest: Path,
    out: Path,
    problems: Path | None,
    split: list[str],
    against: list[Path],
    bad: set[int],
    summary: Summary,
    callbacks: Callbacks,
    as_json: bool,
) -> list[str]:
    """Write the good rows, and print what was left out; returns the required splits that are empty then."""
    from captune.config import split_names
    from captune.data import leaked_training_rows, manifest_hash, printable, rewrite_manifest

    leaks = leaked_training_rows(
        manifest, train_splits=split_names(split[0]), against=against, skipped=bad, progress=callbacks.share
    )
    for issue in leaks:
        summary.problems.add(issue)
    left_out = bad | {issue.line for issue in leaks}
    splits = rewrite_manifest(manifest, out, skipped=left_out, command="check")
    needed = [name for names in split for name in split_names(names)]
    empty = [name for name in needed if not splits[name]]
    counts = ", ".join(f"{printable(name)} {count:,}" for name, count in splits.items())
    if as_json:
        answer = {
            "manifest": str(out),
            "sha256": manifest_hash(out),
            "images": splits.total(),
            "splits": dict(splits),
            "left_out": len(left_out),
            "problems": dict(summary.problems.counts),
            "problems_file": str(problems),
            "ok": not empty,
        }
        print(json.dumps(answer, ensure_ascii=False))
    else:
        lines = [f"{manifest} -> {out}", f"  images    {splits.total():>10,}   {counts}"]
        where = f", each of them in {problems}" if left_out else ""
        lines.append(f"  left out  {len(left_out):>10,}   rows{where}")
        if summary.problems:
            lines += [f"  problems  {len(summary.problems):>10,}   {summary.problems.in_words()}"]
            lines.append(summary.problems.listing())
        print("\n".join(lines))
    return empty


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
    for index in range(min(bars), max(bars) + 1):
        first = index * width
        label = f"{first}" if width == 1 else f"{first}-{first + width - 1}"
        bar = "#" * math.ceil(bars[index] / highest * _BAR_WIDTH)
        lines.append(f"  {label:>9} {bars[index]:>10,} {bar}")
    return lines


def _flaw_finder(model: str) -> Callable[[str], TargetFlaw | None]:
    """A function that returns why a model cannot be trained on a caption."""
    from captune.cli.progress import working
    from captune.hub import require_available, resolve_model
    from captune.preflight import extra_imports, require_extra

    require_extra("captune check --model", "train")
    source = resolve_model(model)
    require_available(model)
    with working("Loading torch and transformers"), extra_imports("captune check --model", "train"):
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
