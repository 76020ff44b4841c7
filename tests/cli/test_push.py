"""Runs that travel: `captune push`, moved runs, and base models in another folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from captioner_models import save
from huggingface_hub import ModelCard
from tuned_models import tune
from vlm_run import data_of, settings

from captune.captioner import Captioner
from captune.cli import app, call, run
from captune.errors import WeightsError
from captune.model import read_trained, save_trained
from captune.run_checkpoints import checkpoint_folders, read_record
from captune.training import train
from captune.vlm import export_merged, export_tuned


def captune(*arguments: object) -> int:
    return run(lambda: call(app, list(map(str, arguments))))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data and a run that was trained with relative paths."""
    folder = tmp_path_factory.mktemp("travel") / "project"
    data_of(folder / "data", train=4)
    save("llava", folder / "models" / "llava")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(settings(Path("models/llava"), Path("data/manifest.jsonl"), Path("runs/a"), train={"epochs": 2}))
    return folder


def copy_of(project: Path, folder: Path) -> Path:
    return Path(shutil.copytree(project, folder, symlinks=True))


def test_a_checkpoint_records_its_base_and_names_it(project: Path) -> None:
    record = json.loads((project / "runs/a/checkpoints/epoch-000/checkpoint.json").read_text())
    assert record["model"] == str(project / "models" / "llava")
    assert record["relative_model"] == "../../../../models/llava"
    assert len(record["frozen"]) == 16


