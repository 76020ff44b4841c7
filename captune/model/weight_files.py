"""Weights as they lie on the disk, looked at without loading a model."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import cached_file

from captune.errors import WeightsError

__all__ = ["TOWERS", "StoredTensor", "stored_tensors", "weight_files"]

TOWERS = ("vision.", "qformer.", "query_tokens")
"""How the names of the towers' tensors begin in a captune model."""

_DTYPES = {
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
    """A tensor in a file, mapped into memory and read where it is looked at.

    Attributes:
        name: as in the file.
        tensor: a view of the file; what is written to it does not reach the disk.
    """

    name: str
    tensor: Tensor


def weight_files(model: str | Path) -> list[Path]:
    """The safetensors files of a model.

    Args:
        model: a folder, or a hub id whose files are fetched where they are not there yet.

    Raises:
        WeightsError: it has none.
    """

    def found(name: str) -> Path | None:
        path = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
        return None if path is None else Path(path)

    index = found("model.safetensors.index.json")
    names: Sequence[str] = ["model.safetensors"]
    if index is not None:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    files = [found(name) for name in names]
    if not all(files):
        raise WeightsError(f"{model} has no {names[files.index(None)]}; expected weights in safetensors files.")
    return [file for file in files if file is not None]


def stored_tensors(file: Path, prefixes: tuple[str, ...]) -> Iterator[StoredTensor]:
    """Tensors of a safetensors file whose names begin with one of some prefixes, in the order of their names.

    Raises:
        WeightsError: the file is cut off or of another kind.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        for name in sorted(header):
            if name == "__metadata__" or not name.startswith(prefixes):
                continue
            entry = header[name]
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            dtype = _DTYPES[entry["dtype"]]
            flat = torch.frombuffer(mapped, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)
            yield StoredTensor(name, flat.view(entry["shape"]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{file} is no whole safetensors file: {' '.join(str(error).split())[:200]}.") from error
