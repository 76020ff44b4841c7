"""Towers as transformers keeps them: SigLIP's, CLIP's, and BLIP-2's with its Q-Former."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    Blip2QFormerModel,
    Blip2VisionModel,
    CLIPVisionModel,
    SiglipVisionModel,
)
from transformers.utils import cached_file

from captune.errors import WeightsError
from captune.model.configuration import MiniGPT4Config
from captune.model.language_model import language_config
from captune.model.minigpt4 import MiniGPT4
from captune.model.weight_files import stored_tensors, weight_files

__all__ = ["preview_tower", "with_tower"]

_ENCODERS: dict[str, Any] = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
}
_BLIP2 = "blip-2"
_SIGLIP_NORMALISATION = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
SMALLEST_GROUP = 4
"""Patches that are joined to one image token, at least, as in MiniGPT-v2: fewer tokens for the language model."""


def with_tower(vision: str | Path, llm: str | Path, dtype: torch.dtype) -> MiniGPT4:
    """A model with the tower of a folder or hub id; its language model and processor are still to come.

    Args:
        vision: of a SigLIP, CLIP or BLIP-2 model; BLIP-2's brings its Q-Former.
        llm: folder or hub id of the language model that will stand behind it.
        dtype: of the tower's weights.

    Raises:
        WeightsError: the tower is missing, broken, or of another kind.
    """
    given = _read_config(vision)
    if given.model_type == _BLIP2:
        return _with_blip2(vision, llm, dtype, given)
    try:
        tower, loaded = _ENCODERS[given.model_type].from_pretrained(str(vision), dtype=dtype, output_loading_info=True)
    except Exception as error:  # broken files make the readers below transformers raise nearly anything
        raise WeightsError(
            f"The vision tower {vision} cannot be loaded: {' '.join(str(error).split())[:200]}"
        ) from error
    if loaded["missing_keys"]:
        raise WeightsError(f"The vision tower {vision} is incomplete; it has no '{min(loaded['missing_keys'])}'.")
    with torch.device("meta"):
        model = MiniGPT4(_joined(vision, llm, given, tower.config), parts=())
    model.vision = tower
    return model


def preview_tower(vision: str | Path, llm: str | Path) -> MiniGPT4Config:
    """The configuration of the model that `with_tower` would make, without any weights.

    Raises:
        WeightsError: the tower is missing, or of another kind.
    """
    given = _read_config(vision)
    return _joined(vision, llm, given, getattr(given, "vision_config", given))


def _read_config(vision: str | Path) -> Any:
    try:
        given = AutoConfig.from_pretrained(str(vision), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{vision} is neither eva_vit_g.pth nor a vision model with a config.json.") from error
    if given.model_type not in (*_ENCODERS, _BLIP2):
        raise WeightsError(
            f"{vision} is a {given.model_type}; expected eva_vit_g.pth, or a SigLIP, CLIP or BLIP-2 model."
        )
    return given


def _joined(vision: str | Path, llm: str | Path, given: Any, tower: Any) -> MiniGPT4Config:
    """What joins a tower, of this configuration, and a language model."""
    if given.model_type == _BLIP2:
        return MiniGPT4Config(
            vision_config=tower.to_dict(),
            qformer_config=given.qformer_config.to_dict(),
            text_config=language_config(llm),
            query_tokens=given.num_query_tokens,
            vision_norm_eps=tower.layer_norm_eps,
        )
    patches = (tower.image_size // tower.patch_size) ** 2
    normalisation = _normalisation(vision, given.model_type)
    return MiniGPT4Config(
        vision_config=tower.to_dict(),
        text_config=language_config(llm),
        patches_per_token=next(n for n in range(min(SMALLEST_GROUP, patches), patches + 1) if patches % n == 0),
        pixel_mean=normalisation.get("image_mean"),
        pixel_std=normalisation.get("image_std"),
    )


def _with_blip2(vision: str | Path, llm: str | Path, dtype: torch.dtype, given: Any) -> MiniGPT4:
    """Tower, Q-Former and queries out of a whole BLIP-2, whose own language model is not read."""
    config = _joined(vision, llm, given, given.vision_config)
    with torch.device("meta"):
        model = MiniGPT4(config, parts=("vision", "qformer"))
    state = {
        name: tensor.to(dtype, copy=True)
        for file in weight_files(vision)
        for name, tensor in stored_tensors(file, ("vision_model.", "qformer.", "query_tokens"))
        if tensor.is_floating_point()
    }
    if "query_tokens" not in state:
        raise WeightsError(f"The BLIP-2 model {vision} has no 'query_tokens'.")
    model.query_tokens = nn.Parameter(state.pop("query_tokens"))
    parts = (("vision_model.", model.vision, Blip2VisionModel), ("qformer.", model.qformer, Blip2QFormerModel))
    for prefix, part, kind in parts:
        assert isinstance(part, kind)
        own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        wrong = sorted({name for name, _ in part.named_parameters()} ^ set(own))
        if wrong:
            raise WeightsError(f"The BLIP-2 model {vision} does not fit its config.json; see '{prefix}{wrong[0]}'.")
        part.load_state_dict(own, assign=True, strict=False)
        for module in part.modules():
            # Position ids and the like are no weights; they are made again where they are on no device.
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_meta:
                    setattr(module, name, torch.arange(buffer.numel()).expand(buffer.shape).clone())
    return model


def _normalisation(vision: str | Path, kind: str) -> dict[str, list[float]]:
    """Mean and deviation that a tower was trained with; empty where they are CLIP's, as those of the pixels are."""
    if "siglip" not in kind:
        return {}
    file = cached_file(str(vision), "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
    stated = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else {}
    return {key: list(stated.get(key, default)) for key, default in _SIGLIP_NORMALISATION.items()}
