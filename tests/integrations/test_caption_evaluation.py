"""`CaptionEvaluation` in transformers' `Trainer` and in TRL's `SFTTrainer`, on CPU with a tiny LLaVA."""

from __future__ import annotations

import json
import logging
import math
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import captioner_models
import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from trainer_run import PROMPT, STEPS, arguments, evaluation_of, make_model, make_trainer, rows_of
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback, Trainer, TrainerCallback
from vlm_run import cards, write_rows

from captune.config import parse_config
from captune.errors import InputError
from captune.evaluation import Evaluation, evaluate_models
from captune.integrations import CaptionEvaluation
from captune.integrations.live_training import live_captioner, training_leaks
from captune.report import BackgroundReport, RunScores, read_scores, split_training_rows
from captune.report.background import _write


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioner_models.save("llava", tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(autouse=True)
def quick_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports by a thread and without charts: the start of a process takes longer than a short training."""
    monkeypatch.setattr("captune.report.write.draw_chart", lambda *_args, **_settings: {})
    monkeypatch.setattr(BackgroundReport, "_run", lambda report: _write(report._order))


@pytest.fixture
def separate_process(quick_reports: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports by a separate process."""
    monkeypatch.undo()


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return write_rows(folder, cards(folder, train=8, test=3))


def losses(trainer: Trainer) -> list[tuple[int, str, float]]:
    return [
        (entry["step"], name, entry[name])
        for entry in trainer.state.log_history
        for name in ("loss", "grad_norm", "eval_loss")
        if name in entry
    ]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.named_parameters() if value.requires_grad}


def evaluated(checkpoint: Path, manifest: Path, output: Path, *settings: str) -> dict[str, str]:
    """The captions of `captune evaluate CHECKPOINT --data MANIFEST`."""
    data = {"train": str(manifest), "evaluate": str(manifest), "evaluate_split": "test"}
    settings = ("evaluate.max_new_tokens=6", *settings)
    config = parse_config({"output": str(output), "model": {"path": str(checkpoint)}, "data": data}, list(settings))
    (row,) = evaluate_models(config, [str(checkpoint)], lambda _event: None).checkpoints
    return dict(row.captions)


def pixels_of(path: str | Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def names(scores: RunScores) -> list[str]:
    return [row.name for row in scores.checkpoints]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_weights_are_those_without_the_callback(
    base: Path, manifest: Path, tmp_path: Path, checkpointing: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"activation_checkpointing": checkpointing}
    plain = make_trainer(base, manifest, tmp_path / "plain", **settings)
    plain.train()
    output = tmp_path / "scores"
    other = make_trainer(base, manifest, tmp_path / "other", evaluation_of(manifest, output), **settings)
    other.train()
    assert losses(other) == losses(plain)
    assert len(losses(plain)) == 2 * STEPS + 2
    tuned, expected = weights(other), weights(plain)
    assert tuned
    assert all(torch.equal(tuned[name], expected[name]) for name in expected)
    scores = read_scores(output)
    assert names(scores) == ["pretrained", "step2", "step4"]
    assert len({tuple(row.captions.values()) for row in scores.checkpoints}) == 3
    *printed, cost = [line for line in capsys.readouterr().out.splitlines() if line.startswith("captune  ")]
    assert "cost of 3 evaluations" in cost
    assert [line.split()[1] for line in printed] == names(scores)
    assert all("CIDEr" in line for line in printed)
    assert (output / "report.html").is_file()
    # The rows are a training's, of which charts draw the course.
    assert names(split_training_rows(scores).run) == names(scores)


@pytest.mark.parametrize("settings", [(), ("evaluate.beams=2", "evaluate.batch_size=1")])
def test_captions_are_those_of_the_saved_checkpoint(
    base: Path, manifest: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    output = tmp_path / "scores"
    trainer = make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, output, *settings))
    trainer.train()
    rows = {row.name: row for row in read_scores(output).checkpoints}
    for step in (2, 4):
        checkpoint = tmp_path / "run" / f"checkpoint-{step}"
        expected = evaluated(checkpoint, manifest, tmp_path / f"evaluated-{step}", *settings)
        assert dict(rows[f"step{step}"].captions) == expected
        (row,) = read_scores(tmp_path / f"evaluated-{step}").checkpoints
        assert (row.signature, row.corpus) == (rows[f"step{step}"].signature, rows[f"step{step}"].corpus)
    assert dict(rows["pretrained"].captions) == evaluated(base, manifest, tmp_path / "evaluated-base", *settings)


