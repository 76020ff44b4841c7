"""`captune train`: tune a model, evaluate before the first epoch and after each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.cli.output import settings as output_settings
from captune.cli.shared_options import AllowLeaks, AsJson, Overrides

__all__ = ["run_training", "train"]


def train(
    config: Annotated[Path, typer.Argument(help="YAML configuration, such as captune init writes.")],
    overrides: Overrides = None,
    resume: Annotated[
        Literal["auto", "never"], typer.Option(help="auto resumes an unfinished run; never starts over.")
    ] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Move another run in the output folder into a subfolder, and start.")
    ] = False,
    allow_leaks: AllowLeaks = False,
    as_json: AsJson = False,
) -> None:
    """Tune a model as configured in a YAML file; every epoch is saved and scored.

    Examples:
        captune train photos.yaml
        captune train photos.yaml train.epochs=5 output=runs/five-epochs
        torchrun --nproc-per-node 4 -m captune train photos.yaml
    """
    overrides = [*(overrides or []), *(["evaluate.allow_leaks=true"] if allow_leaks else [])]
    run_training(config, overrides, resume=resume == "auto", overwrite=overwrite, as_json=as_json)


def run_training(
    config: Path, overrides: list[str], *, resume: bool = True, overwrite: bool = False, as_json: bool = False
) -> None:
    """Train and print the table, the analysis and the location of the files, or the same as one JSON object.

    Raises:
        CaptuneError: as `captune.training.train`.
    """
    import os

    from captune.cli.progress import show_progress
    from captune.config import load_config
    from captune.preflight import check_run, require_extra
    from captune.training import train as start

    settings = load_config(config, overrides)
    require_extra("captune train", "train", *(["track"] if settings.tracker == "wandb" else []))
    check_run(settings, trains=True)
    if os.environ.get("RANK", "0") != "0":
        start(settings, resume=resume, overwrite=overwrite)
        return
    output_settings.resumes = resume
    with show_progress() as listener:
        start(settings, listener, resume=resume, overwrite=overwrite)
    from captune.cli.report_output import print_report, run_as_json
    from captune.report import analyse, read_log, read_scores, recommends_more_epochs
    from captune.run_checkpoints import checkpoint_folders, score_before_training

    scores = read_scores(settings.output)
    analysis = analyse(scores)
    if as_json:
        folders = [str(folder) for folder in checkpoint_folders(settings.output)]
        print_summary({"output": settings.output, "folders": folders, **run_as_json(scores, analysis)})
        return
    print_report(scores, analysis, training_images=read_log(settings.output / "log.jsonl").training_images)
    print_message(f"\nTable, chart, captions and checkpoints are in {settings.output}")
    if (before := score_before_training(settings.output)) is not None:
        print_message(f"No epoch is better than {before.name} by {before.metric} ({before.score:.4f}).")
    if recommends_more_epochs(scores, analysis):
        kept = [override for override in overrides if override.partition("=")[0].strip() != "train.epochs"]
        show_next(["train", config, *kept, f"train.epochs={2 * settings.train.epochs}"], "continue training")
    show_next(["report", settings.output], "print the scores again and list the files")
