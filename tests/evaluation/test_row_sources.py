"""How the rows of `captune evaluate` are named, and files of captions as rows."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from vlm_run import cards, write_rows

from captune.cli import app, call, run
from captune.config import parse_config
from captune.errors import ConfigError, MetricInputError
from captune.evaluation import evaluate_models
from captune.evaluation.row_sources import RowSource, parse_source, parse_sources, split_settings
from captune.evaluation.row_sources import _unique as unique_names
from captune.metrics import read_predictions, read_references, score_captions
from captune.report import RunScores, read_scores


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take most of the time of a small evaluation."""
    monkeypatch.setattr("captune.report.write.draw_chart", lambda *_args, **_settings: {})


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return write_rows(folder, cards(folder, train=2, test=6))


def images_of(manifest: Path, split: str = "test") -> list[dict[str, Any]]:
    return [row for line in manifest.read_text().splitlines() if (row := json.loads(line))["split"] == split]


def write_results(path: Path, captions: dict[str, str]) -> Path:
    """A file of captions in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"image_id": image, "caption": text} for image, text in captions.items()]
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def some_captions(manifest: Path, word: str = "") -> dict[str, str]:
    return {row["id"]: row["captions"][number % 2].lower() + word for number, row in enumerate(images_of(manifest))}


def evaluate(manifest: Path, output: Path, *rows: object, settings: tuple[str, ...] = (), **more: Any) -> RunScores:
    data = {"train": str(manifest), "evaluate": str(manifest), "evaluate_split": "test"}
    config = parse_config({"output": str(output), "data": data}, list(settings))
    return evaluate_models(config, [str(row) for row in rows], lambda _event: None, **more)


def command(*arguments: object) -> int:
    return run(lambda: call(app, ["evaluate", *map(str, arguments)]))


def names(*texts: str) -> list[str]:
    sources = parse_sources(texts)
    return unique_names([source.names("served") for source in sources], [])


def test_settings_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = "sweep/lr=1e-4/checkpoint-500"
    Path(folder).mkdir(parents=True)
    rows = ["toy", "org/model", "my lora=out/checkpoint-500", "base=org/model", "v1.5=toy", folder]
    rows += ["http://localhost:8000/v1#a=b", "gpt=https://api.openai.com/v1#gpt-5"]
    settings = ["evaluate.beams=3", "seed=1", "evalute.beams=3", "sed=1", "output=runs/x", "data.evaluate=a/b.jsonl"]
    assert split_settings([*rows, *settings]) == (rows, settings)


def test_labels_that_are_keys_of_the_configuration(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They are refused where the value may be a row, and remain settings elsewhere."""
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "a.json", some_captions(manifest))
    for folder, file in (("lora", "adapter_config.json"), ("pred", "x"), ("7", "x")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("{}")
    for text in ("output=lora", "seed=a.json", "train=pred", "model=toy", "data=http://h/v1#m", "output=a.json"):
        label, _, value = text.partition("=")
        with pytest.raises(ConfigError, match=f"or the row {value} with the label '{label}'; give the row another"):
            split_settings(["b.json", text])
    settings = ["seed=7", "output=pred", "output=new", "tracker=none", "train={epochs: 3}"]
    assert split_settings(settings) == ([], settings)
    arguments = ("a.json", "--data", manifest, "--metrics", "bleu", "--out", "out")
    assert command(*arguments, "output=pred") == 2
    assert "'output=pred' and --out out both name the output folder; leave one" in capfd.readouterr().err
    assert command(*arguments, "output=lora") == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "a.json", "lora", "photos", "pred"]
    assert [path.name for path in (tmp_path / "lora").iterdir()] == ["adapter_config.json"]


