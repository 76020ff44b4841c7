"""NoCaps, TextCaps, Flickr30k-CN and COCO-CN: small files of each layout with their faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.data.importers.coco import coco_rows, textcaps_rows
from captune.data.importers.flickr import chinese_lists, token_rows, with_coco_names
from captune.data.importers.karpathy import with_splits
from captune.data.importing import prepare
from captune.data.issues import Issue
from captune.data.manifest import Sample, read_manifest
from captune.data.rows import Row
from captune.data.text_files import SourceFile
from captune.errors import DataError


def written(path: Path, text: str) -> SourceFile:
    path.write_text(text, encoding="utf-8")
    return SourceFile(path)


def test_the_domains_of_nocaps_are_kept(tmp_path: Path) -> None:
    domains = {1: "in-domain", 2: "near-domain", 3: "out-domain", 4: None}
    images = [{"id": n, "file_name": f"{n}.jpg", **({"domain": d} if d else {})} for n, d in domains.items()]
    captions = [{"image_id": n, "id": n, "caption": "A dog ."} for n in domains]
    reading = written(tmp_path / "c.json", json.dumps({"images": images, "annotations": captions}))
    out = tmp_path / "m.jsonl"
    prepare(coco_rows(reading, split="val"), source="c.json", images=tmp_path, out=out, check="none")
    samples = read_manifest(out, "val")
    assert [sample.domain for sample in samples] == list(domains.values())
    # Without domains, rows have no key 'domain'.
    assert "domain" not in json.loads(out.read_text().splitlines()[3])


@pytest.mark.parametrize(("domain", "fault"), [('"dom\\u0000"', "NUL"), ("7", "must be a string"), ('" "', "is empty")])
def test_a_wrong_domain_in_a_manifest(tmp_path: Path, domain: str, fault: str) -> None:
    row = f'{{"id": "a", "image": "a.jpg", "captions": ["x"], "split": "val", "domain": {domain}}}'
    (tmp_path / "m.jsonl").write_text(row)
    with pytest.raises(DataError, match=fault):
        read_manifest(tmp_path / "m.jsonl")


def test_textcaps(tmp_path: Path) -> None:
    entries = [
        {"image_id": "a1", "caption_str": "A sign .", "set_name": "train", "reference_strs": ["A sign .", "Stop ."]},
        {"image_id": "b2", "caption_str": "A book .", "set_name": "train"},
        {"image_id": "a1", "caption_str": "Stop .", "set_name": "train"},
        {"image_id": "c3", "set_name": "test"},
        {"image_id": 4, "caption_str": "x", "set_name": "train"},
        ["no object"],
    ]
    reading = written(tmp_path / "t.json", json.dumps({"dataset_name": "textcaps", "data": entries}))
    imported = list(textcaps_rows(reading))
    assert [row for row in imported if isinstance(row, Row)] == [
        Row(0, "a1.jpg", ("A sign .", "Stop ."), "train", "a1"),
        Row(0, "b2.jpg", ("A book .",), "train", "b2"),
    ]
    assert [row.message for row in imported if isinstance(row, Issue)] == [
        "entry 4 of data cannot be read: 'caption_str' is missing.",
        "entry 5 of data cannot be read: 'image_id' must be a string.",
        "entry 6 of data cannot be read: an object with 'image_id' is expected.",
    ]


def test_not_textcaps(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not TextCaps' JSON"):
        list(textcaps_rows(written(tmp_path / "t.json", '{"images": []}')))


def test_coco_cn_has_the_ids_of_coco_and_splits_of_its_lists(tmp_path: Path) -> None:
    captions = ("val2014_000000217153#0\t两个人", "train2014_000000000009#0\t食物", "val2014_000000217153#1\t手机")
    lines = "".join(f"COCO_{caption}\n" for caption in captions)
    reading = written(tmp_path / "imageid.human-written-caption.txt", lines)
    (tmp_path / "coco-cn_train.txt").write_text("COCO_train2014_000000000009\n")
    (tmp_path / "coco-cn_test.txt").write_text("COCO_val2014_000000217153\n")
    (tmp_path / "other_cn_notes.txt").write_text("COCO_val2014_000000217153\n")
    rows = with_coco_names(with_splits(token_rows(reading), chinese_lists(tmp_path)))
    assert list(rows) == [
        Row(1, "val2014/COCO_val2014_000000217153.jpg", ("两个人", "手机"), "test", "217153"),
        Row(2, "train2014/COCO_train2014_000000000009.jpg", ("食物",), "train", "9"),
    ]


def test_flickr30k_cn_is_read_without_a_note(tmp_path: Path) -> None:
    reading = written(tmp_path / "f.txt", "1000092795#zhb#0 两个年轻人\n1000092795#zhb#1 四个男人 笑\n")
    assert list(with_coco_names(token_rows(reading, split="val"))) == [
        Row(1, "1000092795.jpg", ("两个年轻人", "四个男人 笑"), "val")
    ]


def test_the_real_chinese_captions(shared: Path, tmp_path: Path) -> None:
    file = shared / "captions" / "chinese" / "coco-cn_ext.icap2020.txt"
    rows = with_coco_names(token_rows(SourceFile(file)))
    out = tmp_path / "m.jsonl"
    summary = prepare(rows, source=str(file), images=tmp_path, out=out, check="none")
    assert not summary.problems
    assert (summary.images, summary.captions) == (4573, 4712)
    assert read_manifest(out)[0] == Sample(
        "217153", "val2014/COCO_val2014_000000217153.jpg", ("一个男人和一个女人穿着军装玩手机。",), "train"
    )
