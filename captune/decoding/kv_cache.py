"""The keys and values of the rows that are decoded, in slots of fixed size, and mixed batches that write into them.

Letters: N slots, H heads, W columns of a slot, D width of a head, C columns of the shared prefix; R rows in a forward,
B prompts of T tokens.

    slot   | shared prefix | rest of the prompt | caption ........ | free |
    column   0 ... C-1       C ... P-1            P ...              W-1

A row begins at the left of its slot and its column is its position, so rows of any length are side by side without
padding between their tokens: what is after a row's end is masked, and is overwritten as the row grows. When a row ends,
its slot goes to the last row in use, or to a new one; nothing else is moved, and no tensor changes its size.
transformers' own cache grows by copying itself at every step.

A mixed batch runs the newest tokens of R rows and B new prompts through one forward:

    tokens    r1 r2 ... rR | prompt 1 (T tokens) | prompt 2 | ... | prompt B

All that a layer does token by token, which is nearly everything, runs over the R + B * T tokens at once: the weights
are read once instead of twice, and a product of 100 rows costs little more than one of 30. Attention alone looks at
each part in its own shape, in transformers' own kernel, so a token sees exactly what it sees in a separate forward.
Serving engines call this piggybacked prefill (Agrawal et al. 2023, SARATHI).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from captune.model.layer_call import KeysTaken

__all__ = ["MIXED_ATTENTION", "MixedBatch", "StaticKVCache", "attention", "layers_of"]

MIXED_ATTENTION = "captune_packed"
"""Attention of a packed forward, as transformers knows it."""


class MixedBatch(NamedTuple):
    """Where the tokens of a packed forward go, and what they see.

    Attributes:
        columns: (R,) int64, the column of each row's newest token; row r is in slot r.
        seen: (R, 1, 1, width) bool, what it sees of its slot.
        first: slot of the first prompt, R or more.
        start: first column of the prompts.
        begun: (1, 1, T, start + T) bool, what the tokens of a prompt see of their slot.
    """

    columns: Tensor
    seen: Tensor
    first: int
    start: int
    begun: Tensor

    @property
    def width(self) -> int:
        """Columns that rows under way look at."""
        return self.seen.shape[3]

    @property
    def stop(self) -> int:
        """The column behind the prompts."""
        return self.begun.shape[3]

    def store(self, states: Tensor, slots: Tensor) -> None:
        """Write (1, H, R + B * T, D) keys or values of a layer into its (N, H, W, D) slots."""
        rows = len(self.columns)
        places = torch.arange(rows, device=states.device)
        # Two index tensors around a slice: the indexed dimensions come first.
        slots[places, :, self.columns] = states[0, :, :rows].transpose(0, 1)
        if states.shape[2] == rows:
            return
        prompts = self._prompts(states)
        slots[self.first : self.first + len(prompts), :, self.start : self.stop] = prompts

    def attend(self, module: Any, query: Tensor, keys: Tensor, values: Tensor, **settings: Any) -> Tensor:
        """What (1, H, R + B * T, D) queries find in the slots, (1, R + B * T, H, D)."""
        rows, kernel = len(self.columns), AttentionInterface()["sdpa"]
        parts = []
        if rows:
            newest = query[0, :, :rows].transpose(0, 1).unsqueeze(2)
            seen = _look(keys, values, slice(0, rows), self.width)
            parts.append(kernel(module, newest, *seen, self.seen, **settings)[0])
        if query.shape[2] > rows:
            prompts = self._prompts(query)
            slots = slice(self.first, self.first + len(prompts))
            parts.append(kernel(module, prompts, *_look(keys, values, slots, self.stop), self.begun, **settings)[0])
        return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)

    def ends(self, columns: Tensor) -> MixedBatch:
        """The same without the prompts but for one token of each, which is a row's newest like the others.

        Args:
            columns: (R + B,) int64, the columns of all rows' newest tokens.
        """
        width = max(self.width, self.stop)
        seen = torch.arange(width, device=columns.device) <= columns.unsqueeze(1)
        return self._replace(columns=columns, seen=seen[:, None, None], first=len(columns))

    def _prompts(self, states: Tensor) -> Tensor:
        """(B, H, T, D) of (1, H, R + B * T, D)."""
        _, heads, _, width = states.shape
        prompts = states[0, :, len(self.columns) :].reshape(heads, -1, self.begun.shape[2], width)
        return prompts.transpose(0, 1)


def _look(keys: Tensor, values: Tensor, rows: slice, width: int) -> tuple[Tensor, Tensor]:
    return keys[rows, :, :width], values[rows, :, :width]


def _attend(
    module: Any, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, *, pack: MixedBatch, **settings: Any
) -> tuple[Tensor, None]:
    """transformers' attention function for a packed forward; a model that does not hand on `pack` fails its trial."""
    return pack.attend(module, query, keys, values, **settings), None


AttentionInterface.register(MIXED_ATTENTION, _attend)


@contextmanager
def attention(config: Any, name: str) -> Iterator[None]:
    """Let a model's layers attend by another function, for the length of a forward.

    Args:
        config: of the model.
        name: of a function that transformers' `AttentionInterface` knows.
    """
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


