"""`captune init` as a user meets it: from photos to a configuration, with and without a terminal."""

from __future__ import annotations

import csv
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageDraw, ImageOps
from programs import Finished, run_in_terminal, run_program

from captune import hub
from captune.cli.init_model import Machine
from captune.config import load_config, read_templates, scale_schedule
from captune.data import iter_manifest

pytest.importorskip("imagehash", reason="needs the extra 'train'")


def draw(path: Path, number: int, **options: object) -> None:
    image = Image.new("RGB", (96, 64), (30, 30, 30))
    draw = ImageDraw.Draw(image)
    for corner in range(number % 5 + 2):
        x, y = (number * 37 + corner * 29) % 80, (number * 53 + corner * 17) % 50
        draw.rectangle((x, y, x + 9 + number, y + 8 + corner), fill=(number * 20 % 256, corner * 60 % 256, 200))
    image.save(path, **options)  # type: ignore[arg-type]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve photos as phones and cameras write them, two of them rotated by EXIF, in a folder without captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for number in range(12):
        if number % 3 == 2:
            draw(folder / f"IMG_{number:02}.png", number)
        else:
            draw(folder / f"IMG_{number:02}.JPG", number, **({"exif": turned} if number in (0, 3) else {}))
    return folder


def write_table(photos: Path, name: str = "list.csv") -> Path:
    with (photos / name).open("w", newline="", encoding="cp1252") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["File Name", "Datum", "Bildunterschrift"])
        for path in sorted(photos.glob("IMG*")):
            writer.writerow([path.name, "2026", f"Grüne Kästen auf Grau in {path.stem}"])
    return photos / name


def init(cwd: Path, *arguments: object, **environment: str) -> Finished:
    return run_program("captune", "init", *arguments, cwd=cwd, **{"HF_HUB_OFFLINE": "1", **environment})


def test_a_folder_with_a_table(photos: Path, tmp_path: Path) -> None:
    write_table(photos)
    refused = init(tmp_path, "photos")
    assert refused.code == 2
    assert "he columns of 'photos/list.csv' are guessed; pass --yes to accept them, or name them: " in refused.err
    exact = "captune init photos --image-column 'File Name' --caption-column Bildunterschrift"
    assert refused.err.endswith(f"{exact}\n")
    assert not list(tmp_path.glob("photos.*"))
    done = init(tmp_path, "photos", "--yes", CUDA_VISIBLE_DEVICES="")
    assert (done.code, done.out) == (0, "")
    assert "images    12 images in photos: 8 .jpg, 4 .png; 2 are rotated by EXIF and will be read upright\n" in done.err
    assert "12 of the first 12 rows have an image in photos" in done.err
    assert "is read as Windows-1252" in done.err
    assert "images            12   train 10, test 2\n" in done.err
    assert "machine   no NVIDIA GPU; " in done.err
    assert (
        "its captions of photos are of no use. Qwen/Qwen3-VL-2B-Instruct (--model qwen3_vl_2b) needs 8.6 GB" in done.err
    )
    assert done.err.endswith("Next: captune train photos.yaml\n")
    config = load_config(tmp_path / "photos.yaml")
    assert (config.model.path, str(config.data.train), str(config.output)) == (
        "toy-vlm",
        str(tmp_path / "photos.jsonl"),
        "runs/photos",
    )
    assert config.data.name == "photos"
    assert config.evaluate.tokenizer is None
    # An epoch of ten captions has several steps, and the warm-up ends.
    assert (config.train.batch_size, config.train.warmup_steps) == (4, 1)
    assert len(yaml.safe_dump(yaml.safe_load((tmp_path / "photos.yaml").read_text())).splitlines()) <= 15
    captions = {row.id: row.captions for row in iter_manifest(tmp_path / "photos.jsonl")}
    assert captions["IMG_03"] == ("Grüne Kästen auf Grau in IMG_03",)
    # The same command again gives the same files; the splits depend on the seed alone.
    before = (tmp_path / "photos.jsonl").read_bytes()
    assert init(tmp_path, "photos", "--yes").code == 0
    assert (tmp_path / "photos.jsonl").read_bytes() == before
    assert init(tmp_path, "photos", "--yes", "--seed", 5, "--out", "other").code == 0
    assert load_config(tmp_path / "other" / "photos.yaml").seed == 5
    splits = [row.split for row in iter_manifest(tmp_path / "other" / "photos.jsonl")]
    assert sorted(splits) == ["test"] * 2 + ["train"] * 10
    assert splits != [row.split for row in iter_manifest(tmp_path / "photos.jsonl")]


