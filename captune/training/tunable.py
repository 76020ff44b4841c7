"""The model as a run trains it: loaded as configured, LoRA beside it, its quantization checked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captune.config import RunConfig
from captune.model import MiniGPT4
from captune.model.loading import LANGUAGE, compute_dtype, load_checked, load_model
from captune.model.lora import attach_lora
from captune.model.preview import preview_model

__all__ = ["load_tunable"]


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
        _, processor = preview_model(config.model)
        layout = processor.layout
        prompt = layout.prompt(config.model.instruction).ids
        batch = processor.pad([layout.answered(prompt, caption) for caption in captions])
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
