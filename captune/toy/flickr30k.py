"""Drawn scenes as a folder laid out exactly like Flickr30k.

    FOLDER/
    ├── flickr30k-images/1000092795.jpg ...
    ├── flickr_annotations_30k.csv      raw,sentids,split,filename,img_id
    └── toy.json                        what the folder was made from; written last

As in the original: rows sorted by file name as text, the splits mixed, `raw` and `sentids` JSON lists in minimally
quoted CSV, sentence ids running over the complete file, `img_id` counting rows, lines ending in a bare newline.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml

from captune.data import atomic_file, partial_folder
from captune.errors import DataError, ToolError
from captune.toy.captions import CAPTIONS_PER_IMAGE, OBJECT_WORDS, write_captions
from captune.toy.drawing import IMAGE_SIZE, draw_scene
from captune.toy.scenes import Scene, sample_scenes

__all__ = [
    "ANNOTATIONS_NAME",
    "IMAGES_NAME",
    "Flickr30kFolder",
    "ToyRow",
    "plan_rows",
    "write_flickr30k",
    "write_objects",
]

ANNOTATIONS_NAME = "flickr_annotations_30k.csv"
IMAGES_NAME = "flickr30k-images"
STAMP_NAME = "toy.json"
# Counts up when the same seed would give other bytes.
GENERATOR_VERSION = 1
JPEG_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Flickr30kFolder:
    """A folder in the layout of Flickr30k.

    Attributes:
        root: the folder.
        images: the folder of JPEG files in it.
        annotations: the CSV of captions in it.
        counts: how many images each split has.
        reused: whether it was there already and was left as it is.
    """

    root: Path
    images: Path
    annotations: Path
    counts: dict[str, int]
    reused: bool


@dataclass(frozen=True, slots=True)
class ToyRow:
    """One image of the folder: its scene, captions and split."""

    filename: str
    split: str
    scene: Scene
    captions: tuple[str, ...]


def plan_rows(*, train: int, val: int, test: int, seed: int) -> list[ToyRow]:
    """Everything in the folder but the pixels.

    Args:
        train: how many training images.
        val: how many validation images.
        test: how many test images.
        seed: equal seeds give equal rows; the rows of a split begin alike whatever its size.

    Returns:
        The rows in the order of the CSV. No two show the same thing.

    Raises:
        DataError: a count is negative.
    """
    for split, count in (("train", train), ("val", val), ("test", test)):
        if count < 0:
            raise DataError(f"The toy data cannot have {count} {split} images; give 0 or more.")
    training, held_out = sample_scenes(seed, held_out=False), sample_scenes(seed, held_out=True)
    names = _file_names(Random(f"captune-toy-names/{seed}"))
    rows: list[ToyRow] = []
    for split, count, source in (("test", test, held_out), ("val", val, held_out), ("train", train, training)):
        for index in range(count):
            scene = next(source)
            words = Random(f"captune-toy-captions/{seed}/{split}/{index}")
            rows.append(ToyRow(next(names), split, scene, tuple(write_captions(scene, words))))
    return sorted(rows, key=lambda row: row.filename)


def _file_names(random: Random) -> Iterator[str]:
    """Numbers of eight to ten digits, as photographs of Flickr have them, each one once."""
    seen: set[int] = set()
    while True:
        number = random.randrange(10_000_000, 8_000_000_000)
        if number not in seen:
            seen.add(number)
            yield f"{number}.jpg"


def annotations_csv(rows: list[ToyRow]) -> str:
    """The text of `flickr_annotations_30k.csv` for these rows, in their order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("raw", "sentids", "split", "filename", "img_id"))
    for index, row in enumerate(rows):
        first = index * CAPTIONS_PER_IMAGE
        sentence_ids = list(range(first, first + CAPTIONS_PER_IMAGE))
        writer.writerow((json.dumps(row.captions), json.dumps(sentence_ids), row.split, row.filename, index))
    return text.getvalue()


