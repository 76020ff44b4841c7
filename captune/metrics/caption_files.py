"""Read references and predictions from files in common formats; each defect is one sentence with its position.

The format is recognized by content, plain or gzip-compressed; `-` is standard input:

- coco-caption annotations `{"images": [...], "annotations": [{"image_id": 1, "caption": "..."}]}`
- coco-caption results `[{"image_id": 1, "caption": "..."}]`
- Karpathy's JSON `{"images": [{"filename": ..., "split": ..., "sentences": [{"raw": "..."}]}]}`
- the captune manifest and any JSON Lines with an id and a caption or captions
- a plain object `{"1": "..."}` or `{"1": ["...", "..."]}`, and pycocoevalcap's `{"1": [{"caption": "..."}]}`
- CSV and TSV with a header, one caption a row
- lines of text, one caption an image, where predictions and references are both such files

Ids are text: 1 and "1" are the same image, "001" is another. Thinking text is removed from predictions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from captune.common import Thinking, split_thinking
from captune.errors import MetricInputError
from captune.metrics.json_files import line_captions, parse_json, read_text, table_rows

__all__ = [
    "ID_KEYS",
    "PREDICTION_KEYS",
    "REFERENCE_KEYS",
    "PredictionFile",
    "ReferenceFile",
    "read_predictions",
    "read_reference_files",
    "read_references",
]

ID_KEYS = ("image_id", "id", "image", "file_name", "filename")
REFERENCE_KEYS = ("references", "refs", "reference", "captions", "caption", "text")
PREDICTION_KEYS = ("prediction", "output", "caption", "text", "captions")
"""Keys of captions, the most specific first: a data set with an added column of predictions has both."""
SWAPPED = "perhaps --references and --predictions are swapped"


@dataclass(frozen=True)
class ReferenceFile:
    """References of each image, as read from a file.

    Args:
        captions: image id to its references; empty for an image that the file lists without a caption.
        images: image id to the path of its picture, where the file names one relative to itself.
        file_names: image id to the name of its picture in an image folder (COCO's `file_name`, Karpathy's `filename`).
        splits: how many images of each split the file holds, before `--split`.
        source: name of the file.
        by_line: the file has no ids, and an image is named by its line number.
    """

    captions: dict[str, list[str]]
    images: dict[str, Path] = field(default_factory=dict)
    file_names: dict[str, str] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    source: str = ""
    by_line: bool = False


@dataclass(frozen=True)
class PredictionFile:
    """One prediction for each image, as read from a file.

    Args:
        captions: image id to its caption.
        finished: image id to whether generation ended at the stop symbol, if the file has "stopped" or
            "finish_reason".
        thinking: image id to whether its thinking text was removed or never ended, of captions that had some; found in
            the text, or recorded in the file as "thinking".
        repeated: ids that occur more than once, with the same caption each time.
        source: name of the file.
        by_line: the file has no ids, and an image is named by its line number.
    """

    captions: dict[str, str]
    finished: dict[str, bool] = field(default_factory=dict)
    thinking: dict[str, Thinking] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    source: str = ""
    by_line: bool = False


@dataclass(frozen=True)
class _Row:
    """One entry of a file: its position ("line 7", "entry 12"), its id and its fields."""

    location: str
    image: str
    fields: dict[str, Any]
    captions: object
    split: str | None = None


def read_references(path: str | PathLike[str], split: str | None = None) -> ReferenceFile:
    """Read the references of a set of images.

    Args:
        path: the file, or `-` for standard input.
        split: keep the images of this split only ("test"); the file must have splits.

    Raises:
        MetricInputError: the file cannot be used; the message names file and position.
    """
    name = str(path)
    captions: dict[str, list[str]] = {}
    images: dict[str, Path] = {}
    file_names: dict[str, str] = {}
    splits: dict[str, int] = {}
    grouped: set[str] = set()
    entries = _Entries(name, REFERENCE_KEYS)
    for row in entries.rows():
        if row.split is not None and row.image not in captions:
            splits[row.split] = splits.get(row.split, 0) + 1
        if split is not None and row.split is not None and row.split != split:
            continue
        if isinstance(row.captions, str):
            # A blank line of a file without ids is an image without a reference in this file.
            if not entries.by_line or row.captions.strip():
                captions.setdefault(row.image, []).append(row.captions)
            else:
                captions.setdefault(row.image, [])
        else:
            if row.image in grouped:
                raise MetricInputError(f"{name}, {row.location}: the file has image '{row.image}' twice.")
            grouped.add(row.image)
            captions.setdefault(row.image, []).extend(_texts(row.captions, name, row))
        if isinstance(picture := row.fields.get("image"), str):
            images[row.image] = Path(name).parent / picture
        if isinstance(file_name := row.fields.get("file_name"), str) and file_name:
            file_names[row.image] = file_name
    _check_split(name, split, splits)
    if not any(captions.values()):
        raise MetricInputError(f"{name} holds no references; expected captions for at least one image.")
    return ReferenceFile(captions, images, file_names, splits, name, entries.by_line)


def read_predictions(path: str | PathLike[str]) -> PredictionFile:
    """Read one caption for each image.

    Args:
        path: the file, or `-` for standard input.

    Raises:
        MetricInputError: the file cannot be used; the message names file and position.
    """
    name = str(path)
    captions: dict[str, str] = {}
    finished: dict[str, bool] = {}
    thinking: dict[str, Thinking] = {}
    repeated: list[str] = []
    entries = _Entries(name, PREDICTION_KEYS)
    for row in entries.rows():
        texts = [row.captions] if isinstance(row.captions, str) else _texts(row.captions, name, row)
        if len(texts) != 1:
            raise MetricInputError(
                f"{name}, {row.location}: image '{row.image}' has {len(texts)} captions where one prediction is "
                f"expected; {SWAPPED}."
            )
        written = split_thinking(texts[0])
        if row.image not in captions:
            captions[row.image] = written.text
        elif captions[row.image] == written.text:
            repeated.append(row.image)
        else:
            raise MetricInputError(
                f"{name}, {row.location}: image '{row.image}' has a second, different caption; keep one prediction an "
                f"image, or {SWAPPED}."
            )
        kind = next((kind for kind in get_args(Thinking) if kind == row.fields.get("thinking")), written.thinking)
        if kind != "none":
            thinking[row.image] = kind
        if isinstance(stopped := row.fields.get("stopped"), bool):
            finished[row.image] = stopped
        elif isinstance(reason := row.fields.get("finish_reason"), str):
            finished[row.image] = reason != "length"
    if not captions:
        raise MetricInputError(f"{name} holds no predictions; expected one caption for each image.")
    return PredictionFile(captions, finished, thinking, tuple(repeated), name, entries.by_line)


def read_reference_files(paths: Sequence[str | PathLike[str]], split: str | None = None) -> ReferenceFile:
    """Read the references of a set of images from one file, or from several files of lines.

    Args:
        paths: one file of any kind, or line-aligned files, each with one reference of every image.
        split: see `read_references`.

    Raises:
        MetricInputError: several files have ids, or they do not have the same number of lines.
    """
    files: list[ReferenceFile] = []
    for path in paths:
        files.append(read_references(path, split))
        if len(paths) > 1 and not files[-1].by_line:
            named = ", ".join(f"'{path}'" for path in paths)
            raise MetricInputError(
                f"--references was given {len(paths)} times ({named}); give one file, or files of lines without ids."
            )
    if len(files) == 1:
        return files[0]
    if len({len(file.captions) for file in files}) > 1:
        counts = ", ".join(f"{file.source} has {len(file.captions):,}" for file in files)
        raise MetricInputError(f"Files of lines have one line an image, and these differ: {counts}.")
    joined = {image: [text for file in files for text in file.captions[image]] for image in files[0].captions}
    return ReferenceFile(joined, source=" and ".join(file.source for file in files), by_line=True)


def _check_split(name: str, split: str | None, splits: dict[str, int]) -> None:
    if split is None or splits.get(split):
        return
    if splits:
        known = ", ".join(f"{key} ({count})" for key, count in splits.items())
        raise MetricInputError(f"{name} has no image in the split '{split}'; its splits are {known}.")
    raise MetricInputError(f"{name} has no splits, so '--split {split}' selects nothing; leave it out.")


class _Entries:
    """The entries of a file of any of the formats.

    Args:
        name: of the file.
        keys: names that captions may have.
    """

    def __init__(self, name: str, keys: tuple[str, ...]) -> None:
        self._name, self._keys = name, keys
        self._used: set[str] = set()
        self._unused: set[str] = set()
        self._text = read_text(name)
        self._table = table_rows(self._text, name, ID_KEYS, keys)
        self._lines = line_captions(self._text, name) if self._table is None and self._text.strip() else None
        self.by_line = self._lines is not None

    def rows(self) -> Iterator[_Row]:
        """Each entry with its position."""
        name, keys = self._name, self._keys
        if self._table is not None:
            for location, cells in self._table:
                yield self._row(location, cells)
            return
        if self._lines is not None:
            for number, line in enumerate(self._lines, 1):
                yield _Row(f"line {number}", str(number), {}, line)
            return
        document = parse_json(self._text, name)
        if document.lines:
            for number, entry in document.lines:
                yield self._row(f"line {number}", entry)
        elif isinstance(document.value, list):
            for number, entry in enumerate(document.value, 1):
                yield self._row(f"entry {number}", entry)
        elif isinstance(document.value, dict):
            yield from _rows_of_object(name, document.value, keys)
        else:
            raise MetricInputError(f"{name} holds {_kind(document.value)} alone; expected captions of images.")

    def _row(self, location: str, entry: object) -> _Row:
        """An entry, unless its only caption is under a key that is not the caption of other entries."""
        row = _row(self._name, location, entry, self._keys)
        if self._keys is PREDICTION_KEYS:
            present = [key for key in self._keys if key in row.fields]
            self._used.add(present[0])
            self._unused.update(present[1:])
            if mixed := sorted(self._used & self._unused):
                raise MetricInputError(
                    f'{self._name}, {location}: some entries have "{mixed[0]}" alone, and others have it next to '
                    "another caption; give every prediction under the same key."
                )
        return row


def _rows_of_object(name: str, value: dict[str, Any], keys: tuple[str, ...]) -> Iterator[_Row]:
    if isinstance(annotations := value.get("annotations"), list):
        if keys is PREDICTION_KEYS:
            raise MetricInputError(
                f"{name} is an annotation file, which holds references; {SWAPPED}, or give a list of "
                '{"image_id": ..., "caption": ...}.'
            )
        for number, entry in enumerate(_list(value.get("images", []), name, "images"), 1):
            if isinstance(entry, dict) and "id" in entry:
                fields = {"file_name": entry.get("file_name")}
                yield _Row(f"image {number}", _image_id(entry["id"], name, f"image {number}"), fields, [])
        for number, entry in enumerate(annotations, 1):
            row = _row(name, f"annotation {number}", entry, ("caption",))
            yield _Row(row.location, row.image, {}, _text(row.captions, name, row))
    elif isinstance(pictures := value.get("images"), list):
        for number, entry in enumerate(pictures, 1):
            yield _karpathy_row(name, f"image {number}", entry)
    elif any(key in value for key in ID_KEYS) and any(key in value for key in keys):
        yield _row(name, "line 1", value, keys)
    else:
        for key, captions in value.items():
            yield _Row(f"key '{key}'", key, {}, captions)


def _karpathy_row(name: str, location: str, entry: object) -> _Row:
    if not isinstance(entry, dict) or not isinstance(sentences := entry.get("sentences"), list):
        raise MetricInputError(
            f'{name}, {location}: has no "sentences"; a file with "images" needs "annotations" or sentences.'
        )
    picture = entry.get("filename")
    image = entry.get("cocoid", PurePosixPath(picture).stem if isinstance(picture, str) else entry.get("imgid"))
    captions = [sentence.get("raw") if isinstance(sentence, dict) else None for sentence in sentences]
    split = entry.get("split")
    folder = entry.get("filepath")
    fields = {"file_name": f"{folder}/{picture}" if folder and isinstance(folder, str) else picture}
    return _Row(location, _image_id(image, name, location), fields, captions, split if isinstance(split, str) else None)


def _row(name: str, location: str, entry: object, keys: tuple[str, ...]) -> _Row:
    if not isinstance(entry, dict):
        raise MetricInputError(
            f"{name}, {location}: holds {_kind(entry)} where an object with an id and a caption is expected."
        )
    id_key = next((key for key in ID_KEYS if key in entry), None)
    if id_key is None:
        raise MetricInputError(f'{name}, {location}: has no image id; expected "image_id" or "id"{_keys_hint(entry)}.')
    caption_key = next((key for key in keys if key in entry), None)
    if caption_key is None:
        expected = "captions" if keys is REFERENCE_KEYS else "caption"
        raise MetricInputError(f'{name}, {location}: has no caption; expected "{expected}"{_keys_hint(entry)}.')
    split = entry.get("split")
    image = _image_id(entry[id_key], name, location)
    return _Row(location, image, entry, entry[caption_key], split if isinstance(split, str) else None)


def _image_id(value: object, name: str, location: str) -> str:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise MetricInputError(f"{name}, {location}: the image id is {_kind(value)}; expected text or an integer.")


def _texts(value: object, name: str, row: _Row) -> list[str]:
    if not isinstance(value, list):
        return [_text(value, name, row)]
    return [_text(entry, name, row) for entry in value]


def _text(value: object, name: str, row: _Row) -> str:
    if isinstance(value, dict) and isinstance(value.get("caption"), str):
        value = value["caption"]  # pycocoevalcap's gts and res
    if isinstance(value, str):
        return value
    raise MetricInputError(
        f"{name}, {row.location}: the caption of image '{row.image}' is {_kind(value)}; expected text."
    )


def _list(value: object, name: str, key: str) -> list[Any]:
    if isinstance(value, list):
        return value
    raise MetricInputError(f'{name}: "{key}" is {_kind(value)}; expected a list.')


def _keys_hint(entry: dict[str, Any]) -> str:
    keys = ", ".join(f'"{key}"' for key in list(entry)[:6])
    return f", found {keys}" if keys else ", found nothing"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else kinds.get(type(value), type(value).__name__)
