"""The model as a run trains it: loaded as configured, LoRA beside it, its quantization checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from captune.config import RunConfig
from captune.model import MiniGPT4
from captune.model.loading import load_checked, load_model
from captune.model.lora import attach_lora
from captune.model.preview import preview_model

__all__ = ["load_tunable"]


def load_tunable(config: RunConfig, device: torch.device, examples: Sequence[tuple[Path, str]] = ()) -> MiniGPT4:
    """Load the model of a run.

    Args:
        config: of the run.
        device: where it goes.
        examples: a few image files and captions, on which a quantization's gradient is compared with the exact one;
            none skips the check.

    Returns:
        The model in eval mode.

    Raises:
        WeightsError: it cannot be loaded, LoRA finds no layers, or the quantization leads elsewhere.
    """
    recompute = config.train.gradient_checkpointing
    if config.model.quantization is not None and examples:
        _, processor = preview_model(config.model)
        images, captions = [path for path, _ in examples], [caption for _, caption in examples]
        batch = processor(images, config.model.instruction, captions)
        model, _ = load_checked(config.model, device, dict(batch), recompute=recompute)
    else:
        model = load_model(config.model, device, recompute=recompute)
    lora = config.train.lora
    if lora is not None:
        with torch.random.fork_rng(devices=[]):
            # Every process begins with the same matrices.
            torch.manual_seed(config.seed)
            attach_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, dropout=lora.dropout)
        model.to(device)
        model.checkpoint_activations(recompute)
    return model
