"""`captune runs`: list, compare and delete runs, and show what their caches hold."""

from __future__ import annotations

import shutil
import sys
import textwrap
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captune.cli.commands import CommandGroup, ListGroup
from captune.cli.guessed_columns import is_interactive
from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.cli.shared_options import AsJson
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.config import RunConfig
    from captune.report import RunScores
    from captune.run_folders import Cache, RunSummary

__all__ = ["app"]

app = CommandGroup()


class CacheKind(StrEnum):
    """Kinds of caches."""

    FEATURES = "features"
    CAPTIONS = "captions"
    FINGERPRINTS = "fingerprints"


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]
Folder = Annotated[Path, typer.Argument(help="Folder that contains runs.", show_default="current directory")]


@app.callback(cls=ListGroup)
def runs() -> None:
    """List, compare and delete runs, and show what their caches hold.

    `captune runs FOLDER` lists the runs at and below a folder, by default the current one.

    Examples:
        captune runs list runs
        captune runs compare runs/a runs/b
        captune runs delete runs/a
        captune runs caches runs
    """


@app.command("list")
def list_runs(folder: Folder = Path(), as_json: AsJson = False) -> None:
    """List runs with model, data, epochs, state, best score, size on disk and date.

    A run is running while a process writes into its folder, finished once its last epoch is scored, stopped early by
    train.early_stop, and damaged where files are missing or cannot be read.

    Examples:
        captune runs list
        captune runs list runs --json
    """
    from captune.run_folders import find_runs, summarize

    summaries = [summarize(run) for run in find_runs(folder)]
    if as_json:
        print_summary({"runs": [summary.to_dict() for summary in summaries]})
        return
    if not summaries:
        print_message(f"There are no runs in {folder.absolute()}.")
        return
    header = ["Run", "Model", "Data", "Epochs", "State", "Best", "Size", "Changed"]
    _print_table(header, [_row(summary) for summary in summaries])
    for summary in summaries:
        if summary.state == "damaged":
            print_message(f"{summary.folder} is damaged: {summary.reason}")


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    """Print a table; where it is wider than the terminal, the cells of each row below its first one."""
    from captune.common import text_table

    table = text_table(header, rows, numbers=False)
    # A program reads a table of any width.
    width = shutil.get_terminal_size((sys.maxsize, 24)).columns
    if max(map(len, table.splitlines())) <= width:
        typer.echo(table)
        return
    for first, *cells in rows:
        lines = [first]
        for name, cell in zip(header[1:], cells, strict=True):
            text = f"{name} {cell}"
            if len(lines) > 1 and len(lines[-1]) + 3 + len(text) <= width:
                lines[-1] += f"   {text}"
            else:
                lines += textwrap.wrap(
                    text,
                    width,
                    initial_indent="  ",
                    subsequent_indent="    ",
                    break_long_words=False,
                    break_on_hyphens=False,
                )
        typer.echo("\n".join(lines))


def _row(summary: RunSummary) -> list[str]:
    from captune.common import one_line

    best = "–"
    if summary.score is not None:
        mark = " LEAK" if summary.leak else ""
        best = f"{summary.metric} {summary.score:.4f} ({summary.best}){mark}"
        if summary.before is not None:
            best += f"; {summary.before.name} is better: {summary.before.score:.4f}"
    state: str = summary.state
    if state == "running":
        state = f"running ({summary.reason})"
    elif state == "stopped early":
        state = f"stopped early at {summary.epochs} of {summary.total}"
    cells = [str(summary.folder), summary.model, summary.data, f"{summary.epochs}/{summary.total}", state, best]
    return [*map(one_line, cells), _size(summary.size), f"{summary.changed:%Y-%m-%d %H:%M}"]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Folder of another run.")],
    as_json: AsJson = False,
) -> None:
    """Compare two runs: the settings that differ, and the scores of their best checkpoints with paired tests.

    The scores are computed again from the captions of both, on the same images and references.

    Examples:
        captune runs compare runs/a runs/b
        captune runs compare runs/a runs/b --json
    """
    from captune.cli.report_output import print_comparison, print_verdict
    from captune.config import changed_settings
    from captune.report import compare_runs

    (one, one_scores), (other, other_scores) = _best_of(first), _best_of(second)
    names = _names(first, second)
    if len(set(names)) < 2:
        raise InputError(f"{first} and {second} are the same run; give two runs.")
    changes = {key: pair for key, pair in changed_settings(one, other).items() if key != "output"}
    rows = [one_scores.checkpoints[-1], other_scores.checkpoints[-1]]
    labels = [f"{name} {row.name}" for name, row in zip(names, rows, strict=True)]
    compared = compare_runs(dict(zip(labels, (one_scores, other_scores), strict=True)))
    if as_json:
        settings = {key: dict(zip(names, pair, strict=True)) for key, pair in changes.items()}
        print_summary({"settings": settings, **compared.to_dict()})
        return
    print_verdict(compared)
    typer.echo()
    if changes:
        _print_table(["Setting", *names], [[key, *map(_value, pair)] for key, pair in changes.items()])
    else:
        typer.echo("The settings are the same.")
    print_comparison(compared, intervals=True)
    out = first.with_name(f"{first.resolve().name}-and-{second.resolve().name}")
    show_next(["report", first, second, "--out", out], "write the comparison as a page")


