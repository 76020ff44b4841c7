"""`captune caption` as a person runs it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bulk_words import write_tar
from captioner_models import save
from programs import Finished

from captune.cli import app, call
from captune.cli import run as as_program
from captune.cli.caption import _part
from captune.hub import locate_model
from captune.model import MiniGPT4


@pytest.fixture(scope="module")
def photos(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for file in sorted((toy_data / "flickr30k-images").iterdir())[:6]:
        shutil.copyfile(file, folder / file.name)
    return folder


Run = Callable[..., Finished]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """The command in this process, as the program calls it."""

    def command(*words: object, name: str = "caption") -> Finished:
        arguments = ["toy", *map(str, words)] if name == "caption" else list(map(str, words))
        code = as_program(lambda: call(app, [name, *arguments] if name else arguments))
        printed = capfd.readouterr()
        return Finished(code, printed.out, printed.err)

    return command


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_image_and_several(run: Run, photos: Path) -> None:
    files = sorted(photos.iterdir())
    one = run(files[0])
    assert one.code == 0
    assert len(one.out.splitlines()) == 1
    assert len(one.out.split()) > 3
    several = run(*files[:3])
    records = [json.loads(line) for line in several.out.splitlines()]
    assert [row["image"] for row in records] == [str(file) for file in files[:3]]
    assert records[0]["caption"] == one.out.strip()
    assert set(records[0]) == {"id", "image", "caption", "stopped"}


def test_compiled_steps_are_for_minigpt4(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = save("blip2", tmp_path / "blip2")
    command = ["caption", str(other), str(next(photos.iterdir())), "--compile"]
    assert as_program(lambda: call(app, command)) == 2
    assert "leave it out" in " ".join(capfd.readouterr().err.split())


def test_a_folder_into_shards_with_bad_files(run: Run, photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    (images / "bad.jpg").write_bytes(b"no image")
    done = run(images, "--out", tmp_path / "out", "--shard-size", 3)
    assert done.code == 2
    assert "7 of 7 images, 1 in quarantine, 3/3 shards" in done.err
    assert "1 image could not be captioned" in done.err
    assert "images/s" in done.err
    shards = sorted((tmp_path / "out").glob("images-*.jsonl"))
    captions = [row for shard in shards for row in rows(shard)]
    assert [row["id"] for row in captions] == sorted(path.name for path in photos.iterdir())
    (quarantined,) = rows(tmp_path / "out" / "quarantine.jsonl")
    assert quarantined["id"] == "bad.jpg"
    assert "no image file" in str(quarantined["reason"])
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    again = run(images, "--out", tmp_path / "out", "--shard-size", 3)
    assert again.code == 2
    assert "nothing is left to do; captions are in" in again.err
    assert {shard: shard.stat().st_mtime_ns for shard in shards} == times
    other = run(images, "--out", tmp_path / "out", "--shard-size", 3, "--beams", 2)
    assert other.code == 2
    assert "holds captions with decoding 'greedy,max40', and now it is 'beam2,lp1,max40'" in other.err


def test_one_file_and_more_images_later(run: Run, photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    files = sorted(photos.iterdir())
    for file in files[:4]:
        shutil.copyfile(file, images / file.name)
    out = tmp_path / "captions.jsonl"
    assert run(images, "--out", out).code == 0
    first = rows(out)
    assert [row["id"] for row in first] == [file.name for file in files[:4]]
    for file in files[4:]:
        shutil.copyfile(file, images / file.name)
    more = run(images, "--out", out)
    assert more.code == 0
    assert "2 of 2 images" in more.err
    assert "4 images captioned before" in more.err
    assert rows(out)[:4] == first
    assert {row["id"] for row in rows(out)} == {file.name for file in files}
    scored = run("--references", out, "--predictions", out, "--json", name="score")
    assert scored.code == 0, scored.err


def test_text_files_next_to_the_images(run: Run, photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    files = sorted(images.iterdir())
    files[1].with_suffix(".txt").write_text("my own words\n")
    done = run(images, "--txt")
    assert done.code == 0
    assert "5 captions were written" in done.err
    assert "1 had a text file already" in done.err
    assert files[1].with_suffix(".txt").read_text() == "my own words\n"
    assert all(len(file.with_suffix(".txt").read_text().split()) > 2 for file in files)


def test_texts_for_an_image_generator(run: Run, photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "10_sks dog"
    shutil.copytree(photos, images)
    files = sorted(images.iterdir())
    words = files[0].with_suffix(".txt")
    words.write_text("my own words\n")
    options = ("--trigger", "sks", "--suffix", " [v1]", "--txt", "--existing", "append")
    refused = run(images, "--txt", "--existing", "error")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"'{files[0]}' had a text already; --existing skip" in refused.err
    plain = json.loads(run(*files[:2]).out.splitlines()[0])["caption"]
    for expected in ("6 captions were", "0 captions were"):
        done = run(images, *options)
        assert done.code == 0
        assert f"{expected} written next to their images" in done.err
        assert words.read_text() == f"my own words, sks, {plain} [v1]\n"
    assert "6 images captioned before" in done.err
    history = rows(images / ".captune" / "texts.jsonl")
    assert [row["before"] for row in history] == ["my own words\n", *[None] * 5]
    assert done.err.endswith(f"Next, to look through the captions and correct them: captune review '{images}'\n")
    prepared = run("prepare", "folder", images, "--out", tmp_path / "m.jsonl", name="")
    assert prepared.code == 0
    assert ".jsonl" not in prepared.err.replace("m.jsonl", "")  # the history is not a skipped file of the user's
    assert rows(tmp_path / "m.jsonl")[0]["captions"] == [f"my own words, sks, {plain} [v1]"]


def test_files_for_spreadsheets_and_evaluation_servers(run: Run, photos: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(photos, images)
    (images / "bad.jpg").write_bytes(b"no image")
    for name in ("c.csv", "c.json", "c.jsonl"):
        out, template = tmp_path / name, ("--template", "{stem}: {caption}")
        assert run(images, "--out", out, *template).code == 2
        done = run(images, "--out", out, *template, "--allow-failed")
        assert done.code == 0
        assert "1 image could not be captioned" in done.err
        other = run(images, "--out", out)
        assert other.code == 2
        assert "holds captions with template '{stem}: {caption}', and now it is '{caption}'" in other.err
        assert rows(tmp_path / f"{out.stem}.quarantine.jsonl")[0]["id"] == "bad.jpg"
        scored = run("--references", tmp_path / "c.csv", "--predictions", out, "--json", name="score")
        assert json.loads(scored.out)["scores"]["BLEU-4"] == pytest.approx(1)
    captions = [row["caption"] for row in rows(tmp_path / "c.jsonl")]
    assert captions[0].startswith(f"{min(photos.iterdir()).stem}: ")
    assert [row["caption"] for row in json.loads((tmp_path / "c.json").read_text())] == captions
    alone = run(images / "bad.jpg", "--allow-failed")
    assert alone.code == 2


def test_images_that_share_a_text_file_get_none(run: Run, photos: Path, tmp_path: Path) -> None:
    files = sorted(photos.iterdir())
    for source, name in zip(files, ("a.jpg", "a.png", "b.jpg"), strict=False):
        shutil.copyfile(source, tmp_path / name)
    done = run(tmp_path, "--txt")
    assert done.code == 2
    assert f"'{tmp_path / 'a.jpg'}' and '{tmp_path / 'a.png'}' would be written to the same file" in done.err
    assert "1 caption was written next to their images; 2 could not be captioned." in done.err
    assert [path.name for path in tmp_path.glob("*.txt")] == ["b.txt"]


def test_a_file_of_captions_replaces_only_a_file_of_captions(run: Run, photos: Path, tmp_path: Path) -> None:
    manifest, notes, captions_file = tmp_path / "m.jsonl", tmp_path / "notes.jsonl", tmp_path / "own.jsonl"
    image = next(photos.iterdir())
    row = {"id": "a", "image": str(image), "captions": ["by people"], "split": "train"}
    manifest.write_text(json.dumps(row) + "\n")
    notes.write_text("mine\n")
    (tmp_path / "q.quarantine.jsonl").write_text("mine\n")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "link.jsonl").symlink_to(manifest)
    for out in (manifest, tmp_path / "link.jsonl", notes, tmp_path / "q.jsonl"):
        refused = run(manifest, "--out", out)
        assert refused.code == 2
        assert refused.err.count("\n") == 1
        assert "give --out another name" in refused.err
        assert not out.with_name(f"{out.name}.parts").exists()  # refused before anything was loaded
    assert before == {path: path.read_bytes() for path in before}
    assert run(manifest, "--out", manifest, "--overwrite").code == 2
    for _ in range(2):
        assert run(manifest, "--out", captions_file).code == 0
    captions_file.write_text(captions_file.read_text() + "corrected by hand\n")
    assert run(manifest, "--out", captions_file).code == 2
    assert run(manifest, "--out", captions_file, "--overwrite").code == 0
    assert [row["id"] for row in rows(captions_file)] == ["a"]


def test_parquet_is_not_written_where_images_are_read(run: Run, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    for out in ("photos/captions.parquet", "photos", "photos/out"):
        done = run(tmp_path / "photos", "--out", tmp_path / out, "--format", "parquet")
        assert done.code == 2
        assert "would be captioned the next time" in done.err


def test_a_second_process_in_the_same_folder_is_refused(run: Run, photos: Path, tmp_path: Path) -> None:
    from captune.data.locks import folder_lock

    with folder_lock(tmp_path / "c.jsonl.parts", "captune caption"):
        done = run(photos, "--out", tmp_path / "c.jsonl")
    assert done.code == 2
    assert "is in use: captune caption" in done.err
    with folder_lock(tmp_path / "out", "captune caption", part="part-0-of-2"):
        assert run(photos, "--out", tmp_path / "out", "--part", "0/2").code == 2
        assert run(photos, "--out", tmp_path / "out", "--part", "1/2").code == 0


def test_equal_keys_printed_to_stdout(run: Run, photos: Path, tmp_path: Path) -> None:
    data = next(photos.iterdir()).read_bytes()
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", {"0.jpg": data})
    done = run(tmp_path / "a.tar", tmp_path / "b.tar")
    assert done.code == 2
    assert [json.loads(line)["id"] for line in done.out.splitlines()] == ["0"]
    assert "The id '0' is in another archive already" in done.err


def test_scores_that_are_not_numbers_are_no_captions(run: Run, photos: Path, tmp_path: Path) -> None:
    model = MiniGPT4.from_pretrained(locate_model("toy")).float()
    model.projection.weight.data.fill_(3e38)  # a number, whose products are none
    model.save_pretrained(tmp_path / "model")
    files = sorted(photos.iterdir())[:2]
    images = tmp_path / "images"
    images.mkdir()
    for file in files:
        shutil.copyfile(file, images / file.name)
    for words in ([], ["--beams", 2], ["--temperature", 1]):
        one = run("caption", tmp_path / "model", files[0], *words, name="")
        assert (one.code, one.out) == (2, "")
        (message,) = (line for line in one.err.splitlines() if line.startswith("captune: "))
        assert message.startswith("captune: ")
        assert "the model's scores are not numbers (NaN or infinite)" in message
    done = run("caption", tmp_path / "model", images, "--out", tmp_path / "c.jsonl", name="")
    assert done.code == 2
    assert rows(tmp_path / "c.jsonl") == []
    quarantined = rows(tmp_path / "c.quarantine.jsonl")
    assert [row["id"] for row in quarantined] == [file.name for file in files]
    assert all("--dtype bfloat16 or float32" in str(row["reason"]) for row in quarantined)
    assert run("caption", tmp_path / "model", images, "--txt", name="").code == 2
    assert not list(images.glob("*.txt"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("absent.jpg",), "There is no file or folder 'absent.jpg'"),
        ((".", "--beams", "0"), "beams is 0"),
        ((".", "--part", "3/2", "--out", "x"), "expected K/N"),
        ((".", "--txt", "--out", "x"), "--txt writes next to image files"),
        ((".", "--out", "captions.xlsx"), "captions are written as .jsonl, .parquet, .csv or .json;"),
        ((".", "--template", "{captoin}"), "there is no field {captoin}; did you mean 'caption'?"),
        ((".", "--existing", "append"), "--existing append is for text files next to images; add --txt"),
        ((".", "--txt", "--existing", "append", "--template", "{existing} {caption}"), "would add it again"),
        ((".", "--device", "cuda:99"), "There is no device 'cuda:99'; here are: cpu"),
        ((".", "--device", "gpu"), "There is no device 'gpu'; here are: cpu"),
        ((".", "--instruction", " "), "The instruction is empty"),
        ((".", "--out", f"{__file__}/x.jsonl"), "is below a file"),
        (("x" * 300,), "is too long for a file name"),
    ],
)
def test_wrong_words(run: Run, photos: Path, tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    arguments = [str(photos) if word == "." else word for word in words]
    done = run(*arguments)
    assert done.code == 2
    assert sentence in done.err
    assert sum(line.startswith("captune: ") for line in done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("part", "rank", "size", "expected"),
    [("2/5", "0", "1", (2, 5)), (None, "1", "3", (1, 3)), (None, None, None, (0, 1)), ("0/1", "1", "3", (0, 1))],
)
def test_parts_by_hand_or_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, part: str | None, rank: str | None, size: str | None, expected: tuple[int, int]
) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert _part(part) == expected