def test_a_model_without_adapter_captions_as_its_checkpoint(base: Path, manifest: Path, tmp_path: Path) -> None:
    trainer = make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, tmp_path / "scores"), max_steps=2)
    trainer = Trainer(
        AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32),
        trainer.args,
        train_dataset=trainer.train_dataset,
        eval_dataset=trainer.eval_dataset,
        data_collator=trainer.data_collator,
        processing_class=trainer.processing_class,
        callbacks=[evaluation_of(manifest, tmp_path / "scores")],
    )
    trainer.pop_callback(PrinterCallback)
    trainer.train()
    row = read_scores(tmp_path / "scores").checkpoints[-1]
    expected = evaluated(tmp_path / "run" / "checkpoint-2", manifest, tmp_path / "evaluated")
    assert (row.name, dict(row.captions)) == ("step2", expected)


@pytest.mark.parametrize("metric", ["captune_CIDEr", "eval_captune_CIDEr"])
def test_the_best_model_is_selected_by_cider(
    base: Path, manifest: Path, tmp_path: Path, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = CaptionEvaluation._score
    values = {"pretrained": 0.1, "step2": 0.9, "step4": 0.5}

    def fixed(self: CaptionEvaluation, name: str, *parts: Any) -> dict[str, float]:
        return score(self, name, *parts) | {"CIDEr": values[name]}

    monkeypatch.setattr(CaptionEvaluation, "_score", fixed)
    trainer = make_trainer(
        base,
        manifest,
        tmp_path / "run",
        evaluation_of(manifest, tmp_path / "scores"),
        metric_for_best_model=metric,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert (trainer.state.best_metric, trainer.state.best_global_step) == (0.9, 2)
    assert trainer.state.best_model_checkpoint == str(tmp_path / "run" / "checkpoint-2")
    logged = [
        (entry["step"], entry["eval_captune_CIDEr"])
        for entry in trainer.state.log_history
        if "eval_captune_CIDEr" in entry
    ]
    assert logged == [(0, 0.1), (2, 0.9), (4, 0.5)]


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Records what a reporting service receives."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def test_other_callbacks_receive_the_scores(base: Path, manifest: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    evaluation = evaluation_of(manifest, tmp_path / "scores")
    make_trainer(base, manifest, tmp_path / "run", recorder, evaluation, max_steps=2).train()
    rows = read_scores(tmp_path / "scores").checkpoints
    received = [logs["eval_captune_CIDEr"] for logs in recorder.logs if "eval_captune_CIDEr" in logs]
    assert received == [row.corpus["CIDEr"] for row in rows]


def test_an_unreadable_image_ends_no_training(
    base: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    plain = make_trainer(base, manifest, tmp_path / "plain")
    plain.train()
    (manifest.parent / "9.png").write_bytes(b"no image")
    trainer = make_trainer(
        base,
        manifest,
        tmp_path / "run",
        evaluation_of(manifest, tmp_path / "scores"),
        metric_for_best_model="captune_CIDEr",
        load_best_model_at_end=True,
    )
    with caplog.at_level(logging.ERROR):
        trainer.train()
    assert losses(trainer) == losses(plain)
    *printed, cost = [line for line in capsys.readouterr().out.splitlines() if line.startswith("captune  ")]
    assert len(printed) == 3
    assert all("not scored" in line and "9.png" in line for line in printed)
    assert cost.startswith("captune  cost of 3 evaluations: captioning ")
    rows = read_scores(tmp_path / "scores").checkpoints
    assert [row.name for row in rows] == ["pretrained", "step2", "step4"]
    assert all("9.png" in (row.error or "") and not row.captions for row in rows)
    assert all(math.isnan(value) for row in rows for value in row.corpus.values())
    assert "not scored" in (tmp_path / "scores" / "report.html").read_text()
    assert "training continues" in caplog.text
    log = [json.loads(line) for line in (tmp_path / "scores" / "evaluations.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in log] == ["pretrained", "step2", "step4"]
    assert all("9.png" in entry["error"] for entry in log)
    assert trainer.state.best_model_checkpoint is None


def test_a_row_that_fails_says_so_and_the_others_are_scored(
    base: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "scores"
    caption = CaptionEvaluation._caption
    calls: list[int] = []

    def failing(self: CaptionEvaluation, *parts: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            raise RuntimeError("out of luck")
        return caption(self, *parts)

    monkeypatch.setattr(CaptionEvaluation, "_caption", failing)
    make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, output)).train()
    scores = read_scores(output)
    assert names(scores) == ["pretrained", "step2", "step4"]
    assert [row.error for row in scores.checkpoints] == [None, "RuntimeError: out of luck", None]
    assert "captune  step2  not scored: RuntimeError: out of luck" in capsys.readouterr().out
    # The last row is tested against the first one, and not against the row above, which has no captions.
    assert all(set(tests) <= {"pretrained"} for tests in scores.checkpoints[2].p_values.values())
    for file in ("table.md", "analysis.md", "report.html"):
        assert "step2 was not scored: RuntimeError: out of luck" in (output / file).read_text()
    assert "| step2 **not scored** | nan |" in (output / "table.md").read_text()
    assert names(split_training_rows(scores).run) == ["pretrained", "step4"]
    assert not list((output / "captions").glob("*step2*"))
    # A resumed training keeps the row.
    trainer = make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, output), max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    resumed = read_scores(output)
    assert names(resumed) == ["pretrained", "step2", "step4", "step6"]
    assert resumed.checkpoints[:3] == scores.checkpoints


@pytest.mark.usefixtures("separate_process")
def test_charts_and_page_are_written_by_another_process(
    base: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluation_of(manifest, tmp_path / "scores", find_leaks=False)
    make_trainer(base, manifest, tmp_path / "run", evaluation, max_steps=2).train()
    files = {"report.html", "metrics.png", "metrics.svg", "table.md", "table.csv", "table.tex", "analysis.md"}
    assert files <= {file.name for file in (tmp_path / "scores").iterdir()}
    assert len(list((tmp_path / "scores" / "thumbnails").glob("*.jpg"))) == 3
    assert "step2" in (tmp_path / "scores" / "table.md").read_text()
    assert evaluation._report is not None
    assert evaluation._report.seconds > 0
    assert "s in another process" in capsys.readouterr().out


@pytest.mark.usefixtures("separate_process")
def test_a_report_that_fails_ends_no_training(
    base: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "no-python"))
    make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, tmp_path / "scores"), max_steps=2).train()
    assert "page cannot be written" in caplog.text
    assert names(read_scores(tmp_path / "scores")) == ["pretrained", "step2"]


KILLED = """
import os, signal, sys
from pathlib import Path
import trainer_run
from captune.evaluation import scoring
from captune.integrations import CaptionEvaluation
from captune.report import BackgroundReport

target, count = {target}, {count}
called, calls = getattr(*target), []

def fatal(*parts, **settings):
    calls.append(parts)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return called(*parts, **settings)

setattr(*target, fatal)
trainer_run.main(*map(Path, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("call", "count", "rows"),
    [
        ('(CaptionEvaluation, "_caption")', 2, ["pretrained"]),
        ('(scoring, "write_scores")', 2, ["pretrained"]),
        ('(BackgroundReport, "finish")', 1, ["pretrained", "step2"]),
    ],
)
def test_a_killed_training_leaves_a_valid_folder(
    base: Path, manifest: Path, tmp_path: Path, call: str, count: int, rows: list[str]
) -> None:
    """SIGKILL while a process may be writing the page; the next training adds its rows or takes another folder."""
    program = KILLED.format(target=call, count=count)
    killed = subprocess.run(
        [sys.executable, "-c", program, base, manifest, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    scores = read_scores(tmp_path / "scores")
    assert names(scores) == rows
    assert all(set(row.captions) == {"card-8", "card-9", "card-10"} for row in scores.checkpoints)
    evaluation = evaluation_of(manifest, tmp_path / "scores")
    make_trainer(base, manifest, tmp_path / "again", evaluation, max_steps=2).train()
    assert names(read_scores(evaluation.output)) == ["pretrained", "step2"]
    assert (evaluation.output / "report.html").is_file()


def test_an_unwritable_folder_ends_no_training(
    base: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    write = Evaluation.write

    def full(self: Evaluation, **settings: Any) -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        write(self, **settings)

    monkeypatch.setattr(Evaluation, "write", full)
    trainer = make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, tmp_path / "scores"))
    trainer.train()
    assert "No space left" in caplog.text
    assert names(read_scores(tmp_path / "scores")) == ["pretrained", "step2", "step4"]
    assert (tmp_path / "scores" / "report.html").is_file()


def test_a_resumed_training_adds_rows_once(base: Path, manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, output)).train()
    complete = read_scores(output)
    # Step 4 again, from the checkpoint of step 2, and on to step 6.
    trainer = make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, output), max_steps=6)
    trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    scores = read_scores(output)
    assert names(scores) == ["pretrained", "step2", "step4", "step6"]
    assert scores.checkpoints[:2] == complete.checkpoints[:2]
    expected = evaluated(tmp_path / "run" / "checkpoint-6", manifest, tmp_path / "evaluated")
    assert dict(scores.checkpoints[-1].captions) == expected


def test_a_new_training_keeps_the_scores_of_another_one(base: Path, manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    make_trainer(base, manifest, tmp_path / "one", evaluation_of(manifest, output), max_steps=2).train()
    before = (output / "scores.json").read_bytes()
    evaluation = evaluation_of(manifest, output)
    make_trainer(base, manifest, tmp_path / "two", evaluation, max_steps=2).train()
    assert (output / "scores.json").read_bytes() == before
    assert evaluation.output == tmp_path / "scores-2"
    assert names(read_scores(tmp_path / "scores-2")) == ["pretrained", "step2"]


def test_a_first_row_of_another_training_is_not_overwritten(base: Path, manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    first = evaluation_of(manifest, output)
    make_trainer(base, manifest, tmp_path / "one", first, max_steps=1, eval_strategy="no").train()
    before = {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()}
    other = evaluation_of(manifest, output, instruction="Other prompt")
    # Also where one object evaluates both trainings.
    for evaluation, expected in ((other, "scores-2"), (first, "scores-3")):
        make_trainer(base, manifest, tmp_path / "two", evaluation, max_steps=1, eval_strategy="no").train()
        assert evaluation.output == tmp_path / expected
        assert names(read_scores(tmp_path / expected)) == ["pretrained"]
    assert {file.name: file.read_bytes() for file in output.iterdir() if file.is_file()} == before


def test_a_training_resumes_in_its_own_folder(base: Path, manifest: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores"
    for run in ("one", "two"):
        make_trainer(base, manifest, tmp_path / run, evaluation_of(manifest, output), max_steps=2).train()
    checkpoint = str(tmp_path / "one" / "checkpoint-2")

    def resumed(run: str, *settings: str) -> CaptionEvaluation:
        evaluation = evaluation_of(manifest, output, *settings)
        make_trainer(base, manifest, tmp_path / run, evaluation).train(resume_from_checkpoint=checkpoint)
        return evaluation

    assert resumed("one").output == output
    assert names(read_scores(output)) == ["pretrained", "step2", "step4"]
    # Checkpoints that were copied; and such a training with other settings.
    assert resumed("copied").output == tmp_path / "scores-2"
    assert resumed("other", "evaluate.beams=2").output == tmp_path / "scores-3"
    assert names(read_scores(tmp_path / "scores-3")) == ["step2", "step4"]


def test_a_training_that_resumes_with_another_model_has_another_folder(
    base: Path, manifest: Path, tmp_path: Path
) -> None:
    output, run = tmp_path / "scores", tmp_path / "run"
    make_trainer(base, manifest, run, evaluation_of(manifest, output), max_steps=2).train()
    moved = shutil.copytree(base, tmp_path / "moved")
    evaluation = evaluation_of(manifest, output)
    make_trainer(moved, manifest, run, evaluation).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    assert evaluation.output == tmp_path / "scores-2"


def test_rows_before_a_resumption_keep_their_signatures(
    base: Path, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output, run = tmp_path / "scores", tmp_path / "run"
    make_trainer(base, manifest, run, evaluation_of(manifest, output), max_steps=2).train()
    before = read_scores(output).checkpoints
    assert "mixes captions" not in caplog.text
    other = evaluation_of(manifest, output, "evaluate.max_new_tokens=3", instruction="Other prompt")
    make_trainer(base, manifest, run, other).train(resume_from_checkpoint=str(run / "checkpoint-2"))
    *restored, last = read_scores(output).checkpoints
    assert [(row.name, row.signature) for row in restored] == [(row.name, row.signature) for row in before]
    assert "dec:greedy,max6" in restored[0].signature
    assert "dec:greedy,max3" in last.signature
    (warning,) = [record.getMessage() for record in caplog.records if "mixes captions" in record.getMessage()]
    assert "step4 has other settings than step2 (prompt: " in warning
    assert "; dec: greedy,max6 and greedy,max3)" in warning
    assert "signatures differ" in (output / "table.md").read_text()


def test_training_images_are_leaks(
    base: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(base, manifest, tmp_path / "run", evaluation_of(manifest, tmp_path / "scores"), max_steps=2)
    trainer.train_dataset = [*trainer.train_dataset, *rows_of(manifest, "test")[:1]]
    trainer.train()
    assert all("1 of 3 evaluated images" in str(row.leak) for row in read_scores(tmp_path / "scores").checkpoints)
    assert "LEAK" in capsys.readouterr().out


def test_leaks_are_searched_in_every_form_of_rows(manifest: Path) -> None:
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    from captune.data.leaks import ImageFile

    path = manifest.parent / "8.png"
    evaluated = [ImageFile("card-8", str(path)), ImageFile("card-9", str(manifest.parent / "9.png"))]
    pixels = pixels_of(path)
    features = Features({"photo": ImageFeature(), "text": Value("string")})
    sets: list[Any] = [
        [{"image": str(path)}],
        [{"images": [pixels]}],
        [{"anything": {"bytes": path.read_bytes(), "path": None}}],
        [{"messages": [{"role": "user", "content": [{"type": "image", "image": f"file://{path}"}]}]}],
        Dataset.from_list([{"photo": pixels, "text": "A card."}], features=features),
        Dataset.from_list([{"photo": str(path), "text": "A card."}], features=features),
    ]
    for rows in sets:
        report = training_leaks(rows, evaluated)
        assert report is not None
        assert [leak.evaluated for leak in report.leaks] == [0]
    assert training_leaks([{"pixel_values": torch.zeros(3)}], evaluated) is None
    assert training_leaks(iter([{"image": str(path)}]), evaluated) is None


def checkpointed_layers(model: Any) -> list[Any]:
    """Layers with gradient checkpointing, and how many of them a backward pass computes again."""
    ids = torch.tensor([[5, 6, 7, 8]])
    with patch("torch.utils.checkpoint.checkpoint", wraps=torch.utils.checkpoint.checkpoint) as called:
        for part in model.modules():
            if hasattr(part, "_gradient_checkpointing_func"):
                part._gradient_checkpointing_func = partial(called, use_reentrant=False)
        model(input_ids=ids, labels=ids)
    return [called.call_count, [getattr(part, "gradient_checkpointing", None) for part in model.modules()]]


def adapters(model: Any) -> list[Any]:
    layers = [
        (layer.active_adapters, layer.disable_adapters, layer.merged, layer.merged_adapters)
        for layer in model.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    values = {name: (value.requires_grad, value.sum().item()) for name, value in model.named_parameters()}
    gradients = {name: value.grad.sum().item() for name, value in model.named_parameters() if value.grad is not None}
    assert layers
    assert gradients
    return [model.active_adapters, layers, values, gradients]


STATES: dict[str, Callable[[Any, Any], Any]] = {
    "adapters": lambda model, processor: adapters(model),
    "configurations and use_cache": lambda model, processor: [
        *((config.to_dict(), config.use_cache) for config in (model.config, model.config.get_text_config())),
        model.generation_config.to_dict(),
    ],
    "gradient checkpointing": lambda model, processor: checkpointed_layers(model),
    "modes": lambda model, processor: [(id(part), part.training) for part in model.modules()],
    "processor": lambda model, processor: [processor.tokenizer.padding_side, processor.tokenizer.truncation_side],
    "random states": lambda model, processor: [
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ],
    "stored tensors": lambda model, processor: [
        (id(part), sorted(part._buffers), sorted(k for k, v in vars(part).items() if isinstance(v, torch.Tensor)))
        for part in model.modules()
    ],
}


@pytest.mark.parametrize("what", STATES)
def test_the_model_is_as_before(base: Path, manifest: Path, what: str) -> None:
    model = make_model(base).train()
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    model.activation_checkpointing_enable()
    model.enable_input_require_grads()
    model.config.use_cache = False
    model.config.get_text_config().use_cache = False
    model.generation_config.temperature = 0.7
    model.get_base_model().model.language_model.layers[0].eval()
    processor = AutoProcessor.from_pretrained(base)
    processor.tokenizer.padding_side = "right"
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    before = STATES[what](model, processor)
    with live_captioner(model, processor) as captioner:
        assert not any(part.training for part in model.modules())
        assert model.config.use_cache
        assert captioner.caption_files([manifest.parent / "8.png"], max_new_tokens=3)
        torch.rand(1)
        random.random()
        np.random.rand()
    assert STATES[what](model, processor) == before
    if what == "gradient checkpointing":
        assert before[0] > 0


def test_settings_are_checked_before_training(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="split"):
        CaptionEvaluation(manifest, tmp_path / "scores", "val")
    with pytest.raises(InputError, match=r"none\.jsonl"):
        CaptionEvaluation(tmp_path / "none.jsonl", tmp_path / "scores")
    with pytest.raises(InputError, match="beamz"):
        CaptionEvaluation(manifest, tmp_path / "scores", settings=["evaluate.beamz=2"])


def test_trl_trains_as_without_the_callback(base: Path, manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    def train(folder: Path, *callbacks: TrainerCallback) -> Any:
        processor = AutoProcessor.from_pretrained(base)
        rows = Dataset.from_list(
            [
                {"images": [pixels_of(row["image"])], "prompt": PROMPT, "completion": row["text"] + "<|im_end|>"}
                for row in rows_of(manifest)
            ]
        )
        config = SFTConfig(**arguments(folder, max_length=None, bf16=False, activation_checkpointing=True))
        trainer = SFTTrainer(
            make_model(base),
            config,
            train_dataset=rows,
            eval_dataset=rows.select([0, 1]),
            processing_class=processor,
            callbacks=list(callbacks),
        )
        trainer.pop_callback(PrinterCallback)
        trainer.train()
        return trainer

    plain = train(tmp_path / "plain")
    other = train(tmp_path / "run", evaluation_of(manifest, tmp_path / "scores"))
    assert losses(other) == losses(plain)
    assert all(math.isfinite(value) for _, _, value in losses(other))
    rows = {row.name: row for row in read_scores(tmp_path / "scores").checkpoints}
    assert list(rows) == ["pretrained", "step2", "step4"]
    expected = evaluated(tmp_path / "run" / "checkpoint-4", manifest, tmp_path / "evaluated")
    assert dict(rows["step4"].captions) == expected
    assert all(row.leak is None for row in rows.values())


def test_two_processes_caption_each_image_once(base: Path, manifest: Path, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    program = Path(__file__).parent.parent / "trainer_run.py"
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": os.pathsep.join(sys.path), "LOCAL_WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, program, base, manifest, tmp_path],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    scores = read_scores(tmp_path / "scores")
    assert names(scores) == ["pretrained", "step2"]
    expected = evaluated(tmp_path / "run" / "checkpoint-2", manifest, tmp_path / "evaluated")
    assert dict(scores.checkpoints[-1].captions) == expected
    ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
    assert [rank.pop("captions") for rank in ranks] == [[2, 2], [1, 1]]
    assert ranks[0] == ranks[1]
    assert [entry["eval_captune_CIDEr"] for entry in ranks[0]["scores"]] == [
        row.corpus["CIDEr"] for row in scores.checkpoints
    ]
    assert [output.count("captune  step2") for output, _ in printed] == [1, 0]