def test_sources(manifest: Path, tmp_path: Path) -> None:
    results = write_results(tmp_path / "blip.json", some_captions(manifest))
    assert parse_source("toy") == RowSource("model", "toy")
    assert parse_source("my lora=out/checkpoint-500") == RowSource("model", "out/checkpoint-500", "my lora")
    assert parse_source("http://localhost:8000/v1#m") == RowSource("endpoint", "http://localhost:8000/v1#m")
    assert parse_source("gpt=https://a.b/v1#m") == RowSource("endpoint", "https://a.b/v1#m", "gpt")
    assert parse_source(f"blip={results}") == RowSource("captions", str(results), "blip")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("=toy", "has no usable label"),
        (".hidden=toy", "without a dot"),
        ("a\\b=toy", "without slashes"),
        (f"{'x' * 81}=toy", "1 to 80"),
        ("label=", "has a label and no model"),
        ("missing/results.json", "There is no file missing/results.json"),
    ],
)
def test_wrong_rows(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        parse_source(text)


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    for name, message in (("adapter_model.safetensors", "is a file of weights"), ("run.yaml", "is a configuration")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ConfigError, match=message):
            parse_source(str(tmp_path / name))


def test_names_tell_rows_apart(tmp_path: Path) -> None:
    assert names("toy", "org/model", "/a/b/c") == ["toy", "org/model", "b/c"]
    assert names("/x/a/model", "/y/a/model") == ["x/a/model", "y/a/model"]
    assert names("http://h:1/v1", "http://h:2/v1") == ["served (h:1)", "served (h:2)"]
    for folder in ("one", "two"):
        write_results(tmp_path / folder / "blip.jsonl", {"1": "a"})
    files = [str(tmp_path / folder / "blip.jsonl") for folder in ("one", "two")]
    assert names(files[0]) == ["blip"]
    assert names(*files) == ["one/blip", "two/blip"]
    assert names("a=toy", "b=toy") == ["a", "b"]
    with pytest.raises(ConfigError, match="named twice"):
        names("toy", "toy")
    with pytest.raises(ConfigError, match="label 'a'"):
        names("a=toy", "a=toy-vlm")
    with pytest.raises(ConfigError, match="are called 'toy'; give one of them a label"):
        unique_names([["toy"]], ["toy"])


def test_a_checkpoint_is_named_by_its_run(tmp_path: Path) -> None:
    for run_name in ("a/photos", "b/photos", "a/cats"):
        for epoch in ("epoch-000", "epoch-001"):
            checkpoint = tmp_path / run_name / "checkpoints" / epoch
            checkpoint.mkdir(parents=True)
            (checkpoint / "checkpoint.json").write_text("{}")
    os.symlink("epoch-000", tmp_path / "a" / "photos" / "checkpoints" / "best")
    photos = str(tmp_path / "a" / "photos")
    assert names(photos) == ["photos@epoch0"], "the best one"
    assert names(f"{photos}@epoch1", str(tmp_path / "a" / "cats")) == ["photos@epoch1", "cats@epoch1"]
    assert names(f"{photos}/checkpoints/epoch-001") == ["photos@epoch1"]
    assert names(f"{photos}@1", f"{tmp_path}/b/photos@1") == ["a/photos@epoch1", "b/photos@epoch1"]
    assert names(f"mine={photos}") == ["mine"]


@pytest.mark.parametrize("form", [".json", ".jsonl"])
def test_scores_of_a_file_are_those_of_captune_score(manifest: Path, tmp_path: Path, form: str) -> None:
    results = write_results(tmp_path / f"blip{form}", some_captions(manifest, " here"))
    (row,) = evaluate(manifest, tmp_path / "out", results).checkpoints
    predicted = read_predictions(results).captions
    scored = score_captions(predicted, read_references(manifest, "test").captions)
    assert dict(row.corpus) == scored.corpus
    assert dict(row.per_image) == {str(image): values for image, values in scored.per_image.items()}
    assert (row.name, row.unfinished) == ("blip", None)
    assert "|source:file|" in row.signature
    assert not {"prompt:", "dec:"} & {field[: field.index(":") + 1] for field in row.signature.split("|")}
    assert row.notes == (
        "read from a file: how the captions were made (prompt, decoding, image processing) is not known",
    )
    assert read_scores(tmp_path / "out").checkpoints[0] == row


def test_captions_of_captune_caption_are_a_row(manifest: Path, tmp_path: Path) -> None:
    """Their ids are paths of images, and they record where a caption was cut and where thinking was removed."""
    rows = [
        {"id": row["image"], "image": row["image"], "caption": "<think>Red?</think>A card.", "stopped": number != 1}
        for number, row in enumerate(images_of(manifest))
    ]
    changed = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({**row, "id": Path(row["image"]).stem}) + "\n" for row in changed))
    file = tmp_path / "captions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(MetricInputError, match=r"No id of .*--match stem joins them"):
        evaluate(manifest, tmp_path / "out", file)
    (row,) = evaluate(manifest, tmp_path / "out", file, match="stem").checkpoints
    assert set(row.captions.values()) == {"A card."}
    assert row.unfinished == (Path(rows[1]["image"]).stem,)
    assert set(row.thinking.values()) == {"removed"}


