"""What happens before the first step: features of every image, unreadable images, the model, and records of these.

The records (`quarantine.json`, `images.json`, `prompt.json`) fix at the start of a run which images are left out, what
the images contain and which text surrounds the prompt; a resumed run must find the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from captune import __version__
from captune.config import ModelConfig, RunConfig, TrainConfig
from captune.data import Sample, atomic_file, resolve_image
from captune.distributed import DistributedContext, distributed_context
from captune.errors import DataError, WeightsError
from captune.evaluation import evaluation_set, training_images
from captune.events import Listener
from captune.features import StoredFeatures, StoredImages, features_of, store_root
from captune.hub import ResolvedModel, resolve_model
from captune.model import (
    LANGUAGE,
    CheckpointRecord,
    MiniGPT4,
    attach_lora,
    compute_dtype,
    load_config_and_processor,
    load_model,
    load_quantized,
    restore_chat_template,
)
from captune.parsing import load_json
from captune.training.run_folder import Inspection, open_run_folder

__all__ = [
    "QUARANTINE",
    "FeatureStage",
    "RunImages",
    "describe_checkpoint",
    "drop_unreadable",
    "load_for_training",
    "prepare_images",
    "record_images",
    "record_prompt",
    "record_quarantine",
    "restore_prompt",
    "run_features",
    "store_features",
]

QUARANTINE = "quarantine.json"
IMAGES = "images.json"
PROMPT = "prompt.json"
MAX_UNREADABLE = 0.1
"""Share of the training images; where more are unreadable, something else is wrong, such as the folder."""
QUANTIZATION_SAMPLES = 2
"""Captions on which a quantized model's gradient is compared with the exact one."""


@dataclass(frozen=True)
class FeatureStage:
    """The result of encoding all images of a run.

    Attributes:
        folder: of the feature store.
        broken: why some images have no features.
    """

    folder: Path
    broken: tuple[str, ...]


def run_features(
    source: ResolvedModel,
    config: RunConfig,
    files: Sequence[Path],
    name: str,
    dist: DistributedContext,
    listener: Listener | None,
) -> StoredImages:
    """Features of image files; each process encodes its shard of the missing ones.

    Args:
        source: the model of the towers.
        config: of the run.
        files: the images.
        name: of this set of images, in events and messages.
        dist: this process among the others.
        listener: receives the progress.
    """

    def report(done: int, count: int) -> None:
        if listener is not None and dist.is_main:
            listener({"event": "features", "what": name, "done": done, "count": count})

    return features_of(source, files, store_root(config), dist, exif_rotation=config.exif_rotation, on_progress=report)


def store_features(config: RunConfig, listener: Listener | None = None) -> FeatureStage:
    """Store the features of a run's training and evaluation images.

    Args:
        config: of the run.
        listener: receives the progress.

    Raises:
        InputError: configuration, data or model cannot be used.
    """
    source = resolve_model(config.model)
    files = [resolve_image(config.data.train, image.image) for image in training_images(config)]
    evaluated = evaluation_set(config, listener)
    test_files = [resolve_image(evaluated.manifest, image.image) for image in evaluated.images]
    with distributed_context() as dist:
        stored = [
            run_features(source, config, files, "training images", dist, listener),
            run_features(source, config, test_files, "evaluation images", dist, listener),
        ]
    return FeatureStage(store_root(config), tuple(item.reason for images in stored for item in images.unreadable))


@dataclass(frozen=True)
class RunImages:
    """The images of a run and their features.

    Attributes:
        images: I training images, without unreadable ones.
        features: (I, Q, F) of these.
        evaluation_features: (N, Q, F) of the evaluation images.
        quarantined: why training images are left out, by their ids.
    """

    images: list[Sample]
    features: StoredFeatures
    evaluation_features: StoredFeatures
    quarantined: dict[str, str]


