"""The decoder of a transformers model: what its layers get for a plain row, and packed rows made of it.

A packed row holds all captions of an image after one copy of prompt and image. Each family has its rules for positions
(one axis or three) and masks (causal, both ways among image tokens or prefix, sliding windows, boolean or additive).
None of them is repeated here: the model's own forward runs on a plain row, a prompt followed by one caption, while its
layers are replaced by ones that keep masks and positions. A token of a packed row has the position of its plain row,
and attends to what it attends to there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captune.errors import WeightsError
from captune.model import CaptionTree

__all__ = ["Decoder", "PackedRow", "PlainRow"]

_MASK = "attention_mask"
_POSITIONS = "position_ids"
_VISION = ("vision", "visual", "image", "vqmodel", "audio")


@dataclass(frozen=True)
class PlainRow:
    """What the decoder and its layers get for one plain row of L tokens.

    Attributes:
        positions: (..., L) position ids; None if the decoder makes them itself.
        masks: for each layer a mask (1, H, L, L), boolean or additive, or None for a causal one.
        length: L.
    """

    positions: Tensor | None
    masks: tuple[Tensor | None, ...]
    length: int


@dataclass(frozen=True)
class PackedRow:
    """A packed row of S tokens, P of them of the prompt.

    Attributes:
        ids: the S - P ids after the prompt.
        columns: (S,) column of each token in a plain row.
        visible: (S, S) bool, whether a token's plain row contains another token.
        states: (N,) column of the state that predicts each target.
        targets: (N,) ids.
    """

    ids: tuple[int, ...]
    columns: Tensor
    visible: Tensor
    states: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> PackedRow:
        """The same row on a device."""
        moved = (tensor.to(device) for tensor in (self.columns, self.visible, self.states, self.targets))
        return PackedRow(self.ids, *moved)

    @classmethod
    def of(cls, prompt_length: int, captions: Sequence[Sequence[int]]) -> PackedRow:
        """The row of an image's captions, which are target ids."""
        tree = CaptionTree(captions)
        P, length = prompt_length, prompt_length + len(tree.tokens)
        columns = torch.cat([torch.arange(P), P + torch.tensor(tree.depths, dtype=torch.int64)])
        firsts, lasts = torch.tensor(tree.firsts, dtype=torch.int64), torch.tensor(tree.lasts, dtype=torch.int64)
        visible = torch.zeros(length, length, dtype=torch.bool)
        visible[:, :P] = True
        visible[P:, P:] = (firsts.unsqueeze(1) <= lasts.unsqueeze(0)).tril()
        states = P + torch.tensor(tree.states, dtype=torch.int64)
        return cls(tuple(tree.tokens), columns, visible, states, torch.tensor(tree.targets))


