"""The decoding engine with continuous batching: rows join, advance one token per step, and leave when they end.

Letters: R rows of the forward, B new prompts of T tokens, C of them in the shared prefix, D model width, V vocabulary.

The result of a row does not depend on the others: tokens attend to their own row only, at exact positions, and the
state of sampling belongs to the row. So rows may join and leave at any step, and short captions make room for the next
images instead of waiting for the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captune.decoding.beams import Beams
from captune.decoding.capabilities import supports_mixed_batch, supports_sequence_ends
from captune.decoding.cuda_graph import GraphedStep, graph_capture_for
from captune.decoding.decode_attention import current_device
from captune.decoding.forward import forward, mixed_forward, prefill
from captune.decoding.kv_cache import MixedBatch, StaticKVCache, cache_layer_count
from captune.decoding.options import DecodingOptions, Progress, Request, StopRule
from captune.decoding.sampling import SamplingState
from captune.model import MiniGPT4
from captune.transformers_compat import kv_cache_of

__all__ = ["DecodingEngine", "SharedPrefix"]

_REFILL = 8
"""If a prefill needs a separate forward, it waits until one in this many slots is free."""

_COLUMN_MULTIPLE = 8
"""Visible columns are rounded up to a multiple of this, for faster kernels and fewer shapes."""


class SharedPrefix:
    """Keys and values of the text that prompts begin with, computed once.

    Args:
        model: its language model computes them.
        ids: C ids, or none.
    """

    def __init__(self, model: MiniGPT4, ids: tuple[int, ...] = ()) -> None:
        self.ids = ids
        self.states: list[tuple[Tensor, Tensor]] = []
        if ids:
            with torch.inference_mode():
                row = torch.tensor([ids], device=model.projection.weight.device)
                embeddings = model.get_input_embeddings()(row)
                output = model.llm(inputs_embeds=embeddings, use_cache=True, logits_to_keep=1)
            self.states = [(layer.keys, layer.values) for layer in kv_cache_of(output).layers]


class DecodingEngine:
    """Decodes up to `slots` captions at once.

    Args:
        model: with its processor.
        options: decoding options.
        stop: the stop rule.
        slots: largest number of captions at once.
        longest_prompt: tokens of the longest prompt that will be admitted.
        prefix: text that all prompts begin with.
        static_shape: run steps in one shape (see `cuda_graph`), as with `options.compiled` and on a GPU.
    """

    def __init__(
        self,
        model: MiniGPT4,
        options: DecodingOptions,
        stop: StopRule,
        *,
        slots: int,
        longest_prompt: int,
        prefix: SharedPrefix | None = None,
        static_shape: bool = False,
    ) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = model.projection.weight.device
        self._state: SamplingState | Beams = (
            SamplingState(options, stop) if options.beams == 1 else Beams(options, stop, self._device)
        )
        self._slots = slots
        self._prefix = prefix if prefix is not None else SharedPrefix(model)
        self._C = len(self._prefix.ids)
        width = -(-(longest_prompt + options.max_new_tokens) // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE
        layers = cache_layer_count(model.llm)
        self._cache = StaticKVCache(slots * self._state.group, width, self._prefix.states, layers)
        capture = graph_capture_for(model.llm)
        self._graphed_step: GraphedStep | None = None
        if static_shape or options.compiled or capture is not None:
            self._graphed_step = GraphedStep(
                model.llm, self._cache, self._C, compiled=options.compiled, capture=capture
            )
        self._longest_prompt = longest_prompt
        self._mixes = supports_mixed_batch(model.llm)
        self._ends_llm = model.llm if self._mixes and supports_sequence_ends(model.llm) else None
        self._pending: list[Request] = []
        self._bad_features: Tensor | None = None
        # Of each caption: its request, and how many tokens are in its slot. Of each row: the next input.
        self._requests: list[Request] = []
        self._lengths: list[int] = []
        self._inputs = torch.zeros(0, 1, model.config.text_width, device=self._device, dtype=model.llm.dtype)

    @property
    def active(self) -> int:
        """Number of captions in progress, including those that begin with the next step."""
        return len(self._requests) + len(self._pending)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._slots - self.active

    @property
    def has_capacity(self) -> bool:
        """Whether it is efficient to admit captions now."""
        # In a mixed batch, prompts cost only their tokens; otherwise they cost a forward pass, and with CUDA graphs a
        # step without the graph.
        mixes = self._mixes and not (self._graphed_step is not None and self._graphed_step.is_captured)
        least = 1 if mixes else -(-self._slots // _REFILL)
        return self.free >= least or not self.active

    @property
    def requests(self) -> list[Request]:
        """The requests in progress."""
        return [*self._requests, *self._pending]

    def admit(self, requests: Sequence[Request]) -> None:
        """Admit captions, at most `free` of them; the next step includes their prompts.

        Args:
            requests: prompts beginning with the shared prefix, no longer than `longest_prompt`.
        """
        if not requests or len(requests) > self.free:
            raise ValueError(f"{len(requests)} captions were passed, and {self.free} slots are free.")
        for request in requests:
            if (
                request.prompt[: self._C] != self._prefix.ids
                or not self._C < len(request.prompt) <= self._longest_prompt
            ):
                raise ValueError("A prompt does not begin with the shared prefix, or is longer than `longest_prompt`.")
        self._pending += requests

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Decode one more token of every caption in progress.

        Returns:
            The progress of all of them when decoding greedily or sampling; of those that ended with beams.
        """
        with current_device(self._device):
            return self._step()

    def _step(self) -> list[Progress]:
        if not self._pending:
            logits = self._decode()
        elif self._mixes:
            logits = self._prefill_and_decode()
        else:
            self._prefill()
            logits = self._decode()
        output = self._state.advance(logits, self._rows_with_bad_features(len(logits)))
        self._lengths = [length + 1 for length in self._lengths]
        if output.parents is not None:
            self._reorder(output.parents)
        self._inputs = self._embedding(output.tokens).unsqueeze(1)
        if output.faulty:
            group = self._state.group
            slots = torch.tensor(output.faulty, device=self._device).unsqueeze(1) * group
            self._cache.clear((slots + torch.arange(group, device=self._device)).view(-1), self._C)
        self._evict(output.ended)
        return output.progress

    def _prefill(self) -> None:
        """Prefill the pending prompts without their last tokens, which become inputs of the next decode step."""
        lengths = [len(request.prompt) - 1 for request in self._pending]
        embeddings, mask = self._prompts()
        if embeddings.shape[1] > 1:
            self._cache.set_prefill(len(self._inputs), len(embeddings), self._C, max(lengths))
            positions = torch.arange(self._C, max(lengths), device=self._device).expand(len(embeddings), -1)
            llm = self._model.llm
            prefill(llm, llm.config, self._cache, embeddings[:, :-1], positions, mask[:, 0, :-1, :-1])
        last = torch.tensor(lengths, device=self._device) - self._C
        inputs = embeddings[torch.arange(len(embeddings), device=self._device), last].unsqueeze(1)
        self._broadcast_prompts(max(lengths))
        self._inputs = torch.cat([self._inputs, inputs.repeat_interleave(self._state.group, dim=0)])
        self._insert()

    def _prefill_and_decode(self) -> Tensor:
        """(R, V) logits of all rows, after one forward over the newest tokens and the pending prompts."""
        rows = len(self._inputs)
        embeddings, prompt_mask = self._prompts()
        B, T, D = embeddings.shape
        columns = self._columns()
        width = self._rounded(max(self._lengths) + 1) if rows else 0
        batch = MixedBatch(columns, self._mask(columns, width)[:, None], rows, self._C, prompt_mask)
        tokens = torch.cat([self._inputs.view(1, rows, D), embeddings.reshape(1, B * T, D)], dim=1)
        prompt_positions = torch.arange(self._C, self._C + T, device=self._device).expand(B, -1)
        positions = torch.cat([columns, prompt_positions.reshape(-1)]).unsqueeze(0)
        ends = [rows + index * T + len(r.prompt) - self._C - 1 for index, r in enumerate(self._pending)]
        last = torch.tensor([*range(rows), *ends], device=self._device)
        llm = self._model.llm
        logits = mixed_forward(llm, llm.config, self._cache, tokens, positions, last, batch, self._ends_llm)
        self._broadcast_prompts(self._C + T)
        self._insert()
        return torch.cat([logits[:rows], logits[rows:].repeat_interleave(self._state.group, dim=0)])

    def _broadcast_prompts(self, stop: int) -> None:
        """Copy each pending prompt, in consecutive slots up to column `stop`, to all beams of its caption."""
        group = self._state.group
        if group > 1 and stop > self._C:
            sources = len(self._inputs) + torch.arange(len(self._pending), device=self._device)
            targets = len(self._inputs) + torch.arange(len(self._pending) * group, device=self._device)
            self._cache.copy(sources.repeat_interleave(group), targets, self._C, stop)

    def _insert(self) -> None:
        """Move the pending requests to those in progress."""
        self._requests += self._pending
        self._lengths += [len(request.prompt) - 1 for request in self._pending]
        self._state.admit(self._pending)
        self._pending = []

    def _decode(self) -> Tensor:
        """(R, V) logits after the inputs."""
        columns = self._columns()
        if self._graphed_step is not None:
            return self._graphed_step(self._inputs, columns)
        longest = max(self._lengths) + 1
        width = self._rounded(longest)
        self._cache.set_decode(columns, longest, width)
        llm = self._model.llm
        mask = self._mask(columns, width)
        return forward(llm, llm.config, self._cache, self._inputs, columns.unsqueeze(1), mask)

    def _columns(self) -> Tensor:
        """(R,) int64, the columns of the inputs."""
        lengths = torch.tensor(self._lengths, dtype=torch.int64, device=self._device)
        return lengths.repeat_interleave(self._state.group)

    def _mask(self, columns: Tensor, width: int) -> Tensor:
        """(R, 1, width) bool, the columns that tokens in these columns see."""
        return (torch.arange(width, device=self._device) <= columns.unsqueeze(1)).unsqueeze(1)

    def _rounded(self, length: int) -> int:
        return min(-(-length // _COLUMN_MULTIPLE) * _COLUMN_MULTIPLE, self._cache.width)

    def _prompts(self) -> tuple[Tensor, Tensor]:
        """The pending prompts.

        Returns:
            Their embeddings after the shared prefix, (B, T, D), padded on the right; and (1, 1, T, C + T) bool, the
            columns of its slot that each token sees.
        """
        rows = torch.zeros(len(self._pending), max(len(r.prompt) for r in self._pending) - self._C, dtype=torch.int64)
        for row, request in zip(rows, self._pending, strict=True):
            row[: len(request.prompt) - self._C] = torch.tensor(request.prompt[self._C :])
        read = ((index, request.read_features()) for index, request in enumerate(self._pending))
        features = [(index, values) for index, values in read if values is not None]
        image_tokens = None
        if features:
            images = torch.cat([values for _, values in features]).to(self._device)
            # Non-finite features affect their own row only: they are zero in the shared forward.
            usable = images.flatten(1).isfinite().all(dim=1)
            row_of = torch.tensor([index for index, values in features for _ in values], device=self._device)
            bad_counts = torch.zeros(len(self._pending), dtype=torch.int64, device=self._device)
            self._bad_features = bad_counts.index_add(0, row_of, (~usable).long()) > 0
            image_tokens = self._model.project(images.where(usable.view(-1, 1, 1), 0))
        embeddings = self._model.embed(rows.to(self._device), image_tokens)
        stop = self._C + rows.shape[1]
        mask = self._mask(torch.arange(self._C, stop, device=self._device), stop)
        return embeddings, mask.view(1, 1, rows.shape[1], stop)

    def _rows_with_bad_features(self, count: int) -> Tensor | None:
        """(R,) bool, the new rows with non-finite features; None if no row is new."""
        if self._bad_features is None:
            return None
        new = self._bad_features.repeat_interleave(self._state.group)
        self._bad_features = None
        return torch.cat([new.new_zeros(count - len(new)), new])

    def _reorder(self, parents: Tensor) -> None:
        """Copy to each beam the keys and values of the beam that it continues; the prompt, which both share, stays."""
        rows = torch.arange(len(parents), device=parents.device)
        moved = (parents != rows).nonzero().squeeze(1)
        if len(moved):
            start = min(len(request.prompt) for request in self._requests) - 1
            self._cache.copy(parents[moved], rows[moved], start, max(self._lengths))

    def _evict(self, ended: Sequence[int]) -> None:
        """Remove captions: the last ones move to the slots that become free."""
        if not ended:
            return
        group, count = self._state.group, len(self._requests)
        removed = set(ended)
        remaining = count - len(removed)
        moved_rows = [index for index in range(remaining, count) if index not in removed]
        free_slots = [index for index in ended if index < remaining]
        order = list(range(remaining))
        for slot, moved_row in zip(free_slots, moved_rows, strict=True):
            order[slot] = moved_row
        rows = torch.tensor(order, dtype=torch.int64, device=self._device).unsqueeze(1) * group
        rows = (rows + torch.arange(group, device=self._device)).view(-1)
        if moved_rows:
            moved = (rows != torch.arange(len(rows), device=self._device)).nonzero().squeeze(1)
            self._cache.copy(rows[moved], moved, self._C, max(self._lengths))
        self._requests = [self._requests[index] for index in order]
        self._lengths = [self._lengths[index] for index in order]
        self._inputs = self._inputs[rows]
        self._state.keep(order)
