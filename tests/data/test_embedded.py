"""Data sets that bring their images along: parquet, Hugging Face, webdataset; and what hostile ones try."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captune.data.importers.hugging_face import HuggingFaceSource
from captune.data.importers.table import Columns, table_rows
from captune.data.importers.webdataset import WebDatasetSource
from captune.data.issues import Issue
from captune.data.rows import Row
from captune.data.tar_parquet import InlineImages
from captune.data.text_files import SourceFile
from captune.errors import DataError


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, kind)
    return stream.getvalue()


def split_up(entries: list[Row | Issue]) -> tuple[list[Row], list[Issue]]:
    return [row for row in entries if isinstance(row, Row)], [row for row in entries if isinstance(row, Issue)]


def everything_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# Where images are written


def test_names_are_kept_and_never_taken_twice(tmp_path: Path) -> None:
    images = InlineImages(tmp_path / "images")
    assert images.add(picture(), "a.png") == "a.png"
    assert images.add(picture(), "train/a.png") == "a.png"
    other = images.add(picture("blue"), "a.png")
    assert other.endswith(".png")
    assert other != "a.png"
    assert images.add(picture("blue")) == other
    assert images.add(picture(kind="JPEG"), "n" * 300 + ".jpg").endswith(".jpg")
    assert len(everything_below(tmp_path / "images")) == 3
    assert (tmp_path / "images" / "a.png").read_bytes() == picture()


@pytest.mark.parametrize("name", ["..", "x/..", "a\0.png", "C:"])
def test_names_that_lead_away_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError):
        InlineImages(tmp_path / "images").add(picture(), name)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("name", ["../../up.png", "/etc/up.png", "..\\up.png"])
def test_folders_of_a_name_are_dropped(tmp_path: Path, name: str) -> None:
    assert InlineImages(tmp_path / "images").add(picture(), name) == "up.png"
    assert everything_below(tmp_path) == ["images", "images/up.png"]


def test_a_link_under_the_name_is_neither_replaced_nor_followed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "images" / "a.png").symlink_to(tmp_path / "precious")
    name = InlineImages(tmp_path / "images").add(picture(), "a.png")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "images" / "a.png").is_symlink()
    assert name != "a.png"
    assert (tmp_path / "images" / name).read_bytes() == picture()


def test_a_file_of_other_bytes_is_never_replaced(tmp_path: Path) -> None:
    first = InlineImages(tmp_path).add(picture(), "a.png")
    before = (tmp_path / "a.png").stat()
    other = InlineImages(tmp_path).add(picture() + b"more", "a.png")
    again = InlineImages(tmp_path).add(picture(), "a.png")
    assert first == again == "a.png" != other
    assert (tmp_path / "a.png").read_bytes() == picture()
    assert (tmp_path / "a.png").stat().st_ino == before.st_ino  # the same bytes are not even written again
    assert (tmp_path / other).read_bytes() == picture() + b"more"
    assert InlineImages(tmp_path).add(picture() + b"more", "a.png") == other  # the same import names it the same


def test_an_image_too_large_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.data.tar_parquet.MAX_MEMBER", 10)
    with pytest.raises(DataError, match="is the limit"):
        InlineImages(tmp_path).add(picture())


# Parquet


def parquet(path: Path, columns: dict[str, Any], **options: Any) -> SourceFile:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    from pyarrow import parquet as pq

    pq.write_table(pyarrow.table(columns), path, **options)
    return SourceFile(path)


def test_parquet_with_file_names(tmp_path: Path) -> None:
    reading = parquet(
        tmp_path / "t.parquet",
        {
            "file": ["b.jpg", "a.jpg", "b.jpg", "c.jpg", "d.jpg"],
            "first": ["One .", "Two .", "Three .", None, "Five ."],
            "more": [["x"], [], ["y", "z"], ["w"], ["v"]],
            "part": ["train", "test", "train", "train", None],
        },
        row_group_size=2,
    )
    rows, problems = split_up(list(table_rows(reading, Columns("file", ("first", "more"), "part"))))
    assert rows == [
        Row(1, "b.jpg", ("One .", "x", "Three .", "y", "z"), "train"),
        Row(2, "a.jpg", ("Two .",), "test"),
    ]
    assert [(problem.line, problem.message) for problem in problems] == [
        (4, "'first' must be a string or a list of strings."),
        (5, "'part' must be a string."),
    ]


def test_parquet_with_images_inside(tmp_path: Path) -> None:
    cells = [{"bytes": picture(), "path": "../a.png"}, {"bytes": picture("blue"), "path": None}, {"bytes": None}]
    reading = parquet(tmp_path / "t.parquet", {"image": cells, "caption": ["A .", "B .", "C ."]})
    images = InlineImages(tmp_path / "images")
    rows, problems = split_up(list(table_rows(reading, Columns(), inline_images=images)))
    assert rows[0] == Row(1, "a.png", ("A .",), "train")
    assert (tmp_path / "images" / rows[1].image).read_bytes() == picture("blue")
    assert [problem.message for problem in problems] == ["'image' must be the name of a file, not dict."]
    assert sorted(everything_below(tmp_path)) == sorted(
        ["images", "images/a.png", f"images/{rows[1].image}", "t.parquet"]
    )


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": [1, 2], "caption": ["a", "b"]}, "'image' must be the name of a file, not int"),
        ({"image": ["a", "b"], "caption": [1.5, 2.5]}, "'caption' must be a string or a list of strings"),
        ({"image": ["a", "b"], "caption": [[1], [2]]}, "'caption' must be a string or a list of strings"),
        ({"image": [b"a", b"b"], "caption": ["a", "b"]}, "'image' must be the name of a file, not bytes"),
    ],
)
def test_parquet_of_wrong_types(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    rows, problems = split_up(list(table_rows(parquet(tmp_path / "t.parquet", columns), Columns())))
    assert not rows
    assert [problem.message for problem in problems] == [f"{words}."] * 2


def test_parquet_that_is_none_or_broken(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    (tmp_path / "no.parquet").write_text("image,caption\n")
    with pytest.raises(DataError, match="is no parquet file that can be read"):
        list(table_rows(SourceFile(tmp_path / "no.parquet"), Columns()))
    many = {"image": [f"{i}.jpg" for i in range(5000)], "caption": [os.urandom(20).hex() for _ in range(5000)]}
    parquet(tmp_path / "t.parquet", many).close()
    data = bytearray((tmp_path / "t.parquet").read_bytes())
    data[2000:60000] = bytes(58000)
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(DataError, match="is broken after row"):
        list(table_rows(SourceFile(tmp_path / "t.parquet"), Columns()))
    with pytest.raises(DataError, match=r"did you mean 'image'\?"):
        list(table_rows(parquet(tmp_path / "u.parquet", {"image": ["a"], "caption": ["b"]}), Columns("imge")))


def test_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    column = pyarrow.array([b"A dog .", b"caf\xe9"]).view(pyarrow.string())
    reading = parquet(tmp_path / "t.parquet", {"image": ["a.jpg", "b.jpg"], "caption": column})
    rows, problems = split_up(list(table_rows(reading, Columns())))
    assert [row.image for row in rows] == ["a.jpg"]
    assert [(problem.line, problem.kind) for problem in problems] == [(2, "encoding")]


# Webdataset


def tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar_with_all_kinds_of_captions(tmp_path: Path, mode: str) -> None:
    ending = {"w": ".tar", "w:gz": ".tar.gz", "w:xz": ".tar.xz"}[mode]
    source = tar(
        tmp_path / f"a{ending}",
        {
            "./0001.jpg": picture(kind="JPEG"),
            "./0001.txt": "\ufeffOne .\r\nTwo .\n".encode(),
            "sub/0002.json": json.dumps({"captions": ["Three .", "Four ."], "url": "x"}).encode(),
            "sub/0002.png": picture(),
            "0003.jpg": picture("green", "JPEG"),
            "0003.cls": b"7",
            "0003.json": b'{"caption": "Five ."}',
        },
        mode,
    )
    images = InlineImages(tmp_path / "images")
    reading = WebDatasetSource(source, images, split="val")
    rows, problems = split_up(list(reading.rows()))
    assert rows == [
        Row(0, "0001.jpg", ("One .", "Two ."), "val", "0001"),
        Row(0, "sub_0002.png", ("Three .", "Four ."), "val", "sub/0002"),
        Row(0, "0003.jpg", ("Five .",), "val", "0003"),
    ]
    assert not problems
    assert (tmp_path / "images" / "sub_0002.png").read_bytes() == picture()
    assert reading.share == 1.0


def test_a_hostile_tar(tmp_path: Path) -> None:
    """Nothing outside of the folder of images is read or written, whatever the members are called or point to."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("a secret")
    path = tmp_path / "data" / "h.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, link
            archive.addfile(member, io.BytesIO(data))

        add("../../up.jpg", picture(kind="JPEG"))
        add("/tmp/captune-absolute.jpg", picture(kind="JPEG"))
        add("C:\\windows.jpg", picture(kind="JPEG"))
        add("door", kind=tarfile.SYMTYPE, link=str(outside))
        add("door/through.jpg", picture(kind="JPEG"))
        add("door/through.txt", b"Through .")
        add("link.jpg", kind=tarfile.SYMTYPE, link=str(outside / "secret.txt"))
        add("hard.jpg", kind=tarfile.LNKTYPE, link="/etc/passwd")
        add("fifo.jpg", kind=tarfile.FIFOTYPE)
        add("noending", b"x")
        add("bad.jpg", picture(kind="JPEG"))
        add("bad.txt", b"caf\xe9")
        add("twice.jpg", picture(kind="JPEG"))
        add("twice.json", b'{"caption": "a", "caption": "b"}')
        add("lonely.txt", b"No image .")
        add("mute.jpg", picture(kind="JPEG"))
        add("good.jpg", picture(kind="JPEG"))
        add("good.txt", b"Good .")
    images = InlineImages(tmp_path / "data" / "images")
    rows, problems = split_up(list(WebDatasetSource(path, images).rows()))
    assert [row.id for row in rows] == ["door/through", "good"]
    assert [problem.kind for problem in problems] == ["path"] * 8 + ["malformed"] * 3 + ["empty"]
    assert "'caption' is given twice" in problems[9].message
    assert everything_below(tmp_path) == [
        "data",
        "data/h.tar",
        "data/images",
        "data/images/door_through.jpg",
        "data/images/good.jpg",
        "outside",
        "outside/secret.txt",
    ]
    assert not Path("/tmp/captune-absolute.jpg").exists()


