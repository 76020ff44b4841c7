"""Evaluate the pretrained model, the checkpoints of a run and other captioners, into one output folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from captune.captioner import Captioner
from captune.config import RunConfig, load_stored_config
from captune.data import folder_lock, last_writer
from captune.decoding import Caption
from captune.errors import ConfigError, InputError, NonFiniteScoresError
from captune.evaluation.protocol import EvaluationSet, evaluation_set
from captune.evaluation.run_models import load_run_model
from captune.evaluation.scoring import Evaluation, checkpoint_name, refuse_rows
from captune.events import Event, Listener
from captune.report import MATRIX_FILES, REPORT_FILES, RunScores, read_scores, write_report
from captune.run_checkpoints import read_record

__all__ = [
    "EVALUATIONS_FOLDER",
    "LOCK_NAME",
    "check_destination",
    "evaluate_checkpoints",
    "evaluate_models",
    "evaluation_folder",
    "ignore_event",
    "is_own_evaluation",
    "row_names",
]


# The output folder of an evaluation: the run's folder for the run's evaluation, a separate folder for any other.

EVALUATIONS_FOLDER = "evaluations"
"""Folder of other evaluations in a run's folder."""
FILES = ("scores.json", "captions", "thumbnails", *REPORT_FILES, *MATRIX_FILES)
"""Names of an evaluation's files."""
LOCK_NAME = "captune evaluate"
"""Name of an evaluation in the lock of its folder."""
BEFORE_SCORES = ("captions", "thumbnails")
"""Those that are written before the scores."""
_WITHOUT_EFFECT = {"evaluate": ("batch_size", "compile", "allow_leaks", "train_slice"), "data": ("features",)}
"""Settings that change neither captions nor scores."""


def evaluation_folder(config: RunConfig, original: RunConfig, checkpoints: Sequence[str | Path]) -> Path:
    """The default output folder of an evaluation.

    Args:
        config: of the evaluation.
        original: the configuration without options and overrides.
        checkpoints: that are evaluated.

    Returns:
        The output folder of `original` for its evaluation, otherwise a folder in it, always the same for the same
        evaluation.
    """
    folders = [Path(folder) for folder in checkpoints]
    output = original.output
    if _is_equivalent(config, original) and (not _has_run_config(output) or is_own_evaluation(config, output, folders)):
        return output
    manifest = config.evaluation_manifest
    name = f"{config.data.name or manifest.parent.name or manifest.stem}-{config.data.evaluate_split}"
    content = [_decisive(config), sorted(folder.name for folder in folders)]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return output / EVALUATIONS_FOLDER / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name).lstrip('.')}-{key}"


def is_own_evaluation(config: RunConfig, run: Path, checkpoints: Sequence[Path]) -> bool:
    """Whether an evaluation is the one whose scores a run's folder holds.

    Args:
        config: of the evaluation.
        run: folder of the run.
        checkpoints: that are evaluated.
    """
    try:
        written = load_stored_config(run)
    except ConfigError:
        return False
    evaluated = {os.path.realpath(folder) for folder in checkpoints}
    saved = {os.path.realpath(folder) for folder in (run / "checkpoints").glob("epoch-*") if folder.is_dir()}
    return _is_equivalent(config, written) and evaluated == saved


def check_destination(config: RunConfig, checkpoints: Sequence[Path]) -> None:
    """Check that an evaluation replaces neither the scores of a run nor files of other programs.

    Args:
        config: of the evaluation, with its output folder.
        checkpoints: that are evaluated.

    Raises:
        InputError: it would.
    """
    output = config.output
    if _has_run_config(output):
        if not is_own_evaluation(config, output, checkpoints):
            raise InputError(
                f"{output} is the folder of a run, and holds the scores of the run's evaluation; give --out another "
                "folder for an evaluation on other data, with other settings or of some checkpoints."
            )
        return
    try:
        read_scores(output)
    except InputError:
        # Without scores of an earlier evaluation no file is known to be captune's, except those that a killed one wrote
        # before its scores: it left its captions in the cache, or its name as the last writer's.
        cached = any((output / "cache" / "captions").glob("*.jsonl"))
        known = BEFORE_SCORES if cached or last_writer(output) == LOCK_NAME else ()
        foreign = next((name for name in FILES if name not in known and os.path.lexists(output / name)), None)
        if foreign is not None:
            raise InputError(
                f"{output} holds '{foreign}', and no scores.json of an evaluation; give --out another folder."
            ) from None


def _has_run_config(folder: Path) -> bool:
    """Whether a folder may be that of a run; the scores there are not replaced."""
    return (folder / "config.yaml").is_file()


