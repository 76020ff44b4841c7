"""The loss of some samples: packed, or plainly one row a caption (that both are the same, `exactness` finds out).

Packed, logits are computed at the N target states only (see `logits`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from captune.common import error_text
from captune.config import FastConfig
from captune.model import MiniGPT4, TokenSequence
from captune.model.compiled import CompiledLayers
from captune.training.compiling import is_compile_error
from captune.training.ends import ends_in_parts
from captune.training.fused import FusedLayers
from captune.training.logits import loss_at
from captune.training.packing import PackedBatch, constant_prefix_length, fed_tokens, pack, row_multiple
from captune.training.samples import TrainingSample
from captune.transformers_compat import CACHE_ARGUMENT, kv_cache_of

__all__ = ["Objective", "RowLengths", "target_loss"]

logger = logging.getLogger(__name__)

CAPTIONS_KEPT = 1 << 14
"""Captions whose token ids are remembered: more than a pool of samples has."""


@dataclass(frozen=True, slots=True)
class RowLengths:
    """Lengths in tokens, the prompt included.

    Attributes:
        plain: of the longest row of a sample's captions, one a row.
        packed: of the row that holds them all.
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
        instruction: what is asked of every image whose sample does not say.
        fast: how to compute it.
        compiled: the language model's layers, where packed rows go through compiled ones.

    Attributes:
        limits: samples with longer rows are computed plainly; None is no limit.
    """

    def __init__(
        self, model: MiniGPT4, instruction: str, fast: FastConfig, compiled: CompiledLayers | None = None
    ) -> None:
        assert model.processor is not None
        self._model = model
        self._processor = model.processor
        self._prompt = model.processor.layout.prompt(instruction)
        self.compiled = compiled
        self.packed = fast.target_logits
        self.shared = fast.shared_prefix
        self.limits: RowLengths | None = None
        self._cached = constant_prefix_length(self._prompt.ids) if fast.constant_prefix else 0
        if any(parameter.requires_grad for parameter in model.llm.parameters()) or _recomputes(model):
            # A layer that recomputes its activations drops keys and values that were given to it.
            self._cached = 0
        self.in_parts = not _recomputes(model)
        self.fused = FusedLayers(model.llm) if fast.compile is not False and self.in_parts else None
        self._prefix: list[tuple[Tensor, Tensor]] | None = None
        # A caption is asked for where its pool is sorted, where a step counts its targets, and where it is learnt.
        self._ids_of = lru_cache(CAPTIONS_KEPT)(self._tokenized)

    @property
    def model(self) -> MiniGPT4:
        """Whose loss it is."""
        return self._model

    def target_count(self, samples: Sequence[TrainingSample]) -> int:
        """Number of target tokens, stop symbols included."""
        return sum(len(ids) for sample in samples for ids in self._target_ids(sample))

    def row_tokens(self, sample: TrainingSample) -> int:
        """Tokens of a sample's shared row behind its prompt; the same whether rows are shared or not."""
        return fed_tokens(self._target_ids(sample))

    def parts(self, samples: Sequence[TrainingSample]) -> list[list[int]]:
        """Places of samples that go through the language model together.

        Rows of a packed batch share a prompt's text, and samples that are too long to be packed are computed plainly.
        """
        kinds = [(sample.instruction, self._fits(sample)) for sample in samples]
        return [[n for n, kind in enumerate(kinds) if kind == one] for one in dict.fromkeys(kinds)]

    def lengths(self, sample: TrainingSample) -> RowLengths:
        """How long a sample's rows are."""
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
            features: (B, Q, F), their images, on the model's device.
        """
        if not self.packed:
            return self.plain_loss(samples, features)
        parts = self.parts(samples)
        if len(parts) > 1:
            return torch.stack([self.loss([samples[n] for n in part], features[part]) for part in parts]).sum()
        if not self._fits(samples[0]):
            return self.plain_loss(samples, features)
        prompt = self._prompt_of(samples[0])
        rows = [self._target_ids(sample) for sample in samples]
        if not self.shared:
            features = features.repeat_interleave(torch.tensor([len(row) for row in rows], device=features.device), 0)
            rows = [[caption] for row in rows for caption in row]
        # The text in front of the image is the same for every instruction, unless a layout asks before it shows.
        cached = self._cached if prompt.ids[: self._cached] == self._prompt.ids[: self._cached] else 0
        multiple = row_multiple(features.device)
        batch = pack(prompt.ids, rows, cached=cached, multiple=multiple)
        cache = self._cache(len(rows)) if cached else None
        # The layers are told of the batch before it is on a GPU, which would be waited for.
        with self._layers(batch):
            return target_loss(self._model, batch.to(features.device), features, cache)

    @contextmanager
    def _layers(self, batch: PackedBatch) -> Iterator[None]:
        """The layers compiled; or as they are, but for what nobody reads and what is fused."""
        with ExitStack() as stack:
            if self.compiled is not None:
                stack.enter_context(self.compiled.in_use())
            elif self.in_parts:
                stack.enter_context(ends_in_parts(self._model.llm, batch))
            if self.compiled is None and self.fused is not None:
                stack.enter_context(self.fused.in_use())
            yield

    def plain_loss(self, samples: Sequence[TrainingSample], features: Tensor) -> Tensor:
        """The same by the model's own forward: one row a caption, logits everywhere, transformers' own masks."""
        asked = ((self._prompt_of(sample), sample) for sample in samples)
        rows = [
            TokenSequence(prompt.ids + ids, prompt.prompt_length)
            for prompt, sample in asked
            for ids in self._target_ids(sample)
        ]
        counts = torch.tensor([len(sample.captions) for sample in samples], device=features.device)
        tensors = {name: tensor.to(features.device) for name, tensor in self._processor.pad(rows).items()}
        loss: Tensor = self._model(**tensors, features=features.repeat_interleave(counts, 0), num_items_in_batch=1).loss
        return loss

    def on(self, model: MiniGPT4) -> Objective:
        """The same for another model, or for this one, without compiled layers."""
        other = copy(self)
        other._model = model
        other._prefix = None
        other.compiled = None
        other.fused = self.fused if model is self._model else None
        return other

    def stop_packing(self) -> None:
        """Go the plain way from now on."""
        self.packed = self.shared = False

    def keep_layers_whole(self) -> None:
        """Compute all of every layer, as transformers writes it, from now on."""
        self.in_parts, self.fused = False, None

    def stop_compiling(self, reason: str) -> None:
        """Compute the layers as they are from now on."""
        logger.warning("the language model's layers are not compiled from here on: %s", reason)
        self.compiled = None

    def gave_up_compiling(self, error: Exception) -> bool:
        """Whether an error was the compiler's; if so, the layers are computed as they are from now on."""
        if self.compiled is None or not is_compile_error(error):
            return False
        self.stop_compiling(f"torch.compile fails ({error_text(error)})")
        return True

    def _prompt_of(self, sample: TrainingSample) -> TokenSequence:
        """The prompt of a sample, with the instruction that it was given."""
        if sample.instruction is None:
            return self._prompt
        return self._processor.layout.prompt(sample.instruction)

    def _target_ids(self, sample: TrainingSample) -> list[tuple[int, ...]]:
        return [self._ids_of(caption) for caption in sample.captions]

    def _tokenized(self, caption: str) -> tuple[int, ...]:
        return self._processor.layout.target_ids(caption)[0]

    def _cache(self, rows: int) -> DynamicCache | None:
        """Keys and values of the constant text for `rows` rows; computed once, without gradient."""
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
        features: (B, Q, F), the rows' images.
        cache: keys and values of the leading text that the batch leaves out.

    Returns:
        A scalar in float32, or in float64 for a model in float64.
    """
    settings: dict[str, Any] = {"use_cache": False} if cache is None else {"use_cache": True, CACHE_ARGUMENT: cache}
    embeddings = model.embed(batch.input_ids, model.project(features))
    given = {
        "inputs_embeds": embeddings,
        "attention_mask": _mask_for(model, batch.attention_mask, embeddings.dtype),
        "position_ids": batch.position_ids,
        **settings,
    }
    return loss_at(model.llm, given, batch.rows, batch.columns, batch.targets)


def _mask_for(model: MiniGPT4, sees: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask (B, 1, S, C + S) as the language model's attention takes it: eager attention adds it to the scores."""
    if model.llm.config.get_text_config(decoder=True)._attn_implementation != "eager":
        return sees
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)