def test_files_without_captions_of_all_images(
    manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    captions = some_captions(manifest)
    captions.pop("card-3")
    results = write_results(tmp_path / "blip.json", captions | {"card-99": "a card"})
    assert command(results, "--data", manifest, "--out", tmp_path / "out") == 2
    error = capfd.readouterr().err
    assert "1 of 6 images have no prediction in" in error
    assert "'card-3'; caption them: all rows of a table are scored on the same images." in error
    assert not (tmp_path / "out").exists()
    captions["card-3"] = "a card"
    write_results(tmp_path / "blip.json", captions | {"card-99": "a card"})
    assert evaluate(manifest, tmp_path / "out", results).checkpoints[0].notes[1] == "1 caption of other images left out"
    references = tmp_path / "references.json"
    references.write_text(
        json.dumps([{"image_id": row["id"], "captions": row["captions"]} for row in images_of(manifest)])
    )
    with pytest.raises(MetricInputError, match="captions where one prediction is expected"):
        evaluate(manifest, tmp_path / "out", references)


def test_rows_are_tested_against_each_other_and_shown_alike(
    manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    good = write_results(tmp_path / "good.json", some_captions(manifest))
    bad = write_results(tmp_path / "bad.jsonl", dict.fromkeys(some_captions(manifest), "something else"))
    out = tmp_path / "out"
    arguments = (bad, f"my best={good}", "--data", manifest, "--out", out, "--metrics", "cider,rouge-l")
    assert command(*arguments, "--json") == 0
    answer = json.loads(capfd.readouterr().out)
    assert [row["checkpoint"] for row in answer["checkpoints"]] == ["bad", "my best"]
    assert [list(row["corpus"]) for row in answer["checkpoints"]] == [["CIDEr", "ROUGE-L"]] * 2
    assert [len(row["notes"]) for row in answer["checkpoints"]] == [1, 1]
    scores = read_scores(out)
    assert scores.checkpoints[1].p_values["CIDEr"]["pretrained"] < 0.05
    assert "proto:karpathy|" in scores.checkpoints[0].signature
    table = (out / "table.md").read_text()
    assert "bad, my best: read from a file: how the captions were made" in table
    assert table.count("Signature") == 1, "rows of one kind have one signature"
    page = (out / "report.html").read_text()
    assert "my best" in page
    assert 'data-t="cider_chart_of_models"' in page
    assert 'data-t="cider_chart"' not in page, "the rows are no training"
    assert "read from a file" in page
    assert json.loads((out / "captions" / "photos-my best.json").read_text())[0]["image_id"] == "card-2"
    assert run(lambda: call(app, ["report", str(out), "--terminal"])) == 0
    printed = capfd.readouterr().out
    assert "over training" not in printed
    assert "Most improved (CIDEr, bad to my best)" in printed
    # The same command again changes nothing, and one without a row is refused.
    before = (out / "scores.json").read_bytes()
    assert command(*arguments) == 0
    assert (out / "scores.json").read_bytes() == before
    assert command(bad, "--data", manifest, "--out", out) == 2
    assert "holds an evaluation of my best" in capfd.readouterr().err


def test_a_prompt_for_files_alone_is_refused(manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = write_results(tmp_path / "blip.json", some_captions(manifest))
    for prompt in (("--prompt", "hi"), ("model.instruction=hi",)):
        assert command(results, "--data", manifest, "--out", tmp_path / "out", *prompt) == 2
        assert "'hi' is the prompt of models and endpoints, and all rows are files of" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_of_captions_have_portable_names(manifest: Path, tmp_path: Path) -> None:
    """Rows whose labels differ by case, or cannot be names of files on Windows, have a file each."""
    files = [str(write_results(tmp_path / f"{n}.json", some_captions(manifest, f" {n}"))) for n in range(4)]
    labels = ["x", "X", 'a|b: "c"', "references"]
    scores = evaluate(
        manifest, tmp_path / "out", *[f"{label}={file}" for label, file in zip(labels, files, strict=True)]
    )
    folder = tmp_path / "out" / "captions"
    names_of_files = sorted(path.stem.removeprefix("photos-") for path in folder.iterdir())
    assert [re.sub(r"-[0-9a-f]{6}$", "-HASH", name) for name in names_of_files] == [
        "X-HASH",
        "a_b_ _c_-HASH",
        "references",
        "references-HASH",
        "x",
    ]
    read = {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}
    assert "annotations" in read["photos-references"]
    for row, name in zip(scores.checkpoints, scores.caption_files, strict=True):
        assert {each["image_id"]: each["caption"] for each in read[Path(name).stem]} == dict(row.captions)
    assert scores.caption_files[0] == "photos-x.json"


def test_metrics(manifest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    results = write_results(tmp_path / "blip.json", some_captions(manifest))
    arguments = (results, "--data", manifest, "--out", tmp_path / "out")
    assert command(*arguments, "--metrics", "cidr") == 2
    assert "cidr" in capfd.readouterr().err
    assert command(*arguments, "--metrics", "failures") == 2
    assert command(*arguments, "evaluate.metrics=[cidr]") == 2
    assert not (tmp_path / "out").exists()
    assert command(*arguments, "--metrics", "cider-r,ROUGE") == 0
    (row,) = read_scores(tmp_path / "out").checkpoints
    assert list(row.corpus) == ["CIDEr-R", "ROUGE-L"]
