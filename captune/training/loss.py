"""The training loss: packed rows, or plain rows with one caption each; `equivalence` checks that both agree.

Packed rows compute logits at the N target states only. The language model's own forward runs, which includes what a
family does to its logits (a soft cap, a scale): a hook on the head passes the target states only. With a large
vocabulary the targets are processed in chunks whose logits are recomputed in the backward pass: 2,000 targets over
256,000 words take 6 GB at once and 0.8 GB in chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from captune.common import error_text
from captune.config import OptimizationsConfig
from captune.model import (
    CompiledLayers,
    MiniGPT4,
    PackedBatch,
    TokenSequence,
    constant_prefix_length,
    fed_tokens,
    pack,
    row_multiple,
)
from captune.training.optimizations import is_compile_error, skip_unused_tokens
from captune.training.sample_order import TrainingSample
from captune.transformers_compat import CACHE_ARGUMENT, attention_implementation, kv_cache_of

__all__ = ["VALUES_AT_ONCE", "Objective", "RowLengths", "loss_at", "target_loss", "targets_at_once"]

logger = logging.getLogger(__name__)

CAPTIONS_KEPT = 1 << 14
"""Captions whose token ids are cached: more than a pool of samples has."""


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Lengths in tokens, the prompt included.

    Attributes:
        plain: of the longest row with one caption per row.
        packed: of the row with all captions.
    """

    plain: int
    packed: int

    def within(self, limits: RowLengths) -> bool:
        """Whether neither length exceeds its limit."""
        return self.plain <= limits.plain and self.packed <= limits.packed


