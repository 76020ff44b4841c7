"""Every importer but Flickr30k's: small files of each layout with their faults, and the counts of the real ones."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from captune.data.importers.coco import coco_rows
from captune.data.importers.flickr import listed_splits, token_rows
from captune.data.importers.folder import FolderSource
from captune.data.importers.karpathy import karpathy_rows, read_splits, with_splits
from captune.data.importers.table import Columns, table_rows
from captune.data.importing import Summary, prepare
from captune.data.issues import Issue
from captune.data.json_stream import json_items
from captune.data.manifest import Sample, read_manifest
from captune.data.rows import CaptionRow, Row, group_by_image
from captune.data.splits import split_of_name
from captune.data.text_files import SourceFile
from captune.errors import DataError


def written(path: Path, text: str | bytes) -> SourceFile:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return SourceFile(path)


def run(rows: Iterable[Row | Issue], folder: Path) -> tuple[Summary, list[Sample]]:
    out = folder / "m.jsonl"
    summary = prepare(rows, source="source", images=folder, out=out, check="none")
    return summary, read_manifest(out)


def split_up(rows: Iterable[Row | Issue]) -> tuple[list[Row], list[Issue]]:
    entries = list(rows)
    return [row for row in entries if isinstance(row, Row)], [row for row in entries if isinstance(row, Issue)]


# Streaming JSON


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
@pytest.mark.parametrize(
    "document",
    [
        {"a": [1, 23.5, "x]", {"b": [1, 2]}], "c": {"d": None}, 'é"': [], "n": -12, "t": True},
        [{"a": '😀 \\ " ,'}, [], 5],
        {},
        [],
    ],
)
def test_a_document_streams_as_json_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, document: object
) -> None:
    monkeypatch.setattr("captune.data.json_stream._CHUNK", chunk)
    for number, text in enumerate(
        [json.dumps(document, ensure_ascii=False), " " + json.dumps(document, indent=2) + "\n"]
    ):
        items = list(json_items(written(tmp_path / f"{number}.json", text)))
        if isinstance(document, list):
            assert items == [("", item) for item in document]
        else:
            expected: list[tuple[str, object]] = []
            for key, value in document.items():
                expected += [(key, item) for item in value] if isinstance(value, list) else [(key, value)]
            assert items == expected


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'{' is expected at character 1"),
        ("x", "'{' is expected at character 1"),
        ('{"a": [1, 2', "',' is expected|']'|expected"),
        ('{"a": [1 2]}', "',' is expected at character 10"),
        ('{"a" [1]}', "':' is expected at character 6"),
        ("{1: 2}", "a key is expected"),
        ('{"a": nul}', "expecting value at character 7"),
        ('{"a": "x}', "unterminated string"),
        ("[1] [2]", "something follows the end at character 5"),
        ("[" + "[" * 100_000, "nested too deeply"),
        ('["a"]'.encode("utf-16")[:-1], "is not valid UTF-16 text"),
    ],
)
def test_broken_documents_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, text: str | bytes, words: str
) -> None:
    small = isinstance(text, str) and len(text) < 1000  # an item is parsed again with every chunk
    monkeypatch.setattr("captune.data.json_stream._CHUNK", chunk if small else 1 << 20)
    with pytest.raises(DataError, match=words) as caught:
        list(json_items(written(tmp_path / "a.json", text)))
    assert "\n" not in str(caught.value)


def test_an_endless_item_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.data.json_stream._CHUNK", 1000)
    monkeypatch.setattr("captune.data.json_stream.MAX_LINE", 10_000)
    with pytest.raises(DataError, match="longer than 0 MB, or broken, begins at character 2"):
        list(json_items(written(tmp_path / "a.json", '["' + "x" * 50_000)))


# Gathering


def test_shuffled_captions_are_grouped() -> None:
    captions = [CaptionRow(n + 1, f"{n // 5}.jpg", f"caption {n}", "train") for n in range(500)]
    sorted_rows, _ = split_up(group_by_image(iter(captions), "f"))
    assert [row.captions for row in sorted_rows] == [
        tuple(f"caption {5 * n + k}" for k in range(5)) for n in range(100)
    ]
    random.Random(0).shuffle(captions)
    rows, problems = split_up(group_by_image(iter(captions), "f"))
    assert not problems
    assert {row.image: sorted(row.captions) for row in rows} == {row.image: sorted(row.captions) for row in sorted_rows}
    first_seen = list(dict.fromkeys(caption.image for caption in captions))
    assert [row.image for row in rows] == first_seen


def test_one_image_in_two_splits_is_a_problem() -> None:
    captions = [
        CaptionRow(1, "a.jpg", "x", "train"),
        Issue("f", 2, "malformed", "y"),
        CaptionRow(3, "a.jpg", "z", "val"),
        CaptionRow(4, "a.jpg", "w", "train"),
    ]
    rows, problems = split_up(group_by_image(iter(captions), "f"))
    assert rows == [Row(1, "a.jpg", ("x", "w"), "train")]
    assert [problem.line for problem in problems] == [2, 3]
    assert problems[1].message == "'a.jpg' is of the split 'val' here, of 'train' on line 1."


# Karpathy


def karpathy_entry(name: str, split: str = "test", **more: object) -> dict[str, object]:
    return {"filename": name, "split": split, "sentences": [{"raw": "A dog .", "tokens": []}], **more}


def test_karpathy(tmp_path: Path) -> None:
    entries: list[object] = [
        karpathy_entry("a.jpg"),
        karpathy_entry("COCO_val2014_000000000042.jpg", "restval", filepath="val2014", cocoid=42),
        {"filename": "b.jpg", "split": "val"},
        {**karpathy_entry("c.jpg"), "sentences": [{"raw": 3}]},
        "d.jpg",
    ]
    reading = written(tmp_path / "k.json", json.dumps({"images": entries, "dataset": "x"}))
    rows, problems = split_up(karpathy_rows(reading))
    assert rows == [
        Row(0, "a.jpg", ("A dog .",), "test"),
        Row(0, "val2014/COCO_val2014_000000000042.jpg", ("A dog .",), "restval", "42"),
    ]
    assert [problem.message for problem in problems] == [
        "image 3 cannot be read: 'sentences' is missing.",
        "image 4 cannot be read: 'raw' must be a string.",
        "image 5 cannot be read: an object with 'filename' is expected.",
    ]


def test_restval_may_be_training_images(tmp_path: Path) -> None:
    entries = [karpathy_entry("a.jpg", "train"), karpathy_entry("b.jpg", "restval"), karpathy_entry("c.jpg", "test")]
    entries[0]["cocoid"] = 391895.0
    (tmp_path / "k.json").write_text(json.dumps({"images": entries}))
    for options, splits in (({}, ["train", "restval", "test"]), ({"restval": "train"}, ["train", "train", "test"])):
        rows, _ = split_up(karpathy_rows(SourceFile(tmp_path / "k.json"), **options))
        assert [row.split for row in rows] == splits
        assert rows[0].id == "391895"


@pytest.mark.parametrize("text", ["{}", '{"images": []}', '{"image": [1]}', '{"images": {"a": 1}}', "[1]"])
def test_not_karpathy(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"Karpathy's JSON|cannot be read"):
        read_splits(written(tmp_path / "k.json", text))


def test_splits_of_karpathy_for_other_files(tmp_path: Path) -> None:
    text = json.dumps({"images": [karpathy_entry("a.jpg", "val", filepath="x")]})
    splits = read_splits(written(tmp_path / "k.json", text))
    problem = Issue("f", 3, "malformed", "z")
    rows = with_splits([Row(1, "y/a.jpg", ("x",), "train"), Row(2, "b.jpg", ("x",), "train"), problem], splits)
    assert list(rows) == [Row(1, "y/a.jpg", ("x",), "val"), Row(2, "b.jpg", ("x",), "unlisted"), problem]


# Lines 'image#n<TAB>caption'


def test_token_lines(tmp_path: Path) -> None:
    text = (
        "a.jpg#0\tA dog .\n"
        "a.jpg#1 A space .\n"
        "\n"
        "b.jpg.1#0\tNumbered .\n"
        "b.jpg.1#1\tNumbered too .\n"
        "COCO_val2014_000000217153#0\t一个男人\n"
        "c.jpg#zhm#0\t一只狗\n"
        "no key\n"
        "d.jpg#0\t\n"
    )
    summary, samples = run(token_rows(written(tmp_path / "t.token.txt", text)), tmp_path)
    assert [(sample.image, sample.captions) for sample in samples] == [
        ("a.jpg", ("A dog .", "A space .")),
        ("b.jpg", ("Numbered .", "Numbered too .")),
        ("COCO_val2014_000000217153.jpg", ("一个男人",)),
        ("c.jpg", ("一只狗",)),
    ]
    faults = [(problem.line, problem.kind) for problem in summary.problems.first]
    assert faults == [(2, "repaired"), (4, "repaired"), (8, "malformed"), (9, "empty")]


def test_captions_of_kaggle(tmp_path: Path) -> None:
    text = 'image,caption\na.jpg,"A dog , ""x"" ."\na.jpg,Two .\nb.jpg\n'
    summary, samples = run(token_rows(written(tmp_path / "captions.txt", text)), tmp_path)
    assert [sample.captions for sample in samples] == [('A dog , "x" .', "Two .")]
    assert [problem.line for problem in summary.problems.first] == [4]


def test_lists_next_to_the_token_file_give_the_splits(tmp_path: Path) -> None:
    assert listed_splits(tmp_path) == {}
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("a.jpg\n")
    (tmp_path / "Flickr_8k.testImages.txt").write_text("b.jpg\r\n\n")
    assert listed_splits(tmp_path) == {"a.jpg": "train", "b.jpg": "test"}
    (tmp_path / "Flickr_8k.devImages.txt").touch()
    with pytest.raises(DataError, match="is empty"):
        listed_splits(tmp_path)


# COCO


@pytest.mark.parametrize("order", [["images", "annotations"], ["annotations", "images"]])
def test_coco_in_either_order(tmp_path: Path, order: list[str]) -> None:
    lists: dict[str, list[object]] = {
        "images": [
            {"id": 7, "file_name": "000000000007.jpg"},
            {"id": 8, "file_name": "8.jpg", "domain": "near-domain"},
            {"id": 9, "file_name": "9.jpg"},
            {"id": True, "file_name": "10.jpg"},
        ],
        "annotations": [
            {"image_id": 8, "caption": "A cat ."},
            {"image_id": 7, "caption": "A dog ."},
            {"image_id": 8, "caption": "Two ."},
            {"image_id": 99, "caption": "Nothing ."},
            {"image_id": 7},
        ],
    }
    text = json.dumps({"info": {"year": 2017}, **{key: lists[key] for key in order}})
    summary, samples = run(coco_rows(written(tmp_path / "c.json", text), split="val"), tmp_path)
    assert samples == [
        Sample("8", "8.jpg", ("A cat .", "Two ."), "val", "near-domain"),
        Sample("7", "000000000007.jpg", ("A dog .",), "val"),
    ]
    messages = sorted(problem.message for problem in summary.problems.first)
    assert messages == [
        "captions are given for the image 99, which is not in the list of images.",
        "entry 4 of images cannot be read: 'id' must be text or a whole number, not true or false.",
        "entry 5 of annotations cannot be read: 'caption' is missing.",
        "the image 9 ('9.jpg') has no caption.",
    ]


def test_two_images_of_one_id_lose_their_captions(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": name} for n, name in ((1, "a.jpg"), (2, "b.jpg"), ("1", "c.jpg"), (2.0, "b.jpg"))]
    annotations = [{"image_id": n, "caption": f"caption {n}"} for n in (1, 2, 1)]
    reading = written(tmp_path / "c.json", json.dumps({"annotations": annotations, "images": images}))
    summary, samples = run(coco_rows(reading, split="val"), tmp_path)
    assert [(sample.id, sample.image) for sample in samples] == [("2", "b.jpg")]
    assert [problem.message for problem in summary.problems.first] == [
        "the image id 1 is in the list of images twice: 'a.jpg' and 'c.jpg'.",
        "the image id 1 is of several images; its 2 captions are left out.",
    ]
    assert summary.problems.rows == 2


def test_an_entry_that_cannot_be_read_ends_no_import(tmp_path: Path) -> None:
    text = (
        '{"images": [{"id": 1, "file_name": "a.jpg", "area": NaN}, {"id": ' + "9" * 5000 + ', "file_name": "b.jpg"}],'
        '"annotations": [{"image_id": 1, "caption": "x", "caption": "y"}, {"image_id": 1, "caption": "caf\xe9"},'
        '{"image_id": 1.5, "caption": "z"}, {"image_id": 1, "caption": "good"}]}'
    )
    reading = written(tmp_path / "c.json", text.encode("latin-1"))
    summary, samples = run(coco_rows(reading, split="val"), tmp_path)
    assert [(sample.id, sample.captions) for sample in samples] == [("1", ("good",))]
    assert [problem.message for problem in summary.problems.first] == [
        "entry 2 of images cannot be read: 'id' must be text or a whole number, not inf.",
        "entry 1 of annotations cannot be read: the key 'caption' is given twice.",
        "the caption of '1' is not UTF-8 (byte 0xe9).",
        "entry 3 of annotations cannot be read: 'image_id' must be text or a whole number, not 1.5.",
    ]


def test_not_coco(tmp_path: Path) -> None:
    reading = written(tmp_path / "r.json", '[{"image_id": 1, "caption": "a"}]')
    with pytest.raises(DataError, match='no list "images" and "annotations"'):
        list(coco_rows(reading, split="val"))


def test_the_split_in_a_name() -> None:
    names = ["captions_val2017.json", "captions_train2014.json.gz", "image_info_test2014.json", "mine.json"]
    assert [split_of_name(name)[0] for name in names] == ["val", "train", "test", "train"]
    others = ["my_test.json", "VAL.json", "train-v2.csv", "nocaps_val_4500.json", "dev.json", "validation2.json"]
    assert [split_of_name(name)[0] for name in others] == ["test", "val", "train", "val", "val", "val"]
    parts = ["latest.json", "contest_2024.json", "interval_7.json", "validated.json", "test_and_val.json"]
    assert [split_of_name(name)[0] for name in parts] == ["train"] * 5
    assert split_of_name("latest.json")[1].startswith("since the name 'latest.json' names no split")


# Tables


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "csv.gz"])
def test_tables(tmp_path: Path, ending: str) -> None:
    rows = [("a.jpg", "A dog , x .", "val"), ("b.jpg", '["One .", "Two ."]', "train"), ("a.jpg", "[sic] dog", "val")]
    if ending == "jsonl":
        text = "".join(json.dumps({"file": a, "text": b, "part": c, "more": 1}) + "\n" for a, b, c in rows)
    else:
        comma = "\t" if ending == "tsv" else ","
        cells = [("file", "text", "part"), *rows]
        text = "".join(comma.join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in cells)
    data = gzip.compress(text.encode()) if ending.endswith("gz") else text.encode()
    reading = written(tmp_path / f"t.{ending}", data)
    _, samples = run(table_rows(reading, Columns("file", "text", "part")), tmp_path)
    assert samples == [
        Sample("a", "a.jpg", ("A dog , x .", "[sic] dog"), "val"),
        Sample("b", "b.jpg", ("One .", "Two ."), "train"),
    ]


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_column_that_is_not_there(tmp_path: Path, ending: str) -> None:
    text = "images,caption\n" if ending == "csv" else '{"images": "a.jpg", "caption": "x"}\n'
    with pytest.raises(DataError, match=r":1: there is no column 'image'; did you mean 'images'\?"):
        run(table_rows(written(tmp_path / f"t.{ending}", text), Columns()), tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_table(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"t.csv is empty; expected a line with the names of its columns"):
        run(table_rows(written(tmp_path / "t.csv", text), Columns()), tmp_path)


def test_a_column_of_splits_that_is_not_read_is_pointed_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise images of a test split would be trained on without a notice."""
    reading = written(tmp_path / "t.csv", "image,caption,split\na.jpg,a dog,test\n")
    _, samples = run(table_rows(reading, Columns()), tmp_path)
    assert [sample.split for sample in samples] == ["train"]
    assert "the column 'split' is not read; --split-column split" in caplog.text
    caplog.clear()
    _, samples = run(table_rows(SourceFile(tmp_path / "t.csv"), Columns(split="split")), tmp_path)
    assert [sample.split for sample in samples] == ["test"]
    assert not caplog.text


