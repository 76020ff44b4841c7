"""Judgements of captions by people, and what the readers of their files share: rows, faults, references by image.

n items: an item is one caption of one image with the references that it is scored against. People either gave each
item a score, or preferred one item of a pair to the other.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captune.common import shorten
from captune.data import SourceFile, checked_lines, delimited_rows
from captune.errors import DataError, MetricInputError, MissingExtraError
from captune.metrics import read_references
from captune.parsing import load_json

__all__ = [
    "Faults",
    "Judgements",
    "ReferenceLookup",
    "image_key",
    "image_list",
    "number",
    "read_json",
    "table_rows",
    "text_list",
    "token_captions",
]

MOST_FAULTS = 1 / 3
"""Share of damaged rows beyond which a file is taken for one of another layout."""

_SHOWN = 80


@dataclass(frozen=True, eq=False)
class Judgements:
    """Judged captions.

    Attributes:
        title: name of the data, as in print.
        captions: of the n items.
        images: of the n items.
        references: of the n items, at least one each.
        scores: (n,) float64, higher is better; None where people compared captions.
        pairs: (P, 2) int64, the preferred item and the other one; None where people gave scores.
        categories: of the pairs; empty without categories.
        notes: sentences about what was left out or repaired.
        file_names: image -> name of its file, where it is not named after its id.
    """

    title: str
    captions: Sequence[str]
    images: Sequence[str]
    references: Sequence[Sequence[str]]
    scores: NDArray[np.float64] | None = None
    pairs: NDArray[np.int64] | None = None
    categories: Sequence[str] = ()
    notes: Sequence[str] = ()
    file_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of judgements."""
        return len(self.captions) if self.pairs is None else len(self.pairs)


class Faults:
    """Counts the rows of a file that are left out, by reason.

    Args:
        source: name of the file.
        expected: the layout of a row, for the message about a file of another layout.
    """

    def __init__(self, source: str, expected: str) -> None:
        self._source, self._expected = source, expected
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self._damaged = 0
        self.read = 0

    def add(self, reason: str, location: str, *, damaged: bool = True) -> None:
        """Count a row that is left out.

        Args:
            reason: in the words "is ..." or "has ...", equal for rows with the same fault.
            location: of the row, such as "line 7".
            damaged: whether the row breaks the layout.
        """
        self._reasons[reason] += 1
        self._first.setdefault(reason, location)
        self._damaged += damaged

    def finish(self) -> list[str]:
        """Sentences about the rows that were left out.

        Raises:
            MetricInputError: nothing was read, or so much is damaged that the file has another layout.
        """
        described = [
            f"{count:,} {'row' if count == 1 else 'rows'} left out: {reason} (the first at {self._first[reason]})"
            for reason, count in self._reasons.most_common()
        ]
        if not self.read or self._damaged > MOST_FAULTS * (self.read + self._damaged):
            why = f"; {described[0]}" if described else "; it has no rows"
            raise MetricInputError(f"{self._source} does not hold what is expected: {self._expected}{why}.")
        return [f"{self._source}: {sentence}." for sentence in described]


def image_key(name: str) -> str:
    """What is equal for different names of an image: no folder, ending, COCO prefix, leading zeros or case."""
    stem = PurePosixPath(name.replace("\\", "/")).name.casefold()
    stem = re.sub(r"(\.(jpe?g|png|webp|gif|bmp)(\.\d+)?|\.0+)$", "", stem)
    if stem.startswith("coco_"):
        stem = stem.rsplit("_", 1)[1]
    return stem.lstrip("0") or "0"


class ReferenceLookup:
    """References by image, whatever form its name has.

    Args:
        captions: image -> references.
        source: name of their file.
        file_names: image -> name of its file, which also finds the references.
    """

    def __init__(
        self, captions: Mapping[str, Sequence[str]], source: str, file_names: Mapping[str, str] | None = None
    ) -> None:
        self.source = source
        self._captions: dict[str, Sequence[str]] = {}
        for image, texts in captions.items():
            for name in (image, (file_names or {}).get(image, image)):
                self._captions.setdefault(image_key(name), texts)

    @classmethod
    def read(cls, path: Path | None, what: str) -> ReferenceLookup:
        """Read any file of references that captune reads.

        Args:
            path: the file; None if the user named none.
            what: the data that needs it, for the message.

        Raises:
            MetricInputError: there is no file, or it cannot be read.
        """
        if path is None:
            raise MetricInputError(f"{what} needs the references of its images; give --references FILE.")
        by_image: dict[str, list[str]] = {}
        for image, _, caption in token_captions(path):
            by_image.setdefault(image, []).append(caption)
        if by_image:
            return cls(by_image, str(path))
        read = read_references(path)
        return cls(read.captions, read.source, read.file_names)

    def __getitem__(self, image: str) -> list[str]:
        """References of an image; empty if there are none."""
        return list(self._captions.get(image_key(image), ()))


_TOKEN = re.compile(r"([^\s#]+)#(?:\w+#)?(\d+)\s+(\S.*)")


