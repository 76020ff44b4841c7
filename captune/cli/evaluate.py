"""`captune evaluate`: caption and score the pretrained model and every checkpoint on the same images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.cli.output import settings as output_settings
from captune.cli.shared_options import AllowLeaks, AsJson, Base
from captune.errors import ConfigError
from captune.run_checkpoints import checkpoint_folders, is_run, run_of, select_checkpoint

__all__ = [
    "ModelsRequest",
    "RobustnessOptions",
    "evaluate",
    "run_evaluation",
    "run_matrix",
    "run_models",
]

if TYPE_CHECKING:
    from captune.config import RunConfig
    from captune.report import RunScores

MATRIX = "Robustness matrix"
"""Heading of its options in the help."""


def evaluate(
    config: Annotated[
        Path, typer.Argument(help="YAML configuration of the run, or the run's folder; or, with --data, a model.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings that override the file, as section.key=value; or more models, a row each."),
    ] = None,
    checkpoint: Annotated[
        list[Path] | None, typer.Option(help="A checkpoint's folder; repeatable. All of the run by default.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Manifest to evaluate on, instead of the run's; several make a robustness matrix with the run's."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Its split, instead of the run's; or --data FILE:SPLIT.")] = None,
    protocol: Annotated[str | None, typer.Option(help="karpathy, slides or a YAML file, instead of the run's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for captions, scores, table and chart.")] = None,
    corrupt: Annotated[
        list[str] | None,
        typer.Option(
            help="Corrupt the run's images: blur, noise, jpeg, brightness, occlusion or all; repeatable.",
            rich_help_panel=MATRIX,
        ),
    ] = None,
    strength: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=5, help="Strength of the corruption, repeatable; 1 to 5 by default.", rich_help_panel=MATRIX
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Further instruction; repeatable.", show_default=False, rich_help_panel=MATRIX),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            help="File with an instruction a line, or the included lists en and zh; repeatable.", rich_help_panel=MATRIX
        ),
    ] = None,
    captioner: Annotated[
        list[str] | None,
        typer.Option(help="Another captioner on the same images: a transformers image-text-to-text model; repeatable."),
    ] = None,
    base: Base = None,
    allow_leaks: AllowLeaks = False,
    as_json: AsJson = False,
) -> None:
    """Caption and score the pretrained model and every checkpoint, with one load of the model.

    A model without a run is evaluated as `captune evaluate MODEL --data MANIFEST --out FOLDER`; several models are
    rows of one table.

    With several --data, or with --corrupt, --prompt or --prompts, the result is a robustness matrix: checkpoints and
    prompts on data sets, their domains and corrupted images, with the drop from the run's evaluation set.

    Examples:
        captune evaluate runs/photos
        captune evaluate runs/photos --data nocaps.jsonl --out runs/photos-nocaps
        captune evaluate llava-hf/llava-1.5-7b-hf --data test.jsonl --out runs/llava
    """
    named = run_of(config)
    other_models = any("=" not in each for each in overrides or [])
    if named is not None and data and other_models:
        config = select_checkpoint(*named).folder  # one row among those of other models
    elif named is not None and named[1] is not None:
        config, checkpoint = named[0], [*(checkpoint or []), select_checkpoint(*named).folder]
    output_settings.resumes = True  # captions of finished checkpoints are cached
    settings = [*(overrides or [])]
    settings += [f"evaluate.protocol={protocol}"] if protocol is not None else []
    settings += ["evaluate.allow_leaks=true"] if allow_leaks else []
    sources = data or []
    if is_model(config, bool(sources)):
        if len(sources) > 1 or corrupt or prompts or len(prompt or []) > 1 or checkpoint:
            raise ConfigError(
                f"{config} is a model without a run; it takes one --data, at most one --prompt, and neither --corrupt, "
                "--prompts nor --checkpoint."
            )
        models = [str(config), *(each for each in settings if "=" not in each), *(captioner or [])]
        settings = [each for each in settings if "=" in each]
        source = _manifest_and_split(sources[0], split) if sources else None
        if base is not None:
            raise ConfigError(f"{config} is a model without a run; --base is the base model of a run.")
        run_models(ModelsRequest(models, settings, source, out, next(iter(prompt or []), None)), as_json=as_json)
        return
    if len(sources) > 1 or corrupt or prompt or prompts:
        strengths = strength or [1, 2, 3, 4, 5]
        options = RobustnessOptions(sources, split, corrupt or [], strengths, prompt or [], prompts or [])
        run_matrix(config, settings, checkpoint, out, options, base=base, as_json=as_json)
        return
    if sources:
        path, split = _manifest_and_split(sources[0], split)
        settings += [f"data.evaluate={path}", "data.name=null"]  # the name is that of the run's own data
    settings += [f"data.evaluate_split={split}"] if split is not None else []
    run_evaluation(config, settings, checkpoint, out, captioner, base=base, as_json=as_json)


def is_model(config: Path, has_data: bool) -> bool:
    """Whether the first argument is a model, and neither a configuration nor the folder of a run."""
    if config.suffix.lower() in (".yaml", ".yml") or config.is_file():
        return False
    if (config / "config.yaml").is_file() and is_run(config):
        return False
    return has_data or any((config / file).is_file() for file in ("config.json", "adapter_config.json"))


@dataclass(frozen=True)
class RobustnessOptions:
    """Data sets, corruptions and prompts of a robustness matrix."""

    data: list[str]
    split: str | None
    corrupt: list[str]
    strengths: list[int]
    prompts: list[str]
    lists: list[str]


def run_matrix(
    config: Path,
    overrides: list[str],
    checkpoints: list[Path] | None,
    out: Path | None,
    options: RobustnessOptions,
    *,
    base: str | None = None,
    as_json: bool = False,
) -> None:
    """Evaluate the matrix and print its table and where the files are, or the matrix as one JSON object.

    Raises:
        CaptuneError: as `captune.evaluation.evaluate_matrix`.
    """
    from captune.cli.progress import show_progress
    from captune.report import matrix_terminal, matrix_to_json

    settings, checkpoints = _checked_settings(config, overrides, checkpoints, out, base)
    from captune.evaluation import evaluate_matrix, parse_corruptions, read_instructions

    instructions = [*options.prompts, *(line for source in options.lists for line in read_instructions(source))]
    with show_progress() as listener:
        matrix = evaluate_matrix(
            settings,
            checkpoints,
            options.data,
            instructions=instructions,
            corruptions=parse_corruptions(options.corrupt, options.strengths),
            split=options.split,
            listener=listener,
            base=base,
        )
    if as_json:
        print_summary({"output": settings.output, **json.loads(matrix_to_json(matrix))})
        return
    typer.echo(matrix_terminal(matrix))
    print_message(f"\nmatrix.md, .csv, .json and .png, and report.html with both, are in {settings.output}")


def _checked_settings(
    config: Path, overrides: list[str], checkpoints: list[Path] | None, out: Path | None, base: str | None
) -> tuple[RunConfig, list[Path]]:
    """The settings with the evaluation's output folder, and the checkpoints, after all checks without the model."""
    from captune.cli.progress import working
    from captune.preflight import check_run, extra_imports, require_extra

    settings = run_settings(config, overrides)
    require_extra("captune evaluate", "train")
    checked = settings if base is None else settings.with_model(base)
    check_run(checked if out is None else checked.model_copy(update={"output": out}), trains=False)
    with working("Loading torch and transformers"), extra_imports("captune evaluate", "train"):
        from captune.evaluation import evaluate_checkpoints  # noqa: F401  # imports torch and transformers
    if checkpoints is None:
        checkpoints = run_checkpoints(settings)
    return _written_to(settings, config, overrides, checkpoints, out), checkpoints


