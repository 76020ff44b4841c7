"""Keys and values of the rows that are being decoded, in slots of fixed size.

Letters: N slots, H heads, W columns, D width of a head, C columns of text that every prompt begins with.

    slot   | constant text | rest of the prompt | caption ........ | free |
    column   0 ... C-1       C ... P-1            P ...              W-1

A row stands at the left of its slot and its column is its position, so rows of any length lie side by side without
padding between their tokens: what is behind a row's end is not looked at, and is overwritten as the row grows. A row
that ends leaves its slot to the last one in use, or to a new row; nothing else is moved, and no tensor changes its
size. transformers' own cache grows by copying itself at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from captune.decoding.packed import Pack
from captune.model.layer_call import KeysTaken

__all__ = ["SlotCache", "layers_of"]


class _Place:
    """Where the tokens of the forward that is under way go: all layers read it here."""

    def __init__(self) -> None:
        self.layers = 0
        self.last = -1
        self.rows: slice | Tensor = slice(0, 0)
        self.columns: slice | Tensor = slice(0, 0)
        self.width = 0
        self.length = 0
        self.pack: Pack | None = None


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


class SlotCache(Cache):  # type: ignore[misc]  # transformers has no types here
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

    def pack(self, pack: Pack) -> None:
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
