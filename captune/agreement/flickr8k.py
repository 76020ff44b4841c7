"""Flickr8k-Expert and Flickr8k-CF: people judged captions of Flickr8k for other images as well as for their own.

`ExpertAnnotations.txt`: image, caption, and the scores of three experts, 1 to 4. `CrowdFlowerAnnotations.txt`: image,
caption, share of yes, number of yes, number of no. Columns are separated by tabs; a caption is named
`<image file>#<0-4>`, and its text is in `Flickr8k.token.txt`. Source: Hodosh et al., "Framing Image Description as a
Ranking Task" (JAIR 47, 2013).

The protocol is that of the CLIPScore paper (Hessel et al., EMNLP 2021, appendix A; https://github.com/jmhessel/clipscore):

- Flickr8k-Expert: pairs in which the caption is one of the image's own references are left out, and each of the three
  judgements is one item.
- Flickr8k-CF: every pair is one item, judged by the share of yes; a caption that is judged for an image is removed from
  the references of that image.

The JSON files that the same code writes (`flickr8k.json`, `crowdflower_flickr8k.json`) are read too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captune.agreement.judgements import Faults, Judgements, number, read_json, token_captions
from captune.data import SourceFile, checked_lines, delimited_rows
from captune.errors import DataError, MetricInputError

__all__ = ["read_flickr8k_cf", "read_flickr8k_expert"]

_IMAGE = r"([^\s#]+\.\w+)"
_NUMBER = r"(\d+(?:\.\d+)?(?:[eE]-?\d+)?)"
_CF = re.compile(rf"{_IMAGE}\s+{_IMAGE}#(\d+)\s+{_NUMBER}\s+(\d+)\s+(\d+)")
_EXPERT = re.compile(rf"{_IMAGE}\s+{_IMAGE}#(\d+)" + r"\s+([1-4])(?:\.0+)?" * 3)


def read_flickr8k_expert(files: Sequence[Path], references: Path | None) -> Judgements:
    """Read Flickr8k-Expert.

    Args:
        files: `ExpertAnnotations.txt`, `flickr8k.json`, or a folder with the former and `Flickr8k.token.txt`.
        references: `Flickr8k.token.txt`, or Kaggle's `captions.txt`.

    Raises:
        MetricInputError: a file has another layout.
    """
    title = "Flickr8k-Expert"
    path, references = _files(files, references, "ExpertAnnotations.txt", "flickr8k.json", title)
    if _is_json(path):
        return _read_json(path, title)
    captions = _Captions(references, title)
    expected = "lines of image<TAB>image#n<TAB>score<TAB>score<TAB>score, from 1 to 4 (ExpertAnnotations.txt)"
    faults = Faults(str(path), expected)
    texts: list[str] = []
    images: list[str] = []
    scores: list[float] = []
    same = 0
    for location, line in _lines(path):
        match = _EXPERT.fullmatch(line) if isinstance(line, str) else None
        if match is None:
            faults.add("the line is damaged", location)
            continue
        image, caption = match[1], captions.text(match[2], match[3])
        if caption is None or not captions.of_image(image):
            faults.add(f"the caption or the image is not in {captions.source}", location, damaged=False)
            continue
        faults.read += 1
        if caption in captions.of_image(image):
            same += 1
            continue
        for score in match.groups()[3:]:
            texts.append(caption)
            images.append(image)
            scores.append(float(score))
    notes = faults.finish()
    if same:
        notes.append(f"{same:,} pairs of an image with one of its own references are left out, as the protocol says.")
    return Judgements(
        title, texts, images, [captions.of_image(image) for image in images], np.array(scores), notes=notes
    )


def read_flickr8k_cf(files: Sequence[Path], references: Path | None) -> Judgements:
    """Read Flickr8k-CF; see `read_flickr8k_expert`."""
    title = "Flickr8k-CF"
    path, references = _files(files, references, "CrowdFlowerAnnotations.txt", "crowdflower_flickr8k.json", title)
    if _is_json(path):
        return _read_json(path, title)
    captions = _Captions(references, title)
    expected = "lines of image<TAB>image#n<TAB>share of yes<TAB>yes<TAB>no (CrowdFlowerAnnotations.txt)"
    faults = Faults(str(path), expected)
    items: list[tuple[str, str, float]] = []
    remaining: dict[str, list[str]] = {}
    for location, line in _lines(path):
        match = _CF.fullmatch(line) if isinstance(line, str) else None
        if match is None:
            faults.add("the line is damaged", location)
            continue
        image, share, yes, no = match[1], float(match[4]), int(match[5]), int(match[6])
        if yes + no == 0 or abs(share - yes / (yes + no)) > 1e-5:
            faults.add("the share of yes is not that of the votes", location)
            continue
        caption = captions.text(match[2], match[3])
        if caption is None or not captions.of_image(image):
            faults.add(f"the caption or the image is not in {captions.source}", location, damaged=False)
            continue
        faults.read += 1
        items.append((image, caption, share))
        left = remaining.setdefault(image, list(captions.of_image(image)))
        if caption in left:
            left.remove(caption)
    notes = faults.finish()
    return Judgements(
        title,
        [caption for _, caption, _ in items],
        [image for image, _, _ in items],
        [remaining[image] or captions.of_image(image) for image, _, _ in items],
        np.array([share for _, _, share in items]),
        notes=notes,
    )


def _files(
    files: Sequence[Path], references: Path | None, name: str, json_name: str, title: str
) -> tuple[Path, Path | None]:
    """The file of judgements, and the captions."""
    if len(files) != 1:
        raise MetricInputError(f"{title} is one file ({name}), and {len(files)} were given.")
    path = files[0]
    if path.is_dir():
        folder = path
        path = next((folder / n for n in (name, name + ".gz", json_name) if (folder / n).is_file()), folder / name)
        if not path.is_file():
            raise MetricInputError(f"the folder '{folder}' holds no {name}; give the file.")
        names = ("Flickr8k.token.txt", "captions.txt")
        references = references or next((folder / n for n in names if (folder / n).is_file()), None)
    return path, references


def _is_json(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".json")


def _lines(path: Path) -> Iterator[tuple[str, str | DataError]]:
    """Lines that are not blank, with their positions."""
    try:
        for count, line in enumerate(checked_lines(SourceFile(path)), 1):
            if isinstance(line, DataError) or line.strip():
                yield f"line {count}", line.strip() if isinstance(line, str) else line
    except DataError as error:
        raise MetricInputError(str(error)) from error


class _Captions:
    """The five captions of each image, and single ones by their number."""

    def __init__(self, path: Path | None, title: str) -> None:
        if path is None:
            raise MetricInputError(
                f"{title} names captions by image and number; give --references Flickr8k.token.txt, which has the text."
            )
        self.source = path.name
        self._by_image: dict[str, list[str]] = {}
        self._by_id: dict[tuple[str, str], str] = {}
        for image, count, caption in _kaggle_captions(path) or token_captions(path):
            stem = image.split(".")[0]
            self._by_image.setdefault(stem, []).append(caption)
            self._by_id.setdefault((stem, count), caption)
        if not self._by_id:
            raise MetricInputError(
                f"{path} has no line of image#n<TAB>caption (Flickr8k.token.txt) and no columns image,caption "
                "(Kaggle's captions.txt)."
            )

    def text(self, image: str, count: str) -> str | None:
        return self._by_id.get((image.split(".")[0], count))

    def of_image(self, image: str) -> list[str]:
        return self._by_image.get(image.split(".")[0], [])


def _kaggle_captions(path: Path) -> list[tuple[str, str, str]]:
    """Captions of the columns image,caption, in which the captions of an image are in the order of their numbers."""
    try:
        rows = delimited_rows(checked_lines(SourceFile(path)))
        if next(rows, (1, []))[1] != ["image", "caption"]:
            return []
        captions: list[tuple[str, str, str]] = []
        counts: dict[str, int] = {}
        for _, row in rows:
            if not isinstance(row, DataError) and len(row) == 2:
                count = counts.get(row[0], 0)
                counts[row[0]] = count + 1
                captions.append((row[0], str(count), row[1].strip()))
        return captions
    except DataError as error:
        raise MetricInputError(str(error)) from error


def _read_json(path: Path, title: str) -> Judgements:
    """Read what the code of the CLIPScore paper makes of either file."""
    expected = 'an object from image to {"ground_truth": [...], "human_judgement": [{"caption": ..., "rating": ...}]}'
    tree = read_json(path)
    faults = Faults(str(path), expected)
    texts: list[str] = []
    images: list[str] = []
    references: list[list[str]] = []
    scores: list[float] = []
    for image, record in tree.items() if isinstance(tree, dict) else ():
        judged: Any = record.get("human_judgement") if isinstance(record, dict) else None
        truth: Any = record.get("ground_truth") if isinstance(record, dict) else None
        if not isinstance(judged, list) or not isinstance(truth, list) or not all(isinstance(t, str) for t in truth):
            faults.add("the entry has no ground_truth and human_judgement", f"image {image}")
            continue
        for index, entry in enumerate(judged, 1):
            try:
                caption, score = entry["caption"], number(entry["rating"])
            except (KeyError, TypeError, ValueError):
                faults.add("the judgement has no caption or no finite rating", f"image {image}, judgement {index}")
                continue
            if not isinstance(caption, str) or not truth:
                faults.add("the judgement has no caption or no references", f"image {image}, judgement {index}")
                continue
            faults.read += 1
            texts.append(" ".join(caption.split()))
            images.append(Path(str(record.get("image_path") or image)).name)
            references.append([" ".join(text.split()) for text in truth])
            scores.append(score)
    return Judgements(title, texts, images, references, np.array(scores), notes=faults.finish())
