"""A new captioner of a vision encoder and a causal language model, joined by a random projection.

It generates noise until the projection has been aligned on image-text pairs (stage 1).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
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

from captune.data import CLIP_MEAN, CLIP_STD
from captune.errors import ConfigError, WeightsError
from captune.model.chat_template import read_chat_template
from captune.model.configuration import MiniGPT4Config
from captune.model.language_model import end_ids, language_config, load_language_model
from captune.model.minigpt4 import MiniGPT4
from captune.model.official import load_official
from captune.model.processor import MiniGPT4Processor
from captune.model.prompt import CHAT_TEMPLATES
from captune.model.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer, transformers_tokenizer
from captune.parsing import load_json
from captune.transformers_compat import fetch_file, model_from_config
from captune.weights import load_strictly, read_config, refuse_pointers, require_complete_model, tensor_fingerprints

__all__ = ["ALIGNMENT_CONFIG", "build_model", "config_and_processor_of_parts", "joint_config", "with_vision_encoder"]


# Vision encoders of transformers: SigLIP, CLIP, and BLIP-2 with its Q-Former.

_ENCODERS: dict[str, Any] = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
}
_TEXT_BRANCH = r"^(text_model|text_projection|visual_projection)\.|^logit_(scale|bias)$"
"""Tensors of the text branch of a SigLIP or CLIP."""
_BLIP2 = "blip-2"
_HALF = [0.5, 0.5, 0.5]
SMALLEST_GROUP = 4
"""Smallest number of patches that are joined to one image token, as in MiniGPT-v2."""


def with_vision_encoder(vision: str | Path, llm: str | Path, dtype: torch.dtype) -> MiniGPT4:
    """A model with the vision encoder of a folder or hub id, without language model and processor.

    Args:
        vision: a SigLIP, CLIP or BLIP-2 model; that of BLIP-2 includes its Q-Former.
        llm: folder or hub id of the language model.
        dtype: of the vision encoder's weights.

    Raises:
        WeightsError: the vision encoder is missing, broken, or of another kind.
    """
    source = _read_config(vision)
    if source.model_type == _BLIP2:
        return _with_blip2(vision, llm, dtype, source)
    tower = load_strictly(
        _ENCODERS[source.model_type].from_pretrained,
        vision,
        f"The vision tower {vision}",
        ignored=_TEXT_BRANCH,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = MiniGPT4(joint_from(vision, llm, source, tower.config), parts=())
    model.vision = tower
    return model


def joint_config(vision: str | Path, llm: str | Path) -> MiniGPT4Config:
    """The configuration of the model that `with_vision_encoder` makes, without weights.

    Raises:
        WeightsError: the vision encoder is missing, or of another kind.
    """
    source = _read_config(vision)
    return joint_from(vision, llm, source, getattr(source, "vision_config", source))


def _read_config(vision: str | Path) -> Any:
    refuse_pointers(vision)
    require_complete_model(vision)
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
    """The configuration that joins a vision encoder and a language model."""
    normalization = _normalization(vision, source.model_type)
    if source.model_type == _BLIP2:
        return MiniGPT4Config(
            vision_config=tower.to_dict(),
            qformer_config=source.qformer_config.to_dict(),
            text_config=language_config(llm),
            query_tokens=source.num_query_tokens,
            vision_norm_eps=tower.layer_norm_eps,
            **normalization,
        )
    patches = (tower.image_size // tower.patch_size) ** 2
    return MiniGPT4Config(
        vision_config=tower.to_dict(),
        text_config=language_config(llm),
        patches_per_token=next(n for n in range(min(SMALLEST_GROUP, patches), patches + 1) if patches % n == 0),
        **normalization,
    )


class _Blip2Towers(Blip2PreTrainedModel):  # type: ignore[misc]  # transformers has no types here
    """The parts of a BLIP-2 that MiniGPT-4 uses, under their names there."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model = model_from_config(Blip2VisionModel, config.vision_config)
        self.qformer = model_from_config(Blip2QFormerModel, config.qformer_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.post_init()


def _with_blip2(vision: str | Path, llm: str | Path, dtype: torch.dtype, source: Any) -> MiniGPT4:
    """Vision encoder, Q-Former and queries of a BLIP-2, without its language model."""
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


def _normalization(vision: str | Path, kind: str) -> dict[str, list[float]]:
    """Mean and standard deviation of a vision encoder's pixels; empty if they are CLIP's.

    Args:
        vision: folder or hub id with the settings of the image processor.
        kind: model type of the vision encoder, for the default.
    """
    settings: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        file = fetch_file(vision, name)
        if file is not None:
            content = load_json(file.read_text(encoding="utf-8"))
            settings |= content.get("image_processor", {}) if name == "processor_config.json" else content
    defaults = (_HALF, _HALF) if "siglip" in kind else (CLIP_MEAN.tolist(), CLIP_STD.tolist())
    mean, std = (
        np.broadcast_to(np.asarray(settings.get(key, default), dtype=np.float64), 3)
        for key, default in zip(("image_mean", "image_std"), defaults, strict=True)
    )
    if settings.get("do_normalize") is False:
        mean, std = np.zeros(3), np.ones(3)
    # Mean and deviation are those of pixels after the processor's own scaling; here pixels are from 0 to 1.
    scale = 255 * float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 255.0
    if scale != 1:
        mean, std = mean / scale, std / scale
    if np.allclose(mean, CLIP_MEAN, atol=1e-6) and np.allclose(std, CLIP_STD, atol=1e-6):
        return {}
    return {"pixel_mean": mean.tolist(), "pixel_std": std.tolist()}


logger = logging.getLogger(__name__)

ALIGNMENT_CONFIG = "train_configs/stage1_alignment.yaml"
"""The configuration of stage 1, which aligns a new projection."""


def build_model(
    *,
    llm: str | Path,
    vision: str | Path,
    qformer: str | Path | None = None,
    conversation: str | None = None,
    dtype: torch.dtype | None = None,
    max_target_tokens: int = 160,
    seed: int = 0,
    vision_heads: int = 16,
    qformer_heads: int = 12,
    parts: Sequence[str] = ("vision", "qformer", "llm"),
    aligned: bool = False,
    **llm_options: Any,
) -> MiniGPT4:
    """Join a vision encoder and a language model by a new projection.

    Args:
        llm: folder or hub id of any causal language model.
        vision: the original's `eva_vit_g.pth`, or folder or hub id of a SigLIP or CLIP model.
        qformer: BLIP-2's file, for the original's vision encoder; None projects patches directly.
        conversation: one of `CHAT_TEMPLATES`; by default the language model's own chat template.
        dtype: of the frozen weights; by default bfloat16 if there is a GPU and float32 otherwise. The projection is
            float32.
        max_target_tokens: longest caption in tokens, stop symbol included.
        seed: of the new projection.
        vision_heads: attention heads of the original's vision encoder.
        qformer_heads: attention heads of the original's Q-Former.
        parts: the large parts to keep; without the vision encoder, `unloaded_fingerprints` identifies it.
        aligned: omit the warning about alignment, since a checkpoint with a projection will be loaded.
        llm_options: for the language model's `from_pretrained`: `quantization_config`, `device_map`, ...

    Returns:
        The model in eval mode with its processor; a warning says that it needs stage 1.

    Raises:
        ConfigError: the conversation is unknown, or the chat template cannot be used.
        WeightsError: a part is missing, broken, or of an unsupported kind.
    """
    if conversation is not None and conversation not in CHAT_TEMPLATES:
        raise ConfigError(f"There is no conversation '{conversation}'; expected one of: {', '.join(CHAT_TEMPLATES)}.")
    if dtype is None:
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    if Path(vision).is_file():
        model = load_official(
            "minigpt4",
            llm=llm,
            vision=vision,
            qformer=qformer,
            dtype=dtype,
            vision_heads=vision_heads,
            qformer_heads=qformer_heads,
            **llm_options,
        )
    elif qformer is not None:
        raise WeightsError(f"{qformer} belongs to eva_vit_g.pth, and {vision} is another one.")
    else:
        model = with_vision_encoder(vision, llm, dtype)
        model.llm = load_language_model(llm, dtype=dtype, **llm_options)
    model.processor = _make_processor(model.config, llm, conversation, max_target_tokens)
    _reinit_projection(model, seed)
    if not aligned:
        logger.warning(
            "The projection between %s and %s is new and random: align it on image-text pairs first (stage 1), with "
            "the settings of %s.",
            vision,
            llm,
            ALIGNMENT_CONFIG,
        )
    if "vision" not in parts:
        tower = ((f"vision.{name}", parameter) for name, parameter in model.vision.named_parameters())
        model.unloaded_fingerprints = tensor_fingerprints(tower)
        model.vision = nn.Identity()
    if "llm" not in parts:
        model.llm = nn.Identity()
    return model


def config_and_processor_of_parts(llm: str | Path, vision: str | Path) -> tuple[MiniGPT4Config, MiniGPT4Processor]:
    """Configuration and processor of the captioner that `build_model` makes, without weights.

    Args:
        llm: folder or hub id of any causal language model.
        vision: folder or hub id of a SigLIP, CLIP or BLIP-2 model.

    Raises:
        ConfigError: the chat template cannot be used.
        WeightsError: a part is missing, or of an unsupported kind.
    """
    config = joint_config(vision, llm)
    return config, _make_processor(config, llm, None, config.max_target_tokens)


def _make_processor(
    config: MiniGPT4Config, llm: str | Path, conversation: str | None, max_target_tokens: int
) -> MiniGPT4Processor:
    """Make the processor of a new captioner, and set its chat template in the configuration."""
    config.max_target_tokens = max_target_tokens
    config.end_ids = end_ids(llm)
    tokenizer: Tokenizer
    if conversation is not None:
        config.conversation = conversation
        tokenizer = load_tokenizer(llm)
    else:
        tokenizer = HuggingFaceTokenizer(transformers_tokenizer(llm))
        config.conversation = "chat"
        config.library_tokens = True
        config.wrapping = asdict(read_chat_template(tokenizer.library, str(llm)))
    embeddings = int(config.text_config.get_text_config().vocab_size)
    if tokenizer.vocabulary_size > embeddings:
        raise WeightsError(
            f"The tokenizer of {llm} has {tokenizer.vocabulary_size:,} tokens, but the model has "
            f"{embeddings:,} embeddings; resize the model (resize_token_embeddings) or give its own tokenizer."
        )
    return MiniGPT4Processor(tokenizer, config)


def _reinit_projection(model: MiniGPT4, seed: int) -> None:
    """Set a random projection whose image tokens have about the norm of the token embeddings."""
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        # The outputs of the layer: some families (Gemma) scale the stored vectors by the root of their width.
        words = embedding(torch.arange(min(1000, len(weight)), device=weight.device))
    length = float(words.float().square().mean().sqrt())
    projection = nn.Linear(model.config.feature_size, words.shape[-1], device=weight.device)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(projection.weight.shape, generator=generator) * length / model.config.feature_size**0.5
    with torch.no_grad():
        projection.weight.copy_(drawn)
        projection.bias.zero_()
    model.projection = projection
    model.freeze().eval()
