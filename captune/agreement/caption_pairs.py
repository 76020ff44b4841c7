"""Pairs of captions of which people prefer one: Pascal-50S, FOIL, and tables of one's own.

Pascal-50S (Vedantam et al., "CIDEr", CVPR 2015): 4,000 pairs of captions, each judged by 48 people, in the categories
HC (two correct captions by people), HI (one of them of another image), HM (a person and a model) and MM (two models).
The preferred caption is that of the majority, a draw is decided by the seed, and the references are 5 of the 48
captions that the judges saw, drawn by the seed. Files: `pair_pascal.mat` and `consensus_pascal.mat`.

FOIL (Shekhar et al., "FOIL it! Find One mismatch between Image and Language caption", ACL 2017): a caption of COCO and
the same with one wrong word. References are the other captions of the image in `captions_val2014.json`: the first one,
or the first four. File: `foilv1.0_test_2017.json`.

A table of one's own has columns for the two captions (`caption_a`, `caption_b`), for the preferred one (`preferred`:
a or b, first or second, 1 or 2), for the image and for the references as in `captune.agreement.rated_captions`, and
possibly `category`. Pairs that are judged equal are left out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captune.agreement.judgements import Faults, Judgements, ReferenceLookup, read_json, table_rows, text_list
from captune.agreement.rated_captions import IMAGE, REFERENCES
from captune.errors import DataError, MetricInputError, MissingExtraError

__all__ = ["has_pair_columns", "read_caption_pairs", "read_foil", "read_pascal_50s"]

CATEGORIES = {1: "HC", 2: "HI", 3: "HM", 4: "MM"}
_FIRST, _SECOND = ("a", "first", "1"), ("b", "second", "2")
_EQUAL = ("equal", "tie", "0", "")


class _Pairs:
    """Pairs as they are read."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.captions: list[str] = []
        self.images: list[str] = []
        self.references: list[Sequence[str]] = []
        self.categories: list[str] = []
        self.file_names: dict[str, str] = {}
        self.notes: list[str] = []

    def add(self, image: str, preferred: str, other: str, references: Sequence[str], category: str = "") -> None:
        self.captions += [preferred, other]
        self.images += [image, image]
        self.references += [references, references]
        self.categories.append(category)

    def judgements(self) -> Judgements:
        indices = np.arange(len(self.captions), dtype=np.int64).reshape(-1, 2)
        categories = self.categories if any(self.categories) else []
        return Judgements(
            self.title,
            self.captions,
            self.images,
            self.references,
            pairs=indices,
            categories=categories,
            notes=self.notes,
            file_names=self.file_names,
        )


def read_pascal_50s(files: Sequence[Path], references: Path | None, seed: int, count: int = 5) -> Judgements:
    """Read Pascal-50S.

    Args:
        files: the two .mat files, their folder, or a table of pairs.
        references: for a table without references.
        seed: of the references and of draws.
        count: references of a pair.

    Raises:
        MetricInputError: a file has another layout, or there are not so many references.
        MissingExtraError: scipy, which reads the files of MATLAB, is not installed.
    """
    title = f"Pascal-50S, {count} references"
    if len(files) == 1 and files[0].is_dir():
        folder = files[0]
        paths = {name: next(folder.rglob(name), None) for name in ("pair_pascal.mat", "consensus_pascal.mat")}
        if missing := [name for name, path in paths.items() if path is None]:
            raise MetricInputError(f"the folder '{folder}' holds no {' and no '.join(missing)}.")
        files = [path for path in paths.values() if path is not None]
    if not all(path.suffix.lower() == ".mat" for path in files):
        return read_caption_pairs(files, references, "Pascal-50S", seed=seed, count=count)
    by_key = {key: tree for path in files for key, tree in _matlab(path).items() if not key.startswith("__")}
    if missing := [key for key in ("new_input", "category", "triplets") if key not in by_key]:
        raise MetricInputError(
            f"{', '.join(map(str, files))}: there is no variable {', '.join(missing)}; expected pair_pascal.mat "
            "(new_input, category) and consensus_pascal.mat (triplets)."
        )
    try:
        return _pascal(by_key, title, seed, count)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise MetricInputError(f"{', '.join(map(str, files))}: the variables have another shape ({error}).") from error