def test_bad_rows_of_tables(tmp_path: Path) -> None:
    lines = ['{"image": "a.jpg", "caption": "x", "n": 1}', '{"image": 3, "caption": "x", "n": 2}', "{", "[]"]
    lines += ['{"image": "b.jpg", "n": 3}', '{"image": "c.jpg", "caption": [1], "n": 4}']
    reading = written(tmp_path / "t.jsonl", "\n".join(lines))
    summary, samples = run(table_rows(reading, Columns(id="n"), split="all"), tmp_path)
    assert samples == [Sample("1", "a.jpg", ("x",), "all")]
    assert [problem.line for problem in summary.problems.first] == [2, 3, 4, 5, 6]
    reading = written(tmp_path / "t.csv", 'image,caption\na.jpg\nb.jpg,"x" y\nc.jpg,z\n')
    summary, samples = run(table_rows(reading, Columns()), tmp_path)
    assert [sample.id for sample in samples] == ["c"]
    assert [problem.line for problem in summary.problems.first] == [2, 3]


# Folders


def test_a_folder_of_images_and_texts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    for name in ("b.JPG", "sub/b.png", "alone.webp", "bad.jpg", "notes.md"):
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("A dog .\n\n Two . \n")
    (tmp_path / "sub" / "b.txt").write_text("一只狗")
    (tmp_path / "bad.txt").write_bytes(b"\xe9")
    reading = FolderSource(tmp_path)
    summary, samples = run(reading.rows(), tmp_path)
    assert samples == [
        Sample("b", "b.JPG", ("A dog .", "Two ."), "train"),
        Sample("sub/b", "sub/b.png", ("一只狗",), "train"),
    ]
    assert [Path(problem.file).name for problem in summary.problems.first] == ["alone.webp", "bad.txt"]
    assert str(summary.problems.first[1]) == f"{tmp_path}/bad.txt:1: the line is not UTF-8 (byte 0xe9 at column 1)."
    assert reading.share == 1.0


