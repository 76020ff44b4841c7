"""The folder of drawn scenes: exact layout, byte for byte the same, reused, never incomplete."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from captune.errors import DataError, ToolError
from captune.toy import drawing, flickr30k
from captune.toy.flickr30k import plan_rows, write_flickr30k

COUNTS = {"train": 30, "val": 7, "test": 11}


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_layout_as_in_flickr30k(tmp_path: Path) -> None:
    folder = write_flickr30k(tmp_path / "flickr30k", **COUNTS, seed=1)
    assert {path.name for path in folder.root.iterdir()} == {
        "flickr30k-images", "flickr_annotations_30k.csv", "toy.json",
    }  # fmt: skip
    text = folder.annotations.read_bytes().decode("ascii")
    assert "\r" not in text
    assert text.startswith('raw,sentids,split,filename,img_id\n"[""')
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert {split: sum(row["split"] == split for row in rows) for split in COUNTS} == COUNTS
    assert [row["img_id"] for row in rows] == [str(index) for index in range(len(rows))]
    assert [i for row in rows for i in json.loads(row["sentids"])] == list(range(5 * len(rows)))
    names = [row["filename"] for row in rows]
    assert names == sorted(names)
    assert {path.name for path in folder.images.iterdir()} == set(names)
    assert all(name.removesuffix(".jpg").isdigit() for name in names)
    assert [row["split"] for row in rows] != sorted(row["split"] for row in rows)
    for row in rows:
        captions = json.loads(row["raw"])
        assert len(captions) == len(set(captions)) == 5
        with Image.open(folder.images / row["filename"]) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (drawing.IMAGE_SIZE,) * 2)


def test_the_same_quoting_as_the_real_file(shared: Path, tmp_path: Path) -> None:
    real = (shared / "captions/flickr30k/flickr_annotations_30k.csv").read_text(encoding="utf-8")
    head = real.splitlines(keepends=True)[:200]
    rewritten = io.StringIO()
    writer = csv.writer(rewritten, lineterminator="\n")
    writer.writerows(csv.reader(head))
    assert rewritten.getvalue() == "".join(head)
    folder = write_flickr30k(tmp_path / "flickr30k", train=3, val=1, test=1, seed=1)
    drawn = folder.annotations.read_text(encoding="utf-8").splitlines(keepends=True)
    assert drawn[0] == head[0]
    for line in drawn[1:]:
        assert line.count('","') == head[1].count('","') == 1


def test_equal_seeds_give_equal_bytes(tmp_path: Path) -> None:
    first = write_flickr30k(tmp_path / "a", **COUNTS, seed=3)
    second = write_flickr30k(tmp_path / "b", **COUNTS, seed=3)
    other = write_flickr30k(tmp_path / "c", **COUNTS, seed=4)
    assert digest(first.root) == digest(second.root)
    assert digest(first.root) != digest(other.root)


def test_no_image_is_in_two_splits() -> None:
    rows = plan_rows(train=400, val=100, test=200, seed=8)
    pictures = [drawing.draw_scene(row.scene).tobytes() for row in rows]
    assert len(set(pictures)) == len(rows)
    assert len({row.scene.content for row in rows}) == len(rows)
    assert all(row.scene.held_out == (row.split != "train") for row in rows)


def test_a_larger_training_set_keeps_test_scenes_and_captions() -> None:
    small, large = (plan_rows(train=n, val=5, test=20, seed=8) for n in (10, 60))

    def tests(rows: list[flickr30k.ToyRow]) -> set[tuple[object, ...]]:
        return {(row.filename, row.scene, row.captions) for row in rows if row.split == "test"}

    assert tests(small) == tests(large)


def test_reused_when_equal_and_rebuilt_when_not(tmp_path: Path) -> None:
    first = write_flickr30k(tmp_path / "flickr30k", **COUNTS, seed=1)
    assert not first.reused
    before = {path: path.stat().st_mtime_ns for path in first.root.rglob("*")}
    assert write_flickr30k(first.root, **COUNTS, seed=1).reused
    assert before == {path: path.stat().st_mtime_ns for path in first.root.rglob("*")}
    initial = digest(first.root)

    next(first.images.iterdir()).unlink()
    assert not write_flickr30k(first.root, **COUNTS, seed=1).reused
    assert digest(first.root) == initial

    first.annotations.write_text("edited", encoding="utf-8")
    assert not write_flickr30k(first.root, **COUNTS, seed=1).reused
    assert digest(first.root) == initial

    assert not write_flickr30k(first.root, **COUNTS, seed=2).reused
    assert digest(first.root) != initial


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "flickr_annotations_30k.csv").write_text("mine", encoding="utf-8")
    with pytest.raises(DataError, match="not drawn scenes"):
        write_flickr30k(tmp_path, **COUNTS, seed=1)
    assert digest(tmp_path) == {"flickr_annotations_30k.csv": hashlib.sha256(b"mine").hexdigest()}
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="is a file"):
        write_flickr30k(file, **COUNTS, seed=1)


def test_a_negative_count_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="-1 val images"):
        write_flickr30k(tmp_path / "x", train=1, val=-1, test=1)


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_stays(tmp_path: Path, stop: BaseException) -> None:
    def on_image(done: int, total: int) -> None:
        if done == 5:
            raise stop

    expected = ToolError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_flickr30k(tmp_path / "flickr30k", **COUNTS, seed=1, on_image=on_image)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    write_flickr30k(tmp_path / "x", train=2, val=1, test=1, on_image=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
