"""`tune` and `evaluate`: training and evaluation from Python, with their checks, progress and results."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from captune.api.progress import show_progress
from captune.common import quiet_libraries
from captune.config import (
    LEARNING_RATES,
    RunConfig,
    changed_settings,
    load_config,
    load_run_config,
    load_stored_config,
    model_schedule,
    parse_config,
)
from captune.data import Sample, data_name, scan_manifest
from captune.errors import CaptuneError, ConfigError, StoppedError
from captune.evaluation import check_sources, evaluate_models, parse_sources
from captune.events import Listener
from captune.preflight import check_named_model, check_run, extra_imports, require_extra
from captune.results import EvaluationResult, TuningResult
from captune.run_checkpoints import checkpoint_folders, is_run, run_of, select_checkpoint
from captune.run_folders import CONFIG, decisive_changes
from captune.training import train

__all__ = ["evaluate", "tune"]

RunLike = str | os.PathLike[str] | RunConfig | Mapping[str, Any] | EvaluationResult


_ARGUMENTS = {
    "--overwrite": "overwrite=True",
    "--resume never": "resume=False",
    "--allow-leaks": "evaluate={'allow_leaks': True}",
    "with --base, or base= in Python": "with base=",
    "--out": "output=",
    "the same command": "the same call",
}
"""Options of the command line in messages, and the arguments here."""


@contextmanager
def _arguments_named() -> Iterator[None]:
    """Name arguments instead of options of the command line in the errors of a block."""
    try:
        yield
    except CaptuneError as error:
        message = str(error)
        for option, argument in _ARGUMENTS.items():
            message = message.replace(option, argument)
        if message != str(error):
            error.args = (message,)
        raise


@_arguments_named()
def tune(
    config: RunLike | None = None,
    /,
    *,
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    model: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool | Listener | None = None,
    **settings: Any,
) -> TuningResult:
    """Tune a model; every epoch is saved and scored on images that were held out.

        captune.tune("photos.yaml")
        captune.tune("photos.yaml", train={"epochs": 3}, output="runs/longer")
        captune.tune(data="photos/manifest.jsonl", model="toy-vlm", output="runs/photos", **{"train.epochs": 3})

    A finished run of the same configuration and data is not repeated, an interrupted one resumes: run the cell again.
    More epochs continue a run in its folder. A notebook shows the progress in place, any other program prints lines to
    stderr. Without a configuration, batch size and warm-up fit a small data set as `captune init` writes them, unless
    one of them is set; so do the learning rates of toy and toy-vlm.

    Args:
        config: a YAML file, a `RunConfig`, or a dictionary of sections; by default the default configuration.
        data: manifest with the splits train and test, as `captune prepare` writes it; or the section `data`.
        model: folder or hub id of the model; or the section `model`.
        output: folder of the run.
        resume: continue an unfinished run instead of starting over.
        overwrite: move another run in the output folder into a subfolder.
        progress: whether to show the progress, or a function to call with every event (`captune.events`).
        **settings: sections as dictionaries, such as `train={"epochs": 3}`, single keys, such as `seed=1`, or
            `**{"train.epochs": 3}`; docs/configuration.md lists all.

    Returns:
        The scores of every epoch and the checkpoints; a notebook displays table and chart.

    Raises:
        InputError: the configuration, the data or the model is invalid.
        MissingExtraError: torch or another library is not installed.
        TrainingError: too many steps had an infinite or undefined loss.
        StoppedError: the run was interrupted, in a notebook or by Ctrl-C; the same call resumes.
    """
    if config is None and data is None:
        raise ConfigError("captune.tune needs a configuration (a YAML file), or data=MANIFEST.")
    overrides = _overrides(data=data, model=model, output=output, settings=settings)
    run = _run_config(config, overrides)
    require_extra("captune.tune", "train", *(["track"] if run.tracker == "wandb" else []))
    check_run(run, trains=True)
    if config is None:
        run = _with_schedule(run, {line.partition("=")[0].removeprefix("train.") for line in overrides})
    try:
        with show_progress(progress) as listener:
            return train(run, listener, resume=resume, overwrite=overwrite)
    except KeyboardInterrupt as error:  # outside of the steps, which handle the signal themselves
        message = "The run was stopped by Ctrl-C; what was finished is kept, and the same call resumes."
        raise StoppedError(message, signal.SIGINT) from error


_SCHEDULES = (("batch_size", "warmup_steps"), LEARNING_RATES)
"""Keys of `train` that `tune` derives, unless one of the same group is set."""


def _with_schedule(run: RunConfig, names: Set[str]) -> RunConfig:
    """Add the schedule that `captune init` writes; the default warm-up is longer than a run on few images.

    Warm-up depends on the number of epochs, so a run that continues in its folder keeps the one it started with.

    Args:
        run: the configuration without it.
        names: keys that are set, and kept.
    """
    derived = [key for keys in _SCHEDULES if names.isdisjoint(keys) for key in keys]
    splits = set(run.data.train_splits)
    rows = (row for _, row in scan_manifest(run.data.train) if isinstance(row, Sample) and row.split in splits)
    captions = sum(len(row.captions) for row in islice(rows, run.data.train_images))
    model = "" if run.model.llm is not None or Path(run.model.path).is_dir() else run.model.path

    def scheduled(epochs: int) -> RunConfig:
        keys = model_schedule(model, {"epochs": epochs}, captions)
        update = {key: keys[key] for key in derived if key in keys}
        return run.model_copy(update={"train": run.train.model_copy(update=update)})

    new = scheduled(run.train.epochs)
    stored = _stored_config(run.output)
    if stored is None:
        return new
    changes = decisive_changes(changed_settings(stored, new))
    if not changes or not {name.removeprefix("train.") for name in changes} <= set(derived):
        return new
    kept = {key: getattr(stored.train, key) for key in derived}
    candidates = (scheduled(epochs).train for epochs in range(1, stored.train.epochs + 1))
    # The rates of a run by an earlier captune are the defaults. Other values were set by the user.
    if any(all(kept[key] in (getattr(train, key), getattr(run.train, key)) for key in derived) for train in candidates):
        return new.model_copy(update={"train": new.train.model_copy(update=kept)})
    return new


def _stored_config(output: Path) -> RunConfig | None:
    """The configuration of the run in a folder; None where there is none that can be read."""
    try:
        return load_run_config(output / CONFIG).model_copy(update={"output": output})
    except ConfigError:
        return None


@_arguments_named()
def evaluate(
    models: RunLike | Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    protocol: str | None = None,
    metrics: str | Sequence[str] | None = None,
    checkpoints: Sequence[str | os.PathLike[str]] | None = None,
    captioners: Sequence[str | os.PathLike[str]] = (),
    instruction: str | None = None,
    base: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    progress: bool | Listener | None = None,
    **settings: Any,
) -> EvaluationResult:
    """Caption and score images with models, or with the checkpoints of a run.

        captune.evaluate(["toy", "Qwen/Qwen2.5-VL-3B-Instruct"], "photos/manifest.jsonl")
        captune.evaluate(["my lora=out/checkpoint-500", "http://localhost:8000/v1", "blip.json"], "manifest.jsonl")
        captune.evaluate("runs/photos")                                   every epoch of a run
        captune.evaluate("runs/photos", "others/manifest.jsonl", split="val")

    Args:
        models: a model (folder or hub id) or a list of them; or a run: its folder, its YAML file, or what `tune`
            returned. Models may also be addresses of OpenAI-compatible endpoints (`http://HOST/v1#MODEL`) and files of
            captions; `label=MODEL` names a row.
        data: manifest of the images, needed for models; by default that of the run.
        split: its split; "test" by default.
        protocol: karpathy, slides or a YAML file.
        metrics: names of metrics, "cider,meteor" or a list; by default those of the protocol.
        checkpoints: folders of the run's checkpoints; all by default.
        captioners: other models, endpoints and files of captions, as further rows of a run.
        instruction: prompt of models without a run; by default each has its own.
        base: folder or hub id of the base model of adapters and checkpoints, if it has moved.
        output: folder for captions, scores, table, chart and page. By default a temporary folder for models, and for a
            run its folder, or one below it if this is not the run's own evaluation.
        progress: as in `tune`.
        **settings: as in `tune`, such as `evaluate={"beams": 3}`.

    Returns:
        The scores of every row; a notebook displays table and chart.

    Raises:
        InputError: the data, a model or a checkpoint cannot be used.
        MissingExtraError: torch or another library is not installed.
    """
    changed: dict[str, Any] = {} if protocol is None else {"evaluate.protocol": protocol}
    changed |= {} if split is None else {"data.evaluate_split": split}
    if metrics is not None:
        named_metrics = metrics.split(",") if isinstance(metrics, str) else metrics
        changed |= {"evaluate.metrics": [name.strip().lower() for name in named_metrics]}
    overrides = _overrides(settings=changed) + _overrides(settings=settings)
    named = run_of(os.fspath(models)) if isinstance(models, (str, os.PathLike)) else None
    if named is not None and named[1] is not None:
        models, checkpoints = named[0], [*(checkpoints or []), select_checkpoint(*named).folder]
    if _is_run(models):
        if instruction is not None:
            raise ConfigError("instruction is for models without a run; a run has model.instruction.")
        overrides += _overrides(settings={} if data is None else {"data.evaluate": data, "data.name": None})
        return _evaluate_run(models, overrides, checkpoints, captioners, base, output, progress)
    if checkpoints is not None:
        raise ConfigError("checkpoints are those of a run; name models without a run in the list of models.")
    listed: Any = [models] if isinstance(models, (str, os.PathLike)) else models
    names = [os.fspath(name) for name in (*listed, *captioners)]
    return _evaluate_models(names, data, instruction, base, overrides, output, progress)


def _evaluate_run(
    models: Any,
    overrides: list[str],
    checkpoints: Sequence[str | os.PathLike[str]] | None,
    captioners: Sequence[str | os.PathLike[str]],
    base: str | os.PathLike[str] | None,
    output: str | os.PathLike[str] | None,
    progress: bool | Listener | None,
) -> EvaluationResult:
    run = _run_config(models, overrides)
    require_extra("captune.evaluate", "train")
    moved = None if base is None else os.fspath(base)
    checked = run if moved is None else run.with_model(moved)
    check_run(checked if output is None else checked.model_copy(update={"output": Path(output)}), trains=False)
    others = [os.fspath(path) for path in captioners]
    for source in parse_sources(others):
        if source.kind == "model":
            check_named_model(source.path)
    with extra_imports("captune.evaluate", "train"), quiet_libraries():
        from captune.evaluation import evaluate_checkpoints, evaluation_folder

        folders = checkpoint_folders(run.output) if checkpoints is None else [Path(path) for path in checkpoints]
        folder = evaluation_folder(run, _run_config(models, []), folders) if output is None else Path(output)
        run = run.model_copy(update={"output": folder})
        with show_progress(progress) as listener:
            evaluate_checkpoints(run, folders, listener, captioners=others, base=moved)
    return EvaluationResult(folder)


def _evaluate_models(
    names: Sequence[str],
    data: str | os.PathLike[str] | None,
    instruction: str | None,
    base: str | os.PathLike[str] | None,
    overrides: list[str],
    output: str | os.PathLike[str] | None,
    progress: bool | Listener | None,
) -> EvaluationResult:
    if not names:
        raise ConfigError("captune.evaluate needs a model at least; give a folder or a hub id.")
    if data is None:
        raise ConfigError(f"{names[0]} is a model without a run; give the images to evaluate it on as data=MANIFEST.")
    folder = Path(tempfile.gettempdir()) / "captune-evaluation" if output is None else Path(output)
    images = {"train": str(data), "evaluate": str(data), "name": data_name(data)}
    run = parse_config({"output": str(folder), "data": images}, overrides)
    moved = None if base is None else os.fspath(base)
    sources = parse_sources(names)
    check_sources(run, sources, moved, command="captune.evaluate")
    if output is None:
        folder = Path(tempfile.mkdtemp(prefix="captune-evaluation-"))
        run = run.model_copy(update={"output": folder})
    has_models = any(source.kind == "model" for source in sources)
    quiet = quiet_libraries() if has_models else nullcontext()
    with extra_imports("captune.evaluate", "train"), quiet, show_progress(progress) as listener:
        evaluate_models(run, names, listener, instruction=instruction, base=moved)
    return EvaluationResult(folder)


def _is_run(models: object) -> bool:
    """Whether this is a configuration or the folder of a run, and no model."""
    if isinstance(models, (RunConfig, Mapping, EvaluationResult)):
        return True
    if not isinstance(models, (str, os.PathLike)):
        return False
    path = Path(models)
    return path.suffix.lower() in (".yaml", ".yml") or ((path / "config.yaml").is_file() and is_run(path))


def _run_config(config: RunLike | None, overrides: list[str]) -> RunConfig:
    """The configuration of a run in any form; one that is read from a run's folder has this folder as its output."""
    if config is None:
        return parse_config({}, overrides)
    if isinstance(config, RunConfig):
        return parse_config(config.model_dump(mode="json"), overrides) if overrides else config
    if isinstance(config, Mapping):
        return parse_config(json.loads(json.dumps(config, default=os.fspath)), overrides)
    path = config.folder if isinstance(config, EvaluationResult) else Path(config)
    return load_stored_config(path, overrides) if path.is_dir() else load_config(path, overrides)


