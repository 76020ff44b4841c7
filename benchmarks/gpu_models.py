"""What the GPU benchmarks share: language models and towers of true size with random weights, and rates of the card."""

from __future__ import annotations

import time
from collections.abc import Callable

from measuring import use_numbers

# isort: split
import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    LlamaConfig,
)

from captune.model import MiniGPT4, MiniGPT4Config

__all__ = ["build", "clocked", "configs", "matmul_rate"]

SIZES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "tiny": {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 2},
}
SIZES["encode"] = SIZES["tiny"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def configs(size: str) -> tuple[Blip2VisionConfig, Blip2QFormerConfig, LlamaConfig]:
    """Configurations of vision tower, Q-Former and language model."""
    text = LlamaConfig(vocab_size=32_000 if size != "tiny" else 512, max_position_embeddings=2048, **SIZES[size])
    if size != "tiny":
        return Blip2VisionConfig(), Blip2QFormerConfig(**NO_DROPOUT), text
    vision = Blip2VisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    small = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return vision, Blip2QFormerConfig(encoder_hidden_size=32, **small, **NO_DROPOUT), text


def clocked(run: Callable[[], object], device: torch.device) -> float:
    """Seconds until the device has done it."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def matmul_rate(device: torch.device, side: int) -> float:
    """TFLOP/s of a square product in bfloat16, the best of ten."""
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    torch.mm(one, other)
    return 2 * side**3 / min(clocked(lambda: torch.mm(one, other), device) for _ in range(10)) / 1e12


def build(size: str, device: torch.device) -> tuple[MiniGPT4, Blip2ForConditionalGeneration]:
    """Captune's model and the peer, of the same language model."""
    vision, qformer, text = configs(size)
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        peer = Blip2ForConditionalGeneration(
            Blip2Config(
                vision_config=vision,
                qformer_config=qformer,
                text_config=text,
                num_query_tokens=32,
                image_token_index=text.vocab_size - 1,
            )
        ).requires_grad_(False)
        own_vision, own_qformer, own_text = configs(size)
        config = MiniGPT4Config(
            vision_config=own_vision, qformer_config=own_qformer, text_config=own_text, query_tokens=32
        )
        model = MiniGPT4(config, parts=())
    torch.set_default_dtype(default)
    model.llm = peer.language_model
    model.projection.float()
    model.projection.load_state_dict(peer.language_projection.state_dict())
    peer.language_projection.requires_grad_(True)
    return use_numbers(model.freeze().eval()), peer.eval()
