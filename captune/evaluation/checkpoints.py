"""The pretrained model, the checkpoints of a run, and other captioners, captioned and scored one after the other."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from captune.captioner import Captioner, MiniGPT4Backend
from captune.config import RunConfig
from captune.data.locks import folder_lock
from captune.decoding import Caption
from captune.errors import ConfigError, NonFiniteScoresError
from captune.evaluation.output_folder import WRITER, check_destination, is_own_evaluation
from captune.evaluation.protocol import EvaluationSet, evaluation_set
from captune.evaluation.scoring import Evaluation, checkpoint_name, refuse_rows
from captune.events import Event, Listener
from captune.features import SingleProcess, StoredFeatures, features_of, store_root
from captune.model.adapter import load_trained, read_record, use_wrapping
from captune.model.loading import LANGUAGE, load_model, pick_device
from captune.report import read_scores, write_report
from captune.report.record import RunScores

__all__ = ["evaluate_checkpoints", "evaluate_models", "row_names"]

logger = logging.getLogger(__name__)


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

        captioner = MiniGPT4Backend(model, exif_rotation=config.exif_rotation)
        captions = evaluation.cached(captioner.fingerprint, config.model.instruction, generate)
        row = evaluation.score(epoch, captions)
        tell({"event": "evaluation", "epoch": epoch, "scores": dict(row.corpus)})

    @cache
    def features() -> StoredFeatures:
        files, root = evaluation.image_files, store_root(config)
        stored = features_of(
            config.model, files, root, SingleProcess(device), exif_rotation=config.exif_rotation, on_progress=encoded
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


def evaluate_models(
    config: RunConfig, models: Sequence[str], listener: Listener, *, instruction: str | None = None
) -> RunScores:
    """Caption and score the same images with models that belong to no run.

    Args:
        config: data, protocol and decoding; its output folder receives captions, scores, table and page.
        models: folders or hub ids of captioners, each a row.
        listener: receives the progress.
        instruction: what every model is asked; by default each is asked its own instruction.

    Returns:
        All rows, in the order of the models.

    Raises:
        ConfigError: the protocol needs a run, or the output folder holds something else.
        InputError: data or a model cannot be used; or the scores of some are not numbers, which have no row.
    """
    names = row_names(models)
    chosen = evaluation_set(config, listener, guard=False)
    if chosen.rules.images == "training":
        raise ConfigError(
            f"Protocol {config.evaluate.protocol} evaluates training images of a run, and a model alone has no run; "
            "choose protocol karpathy."
        )
    instruction = chosen.rules.instruction or instruction
    _check_output(config, chosen, names)
    logger.warning("what these models were trained on is not known, so the images are not searched for leaks.")
    with folder_lock(config.output, WRITER):
        evaluation = Evaluation(config, chosen)
        faulty: list[str] = []
        for name, path in zip(names, models, strict=True):

            def captioned(done: int, count: int, name: str = name) -> None:
                listener({"event": "captions", "epoch": None, "name": name, "done": done, "count": count})

            captioner = Captioner.from_pretrained(
                path, dtype=config.model.dtype, instruction=instruction, exif_rotation=config.exif_rotation
            )
            try:
                captions = evaluation.caption_with(captioner, captioner.instruction, captioned)
            except NonFiniteScoresError:
                faulty.append(name)
                continue
            row = evaluation.score(None, captions, name=name, instruction=captioner.prompt_text(captioner.instruction))
            listener({"event": "evaluation", "epoch": None, "name": name, "scores": dict(row.corpus)})
            del captioner  # before the next model is loaded
        if not evaluation.rows:
            refuse_rows(faulty, config.output, scored=False)
        evaluation.write()
        write_report(config.output, evaluation.run_scores())
    refuse_rows(faulty, config.output)
    return evaluation.run_scores()


def row_names(models: Sequence[str]) -> list[str]:
    """What models are called in tables: the hub id, or as many last parts of the folder as make it unique.

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


def _check_output(config: RunConfig, chosen: EvaluationSet, names: Sequence[str]) -> None:
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
    if (earlier.data, earlier.split, earlier.images) != (chosen.name, chosen.split, len(chosen.images)):
        raise ConfigError(
            f"{output} holds an evaluation on {earlier.data}, split {earlier.split}, {earlier.images} images; give "
            "another --out for other images."
        )
