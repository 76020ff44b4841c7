"""The image features of a transformers model: what its vision tower and projector return for one image.

A model calls one function for its images, `get_image_features` in nearly every family. `FeatureCall` finds it, records
what it returns for an image, and returns recorded features in its place, so that the tower does not run. Only the parts
of the return value that the model reads are kept. An image has any number of tokens, tiles and tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils import ModelOutput

from captune.errors import WeightsError

__all__ = ["TOWERS", "FeatureCall", "ImageFeatures", "find_feature_call"]

_METHOD = "get_image_features"
TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder", "vqmodel", "vision")
"""Attributes that hold the vision tower in families without `get_image_features`."""
_STATES = "hidden_states"
_UNUSED = ("attentions",)
_Read = str | tuple[str, int]
"""A field of a model output that is read, or one element of a field that holds a tuple, such as a hidden state."""


class _Recorded(Exception):  # noqa: N818  # no error: it ends a forward pass early
    """Raised after image features were recorded."""


@dataclass(frozen=True)
class ImageFeatures:
    """The features of one image.

    Attributes:
        tensors: in the order in which the model's return value holds them; (tokens, D), (tiles, tokens, D), ...
        size: (width, height) of the image in pixels, on which the number of its tokens depends.
    """

    tensors: tuple[Tensor, ...]
    size: tuple[int, int]

    def to(self, device: torch.device) -> ImageFeatures:
        """The same features on a device."""
        return ImageFeatures(tuple(tensor.to(device, non_blocking=True) for tensor in self.tensors), self.size)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)


class _Reads(TorchFunctionMode):
    """Collects the `id` of every tensor that torch functions get."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for value in (*args, *kwargs.values()):
            parts = value if isinstance(value, (list, tuple)) else (value,)
            self.ids.update(id(part) for part in parts if isinstance(part, Tensor))
        return func(*args, **kwargs)


class FeatureCall:
    """The function of a model that computes image features.

    Args:
        module: the module of the function.
        name: of its method.
        single: what it returns for one image.
        double: what it returns for the same image twice; the difference shows which lists and tensors grow with the
            number of images.
        read: fields of the return value that the model reads, such as "pooler_output"; None is all.
    """

    def __init__(self, module: nn.Module, name: str, single: Any, double: Any, read: set[_Read] | None):
        self._module, self._name = module, name
        self._template = _kept_part(single, read)
        self._double = _kept_part(double, read)

    @property
    def description(self) -> str:
        """Module and method, for messages."""
        return f"{type(self._module).__name__}.{self._name}"

    def tensors_of(self, value: Any) -> tuple[Tensor, ...]:
        """The tensors to keep of a return value.

        Raises:
            WeightsError: the return value has another structure than for the probe image.
        """
        tensors: list[Tensor] = []
        _flatten(value, self._template, tensors)
        return tuple(tensors)

    def value_of(self, features: ImageFeatures, copies: int = 1) -> Any:
        """The return value for `copies` of one image."""
        return _rebuild(self._template, self._double, iter(features.tensors), copies)

    @contextmanager
    def recorded(self, *, stop: bool = False) -> Iterator[list[Any]]:
        """Collect the return values within the block.

        Args:
            stop: leave the block after the first one, so that the decoder does not run.
        """
        values: list[Any] = []

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            value = original(*args, **kwargs)
            values.append(copy.copy(value))
            if stop:
                raise _Recorded
            return value

        with _patched(self._module, self._name, call), suppress(_Recorded):
            yield values

    def tensors_read(self, run: Callable[[], Any]) -> set[int]:
        """The `id` of each tensor that the function reads while `run` runs, weights among them."""
        reads = _Reads()

        def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with reads:
                return original(*args, **kwargs)

        with _patched(self._module, self._name, call), self.recorded(stop=True):
            run()
        return reads.ids

    def value_of_batch(self, features: Sequence[ImageFeatures]) -> Any:
        """The return value for several images, one in each row."""
        if len(features) == 1:
            return self.value_of(features[0])
        return _rebuild_batch(self._template, self._double, [iter(one.tensors) for one in features])

    @contextmanager
    def replaced_in_batch(self, features: Sequence[ImageFeatures]) -> Iterator[None]:
        """Return the features of several images, one in each row, instead of computing them within the block."""
        with _patched(self._module, self._name, lambda *_args, **_kwargs: self.value_of_batch(features)):
            yield

    @contextmanager
    def replaced(self, features: ImageFeatures, copies: int = 1) -> Iterator[None]:
        """Return features instead of computing them within the block.

        Args:
            features: of one image.
            copies: number of rows that have this image.
        """
        with _patched(self._module, self._name, lambda *_args, **_kwargs: self.value_of(features, copies)):
            yield


def find_feature_call(
    model: nn.Module, run: Callable[[int], Any], *, before_projector: bool = False
) -> FeatureCall | None:
    """Find the function that computes a model's image features.

    Args:
        model: an image-text-to-text model.
        run: runs the model's forward on a number of rows with the same image.
        before_projector: find the vision tower instead, whose output is the input of the projector.

    Returns:
        None if the model has no such function, or does not call it.
    """
    candidates = [] if before_projector else [(part, _METHOD) for part in model.modules() if hasattr(part, _METHOD)]
    candidates += [
        (part, "forward")
        for name, part in model.named_modules()
        if (name.rpartition(".")[2] in TOWERS or name == "encoder") and not isinstance(part, nn.ModuleList)
    ]
    for module, method in candidates:
        single, read = _observe(module, method, lambda: run(1))
        if single is None:
            continue
        double, _ = _observe(module, method, lambda: run(2))
        if double is not None:
            return FeatureCall(module, method, single, double, read)
    return None


