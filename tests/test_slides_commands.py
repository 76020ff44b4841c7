"""The commands of the original slides, word for word, on drawn scenes laid out as Flickr30k.

The folder they run in has the repository's scripts and configurations; the tiny model takes the place of the
weights of Vicuna-7B.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from programs import run_program

SCRIPTS = ("prepare_flickr30k.py", "train.py", "eval_scripts", "evaluate.sh", "train_configs")
RUN = Path("runs/minigpt4_flickr")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, repository: Path, toy_data: Path) -> Path:
    """The repository's root as a person finds it after putting data and weights in place."""
    root = tmp_path_factory.mktemp("checkout")
    for name in SCRIPTS:
        (root / name).symlink_to(repository / name)
    (root / "flickr30k").mkdir()
    for name in ("flickr30k-images", "flickr_annotations_30k.csv"):
        (root / "flickr30k" / name).symlink_to(toy_data / name)
    (root / "weights").mkdir()
    (root / "weights" / "minigpt4-vicuna-7b").symlink_to(str(files("captune") / "toy" / "pretrained"))
    return root


@pytest.fixture(scope="module")
def prepared(checkout: Path) -> Path:
    done = run_program("python", "prepare_flickr30k.py", cwd=checkout)
    assert done.code == 0, done.err
    return checkout


@pytest.fixture(scope="module")
def trained(prepared: Path) -> Path:
    done = run_program(
        "torchrun",
        "--nproc-per-node",
        "2",
        "train.py",
        "--cfg-path",
        "train_configs/minigpt4_flickr_finetune.yaml",
        cwd=prepared,
    )
    assert done.code == 0, done.err
    assert "pretrained" in done.out
    assert "epoch4" in done.out
    assert "Warning" not in done.err, done.err  # of a library
    return prepared


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


def test_prepare_writes_the_originals_json_and_the_manifest(prepared: Path) -> None:
    original = json.loads((prepared / "flickr30k" / "flickr30k_grounded_detail.json").read_text())
    rows = original["annotations"] if isinstance(original, dict) else original
    assert len(rows) == 40
    assert {"image_id", "grounded_caption"} <= set(rows[0])
    manifest = (prepared / "flickr30k" / "manifest.jsonl").read_text().splitlines()
    splits = [json.loads(line)["split"] for line in manifest]
    assert [splits.count(split) for split in ("train", "val", "test")] == [24, 4, 12]


def test_train_under_torchrun_leaves_a_complete_run(trained: Path) -> None:
    run = trained / RUN
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml", "log.jsonl", "checkpoints", "captions", "scores.json",
        "table.md", "table.csv", "table.tex", "metrics.png", "metrics.svg",
    }  # fmt: skip
    header, *rows = (run / "table.csv").read_text().splitlines()
    assert header == "checkpoint,BLEU-1,BLEU-2,BLEU-3,BLEU-4,CIDEr,ROUGE-L"
    assert [row.split(",")[0] for row in rows] == ["pretrained", "epoch0", "epoch1", "epoch2", "epoch3", "epoch4"]
    assert sorted(path.name for path in (run / "checkpoints").glob("epoch-*")) == [f"epoch-00{n}" for n in range(5)]


def test_one_process_gives_the_losses_of_two(trained: Path) -> None:
    done = run_program(
        "python",
        "train.py",
        "--cfg-path",
        "train_configs/minigpt4_flickr_finetune.yaml",
        "--options",
        "output=runs/alone",
        cwd=trained,
    )
    assert done.code == 0, done.err
    alone, parallel = losses(trained / "runs/alone"), losses(trained / RUN)
    assert len(alone) == len(parallel) == 6  # five epochs end, and step 10 is logged
    assert alone == pytest.approx(parallel, abs=1e-5)
    assert (
        json.loads((trained / "runs/alone/scores.json").read_text())["checkpoints"][-1]["captions"]
        == (json.loads((trained / RUN / "scores.json").read_text())["checkpoints"][-1]["captions"])
    )


@pytest.mark.parametrize(
    "command", [("python", "eval_scripts/eval_flickr30k.py"), ("bash", "evaluate.sh")], ids=lambda words: words[-1]
)
def test_evaluation_scripts_repeat_the_numbers_of_the_run(trained: Path, command: tuple[str, ...]) -> None:
    table = trained / RUN / "table.csv"
    before = table.read_text()
    table.unlink()
    done = run_program(*command, cwd=trained)
    assert done.code == 0, done.err
    assert table.read_text() == before


def test_a_second_training_reuses_the_finished_run(trained: Path) -> None:
    done = run_program("python", "train.py", "--cfg-path", "train_configs/minigpt4_flickr_finetune.yaml", cwd=trained)
    assert done.code == 0
    assert "Reusing the finished run" in done.err


def test_another_configuration_does_not_overwrite_the_run(trained: Path) -> None:
    done = run_program(
        "python",
        "train.py",
        "--cfg-path",
        "train_configs/minigpt4_flickr_finetune.yaml",
        "--options",
        "seed=1",
        cwd=trained,
    )
    assert done.code == 2
    assert "already holds a run with another configuration" in done.err
    assert "Traceback" not in done.err
