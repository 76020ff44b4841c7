"""What happens before the first step: features of every image, unreadable images, the model, and records of these.

The records (`quarantine.json`, `images.json`, `prompt.json`) fix at the start of a run which images are left out, what
the images contain and which text surrounds the prompt; a resumed run must find the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from captune.config import RunConfig
from captune.data.atomic import atomic_file
from captune.data.manifest import Sample, resolve_image
from captune.errors import DataError, WeightsError
from captune.evaluation import evaluation_set, training_images
from captune.events import Listener
from captune.features import StoredImages, features_of, store_root
from captune.hub import resolve_model
from captune.model import MiniGPT4
from captune.model.adapter import use_wrapping
from captune.model.loading import LANGUAGE, compute_dtype, load_checked, load_config_and_processor, load_model
from captune.model.lora import attach_lora
from captune.parsing import load_json
from captune.training.distributed import World, world

__all__ = [
    "QUARANTINE",
    "FeatureStage",
    "keep_image_record",
    "keep_prompt",
    "keep_quarantine",
    "load_tunable",
    "run_features",
    "store_features",
    "use_prompt",
    "without_broken",
]


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
    resolve_model(config.model)
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


QUARANTINE = "quarantine.json"
MOST_BROKEN = 0.1
"""Share of the training images; where more are broken, something else is wrong, such as the folder."""


def without_broken(images: Sequence[Sample], stored: StoredImages) -> list[Sample]:
    """The training images that can be read.

    Raises:
        DataError: more than a tenth cannot.
    """
    if len(stored.broken) > len(images) * MOST_BROKEN:
        named = " ".join(item.reason for item in stored.broken[:3])
        raise DataError(f"{len(stored.broken)} of {len(images)} training images cannot be read: {named}")
    return [images[place] for place in stored.whole]


def keep_quarantine(output: Path, images: Sequence[Sample], stored: StoredImages, *, resuming: bool) -> dict[str, str]:
    """Write down which images are left out; a run that goes on must leave out the same.

    Args:
        output: folder of the run.
        images: all its training images.
        stored: their features.
        resuming: whether the run goes on.

    Returns:
        Why each one is left out, by the image's id.

    Raises:
        DataError: other images are broken than when the run began.
    """
    broken = {images[item.position].id: item.reason for item in stored.broken}
    path = output / QUARANTINE
    if resuming:
        before = set(load_json(path.read_text(encoding="utf-8"))) if path.exists() else set()
        if before != set(broken):
            changed = sorted(before ^ set(broken))
            raise DataError(
                f"Image '{changed[0]}' ({len(changed)} in all) could be read when this run began and cannot now, or "
                "the other way round; put it back as it was, or start over with --resume never."
            )
    elif broken:
        with atomic_file(path, "w") as stream:
            json.dump(broken, stream, ensure_ascii=False, indent=2)
            stream.write("\n")
    return broken


IMAGES = "images.json"


def keep_image_record(output: Path, stored: Mapping[str, StoredImages], *, resuming: bool) -> None:
    """Write down what the images of a run contain, or compare them with what is written.

    Args:
        output: folder of the run.
        stored: what each set of images is called -> its features.
        resuming: whether the run resumes.

    Raises:
        DataError: images have changed since the run began.
    """
    path = output / IMAGES
    now = {what: images.digest for what, images in stored.items()}
    if not resuming:
        with atomic_file(path) as stream:
            stream.write(json.dumps(now) + "\n")
        return
    try:
        before = dict(load_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        # Runs of older versions have no such file.
        return
    for what, digest in now.items():
        if before.get(what, digest) != digest:
            raise DataError(
                f"The {what} are not those that the run in {output} began with: at least one file has other content. "
                "Put them back as they were, or start over with --resume never."
            )


NAME = "prompt.json"


def keep_prompt(output: Path, model: MiniGPT4) -> None:
    """Write into a run's folder what is put around its instruction."""
    content = {"conversation": model.config.conversation, "wrapping": model.config.wrapping}
    with atomic_file(output / NAME, "w") as stream:
        stream.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def use_prompt(output: Path, model: MiniGPT4) -> None:
    """Ask a model what a run's folder says; one without the file is of a conversation that is known by its name.

    Raises:
        WeightsError: the file is missing where it is needed, or cannot be used.
    """
    path = output / NAME
    wrapping = None
    if path.is_file():
        try:
            wrapping = load_json(path.read_text(encoding="utf-8"))["wrapping"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} is broken: {error!r}; begin the run again with --overwrite.") from error
    use_wrapping(model, wrapping, output)


def load_tunable(
    config: RunConfig,
    device: torch.device,
    captions: Sequence[str] = (),
    features: Tensor | None = None,
    wait_on_cpu: bool = False,
) -> MiniGPT4:
    """Load the model of a run, without the towers, which stored features stand for.

    Args:
        config: of the run.
        device: where it goes.
        captions: N captions, on which a quantization's gradient is compared with the exact one; none skips the check.
        features: (N, Q, F) of their images.
        wait_on_cpu: leave it on the CPU, in the number format that it has on the device, to be divided.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: it cannot be loaded, LoRA finds no layers, or the quantization leads elsewhere.
    """
    if wait_on_cpu:
        dtype = str(compute_dtype(config.model.dtype, device)).removeprefix("torch.")
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": dtype})})
        device = torch.device("cpu")
    recompute = config.train.gradient_checkpointing
    if config.model.quantization is not None and features is not None:
        _, processor = load_config_and_processor(config.model)
        layout = processor.layout
        prompt = layout.prompt(config.model.instruction).ids
        batch = processor.pad([layout.with_answer(prompt, caption) for caption in captions])
        model, _ = load_checked(config.model, device, {**batch, "features": features}, recompute=recompute)
    else:
        model = load_model(config.model, device, recompute=recompute, parts=LANGUAGE)
    lora = config.train.lora
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            # Every process begins with the same matrices.
            torch.manual_seed(config.seed)
            attach_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, dropout=lora.dropout)
        model.to(device)
        model.checkpoint_activations(recompute)
    return model
