"""Pictures found by the name that annotations give, by the id, and never by guessing."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune.data.image_files import ImageFolder
from captune.errors import DataError


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for name in ("val2014/COCO_val2014_000000000009.jpg", "train2014/COCO_train2014_000000000025.jpg", "own/photo.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "image", "file_name", "expected"),
    [
        ("val2014", "9", "COCO_val2014_000000000009.jpg", "COCO_val2014_000000000009.jpg"),
        (".", "9", "COCO_val2014_000000000009.jpg", "val2014/COCO_val2014_000000000009.jpg"),
        (".", "9", "val2014/COCO_val2014_000000000009.jpg", "val2014/COCO_val2014_000000000009.jpg"),
        ("val2014", "9", "val2014/COCO_val2014_000000000009.jpg", "COCO_val2014_000000000009.jpg"),
        ("val2014", "9", "images\\COCO_val2014_000000000009.jpg", "COCO_val2014_000000000009.jpg"),
        (".", "9", None, None),
        (".", "photo", None, "own/photo.PNG"),
        (".", "own/photo", None, "own/photo.PNG"),
        (".", "photo.PNG", None, "own/photo.PNG"),
        ("own", "../val2014/COCO_val2014_000000000009.jpg", None, None),
        (".", "photo", "other.jpg", None),
    ],
)
def test_where_a_picture_is(coco: Path, folder: str, image: str, file_name: str | None, expected: str | None) -> None:
    found = ImageFolder(coco / folder).find(image, file_name)
    assert found == (None if expected is None else coco / folder / expected)


def test_the_nearest_file_is_taken_and_two_as_near_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "small/a.jpg", "x/b.jpg", "y/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = ImageFolder(tmp_path)
    assert folder.find("a") == tmp_path / "a.jpg"
    assert folder.find("1", "y/b.jpg") == tmp_path / "y/b.jpg"
    with pytest.raises(DataError, match=r"'x/b\.jpg' or 'y/b\.jpg'"):
        folder.find("b")
