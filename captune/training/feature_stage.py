"""The features of a run before training: `captune features`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.config import RunConfig
from captune.data import resolve_image
from captune.distributed import distributed_context
from captune.evaluation import evaluation_set, training_images
from captune.events import Listener
from captune.features import StoredImages, image_features_of, image_pixels_of, store_root
from captune.hub import resolve_model
from captune.training.image_text_model import configured_instruction, load_image_text_for_training
from captune.training.preparation import run_features
from captune.vlm import is_image_text_model

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
    """Store the features of a run's images; evaluation of a transformers model uses the images, which are only checked.

    Args:
        config: of the run.
        listener: receives the progress.

    Raises:
        InputError: configuration, data or model cannot be used.
    """
    source, root, exif = resolve_model(config.model), store_root(config), config.exif_rotation
    training = [resolve_image(config.data.train, image.image) for image in training_images(config)]
    evaluated = evaluation_set(config, listener)
    tested = [resolve_image(evaluated.manifest, image.image) for image in evaluated.images]
    stored: list[StoredImages[Any]]
    with distributed_context() as dist:

        def report(name: str) -> Callable[[int, int], None]:
            def progress(done: int, count: int) -> None:
                if listener is not None and dist.is_main:
                    listener({"event": "features", "what": name, "done": done, "count": count})

            return progress

        names = ("training images", "evaluation images")
        if is_image_text_model(source):
            model = load_image_text_for_training(
                source, config.train, configured_instruction(config), config.seed, dist.device
            )
            reports = [report(name) for name in names]
            stored = [
                image_features_of(model, source, training, root, dist, exif_rotation=exif, on_progress=reports[0]),
                image_pixels_of(model, tested, root, dist, exif_rotation=exif, on_progress=reports[1]),
            ]
        else:
            stored = [
                run_features(source, config, files, name, dist=dist, listener=listener)
                for files, name in zip((training, tested), names, strict=True)
            ]
    return FeatureStage(root, tuple(item.reason for images in stored for item in images.unreadable))
