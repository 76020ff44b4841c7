"""`captune evaluate`: caption and score the pretrained model and every checkpoint on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.train import ALLOW_LEAKS
from captune.errors import ConfigError

__all__ = [
    "ModelsRequest",
    "RobustnessOptions",
    "evaluate",
    "register",
    "run_evaluation",
    "run_matrix",
    "run_models",
]

if TYPE_CHECKING:
    from captune.config import RunConfig


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("evaluate")(evaluate)


def evaluate(
    config: Annotated[
        Path, typer.Argument(help="YAML configuration of the run, or the run's folder; or, with --data, a model.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that win over the file: section.key=value ...; or more models, a row each."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint's folder; repeatable. All of the run by default.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Manifest to evaluate on, instead of the run's; several make a matrix beside the run's own."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split, instead of the run's; or --data FILE:SPLIT.")] = None,
    protocol: Annotated[str | None, typer.Option(help="karpathy, slides or a YAML file, instead of the run's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for captions, scores, table and chart.")] = None,
    corrupt: Annotated[
        list[str] | None,
        typer.Option(help="Damage the run's images: blur, noise, jpeg, brightness, occlusion or all; repeatable."),
    ] = None,
    strength: Annotated[
        list[int] | None, typer.Option(min=1, max=5, help="Strength of the damage, repeatable; 1 to 5 by default.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Ask this instead; repeatable.", show_default=False)] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Ask each line of a file, or of the lists en and zh that come along; repeatable."),
    ] = None,
    captioner: Annotated[
        list[str] | None,
        typer.Option(help="Another captioner on the same images: a transformers image-text-to-text model; repeatable."),
    ] = None,
    allow_leaks: Annotated[bool, typer.Option("--allow-leaks", help=ALLOW_LEAKS)] = False,
) -> None:
    """Caption and score the pretrained model and every checkpoint, with one load of the model.

    A model without a run is evaluated as `captune evaluate MODEL --data MANIFEST --out FOLDER`; several models are
    rows of one table.

    With several --data, or with --corrupt, --prompt or --prompts, the result is a matrix: checkpoints and prompts
    against data sets, their domains and damaged images, with what is lost from the run's own evaluation set.
    """
    settings = [*(overrides or [])]
    settings += [f"evaluate.protocol={protocol}"] if protocol is not None else []
    settings += ["evaluate.allow_leaks=true"] if allow_leaks else []
    sources = data or []
    if is_model(config, bool(sources)):
        from captune.cli.evaluate import ModelsRequest, run_models

        if len(sources) > 1 or corrupt or prompts or len(prompt or []) > 1 or checkpoint:
            raise ConfigError(
                f"{config} is a model without a run; it takes one --data, at most one --prompt, and neither --corrupt, "
                "--prompts nor --checkpoint."
            )
        models = [str(config), *(each for each in settings if "=" not in each), *(captioner or [])]
        settings = [each for each in settings if "=" in each]
        chosen_data = _path_and_split(sources[0], split) if sources else None
        run_models(ModelsRequest(models, settings, chosen_data, out, next(iter(prompt or []), None)))
        return
    if len(sources) > 1 or corrupt or prompt or prompts:
        asked = RobustnessOptions(
            sources, split, corrupt or [], strength or [1, 2, 3, 4, 5], prompt or [], prompts or []
        )
        run_matrix(config, settings, checkpoint, out, asked)
        return
    if sources:
        path, split = _path_and_split(sources[0], split)
        settings.append(f"data.evaluate={path}")
    settings += [f"data.evaluate_split={split}"] if split is not None else []
    run_evaluation(config, settings, checkpoint, out, captioner)


def is_model(config: Path, has_data: bool) -> bool:
    """Whether the first argument is a model, and neither a configuration nor the folder of a run."""
    if config.suffix.lower() in (".yaml", ".yml") or config.is_file() or (config / "config.yaml").is_file():
        return False
    return has_data or any((config / file).is_file() for file in ("config.json", "adapter_config.json"))


@dataclass(frozen=True)
class RobustnessOptions:
    """What a matrix is asked for: data sets, damage and prompts."""

    data: list[str]
    split: str | None
    corrupt: list[str]
    strengths: list[int]
    prompts: list[str]
    lists: list[str]


def run_matrix(
    config: Path, overrides: list[str], checkpoints: list[Path] | None, out: Path | None, asked: RobustnessOptions
) -> None:
    """Evaluate the matrix and print its table and where the files are.

    Raises:
        CaptuneError: as `captune.evaluation.evaluate_matrix`.
    """
    from captune.cli.extras import needs
    from captune.cli.preflight import check_run, require_extra
    from captune.cli.progress import show_progress
    from captune.report.matrix import matrix_terminal

    settings = run_settings(config, overrides)
    require_extra("captune evaluate", "train")
    check_run(settings if out is None else settings.model_copy(update={"output": out}), trains=False)
    with needs("captune evaluate", "train"):
        from captune.evaluation import evaluate_matrix, read_instructions
        from captune.evaluation.robustness_columns import parse_corruptions
    if checkpoints is None:
        checkpoints = run_checkpoints(settings)
    settings = _written_to(settings, config, overrides, checkpoints, out)
    instructions = [*asked.prompts, *(line for source in asked.lists for line in read_instructions(source))]
    with show_progress() as listener:
        matrix = evaluate_matrix(
            settings,
            checkpoints,
            asked.data,
            instructions=instructions,
            corruptions=parse_corruptions(asked.corrupt, asked.strengths),
            split=asked.split,
            listener=listener,
        )
    typer.echo(matrix_terminal(matrix))
    typer.echo(f"\nmatrix.md, .csv, .json and .png, and report.html with both, are in {settings.output}", err=True)


def _path_and_split(source: str, split: str | None) -> tuple[str, str | None]:
    """A manifest, and the split behind its last colon."""
    path, colon, own = source.rpartition(":")
    if colon and path and own and not Path(source).exists() and Path(path).is_file():
        return path, own
    return source, split


def run_settings(config: Path, overrides: list[str]) -> RunConfig:
    """The configuration of a YAML file, or of a run's folder, which may have been copied or renamed since.

    Raises:
        ConfigError: as `captune.config.load_config`.
    """
    from captune.config import load_config

    if not config.is_dir():
        return load_config(config, overrides)
    settings = load_config(config / "config.yaml", overrides)
    if any(override.startswith("output=") for override in overrides):
        return settings
    return settings.model_copy(update={"output": config})


def run_checkpoints(settings: RunConfig) -> list[Path]:
    """The checkpoints of a run's folder; that there is none is said."""
    from captune.training.checkpoints import checkpoint_folders

    found = checkpoint_folders(settings.output)
    if not found:
        typer.echo(
            f"There is no checkpoint in {settings.output}; the model is evaluated as it was before training.", err=True
        )
    return found


