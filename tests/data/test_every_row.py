"""The rule of all importers: each caption of the source is in the manifest, or is counted and named.

Each importer gets files of drawn rows, good and bad. Whatever is in them, captions written and captions left out add up
to the captions of the file, and no row ends the import.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from captune.data.importers.coco import coco_rows, textcaps_rows
from captune.data.importers.flickr import flickr30k_rows, token_rows, with_coco_names
from captune.data.importers.folder import FolderSource
from captune.data.importers.hugging_face import HuggingFaceSource
from captune.data.importers.karpathy import karpathy_rows
from captune.data.importers.long_captions import detailcaps_rows, docci_rows, sharegpt4v_rows
from captune.data.importers.table import Columns, table_rows
from captune.data.importers.webdataset import WebDatasetSource
from captune.data.importing import ImageCheck, prepare
from captune.data.issues import NOTES, Issue
from captune.data.manifest import read_manifest
from captune.data.rows import Row
from captune.data.tar_parquet import InlineImages
from captune.data.text_files import SourceFile
from captune.errors import DataError


class Item(NamedTuple):
    """A caption of an image, good or bad."""

    image: str
    caption: str


# Two images that are there, some that are not, and names that are no names; captions that are text, nearly text, none.
IMAGES = ["1.jpg", "2.jpg", "gone.jpg", "n" * 300 + ".jpg", "../1.jpg", "..\\1.jpg", "C:\\x\\1.jpg", "a\0.jpg", " "]
CAPTIONS = ["A dog.", 'She says "stop', 'go" now', '"quoted"', "é 一只狗", "", "  ", "a\0b", "\ud800", "x" * 70_000]
ITEMS = st.lists(
    st.builds(Item, st.sampled_from(IMAGES), st.sampled_from(CAPTIONS) | st.text("ab \"',;|#", max_size=6)),
    min_size=1,
    max_size=8,
)

TEXTS = st.lists(st.sampled_from(["A dog.", "Two dogs.", "", " ", "a\0b", "\ud800"]), max_size=4)

FILES = ["a.jpg", "a.png", "a.txt", "b.JPG", "b.txt", "c.txt", "sub/a.txt"]


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def comma_separated(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("image", "caption"), *items])
    (folder / "t.csv").write_bytes(as_bytes(buffer.getvalue()))
    return table_rows(SourceFile(folder / "t.csv"), Columns())


def tab_separated(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    text = "".join(f"{image}\t{caption}\n" for image, caption in [("image", "caption"), *items])
    (folder / "t.tsv").write_bytes(as_bytes(text))
    return table_rows(SourceFile(folder / "t.tsv"), Columns())


def json_lines(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    lines = [json.dumps({**item._asdict(), "similarity": float("nan")}) for item in items]
    (folder / "t.jsonl").write_text("\n".join(lines))
    return table_rows(SourceFile(folder / "t.jsonl"), Columns())


def json_array(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    (folder / "t.json").write_text(json.dumps([{**item._asdict(), "score": float("nan")} for item in items], indent=1))
    return table_rows(SourceFile(folder / "t.json"), Columns())


def conversations(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    entries = [
        {
            "image": item.image,
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": item.caption}],
        }
        for item in items
    ]
    (folder / "t.json").write_text(json.dumps(entries))
    return table_rows(SourceFile(folder / "t.json"), Columns())


def parquet(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    from pyarrow import parquet as pq

    columns = {name: pyarrow.array([as_bytes(cell) for cell in column]) for name, column in _columns(items)}
    table = pyarrow.table({name: column.view(pyarrow.string()) for name, column in columns.items()})
    pq.write_table(table, folder / "t.parquet")
    return table_rows(SourceFile(folder / "t.parquet"), Columns())


def _columns(items: list[Item]) -> Iterator[tuple[str, list[str]]]:
    yield "image", [item.image for item in items]
    yield "caption", [item.caption for item in items]


def coco(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    names = list(dict.fromkeys(item.image for item in items))
    images = [{"id": number, "file_name": name} for number, name in enumerate(names[1:], 1)]  # one is not listed
    images += images[:1] + [{"id": 1, "file_name": "other.jpg"}] * (len(names) > 3)
    annotations = [{"image_id": names.index(item.image), "caption": item.caption} for item in items]
    (folder / "c.json").write_text(json.dumps({"images": [*images, {"id": 99.5}], "annotations": annotations}))
    return coco_rows(SourceFile(folder / "c.json"), split="val")


def minigpt4(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    annotations = [{"image_id": item.image.removesuffix(".jpg"), "caption": item.caption} for item in items]
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))
    return coco_rows(SourceFile(folder / "filter_cap.json"), split="train")


def karpathy(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    images = [{"filename": i.image, "split": "test", "sentences": [{"raw": i.caption}], "imgid": 0} for i in items]
    (folder / "k.json").write_text(json.dumps({"images": images}))
    return karpathy_rows(SourceFile(folder / "k.json"))


def textcaps(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    data = [
        {"image_id": item.image.removesuffix(".jpg"), "caption_str": item.caption, "set_name": "val"} for item in items
    ]
    (folder / "t.json").write_text(json.dumps({"data": data}))
    return textcaps_rows(SourceFile(folder / "t.json"))


def docci(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    lines = [
        json.dumps({"example_id": str(n), "split": "test", "image_file": item.image, "description": item.caption})
        for n, item in enumerate(items)
    ]
    (folder / "docci.jsonlines").write_text("\n".join(lines))
    return docci_rows(SourceFile(folder / "docci.jsonlines"))


def detailcaps(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    data = [{"image": item.image, "CogVLM": item.caption, "source": None} for item in items]
    (folder / "d.json").write_text(json.dumps(data))
    return detailcaps_rows(SourceFile(folder / "d.json"), columns=("CogVLM",))


def sharegpt4v(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    data = [
        {"id": str(n), "image": item.image, "conversations": [{"from": "gpt", "value": item.caption}]}
        for n, item in enumerate(items)
    ]
    (folder / "s.json").write_text(json.dumps(data))
    return sharegpt4v_rows(SourceFile(folder / "s.json"))


def hugging_face_csv(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    rows = [(json.dumps([item.caption]), "[0]", "train", item.image, "0") for item in items]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("raw", "sentids", "split", "filename", "img_id"), *rows])
    (folder / "f.csv").write_bytes(as_bytes(buffer.getvalue()))
    return flickr30k_rows(SourceFile(folder / "f.csv"))


def kaggle_bars(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    lines = ["image_name| comment_number| comment", *(f"{i.image}| {n}| {i.caption}" for n, i in enumerate(items))]
    (folder / "results.csv").write_bytes(as_bytes("\n".join(lines)))
    return flickr30k_rows(SourceFile(folder / "results.csv"))


def kaggle_commas(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("image", "caption"), *items])
    (folder / "captions.txt").write_bytes(as_bytes(buffer.getvalue()))
    return token_rows(SourceFile(folder / "captions.txt"))


def tokens(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    lines = [f"{item.image}#{number}\t{item.caption}" for number, item in enumerate(items)]
    (folder / "t.token").write_bytes(as_bytes("\n".join(lines)))
    return with_coco_names(token_rows(SourceFile(folder / "t.token")))


def webdataset(folder: Path, items: list[Item]) -> Iterable[Row | Issue]:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG")
    for tar in ("a", "b"):  # the same keys in both
        with tarfile.open(folder / f"{tar}.tar", "w") as archive:
            for item in items:
                key = item.image.removesuffix(".jpg").replace("\0", "")
                for ending, data in (("jpg", stream.getvalue()), ("txt", as_bytes(item.caption))):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return WebDatasetSource(folder, InlineImages(folder)).rows()


FORMATS: list[Callable[[Path, list[Item]], Iterable[Row | Issue]]] = [
    comma_separated,
    tab_separated,
    json_lines,
    json_array,
    conversations,
    parquet,
    coco,
    minigpt4,
    karpathy,
    textcaps,
    docci,
    detailcaps,
    sharegpt4v,
    hugging_face_csv,
    kaggle_bars,
    kaggle_commas,
    tokens,
]


def outcome(rows: Iterable[Row | Issue], folder: Path, check: ImageCheck) -> int:
    """Captions that an import wrote, and those that it left out and named."""
    problems: list[Issue] = []
    out = folder / "m.jsonl"
    try:
        summary = prepare(
            rows, source="source", images=folder, out=out, check=check, on_issue=problems.append, workers=1
        )
    except DataError:  # nothing is left
        written = 0
        assert not out.exists()
    else:
        written = sum(len(sample.captions) for sample in read_manifest(out))
        assert written == summary.captions
        assert summary.problems.rows == sum(problem.rows for problem in problems if problem.kind not in NOTES)
    assert all(str(problem).isprintable() for problem in problems)
    return written + sum(problem.rows for problem in problems if problem.kind not in NOTES)


@pytest.mark.parametrize("write", FORMATS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(items=ITEMS)
def test_captions_in_are_captions_out_and_captions_named(
    write: Callable[[Path, list[Item]], Iterable[Row | Issue]], items: list[Item]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for image in ("1.jpg", "2.jpg"):
            Image.new("RGB", (8, 8)).save(folder / image)
        assert outcome(write(folder, items), folder, "exist") == len(items)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(items=ITEMS)
def test_members_of_tars_are_captions_or_named(items: list[Item]) -> None:
    """The same keys in two tars, keys that come again, names and captions that are none."""
    with tempfile.TemporaryDirectory() as name:
        texts = [item for item in items if item.caption.strip()]  # a member of white space is no caption
        assert outcome(webdataset(Path(name), texts), Path(name), "none") == 2 * len(texts)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(files=st.dictionaries(st.sampled_from(FILES), TEXTS))
def test_lines_of_texts_in_a_folder_are_captions_or_named(files: dict[str, list[str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sub").mkdir(parents=True)
        for file, lines in files.items():
            (folder / file).write_bytes(as_bytes("\n".join(lines)))
        captions = sum(bool(line.strip()) for file, lines in files.items() for line in lines if file.endswith(".txt"))
        assert outcome(FolderSource(folder).rows(), folder, "exist") == captions


def test_rows_of_a_data_set_are_captions_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets", reason="needs the extra 'data'")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "data" / "1.jpg")
    items = [Item(image, "A dog.") for image in IMAGES if "\0" not in image] + [Item("1.jpg", ""), Item("1.jpg", "é")]
    lines = [json.dumps(item._asdict()) for item in items]
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines) + "\n")
    images = tmp_path / "images"
    images.mkdir()
    reading = HuggingFaceSource(str(tmp_path / "data"), Columns(), InlineImages(images))
    assert outcome(reading.rows(), images, "exist") == len(items)
