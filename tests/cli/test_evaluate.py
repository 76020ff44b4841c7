"""`captune evaluate` of a run's folder, wherever it is now."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from captune.cli import app, call, run
from captune.cli.evaluate import run_checkpoints
from captune.config import load_config, parse_config
from captune.data.locks import folder_lock
from captune.decoding import Caption
from captune.decoding.options import NON_FINITE_SCORES
from captune.errors import InputError, NonFiniteScoresError, ToolError
from captune.evaluation import Evaluation, evaluate_checkpoints
from captune.hub import locate_model
from captune.model import MiniGPT4
from captune.model.checkpoint import save_trained
from captune.report import read_scores
from captune.run_checkpoints import read_record
from captune.training import train


def evaluate(*arguments: object) -> int:
    return run(lambda: call(app, ["evaluate", *map(str, arguments)]))


@pytest.fixture(scope="module")
def trained(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(
        parse_config(
            {
                "output": folder,
                "model": {"path": "toy"},
                "data": {"train": toy_data / "manifest.jsonl", "evaluate_images": 3, "train_images": 4},
                "train": {"epochs": 1, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 1},
                "evaluate": {"max_new_tokens": 3},
            }
        )
    )
    return folder


def names(folder: Path) -> list[str]:
    return [row["name"] for row in json.loads((folder / "scores.json").read_text())["checkpoints"]]


def test_a_copy_is_evaluated_in_its_own_folder(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "scores.json").unlink()
    before = (trained / "scores.json").read_bytes()
    assert evaluate(copy) == 0
    assert names(copy) == ["pretrained", "epoch0"]
    assert (trained / "scores.json").read_bytes() == before


def test_a_copy_without_checkpoints_says_so(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "checkpoints")
    assert evaluate(copy) == 0
    # The row of the checkpoint that is gone is kept: it is the only record of it.
    assert names(copy) == ["pretrained", "epoch0"]
    assert f"There is no checkpoint in {copy}" in capsys.readouterr().err


def test_the_run_next_to_a_configuration_of_another_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos/runs/a/checkpoints/epoch-000").mkdir(parents=True)
    (tmp_path / "photos/a.yaml").write_text("output: runs/a\n")
    (tmp_path / "other").mkdir()
    monkeypatch.setattr("captune.cli.evaluate.checkpoint_folders", lambda folder: list(folder.glob("checkpoints/*")))
    for folder, command in (("other", "captune evaluate ../photos/runs/a\n"), ("photos", "")):
        monkeypatch.chdir(tmp_path / folder)
        config = Path("../photos/a.yaml") if command else Path("a.yaml")
        none_there = run_checkpoints(load_config(config), config) == []
        assert none_there == bool(command)
        assert capsys.readouterr().err.endswith(command)


def test_the_requested_output_wins(trained: Path, tmp_path: Path) -> None:
    assert evaluate(trained, f"output={tmp_path / 'other'}") == 0
    assert names(tmp_path / "other") == ["pretrained"]
    settings = yaml.safe_load((trained / "config.yaml").read_text())
    assert settings["output"] == str(trained)


def test_nothing_is_captioned_when_the_output_cannot_be_written(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("captune.evaluation.run_models.load_model", fail)
    assert evaluate(trained, "--out", trained / "config.yaml") == 2
    assert "is a file; give another name" in capsys.readouterr().err


def files(folder: Path) -> dict[str, bytes]:
    """All of a run, but for what an evaluation of other data adds."""
    return {
        name: path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not (name := str(path.relative_to(folder))).startswith((".captune", "evaluations", "cache"))
    }


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "{other}"],
        ["--data", "{other}:val"],
        ["data.evaluate={other}"],
        ["--split", "val"],
        ["data.evaluate_images=2"],
        ["evaluate.max_new_tokens=2"],
        ["model.instruction=What is this?"],
        ["--data", "{other}", "--prompt", "What is this?", "data.evaluate_images=2"],
    ],
)
def test_another_evaluation_leaves_the_run_as_it_is(
    toy_data: Path, run_copy: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run_copy)
    other = toy_data / "manifest.jsonl"
    assert evaluate(run_copy, *(option.format(other=other) for option in options)) == 0
    assert files(run_copy) == before
    (folder,) = (run_copy / "evaluations").iterdir()
    assert names(folder) == ["pretrained", "epoch0"]
    assert f"are written to {folder}" in capsys.readouterr().err


def test_some_checkpoints_are_no_evaluation_of_the_run(run_copy: Path) -> None:
    before = files(run_copy)
    shutil.copytree(run_copy / "checkpoints" / "epoch-000", run_copy.parent / "epoch-000")
    assert evaluate(run_copy, "--checkpoint", run_copy.parent / "epoch-000") == 0
    assert files(run_copy) == before
    assert evaluate(run_copy, "--checkpoint", run_copy / "checkpoints" / "epoch-000", "evaluate.batch_size=2") == 0
    after = files(run_copy)
    # The page shows the log, which by now has the duration of the run.
    assert {name for name in after if after[name] != before.get(name)} <= {"report.html"}


def test_scores_on_training_images_and_rows_of_others_are_kept(run_copy: Path) -> None:
    scores = json.loads((run_copy / "scores.json").read_text())
    assert scores["checkpoints"][1]["train_slice"]
    other = {**scores["checkpoints"][0], "name": "another/captioner"}
    scores["checkpoints"].append(other)
    (run_copy / "scores.json").write_text(json.dumps(scores))
    assert evaluate(run_copy) == 0
    rows = json.loads((run_copy / "scores.json").read_text())["checkpoints"]
    assert [row["name"] for row in rows] == ["pretrained", "epoch0", "another/captioner"]
    assert rows[:2] == scores["checkpoints"][:2]
    assert rows[2]["captions"] == other["captions"]


@pytest.mark.parametrize("moment", ["run_models.load_trained", "scoring.write_scores"])
def test_an_evaluation_that_dies_loses_no_row(
    run_copy: Path, moment: str, monkeypatch: pytest.MonkeyPatch, toy_data: Path
) -> None:
    before = (run_copy / "scores.json").read_bytes()

    def die(*arguments: object, **settings: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"captune.evaluation.{moment}", die)
    assert evaluate(run_copy) == 130
    assert (run_copy / "scores.json").read_bytes() == before
    monkeypatch.undo()
    events: list[str] = []
    train(load_config(run_copy / "config.yaml", [f"output={run_copy}"]), lambda event: events.append(event["event"]))
    assert events == ["reused"]


def test_a_run_is_no_place_for_another_evaluation(
    toy_data: Path, run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(run_copy)
    assert evaluate(run_copy, "--split", "val", "--out", run_copy) == 2
    assert "is the folder of a run" in capsys.readouterr().err
    assert files(run_copy) == before


def test_an_evaluation_that_ended_before_its_scores_resumes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("captune.evaluation.scoring.write_scores", fail)
        assert evaluate(trained, "--out", tmp_path / "out") != 0
    assert (tmp_path / "out" / "captions").is_dir()
    assert not (tmp_path / "out" / "scores.json").exists()
    assert evaluate(trained, "--out", tmp_path / "out") == 0


def test_a_kill_leaves_a_folder_that_the_same_evaluation_can_use(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "captions").mkdir(parents=True)
    (out / ".captune.writer.json").write_text(json.dumps({"what": "captune evaluate", "pid": 1}))
    assert evaluate(trained, "--out", out) == 0


@pytest.mark.parametrize("name", ["report.html", "captions/mine.json", "scores.json", "table.csv", "matrix.md"])
def test_files_of_others_are_not_replaced(
    trained: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("precious")
    assert evaluate(trained, "--out", tmp_path / "out") == 2
    assert "no scores.json of an evaluation" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_text() == "precious"


def test_one_evaluation_at_a_time(run_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder_lock(run_copy, "captune train"):
        assert evaluate(run_copy) == 2
    assert "is in use: captune train" in capsys.readouterr().err


@pytest.fixture
def overflowing(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint of numbers whose products are none."""
    record = read_record(trained / "checkpoints" / "epoch-000")
    model = MiniGPT4.from_pretrained(locate_model("toy"))
    state = {name: torch.full_like(value, 3e38) for name, value in model.trained_state().items()}
    save_trained(tmp_path, state, record.at(1, record.step + 1))
    return tmp_path