def _written_to(
    settings: RunConfig, config: Path, overrides: list[str], checkpoints: list[Path], out: Path | None
) -> RunConfig:
    """The settings with the folder that the evaluation is written to; that it is none of the run's own is said."""
    from captune.evaluation import evaluation_folder

    if out is None and any(override.startswith("output=") for override in overrides):
        return settings
    own = run_settings(config, [])
    folder = out or evaluation_folder(settings, own, checkpoints)
    if out is None and folder != own.output:
        typer.echo(
            f"The scores in {own.output} are of its own data, settings and checkpoints, and stay; this evaluation goes "
            f"to {folder}. Choose another folder with --out.",
            err=True,
        )
    return settings.model_copy(update={"output": folder})


def run_evaluation(
    config: Path,
    overrides: list[str],
    checkpoints: list[Path] | None,
    out: Path | None,
    captioners: list[str] | None = None,
) -> None:
    """Evaluate and print the table, the analysis and where the files are.

    Raises:
        CaptuneError: as `captune.evaluation.evaluate_checkpoints`.
    """
    from captune.cli.extras import needs
    from captune.cli.preflight import check_run, require_extra
    from captune.cli.progress import show_progress
    from captune.cli.report import print_report
    from captune.report import analyse

    settings = run_settings(config, overrides)
    require_extra("captune evaluate", "train")
    check_run(settings if out is None else settings.model_copy(update={"output": out}), trains=False)
    with needs("captune evaluate", "train"):
        from captune.evaluation import evaluate_checkpoints
    if checkpoints is None:
        checkpoints = run_checkpoints(settings)
    settings = _written_to(settings, config, overrides, checkpoints, out)
    with show_progress() as listener:
        scores = evaluate_checkpoints(settings, checkpoints, listener, captioners=captioners or [])
    print_report(scores, analyse(scores))
    typer.echo(f"\nTable, chart and captions are in {settings.output}", err=True)


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
