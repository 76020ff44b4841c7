"""`captune check` as a user meets it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from captune.cli import app, call, run
from captune.cli.check import histogram
from captune.data.manifest import Sample, iter_manifest, write_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    Image.effect_noise((64, 48), 40).save(tmp_path / "a.jpg")
    write_manifest(tmp_path / "m.jsonl", [Sample("a", "a.jpg", ("A dog .", "It runs far ."), "train")])
    return tmp_path / "m.jsonl"


def check(*arguments: str | Path) -> int:
    return run(lambda: call(app, ["check", *map(str, arguments)]))


def test_a_good_manifest(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(manifest) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{manifest}: training can read it\n")
    assert "train 1" in output
    assert "3          1 ####" in output


def test_a_manifest_that_training_would_fail_on(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (manifest.parent / "a.jpg").unlink()
    assert check(manifest, "--split", "train", "--split", "test") == 2
    output = capsys.readouterr().out
    assert "training would fail (2 problems)" in output
    assert f"{manifest}:1: the image '{manifest.parent / 'a.jpg'}' is not there." in output
    assert f"{manifest}: no image is of the split 'test'; there is train (1)." in output


def test_the_verdict_is_what_training_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = ["train"] * 10 + ["test"] * 2
    samples = [Sample(f"{n}", f"{n}.png", ("A dog .", "It runs ."), split) for n, split in enumerate(splits)]
    for sample in samples:
        Image.effect_noise((40, 40), 50).save(tmp_path / sample.image)
    write_manifest(tmp_path / "m.jsonl", samples)

    def verdict() -> str:
        assert check(tmp_path / "m.jsonl", "--split", "train", "--split", "test") == 2
        return capsys.readouterr().out.splitlines()[0].partition(": ")[2]

    (tmp_path / "3.png").unlink()
    assert verdict() == "training would leave out 1 of 10 training images"
    (tmp_path / "11.png").write_bytes(b"no image")
    assert verdict() == (
        "training would leave out 1 of 10 training images; evaluation on test would fail (1 unreadable image)"
    )
    assert check(tmp_path / "m.jsonl", "--json") == 2
    assert json.loads(capsys.readouterr().out)["unreadable"] == {"train": 1, "test": 1}
    (tmp_path / "4.png").unlink()
    assert verdict().startswith(
        "training would fail, since 2 of 10 training images cannot be read (at most a tenth may be left out); "
    )


def test_notes_fail_only_when_strict(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(manifest, "--min-side", "50") == 0
    assert "1 small image" in capsys.readouterr().out
    assert check(manifest, "--min-side", "50", "--strict") == 2


def test_json_for_programs(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(manifest, "--json", "--max-words", "3", "--problems", manifest.parent / "p.jsonl") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["fatal"] == 0
    assert answer["problems"] == {"long": 1}
    assert answer["words_per_caption"] == {"3": 1, "4": 1}
    assert len(answer["sha256"]) == 64
    assert json.loads((manifest.parent / "p.jsonl").read_text())["kind"] == "long"


def test_targets_that_training_would_cut(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'train'")
    write_manifest(manifest, [Sample("a", "a.jpg", ("A dog .", "dog " * 500, "A ### dog ."), "train")])
    assert check(manifest, "--model", "toy", "--max-words", "1000") == 0
    output = capsys.readouterr().out
    assert "1 truncated target" in output
    assert "1 caption with a stop symbol" in output
    assert check(manifest, "--model", "toy", "--strict") == 2


def test_captions_with_special_tokens_of_a_transformers_model(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'train'")
    write_manifest(manifest, [Sample("a", "a.jpg", ("A dog .", "dog " * 500, "A sign says <image>."), "train")])
    assert check(manifest, "--model", "toy-vlm", "--max-words", "1000") == 0
    output = capsys.readouterr().out
    assert "truncated" not in output
    assert "1 caption with a special token" in output


def test_several_training_splits(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash", reason="needs the extra 'data'")
    for name in ("b", "c"):
        Image.effect_noise((64, 48), 40).save(manifest.parent / f"{name}.jpg")
    splits = (("a", "train"), ("b", "restval"), ("c", "test"))
    write_manifest(manifest, [Sample(name, f"{name}.jpg", ("A dog .",), split) for name, split in splits])
    assert check(manifest, "--split", "train,restval", "--split", "test", "--against", manifest, "--json") == 0
    (leaks,) = json.loads(capsys.readouterr().out)["leaks"]
    assert (leaks["trained"], leaks["evaluated"]) == (2, 1)
    assert check(manifest, "--split", "train,restvall") == 2
    assert "no image is of the split 'restvall'" in capsys.readouterr().out


def test_no_manifest_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path / "none.jsonl") == 2
    assert "There is no file" in capsys.readouterr().err


def test_the_histogram_holds_every_caption() -> None:
    words = Counter({1: 5, 12: 100, 30: 1, 79: 3})
    lines = histogram(words)[1:]
    assert sum(int(line.split()[1]) for line in lines) == words.total()
    assert len(lines) <= 13
    assert max(line.count("#") for line in lines) == 40
    assert histogram(Counter()) == []


def test_leaks_between_manifests(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash", reason="needs the extra 'data'")
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    Image.effect_noise((64, 48), 90).save(tmp_path / "new.jpg")
    rows = [Sample("x", "new.jpg", ("A cat .",), "test"), Sample("y", "copy.jpg", ("A cat .",), "test")]
    write_manifest(tmp_path / "other.jsonl", rows)
    other = tmp_path / "other.jsonl"
    assert check(manifest, "--against", other) == 2
    output = capsys.readouterr().out
    assert output.startswith(f"{manifest}: training can read it\n")
    assert f"{other}:2: the image '{tmp_path / 'copy.jpg'}' of 'y' has the same bytes as" in output
    assert f"{other}: LEAK, 1 of 2 evaluated images was trained on: 1 by file content, such as 'y'" in output
    assert check(manifest, "--against", other, "--allow-leaks", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["leaks"][0]["by"] == {"bytes": 1}
    assert answer["problems"] == {"leak": 1}
    write_manifest(other, rows[:1])
    assert check(manifest, "--against", other) == 0
    assert f"{other}: none of 1 image was trained on" in capsys.readouterr().out


def test_the_histogram_begins_with_the_shortest_captions() -> None:
    lines = histogram(Counter({9: 2, 11: 4}))
    assert [line.split()[0] for line in lines[1:]] == ["9", "10", "11"]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """A manifest with bad rows, and with pictures that are trained and evaluated on."""
    for number in range(5):
        Image.effect_noise((200, 150), 90).filter(ImageFilter.GaussianBlur(4)).save(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "4.png", tmp_path / "copy.png")
    shutil.copy(tmp_path / "4.png", tmp_path / "again.png")
    with Image.open(tmp_path / "3.png") as image:
        image.resize((160, 120)).save(tmp_path / "small.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    splits = {"0": "train", "1": "train", "2": "val", "3": "test", "4": "test"}
    names = {f"{name}.png": split for name, split in splits.items()}
    names |= dict.fromkeys(["copy.png", "again.png", "small.jpg", "broken.jpg", "gone.jpg"], "train")
    samples = [Sample(name, name, ("A dog runs.",), split, "near") for name, split in names.items()]
    write_manifest(tmp_path / "m.jsonl", samples)
    with (tmp_path / "m.jsonl").open("a") as stream:
        stream.write('rubbish\n{"id": "0.png", "image": "0.png", "captions": ["A cat."], "split": "train"}\n')
    return tmp_path / "m.jsonl"


def test_a_fixed_manifest_has_no_bad_rows_and_no_leaks(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash", reason="needs the extra 'train'")
    before = faulty.read_bytes()
    clean = faulty.parent / "sub" / "clean.jsonl"
    assert check(faulty, "--split", "train", "--split", "test", "--fix", "--out", clean) == 0
    printed = capsys.readouterr()
    assert "  images             5   train 2, val 1, test 2\n" in printed.out
    assert f"  left out           7   rows, each of them in {clean.parent / 'clean.left-out.jsonl'}\n" in printed.out
    assert "1 malformed row, 1 duplicate id, 1 missing image, 1 undecodable image, 3 leaked images" in printed.out
    assert "the training image 'copy.png' has the bytes of '4.png' on line 5, which is evaluated." in printed.out
    assert "the training image 'small.jpg' shows the picture of '3.png' on line 4, which is evaluated." in printed.out
    assert printed.err == f"Next, to configure a run: captune init {clean}\n"
    assert faulty.read_bytes() == before
    rows = [json.loads(line) for line in (clean.parent / "clean.left-out.jsonl").read_text().splitlines()]
    assert sorted(row["line"] for row in rows) == [6, 7, 8, 9, 10, 11, 12]
    assert [(row.id, row.image, row.split, row.domain) for row in iter_manifest(clean)] == [
        ("0.png", "../0.png", "train", "near"),
        ("1.png", "../1.png", "train", "near"),
        ("2.png", "../2.png", "val", "near"),
        ("3.png", "../3.png", "test", "near"),
        ("4.png", "../4.png", "test", "near"),
    ]
    assert check(clean, "--split", "train", "--split", "test", "--against", clean) == 0
    # The same command replaces its output, another file it does not.
    assert check(faulty, "--fix", "--out", clean, "--json") == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (answer["images"], answer["left_out"], answer["ok"]) == (5, 7, True)
    clean.write_text("mine")
    assert check(faulty, "--fix", "--out", clean) == 2
    assert check(faulty, "--fix", "--out", faulty, "--overwrite") == 2
    assert faulty.read_bytes() == before


@pytest.mark.parametrize("json_output", [(), ("--json",)])
def test_the_problems_are_listed_also_where_a_split_is_empty(
    faulty: Path, json_output: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    clean = faulty.parent / "clean.jsonl"
    assert check(faulty, "--split", "none", "--fix", "--out", clean, *json_output) == 2
    printed = capsys.readouterr()
    listed = faulty.parent / "clean.left-out.jsonl"
    assert str(listed) in printed.out
    assert "captune: the new manifest has no images of the split 'none', which was required." in printed.err
    assert clean.is_file()
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {row["line"] for row in rows} >= {9, 10, 11, 12}


def test_training_images_of_another_manifest_are_left_out(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imagehash", reason="needs the extra 'train'")
    other = faulty.parent / "other.jsonl"
    write_manifest(other, [Sample("x", "1.png", ("A dog.",), "test")])
    assert check(faulty, "--against", other, "--fix", "--out", faulty.parent / "c.jsonl") == 0
    assert [row.id for row in iter_manifest(faulty.parent / "c.jsonl")] == ["0.png", "2.png", "3.png", "4.png"]
    assert f"has the bytes of 'x' of '{other}', which is evaluated." in capsys.readouterr().out


def test_nothing_is_written_if_nothing_is_left(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (manifest.parent / "a.jpg").unlink()
    assert check(manifest, "--fix", "--out", manifest.parent / "c.jsonl") == 2
    assert "is left; nothing is written." in capsys.readouterr().err
    assert not (manifest.parent / "c.jsonl").exists()


def test_the_command_that_repairs_follows_a_failure(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with manifest.open("a") as stream:
        stream.write("rubbish\n")
    assert check(manifest) == 2
    command = f"captune check {manifest} --fix"
    assert capsys.readouterr().err == f"Next, to write a manifest without them: {command}\n"
    # The command as it is printed, with the option before or after the manifest.
    assert check(*command.split()[2:]) == 0
    fixed = manifest.parent / "m-clean.jsonl"
    assert [row.id for row in iter_manifest(fixed)] == ["a"]
    fixed.unlink()
    assert check("--fix", manifest) == 0
    assert [row.id for row in iter_manifest(fixed)] == ["a"]


def test_the_output_without_the_option_is_refused(manifest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(manifest, "--out", "clean.jsonl") == 2
    assert "--out is the file that --fix writes; add --fix" in capsys.readouterr().err
    assert list(manifest.parent.glob("*clean*")) == []


@pytest.mark.parametrize(
    ("name", "content", "command"),
    [
        (
            "t.csv",
            "File Name;Text\na.jpg;Ein Hund läuft\n",
            "init t.csv",
        ),
        ("t.csv", "name,n\nAnn,2\n", "table t.csv --image-column IMAGE --caption-column CAPTION"),
        (
            "t.jsonl",
            '{"file_name": "a.jpg", "text": "A dog."}',
            "init t.jsonl",
        ),
        ("t.json", '{"annotations": [{"image_id": 1, "caption": "A dog."}]}', "coco t.json"),
        ("t.json", '{"images": [{"filename": "a.jpg", "sentences": []}]}', "karpathy t.json"),
        ("t.json", '{"a.jpg": "A dog."}', "table t.json"),
    ],
)
def test_the_command_that_makes_a_manifest_of_a_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: str,
    command: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(content, encoding="utf-8")
    assert check(name) == 2
    if not command.startswith("init"):
        command = f"prepare {command} --out t.jsonl"
    assert capsys.readouterr().err == (
        f"captune: '{name}' is a table and not a manifest; make one with: captune {command}\n"
    )


def test_a_configuration_is_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("data: {train: m.jsonl}\n")
    assert check(tmp_path / "c.yaml") == 2
    assert "is a configuration and not a manifest" in capsys.readouterr().err


def test_a_folder_is_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path) == 2
    assert f"is a folder and not a manifest; make one with: captune init {tmp_path}" in capsys.readouterr().err


def test_a_table_in_an_unknown_encoding_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_bytes("文件名,描述\na.jpg,灰色墙上的红色圆圈\n".encode("gb18030") + b"b.jpg,\xff\n")
    assert check(tmp_path / "t.csv") == 2
    assert "--encoding sets another one: gb18030 for Chinese" in capsys.readouterr().err
