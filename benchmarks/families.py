"""Which language models take packed rows exactly, and which of the others the start-up probe catches.

    python benchmarks/families.py [--json]

For every family a tiny model with random weights, large enough that attention is far from uniform. Packed rows (shared
prefix, cached text, logits at targets) are compared with plain ones: transformers' masks, one row a caption. In
float64 the norms of LLaMA's kind compute in float64 as well, where transformers casts to float32; the plain side is one
packed row a caption there, since the plain path's cross-entropy is in float32. (Eager attention's softmax and Cohere's
rotation stay in float32, which shows as 1e-9 to 1e-8.) `probe` is what captune decides at the start of a run: with
"plain rows" it trains that family without packing.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from measuring import Output, alternate, median, options, relative

# isort: split
import torch
from tiny import SIZES, tiny_minigpt4
from transformers import AutoConfig

from captune.config import OptimizationsConfig
from captune.model import MiniGPT4
from captune.model.lora import attach_lora
from captune.training.equivalence import check_packing
from captune.training.loss import Objective
from captune.training.sample_order import TrainingSample

GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 48}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
FAMILIES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama", "llama", {}),
    ("mistral, full attention", "mistral", {"sliding_window": None, **GROUPED}),
    ("qwen2", "qwen2", GROUPED),
    ("qwen3", "qwen3", {"head_dim": 8, **GROUPED}),
    ("gemma", "gemma", {"num_key_value_heads": 1, "head_dim": 8}),
    ("gemma2, eager", "gemma2", {"head_dim": 8, "attn_implementation": "eager", "sliding_window": 256, **GROUPED}),
    ("phi3", "phi3", GROUPED),
    ("granite", "granite", {"logits_scaling": 4.0, **GROUPED}),
    ("olmo2", "olmo2", GROUPED),
    ("cohere", "cohere", {"logit_scale": 0.25, **GROUPED}),
    ("stablelm", "stablelm", GROUPED),
    ("starcoder2", "starcoder2", {"sliding_window": None, **GROUPED}),
    ("glm4", "glm4", {"head_dim": 8, **GROUPED}),
    ("mixtral", "mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, **GROUPED}),
    ("qwen3_moe", "qwen3_moe", {"num_experts": 4, **EXPERTS, **GROUPED}),
    ("gpt2", "gpt2", GPT),
    ("gpt_neox", "gpt_neox", {}),
    ("opt", "opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ("falcon", "falcon", {}),
    ("mistral, window 24", "mistral", {"sliding_window": 24, **GROUPED}),
    ("mpt (ALiBi)", "mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "expansion_ratio": 2}),
    ("bloom (ALiBi)", "bloom", {"n_layer": 2, "n_head": 4}),
    ("mamba", "mamba", {"state_size": 8, "num_hidden_layers": 2}),
]
EXACT = 19
"""The first so many are exact; the others have to be caught."""
SAMPLES = [
    TrainingSample(0, ("a dog runs", "two dogs run on the grass", "a brown dog")),
    TrainingSample(1, ("a red car", "one car stands in front of a house")),
    TrainingSample(2, ("x",)),
]
INSTRUCTION = "Describe this image."
PLAIN = OptimizationsConfig(shared_prefix=False, constant_prefix=False, target_logits=False)
SEPARATE = OptimizationsConfig(shared_prefix=False, constant_prefix=False)


def build(kind: str, settings: dict[str, Any], lora: bool = False) -> MiniGPT4:
    """A tiny model of a family with random weights."""
    model = tiny_minigpt4(AutoConfig.for_model(kind, **{**SIZES, **settings}))
    if lora:
        attach_lora(model, rank=4, alpha=8, targets=["q_proj", "v_proj"], dropout=0.0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    return model


def features(model: MiniGPT4) -> torch.Tensor:
    """Random features (N, Q, F) of the samples."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(len(SAMPLES), 4, 24, generator=random).to(model.projection.weight.dtype)


