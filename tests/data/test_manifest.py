"""The manifest: what is written is read back, and every bad row is named at once."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captune.data.manifest import (
    Sample,
    data_name,
    iter_manifest,
    manifest_hash,
    read_manifest,
    resolve_image,
    safe_join,
    write_manifest,
)
from captune.errors import DataError

SAMPLES = [
    Sample("0036979", "images/0036979.jpg", ("A dog .", "Ein Hund läuft."), "train"),
    Sample("b", "images/b.jpg", ("一只狗\u2028跑",), "val"),
]
GOOD = '{"id": "1", "image": "a.jpg", "captions": ["A dog ."], "split": "train"}'


def manifest(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "m.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def changed(**fields: object) -> str:
    return json.dumps({**json.loads(GOOD), "id": "2", **fields})


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    assert write_manifest(tmp_path / "m.jsonl", SAMPLES) == 2
    assert read_manifest(tmp_path / "m.jsonl") == SAMPLES
    assert read_manifest(tmp_path / "m.jsonl", split="val") == SAMPLES[1:]


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)


@given(st.lists(text, min_size=1, max_size=3), text)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, captions: list[str], name: str) -> None:
    path = tmp_path_factory.mktemp("any") / "m.jsonl"
    samples = [Sample(name, name, tuple(captions), name)]
    write_manifest(path, samples)
    assert read_manifest(path) == samples


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a", SAMPLES)
    write_manifest(tmp_path / "b", SAMPLES)
    assert manifest_hash(tmp_path / "a") == manifest_hash(tmp_path / "b")
    write_manifest(tmp_path / "b", SAMPLES[:1])
    assert manifest_hash(tmp_path / "a") != manifest_hash(tmp_path / "b")
    assert len(manifest_hash(tmp_path / "a")) == 64


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "2", ', "not valid JSON"),
        ("[1]", "JSON object"),
        (changed(caption=["x"]), "'caption' is unknown; did you mean 'captions'?"),
        (changed(weight=1), "'weight' is unknown; known are id, image, captions, split."),
        ('{"id": "2", "image": "a.jpg", "split": "train"}', "'captions' is missing"),
        ('{"id": "2", "id": "3", "image": "a", "captions": ["x"], "split": "t"}', "'id' is given twice"),
        (changed(id=2), "id must be a string, not the number 2"),
        (changed(id=None), "id must be a string, not null"),
        (changed(id=" "), "id is empty"),
        (changed(split=""), "split is empty"),
        (changed(image="a\0.jpg"), "image holds a NUL"),
        (changed(captions="A dog ."), "captions must be a list of strings, not a string"),
        (changed(captions=[]), "captions is empty"),
        (changed(captions=["x", " \n"]), "caption 2 of 2 is empty"),
        (changed(captions=["x", {}]), "caption 2 of 2 must be a string, not an object"),
        (changed(captions=["\ud800"]), "surrogate"),
        (changed(captions=[float("nan")]), "must be a string, not the number nan"),
        (f'{{"id": {"9" * 5000}}}', "not valid JSON|digits"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"id": "\xe9"}', "not UTF-8 .byte 0xe9 at column 9"),
        (b'{"id": "\0"}', "NUL character"),
        (GOOD, "the id '1' is on line 1 already"),
    ],
)
def test_a_bad_row_is_named_with_its_line(tmp_path: Path, line: str | bytes, words: str) -> None:
    path = manifest(tmp_path, GOOD, "", line)
    with pytest.raises(DataError, match=words.replace("?", r"\?")) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert f"{path}:3: " in message
    assert message.startswith(f"the manifest '{path}' has 1 bad row:")
    assert len(message) < 500


def test_all_bad_rows_are_listed_at_once_and_those_beyond_the_limit_are_counted(tmp_path: Path) -> None:
    path = manifest(tmp_path, GOOD, *["{"] * 70)
    with pytest.raises(DataError, match="has 70 bad rows") as caught:
        read_manifest(path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 52
    assert lines[1].startswith(f"  {path}:2: ")
    assert lines[-1] == "  ... and 20 more"


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", SAMPLES)
    with pytest.raises(DataError, match=r"no images of the split 'vall'; it has train \(1\), val \(1\)\."):
        read_manifest(tmp_path / "m.jsonl", split="vall")


def test_an_empty_manifest_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        read_manifest(manifest(tmp_path, ""))


@pytest.mark.parametrize(("name", "words"), [("none.jsonl", "there is no file"), (".", "is a folder")])
def test_no_file(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_manifest(tmp_path / name)
    with pytest.raises(DataError, match=words):
        manifest_hash(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_with_a_byte_order_mark_are_read(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding.endswith("be") else ""
    (tmp_path / "m.jsonl").write_bytes((mark + GOOD).encode(encoding))
    assert read_manifest(tmp_path / "m.jsonl") == [Sample("1", "a.jpg", ("A dog .",), "train")]


def test_a_byte_order_mark_windows_line_ends_and_gzip_are_read(tmp_path: Path) -> None:
    expected = [Sample("1", "a.jpg", ("A dog .",), "train")]
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n")
    assert read_manifest(tmp_path / "m.jsonl") == expected
    with gzip.open(tmp_path / "m.jsonl.gz", "wb") as stream:
        stream.write(GOOD.encode())
    assert read_manifest(tmp_path / "m.jsonl.gz") == expected


def test_broken_gzip_is_one_sentence(tmp_path: Path) -> None:
    packed = gzip.compress(GOOD.encode() * 1000)
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "not.gz").write_text(GOOD)
    for name in ("cut.gz", "not.gz"):
        with pytest.raises(DataError, match="cannot be unpacked"):
            read_manifest(tmp_path / name)


def test_a_line_without_end_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.data.text_files.MAX_LINE", 2**20)
    path = manifest(tmp_path, GOOD, "x" * 2**21)
    with pytest.raises(DataError, match=r"m\.jsonl:2: the line is longer than 1 MB"):
        read_manifest(path)


def test_samples_stream_before_the_error_of_a_later_row(tmp_path: Path) -> None:
    rows = iter_manifest(manifest(tmp_path, GOOD, "{"))
    assert next(rows).id == "1"
    with pytest.raises(DataError, match="1 bad row"):
        next(rows)


def test_a_fault_while_writing_leaves_the_old_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.jsonl", SAMPLES)

    def failing() -> Iterator[Sample]:
        yield SAMPLES[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_manifest(tmp_path / "m.jsonl", failing())
    assert read_manifest(tmp_path / "m.jsonl") == SAMPLES
    assert os.listdir(tmp_path) == ["m.jsonl"]


def test_images_lie_relative_to_the_manifest_or_absolute() -> None:
    assert resolve_image("data/m.jsonl", "images/a.jpg") == Path("data/images/a.jpg")
    assert resolve_image("data/m.jsonl", "../a.jpg") == Path("data/../a.jpg")
    assert resolve_image("data/m.jsonl", "/far/a.jpg") == Path("/far/a.jpg")


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "x/../../a.jpg",
        "/etc/passwd",
        "..\\a.jpg",
        "C:\\a.jpg",
        "C:a.jpg",
        "\\a.jpg",
        "..",
        "//host/share",
        "",
        ".",
        "a/",
        "a\0.jpg",
        "\udc80.jpg",
    ],
)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"leads out|no file name|not UTF-8"):
        safe_join("images", name)


@pytest.mark.parametrize("name", ["a.jpg", "train/a.jpg", "..a.jpg", "a..b/c.jpg", "./a.jpg", "ä 1.jpg", "C.jpg"])
def test_names_inside_the_folder_are_joined(name: str) -> None:
    assert safe_join("images", name) == Path("images") / name


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("photos", "photos"),
        ("photos.jsonl", "photos"),
        ("photos-split.jsonl", "photos"),
        ("photos/manifest.jsonl", "photos"),
        ("photos/captions.csv", "photos"),
        ("photos/My holiday.csv.gz", "My holiday"),
    ],
)
def test_data_are_named_after_a_file_or_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert data_name(path) == name
    assert data_name(tmp_path / path) == name
