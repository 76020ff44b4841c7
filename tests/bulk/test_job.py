"""Every image once, whatever happens: kills, bad files, lists that grow, several workers."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bulk_words import IDENTITY, Words, captions, draw, files_of, write_tar
from PIL import Image

from captune.bulk import Job, JobIdentity, Progress, read_inputs, run_shards
from captune.bulk.output import read_rows, write_rows
from captune.bulk.shards import ParquetShard, Rejected, TarShard
from captune.errors import ConfigError, DataError


def work(folder: Path, *inputs: object, identity: JobIdentity = IDENTITY, **settings: Any) -> tuple[Job, Words]:
    job = Job(folder, read_inputs([str(source) for source in inputs]), identity, **{"shard_size": 10, **settings})
    words = Words()
    run_shards(captions(words), job, job.open_shards())
    job.gather_quarantine()
    return job, words


def test_each_image_once_in_order(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 25)
    job, _ = work(tmp_path / "out", tmp_path / "images")
    rows = list(job.rows())
    assert [row["id"] for row in rows] == [image.name for image in images]
    assert [Path(row["image"]) for row in rows] == images
    assert list(files_of(tmp_path / "out")) == [
        "images-00000.jsonl",
        "images-00001.jsonl",
        "images-00002.jsonl",
        "job.json",
    ]
    again, silent = work(tmp_path / "out", tmp_path / "images")
    assert silent.captioned == []
    assert list(again.rows()) == rows


def test_parquet_output_holds_the_same(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    draw(tmp_path / "images", 12)
    lines, _ = work(tmp_path / "lines", tmp_path / "images")
    table, _ = work(tmp_path / "table", tmp_path / "images", ending="parquet")
    assert list(table.rows()) == list(lines.rows())
    write_rows(tmp_path / "empty.parquet", [])
    assert list(read_rows(tmp_path / "empty.parquet")) == []


def test_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL at random, six times; then the files are, byte for byte, those of an undisturbed run."""
    draw(tmp_path / "images", 200)
    for number in (3, 77):
        (tmp_path / "images" / f"{number:04d}.png").write_bytes(b"no image")
    environment = {**os.environ, "SHARD": "10", "DELAY": "0.01", "PYTHONPATH": str(Path(__file__).parent.parent)}
    program = [sys.executable, "-m", "bulk_words", str(tmp_path / "images")]
    subprocess.run([*program, str(tmp_path / "uninterrupted")], env=environment, check=True)
    rng = random.Random(5)
    parts, killed = tmp_path / "parts", 0
    while killed < 6:
        process = subprocess.Popen([*program, str(parts)], env=environment)
        before = len(list(parts.glob("images-*.jsonl")))
        # Wait until it works on something, then let it run until a random moment.
        while len(list(parts.glob("images-*.jsonl"))) <= before + rng.randrange(2) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        assert process.wait() in (0, -signal.SIGKILL)
        if process.returncode == 0:
            break
    assert killed >= 3
    subprocess.run([*program, str(parts)], env=environment, check=True)
    assert files_of(parts) == files_of(tmp_path / "uninterrupted")
    rows = [row for path in parts.glob("images-*.jsonl") for row in read_rows(path)]
    assert len({row["id"] for row in rows}) == len(rows) == 198
    assert [row["id"] for row in read_rows(parts / "quarantine.jsonl")] == ["0003.png", "0077.png"]


