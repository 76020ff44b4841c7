"""DOCCI, DetailCaps and ShareGPT4V: small files of each published layout with their faults."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captune import cli
from captune.data.importers.long_captions import detailcaps_has_images, detailcaps_rows, docci_rows, sharegpt4v_rows
from captune.data.importing import prepare
from captune.data.issues import Issue
from captune.data.manifest import read_manifest
from captune.data.rows import Row
from captune.data.tar_parquet import InlineImages
from captune.data.text_files import SourceFile
from captune.errors import DataError

TEXT = "A red barn is next to a road. Two cows look at the camera. The sky is grey."


def written(path: Path, text: str) -> SourceFile:
    path.write_text(text, encoding="utf-8")
    return SourceFile(path)


def picture(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(stream, "JPEG")
    return stream.getvalue()


def split_up(entries: list[Row | Issue]) -> tuple[list[Row], list[str]]:
    return (
        [row for row in entries if isinstance(row, Row)],
        [f"{row.line}: {row.message}" for row in entries if isinstance(row, Issue)],
    )


def docci_line(number: int, split: str = "train", **others: Any) -> str:
    name = f"{split}_{number:05d}"
    record = {"type": split, "split": split, "image_file": f"{name}.jpg", "example_id": name, "description": TEXT}
    return json.dumps({**record, **others})


def test_docci_has_its_own_splits_and_ids(tmp_path: Path) -> None:
    lines = [docci_line(number, split) for number, split in enumerate(("train", "test", "qual_dev", "qual_test"))]
    bad = json.loads(docci_line(5))
    del bad["description"]
    lines += [json.dumps(bad), "not json", docci_line(6, split=7), "", docci_line(7)]  # type: ignore[arg-type]
    rows, faults = split_up(list(docci_rows(written(tmp_path / "docci_descriptions.jsonlines", "\n".join(lines)))))
    assert [(row.id, row.split, row.image) for row in rows] == [
        ("train_00000", "train", "train_00000.jpg"),
        ("test_00001", "test", "test_00001.jpg"),
        ("qual_dev_00002", "qual_dev", "qual_dev_00002.jpg"),
        ("qual_test_00003", "qual_test", "qual_test_00003.jpg"),
        ("train_00007", "train", "train_00007.jpg"),
    ]
    assert rows[0].captions == (TEXT,)
    assert faults[0] == "5: 'description' is missing."
    assert faults[1].startswith("6: not valid JSON")
    assert faults[2] == "7: 'split' must be a string."


def test_no_docci(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not DOCCI's JSON Lines: no line has 'example_id'"):
        list(docci_rows(written(tmp_path / "d.jsonl", '{"image": "a.jpg", "caption": "A dog."}\n' * 3)))


def detailcaps_row(number: int, **others: Any) -> dict[str, Any]:
    return {
        "source": "coco",
        "image": f"coco/train2017/{number:012d}.jpg",
        "binary": picture("red" if number % 2 else "blue"),
        "GT_Caption_GPT4O": f"GPT-4o {number}. {TEXT}",
        "GT_Caption_GPT4V": f"GPT-4V {number}. {TEXT}",
        "GT_Caption_Gemini15Pro": f"Gemini {number}. {TEXT}",
        "CogVLM": f"CogVLM {number}. {TEXT}",
        "ShareCaptioner": f"ShareCaptioner {number}. {TEXT}",
        "LLaVA_v15": f"LLaVA {number}. {TEXT}",
        "GPT4_Eval": None,
        **others,
    }


def test_detailcaps_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    from pyarrow import parquet

    records = [
        detailcaps_row(1),
        detailcaps_row(2, GT_Caption_GPT4V=None, source="sam"),
        detailcaps_row(3, binary=b"no image"),
        detailcaps_row(4, GT_Caption_GPT4O="", GT_Caption_GPT4V=None, GT_Caption_Gemini15Pro=" "),
        detailcaps_row(5, binary=None),
    ]
    parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet")
    reading = SourceFile(tmp_path / "d.parquet")
    assert detailcaps_has_images(reading.path)
    problems: list[Issue] = []
    (tmp_path / "images").mkdir()
    summary = prepare(
        detailcaps_rows(reading, inline_images=InlineImages(tmp_path / "images")),
        source="d.parquet",
        images=tmp_path / "images",
        out=tmp_path / "m.jsonl",
        on_issue=problems.append,
    )
    first, second = read_manifest(tmp_path / "m.jsonl")
    assert (first.id, first.image, first.split, first.domain) == (
        "coco/train2017/000000000001.jpg",
        "images/000000000001.jpg",
        "test",
        "coco",
    )
    assert first.captions == (f"GPT-4o 1. {TEXT}", f"GPT-4V 1. {TEXT}", f"Gemini 1. {TEXT}")
    assert (second.domain, len(second.captions)) == ("sam", 2)
    assert (tmp_path / "images" / "000000000001.jpg").read_bytes() == picture("red")
    assert summary.images == 2
    assert sorted((problem.line, problem.kind) for problem in problems) == [
        (3, "undecodable"),
        (4, "malformed"),
        (5, "malformed"),
    ]
    rows, _ = split_up(list(detailcaps_rows(SourceFile(tmp_path / "d.parquet"), columns=("CogVLM",))))
    assert rows[0].captions == (f"CogVLM 1. {TEXT}",)
    assert rows[0].image == "coco/train2017/000000000001.jpg"
    with pytest.raises(DataError, match=r"has no column 'CogVLN'; did you mean 'CogVLM'\?"):
        list(detailcaps_rows(SourceFile(tmp_path / "d.parquet"), columns=("CogVLN",)))


@pytest.mark.parametrize("layout", ["array", "lines", "lower"])
def test_detailcaps_in_json(tmp_path: Path, layout: str) -> None:
    """Images are base64; some copies have keys in lower case."""
    records = [detailcaps_row(number) for number in (1, 2, 3)]
    for record in records:
        record["binary"] = base64.b64encode(record["binary"]).decode()
    records[2]["binary"] = "not base64!"
    if layout == "lower":
        records = [{key.lower(): value for key, value in record.items()} for record in records]
    text = json.dumps(records) if layout == "array" else "\n".join(map(json.dumps, records))
    reading = written(tmp_path / ("d.json" if layout == "array" else "d.jsonl"), text)
    assert detailcaps_has_images(reading.path)
    rows, faults = split_up(list(detailcaps_rows(reading, inline_images=InlineImages(tmp_path / "images"))))
    assert [row.image for row in rows] == ["000000000001.jpg", "000000000002.jpg"]
    assert (tmp_path / "images" / rows[1].image).read_bytes() == picture("blue")
    assert [fault.partition(": ")[2].removeprefix("entry 3: ") for fault in faults] == ["'binary' is not base64."]


def test_detailcaps_without_images_names_files(tmp_path: Path) -> None:
    record = detailcaps_row(1)
    del record["binary"]
    reading = written(tmp_path / "d.jsonl", json.dumps(record))
    assert not detailcaps_has_images(reading.path)
    assert next(iter(detailcaps_rows(reading))).image == "coco/train2017/000000000001.jpg"  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"has no column 'GT_Caption_GPT4O'; the columns are image, caption"):
        list(detailcaps_rows(written(tmp_path / "e.jsonl", '{"image": "a.jpg", "caption": "A dog."}')))


def test_rows_of_detailcaps_in_json_that_lack_a_column(tmp_path: Path) -> None:
    """JSON leaves out empty fields; a column is missing only if none of the first rows has it."""
    records = [detailcaps_row(number) for number in (1, 2, 3)]
    for record in records:
        del record["binary"]
    del records[0]["GT_Caption_GPT4O"], records[0]["GT_Caption_Gemini15Pro"], records[2]["GT_Caption_GPT4V"]
    text = "\n".join(map(json.dumps, records))
    rows, faults = split_up(list(detailcaps_rows(written(tmp_path / "d.jsonl", text))))
    assert [len(row.captions) for row in rows] == [1, 3, 2]
    assert faults == []
    with pytest.raises(DataError, match=r"has no column 'CogVLN'; did you mean 'CogVLM'\?"):
        list(detailcaps_rows(written(tmp_path / "e.jsonl", text), columns=("CogVLN",)))


def conversation(number: int, *, image: str | None = "", text: str = TEXT, further: int = 0) -> dict[str, Any]:
    name = f"{number:012d}"
    turns = [{"from": "human", "value": "Describe it.\n<image>"}, {"from": "gpt", "value": text}]
    turns += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "No."}] * further
    record: dict[str, Any] = {"id": name, "image": image or f"coco/train2017/{name}.jpg", "conversations": turns}
    if image is None:
        del record["image"]
    return record


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_sharegpt4v(tmp_path: Path, layout: str) -> None:
    records = [
        conversation(9),
        conversation(25, text=f"<image>\n{TEXT}", further=2),
        conversation(30, image=None),
        {"id": "x", "image": "x.jpg"},
        {"id": "y", "image": "y.jpg", "conversations": [{"from": "human", "value": "What is it?"}]},
        {"id": "z", "image": "z.jpg", "conversations": ["no turn"]},
        conversation(36),
    ]
    text = json.dumps(records, indent=1) if layout == "array" else "\n".join(map(json.dumps, records))
    reading = written(tmp_path / ("s.json" if layout == "array" else "s.jsonl"), text)
    rows, faults = split_up(list(sharegpt4v_rows(reading)))
    assert [(row.id, row.image, row.captions, row.split) for row in rows] == [
        (name, f"coco/train2017/{name}.jpg", (TEXT,), "train")
        for name in ("000000000009", "000000000025", "000000000036")
    ]
    assert [fault.split(": ", 2 if layout == "array" else 1)[-1] for fault in faults] == [
        "2 further answers of the conversation left out.",
        "the conversation has no image.",
        "there is no conversation: 'conversations' is expected.",
        "the conversation has no answer.",
        "turn 1 is no object.",
    ]
    assert reading.notes[0] == "1 conversation without an image is left out"
    assert "Describe it." in reading.notes[1]


def test_all_turns_and_a_file_of_another_layout(tmp_path: Path) -> None:
    reading = written(tmp_path / "s.json", json.dumps([conversation(9, further=1)]))
    rows, _ = split_up(list(sharegpt4v_rows(reading, split="val", turns="all")))
    assert [(row.captions, row.split) for row in rows] == [((TEXT, "No."), "val")]
    with pytest.raises(DataError, match=r"is not ShareGPT4V's JSON: no entry has 'image' and 'conversations'"):
        list(sharegpt4v_rows(written(tmp_path / "t.json", '[{"image": "a.jpg", "caption": "A dog."}]')))


def captune(*arguments: object) -> int:
    return cli.run(lambda: cli.call(cli.app, ["prepare", *map(str, arguments)]))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "train_00000.jpg").write_bytes(picture("red"))
    (tmp_path / "docci_descriptions.jsonlines").write_text(f"{docci_line(0)}\n{docci_line(1, 'test')}\n")
    assert captune("docci", tmp_path, "--out", tmp_path / "docci.jsonl", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["splits"], answer["problems"]) == ({"train": 1}, {"missing": 1})

    records = [{**detailcaps_row(n), "binary": base64.b64encode(picture("blue")).decode()} for n in range(3)]
    (tmp_path / "d.json").write_text(json.dumps(records))
    out = tmp_path / "detailcaps.jsonl"
    assert captune("detailcaps", tmp_path / "d.json", "--out", out, "--caption-column", "CogVLM") == 0
    assert [sample.captions for sample in read_manifest(out)] == [(f"CogVLM {n}. {TEXT}",) for n in range(3)]
    assert len(list((tmp_path / "detailcaps-images").iterdir())) == 3
    assert captune("detailcaps", tmp_path / "d.json", "--out", "/dev/stdout") == 2
    assert "name it with --images" in capsys.readouterr().err

    folder = tmp_path / "coco" / "train2017"
    folder.mkdir(parents=True)
    for number in range(10):
        (folder / f"{number:012d}.jpg").write_bytes(picture(f"#{number * 20:02x}{255 - number * 25:02x}10"))
    path = tmp_path / "sharegpt4v_instruct_gpt4-vision_cap100k.json"
    path.write_text(json.dumps([conversation(number) for number in range(10)]))
    options = ["--images", tmp_path, "--out", tmp_path / "s.jsonl", "--json"]
    assert captune("sharegpt4v", tmp_path, *options, "--split", "val", "--turns", "all") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["splits"] == {"val": 10}
    assert "Describe it." in answer["notes"][0]


def test_files_without_a_good_row(tmp_path: Path) -> None:
    """After a thousand rows of another layout the file is refused."""
    reading = written(tmp_path / "d.jsonl", '{"image": "a.jpg", "caption": "A dog."}\n' * 1500)
    entries = docci_rows(reading)
    with pytest.raises(DataError, match="is not DOCCI's JSON Lines"):
        assert len([next(entries) for _ in range(1200)]) < 1000
    reading = written(tmp_path / "s.json", json.dumps([{"image": "a.jpg"}] * 1500))
    with pytest.raises(DataError, match="is not ShareGPT4V's JSON"):
        list(sharegpt4v_rows(reading))
    with pytest.raises(DataError, match="is not ShareGPT4V's JSON"):
        list(sharegpt4v_rows(written(tmp_path / "t.jsonl", "no JSON\n")))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"CogVLM": 7}, "'CogVLM' must be a string"),
        ({"source": 7}, "'source' must be a string"),
        ({"image": None}, "'image' must be a string"),
        ({"binary": 7}, "'binary' must hold the image file"),
    ],
)
def test_wrong_fields_of_detailcaps(tmp_path: Path, fields: dict[str, Any], fault: str) -> None:
    row = {**detailcaps_row(1), "binary": "", **fields}
    reading = written(tmp_path / "d.jsonl", json.dumps(row) + "\nno JSON\n")
    images = InlineImages(tmp_path / "images") if "binary" in fields else None
    rows, faults = split_up(list(detailcaps_rows(reading, columns=("CogVLM",), inline_images=images)))
    assert rows == []
    assert faults[0] == f"1: {fault}."
    assert faults[1].startswith("2: not valid JSON")
