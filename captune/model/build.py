"""A new captioner of parts that have never met: any language model behind any of several towers.

What joins them is new and random. Until it has been aligned on image-text pairs (stage 1), captions are noise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from captune.errors import ConfigError, WeightsError
from captune.model.chat import read_chat_template
from captune.model.configuration import MiniGPT4Config
from captune.model.language_model import end_ids, load_language_model
from captune.model.minigpt4 import MiniGPT4
from captune.model.official import load_official
from captune.model.processor import MiniGPT4Processor
from captune.model.prompt import CHAT_TEMPLATES
from captune.model.tokenizer import HuggingFaceTokenizer, Tokenizer, load_tokenizer, transformers_tokenizer
from captune.model.towers import joint_config, with_vision_encoder
from captune.weights.fingerprint import tensor_fingerprints

__all__ = ["ALIGNMENT_CONFIG", "build", "config_and_processor_of_parts"]

logger = logging.getLogger(__name__)

ALIGNMENT_CONFIG = "train_configs/stage1_alignment.yaml"
"""The settings of stage 1, which a new projection has to go through before it is tuned."""


def build(
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
    """Join a vision tower and a language model by a new projection.

    Args:
        llm: folder or hub id of any causal language model.
        vision: the original's `eva_vit_g.pth`, or folder or hub id of a SigLIP or CLIP model.
        qformer: BLIP-2's file, for the original's tower; None for patches that go to the projection directly.
        conversation: one of `CHAT_TEMPLATES`; by default the language model's own chat template.
        dtype: of the weights; by default bfloat16 on a machine with a GPU and float32 elsewhere. The projection,
            which is to be trained, is float32.
        max_target_tokens: longest caption in tokens, stop symbol included.
        seed: of the new projection.
        vision_heads: attention heads of the original's tower.
        qformer_heads: attention heads of the original's Q-Former.
        parts: the large parts that are kept; without the vision tower, `unloaded_fingerprints` identifies it.
        aligned: a checkpoint brings the projection, so no warning says that it has to be aligned first.
        llm_options: for the language model's `from_pretrained`: `quantization_config`, `device_map`, ...

    Returns:
        The model in eval mode, its processor attached; a warning says that it needs stage 1, and the settings for it.

    Raises:
        ConfigError: the conversation is unknown, or the chat template cannot be used.
        WeightsError: a part is missing, broken, or of a kind that is not known here.
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
        raise WeightsError(f"{qformer} belongs to the original's tower (eva_vit_g.pth), and {vision} is another one.")
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
    """Configuration and processor of the captioner that `build` would make, without any weights.

    Args:
        llm: folder or hub id of any causal language model.
        vision: folder or hub id of a SigLIP, CLIP or BLIP-2 model.

    Raises:
        ConfigError: the chat template cannot be used.
        WeightsError: a part is missing, or of a kind that is not known here.
    """
    config = joint_config(vision, llm)
    return config, _make_processor(config, llm, None, config.max_target_tokens)


def _make_processor(
    config: MiniGPT4Config, llm: str | Path, conversation: str | None, max_target_tokens: int
) -> MiniGPT4Processor:
    """A processor that asks as the language model expects it; the configuration learns how."""
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
            f"The tokenizer of {llm} has {tokenizer.vocabulary_size:,} tokens, but the model embeddings for "
            f"{embeddings:,}; resize the model (resize_token_embeddings) or give the tokenizer that belongs to it."
        )
    return MiniGPT4Processor(tokenizer, config)


def _reinit_projection(model: MiniGPT4, seed: int) -> None:
    """A projection whose image tokens are about as long as the language model's token embeddings."""
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    assert isinstance(weight, torch.Tensor)
    with torch.no_grad():
        # As the layer gives them: some families (Gemma) scale the stored vectors by the root of their width.
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
