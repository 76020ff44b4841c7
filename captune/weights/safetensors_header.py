"""Headers of safetensors files, and the comparison of two models' files. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from captune.common import error_text
from captune.errors import WeightsError
from captune.parsing import load_json
from captune.weights.folder_checks import refuse_pointer

__all__ = ["SafetensorsHeader", "parse_header", "read_header", "weights_differ"]

_SAMPLE = 256
"""Bytes that are compared at the beginning, in the middle and at the end of a tensor."""


class SafetensorsHeader(NamedTuple):
    """The header of a safetensors file.

    Attributes:
        tensors: name -> `dtype`, `shape` and `data_offsets`.
        metadata: its `__metadata__`.
        start: first byte of the tensors.
        end: byte after the tensors.
    """

    tensors: dict[str, Any]
    metadata: dict[str, str]
    start: int
    end: int


def parse_header(stream: IO[bytes], size: int) -> SafetensorsHeader:
    """Parse the header of safetensors content; faster than `safe_open` of the library, with better errors.

    Args:
        stream: at the beginning of the content.
        size: of the content in bytes.

    Raises:
        ValueError: the content is truncated or of another type.
    """
    beginning = stream.read(8)
    length = int.from_bytes(beginning, "little")
    if not 2 <= length <= size - 8:
        is_pickle = beginning.startswith((b"PK", b"\x80"))
        raise ValueError("it is a file of torch.save" if is_pickle else f"it has {size:,} bytes")
    try:
        tensors: dict[str, Any] = load_json(stream.read(length))
        metadata = tensors.pop("__metadata__", {})
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    return SafetensorsHeader(tensors, metadata, 8 + length, end)


def read_header(file: Path) -> SafetensorsHeader:
    """Read the header of a safetensors file.

    Raises:
        WeightsError: the file is a git-lfs pointer, truncated, or of another type.
    """
    refuse_pointer(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = parse_header(stream, size)
    except (OSError, ValueError) as error:
        reason = error_text(error)
        raise WeightsError(
            f"{file} is no complete safetensors file ({reason}); copy it again from its source."
        ) from error
    if size < header.end:
        raise WeightsError(
            f"{file} is cut off: its header promises {header.end:,} bytes, and it has {size:,}; copy it again from its "
            "source."
        )
    return header


def weights_differ(one: Path, other: Path, without: tuple[str, ...] = ()) -> bool:
    """Whether the weights of two models are known to differ, by the shapes and a sample of the bytes of their tensors.

    Tensors of different names or number formats are not compared, since both may store the same model.

    Args:
        one: folder of a model.
        other: folder of another one.
        without: beginnings of the names of tensors that may differ.
    """
    try:
        there = {name: (file, header) for file, header in _headers(other) for name in header.tensors}
        for file, header in _headers(one):
            for name, entry in header.tensors.items():
                if name not in there or name.startswith(without):
                    continue
                file_there, header_there = there[name]
                entry_there = header_there.tensors[name]
                if entry["shape"] != entry_there["shape"]:
                    return True
                samples = [_sample(file, header, entry), _sample(file_there, header_there, entry_there)]
                if entry["dtype"] == entry_there["dtype"] and samples[0] != samples[1]:
                    return True
    except (OSError, WeightsError, KeyError, TypeError):
        return False  # loading reports what is wrong
    return False


def _headers(folder: Path) -> Iterator[tuple[Path, SafetensorsHeader]]:
    for file in sorted(folder.glob("model*.safetensors")):
        yield file, read_header(file)


def _sample(file: Path, header: SafetensorsHeader, entry: dict[str, Any]) -> bytes:
    begin, end = (header.start + offset for offset in entry["data_offsets"])
    content = b""
    with file.open("rb") as stream:
        for start in (begin, (begin + end) // 2, max(begin, end - _SAMPLE)):
            stream.seek(start)
            content += stream.read(min(_SAMPLE, end - start))
    return content
