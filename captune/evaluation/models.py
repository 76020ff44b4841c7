"""Models without a run, captioned and scored on the same images: one row each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from captune.captioner import Captioner
from captune.config import RunConfig
from captune.data.locks import folder_lock
from captune.errors import ConfigError, NonFiniteScoresError
from captune.evaluation.destination import WRITER, check_destination
from captune.evaluation.scoring import Evaluation, refuse_rows
from captune.events import Listener
from captune.protocols import EvaluationSet, evaluation_set
from captune.report import read_scores, write_report
from captune.report.record import RunScores

__all__ = ["evaluate_models", "row_names"]

logger = logging.getLogger(__name__)


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