def test_questions_on_a_terminal(photos: Path, tmp_path: Path) -> None:
    write_table(photos)
    done = run_in_terminal(
        "captune", "init", "photos", answers="y\n3\nmine\n", cwd=tmp_path, HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES=""
    )
    assert done.code == 0
    questions = re.findall(r"Read it like this\?|Which model \(.*?\)\?|Which file to write\?", done.out)
    assert questions == ["Read it like this?", "Which model (a number, a hub id or a folder)?", "Which file to write?"]
    assert "  1  toy-vlm " in done.out
    assert "  3  Qwen/Qwen3-VL-2B-Instruct             8.6 GB      needs a GPU\n" in done.out
    assert "There is no GPU here; take the files and the images to a machine with one" in done.out
    assert "License of Qwen/Qwen3-VL-2B-Instruct: Apache-2.0." in done.out
    assert load_config(tmp_path / "mine.yaml").model.max_pixels == 524288
    assert "Next: captune train mine.yaml" in done.out


def test_a_manifest_of_an_earlier_init_is_no_other_form(photos: Path, tmp_path: Path) -> None:
    write_table(photos)
    for _ in range(2):
        done = init(photos, ".", "--yes")
        assert done.code == 0
        assert "in several forms" not in done.err
    (photos / "IMG_00.txt").write_text("A box.\n")
    done = init(photos, ".", "--yes")
    assert "  1  a table: list.csv, for 12 rows\n  2  text files next to the images: ., for 1 image\n" in done.err


def test_texts_next_to_images(photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.glob("IMG*"))[:10]:
        path.with_suffix(".txt").write_text(f"grey boxes in {path.stem}\nseveral boxes\n")
    done = init(tmp_path, "photos", "--model", "toy", "--split", "train=0.5,val=0.5", "--json")
    assert done.code == 0
    answer = json.loads(done.out)
    assert answer["images"] == {"train": 5, "val": 5}
    assert answer["captions"] == {"train": 10, "val": 10}
    assert answer["next"] == ["captune", "train", "photos.yaml"]
    assert load_config(tmp_path / "photos.yaml").data.evaluate_split == "val"
    assert "2 of 12 images have no text" in done.err
    assert "Next:" not in done.err


def test_copies_of_a_picture_are_in_one_split(photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.glob("IMG*")):
        with Image.open(path) as image:
            ImageOps.exif_transpose(image).save(photos / f"copy_{path.stem}.webp", quality=90)
    for path in sorted(photos.iterdir()):
        path.with_suffix(".txt").write_text("grey boxes")
    assert init(tmp_path, "photos", "--split", "train=0.5,test=0.5").code == 0
    splits = {row.id: row.split for row in iter_manifest(tmp_path / "photos.jsonl")}
    assert len(splits) == 24
    assert all(splits[f"IMG_{number:02}"] == splits[f"copy_IMG_{number:02}"] for number in range(12))


def test_only_images(photos: Path, tmp_path: Path) -> None:
    done = init(tmp_path, "photos", "--yes")
    assert done.code == 2
    assert "captune: 'photos' has 12 images and no captions, which tuning needs. Write the caption of each" in done.err
    assert "captune caption MODEL photos --txt drafts text files" in done.err
    assert not list(tmp_path.glob("photos.*"))


def test_no_images(tmp_path: Path) -> None:
    done = init(tmp_path)
    assert done.code == 2
    assert "here are no images in '.'; give a folder of images, or try captune demo." in done.err


def test_unknown_columns_are_named(photos: Path, tmp_path: Path) -> None:
    (photos / "list.csv").write_text("who,where\nAnn,Rome\nBob,Oslo\n")
    done = init(tmp_path, "photos", "--yes")
    assert done.code == 2
    assert "he columns of 'photos/list.csv' are not recognized: 'who', 'where'; name them with" in done.err


