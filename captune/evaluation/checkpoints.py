"""The pretrained model, checkpoints and other captioners, captioned and scored one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from captune.captioner import Captioner, MiniGPT4Captioner
from captune.config import RunConfig
from captune.data.locks import folder_lock
from captune.decoding import Caption
from captune.errors import NonFiniteScoresError
from captune.evaluation.destination import WRITER, check_destination, is_own_evaluation
from captune.evaluation.scoring import Evaluation, checkpoint_name, refuse_rows
from captune.events import Event, Listener
from captune.features import Alone, StoredFeatures, features_of, store_root
from captune.model.adapter import load_trained, read_record, use_wrapping
from captune.model.loading import LANGUAGE, load_model, pick_device
from captune.protocols import evaluation_set
from captune.report import write_report
from captune.report.record import RunScores

__all__ = ["evaluate_checkpoints"]


def evaluate_checkpoints(
    config: RunConfig,
    checkpoints: Sequence[Path],
    listener: Listener | None = None,
    *,
    captioners: Sequence[str] = (),
) -> RunScores:
    """Caption and score the pretrained model and every checkpoint, with one load of the model.

    Args:
        config: of the run; its output folder receives captions, scores, table and chart.
        checkpoints: folders that training wrote.
        listener: is told how far it is.
        captioners: other models that caption the same images, such as transformers' image-text-to-text models.

    Returns:
        All rows, the pretrained model first, other captioners last.

    Raises:
        InputError: data, model or a checkpoint cannot be used; or the scores of some are not numbers, which have no
            row, while all others are scored.
    """
    tell = listener if listener is not None else _ignore
    check_destination(config, checkpoints)
    with folder_lock(config.output, WRITER):
        evaluation = Evaluation(config, evaluation_set(config, tell))
        if is_own_evaluation(config, config.output, checkpoints):
            evaluation.recall()
        faulty = _evaluate(config, evaluation, checkpoints, tell)
        # The model is let go of before another one is loaded.
        faulty += _compare(config, evaluation, captioners, tell)
        # Not before: captions are kept in the cache, and scores that are there stay complete until all are made anew.
        evaluation.write()
        write_report(config.output, evaluation.run_scores())
    refuse_rows(faulty, config.output)
    return evaluation.run_scores()


def _evaluate(config: RunConfig, evaluation: Evaluation, checkpoints: Sequence[Path], tell: Listener) -> list[str]:
    """Caption and score the pretrained model and every checkpoint; names of those whose scores are not numbers."""
    records = [read_record(folder) for folder in checkpoints]
    device = pick_device()
    model = load_model(config.model, device, parts=LANGUAGE)
    if records:
        # The model before training is asked what the run's checkpoints were trained with.
        use_wrapping(model, records[0].wrapping, checkpoints[0])
    evaluation.ask_as(model)

    def encoded(done: int, count: int) -> None:
        tell({"event": "features", "what": "evaluation images", "done": done, "count": count})

    def evaluate(epoch: int | None) -> None:
        def captioned(done: int, count: int) -> None:
            tell({"event": "captions", "epoch": epoch, "done": done, "count": count})

        def generate(places: list[int]) -> list[Caption]:
            return evaluation.caption(model, features()[places], captioned)

        captioner = MiniGPT4Captioner(model, exif_rotation=config.exif_rotation)
        captions = evaluation.cached(captioner.fingerprint, config.model.instruction, generate)
        row = evaluation.score(epoch, captions)
        tell({"event": "evaluation", "epoch": epoch, "scores": dict(row.corpus)})

    @cache
    def features() -> StoredFeatures:
        files, root = evaluation.image_files, store_root(config)
        stored = features_of(
            config.model, files, root, Alone(device), exif_rotation=config.exif_rotation, on_progress=encoded
        )
        return stored.all_whole("evaluation images")

    try:
        evaluate(None)
    except NonFiniteScoresError:
        # All other rows are compared with this one.
        refuse_rows([checkpoint_name(None)], config.output, scored=False)
    faulty = []
    for folder, record in zip(checkpoints, records, strict=True):
        load_trained(model, folder)
        try:
            evaluate(record.epoch)
        except NonFiniteScoresError:
            faulty.append(checkpoint_name(record.epoch))
            evaluation.leave_out(faulty[-1])
    return faulty


def _compare(config: RunConfig, evaluation: Evaluation, captioners: Sequence[str], tell: Listener) -> list[str]:
    """Caption and score the same images with other captioners; names of those whose scores are not numbers."""
    faulty = []
    for path in captioners:

        def compared(done: int, count: int, name: str = path) -> None:
            tell({"event": "captions", "epoch": None, "name": name, "done": done, "count": count})

        captioner = Captioner.from_pretrained(path, dtype=config.model.dtype, exif_rotation=config.exif_rotation)
        asked = evaluation.instruction_for(captioner)
        try:
            captions = evaluation.caption_with(captioner, asked, compared)
        except NonFiniteScoresError:
            faulty.append(_row_name(path))
            evaluation.leave_out(faulty[-1])
            continue
        row = evaluation.score(None, captions, name=_row_name(path), instruction=captioner.prompt_text(asked))
        tell({"event": "evaluation", "epoch": None, "name": row.name, "scores": dict(row.corpus)})
    return faulty


def _row_name(path: str) -> str:
    """What another captioner is called in tables: its hub id, or the last two parts of its folder."""
    return "/".join(Path(path).parts[-2:])


def _ignore(event: Event) -> None:
    """Listen to nothing."""
