"""`captune.tune` and `captune.evaluate`: the toy model on drawn scenes, and wrong input before torch is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

import captune
from captune.config import RunConfig
from captune.data import Sample, write_manifest
from captune.errors import ConfigError, DataError, InputError, StoppedError
from captune.events import Event
from captune.report import cells
from captune.toy import draw_scene, sample_scenes
from captune.toy.captions import write_captions
from captune.training.run_folder import store_config

FAST = {"train": {"epochs": 2, "warmup_steps": 2, "batch_size": 20}, "evaluate.train_slice": 0}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    samples = []
    for split, count in (("train", 10), ("test", 4), ("val", 2)):
        for number, scene in enumerate(islice(sample_scenes(5, held_out=split != "train"), count)):
            name = f"{split}-{number}.png"
            draw_scene(scene).save(folder / name)
            samples.append(Sample(name, name, tuple(write_captions(scene, Random(number))), split))
    write_manifest(folder / "manifest.jsonl", samples)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def result(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> captune.TuningResult:
    return captune.tune(data=str(manifest), output=str(tmp_path_factory.mktemp("runs") / "toy"), progress=False, **FAST)


def test_result_has_scores_checkpoints_and_files(result: captune.TuningResult) -> None:
    assert [row.name for row in result.rows] == ["pretrained", "epoch0", "epoch1"]
    assert result["epoch1"].epoch == 1
    assert result.best.epoch is not None
    assert result.best.corpus["CIDEr"] == max(row.corpus["CIDEr"] for row in result.rows[1:])
    assert result.best_checkpoint == result.folder / "checkpoints" / f"epoch-{result.best.epoch:03d}"
    assert [path.name for path in result.checkpoints] == ["epoch-000", "epoch-001"]
    assert result.report.is_file()
    assert result.chart.is_file()
    with pytest.raises(KeyError, match="no row 'epoch7'; the rows are pretrained, epoch0, epoch1"):
        result["epoch7"]
    with pytest.raises(InputError, match=r"no checkpoint of pretrained in .*; those of epoch0, epoch1 are kept"):
        result.checkpoint("pretrained")


def test_result_as_table(result: captune.TuningResult) -> None:
    frame = result.to_dataframe()
    assert frame.index.tolist() == ["pretrained", "epoch0", "epoch1"]
    assert frame.loc["epoch1", "CIDEr"] == result["epoch1"].corpus["CIDEr"]
    text = repr(result)
    assert f"{result['epoch1'].corpus['BLEU-1']:.4f}" in text
    assert result["epoch1"].signature in text
    page = result._repr_html_()
    assert page.count("<tr>") == 4
    assert page.count("<b>") == sum(cell.best for line in cells(result.scores) for cell in line)
    assert "data:image/png;base64," in page


def test_selected_checkpoint_is_the_best(result: captune.TuningResult) -> None:
    link = result.folder / "checkpoints" / "best"
    existed = link.is_symlink()
    if not existed:
        link.symlink_to("epoch-000")
    try:
        assert result.best_checkpoint.name == link.resolve().name
    finally:
        if not existed:
            link.unlink()


def test_captioner_of_a_result(result: captune.TuningResult, manifest: Path) -> None:
    image = manifest.parent / "test-0.png"
    captioner = result.captioner("epoch1", device="cpu")
    assert captioner(image) == result["epoch1"].captions["test-0.png"]
    assert result.captioner(device="cpu")(image) == result.best.captions["test-0.png"]


def test_finished_run_is_reused(result: captune.TuningResult, manifest: Path) -> None:
    events: list[dict[str, Any]] = []
    again = captune.tune(data=manifest, output=result.folder, progress=events.append, **FAST)
    assert [event["event"] for event in events] == ["reused"]
    assert again.to_dataframe().equals(result.to_dataframe())


def test_configuration_in_every_form(manifest: Path, tmp_path: Path, result: captune.TuningResult) -> None:
    stored = captune.load_config(result.folder / "config.yaml")
    forms: list[Any] = [stored, stored.model_dump(), str(result.folder / "config.yaml"), result.folder, result]
    for form in forms:
        assert captune.tune(form, output=result.folder, progress=False).folder == result.folder
    assert isinstance(stored, RunConfig)


def test_evaluation_of_models(manifest: Path, tmp_path: Path) -> None:
    result = captune.evaluate(["toy", "toy-vlm"], manifest, split="val", output=tmp_path / "scores", progress=False)
    assert [row.name for row in result.rows] == ["toy", "toy-vlm"]
    assert result.scores.images == 2
    assert result.folder == tmp_path / "scores"
    alone = captune.evaluate("toy", str(manifest), split="val", progress=False)
    assert alone.rows[0].corpus == result["toy"].corpus
    assert alone.report.is_file()


def test_evaluation_of_a_run(result: captune.TuningResult, manifest: Path) -> None:
    same = captune.evaluate(result.folder, progress=False)
    assert same.folder == result.folder
    assert same.scores == captune.TuningResult(result.folder).scores
    other = captune.evaluate(result, split="val", checkpoints=[result.best_checkpoint], progress=False)
    assert other.folder.parent == result.folder / "evaluations"
    assert [row.name for row in other.rows] == ["pretrained", result.best.name]


def test_evaluation_of_an_epoch_by_its_name(result: captune.TuningResult) -> None:
    epoch = captune.evaluate(f"{result.folder}@epoch1", split="val", progress=False)
    assert [row.name for row in epoch.rows] == ["pretrained", "epoch1"]


def _started(monkeypatch: pytest.MonkeyPatch, config: Any = None, **settings: Any) -> RunConfig:
    """The configuration with which `tune` would train."""
    with monkeypatch.context() as patch:
        started: list[RunConfig] = []
        patch.setattr("captune.api.running.train", lambda config, *_, **__: started.append(config))
        captune.tune(config, progress=False, **settings)
    return started[0]


@pytest.mark.parametrize(
    ("settings", "batch", "warmup"),
    [
        ({}, 4, 6),
        ({"train": {"epochs": 1}}, 4, 1),
        ({"train": {"batch_size": 10}}, 10, 200),
        ({"train.warmup_steps": 7}, 40, 7),
    ],
)
def test_schedule_of_few_captions(
    settings: dict[str, Any], batch: int, warmup: int, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = _started(monkeypatch, data=manifest, output=tmp_path / "run", **settings).train
    assert (train.batch_size, train.warmup_steps) == (batch, warmup)
    other = _started(monkeypatch, config={"data": {"train": str(manifest)}}, output=tmp_path / "run")
    assert other.train.batch_size == 40


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"model": "toy-vlm"}, (2e-3, 2e-4, 2e-4)),
        ({"model": "toy-vlm", "train": {"batch_size": 8}}, (2e-3, 2e-4, 2e-4)),
        ({"model": "toy-vlm", "train": {"learning_rate": 1e-4}}, (1e-4, 1e-5, 1e-6)),
        ({"model": "toy"}, (3e-3, 3e-4, 3e-4)),
        ({"model": {"path": "toy-vlm"}, "train": {"min_learning_rate": 0.0}}, (3e-5, 0.0, 1e-6)),
    ],
)
def test_learning_rates_of_the_toys(
    settings: dict[str, Any],
    rates: tuple[float, ...],
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = _started(monkeypatch, data=manifest, output=tmp_path / "run", **settings).train
    assert (train.learning_rate, train.min_learning_rate, train.warmup_learning_rate) == rates


def test_more_epochs_keep_the_schedule_of_a_run(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call: dict[str, Any] = {"data": manifest, "model": "toy-vlm", "output": tmp_path / "run"}
    stored = _started(monkeypatch, train={"epochs": 2}, **call)
    assert stored.train.warmup_steps == 2
    for epochs in (3, 9):
        store_config(stored)
        longer = _started(monkeypatch, train={"epochs": epochs}, **call)
        assert longer == stored.model_copy(update={"train": stored.train.model_copy(update={"epochs": epochs})})
        assert (
            _started(monkeypatch, train={"epochs": epochs}, **{**call, "output": tmp_path / "new"}).train.warmup_steps
            > 2
        )
        stored = longer


def test_a_schedule_that_was_set_is_not_kept(manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call: dict[str, Any] = {"data": manifest, "model": "toy-vlm", "output": tmp_path / "run"}
    store_config(_started(monkeypatch, train={"epochs": 2, "warmup_steps": 9}, **call))
    assert _started(monkeypatch, train={"epochs": 3}, **call).train.warmup_steps == 3
    with pytest.raises(ConfigError, match=r"train.batch_size: 40 -> 4, train.warmup_steps: 9 -> 3"):
        captune.tune(train={"epochs": 3}, progress=False, **call)


def test_the_same_call_with_more_epochs_continues_a_run(manifest: Path, tmp_path: Path) -> None:
    call: dict[str, Any] = {"data": manifest, "model": "toy-vlm", "output": tmp_path / "run", "progress": False}
    call["evaluate"] = {"train_slice": 0}
    first = list(captune.tune(train={"epochs": 1}, **call).rows)
    longer = captune.tune(train={"epochs": 2}, **call)
    assert [row.name for row in longer.rows] == ["pretrained", "epoch0", "epoch1"]
    assert [row.captions for row in longer.rows[:2]] == [row.captions for row in first]
    assert captune.tune(train={"epochs": 2}, **call).rows == longer.rows


def test_errors_name_arguments_and_no_options(manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "photos"
    output.mkdir()
    (output / "report.html").write_text("mine")
    with pytest.raises(ConfigError, match=r"output=\.\.\., or pass overwrite=True to move a run's files"):
        captune.tune(data=manifest, output=output, progress=False)
    with pytest.raises(InputError, match=r"give output= another folder"):
        captune.evaluate("toy", manifest, split="train", output=output, progress=False)
    assert (output / "report.html").read_text() == "mine"


def test_a_warm_up_that_is_longer_than_the_run_is_named(
    manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    short = {"train": {"epochs": 1, "warmup_steps": 200}, "evaluate.train_slice": 0}
    captune.tune(data=manifest, output=tmp_path / "run", progress=False, **short)
    assert any("train.warmup_steps is 200, and the run has 2 steps" in message for message in caplog.messages)


@pytest.mark.parametrize("event", ["stage", "captions", "progress"])
def test_an_interrupt_in_any_phase_is_a_stopped_run(event: str, manifest: Path, tmp_path: Path) -> None:
    def interrupt(seen: Event) -> None:
        if seen["event"] == event:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StoppedError, match=r"the same call resumes") as stopped:
        captune.tune(data=manifest, output=tmp_path / "run", progress=interrupt, **FAST)
    assert stopped.value.exit_code == 130


def test_moved_photos_are_named_with_the_reason(tmp_path: Path) -> None:
    row = '{{"id": "{0}", "image": "moved/{0}.png", "captions": ["A dog."], "split": "{1}"}}'
    rows = [row.format(number, "train" if number < 3 else "test") for number in range(5)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError) as refused:
        captune.tune(data=tmp_path / "manifest.jsonl", model="toy-vlm", output=tmp_path / "run", progress=False)
    path = tmp_path / "moved" / "0.png"
    expected = f"can use none of the training images with captions: cannot read the image '{path}': no such file"
    assert expected in str(refused.value)


def test_progress_outside_of_notebooks_is_lines(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captune.evaluate("toy", manifest, output=tmp_path / "scores")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("toy")
    assert "CIDEr" in printed.err


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("tune()", "captune.tune needs a configuration (a YAML file), or data=MANIFEST."),
        ("tune('missing.yaml')", "There is no configuration missing.yaml; give the path of a YAML file."),
        ("tune(data='missing.jsonl')", "data.train is missing.jsonl, and there is no such file; give the manifest"),
        ("tune(data=M, epochs=3)", "There is no setting 'epochs'; did you mean train={'epochs': 3}?"),
        ("tune(data=M, epoch=3)", "there is no key 'epoch'"),
        ("tune(data=M, train={'epoch': 3})", "there is no key 'train.epoch'; did you mean 'train.epochs'?"),
        ("tune(data=M, train={'epochs': object()})", "train.epochs is a object; give a number, a text, a list"),
        ("tune(data=M, model='no/such/model/here')", ""),
        ("evaluate('toy')", "toy is a model without a run; give the images to evaluate it on as data=MANIFEST."),
        ("evaluate([], M)", "captune.evaluate needs a model at least; give a folder or a hub id."),
        ("evaluate('toy', 'missing.jsonl')", "data.evaluate is missing.jsonl, and there is no such file"),
        ("evaluate('toy', M, checkpoints=['x'])", "checkpoints are those of a run; name models without a run"),
        ("evaluate('missing.yaml')", "There is no configuration missing.yaml"),
        ("evaluate({}, instruction='x')", "instruction is for models without a run; a run has model.instruction."),
    ],
)
def test_wrong_input_is_refused_before_torch_is_imported(call: str, sentence: str, manifest: Path) -> None:
    torch_was_imported = "torch" in sys.modules
    with pytest.raises((ConfigError, InputError)) as caught:
        eval(f"captune.{call}", {"captune": captune, "M": str(manifest)})
    assert sentence in str(caught.value)
    assert torch_was_imported or "torch" not in sys.modules


def test_wrong_input_is_refused_without_importing_torch() -> None:
    program = (
        "import captune, sys\n"
        "for call in (lambda: captune.tune(data='x'), lambda: captune.evaluate('toy', 'x'), lambda: captune.tune()):\n"
        "    try: call()\n"
        "    except captune.CaptuneError as error: print(error)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    began = time.monotonic()
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert completed.stdout.count("\n") == 3
    assert completed.stderr == ""
    assert time.monotonic() - began < 10


def test_rows_of_other_kinds(manifest: Path, tmp_path: Path) -> None:
    """A labelled model and a file of captions, with selected metrics."""
    captions = {f"test-{number}.png": f"a drawing {number}" for number in range(4)}
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(f'{{"id": "{image}", "caption": "{text}"}}\n' for image, text in captions.items()))
    rows, short = ["untuned=toy", file], {"evaluate.max_new_tokens": 4}
    evaluated = captune.evaluate(rows, manifest, metrics="CIDEr, rouge-l", output=tmp_path / "out", **short)
    assert [row.name for row in evaluated.scores.checkpoints] == ["untuned", "mine"]
    assert list(evaluated.scores.checkpoints[0].corpus) == ["CIDEr", "ROUGE-L"]
    assert dict(evaluated.scores.checkpoints[1].captions) == captions
    with pytest.raises(InputError, match="There is no model folder /nowhere/else"):
        captune.evaluate(["a=/nowhere/else"], manifest, output=tmp_path / "other")
    with pytest.raises(ConfigError, match="no model is the folder of an adapter or checkpoint"):
        captune.evaluate(["toy", "toy-vlm"], manifest, base="toy", output=tmp_path / "other")
    with pytest.raises(InputError, match="no metric 'cidr'"):
        captune.evaluate([file], manifest, metrics=["cidr"], output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