def _is_equivalent(one: RunConfig, other: RunConfig) -> bool:
    return _decisive(one) == _decisive(other)


def _decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that captions and scores depend on."""
    settings = config.model_dump(mode="json", include={"model", "data", "evaluate", "seed"})
    for section, names in _WITHOUT_EFFECT.items():
        for name in names:
            settings[section].pop(name, None)
    if settings["data"]["name"] is None:  # as in the records of versions without this key
        del settings["data"]["name"]
    for section, name in (("data", "train"), ("data", "evaluate"), ("model", "path")):
        # The same file, from whatever directory.
        value = settings[section].get(name)
        settings[section][name] = os.path.abspath(value) if value and os.path.exists(value) else value
    return settings


logger = logging.getLogger(__name__)


def evaluate_checkpoints(
    config: RunConfig,
    checkpoints: Sequence[str | Path],
    listener: Listener | None = None,
    *,
    captioners: Sequence[str] = (),
    base: str | None = None,
) -> RunScores:
    """Caption and score the pretrained model and every checkpoint, with one load of the model.

    Args:
        config: of the run; its output folder receives captions, scores, table and chart.
        checkpoints: folders that training wrote.
        listener: receives the progress.
        captioners: other models that caption the same images, such as transformers' image-text-to-text models.
        base: folder or hub id of the run's model, if it has moved.

    Returns:
        All rows, the pretrained model first, other captioners last.

    Raises:
        InputError: data, model or a checkpoint cannot be used; or the scores of some are not numbers, which have no
            row, while all others are scored.
    """
    folders = [Path(folder) for folder in checkpoints]
    on_event = listener if listener is not None else ignore_event
    check_destination(config, folders)
    with folder_lock(config.output, LOCK_NAME):
        ancestors = read_record(folders[0]).ancestors if folders else ()
        evaluation = Evaluation(config, evaluation_set(config, on_event, ancestors=ancestors))
        if is_own_evaluation(config, config.output, folders):
            evaluation.recall()
        faulty = _evaluate(config if base is None else config.with_model(base), evaluation, folders, on_event)
        # The model is released before another one is loaded.
        faulty += _compare(config, evaluation, captioners, on_event)
        # Only now: captions are in the cache, and earlier scores stay complete until all new ones are computed.
        evaluation.write()
        write_report(config.output, evaluation.run_scores())
    refuse_rows(faulty, config.output)
    return evaluation.run_scores()


def _evaluate(config: RunConfig, evaluation: Evaluation, checkpoints: Sequence[Path], on_event: Listener) -> list[str]:
    """Caption and score the pretrained model and every checkpoint; names of those whose scores are not numbers."""
    records = [read_record(folder) for folder in checkpoints]
    on_event({"event": "stage", "what": "Loading the model"})
    model = load_run_model(config, evaluation, checkpoints)
    evaluation.sign_prompt(model.prompt_text(model.instruction))

    def encoded(done: int, count: int) -> None:
        on_event({"event": "features", "what": "evaluation images", "done": done, "count": count})

    @cache
    def images() -> Any:
        return model.images(evaluation.image_files, encoded)

    faulty: list[str] = []
    for folder, epoch in [(None, None), *zip(checkpoints, (record.epoch for record in records), strict=True)]:

        def captioned(done: int, count: int, epoch: int | None = epoch) -> None:
            on_event(
                {
                    "event": "captions",
                    "epoch": epoch,
                    "name": checkpoint_name(epoch, config),
                    "done": done,
                    "count": count,
                }
            )

        def generate(indices: list[int], on_progress: Callable[[int, int], None] = captioned) -> list[Caption]:
            return model.caption(evaluation, images()[indices], model.instruction, on_progress)

        model.load(folder)
        try:
            captions = evaluation.cached(model.fingerprint, model.instruction, generate)
        except NonFiniteScoresError:
            if folder is None:
                # All other rows are compared with this one.
                refuse_rows([checkpoint_name(None, config)], config.output, scored=False)
            faulty.append(checkpoint_name(epoch, config))
            evaluation.leave_out(faulty[-1])
            continue
        on_event({"event": "stage", "what": f"Scoring {checkpoint_name(epoch, config)}"})
        row = evaluation.score(epoch, captions)
        on_event(
            {"event": "evaluation", "epoch": epoch, "name": row.name, "scores": dict(row.corpus), **row.thinking_counts}
        )
    return faulty


def _compare(config: RunConfig, evaluation: Evaluation, captioners: Sequence[str], on_event: Listener) -> list[str]:
    """Caption and score the same images with other captioners; names of those whose scores are not numbers."""
    names = [(_row_name(path), path) for path in captioners]
    return [name for name, path in names if not _add_row(config, evaluation, path, name, on_event, run_prompt=True)]


def _add_row(
    config: RunConfig,
    evaluation: Evaluation,
    path: str,
    name: str,
    on_event: Listener,
    *,
    instruction: str | None = None,
    run_prompt: bool = False,
) -> bool:
    """Add the row of another captioner; False if its scores are not numbers, so that it has no row.

    The captioner is released before the next one is loaded. `instruction` is its default prompt; with `run_prompt` it
    gets the prompt of the run, if it follows instructions.
    """

    def captioned(done: int, count: int) -> None:
        on_event({"event": "captions", "epoch": None, "name": name, "done": done, "count": count})

    on_event({"event": "stage", "what": f"Loading {name}"})
    captioner = Captioner.from_pretrained(
        path, dtype=config.model.dtype, instruction=instruction, exif_rotation=config.exif_rotation
    )
    prompt = evaluation.instruction_for(captioner) if run_prompt else captioner.instruction
    try:
        captions = evaluation.caption_with(captioner, prompt, captioned)
    except NonFiniteScoresError:
        evaluation.leave_out(name)
        return False
    row = evaluation.score(None, captions, name=name, instruction=captioner.prompt_text(prompt))
    on_event({"event": "evaluation", "epoch": None, "name": name, "scores": dict(row.corpus), **row.thinking_counts})
    return True


def _row_name(path: str) -> str:
    """The name of another captioner in tables: its hub id, or the last two parts of its folder."""
    return "/".join(Path(path).parts[-2:])


def ignore_event(event: Event) -> None:
    """Ignore an event."""


def evaluate_models(
    config: RunConfig, models: Sequence[str], listener: Listener, *, instruction: str | None = None
) -> RunScores:
    """Caption and score the same images with models without a run.

    Args:
        config: data, protocol and decoding; its output folder receives captions, scores, table and page.
        models: folders or hub ids of captioners, each a row.
        listener: receives the progress.
        instruction: the prompt of all models; by default each has its default instruction.

    Returns:
        All rows, in the order of the models.

    Raises:
        ConfigError: the protocol needs a run, or the output folder holds something else.
        InputError: data or a model cannot be used; or the scores of some are not numbers, which have no row.
    """
    names = row_names(models)
    images = evaluation_set(config, listener, guard=False)
    if images.rules.images == "training":
        raise ConfigError(
            f"Protocol {config.evaluate.protocol} evaluates training images of a run, and a model alone has no run; "
            "choose protocol karpathy."
        )
    instruction = images.rules.instruction or instruction
    _check_output(config, images, names)
    logger.warning("what these models were trained on is not known, so the images are not searched for leaks.")
    with folder_lock(config.output, LOCK_NAME):
        evaluation = Evaluation(config, images)
        faulty = [
            name
            for name, path in zip(names, models, strict=True)
            if not _add_row(config, evaluation, path, name, listener, instruction=instruction)
        ]
        if not evaluation.rows:
            refuse_rows(faulty, config.output, scored=False)
        evaluation.write()
        write_report(config.output, evaluation.run_scores())
    refuse_rows(faulty, config.output)
    return evaluation.run_scores()


def row_names(models: Sequence[str]) -> list[str]:
    """The names of models in tables: the hub id, or as many last parts of the folder as make it unique.

    Raises:
        ConfigError: a model is named twice.
    """
    parts = [Path(model).parts for model in models]
    if twice := next((model for model in models if models.count(model) > 1), None):
        raise ConfigError(f"The model {twice} is named twice; name each once.")
    longest = max(len(part) for part in parts)
    for length in range(2, longest + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(model) for model in models]


def _check_output(config: RunConfig, images: EvaluationSet, names: Sequence[str]) -> None:
    """Refuse a folder that holds a run, files of others, or scores that would be lost.

    Raises:
        InputError: names the folder.
    """
    output = config.output
    check_destination(config, ())
    if not (output / "scores.json").exists():
        return
    earlier = read_scores(output)
    lost = [row.name for row in earlier.checkpoints if row.name not in names]
    if lost:
        raise ConfigError(
            f"{output} holds an evaluation of {', '.join(lost)}; name these models too, or give another --out."
        )
    if (earlier.data, earlier.split, earlier.images) != (images.name, images.split, len(images.images)):
        raise ConfigError(
            f"{output} holds an evaluation on {earlier.data}, split {earlier.split}, {earlier.images} images; give "
            "another --out for other images."
        )
