"""Templates of captions, text files next to images with their policies, and the formats of one output file."""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bulk_words import IDENTITY, Words, captions, draw

from captune.bulk import Captions, Item, Job, TextFiles, parse_template, read_inputs, run_shards
from captune.bulk.output import write_rows
from captune.bulk.text_files import Existing
from captune.data import read_history
from captune.errors import ConfigError, DataError
from captune.metrics import read_predictions


def template(text: str | None = None, trigger: str | None = None, prefix: str = "", suffix: str = "") -> Any:
    return parse_template(text, trigger=trigger, prefix=prefix, suffix=suffix)


@pytest.mark.parametrize(
    ("made", "expected", "shown"),
    [
        (template(), "a {cat}", "{caption}"),
        (template(trigger="sks"), "sks, a {cat}", "sks, {caption}"),
        (template("{folder}/{stem}: {caption}"), "10_sks dog/a.b: a {cat}", "{folder}/{stem}: {caption}"),
        (template("{trigger} {{x}} {caption}", "ohwx", "<", " >"), "<ohwx {x} a {cat} >", "<ohwx {{x}} {caption} >"),
        (template("{existing}, {caption}", prefix="p "), "p tags, a {cat}", "p {existing}, {caption}"),
        (template(prefix="{caption}"), "{caption}a {cat}", "{{caption}}{caption}"),
    ],
)
def test_templates(tmp_path: Path, made: Any, expected: str, shown: str) -> None:
    image = tmp_path / "10_sks dog" / "a.b.jpg"
    image.parent.mkdir()
    image.with_suffix(".txt").write_text("\ufeff tags\n", encoding="utf-8")
    assert made.text("a {cat}", Item("x", "x", image)) == expected
    assert str(made) == shown
    assert made.is_plain == (shown == "{caption}")


def test_an_empty_existing_text_takes_its_separator_along(tmp_path: Path) -> None:
    entry = Item("x", "x", tmp_path / "a.jpg")
    assert template("{existing}, {caption}").text("cat", entry) == "cat"
    assert template("{caption}, {existing}!").text("cat", entry) == "cat, !"
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        template("{existing}, {caption}").text("cat", entry)
    assert template("{folder} {stem} {caption}").text("cat", Item("d/e/f.jpg", "t.tar", b"")) == "e f cat"


@pytest.mark.parametrize(
    ("text", "trigger", "sentence"),
    [
        ("{captoin}", None, r"no field \{captoin\}; did you mean 'caption'\? Fields are"),
        ("{}", None, r"no field \{\}; fields are \{caption\}"),
        ("{caption:>9}", None, r"no field \{caption:>9\}"),
        ("{caption!r}", None, r"no field \{caption!r\}"),
        ("{caption", None, "braces do not match"),
        ("{trigger} {caption}", None, "give one with --trigger"),
        ("{stem}", None, r"has no \{caption\}"),
        ("{caption}", "sks", r"does not use it; add \{trigger\}"),
    ],
)
def test_wrong_templates(text: str, trigger: str | None, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        template(text, trigger)


def test_a_template_is_part_of_a_job(tmp_path: Path) -> None:
    draw(tmp_path / "images", 3)
    inputs = read_inputs([str(tmp_path / "images")])

    def work(name: str, text: str | None) -> list[str]:
        made = template(text)
        identity = type(IDENTITY)(**{**IDENTITY.__dict__, "template": str(made)})
        job = Job(tmp_path / name, inputs, identity)
        settings = captions(Words())
        run_shards(Captions(settings.captioner, settings.options, template=made), job, job.open_shards())
        return [row["caption"] for row in job.rows()]

    plain = work("plain", None)
    assert "template" not in json.loads((tmp_path / "plain" / "job.json").read_text())
    assert work("made", "sks, {caption}") == [f"sks, {text}" for text in plain]
    assert work("made", "sks, {caption}") == [f"sks, {text}" for text in plain]
    for name, text in (("made", None), ("plain", "sks, {caption}"), ("made", "{caption}.")):
        with pytest.raises(ConfigError, match=r"holds captions with template '.*', and now it is"):
            work(name, text)


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"id": f"{n}", "image": f"{n}.png", "caption": text, "stopped": True} for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("overwrite", "new\n"), ("append", "old, new\n"), ("prepend", "new, old\n"), ("skip", "old \n")],
)
def test_existing_texts(tmp_path: Path, existing: Existing, expected: str) -> None:
    paths = {str(n): str(tmp_path / f"{n}.png") for n in range(3)}
    (tmp_path / "0.txt").write_text("old \n")
    (tmp_path / "1.txt").touch()
    for attempt in range(3):  # the first is killed after one image, the third is the same command again
        files = TextFiles(existing, "job")
        waiting = files.waiting(paths)
        new_rows = [row for row in rows("new", "new", "new") if row["id"] in waiting]
        assert len(new_rows) == ((2 if existing == "skip" else 3), 2 - (existing == "skip"), 0)[attempt]
        assert files.write(new_rows[: 1 if attempt == 0 else None], waiting) == []
    assert (tmp_path / "0.txt").read_text() == expected
    assert {(tmp_path / f"{n}.txt").read_text() for n in (1, 2)} == {"new\n"}
    if existing != "skip":
        assert read_history(tmp_path)["0.txt"][0].before == "old \n"
        # A text that was corrected after the job is not captioned again by it, but by another job.
        (tmp_path / "0.txt").write_text("corrected")
        assert TextFiles(existing, "job").waiting(paths) == {}
        assert len(TextFiles(existing, "other job").waiting(paths)) == 3


