"""`captune report`: table, chart, analysis and page of a run, of several runs, or of a bare CSV table."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_message
from captune.cli.report_output import (
    print_comparison,
    print_examples,
    print_json,
    print_report,
    print_verdict,
    run_as_json,
)
from captune.errors import InputError

if TYPE_CHECKING:
    from captune.report import RunScores

__all__ = ["report"]


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_DIR...|TABLE.csv",
            help="A run directory with scores.json, that file, or a CSV table 'checkpoint,BLEU-1,...'. "
            "Several runs are compared by their best checkpoints.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the files go; by default into the run directory. A CSV table and a comparison of runs "
            "are only printed without it.",
            show_default=False,
        ),
    ] = None,
    intervals: Annotated[bool, typer.Option("--intervals", help="Show confidence intervals in the tables.")] = False,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write metrics.pdf.")] = False,
    terminal: Annotated[
        bool,
        typer.Option("--terminal", help="Write nothing; print table, sparklines and the captions that changed most."),
    ] = False,
    lang: Annotated[
        str,
        typer.Option(
            help="Language in which report.html opens, en or zh; by default the browser's.", show_default=False
        ),
    ] = "",
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Write nothing; show the page of a run in progress in a browser on this machine, with step, loss and "
            "time left, until Ctrl-C.",
        ),
    ] = False,
    port: Annotated[int, typer.Option(help="Port of --watch; 0 is any that is free.", min=0, max=65535)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print table and analysis as one JSON object.")] = False,
) -> None:
    """Write table, chart, analysis and report.html of a run, and print table and analysis.

    Examples:
        captune report runs/photos
        captune report runs/photos --terminal
        captune report runs/photos --watch
        captune report runs/a runs/b --out runs/a-and-b
    """
    from captune.report import LANGUAGES

    if lang and lang not in LANGUAGES:
        raise InputError(f"--lang is {lang!r}, expected {' or '.join(LANGUAGES)}.")
    if watch:
        _watch(sources, lang, port)
        return
    if len(sources) > 1:
        files = _report_several(sources, out, intervals=intervals, lang=lang, as_json=as_json)
    else:
        files = _report_one(
            sources[0], out, intervals=intervals, pdf=pdf, terminal=terminal, lang=lang, as_json=as_json
        )
    for file in files:
        print_message(file)
    if len(sources) == 1 and (sources[0] / "checkpoints").is_dir():
        _show_next(sources[0], terminal=terminal)


def _show_next(run: Path, *, terminal: bool) -> None:
    """Suggest to share the best checkpoint of a run, if one is better than the model before training."""
    from captune.run_checkpoints import score_before_training

    if (before := score_before_training(run)) is None:
        model = f"./{run.resolve().name}-model"
        show_next(["push", run, "--to", model], "write the best checkpoint into a folder to share")
        return
    print_message(f"No checkpoint of {run} is better than {before.name} by {before.metric} ({before.score:.3f}).")
    if not terminal:
        show_next(["report", run, "--terminal"], "see which captions regressed most")


def _watch(sources: list[Path], lang: str, port: int) -> None:
    """Serve the page of one run until Ctrl-C."""
    from captune.cli.report_watch import PageServer

    if len(sources) > 1:
        raise InputError(f"--watch shows one run, but {len(sources)} were given; give one.")
    server = PageServer(sources[0], lang, port)
    try:
        print_message(f"The page is at {server.url} on this machine; Ctrl-C ends it.")
        server.serve()
    except KeyboardInterrupt:
        print_message("The page is closed; the run is not affected.")
    finally:
        server.close()


def _report_one(
    source: Path, out: Path | None, *, intervals: bool, pdf: bool, terminal: bool, lang: str, as_json: bool
) -> list[Path]:
    """Report on one run or table and return the files written."""
    from captune.data import folder_lock
    from captune.report import REPORT_FILES, TrainingLog, analyse, atomic_write, read_log, write_report

    run, source_folder = _read(source)
    log = TrainingLog() if source_folder is None else read_log(source_folder / "log.jsonl")
    folder = None if terminal else out or source_folder
    files = []
    if folder is not None:
        formats = ("png", "svg", "pdf") if pdf else ("png", "svg")
        names = [name for name in REPORT_FILES if name != "metrics.pdf" or pdf]
        # The names of a run's own report are reserved in its folder; elsewhere they may belong to other programs.
        in_run_folder = source_folder is not None and folder.resolve() == source_folder.resolve()
        if not in_run_folder:
            _check_files(folder, names, [source])
        with folder_lock(folder, "captune report"):
            files = write_report(
                folder,
                run,
                intervals=intervals,
                chart_formats=formats,
                language=lang,
                source=source_folder,
                write=atomic_write if in_run_folder else _write_output,
            )
    if as_json:
        left_out = {"left_out_images": list(log.left_out)} if log.left_out else {}
        print_json({**run_as_json(run, analyse(run)), **left_out}, files)
    elif terminal:
        print_examples(run, intervals=intervals)
    else:
        print_report(run, analyse(run), intervals=intervals, training_images=log.training_images)
    return files


def _report_several(sources: list[Path], out: Path | None, *, intervals: bool, lang: str, as_json: bool) -> list[Path]:
    """Compare several runs and return the files written."""
    from captune.data import folder_lock
    from captune.report import COMPARISON_FILES, TrainingLog, compare_runs, read_log, read_settings, write_comparison

    read = {name: _read(source) for name, source in zip(_names(sources), sources, strict=True)}
    settings = [{} if folder is None else read_settings(folder) for _, folder in read.values()]
    logs = [TrainingLog() if folder is None else read_log(folder / "log.jsonl") for _, folder in read.values()]
    comparison = compare_runs({name: run for name, (run, _) in read.items()}, settings=settings, logs=logs)
    files = []
    if out is not None:
        _check_files(out, COMPARISON_FILES, sources)
        _, pictures_of = next(iter(read.values()))
        with folder_lock(out, "captune report"):
            files = write_comparison(
                out, comparison, pictures_of, intervals=intervals, language=lang, write=_write_output
            )
    if as_json:
        print_json(comparison.to_dict(), files)
    else:
        print_verdict(comparison)
        print_comparison(comparison, intervals=intervals)
    return files


def _check_files(folder: Path, names: Iterable[str], sources: list[Path]) -> None:
    """Check that no file of a report replaces a file that is read or that is not of an earlier report.

    Raises:
        InputError: one would.
    """
    from captune.data import check_output

    for name in names:
        check_output(folder / name, command="report", reads=sources)


def _write_output(path: Path, content: bytes | str) -> Path:
    """Write a file of a report outside of a run and keep a record of it."""
    from captune.data import output_file

    with output_file(path, "wb", command="report") as stream:
        stream.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
    return path


def _read(source: Path) -> tuple[RunScores, Path | None]:
    """The scores of a source, and the run directory that they came from; None for a bare table."""
    from captune.report import read_csv, read_scores

    if source.suffix.lower() in (".csv", ".tsv") and not source.is_dir():
        return read_csv(source), None
    return read_scores(source), source if source.is_dir() else source.parent


def _names(sources: list[Path]) -> list[str]:
    """A name for every source: as much of the end of its path as distinguishes it from the others."""
    folders = [os.path.abspath(source.parent if source.name == "scores.json" else source) for source in sources]
    if len(set(folders)) != len(folders):
        raise InputError("The same run was given twice; give every run once.")
    parts = [Path(folder).parts for folder in folders]
    depth = next(depth for depth in range(1, 1000) if len({part[-depth:] for part in parts}) == len(parts))
    return ["/".join(part[-depth:]) for part in parts]