class Objective:
    """Negative log-likelihood of samples' captions, summed over target tokens.

    Args:
        model: its processor attached.
        instruction: of samples without a separate instruction.
        optimizations: enabled optimizations.
        compiled: compiled layers of the language model, for packed rows.

    Attributes:
        limits: samples with longer rows are computed in plain rows; None is no limit.
    """

    def __init__(
        self,
        model: MiniGPT4,
        instruction: str,
        optimizations: OptimizationsConfig,
        compiled: CompiledLayers | None = None,
    ) -> None:
        assert model.processor is not None
        self._model = model
        self._processor = model.processor
        self._prompt = model.processor.layout.prompt(instruction)
        self.compiled = compiled
        self.packed = optimizations.target_logits
        self.shared = optimizations.shared_prefix
        self.limits: RowLengths | None = None
        self._cached = constant_prefix_length(self._prompt.ids) if optimizations.constant_prefix else 0
        if any(parameter.requires_grad for parameter in model.llm.parameters()) or _recomputes(model):
            # A layer that recomputes its activations ignores cached keys and values.
            self._cached = 0
        self.skips_unused = not _recomputes(model)
        self._prefix: list[tuple[Tensor, Tensor]] | None = None
        # A caption is tokenized to sort its pool, to count targets and to train on it.
        self._ids_of = lru_cache(CAPTIONS_KEPT)(self._tokenized)

    @property
    def model(self) -> MiniGPT4:
        """The model of the loss."""
        return self._model

    def target_count(self, samples: Sequence[TrainingSample]) -> int:
        """Number of target tokens, stop symbols included."""
        return sum(len(ids) for sample in samples for ids in self._target_ids(sample))

    def row_tokens(self, sample: TrainingSample) -> int:
        """Tokens of a sample's shared row after its prompt; the same if rows are not shared."""
        return fed_tokens(self._target_ids(sample))

    def packing_groups(self, samples: Sequence[TrainingSample]) -> list[list[int]]:
        """Indices of samples that one forward pass can compute.

        Rows of a packed batch share the text of a prompt; samples that are too long are computed in plain rows.
        """
        kinds = [(sample.instruction, self._fits(sample)) for sample in samples]
        return [[n for n, kind in enumerate(kinds) if kind == one] for one in dict.fromkeys(kinds)]

    def lengths(self, sample: TrainingSample) -> RowLengths:
        """Lengths of the rows of a sample."""
        captions = self._target_ids(sample)
        prompt, longest = self._prompt_of(sample).prompt_length, max(map(len, captions))
        return RowLengths(prompt + longest, prompt + (fed_tokens(captions) if self.shared else longest))

    def _fits(self, sample: TrainingSample) -> bool:
        """Whether a sample is short enough to be packed."""
        return self.limits is None or self.lengths(sample).within(self.limits)

    def loss(self, samples: Sequence[TrainingSample], features: Tensor) -> Tensor:
        """Summed loss, in nats.

        Args:
            samples: B samples.
            features: (B, Q, F) of their images, on the model's device.
        """
        if not self.packed:
            return self.plain_loss(samples, features)
        groups = self.packing_groups(samples)
        if len(groups) > 1:
            return torch.stack([self.loss([samples[n] for n in group], features[group]) for group in groups]).sum()
        if not self._fits(samples[0]):
            return self.plain_loss(samples, features)
        prompt = self._prompt_of(samples[0])
        rows = [self._target_ids(sample) for sample in samples]
        if not self.shared:
            features = features.repeat_interleave(torch.tensor([len(row) for row in rows], device=features.device), 0)
            rows = [[caption] for row in rows for caption in row]
        # The text before the image is the same for all instructions, unless a layout puts the instruction there.
        cached = self._cached if prompt.ids[: self._cached] == self._prompt.ids[: self._cached] else 0
        multiple = row_multiple(features.device)
        batch = pack(prompt.ids, rows, cached=cached, multiple=multiple)
        cache = self._cache(len(rows)) if cached else None
        # The layers get the batch before it is on the GPU, to avoid a synchronization.
        with self._layers(batch):
            return target_loss(self._model, batch.to(features.device), features, cache)

    def _layers(self, batch: PackedBatch) -> AbstractContextManager[None]:
        """The context of a forward pass: compiled layers, or layers that skip unused work."""
        if self.compiled is not None:
            return self.compiled.in_use()
        return skip_unused_tokens(self._model.llm, batch) if self.skips_unused else nullcontext()

    def plain_loss(self, samples: Sequence[TrainingSample], features: Tensor) -> Tensor:
        """The same by the model's own forward: one row per caption, all logits, transformers' own masks."""
        prompts = ((self._prompt_of(sample), sample) for sample in samples)
        rows = [
            TokenSequence(prompt.ids + ids, prompt.prompt_length)
            for prompt, sample in prompts
            for ids in self._target_ids(sample)
        ]
        counts = torch.tensor([len(sample.captions) for sample in samples], device=features.device)
        tensors = {name: tensor.to(features.device) for name, tensor in self._processor.pad(rows).items()}
        loss: Tensor = self._model(**tensors, features=features.repeat_interleave(counts, 0), num_items_in_batch=1).loss
        return loss

    def on(self, model: MiniGPT4) -> Objective:
        """A copy for another model or the same model, without compiled layers."""
        other = copy(self)
        other._model = model
        other._prefix = None
        other.compiled = None
        return other

    def disable_packing(self) -> None:
        """Use plain rows from now on."""
        self.packed = self.shared = False

    def disable_layer_skipping(self) -> None:
        """Compute every layer completely from now on."""
        self.skips_unused = False

    def disable_compile(self, reason: str) -> None:
        """Use uncompiled layers from now on."""
        logger.warning("the language model's layers are not compiled from here on: %s", reason)
        self.compiled = None

    def recover_from_compile_error(self, error: Exception) -> bool:
        """Whether an error comes from the compiler; if so, uncompiled layers are used from now on."""
        if self.compiled is None or not is_compile_error(error):
            return False
        self.disable_compile(f"torch.compile fails ({error_text(error)})")
        return True

    def _prompt_of(self, sample: TrainingSample) -> TokenSequence:
        """The prompt of a sample, with its instruction."""
        if sample.instruction is None:
            return self._prompt
        return self._processor.layout.prompt(sample.instruction)

    def _target_ids(self, sample: TrainingSample) -> list[tuple[int, ...]]:
        return [self._ids_of(caption) for caption in sample.captions]

    def _tokenized(self, caption: str) -> tuple[int, ...]:
        return self._processor.layout.target_ids(caption)[0]

    def _cache(self, rows: int) -> DynamicCache | None:
        """Keys and values of the constant prefix for `rows` rows; computed once, without gradient."""
        if not self._cached:
            return None
        if self._prefix is None:
            ids = torch.tensor([self._prompt.ids[: self._cached]], device=self._model.projection.weight.device)
            with torch.no_grad():
                output = self._model.llm(input_ids=ids, use_cache=True)
            self._prefix = [(layer.keys, layer.values) for layer in kv_cache_of(output).layers]
        cache = DynamicCache()
        for index, (keys, values) in enumerate(self._prefix):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), index)
        return cache


