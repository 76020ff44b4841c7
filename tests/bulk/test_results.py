"""What a job writes is never mixed with anything else, and what passes for done is done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bulk_words import IDENTITY, Words, captions, draw, files_of, write_tar
from PIL import Image

from captune.bulk import Job, make_ids_unique, read_inputs, run_shards
from captune.bulk.output import read_rows
from captune.bulk.text_files import shared_texts
from captune.errors import DataError


def work(folder: Path, *inputs: object, **settings: Any) -> list[dict[str, Any]]:
    """Caption, and return all rows of the folder."""
    job = Job(folder, read_inputs([str(source) for source in inputs]), IDENTITY, **{"shard_size": 10, **settings})
    run_shards(captions(Words()), job, job.open_shards())
    make_ids_unique(job)
    job.gather_quarantine()
    return [row for path in job.files() for row in read_rows(path)]


def tar_of(path: Path, images: list[Path], names: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = names or [image.name for image in images]
    write_tar(path, {name: image.read_bytes() for name, image in zip(names, images, strict=True)})


def test_archives_may_be_called_like_any_other_file_of_the_folder(tmp_path: Path) -> None:
    images = draw(tmp_path / "in", 12)
    names = ["images-00000", "images-00001", "images-1-00000", "IMAGES-00000", "quarantine", "job", "a b", "a-b", "a/b"]
    names += [os.fsdecode(b"caf\xe9"), "x" * 200, "café", "a..", "images-00000-1"]
    for number, name in enumerate(names):
        tar_of(tmp_path / "in" / f"{name}.tar", images[:2], [f"{number}.png", f"{number}b.png"])
    rows = work(tmp_path / "out", tmp_path / "in")
    assert len({row["id"] for row in rows}) == len(rows) == 12 + 2 * len(names)
    assert work(tmp_path / "out", tmp_path / "in") == rows
    assert files_of(tmp_path / "out").keys() >= {"café.jsonl", "images-00000-1.jsonl", "a-b.jsonl"}


@pytest.mark.parametrize("names", [("a/x.tar", "b/x.tar"), ("a/x.tar", "b/X.tar"), ("a/x.tar", "b/x.tar.gz")])
def test_two_archives_of_one_name_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    images = draw(tmp_path / "images", 1)
    for name in names:
        tar_of(tmp_path / name, images)
    with pytest.raises(DataError, match=r"would be written to the same file"):
        read_inputs([str(tmp_path / name) for name in names])


def foreign_shard(out: Path) -> None:
    (out / "images-00000.jsonl").write_text('{"id": "0000.png", "image": "x", "caption": "mine", "stopped": true}\n')


def foreign_quarantine(out: Path) -> None:
    (out / "quarantine").mkdir()
    (out / "quarantine" / "images-00001.jsonl").write_text("mine\n")


def foreign_list(out: Path) -> None:
    (out / "quarantine.jsonl").write_text("mine\n")


def foreign_job(out: Path) -> None:
    (out / "job.json").write_text('{"job": "of another program"}')


@pytest.mark.parametrize("foreign", [foreign_shard, foreign_quarantine, foreign_list, foreign_job])
def test_files_of_others_neither_pass_for_done_nor_are_replaced(
    tmp_path: Path, foreign: Callable[[Path], None]
) -> None:
    draw(tmp_path / "images", 25)
    (tmp_path / "out").mkdir()
    foreign(tmp_path / "out")
    before = files_of(tmp_path / "out")
    with pytest.raises(DataError, match=r"is not as captune caption wrote it|is broken"):
        work(tmp_path / "out", tmp_path / "images")
    assert files_of(tmp_path / "out") == before


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    images = draw(tmp_path / "out", 3)
    (tmp_path / "out" / "manifest.jsonl").write_text("mine\n")
    for name in "ab":
        tar_of(tmp_path / "out" / f"{name}.tar", images[:1], ["0.png"])
    for _ in range(2):
        rows = work(tmp_path / "out", tmp_path / "out")
        assert [row["id"] for row in rows] == ["a/0", "b/0", "0000.png", "0001.png", "0002.png"]
    assert (tmp_path / "out" / "manifest.jsonl").read_text() == "mine\n"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, bit])
@pytest.mark.parametrize("name", ["images-00000.jsonl", "quarantine/images-00001.jsonl", "t.jsonl"])
def test_damaged_shards_do_not_pass_for_done(tmp_path: Path, damage: Callable[[Path], None], name: str) -> None:
    images = draw(tmp_path / "images", 12)
    images[11].write_bytes(b"no image")
    tar_of(tmp_path / "t.tar", images[:3], ["a.png", "b.png", "c.png"])
    inputs = (tmp_path / "images", tmp_path / "t.tar")
    rows = work(tmp_path / "out", *inputs)
    path = tmp_path / "out" / name
    damage(path)
    with pytest.raises(DataError, match=f"{name}' is not as captune caption wrote it"):
        work(tmp_path / "out", *inputs)
    path.unlink()
    if "quarantine" in name:
        (tmp_path / "out" / "images-00001.jsonl").unlink()
    assert work(tmp_path / "out", *inputs) == rows


def test_captions_of_other_images_do_not_pass_for_done(tmp_path: Path) -> None:
    images = draw(tmp_path / "a", 12)
    tar_of(tmp_path / "a.tar", images)
    work(tmp_path / "out", tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert len(work(tmp_path / "out", tmp_path / "copy")) == 12  # the same bytes elsewhere
    Image.new("RGB", (9, 9)).save(tmp_path / "copy" / "more.png")
    assert len(work(tmp_path / "out", tmp_path / "copy")) == 13
    for folder, count in (("b", 12), ("c", 14)):  # the same names, as many images and more
        Image.new("RGB", (5, 7)).save(draw(tmp_path / folder, count)[3])
        with pytest.raises(DataError, match=r"is another file now than the one that was captioned"):
            work(tmp_path / "out", tmp_path / folder)
    work(tmp_path / "tars", tmp_path / "a.tar")
    (tmp_path / "b").joinpath("a.tar").write_bytes((tmp_path / "a.tar").read_bytes().replace(b"PNG", b"GNP", 1))
    with pytest.raises(DataError, match=r"is another file now"):
        work(tmp_path / "tars", tmp_path / "b" / "a.tar")


def test_an_image_that_changed_with_equal_size_and_time(tmp_path: Path) -> None:
    images = draw(tmp_path / "a", 3, ".bmp")
    work(tmp_path / "out", tmp_path / "a")
    entry = images[1].stat()
    images[1].write_bytes(images[2].read_bytes())
    os.utime(images[1], ns=(entry.st_atime_ns, entry.st_mtime_ns))
    assert images[1].stat().st_size == entry.st_size
    with pytest.raises(DataError, match=r"0001\.bmp' is another file now"):
        work(tmp_path / "out", tmp_path / "a")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_equal_keys_in_several_archives(tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    images = draw(tmp_path / "images", 6)
    keys = ["0.png", "1.png", "bad.png"]
    for number, name in enumerate("ba"):
        tar_of(tmp_path / "tars" / f"{name}.tar", [*images[2 * number : 2 * number + 2], images[5]], keys)
    tar_of(tmp_path / "tars" / "own.tar", images[4:5], ["x.png"])
    (tmp_path / "tars" / "bad").mkdir()
    (tmp_path / "tars" / "empty.png").touch()
    rows = work(tmp_path / "out", tmp_path / "tars", ending=ending)
    assert [row["id"] for row in rows] == ["a/0", "a/1", "a/bad", "b/0", "b/1", "b/bad", "x"]
    assert work(tmp_path / "out", tmp_path / "tars", ending=ending) == rows
    # A tar that is added later, and the order of the tars, do not change the ids.
    tar_of(tmp_path / "tars" / "later.tar", images[:1], ["0.png"])
    later = [row["id"] for row in work(tmp_path / "out", tmp_path / "tars", ending=ending)]
    assert later == ["a/0", "a/1", "a/bad", "b/0", "b/1", "b/bad", "later/0", "x"]
    one_by_one = tmp_path / "one by one"
    for name in ("own", "b", "a", "later"):
        last = work(one_by_one, tmp_path / "tars" / f"{name}.tar", ending=ending)
    assert [row["id"] for row in last] == later


def test_rejected_images_of_archives_have_unique_ids_too(tmp_path: Path) -> None:
    (image,) = draw(tmp_path / "images", 1)
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", {"0.png": image.read_bytes(), "1.png": b"no image"})
    for _ in range(2):
        assert [row["id"] for row in work(tmp_path / "out", tmp_path / "a.tar", tmp_path / "b.tar")] == ["a/0", "b/0"]
    assert [row["id"] for row in read_rows(tmp_path / "out" / "quarantine.jsonl")] == ["a/1", "b/1"]


def test_a_kill_while_ids_are_made_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw(tmp_path / "images", 2)
    inputs = []
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", {"0.png": images[0].read_bytes(), "1.png": b"no image"})
        inputs.append(tmp_path / f"{name}.tar")
    uninterrupted = work(tmp_path / "uninterrupted", *inputs)
    for step in range(6):
        from captune.bulk import job as module

        wrote = []

        def write_rows(
            *arguments: Any, real: Any = module.write_rows, wrote: list[int] = wrote, step: int = step
        ) -> None:
            wrote.append(1)
            if len(wrote) > 6 + step:  # six files of the captioning itself
                raise KeyboardInterrupt
            real(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(module, "write_rows", write_rows)
            with pytest.raises(KeyboardInterrupt):
                work(tmp_path / str(step), *inputs)
        assert work(tmp_path / str(step), *inputs) == uninterrupted
        assert files_of(tmp_path / str(step)) == files_of(tmp_path / "uninterrupted")


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_names_that_are_not_utf8(tmp_path: Path, ending: str) -> None:
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    (good,) = draw(tmp_path / "images", 1)
    names = [b"caf\xe9.png", rb"caf\xe9.png", b"broken\xff.png", "é.png".encode()]
    for name in names:
        shutil.copyfile(good, os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + name))
    (tmp_path / "images" / os.fsdecode(names[2])).write_bytes(b"no image")
    tar_of(tmp_path / os.fsdecode(b"t\xe9.tar"), [good] * 2, [os.fsdecode(b"k\xe9.png"), "k.png"])
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfimages/caf\xe9.png\r\n")
    inputs = (tmp_path / "images", tmp_path / os.fsdecode(b"t\xe9.tar"), tmp_path / "list.txt")
    ids = {"0000.png", r"caf\xe9.png", r"caf\x5cxe9.png", "é.png", r"k\xe9", "k", r"images/caf\xe9.png"}
    for _ in range(2):
        rows = work(tmp_path / "out", *inputs, ending=ending)
        assert {row["id"] for row in rows} == ids
        assert len(rows) == len(ids)
    for path in (tmp_path / "out").rglob("*.json*"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if path.suffix == ".jsonl":
                json.dumps(json.loads(line), ensure_ascii=False).encode()
    (bad,) = read_rows(tmp_path / "out" / "quarantine.jsonl")
    assert bad["id"] == r"broken\xff.png"


def test_a_list_in_another_encoding_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n", encoding="utf-16")
    with pytest.raises(DataError, match="not a list of paths in UTF-8"):
        read_inputs([str(tmp_path / "list.txt")])


def test_images_that_share_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    names = ["a.jpg", "a.png", "b.jpg", "link/b.webp", "c.jpg", "C.png", "d.jpg", "d.x.jpg"]
    shared = shared_texts(str(tmp_path / name) for name in names)
    groups = sorted(sorted(os.path.relpath(image, tmp_path) for image in images) for images in shared.values())
    assert groups == [["a.jpg", "a.png"], ["b.jpg", "link/b.webp"]]
