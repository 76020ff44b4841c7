"""The dimensions of the toy: MiniGPT-4's own classes, small enough to ship in the package."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from captune.model import MiniGPT4, MiniGPT4Config
from captune.toy.drawing import IMAGE_SIZE

__all__ = ["QFORMER", "build_model"]

VISION = Blip2VisionConfig(
    image_size=IMAGE_SIZE,
    patch_size=8,
    hidden_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=384,
    hidden_act="gelu",
)
QFORMER = Blip2QFormerConfig(
    hidden_size=96,
    encoder_hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=192,
    cross_attention_frequency=1,
    # Word embeddings belong to the text branch, which MiniGPT-4 has not.
    vocab_size=1,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
QUERY_TOKENS = 11
LLM_WIDTH = 160


def build_model(vocabulary_size: int) -> MiniGPT4:
    """A tiny MiniGPT-4 with random weights from torch's generator.

    Args:
        vocabulary_size: V of the language model.

    Returns:
        The model, only its projection to be trained, as always.
    """
    llm = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=LLM_WIDTH,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=5,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    )
    config = MiniGPT4Config(
        vision_config=VISION.to_dict(),
        qformer_config=QFORMER.to_dict(),
        text_config=llm.to_dict(),
        query_tokens=QUERY_TOKENS,
        max_target_tokens=64,
    )
    model = MiniGPT4(config)
    _start_wide_awake(model)
    return model


@torch.no_grad()
def _start_wide_awake(model: MiniGPT4) -> None:
    """Weights of the towers as large as their width asks for.

    The usual standard deviation of 0.02 is meant for widths of 768 and more; at 96 it leaves attention blind for the
    first thousands of steps.
    """
    assert model.qformer is not None
    for tower in (model.vision, model.qformer):
        for name, module in tower.named_modules():
            if isinstance(module, nn.Linear):
                # What is added to the residual stream starts at half.
                share = 0.5 if any(end in name for end in ("projection", "fc2", "output")) else 1.0
                nn.init.normal_(module.weight, std=share * module.in_features**-0.5)
    patches = model.vision.embeddings.patch_embedding.weight
    nn.init.normal_(patches, std=patches[0].numel() ** -0.5)
    nn.init.normal_(model.vision.embeddings.position_embedding, std=0.3)
    nn.init.normal_(model.query_tokens, std=0.5)