class _Place:
    """Where the tokens of the forward that is under way go: all layers read it here."""

    def __init__(self) -> None:
        self.layers = 0
        self.last = -1
        self.rows: slice | Tensor = slice(0, 0)
        self.columns: slice | Tensor = slice(0, 0)
        self.width = 0
        self.length = 0
        self.pack: MixedBatch | None = None


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types here
    """One layer's keys and values, (N, H, W, D) each."""

    is_sliding = False

    def __init__(self, slots: int, width: int, place: _Place) -> None:
        super().__init__()
        self._slots, self._width, self._place = slots, width, place
        self._number = place.layers
        place.layers += 1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory; zeros, because what is masked is still multiplied (by nought)."""
        self.dtype, self.device = key_states.dtype, key_states.device
        heads = key_states.shape[1]
        self.keys = key_states.new_zeros(self._slots, heads, self._width, key_states.shape[3])
        self.values = value_states.new_zeros(self._slots, heads, self._width, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) states where the place says; give what these rows may look at."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place = self._place
        if place.pack is not None:
            place.pack.store(key_states, self.keys)
            place.pack.store(value_states, self.values)
            return self.keys, self.values
        if isinstance(place.columns, Tensor):
            # Two index tensors around a slice: the indexed dimensions come first.
            key_states, value_states = key_states[:, :, 0], value_states[:, :, 0]
            self.keys[place.rows, :, place.columns] = key_states
            self.values[place.rows, :, place.columns] = value_states
            rows: slice | Tensor = slice(0, len(key_states))
        else:
            self.keys[place.rows, :, place.columns] = key_states
            self.values[place.rows, :, place.columns] = value_states
            rows = place.rows
            if self._number == place.last:
                raise KeysTaken
        return self.keys[rows, :, : place.width], self.values[rows, :, : place.width]

    @property
    def newest(self) -> tuple[Tensor, Tensor]:
        """(B,) int64 rows and columns of the tokens that the forward under way brings, one to each row."""
        rows, columns = self._place.rows, self._place.columns
        assert isinstance(rows, Tensor)
        assert isinstance(columns, Tensor)
        return rows, columns

    def get_seq_length(self) -> int:
        """Tokens of the longest row of the forward under way, its own included."""
        return self._place.length if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset for a mask that the model would make; the loop brings its own."""
        return self._place.width, 0

    def get_max_length(self) -> int:
        """W."""
        return self._width

    get_max_cache_shape = get_max_length


class StaticKVCache(Cache):  # type: ignore[misc]  # transformers has no types here
    """Keys and values of up to N rows of up to W tokens.

    Args:
        slots: N.
        width: W.
        prefix: keys and values (1, H, C, D) of the text that every prompt begins with, one pair a layer.
        layers: how many layers of the model keep keys and values.
    """

    def __init__(
        self,
        slots: int,
        width: int,
        prefix: Sequence[tuple[Tensor, Tensor]] = (),
        layers: int = 0,
    ) -> None:
        self._place = _Place()
        self._place.last = layers - 1
        super().__init__(layer_class_to_replicate=partial(_SlotLayer, slots, width, self._place))
        self.slots = slots
        self.width = width
        for keys, values in prefix:
            layer = self.layer_class_to_replicate()
            layer.lazy_initialization(keys, values)
            layer.keys[:, :, : keys.shape[2]] = keys
            layer.values[:, :, : values.shape[2]] = values
            self.layers.append(layer)

    @property
    def is_whole(self) -> bool:
        """Whether the memory of every layer is taken."""
        return len(self.layers) > self._place.last and all(layer.is_initialized for layer in self.layers)

    def fill(self, first: int, rows: int, start: int, stop: int) -> None:
        """The next forward brings columns `start` to `stop` of the slots from `first` on."""
        self._place.pack = None
        self._place.rows = slice(first, first + rows)
        self._place.columns = slice(start, stop)
        self._place.width = self._place.length = stop

    def extend(self, columns: Tensor, length: int, width: int) -> None:
        """The next forward brings one token to each of the first slots.

        Args:
            columns: (B,) int64, where each goes.
            length: tokens of the longest row then.
            width: how many columns are looked at, `length` or more.
        """
        self._place.pack = None
        self._place.rows = torch.arange(len(columns), device=columns.device)
        self._place.columns = columns
        self._place.length = length
        self._place.width = width

    def pack(self, pack: MixedBatch) -> None:
        """The next forward brings one token to each of the first slots, and prompts to slots behind them."""
        self._place.pack = pack
        self._place.width = self._place.length = max(pack.width, pack.stop)

    def clear(self, slots: Tensor, start: int) -> None:
        """Set columns of slots from `start` on to zero.

        What is masked is still multiplied by zero, so NaN in a slot would spoil the next row that it is given to.
        """
        for layer in self.layers:
            layer.keys[slots, :, start:] = 0
            layer.values[slots, :, start:] = 0

    def move(self, sources: Tensor, targets: Tensor, start: int, stop: int) -> None:
        """Copy columns `start` to `stop` of slots onto others; all are read before any is written."""
        for layer in self.layers:
            layer.keys[targets, :, start:stop] = layer.keys[sources, :, start:stop]
            layer.values[targets, :, start:stop] = layer.values[sources, :, start:stop]


def layers_of(llm: Any) -> int:
    """How many layers of a language model keep keys and values; 0 where it does not say."""
    return len(DynamicCache(config=llm.config.get_text_config(decoder=True)).layers)
