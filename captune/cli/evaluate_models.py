"""`captune evaluate MODEL... --data MANIFEST --out FOLDER`: models that belong to no run, a row each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from captune.errors import ConfigError

__all__ = ["ModelsRequest", "run_models"]


@dataclass(frozen=True)
class ModelsRequest:
    """What is evaluated.

    Attributes:
        models: folders or hub ids.
        settings: `section.key=value` for the evaluation.
        data: manifest, and its split or None.
        out: folder of the evaluation.
        instruction: what every model is asked; None asks each its own instruction.
    """

    models: list[str]
    settings: list[str]
    data: tuple[str, str | None] | None
    out: Path | None
    instruction: str | None


def run_models(request: ModelsRequest) -> None:
    """Evaluate models and print the table and where the files are.

    Raises:
        ConfigError: no data or no folder is given.
        CaptuneError: as `captune.evaluation.evaluate_models`.
    """
    from captune.cli.extras import needs
    from captune.cli.preflight import check_named_model, check_run, require_extra
    from captune.cli.progress import show_progress
    from captune.cli.report import print_report
    from captune.config import parse_config
    from captune.report import analyse

    if request.data is None or request.out is None:
        raise ConfigError(
            f"{request.models[0]} is a model without a run; give the images to evaluate it on as --data MANIFEST and a "
            "folder for captions, scores and table as --out FOLDER."
        )
    manifest, split = request.data
    data = {"train": manifest, "evaluate": manifest, **({} if split is None else {"evaluate_split": split})}
    content = {"output": str(request.out), "model": {"path": request.models[0]}, "data": data}
    config = parse_config(content, request.settings)
    require_extra("captune evaluate", "train")
    check_run(config, trains=False)
    for model in request.models:
        check_named_model(model)
    asks = any(setting.startswith("model.instruction=") for setting in request.settings)
    instruction = config.model.instruction if asks else request.instruction
    with needs("captune evaluate", "train"):
        from captune.evaluation import evaluate_models
    with show_progress() as listener:
        scores = evaluate_models(config, request.models, listener, instruction=instruction)
    print_report(scores, analyse(scores))
    typer.echo(f"\nTable, page and captions are in {request.out}", err=True)
