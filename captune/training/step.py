"""One optimiser step: the gradient of a global batch, whatever it is divided into."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from captune.config import RunConfig
from captune.errors import TrainingError
from captune.features import StoredFeatures
from captune.model import MiniGPT4
from captune.model.compiled import CompiledLayers
from captune.training.checkpoints import Position, load_newest, save_state
from captune.training.distributed import World
from captune.training.equivalence import probe
from captune.training.loss import Objective
from captune.training.optimizer import build_optimizer, learning_rate
from captune.training.samples import TrainingSample, TrainingSamples

__all__ = ["StepResult", "Stepper"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimiser step gave.

    Attributes:
        loss: mean negative log-likelihood of the step's targets, in nats.
        learning_rate: with which the step was taken.
        targets: number of target tokens over all processes.
        captions: number of captions over all processes.
        gradient_norm: length of the gradient before clipping.
    """

    loss: float
    learning_rate: float
    targets: int
    captions: int
    gradient_norm: float


class Stepper:
    """Takes optimiser steps.

    The loss of a step is the sum over all its target tokens divided by their number over all processes and
    micro-batches, so that neither changes the gradient.

    Args:
        model: its projection is trained.
        features: (I, Q, F) of all training images, in memory or on disk.
        samples: what is learnt in which step.
        config: of the run.
        place: this process among the others.
        together: within this the language model is run; of a divided one, `Shards.together`.
        compiled: the language model's layers, where they are to be compiled.

    Attributes:
        samples: the same, those with similar numbers of tokens together.
        skipped: steps whose loss was of no use.
    """

    def __init__(
        self,
        model: MiniGPT4,
        features: Tensor | StoredFeatures,
        samples: TrainingSamples,
        config: RunConfig,
        place: World,
        together: Callable[[], AbstractContextManager[None]] = nullcontext,
        compiled: CompiledLayers | None = None,
    ) -> None:
        self._objective = Objective(model, config.model.instruction, config.train.fast, compiled)
        self._features = features
        self.samples = samples.measured_by(self._objective.row_tokens)
        self._config = config
        self._place = place
        self._together = together
        self._names, self._parameters = map(list, zip(*model.trained_parameters(), strict=True))
        self._optimizer = build_optimizer(self._parameters, config.train)
        self._limit: int | None = None
        self.skipped = 0

    def take(self, step: int) -> StepResult:
        """Take optimiser step number `step`.

        Raises:
            TrainingError: the loss was infinite or undefined in too many steps; names the captions of this one.
        """
        lora = self._config.train.lora
        if lora is not None and lora.dropout:
            # A resumed run draws what the undisturbed one would have drawn.
            torch.manual_seed((self._config.seed << 40) + (step << 12) + self._place.rank)
        batch = self.samples.batch(step)
        rate = learning_rate(step, self.samples.total_steps, self._config.train)
        mine = self._place.share(batch)
        targets = int(self._place.sum(self._objective.target_count(mine)))
        with self._together():
            total = self._accumulate(mine, targets)
        self._place.sum_gradients(self._parameters)
        loss_of_step = self._place.sum(total)
        norm = self._apply(rate, loss_of_step, batch)
        captions = sum(len(sample.captions) for sample in batch)
        return StepResult(loss_of_step, rate, targets, captions, norm)

    def save(self, output: Path, at: Position) -> None:
        """Write all that is needed to go on from here."""
        save_state(output, self._names, self._parameters, self._optimizer, at)

    def restore(self, output: Path) -> Position | None:
        """Go back to the newest whole state of a run; None where there is none."""
        at = load_newest(output, self._names, self._parameters, self._optimizer)
        if at is not None:
            self.skipped = at.skipped
        return at

    def probe(self) -> str | None:
        """Try packed rows; returns why they are off from now on, for all samples or the long ones, or None.

        The two longest samples are tried with every instruction that the run mixes.
        """
        longest = self.samples.longest(2)
        instructions = self._config.train.instructions
        longest += [replace(longest[0], instruction=one) for one in instructions if one != longest[0].instruction]
        with self._together():
            return probe(self._objective, longest, self._images(longest))

    def _accumulate(self, samples: Sequence[TrainingSample], targets: int) -> float:
        """Gradients of this process's samples; when memory runs out, again in micro-batches half as large."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            total = torch.zeros((), dtype=torch.float64, device=self._place.device)
            size = self._micro_batch(samples)
            try:
                for start in range(0, len(samples), size):
                    work = samples[start : start + size]
                    # One forward, then its backward: the layers of a divided language model are gathered in this order.
                    for part in ([work[n] for n in places] for places in self._objective.parts(work)):
                        loss = self._objective.loss(part, self._images(part)) / targets
                        loss.backward()  # type: ignore[no-untyped-call]
                        total += loss.detach()
                return float(total)
            except RuntimeError as error:
                if self._objective.gave_up_compiling(error):
                    continue
                if not _is_out_of_memory(error):
                    raise
                if size == 1:
                    raise TrainingError(
                        "Not even one image with its captions fits into memory; shorten the captions, lower "
                        "train.captions_per_image, or choose a smaller number format."
                    ) from error
            # Outside the handler, which keeps the failed pass's tensors alive.
            self._limit = -(-size // 2)
            logger.warning("out of memory: going on with micro-batches of %d image(s)", self._limit)
            if self._place.device.type == "cuda":
                torch.cuda.empty_cache()

    def _micro_batch(self, samples: Sequence[TrainingSample]) -> int:
        """How many samples are worked on at once: as set in captions, and no more than memory has shown to take."""
        captions = max((len(sample.captions) for sample in samples), default=1)
        wanted = self._config.train.micro_batch_size
        size = max(len(samples), 1) if wanted is None else max(1, wanted // captions)
        return size if self._limit is None else min(size, self._limit)

    def _images(self, samples: Sequence[TrainingSample]) -> Tensor:
        return self._features[[sample.image for sample in samples]].to(self._place.device)

    def _apply(self, rate: float, loss: float, batch: Sequence[TrainingSample]) -> float:
        """Clip and apply the gradient, unless it is of no use; returns its length."""
        limit = self._config.train.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self._parameters, math.inf if limit is None else limit))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped += 1
            if self.skipped > self._config.train.max_nonfinite_steps:
                named = "; ".join(repr(sample.captions[0][:60]) for sample in batch[:3])
                raise TrainingError(
                    f"The loss was infinite or undefined in {self.skipped} steps, last on {named}; lower "
                    "train.learning_rate, or look at these captions."
                )
            return norm
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        return norm


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
