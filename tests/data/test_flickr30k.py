"""Flickr30k's CSV to a manifest: every kind of bad row, and the counts of the real files."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from captune.data.importers.flickr import flickr30k_rows, write_grounded_detail
from captune.data.importing import ImageCheck, Summary, prepare
from captune.data.issues import Issue
from captune.data.manifest import Sample, read_manifest
from captune.data.text_files import SourceFile
from captune.errors import DataError, InputError

HEADER = ["raw", "sentids", "split", "filename", "img_id"]


def row(name: str, captions: Iterable[str] = ("A dog .", "It runs ."), split: str = "train") -> list[str]:
    captions = list(captions)
    return [json.dumps(captions), json.dumps(list(range(len(captions)))), split, name, "0"]


def write_csv(folder: Path, rows: Iterable[list[str]], header: list[str] = HEADER) -> Path:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    (folder / "f.csv").write_text(buffer.getvalue(), encoding="utf-8")
    return folder / "f.csv"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "flickr30k-images"
    folder.mkdir()
    for name in ("1.jpg", "2.jpg", "0003.jpg"):
        Image.new("RGB", (40, 30), "green").save(folder / name)
    return folder


def run(file: Path, images: Path, check: ImageCheck = "decode", strict: bool = False) -> Summary:
    rows = flickr30k_rows(SourceFile(file))
    out = file.parent / "m.jsonl"
    return prepare(rows, source=str(file), images=images, out=out, check=check, strict=strict, workers=2)


def test_every_split_is_kept_in_order_with_paths_relative_to_the_manifest(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, [row("0003.jpg", split="test"), row("1.jpg", ['Ä, "b"\nc']), row("2.jpg", split="val")])
    summary = run(file, images)
    assert read_manifest(tmp_path / "m.jsonl") == [
        Sample("0003", "flickr30k-images/0003.jpg", ("A dog .", "It runs ."), "test"),
        Sample("1", "flickr30k-images/1.jpg", ('Ä, "b"\nc',), "train"),
        Sample("2", "flickr30k-images/2.jpg", ("A dog .", "It runs ."), "val"),
    ]
    assert (summary.images, summary.captions) == (3, 5)
    assert summary.splits == {"test": 1, "train": 1, "val": 1}
    assert summary.captions_per_image == {2: 2, 1: 1}
    assert summary.words_per_caption == {3: 5}
    assert not summary.problems


def broken_rows(images: Path) -> list[list[str]]:
    Image.effect_noise((64, 64), 50).save(images / "cut.jpg")
    complete = (images / "cut.jpg").read_bytes()
    (images / "cut.jpg").write_bytes(complete[: len(complete) // 2])
    (images / "text.jpg").write_text("no image")
    return [
        row("1.jpg"),  # line 2
        row("gone.jpg"),
        row("cut.jpg"),
        row("text.jpg"),
        row("1.jpg"),  # 6
        ["only", "four", "columns", "here"],
        ["['A dog', \"it's\"]", "[]", "train", "2.jpg", "0"],  # Python's spelling is read
        ["{not json", "[]", "train", "x.jpg", "0"],
        ["[1, 2]", "[]", "train", "x.jpg", "0"],  # 10
        row("../1.jpg"),
        row("0003.jpg", ["A dog .", " ", ""]),
        row("blank.jpg", [""]),
        row("none.jpg", []),
        row("y.jpg", split=""),  # 15
    ]


EXPECTED = {
    3: ("missing", "gone.jpg' is not there"),
    4: ("undecodable", "cut.jpg': image file is truncated"),
    5: ("undecodable", "text.jpg': it is no image file"),
    6: ("duplicate", "the id '1' is on line 2 already"),
    7: ("malformed", "the row has 4 columns, and 5 are expected"),
    9: ("malformed", "'x.jpg' cannot be read: not valid JSON"),
    10: ("malformed", "a JSON list of strings is expected"),
    11: ("path", "leads out of the image folder"),
    12: ("empty", "caption 2 of 3 of '0003.jpg' is empty"),
    13: ("empty", "'blank.jpg' has no caption"),
    14: ("empty", "'none.jpg' has no caption"),
    15: ("malformed", "the split of 'y.jpg' is empty"),
}


def test_bad_rows_are_listed_with_their_lines_counted_and_left_out(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, broken_rows(images))
    problems = run(file, images).problems
    by_line = {problem.line: problem for problem in reversed(problems.first)}
    assert by_line.keys() == EXPECTED.keys()
    for line, (kind, words) in EXPECTED.items():
        assert by_line[line].kind == kind
        assert words in by_line[line].message
        assert str(by_line[line]).startswith(f"{file}:{line}: ")
    assert len(problems) == 13  # two blank captions are on line 12
    assert [problem.line for problem in problems.first] == sorted(problem.line for problem in problems.first)
    assert problems.counts == {
        "missing": 1,
        "undecodable": 2,
        "duplicate": 1,
        "malformed": 4,
        "path": 1,
        "empty": 4,
    }
    kept = read_manifest(tmp_path / "m.jsonl")
    assert [(sample.id, sample.captions) for sample in kept] == [
        ("1", ("A dog .", "It runs .")),
        ("2", ("A dog", "it's")),
        ("0003", ("A dog .",)),
    ]


def test_strict_writes_nothing_and_lists_all(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, broken_rows(images))
    with pytest.raises(DataError, match="has 13 problems") as caught:
        run(file, images, strict=True)
    for line in EXPECTED:
        assert f"{file}:{line}: " in str(caught.value)
    assert not (tmp_path / "m.jsonl").exists()


def test_strict_accepts_a_clean_file(tmp_path: Path, images: Path) -> None:
    assert run(write_csv(tmp_path, [row("1.jpg")]), images, strict=True).images == 1


@pytest.mark.parametrize(("check", "images_left"), [("none", 4), ("exist", 3), ("decode", 1)])
def test_how_far_images_are_looked_at(tmp_path: Path, images: Path, check: ImageCheck, images_left: int) -> None:
    rows = [values for values in broken_rows(images)[:5] if values[3] != "2.jpg"]
    assert run(write_csv(tmp_path, rows), images, check).images == images_left


def test_an_absent_folder_is_named_before_anything_is_read(tmp_path: Path) -> None:
    file = write_csv(tmp_path, [row("1.jpg")])
    with pytest.raises(DataError, match=r"image folder '.*none' is not there; give it with --images"):
        run(file, tmp_path / "none")
    assert run(file, tmp_path / "none", "none").images == 1


@pytest.mark.parametrize(
    "header", [["caption", "image"], ["raw", "split", "file"], ["raw", "raw", "split", "filename"], [""]]
)
def test_wrong_columns_are_one_sentence(tmp_path: Path, images: Path, header: list[str]) -> None:
    file = write_csv(tmp_path, [], header)
    with pytest.raises(DataError, match=r"f\.csv:1: the columns raw,sentids,split,filename,img_id are expected"):
        run(file, images)
    assert not (tmp_path / "m.jsonl").exists()


def test_columns_are_found_by_name(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, [["1.jpg", "x", "val", '["A dog"]']], ["filename", "tokens", "split", "raw"])
    run(file, images)
    assert read_manifest(tmp_path / "m.jsonl")[0] == Sample("1", "flickr30k-images/1.jpg", ("A dog",), "val")


def test_no_usable_image_is_an_error(tmp_path: Path, images: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        run(write_csv(tmp_path, []), images)
    with pytest.raises(DataError, match=r"no image of .* \(2 missing images\)\. Is the image folder the right one"):
        run(write_csv(tmp_path, [row("a.jpg"), row("b.jpg")]), images)
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("cp1252", r"is not UTF-8 \(line 3, byte 0xe9 at column 6\) and is read as Windows-1252"),
        ("utf-16", "is UTF-16 text, by its byte order mark"),
    ],
)
def test_another_encoding_is_read_and_named(tmp_path: Path, images: Path, encoding: str, words: str) -> None:
    file = write_csv(tmp_path, [row("1.jpg"), ["['café']", "[]", "train", "2.jpg", "0"]])
    file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    reading = SourceFile(file)
    prepare(flickr30k_rows(reading), source=str(file), images=images, out=tmp_path / "m.jsonl")
    assert read_manifest(tmp_path / "m.jsonl")[1].captions == ("café",)
    (note,) = reading.notes
    assert re.search(words, note)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, [row("1.jpg"), row("2.jpg")])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert run(file, images).images == 2


def test_a_quotation_mark_that_is_never_closed(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, [row("1.jpg")])
    with file.open("a") as stream:
        stream.write('"[""A dog,[],train,2.jpg,0\n' + "x" * 60 + "\n")
        stream.write(",".join(f'"{cell}"' for cell in ["['A cat .']", "[]", "train", "2.jpg", "0"]) + "\n")
    summary = run(file, images)
    problem, following = summary.problems.first
    assert (problem.line, problem.kind) == (3, "malformed")
    assert "never closed" in problem.message
    assert (following.line, following.message) == (4, "the row has 1 column, and 5 are expected.")
    assert [sample.id for sample in read_manifest(tmp_path / "m.jsonl")] == ["1", "2"]  # the row after it is complete


def test_a_huge_field_is_a_sentence_in_bounded_memory(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_csv(tmp_path, [row("1.jpg"), row("2.jpg", ["x" * 200_000])])
    (problem,) = run(file, images).problems.first
    assert "field larger than field limit" in problem.message
    monkeypatch.setattr("captune.data.text_files.MAX_LINE", 2**16)
    file = write_csv(tmp_path, [row("1.jpg"), row("2.jpg", ["x" * 200_000]), row("0003.jpg")])
    summary = run(file, images)
    assert str(summary.problems.first[0]).startswith(f"{file}:3: the line is longer than")
    assert [sample.id for sample in read_manifest(tmp_path / "m.jsonl")] == ["1", "0003"]


def test_a_nul_costs_its_row(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, [row("1.jpg")])
    file.write_bytes(file.read_bytes() + b"\0\n" + b"[],[],train,2.jpg,0\n")
    summary = run(file, images)
    assert str(summary.problems.first[0]) == f"{file}:3: the line holds a NUL character (column 1)."
    assert len(summary.problems) == 2
    assert summary.images == 1


def test_escapes_that_drive_a_terminal_are_not_shown() -> None:
    assert str(Issue("f.csv", 1, "missing", "no '\x1b[2J.jpg'.")) == "f.csv:1: no '\ufffd[2J.jpg'."


def test_the_csv_is_not_overwritten_by_the_manifest(tmp_path: Path, images: Path) -> None:
    file = write_csv(tmp_path, [row("1.jpg")])
    before = file.read_bytes()
    with pytest.raises(InputError, match="is read here; give --out another name"):
        prepare(flickr30k_rows(SourceFile(file)), source=str(file), images=images, out=file)
    assert file.read_bytes() == before


def test_images_elsewhere_are_reached_through_links(tmp_path: Path, images: Path) -> None:
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "deep")
    file = write_csv(tmp_path, [row("1.jpg")])
    out = tmp_path / "near" / "m.jsonl"
    prepare(flickr30k_rows(SourceFile(file)), source=str(file), images=images, out=out)
    (sample,) = read_manifest(out)
    assert sample.image == "../../flickr30k-images/1.jpg"
    assert (out.parent / sample.image).is_file()
    (tmp_path / "linked").symlink_to(images)
    prepare(flickr30k_rows(SourceFile(file)), source=str(file), images=tmp_path / "linked", out=tmp_path / "m.jsonl")
    assert read_manifest(tmp_path / "m.jsonl")[0].image == "linked/1.jpg"


def test_many_images_keep_their_order_and_report_progress(tmp_path: Path, images: Path) -> None:
    for number in range(600):
        os.link(images / "1.jpg", images / f"x{number}.jpg")
    file = write_csv(tmp_path, [row(f"x{number}.jpg") for number in range(600)])
    calls: list[int] = []
    prepare(
        flickr30k_rows(SourceFile(file)),
        source=str(file),
        images=images,
        out=tmp_path / "m.jsonl",
        progress=calls.append,
    )
    assert [sample.id for sample in read_manifest(tmp_path / "m.jsonl")] == [f"x{n}" for n in range(600)]
    assert calls == sorted(calls)
    assert calls[-1] > 500


def test_a_full_disk_leaves_nothing(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space") as caught:
        run(write_csv(tmp_path, [row("1.jpg")]), images)
    assert caught.value.filename == str(tmp_path / "m.jsonl")
    assert sorted(os.listdir(tmp_path)) == ["f.csv", "flickr30k-images"]


KAGGLE = """image_name| comment_number| comment
1.jpg| 0| A man says "no | yes" .
1.jpg| 1 | Two .
2.jpg| 0| First .
2.jpg| 1   A dog runs across the grass .
0003.jpg| 4   No image of its own .
broken
"""


def test_the_kaggle_layout_and_its_broken_row(tmp_path: Path, images: Path) -> None:
    (tmp_path / "f.csv").write_text(KAGGLE)
    summary = run(tmp_path / "f.csv", images)
    assert [(sample.id, sample.captions) for sample in read_manifest(tmp_path / "m.jsonl")] == [
        ("1", ('A man says "no | yes" .', "Two .")),
        ("2", ("First .", "A dog runs across the grass .")),
    ]
    assert [(problem.line, problem.kind) for problem in summary.problems.first] == [
        (5, "repaired"),
        (6, "malformed"),
        (7, "malformed"),
    ]


def test_a_repaired_row_is_not_fatal(tmp_path: Path, images: Path) -> None:
    (tmp_path / "f.csv").write_text("".join(KAGGLE.splitlines(keepends=True)[:5]))
    assert run(tmp_path / "f.csv", images, strict=True).captions == 4


def test_the_original_json(tmp_path: Path, shared: Path) -> None:
    recorded = json.loads((shared / "goldens" / "student_functions.json").read_text())["prepare_flickr30k"]
    folder = tmp_path / "images"
    folder.mkdir()
    file = write_csv(tmp_path, [row(*values) for values in recorded["rows"]])
    for sample in recorded["o"]:
        Image.new("RGB", (8, 8)).save(folder / f"{sample['image_id']}.jpg")
    run(file, folder)
    count = write_grounded_detail(tmp_path / "o.json", read_manifest(tmp_path / "m.jsonl"))
    assert json.loads((tmp_path / "o.json").read_text()) == recorded["o"]
    assert count == len(recorded["o"]) == 2


def test_the_original_json_of_nothing_is_a_list(tmp_path: Path) -> None:
    assert write_grounded_detail(tmp_path / "o.json", []) == 0
    assert json.loads((tmp_path / "o.json").read_text()) == []


@pytest.mark.parametrize(
    ("name", "images", "captions", "splits", "problems"),
    [
        ("flickr_annotations_30k.csv", 31_014, 155_070, {"train": 29_000, "val": 1_014, "test": 1_000}, 0),
        ("results_first1000.csv", 1_000, 5_000, {"train": 1_000}, 1),
    ],
)
def test_the_real_files(
    shared: Path, tmp_path: Path, name: str, images: int, captions: int, splits: dict[str, int], problems: int
) -> None:
    file = shared / "captions" / "flickr30k" / name
    out = tmp_path / "m.jsonl"
    rows = flickr30k_rows(SourceFile(file))
    summary = prepare(rows, source=str(file), images=tmp_path / "flickr30k-images", out=out, check="none")
    assert (summary.images, summary.captions, summary.splits) == (images, captions, splits)
    assert len(summary.problems) == problems
    assert summary.captions_per_image == {5: images}
    samples = read_manifest(out)
    assert samples[0].id == "1000092795"
    assert samples[0].image == "flickr30k-images/1000092795.jpg"
    assert samples[0].captions[1] == "Two young, White males are outside near many bushes."
