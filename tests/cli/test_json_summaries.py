"""`--json`: one object on stdout, progress and messages on stderr only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from captune.cli import app, call, run
from captune.cli.output import print_summary, settings


def captune(*arguments: object) -> int:
    return run(lambda: call(app, [str(word) for word in arguments]))


@pytest.fixture
def summary(capfd: pytest.CaptureFixture[str]) -> Any:
    def read(*arguments: object, code: int = 0) -> dict[str, Any]:
        assert captune(*arguments, "--json") == code
        out, err = capfd.readouterr()
        assert "Next" not in err
        (line,) = out.splitlines()
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    return read


@pytest.fixture(scope="module")
def config(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summaries")
    settings = {
        "output": str(folder / "run"),
        "model": {"path": "toy"},
        "data": {"train": str(toy_data / "manifest.jsonl"), "evaluate_images": 3, "train_images": 4},
        "train": {"epochs": 1, "batch_size": 4, "micro_batch_size": 2, "warmup_steps": 1},
        "evaluate": {"max_new_tokens": 3},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_the_commands_of_a_run(config: Path, summary: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run_folder = config.parent / "run"
    features = summary("features", config)
    assert Path(features["features"]).is_dir()
    assert features["unreadable"] == []

    trained = summary("train", config)
    assert trained["output"] == str(run_folder)
    assert trained["folders"] == [str(run_folder / "checkpoints" / "epoch-000")]
    rows = [row["checkpoint"] for row in trained["checkpoints"]]
    assert rows == ["pretrained", "epoch0"]
    assert trained["warnings"] == []
    assert set(trained["checkpoints"][1]["corpus"]) >= {"BLEU-4", "CIDEr", "ROUGE-L"}

    evaluated = summary("evaluate", run_folder, "--out", config.parent / "again")
    assert evaluated["output"] == str(config.parent / "again")
    assert evaluated["checkpoints"] == trained["checkpoints"]

    matrix = summary("evaluate", run_folder, "--out", config.parent / "matrix", "--prompt", "What is this?")
    assert matrix["output"] == str(config.parent / "matrix")
    assert {cell["row"].partition(",")[0] for cell in matrix["cells"]} == {"pretrained", "epoch0"}

    exported = summary("export", run_folder, "--out", config.parent / "adapter")
    assert exported["checkpoint"] == str(run_folder / "checkpoints" / "epoch-000")
    assert Path(exported["output"]).is_dir()

    official = summary("convert", "--to-official", trained["folders"][0], "--out", config.parent / "tuned.pth")
    assert Path(official["output"]).is_file()

    # Without --json, the next command is suggested at the end, and not under --quiet.
    assert captune("train", config) == 0
    assert capfd.readouterr().err.splitlines()[-1].startswith("Next, to ")
    assert captune("train", config, "-q") == 0
    assert capfd.readouterr().err == ""


def test_captions_are_counted(repository: Path, tmp_path: Path, summary: Any) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    out = tmp_path / "captions.jsonl"
    images = (repository / "docs" / "demo.png", tmp_path / "broken.jpg")
    answer = summary("caption", "toy", *images, "--out", out, code=2)
    assert answer == {"captions": str(out), "captioned": 1, "failed": 1}
    # The finished job has the same summary.
    assert summary("caption", "toy", *images, "--out", out, code=2) == answer


def test_captions_on_stdout_leave_no_room_for_a_summary(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    assert captune("caption", "toy", repository / "docs" / "demo.png", "--json") == 2
    assert "add --out or --txt" in capsys.readouterr().err


def test_paths_and_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary({"output": Path("a/b"), "score": float("nan"), "text": "é\udc80"})
    assert json.loads(capsys.readouterr().out) == {"output": "a/b", "score": None, "text": "é\udc80"}


@pytest.mark.parametrize(("resumes", "end"), [(False, "is kept."), (True, "is kept; the same command resumes.")])
def test_ctrl_c_says_whether_the_same_command_resumes(
    resumes: bool, end: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "resumes", resumes)

    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run(interrupted) == 130
    assert capsys.readouterr().err == f"captune: Stopped by Ctrl-C; what was finished {end}\n"
