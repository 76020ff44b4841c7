"""What a callback sees of a training: the model, which captions and is left as it was, and the training images."""

from __future__ import annotations

import contextlib
import copy
import os
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from PIL import Image
from torch import nn
from transformers import PretrainedConfig

from captune.captioner import Captioner, TransformersBackend, complete_settings, load_processor
from captune.data.leaks import ImageFile, Leak, LeakReport, find_leaks
from captune.errors import WeightsError
from captune.model import tuned_instruction

__all__ = ["live_captioner", "model_name", "training_leaks"]

_ROWS_AT_ONCE = 64
"""Rows of a training set that are read at once."""
_IMAGES_AT_ONCE = 4096
"""Training images that are searched at once; those without a file are written to a temporary folder."""


@contextlib.contextmanager
def live_captioner(
    model: Any, processor: Any, *, instruction: str | None = None, exif_rotation: bool = True
) -> Iterator[Captioner]:
    """A captioner with a model in training: with its adapters, in eval mode, with a KV cache.

    It captions as one that is loaded from a checkpoint of this moment. At the end the model, its configurations, and
    the random states of Python, NumPy and torch are as they were.

    Args:
        model: of the training; an image-text-to-text model of transformers, or peft's wrapper of one.
        processor: of the model; one without an image processor is replaced by that of the base model.
        instruction: the default instruction; None as in `Captioner.from_pretrained`.
        exif_rotation: apply the EXIF rotation of images.

    Raises:
        WeightsError: the weights are sharded, or the adapter is a prompt.
        CaptuneError: the processor cannot be loaded.
    """
    outer = extract_model_from_parallel(model)
    is_adapter = hasattr(outer, "peft_config")
    if is_adapter and outer.active_peft_config.is_prompt_learning:
        raise WeightsError("The adapter is a trained prompt, and captune captions with LoRA and similar adapters only.")
    base = outer.get_base_model() if is_adapter else outer
    _require_complete(outer)
    name = model_name(outer)
    with _random_states(), _unchanged(outer), _plain_forward(base), tempfile.TemporaryDirectory() as folder:
        outer.eval()
        _set_cache(outer)
        source = name
        if getattr(processor, "image_processor", None) is not None:
            # A copy, as the trainer writes it into its checkpoints: the settings for padding differ in training.
            processor.save_pretrained(folder)
            source = folder
        loaded = load_processor(source, base.config, name)
        complete_settings(loaded, base)
        if instruction is None and not is_adapter:
            instruction = tuned_instruction(base.config)
        yield Captioner(
            TransformersBackend(base, loaded, name=name, instruction=instruction, exif_rotation=exif_rotation)
        )


def model_name(model: Any) -> str:
    """Path or hub id of the model in training, without its adapters; the name of its class if it has none."""
    outer = extract_model_from_parallel(model)
    base = outer.get_base_model() if hasattr(outer, "peft_config") else outer
    return str(getattr(base, "name_or_path", "") or type(base).__name__)


def _require_complete(model: nn.Module) -> None:
    """Require that this process has all weights.

    Raises:
        WeightsError: they are sharded over processes.
    """
    sharded = any(hasattr(parameter, "ds_id") or hasattr(parameter, "placements") for parameter in model.parameters())
    if sharded or any("FullyShardedDataParallel" in type(part).__name__ for part in model.modules()):
        raise WeightsError(
            "The weights are sharded over processes (FSDP, ZeRO-3), and captune captions with complete weights; "
            "evaluate the saved checkpoints with captune evaluate instead."
        )


@contextlib.contextmanager
def _plain_forward(model: Any) -> Iterator[None]:
    """The model without Accelerate's wrapper, which computes in the number format of training."""
    wrapped = vars(model).get("forward") if "_original_forward" in vars(model) else None
    if wrapped is not None:
        model.forward = model._original_forward
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped


def _set_cache(model: nn.Module) -> None:
    """Generate with a KV cache, which trainers disable for gradient checkpointing."""
    for part in model.modules():
        settings = getattr(part, "generation_config", None)
        if settings is not None and "generation_config" in vars(part):
            cached: Any = copy.deepcopy(settings)
            cached.use_cache = True
            part.generation_config = cached
        config: Any = getattr(part, "config", None)
        if _is_config(config) and hasattr(config, "use_cache"):
            config.use_cache = True


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put the mode of all parts of a model, their stored tensors and their configurations back at the end.

    Parts store tensors during generation, such as positions; these were computed in inference mode, and training cannot
    use them. Hooks that transformers adds at the first forward pass are kept.
    """
    parts = [(part, dict(vars(part)), dict(part._buffers)) for part in model.modules()]
    configs = {id(value): value for _, values, _ in parts for value in values.values() if _is_config(value)}
    stored = [(config, dict(vars(config))) for config in configs.values()]
    try:
        yield
    finally:
        for config, settings in stored:
            vars(config).clear()
            vars(config).update(settings)
        for part, values, buffers in parts:
            part._buffers.clear()
            part._buffers.update(buffers)
            attributes = vars(part)
            tensors = {name for name, value in attributes.items() if isinstance(value, torch.Tensor)}
            for name in tensors - values.keys():
                del attributes[name]
            attributes |= {
                name: value for name, value in values.items() if name in tensors or _is_restored(name, value)
            }


def _is_restored(name: str, value: Any) -> bool:
    return name in ("training", "generation_config") or isinstance(value, torch.Tensor)


def _is_config(value: Any) -> bool:
    return isinstance(value, PretrainedConfig)


@contextlib.contextmanager
def _random_states() -> Iterator[None]:
    """Put the random states of Python, NumPy and torch back at the end."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def training_leaks(dataset: Any, evaluated: Sequence[ImageFile]) -> LeakReport | None:
    """Search evaluated images among the images of a training set.

    Images are searched wherever the rows have them: Pillow images, datasets' `{"bytes": ..., "path": ...}`, and paths
    in fields whose name contains "image".

    Args:
        dataset: the training set; rows by number.
        evaluated: the images that are evaluated.

    Returns:
        The leaks, or None if the images of the training set cannot be read: it has no rows by number, or rows without
        images.
    """
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return None
    leaks: dict[int, Leak] = {}
    count = unread = 0
    with _random_states():
        images = chain.from_iterable(_images(row) for row in _rows(dataset))
        while part := list(islice(images, _IMAGES_AT_ONCE)):
            with tempfile.TemporaryDirectory() as folder:
                files = [
                    ImageFile(f"training image {count + n}", _file(image, folder, n)) for n, image in enumerate(part)
                ]
                report = find_leaks(files, evaluated, store=None)
            unread += report.unread
            count += len(part)
            leaks |= {leak.evaluated: leak for leak in report.leaks if leak.evaluated not in leaks}
    if not count:
        return None
    return LeakReport((), evaluated, tuple(leaks[index] for index in sorted(leaks)), unread)


def _rows(dataset: Any) -> Iterator[Any]:
    """The rows of a training set; those of `datasets` with encoded images, without its transforms."""
    encoded = dataset.with_format("arrow") if hasattr(dataset, "with_format") else None
    for start in range(0, len(dataset), _ROWS_AT_ONCE):
        stop = min(start + _ROWS_AT_ONCE, len(dataset))
        yield from [dataset[n] for n in range(start, stop)] if encoded is None else encoded[start:stop].to_pylist()


def _images(value: Any, name: str = "") -> Iterator[Image.Image | bytes | str]:
    """The images in a row or a part of it, also in the messages of a conversation."""
    if isinstance(value, Image.Image):
        yield value
    elif isinstance(value, Mapping):
        content = value.get("bytes")
        if isinstance(content, bytes):
            yield content
        elif isinstance(value.get("path"), str):
            yield value["path"]
        else:
            for key, part in value.items():
                yield from _images(part, str(key))
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _images(part, name)
    elif isinstance(value, (str, os.PathLike)) and "image" in name.lower():
        path = os.fspath(value).removeprefix("file://")
        if len(path) < 4096 and os.path.isfile(path):
            yield path


def _file(image: Image.Image | bytes | str, folder: str, number: int) -> str:
    """The file of a training image; one is written if it has none."""
    if isinstance(image, str):
        return image
    if isinstance(image, Image.Image):
        source = str(getattr(image, "filename", ""))
        if os.path.isfile(source):
            return source
        path = Path(folder, f"{number}.png")
        (image if image.mode in ("L", "RGB") else image.convert("RGB")).save(path, compress_level=1)
        return str(path)
    path = Path(folder, f"{number}.image")
    path.write_bytes(image)
    return str(path)
