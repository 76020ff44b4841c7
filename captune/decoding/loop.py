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
from captune.decoding.options import DecodingOptions
from captune.decoding.request import Progress, Request
from captune.decoding.rows import SingleRows
from captune.decoding.slots import SlotCache, fill, layers_of, read
from captune.decoding.stop import StopRule
from captune.model import MiniGPT4

__all__ = ["ConstantText", "DecodingLoop"]

_ROUNDED_TO = 8
"""Columns that are looked at are a multiple of this: kernels are quicker on it and see fewer shapes."""


class ConstantText:
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
            self.states = [(layer.keys, layer.values) for layer in output.past_key_values.layers]


class DecodingLoop:
    """Decodes up to `slots` captions at once.

    Args:
        model: its processor attached.
        options: how to decode.
        stop: when a caption has ended.
        slots: most captions at once.
        longest_prompt: tokens of the longest prompt that will come.
        prefix: text that all prompts begin with.
        fixed: keep every shape the same: all slots are fed, whether a caption is in them or not, and all columns are
            looked at. It costs work and changes no caption; a captured CUDA graph needs it.
    """

    def __init__(
        self,
        model: MiniGPT4,
        options: DecodingOptions,
        stop: StopRule,
        *,
        slots: int,
        longest_prompt: int,
        prefix: ConstantText | None = None,
        fixed: bool = False,
    ) -> None:
        self._model = model
        self._embedding = model.get_input_embeddings()
        self._device = model.projection.weight.device
        self._choice: SingleRows | Beams = (
            SingleRows(options, stop) if options.beams == 1 else Beams(options, stop, self._device)
        )
        self._slots = slots
        self._fixed = fixed
        self._prefix = prefix if prefix is not None else ConstantText(model)
        width = -(-(longest_prompt + options.max_new_tokens) // _ROUNDED_TO) * _ROUNDED_TO
        self._cache = SlotCache(slots * self._choice.group, width, self._prefix.states, layers_of(model.llm))
        self._longest_prompt = longest_prompt
        # Of each caption: its request, and how many tokens are in its slot. Of each row: what it is fed next.
        self._requests: list[Request] = []
        self._lengths: list[int] = []
        self._fed = torch.zeros(0, 1, model.config.text_width, device=self._device, dtype=model.llm.dtype)

    @property
    def active(self) -> int:
        """Captions under way."""
        return len(self._requests)

    @property
    def free(self) -> int:
        """Captions that may still come in."""
        return self._slots - len(self._requests)

    @property
    def requests(self) -> list[Request]:
        """What is under way."""
        return list(self._requests)

    @torch.inference_mode()
    def admit(self, requests: Sequence[Request]) -> None:
        """Take in captions, at most `free` of them: run their prompts, but for the last token, through the model.

        Args:
            requests: prompts beginning with the constant text, no longer than `longest_prompt`.
        """
        C, group = len(self._prefix.ids), self._choice.group
        if not requests or len(requests) > self.free:
            raise ValueError(f"{len(requests)} captions are to come in, and {self.free} may.")
        for request in requests:
            if request.prompt[:C] != self._prefix.ids or not C < len(request.prompt) <= self._longest_prompt:
                raise ValueError("A prompt does not begin with the constant text, or is longer than was announced.")
        lengths = [len(request.prompt) - 1 for request in requests]
        embeddings = self._embed(requests)
        first = len(self._requests) * group
        if max(lengths) > C:
            self._cache.fill(first, len(requests), C, max(lengths))
            positions = torch.arange(C, max(lengths), device=self._device)
            seen = torch.arange(max(lengths), device=self._device) <= positions.unsqueeze(1)
            begun = embeddings[:, : max(lengths) - C]
            places = positions.expand(len(requests), -1)
            fill(self._model.llm, self._model.llm.config, self._cache, begun, places, seen.unsqueeze(0))
        last = torch.tensor(lengths, device=self._device) - C
        fed = embeddings[torch.arange(len(requests), device=self._device), last].unsqueeze(1)
        if group > 1:
            # The prompts were run once each and lie in consecutive slots; every beam gets a copy.
            sources = first + torch.arange(len(requests), device=self._device)
            targets = first + torch.arange(len(requests) * group, device=self._device)
            if max(lengths) > C:
                self._cache.move(sources.repeat_interleave(group), targets, C, max(lengths))
            fed = fed.repeat_interleave(group, dim=0)
        self._requests += requests
        self._lengths += lengths
        self._fed = torch.cat([self._fed, fed])
        self._choice.admit(requests)

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """One more token for every caption under way.

        Returns:
            Where the captions stand: all of them when decoding greedily or sampling, those that ended with beams.
        """
        advance = self._choice.advance(self._logits())
        self._lengths = [length + 1 for length in self._lengths]
        if advance.parents is not None:
            self._follow(advance.parents)
        self._fed = self._embedding(advance.tokens).unsqueeze(1)
        self._leave(advance.ended)
        return advance.progress

    def _logits(self) -> Tensor:
        """(R, V) logits behind the tokens that are fed."""
        group, rows = self._choice.group, len(self._fed)
        longest = max(self._lengths) + 1
        width = self._cache.width if self._fixed else min(-(-longest // _ROUNDED_TO) * _ROUNDED_TO, self._cache.width)
        fed, lengths = self._fed, self._lengths
        if self._fixed:
            empty = self._cache.slots - rows
            fed = torch.cat([fed, fed.new_zeros(empty, *fed.shape[1:])])
            # An empty slot writes behind the constant text, which no row that comes in will see unwritten.
            lengths = lengths + [len(self._prefix.ids)] * (empty // group)
        columns = torch.tensor(lengths, device=self._device).repeat_interleave(group)
        self._cache.extend(columns, longest, width)
        seen = torch.arange(width, device=self._device) <= columns.unsqueeze(1)
        llm = self._model.llm
        return read(llm, llm.config, self._cache, fed, columns.unsqueeze(1), seen.unsqueeze(1))[:rows]

    def _embed(self, requests: Sequence[Request]) -> Tensor:
        """Embeddings of the prompts behind the constant text, (B, longest T - C, D), filled up at the right."""
        C = len(self._prefix.ids)
        rows = torch.zeros(len(requests), max(len(r.prompt) for r in requests) - C, dtype=torch.int64)
        for row, request in zip(rows, requests, strict=True):
            row[: len(request.prompt) - C] = torch.tensor(request.prompt[C:])
        features = [given for given in (request.read_features() for request in requests) if given is not None]
        image_tokens = self._model.project(torch.cat(features).to(self._device)) if features else None
        return self._model.embed(rows.to(self._device), image_tokens)

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
            self._cache.move(rows[moved], moved, len(self._prefix.ids), max(self._lengths))
        self._requests = [self._requests[place] for place in order]
        self._lengths = [self._lengths[place] for place in order]
        self._fed = self._fed[rows]
        self._choice.keep(order)
