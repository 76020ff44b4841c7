"""The parts of a run that tunes a transformers model: LoRA or complete parts, with its image features stored or not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from captune.captioner import probe_images
from captune.common import __version__, error_text
from captune.config import DEFAULT_LORA, RunConfig, TrainConfig
from captune.data import Sample, atomic_file, load_image, manifest_hash, resolve_image
from captune.decoding import is_out_of_memory
from captune.distributed import DistributedContext
from captune.errors import CaptuneError, ConfigError, DataError, WeightsError
from captune.evaluation import Evaluation
from captune.events import Listener
from captune.features import (
    PixelSource,
    StoreChoice,
    StoredImages,
    choose_store,
    image_features_of,
    image_pixels_of,
)
from captune.hub import ResolvedModel
from captune.model import load_tuned, recorded_base
from captune.parsing import load_json
from captune.run_checkpoints import CheckpointRecord
from captune.training.preparation import FeaturesOf, prepare_images
from captune.training.run_folder import Inspection
from captune.training.run_parts import RunParts
from captune.training.sample_order import require_supported
from captune.training.start_checkpoint import StartCheckpoint
from captune.training.vlm_loss import ImageTextObjective, images_at_once
from captune.vlm import (
    COMPUTATION_FILE,
    CaptionGenerator,
    Computation,
    ImageTextModel,
    ProbeSample,
    choose_computation,
    load_image_text_model,
    save_adapter,
)
from captune.weights import load_adapter_tensors, read_adapter

__all__ = [
    "feature_functions",
    "load_image_text_for_training",
    "prepare_image_text_model",
]

logger = logging.getLogger(__name__)

_UNCHANGED = {"inputs": "settings of the image processor", "frozen": "frozen weights"}
"""What is compared when a run resumes, by its name in the file."""
_PROBED = 3
"""Training images on which computations are compared."""


def load_image_text_for_training(
    source: ResolvedModel, train: TrainConfig, instruction: str | None, seed: int, device: torch.device
) -> ImageTextModel:
    """Load a model and set which parts are trained.

    Args:
        source: of the model.
        train: parts, LoRA and gradient checkpointing.
        instruction: of the run; None is the family's.
        seed: of the initial LoRA matrices.
        device: to train on.

    Raises:
        WeightsError: it cannot be loaded, or has no such parts.
        ConfigError: the settings belong to a MiniGPT-4 only.
    """
    require_supported(train)
    model = load_image_text_model(source, device, instruction=instruction)
    if {"language_model", "vision_tower"} & set(train.parts):
        _train_parts(model, train.parts)
    else:
        model.add_lora(train.lora or DEFAULT_LORA, projector="projector" in train.parts, seed=seed)
    if train.gradient_checkpointing:
        model.checkpoint_activations()
    return model


def _train_parts(model: ImageTextModel, parts: Sequence[str]) -> None:
    model.train_parts(language_model="language_model" in parts, vision_tower="vision_tower" in parts)


def load_start_checkpoint(model: ImageTextModel, start: StartCheckpoint, parts: Sequence[str]) -> None:
    """Load a start checkpoint; parts that it does not have keep their values.

    Args:
        model: with the trained parts of the run.
        start: the checkpoint, which was compared with the run's settings.
        parts: that the run trains.

    Raises:
        WeightsError: the checkpoint is broken, or was trained on another model.
    """
    if start.is_adapter:
        load_adapter_tensors(
            model.adapter, read_adapter(start.folder), f"The adapter {start.name}", keeps_other_modules=True
        )
        return
    is_complete = model.adapter is None
    if is_complete:
        # Its frozen parts are compared before more of them are trained.
        _train_parts(model, start.record.trained)
    load_tuned(model.model, start.folder, model.adapter, keeps_other_modules=True)
    if is_complete:
        _train_parts(model, parts)


def prepare_image_text_model(
    config: RunConfig,
    source: ResolvedModel,
    images: Sequence[Sample],
    evaluation: Evaluation,
    dist: DistributedContext,
    listener: Listener | None,
    folder: Inspection | None,
    start: StartCheckpoint | None = None,
) -> RunParts:
    """Load the model, choose how its loss is computed, and store its image features if they are used.

    Args:
        config: of the run.
        source: the model.
        images: all training images.
        evaluation: captions and scores.
        dist: this process among the others.
        listener: receives the progress.
        folder: status of a new run's output folder, which is made ready; None if the run resumes.
        start: the checkpoint from which the run starts; None without `train.start`.
    """
    output, resuming = config.output, folder is None
    model = load_image_text_for_training(
        source, config.train, config.model.custom_instruction, config.seed, dist.device
    )
    if start is not None and not resuming:
        load_start_checkpoint(model, start, config.train.parts or ("lora",))
    evaluation.sign_prompt(model.backend.prompt_text(model.backend.instruction))

    choice = _read_computation(output, model) if resuming else _choose(model, config, source, images)
    # Free disk space and rounding may differ between processes.
    computation, reason = dist.all_gather(choice)[0]
    stored, pixels = feature_functions(model, source, config, dist, listener)

    # Captions come from stored features too, if captune's decoding loop supports the model and the options.
    generator = CaptionGenerator(model)
    stores_evaluation = computation.features and generator.supports(evaluation.options, probe_images()[0])
    data = prepare_images(
        config,
        images,
        evaluation.image_files,
        stored if computation.features else pixels,
        stored if stores_evaluation else pixels,
        dist,
        listener,
        folder,
    )
    if dist.is_main and not resuming:
        _write_computation(output, computation, reason, model)
    dist.barrier()
    files = [resolve_image(config.data.train, image.image) for image in data.images]
    return RunParts(
        model=model,
        objective=ImageTextObjective(model, computation, images_at_once(config.train, config.train.captions_per_image)),
        images=data.images,
        features=data.features,
        evaluation_features=data.evaluation_features,
        subset_features=data.features if stores_evaluation else PixelSource(files, config.exif_rotation),
        quarantined=data.quarantined,
        record=replace(_record(model, config), ancestors=() if start is None else start.ancestors),
        save_checkpoint=partial(_save_checkpoint, model),
        caption=partial(evaluation.caption_images, generator),
        notes={"name": computation.name, "differences": dict(computation.differences), "store": reason},
    )


def feature_functions(
    model: ImageTextModel,
    source: ResolvedModel,
    config: RunConfig,
    dist: DistributedContext,
    listener: Listener | None,
) -> tuple[FeaturesOf, FeaturesOf]:
    """Functions of image files and the name of their set, which return stored features, and images.

    Args:
        model: computes features.
        source: of the model.
        config: of the run.
        dist: this process among the others.
        listener: receives the progress.
    """
    exif, root = config.exif_rotation, config.feature_folder

    def report(name: str) -> Callable[[int, int], None]:
        def progress(done: int, count: int) -> None:
            if listener is not None and dist.is_main:
                listener({"event": "features", "what": name, "done": done, "count": count})

        return progress

    def stored(files: Sequence[Path], name: str) -> StoredImages[Any]:
        return image_features_of(model, source, files, root, dist, exif_rotation=exif, on_progress=report(name))

    def pixels(files: Sequence[Path], name: str) -> StoredImages[Any]:
        return image_pixels_of(model, files, root, dist, exif_rotation=exif, on_progress=report(name))

    return stored, pixels


def _choose(
    model: ImageTextModel, config: RunConfig, source: ResolvedModel, images: Sequence[Sample]
) -> tuple[Computation, str]:
    """Compare computations on the longest samples of the run; check that their prompts are those of generation.

    Returns:
        The choice, and why image features are stored or not.
    """
    optimizations = config.train.enabled_optimizations
    per_sample = config.train.captions_per_image if config.train.caption_targets == "separate" else 1
    captioned = [image for image in images if image.captions]
    longest = sorted(captioned, key=lambda image: -max(map(len, image.captions)))
    samples, refusal = [], ""
    for image in longest:
        try:
            pixels = load_image(resolve_image(config.data.train, image.image), exif=config.exif_rotation)
        except DataError as error:
            refusal = refusal or f"{error}"
            continue
        try:
            model.conversation.prompt(pixels)
        except CaptuneError:
            raise
        except Exception as error:  # processors raise anything, for instance for an aspect ratio
            refusal = f"its processor refuses '{image.image}' ({type(error).__name__}: {error_text(error)})."
            continue
        captions = sorted(image.captions, key=len)[-per_sample:]
        samples.append(ProbeSample(pixels, tuple(captions)))
        if len(samples) == _PROBED:
            break
    if not samples:
        raise DataError(f"{model.name} can use none of the training images with captions: {refusal}")
    samples += [ProbeSample(samples[0].image, samples[0].captions, text) for text in config.train.instructions]
    for sample in samples:
        model.conversation.check(sample.image, sample.captions[0], sample.instruction)
    _require_fit(model, config, captioned, samples)
    files = [resolve_image(config.data.train, image.image) for image in images]
    setting = config.train.feature_store
    with _failures_named(model):
        can_store = model.find_features()
        if model.losses.feature_call is not None:
            model.require_unadapted_features()
    store = StoreChoice(False, "Image features are not stored: they depend on trained parts.")
    if can_store and not (model.features_depend_on_prompt and config.train.instructions):
        store = choose_store(model, source, files, config.feature_folder, setting, exif_rotation=config.exif_rotation)
    elif setting is True:
        raise ConfigError(
            f"train.feature_store is true, and the image features of {model.name} change in training or with the "
            "prompt; set it to auto."
        )
    logger.info(store.reason)
    dropout = (config.train.lora or DEFAULT_LORA).dropout
    model.train(not dropout)
    with _failures_named(model):
        computation = choose_computation(
            model,
            samples,
            features=store.stored,
            packed=optimizations.shared_prefix and optimizations.target_logits,
        )
    model.eval()
    logger.info("the loss is computed from %s", computation.describe())
    return computation, store.reason


@contextmanager
def _failures_named(model: ImageTextModel) -> Iterator[None]:
    """Name the model where a library fails within the block: no image and no caption is at fault.

    Raises:
        WeightsError: the model cannot be trained; with the library's reason.
    """
    try:
        yield
    except (CaptuneError, OSError):
        raise
    except Exception as error:  # libraries of models and of number formats raise anything
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{model.name} cannot be trained with these settings on this machine: a library fails "
            f"({type(error).__name__}: {error_text(error)})."
        ) from error


def _require_fit(
    model: ImageTextModel, config: RunConfig, images: Sequence[Sample], probes: Sequence[ProbeSample]
) -> None:
    """Check that every caption fits into the model's positions, before the first step.

    Raises:
        DataError: one does not; names the image and the caption.
    """
    conversation, limit = model.conversation, model.conversation.max_positions
    if limit is None:
        return
    longest = max(conversation.prompt_of_size(probe.image.size, probe.instruction).length for probe in probes)
    instructions: tuple[str | None, ...] = config.train.instructions or (None,)
    for image in images:
        captions = image.captions if config.train.caption_targets != "joined" else (" ".join(image.captions),)
        # A text has no more tokens than bytes, but for the end; prompts differ with the sizes of images.
        near = [caption for caption in captions if len(caption.encode()) + 2 * longest + 8 > limit]
        if not near:
            continue
        try:
            pixels = load_image(resolve_image(config.data.train, image.image), exif=config.exif_rotation)
            prompts = [conversation.prompt(pixels, instruction) for instruction in instructions]
        except (DataError, ValueError):
            continue  # it is left out or refused when all images are read
        for caption in near:
            for prompt, instruction in zip(prompts, instructions, strict=True):
                try:
                    conversation.require_fit(prompt, caption, conversation.target_ids(caption, instruction))
                except DataError as error:
                    raise DataError(f"Image '{image.id}': {error}") from error


def _record(model: ImageTextModel, config: RunConfig) -> CheckpointRecord:
    """The record of every checkpoint of a run, at epoch 0 and step 0."""
    base, relative = recorded_base(config.model, config.output)
    return CheckpointRecord(
        model=base,
        relative_model=relative,
        frozen=model.frozen_fingerprint(),
        instruction=model.conversation.instruction or "",
        conversation="chat template",
        stop_symbol=model.conversation.end_text,
        manifest_hash=manifest_hash(config.data.train),
        train_split=config.data.train_split,
        epoch=0,
        step=0,
        seed=config.seed,
        captune=__version__,
        lora=_lora_settings(config.train) if model.adapter is not None else None,
        kind="transformers",
        trained=config.train.parts or ("lora",),
        max_pixels=config.model.max_pixels,
        min_pixels=config.model.min_pixels,
    )


def _lora_settings(train: TrainConfig) -> dict[str, Any]:
    lora = train.lora or DEFAULT_LORA
    return {"r": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets), "dropout": lora.dropout}


def _save_checkpoint(model: ImageTextModel, folder: Path, record: CheckpointRecord) -> None:
    save_adapter(folder, model, record)


def _write_computation(output: Path, computation: Computation, reason: str, model: ImageTextModel) -> None:
    """Write how the loss is computed; and prompt, processor and weights, which must be equal when the run resumes."""
    content = {
        "features": computation.features,
        "packed": computation.packed,
        "differences": dict(computation.differences),
        "store": reason,
        "prompt": model.backend.prompt(),
        "inputs": model.conversation.inputs.fingerprint,
        "frozen": model.frozen_fingerprint(),
    }
    with atomic_file(output / COMPUTATION_FILE, "w") as stream:
        stream.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _read_computation(output: Path, model: ImageTextModel) -> tuple[Computation, str]:
    """How the loss of an unfinished run is computed, so that it resumes with equal numbers.

    Raises:
        WeightsError: the file is missing or broken, or the prompt, the image processor or the frozen weights have
            changed since.
    """
    path = output / COMPUTATION_FILE
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        prompt = content["prompt"]
        computation = Computation(
            bool(content["features"]), bool(content["packed"]), tuple(dict(content["differences"]).items())
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is missing or broken: {error!r}; begin the run again with --overwrite.") from error
    if prompt != model.backend.prompt():
        raise WeightsError(
            f"The run in {output} began with the prompt {prompt!r}, and {model.name} now renders "
            f"{model.backend.prompt()!r}; restore its chat template, or start over with --resume never."
        )
    now = {"inputs": model.conversation.inputs.fingerprint, "frozen": model.frozen_fingerprint()}
    changed = [what for name, what in _UNCHANGED.items() if content.get(name) != now[name]]
    if changed:
        raise WeightsError(
            f"The {changed[0]} of {model.name} changed since the run in {output} began; restore the folder of the "
            "model, or start over with --resume never."
        )
    if computation.features:
        model.find_features()
    return computation, str(content.get("store", ""))
