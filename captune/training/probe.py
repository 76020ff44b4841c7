"""Two real steps and one real generation, their bytes counted beside what was predicted.

Bytes are counted on the tensors themselves (weights, what autograd keeps, the optimizer's state, the cache), so the
numbers mean the same on every device; on a GPU the allocator's peak stands beside the predicted total.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from captune.config import RunConfig
from captune.data.manifest import Sample
from captune.model import MiniGPT4
from captune.model.size import cache_size, saved_bytes
from captune.training.distributed import World
from captune.training.plan import Planner
from captune.training.samples import TrainingSamples
from captune.training.step import Stepper
from captune.transformers_compat import kv_cache_of

__all__ = ["Measured", "probe"]

KEPT = ("features", "activations", "log-probabilities")
"""The parts of training that autograd keeps for the backward pass."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One thing that was counted.

    Attributes:
        name: what.
        predicted: bytes.
        measured: bytes.
    """

    name: str
    predicted: int
    measured: int

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured if self.measured else float("nan")


def probe(config: RunConfig, model: MiniGPT4, planner: Planner) -> list[Measured]:
    """Run the largest micro-batch and the largest batch of captions.

    Args:
        config: of the run.
        model: on its device; its projection is changed by the steps.
        planner: that predicted.

    Returns:
        Each part, predicted and measured.
    """
    plan = planner.plan(config)
    parts = {part.name: part.bytes for part in plan.training.parts}
    found = [
        Measured("language model", parts["language model"], _bytes(model.llm.parameters())),
        Measured("projection", parts["projection"], _bytes(model.projection.parameters())),
    ]
    kept, trained, peak = _train(config, model, planner)
    optimizer = parts["gradient and AdamW"] + parts.get("LoRA", 0)
    found.append(Measured("kept for the backward pass", sum(parts[name] for name in KEPT), kept))
    found.append(Measured("gradient and AdamW", optimizer, trained))
    if peak:
        found.append(Measured("peak of training", plan.training.total, peak))
    cache, peak = _generate(config, model, planner)
    predicted = {part.name: part.bytes for part in plan.generation.parts}
    found.append(Measured("keys and values", predicted["keys and values"], cache))
    if peak:
        found.append(Measured("peak of generation", plan.generation.total, peak))
    return found


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, shared storages counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _train(config: RunConfig, model: MiniGPT4, planner: Planner) -> tuple[int, int, int]:
    """Two optimiser steps of one micro-batch; bytes kept in the second, of gradient and optimizer, and the peak."""
    captions = planner.micro_batch(config)
    images = [Sample(str(number), "", texts, "train") for number, texts in enumerate(captions)]
    together = max(map(len, captions))
    once: dict[str, Any] = {"batch_size": together * len(images), "micro_batch_size": None, "steps_per_epoch": None}
    # What is joined is one caption already, and a drawn one is the only one.
    once |= {"targets": "each", "captions_per_image": together, "epochs": 2}
    settings = config.model_copy(update={"train": config.train.model_copy(update=once)})
    samples = TrainingSamples(images, settings.train, settings.seed)
    device = model.projection.weight.device
    features = torch.randn(len(images), model.config.image_tokens, model.config.feature_size, dtype=model.llm.dtype)
    optimizers: list[torch.optim.Optimizer] = []

    def remember(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        optimizers.append(optimizer)

    own = [*model.parameters(), *model.buffers()]
    _reset_peak(device)
    with ExitStack() as stack:
        stack.callback(register_optimizer_step_post_hook(remember).remove)
        stepper = Stepper(model.train(), features, samples, settings, World(0, 1, device))
        stepper.take(0)
        peak = _peak(device)
        kept, _ = saved_bytes(lambda: stepper.take(1), own)
    model.eval()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    moments = [value for state in optimizers[-1].state.values() for value in state.values() if value.numel() > 1]
    return kept, _bytes([*gradients, *moments]), peak


def _generate(config: RunConfig, model: MiniGPT4, planner: Planner) -> tuple[int, int]:
    """A full batch of captions of the longest length; bytes of keys and values at their end, and the peak."""
    load = planner.generation_load(config)
    assert model.processor is not None
    device = model.projection.weight.device
    prompt = model.processor.layout.prompt(config.model.instruction)
    features = torch.randn(load.images, model.config.image_tokens, model.config.feature_size, device=device)
    sizes: list[int] = []

    def count(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        sizes.append(cache_size(kv_cache_of(output)))

    handle = model.llm.register_forward_hook(count, with_kwargs=True)
    _reset_peak(device)
    try:
        model.generate(
            torch.tensor([prompt.ids], device=device).expand(load.images, -1),
            features=features,
            max_new_tokens=load.new_tokens,
            min_new_tokens=load.new_tokens,
            num_beams=load.beams,
            do_sample=False,
            eos_token_id=list(model.processor.end_ids) or None,
        )
    finally:
        handle.remove()
    return max(sizes), _peak(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
