"""Files in a folder: what a search for the images of a user enters."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from captune.bulk import read_inputs
from captune.data import is_evaluation_folder
from captune.data.image_files import ImageFolder
from captune.data.importers import FolderSource, discover
from captune.data.rows import Row


def test_outputs_of_captune_are_not_searched(tmp_path: Path) -> None:
    for name in ("a.jpg", "trip/b.jpg", "runs/first/thumbnails/a.jpg", "runs/first/thumbnails/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("A dog.\n")
    (tmp_path / "thumbnails").mkdir()  # of the user
    Image.new("RGB", (8, 8)).save(tmp_path / "thumbnails" / "c.jpg")
    expected = ["a.jpg", "thumbnails/c.jpg", "trip/b.jpg"]
    assert discover(tmp_path).images == [
        *expected[:1],
        *sorted(f"runs/first/thumbnails/{x}.jpg" for x in "ab"),
        *expected[1:],
    ]
    (tmp_path / "runs" / "first" / "thumbnails" / "images.json").write_text("{}")
    assert is_evaluation_folder(tmp_path / "runs" / "first")
    assert discover(tmp_path).images == expected
    assert sorted(read_inputs([str(tmp_path)]).paths) == expected
    assert [row.image for row in FolderSource(tmp_path).rows() if isinstance(row, Row)] == ["a.jpg", "trip/b.jpg"]
    assert ImageFolder(tmp_path).find("b") == tmp_path / "trip" / "b.jpg"
    # The folder itself can be named.
    assert sorted(read_inputs([str(tmp_path / "runs" / "first")]).paths) == ["thumbnails/a.jpg", "thumbnails/b.jpg"]
