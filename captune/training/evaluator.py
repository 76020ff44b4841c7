"""Evaluation during training: captions over all processes, of the evaluation images and of a training subset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from captune.data import Sample
from captune.decoding import NON_FINITE_SCORES, Caption
from captune.distributed import DistributedContext
from captune.errors import InputError, NonFiniteScoresError
from captune.evaluation import Evaluation, checkpoint_name
from captune.metrics import Scorer
from captune.training.run_parts import ImageSource, RunParts

__all__ = ["Evaluator", "TrainSubset"]


class Evaluator:
    """Captions the evaluation images and a subset of the training images, each image in one process.

    Args:
        evaluation: scores them, on the main process.
        parts: captions images of the run.
        train_slice: number of training images.
        dist: this process among the others.
    """

    def __init__(self, evaluation: Evaluation, parts: RunParts, train_slice: int, dist: DistributedContext) -> None:
        self.evaluation = evaluation
        self._parts, self._features, self._dist = parts, parts.evaluation_features, dist
        self._train_subset = TrainSubset(parts.images, parts.subset_features, train_slice)

    def has(self, epoch: int | None) -> bool:
        """Whether an epoch, or the pretrained model, is scored."""
        return self.evaluation.has(epoch)

    def evaluate(self, epoch: int | None, on_progress: Callable[[int, int], None]) -> dict[str, float]:
        """Caption with the model in eval mode over all processes, and score in the main one.

        Args:
            epoch: None for the pretrained model.
            on_progress: receives how many evaluation images this process has captioned, of how many.

        Returns:
            The corpus scores; empty in the other processes.

        Raises:
            InputError: the scores of some tokens are not numbers, in any process.
        """
        rank, size = self._dist.rank, self._dist.size

        def caption_subset(features: Any) -> list[Caption]:
            return self._caption(epoch, features[rank::size], len(features))

        shard = self._features.every(size, rank)
        captions = self._caption(epoch, shard, len(self._features), on_progress)
        subset_scores = self._train_subset.scores(caption_subset)
        return dict(self.evaluation.add(epoch, captions, subset_scores).corpus) if self._dist.is_main else {}

    def _caption(
        self,
        epoch: int | None,
        shard: Any,
        count: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Caption]:
        """Captions of `count` images, of which this process makes those of its shard; on every process."""
        captions: list[Caption] = []
        with self._parts.collective_forward():
            try:
                captions, failed = self._parts.caption(shard, on_progress), False
            except NonFiniteScoresError:
                failed = True
        if self._dist.any_rank(failed):
            output = self.evaluation.output
            kept = "" if epoch is None else f" The checkpoints and the rows before it are in {output}."
            name = checkpoint_name(epoch, self.evaluation.config)
            raise InputError(f"{name}: {NON_FINITE_SCORES}; it is not scored, and training ends.{kept}")
        return self._dist.gather(captions, count)


class TrainSubset:
    """Every k-th training image, scored against its own captions: how much a model over-fits.

    Args:
        images: the training images.
        features: of these.
        count: how many are taken.

    Attributes:
        features: of the N images that were taken.
    """

    def __init__(self, images: Sequence[Sample], features: ImageSource, count: int) -> None:
        indices = sorted({number * len(images) // count for number in range(count)}) if count else []
        subset = {index: images[index] for index in indices if images[index].captions}
        self._ids = [image.id for image in subset.values()]
        # CIDEr of fewer than two images is undefined.
        self._scorer = Scorer({i.id: list(i.captions) for i in subset.values()}) if len(subset) > 1 else None
        self.features: Any = features[list(subset)] if self._scorer is not None else None

    def scores(self, caption: Callable[[Any], list[Caption]]) -> dict[str, float]:
        """Corpus scores of the subset.

        Args:
            caption: captions all of the subset's images from their features.
        """
        if self._scorer is None or self.features is None:
            return {}
        captions = caption(self.features)
        texts = {image: caption.text for image, caption in zip(self._ids, captions, strict=True)}
        return dict(self._scorer.score(texts).corpus)
