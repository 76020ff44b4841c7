"""The decoding loop: rows come in, take a step together, and leave as soon as they have ended.

Letters: R rows of the forward, T tokens of a prompt, C of them constant text, W columns of a slot, D model width.

A row's result does not depend on the others: each token looks at its own row only, at exact positions, and what
decides its choice belongs to the row. So rows may come in and leave at any step (continuous batching); in a batch of
captions the short ones make room for the next images instead of waiting for the longest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from captune.decoding.beams import Beams
from captune.decoding.capabilities import supports_mixed_batch, supports_sequence_ends
from captune.decoding.cuda_graph import GraphedStep, graph_capture_for
from captune.decoding.decode_attention import at
from captune.decoding.forward import fill, mixed_forward, read
from captune.decoding.kv_cache import MixedBatch, StaticKVCache, layers_of
from captune.decoding.options import DecodingOptions, Progress, Request, StopRule
from captune.decoding.sampling import SamplingState
from captune.model import MiniGPT4
from captune.transformers_compat import kv_cache_of

__all__ = ["DecodingEngine", "SharedPrefix"]

_REFILLED = 8
"""Where new captions cost a forward of another kind, they come in when one in so many slots is free."""

_ROUNDED_TO = 8
"""Columns that are looked at are a multiple of this: kernels are quicker on it and see fewer shapes."""


class SharedPrefix:
    """Keys and values of the text that prompts begin with, computed once.

    Args:
        model: whose language model reads it.
        ids: C ids; none is fine.
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
        model: its processor attached.
        options: how to decode.
        stop: when a caption has ended.
        slots: most captions at once.
        longest_prompt: tokens of the longest prompt that will come.
        prefix: text that all prompts begin with.
        fixed: keep one shape in all steps with which no caption begins (see `fixed`), as is done with
            `options.compiled` and on a GPU.
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
        fixed: bool = False,
    ) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = model.projection.weight.device
        self._choice: SamplingState | Beams = (
            SamplingState(options, stop) if options.beams == 1 else Beams(options, stop, self._device)
        )
        self._slots = slots
        self._prefix = prefix if prefix is not None else SharedPrefix(model)
        self._C = len(self._prefix.ids)
        width = -(-(longest_prompt + options.max_new_tokens) // _ROUNDED_TO) * _ROUNDED_TO
        self._cache = StaticKVCache(slots * self._choice.group, width, self._prefix.states, layers_of(model.llm))
        record = graph_capture_for(model.llm)
        self._fixed: GraphedStep | None = None
        if fixed or options.compiled or record is not None:
            self._fixed = GraphedStep(model.llm, self._cache, self._C, compiled=options.compiled, record=record)
        self._longest_prompt = longest_prompt
        self._packs = supports_mixed_batch(model.llm)
        self._ends = model.llm if self._packs and supports_sequence_ends(model.llm) else None
        self._coming: list[Request] = []
        self._spoiled: Tensor | None = None
        # Of each caption: its request, and how many tokens are in its slot. Of each row: what it is fed next.
        self._requests: list[Request] = []
        self._lengths: list[int] = []
        self._fed = torch.zeros(0, 1, model.config.text_width, device=self._device, dtype=model.llm.dtype)

    @property
    def active(self) -> int:
        """Captions under way, those included that begin with the next step."""
        return len(self._requests) + len(self._coming)

    @property
    def free(self) -> int:
        """Captions that may still come in."""
        return self._slots - self.active

    @property
    def has_capacity(self) -> bool:
        """Whether it is worth while to take in captions now, if any wait."""
        # Prompts that come in beside the others' tokens cost nothing but themselves; alone, they cost a forward, and
        # where steps are recorded they cost a step that is not.
        at_once = self._packs and not (self._fixed is not None and self._fixed.is_recorded)
        least = 1 if at_once else -(-self._slots // _REFILLED)
        return self.free >= least or not self.active

    @property
    def requests(self) -> list[Request]:
        """What is under way."""
        return [*self._requests, *self._coming]

    def admit(self, requests: Sequence[Request]) -> None:
        """Take in captions, at most `free` of them; the next step begins with their prompts.

        Args:
            requests: prompts beginning with the constant text, no longer than `longest_prompt`.
        """
        if not requests or len(requests) > self.free:
            raise ValueError(f"{len(requests)} captions are to come in, and {self.free} may.")
        for request in requests:
            if (
                request.prompt[: self._C] != self._prefix.ids
                or not self._C < len(request.prompt) <= self._longest_prompt
            ):
                raise ValueError("A prompt does not begin with the constant text, or is longer than was announced.")
        self._coming += requests

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """One more token for every caption under way.

        Returns:
            Where the captions stand: all of them when decoding greedily or sampling, those that ended with beams.
        """
        with at(self._device):
            return self._step()

    def _step(self) -> list[Progress]:
        if not self._coming:
            logits = self._logits()
        elif self._packs:
            logits = self._begin_beside()
        else:
            self._begin()
            logits = self._logits()
        advance = self._choice.advance(logits, self._spoiled_rows(len(logits)))
        self._lengths = [length + 1 for length in self._lengths]
        if advance.parents is not None:
            self._follow(advance.parents)
        self._fed = self._embedding(advance.tokens).unsqueeze(1)
        if advance.faulty:
            group = self._choice.group
            slots = torch.tensor(advance.faulty, device=self._device).unsqueeze(1) * group
            self._cache.clear((slots + torch.arange(group, device=self._device)).view(-1), self._C)
        self._leave(advance.ended)
        return advance.progress

    def _begin(self) -> None:
        """Run the prompts that come in, but for their last tokens, which are fed with the others'."""
        lengths = [len(request.prompt) - 1 for request in self._coming]
        embeddings, begun = self._prompts()
        if embeddings.shape[1] > 1:
            self._cache.fill(len(self._fed), len(embeddings), self._C, max(lengths))
            places = torch.arange(self._C, max(lengths), device=self._device).expand(len(embeddings), -1)
            llm = self._model.llm
            fill(llm, llm.config, self._cache, embeddings[:, :-1], places, begun[:, 0, :-1, :-1])
        last = torch.tensor(lengths, device=self._device) - self._C
        fed = embeddings[torch.arange(len(embeddings), device=self._device), last].unsqueeze(1)
        self._spread(max(lengths))
        self._fed = torch.cat([self._fed, fed.repeat_interleave(self._choice.group, dim=0)])
        self._join()

    def _begin_beside(self) -> Tensor:
        """(R, V) logits of all rows, after one forward over the newest tokens and the prompts that come in."""
        rows = len(self._fed)
        embeddings, begun = self._prompts()
        B, T, D = embeddings.shape
        columns = self._columns()
        width = self._rounded(max(self._lengths) + 1) if rows else 0
        pack = MixedBatch(columns, self._seen(columns, width)[:, None], rows, self._C, begun)
        tokens = torch.cat([self._fed.view(1, rows, D), embeddings.reshape(1, B * T, D)], dim=1)
        places = torch.arange(self._C, self._C + T, device=self._device).expand(B, -1)
        positions = torch.cat([columns, places.reshape(-1)]).unsqueeze(0)
        ends = [rows + place * T + len(r.prompt) - self._C - 1 for place, r in enumerate(self._coming)]
        last = torch.tensor([*range(rows), *ends], device=self._device)
        llm = self._model.llm
        logits = mixed_forward(llm, llm.config, self._cache, tokens, positions, last, pack, self._ends)
        self._spread(self._C + T)
        self._join()
        return torch.cat([logits[:rows], logits[rows:].repeat_interleave(self._choice.group, dim=0)])

    def _spread(self, stop: int) -> None:
        """The prompts were run once each and lie in consecutive slots, up to column `stop`; every beam gets a copy."""
        group = self._choice.group
        if group > 1 and stop > self._C:
            sources = len(self._fed) + torch.arange(len(self._coming), device=self._device)
            targets = len(self._fed) + torch.arange(len(self._coming) * group, device=self._device)
            self._cache.move(sources.repeat_interleave(group), targets, self._C, stop)

    def _join(self) -> None:
        """What came in is under way."""
        self._requests += self._coming
        self._lengths += [len(request.prompt) - 1 for request in self._coming]
        self._choice.admit(self._coming)
        self._coming = []

    def _logits(self) -> Tensor:
        """(R, V) logits behind the tokens that are fed."""
        columns = self._columns()
        if self._fixed is not None:
            return self._fixed(self._fed, columns)
        longest = max(self._lengths) + 1
        width = self._rounded(longest)
        self._cache.extend(columns, longest, width)
        llm = self._model.llm
        return read(llm, llm.config, self._cache, self._fed, columns.unsqueeze(1), self._seen(columns, width))

    def _columns(self) -> Tensor:
        """(R,) int64, where the tokens that are fed go."""
        lengths = torch.tensor(self._lengths, dtype=torch.int64, device=self._device)
        return lengths.repeat_interleave(self._choice.group)

    def _seen(self, columns: Tensor, width: int) -> Tensor:
        """(R, 1, width) bool, what tokens in these columns look at."""
        return (torch.arange(width, device=self._device) <= columns.unsqueeze(1)).unsqueeze(1)

    def _rounded(self, length: int) -> int:
        return min(-(-length // _ROUNDED_TO) * _ROUNDED_TO, self._cache.width)

    def _prompts(self) -> tuple[Tensor, Tensor]:
        """The prompts that come in.

        Returns:
            Their embeddings behind the constant text, (B, T, D), filled up at the right; and (1, 1, T, C + T) bool,
            what each token sees of its slot.
        """
        rows = torch.zeros(len(self._coming), max(len(r.prompt) for r in self._coming) - self._C, dtype=torch.int64)
        for row, request in zip(rows, self._coming, strict=True):
            row[: len(request.prompt) - self._C] = torch.tensor(request.prompt[self._C :])
        features = [(n, given) for n, given in enumerate(map(Request.read_features, self._coming)) if given is not None]
        image_tokens = None
        if features:
            images = torch.cat([given for _, given in features]).to(self._device)
            # Features that are not numbers spoil their own row alone: they do not come into the forward of all.
            usable = images.flatten(1).isfinite().all(dim=1)
            owners = torch.tensor([n for n, given in features for _ in given], device=self._device)
            faults = torch.zeros(len(self._coming), dtype=torch.int64, device=self._device)
            self._spoiled = faults.index_add(0, owners, (~usable).long()) > 0
            image_tokens = self._model.project(images.where(usable.view(-1, 1, 1), 0))
        embeddings = self._model.embed(rows.to(self._device), image_tokens)
        stop = self._C + rows.shape[1]
        seen = self._seen(torch.arange(self._C, stop, device=self._device), stop)
        return embeddings, seen.view(1, 1, rows.shape[1], stop)

    def _spoiled_rows(self, count: int) -> Tensor | None:
        """(R,) bool, which of the R rows began with features that are not numbers; None where none began."""
        if self._spoiled is None:
            return None
        begun = self._spoiled.repeat_interleave(self._choice.group)
        self._spoiled = None
        return torch.cat([begun.new_zeros(count - len(begun)), begun])

    def _follow(self, parents: Tensor) -> None:
        """Give each beam the keys and values of the beam that it goes on from; what both share stays."""
        own = torch.arange(len(parents), device=parents.device)
        moved = (parents != own).nonzero().squeeze(1)
        if len(moved):
            start = min(len(request.prompt) for request in self._requests) - 1
            self._cache.move(parents[moved], own[moved], start, max(self._lengths))

    def _leave(self, ended: Sequence[int]) -> None:
        """Take captions out: the last ones go into the slots that become free."""
        if not ended:
            return
        group, count = self._choice.group, len(self._requests)
        gone = set(ended)
        staying = count - len(gone)
        movers = [place for place in range(staying, count) if place not in gone]
        holes = [place for place in ended if place < staying]
        order = list(range(staying))
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
        rows = torch.tensor(order, dtype=torch.int64, device=self._device).unsqueeze(1) * group
        rows = (rows + torch.arange(group, device=self._device)).view(-1)
        if movers:
            moved = (rows != torch.arange(len(rows), device=self._device)).nonzero().squeeze(1)
            self._cache.move(rows[moved], moved, self._C, max(self._lengths))
        self._requests = [self._requests[place] for place in order]
        self._lengths = [self._lengths[place] for place in order]
        self._fed = self._fed[rows]
        self._choice.keep(order)
