"""`captune prepare` and `prepare_flickr30k.py` as a user meets them: real processes, real faults."""

from __future__ import annotations

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from programs import run_in_terminal, run_program

from captune.data.manifest import read_manifest

CAPTUNE = [sys.executable, "-c", "from captune.cli import main; main()"]
FULL = Path("/dev/full")  # a device of Linux on which every write fails with "no space left"


@pytest.fixture
def flickr30k(tmp_path: Path) -> Path:
    """Three images in the layout of Flickr30k, and rows for them."""
    folder = tmp_path / "flickr30k"
    (folder / "flickr30k-images").mkdir(parents=True)
    with (folder / "flickr_annotations_30k.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for number, split in enumerate(["train", "val", "test"]):
            Image.effect_noise((64, 48), 40).save(folder / "flickr30k-images" / f"{number}.jpg")
            captions = json.dumps([f"A dog {number} .", "It runs ."])
            writer.writerow([captions, "[0, 1]", split, f"{number}.jpg", number])
    return folder


def run(
    repository: Path, cwd: Path, *arguments: str | Path, program: list[str] = CAPTUNE, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(repository), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def add_row(folder: Path, text: str) -> None:
    with (folder / "flickr_annotations_30k.csv").open("a") as stream:
        stream.write(text + "\n")


def test_a_folder_becomes_a_manifest_with_a_summary_and_samples(repository: Path, flickr30k: Path) -> None:
    done = run(repository, flickr30k, "prepare", "flickr30k", ".", "--out", "manifest.jsonl")
    assert (done.returncode, done.stdout) == (0, "")
    assert "train 1, val 1, test 1" in done.stderr
    assert "2 an image, 3-4 words, mean 3.5" in done.stderr
    for sample in read_manifest(flickr30k / "manifest.jsonl"):
        assert f"{sample.id} ({sample.split})  {sample.image}\n        {sample.captions[0]}" in done.stderr


def test_the_summary_for_programs(repository: Path, flickr30k: Path) -> None:
    add_row(flickr30k, "[],[],train,9.jpg,9")
    arguments = ["prepare", "flickr30k", ".", "-o", "m.jsonl", "--json", "--problems", "bad.jsonl"]
    done = run(repository, flickr30k, *arguments)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["splits"] == {"train": 1, "val": 1, "test": 1}
    assert answer["problems"] == {"empty": 1}
    (problem,) = map(json.loads, (flickr30k / "bad.jsonl").read_text().splitlines())
    assert (problem["line"], problem["kind"]) == (5, "empty")


def test_a_manifest_replaces_only_a_manifest_of_prepare(repository: Path, flickr30k: Path) -> None:
    source = flickr30k / "flickr_annotations_30k.csv"
    arguments = ["prepare", "flickr30k", ".", "--check-images", "none", "--out"]
    for out in (source, flickr30k / "notes"):
        (flickr30k / "notes").write_text("mine")
        before = out.read_bytes()
        done = run(repository, flickr30k, *arguments, out)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert out.read_bytes() == before
        done = run(repository, flickr30k, *arguments, "new", "--problems", out)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert out.read_bytes() == before
    assert not (flickr30k / "new").exists()
    assert run(repository, flickr30k, *arguments, "notes", "--overwrite").returncode == 0
    assert run(repository, flickr30k, *arguments, "notes").returncode == 0
    assert run(repository, flickr30k, *arguments, source, "--overwrite").returncode == 2
    assert run(repository, flickr30k, *arguments, "new", "--problems", "new").returncode == 2


def test_strict_exits_with_two_and_writes_the_problems_but_no_manifest(repository: Path, flickr30k: Path) -> None:
    cut = flickr30k / "flickr30k-images" / "1.jpg"
    cut.write_bytes(cut.read_bytes()[:900])
    (flickr30k / "flickr30k-images" / "2.jpg").unlink()
    arguments = ["prepare", "flickr30k", "flickr_annotations_30k.csv", "--out", "m.jsonl", "--problems", "bad.jsonl"]
    done = run(repository, flickr30k, *arguments, "--strict")
    assert done.returncode == 2
    assert "has 2 problems (1 missing image, 1 undecodable image); with --strict nothing is written" in done.stderr
    assert "flickr_annotations_30k.csv:3: cannot decode the image" in done.stderr
    assert "flickr_annotations_30k.csv:4: the image" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (flickr30k / "m.jsonl").exists()
    assert len((flickr30k / "bad.jsonl").read_text().splitlines()) == 2
    done = run(repository, flickr30k, *arguments)
    assert done.returncode == 0
    assert "1 missing image, 1 undecodable image" in done.stderr
    assert len(read_manifest(flickr30k / "m.jsonl")) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.csv", "--out", "m.jsonl"], "There is no 'none.csv'"),
        (["flickr30k-images", "--out", "m.jsonl"], "holds no flickr_annotations_30k.csv or results.csv"),
        ([".", "--images", "none", "--out", "m.jsonl"], "The image folder 'none' is not there"),
        ([".", "--out", "flickr30k-images"], "'flickr30k-images' is a folder"),
        (["."], "--out"),
        ([".", "--out", "m.jsonl", "--check-images", "all"], "'all' is not one of"),
    ],
)
def test_wrong_arguments_are_one_sentence(repository: Path, flickr30k: Path, arguments: list[str], words: str) -> None:
    done = run(repository, flickr30k, "prepare", "flickr30k", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (flickr30k / "m.jsonl").exists()


@pytest.mark.parametrize(("encoding", "name"), [("cp1252", "Windows-1252"), ("utf-16", "UTF-16")])
def test_another_encoding_is_named_in_the_summary(repository: Path, flickr30k: Path, encoding: str, name: str) -> None:
    file = flickr30k / "flickr_annotations_30k.csv"
    file.write_bytes(file.read_text().replace("A dog 1", "A café 1").encode(encoding))
    done = run(repository, flickr30k, "prepare", "flickr30k", ".", "--out", "m.jsonl")
    assert done.returncode == 0
    assert any(name in line for line in done.stderr.splitlines() if line.startswith("  note "))
    assert read_manifest(flickr30k / "m.jsonl")[1].captions[0] == "A café 1 ."


@pytest.mark.skipif(not FULL.exists(), reason="needs the device /dev/full of Linux")
def test_a_full_disk_is_one_sentence(repository: Path, flickr30k: Path) -> None:
    done = run(repository, flickr30k, "prepare", "flickr30k", ".", "--out", FULL)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_manifest_goes_through_a_pipe(repository: Path, flickr30k: Path) -> None:
    done = run(repository, flickr30k, "prepare", "flickr30k", ".", "--out", "/dev/stdout")
    assert done.returncode == 0
    assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [
        f"flickr30k-images/{number}.jpg" for number in range(3)
    ]


def test_ctrl_c_in_the_middle_leaves_nothing(repository: Path, flickr30k: Path) -> None:
    for number in range(20_000):
        add_row(flickr30k, f'"[""A dog .""]",[0],train,x{number}.jpg,0')
        if number < 2000:
            os.link(flickr30k / "flickr30k-images" / "0.jpg", flickr30k / "flickr30k-images" / f"x{number}.jpg")
    before = sorted(os.listdir(flickr30k))
    with subprocess.Popen(
        [*CAPTUNE, "prepare", "flickr30k", ".", "--out", "m.jsonl"],
        cwd=flickr30k,
        env={**os.environ, "PYTHONPATH": str(repository)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(name.endswith(".partial") for name in os.listdir(flickr30k)):
            assert process.poll() is None
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Ctrl-C" in stderr
    assert "Traceback" not in stderr
    assert sorted(os.listdir(flickr30k)) == before


def test_the_script_of_the_slides_keeps_its_default_paths(repository: Path, flickr30k: Path) -> None:
    script = [sys.executable, str(repository / "prepare_flickr30k.py")]
    done = run(repository, flickr30k.parent, program=script)
    assert done.returncode == 0, done.stderr
    assert json.loads((flickr30k / "flickr30k_grounded_detail.json").read_text()) == [
        {"image_id": str(number), "grounded_caption": f"A dog {number} . It runs ."} for number in range(3)
    ]
    samples = read_manifest(flickr30k / "manifest.jsonl")
    assert [sample.image for sample in samples] == [f"flickr30k-images/{number}.jpg" for number in range(3)]
    assert run(repository, repository, "--help", program=script).returncode == 0


def test_the_script_without_data_is_one_sentence(repository: Path, tmp_path: Path) -> None:
    done = run(repository, tmp_path, program=[sys.executable, str(repository / "prepare_flickr30k.py")])
    assert done.returncode == 2
    assert "There is no 'flickr30k/flickr_annotations_30k.csv'; it and flickr30k-images.zip" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_help_names_every_format(repository: Path, tmp_path: Path) -> None:
    done = run(repository, tmp_path, "prepare", "--help")
    assert done.returncode == 0
    formats = ["flickr30k", "flickr8k", "karpathy", "coco", "nocaps", "textcaps", "chinese"]
    formats += ["docci", "detailcaps", "sharegpt4v", "table", "folder", "hf", "webdataset"]
    listed = [line.split()[0] for line in done.stdout.split("Commands:")[1].splitlines() if line[2:3].strip()]
    assert [name for name in listed if name in formats] == formats
    assert '"captions": ["A dog ."]' in done.stdout


def test_user_data_with_images_inside(repository: Path, tmp_path: Path) -> None:
    """A tar, a table and a folder of parquet, each in one command; the manifest points to the written images."""
    import io
    import tarfile

    stream = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(stream, "JPEG")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in {"one.jpg": stream.getvalue(), "one.txt": b"A dog ."}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    done = run(repository, tmp_path, "prepare", "webdataset", "a.tar", "--out", "out/m.jsonl")
    assert done.returncode == 0, done.stderr
    assert "1 image of them:" in done.stderr
    row = json.loads((tmp_path / "out" / "m.jsonl").read_text())
    assert row == {"id": "one", "image": "m-images/one.jpg", "captions": ["A dog ."], "split": "train"}
    assert (tmp_path / "out" / row["image"]).read_bytes() == stream.getvalue()

    pyarrow = pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    pytest.importorskip("datasets", reason="needs the extra 'data'")
    from pyarrow import parquet

    (tmp_path / "hub").mkdir()
    table = pyarrow.table({"photo": [{"bytes": stream.getvalue(), "path": "two.jpg"}], "text": [["A cat .", "Two ."]]})
    parquet.write_table(table, tmp_path / "hub" / "test.parquet")
    columns = ("--image-column", "photo", "--caption-column", "text")
    for source in (("hf", "hub"), ("hf", "."), ("table", "hub/test.parquet", "--split", "test")):
        folder = tmp_path / "hub" if source[1] == "." else tmp_path
        done = run(repository, folder, "prepare", *source, "-o", "h.jsonl", *columns)
        assert done.returncode == 0, done.stderr
        row = json.loads((folder / "h.jsonl").read_text())
        expected = {"id": "two", "image": "h-images/two.jpg", "captions": ["A cat .", "Two ."], "split": "test"}
        assert row == expected
    done = run(repository, tmp_path, "prepare", "hf", "none-there/at-all", "-o", "x.jsonl", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "The data set 'none-there/at-all' cannot be loaded" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x-images").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("big.csv", b'image,caption\na.jpg,"' + b"x" * (17 << 20) + b'"\n', "the line is longer than 16 MB"),
        ("many.csv", b'image,caption\na.jpg,"' + b"x\n" * 200_000, "is a quotation mark never closed?"),
        ("nul.csv", b'image,caption\na.jpg,"a\0b"\n', "holds a NUL character"),
        ("travel.csv", b"image,caption\n../../etc/passwd,A dog .\n", "leads out of the image folder"),
        ("absolute.csv", b"image,caption\n/etc/passwd,A dog .\n", "leads out of the image folder"),
        ("twice.jsonl", b'{"image": "a.jpg", "image": "b.jpg", "caption": "x"}\n', "'image' is given twice"),
        ("utf16.csv", "image,caption\na.jpg,A dog .\n".encode("utf-16")[:-1], "is not valid UTF-16 text"),
    ],
)
def test_hostile_tables_are_one_sentence(
    repository: Path, tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    done = run(repository, tmp_path, "prepare", "table", name, "--images", ".", "--out", "m.jsonl")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m.jsonl").exists()


def test_where_a_split_comes_from_is_reported(repository: Path, flickr30k: Path) -> None:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(3)]
    annotations = [{"image_id": number, "caption": "A dog ."} for number in range(3)]
    for name, words in (("latest.json", "train 3, since the name"), ("captions_val2017.json", "val 3, from the name")):
        (flickr30k / name).write_text(json.dumps({"images": images, "annotations": annotations}))
        done = run(repository, flickr30k, "prepare", "coco", name, "--images", "flickr30k-images", "--out", "c.jsonl")
        assert f"{words} '{name}'" in done.stderr


def test_restval_and_shares_on_the_command_line(repository: Path, flickr30k: Path) -> None:
    entries = [
        {"filename": f"{number}.jpg", "split": split, "sentences": [{"raw": "A dog ."}]}
        for number, split in enumerate(["train", "restval", "test"])
    ]
    (flickr30k / "k.json").write_text(json.dumps({"images": entries}))
    arguments = ["prepare", "karpathy", "k.json", "--out", "k.jsonl", "--json"]
    answer = json.loads(run(repository, flickr30k, *arguments).stdout)
    assert answer["splits"] == {"train": 1, "restval": 1, "test": 1}
    assert "--restval train" in answer["notes"][0]
    answer = json.loads(run(repository, flickr30k, *arguments, "--restval", "train").stdout)
    assert (answer["splits"], answer["notes"]) == ({"train": 2, "test": 1}, [])
    (flickr30k / "t.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n2.jpg,c\n")
    table = ["prepare", "table", "t.csv", "--images", "flickr30k-images", "--out", "t.jsonl", "--json", "--split"]
    answer = json.loads(run(repository, flickr30k, *table, "train=0.6,test=0.4", "--seed", "1").stdout)
    assert answer["splits"] == {"train": 2, "test": 1}
    assert "seed 1" in answer["notes"][0]
    for wrong, words in (("train,test", "expected one split, or shares"), ("train=0.6", "add up to 0.6")):
        done = run(repository, flickr30k, *table, wrong)
        assert (done.returncode, words in done.stderr) == (2, True)


def test_problems_with_names_that_are_not_utf8_can_be_written(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in (b"caf\xe9", b"a"):
        Image.new("RGB", (8, 8)).save(os.fsencode(tmp_path / "photos") + b"/" + name + b".png")
        with open(os.fsencode(tmp_path / "photos") + b"/" + name + b".txt", "w") as stream:
            stream.write("A dog .")
    done = run(repository, tmp_path, "prepare", "folder", "photos", "--out", "m.jsonl", "--problems", "p.jsonl")
    assert done.returncode == 0, done.stderr
    assert "the image name 'caf\\xe9.png' is not UTF-8; rename the file." in done.stderr
    (problem,) = map(json.loads, (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines())
    assert problem["kind"] == "path"


def test_a_table_with_a_mark_and_windows_line_ends(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfimage,caption\r\na.jpg,A dog .\r\n")
    done = run(repository, tmp_path, "prepare", "table", "t.csv", "--check-images", "none", "--out", "m.jsonl")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "m.jsonl").read_text())["captions"] == ["A dog ."]


def office_table(folder: Path) -> Path:
    """A table as an office program in Germany writes it, with its images."""
    for number in range(3):
        Image.effect_noise((64, 48), 40).save(folder / f"{number}.jpg")
    rows = "".join(f"{number}.jpg;2026;Ein grüner Hund läuft {number}\r\n" for number in range(3))
    (folder / "list.csv").write_bytes(("File Name;Jahr;Text\r\n" + rows).encode("cp1252"))
    return folder / "list.csv"


def test_guessed_columns_are_shown_and_need_a_yes(tmp_path: Path) -> None:
    office_table(tmp_path)
    command = ["captune", "prepare", "table", "list.csv", "--out", "m.jsonl"]
    refused = run_program(*command, cwd=tmp_path)
    assert refused.code == 2
    assert "  image     'File Name'\n  caption   'Text'\n  not read  'Jahr'\n" in refused.err
    assert "columns are divided by semicolons" in refused.err
    assert "is read as Windows-1252" in refused.err
    assert "\n      2.jpg      Ein grüner Hund läuft 2\n" in refused.err
    exact = "captune prepare table list.csv --out m.jsonl --image-column 'File Name' --caption-column Text"
    assert refused.err.endswith(f"pass --yes to accept them, or name them: {exact}\n")
    assert not (tmp_path / "m.jsonl").exists()
    assert run_program(*command, "--yes", cwd=tmp_path).code == 0
    assert [sample.captions for sample in read_manifest(tmp_path / "m.jsonl")] == [
        (f"Ein grüner Hund läuft {number}",) for number in range(3)
    ]
    assert run_program(*shlex.split(exact), cwd=tmp_path).code == 0


@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 0), ("n\n", 2)])
def test_a_person_answers_on_a_terminal(tmp_path: Path, answer: str, code: int) -> None:
    office_table(tmp_path)
    done = run_in_terminal("captune", "prepare", "table", "list.csv", "--out", "m.jsonl", answers=answer, cwd=tmp_path)
    assert done.code == code
    assert "Read it like this? [Y/n]: " in done.out
    assert (tmp_path / "m.jsonl").exists() is (code == 0)
    if code:
        assert "captune: nothing is written; name the columns, as in: captune prepare table list.csv" in done.out


def test_a_table_without_a_header_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1.jpg,a dog runs\n2.jpg,a cat sleeps\n")
    done = run_program("captune", "prepare", "table", "t.csv", "--out", "m.jsonl", "--yes", cwd=tmp_path)
    assert done.code == 2
    assert "The first line of 't.csv' is a row; put a line with the names of the columns before it" in done.err
