"""The training run, from top to bottom.

Once: load, encode every image, evaluate the pretrained model. For every epoch: steps, checkpoint, evaluation. A run
that was killed anywhere goes on from its newest saved state with the same numbers.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

from torch import Tensor

from captune import __version__
from captune.config import RunConfig
from captune.data.atomic import atomic_folder
from captune.data.locks import folder_lock
from captune.data.manifest import manifest_hash, resolve_image
from captune.decoding import Caption
from captune.decoding.options import NON_FINITE_SCORES
from captune.errors import ConfigError, InputError, NonFiniteScoresError, StoppedError
from captune.evaluation import Evaluation, checkpoint_name, evaluation_set, training_images
from captune.events import Listener
from captune.features import StoredFeatures
from captune.hub import resolve_model
from captune.model import MiniGPT4
from captune.model.adapter import CheckpointRecord, frozen_fingerprint, save_trained, trained_state
from captune.report import CheckpointScores, read_scores, write_report
from captune.training.checkpoints import (
    Position,
    RunStatus,
    checkpoint_folder,
    inspect_run,
    open_run_folder,
    refuse_unless_free,
    run_status,
)
from captune.training.distributed import World, world
from captune.training.fsdp import Shards, held_bytes
from captune.training.optimizations import wanted_layers
from captune.training.preparation import (
    keep_image_record,
    keep_prompt,
    keep_quarantine,
    load_tunable,
    run_features,
    use_prompt,
    without_broken,
)
from captune.training.run_log import CostMeter, Journal, first_event
from captune.training.samples import TrainingSamples, TrainSlice
from captune.training.step import Stepper
from captune.training.stopping import listen_for_stop

__all__ = ["train"]


def train(config: RunConfig, listener: Listener | None = None, *, resume: bool = True, overwrite: bool = False) -> None:
    """Run a training from start to end, alone or as one of torchrun's processes.

    A run of the same configuration and data that is finished is left as it is; one that is not goes on.

    Args:
        config: everything that decides the run; its output folder receives all that comes out.
        listener: is told every event, for a progress bar.
        resume: go on with an unfinished run; otherwise it starts over.
        overwrite: move aside what else is in the output folder, into a folder inside it.

    Raises:
        InputError: the configuration, the data or the model cannot be used.
        TrainingError: too many steps had an infinite or undefined loss.
        StoppedError: a signal asked to stop; where the run is was saved.
    """
    # Whatever can be known to be wrong is known before anything is written or loaded.
    if run_status(config) is RunStatus.FINISHED:
        if listener is not None:
            listener({"event": "reused", "folder": str(config.output)})
        return
    with folder_lock(config.output, "captune train"):
        _train(config, listener, resume=resume, overwrite=overwrite)


def _train(config: RunConfig, listener: Listener | None, *, resume: bool, overwrite: bool) -> None:
    """Train in a folder that no other process writes into."""
    found = inspect_run(config)
    refuse_unless_free(found, overwrite=overwrite)
    resolve_model(config.model)
    images = training_images(config)
    samples = TrainingSamples(images, config.train, config.seed)
    evaluation = Evaluation(config, evaluation_set(config, listener))
    image_files = [resolve_image(config.data.train, image.image) for image in images]

    with world() as place:
        resuming = resume and found.status is RunStatus.UNFINISHED
        cost = CostMeter(place.device)
        stored = run_features(config, image_files, "training images", place, listener)
        test_stored = run_features(config, evaluation.image_files, "evaluation images", place, listener)
        test_features = test_stored.all_whole("evaluation images")
        whole = without_broken(images, stored)
        if place.is_main and not resuming:
            aside = open_run_folder(config, found)
            if aside is not None and listener is not None:
                listener({"event": "replaced", "folder": str(config.output), "moved_to": str(aside)})
        broken = {}
        if place.is_main or resuming:
            broken = keep_quarantine(config.output, images, stored, resuming=resuming)
            both = {"training images": stored, "evaluation images": test_stored}
            keep_image_record(config.output, both, resuming=resuming)
        place.wait()
        images = whole
        samples = TrainingSamples(images, config.train, config.seed)
        longest = samples.longest(2)
        examples = stored.features[[sample.image for sample in longest]]
        shards = Shards(place) if config.train.shard == "layers" and place.size > 1 else None
        together = nullcontext if shards is None else shards.together
        with nullcontext() if shards is None else shards.turn_to_load():
            model = load_tunable(
                config, place.device, [sample.captions[0] for sample in longest], examples, shards is not None
            )
            if resuming:
                use_prompt(config.output, model)
            elif place.is_main:
                keep_prompt(config.output, model)
            evaluation.sign_prompt_of(model)
            record = _describe(model, config)
            if shards is not None:
                shards.divide(model)
        compiled = wanted_layers(model, config.train, divided=shards is not None)
        stepper = Stepper(model, stored.features, samples, config, place, together, compiled)
        start = Position(0, 0, record.manifest_hash)
        if resuming:
            # The pretrained model was scored before the first state was saved, so its row is among these.
            start = stepper.restore(config.output) or start
            _check_steps(config, samples)
            evaluation.restore(_finished_rows(config, samples, start))
        with _open_journal(config, place, listener, start) as journal:
            journal.tell(
                "run",
                model=config.model.name,
                images=len(images),
                captions=samples.captions,
                steps_per_epoch=samples.steps_per_epoch,
                step_captions=samples.describe_steps(),
                batch_size=config.train.batch_size,
                exact=samples.exact,
                step=start.step,
                steps=samples.total_steps,
                processes=place.size,
                device=str(place.device),
            )
            if broken:
                journal.tell("quarantined", images=list(broken), reasons=list(broken.values()))
            if config.train.shard == "layers":
                held, together_bytes = held_bytes(model)
                journal.tell("sharded", processes=place.size, held=held, whole=together_bytes)
            learnt = TrainSlice(images, stored.features, config.evaluate.train_slice)
            run = _Run(
                config,
                model,
                test_features,
                samples,
                evaluation,
                learnt,
                stepper,
                place,
                together,
                journal,
                record,
                cost,
            )
            run.go(start)


def _open_journal(config: RunConfig, place: World, listener: Listener | None, start: Position) -> Journal:
    """The first process keeps the log and talks; the others are silent."""
    if not place.is_main:
        return Journal(None)
    return Journal(config.output, config.track, config.model_dump(mode="json"), listener, resumed_at=start.step)


@dataclass
class _Run:
    """A run whose parts are loaded."""

    config: RunConfig
    model: MiniGPT4
    test_features: StoredFeatures
    samples: TrainingSamples
    evaluation: Evaluation
    train_slice: TrainSlice
    stepper: Stepper
    place: World
    together: Callable[[], AbstractContextManager[None]]
    journal: Journal
    record: CheckpointRecord
    cost: CostMeter

    def go(self, start: Position) -> None:
        """Train from `start` to the end."""
        if not self.evaluation.has(None):
            self._evaluate(None)
        lora = self.config.train.lora
        # As it will be trained, but for dropout, which would make any two passes differ.
        self.model.train(lora is None or not lora.dropout)
        unpacked = self.stepper.probe()
        if unpacked is not None:
            self.journal.tell("unpacked", reason=unpacked)
        self.model.train()
        steps = self.samples.steps_per_epoch
        # A state that was saved at the very end of an epoch belongs to it until it is evaluated.
        for epoch in range(max(start.step - 1, 0) // steps, self.config.train.epochs):
            self._steps(epoch, range(max(epoch * steps, start.step), (epoch + 1) * steps))
            if not self.evaluation.has(epoch):
                self._save_checkpoint(epoch)
                self._evaluate(epoch)
        self.journal.tell("done", skipped_steps=self.stepper.skipped)

    def _steps(self, epoch: int, steps: range) -> None:
        """Optimiser steps of one epoch; some and the last are logged, some and the last are saved."""
        started, trained = time.monotonic(), 0
        with listen_for_stop() as stop:
            for step in steps:
                result = self.stepper.take(step)
                trained += result.captions
                figures = {"captions_per_s": round(trained / (time.monotonic() - started), 2), **asdict(result)}
                self.journal.tell("progress", step=step, steps=self.samples.total_steps, epoch=epoch, **figures)
                last = step + 1 == steps.stop
                if last or (step + 1) % self.config.log_every == 0:
                    self.journal.tell("step", step=step, epoch=epoch, **figures)
                asked = self.place.any(stop.asked)
                if asked or last or (step + 1) % self.config.save_every == 0:
                    self._save_state(step + 1)
                if asked:
                    # Another process may have been told before this one.
                    self._leave(step + 1, stop.signal or signal.SIGTERM)

    def _leave(self, step: int, number: signal.Signals) -> None:
        raise StoppedError(
            f"stopped by {number.name} after step {step} of {self.samples.total_steps}, which is saved; the same "
            "command goes on from there.",
            number,
        )

    def _evaluate(self, epoch: int | None) -> None:
        """Caption every evaluation image once over all processes; the first one scores and reports."""
        training = self.model.training
        self.model.eval()
        started = time.monotonic()

        def report(done: int, count: int) -> None:
            self.journal.tell("captions", epoch=epoch, done=done, count=count)

        own = self.test_features.every(self.place.size, self.place.rank)
        captions = self._captions(epoch, own, len(self.test_features), report)

        def caption_slice(features: Tensor) -> list[Caption]:
            return self._captions(epoch, features[self.place.rank :: self.place.size], len(features))

        learnt = self.train_slice.scores(caption_slice)
        if self.place.is_main:
            row = self.evaluation.add(epoch, captions, learnt)
            self.journal.tell("cost", **self.cost.read())
            write_report(self.config.output, self.evaluation.run_scores())
            seconds = round(time.monotonic() - started, 3)
            page = str(self.config.output / "report.html")
            self.journal.tell("evaluation", epoch=epoch, seconds=seconds, scores=dict(row.corpus), page=page)
        self.place.wait()
        self.model.train(training)

    def _captions(
        self,
        epoch: int | None,
        own: Tensor | StoredFeatures,
        count: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Captions of `count` images, of which this process makes its own; on every process.

        Raises:
            InputError: the scores of some are not numbers; all processes end.
        """
        mine: list[Caption] = []
        with self.together():
            try:
                mine, faulty = self.evaluation.caption(self.model, own, on_progress), False
            except NonFiniteScoresError:
                faulty = True
        if self.place.any(faulty):
            kept = "" if epoch is None else f" The checkpoints and the rows before it are in {self.config.output}."
            raise InputError(
                f"{checkpoint_name(epoch)}: {NON_FINITE_SCORES}; it is not scored, and training ends.{kept}"
            )
        return self.place.merge(mine, count)

    def _save_state(self, step: int) -> None:
        if self.place.is_main:
            at = Position(step, self.stepper.skipped, self.record.manifest_hash)
            self.stepper.save(self.config.output, at)

    def _save_checkpoint(self, epoch: int) -> None:
        if not self.place.is_main:
            return
        target = checkpoint_folder(self.config.output, epoch)
        with atomic_folder(target) as folder:
            save_trained(
                folder, trained_state(self.model), self.record.at(epoch, (epoch + 1) * self.samples.steps_per_epoch)
            )
        self.journal.tell("checkpoint", epoch=epoch, folder=str(target))