def test_a_member_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.data.importers.webdataset.MAX_LINE", 10)
    source = tar(tmp_path / "a.tar", {"a.jpg": picture(kind="JPEG"), "a.txt": b"long " * 10, "b.jpg": b""})
    _, problems = split_up(list(WebDatasetSource(source, InlineImages(tmp_path / "i")).rows()))
    assert "the member 'a.txt' has 0 MB" in problems[0].message


@pytest.mark.parametrize("cut", [700, 3000])
def test_a_tar_cut_short(tmp_path: Path, cut: int) -> None:
    source = tar(tmp_path / "a.tar", {f"{n}.txt": b"x" * 400 for n in range(9)})
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(DataError, match="is no complete tar file"):
        list(WebDatasetSource(source, InlineImages(tmp_path / "i")).rows())


def test_no_tar(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.tar file"):
        WebDatasetSource(tmp_path, InlineImages(tmp_path))
    with pytest.raises(DataError, match="is not there"):
        WebDatasetSource(tmp_path / "a.tar", InlineImages(tmp_path))
    (tmp_path / "a.tar").write_text("no tar at all, but long enough to hold a header" * 40)
    with pytest.raises(DataError, match="is no complete tar file"):
        list(WebDatasetSource(tmp_path / "a.tar", InlineImages(tmp_path)).rows())


def members(*files: tuple[str, bytes | str]) -> list[tuple[str, bytes]]:
    return [(name, data.encode() if isinstance(data, str) else data) for name, data in files]


def archive(path: Path, files: list[tuple[str, bytes]]) -> Path:
    """A tar in which a name may be twice."""
    with tarfile.open(path, "w") as tar_file:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar_file.addfile(member, io.BytesIO(data))
    return path


JPEG = picture(kind="JPEG")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (members(("a.jpg", JPEG), ("a.txt", "x"), ("a.jpg", JPEG), ("a.txt", "y")), "'a.jpg' is in the tar twice"),
        (members(("a.jpg", JPEG), ("a.txt", "x"), ("a.txt", "y")), "'a.txt' is in the tar twice"),
        (members(("a.jpg", JPEG), ("a.png", picture()), ("a.txt", "x")), "has two images, '.jpg' and '.png'"),
    ],
)
def test_a_key_with_a_member_twice_is_left_out(tmp_path: Path, files: list[tuple[str, bytes]], words: str) -> None:
    files += members(("b.jpg", JPEG), ("b.txt", "good"))
    reading = WebDatasetSource(archive(tmp_path / "a.tar", files), InlineImages(tmp_path / "i"))
    rows, problems = split_up(list(reading.rows()))
    assert [row.id for row in rows] == ["b"]
    assert words in problems[0].message
    assert problems[0].rows == sum(name.endswith(".txt") for name, _ in files) - 1
    assert everything_below(tmp_path / "i") == ["b.jpg"]


