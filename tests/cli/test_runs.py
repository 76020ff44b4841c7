"""`captune runs`: list, compare, delete and caches, as programs and through the functions that they call."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from captune.config import STORED_HEADING, commented_yaml, parse_config
from captune.data import folder_lock
from captune.errors import InputError
from captune.report import CheckpointScores, RunScores, write_scores
from captune.results import TuningResult
from captune.run_checkpoints import score_before_training, select_checkpoint
from captune.run_folders import delete_run, empty_caches, find_caches, find_runs, record_user, summarize
from tests.programs import Finished, run_program

CAPTIONS = {"1": ("a dog runs", "a brown dog runs"), "2": ("a cat", "a small cat sleeps"), "3": ("a man", "a man sits")}


def captune(*arguments: object, cwd: Path | None = None, **environment: str) -> Finished:
    return run_program(sys.executable, "-m", "captune", *arguments, cwd=cwd, **environment)


def make_run(folder: Path, *, epochs: int = 2, cider: tuple[float, ...] = (0.5, 0.9), **settings: Any) -> Path:
    """The folder of a run with a scored checkpoint for each value of CIDEr."""
    folder.mkdir(parents=True)
    content = {"output": str(folder), "train": {"epochs": epochs}, "data": {"train": str(folder.parent / "m.jsonl")}}
    config = parse_config({**content, **settings})
    (folder / "config.yaml").write_text(commented_yaml(config, STORED_HEADING))
    (folder / "log.jsonl").write_text('{"event": "run", "steps": 4}\n')
    for epoch in range(len(cider)):
        checkpoint = folder / "checkpoints" / f"epoch-{epoch:03d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "checkpoint.json").write_text("{}")
        (checkpoint / "trained.safetensors").write_bytes(b"x" * 1000)
    rows = tuple(
        CheckpointScores(
            name=f"epoch{epoch}",
            epoch=epoch,
            corpus={"CIDEr": value},
            captions={image: pair[min(epoch, 1)] for image, pair in CAPTIONS.items()},
        )
        for epoch, value in enumerate(cider)
    )
    if rows:
        references = {image: (pair[1], f"{pair[1]} here") for image, pair in CAPTIONS.items()}
        write_scores(RunScores("photos", rows, "test", "karpathy", len(CAPTIONS), references), folder)
    return folder


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda run: None, "finished"),
        (lambda run: (run / "scores.json").write_text("{"), "damaged"),
        (lambda run: (run / "config.yaml").write_text(f"# {STORED_HEADING}\ntrain: ["), "damaged"),
        (lambda run: (run / "checkpoints/epoch-001/checkpoint.json").unlink(), "damaged"),
        (lambda run: (run / "checkpoints/epoch-001/trained.safetensors").unlink(), "damaged"),
    ],
)
def test_states(change: Any, state: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    change(run)
    summary = summarize(run)
    assert summary.state == state
    assert bool(summary.reason) == (state == "damaged")


def test_an_unfinished_and_an_early_stopped_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", epochs=5)
    assert (summarize(run).state, summarize(run).epochs, summarize(run).total) == ("unfinished", 2, 5)
    with (run / "log.jsonl").open("a") as stream:
        stream.write('{"event": "early_stop", "epoch": 1, "reason": "no rise"}\n')
    assert summarize(run).state == "stopped early"
    assert "stopped early at 2 of 5" in captune("runs", tmp_path).out
    with (run / "log.jsonl").open("a") as stream:
        stream.write('{"event": "run", "steps": 10}\n')
    assert summarize(run).state == "unfinished"


def test_checkpoints_that_were_not_kept_are_not_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    for path in (run / "checkpoints/epoch-000").iterdir():
        path.unlink()
    (run / "checkpoints/epoch-000").rmdir()
    assert summarize(run).state == "finished"


def test_the_best_epoch_is_that_of_the_selected_metric(tmp_path: Path) -> None:
    assert summarize(make_run(tmp_path / "a", cider=(0.9, 0.5))).best == "epoch0"
    assert summarize(make_run(tmp_path / "b", cider=())).best is None


def test_a_writer_makes_a_run_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    with folder_lock(run, "captune train"):
        summary = summarize(run)
        assert (summary.state, summary.reason) == ("running", "captune train")
        with pytest.raises(InputError, match="in use: captune train"):
            delete_run(run)
    assert summarize(run).state == "finished"
    assert (run / "scores.json").exists()


def test_runs_are_listed_without_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "deep" / "b", epochs=5)
    (tmp_path / "config.yaml").write_text("train: {epochs: 1}\n")
    done = captune("runs", "runs", cwd=tmp_path, COLUMNS="200")
    assert done.code == 0, done.err
    header, *rows = done.out.splitlines()
    assert header.split() == ["Run", "Model", "Data", "Epochs", "State", "Best", "Size", "Changed"]
    assert [row.split()[0] for row in rows] == ["runs/a", "runs/deep/b"]
    assert "2/2     finished    CIDEr 0.9000 (epoch1)" in rows[0]
    assert "2/5     unfinished" in rows[1]
    listed = json.loads(captune("runs", "--json", cwd=tmp_path).out)["runs"]
    assert [entry["folder"] for entry in listed] == ["runs/a", "runs/deep/b"]
    assert listed[0]["score"] == 0.9
    probe = "import sys, captune.cli as c; c.call(c.app, ['runs']); print({'torch', 'transformers'} & set(sys.modules))"
    assert run_program(sys.executable, "-c", probe, cwd=tmp_path).out.splitlines()[-1] == "set()"


def test_a_better_row_before_training_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", cider=(0.5, 0.4), train={"epochs": 2, "select": "rouge-l"})
    content = json.loads((run / "scores.json").read_text())
    before = {**content["checkpoints"][0], "name": "pretrained", "epoch": None}
    for row, rouge in ((before, 0.3), *zip(content["checkpoints"], (0.1, 0.2), strict=True)):
        row["corpus"] = {"CIDEr": row["corpus"]["CIDEr"], "ROUGE-L": rouge}
    content["checkpoints"].insert(0, before)
    (run / "scores.json").write_text(json.dumps(content))
    assert score_before_training(run) == ("pretrained", "ROUGE-L", 0.3)
    assert select_checkpoint(run).reason.endswith("by ROUGE-L (0.200); pretrained is better by ROUGE-L (0.300)")
    listed = captune("runs", tmp_path)
    assert "ROUGE-L 0.2000 (epoch1); pretrained is better: 0.3000" in listed.out
    assert json.loads(captune("runs", tmp_path, "--json").out)["runs"][0]["before"]["name"] == "pretrained"
    assert "No epoch is better than pretrained by ROUGE-L (0.3000)." in repr(TuningResult(run))
    # By CIDEr the first epoch is as good as the row before training, which is no reason to keep that.
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("select: rouge-l", "select: null"))
    assert score_before_training(run) is None


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal_and_nothing_is_cut(columns: int, tmp_path: Path) -> None:
    root = tmp_path / "a folder with a name of many words"
    runs = [
        make_run(root / name, seed=seed, train={"epochs": 2, "learning_rate": 0.001}) for seed, name in enumerate("ab")
    ]
    width = {"COLUMNS": str(columns)}
    for arguments in (("runs", root), ("runs", "compare", *runs), ("runs", "caches", root)):
        done = captune(*arguments, **width)
        assert done.code == 0, done.err
        # Names of folders are not broken.
        assert all(len(line) <= columns or str(root) in line for line in done.out.splitlines()), done.out
        assert "…" not in done.out
    listed = captune("runs", root, **width).out.split()
    assert {"CIDEr", "0.9000", "finished", "toy", str(runs[0]).split()[0]} <= set(listed)
    compared = captune("runs", "compare", *runs, **width).out
    assert compared.count("CIDEr") > 1


def test_a_folder_without_runs(tmp_path: Path) -> None:
    done = captune("runs", tmp_path)
    assert (done.code, done.err) == (0, f"There are no runs in {tmp_path}.\n")
    missing = captune("runs", tmp_path / "x")
    assert missing.code == 2
    assert "There is no folder" in missing.err


def test_compare_shows_settings_and_best_checkpoints(tmp_path: Path) -> None:
    one = make_run(tmp_path / "a", cider=(0.9, 0.5))
    other = make_run(tmp_path / "b", seed=7)
    done = captune("runs", "compare", one, other)
    assert done.code == 0, done.err
    verdict, detail, *lines = done.out.splitlines()
    assert "a epoch0" in verdict
    assert "CIDEr" in verdict
    assert "paired over the images" in " ".join([detail, *lines[:2]])
    assert ["seed", "42", "7"] in [line.split() for line in lines]
    assert "b epoch1 minus a epoch0" in lines
    assert [line.split()[0] for line in lines[lines.index("b epoch1 minus a epoch0") + 1 :][:6]] == [
        "BLEU-1",
        "BLEU-2",
        "BLEU-3",
        "BLEU-4",
        "CIDEr",
        "ROUGE-L",
    ]
    assert "row minus column" not in done.out
    assert done.err.startswith(f"Next, to write the comparison as a page: captune report {one} {other} --out ")
    assert "a epoch0" in done.out
    assert "b epoch1" in done.out
    result = json.loads(captune("runs", "compare", one, other, "--json").out)
    assert result["settings"] == {"seed": {"a": 42, "b": 7}}
    assert {test["metric"] for test in result["tests"]} >= {"CIDEr", "BLEU-4"}
    same = captune("runs", "compare", one, one)
    assert same.code == 2
    assert "the same run" in same.err


def test_deletion_removes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "checkpoints/best").symlink_to("epoch-001")
    outside = tmp_path / "photos"
    outside.mkdir()
    (outside / "1.json").write_text("keep")
    (run / "captions").symlink_to(outside)
    kept = ["notes.txt", "checkpoints/epoch-000/mine.txt", "rating/study.sqlite", "replaced-1/config.yaml"]
    for name in kept:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("keep")
    empty = run / "empty"
    empty.mkdir()
    assert captune("runs", "delete", run).code == 2
    assert (run / "config.yaml").exists()
    done = captune("runs", "delete", run, "--yes")
    assert done.code == 0, done.err
    assert "Kept: " in done.err
    assert empty.is_dir()
    remaining = [str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()]
    assert sorted(name for name in remaining if name != ".captune.lock") == sorted(kept)
    assert (run / "captions").is_symlink()
    assert (outside / "1.json").read_text() == "keep"
    assert captune("runs", "delete", run, "--yes").code == 2


def test_a_run_alone_in_its_folder_leaves_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    deletion = delete_run(run)
    assert deletion.files[-1].name == "config.yaml"
    assert not run.exists()


def test_a_folder_that_is_no_run_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(InputError, match="no configuration of a run"):
        delete_run(tmp_path)


def add_caches(tmp_path: Path) -> list[Path]:
    """Two runs with one feature store, and captions of one run."""
    folders = [make_run(tmp_path / "runs" / name) for name in "ab"]
    store = tmp_path / "runs" / "features" / ("0" * 16)
    store.mkdir(parents=True)
    (store / "shard-1.safetensors").write_bytes(b"x" * 3000)
    (store / "header.json").write_text('{"tokens": 32, "dtype": "float32"}')
    (store / "mine.txt").write_text("keep")
    cache = folders[0] / "cache" / "captions"
    cache.mkdir(parents=True)
    (cache / "1.jsonl").write_text('{"identity": []}\n{"image": "1"}\n{"image": "2"}\n')
    return folders


def test_caches_are_listed_with_their_runs_and_emptied(tmp_path: Path) -> None:
    one, other = add_caches(tmp_path)
    caches = {cache.kind: cache for cache in find_caches(find_runs(tmp_path))}
    assert caches["features"].runs == (one, other)
    assert caches["features"].content == "1 shard, tokens 32, dtype float32"
    assert caches["captions"].content == "2 captions of 1 checkpoint"
    home = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    with folder_lock(other, "captune train"):
        refused = captune("runs", "caches", tmp_path, "--empty", "--yes", **home)
    assert refused.code == 2
    assert "captune train is running there" in refused.err
    assert captune("runs", "caches", tmp_path, "--empty", **home).code == 2
    partly = captune("runs", "caches", tmp_path, "--empty", "--yes", "--kind", "captions", "--json", **home)
    assert json.loads(partly.out)["freed"] > 0
    assert (tmp_path / "runs/features" / ("0" * 16) / "shard-1.safetensors").exists()
    done = captune("runs", "caches", tmp_path, "--empty", "--yes", **home)
    assert done.code == 0, done.err
    remaining = [path.name for path in (tmp_path / "runs/features").rglob("*") if path.is_file()]
    assert [name for name in remaining if not name.startswith(".captune")] == ["mine.txt"]
    assert "All caches are empty" in captune("runs", "caches", tmp_path, **home).err


def test_runs_outside_of_the_folder_use_a_shared_store(tmp_path: Path) -> None:
    one, _ = add_caches(tmp_path)
    (cache,) = [cache for cache in find_caches([one]) if cache.kind == "features" and "shard" in cache.content]
    outside, deleted = make_run(tmp_path / "elsewhere" / "c"), tmp_path / "deleted"
    for user in (outside, deleted, outside, one):
        record_user(cache.folder.parent, user)
    with (cache.folder.parent / ".captune-runs").open("a") as stream:
        stream.write('"/half-writ')
    (cache,) = [cache for cache in find_caches([one]) if cache.kind == "features" and "shard" in cache.content]
    assert cache.runs == (one, outside)
    with (
        folder_lock(outside, "captune train"),
        pytest.raises(InputError, match=r"elsewhere/c are in use: captune train"),
    ):
        empty_caches([cache])
    assert cache.files()


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes into read-only folders")
def test_a_read_only_run_is_listed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    run.chmod(0o555)
    try:
        assert summarize(run).state == "finished"
    finally:
        run.chmod(0o755)
