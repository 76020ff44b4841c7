"""Towers as transformers keeps them: SigLIP's, CLIP's, and BLIP-2's with its Q-Former."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    Blip2VisionModel,
    CLIPVisionModel,
    SiglipVisionModel,
)

from captune.data.images import CLIP_MEAN, CLIP_STD
from captune.errors import WeightsError
from captune.model.configuration import MiniGPT4Config
from captune.model.language_model import language_config
from captune.model.minigpt4 import MiniGPT4
from captune.parsing import load_json
from captune.transformers_compat import fetch_file, model_from_config
from captune.weights.pointers import refuse_part, refuse_pointers
from captune.weights.strict import load_strictly, read_config

__all__ = ["joint_config", "with_vision_encoder"]

_ENCODERS: dict[str, Any] = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
}
_OTHER_HALF = r"^(text_model|text_projection|visual_projection)\.|^logit_(scale|bias)$"
"""What a whole SigLIP or CLIP has for texts."""
_BLIP2 = "blip-2"
_HALF = [0.5, 0.5, 0.5]
SMALLEST_GROUP = 4
"""Patches that are joined to one image token, at least, as in MiniGPT-v2: fewer tokens for the language model."""


def with_vision_encoder(vision: str | Path, llm: str | Path, dtype: torch.dtype) -> MiniGPT4:
    """A model with the tower of a folder or hub id; its language model and processor are still to come.

    Args:
        vision: of a SigLIP, CLIP or BLIP-2 model; BLIP-2's brings its Q-Former.
        llm: folder or hub id of the language model that will stand behind it.
        dtype: of the tower's weights.

    Raises:
        WeightsError: the tower is missing, broken, or of another kind.
    """
    source = _read_config(vision)
    if source.model_type == _BLIP2:
        return _with_blip2(vision, llm, dtype, source)
    tower = load_strictly(
        _ENCODERS[source.model_type].from_pretrained,
        vision,
        f"The vision tower {vision}",
        ignored=_OTHER_HALF,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = MiniGPT4(joint_from(vision, llm, source, tower.config), parts=())
    model.vision = tower
    return model


def joint_config(vision: str | Path, llm: str | Path) -> MiniGPT4Config:
    """The configuration of the model that `with_vision_encoder` would make, without any weights.

    Raises:
        WeightsError: the tower is missing, or of another kind.
    """
    source = _read_config(vision)
    return joint_from(vision, llm, source, getattr(source, "vision_config", source))


def _read_config(vision: str | Path) -> Any:
    refuse_pointers(vision)
    refuse_part(vision)
    try:
        source = read_config(AutoConfig.from_pretrained, vision, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{vision} is neither eva_vit_g.pth nor a vision model with a config.json.") from error
    if source.model_type not in (*_ENCODERS, _BLIP2):
        raise WeightsError(
            f"{vision} is a {source.model_type}; expected eva_vit_g.pth, or a SigLIP, CLIP or BLIP-2 model."
        )
    return source


def joint_from(vision: str | Path, llm: str | Path, source: Any, tower: Any) -> MiniGPT4Config:
    """What joins a tower, of this configuration, and a language model."""
    normalisation = _normalisation(vision, source.model_type)
    if source.model_type == _BLIP2:
        return MiniGPT4Config(
            vision_config=tower.to_dict(),
            qformer_config=source.qformer_config.to_dict(),
            text_config=language_config(llm),
            query_tokens=source.num_query_tokens,
            vision_norm_eps=tower.layer_norm_eps,
            **normalisation,
        )
    patches = (tower.image_size // tower.patch_size) ** 2
    return MiniGPT4Config(
        vision_config=tower.to_dict(),
        text_config=language_config(llm),
        patches_per_token=next(n for n in range(min(SMALLEST_GROUP, patches), patches + 1) if patches % n == 0),
        **normalisation,
    )


class _Blip2Towers(Blip2PreTrainedModel):  # type: ignore[misc]  # transformers has no types here
    """What MiniGPT-4 has of a BLIP-2, under its names there."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model = model_from_config(Blip2VisionModel, config.vision_config)
        self.qformer = model_from_config(Blip2QFormerModel, config.qformer_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.post_init()


def _with_blip2(vision: str | Path, llm: str | Path, dtype: torch.dtype, source: Any) -> MiniGPT4:
    """Tower, Q-Former and queries out of a whole BLIP-2, whose own language model is not read."""
    with torch.device("meta"):
        model = MiniGPT4(joint_from(vision, llm, source, source.vision_config), parts=())
    towers = load_strictly(
        _Blip2Towers.from_pretrained,
        vision,
        f"The BLIP-2 model {vision}",
        ignored=r"^language_(model|projection)\.",
        dtype=torch.float32,
    ).to(dtype)
    model.vision, model.qformer, model.query_tokens = towers.vision_model, towers.qformer, towers.query_tokens
    return model


def _normalisation(vision: str | Path, kind: str) -> dict[str, list[float]]:
    """Mean and deviation that a tower was trained with; empty where they are CLIP's, as those of the pixels are.

    Args:
        vision: the tower's folder or hub id; its image processor's settings name them.
        kind: of the tower, which decides where they are not named.
    """
    stated: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = fetch_file(vision, name)
        if file is not None:
            content = load_json(file.read_text(encoding="utf-8"))
            stated |= content.get("image_processor", {}) if name == "processor_config.json" else content
    defaults = (_HALF, _HALF) if "siglip" in kind else (CLIP_MEAN.tolist(), CLIP_STD.tolist())
    mean, std = (
        np.broadcast_to(np.asarray(stated.get(key, default), dtype=np.float64), 3)
        for key, default in zip(("image_mean", "image_std"), defaults, strict=True)
    )
    if stated.get("do_normalize") is False:
        mean, std = np.zeros(3), np.ones(3)
    # Pixels are from 0 to 1 here; a processor that scales otherwise means its mean and deviation on its own scale.
    scale = 255 * float(stated.get("rescale_factor", 1 / 255)) if stated.get("do_rescale", True) else 255.0
    if scale != 1:
        mean, std = mean / scale, std / scale
    if np.allclose(mean, CLIP_MEAN, atol=1e-6) and np.allclose(std, CLIP_STD, atol=1e-6):
        return {}
    return {"pixel_mean": mean.tolist(), "pixel_std": std.tolist()}