def test_a_key_that_comes_again_later_in_a_tar_is_left_out(tmp_path: Path) -> None:
    files = [member for key in "aba" for member in members((f"{key}.jpg", JPEG), (f"{key}.txt", key))]
    reading = WebDatasetSource(archive(tmp_path / "a.tar", files), InlineImages(tmp_path / "i"))
    rows, problems = split_up(list(reading.rows()))
    assert [row.id for row in rows] == ["a", "b"]
    assert [problem.message for problem in problems] == [
        "the key 'a' is in the tar already; its second sample is left out."
    ]


def test_keys_that_begin_again_in_each_tar(tmp_path: Path) -> None:
    for number, colour in enumerate(("red", "blue")):
        files = [
            member
            for key in "01"
            for member in members((f"{key}.jpg", picture(colour, "JPEG")), (f"{key}.txt", f"{colour} {key}"))
        ]
        archive(tmp_path / f"shard-{number}.tar", files)
    reading = WebDatasetSource(tmp_path, InlineImages(tmp_path / "i"))
    rows, problems = split_up(list(reading.rows()))
    assert [(row.id, row.captions) for row in rows] == [
        ("shard-0/0", ("red 0",)),
        ("shard-0/1", ("red 1",)),
        ("shard-1/0", ("blue 0",)),
        ("shard-1/1", ("blue 1",)),
    ]
    assert not problems
    assert [(tmp_path / "i" / row.image).read_bytes() == picture("blue", "JPEG") for row in rows] == [False] * 2 + [
        True
    ] * 2
    (note,) = reading.notes
    assert note == "keys are in several tars, so ids of 2 tars begin with their names, shard-0/..."
    archive(tmp_path / "shard-2.tar", members(("9.jpg", picture("green", "JPEG")), ("9.txt", "green")))
    rows, _ = split_up(list(WebDatasetSource(tmp_path, InlineImages(tmp_path / "i")).rows()))
    assert [row.id for row in rows] == ["shard-0/0", "shard-0/1", "shard-1/0", "shard-1/1", "9"]