def test_a_checkpoint_whose_scores_are_not_numbers_has_no_row(
    trained: Path, overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = trained / "checkpoints" / "epoch-000"
    out = tmp_path / "out"
    for more in ([], ["--prompt", "Say it."]):
        code = evaluate(trained, "--checkpoint", overflowing, "--checkpoint", good, "--out", out, *more)
        err = capsys.readouterr().err
        assert code == 2
        assert "captune: epoch1: the model's scores are not numbers" in err
        assert f"it has no row. The other rows are in {out}." in err
        assert names(out) == ["pretrained", "epoch0"]
    matrix = json.loads((out / "matrix.json").read_text())
    assert {row["checkpoint"] for row in matrix["rows"]} == {"pretrained", "epoch0"}


def test_a_model_whose_scores_are_not_numbers_ends_the_evaluation_and_the_training(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(trained / "config.yaml", [f"output={tmp_path / 'run'}", "evaluate.train_slice=0"])
    caption, calls = Evaluation.caption, []

    def failing(evaluation: Evaluation, *arguments: object, **named: object) -> list[Caption]:
        calls.append(1)
        if len(calls) != 1:
            raise NonFiniteScoresError([None], {0: NON_FINITE_SCORES})
        return caption(evaluation, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluation, "caption", failing)
    with pytest.raises(InputError, match="epoch0: the model's scores are not numbers"):
        train(config)
    assert names(tmp_path / "run") == ["pretrained"]
    assert (tmp_path / "run" / "checkpoints" / "epoch-000").is_dir()
    calls.append(1)
    shutil.rmtree(tmp_path / "run" / "cache", ignore_errors=True)
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shutil.rmtree(copy / "cache", ignore_errors=True)
    before = (copy / "scores.json").read_bytes()
    with pytest.raises(InputError, match="pretrained: the model's scores are not numbers"):
        evaluate_checkpoints(
            load_config(copy / "config.yaml", [f"output={copy}"]), [copy / "checkpoints" / "epoch-000"]
        )
    assert (copy / "scores.json").read_bytes() == before


def test_other_rows_of_a_run(
    toy_data: Path,
    run_copy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model and a file of captions next to the checkpoints; they are kept when the run is evaluated again."""

    def fail(*_arguments: object, **_options: object) -> bool:
        raise ToolError("The server is gone.")

    before = json.loads((run_copy / "scores.json").read_text())["checkpoints"]
    people = tmp_path / "people.json"
    captions = {image: texts[0] for image, texts in read_scores(run_copy).references.items()}
    people.write_text(json.dumps([{"image_id": image, "caption": text} for image, text in captions.items()]))
    assert evaluate(run_copy, "--captioner", f"epoch0={people}") == 2
    assert "Two rows are called 'epoch0'" in capsys.readouterr().err
    assert evaluate(run_copy, "--captioner", tmp_path / "missing.json") == 2
    assert "There is no file" in capsys.readouterr().err
    assert json.loads((run_copy / "scores.json").read_text())["checkpoints"] == before
    assert evaluate(run_copy, "--captioner", people, "--captioner", "untuned=toy") == 0
    assert names(run_copy) == ["pretrained", "epoch0", "people", "untuned"]
    rows = {row.name: row for row in read_scores(run_copy).checkpoints}
    assert dict(rows["people"].captions) == captions
    assert dict(rows["untuned"].captions) == dict(rows["pretrained"].captions)
    assert rows["people"].p_values["CIDEr"].keys() == {"pretrained", "previous"}
    scores = (run_copy / "scores.json").read_bytes()
    assert evaluate(run_copy) == 0
    assert (run_copy / "scores.json").read_bytes() == scores
    # A row that fails loses none of the others.
    with monkeypatch.context() as patched:
        patched.setattr("captune.evaluation.checkpoints.add_row", fail)
        assert evaluate(run_copy, "--captioner", f"new={people}") == 1
    error = " ".join(capsys.readouterr().err.split())
    assert f"The server is gone. The rows of pretrained, epoch0 are in {run_copy}." in error
    assert names(run_copy) == ["pretrained", "epoch0", "people", "untuned"]


def test_a_checkpoint_among_models_is_named_by_its_run(toy_data: Path, run_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    settings = ("data.evaluate_images=3", "evaluate.max_new_tokens=3")
    assert evaluate(run_copy, "toy", "--data", toy_data / "manifest.jsonl", "--out", out, *settings) == 0
    assert names(out) == ["run@epoch0", "toy"]
    first, second = (row.captions for row in read_scores(out).checkpoints)
    run_rows = read_scores(run_copy).checkpoints
    assert [dict(first), dict(second)] == [dict(run_rows[1].captions), dict(run_rows[0].captions)]