def test_coco_with_images_in_another_folder(photos: Path, tmp_path: Path) -> None:
    content = {
        "images": [{"id": n, "file_name": path.name} for n, path in enumerate(sorted(photos.glob("IMG*")))],
        "annotations": [{"image_id": n, "caption": f"boxes {n}"} for n in range(12)],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    assert init(tmp_path, ".", "--out", "run.yaml").code == 0
    assert sum(1 for _ in iter_manifest(tmp_path / "run.jsonl")) == 12


def test_a_table_with_splits_keeps_them(photos: Path, tmp_path: Path) -> None:
    rows = [
        f"{path.name},{'dev' if n < 3 else 'train'},boxes in a row" for n, path in enumerate(sorted(photos.iterdir()))
    ]
    (photos / "t.csv").write_text("\n".join(["image,split,caption", *rows]))
    done = init(tmp_path, "photos/t.csv")
    assert done.code == 0
    config = load_config(tmp_path / "t.yaml")
    assert (config.data.train_split, config.data.evaluate_split) == ("train", "dev")


def test_a_manifest_is_used_or_divided(photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.glob("IMG*")):
        path.with_suffix(".txt").write_text("grey boxes")
    assert run_program("captune", "prepare", "folder", "photos", "--out", "m.jsonl", cwd=tmp_path).code == 0
    before = (tmp_path / "m.jsonl").read_bytes()
    done = init(tmp_path, "m.jsonl")
    assert done.code == 0
    assert load_config(tmp_path / "m.yaml").data.train == tmp_path / "m-split.jsonl"
    assert (tmp_path / "m.jsonl").read_bytes() == before
    done = init(tmp_path, "m-split.jsonl", "--out", "again.yaml")
    assert done.code == 0
    assert load_config(tmp_path / "again.yaml").data.train == tmp_path / "m-split.jsonl"
    assert not (tmp_path / "again.jsonl").exists()


def test_a_bad_manifest_names_the_command_that_repairs_it(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a", "image": "a.jpg", "captions": ["A."], "split": "train"}\nrubbish\n')
    done = init(tmp_path, "m.jsonl")
    assert done.code == 2
    assert "m.jsonl:2: not valid JSON" in done.err
    assert "To leave out all bad rows: captune check m.jsonl --fix\n" in done.err


@pytest.mark.parametrize("name", ["photos.yaml", "photos.jsonl"])
def test_files_of_the_user_are_kept(photos: Path, tmp_path: Path, name: str) -> None:
    write_table(photos)
    (tmp_path / name).write_text("mine")
    done = init(tmp_path, "photos", "--yes")
    assert done.code == 2
    assert f"'{name}' exists, and captune init did not write it as it is now; give --out another name" in done.err
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.glob("photos.*"))) == 1
    assert init(tmp_path, "photos", "--yes", "--overwrite").code == 0


def test_wrong_shares_and_models_are_one_sentence(photos: Path, tmp_path: Path) -> None:
    write_table(photos)
    for arguments, words in (
        (["--split", "train"], "--split is 'train'; expected shares of train and of test or val"),
        (["--split", "train=0.5,other=0.5"], "expected shares of train and of test or val"),
        (["--model", "./nowhere"], "There is no model folder ./nowhere"),
        (["--gpu", "big"], "--gpu is 'big'; expected the memory of a card"),
        (["--images", "nowhere"], "here is no folder 'nowhere'"),
    ):
        done = init(tmp_path, "photos", "--yes", *arguments)
        assert done.code == 2, arguments
        assert words in done.err
        assert "Traceback" not in done.err
    assert not list(tmp_path.glob("photos.*"))


def test_a_gpu_named_by_the_user_gets_a_model_that_fits(photos: Path, tmp_path: Path) -> None:
    write_table(photos)
    for memory, model in (("24GB", "Qwen/Qwen3-VL-2B-Instruct"), ("4GB", "toy-vlm")):
        done = init(tmp_path, "photos", "--yes", "--gpu", memory)
        assert done.code == 0
        assert load_config(tmp_path / "photos.yaml").model.path == model
    assert "machine   a GPU of 4.0 GB; " in done.err


def test_the_memory_of_the_driver_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine = Machine.detect(None)
    assert (machine.name, machine.memory) == ("NVIDIA GeForce RTX 4090", 24564 << 20)
    assert machine.in_words().startswith("NVIDIA GeForce RTX 4090 of 25.8 GB; ")
    program.write_text("#!/bin/sh\nexit 9\n")
    assert Machine.detect(None).memory is None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Machine.detect(None).memory is None