def _matlab(path: Path) -> dict[str, Any]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError(f"reading {path.name}", "serve") from error
    try:
        tree: dict[str, Any] = loadmat(path)
    except (OSError, ValueError, NotImplementedError, TypeError) as error:
        raise MetricInputError(f"{path} is no file of MATLAB that can be read ({error}).") from error
    return tree


def _pascal(variables: dict[str, Any], title: str, seed: int, count: int) -> Judgements:
    inputs, categories, triplets = (variables[key][0] for key in ("new_input", "category", "triplets"))
    votes_each, rest = divmod(len(triplets), len(inputs))
    if rest or not votes_each or len(categories) != len(inputs):
        raise ValueError(f"{len(inputs)} pairs, {len(categories)} categories, {len(triplets)} votes")
    if votes_each < count:
        raise MetricInputError(f"{count} references were requested, and a pair has {votes_each}.")
    chance = random.Random(seed)
    pairs, draws = _Pairs(title), 0
    for index, entry in enumerate(inputs):
        image, first, second = map(_content, _fields(entry))
        votes = {first: 0, second: 0}
        seen = []
        for triplet in triplets[index * votes_each : (index + 1) * votes_each]:
            reference, one, other, answer = map(_content, _fields(triplet))
            seen.append(reference)
            voted = one if float(answer) == 1 else other
            votes[voted] = votes.get(voted, 0) + 1
        draw = votes[first] == votes[second]
        draws += draw
        is_first = chance.random() < 0.5 if draw else votes[first] > votes[second]
        preferred, other_caption = (first, second) if is_first else (second, first)
        category = CATEGORIES.get(int(categories[index]), str(categories[index]))
        pairs.add(image, preferred, other_caption, chance.sample(seen, count), category)
    if draws:
        pairs.notes.append(f"{draws:,} pairs have as many votes for either caption; the seed decides.")
    return pairs.judgements()


def _fields(entry: Any) -> Sequence[Any]:
    """The fields of a struct, or the cells of a cell array."""
    return tuple(entry.item()) if isinstance(entry, np.void) else list(np.ravel(entry))


def _content(cell: Any) -> str:
    """The text in nested cells."""
    while isinstance(cell, np.ndarray):
        cell = cell.ravel()[0]
    return str(cell).strip()


def read_foil(files: Sequence[Path], references: Path | None) -> list[Judgements]:
    """Read FOIL, with one reference and with four.

    Args:
        files: `foilv1.0_test_2017.json`.
        references: `captions_val2014.json`.

    Raises:
        MetricInputError: a file has another layout.
    """
    if len(files) != 1:
        raise MetricInputError(f"FOIL is one file (foilv1.0_test_2017.json), and {len(files)} were given.")
    expected = '{"annotations": [{"id": 1, "image_id": 1, "caption": "...", "foil": true}]}'
    tree = read_json(files[0])
    lookup = ReferenceLookup.read(references, "FOIL")
    annotations = tree.get("annotations") if isinstance(tree, dict) else None
    faults = Faults(str(files[0]), expected)
    groups: dict[tuple[str, str], dict[bool, list[str]]] = {}
    for index, entry in enumerate(annotations if isinstance(annotations, list) else (), 1):
        caption = entry.get("caption") if isinstance(entry, dict) else None
        foil = str(entry.get("foil")).lower() if isinstance(entry, dict) else ""
        if not isinstance(caption, str) or foil not in ("true", "false") or "image_id" not in entry:
            faults.add("the annotation has no image_id, caption or foil", f"annotation {index}")
            continue
        key = (str(entry["image_id"]), str(entry.get("id", entry["image_id"])))
        groups.setdefault(key, {True: [], False: []})[foil == "true"].append(caption)
        faults.read += 1
    images = tree.get("images") if isinstance(tree, dict) else None
    names = {
        str(image["id"]): str(image["file_name"])
        for image in (images if isinstance(images, list) else ())
        if isinstance(image, dict) and "id" in image and "file_name" in image
    }
    conditions = {1: _Pairs("FOIL, 1 reference"), 4: _Pairs("FOIL, 4 references")}
    for (image, identifier), captions in groups.items():
        if not captions[False] or not captions[True]:
            faults.add("there is no foil or no original of the caption", f"id {identifier}", damaged=False)
            continue
        original = captions[False][0]
        others = [text for text in lookup[image] if text.strip() != original.strip()]
        if not others:
            faults.add(f"there are no references of the image in {lookup.source}", f"id {identifier}", damaged=False)
            continue
        for count, pairs in conditions.items():
            for foil_caption in captions[True]:
                pairs.add(image, original, foil_caption, others[:count])
    notes = faults.finish()
    for pairs in conditions.values():
        pairs.notes, pairs.file_names = notes, names
    return [pairs.judgements() for pairs in conditions.values()]