def _manifest_and_split(source: str, split: str | None) -> tuple[str, str | None]:
    """A manifest, and the split after its last colon."""
    path, colon, named_split = source.rpartition(":")
    if colon and path and named_split and not Path(source).exists() and Path(path).is_file():
        return path, named_split
    return source, split


def run_settings(config: Path, overrides: list[str]) -> RunConfig:
    """The configuration of a YAML file, or of a run's folder, which may have been copied or renamed since.

    Raises:
        ConfigError: as `captune.config.load_config`.
    """
    from captune.config import load_config, load_stored_config

    if not config.exists():
        raise ConfigError(
            f"There is no configuration or run {config}; give a YAML file or the folder of a run (for a model without "
            "a run add --data)."
        )
    return load_stored_config(config, overrides) if config.is_dir() else load_config(config, overrides)


def run_checkpoints(settings: RunConfig) -> list[Path]:
    """The checkpoints of a run's folder; a message is printed where there are none."""
    checkpoints = checkpoint_folders(settings.output)
    if not checkpoints:
        print_message(f"There is no checkpoint in {settings.output}; the model is evaluated as it was before training.")
    return checkpoints


def _written_to(
    settings: RunConfig, config: Path, overrides: list[str], checkpoints: list[Path], out: Path | None
) -> RunConfig:
    """The settings with the evaluation's output folder; a message names it where it is not the run's."""
    from captune.evaluation import evaluation_folder

    if out is None and any(override.startswith("output=") for override in overrides):
        return settings
    original = run_settings(config, [])
    folder = out or evaluation_folder(settings, original, checkpoints)
    if out is None and folder != original.output:
        print_message(
            f"The scores in {original.output} are of the run's data, settings and checkpoints, and are kept; the new "
            f"ones are written to {folder}. Choose another folder with --out."
        )
    return settings.model_copy(update={"output": folder})


