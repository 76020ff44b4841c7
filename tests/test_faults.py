"""What goes wrong for real: one sentence, the right exit code, nothing half-written under a final name."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from programs import Finished, run_program

from captune.config import parse_config
from captune.data.manifest import read_manifest
from captune.training.run_folder import RunStatus, run_status

LINES_OF_A_MESSAGE = 1


def train(toy_data: Path, output: Path, *settings: str) -> Finished:
    return run_program(*command(toy_data, output), *settings)


def command(toy_data: Path, output: Path) -> list[str]:
    return [
        "captune",
        "train",
        str(Path(__file__).parent.parent / "train_configs" / "toy.yaml"),
        f"output={output}",
        f"data.train={toy_data / 'manifest.jsonl'}",
        "train.epochs=1",
        "evaluate.max_new_tokens=8",
    ]


def error_message(done: Finished) -> str:
    """The message, which is one line and no traceback."""
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("captune: ")]
    assert len(lines) == LINES_OF_A_MESSAGE, done.err
    return lines[0]


def leftovers(folder: Path) -> list[Path]:
    """Incomplete files: hidden partial ones are allowed, broken JSON under a final name is not."""
    broken = []
    for path in folder.rglob("*.json"):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            broken.append(path)
    return broken


@pytest.fixture
def broken_copy(toy_data: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    shutil.copytree(toy_data, folder)
    return folder


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("trian.epochs=1", "there is no key 'trian'; did you mean 'train'?"),
        ("data.train_split=trains", "trains"),
        ("data.train=absent/manifest.jsonl", "absent/manifest.jsonl"),
        ("model.path=./no/such/model", "There is no model folder ./no/such/model"),
    ],
)
def test_wrong_settings(toy_data: Path, tmp_path: Path, setting: str, sentence: str) -> None:
    done = train(toy_data, tmp_path / "run", setting)
    assert done.code == 2
    assert sentence in error_message(done)
    assert not (tmp_path / "run").exists()


def test_missing_image_folder(broken_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(broken_copy / "flickr30k-images")
    done = train(broken_copy, tmp_path / "run")
    assert done.code == 2
    assert "no such file" in error_message(done).lower()


def cut_off(data: Path, split: str) -> Path:
    """Cut the end off an image of a split."""
    victim = data / read_manifest(data / "manifest.jsonl", split)[0].image
    victim.write_bytes(victim.read_bytes()[:-600])
    return victim


def test_truncated_training_image(broken_copy: Path, tmp_path: Path) -> None:
    """One broken file among many is left out and named; the run continues without it."""
    victim = cut_off(broken_copy, "train")
    done = train(broken_copy, tmp_path / "run")
    assert done.code == 0, done.err
    assert "1 training image cannot be read and is left out" in done.err
    quarantined = json.loads((tmp_path / "run" / "quarantine.json").read_text())
    assert list(quarantined) == [victim.stem]
    assert victim.name in quarantined[victim.stem]


def test_truncated_test_image(broken_copy: Path, tmp_path: Path) -> None:
    """What is evaluated on is never changed in silence."""
    victim = cut_off(broken_copy, "test")
    done = train(broken_copy, tmp_path / "run")
    assert done.code == 2
    assert victim.name in error_message(done)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_full_disk(toy_data: Path, tmp_path: Path) -> None:
    """A limit on file size simulates the full disk: the checkpoint no longer fits, smaller files do."""
    output = tmp_path / "run"
    done = subprocess.run(
        [Path(sys.executable).parent / "captune", *command(toy_data, output)[1:]],
        capture_output=True,
        text=True,
        # Under the measurement of coverage, its data would not fit either.
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
        | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    message = error_message(Finished(done.returncode, done.stdout, done.stderr))
    assert "too large" in message or "No space" in message
    assert leftovers(output) == []
    assert not (output / "checkpoints" / "epoch-000").exists()


def test_ctrl_c_in_mid_epoch(toy_data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    words = [*command(toy_data, output), "train.epochs=400", "train.steps_per_epoch=50"]
    process = subprocess.Popen(
        [Path(sys.executable).parent / "captune", *words[1:]],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = output / "log.jsonl"
    while '"event": "step"' not in (log.read_text() if log.exists() else ""):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 130, rest
    assert "which is saved; the same command resumes there" in error_message(Finished(130, "", rest))
    assert leftovers(output) == []
    config = parse_config({}, [])
    assert run_status(config.model_copy(update={"output": output})) is RunStatus.OTHER
    assert list((output / "resume").iterdir())