def token_captions(path: Path) -> Iterator[tuple[str, str, str]]:
    """Image, number and caption of lines `image#n<TAB>caption`; none if the first line has another layout.

    Raises:
        MetricInputError: the file cannot be read.
    """
    try:
        for index, line in enumerate(checked_lines(SourceFile(path))):
            # In some copies a space is where the tab should be.
            match = _TOKEN.fullmatch(line.strip()) if isinstance(line, str) else None
            if match is None and index == 0:
                return
            if match is not None:
                yield match[1], match[2], match[3]
    except DataError as error:
        raise MetricInputError(str(error)) from error


def read_json(path: Path) -> Any:
    """The value of a JSON file, plain or gzip; a list of the lines of JSON Lines.

    Raises:
        MetricInputError: it is no JSON.
    """
    try:
        reading = SourceFile(path)
        try:
            text = reading.stream.read().decode("utf-8")
        finally:
            reading.close()
    except (DataError, OSError, EOFError, UnicodeDecodeError) as error:
        raise MetricInputError(f"{path} cannot be read: {error}.") from error
    try:
        return load_json(text)
    except ValueError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1:
            try:
                return [load_json(line) for line in lines]
            except ValueError:
                pass
        raise MetricInputError(f"{path} is not JSON ({error}).") from error


def table_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    """Rows of a table with named columns: CSV (by comma, tab, semicolon or bar), JSON, JSON Lines or Parquet.

    Args:
        path: the file; CSV and JSON may be gzip.

    Yields:
        position of the row, as in "line 7", and its cells by column, or what is wrong with it.

    Raises:
        MetricInputError: the file cannot be read, or it has no header.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ending == ".parquet":
        yield from _parquet_rows(path)
    elif ending in (".json", ".jsonl", ".ndjson"):
        value = read_json(path)
        if isinstance(value, dict):
            lists = [rows for rows in value.values() if isinstance(rows, list)]
            value = lists[0] if len(lists) == 1 else value
        if not isinstance(value, list):
            raise MetricInputError(f"{path} holds one object; expected a list of rows, or JSON Lines.")
        for index, row in enumerate(value, 1):
            yield f"row {index}", row if isinstance(row, dict) else DataError("the row is no object")
    else:
        yield from _delimited(path)


def _delimited(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    try:
        first = next(checked_lines(SourceFile(path)), "")
        header = first if isinstance(first, str) else ""
        delimiter = max(",\t;|", key=lambda mark: len(next(csv.reader([header], delimiter=mark), [])))
        rows = delimited_rows(checked_lines(SourceFile(path)), delimiter=delimiter)
        _, columns = next(rows, (1, []))
        if isinstance(columns, DataError) or len(columns) < 2:
            raise MetricInputError(f"{path}, line 1 is no header of named columns: '{shorten(header, _SHOWN, '...')}'.")
        columns = [column.strip() for column in columns]
        for line, row in rows:
            if isinstance(row, DataError):
                yield f"line {line}", row
            elif len(row) != len(columns):
                yield f"line {line}", DataError(f"the number of columns is not the {len(columns)} of the header")
            else:
                yield f"line {line}", dict(zip(columns, row, strict=True))
    except DataError as error:
        raise MetricInputError(f"{path}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | DataError]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(f"reading {path.name}", "data") from error
    try:
        file = pq.ParquetFile(path)
        # Images inside of the file are not needed: metrics read them from a folder.
        columns = [column.name for column in file.schema_arrow if not pa.types.is_struct(column.type)]
        index = 0
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                index += 1
                yield f"row {index}", row
    except (OSError, pa.ArrowException) as error:
        raise MetricInputError(f"{path} is no Parquet file that can be read ({error}).") from error


def text_list(value: object) -> list[str]:
    """Texts of a cell: a list, a list in Python's, numpy's or JSON's writing, or one text.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, str):
        cell = value.strip()
        if not (cell.startswith("[") and cell.endswith("]")):
            return [value] if cell else []
        # numpy writes no commas, and Python would join the texts.
        spaced = re.search(r"""['"]\s+['"]""", cell)
        if spaced is None:
            try:
                value = ast.literal_eval(cell)
            except (SyntaxError, ValueError, MemoryError, RecursionError):
                value = json.loads(cell)
        else:
            try:
                tokens = list(tokenize.generate_tokens(io.StringIO(cell).readline))
            except (tokenize.TokenError, SyntaxError, IndentationError) as error:
                raise ValueError(str(error)) from error
            value = [ast.literal_eval(token.string) for token in tokens if token.type == tokenize.STRING]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        texts = list(value)
        if all(isinstance(text, str) for text in texts):
            return texts
    raise ValueError("no list of texts")


def number(value: object) -> float:
    """A finite number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("no number")
    parsed = float(value)
    if not math.isfinite(parsed):
        raise ValueError("no finite number")
    return parsed


def image_list(images: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The different images in order of their first item, and (n,) the index of each item's image."""
    index: dict[str, int] = {}
    numbers = np.array([index.setdefault(image, len(index)) for image in images], np.int64)
    return list(index), numbers