def prepare_images(
    config: RunConfig,
    source: ResolvedModel,
    images: Sequence[Sample],
    evaluation_files: Sequence[Path],
    dist: DistributedContext,
    listener: Listener | None,
    folder: Inspection | None,
) -> RunImages:
    """Encode every image of a run once; write or compare its records in the output folder.

    Args:
        config: of the run.
        source: the model of the towers.
        images: all training images.
        evaluation_files: N evaluation images.
        dist: this process among the others.
        listener: receives the progress.
        folder: status of a new run's output folder, which is made ready; None if the run resumes.

    Raises:
        DataError: too many images are unreadable, or a resumed run finds other images.
    """
    output, resuming = config.output, folder is None
    files = [resolve_image(config.data.train, image.image) for image in images]
    training = run_features(source, config, files, "training images", dist, listener)
    evaluation = run_features(source, config, evaluation_files, "evaluation images", dist, listener)
    evaluation_features = evaluation.require_all("evaluation images")
    readable = drop_unreadable(images, training)
    if dist.is_main and folder is not None:
        aside = open_run_folder(config, folder)
        if aside is not None and listener is not None:
            listener({"event": "replaced", "folder": str(output), "moved_to": str(aside)})
    quarantined = {}
    if dist.is_main or resuming:
        quarantined = record_quarantine(output, images, training, resuming=resuming)
        sets = {"training images": training, "evaluation images": evaluation}
        record_images(output, sets, resuming=resuming)
    dist.barrier()
    return RunImages(readable, training.features, evaluation_features, quarantined)


def drop_unreadable(images: Sequence[Sample], stored: StoredImages) -> list[Sample]:
    """The training images that can be read.

    Raises:
        DataError: more than a tenth cannot.
    """
    if len(stored.unreadable) > len(images) * MAX_UNREADABLE:
        reasons = " ".join(item.reason for item in stored.unreadable[:3])
        raise DataError(f"{len(stored.unreadable)} of {len(images)} training images cannot be read: {reasons}")
    return [images[index] for index in stored.readable]


def record_quarantine(
    output: Path, images: Sequence[Sample], stored: StoredImages, *, resuming: bool
) -> dict[str, str]:
    """Write which images are left out; a resumed run must leave out the same.

    Args:
        output: folder of the run.
        images: all its training images.
        stored: their features.
        resuming: whether the run resumes.

    Returns:
        Why each one is left out, by the image's id.

    Raises:
        DataError: other images are unreadable than when the run started.
    """
    unreadable = {images[item.position].id: item.reason for item in stored.unreadable}
    path = output / QUARANTINE
    if resuming:
        before = set(load_json(path.read_text(encoding="utf-8"))) if path.exists() else set()
        if before != set(unreadable):
            changed = sorted(before ^ set(unreadable))
            raise DataError(
                f"Image '{changed[0]}' ({len(changed)} in all) could be read when this run began and cannot now, or "
                "the other way round; put it back as it was, or start over with --resume never."
            )
    elif unreadable:
        with atomic_file(path, "w") as stream:
            json.dump(unreadable, stream, ensure_ascii=False, indent=2)
            stream.write("\n")
    return unreadable