def test_existing_texts_that_cannot_be_extended_or_are_an_error(tmp_path: Path) -> None:
    paths = {"0": str(tmp_path / "0.png"), "1": str(tmp_path / "1.png")}
    (tmp_path / "0.txt").write_bytes(b"caf\xe9")
    files = TextFiles("append", "job")
    (rejected,) = files.write(rows("new", "new"), files.waiting(paths))
    assert "not UTF-8" in rejected["reason"]
    assert (tmp_path / "0.txt").read_bytes() == b"caf\xe9"
    assert (tmp_path / "1.txt").read_text() == "new\n"
    with pytest.raises(DataError, match=r"0\.png' and 1 more images had a text already; --existing skip"):
        TextFiles("error", "job").waiting(paths)
    TextFiles("overwrite", "job").write(rows("new"), paths)
    assert read_history(tmp_path)["0.txt"][-1].before == "caf\udce9"


def test_csv_is_safe_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    write_rows(path, rows("café, two", "=HYPERLINK(1)", 'a "quoted"\nline', "-3"))
    assert path.read_bytes().startswith(b"\xef\xbb\xbfid,image,caption\r\n")
    with open(path, encoding="utf-8-sig", newline="") as stream:
        cells = [row["caption"] for row in csv.DictReader(stream)]
    assert cells == ["café, two", "'=HYPERLINK(1)", 'a "quoted" line', "-3"]
    assert list(read_predictions(path).captions.values()) == ["café, two", "=HYPERLINK(1)", 'a "quoted" line', "-3"]


def test_results_of_coco(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    ids = ["391895", "001", "val/COCO_val2014_000000000042.jpg", "000000000043.png", "IMG_1.JPG", "0"]
    write_rows(path, [{"id": name, "image": "x", "caption": "é", "stopped": True} for name in ids])
    results = json.loads(path.read_text(encoding="utf-8"))
    assert [row["image_id"] for row in results] == [391895, "001", 42, 43, "IMG_1.JPG", 0]
    assert all(row.keys() == {"image_id", "caption"} for row in results)
    write_rows(path, [])
    assert json.loads(path.read_text()) == []
    with pytest.raises(DataError, match=r"'1' and '000000000001\.jpg' would have the same image_id 1"):
        write_rows(path, [{"id": name, "image": "x", "caption": "x"} for name in ("1", "000000000001.jpg")])
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
    annotations = {"images": [{"id": 7}], "annotations": [{"id": 1, "image_id": 7, "caption": "a"}], "info": {}}
    (tmp_path / "a.json").write_text(json.dumps(annotations))
    write_rows(path, [{"id": "7", "image": "x", "caption": "a cat"}])
    loaded = coco.COCO(str(tmp_path / "a.json")).loadRes(str(path))
    assert [row["caption"] for row in loaded.anns.values()] == ["a cat"]


APPENDING = """
import sys
from pathlib import Path
from bulk_words import Words, captions
from captune.bulk import Item, TextFiles, caption_entries, read_inputs
paths = read_inputs([sys.argv[1]]).paths
files = TextFiles("append", "job")
waiting = files.waiting(paths)
entries = (Item(name, path, Path(path)) for name, path in waiting.items())
for rows, _ in caption_entries(captions(Words(delay=0.02)), entries):
    files.write(rows, waiting)
"""


def test_a_killed_job_adds_each_caption_once(tmp_path: Path) -> None:
    """SIGKILL at a random moment, four times, while captions are appended to texts."""
    images = draw(tmp_path / "images", 120)
    for image in images:
        image.with_suffix(".txt").write_text("tags\n")
    program = [sys.executable, "-c", APPENDING, str(tmp_path / "images")]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent.parent}:{os.environ.get('PYTHONPATH', '')}"}
    chance = random.Random(2)

    def done() -> int:
        return sum(image.with_suffix(".txt").read_text() != "tags\n" for image in images)

    for _ in range(4):
        process = subprocess.Popen(program, env=environment)
        before = done()
        while done() <= before + chance.randrange(12) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert 0 < done() < len(images)
    subprocess.run(program, env=environment, check=True)
    for image in images:
        text = image.with_suffix(".txt").read_text()
        assert text.startswith("tags, ")
        assert text.endswith(f" of {image.name}\n")
        assert text.count(" of ") == 1
    assert {changes[0].before for changes in read_history(tmp_path / "images").values()} == {"tags\n"}
