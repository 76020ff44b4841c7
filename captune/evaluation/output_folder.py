"""The output folder of an evaluation: the run's folder for the run's evaluation, a separate folder for any other.

The scores in a run's folder are of the run's evaluation set, with the settings at its start, and of all of its
checkpoints. No other evaluation replaces them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captune.config import RunConfig, load_run_config
from captune.data import last_writer
from captune.errors import ConfigError, InputError
from captune.report import MATRIX_FILES, REPORT_FILES, read_scores

__all__ = ["FOLDER", "WRITER", "check_destination", "evaluation_folder", "is_own_evaluation"]

FOLDER = "evaluations"
"""Folder of other evaluations in a run's folder."""
FILES = ("scores.json", "captions", "thumbnails", *REPORT_FILES, *MATRIX_FILES)
"""Names of an evaluation's files."""
WRITER = "captune evaluate"
"""Name of an evaluation in the lock of its folder."""
BEFORE_SCORES = ("captions", "thumbnails")
"""Those that are written before the scores."""
_WITHOUT_EFFECT = {"evaluate": ("batch_size", "compile", "allow_leaks", "train_subset"), "data": ("features",)}
"""Settings that change neither captions nor scores."""


def evaluation_folder(config: RunConfig, original: RunConfig, checkpoints: Sequence[Path]) -> Path:
    """The default output folder of an evaluation.

    Args:
        config: of the evaluation.
        original: the configuration without options and overrides.
        checkpoints: that are evaluated.

    Returns:
        The output folder of `original` for its evaluation, otherwise a folder in it, always the same for the same
        evaluation.
    """
    output = original.output
    if _is_equivalent(config, original) and (not _is_run(output) or is_own_evaluation(config, output, checkpoints)):
        return output
    manifest = config.evaluation_manifest
    name = f"{manifest.parent.name or manifest.stem}-{config.data.evaluate_split}"
    content = [_decisive(config), sorted(folder.name for folder in checkpoints)]
    key = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return output / FOLDER / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name).lstrip('.')}-{key}"


def is_own_evaluation(config: RunConfig, run: Path, checkpoints: Sequence[Path]) -> bool:
    """Whether an evaluation is the one whose scores a run's folder holds.

    Args:
        config: of the evaluation.
        run: folder of the run.
        checkpoints: that are evaluated.
    """
    try:
        written = load_run_config(run / "config.yaml")
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
    if _is_run(output):
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
        known = BEFORE_SCORES if cached or last_writer(output) == WRITER else ()
        foreign = next((name for name in FILES if name not in known and os.path.lexists(output / name)), None)
        if foreign is not None:
            raise InputError(
                f"{output} holds '{foreign}', and no scores.json of an evaluation; give --out another folder."
            ) from None


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _is_equivalent(one: RunConfig, other: RunConfig) -> bool:
    return _decisive(one) == _decisive(other)


def _decisive(config: RunConfig) -> dict[str, Any]:
    """The settings that captions and scores depend on."""
    settings = config.model_dump(mode="json", include={"model", "data", "evaluate", "seed"})
    for section, names in _WITHOUT_EFFECT.items():
        for name in names:
            settings[section].pop(name, None)
    return settings