def record_images(output: Path, stored: Mapping[str, StoredImages], *, resuming: bool) -> None:
    """Write the content hash of a run's images, or compare it with the one that is written.

    Args:
        output: folder of the run.
        stored: name of each set of images -> its features.
        resuming: whether the run resumes.

    Raises:
        DataError: images have changed since the run started.
    """
    path = output / IMAGES
    digests = {name: images.digest for name, images in stored.items()}
    if not resuming:
        with atomic_file(path) as stream:
            stream.write(json.dumps(digests) + "\n")
        return
    try:
        before = dict(load_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        # Runs of older versions have no such file.
        return
    for name, digest in digests.items():
        if before.get(name, digest) != digest:
            raise DataError(
                f"The {name} are not those that the run in {output} began with: at least one file has other content. "
                "Put them back as they were, or start over with --resume never."
            )


def record_prompt(output: Path, model: MiniGPT4) -> None:
    """Write the text around a run's prompt; a chat template may be another one when the run resumes."""
    content = {"conversation": model.config.conversation, "wrapping": model.config.wrapping}
    with atomic_file(output / PROMPT, "w") as stream:
        stream.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def restore_prompt(output: Path, model: MiniGPT4) -> None:
    """Use the text around the prompt that a run's folder records; without the file the model's own is used.

    Raises:
        WeightsError: the file is missing where it is needed, or cannot be used.
    """
    path = output / PROMPT
    wrapping = None
    if path.is_file():
        try:
            wrapping = load_json(path.read_text(encoding="utf-8"))["wrapping"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} is broken: {error!r}; begin the run again with --overwrite.") from error
    restore_chat_template(model, wrapping, output)


def load_for_training(
    source: ResolvedModel,
    train: TrainConfig,
    prompt: str,
    seed: int,
    device: torch.device,
    images: Sequence[Sample] = (),
    features: Tensor | StoredFeatures | None = None,
    on_cpu: bool = False,
) -> MiniGPT4:
    """Load the model of a run: without the towers, which stored features replace, and with LoRA if configured.

    Args:
        source: of the model.
        train: LoRA and gradient checkpointing.
        prompt: instruction of the run.
        seed: of the initial LoRA matrices.
        device: to train on.
        images: I training images; a quantized model's gradient is compared with the exact one on the longest captions.
        features: (I, Q, F) of the images; without them the gradient of a quantized model is not checked.
        on_cpu: keep the model on the CPU, in its number format on the device, to be sharded.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: it cannot be loaded, LoRA finds no layers, or the quantization changes the gradient too much.
    """
    if on_cpu:
        dtype = str(compute_dtype(source.dtype, device)).removeprefix("torch.")
        source = replace(source, dtype=dtype)
        device = torch.device("cpu")
    recompute = train.gradient_checkpointing
    if source.quantization is not None and features is not None:
        _, processor = load_config_and_processor(source)
        prompt_ids = processor.layout.prompt(prompt).ids
        captions = {index: max(image.captions, key=len) for index, image in enumerate(images) if image.captions}
        longest = sorted(captions, key=lambda index: -len(captions[index]))[:QUANTIZATION_SAMPLES]
        batch = processor.pad([processor.layout.with_answer(prompt_ids, captions[index]) for index in longest])
        model, _ = load_quantized(source, device, {**batch, "features": features[longest]}, recompute=recompute)
    else:
        model = load_model(source, device, recompute=recompute, parts=LANGUAGE)
    if train.lora is not None:
        with torch.random.fork_rng(devices=[]):
            # Every process starts with the same matrices.
            torch.manual_seed(seed)
            lora = train.lora
            attach_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, dropout=lora.dropout)
        model.to(device)
        model.checkpoint_activations(recompute)
    return model


def describe_checkpoint(model: MiniGPT4, config: ModelConfig, seed: int, manifest_hash: str) -> CheckpointRecord:
    """The record of every checkpoint of a run, at epoch 0 and step 0.

    Args:
        model: as it is trained; its processor attached.
        config: of the model.
        seed: of the run.
        manifest_hash: of the training manifest.
    """
    assert model.processor is not None
    return CheckpointRecord(
        model=config.name,
        frozen=model.frozen_fingerprint(),
        instruction=config.instruction,
        conversation=model.config.conversation,
        stop_symbol=model.processor.layout.chat_template.stop_symbol,
        manifest_hash=manifest_hash,
        epoch=0,
        step=0,
        seed=seed,
        captune=__version__,
        lora=model.config.lora,
        parts=None if config.llm is None else {"llm": config.llm, "vision": str(config.vision)},
        wrapping=model.config.wrapping,
    )