def _recomputes(model: MiniGPT4) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.llm.modules())


def target_loss(model: MiniGPT4, batch: PackedBatch, features: Tensor, cache: DynamicCache | None = None) -> Tensor:
    """Sum of the negative log-likelihood over all targets of a packed batch, in nats.

    Args:
        model: on the batch's device.
        batch: B rows.
        features: (B, Q, F) of the images of the rows.
        cache: keys and values of the constant prefix, which the batch does not contain.

    Returns:
        A scalar in float32, or in float64 for a model in float64.
    """
    settings: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, CACHE_ARGUMENT: cache}
    embeddings = model.embed(batch.input_ids, model.project(features))
    arguments = {
        "inputs_embeds": embeddings,
        "attention_mask": _mask_for(model, batch.attention_mask, embeddings.dtype),
        "position_ids": batch.position_ids,
        **settings,
    }
    return loss_at(model.llm, arguments, batch.rows, batch.columns, batch.targets)


def _mask_for(model: MiniGPT4, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask (B, 1, S, C + S) in the form of the attention implementation: eager attention adds it to the scores."""
    if attention_implementation(model.llm.config) != "eager":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


VALUES_AT_ONCE = 1 << 26
"""Maximum number of logits in memory: 256 MB in float32, twice that with their gradient."""


def targets_at_once(vocabulary: int) -> int:
    """Number of targets whose logits are computed at once."""
    return max(1, VALUES_AT_ONCE // vocabulary)


def loss_at(llm: Any, arguments: dict[str, Any], rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihood over N targets, in nats.

    Args:
        llm: a causal language model of transformers.
        arguments: arguments of its forward: embeddings (B, S, D), masks, positions, a cache.
        rows: (N,) rows of the states that predict the targets.
        columns: (N,) their columns.
        targets: (N,) token ids.

    Returns:
        A scalar in float32, or in float64 for a model in float64.
    """
    head = llm.get_output_embeddings()
    chunk = targets_at_once(head.weight.shape[0])
    if len(targets) <= chunk:
        with _states_at(head, rows, columns):
            logits = llm(**arguments).logits.squeeze(0)
        return _cross_entropy(logits, targets)
    with _states_kept(head) as kept:
        llm(**arguments)
    states = _at(kept[0], rows, columns)
    parts = zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True)
    losses: list[Tensor] = [checkpoint(_loss_of_states, llm, *part, use_reentrant=False) for part in parts]
    return torch.stack(losses).sum()


def _at(states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """States (N, D) at N positions of (B, S, D), which may repeat.

    An embedding look-up sums its gradient in a fixed order. Where positions repeat, threads sum an index's gradient in
    any order, so the last bits of a run's weights would be random.
    """
    return F.embedding(rows * states.shape[1] + columns, states.flatten(0, 1))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(precise, targets, reduction="sum")


def _loss_of_states(llm: Any, states: Tensor, targets: Tensor) -> Tensor:
    """The loss of N last hidden states (N, D), through everything after the decoder of the language model."""
    decoder = llm.get_decoder()

    def passed(*args: Any, inputs_embeds: Tensor, **settings: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

    previous = decoder.__dict__.get("forward")
    decoder.forward = passed
    try:
        logits = llm(inputs_embeds=states.unsqueeze(0), use_cache=False).logits.squeeze(0)
    finally:
        if previous is None:
            del decoder.forward
        else:
            decoder.forward = previous
    return _cross_entropy(logits, targets)


@contextmanager
def _states_at(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Pass only the states (B, S, D) at N positions to the head, as (1, N, D)."""

    def pick(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_at(states[0], rows, columns).unsqueeze(0), *states[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _states_kept(head: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the states (B, S, D) before the head, which gets a single one."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(states[0])
        return (states[0][:1, :1], *states[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