def has_pair_columns(path: Path) -> bool:
    """Whether a table holds pairs of captions."""
    row = next((row for _, row in table_rows(path) if not isinstance(row, DataError)), {})
    return {"caption_a", "caption_b", "preferred"} <= row.keys()


def read_caption_pairs(
    files: Sequence[Path],
    references: Path | None,
    title: str,
    *,
    split: str | None = None,
    seed: int = 0,
    count: int | None = None,
) -> Judgements:
    """Read tables of pairs.

    Args:
        files: one or more.
        references: file of references, for tables without them.
        title: name of the data.
        split: read rows of this split only.
        seed: of the drawn references.
        count: draw so many references of each pair; None takes all.

    Raises:
        MetricInputError: a table has other columns.
    """
    pairs = _Pairs(title)
    chance = random.Random(seed)
    lookup: ReferenceLookup | None = None
    for path in files:
        expected = "a table with the columns caption_a, caption_b, preferred (a or b), image_id and references"
        faults = Faults(str(path), expected)
        for location, row in table_rows(path):
            if isinstance(row, DataError):
                faults.add("the row is damaged", location)
                continue
            if split is not None and str(row.get("split")) != split:
                continue
            first, second = row.get("caption_a"), row.get("caption_b")
            preferred = str(row.get("preferred", "?")).strip().lower()
            if not isinstance(first, str) or not isinstance(second, str):
                faults.add("there is no caption_a or caption_b", location)
                continue
            if preferred in _EQUAL:
                faults.add("the captions are judged equal", location, damaged=False)
                faults.read += 1
                continue
            if preferred not in (*_FIRST, *_SECOND):
                faults.add("preferred is not a or b", location)
                continue
            image = next((str(row[name]) for name in IMAGE if row.get(name) is not None), "")
            column = next((name for name in REFERENCES if name in row), None)
            if column is None and lookup is None:
                lookup = ReferenceLookup.read(references, title)
            try:
                texts = text_list(row[column]) if column is not None else lookup[image] if lookup is not None else []
            except ValueError:
                faults.add("the references are no list of texts", location)
                continue
            if not texts:
                faults.add("there are no references of the image", location, damaged=False)
                continue
            faults.read += 1
            if count is not None and len(texts) > count:
                texts = chance.sample(texts, count)
            chosen_first = preferred in _FIRST
            better, worse = (first, second) if chosen_first else (second, first)
            pairs.add(image or "\n".join(texts), better, worse, texts, str(row.get("category") or ""))
        pairs.notes += faults.finish()
    if not pairs.captions:
        raise MetricInputError(f"{', '.join(map(str, files))}: there is no pair with a preference that can be read.")
    return pairs.judgements()