@pytest.mark.parametrize(
    ("text", "entry", "expected", "notes"),
    [
        ("A dog.", {"caption": "A dog.", "similarity": float("nan")}, ("A dog.",), 0),
        (" A  dog. \n", {"caption": "A dog."}, ("A dog.",), 0),
        ("A dog\nruns.", {"caption": "A dog\nruns."}, ("A dog\nruns.",), 0),
        ("One.\nTwo.", {"captions": ["One.", "Two."]}, ("One.", "Two."), 0),
        ("A dog.", {"caption": "A cat."}, ("A dog.",), 1),
        ("A dog.", {"caption": None, "url": "x"}, ("A dog.",), 0),
        ("", {"caption": "A dog."}, ("A dog.",), 0),
    ],
)
def test_a_caption_in_text_and_json_is_one_caption(
    tmp_path: Path, text: str, entry: dict[str, Any], expected: tuple[str, ...], notes: int
) -> None:
    for order in (("txt", "json"), ("json", "txt")):
        contents = {"txt": text, "json": json.dumps(entry)}
        files = members(("0.jpg", JPEG), *((f"0.{ending}", contents[ending]) for ending in order))
        reading = WebDatasetSource(archive(tmp_path / "a.tar", files), InlineImages(tmp_path / "i"))
        rows, problems = split_up(list(reading.rows()))
        assert [row.captions for row in rows] == [expected]
        assert [problem.kind for problem in problems] == ["unused"] * notes


