"""A static KV cache: keys and values of the rows that are decoded, in slots of fixed size; and mixed batches.

Letters: N slots, H heads, W columns of a slot, D width of a head, C columns of the shared prefix; R rows in a forward,
B prompts of T tokens.

    slot   | shared prefix | rest of the prompt | caption ........ | free |
    column   0 ... C-1       C ... P-1            P ...              W-1

A row begins at the left of its slot and its column is its position, so rows of any length need no padding between their
tokens: what comes after a row's end is masked, and is overwritten as the row grows. When a row ends, its slot goes to
the last row in use, or to a new one; nothing else is moved, and no tensor changes its size. transformers' dynamic cache
grows by copying itself at every step.

A mixed batch runs the newest tokens of R rows and B new prompts through one forward:

    tokens    r1 r2 ... rR | prompt 1 (T tokens) | prompt 2 | ... | prompt B

All that a layer does token by token, which is nearly everything, runs over the R + B * T tokens at once: the weights
are read once instead of twice, and a product of 100 rows costs little more than one of 30. Only attention looks at each
part in its own shape, in transformers' kernel, so a token sees exactly what it sees in a separate forward. Serving
engines call this piggybacked prefill (Agrawal et al. 2023, SARATHI).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from captune.model import StopAfterKV

__all__ = ["MIXED_ATTENTION", "MixedBatch", "StaticKVCache", "cache_layer_count"]

MIXED_ATTENTION = "captune_mixed"
"""Name of the attention function of mixed batches in transformers' `AttentionInterface`."""


class MixedBatch(NamedTuple):
    """Where the tokens of a mixed batch are written, and what they see.

    Attributes:
        columns: (R,) int64, the column of each row's newest token; row r is in slot r.
        mask: (R, 1, 1, width) bool, the columns of its slot that it sees.
        first_slot: slot of the first prompt, R or more.
        first_column: first column of the prompts.
        prompt_mask: (1, 1, T, first_column + T) bool, the columns that each token of a prompt sees.
    """

    columns: Tensor
    mask: Tensor
    first_slot: int
    first_column: int
    prompt_mask: Tensor

    @property
    def width(self) -> int:
        """Columns that the R rows see."""
        return self.mask.shape[3]

    @property
    def end_column(self) -> int:
        """The column after the prompts."""
        return self.prompt_mask.shape[3]

    def write(self, states: Tensor, slots: Tensor) -> None:
        """Write keys or values of a layer, (1, H, R + B * T, D), into its slots, (N, H, W, D)."""
        rows = len(self.columns)
        # Two index tensors around a slice: the indexed dimensions come first.
        slots[torch.arange(rows, device=states.device), :, self.columns] = states[0, :, :rows].transpose(0, 1)
        if states.shape[2] == rows:
            return
        prompts = self._prompts(states)
        last_slot = self.first_slot + len(prompts)
        slots[self.first_slot : last_slot, :, self.first_column : self.end_column] = prompts

    def attend(self, module: Any, query: Tensor, keys: Tensor, values: Tensor, **settings: Any) -> Tensor:
        """Attention of queries (1, H, R + B * T, D) over the slots: (1, R + B * T, H, D)."""
        rows, kernel = len(self.columns), AttentionInterface()["sdpa"]
        outputs = []
        if rows:
            newest = query[0, :, :rows].transpose(0, 1).unsqueeze(2)
            seen = _first_columns(keys, values, slice(0, rows), self.width)
            outputs.append(kernel(module, newest, *seen, self.mask, **settings)[0])
        if query.shape[2] > rows:
            prompts = self._prompts(query)
            slots = slice(self.first_slot, self.first_slot + len(prompts))
            seen = _first_columns(keys, values, slots, self.end_column)
            outputs.append(kernel(module, prompts, *seen, self.prompt_mask, **settings)[0])
        return torch.cat([output.flatten(0, 1) for output in outputs]).unsqueeze(0)

    def only_newest(self, columns: Tensor) -> MixedBatch:
        """The same batch reduced to one token of each prompt, which becomes a row like the others.

        Args:
            columns: (R + B,) int64, the columns of all rows' newest tokens.
        """
        width = max(self.width, self.end_column)
        mask = torch.arange(width, device=columns.device) <= columns.unsqueeze(1)
        return self._replace(columns=columns, mask=mask[:, None, None], first_slot=len(columns))

    def _prompts(self, states: Tensor) -> Tensor:
        """(B, H, T, D) of (1, H, R + B * T, D)."""
        _, heads, _, width = states.shape
        prompts = states[0, :, len(self.columns) :].reshape(heads, -1, self.prompt_mask.shape[2], width)
        return prompts.transpose(0, 1)


def _first_columns(keys: Tensor, values: Tensor, rows: slice, width: int) -> tuple[Tensor, Tensor]:
    return keys[rows, :, :width], values[rows, :, :width]