def run_evaluation(
    config: Path,
    overrides: list[str],
    checkpoints: list[Path] | None,
    out: Path | None,
    captioners: list[str] | None = None,
    *,
    base: str | None = None,
    as_json: bool = False,
) -> None:
    """Evaluate and print the table, the analysis and where the files are, or the same as one JSON object.

    Raises:
        CaptuneError: as `captune.evaluation.evaluate_checkpoints`.
    """
    from captune.cli.progress import show_progress

    settings, checkpoints = _checked_settings(config, overrides, checkpoints, out, base)
    from captune.evaluation import evaluate_checkpoints

    with show_progress() as listener:
        scores = evaluate_checkpoints(settings, checkpoints, listener, captioners=captioners or [], base=base)
    _print_scores(scores, settings.output, as_json=as_json)


def _print_scores(scores: RunScores, folder: Path, *, as_json: bool) -> None:
    """Print the scores of an evaluation, and the command that shows its captions."""
    from captune.cli.report_output import print_report, run_as_json
    from captune.report import analyse

    if as_json:
        print_summary({"output": folder, **run_as_json(scores, analyse(scores))})
        return
    print_report(scores, analyse(scores))
    print_message(f"\nTable, chart, page and captions are in {folder}")
    show_next(["report", folder, "--terminal"], "see the captions that changed most")


@dataclass(frozen=True)
class ModelsRequest:
    """What is evaluated.

    Attributes:
        models: folders or hub ids.
        settings: `section.key=value` for the evaluation.
        data: manifest, and its split or None.
        out: folder of the evaluation.
        instruction: of all models; by default each has its default instruction.
    """

    models: list[str]
    settings: list[str]
    data: tuple[str, str | None] | None
    out: Path | None
    instruction: str | None


def run_models(request: ModelsRequest, *, as_json: bool = False) -> None:
    """Evaluate models and print the table and where the files are, or the same as one JSON object.

    Raises:
        ConfigError: the data or the folder is missing.
        CaptuneError: as `captune.evaluation.evaluate_models`.
    """
    from captune.cli.progress import show_progress, working
    from captune.config import parse_config
    from captune.data import data_name
    from captune.preflight import check_named_model, check_run, extra_imports, require_extra

    if request.data is None or request.out is None:
        raise ConfigError(
            f"{request.models[0]} is a model without a run; give the images to evaluate it on as --data MANIFEST and a "
            "folder for captions, scores and table as --out FOLDER."
        )
    manifest, split = request.data
    data = {"train": manifest, "evaluate": manifest, "name": data_name(manifest)}
    data |= {} if split is None else {"evaluate_split": split}
    content = {"output": str(request.out), "model": {"path": request.models[0]}, "data": data}
    config = parse_config(content, request.settings)
    require_extra("captune evaluate", "train")
    check_run(config, trains=False)
    for model in request.models:
        check_named_model(model)
    is_set = any(setting.startswith("model.instruction=") for setting in request.settings)
    instruction = config.model.instruction if is_set else request.instruction
    with working("Loading torch and transformers"), extra_imports("captune evaluate", "train"):
        from captune.evaluation import evaluate_models
    with show_progress() as listener:
        scores = evaluate_models(config, request.models, listener, instruction=instruction)
    _print_scores(scores, request.out, as_json=as_json)
