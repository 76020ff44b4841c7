"""Image files by name: names that are not UTF-8, files in a folder, and files that are no images."""

from __future__ import annotations

import io
import logging
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captune import cli
from captune.bulk import read_inputs
from captune.bulk.shards import Item, TarShard
from captune.data import image_formats
from captune.data.image_files import ImageFolder, SkippedFiles, name_as_text, text_as_name
from captune.data.importers.folder import FolderSource
from captune.data.importers.webdataset import WebDatasetSource
from captune.data.rows import Row
from captune.data.tar_parquet import InlineImages
from captune.errors import DataError


def test_examples() -> None:
    assert name_as_text("café b\\c.jpg") == "café b\\c.jpg"
    assert name_as_text(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    assert name_as_text(r"caf\xe9.jpg") == r"caf\x5cxe9.jpg"
    assert name_as_text(os.fsdecode(b"a\xe9\\b")) == r"a\xe9\x5cb"
    assert name_as_text("half \ud83d") == r"half \xed\xa0\xbd"  # not a file name: half of a pair out of JSON


@given(st.binary(max_size=12) | st.text(alphabet="\\x5ce9é", max_size=12).map(str.encode))
def test_every_name_is_text_and_can_be_read_back(name: bytes) -> None:
    decoded = name.decode("utf-8", "surrogateescape")
    text = name_as_text(decoded)
    text.encode("utf-8")
    assert text_as_name(text) == decoded


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
    path = ImageFolder(coco / folder).find(image, file_name)
    assert path == (None if expected is None else coco / folder / expected)


def test_the_nearest_file_is_taken_and_two_as_near_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "small/a.jpg", "x/b.jpg", "y/b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = ImageFolder(tmp_path)
    assert folder.find("a") == tmp_path / "a.jpg"
    assert folder.find("1", "y/b.jpg") == tmp_path / "y/b.jpg"
    with pytest.raises(DataError, match=r"'x/b\.jpg' or 'y/b\.jpg'"):
        folder.find("b")


IMAGES = ("a.jpg", "b.jfif", "c.JPE", "d.jpg_large", "sub/e.webp")
OTHERS = ("f.heic", "g.eps", "h.mov", "i", "sub/orphan.txt")
SENTENCE = (
    "5 files are not images by their ending: 1 without an ending, 1 .eps, 1 .heic, 1 .mov, 1 .txt; to read .heic: "
    "pip install 'captune[heic]'"
)


@pytest.fixture(autouse=True)
def _without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    image_formats._available()
    known = tuple(name for name in image_formats.FORMATS if name != "HEIF")
    monkeypatch.setattr(image_formats, "_available", lambda: known)
    image_formats.image_suffixes.cache_clear()
    yield  # type: ignore[misc]
    image_formats.image_suffixes.cache_clear()


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in (*IMAGES, *OTHERS):
        (folder / name).write_bytes(picture())
        if not name.endswith(".txt"):
            (folder / name).with_suffix(".txt").write_text("A red square.\n")
    for name in (".DS_Store", "Thumbs.db", "a.jpg.json", "b.npy"):
        (folder / name).write_bytes(b"0")
    return folder


def tar(path: Path, names: tuple[str, ...], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            member = tarfile.TarInfo(name)
            data = b"A red square.\n" if name.endswith(".txt") else picture()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_a_folder_to_train_on(photos: Path) -> None:
    reading = FolderSource(photos)
    rows = [row for row in reading.rows() if isinstance(row, Row)]
    assert [row.image for row in rows] == sorted(IMAGES)
    assert reading.skipped.sentence() == SENTENCE


def test_a_folder_to_caption(photos: Path) -> None:
    inputs = read_inputs([str(photos)])
    assert list(inputs.paths) == sorted(IMAGES)
    assert inputs.skipped.sentence() == SENTENCE
    for name in IMAGES:
        (photos / name).unlink()
    with pytest.raises(DataError, match=r"no images in .*: .* 1 \.heic"):
        read_inputs([str(photos)])


def test_the_commands_say_it(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*command: object) -> str:
        assert cli.run(lambda: cli.call(cli.app, [str(part) for part in command])) == 0
        return capsys.readouterr().err

    assert f"{SENTENCE}.\n" in run("prepare", "folder", photos, "--out", tmp_path / "m.jsonl")
    names = ("0.jpg", "0.txt", "0.mov", "1.jfif", "1.txt")
    summary = run("prepare", "webdataset", tar(tmp_path / "a.tar", names), "--out", tmp_path / "w.jsonl")
    assert "1 member is not an image by its ending: 1 .mov.\n" in summary
    assert "images             2" in summary


def test_a_file_is_read_whatever_its_ending_is(tmp_path: Path) -> None:
    (tmp_path / "photo.bin").write_bytes(picture())
    assert list(read_inputs([str(tmp_path / "photo.bin")]).paths) == [str(tmp_path / "photo.bin")]
    (tmp_path / "photo.bin").write_bytes(b"no image")
    with pytest.raises(DataError, match="by its ending or its content"):
        read_inputs([str(tmp_path / "photo.bin")])


def test_members_of_a_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("0.jpg", "0.txt", "1.jpe", "2.heic", "3.eps", "4.npy", "5.jpg_large")
    path = tar(tmp_path / "a.tar", names)
    with caplog.at_level(logging.WARNING):
        entries = list(TarShard("a", str(path)).items())
    # A HEIF picture is an image for certain: it goes into the quarantine with the extra's name.
    assert [entry.id for entry in entries if isinstance(entry, Item)] == ["0", "1", "2", "5"]
    assert "1 member is not an image by its ending: 1 .eps." in caplog.text
    reading = WebDatasetSource(path, InlineImages(tmp_path / "out"))
    assert [row.id for row in reading.rows() if isinstance(row, Row)] == ["0"]
    assert reading.skipped.sentence("member") == (
        "2 members are not images by their ending: 1 .eps, 1 .heic; to read .heic: pip install 'captune[heic]'"
    )


def test_many_endings_share_one_count() -> None:
    skipped = SkippedFiles()
    assert skipped.sentence() is None
    for number in range(20):
        skipped.add(f"a.{number}")
    skipped.add("b.mov")
    skipped.add("c.MOV")
    sentence = skipped.sentence()
    assert sentence is not None
    assert sentence.startswith("22 files are not images by their ending: 2 .mov, 1 .0, ")
    assert sentence.endswith("13 of other endings")
