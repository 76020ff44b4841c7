"""Will a run fit? Predict its memory from its configuration, propose one that fits, and measure two real steps.

Measured bytes are counted on the tensors themselves (weights, what autograd keeps, the optimizer's state, the KV
cache), so the numbers mean the same on every device; on a GPU the allocator's peak is printed next to the predicted
total.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from captune.config import LoraConfig, RunConfig, parse_config
from captune.data import Sample
from captune.distributed import DistributedContext
from captune.errors import DataError
from captune.evaluation import training_images
from captune.model import (
    RESERVE,
    GenerationLoad,
    MemoryEstimate,
    MiniGPT4,
    MiniGPT4Config,
    MiniGPT4Processor,
    ModelSize,
    TrainingLoad,
    cache_size,
    compute_dtype,
    constant_prefix_length,
    generation_memory,
    measure_model,
    pack,
    row_multiple,
    saved_bytes,
    training_memory,
)
from captune.training.equivalence import CheckedObjective
from captune.training.loss import targets_at_once
from captune.training.sample_order import TrainingSamples, synthetic_samples
from captune.training.trainer import TrainStep
from captune.transformers_compat import kv_cache_of

__all__ = ["Measured", "Plan", "Planner", "Proposal", "halved", "measure_memory", "worst_case_batch"]


def worst_case_batch(config: RunConfig) -> list[tuple[str, ...]] | None:
    """The captions of the longest samples that a step could have; None where there is no data yet.

    Memory that holds them holds every step.

    Raises:
        DataError: there is data, and it cannot be read.
    """
    try:
        images = training_images(config)
    except DataError:
        if config.data.train.exists():
            raise
        return None
    samples = TrainingSamples(images, config.train, config.seed)
    return [sample.captions for sample in samples.worst_case_step()]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a configuration takes.

    Attributes:
        training: one micro-batch of training.
        generation: one batch of captioning.
    """

    training: MemoryEstimate
    generation: MemoryEstimate

    @property
    def peak(self) -> int:
        """Bytes of the larger of the two; they come one after the other."""
        return max(self.training.total, self.generation.total)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration close to the given one.

    Attributes:
        overrides: `section.key=value` settings that make it.
        plan: what it takes.
    """

    overrides: tuple[str, ...]
    plan: Plan


class Planner:
    """Predicts the memory of runs of one model on one data set.

    Args:
        config: of the run.
        model_config: of its model.
        processor: of its model.
        device: where it will run; its kind decides the number format and the reserve.
        processes: that share each step.
        caption_tokens: length of the longest captions, instead of the data's own.

    Attributes:
        processes: as given.
        captions: what the longest samples teach, longest first.
        from_data: whether these are the data's own, and not made up.
    """

    def __init__(
        self,
        config: RunConfig,
        model_config: MiniGPT4Config,
        processor: MiniGPT4Processor,
        device: torch.device,
        *,
        processes: int = 1,
        caption_tokens: int | None = None,
    ) -> None:
        self._config = config
        self._model_config = model_config
        self._layout = processor.layout
        self._device = device
        self.processes = processes
        self._sizes: dict[tuple[torch.dtype, str | None, LoraConfig | None], ModelSize] = {}
        from_data = None if caption_tokens else worst_case_batch(config)
        self.from_data = from_data is not None
        tokens = caption_tokens or self._layout.max_target_tokens
        self.captions = from_data or synthetic_samples(config.train, self._layout, tokens)

    def plan(self, config: RunConfig | None = None) -> Plan:
        """What a configuration takes; by default the run's own."""
        config = config or self._config
        size = self.size(config)
        reserve = RESERVE if self._device.type == "cuda" else 0
        return Plan(
            training_memory(
                size,
                self.training_load(config),
                checkpointing=config.train.gradient_checkpointing,
                towers=False,
                reserve=reserve,
            ),
            generation_memory(size, self.generation_load(config), towers=False, reserve=reserve),
        )

    def size(self, config: RunConfig) -> ModelSize:
        """The model in the configuration's number format and quantization, with its LoRA, as a process holds it."""
        dtype = compute_dtype(config.model.dtype, self._device)
        kind = (dtype, config.model.quantization, config.train.lora)
        if kind not in self._sizes:
            model_config = self._model_config
            if config.train.lora is not None:
                model_config = copy.deepcopy(model_config)
                lora = config.train.lora
                model_config.lora = {"r": lora.rank, "alpha": lora.alpha, "targets": list(lora.targets)}
            self._sizes[kind] = measure_model(model_config, dtype, config.model.quantization)
        size = self._sizes[kind]
        return self._divided(size) if config.train.sharding == "fsdp" and self.processes > 1 else size

    def _divided(self, size: ModelSize) -> ModelSize:
        """The same with the share of a language model's layers that one process holds, and those that are gathered."""
        tied = self._model_config.text_config.get_text_config().tie_word_embeddings
        unsharded = (size.vocabulary * size.width * (1 if tied else 2) + size.lora) * size.value_bytes
        layers = size.llm - unsharded
        # The active layer, the next one, and the message in which that comes.
        gathered = min(3, size.layers) * layers // size.layers
        return replace(size, llm=unsharded + -(-layers // self.processes) + gathered)

    def training_load(self, config: RunConfig) -> TrainingLoad:
        """The largest micro-batch: that of the longest samples."""
        prompt = self._layout.prompt(config.model.instruction).ids
        samples = [[self._layout.target_ids(text)[0] for text in texts] for texts in self.micro_batch(config)]
        fast = config.train.enabled_optimizations
        if not fast.target_logits:
            lengths = [len(caption) for sample in samples for caption in sample]
            tokens = len(prompt) + max(lengths)
            # The features of an image are repeated for each of its captions.
            return TrainingLoad(len(lengths), tokens, len(lengths) * (tokens - 1), len(lengths))
        rows = samples if fast.shared_prefix else [[caption] for sample in samples for caption in sample]
        lora = self._model_config.lora is not None or config.train.lora is not None
        constant = fast.constant_prefix and not lora and not config.train.gradient_checkpointing
        cached = constant_prefix_length(prompt) if constant else 0
        multiple = row_multiple(self._device)
        batch = pack(prompt, rows, cached=cached, multiple=multiple)
        tokens = batch.input_ids.shape[1]
        positions = min(
            len(batch.targets), targets_at_once(int(self._model_config.text_config.get_text_config().vocab_size))
        )
        # Compiled layers are run for all tokens, and are what a GPU has by itself.
        all_states = config.train.gradient_checkpointing or (self._device.type == "cuda" and fast.compile is not False)
        unread = 0 if all_states or fast.compile is True else int(batch.columns.min())
        return TrainingLoad(len(rows), tokens, positions, len(rows), cached, unread)

    def generation_load(self, config: RunConfig) -> GenerationLoad:
        """A full batch whose captions all reach the longest length."""
        prompt = self._layout.prompt(config.model.instruction).ids
        evaluate = config.evaluate
        return GenerationLoad(evaluate.batch_size, len(prompt), evaluate.max_new_tokens, evaluate.beams)

    def propose(self, limit: int) -> Proposal | None:
        """The nearest configuration that fits.

        Args:
            limit: bytes of the card.

        Returns:
            The one with the fewest and mildest changes, None where even the smallest batches do not fit.
        """
        for base in self._formats():
            sizes = self._smaller(base, limit)
            if sizes is not None:
                overrides = (*base, *sizes)
                return Proposal(overrides, self.plan(self._changed(overrides)))
        return None

    def smallest(self) -> Plan:
        """What is left when every lever is pulled."""
        *_, base = self._formats()
        return self.plan(self._changed((*base, "train.micro_batch_size=1", "evaluate.batch_size=1")))

    def _formats(self) -> Iterator[tuple[str, ...]]:
        """Levers besides the batch sizes, mildest first, each with those before it.

        Half the bytes of a number are what a GPU computes with anyway, checkpointing costs a third more work and no
        exactness, nor does dividing the layers among processes; fewer bits bend the gradient a little.
        """
        pulled: tuple[str, ...] = ()
        yield pulled
        current = self._config
        if compute_dtype(current.model.dtype, self._device) == torch.float32:
            pulled += ("model.dtype=bfloat16",)
            yield pulled
        if not current.train.gradient_checkpointing:
            pulled += ("train.gradient_checkpointing=true",)
            yield pulled
        if self.processes > 1 and current.model.quantization is None and current.train.sharding == "none":
            yield (*pulled, "train.sharding=fsdp")
        if current.model.quantization is None and current.train.sharding == "none" and self._device.type == "cuda":
            yield (*pulled, "model.quantization=nf4")

    def _smaller(self, base: tuple[str, ...], limit: int) -> tuple[str, ...] | None:
        """Batch sizes with which both phases fit, or None."""
        overrides: list[str] = []
        most_captions = max(map(len, self.captions))
        samples = len(self.micro_batch(self._config))
        for phase, key, largest, unit in (
            ("training", "train.micro_batch_size", samples, most_captions),
            ("generation", "evaluate.batch_size", self._config.evaluate.batch_size, 1),
        ):
            for count in halved(largest):
                change = () if count == largest else (f"{key}={count * unit}",)
                plan = self.plan(self._changed((*base, *change)))
                if getattr(plan, phase).total <= limit:
                    overrides.extend(change)
                    break
            else:
                return None
        return tuple(overrides)

    def _changed(self, overrides: Sequence[str]) -> RunConfig:
        return parse_config(self._config.model_dump(mode="json"), overrides) if overrides else self._config

    def micro_batch(self, config: RunConfig) -> list[tuple[str, ...]]:
        """The captions of the longest samples that are computed at once."""
        mine = -(-len(self.captions) // self.processes)
        limit = config.train.micro_batch_size
        return self.captions[: mine if limit is None else min(mine, max(1, limit // max(map(len, self.captions))))]


def halved(count: int) -> Iterator[int]:
    """`count`, then half of it, and so on down to one."""
    while count > 1:
        yield count
        count //= 2
    yield 1


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


def measure_memory(config: RunConfig, model: MiniGPT4, planner: Planner) -> list[Measured]:
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
    rows = [
        Measured("language model", parts["language model"], _bytes(model.llm.parameters())),
        Measured("projection", parts["projection"], _bytes(model.projection.parameters())),
    ]
    kept, trained, peak = _train(config, model, planner)
    optimizer = parts["gradient and AdamW"] + parts.get("LoRA", 0)
    rows.append(Measured("kept for the backward pass", sum(parts[name] for name in KEPT), kept))
    rows.append(Measured("gradient and AdamW", optimizer, trained))
    if peak:
        rows.append(Measured("peak of training", plan.training.total, peak))
    cache, peak = _generate(config, model, planner)
    predicted = {part.name: part.bytes for part in plan.generation.parts}
    rows.append(Measured("KV cache", predicted["KV cache"], cache))
    if peak:
        rows.append(Measured("peak of generation", plan.generation.total, peak))
    return rows


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, shared storages counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def _train(config: RunConfig, model: MiniGPT4, planner: Planner) -> tuple[int, int, int]:
    """Two optimizer steps of one micro-batch; bytes kept in the second, of gradient and optimizer, and the peak."""
    captions = planner.micro_batch(config)
    images = [Sample(str(number), "", texts, "train") for number, texts in enumerate(captions)]
    per_image = max(map(len, captions))
    once: dict[str, Any] = {"batch_size": per_image * len(images), "micro_batch_size": None, "steps_per_epoch": None}
    # What is joined is one caption already, and a drawn one is the only one.
    once |= {"caption_targets": "separate", "captions_per_image": per_image, "epochs": 2}
    train = config.train.model_copy(update=once)
    device = model.projection.weight.device
    features = torch.randn(len(images), model.config.image_tokens, model.config.feature_size, dtype=model.llm.dtype)
    optimizers: list[torch.optim.Optimizer] = []

    def remember(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        optimizers.append(optimizer)

    model_tensors = [*model.parameters(), *model.buffers()]
    _reset_peak(device)
    with ExitStack() as stack:
        stack.callback(register_optimizer_step_post_hook(remember).remove)
        dist = DistributedContext(device)
        prompt, seed = config.model.instruction, config.seed
        objective = CheckedObjective(model, prompt, train.enabled_optimizations)
        step = TrainStep(model.train(), objective, images, features, train, seed=seed, dist=dist)
        step.run(0)
        peak = _peak(device)
        kept, _ = saved_bytes(lambda: step.run(1), model_tensors)
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
