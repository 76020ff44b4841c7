"""The loss of a transformers model: each image in a separate forward pass, or several images in one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captune.common import error_text
from captune.config import TrainConfig
from captune.decoding import is_out_of_memory
from captune.model import fed_tokens
from captune.training.sample_order import TrainingSample
from captune.vlm import (
    EXACT,
    EXACT_IN_HALF,
    Computation,
    ImageFeatures,
    ImageTextModel,
)

__all__ = ["ImageTextObjective", "images_at_once"]

logger = logging.getLogger(__name__)


def images_at_once(config: TrainConfig, captions: int) -> int:
    """Images per forward pass with so many captions each: one, unless `micro_batch_size` is set to more captions."""
    return max(1, (config.micro_batch_size or 0) // max(1, captions))


class ImageTextObjective:
    """Negative log-likelihood of samples' captions under a transformers model, summed over target tokens.

    Args:
        model: the model.
        computation: how the loss is computed.
        images_at_once: images per forward pass, if they are computed from features in packed rows.
    """

    def __init__(self, model: ImageTextModel, computation: Computation, images_at_once: int = 1) -> None:
        self._model, self.computation = model, computation
        self._images_at_once = images_at_once if computation.features and computation.packed else 1

    def target_count(self, samples: Sequence[TrainingSample]) -> int:
        """Number of target tokens, ends of turns included."""
        return sum(len(ids) for sample in samples for ids in self._target_ids(sample))

    def row_tokens(self, sample: TrainingSample) -> int:
        """Tokens of a sample's row after its prompt."""
        return fed_tokens(self._target_ids(sample))

    def packing_groups(self, samples: Sequence[TrainingSample]) -> list[list[int]]:
        """Groups of as many images as one forward pass computes."""
        size = self._images_at_once
        return [list(range(start, min(start + size, len(samples)))) for start in range(0, len(samples), size)]

    def loss(self, samples: Sequence[TrainingSample], features: Any) -> Tensor:
        """Summed loss, in nats.

        Args:
            samples: B samples.
            features: the images or their features.
        """
        images = list(features)
        if self._images_at_once == 1:
            return self._separate_loss(samples, images)
        losses = []
        for group in self._batches(samples, images):
            batch = [samples[index] for index in group]
            captions, instructions = [one.captions for one in batch], [one.instruction for one in batch]
            losses.append(self._model.batch_loss([images[index] for index in group], captions, instructions))
        return torch.stack(losses).sum()

    def _separate_loss(self, samples: Sequence[TrainingSample], images: Sequence[Any]) -> Tensor:
        """The same with one forward pass per image."""
        losses = [
            self._model.loss(image, sample.captions, sample.instruction, packed=self.computation.packed)
            for sample, image in zip(samples, images, strict=True)
        ]
        return torch.stack(losses).sum()

    def _batches(self, samples: Sequence[TrainingSample], images: Sequence[ImageFeatures]) -> list[list[int]]:
        """Indices of images whose inputs can be concatenated."""
        batches: list[list[int]] = []
        for index, (sample, image) in enumerate(zip(samples, images, strict=True)):
            for batch in batches:
                first, text = images[batch[0]], samples[batch[0]].instruction
                fits = len(batch) < self._images_at_once
                if fits and self._model.can_share_batch((first.size, image.size), (text, sample.instruction)):
                    batch.append(index)
                    break
            else:
                batches.append([index])
        return batches

    def check(self, samples: Sequence[TrainingSample], features: Any) -> str | None:
        """Why the loss is not computed in the fastest way; None if it is.

        The comparison of computations was made before the run; that of several images in a batch is made here.
        """
        if self._images_at_once > 1:
            images = list(features)
            allowed = EXACT if self._model.model.dtype == torch.float32 else EXACT_IN_HALF
            try:
                batched = self._gradient(self.loss(samples, images))
                separate = self._gradient(self._separate_loss(samples, images))
                difference = float((batched - separate).norm() / separate.norm())
                reason = f"the gradient of a batch differs by {difference:.1e}" if not difference <= allowed else ""
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                reason = f"a batch fails ({error_text(error)[:100]})"
            if reason:
                self._images_at_once = 1
                return f"One image is computed at a time: {reason}."
        return None if self.computation.features and self.computation.packed else self.computation.describe()

    def _gradient(self, loss: Tensor) -> Tensor:
        parameters = [parameter for _, parameter in self._model.trained_parameters()]
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if part is None else part for part, p in zip(parts, parameters, strict=True)]
        return torch.cat([part.detach().double().flatten().cpu() for part in filled])

    def recover_from_compile_error(self, error: Exception) -> bool:
        """Nothing is compiled."""
        return False

    def _target_ids(self, sample: TrainingSample) -> list[tuple[int, ...]]:
        return [self._model.conversation.target_ids(caption, sample.instruction) for caption in sample.captions]
