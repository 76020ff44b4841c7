"""Which images are evaluated, and against which references.

`karpathy` keeps images that were never trained on and their separate captions. `slides` does on purpose what the
original scripts did, with a fixed seed: a twentieth of the training images, their joined captions cut at every full
stop. Its rows carry the mark LEAK.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

from captune.config import RunConfig
from captune.data.manifest import Sample, read_manifest
from captune.errors import DataError

__all__ = ["EvaluationSet", "cut_reply", "evaluation_set", "split_references", "training_images"]

SLIDES_SHARE = 0.05
SLIDES_SEED = 42
SLIDES_LEAK = "these are training images, and the references were cut at every full stop (protocol slides)"
_REPLY_MARKS = re.compile(r"### Assistant:|\[INST\]|<Img>|\[Img\]|<DESC>")


@dataclass(frozen=True)
class EvaluationSet:
    """What every checkpoint is scored on.

    Attributes:
        name: of the data, for signatures and file names.
        split: its part.
        protocol: which protocol chose it.
        manifest: where the images are listed.
        images: the images, in a fixed order.
        references: image id to reference captions.
        leak: why the rows are marked LEAK, or None.
    """

    name: str
    split: str
    protocol: str
    manifest: Path
    images: tuple[Sample, ...]
    references: dict[str, list[str]]
    leak: str | None = None

    def reply(self, text: str) -> str:
        """A generated text as it is scored."""
        return cut_reply(text) if self.protocol == "slides" else text


def training_images(config: RunConfig) -> list[Sample]:
    """The images that a run trains on.

    Raises:
        DataError: the manifest is broken or has no such split.
    """
    images = read_manifest(config.data.train, config.data.train_split)
    return images[: config.data.train_images]


def evaluation_set(config: RunConfig) -> EvaluationSet:
    """The images that a run is evaluated on, as its protocol says.

    Raises:
        DataError: the manifest is broken, has no such split, or leaves too few images.
    """
    if config.evaluate.protocol == "slides":
        manifest = config.data.train
        trained = training_images(config)
        count = max(2, int(len(trained) * SLIDES_SHARE))
        chosen = random.Random(SLIDES_SEED).sample(trained, min(count, len(trained)))[: config.data.evaluate_images]
        references = {image.id: split_references(" ".join(image.captions)) for image in chosen}
        split, leak = config.data.train_split, SLIDES_LEAK
    else:
        manifest = config.evaluation_manifest
        chosen = read_manifest(manifest, config.data.evaluate_split)[: config.data.evaluate_images]
        references = {image.id: list(image.captions) for image in chosen}
        split, leak = config.data.evaluate_split, None
    empty = [image.id for image in chosen if not references[image.id]]
    if empty:
        raise DataError(f"{manifest}: image '{empty[0]}' ({len(empty)} in all) has no captions to score against.")
    if len(chosen) < 2:
        raise DataError(f"{manifest}: split '{split}' has {len(chosen)} image to evaluate; CIDEr needs at least two.")
    name = manifest.resolve().parent.name or manifest.stem
    return EvaluationSet(name, split, config.evaluate.protocol, manifest, tuple(chosen), references, leak)


def split_references(joined: str) -> list[str]:
    """Cut joined captions at every full stop, as the original's `convert_to_coco_format` does.

    "At 7.30 p.m. a dog  runs ." becomes four references, and a caption without a full stop runs into the next.
    """
    return [f"{piece.strip()}." for piece in joined.split(".") if piece.strip()]


def cut_reply(text: str) -> str:
    """Keep what follows the last marker of a prompt, as the original's `post_handle` does."""
    return _REPLY_MARKS.split(text)[-1].strip()
