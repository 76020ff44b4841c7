"""Adapters, merged models and checkpoints of other trainers as rows, equal to transformers' and peft's own captions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captioner_models
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
from tuned_elsewhere import (
    generated,
    load_base,
    peft_model,
    save_merged,
    sft_checkpoint,
    trainer_checkpoint,
    without_processor,
    write_manifest,
)

from captune.cli import app, call, run
from captune.config import parse_config
from captune.errors import ConfigError, WeightsError
from captune.evaluation import evaluate_models
from captune.preflight import check_named_model
from captune.report import RunScores, read_scores

NEW_TOKENS = 6


@pytest.fixture(autouse=True)
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts take most of the time of a small evaluation."""
    monkeypatch.setattr("captune.report.write.draw_chart", lambda *_args, **_settings: {})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioner_models.save("llava", tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def full(base: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint-2` of a trainer of all weights, with processor."""
    folder = tmp_path_factory.mktemp("full") / "run"
    return trainer_checkpoint(base, manifest, folder, full=True, processor=AutoProcessor.from_pretrained(base))


@pytest.fixture(scope="module")
def lora(base: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint-2` of a trainer of LoRA, with processor."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    return trainer_checkpoint(base, manifest, folder, processor=AutoProcessor.from_pretrained(base))


def evaluate(manifest: Path, output: Path, *rows: object, **more: Any) -> RunScores:
    data = {"train": str(manifest), "evaluate": str(manifest), "evaluate_split": "test"}
    settings = [f"evaluate.max_new_tokens={NEW_TOKENS}"]
    config = parse_config({"output": str(output), "data": data}, settings)
    return evaluate_models(config, [str(row) for row in rows], lambda _event: None, **more)


def command(*arguments: object) -> int:
    return run(lambda: call(app, ["evaluate", *map(str, arguments)]))


def adapter_captions(base: Path, adapter: Path, manifest: Path) -> dict[str, str]:
    """The captions of an adapter by transformers and peft alone."""
    model = PeftModel.from_pretrained(load_base(base), adapter).eval()
    return generated(model, AutoProcessor.from_pretrained(base), manifest, new_tokens=NEW_TOKENS)


def model_captions(folder: Path, processor: Path, manifest: Path) -> dict[str, str]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    return generated(model, AutoProcessor.from_pretrained(processor), manifest, new_tokens=NEW_TOKENS)


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "projector": {"modules_to_save": ["multi_modal_projector"]},
}


def test_adapters_caption_as_in_peft(
    base: Path, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, settings in ADAPTERS.items():
        peft_model(base, **settings).save_pretrained(tmp_path / name)
    scores = evaluate(manifest, tmp_path / "out", base, *(tmp_path / name for name in ADAPTERS))
    rows = {row.name.rpartition("/")[2]: row for row in scores.checkpoints}
    assert set(rows) == {"llava", *ADAPTERS}
    captions = {name: dict(row.captions) for name, row in rows.items()}
    for name in ADAPTERS:
        assert captions[name] == adapter_captions(base, tmp_path / name, manifest), name
        assert f"{tmp_path / name} holds no processor; that of its base model {base} is used." in caplog.text
    assert captions["llava"] == model_captions(base, base, manifest)
    assert len({tuple(texts.values()) for texts in captions.values()}) == len(captions), "each is another model"


def test_merged_models_caption_as_their_adapters(base: Path, manifest: Path, tmp_path: Path) -> None:
    peft_model(base).save_pretrained(tmp_path / "adapter")
    merged = save_merged(peft_model(base), base, tmp_path / "merged")
    adapter, complete = evaluate(manifest, tmp_path / "out", tmp_path / "adapter", f"merged={merged}").checkpoints
    assert complete.name == "merged"
    assert dict(complete.captions) == model_captions(merged, merged, manifest)
    assert dict(complete.captions) == dict(adapter.captions)


def test_checkpoints_of_trainers(
    base: Path, manifest: Path, lora: Path, full: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    sft = sft_checkpoint(base, manifest, tmp_path / "sft")
    assert all((folder / "optimizer.pt").is_file() for folder in (lora, full, sft))
    scores = evaluate(manifest, tmp_path / "out", lora, f"full={full}", f"my sft={sft}")
    captions = [dict(row.captions) for row in scores.checkpoints]
    assert [row.name for row in scores.checkpoints] == ["run/checkpoint-2", "full", "my sft"]
    expected = [adapter_captions(base, lora, manifest), model_captions(full, full, manifest)]
    assert captions == [*expected, adapter_captions(base, sft, manifest)]
    assert "holds no processor" not in caplog.text


def test_a_checkpoint_without_processor_takes_that_of_its_base(
    base: Path, manifest: Path, lora: Path, full: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = without_processor(lora, tmp_path / "lora" / "checkpoint-500")
    complete = without_processor(full, tmp_path / "full" / "checkpoint-500")
    tokenizer_alone = Path(shutil.copytree(full, tmp_path / "tokenizer" / "checkpoint-500"))
    (tokenizer_alone / "processor_config.json").unlink()
    rows = (adapter, complete, tokenizer_alone, full)
    with pytest.raises(WeightsError, match=r"without processing_class saves it; .*--base"):
        evaluate(manifest, tmp_path / "out", *rows)
    first, second, third, fourth = evaluate(manifest, tmp_path / "out", *rows, base=str(base)).checkpoints
    assert dict(first.captions) == adapter_captions(base, adapter, manifest)
    assert dict(second.captions) == dict(third.captions) == dict(fourth.captions)
    for folder, what in ((adapter, "its base model"), (complete, "the model"), (tokenizer_alone, "the model")):
        assert f"{folder} holds no processor; that of {what} {base} is used." in caplog.text
    # transformers 4 recorded the name of the model in its settings.
    settings = json.loads((complete / "config.json").read_text())
    (complete / "config.json").write_text(json.dumps(settings | {"_name_or_path": str(base)}))
    (again,) = evaluate(manifest, tmp_path / "other", complete).checkpoints
    assert dict(again.captions) == dict(second.captions)


def test_a_base_that_has_moved(
    base: Path, manifest: Path, lora: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    adapter = Path(shutil.copytree(lora, tmp_path / "lora" / "checkpoint-500"))
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "/nowhere/llava"
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    arguments = ("--data", manifest, "--out", tmp_path / "out", f"evaluate.max_new_tokens={NEW_TOKENS}")
    assert command(base, adapter, *arguments) == 2
    error = capfd.readouterr().err
    assert f"The adapter {adapter} was trained on the model /nowhere/llava, and there is no such folder." in error
    assert "give its folder or hub id with --base" in error
    assert command(base, adapter, *arguments, "--base", base) == 0
    rows = read_scores(tmp_path / "out").checkpoints
    assert dict(rows[1].captions) == adapter_captions(base, lora, manifest)
    with pytest.raises(ConfigError, match="no model is the folder of an adapter or checkpoint"):
        evaluate(manifest, tmp_path / "out", base, "toy", base=str(base))
    arguments = ("--data", manifest, "--out", tmp_path / "other")
    assert command(base, *arguments, "--base", base) == 2
    assert "is a complete model; a base model is for checkpoints and adapters" in capfd.readouterr().err


def test_folders_that_are_no_model(
    manifest: Path, lora: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], no_torch: Callable[[], None]
) -> None:
    for step in ("checkpoint-9", "checkpoint-10"):
        shutil.copytree(lora, tmp_path / "out" / step)
    arguments = ("--data", manifest, "--out", tmp_path / "scores")
    assert command(tmp_path / "out", *arguments) == 2
    error = capfd.readouterr().err
    assert f"{tmp_path / 'out'} holds checkpoints of a trainer and no model itself; give one of them" in error
    assert f"such as {tmp_path / 'out' / 'checkpoint-10'} (the last)." in error
    (tmp_path / "empty").mkdir()
    assert command(f"mine={tmp_path / 'empty'}", *arguments) == 2
    assert "holds neither config.json nor adapter_config.json" in capfd.readouterr().err
    assert command("toy", tmp_path / "missing", *arguments) == 2
    assert f"There is no model folder {tmp_path / 'missing'}" in capfd.readouterr().err
    assert not (tmp_path / "scores").exists()


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model may be loaded."""

    def fail(*_arguments: object, **_settings: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("captune.captioner.loading.load_backend", fail)


def hub_of(folder: Path, cache: Path, name: str) -> None:
    """Put a folder into the cache of the hub's library, as a download does."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


def test_hub_ids(base: Path, manifest: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model and an adapter of it by their hub ids, from the cache of the hub's library."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    adapter = without_processor(lora, tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "tiny/llava"}))
    hub_of(base, cache, "tiny/llava")
    hub_of(adapter, cache, "me/llava-photos")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for module in ("huggingface_hub.file_download", "huggingface_hub._snapshot_download", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.constants.HF_HUB_CACHE", str(cache))
    local, hub, tuned = evaluate(manifest, tmp_path / "out", base, "tiny/llava", "photos=me/llava-photos").checkpoints
    assert [hub.name, tuned.name] == ["tiny/llava", "photos"]
    assert dict(hub.captions) == dict(local.captions)
    assert dict(tuned.captions) == adapter_captions(base, lora, manifest)
    with pytest.raises(WeightsError, match="absent/model cannot be read"):
        check_named_model("absent/model")