def _attend(
    module: Any,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    mixed_batch: MixedBatch,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function of a mixed batch; a model that drops `mixed_batch` fails `capabilities`."""
    return mixed_batch.attend(module, query, keys, values, **settings), None


AttentionInterface.register(MIXED_ATTENTION, _attend)


class _WriteTarget:
    """Where the next forward writes its tokens; shared by all layers."""

    def __init__(self) -> None:
        self.layers = 0
        self.last_layer = -1
        self.rows: slice | Tensor = slice(0, 0)
        self.columns: slice | Tensor = slice(0, 0)
        self.width = 0
        self.length = 0
        self.mixed_batch: MixedBatch | None = None


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types here
    """One layer's keys and values, (N, H, W, D) each."""

    is_sliding = False

    def __init__(self, slots: int, width: int, target: _WriteTarget) -> None:
        super().__init__()
        self._slots, self._width, self._target = slots, width, target
        self._number = target.layers
        target.layers += 1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros, because masked columns are still multiplied (by zero)."""
        self.dtype, self.device = key_states.dtype, key_states.device
        heads = key_states.shape[1]
        self.keys = key_states.new_zeros(self._slots, heads, self._width, key_states.shape[3])
        self.values = value_states.new_zeros(self._slots, heads, self._width, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) states to the write target; return the columns that these rows may see."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        target = self._target
        if target.mixed_batch is not None:
            target.mixed_batch.write(key_states, self.keys)
            target.mixed_batch.write(value_states, self.values)
            return self.keys, self.values
        if isinstance(target.columns, Tensor):
            # Two index tensors around a slice: the indexed dimensions come first.
            key_states, value_states = key_states[:, :, 0], value_states[:, :, 0]
            self.keys[target.rows, :, target.columns] = key_states
            self.values[target.rows, :, target.columns] = value_states
            rows: slice | Tensor = slice(0, len(key_states))
        else:
            self.keys[target.rows, :, target.columns] = key_states
            self.values[target.rows, :, target.columns] = value_states
            rows = target.rows
            if self._number == target.last_layer:
                raise StopAfterKV
        return self.keys[rows, :, : target.width], self.values[rows, :, : target.width]

    @property
    def write_index(self) -> tuple[Tensor, Tensor]:
        """(B,) int64 rows and columns of the tokens of a decode step, one token a row."""
        rows, columns = self._target.rows, self._target.columns
        assert isinstance(rows, Tensor)
        assert isinstance(columns, Tensor)
        return rows, columns

    def get_seq_length(self) -> int:
        """Tokens of the longest row of the current forward, its new ones included."""
        return self._target.length if self.is_initialized else 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask that the model would make; the engine passes its own."""
        return self._target.width, 0

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
        self._target = _WriteTarget()
        self._target.last_layer = layers - 1
        super().__init__(layer_class_to_replicate=partial(_SlotLayer, slots, width, self._target))
        self.slots = slots
        self.width = width
        for keys, values in prefix:
            layer = self.layer_class_to_replicate()
            layer.lazy_initialization(keys, values)
            layer.keys[:, :, : keys.shape[2]] = keys
            layer.values[:, :, : values.shape[2]] = values
            self.layers.append(layer)

    @property
    def is_allocated(self) -> bool:
        """Whether the memory of every layer is allocated."""
        return len(self.layers) > self._target.last_layer and all(layer.is_initialized for layer in self.layers)

    def set_prefill(self, first: int, rows: int, start: int, stop: int) -> None:
        """Let the next forward write columns `start` to `stop` of the `rows` slots from `first` on."""
        self._target.mixed_batch = None
        self._target.rows = slice(first, first + rows)
        self._target.columns = slice(start, stop)
        self._target.width = self._target.length = stop

    def set_decode(self, columns: Tensor, length: int, width: int) -> None:
        """Let the next forward write one token to each of the first B slots.

        Args:
            columns: (B,) int64, the column of each token.
            length: tokens of the longest row, the new one included.
            width: how many columns are seen, `length` or more.
        """
        self._target.mixed_batch = None
        self._target.rows = torch.arange(len(columns), device=columns.device)
        self._target.columns = columns
        self._target.length = length
        self._target.width = width

    def set_mixed(self, batch: MixedBatch) -> None:
        """Let the next forward write one token to each of the first slots, and prompts to slots after them."""
        self._target.mixed_batch = batch
        self._target.width = self._target.length = max(batch.width, batch.end_column)

    def clear(self, slots: Tensor, start: int) -> None:
        """Set columns of slots from `start` on to zero.

        What is masked is still multiplied by zero, so NaN in a slot would spoil the next row in it.
        """
        for layer in self.layers:
            layer.keys[slots, :, start:] = 0
            layer.values[slots, :, start:] = 0

    def copy(self, sources: Tensor, targets: Tensor, start: int, stop: int) -> None:
        """Copy columns `start` to `stop` of slots onto others; all are read before any is written."""
        for layer in self.layers:
            layer.keys[targets, :, start:stop] = layer.keys[sources, :, start:stop]
            layer.values[targets, :, start:stop] = layer.values[sources, :, start:stop]


def cache_layer_count(llm: Any) -> int:
    """How many layers of a language model keep keys and values; 0 where its configuration does not specify it."""
    return len(DynamicCache(config=llm.config.get_text_config(decoder=True)).layers)
