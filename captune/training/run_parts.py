"""The parts of a run that depend on the kind of its model, and what the training loop needs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from captune.data import Sample
from captune.decoding import Caption
from captune.distributed import CollectiveForward
from captune.run_checkpoints import CheckpointRecord
from captune.training.sample_order import TrainingSample

__all__ = ["ImageSource", "RunParts", "TrainingObjective", "TunableModel"]


class TunableModel(Protocol):
    """A model in training: a MiniGPT-4 or a model of transformers."""

    @property
    def training(self) -> bool:
        """Whether dropout of the trained parts is active."""
        ...

    def train(self, mode: bool = True) -> Any:
        """Set the mode of the trained parts."""
        ...

    def eval(self) -> Any:
        """Set all parts to eval mode."""
        ...

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and tensors of the trained parameters."""
        ...

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of the trained parameters, on the CPU in float32."""
        ...

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Set the trained parameters."""
        ...

    def frozen_fingerprint(self) -> str:
        """Fingerprint of the frozen parameters."""
        ...


class TrainingObjective(Protocol):
    """The loss of samples, summed over target tokens."""

    def target_count(self, samples: Sequence[TrainingSample]) -> int:
        """Number of target tokens, ends included."""
        ...

    def row_tokens(self, sample: TrainingSample) -> int:
        """Tokens of a sample's row after its prompt; samples of similar length share a step."""
        ...

    def packing_groups(self, samples: Sequence[TrainingSample]) -> list[list[int]]:
        """Indices of samples that one forward pass computes."""
        ...

    def loss(self, samples: Sequence[TrainingSample], features: Any) -> Tensor:
        """Summed negative log-likelihood in nats.

        Args:
            samples: B samples.
            features: of their images, from the run's `ImageSource`, on the model's device.
        """
        ...

    def check(self, samples: Sequence[TrainingSample], features: Any) -> str | None:
        """Compare the gradient with that of the model's own forward; returns what is slower than possible, and why."""
        ...

    def recover_from_compile_error(self, error: Exception) -> bool:
        """Whether an error comes from the compiler, which is not used from now on."""
        ...


class ImageSource(Protocol):
    """The images of a run, as features in memory or on disk, or as pixels."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """Those of some images, on the CPU, with a method `to(device)`."""
        ...

    def every(self, step: int, first: int = 0) -> ImageSource:
        """Every `step`-th image, beginning with image `first`."""
        ...


@dataclass(frozen=True)
class RunParts:
    """The parts of a run.

    Attributes:
        model: whose parameters are trained.
        objective: its loss.
        images: I training images, without unreadable ones.
        features: of these.
        evaluation_features: of the N evaluation images.
        subset_features: of the training images, to caption some of them.
        quarantined: why training images are left out, by their ids.
        record: of every checkpoint, except epoch and step.
        save_checkpoint: writes a checkpoint into an existing folder.
        caption: captions images of `features` or `evaluation_features`; gets a function for (done, count).
        collective_forward: context for all runs of the language model.
        sharded_bytes: of the language model in this process and in all, if it is sharded.
        notes: what was decided at the start, for the log.
    """

    model: TunableModel
    objective: TrainingObjective
    images: list[Sample]
    features: ImageSource
    evaluation_features: ImageSource
    subset_features: ImageSource
    quarantined: dict[str, str]
    record: CheckpointRecord
    save_checkpoint: Callable[[Path, CheckpointRecord], None]
    caption: Callable[[Any, Callable[[int, int], None] | None], list[Caption]]
    collective_forward: CollectiveForward = nullcontext
    sharded_bytes: tuple[int, int] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
