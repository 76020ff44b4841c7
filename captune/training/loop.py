"""The training run, from top to bottom.

Once: load, encode every image, evaluate the pretrained model. For every epoch: steps, checkpoint, evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from captune import __version__
from captune.config import RunConfig
from captune.data.atomic import atomic_folder
from captune.data.manifest import manifest_hash, resolve_image
from captune.decoding import encode_images
from captune.evaluation import Evaluation
from captune.events import Listener
from captune.model import MiniGPT4
from captune.model.adapter import CheckpointRecord, frozen_fingerprint, save_trained, trained_state
from captune.model.loading import load_model
from captune.protocols import evaluation_set, training_images
from captune.report import write_report
from captune.training.distributed import World, world
from captune.training.journal import Journal
from captune.training.run_folder import checkpoint_folder, is_finished, open_run_folder
from captune.training.samples import TrainingSamples
from captune.training.step import Stepper

__all__ = ["train"]


def train(config: RunConfig, listener: Listener | None = None, *, overwrite: bool = False) -> None:
    """Run a training from start to end, alone or as one of torchrun's processes.

    A run that is already there, finished, with the same configuration and data, is left as it is.

    Args:
        config: everything that decides the run; its output folder receives all that comes out.
        listener: is told every event, for a progress bar.
        overwrite: replace another run that lies in the output folder.

    Raises:
        InputError: the configuration, the data or the model cannot be used.
        TrainingError: too many steps had an infinite or undefined loss.
    """
    if is_finished(config):
        if listener is not None:
            listener({"event": "reused", "folder": str(config.output)})
        return
    # Everything that can be wrong with the data is found before the model is loaded.
    images = training_images(config)
    evaluation = Evaluation(config, evaluation_set(config))
    samples = TrainingSamples(images, config.train, config.seed)
    image_files = [resolve_image(config.data.train, image.image) for image in images]

    with world() as place, _open_journal(config, place, listener, overwrite) as journal:
        model = load_model(config.model, place.device)
        record = _describe(model, config)
        journal.tell(
            "run",
            model=config.model.path,
            images=len(images),
            captions=samples.captions,
            steps=samples.total_steps,
            processes=place.size,
            device=str(place.device),
        )
        features = _encode(model, image_files, place, journal, "training images")
        test_features = _encode(model, evaluation.image_files, place, journal, "evaluation images")

        _evaluate(None, model, test_features, evaluation, place, journal)
        stepper = Stepper(model, features, samples, config, place)
        unpacked = stepper.probe()
        if unpacked is not None:
            journal.tell("unpacked", reason=unpacked)
        model.train()
        for epoch in range(config.train.epochs):
            _epoch(epoch, stepper, samples, config, journal)
            if place.is_main:
                _save(epoch, model, record, samples, config.output)
                journal.tell("checkpoint", epoch=epoch, folder=str(checkpoint_folder(config.output, epoch)))
            _evaluate(epoch, model, test_features, evaluation, place, journal)
        journal.tell("done", skipped_steps=stepper.skipped)


def _epoch(epoch: int, stepper: Stepper, samples: TrainingSamples, config: RunConfig, journal: Journal) -> None:
    """The steps of one epoch; every `log_every`-th and the last are written to the log."""
    first = epoch * samples.steps_per_epoch
    started, seen, trained = time.monotonic(), 0, 0
    for step in range(first, first + samples.steps_per_epoch):
        result = stepper.take(step)
        seen, trained = seen + 1, trained + result.captions
        rate = trained / (time.monotonic() - started)
        journal.tell(
            "progress", step=step, steps=samples.total_steps, epoch=epoch, captions_per_s=rate, **asdict(result)
        )
        if (step + 1) % config.log_every == 0 or seen == samples.steps_per_epoch:
            journal.tell("step", step=step, epoch=epoch, captions_per_s=round(rate, 2), **asdict(result))


def _evaluate(
    epoch: int | None, model: MiniGPT4, features: Tensor, evaluation: Evaluation, place: World, journal: Journal
) -> None:
    """Caption every evaluation image once over all processes; the first one scores and reports."""
    training = model.training
    model.eval()
    started = time.monotonic()
    mine = evaluation.caption(
        model,
        features[place.rank :: place.size],
        lambda done, count: journal.tell("captions", epoch=epoch, done=done, count=count),
    )
    captions = place.merge(mine, len(features))
    if place.is_main:
        row = evaluation.add(epoch, captions)
        write_report(evaluation.output, evaluation.run_scores())
        journal.tell("evaluation", epoch=epoch, seconds=round(time.monotonic() - started, 3), scores=dict(row.corpus))
    place.wait()
    model.train(training)


def _encode(model: MiniGPT4, files: Sequence[Path], place: World, journal: Journal, what: str) -> Tensor:
    """Features of all files on every process; each runs the towers on its share."""

    def report(done: int, count: int) -> None:
        journal.tell("features", what=what, done=done, count=count)

    return place.merge_rows(encode_images(model, place.share(files), on_progress=report), len(files))


def _open_journal(config: RunConfig, place: World, listener: Listener | None, overwrite: bool) -> Journal:
    """The first process makes the run's folder and keeps its log; the others keep silent."""
    if not place.is_main:
        return Journal(None)
    open_run_folder(config, overwrite=overwrite)
    return Journal(config.output, config.track, config.model_dump(mode="json"), listener)


def _describe(model: MiniGPT4, config: RunConfig) -> CheckpointRecord:
    """What every checkpoint of this run says of itself, but for epoch and step."""
    assert model.processor is not None
    return CheckpointRecord(
        model=config.model.path,
        frozen=frozen_fingerprint(model),
        instruction=config.model.instruction,
        conversation=model.config.conversation,
        stop_symbol=model.processor.layout.conversation.stop_symbol,
        manifest_hash=manifest_hash(config.data.train),
        epoch=0,
        step=0,
        seed=config.seed,
        captune=__version__,
    )


def _save(epoch: int, model: MiniGPT4, record: CheckpointRecord, samples: TrainingSamples, output: Path) -> None:
    finished = (epoch + 1) * samples.steps_per_epoch
    with atomic_folder(checkpoint_folder(output, epoch)) as folder:
        save_trained(folder, trained_state(model), record.at(epoch, finished))
