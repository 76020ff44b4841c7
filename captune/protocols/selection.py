"""The images that a run trains on, and those that its protocol evaluates, with their references."""

from __future__ import annotations

import logging
import os
import random
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from captune.config import RunConfig
from captune.data.images import has_rotation
from captune.data.manifest import Sample, read_manifest, resolve_image
from captune.errors import DataError
from captune.events import Listener
from captune.protocols.guard import image_files, leak_reason
from captune.protocols.protocol import Protocol, load_protocol

__all__ = ["EvaluationSet", "cut_reply", "evaluation_set", "split_references", "training_images"]

logger = logging.getLogger(__name__)

_REPLY_MARKS = re.compile(r"### Assistant:|\[INST\]|<Img>|\[Img\]|<DESC>")


@dataclass(frozen=True)
class EvaluationSet:
    """What every checkpoint is scored on.

    Attributes:
        name: of the data, for signatures and file names.
        split: its part.
        protocol: signature of the protocol that chose it.
        manifest: where the images are listed.
        images: the images, in a fixed order.
        references: image id to reference captions.
        leak: why the rows are marked LEAK, or None.
        rules: the protocol itself.
    """

    name: str
    split: str
    protocol: str
    manifest: Path
    images: tuple[Sample, ...]
    references: dict[str, list[str]]
    leak: str | None = None
    rules: Protocol = field(default_factory=lambda: load_protocol("karpathy"))

    @cached_property
    def has_rotated_images(self) -> bool:
        """Whether EXIF notes a rotation of some image."""
        return any(has_rotation(resolve_image(self.manifest, image.image)) for image in self.images)

    def reply(self, text: str) -> str:
        """A generated text as it is scored."""
        return cut_reply(text) if self.rules.reply == "after_last_mark" else text


def training_images(config: RunConfig) -> list[Sample]:
    """The images that a run trains on.

    Raises:
        DataError: the manifest is broken or has no such split.
    """
    images = read_manifest(config.data.train, config.data.train_splits)
    return images[: config.data.train_images]


def evaluation_set(config: RunConfig, listener: Listener | None = None, *, guard: bool = True) -> EvaluationSet:
    """The images that a run is evaluated on, as its protocol says, and whether it trained on them.

    Args:
        config: of the run.
        listener: is told how far the leak guard is.
        guard: whether to look for the images among those that the run trains on.

    Raises:
        ConfigError: there is no such protocol, or its file is wrong.
        DataError: the manifest is broken, has no such split, or leaves too few images.
    """
    protocol = load_protocol(config.evaluate.protocol)
    of_training = protocol.images == "training"
    manifest = config.data.train if of_training else config.evaluation_manifest
    split = protocol.split or (config.data.train_split if of_training else config.data.evaluate_split)
    if of_training and split == config.data.train_split:
        images = training_images(config)
    else:
        images = read_manifest(manifest, split)
    chosen = _drawn(images, protocol)[: config.data.evaluate_images]
    references = {image.id: _references(image, protocol) for image in chosen}
    empty = [image.id for image in chosen if not references[image.id]]
    if empty:
        raise DataError(f"{manifest}: image '{empty[0]}' ({len(empty)} in all) has no captions to score against.")
    if len(chosen) < 2:
        raise DataError(f"{manifest}: split '{split}' has {len(chosen)} image to evaluate; CIDEr needs at least two.")
    name = manifest.resolve().parent.name or manifest.stem
    leak = protocol.leak or (_leak(config, manifest, chosen, listener) if guard else None)
    return EvaluationSet(name, split, protocol.signature, manifest, tuple(chosen), references, leak, protocol)


def _drawn(images: list[Sample], protocol: Protocol) -> list[Sample]:
    """The share of the images that a protocol draws, at least two."""
    if protocol.share is None:
        return images
    count = max(2, int(len(images) * protocol.share))
    return random.Random(protocol.seed).sample(images, min(count, len(images)))


def _references(image: Sample, protocol: Protocol) -> list[str]:
    if protocol.references == "cut_at_full_stops":
        return split_references(" ".join(image.captions))
    return list(image.captions)


def _leak(config: RunConfig, manifest: Path, chosen: list[Sample], listener: Listener | None) -> str | None:
    """Why the chosen images are marked LEAK; of torchrun's processes only the first one, which reports, asks."""
    if os.environ.get("RANK", "0") != "0":
        return None
    if not config.data.train.is_file():
        logger.warning(
            "the training manifest %s is not there, so nobody knows whether images of %s were trained on.",
            config.data.train,
            manifest,
        )
        return None
    trained = image_files(config.data.train, training_images(config))
    return leak_reason(config, trained, image_files(manifest, chosen), listener)


def split_references(joined: str) -> list[str]:
    """Cut joined captions at every full stop, as the original's `convert_to_coco_format` does.

    "At 7.30 p.m. a dog  runs ." becomes four references, and a caption without a full stop runs into the next.
    """
    return [f"{piece.strip()}." for piece in joined.split(".") if piece.strip()]


def cut_reply(text: str) -> str:
    """Keep what follows the last marker of a prompt, as the original's `post_handle` does."""
    return _REPLY_MARKS.split(text)[-1].strip()