def _best_of(run: Path) -> tuple[RunConfig, RunScores]:
    """The configuration of a run, and its scores with the best checkpoint only.

    Raises:
        InputError: it is no run, or has no scored epoch.
    """
    from dataclasses import replace

    from captune.config import load_run_config
    from captune.report import read_scores
    from captune.run_folders import CONFIG, best_row, require_run

    config, scores = load_run_config(require_run(run) / CONFIG), read_scores(run)
    row, _ = best_row(config, scores)
    if row is None:
        raise InputError(f"{run} has no scored epoch; train it, or run `captune evaluate {run}`.")
    return config, replace(scores, checkpoints=(row,))


def _names(first: Path, second: Path) -> list[str]:
    """Different names for two folders: as many of their last parts as are needed."""
    parts = [path.resolve().parts for path in (first, second)]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if names[0] != names[1]:
            break
    return names


def _value(value: Any) -> str:
    from captune.common import one_line

    return "null" if value is None else one_line(str(value))


@app.command()
def delete(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")], yes: Yes = False, as_json: AsJson = False
) -> None:
    """Delete a run: the files that it wrote, and nothing else.

    Features, judgements of people, earlier runs in replaced-N, and files that captune did not write are kept. A run
    into which a process writes is refused.

    Examples:
        captune runs delete runs/a
        captune runs delete runs/a --yes
    """
    from captune.data import folder_in_use, plural
    from captune.run_folders import delete_run, plan_deletion

    plan = plan_deletion(run)
    if (writer := folder_in_use(run)) is not None:
        raise InputError(f"{run} is in use: {writer} is running there; wait until it ends, or stop it.")
    kept = f" Kept: {', '.join(plan.kept[:8])}{', ...' if len(plan.kept) > 8 else ''}." if plan.kept else ""
    print_message(f"{run} has {plural(len(plan.files), 'file')} of the run, {_size(plan.size)}.{kept}")
    _confirm("Delete them?", yes=yes)
    done = delete_run(run)
    if as_json:
        print_summary({"run": run, "files": len(done.files), "bytes": done.size, "kept": list(done.kept)})
    else:
        print_message(f"Deleted {plural(len(done.files), 'file')}, {_size(done.size)}.")


def _confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal.

    Raises:
        InputError: there is no terminal, or the answer is no.
    """
    if yes:
        return
    if not is_interactive():
        raise InputError("Nothing is deleted without confirmation; add --yes.")
    if not typer.confirm(question, default=False, err=True):
        raise InputError("Nothing was deleted.")


@app.command()
def caches(
    folder: Folder = Path(),
    empty: Annotated[bool, typer.Option("--empty", help="Delete what the caches hold.")] = False,
    kind: Annotated[
        list[CacheKind] | None,
        typer.Option("--kind", help="Only caches of this kind; repeatable.", show_default="all"),
    ] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Show the caches of the runs below a folder: content, size, and the runs that use each.

    Features are computed by the vision tower, captions by evaluations, fingerprints by the search for leaks. With
    --empty they are deleted, and computed again when they are needed. Runs outside of the folder are listed too if they
    were trained with the same feature store.

    Examples:
        captune runs caches runs
        captune runs caches runs --empty --kind captions
    """
    from captune.run_folders import empty_caches, find_caches, find_runs

    listed = [cache for cache in find_caches(find_runs(folder)) if not kind or cache.kind in kind]
    total = sum(cache.size for cache in listed)
    if not as_json:
        _print_caches(listed)
    if not empty:
        if as_json:
            print_summary({"caches": [cache.to_dict() for cache in listed], "bytes": total})
        return
    freed = 0
    if listed:
        _confirm(f"Delete {_size(total)}?", yes=yes)
        freed = empty_caches(listed)
    if as_json:
        print_summary({"caches": [cache.to_dict() for cache in listed], "bytes": total, "freed": freed})
    else:
        print_message(f"Freed {_size(freed)}.")


def _print_caches(listed: list[Cache]) -> None:
    from captune.common import one_line

    if not listed:
        print_message("All caches are empty.")
        return
    rows = []
    for cache in listed:
        names = [str(run) for run in cache.runs]
        if cache.kind == "fingerprints":
            names = ["all"]
        users = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        rows.append(
            [*map(one_line, (cache.kind, str(cache.folder), cache.content)), _size(cache.size), one_line(users)]
        )
    _print_table(["Cache", "Folder", "Content", "Size", "Runs"], rows)