def write_flickr30k(
    folder: Path | str,
    *,
    train: int = 500,
    val: int = 100,
    test: int = 200,
    seed: int = 42,
    on_image: Callable[[int, int], None] | None = None,
) -> Flickr30kFolder:
    """Write drawn scenes in the layout of Flickr30k, or reuse those already written.

    The folder appears under its name only when it is complete; a folder with the same stamp is left as it is.

    Args:
        folder: where to write. An older folder of drawn scenes there is replaced.
        train: how many training images.
        val: how many validation images.
        test: how many test images.
        seed: equal arguments give equal bytes.
        on_image: called after each image with the number written and the total.

    Returns:
        The folder's parts and whether it was reused.

    Raises:
        DataError: a count is negative, or `folder` holds something that this function did not write.
        ToolError: writing failed.
    """
    root = Path(folder)
    rows = plan_rows(train=train, val=val, test=test, seed=seed)
    annotations = annotations_csv(rows)
    counts = {"train": train, "val": val, "test": test}
    stamp = json.dumps(
        {
            "generator": GENERATOR_VERSION,
            "seed": seed,
            "counts": counts,
            "image_size": IMAGE_SIZE,
            "annotations_sha256": hashlib.sha256(annotations.encode()).hexdigest(),
        },
        indent=2,
    )
    reused = _is_complete(root, stamp, rows)
    if not reused:
        _refuse_foreign(root)
        try:
            _write_all(root, rows, annotations, stamp, on_image)
        except OSError as error:
            raise ToolError(f"Could not write the drawn scenes to {root}: {error.strerror or error}.") from error
    return Flickr30kFolder(root, root / IMAGES_NAME, root / ANNOTATIONS_NAME, counts, reused)


def write_objects(folder: Path | str, rows: list[ToyRow]) -> tuple[Path, Path]:
    """Write what is drawn in each image, and the words for it, for the metric chair.

    Args:
        folder: where to write; files of the same names are replaced.
        rows: of the data.

    Returns:
        `objects.json`, from image id to the kinds of things in it, and `vocabulary.yaml`.

    Raises:
        ToolError: writing failed.
    """
    objects, vocabulary = Path(folder) / "objects.json", Path(folder) / "vocabulary.yaml"
    kinds = {Path(row.filename).stem: sorted(row.scene.objects) for row in rows}
    try:
        with atomic_file(objects) as stream:
            json.dump(kinds, stream)
        with atomic_file(vocabulary) as stream:
            yaml.safe_dump({"name": "toy", "classes": OBJECT_WORDS}, stream, sort_keys=False)
    except OSError as error:
        raise ToolError(f"Could not write the drawn objects to {folder}: {error.strerror or error}.") from error
    return objects, vocabulary


def _is_complete(root: Path, stamp: str, rows: list[ToyRow]) -> bool:
    try:
        if (root / STAMP_NAME).read_text(encoding="utf-8") != stamp:
            return False
        written = hashlib.sha256((root / ANNOTATIONS_NAME).read_bytes()).hexdigest()
        images = {path.name for path in (root / IMAGES_NAME).iterdir() if path.stat().st_size}
    except (OSError, UnicodeDecodeError):
        return False
    return written == json.loads(stamp)["annotations_sha256"] and images == {row.filename for row in rows}


def _refuse_foreign(root: Path) -> None:
    """Refuse to replace other data, such as the real Flickr30k, by drawings."""
    if root.is_dir() and not (root / STAMP_NAME).is_file() and any(root.iterdir()):
        raise DataError(
            f"{root} holds files that are not drawn scenes, and they would be lost; give an empty or a new folder."
        )
    if root.exists() and not root.is_dir():
        raise DataError(f"{root} is a file, and drawn scenes need a folder; give another name.")


def _write_all(
    root: Path, rows: list[ToyRow], annotations: str, stamp: str, on_image: Callable[[int, int], None] | None
) -> None:
    root.parent.mkdir(parents=True, exist_ok=True)
    with partial_folder(root) as partial:
        try:
            (partial / IMAGES_NAME).mkdir()
            for done, row in enumerate(rows, start=1):
                draw_scene(row.scene).save(
                    partial / IMAGES_NAME / row.filename, "JPEG", quality=JPEG_QUALITY, subsampling=0
                )
                if on_image is not None:
                    on_image(done, len(rows))
            (partial / ANNOTATIONS_NAME).write_text(annotations, encoding="utf-8", newline="")
            (partial / STAMP_NAME).write_text(stamp, encoding="utf-8")
            if root.exists():
                shutil.rmtree(root)
            os.replace(partial, root)
        finally:
            # No partial folder remains after an error.
            shutil.rmtree(partial, ignore_errors=True)