def _overrides(*, settings: Mapping[str, Any], data: Any = None, model: Any = None, output: Any = None) -> list[str]:
    """Settings as the `section.key=value` strings of a configuration, whose values are YAML (JSON is)."""
    named: dict[str, Any] = {"data": data, "model": model, "output": output}
    tree = {name: value for name, value in named.items() if value is not None}
    for section, key in (("data", "train"), ("model", "path")):
        if isinstance(tree.get(section), (str, os.PathLike)):
            tree[f"{section}.{key}"] = tree.pop(section)
    overrides = []
    for name, value in {**tree, **settings}.items():
        parent = None if name in RunConfig.model_fields else _section_of(name)
        if parent is not None:
            raise ConfigError(f"There is no setting '{name}'; did you mean {parent}={{'{name}': {value!r}}}?")
        overrides += _flat(name, value)
    return overrides


def _section_of(name: str) -> str | None:
    """The section that has a key of this name, such as "train" for "epochs"."""
    for section, field in RunConfig.model_fields.items():
        if name in getattr(field.annotation, "model_fields", ()):
            return section
    return None


def _flat(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping) and value:
        return [line for key, inner in value.items() for line in _flat(f"{name}.{key}", inner)]
    try:
        return [f"{name}={json.dumps(value, default=os.fspath)}"]
    except TypeError as error:
        raise ConfigError(
            f"{name} is a {type(value).__name__}; give a number, a text, a list, or a dictionary."
        ) from error
