"""Guess how a table of unknown layout is to be read: format, delimiter, encoding, and which columns hold what.

A guess looks at the names of the columns (in some languages) and at the cells of the first rows: a column of images
holds names of image files, a column of captions holds text of several words. A guess is shown to the user before it is
used; nothing here writes or imports.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

from captune.data.image_formats import HEIF_SUFFIXES, is_image_name
from captune.data.importers.delimited_layout import ENCODINGS, delimited_sample, guess_encoding
from captune.data.importers.json_table import is_conversation, json_layout
from captune.data.importers.table import Columns
from captune.data.issues import Issue
from captune.data.json_stream import json_parts, parse_json, parse_list
from captune.data.splits import SPLIT_NAMES
from captune.data.tar_parquet import parquet_columns, parquet_rows
from captune.data.text_files import SourceFile, checked_lines
from captune.errors import DataError

__all__ = ["TABLE_SUFFIXES", "TableGuess", "TableKind", "guess_table"]

TABLE_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".json", ".jsonl", ".jsonlines", ".ndjson", ".parquet", ".pq"})
"""Endings of files that can be tables; `.gz` may follow."""

TableKind: TypeAlias = Literal["table", "conversations", "mapping", "coco", "karpathy", "manifest"]
"""Recognized layouts: columns, conversations, captions by image in one object, COCO, Karpathy, a manifest."""

_ROWS = 200  # rows that are looked at
_SHARE = 0.6  # of the cells of a column that must fit
_MANIFEST = {"id", "image", "captions", "split"}

_IMAGE_NAME = re.compile(
    "(image|img|picture|photo|foto|bild|fichier|imagen|immagine|archivo)s?(file|datei)?(name|path|file)?"
    "|files?(name|path)?|path|bilder|datei(name)?|nomdefichier|图片|图像|文件名?|画像|ファイル名"
)
_CAPTION_NAME = re.compile(
    "(caption|text|description|sentence|comment|title|label|prompt)s?|desc|raw|alt(text)?|(bild)?(unterschrift|beschreibung)"
    "|beschriftung|l[eé]gende|leyenda|descripci[oó]n|didascalia|descrizione|描述|标题|说明|字幕|キャプション|説明"
)
_SPLIT_NAME = re.compile("(data)?splits?|(sub)?set|partition|fold|usage")
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


@dataclass(frozen=True, slots=True)
class TableGuess:
    """How a file seems to be laid out.

    Attributes:
        kind: the layout; columns matter for "table" only.
        names: the columns of a table, in their order.
        rows: the first rows, a cell a column.
        columns: which column holds what; None where no image or no caption column could be recognized.
        is_certain: whether names and cells agree and no other column fits as well.
        notes: how the text was understood, such as the delimiter, the encoding.
        has_header: False where the first line is a row.
        inline_images: whether the column of images holds the files themselves.
        encoding: of the text, if it was guessed and readers need it; a guess that the user should confirm.
    """

    kind: TableKind
    names: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    columns: Columns | None = None
    is_certain: bool = True
    notes: list[str] = field(default_factory=list)
    has_header: bool = True
    inline_images: bool = False
    encoding: str | None = None

    @property
    def image_names(self) -> list[str]:
        """Names of image files in the first rows."""
        if self.columns is None or self.columns.image not in self.names:
            return []
        at = self.names.index(self.columns.image)
        return [row[at] for row in self.rows if isinstance(row[at], str)]


def guess_table(
    path: Path, encoding: str | None = None, image: str | None = None, captions: Sequence[str] = ()
) -> TableGuess:
    """Guess the layout of a table from its first rows.

    Args:
        path: the file; its ending decides between JSON, parquet and delimited text.
        encoding: of the text; by default detected.
        image: the column of the image, where it is known.
        captions: the columns of captions, where they are known.

    Raises:
        DataError: the file cannot be read, or has no rows.
        MissingExtraError: a parquet file, and pyarrow is not installed.
    """
    endings = [ending.lower() for ending in path.suffixes if ending.lower() != ".gz"]
    ending = endings[-1] if endings else ""
    if ending in (".xlsx", ".xls", ".ods"):
        raise DataError(f"'{path}' is a spreadsheet, which is not read; save it as CSV (UTF-8) and give that file.")
    if ending in (".parquet", ".pq"):
        reading = SourceFile(path)
        names = parquet_columns(reading)
        rows = [list(row[1]) for row in islice(parquet_rows(reading, names), _ROWS) if not isinstance(row, Issue)]
        reading.close()
        return _guess_columns(TableGuess("table", names, rows), image, captions)
    if ending in (".jsonl", ".jsonlines", ".ndjson", ".json"):
        return _guess_json(path, image, captions)
    guessed = guess_encoding(path) if encoding is None else None
    header, cells, notes = delimited_sample(
        SourceFile(path, encoding or guessed),
        "\t" if ending in (".tsv", ".tab") else ",",
        _ROWS,
        beyond_ascii=guessed is not None,
    )
    if guessed is not None:
        notes.insert(0, f"the text seems to be {guessed} ({ENCODINGS[guessed]}); --encoding sets another encoding")
    guess = TableGuess("table", header, [list(row) for row in cells], notes=notes, encoding=guessed)
    if any(_is_image_cell(name) for name in header):
        return replace(guess, has_header=False, is_certain=False)
    return _guess_columns(guess, image, captions)


def _guess_json(path: Path, image: str | None, captions: Sequence[str]) -> TableGuess:
    records: list[dict[str, Any]] = []
    reading = SourceFile(path)
    is_lines = json_layout(reading, image or "image") == "lines"
    if is_lines:
        for text in islice(checked_lines(reading), _ROWS):
            try:
                record = parse_json(text) if isinstance(text, str) and text.strip() else None
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
    reading.close()
    if is_lines:
        if records and set(records[0]) >= _MANIFEST and set(records[0]) <= _MANIFEST | {"domain"}:
            return TableGuess("manifest")
    else:
        kind, records = _json_document(path)
        if kind is not None:
            return TableGuess(kind)
    if not records:
        raise DataError(f"'{path}' holds no objects with an image and a caption.")
    if is_conversation(records[0]):
        return TableGuess("conversations", columns=Columns())
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [[record.get(name) for name in names] for record in records]
    return _guess_columns(TableGuess("table", names, rows), image, captions)


def _json_document(path: Path) -> tuple[TableKind | None, list[dict[str, Any]]]:
    """The layout of one large JSON value, where it is a known one, and otherwise the objects of its first list."""
    reading = SourceFile(path)
    lists: dict[str, list[dict[str, Any]]] = {}
    try:
        for key, item, in_list in json_parts(reading):
            if not in_list:
                if is_image_name(key):
                    return "mapping", []
                continue
            if not isinstance(item, dict):
                continue
            entries = lists.setdefault(key, [])
            if not entries and "sentences" in item:
                return "karpathy", []
            has_text = any(_caption_score(name, [value]) for name, value in item.items())
            if not entries and ("annotations" in key or not has_text) and _is_of_coco(key, item):
                return "coco", []
            entries.append(item)
            if len(entries) >= _ROWS and _has_image(entries[0]):
                break
    finally:
        reading.close()
    return None, next((entries for entries in lists.values() if _has_image(entries[0])), [])


def _is_of_coco(key: str, item: dict[str, Any]) -> bool:
    return "image_id" in item or (key == "images" and {"id", "file_name"} <= item.keys())


def _has_image(record: dict[str, Any]) -> bool:
    return is_conversation(record) or any(map(_is_image_cell, record.values()))


def _guess_columns(guess: TableGuess, image: str | None, captions: Sequence[str]) -> TableGuess:
    """Fill in the columns; those that the caller knows are taken."""
    if not guess.rows:
        return replace(guess, is_certain=False)
    cells = {name: [row[at] for row in guess.rows] for at, name in enumerate(guess.names)}
    pictures = {name: _image_score(name, values) for name, values in cells.items()}
    texts = {name: _caption_score(name, values) for name, values in cells.items() if not pictures[name]}
    certain = True
    if image is None:
        image, clear = _best(pictures)
        certain = clear
    names = tuple(captions)
    if not names:
        best, clear = _best({name: score for name, score in texts.items() if name != image})
        names = () if best is None else _siblings(best, texts)
        certain = certain and (clear or len(names) > 1)
    if image is None or not names:
        return replace(guess, is_certain=False)
    columns = Columns(image, names, _split_column(cells, {image, *names}))
    inline = any(
        isinstance(value, bytes) or (isinstance(value, dict) and value.get("bytes")) for value in cells.get(image, ())
    )
    return replace(guess, columns=columns, is_certain=certain, inline_images=inline)


def _best(scores: dict[str, float]) -> tuple[str | None, bool]:
    """The column with the highest score above 0, and whether its name fits too and no other one comes close."""
    ranked = sorted((name for name in scores if scores[name]), key=lambda name: -scores[name])
    if not ranked:
        return None, False
    first = scores[ranked[0]]
    return ranked[0], first >= 1.5 and (len(ranked) == 1 or scores[ranked[1]] < 1.5)


def _image_score(name: str, values: Sequence[Any]) -> float:
    """0 where the cells are no images; otherwise up to 1 for them, and 1 for the name."""
    share = sum(map(_is_image_cell, values)) / len(values)
    return 0.0 if share < _SHARE else share + (_IMAGE_NAME.fullmatch(_plain(name)) is not None)


def _is_image_cell(value: Any) -> bool:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        return True
    if isinstance(value, dict):
        return isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str)
    if not isinstance(value, str) or "\n" in value or len(value) > 1000 or value.startswith(("http:", "https:")):
        return False
    return is_image_name(value.strip()) or value.strip().lower().endswith(tuple(HEIF_SUFFIXES))


def _caption_score(name: str, values: Sequence[Any]) -> float:
    """0 where the cells are no text; otherwise up to 1 for cells of several words, and 1 for the name.

    Cells of one word are captions only under a name of captions.
    """
    named = _CAPTION_NAME.fullmatch(_plain(name)) is not None
    texts = [text for value in values for text in _texts(value)]
    lettered = [text for text in texts if any(character.isalpha() for character in text)]
    if len(lettered) < _SHARE * len(values):
        return 0.0
    sentences = sum(len(text.split()) > 1 or _IDEOGRAPH.search(text) is not None for text in lettered) / len(lettered)
    if sentences < _SHARE:
        return 1.5 * named
    # Longer texts are more likely descriptions than names of people or places.
    length = sum(len(text) for text in lettered) / len(lettered)
    return 0.7 * sentences + 0.3 * min(1.0, length / 100) + named


def _texts(value: Any) -> list[str]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return parse_list(value)
        except ValueError:
            return [value]
    if isinstance(value, list):
        return [text for text in value if isinstance(text, str)]
    return [value] if isinstance(value, str) else []


def _siblings(name: str, scores: dict[str, float]) -> tuple[str, ...]:
    """The columns of text that differ from a column by a number at the end: caption_1, caption_2, ..."""
    stem = re.sub(r"[\W_]*\d+$", "", name)
    if stem == name:
        return (name,)
    return tuple(other for other, score in scores.items() if score and re.sub(r"[\W_]*\d+$", "", other) == stem)


def _split_column(cells: dict[str, list[Any]], taken: set[str]) -> str | None:
    """The column whose cells are names of splits, one of them a training split."""
    for name, values in cells.items():
        if name in taken or not _SPLIT_NAME.fullmatch(_plain(name)):
            continue
        splits = {value.strip().lower() for value in values if isinstance(value, str)}
        if splits and len(splits) <= 10 and any(SPLIT_NAMES.get(split) for split in splits):
            return name
    return None


def _plain(name: str) -> str:
    """A name without case, numbers at its end, and marks: "File Name" is filename, "caption_2" caption."""
    letters = "".join(character for character in name.casefold() if character.isalnum())
    return letters.rstrip("0123456789")