class Decoder:
    """The text decoder of a model and its layers.

    Args:
        model: an image-text-to-text model.

    Attributes:
        module: the module that owns the layers.
        layers: in order.
        path: name of the module in the model.

    Raises:
        WeightsError: the layers are not in one `ModuleList`.
    """

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config(decoder=True)
        count = int(getattr(text, "num_hidden_layers", 0) or getattr(text, "decoder_layers", 0))
        part = model.get_decoder()
        names = [name for name, module in model.named_modules() if module is part]
        lists = [
            (f"{names[0]}.{name}".strip("."), module)
            for name, module in part.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) == count and not any(word in name for word in _VISION)
        ]
        if not names or not lists:
            raise WeightsError(f"The decoder layers of a {model.config.model_type} are not in one list.")
        name, self.layers = lists[0]
        self.path = name.rpartition(".")[0]
        self.module: nn.Module = model.get_submodule(self.path)
        self._returns: dict[int, int | None] = {}

    @contextmanager
    def recorded(self) -> Iterator[list[PlainRow]]:
        """Run forwards without the layers within the block, and collect what they get."""
        rows: list[PlainRow] = []
        positions: list[Tensor | None] = []
        masks: list[Tensor | None] = []

        def decoder_call(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            positions.append(kwargs.get(_POSITIONS))

        def layer_call(index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            masks.append(kwargs.get(_MASK))
            states = args[0] if args else kwargs["hidden_states"]
            if index in self._returns:
                extra = self._returns[index]
                output = states if extra is None else (states, *[None] * extra)
            else:
                output = layer(*args, **kwargs)
                self._returns[index] = len(output) - 1 if isinstance(output, tuple) else None
            if index == len(self.layers) - 1:
                rows.append(PlainRow(positions[-1] if positions else None, tuple(masks), states.shape[1]))
                masks.clear()
            return output

        with ExitStack() as stack:
            handle = self.module.register_forward_pre_hook(decoder_call, with_kwargs=True)
            stack.callback(handle.remove)
            stack.enter_context(_replaced_layers(self.layers, layer_call))
            yield rows

    @contextmanager
    def packed(self, plains: Sequence[PlainRow], rows: Sequence[PackedRow]) -> Iterator[None]:
        """Give decoder and layers the positions and masks of packed rows within the block.

        Args:
            plains: of each row.
            rows: B packed rows; shorter ones are padded on the right, and no other token sees the padding.
        """
        longest = max(len(row.columns) for row in rows)
        stated = []
        for plain, row in zip(plains, rows, strict=True):
            columns = F.pad(row.columns, (0, longest - len(row.columns)))
            every = plain.positions
            if every is None:
                every = torch.arange(plain.length, device=columns.device).unsqueeze(0)
            stated.append(every[..., columns])
        positions = stated[0] if len(stated) == 1 else torch.cat(stated, dim=-2)
        composed: dict[tuple[int, ...], Tensor] = {}

        def mask_of(index: int) -> Tensor:
            masks = [plain.masks[index] for plain in plains]
            key = tuple(map(id, masks))
            if key not in composed:
                parts = zip(masks, plains, rows, strict=True)
                composed[key] = torch.cat(
                    [_padded_mask(_packed_mask(mask, plain.length, row), longest) for mask, plain, row in parts]
                )
            return composed[key]

        def decoder_call(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, _POSITIONS: positions}

        def layer_call(index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            masks = [plain.masks[index] for plain in plains]
            if all(mask is None or mask.ndim == 4 for mask in masks):
                kwargs = {**kwargs, _MASK: mask_of(index)}
            return layer(*args, **kwargs)

        with ExitStack() as stack:
            handle = self.module.register_forward_pre_hook(decoder_call, with_kwargs=True)
            stack.callback(handle.remove)
            stack.enter_context(_replaced_layers(self.layers, layer_call))
            yield

    @contextmanager
    def stepped(self, plains: Sequence[PlainRow], columns: Sequence[int], width: int) -> Iterator[None]:
        """Give decoder and layers the positions and masks of one new token of each of R rows within the block.

        Args:
            plains: R plain rows, which contain the tokens.
            columns: of the R tokens in these.
            width: number of columns of the cache that are passed to the layers.
        """
        device = next(self.module.parameters()).device
        stated = [
            torch.tensor([[column]], device=device) if plain.positions is None else plain.positions[..., [column]]
            for plain, column in zip(plains, columns, strict=True)
        ]
        positions = torch.cat(stated, dim=-2)
        composed: dict[tuple[int, ...], Tensor] = {}

        def mask_of(index: int) -> Tensor | None:
            masks = [plain.masks[index] for plain in plains]
            key = tuple(map(id, masks))
            if key not in composed:
                composed[key] = _step_mask(masks, columns, width, device)
            return composed[key]

        def decoder_call(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, _POSITIONS: positions}

        def layer_call(index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if all(plain.masks[index] is None or plain.masks[index].ndim == 4 for plain in plains):  # type: ignore[union-attr]
                kwargs = {**kwargs, _MASK: mask_of(index)}
            return layer(*args, **kwargs)

        with ExitStack() as stack:
            handle = self.module.register_forward_pre_hook(decoder_call, with_kwargs=True)
            stack.callback(handle.remove)
            stack.enter_context(_replaced_layers(self.layers, layer_call))
            yield


def _step_mask(masks: Sequence[Tensor | None], columns: Sequence[int], width: int, device: torch.device) -> Tensor:
    """The mask (R, H, 1, width) of one token a row: the token's row of its plain mask, without later columns."""
    rows = []
    for mask, column in zip(masks, columns, strict=True):
        if mask is None:
            row = torch.ones(1, 1, 1, column + 1, dtype=torch.bool, device=device)
        else:
            row = mask[:1, :, column : column + 1, : column + 1]
        hidden = False if row.dtype == torch.bool else torch.finfo(row.dtype).min
        rows.append(F.pad(row, (0, width - column - 1), value=hidden))
    return torch.cat(rows)


def _packed_mask(mask: Tensor | None, length: int, row: PackedRow) -> Tensor:
    """The mask (1, H, S, S) of a packed row, composed of the plain row's mask."""
    columns = row.columns
    if mask is None:
        # The attention function makes a causal mask itself.
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=columns.device).tril()
    values = mask[:1, :, :, :length][:, :, columns][..., columns]
    if values.dtype == torch.bool:
        return values & row.visible
    return torch.where(row.visible, values, torch.finfo(values.dtype).min)


def _padded_mask(mask: Tensor, length: int) -> Tensor:
    """A mask (1, H, S, S) with padding on the right to (1, H, length, length)."""
    missing = length - mask.shape[-1]
    if not missing:
        return mask
    hidden, visible = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
    padded = F.pad(mask, (0, missing, 0, missing), value=hidden)
    # Attention to nothing is undefined.
    padded[..., -missing:, 0] = visible
    return padded


class _LayerCall(nn.Module):
    """Replaces a layer in a list of layers, and has its attributes."""

    def __init__(self, index: int, layer: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        # Not registered as a submodule, so that the model's parameters keep their names.
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_call", call)
        object.__setattr__(self, "_index", index)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Only hidden states stay positional: layers of older families get their mask without its name.
        names = list(inspect.signature(self._layer.forward).parameters)
        named = dict(zip(names[1:], args[1:], strict=False))
        return self._call(self._index, self._layer, args[:1], {**named, **kwargs})


@contextmanager
def _replaced_layers(layers: nn.ModuleList, call: Callable[..., Any]) -> Iterator[None]:
    """Replace each layer of a list within the block by `call`.

    It gets the layer's index, the layer, its hidden states as the only positional argument, and all others by name.

    The layer itself is called with other arguments, so that activation checkpointing, which calls it again in the
    backward pass, repeats these.
    """
    originals = list(layers)
    for index, layer in enumerate(originals):
        layers[index] = _LayerCall(index, layer, call)
    try:
        yield
    finally:
        for index, layer in enumerate(originals):
            layers[index] = layer