def bad_files(folder: Path) -> dict[str, str]:
    """One bad file of every kind, and a word of the expected reason."""
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "jpeg")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("this is no image")
    (folder / "bomb.png").write_bytes(bomb())
    (folder / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return {
        "cut.jpg": "truncated",
        "empty.png": "empty",
        "text.jpg": "no image file",
        "bomb.png": "limit",
        "script.png": "EPS",
        "gone.jpg": "no such file",
        "pipe.jpg": "not a regular file",
    }


def bomb() -> bytes:
    """A PNG that claims 30,000 x 30,000 pixels."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_bad_files_are_put_aside_with_the_reason(tmp_path: Path) -> None:
    draw(tmp_path / "images", 30)
    reasons = bad_files(tmp_path / "images")
    job, _ = work(tmp_path / "out", tmp_path / "images")
    assert len(list(job.rows())) == 30
    quarantine = {row["id"]: row["reason"] for row in read_rows(tmp_path / "out" / "quarantine.jsonl")}
    assert quarantine.keys() == reasons.keys()
    for name, word in reasons.items():
        assert word in quarantine[name], quarantine[name]
        assert name in quarantine[name]


def test_more_images_later(tmp_path: Path) -> None:
    draw(tmp_path / "images", 25)
    _, first = work(tmp_path / "out", tmp_path / "images")
    before = files_of(tmp_path / "out")
    Image.new("RGB", (3, 3)).save(tmp_path / "images" / "0007-new.png")
    Image.new("RGB", (3, 3), "red").save(tmp_path / "images" / "9999.png")
    job, second = work(tmp_path / "out", tmp_path / "images")
    assert len(first.captioned) == 25
    assert second.captioned == ["0007-new.png", "9999.png"]
    assert job.skipped == 25
    after = files_of(tmp_path / "out")
    assert {name: after[name] for name in before if name != "job.json"} == {
        name: data for name, data in before.items() if name != "job.json"
    }
    assert {name for name in after if name not in before} == {"images-1-00000.jsonl"}
    _, third = work(tmp_path / "out", tmp_path / "images")
    assert third.captioned == []


def test_several_workers_share_the_shards(tmp_path: Path) -> None:
    draw(tmp_path / "images", 55)
    single, _ = work(tmp_path / "single", tmp_path / "images")
    captioned: list[str] = []
    for part in range(3):
        job = Job(tmp_path / "parts", read_inputs([str(tmp_path / "images")]), IDENTITY, shard_size=10)
        words = Words()
        run_shards(captions(words), job, job.open_shards(part, 3))
        captioned += words.captioned
    assert sorted(captioned) == sorted(row["id"] for row in single.rows())
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "single")


@pytest.mark.parametrize("field", ["fingerprint", "decoding", "instruction", "model"])
def test_another_job_is_refused(tmp_path: Path, field: str) -> None:
    draw(tmp_path / "images", 3)
    work(tmp_path / "out", tmp_path / "images")
    other = JobIdentity(**{**IDENTITY.__dict__, field: "another"})
    with pytest.raises(ConfigError, match=f"holds captions with {field}"):
        work(tmp_path / "out", tmp_path / "images", identity=other)
    (tmp_path / "out" / "job.json").write_text("{")
    with pytest.raises(DataError, match=r"job\.json' is broken"):
        work(tmp_path / "out", tmp_path / "images")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_webdataset_tars(tmp_path: Path, ending: str) -> None:
    images = draw(tmp_path / "images", 12, ".jpg")
    plain, _ = work(tmp_path / "plain", tmp_path / "images")
    members: dict[str, bytes] = {}
    for image in images:
        members |= {f"a/{image.stem}.jpg": image.read_bytes(), f"a/{image.stem}.json": b"{}"}
    members["a/bad.jpg"] = b""
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / f"shard-0{ending}", members, "w:gz" if ending.endswith("gz") else "w")
    work(tmp_path / "out", tmp_path / "tars")
    rows = list(read_rows(tmp_path / "out" / "shard-0.jsonl"))
    assert [row["id"] for row in rows] == [f"a/{image.stem}" for image in images]
    hashes = [row["caption"].split()[0] for row in rows]
    assert hashes == [row["caption"].split()[0] for row in plain.rows()]
    assert [row["id"] for row in read_rows(tmp_path / "out" / "quarantine.jsonl")] == ["a/bad"]


def test_a_tar_that_is_cut_off(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 4)
    write_tar(tmp_path / "whole.tar", {image.name: image.read_bytes() for image in images})
    data = (tmp_path / "whole.tar").read_bytes()
    # In the middle of the third member: a header of 512 bytes and its data each.
    cut_at = next(i for i in range(0, len(data), 512) if data[i:].startswith(images[2].name.encode())) + 512 + 20
    (tmp_path / "cut.tar").write_bytes(data[:cut_at])
    entries = list(TarShard("cut", str(tmp_path / "cut.tar")).items())
    assert [entry.id for entry in entries[:2]] == ["0000", "0001"]
    assert isinstance(entries[-1], Rejected)
    assert "cut.tar" in entries[-1].reason
    (tmp_path / "none.tar").write_bytes(b"no tar at all")
    (entry,) = TarShard("none", str(tmp_path / "none.tar")).items()
    assert isinstance(entry, Rejected)


def test_parquet_inputs(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = draw(tmp_path / "images", 70)
    rows = [{"image": {"bytes": image.read_bytes(), "path": None}, "id": n} for n, image in enumerate(images)]
    rows[5]["image"] = {"bytes": None, "path": "images/0005.png"}
    rows[6]["image"] = None
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet", row_group_size=20)
    job, _ = work(tmp_path / "out", tmp_path / "data.parquet")
    output_rows = list(job.rows())
    assert [row["id"] for row in output_rows] == [str(n) for n in range(70) if n != 6]
    plain, _ = work(tmp_path / "plain", tmp_path / "images")
    hashes = [row["caption"].split()[0] for row in plain.rows()]
    assert [row["caption"].split()[0] for row in output_rows] == hashes[:6] + hashes[7:]
    assert job.shards[0].count == 70
    with pytest.raises(DataError, match="has no column 'picture'; it has image, id"):
        list(ParquetShard("x", str(tmp_path / "data.parquet"), "picture").items())
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "data.parquet").read_bytes()[:-50])
    (entry,) = ParquetShard("x", str(tmp_path / "cut.parquet")).items()
    assert isinstance(entry, Rejected)


def test_ids_that_pandas_made_floats_of_are_whole_numbers(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    ids = [391895.0, None, float("nan"), 2.5]
    table = pyarrow.table({"image": [b"bytes"] * 4, "image_id": pyarrow.array(ids, pyarrow.float64())})
    parquet.write_table(table, tmp_path / "data.parquet")
    entry_ids = [entry.id for entry in ParquetShard("data", str(tmp_path / "data.parquet")).items()]
    assert entry_ids == ["391895", "data:1", "data:2", "2.5"]


def test_lists_and_manifests(tmp_path: Path) -> None:
    images = draw(tmp_path / "images", 4)
    (tmp_path / "list.txt").write_text("images/0002.png\n\nimages/0000.png\nimages/0002.png\n")
    inputs = read_inputs([str(tmp_path / "list.txt")])
    assert list(inputs.paths) == ["images/0002.png", "images/0000.png"]
    assert inputs.repeated == 1
    rows = [
        {"id": f"x{n}", "image": f"images/{image.name}", "captions": ["a"], "split": "ab"[n % 2]}
        for n, image in enumerate(images)
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_inputs([str(tmp_path / "m.jsonl")]).paths) == ["x0", "x1", "x2", "x3"]
    assert list(read_inputs([str(tmp_path / "m.jsonl")], split="b").paths) == ["x1", "x3"]
    job, _ = work(tmp_path / "out", tmp_path / "m.jsonl")
    assert [row["id"] for row in job.rows()] == ["x0", "x1", "x2", "x3"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "there is no file or folder"),
        ("empty", "there are no images in"),
        ("notes.pdf", "known by its ending"),
    ],
)
def test_inputs_that_are_none(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.pdf").touch()
    with pytest.raises(DataError, match=sentence):
        read_inputs([str(tmp_path / name)])


def test_two_images_of_one_id(tmp_path: Path) -> None:
    for name in "ab":
        draw(tmp_path / name, 1)
        (tmp_path / name / "list.txt").write_text("0000.png\n")
    with pytest.raises(DataError, match=r"two images have the id '0000\.png'"):
        read_inputs([str(tmp_path / "a" / "list.txt"), str(tmp_path / "b" / "list.txt")])
    assert len(read_inputs([str(tmp_path / "a"), str(tmp_path / "b")]).paths) == 2


def test_progress_says_how_fast_and_how_long() -> None:
    now = [100.0]
    progress = Progress(4, 400, shards_done=1, clock=lambda: now[0])
    assert progress.seconds_left is None
    now[0] += 10
    progress.count(98, 2)
    assert str(progress) == "100 of 400 images, 2 in quarantine, 1/4 shards, 10.0 images/s, 0:30 left"
    unknown = Progress(3, None, clock=lambda: now[0])
    unknown.count(10, 0)
    assert unknown.seconds_left is None
    now[0] += 4000
    unknown.shard_done()
    assert unknown.seconds_left == 8000
    assert str(unknown).endswith("2:13:20 left")