def test_images_that_share_a_text_and_texts_without_an_image(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.jpg", "cafe\u0301.jpg"):
        (tmp_path / name).touch()
    texts = {"a.txt": "One.\nTwo.", "b.TXT": "Good.\nalso\0bad.\nFine.", "c.txt": "Three.", "caf\u00e9.txt": "Four."}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    summary, samples = run(FolderSource(tmp_path).rows(), tmp_path)
    assert [(sample.id, sample.captions) for sample in samples] == [
        ("b", ("Good.", "Fine.")),
        ("cafe\u0301", ("Four.",)),
    ]
    assert summary.captions + summary.problems.rows == 7
    assert [(Path(problem.file).name, problem.line, problem.kind) for problem in summary.problems.first] == [
        ("c.txt", 0, "missing"),
        ("a.jpg", 0, "duplicate"),
        ("a.png", 0, "duplicate"),
        ("b.TXT", 2, "malformed"),
    ]
    assert "'a.jpg' and 'a.png' share 'a.txt'" in summary.problems.first[1].message


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        FolderSource(tmp_path / "none")


# Real files


def real_rows(captions: Path, name: str) -> Iterator[Row | Issue]:
    reading = SourceFile(captions / name)
    if name.startswith("karpathy"):
        return karpathy_rows(reading)
    if name.startswith("coco"):
        return coco_rows(reading, split="val")
    return token_rows(reading)


@pytest.mark.parametrize(
    ("name", "images", "captions", "repaired"),
    [
        ("flickr8k/Flickr8k.token.txt", 8_092, 40_460, 4),
        ("flickr8k/captions.txt", 300, 1_500, 0),
        ("karpathy/dataset_flickr8k_like.json.gz", 8_092, 40_460, 0),
        ("coco/captions_val2017.json.gz", 5_000, 25_014, 0),
        ("chinese/coco-cn_ext.icap2020.txt", 4_573, 4_712, 0),
    ],
)
def test_the_real_files(shared: Path, tmp_path: Path, name: str, images: int, captions: int, repaired: int) -> None:
    summary, samples = run(real_rows(shared / "captions", name), tmp_path)
    assert (len(samples), summary.captions) == (images, captions)
    assert summary.problems.counts == ({"repaired": repaired} if repaired else {})


def test_real_photographs_with_their_captions(shared: Path, tmp_path: Path) -> None:
    folder = shared / "captions" / "flickr8k"
    rows = token_rows(SourceFile(folder / "captions.txt"))
    out = tmp_path / "m.jsonl"
    summary = prepare(rows, source="captions.txt", images=folder / "images", out=out, strict=True)
    assert summary.images == 300


def test_the_real_lists(shared: Path, tmp_path: Path) -> None:
    folder = shared / "captions" / "flickr8k"
    rows = with_splits(token_rows(SourceFile(folder / "Flickr8k.token.txt")), listed_splits(folder))
    summary, _ = run(rows, tmp_path)
    assert summary.splits == {"train": 6_000, "unlisted": 2_092}