def gradient(
    model: MiniGPT4, fast: OptimizationsConfig, *, complete_layers: bool = False
) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the trained parameters, as one vector; `complete_layers` skips no part of a layer."""
    objective = Objective(model, INSTRUCTION, fast)
    if complete_layers:
        objective.disable_layer_skipping()
    loss = objective.loss(SAMPLES, features(model))
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in model.trained_parameters()])
    return float(loss.detach()), torch.cat([part.reshape(-1) for part in gradients])


@contextlib.contextmanager
def precise_norms(model: MiniGPT4) -> Iterator[None]:
    """Norms that multiply by the root mean square, in float64, as in their formula."""
    changed: list[tuple[type, Any]] = []
    for kind in {type(module) for module in model.llm.modules()}:
        if re.search("RMSNorm$|CohereLayerNorm$", kind.__name__):
            changed.append((kind, kind.forward))
            kind.forward = _norm
    try:
        yield
    finally:
        for kind, forward in changed:
            kind.forward = forward


def _norm(self: Any, states: torch.Tensor) -> torch.Tensor:
    if type(self).__name__ == "CohereLayerNorm":
        states = states - states.mean(-1, keepdim=True)
    epsilon = getattr(self, "variance_epsilon", getattr(self, "eps", 1e-6))
    weight = self.weight + 1 if type(self).__name__.startswith("Gemma") else self.weight
    return weight * states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + epsilon)


def measure(kind: str, settings: dict[str, Any], *, lora: bool) -> dict[str, Any]:
    """Differences of a family, and the decision of the probe."""
    model = build(kind, settings, lora)
    answer: dict[str, Any] = {"identical": False, "float64_gradient": None}
    objective = Objective(model, INSTRUCTION, OptimizationsConfig())
    reason = check_packing(objective, SAMPLES, features(model))
    # Where the probe computes the layers completely, the comparisons do too.
    complete = not objective.skips_unused
    try:
        (plain_loss, plain), (packed_loss, packed) = (
            gradient(model, PLAIN),
            gradient(model, OptimizationsConfig(), complete_layers=complete),
        )
        answer["loss_difference"] = abs(packed_loss - plain_loss) / plain_loss
        answer["gradient_relative_difference"] = relative(packed, plain)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        answer["raises"] = type(error).__name__
    answer["probe"] = "packed" if reason is None else "plain rows"
    answer["reason"] = reason
    if reason is None:
        double = build(kind, settings, lora).double()
        # Experts' grouped products exist in float32 and below only.
        with precise_norms(double), contextlib.suppress(RuntimeError):
            answer["float64_gradient"] = relative(
                gradient(double, OptimizationsConfig(), complete_layers=complete)[1], gradient(double, SEPARATE)[1]
            )
        ways = {"plain": lambda: gradient(model, PLAIN), "packed": lambda: gradient(model, OptimizationsConfig())}
        seconds = median(alternate(ways, 3))
        answer["ratio"] = round(seconds["plain"] / seconds["packed"], 2)
    return answer


def main() -> int:
    """Measure every family and count those that the probe decides as expected."""
    arguments = options(__doc__).parse_args()
    warnings.simplefilter("ignore")
    output = Output(arguments.json, "packed rows against plain ones, relative difference; trained: projection (+ LoRA)")
    rows, right, measured = [], [], []
    tried = [(*family, False, n < EXACT) for n, family in enumerate(FAMILIES)]
    tried += [(f"{name} + LoRA", kind, settings, True, True) for name, kind, settings in FAMILIES[:4]]
    for name, kind, settings, lora, exact in tried:
        result = measure(kind, settings, lora=lora)
        measured.append(result)
        right.append((result["probe"] == "packed") == exact)
        output.line(kind="family", family=name, expected="packed" if exact else "plain rows", **result)
        shown = [result.get("loss_difference"), result.get("gradient_relative_difference"), result["float64_gradient"]]
        cells = ["-" if value is None else f"{value:.1e}" for value in shown]
        rows.append([name, *cells, result["probe"], result.get("raises", "")])
    output.table(["", "loss f32", "gradient f32", "gradient f64", "probe", "raises"], rows)
    sentence = f"{sum(right)} of {len(right)} families as expected: exact ones are packed, the others caught."
    output.say(f"\n{sentence}")
    packed = [result for result in measured if result["probe"] == "packed"]
    output.line(
        kind="result",
        ratio=statistics.median(result["ratio"] for result in packed),
        loss_difference=max(result["loss_difference"] for result in packed),
        gradient_relative_difference=max(result["gradient_relative_difference"] for result in packed),
        identical=all(right),
        families=len(right),
    )
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
