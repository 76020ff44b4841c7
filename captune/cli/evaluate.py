"""`captune evaluate`: caption and score the pretrained model and every checkpoint on the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captune.cli.train import ALLOW_LEAKS

__all__ = ["evaluate", "register", "run_evaluation"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("evaluate")(evaluate)


def evaluate(
    config: Annotated[Path, typer.Argument(help="YAML configuration of the run, or the run's folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings that win over the file: section.key=value ...")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint's folder; repeatable. All of the run by default.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Manifest to evaluate on, instead of the run's.")] = None,
    split: Annotated[str | None, typer.Option(help="Its split, instead of the run's.")] = None,
    protocol: Annotated[str | None, typer.Option(help="karpathy, slides or a YAML file, instead of the run's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for captions, scores, table and chart.")] = None,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help=ALLOW_LEAKS)] = False,
) -> None:
    """Caption and score the pretrained model and every checkpoint, with one load of the model."""
    chosen = {"data.evaluate": data, "data.evaluate_split": split, "evaluate.protocol": protocol}
    settings = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    settings += ["evaluate.allow_leaks=true"] if allow_leaks else []
    run_evaluation(config, [*(overrides or []), *settings], checkpoint, out)


def run_evaluation(config: Path, overrides: list[str], checkpoints: list[Path] | None, out: Path | None) -> None:
    """Evaluate and print the table, the analysis and where the files are.

    Raises:
        CaptuneError: as `captune.evaluation.evaluate_checkpoints`.
    """
    from captune.cli.extras import needs
    from captune.cli.progress import show_progress
    from captune.cli.report import print_report
    from captune.config import load_config
    from captune.report import analyse

    settings = load_config(config / "config.yaml" if config.is_dir() else config, overrides)
    with needs("captune evaluate", "train"):
        from captune.evaluation import evaluate_checkpoints
        from captune.training.run_folder import checkpoint_folders
    if checkpoints is None:
        checkpoints = checkpoint_folders(settings.output)
    if out is not None:
        settings = settings.model_copy(update={"output": out})
    with show_progress() as listener:
        scores = evaluate_checkpoints(settings, checkpoints, listener)
    print_report(scores, analyse(scores))
    typer.echo(f"\nTable, chart and captions are in {settings.output}", err=True)