def test_templates_are_listed_and_written(tmp_path: Path, repository: Path) -> None:
    listed = init(tmp_path, "--list")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()[1:]] == sorted(
        path.stem for path in (repository / "train_configs").glob("*.yaml")
    )
    done = init(tmp_path, "--template", "qwen3-vl-2b", "--out", "my.yaml")
    assert done.code == 0
    assert done.err.endswith("Next: captune train my.yaml\n")
    text = (tmp_path / "my.yaml").read_text()
    assert "captune train my.yaml" in text
    assert "train_configs/" not in text
    assert load_config(tmp_path / "my.yaml") == load_config(repository / "train_configs" / "qwen3_vl_2b.yaml")
    printed = init(tmp_path, "--template", "qwen3_vl_2b", "--out", "-")
    assert printed.code == 0
    assert yaml.safe_load(printed.out) == yaml.safe_load(text)
    assert not (tmp_path / "-").exists()
    assert init(tmp_path, "--template", "qwen3_vl_2b", "--out", "-", "--json").code == 2
    wrong = init(tmp_path, "--template", "qwen3_vl_3b")
    assert wrong.code == 2
    assert "There is no template 'qwen3_vl_3b'; did you mean 'qwen3_vl_2b'?" in wrong.err


def test_templates_are_in_the_wheel_and_state_memory_and_license(repository: Path) -> None:
    build = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {"train_configs": "captune/train_configs"}
    for template in read_templates().values():
        if "/" in template.model and not template.model.startswith("."):
            assert template.memory is not None, template.name
            assert template.weights is not None, template.name
            assert template.license, template.name


@pytest.mark.parametrize(
    ("captions", "batch", "warmup"), [(1_000_000, None, None), (1000, None, 12), (100, 4, 12), (8, 4, 1)]
)
def test_schedules_of_small_data(captions: int, batch: int | None, warmup: int | None) -> None:
    changed = scale_schedule({"learning_rate": 1e-4}, captions)
    assert changed["learning_rate"] == 1e-4
    assert (changed.get("batch_size"), changed.get("warmup_steps")) == (batch, warmup)


def test_the_learning_rate_of_the_toy_on_few_photos(photos: Path, tmp_path: Path) -> None:
    write_table(photos)
    assert init(tmp_path, "photos", "--yes", "--model", "toy").code == 0
    train = load_config(tmp_path / "photos.yaml").train
    assert (train.learning_rate, train.min_learning_rate, train.warmup_learning_rate) == (3e-3, 3e-4, 3e-4)