def test_a_moved_project_works_from_any_directory(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = json.loads((project / "runs/a/scores.json").read_text())["checkpoints"]
    moved = copy_of(project, tmp_path / "elsewhere")
    hidden = project.with_name("hidden")
    project.rename(hidden)
    try:
        (tmp_path / "cwd" / "data").mkdir(parents=True)
        (tmp_path / "cwd" / "data" / "manifest.jsonl").write_text("other data of the same name\n")
        monkeypatch.chdir(tmp_path / "cwd")
        assert captune("evaluate", moved / "runs/a") == 0
        rows = json.loads((moved / "runs/a/scores.json").read_text())["checkpoints"]
        assert [(row["name"], row["corpus"]) for row in rows] == [(row["name"], row["corpus"]) for row in expected]
        image = moved / "data" / "5.png"
        assert captune("caption", moved / "runs/a", image) == 0
        assert "the best of 2 checkpoints" in capsys.readouterr().err
        assert captune("caption", f"{moved / 'runs/a'}@epoch1", image) == 0
        assert f"Using {moved / 'runs/a/checkpoints/epoch-001'}" in capsys.readouterr().err
        assert captune("report", moved / "runs/a") == 0
    finally:
        hidden.rename(project)


def test_a_run_without_its_data_names_the_setting(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Path(shutil.copytree(project / "runs/a", tmp_path / "a", symlinks=True))
    hidden = project.with_name("hidden")
    project.rename(hidden)
    monkeypatch.chdir(tmp_path)
    try:
        assert captune("evaluate", alone) == 2
        message = capsys.readouterr().err
        assert "data.train is data/manifest.jsonl, and there is no such file" in message
        assert "data.train=FILE" in message
        again = (alone, f"data.train={hidden / 'data/manifest.jsonl'}", "--base", hidden / "models/llava")
        assert captune("evaluate", *again) == 0
    finally:
        hidden.rename(project)


def test_a_missing_base_is_named_with_its_weights(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = copy_of(project, tmp_path / "moved")
    other = save("llava", tmp_path / "other")
    for file in sorted(other.glob("*.safetensors")):
        from safetensors.torch import load_file, save_file

        tensors = {name: tensor * 1.5 for name, tensor in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})
    hidden = project.with_name("hidden")
    project.rename(hidden)
    (moved / "models/llava").rename(tmp_path / "renamed")
    image = moved / "data" / "5.png"
    try:
        assert captune("caption", moved / "runs/a", image) == 2
        message = capsys.readouterr().err
        assert "(weights " in message
        assert "--base" in message
        assert captune("caption", moved / "runs/a", image, "--base", tmp_path / "renamed") == 0
        capsys.readouterr()
        assert captune("caption", moved / "runs/a", image, "--base", other) == 2
        assert "frozen parts" in capsys.readouterr().err
        assert captune("caption", moved / "runs/a", image, "--base", tmp_path / "absent") == 2
    finally:
        hidden.rename(project)


def test_a_base_is_for_checkpoints_and_adapters() -> None:
    with pytest.raises(Exception, match="is a complete model"):
        Captioner.from_pretrained("toy", base="toy")


def test_a_pushed_folder_is_loaded_elsewhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scored = Path(shutil.copytree(project / "runs/a", project / "runs/scored", symlinks=True))
    # Scores of 0, as of this toy, are no evaluation results of a card.
    scores = json.loads((scored / "scores.json").read_text())
    for row in scores["checkpoints"]:
        row["corpus"] |= {"CIDEr": 0.5, "BLEU-4": 0.2}
    (scored / "scores.json").write_text(json.dumps(scores))
    assert captune("push", scored, "--to", "./shared/photos", "--license", "apache-2.0") == 0
    assert (
        "Next, to caption on any machine with the base model: captune caption shared/photos photo.jpg"
        in capsys.readouterr().err
    )
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert captune("caption", "../shared/photos", project / "data" / "5.png") == 0
    card = ModelCard.load(tmp_path / "shared" / "photos" / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-text-to-text"
    results = {result.metric_name: result.metric_value for result in card.data.eval_results or []}
    assert (results["CIDEr"], results["BLEU-4"]) == (0.5, 0.2)
    assert "| metric | value | 95 % interval |" in card.text
    assert "Signature: `" in card.text


def test_the_card_says_what_was_left_out_and_that_no_epoch_is_better(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(project, tmp_path / "elsewhere") / "runs" / "a"
    content = json.loads((run / "scores.json").read_text())
    content["checkpoints"][0]["corpus"]["CIDEr"] = 9.5
    (run / "scores.json").write_text(json.dumps(content))
    with (run / "log.jsonl").open("a") as log:
        log.write('{"event": "quarantined", "images": ["IMG_3"], "reasons": ["IMG_3.jpg is empty"]}\n')
    assert captune("push", f"{run}@epoch0", "--to", tmp_path / "shared") == 0
    assert "Warning: no epoch of this run is better than pretrained by CIDEr (9.500)" in capsys.readouterr().err
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "- 4 of 5 training images; 1 left out as unreadable (IMG_3)\n" in card
    assert "No epoch of this training is better than the model before it: pretrained, CIDEr 9.5000." in card


def test_a_pushed_folder_is_known_to_have_trained_on_its_manifest(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shared = tmp_path / "shared"
    assert captune("push", project / "runs" / "a", "--to", shared) == 0
    data = Path(shutil.copytree(project / "data", tmp_path / "data")) / "manifest.jsonl"
    capsys.readouterr()

    def evaluate(split: str) -> tuple[dict[str, Any], str]:
        out = tmp_path / split
        options = ("evaluate.max_new_tokens=3", "--json")
        assert captune("evaluate", shared, "--data", f"{data}:{split}", "--out", out, *options) == 0
        messages = caplog.text
        caplog.clear()
        return json.loads(capsys.readouterr().out)["checkpoints"][0], messages

    row, messages = evaluate("train")
    assert row["leak"].startswith("4 of 4 evaluated images were trained on: 4 by id")
    assert row["signature"].endswith("|LEAK")
    assert "not known" not in messages
    row, messages = evaluate("test")
    assert row["leak"] is None
    assert "not known" not in messages
    # The split of older records is unknown.
    record = json.loads((shared / "checkpoint.json").read_text())
    assert record.pop("train_split") == "train"
    (shared / "checkpoint.json").write_text(json.dumps(record))
    assert "It is not known which images" in evaluate("test")[1]
    assert evaluate("train")[0]["leak"]
    # Another manifest, although of the same images.
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    data.write_text("".join(f"{json.dumps(row, sort_keys=True)}\n" for row in rows))
    _, messages = evaluate("train")
    assert "It is not known which images" in messages


def test_the_hub_receives_no_folder_of_this_machine(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uploads: dict[str, dict[str, str]] = {}

    def upload(folder: Path, repo_id: str, **options: Any) -> str:
        uploads[repo_id] = {path.name: path.read_bytes().decode("utf-8", "replace") for path in folder.iterdir()}
        return f"https://hub/{repo_id}"

    monkeypatch.setattr("captune.model.upload_folder", upload)
    monkeypatch.setattr("captune.hub.detect_offline", lambda: False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    run_folder = project / "runs/a"
    assert captune("push", run_folder, "--to", "me/photos") == 2
    assert "--base-id" in capsys.readouterr().err
    assert captune("push", run_folder, "--to", "me/photos", "--base-id", "llava-hf/tiny", "--private") == 0
    assert "https://hub/me/photos" in capsys.readouterr().out
    files = uploads["me/photos"]
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "checkpoint.json"} <= files.keys()
    assert not [name for name, text in files.items() if str(project) in text]
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "llava-hf/tiny"
    assert ModelCard(files["README.md"]).data.base_model == "llava-hf/tiny"
    assert captune("push", run_folder, "--to", "me/merged", "--merge", "--dry-run") == 0
    assert "me/merged" not in uploads


def test_shared_files_name_no_folder_of_the_training(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the included model, those of earlier runs, and the base model of merged weights."""
    toy = Path(shutil.copytree(project / "runs/a", tmp_path / "toy", symlinks=True))
    for folder in checkpoint_folders(toy):
        record = read_record(folder)
        ancestor = {"checkpoint": str(project / "runs/first/checkpoints/epoch-000"), "trained": "0", "epoch": 0}
        ancestor |= {"manifest": str(project / "data/manifest.jsonl"), "split": "train", "train_images": None}
        changed = replace(record, model="toy-vlm", relative_model=None, ancestors=(ancestor,))
        save_trained(folder, read_trained(folder), changed, "adapter_model.safetensors")
        settings = json.loads((folder / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = str(files("captune") / "toy" / "pretrained_vlm")
        (folder / "adapter_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr("captune.vlm.export.copy_processor", lambda *_: None)  # another model than the toy's
    shared = tmp_path / "shared"
    shared.mkdir()
    export_tuned(checkpoint_folders(toy)[-1], shared)
    assert json.loads((shared / "adapter_config.json").read_text())["base_model_name_or_path"] == "toy-vlm"
    copied = read_record(shared)
    assert copied.ancestors[0]["checkpoint"] == "first/checkpoints/epoch-000"
    assert "manifest" not in copied.ancestors[0]
    assert read_trained(shared).keys() == read_trained(checkpoint_folders(toy)[-1]).keys()
    merged = tmp_path / "merged"
    merged.mkdir()
    export_merged(checkpoint_folders(project / "runs/a")[-1], merged)
    for folder in (shared, merged):
        for path in folder.iterdir():
            text = path.read_bytes().decode("utf-8", "replace")
            assert not [name for name in (str(project), str(tmp_path), "pretrained_vlm") if name in text], path


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--to", "me/photos"), "There is no token"),
        (("--to", "photos"), r"give USER/NAME for the hub, or \./photos for a folder"),
        (("--to", "https://huggingface.co/me/photos"), "give the repository as USER/NAME"),
        (("--to", "bad name!"), "no name of a repository"),
        (("--to", "./x", "--epoch", "9"), "has no checkpoint 9"),
        (("--to", "./x", "--base-id", "/models/llava"), "give a hub id"),
    ],
)
def test_a_push_that_cannot_succeed_is_refused_at_once(
    project: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert captune("push", project / "runs/a", *options) in (1, 2)
    assert re.search(sentence, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_not_pushed(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = copy_of(project, tmp_path / "copy")
    file = copy / "runs/a/checkpoints/epoch-001/adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert captune("push", f"{copy / 'runs/a'}@1", "--to", tmp_path / "out") == 2
    assert "is damaged" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_adapter_of_another_base_is_refused_offline_at_once(tmp_path: Path) -> None:
    """The base model of an adapter on the hub: the answer names it, and nothing is tried again."""
    base = save("llava", tmp_path / "base")
    tune(base, tmp_path / "tuned")
    for name in ("checkpoint.json", "adapter_config.json"):
        file = tmp_path / "tuned" / name
        file.write_text(file.read_text().replace(str(base), "nobody/has-this"))
    with pytest.raises(WeightsError, match=r"nobody/has-this .*no connection.* --base"):
        Captioner.from_pretrained(tmp_path / "tuned")


def test_a_pushed_minigpt4_has_a_card(toy_checkpoint: Path, tmp_path: Path) -> None:
    assert captune("push", toy_checkpoint, "--to", tmp_path / "shared") == 0
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.library_name == "captune"
    assert "Trained parts: projection" in card.text
    assert "base model: toy, weights " in card.text
    assert "PeftModel" not in card.text
