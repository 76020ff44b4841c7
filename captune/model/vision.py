"""The vision encoder: BLIP-2's, SigLIP's or CLIP's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Blip2VisionConfig, Blip2VisionModel

from captune.data import CLIP_MEAN, CLIP_STD
from captune.model.configuration import MiniGPT4Config
from captune.transformers_compat import model_from_config

__all__ = ["renormalize", "vision_tower"]


def vision_tower(config: MiniGPT4Config) -> nn.Module:
    """The vision encoder of a configuration, with random weights."""
    if not isinstance(config.vision_config, Blip2VisionConfig):
        other: nn.Module = AutoModel.from_config(config.vision_config)
        return other
    tower: Any = model_from_config(Blip2VisionModel, config.vision_config)
    tower.post_layernorm.eps = config.vision_norm_eps
    blip2: nn.Module = tower
    return blip2


def renormalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert pixels (I, 3, S, S) from CLIP's normalization to another one."""

    def column(values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=pixels.device).view(3, 1, 1)

    return ((pixels * column(CLIP_STD) + column(CLIP_MEAN) - column(mean)) / column(std)).to(pixels.dtype)
