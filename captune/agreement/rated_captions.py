"""Captions with a score of people: Composite, Polaris, Nebula, and tables of one's own.

A table is CSV, JSON, JSON Lines or Parquet with named columns; the first name of each line that the table has is used:

    caption     mt, cand, candidate, caption, prediction
    score       human_score, score, rating, human
    references  refs, references, reference       a list, also as Python or JSON writes it in a cell
    image       imgid, image_id, file_name, filename, image, image_path, img_path, id
    split       split

`polaris_test.csv` and `nebula_test.csv` have these columns (mt, refs, score, imgid), like `en_test_composite_da2.csv`
of Composite (https://github.com/keio-smilab24/Polos), and the Parquet files on the Hugging Face hub. Without references
in the table, those of `--references` are taken.

Composite as it was published (Aditya et al., "From Images to Sentences through Scene Description Graphs", 2015) is
three files `{8k,30k,coco}_correctness.csv` of Amazon Mechanical Turk, separated by semicolons: the address of an image,
three or four captions, and as many scores. As in earlier work the first three captions are used, and a caption that
is a reference is removed from the references of its image.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from captune.agreement.judgements import Faults, Judgements, ReferenceLookup, number, table_rows, text_list
from captune.data import SourceFile, checked_lines, delimited_rows
from captune.errors import DataError, MetricInputError

__all__ = ["CAPTION", "IMAGE", "REFERENCES", "read_composite", "read_rated_captions"]

CAPTION = ("mt", "cand", "candidate", "caption", "prediction")
SCORE = ("human_score", "score", "rating", "human")
REFERENCES = ("refs", "references", "reference")
IMAGE = ("imgid", "image_id", "file_name", "filename", "image", "image_path", "img_path", "id")

_EXPECTED = (
    "a table with the columns of caption (mt, cand, caption), score (human_score, score, rating), references (refs, "
    "references) and image (imgid, image_id, file_name)"
)


def read_rated_captions(
    files: Sequence[Path], references: Path | None, title: str, split: str | None = None
) -> Judgements:
    """Read tables of captions with a score.

    Args:
        files: one or more.
        references: file of references, for tables without them.
        title: name of the data.
        split: read rows of this split only.

    Raises:
        MetricInputError: a table has other columns, or a caption has no references.
    """
    texts: list[str] = []
    images: list[str] = []
    groups: list[list[str]] = []
    scores: list[float] = []
    notes: list[str] = []
    lookup: ReferenceLookup | None = None
    unnamed = False
    for path in files:
        faults = Faults(str(path), _EXPECTED)
        columns: dict[str, str] = {}
        for location, row in table_rows(path):
            if isinstance(row, DataError):
                faults.add("the row is damaged", location)
                continue
            if not columns:
                columns = _columns(row, path, references)
                if "refs" not in columns and lookup is None:
                    lookup = ReferenceLookup.read(references, title)
            if split is not None and _split(row, path) != split:
                continue
            try:
                caption, score = row[columns["caption"]], number(row[columns["score"]])
            except (KeyError, TypeError, ValueError):
                faults.add("the score is no finite number", location, damaged=False)
                continue
            if not isinstance(caption, str):
                faults.add("the caption is no text", location)
                continue
            image = str(row[columns["image"]]) if "image" in columns else ""
            try:
                captions = text_list(row[columns["refs"]]) if lookup is None else lookup[image]
            except (KeyError, ValueError):
                faults.add("the references are no list of texts", location)
                continue
            if not captions:
                where = "" if lookup is None else f" in {lookup.source}"
                faults.add(f"there are no references of the image{where}", location, damaged=False)
                continue
            faults.read += 1
            unnamed = unnamed or not image
            texts.append(caption)
            images.append(image or "\n".join(captions))
            groups.append(captions)
            scores.append(score)
        if split is not None and not faults.read:
            raise MetricInputError(f"{path} has no row of the split '{split}' that can be read.")
        notes += faults.finish()
    if unnamed:
        notes.append("There is no column of images: captions with the same references are taken as of one image.")
    return Judgements(title, texts, images, groups, np.array(scores), notes=notes)


def _columns(row: dict[str, Any], path: Path, references: Path | None) -> dict[str, str]:
    """The column of each kind that a table has."""
    columns = {}
    for kind, names in (("caption", CAPTION), ("score", SCORE), ("refs", REFERENCES), ("image", IMAGE)):
        name = next((name for name in names if name in row), None)
        if name is not None:
            columns[kind] = name
    missing = [kind for kind in ("caption", "score") if kind not in columns]
    if "refs" not in columns and references is None:
        missing.append("refs (or --references FILE)")
    if "refs" not in columns and "image" not in columns:
        missing.append("image")
    if missing:
        named = ", ".join(map(repr, list(row)[:12]))
        raise MetricInputError(
            f"{path} does not hold what is expected: {_EXPECTED}; it lacks a column of {', '.join(missing)} and has "
            f"{named}."
        )
    return columns


def _split(row: dict[str, Any], path: Path) -> str:
    if "split" not in row:
        raise MetricInputError(f"--split was given, and {path} has no column 'split'.")
    return str(row["split"])


_PICTURE = re.compile(r"\S+\.(?:jpe?g|png)(?:\?\S*)?", re.IGNORECASE)
_USED = 3


def read_composite(files: Sequence[Path], references: Path | None, title: str, split: str | None = None) -> Judgements:
    """Read Composite, as published or as a table; see the top of this file.

    Args:
        files: one or more.
        references: references of all images, for the published files.
        title: name of the data.
        split: of a table.

    Raises:
        MetricInputError: a file has another layout.
    """
    if not any(_is_published(path) for path in files):
        return read_rated_captions(files, references, title, split)
    lookup = ReferenceLookup.read(references, title)
    texts: list[str] = []
    images: list[str] = []
    groups: list[list[str]] = []
    scores: list[float] = []
    notes: list[str] = []
    for path in files:
        expected = "rows, separated by semicolons, with the address of an image, captions, and a score for each of them"
        faults = Faults(str(path), expected)
        rows = delimited_rows(checked_lines(SourceFile(path)), delimiter=";")
        next(rows, None)
        for line, row in rows:
            location = f"line {line}"
            judged = None if isinstance(row, DataError) else _judged(row)
            if judged is None:
                # The last rows of the published files are empty.
                damaged = isinstance(row, DataError) or any(cell.strip() for cell in row)
                faults.add("the row is damaged" if damaged else "the row is empty", location, damaged=damaged)
                continue
            image, captions = judged
            truth = lookup[image] or lookup[image.split("_")[0]]
            same = {_words(caption) for caption, _ in captions}
            truth = [text for text in truth if _words(text) not in same] or truth
            if not truth:
                faults.add(f"there are no references of the image in {lookup.source}", location, damaged=False)
                continue
            faults.read += 1
            for caption, score in captions:
                texts.append(caption)
                images.append(image)
                groups.append(truth)
                scores.append(score)
        notes += faults.finish()
    return Judgements(title, texts, images, groups, np.array(scores), notes=notes)


def _is_published(path: Path) -> bool:
    """Whether a file is one of Amazon Mechanical Turk."""
    try:
        first = next(checked_lines(SourceFile(path)), "")
    except DataError as error:
        raise MetricInputError(str(error)) from error
    return isinstance(first, str) and len(next(csv.reader([first], delimiter=";"), [])) > 20


def _judged(row: list[str]) -> tuple[str, list[tuple[str, float]]] | None:
    """Image, captions and scores of a row; None if it has none."""
    address = next((index for index, cell in enumerate(row) if _PICTURE.fullmatch(cell.strip())), None)
    if address is None:
        return None
    rest = [cell.strip() for cell in row[address + 1 :]]
    count = next((index for index, cell in enumerate(rest) if cell in ("1", "2", "3", "4", "5")), 0)
    scores = rest[count : 2 * count]
    if not count or len(scores) < count or any(cell not in ("1", "2", "3", "4", "5") for cell in scores):
        return None
    image = PurePosixPath(row[address].strip().partition("?")[0]).name
    pairs = zip(rest[:_USED], map(float, scores[:_USED]), strict=False)
    return image, list(pairs)[: min(_USED, count)]


def _words(caption: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", caption.casefold()))
