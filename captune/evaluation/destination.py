"""The output folder of an evaluation: the run's folder for the run's evaluation, a separate folder for any other.

Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.config import RunConfig, load_stored_config
from captune.data import last_writer
from captune.errors import ConfigError, InputError
from captune.evaluation.protocol import EvaluationSet
from captune.report import MATRIX_FILES, REPORT_FILES, read_scores

__all__ = [
    "EVALUATIONS_FOLDER",
    "LOCK_NAME",
    "check_destination",
    "check_models_destination",
    "evaluation_folder",
    "is_own_evaluation",
]

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
    for section, name in (("data", "name"), ("evaluate", "metrics"), ("evaluate", "tokenizer")):
        if settings[section][name] is None:  # as in the records of versions without this key
            del settings[section][name]
    for section, name in (("data", "train"), ("data", "evaluate"), ("model", "path")):
        # The same file, from whatever directory.
        value = settings[section].get(name)
        settings[section][name] = os.path.abspath(value) if value and os.path.exists(value) else value
    return settings


def check_models_destination(config: RunConfig, images: EvaluationSet, names: Sequence[str]) -> None:
    """Refuse a folder that holds a run, files of others, or scores that would be lost; for models without a run.

    Args:
        config: of the evaluation, with its output folder.
        images: that are evaluated.
        names: of the rows.

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