def test_the_memory_of_a_run_is_predicted(photos: Path, tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra 'train'")
    write_table(photos)
    model = repository / "captune" / "toy" / "pretrained_vlm"
    fits = init(tmp_path, "photos", "--yes", "--gpu", "24GB", "--model", model)
    assert fits.code == 0
    assert "It fits 24.0 GB: the predicted peak is 1." in fits.err
    assert fits.err.endswith("Next: captune train photos.yaml\n")
    too_large = init(tmp_path, "photos", "--yes", "--gpu", "1GB", "--model", model, "--json")
    answer = json.loads(too_large.out)
    assert not answer["fits"]
    assert answer["fit"].startswith("It does not fit 1.0 GB: it takes 1.")
    assert answer["next"] == ["captune", "init", "--list"]


def test_photos_in_heif_without_the_extra(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    program = "import sys; sys.modules['pillow_heif'] = None; from captune.cli import main; main()"
    done = run_program("python", "-c", program, "init", "photos", cwd=tmp_path)
    assert done.code == 2
    assert "captune: 'photos' has 1 image in HEIF only; to read them: pip install" in done.err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            "文件名,描述\nIMG_00.JPG,灰色墙上的红色圆圈\n".encode("gb18030") + "IMG_01.JPG,белое".encode("cp1251"),
            "--encoding sets another one: gb18030 for Chinese",
        ),
        (
            "image,text\nIMG_00.JPG,灰色墙上的红色圆圈\nIMG_01.JPG,一只棕色的狗在草地上奔跑\n".encode("gb18030")
            + b"a.jpg,\xff\n",
            "t.csv:2: the line is not UTF-8",
        ),
        (b"image,caption\n", "'photos/t.csv' has no rows below the names of its columns"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(photos: Path, tmp_path: Path, content: bytes, sentence: str) -> None:
    (photos / "t.csv").write_bytes(content)
    done = init(tmp_path, "photos", "--yes")
    assert done.code == 2
    assert sentence in done.err
    assert (tmp_path / "photos.jsonl").exists() is False


@pytest.mark.parametrize("header", ["文件名,描述", "image,caption"])
def test_a_guessed_encoding_needs_a_yes(photos: Path, tmp_path: Path, header: str) -> None:
    (photos / "t.csv").write_bytes(
        "".join([f"{header}\n", *(f"IMG_{n:02}.JPG,灰色墙上的红色圆圈\n" for n in (0, 1, 3, 4, 6, 7))]).encode(
            "gb18030"
        )
    )
    refused = init(tmp_path, "photos/t.csv", "--out", "zh.yaml")
    assert refused.code == 2
    guessed = "encoding of 'photos/t.csv' is" if "image" in header else "columns and the encoding of 'photos/t.csv' are"
    assert f"captune: The {guessed} guessed; pass --yes to accept" in refused.err
    assert "note      the text seems to be gb18030 (Chinese)" in refused.err
    assert "      IMG_00.JPG  灰色墙上的红色圆圈\n" in refused.err
    image, caption = header.split(",")
    exact = ["--out", "zh.yaml", "--encoding", "gb18030", "--image-column", image, "--caption-column", caption]
    assert refused.err.endswith(f": {shlex.join(['captune', 'init', 'photos/t.csv', *exact])}\n")
    named = init(tmp_path, "photos/t.csv", *exact)
    assert named.code == 0
    manifest = (tmp_path / "zh.jsonl").read_text(encoding="utf-8")
    assert manifest.count("灰色墙上的红色圆圈") == 6
    assert load_config(tmp_path / "zh.yaml").evaluate.tokenizer == "zh-char"
    confirmed = init(tmp_path, "photos/t.csv", "--out", "zh.yaml", "--yes")
    assert confirmed.code == 0
    assert (
        "captune: warning: the encoding of photos/t.csv is guessed (gb18030) and not confirmed; compare its letters "
        "with the original, such as '灰色墙上的红色圆圈'; --encoding sets another one.\n"
    ) in confirmed.err
    assert (tmp_path / "zh.jsonl").read_text(encoding="utf-8") == manifest


def test_a_misspelt_template_and_a_used_output(photos: Path, tmp_path: Path) -> None:
    write_table(photos)
    done = init(tmp_path, "photos", "--yes", "--model", "qwen3_vl_2")
    assert done.code == 2
    assert "There is no template and no folder qwen3_vl_2; did you mean 'qwen3_vl_2b'?" in done.err
    (tmp_path / "models" / "blip").mkdir(parents=True)
    unverified = "This is not verified, since the hub cannot be reached and the model is not in the cache"
    for name, code, sentence in (
        ("florence2", 2, "There is no template and no folder florence2; captune init --list shows the templates."),
        ("./models/blp", 2, "There is no model folder ./models/blp; did you mean 'models/blip'?"),
        ("models/blp", 0, f"{unverified}; did you mean 'models/blip'?\n"),
        ("Qwen/Qwen3-VL-2B-Instrct", 0, f"{unverified}; did you mean 'Qwen/Qwen3-VL-2B-Instruct'?\n"),
        ("someone/else", 0, f"{unverified}.\n"),
        ("qwen/qwen3-vl-2b-instruct", 0, "License of Qwen/Qwen3-VL-2B-Instruct: Apache-2.0.\n"),
    ):
        done = init(tmp_path, "photos", "--yes", "--out", "x", "--model", name, HF_HUB_OFFLINE="1", HF_HOME=tmp_path)
        assert done.code == code, name
        assert sentence in done.err
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    assert init(tmp_path, "photos", "--yes").code == 0
    assert "output: runs/photos-2" in (tmp_path / "photos.yaml").read_text()


@pytest.mark.parametrize(("error", "there"), [(None, True), ("RepositoryNotFoundError", False), ("OSError", None)])
def test_a_model_is_looked_up_on_the_hub(
    error: str | None, there: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def model_info(self: object, name: str, timeout: float) -> None:
        if error == "OSError":
            raise OSError
        if error is not None:
            raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # made of a response otherwise

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(hub, "detect_offline", lambda: False)
    assert hub.is_on_hub("someone/else") is there
