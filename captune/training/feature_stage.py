"""The stage before training: every image of a run has its features stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captune.config import RunConfig
from captune.data.manifest import resolve_image
from captune.events import Listener
from captune.features import StoredImages, features_of, store_root
from captune.hub import check_model
from captune.protocols import evaluation_set, training_images
from captune.training.distributed import World, world

__all__ = ["FeatureStage", "run_features", "store_features"]


@dataclass(frozen=True)
class FeatureStage:
    """What the stage leaves behind.

    Attributes:
        folder: of the store.
        broken: why some images have no features.
    """

    folder: Path
    broken: tuple[str, ...]


def run_features(
    config: RunConfig, files: Sequence[Path], what: str, place: World, listener: Listener | None
) -> StoredImages:
    """Features of files; each process runs the towers on its share of those that are not stored yet."""

    def report(done: int, count: int) -> None:
        if listener is not None and place.is_main:
            listener({"event": "features", "what": what, "done": done, "count": count})

    return features_of(
        config.model, files, store_root(config), place, exif_rotation=config.exif_rotation, on_progress=report
    )


def store_features(config: RunConfig, listener: Listener | None = None) -> FeatureStage:
    """Store the features of a run's training and evaluation images.

    Args:
        config: of the run.
        listener: is told how far it is.

    Raises:
        InputError: configuration, data or model cannot be used.
    """
    check_model(config.model)
    images = training_images(config)
    files = [resolve_image(config.data.train, image.image) for image in images]
    chosen = evaluation_set(config, listener)
    test_files = [resolve_image(chosen.manifest, image.image) for image in chosen.images]
    with world() as place:
        stored = [
            run_features(config, files, "training images", place, listener),
            run_features(config, test_files, "evaluation images", place, listener),
        ]
    return FeatureStage(store_root(config), tuple(item.reason for part in stored for item in part.broken))
