"""Reading of weight files without loading a model; broken files are errors."""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captune.common import error_text
from captune.errors import WeightsError
from captune.parsing import load_json
from captune.transformers_compat import fetch_file
from captune.weights.folder_checks import SINGLE_FILES, refuse_pointer
from captune.weights.safetensors_header import read_header

__all__ = [
    "SAFETENSORS_DTYPES",
    "TOWER_PREFIXES",
    "StoredName",
    "StoredTensor",
    "check_weights",
    "stored_names",
    "stored_tensors",
    "torch_state",
    "weight_files",
]

TOWER_PREFIXES = ("vision.", "qformer.", "query_tokens")
"""Prefixes of the towers' tensor names in a captune model."""

_INTEGER_DTYPES = ("I", "U", "BOOL")
"""Prefixes of integer dtypes in safetensors files."""
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class StoredTensor(NamedTuple):
    """A tensor in a file, memory-mapped.

    Attributes:
        name: as in the file.
        tensor: a copy-on-write view of the file.
    """

    name: str
    tensor: Tensor


class StoredName(NamedTuple):
    """The name of a tensor in a file.

    Attributes:
        name: as in the file.
        file: the file.
        floating: whether its dtype is floating-point, not integer.
    """

    name: str
    file: Path
    floating: bool


def stored_names(model: str | Path) -> Iterator[StoredName]:
    """Names of the tensors in the files of a model's folder; none for a hub id."""
    for file in _local_files(Path(model)):
        if file.suffix == ".safetensors":
            header = read_header(file).tensors
            kinds = {name: not str(entry["dtype"]).startswith(_INTEGER_DTYPES) for name, entry in header.items()}
        else:
            state = torch_state(file, "meta")
            kinds = {name: tensor.is_floating_point() for name, tensor in state.items()}
        for name in sorted(kinds):
            yield StoredName(name, file, kinds[name])


def _local_files(folder: Path) -> list[Path]:
    """The weight files of a folder that transformers reads."""
    return _find_files(str(folder), lambda name: path if (path := folder / name).is_file() else None)


def _find_files(model: str, find: Callable[[str], Path | None]) -> list[Path]:
    """The weight files of a model that transformers reads; none if there are none."""
    for single in SINGLE_FILES:
        if (file := find(single)) is not None:
            return [file]
        if (index := find(f"{single}.index.json")) is not None:
            files = {name: find(name) for name in _listed(index)}
            if missing := [name for name, file in files.items() if file is None]:
                raise WeightsError(f"{model} has no {missing[0]}, which {index.name} lists; copy it there.")
            return [file for file in files.values() if file is not None]
    return []


def check_weights(model: str | Path) -> None:
    """Refuse a folder with weight files that are git-lfs pointers, truncated, missing or of another type.

    Reads only the headers of the files that transformers loads.

    Args:
        model: a folder; a hub id is not checked.

    Raises:
        WeightsError: with the name of the file and the reason.
    """
    folder = Path(model)
    if not folder.is_dir():
        return
    refuse_pointer(folder / f"{SINGLE_FILES[0]}.index.json")
    for file in _local_files(folder):
        _check_file(file)


def _check_file(file: Path) -> None:
    if file.suffix == ".safetensors":
        read_header(file)
        return
    refuse_pointer(file)
    if file.stat().st_size == 0:
        raise WeightsError(f"{file} is empty; copy it again from its source.")
    with file.open("rb") as stream:
        # An HTML or JSON error response, saved under the file's name.
        if stream.read(64).lstrip().startswith((b"<", b"{")):
            raise WeightsError(f"{file} is a text and no file of torch.save; copy it again from its source.")


def _listed(index: Path) -> list[str]:
    """File names in an index."""
    refuse_pointer(index)
    try:
        names = sorted(set(load_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError("weight_map names no files")
        return names
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightsError(f"{index} lists no weight files ({error!r}); copy it again from its source.") from error


def weight_files(model: str | Path) -> list[Path]:
    """The weight files of a model that transformers reads.

    Args:
        model: a folder, or a hub id, whose files are downloaded if they are not cached.

    Raises:
        WeightsError: it has none.
    """
    if files := _find_files(str(model), lambda name: fetch_file(model, name)):
        return files
    raise WeightsError(f"{model} has no weights; expected {' or '.join(SINGLE_FILES)}.")


def stored_tensors(file: Path, prefixes: tuple[str, ...]) -> Iterator[StoredTensor]:
    """Tensors of a file whose names have one of the prefixes, sorted by name.

    Raises:
        WeightsError: the file is truncated or of another type.
    """
    if file.suffix != ".safetensors":
        state = torch_state(file, "cpu")
        for name in sorted(state):
            if name.startswith(prefixes):
                yield StoredTensor(name, state[name].detach())
        return
    header, _, start, _ = read_header(file)
    try:
        with file.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        for name in sorted(header):
            if not name.startswith(prefixes):
                continue
            entry = header[name]
            begin, end = (start + offset for offset in entry["data_offsets"])
            dtype = SAFETENSORS_DTYPES[entry["dtype"]]
            flat = torch.frombuffer(mapped, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)
            yield StoredTensor(name, flat.view(entry["shape"]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{file} is no complete safetensors file: {error_text(error)}.") from error


def torch_state(file: Path, device: str) -> dict[str, Any]:
    """The tensors in a file of torch.save, memory-mapped if the format allows; on `meta` no tensor is read.

    Raises:
        WeightsError: it cannot be read, or contains other objects than tensors.
    """
    _check_file(file)
    try:
        state = torch.load(file, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # on broken files torch raises nearly anything
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise WeightsError(
                f"{file} holds more than tensors, and opening it could run code; it was not opened. Save the model "
                "again as safetensors."
            ) from error
        reason = error_text(error)
        raise WeightsError(f"{file} cannot be read: {reason}; copy it again from its source.") from error
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise WeightsError(f"{file} holds more than tensors under their names; save the model again as safetensors.")
    return state
