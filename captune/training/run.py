"""`train`: the checks of a run, a finished run that is used again, and the training of the others.

Nothing here needs torch before a run is known to start: wrong settings, checkpoints and folders are refused first.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

from captune.common import quiet_libraries
from captune.config import RunConfig
from captune.data import folder_lock
from captune.errors import DataError
from captune.evaluation import evaluation_set, load_protocol, training_images
from captune.events import Listener
from captune.hub import kind_of_model, refuse_checkpoint, resolve_model
from captune.preflight import extra_imports
from captune.report import read_scores
from captune.results import TuningResult
from captune.run_checkpoints import checkpoint_folders, read_record
from captune.training.run_folder import (
    Inspection,
    RunStatus,
    inspect_run,
    left_out_images,
    readable_again,
    refuse_unless_free,
    store_config,
)
from captune.training.sample_order import require_captions, require_supported
from captune.training.selection import best_row, link_best, remove_others, selected_metric
from captune.training.start_checkpoint import START, StartCheckpoint, find_start, require_fitting_start

__all__ = ["check_settings", "train"]


def train(
    config: RunConfig, listener: Listener | None = None, *, resume: bool = True, overwrite: bool = False
) -> TuningResult:
    """Train from start to end, in a single process or in one of torchrun's processes.

    A finished run of the same configuration and data is not repeated; an unfinished one resumes.

    Args:
        config: of the run; all results are written to its output folder.
        listener: receives every event, for progress bars.
        resume: continue an unfinished run instead of starting over.
        overwrite: move other files in the output folder into a subfolder.

    Returns:
        The scores before training and after each epoch, and the checkpoints.

    Raises:
        InputError: the configuration, the data or the model is invalid.
        TrainingError: too many steps had an infinite or undefined loss.
        StoppedError: a signal stopped the run; its state was saved.
    """
    check_settings(config)
    inspection = inspect_run(config)
    if inspection.status is RunStatus.FINISHED:
        if os.environ.get("RANK", "0") == "0":
            _select_in_finished(config, inspection)
        if listener is not None:
            left_out = left_out_images(config.output)
            listener({"event": "reused", "folder": str(config.output), "left_out": list(left_out)})
        return TuningResult(config.output)
    with folder_lock(config.output, "captune train"):
        folder = inspect_run(config)
        refuse_unless_free(folder, overwrite=overwrite)
        source = resolve_model(config.model)
        refuse_checkpoint(source)
        resuming = resume and folder.status is RunStatus.UNFINISHED
        if resuming and (again := readable_again(config)) is not None:
            raise DataError(
                f"{config.output} holds this run, unfinished, and {again}; start over with --resume never to train "
                "with it, or move it away to resume without it."
            )
        start = find_start(config, resuming=resuming)
        if start is not None and not resuming:
            require_fitting_start(start, config, source)
        images = training_images(config)
        require_captions(images)
        evaluated = evaluation_set(config, listener, ancestors=() if start is None else start.ancestors)
        if listener is not None:
            listener({"event": "stage", "what": "Loading torch and transformers"})
        with extra_imports("Training", "train"), quiet_libraries():
            from captune.training.trainer import run_training
        with quiet_libraries():
            run_training(config, source, images, evaluated, listener, folder, start, resuming=resuming)
    return TuningResult(config.output)


def check_settings(config: RunConfig) -> StartCheckpoint | None:
    """Refuse settings that the protocol, the model or the start checkpoint does not have.

    Returns:
        The checkpoint that `train.start` names; None without it, and in the folder of a run, which has a copy.

    Raises:
        ConfigError: the protocol does not have the metric of `train.select`, a setting is for another kind of model, or
            the start checkpoint does not fit.
        WeightsError: there is no such model or start checkpoint.
    """
    selected_metric(config.train, load_protocol(config.evaluate.protocol).metrics)
    source = resolve_model(config.model)
    refuse_checkpoint(source)
    if kind_of_model(source) == "transformers":
        require_supported(config.train)
    if config.train.start is None or (config.output / "checkpoints" / START).is_dir():
        return None
    start = find_start(config, resuming=False)
    assert start is not None
    require_fitting_start(start, config, source)
    return start


def _select_in_finished(config: RunConfig, inspection: Inspection) -> None:
    """Bring the link to the best checkpoint of a finished run, and what is kept, up to date."""
    output, rows = config.output, read_scores(config.output).checkpoints
    metric = selected_metric(config.train, load_protocol(config.evaluate.protocol).metrics)
    with folder_lock(output, "captune train") if inspection.stored is not None else nullcontext():
        best = best_row(rows, metric, output)
        if best is not None:
            link_best(output, best)
        remove_others(output, config.train.keep, rows, best, read_record(checkpoint_folders(output)[-1]))
        if inspection.stored is not None:
            store_config(config)
