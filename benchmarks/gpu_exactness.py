"""Whether captune's gradient is plain rows' at true width: two layers in float32, and all of them against float32."""

from __future__ import annotations

from gpu_models import configs
from measuring import INSTRUCTION, captions, relative, use_numbers

# isort: split
import torch

from captune.config import OptimizationsConfig
from captune.model import MiniGPT4, MiniGPT4Config
from captune.training.loss import Objective
from captune.training.optimizations import compile_layers
from captune.training.sample_order import TrainingSample

__all__ = ["LENGTH", "PER_IMAGE", "PLAIN", "distances", "exact"]

PER_IMAGE, LENGTH = 5, 14
PLAIN = {"shared_prefix": False, "constant_prefix": False, "target_logits": False}


def exact(size: str, device: torch.device) -> dict[str, float]:
    """Largest relative difference of captune's gradients from plain rows', of two layers in float32."""
    text = configs(size)[2]
    text.num_hidden_layers = 2
    vision, qformer, _ = configs("tiny")
    qformer.hidden_size = 768 if size != "tiny" else qformer.hidden_size
    config = MiniGPT4Config(vision_config=vision, qformer_config=qformer, text_config=text, query_tokens=32)
    torch.manual_seed(0)
    with torch.device(device):
        model = use_numbers(MiniGPT4(config, parts=("llm",)).freeze().eval())
    texts = captions(4 * PER_IMAGE, (LENGTH - 6, LENGTH + 6), text.vocab_size - 1)
    samples = [TrainingSample(n, tuple(texts[n * PER_IMAGE : (n + 1) * PER_IMAGE])) for n in range(4)]
    features = torch.randn(4, 32, config.feature_size, device=device)
    objectives = {
        "captune": Objective(model, INSTRUCTION, OptimizationsConfig(), compile_layers(model)),
        "captune, not compiled": Objective(model, INSTRUCTION, OptimizationsConfig()),
        "plain rows": Objective(model, INSTRUCTION, OptimizationsConfig(**PLAIN)),
    }
    gradients = {
        way: torch.autograd.grad(objective.loss(samples, features), model.projection.weight)[0]
        for way, objective in objectives.items()
    }
    plain = gradients.pop("plain rows")
    return {way: relative(gradient, plain) for way, gradient in gradients.items()}


def distances(
    model: MiniGPT4, objectives: dict[str, Objective], samples: list[TrainingSample], features: torch.Tensor
) -> dict[str, float]:
    """Relative distance of each way's gradient from plain rows' in float32; the language model is float32 from now on.

    Empty where float32 weights do not fit into the device's memory.
    """
    weights = 4 * sum(parameter.numel() for parameter in model.llm.parameters())
    if features.device.type == "cuda" and weights > 0.5 * torch.cuda.get_device_properties(0).total_memory:
        return {}

    def gradient(objective: Objective) -> torch.Tensor:
        halves = [(samples[part::2], features[part::2]) for part in range(2)]
        parts = [torch.autograd.grad(objective.loss(*half), model.projection.weight)[0] for half in halves]
        return torch.stack(parts).sum(dim=0)

    gradients = {way: gradient(objective) for way, objective in objectives.items()}
    model.llm.float()
    expected = gradient(objectives["plain rows"])
    return {way: relative(value, expected) for way, value in gradients.items()}
