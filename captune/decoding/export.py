"""Prompts as embeddings, for engines that take them in the place of token ids, such as vLLM's `EmbedsPrompt`."""

from __future__ import annotations

import torch
from torch import Tensor

from captune.decoding.request import FeatureRows
from captune.model import MiniGPT4

__all__ = ["prompt_embeddings"]


@torch.inference_mode()
def prompt_embeddings(model: MiniGPT4, features: FeatureRows, instruction: str) -> Tensor:
    """What the language model is fed before its first word.

    Args:
        model: its processor attached.
        features: of the frozen part, for N images.
        instruction: what is asked of every image.

    Returns:
        (N, T, D) whole prompts, BOS and image included, on the CPU in the language model's number format.
    """
    if model.processor is None:
        raise ValueError("The model has no processor; load it with from_pretrained or load_official.")
    device = model.projection.weight.device
    rows = features[0 : len(features)].to(device)
    ids = torch.tensor([model.processor.layout.prompt(instruction).ids], device=device).expand(len(rows), -1)
    return model.embed(ids, model.project(rows)).cpu()