# Hugging Face


def hugging_face(source: Path, columns: Columns, images: Path, **options: Any) -> tuple[list[Row], list[Issue]]:
    return split_up(list(HuggingFaceSource(str(source), columns, InlineImages(images), **options).rows()))


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = pytest.importorskip("datasets", reason="needs the extra 'data'")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return module


def test_a_saved_data_set_with_splits(datasets: Any, tmp_path: Path) -> None:
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Sequence(datasets.Value("string")), "n": datasets.Value("int64")}
    )
    parts = {
        split: datasets.Dataset.from_dict(
            {"image": [{"bytes": picture(c), "path": f"{c}.png"} for c in colours], "text": texts, "n": [7, 8][:size]},
            features=features,
        )
        for split, colours, texts, size in (
            ("train", ["red", "blue"], [["One .", "Two ."], ["Three ."]], 2),
            ("validation", ["green"], [["Four ."]], 1),
        )
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    images = tmp_path / "images"
    rows, problems = hugging_face(tmp_path / "saved", Columns("image", "text"), images)
    assert rows == [
        Row(1, "red.png", ("One .", "Two ."), "train"),
        Row(2, "blue.png", ("Three .",), "train"),
        Row(1, "green.png", ("Four .",), "val"),
    ]
    assert not problems
    assert (images / "blue.png").read_bytes() == picture("blue")
    rows, _ = hugging_face(tmp_path / "saved", Columns("image", "text", id="n"), images, split="train")
    assert [row.id for row in rows] == ["7", "8"]
    with pytest.raises(DataError, match="no split 'test'; it has train, validation"):
        hugging_face(tmp_path / "saved", Columns(), images, split="test")
    with pytest.raises(DataError, match=r"did you mean 'text'\?"):
        hugging_face(tmp_path / "saved", Columns("image", "texts"), images)


def test_a_folder_of_parquet_streams(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    cells = [{"bytes": picture(), "path": "a.png"}, {"bytes": picture(), "path": "a.png"}]
    parquet(tmp_path / "data" / "test-00000.parquet", {"image": cells, "caption": ["One .", "Two ."]}).close()
    rows, problems = hugging_face(tmp_path / "data", Columns(), tmp_path / "images")
    assert (rows, problems) == ([Row(1, "a.png", ("One .", "Two ."), "test")], [])


def test_files_outside_of_a_data_set_are_not_read(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture("navy"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.png").write_bytes(picture())
    (tmp_path / "data" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "data" / "loop.png").symlink_to("loop.png")
    names = ["own.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "gone.png", "loop.png"]
    lines = [json.dumps({"image": name, "caption": "A dog ."}) for name in names]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines) + "\n")
    rows, problems = hugging_face(tmp_path / "data", Columns(), tmp_path / "images")
    assert [row.image for row in rows] == ["own.png"]
    assert [problem.line for problem in problems] == [2, 3, 4, 5, 6]
    assert all("is outside of the data set's folder" in problem.message for problem in problems[:3])
    assert everything_below(tmp_path / "images") == ["own.png"]


def test_no_data_set_is_one_sentence(datasets: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        hugging_face(tmp_path / "empty", Columns(), tmp_path / "images")
    (tmp_path / "file.csv").touch()
    with pytest.raises(DataError, match="is a file; give the folder"):
        hugging_face(tmp_path / "file.csv", Columns(), tmp_path / "images")