def _observe(module: nn.Module, name: str, run: Callable[[], Any]) -> tuple[Any, set[_Read] | None]:
    """What a method returns while `run` runs, and which fields of it are read; None if it is not called once."""
    values: list[Any] = []
    read: set[_Read] = set()

    def call(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        values.append(copy.copy(value))
        return _with_reads_recorded(value, read)

    with _patched(module, name, call), torch.no_grad():
        run()
    if len(values) != 1:
        return None, None
    return values[0], read or None


class _RecordedStates(tuple[Any, ...]):
    """The hidden states of all layers, which records those that are read; all are kept if they are iterated over."""

    _read: set[_Read]

    def __new__(cls, states: tuple[Any, ...], read: set[_Read]) -> _RecordedStates:
        made = super().__new__(cls, states)
        made._read = read
        return made

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            self._read.add((_STATES, key % len(self)))
        else:
            self._read.add(_STATES)
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[Any]:
        self._read.add(_STATES)
        return super().__iter__()


def _with_reads_recorded(value: Any, read: set[_Read]) -> Any:
    """A model output that records which of its fields are read; other values are returned unchanged."""
    if not isinstance(value, ModelOutput):
        return value
    kind = type(value)

    class Recorded(kind):  # type: ignore[misc, valid-type]  # the class is only known here
        def __getattribute__(self, name: str) -> Any:
            item = super().__getattribute__(name)
            return field(name, item) if name in fields else item

        def __getitem__(self, key: Any) -> Any:
            item = super().__getitem__(key)
            if isinstance(key, slice):
                read.update(list(value)[key])
                return item
            return field(key if isinstance(key, str) else list(value)[key], item)

    def field(name: str, item: Any) -> Any:
        if name == _STATES and isinstance(item, tuple):
            return _RecordedStates(item, read)
        read.add(name)
        return item

    fields = {name for name in value if name not in _UNUSED}
    recorded = copy.copy(value)
    recorded.__class__ = Recorded
    return recorded


@dataclass(frozen=True)
class _Output:
    """The fields of a model output that are kept."""

    kind: type
    fields: dict[str, Any]


def _kept_part(value: Any, read: set[_Read] | None) -> Any:
    """A model output as `_Output` with the fields that are read; other values are returned unchanged."""
    if not isinstance(value, ModelOutput):
        return value
    if read is None:
        return _Output(type(value), {name: item for name, item in value.items() if name not in _UNUSED})
    kept = {name: item for name, item in value.items() if name in read}
    layers = {part[1] for part in read if isinstance(part, tuple)}
    if layers and _STATES not in kept:
        states = value[_STATES]
        kept[_STATES] = tuple(state if index in layers else None for index, state in enumerate(states))
    return _Output(type(value), kept)


def _flatten(value: Any, template: Any, tensors: list[Tensor]) -> None:
    """Collect the tensors of a value that has the structure of `template`."""
    if isinstance(template, _Output):
        for name, part in template.fields.items():
            _flatten(getattr(value, name, None), part, tensors)
    elif isinstance(template, Tensor) and isinstance(value, Tensor):
        tensors.append(value)
    elif isinstance(template, (list, tuple)) and isinstance(value, (list, tuple)) and len(value) == len(template):
        for one, part in zip(value, template, strict=True):
            _flatten(one, part, tensors)
    elif isinstance(template, (Tensor, list, tuple)):
        raise WeightsError("The structure of the image features differs between images, so they cannot be stored.")


def _rebuild(template: Any, double: Any, tensors: Iterator[Tensor], copies: int) -> Any:
    """The structure of `template` with other tensors, for `copies` of one image."""
    if isinstance(template, _Output):
        fields = {name: _rebuild(part, double.fields[name], tensors, copies) for name, part in template.fields.items()}
        return template.kind(**fields)
    if isinstance(template, Tensor):
        tensor = next(tensors)
        grows = template.ndim and double.shape[0] == 2 * template.shape[0]
        return torch.cat([tensor] * copies) if grows and copies > 1 else tensor
    if isinstance(template, (list, tuple)):
        grows = len(double) == 2 * len(template)
        others = double[: len(template)]
        parts = [
            _rebuild(one, other, tensors, 1 if grows else copies) for one, other in zip(template, others, strict=True)
        ]
        return type(template)(parts * (copies if grows else 1))
    return template


def _rebuild_batch(template: Any, double: Any, tensors: Sequence[Iterator[Tensor]]) -> Any:
    """The structure of `template` with the tensors of several images."""
    if isinstance(template, _Output):
        fields = {name: _rebuild_batch(part, double.fields[name], tensors) for name, part in template.fields.items()}
        return template.kind(**fields)
    if isinstance(template, Tensor):
        values = [next(remaining) for remaining in tensors]
        return torch.cat(values) if template.ndim and double.shape[0] == 2 * template.shape[0] else values[0]
    if isinstance(template, (list, tuple)):
        pairs = list(zip(template, double[: len(template)], strict=True))
        if len(double) == 2 * len(template):
            return type(template)(_rebuild(one, other, remaining, 1) for remaining in tensors for one, other in pairs)
        return type(template)(_rebuild_batch(one, other, tensors) for one, other in pairs)
    return template


@contextmanager
def _patched(module: nn.Module, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Replace a method of a module within the block; `call` gets the original method first."""
    original = getattr(module, name)
    before = vars(module).get(name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    setattr(module, name, replacement)
    try:
        yield
    finally:
        vars(module).pop(name, None)
        if before is not None:
            setattr(module, name, before)
