"""The training run from top to bottom: setup, epochs, step.

A run loads its parts, encodes every image once and evaluates the pretrained model. Each epoch is a number of optimizer
steps, a checkpoint and an evaluation. A run that was killed at any point resumes from its newest saved state and gives
the same numbers.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from captune.config import RunConfig, TrainConfig
from captune.data import Sample, atomic_folder
from captune.decoding import is_out_of_memory
from captune.distributed import CollectiveForward, DistributedContext, distributed_context
from captune.errors import InputError, StoppedError, TrainingError
from captune.evaluation import Evaluation, EvaluationSet
from captune.events import Listener
from captune.hub import ResolvedModel
from captune.report import write_report
from captune.run_checkpoints import checkpoint_folder
from captune.run_folders import record_user
from captune.training.checkpoints import TrainState, restore_state, save_state
from captune.training.evaluator import Evaluator
from captune.training.minigpt4 import prepare_minigpt4
from captune.training.optimizer import build_optimizer, learning_rate
from captune.training.run_folder import Inspection, RunStatus, clear_refused_run, store_config
from captune.training.run_log import CostMeter, RunLogger
from captune.training.run_parts import RunParts, TrainingObjective, TunableModel
from captune.training.sample_order import TrainingSample, TrainingSamples
from captune.training.saved_states import TrainProgress, finished_rows, require_same_steps
from captune.training.selection import EarlyStop, best_row, link_best, remove_others, selected_metric
from captune.training.signals import handle_stop_signals
from captune.training.start_checkpoint import START, StartCheckpoint, store_start
from captune.training.vlm_model import prepare_image_text_model
from captune.vlm import is_image_text_model

__all__ = ["StepResult", "TrainStep", "Trainer", "run_training"]

logger = logging.getLogger(__name__)


def run_training(
    config: RunConfig,
    source: ResolvedModel,
    images: Sequence[Sample],
    evaluated: EvaluationSet,
    listener: Listener | None,
    folder: Inspection,
    start: StartCheckpoint | None,
    *,
    resuming: bool,
) -> None:
    """Train a run that was checked; the lock of its folder is held.

    Args:
        config: of the run.
        source: the model.
        images: all training images.
        evaluated: the images and references that every checkpoint is scored on.
        listener: receives every event.
        folder: status of the output folder.
        start: the checkpoint from which the run starts.
        resuming: continue the unfinished run in the folder.
    """
    evaluation = Evaluation(config, evaluated)
    with (
        distributed_context() as dist,
        setup(
            config, source, images, evaluation, dist, listener, None if resuming else folder, folder.stored, start
        ) as trainer,
    ):
        trainer.run()


@contextmanager
def setup(
    config: RunConfig,
    source: ResolvedModel,
    images: Sequence[Sample],
    evaluation: Evaluation,
    dist: DistributedContext,
    listener: Listener | None,
    folder: Inspection | None,
    stored: RunConfig | None = None,
    start: StartCheckpoint | None = None,
) -> Iterator[Trainer]:
    """Load all parts of a run, and open its log.

    Args:
        config: of the run.
        source: the model.
        images: all training images.
        evaluation: captions and scores.
        dist: this process among the others.
        listener: receives every event.
        folder: status of a new run's output folder; None to resume.
        stored: the configuration in the folder of a run that resumes, if it has other epochs or selects otherwise.
        start: the checkpoint from which the run starts.
    """
    cost = CostMeter(dist.device)
    output, resuming = config.output, folder is None

    # The model, its objective, and the images: encoded once, before training, or read in every step.
    if listener is not None and dist.is_main:
        listener({"event": "stage", "what": "Loading the model"})
    prepare = prepare_image_text_model if is_image_text_model(source) else prepare_minigpt4
    try:
        parts = prepare(config, source, images, evaluation, dist, listener, folder, start)
    except InputError:
        if dist.is_main and folder is not None and folder.status is RunStatus.EMPTY:
            clear_refused_run(output)
        raise
    if dist.is_main:
        record_user(config.feature_folder, output)

    # The training step and its state.
    step = TrainStep(
        parts.model,
        parts.objective,
        parts.images,
        parts.features,
        config.train,
        seed=config.seed,
        dist=dist,
        collective_forward=parts.collective_forward,
    )
    samples = step.samples
    if start is not None and not resuming and dist.is_main:
        store_start(output, start, parts.record, parts.save_checkpoint)
    step.progress.manifest_hash = parts.record.manifest_hash
    if resuming:
        # The pretrained model was scored before the first state was saved, so its row is included.
        restore_state(output, step.state)
        require_same_steps(output, samples.steps_per_epoch)
        evaluation.restore(finished_rows(output, step.progress.step, samples.steps_per_epoch))
    evaluator = Evaluator(evaluation, parts, config.evaluate.train_slice, dist)

    # Only the main process logs and reports.
    log = RunLogger(None)
    if dist.is_main:
        settings = config.model_dump(mode="json")
        log = RunLogger(output, config.tracker, settings, listener, resumed_at=step.progress.step, cost=cost)
    with log:
        log.log(
            "run",
            model=config.model.name,
            images=len(parts.images),
            captions=samples.captions,
            steps_per_epoch=samples.steps_per_epoch,
            step_captions=samples.describe_steps(),
            batch_size=config.train.batch_size,
            exact=samples.exact,
            step=step.progress.step,
            steps=samples.total_steps,
            processes=dist.size,
            device=str(dist.device),
            **({} if start is None else {"start": start.ancestors[-1]["checkpoint"]}),
        )
        if resuming and stored is not None and dist.is_main:
            _adopt_settings(config, stored, step, log)
        if dist.is_main and samples.total_steps <= config.train.warmup_steps:
            logger.warning(
                "train.warmup_steps is %d, and the run has %d steps, so the learning rate never reaches %g; set "
                "train.warmup_steps to a tenth of the steps.",
                config.train.warmup_steps,
                samples.total_steps,
                config.train.learning_rate,
            )
        if parts.quarantined:
            log.log("quarantined", images=list(parts.quarantined), reasons=list(parts.quarantined.values()))
        if parts.sharded_bytes is not None:
            local, total = parts.sharded_bytes
            log.log("sharded", processes=dist.size, held=local, total=total)
        if parts.notes:
            log.log("computation", **parts.notes)
        yield Trainer(config, parts, step, evaluator, log)


def _adopt_settings(config: RunConfig, stored: RunConfig, step: TrainStep, log: RunLogger) -> None:
    """Log the number of epochs that a run continues with, and store its configuration."""
    if config.train.epochs != stored.train.epochs:
        number, total = step.progress.step, step.samples.total_steps
        steps_before = step.samples.steps_per_epoch * stored.train.epochs
        log.log(
            "extended",
            step=number,
            steps=total,
            steps_before=steps_before,
            epochs=config.train.epochs,
            epochs_before=stored.train.epochs,
            learning_rate=learning_rate(number, total, config.train),
            learning_rate_before=learning_rate(number, steps_before, stored.train),
        )
    # Last: a process that dies before it finds the settings as they were.
    store_config(config)


class Trainer:
    """The epochs of a run, each with steps, a checkpoint and an evaluation.

    Args:
        config: of the run.
        parts: model, images and checkpoint writer.
        step: takes the optimizer steps.
        evaluator: captions and scores.
        log: of the run.
    """

    def __init__(
        self, config: RunConfig, parts: RunParts, step: TrainStep, evaluator: Evaluator, log: RunLogger
    ) -> None:
        self.config, self.parts, self.step, self.evaluator, self.log = config, parts, step, evaluator, log
        self.model, self.samples, self.dist = parts.model, step.samples, step.dist
        rules = evaluator.evaluation.images.rules
        self.metric = selected_metric(config.train, rules.metrics)
        if evaluator.evaluation.images.leak is not None and config.train.early_stop is not None:
            logger.warning("train.early_stop has no effect: scores that are marked LEAK select no epoch.")
        self.early_stop = EarlyStop(config.train.early_stop, self.metric, evaluator.evaluation)

    def run(self) -> None:
        """Train from the current progress to the end."""
        if not self.evaluator.has(None):
            self.evaluate(None)
        # Compared in training mode but without dropout, which would make any two passes differ.
        lora = self.config.train.lora
        self.model.train(lora is None or not lora.dropout)
        reason = self.step.check_packing()
        if reason is not None:
            self.log.log("unpacked", reason=reason)
        self.model.train()
        steps = self.samples.steps_per_epoch
        done = self.step.progress.step
        # A state that was saved at the very end of an epoch belongs to it until it is evaluated.
        for epoch in range(max(done - 1, 0) // steps, self.config.train.epochs):
            if self.stops_early():
                break
            self.train_epoch(epoch, range(max(epoch * steps, done), (epoch + 1) * steps))
            if not self.evaluator.has(epoch):
                self.save_checkpoint(epoch)
                self.evaluate(epoch)
            self.select_checkpoints()
        self.log.log("done", skipped_steps=self.step.progress.skipped)

    def train_epoch(self, epoch: int, steps: range) -> None:
        """Take the steps of an epoch; every `log_every`-th and the last are logged, every `save_every`-th is saved."""
        start, captions = time.monotonic(), 0
        with handle_stop_signals() as stop:
            for step in steps:
                result = self.step.run(step)
                captions += result.captions
                figures = {"captions_per_s": round(captions / (time.monotonic() - start), 2), **asdict(result)}
                last = step + 1 == steps.stop

                self.log.log("progress", step=step, steps=self.samples.total_steps, epoch=epoch, **figures)
                if last or (step + 1) % self.config.log_every == 0:
                    self.log.log("step", step=step, epoch=epoch, **figures)

                # The signal may have reached another process only.
                stopping = self.dist.any_rank(stop.requested)
                if stopping or last or (step + 1) % self.config.save_every == 0:
                    self.save_state()
                if stopping:
                    name = stop.signal or signal.SIGTERM
                    raise StoppedError(
                        f"stopped by {name.name} after step {step + 1} of {self.samples.total_steps}, which is saved; "
                        "the same command resumes there.",
                        name,
                    )

    def evaluate(self, epoch: int | None) -> None:
        """Caption the evaluation images in all processes; the main process scores them and writes the report."""
        training, start = self.model.training, time.monotonic()
        named = {} if epoch is not None or self.config.train.start is None else {"name": START}
        self.model.eval()
        row = self.evaluator.evaluate(
            epoch, lambda done, count: self.log.log("captions", epoch=epoch, done=done, count=count, **named)
        )
        if self.dist.is_main:
            self.log.log_cost()
            self.log.log("stage", what="Writing the report")
            write_report(self.config.output, self.evaluator.evaluation.run_scores())
            seconds = round(time.monotonic() - start, 3)
            page = str(self.config.output / "report.html")
            thinking = self.evaluator.evaluation.rows[-1].thinking_counts
            self.log.log("evaluation", epoch=epoch, **named, seconds=seconds, scores=row, page=page, **thinking)
        self.dist.barrier()
        self.model.train(training)

    def stops_early(self) -> bool:
        """Whether training stops before its last epoch; the main process decides."""
        decided = (self.early_stop.reason() if self.dist.is_main else None) or ""
        reason = self.dist.all_gather(decided)[0]
        if reason:
            scored = [row.epoch for row in self.evaluator.evaluation.rows if row.epoch is not None]
            epoch = max(scored, default=None)  # empty in the other processes, which log nothing
            self.log.log("early_stop", epoch=epoch, reason=reason)
        return bool(reason)

    def select_checkpoints(self) -> None:
        """Link the best checkpoint, and delete those that are not kept."""
        if not self.dist.is_main:
            return
        output, rows = self.config.output, self.evaluator.evaluation.rows
        best = best_row(rows, self.metric, output)
        if best is not None:
            link_best(output, best)
        removed = remove_others(output, self.config.train.keep, rows, best, self.parts.record)
        if removed:
            logger.info("deleted %s", ", ".join(map(str, removed)))

    def save_state(self) -> None:
        """Save the state to resume from."""
        if self.dist.is_main:
            save_state(self.config.output, self.step.state)

    def save_checkpoint(self, epoch: int) -> None:
        """Save the trained weights after an epoch."""
        if not self.dist.is_main:
            return
        target = checkpoint_folder(self.config.output, epoch)
        record = self.parts.record.at(epoch, (epoch + 1) * self.samples.steps_per_epoch)
        with atomic_folder(target) as folder:
            self.parts.save_checkpoint(folder, record)
        self.log.log("checkpoint", epoch=epoch, folder=str(target))


@dataclass(frozen=True, slots=True)
class StepResult:
    """The figures of one optimizer step.

    Attributes:
        loss: mean negative log-likelihood of the step's targets, in nats.
        learning_rate: of this step.
        targets: number of target tokens over all processes.
        captions: number of captions over all processes.
        gradient_norm: L2 norm of the gradient before clipping.
    """

    loss: float
    learning_rate: float
    targets: int
    captions: int
    gradient_norm: float


class TrainStep:
    """Takes optimizer steps.

    The loss of a step is the sum over all its target tokens divided by their number over all processes and
    micro-batches, so neither changes the gradient.

    Args:
        model: whose parameters are trained.
        objective: the loss.
        images: I training images.
        features: of the images.
        config: of the training.
        seed: of the order of samples and of dropout.
        dist: this process among the others.
        collective_forward: context for all runs of the language model.

    Attributes:
        samples: of each step.
        state: trained parameters, optimizer and progress.
    """

    def __init__(
        self,
        model: TunableModel,
        objective: TrainingObjective,
        images: Sequence[Sample],
        features: Any,
        config: TrainConfig,
        *,
        seed: int,
        dist: DistributedContext,
        collective_forward: CollectiveForward = nullcontext,
    ) -> None:
        self.model, self.objective, self.dist = model, objective, dist
        self.samples = TrainingSamples(images, config, seed, objective.row_tokens)
        parameters = dict(model.trained_parameters())
        self.state = TrainState(parameters, build_optimizer(list(parameters.values()), config), TrainProgress())
        self._features, self._config, self._collective_forward = features, config, collective_forward
        self._max_micro_batch: int | None = None

    @property
    def progress(self) -> TrainProgress:
        """Number of steps taken and skipped."""
        return self.state.progress

    def run(self, step: int) -> StepResult:
        """Take optimizer step number `step`.

        Raises:
            TrainingError: the loss was infinite or undefined in too many steps; names the captions.
        """
        if self._config.lora is not None and self._config.lora.dropout:
            # A resumed run draws what the uninterrupted one would have drawn.
            torch.manual_seed((self.samples.seed << 40) + (step << 12) + self.dist.rank)
        batch = self.samples.batch(step)
        shard = self.dist.shard(batch)
        targets = int(self.dist.all_reduce_sum(self.objective.target_count(shard)))

        with self._collective_forward():
            loss = self._forward_backward(shard, targets)
        loss = self.dist.all_reduce_sum(loss)
        self.dist.all_reduce_gradients(list(self.state.parameters.values()))

        rate = learning_rate(step, self.samples.total_steps, self._config)
        norm = self._clip_and_apply(rate, loss, batch)
        self.progress.step = step + 1
        return StepResult(loss, rate, targets, sum(len(sample.captions) for sample in batch), norm)

    def check_packing(self) -> str | None:
        """Compare the gradient with that of plain rows on the two longest samples, with every instruction of the run.

        Returns:
            Why packing is now off, for all samples or for long ones; None if it is exact.
        """
        samples = self.samples.longest(2)
        samples += [
            replace(samples[0], instruction=i) for i in self._config.instructions if i != samples[0].instruction
        ]
        with self._collective_forward():
            return self.objective.check(samples, self._images(samples))

    def _forward_backward(self, samples: Sequence[TrainingSample], targets: int) -> float:
        """Accumulate gradients over micro-batches; out of memory, retry with micro-batches half as large."""
        while True:
            self.state.optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), dtype=torch.float64, device=self.dist.device)
            size = self._micro_batch_size(samples)
            try:
                for micro_batch in self._micro_batches(samples, size):
                    # Each forward is followed by its backward, the order in which a sharded model is gathered.
                    loss = self.objective.loss(micro_batch, self._images(micro_batch)) / targets
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += loss.detach()
                return float(total)
            except RuntimeError as error:
                if self.objective.recover_from_compile_error(error):
                    continue
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise TrainingError(
                        "Not even one image with its captions fits into memory; shorten the captions, lower "
                        "train.captions_per_image, or choose a smaller number format."
                    ) from error
            # Outside the handler, which keeps the failed pass's tensors alive.
            self._max_micro_batch = -(-size // 2)
            logger.warning("out of memory: continuing with micro-batches of %d image(s)", self._max_micro_batch)
            if self.dist.device.type == "cuda":
                torch.cuda.empty_cache()

    def _micro_batches(self, samples: Sequence[TrainingSample], size: int) -> Iterator[list[TrainingSample]]:
        """Groups of up to `size` samples that one forward pass can compute."""
        for start in range(0, len(samples), size):
            candidates = samples[start : start + size]
            for indices in self.objective.packing_groups(candidates):
                yield [candidates[index] for index in indices]

    def _micro_batch_size(self, samples: Sequence[TrainingSample]) -> int:
        """Samples of a micro-batch: as configured in captions, limited after running out of memory."""
        captions = max((len(sample.captions) for sample in samples), default=1)
        configured = self._config.micro_batch_size
        size = max(len(samples), 1) if configured is None else max(1, configured // captions)
        return size if self._max_micro_batch is None else min(size, self._max_micro_batch)

    def _images(self, samples: Sequence[TrainingSample]) -> Any:
        return self._features[[sample.image for sample in samples]].to(self.dist.device)

    def _clip_and_apply(self, rate: float, loss: float, batch: Sequence[TrainingSample]) -> float:
        """Clip and apply the gradient, unless it is infinite or undefined; returns its norm."""
        clip_norm = math.inf if self._config.clip_norm is None else self._config.clip_norm
        norm = float(nn.utils.clip_grad_norm_(list(self.state.parameters.values()), clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.progress.skipped += 1
            if self.progress.skipped > self._config.max_nonfinite_steps:
                captions = "; ".join(repr(sample.captions[0][:60]) for sample in batch[:3])
                raise TrainingError(
                    f"The loss was infinite or undefined in {self.progress.skipped} steps, last on {captions}; lower "
                    "train.learning_rate, or check these captions."
                )
            return norm
        for group in self.state.optimizer.param_groups:
            group["lr"] = rate
        self.state.optimizer.step()
        return norm
