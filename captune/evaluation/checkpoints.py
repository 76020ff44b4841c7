"""Evaluate the pretrained model, the checkpoints of a run and other rows, into one output folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from captune.config import RunConfig
from captune.data import folder_lock
from captune.decoding import Caption
from captune.errors import NonFiniteScoresError
from captune.evaluation.destination import LOCK_NAME, check_destination, is_own_evaluation
from captune.evaluation.endpoint import EndpointOptions
from captune.evaluation.models import add_row, check_endpoints, finished_rows_written
from captune.evaluation.protocol import evaluation_set
from captune.evaluation.row_sources import parse_sources, prepare_rows
from captune.evaluation.run_models import load_run_model
from captune.evaluation.scoring import Evaluation, checkpoint_name, refuse_rows
from captune.events import Event, Listener
from captune.report import RunScores, write_report
from captune.run_checkpoints import read_record

__all__ = ["evaluate_checkpoints", "ignore_event"]


def evaluate_checkpoints(
    config: RunConfig,
    checkpoints: Sequence[str | Path],
    listener: Listener | None = None,
    *,
    captioners: Sequence[str] = (),
    base: str | None = None,
    endpoint_options: EndpointOptions | None = None,
    match: str = "exact",
) -> RunScores:
    """Caption and score the pretrained model and every checkpoint, with one load of the model.

    Args:
        config: of the run; its output folder receives captions, scores, table and chart.
        checkpoints: folders that training wrote.
        listener: receives the progress.
        captioners: other rows on the same images: models, endpoints or files of captions; see
            `captune.evaluation.row_sources`.
        base: folder or hub id of the run's model, if it has moved.
        endpoint_options: for requests to endpoints.
        match: how ids of files are matched; see `evaluate_models`.

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
        taken = [checkpoint_name(None, config), *(checkpoint_name(read_record(each).epoch, config) for each in folders)]
        others = prepare_rows(
            config, parse_sources(captioners), evaluation.images, endpoint_options, match=match, taken=taken
        )
        check_endpoints(evaluation, others)
        if is_own_evaluation(config, config.output, folders):
            evaluation.recall()
        faulty = _evaluate(config if base is None else config.with_model(base), evaluation, folders, on_event)
        # The model is released before another one is loaded.
        with finished_rows_written(evaluation):
            faulty += [row.name for row in others if not add_row(config, evaluation, row, on_event, run_prompt=True)]
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


def ignore_event(event: Event) -> None:
    """Ignore an event."""
