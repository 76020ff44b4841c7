"""Tiny transformers models with changed trained tensors, and their checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captune.captioner import probe_images, probe_scores
from captune.config import LoraConfig
from captune.decoding import DecodingOptions
from captune.hub import resolve_model
from captune.run_checkpoints import CheckpointRecord
from captune.vlm import ImageTextModel, load_image_text_model, save_adapter

CPU = torch.device("cpu")
LORA = LoraConfig(rank=4, alpha=8, targets=("all-linear",))
OPTIONS = DecodingOptions(max_new_tokens=12)


def load(base: Path) -> ImageTextModel:
    return load_image_text_model(resolve_model(str(base)), CPU, instruction="What is this?")


def record_of(model: ImageTextModel, *trained: str, **fields: Any) -> CheckpointRecord:
    settings = {"r": LORA.rank, "alpha": LORA.alpha, "targets": ["all-linear"], "dropout": 0.0}
    values: dict[str, Any] = {
        "model": model.name,
        "frozen": model.frozen_fingerprint(),
        "instruction": "What is this?",
        "conversation": "",
        "stop_symbol": "",
        "manifest_hash": "hash",
        "epoch": 1,
        "step": 20,
        "seed": 42,
        "captune": "0.1",
        "lora": settings if "lora" in trained else None,
        "kind": "transformers",
        "trained": trained,
    }
    return CheckpointRecord(**{**values, **fields})


def perturb(model: ImageTextModel) -> None:
    """Change the trained tensors, as training does."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in model.trained_parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def tune(base: Path, folder: Path, *, projector: bool = False) -> ImageTextModel:
    """A model with trained LoRA, and its checkpoint."""
    model = load(base)
    model.add_lora(LORA, projector=projector)
    perturb(model)
    folder.mkdir()
    save_adapter(folder, model, record_of(model, "lora", *(["projector"] if projector else [])))
    return model


def scores(model: ImageTextModel) -> Tensor:
    return probe_scores(model.backend)


def texts(model: ImageTextModel) -> list[str]:
    return [caption.text for caption in model.backend.generate(probe_images(), None, OPTIONS)]
