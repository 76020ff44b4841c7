"""`captune evaluate`: caption and score the pretrained model and every checkpoint on the same images."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from captune.cli import scoring, scoring_options
from captune.cli.next_command import show_next
from captune.cli.output import print_message, print_summary
from captune.cli.output import settings as output_settings
from captune.cli.shared_options import AllowLeaks, AsJson, Base
from captune.errors import ConfigError
from captune.metrics import BUILT_IN, ScoringOptions
from captune.run_checkpoints import checkpoint_folders, read_record, run_of, select_checkpoint

__all__ = [
    "ModelsRequest",
    "OtherRows",
    "RobustnessOptions",
    "evaluate",
    "run_evaluation",
    "run_matrix",
    "run_models",
]

if TYPE_CHECKING:
    from captune.config import RunConfig
    from captune.evaluation import EndpointOptions
    from captune.report import RunScores

MATRIX = "Robustness matrix"
ROWS = "Endpoints and files of captions"
"""Headings of options in the help."""


def evaluate(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG|MODEL",
            help="YAML configuration of the run, or the run's folder; or, with --data, a model, the address of an "
            "endpoint, or a file of captions; a label for its row as LABEL=MODEL.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|KEY=VALUE",
            help="More models, a row each; settings that override the file, as section.key=value.",
        ),
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
    metrics: Annotated[
        str | None,
        typer.Option(
            help=f"Comma-separated names from {', '.join(BUILT_IN)}, and those of installed packages.",
            show_default="those of the protocol: bleu,cider,rouge-l",
            autocompletion=scoring_options.complete_metrics,
        ),
    ] = None,
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
        typer.Option(help="Another row on the same images of a run: a model, an endpoint, a file; repeatable."),
    ] = None,
    base: Base = None,
    match: Annotated[
        Literal["exact", "stem"],
        typer.Option(
            help="'stem' also joins ids of a file that differ by folder or image ending: IMG_1 and photos/IMG_1.JPG.",
            rich_help_panel=ROWS,
        ),
    ] = "exact",
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Requests to an endpoint at once.", rich_help_panel=ROWS)
    ] = 8,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds that a request to an endpoint may take.", rich_help_panel=ROWS)
    ] = 120.0,
    allow_leaks: AllowLeaks = False,
    as_json: AsJson = False,
) -> None:
    """Caption and score the pretrained model and every checkpoint, with one load of the model.

    What was tuned elsewhere needs no run: `captune evaluate MODEL... --data MANIFEST --out FOLDER` makes one table with
    a row for each model (folder or hub id, also of a peft adapter or a trainer's checkpoint), OpenAI-compatible
    endpoint (http://HOST/v1#MODEL) and file of captions. The key of an endpoint is read from CAPTUNE_API_KEY.

    With several --data, or with --corrupt, --prompt or --prompts, the result is a robustness matrix: checkpoints and
    prompts on data sets, their domains and corrupted images, with the drop from the run's evaluation set.

    Examples:
        captune evaluate runs/photos
        captune evaluate runs/photos --data nocaps.jsonl --out runs/photos-nocaps
        captune evaluate llava-hf/llava-1.5-7b-hf --data test.jsonl --out runs/llava
        captune evaluate "my lora=out/checkpoint-500" other/model --data test.jsonl --out runs/both
    """
    from captune.evaluation import EndpointOptions, split_settings

    output_settings.resumes = True  # captions of finished checkpoints are cached
    rows, settings = split_settings([config, *(overrides or [])])
    if not rows or rows[0] != config:
        raise ConfigError(f"'{config}' is a setting; give a configuration, a run or a model before it.")
    settings += [f"evaluate.protocol={protocol}"] if protocol is not None else []
    settings += ["evaluate.allow_leaks=true"] if allow_leaks else []
    if metrics is not None:
        run = scoring.ScoringRun(scoring_options.metric_names(metrics, reported=()), ScoringOptions())
        run.check_requirements()
        settings.append(f"evaluate.metrics={json.dumps(run.names)}")
    sources = data or []
    requests = EndpointOptions(concurrency, timeout)
    if is_model(config, rows[1:], bool(sources)):
        if len(sources) > 1 or corrupt or prompts or len(prompt or []) > 1 or checkpoint:
            raise ConfigError(
                f"{config} is a model without a run; it takes one --data, at most one --prompt, and neither --corrupt, "
                "--prompts nor --checkpoint."
            )
        source = _manifest_and_split(sources[0], split) if sources else None
        instruction = next(iter(prompt or []), None)
        request = ModelsRequest([*rows, *(captioner or [])], settings, source, out, instruction, base, requests, match)
        run_models(request, as_json=as_json)
        return
    # A model without --data is refused as a setting.
    settings = [*rows[1:], *settings]
    named, run_config = run_of(config), Path(config)
    if named is not None and named[1] is not None:
        run_config, checkpoint = named[0], [*(checkpoint or []), select_checkpoint(*named).folder]
    if len(sources) > 1 or corrupt or prompt or prompts:
        strengths = strength or [1, 2, 3, 4, 5]
        options = RobustnessOptions(sources, split, corrupt or [], strengths, prompt or [], prompts or [])
        run_matrix(run_config, settings, checkpoint, out, options, base=base, as_json=as_json)
        return
    if sources:
        path, split = _manifest_and_split(sources[0], split)
        settings += [f"data.evaluate={path}", "data.name=null"]  # the name is that of the run's own data
    settings += [f"data.evaluate_split={split}"] if split is not None else []
    others = OtherRows(captioner or [], requests, match)
    run_evaluation(run_config, settings, checkpoint, out, others, base=base, as_json=as_json)


def is_model(config: str, others: list[str], has_data: bool) -> bool:
    """Whether the first argument is a row of a table, and neither a configuration nor the folder of a run.

    Args:
        config: the first argument.
        others: the other arguments that are no settings.
        has_data: whether there is --data, with which the best checkpoint of a run may be a row among others.
    """
    path = Path(config)
    if path.suffix.lower() in (".yaml", ".yml") or (path.is_file() and not has_data):
        return False
    if run_of(config) is not None:
        return has_data and bool(others)
    if "://" in config or ("=" in config and not path.exists()):
        return True  # an endpoint, or a row with a label
    return has_data or any((path / file).is_file() for file in ("config.json", "adapter_config.json"))


@dataclass(frozen=True)
class OtherRows:
    """Rows next to those of a run.

    Attributes:
        captioners: models, endpoints and files.
        requests: how endpoints are called.
        match: how ids of files are matched.
    """

    captioners: list[str] = field(default_factory=list)
    requests: EndpointOptions | None = None
    match: str = "exact"


def _check_others(others: OtherRows) -> None:
    """Refuse other rows that cannot be read, before torch is imported."""
    from captune.evaluation import parse_sources
    from captune.preflight import check_named_model

    for source in parse_sources(others.captioners):
        if source.kind == "model":
            check_named_model(source.path)


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
    from captune.evaluation import parse_corruptions, read_instructions
    from captune.report import matrix_terminal, matrix_to_json

    instructions = [*options.prompts, *(line for source in options.lists for line in read_instructions(source))]
    corruptions = parse_corruptions(options.corrupt, options.strengths)
    settings, checkpoints = _checked_settings(config, overrides, checkpoints, out, base)
    from captune.evaluation import evaluate_matrix

    with show_progress() as listener:
        matrix = evaluate_matrix(
            settings,
            checkpoints,
            options.data,
            instructions=instructions,
            corruptions=corruptions,
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
    from captune.evaluation import load_protocol
    from captune.preflight import check_run, extra_imports, require_extra

    _refuse_two_outputs(overrides, out)
    settings = run_settings(config, overrides)
    require_extra("captune evaluate", "train")
    load_protocol(settings.evaluate.protocol)
    for checkpoint in checkpoints or []:
        read_record(checkpoint)
    checked = settings if base is None else settings.with_model(base)
    check_run(checked if out is None else checked.model_copy(update={"output": out}), trains=False)
    with working("Loading torch and transformers"), extra_imports("captune evaluate", "train"):
        from captune.evaluation import evaluate_checkpoints  # noqa: F401  # imports torch and transformers
    if checkpoints is None:
        checkpoints = run_checkpoints(settings, config)
    return _written_to(settings, config, overrides, checkpoints, out), checkpoints


def _refuse_two_outputs(settings: list[str], out: Path | None) -> None:
    """Refuse the setting `output` next to --out."""
    setting = next((text for text in settings if text.partition("=")[0] == "output"), None)
    if setting is not None and out is not None:
        raise ConfigError(
            f"'{setting}' and --out {out} both name the output folder; leave one of them out. A row needs another "
            "label than 'output'."
        )


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


def run_checkpoints(settings: RunConfig, config: Path) -> list[Path]:
    """The checkpoints of a run's folder; a message is printed where there are none.

    Args:
        settings: of the run.
        config: the file or folder that they were read from.
    """
    checkpoints = checkpoint_folders(settings.output)
    if not checkpoints:
        print_message(f"There is no checkpoint in {settings.output}; the model is evaluated as it was before training.")
        other = Path(os.path.normpath(config.parent / settings.output))
        if config.is_file() and other != settings.output and checkpoint_folders(other):
            command = shlex.join(["captune", "evaluate", str(other)])
            print_message(f"The run in {other} has checkpoints; to evaluate them: {command}")
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
    others: OtherRows | None = None,
    *,
    base: str | None = None,
    as_json: bool = False,
) -> None:
    """Evaluate and print the table, the analysis and where the files are, or the same as one JSON object.

    Raises:
        CaptuneError: as `captune.evaluation.evaluate_checkpoints`.
    """
    from captune.cli.progress import show_progress

    others = others or OtherRows()
    _check_others(others)
    settings, checkpoints = _checked_settings(config, overrides, checkpoints, out, base)
    from captune.evaluation import evaluate_checkpoints

    with show_progress() as listener:
        scores = evaluate_checkpoints(
            settings,
            checkpoints,
            listener,
            captioners=others.captioners,
            base=base,
            endpoint_options=others.requests,
            match=others.match,
        )
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
        models: the rows, as `captune.evaluation.parse_sources` reads them.
        settings: `section.key=value` for the evaluation.
        data: manifest, and its split or None.
        out: folder of the evaluation.
        instruction: of all models; by default each has its default instruction.
        base: base model of adapters and checkpoints; by default the recorded one.
        requests: how endpoints are called.
        match: how ids of files are matched.
    """

    models: list[str]
    settings: list[str]
    data: tuple[str, str | None] | None
    out: Path | None
    instruction: str | None = None
    base: str | None = None
    requests: EndpointOptions | None = None
    match: str = "exact"


def run_models(request: ModelsRequest, *, as_json: bool = False) -> None:
    """Evaluate models and print the table and where the files are, or the same as one JSON object.

    Raises:
        ConfigError: the data or the folder is missing.
        CaptuneError: as `captune.evaluation.evaluate_models`.
    """
    from captune.cli.progress import show_progress
    from captune.config import parse_config
    from captune.data import data_name
    from captune.evaluation import check_sources, evaluate_models, parse_sources

    if request.data is None or request.out is None:
        raise ConfigError(
            f"{request.models[0]} is a model without a run; give the images to evaluate it on as --data MANIFEST and a "
            "folder for captions, scores and table as --out FOLDER."
        )
    _refuse_two_outputs(request.settings, request.out)
    manifest, split = request.data
    data = {"train": manifest, "evaluate": manifest, "name": data_name(manifest)}
    data |= {} if split is None else {"evaluate_split": split}
    config = parse_config({"output": str(request.out), "data": data}, request.settings)
    check_sources(config, parse_sources(request.models), request.base)
    is_set = any(setting.startswith("model.instruction=") for setting in request.settings)
    instruction = config.model.instruction if is_set else request.instruction
    with show_progress() as listener:
        scores = evaluate_models(
            config,
            request.models,
            listener,
            instruction=instruction,
            base=request.base,
            endpoint_options=request.requests,
            match=request.match,
        )
    _print_scores(scores, config.output, as_json=as_json)
