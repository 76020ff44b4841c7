"""The parts of a run that tunes a MiniGPT-4: its language model without the towers, which stored features replace."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captune.common import __version__
from captune.config import ModelConfig, RunConfig, TrainConfig
from captune.data import Sample, atomic_file, manifest_hash
from captune.decoding import Caption
from captune.distributed import DistributedContext
from captune.errors import WeightsError
from captune.evaluation import Evaluation
from captune.events import Listener
from captune.features import StoredFeatures
from captune.hub import ResolvedModel, recorded_name
from captune.model import (
    LANGUAGE,
    MiniGPT4,
    attach_lora,
    compute_dtype,
    load_config_and_processor,
    load_model,
    load_quantized,
    load_start,
    recorded_base,
    restore_chat_template,
    save_trained,
)
from captune.parsing import load_json
from captune.run_checkpoints import CheckpointRecord
from captune.training.equivalence import CheckedObjective
from captune.training.fsdp import FsdpContext, llm_bytes
from captune.training.optimizations import compile_if_enabled
from captune.training.preparation import PROMPT, prepare_images, run_features
from captune.training.run_folder import Inspection
from captune.training.run_parts import RunParts
from captune.training.start_checkpoint import StartCheckpoint

__all__ = ["load_for_training", "prepare_minigpt4"]

QUANTIZATION_SAMPLES = 2
"""Captions on which a quantized model's gradient is compared with the exact one."""


def prepare_minigpt4(
    config: RunConfig,
    source: ResolvedModel,
    images: Sequence[Sample],
    evaluation: Evaluation,
    dist: DistributedContext,
    listener: Listener | None,
    folder: Inspection | None,
    start: StartCheckpoint | None = None,
) -> RunParts:
    """Encode all images, and load the language model, sharded over the processes if configured.

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
    output, prompt = config.output, config.model.instruction
    features = partial(run_features, source, config, dist=dist, listener=listener)
    data = prepare_images(config, images, evaluation.image_files, features, features, dist, listener, folder)

    fsdp = FsdpContext(dist) if config.train.sharding == "fsdp" and dist.size > 1 else None
    collective_forward = nullcontext if fsdp is None else fsdp.collective_forward
    with nullcontext() if fsdp is None else fsdp.load_in_rank_order():
        model = load_for_training(
            source, config.train, prompt, config.seed, dist.device, data.images, data.features, fsdp is not None
        )
        if start is not None and folder is not None:
            load_start(model, start.folder)
        if folder is None:
            restore_prompt(output, model)
        elif dist.is_main:
            record_prompt(output, model)
        evaluation.sign_prompt_of(model)
        record = describe_checkpoint(model, config.model, output, config.seed, manifest_hash(config.data.train))
        ancestors = () if start is None else start.ancestors
        record = replace(record, train_split=config.data.train_split, ancestors=ancestors)
        if fsdp is not None:
            fsdp.shard(model)

    compiled = compile_if_enabled(model, config.train, sharded=fsdp is not None)

    def save_checkpoint(target: Path, record: CheckpointRecord) -> None:
        save_trained(target, model.trained_state(), record)

    def caption(features: Any, on_progress: Callable[[int, int], None] | None) -> list[Caption]:
        return evaluation.caption(model, features, on_progress)

    return RunParts(
        model=model,
        objective=CheckedObjective(model, prompt, config.train.enabled_optimizations, compiled),
        images=data.images,
        features=data.features,
        evaluation_features=data.evaluation_features,
        subset_features=data.features,
        quarantined=data.quarantined,
        record=record,
        save_checkpoint=save_checkpoint,
        caption=caption,
        collective_forward=collective_forward,
        sharded_bytes=llm_bytes(model) if config.train.sharding == "fsdp" else None,
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


def describe_checkpoint(
    model: MiniGPT4, config: ModelConfig, output: Path, seed: int, manifest_hash: str
) -> CheckpointRecord:
    """The record of every checkpoint of a run, at epoch 0 and step 0.

    Args:
        model: as it is trained; its processor attached.
        config: of the model.
        output: folder of the run.
        seed: of the run.
        manifest_hash: of the training manifest.
    """
    assert model.processor is not None
    base, relative = recorded_base(config, output)
    return CheckpointRecord(
        model=base,
        relative_model=relative,
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
        parts=None
        if config.llm is None
        else {"llm": recorded_name(config.llm), "vision": recorded_name(str(config.vision))},
        wrapping=model.config.wrapping,
    )
