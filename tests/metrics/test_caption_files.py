"""Every format that people have, and every way in which such a file is broken."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from captune.errors import MetricInputError
from captune.metrics.caption_files import read_predictions, read_reference_files, read_references

EXPECTED = {"1": ["a dog", "the dog"], "x": ["a cat"]}
PREDICTED = {"1": "a dog", "x": "a cat"}


def put(folder: Path, text: str | bytes, name: str = "file.json") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


REFERENCE_FORMS: dict[str, tuple[str, Any]] = {
    "annotations": (
        "json",
        {
            "images": [{"id": 1}, {"id": "x"}],
            "annotations": [
                {"image_id": 1, "id": 5, "caption": "a dog"},
                {"image_id": "x", "id": 6, "caption": "a cat"},
                {"image_id": "1", "id": 7, "caption": "the dog"},
            ],
        },
    ),
    "rows": (
        "json",
        [
            {"image_id": 1, "caption": "a dog"},
            {"image_id": 1.0, "caption": "the dog"},
            {"image_id": "x", "caption": "a cat"},
        ],
    ),
    "manifest": (
        "jsonl",
        [
            {"id": "1", "image": "1.jpg", "captions": ["a dog", "the dog"], "split": "test"},
            {"id": "x", "image": "x.jpg", "captions": ["a cat"], "split": "test"},
        ],
    ),
    "lines": ("jsonl", [{"image_id": 1, "references": ["a dog", "the dog"]}, {"id": "x", "references": "a cat"}]),
    "object": ("json", {"1": ["a dog", "the dog"], "x": "a cat"}),
    "karpathy": (
        "json",
        {
            "dataset": "coco",
            "images": [
                {"cocoid": 1, "split": "test", "sentences": [{"raw": "a dog"}, {"raw": "the dog"}]},
                {"filename": "folder/x.jpg", "split": "test", "sentences": [{"raw": "a cat", "tokens": []}]},
            ],
        },
    ),
}


def written(form: str, content: Any) -> str:
    return "\r\n".join(json.dumps(row) for row in content) + "\r\n" if form == "jsonl" else json.dumps(content)


@pytest.mark.parametrize("name", REFERENCE_FORMS)
@pytest.mark.parametrize("disguise", ["plain", "gzip", "mark", "name"])
def test_references(tmp_path: Path, name: str, disguise: str) -> None:
    form, content = REFERENCE_FORMS[name]
    data = written(form, content).encode()
    if disguise == "mark":
        data = b"\xef\xbb\xbf" + data
    if disguise == "gzip":
        data = gzip.compress(data)
    path = put(tmp_path, data, f"file.{form}" + (".gz" if disguise == "gzip" else "") if disguise != "name" else "file")
    assert read_references(path).captions == EXPECTED


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("json", [{"image_id": 1, "caption": "a dog"}, {"image_id": "x", "id": 9, "caption": "a cat"}]),
        ("jsonl", [{"id": 1, "caption": "a dog"}, {"id": "x", "caption": ["a cat"]}]),
        ("jsonl", [{"image": "1", "prediction": "a dog"}, {"filename": "x", "text": "a cat"}]),
        ("json", {"1": "a dog", "x": ["a cat"]}),
    ],
)
def test_predictions(tmp_path: Path, form: str, content: Any) -> None:
    assert read_predictions(put(tmp_path, written(form, content), f"p.{form}")).captions == PREDICTED


def test_a_single_line_is_a_row(tmp_path: Path) -> None:
    assert read_predictions(put(tmp_path, '{"id": 7, "caption": "a dog"}\n')).captions == {"7": "a dog"}


def test_paths_of_pictures_are_relative_to_the_manifest(tmp_path: Path) -> None:
    form, content = REFERENCE_FORMS["manifest"]
    read = read_references(put(tmp_path, written(form, content), "m.jsonl"))
    assert read.images == {"1": tmp_path / "1.jpg", "x": tmp_path / "x.jpg"}


@pytest.mark.parametrize(
    "content",
    [
        {"images": [{"id": 7, "file_name": "val/7.jpg"}], "annotations": [{"image_id": 7, "caption": "a dog"}]},
        {"images": [{"cocoid": 7, "filepath": "val", "filename": "7.jpg", "sentences": [{"raw": "a dog"}]}]},
        [{"id": "7", "file_name": "val/7.jpg", "caption": "a dog"}],
    ],
)
def test_names_of_pictures_are_kept(tmp_path: Path, content: Any) -> None:
    (tmp_path / "references.json").write_text(json.dumps(content))
    read = read_references(tmp_path / "references.json")
    assert read.captions == {"7": ["a dog"]}
    assert read.file_names == {"7": "val/7.jpg"}


def test_split_chooses(tmp_path: Path) -> None:
    rows = [
        {"id": "1", "captions": ["a"], "split": "train"},
        {"id": "2", "captions": ["b"], "split": "test"},
        {"id": "3", "captions": ["c"], "split": "train"},
    ]
    path = put(tmp_path, written("jsonl", rows), "m.jsonl")
    assert read_references(path, "test").captions == {"2": ["b"]}
    assert read_references(path).splits == {"train": 2, "test": 1}
    with pytest.raises(MetricInputError, match=r"its splits are train \(2\), test \(1\)"):
        read_references(path, "val")
    with pytest.raises(MetricInputError, match="has no splits"):
        read_references(put(tmp_path, '{"1": ["a"]}'), "val")


def test_finish_reasons_are_kept(tmp_path: Path) -> None:
    rows = [{"id": 1, "caption": "a", "finish_reason": "length"}, {"id": 2, "caption": "b", "finish_reason": "stop"}]
    rows.append({"id": 3, "caption": "c", "stopped": False})
    assert read_predictions(put(tmp_path, json.dumps(rows))).finished == {"1": False, "2": True, "3": False}


def test_leading_zeros_are_kept(tmp_path: Path) -> None:
    assert read_predictions(put(tmp_path, '{"007": "a", "7": "b"}')).captions == {"007": "a", "7": "b"}


def test_the_same_prediction_twice_counts_once(tmp_path: Path) -> None:
    rows = [{"id": 1, "caption": "a"}, {"id": "1", "caption": "a"}]
    read = read_predictions(put(tmp_path, json.dumps(rows)))
    assert read.captions == {"1": "a"}
    assert read.repeated == ("1",)


def test_odd_text_survives(tmp_path: Path) -> None:
    caption = "a\u0000b \ud800 \u2028 \U0001f600"
    path = put(tmp_path, json.dumps({"id": 1, "caption": caption}) + '\n{"id": 2, "caption": "c\u2028d"}\n', "p.jsonl")
    assert read_predictions(path).captions == {"1": caption, "2": "c\u2028d"}


REFERENCES = {"1": ["A dog .", "Two ."], "2": ["A cat ."]}
PREDICTIONS = {"1": "a dog", "2": 'a "cat", ß'}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", json.dumps({key: [text] for key, text in PREDICTIONS.items()})),
        ("p.json", json.dumps({key: [{"caption": text, "id": 7}] for key, text in PREDICTIONS.items()})),
        ("p.json", json.dumps([{"image_id": float(key), "caption": text} for key, text in PREDICTIONS.items()])),
        ("p.csv", 'image_id,caption\n1,a dog\n2,"a ""cat"", ß"\n'),
        ("p.csv", 'score,id,caption\r\n0.1,1.0,a dog\r\n0.2,2.0,"a ""cat"", ß"\r\n'),
        ("p.csv", 'image_id;caption\n1;a dog\n2;"a ""cat"", ß"\n'),
        ("p.tsv", 'image_id\tcaption\n1\ta dog\n2\ta "cat", ß\n'),
        ("p.txt", 'a dog\na "cat", ß\n'),
        ("p.txt", 'a dog\r\na "cat", ß'),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_results_as_people_have_them(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    read = read_predictions(put(tmp_path, text.encode(encoding), name))
    assert read.captions == PREDICTIONS
    assert read.by_line == name.endswith(".txt")


def test_references_as_people_have_them(tmp_path: Path) -> None:
    gts = {key: [{"caption": text} for text in texts] for key, texts in REFERENCES.items()}
    assert read_references(put(tmp_path, json.dumps(gts), "gts.json")).captions == REFERENCES
    table = "image_id,caption\n1,A dog .\n2,A cat .\n1,Two .\n"
    assert read_references(put(tmp_path, table, "r.csv")).captions == REFERENCES
    first, second = put(tmp_path, "A dog .\nA cat .\n", "a.txt"), put(tmp_path, "Two .\n\n", "b.txt")
    assert read_reference_files([first, second]).captions == REFERENCES
    with pytest.raises(MetricInputError, match=r"these differ: .*a\.txt has 2, .*c\.txt has 1\."):
        read_reference_files([first, put(tmp_path, "x\n", "c.txt")])
    with pytest.raises(MetricInputError, match="give one file, or files of lines without ids"):
        read_reference_files([first, put(tmp_path, json.dumps(REFERENCES), "r.json")])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", "picture,caption\n1,a\n", "line 1: is not a header with a column of ids"),
        ("p.csv", "image_id,caption\n1,a,b\n", "line 2: has 3 columns where 2 are expected"),
        ("p.csv", 'image_id,caption\n1,a\n2,"b\n3,c\n', "line 3: breaks the format .*never closed"),
        ("p.txt", "1\ta dog\n", "line 1: has a tab; expected one caption a line"),
    ],
)
def test_tables_and_lines_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(MetricInputError, match=words):
        read_predictions(put(tmp_path, text, name))


BROKEN: list[tuple[str, str | bytes, str]] = [
    ("empty", b"", "is empty"),
    ("blank", b" \n\n", "is empty"),
    ("no json", b"image,caption\n1,a dog\n", r"line 1, column 1: is not JSON"),
    ("cut off", b'[{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "capt', "ends in the middle of an entry"),
    ("cut between", b'[{"image_id": 1, "caption": "a dog"},\n', r"ends in the middle of an entry \(line 2"),
    ("latin-1", b'{"1": "a dog",\n"2": "a caf\xe9"}', r"line 2: is not UTF-8 text \(byte 0xE9\)"),
    ("utf-16", '{"1": "a"}'.encode("utf-16")[:-1], "is not valid UTF-16 text"),
    ("nul", b'{"1": "a dog",\n"2": "a\x00b"}', r"line 2, column \d+: text contains a raw control character U\+0000"),
    ("newline in text", b'{"1": "a dog\nruns"}', r"control character U\+000A"),
    ("key twice", b'{"1": "a",\n"2": "b",\n"1": "c"}', r"line 3: an object has the key '1' twice"),
    ("number", b"7", "holds a number alone"),
    ("empty list", b"[]", "holds no"),
    ("empty object", b"{}", "holds no"),
    ("list of text", b'["a dog"]', r"entry 1: holds text where an object"),
    ("no id", b'[{"caption": "a"}]', r'entry 1: has no image id; expected "image_id" or "id", found "caption"'),
    ("no caption", b'[{"image_id": 1}]', r"entry 1: has no caption"),
    ("null caption", b'[{"image_id": 1, "caption": null}]', r"the caption of image '1' is null"),
    ("number as caption", b'{"1": 5}', r"the caption of image '1' is a number"),
    ("id null", b'[{"image_id": null, "caption": "a"}]', r"the image id is null"),
    ("id true", b'[{"image_id": true, "caption": "a"}]', r"the image id is true or false"),
    ("id fraction", b'[{"image_id": 1.5, "caption": "a"}]', r"the image id is a number"),
    ("id empty", b'[{"image_id": "", "caption": "a"}]', r"the image id is text"),
    ("deep", b"[" * 100_000, "nested too deeply|ends in the middle"),
    ("long number", b'{"1": ' + b"9" * 5_000 + b"}", "is no caption"),
    ("bad gzip", gzip.compress(b'{"1": "a"}' * 50)[:-9], "is an incomplete gzip file"),
]


@pytest.mark.parametrize(("data", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
@pytest.mark.parametrize("read", [read_references, read_predictions])
def test_broken_files_are_one_sentence(tmp_path: Path, read: Any, data: str | bytes, message: str) -> None:
    path = put(tmp_path, data, "broken.json")
    with pytest.raises(MetricInputError, match=message) as caught:
        read(path)
    assert "broken.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_line_of_json_lines_is_reported(tmp_path: Path) -> None:
    path = put(tmp_path, '{"id": 1, "caption": "a"}\n\n{"id": 2, "caption": \n', "p.jsonl")
    with pytest.raises(MetricInputError, match=r"\(line 3, column"):
        read_predictions(path)
    path = put(tmp_path, '{"id": 1, "caption": "a"}\n{"id": 2, "caption": "b", "id": 3}\n', "p.jsonl")
    with pytest.raises(MetricInputError, match="line 2: an object has the key 'id' twice"):
        read_predictions(path)


def test_places_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(MetricInputError, match="There is no file"):
        read_references(tmp_path / "absent.json")
    with pytest.raises(MetricInputError, match="is a folder"):
        read_references(tmp_path)
    with pytest.raises(MetricInputError, match="cannot be read"):
        read_references("a\0b")


def test_swapped_files_are_noticed(tmp_path: Path) -> None:
    form, annotations = REFERENCE_FORMS["annotations"]
    for content in (annotations, REFERENCE_FORMS["object"][1], REFERENCE_FORMS["rows"][1]):
        with pytest.raises(MetricInputError, match="--references and --predictions are swapped"):
            read_predictions(put(tmp_path, written(form, content)))


def test_an_image_twice_in_a_manifest(tmp_path: Path) -> None:
    rows = [{"id": "1", "captions": ["a"]}, {"id": "1", "captions": ["b"]}]
    with pytest.raises(MetricInputError, match="line 2: the file has image '1' twice"):
        read_references(put(tmp_path, written("jsonl", rows), "m.jsonl"))


def test_coco_itself(shared: Path) -> None:
    references = read_references(shared / "captions" / "coco" / "captions_val2017.json.gz")
    predictions = read_predictions(shared / "captions" / "coco" / "captions_val2017_fakecap_results.json")
    assert len(references.captions) == 5000
    assert sum(map(len, references.captions.values())) == 25_014
    assert len(predictions.captions) == 4989


def test_karpathys_file(shared: Path) -> None:
    path = shared / "captions" / "karpathy" / "dataset_flickr8k_like.json.gz"
    complete = read_references(path)
    assert sum(complete.splits.values()) == len(complete.captions)
    assert len(read_references(path, "train").captions) == complete.splits["train"] == 6000


def test_a_gzip_file_that_unfolds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "references.json.gz"
    with gzip.open(path, "wb", compresslevel=9) as stream:
        for _ in range(300):
            stream.write(b"\n" * (1 << 20))
    with pytest.raises(MetricInputError, match="unpacks to more than 256 MB"):
        read_references(path)


@pytest.mark.parametrize("names", [("caption", "prediction"), ("text", "output"), ("captions", "output")])
@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_an_added_column_of_predictions_is_not_the_column_of_references(
    tmp_path: Path, names: tuple[str, str], form: str
) -> None:
    reference, prediction = names
    rows = [{"image_id": str(i), reference: "the reference", prediction: f"caption {i}"} for i in range(2)]
    path = tmp_path / f"both.{form}"
    if form == "csv":
        lines = [f"image_id,{reference},{prediction}"] + [",".join(row.values()) for row in rows]
    else:
        lines = [json.dumps(rows)] if form == "json" else [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    assert read_predictions(path).captions == {"0": "caption 0", "1": "caption 1"}


def test_references_next_to_a_caption_are_the_references(tmp_path: Path) -> None:
    path = tmp_path / "both.jsonl"
    path.write_text(json.dumps({"image_id": "1", "caption": "a prediction", "reference": "a reference"}))
    assert read_references(path).captions == {"1": ["a reference"]}


@pytest.mark.parametrize("order", [1, -1])
def test_an_entry_without_its_prediction_is_refused_though_it_has_a_reference(tmp_path: Path, order: int) -> None:
    rows = [{"image_id": "1", "caption": "reference", "prediction": "a cat"}, {"image_id": "2", "caption": "reference"}]
    path = tmp_path / "both.json"
    path.write_text(json.dumps(rows[::order]))
    with pytest.raises(MetricInputError, match="under the same key"):
        read_predictions(path)
