"""Importer of Hugging Face data sets: a folder of `save_to_disk`, a folder of data files, or a name on the hub.

No code of a data set is run. Images that come inside are written to a folder; where a row only names a file, it must
be inside the folder of the data set.
Source: https://huggingface.co/docs/datasets
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from captune.common import first_line
from captune.data.importers.table import Columns, Values, caption_rows, record_values, require_columns
from captune.data.issues import Issue
from captune.data.manifest import missing_reason
from captune.data.rows import CaptionRow, Row, group_by_image
from captune.data.splits import SPLIT_NAMES
from captune.data.tar_parquet import MAX_MEMBER, InlineImages
from captune.errors import DataError, MissingExtraError

__all__ = ["HuggingFaceSource"]

_SAVED = ("dataset_dict.json", "state.json")


class HuggingFaceSource:
    """A data set and how much of it is read.

    Args:
        source: a folder, or a name on the hub ("nlphuji/flickr30k").
        columns: which column holds what; where `columns.split` is None, the data set's own splits are taken.
        inline_images: where images are written to.
        configuration: which of a data set's configurations.
        split: read this one of its splits only.

    Raises:
        DataError: there is no such data set, or a column is not there.
        MissingExtraError: the library `datasets` is not installed.
    """

    def __init__(
        self,
        source: str,
        columns: Columns,
        inline_images: InlineImages,
        *,
        configuration: str | None = None,
        split: str | None = None,
    ) -> None:
        self._name = source
        self._columns = columns
        self._inline_images = inline_images
        self._folder = Path(source).resolve() if os.path.isdir(source) else None
        self._parts = _loaded(source, configuration, split)
        self.notes: list[str] = []
        self._done = 0
        counts = [_count(part) for part in self._parts.values()]
        self._total = sum(count for count in counts if count is not None) if None not in counts else 0

    @property
    def share(self) -> float:
        """How much is read, from 0 to 1; 0 where the size of a data set is unknown."""
        return min(1.0, self._done / self._total) if self._total else 0.0

    def rows(self) -> Iterator[Row | Issue]:
        """The images with their captions, split after split.

        Returns:
            an iterator over the images, and over what is wrong with a row.
        """
        return group_by_image(chain.from_iterable(self._captions(*part) for part in self._parts.items()), self._name)

    def _captions(self, split: str, part: Any) -> Iterator[CaptionRow | Issue]:
        location = f"{self._name}, split {split}"
        split_name = SPLIT_NAMES.get(split, split)
        return caption_rows(self._records(part, location), location, self._columns, split_name, self._inline_images)

    def _records(self, part: Any, location: str) -> Iterator[tuple[int, Values] | Issue]:
        """The rows of a split as the importer of tables takes them, images as undecoded bytes."""
        from datasets import Image

        columns = self._columns
        there = part.column_names
        if there is not None:
            require_columns(columns, there, location)
            part = part.select_columns(list(dict.fromkeys(columns.names())))
        if isinstance((part.features or {}).get(columns.image), Image):
            part = part.cast_column(columns.image, Image(decode=False))
        try:
            for number, record in enumerate(part, 1):
                self._done += 1
                if number == 1 and there is None:
                    require_columns(columns, list(record), location)
                try:
                    yield number, record_values(self._with_bytes(record), columns)
                except DataError as error:
                    yield Issue(location, number, "path", str(error))
        except (DataError, MemoryError):
            raise
        except OSError as error:
            raise DataError(f"'{location}' cannot be read: {error}.") from error
        except Exception as error:  # Arrow, JSON and the hub's client each have their exceptions
            raise DataError(f"'{location}' cannot be read: {first_line(error)}.") from error

    def _with_bytes(self, record: dict[str, Any]) -> dict[str, Any]:
        """A row whose image is given by a path, with the bytes of that file."""
        cell = record[self._columns.image]
        path = cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None
        if path is None or (isinstance(cell, dict) and cell.get("bytes") is not None):
            return record
        if self._folder is None:
            raise DataError(f"the image '{path}' is not part of the data set.")
        try:
            file = (self._folder / path).resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
            raise DataError(f"the image {path!r} cannot be found: {first_line(error)}.") from error
        if not file.is_relative_to(self._folder):
            raise DataError(f"the image '{path}' is outside of the data set's folder '{self._folder}'.")
        if missing := missing_reason(file):
            raise DataError(missing)
        if file.stat().st_size > MAX_MEMBER:
            raise DataError(f"the image '{file}' is larger than {MAX_MEMBER >> 20} MB.")
        return {**record, self._columns.image: {"bytes": file.read_bytes(), "path": path}}


def _loaded(source: str, configuration: str | None, split: str | None) -> dict[str, Any]:
    """The splits of a data set, streaming; of one that was saved, mapped into memory."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise MissingExtraError("captune prepare hf", "data") from error
    if os.path.exists(source) and not os.path.isdir(source):
        raise DataError(f"'{source}' is a file; give the folder of a data set, or use captune prepare table.")
    try:
        if any(os.path.isfile(os.path.join(source, name)) for name in _SAVED):
            loaded = datasets.load_from_disk(source)
        else:
            # "." is no name to the library.
            path = os.path.abspath(source) if os.path.isdir(source) else source
            loaded = datasets.load_dataset(path, configuration, streaming=True)
    except Exception as error:  # the library has an exception for everything that can be wrong with a data set
        raise DataError(f"the data set '{source}' cannot be loaded: {first_line(error)}.") from error
    parts = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    if split is None:
        return parts
    if split not in parts:
        raise DataError(f"the data set '{source}' has no split '{split}'; it has {', '.join(parts)}.")
    return {split: parts[split]}


def _count(part: Any) -> int | None:
    """Rows of a split, where that is known."""
    try:
        return len(part)
    except TypeError:
        known = getattr(getattr(part, "info", None), "splits", None) or {}
        return next((known[name].num_examples for name in known if name == str(part.split)), None)