def _finished_rows(config: RunConfig, samples: TrainingSamples, start: Position) -> list[CheckpointScores]:
    """What was scored of the epochs that the saved state has behind it."""
    rows = read_scores(config.output).checkpoints
    return [row for row in rows if row.epoch is None or (row.epoch + 1) * samples.steps_per_epoch <= start.step]


def _check_steps(config: RunConfig, samples: TrainingSamples) -> None:
    """Refuse to resume a run whose steps an older captune dealt otherwise."""
    before = first_event(config.output / "log.jsonl", "run").get("steps", samples.total_steps)
    if before != samples.total_steps:
        raise ConfigError(
            f"The run in {config.output} was begun with {before} steps by an older captune, and this one divides the "
            f"same captions into {samples.total_steps}; finish it with that version, or start over with --resume never."
        )


def _describe(model: MiniGPT4, config: RunConfig) -> CheckpointRecord:
    """What every checkpoint of this run says of itself, but for epoch and step."""
    assert model.processor is not None
    parts = config.model
    return CheckpointRecord(
        model=config.model.name,
        frozen=frozen_fingerprint(model),
        instruction=config.model.instruction,
        conversation=model.config.conversation,
        stop_symbol=model.processor.layout.conversation.stop_symbol,
        manifest_hash=manifest_hash(config.data.train),
        epoch=0,
        step=0,
        seed=config.seed,
        captune=__version__,
        lora=model.config.lora,
        parts=None if parts.llm is None else {"llm": parts.llm, "vision": str(parts.vision)},
        wrapping=model.config.wrapping,
    )
