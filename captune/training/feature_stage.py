"""The features of a run before training: `captune features`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from captune.captioner import probe_images
from captune.config import RunConfig
from captune.data import resolve_image
from captune.distributed import distributed_context
from captune.evaluation import decoding_options, evaluation_set, training_images
from captune.events import Listener
from captune.hub import resolve_model
from captune.training.preparation import run_features
from captune.training.vlm_model import (
    feature_functions,
    load_image_text_for_training,
)
from captune.vlm import CaptionGenerator, is_image_text_model

__all__ = ["FeatureStage", "store_features"]


@dataclass(frozen=True)
class FeatureStage:
    """The result of encoding all images of a run.

    Attributes:
        folder: of the feature store.
        broken: why some images have no features.
    """

    folder: Path
    broken: tuple[str, ...]


def store_features(config: RunConfig, listener: Listener | None = None) -> FeatureStage:
    """Store the features of a run's training and evaluation images.

    Where a transformers model captions from images only, the evaluation images are only checked.

    Args:
        config: of the run.
        listener: receives the progress.

    Raises:
        InputError: configuration, data or model cannot be used.
    """
    source = resolve_model(config.model)
    training = [resolve_image(config.data.train, image.image) for image in training_images(config)]
    evaluated = evaluation_set(config, listener)
    tested = [resolve_image(evaluated.manifest, image.image) for image in evaluated.images]
    with distributed_context() as dist:
        if is_image_text_model(source):
            instruction = config.model.custom_instruction
            model = load_image_text_for_training(source, config.train, instruction, config.seed, dist.device)
            of_training, pixels = feature_functions(model, source, config, dist, listener)
            captions_features = CaptionGenerator(model).supports(decoding_options(config), probe_images()[0])
            of_evaluation = of_training if captions_features else pixels
        else:
            of_training = of_evaluation = partial(run_features, source, config, dist=dist, listener=listener)
        stored = [of_training(training, "training images"), of_evaluation(tested, "evaluation images")]
    return FeatureStage(config.feature_folder, tuple(item.reason for images in stored for item in images.unreadable))
