"""The model that is trained is the configured one: LoRA, checkpointing, quantization, prompts and chat templates."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from captune.config import RunConfig, parse_config
from captune.data.manifest import read_manifest, resolve_image
from captune.errors import ConfigError, StoppedError, WeightsError
from captune.evaluation import evaluate_checkpoints
from captune.features import encode_images
from captune.hub import resolve_model
from captune.metrics import prompt_hash
from captune.model import MiniGPT4
from captune.model.build import build_model, config_and_processor_of_parts
from captune.model.chat_template import read_chat_template
from captune.model.checkpoint import load_trained
from captune.model.loading import load_config_and_processor, load_model, load_pretrained
from captune.report import read_scores
from captune.run_checkpoints import read_record
from captune.training import train
from captune.training.minigpt4 import load_for_training

from ..language_models import CHATML, write_language_model, write_tokenizer, write_tower

CPU = torch.device("cpu")


def load(config: RunConfig, *data: Any) -> MiniGPT4:
    """The model of a run."""
    prompt = config.model.instruction
    return load_for_training(resolve_model(config.model), config.train, prompt, config.seed, CPU, *data)


def settings(toy_data: Path, output: Path, **sections: dict[str, Any]) -> RunConfig:
    content: dict[str, Any] = {
        "output": str(output),
        "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 8, "evaluate_images": 4},
        "train": {"epochs": 1, "batch_size": 20, "warmup_steps": 1},
        "evaluate": {"max_new_tokens": 4},
    }
    return parse_config({**content, **{name: {**content.get(name, {}), **values} for name, values in sections.items()}})


def test_lora_is_trained_saved_and_loaded(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = settings(toy_data, tmp_path / "run", train={"lora": {"rank": 2, "alpha": 4, "targets": ["q_proj"]}})
    train(config)
    folder = tmp_path / "run" / "checkpoints" / "epoch-000"
    assert read_record(folder).lora == {"r": 2, "alpha": 4.0, "targets": ["q_proj"], "dropout": 0.0}
    tuned = load_pretrained(folder)
    changed = [name for name, value in tuned.named_parameters() if ".lora_B." in name and bool(value.any())]
    assert changed


def test_lora_begins_alike(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = settings(toy_data, tmp_path, train={"lora": {"rank": 2}})
    one, other = (dict(load(config).trained_parameters()) for _ in range(2))
    assert any(".lora_A." in name for name in one)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lora_dropout_is_the_same_after_a_resume(toy_data: Path, tmp_path: Path) -> None:
    """A step's draw follows from seed and step, so it does not matter what was drawn before."""
    pytest.importorskip("peft")
    lora = {"rank": 2, "dropout": 0.5}
    for name in ("a", "b"):
        torch.manual_seed(len(name) + ord(name))
        train(settings(toy_data, tmp_path / name, train={"lora": lora}))
    first, second = (
        (tmp_path / name / "checkpoints" / "epoch-000" / "trained.safetensors").read_bytes() for name in ("a", "b")
    )
    assert first == second


def test_gradient_checkpointing_changes_nothing(toy_data: Path, tmp_path: Path) -> None:
    weights = []
    for checkpointing in (False, True):
        output = tmp_path / str(checkpointing)
        train(settings(toy_data, output, train={"gradient_checkpointing": checkpointing}))
        folder = output / "checkpoints" / "epoch-000"
        weights.append(load_pretrained(folder).projection.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-8)
    config = settings(toy_data, tmp_path, train={"gradient_checkpointing": True})
    model = load(config)
    assert all(layer.gradient_checkpointing for layer in model.llm.model.layers)


def test_quantization_is_checked_before_training(toy_data: Path, tmp_path: Path, caplog: Any) -> None:
    pytest.importorskip("bitsandbytes")
    config = settings(toy_data, tmp_path, model={"quantization": "int8"})
    image = read_manifest(config.data.train, "train")[0]
    features = encode_images(load_model(config.model, CPU), [resolve_image(config.data.train, image.image)]).clone()
    with caplog.at_level("INFO", logger="captune.model.loading"):
        model = load(config, [image], features)
    assert type(model.llm.model.layers[0].mlp.gate_proj.weight).__name__ == "Int8Params"
    assert "quantization int8: gradient cosine" in caplog.text


def test_faults_are_for_slides_only(toy_data: Path, tmp_path: Path) -> None:
    faults = {"legacy_bugs": ["cut_stop_symbol"]}
    with pytest.raises(ConfigError, match="only protocol slides allows"):
        settings(toy_data, tmp_path, model=faults)
    config = settings(toy_data, tmp_path, model=faults, evaluate={"protocol": "slides"})
    _, processor = load_config_and_processor(config.model)
    assert processor.layout.legacy_bugs.cut_stop_symbol
    model = load(config)
    assert model.processor is not None
    assert model.processor.layout.legacy_bugs.cut_stop_symbol


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"llm": "somewhere"}, "model.llm and model.vision must be set together"),
        ({"quantization": "int2"}, "model.quantization is 'int2'"),
    ],
)
def test_wrong_settings(toy_data: Path, tmp_path: Path, model: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        settings(toy_data, tmp_path, model=model)


def test_a_file_of_a_tower_is_joined_by_convert(toy_data: Path, tmp_path: Path) -> None:
    (tmp_path / "eva_vit_g.pth").write_bytes(b"")
    config = settings(toy_data, tmp_path, model={"llm": "somewhere", "vision": str(tmp_path / "eva_vit_g.pth")})
    with pytest.raises(ConfigError, match="captune convert --llm somewhere --vision"):
        load(config)


def test_lora_without_its_layers(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    config = settings(toy_data, tmp_path, train={"lora": {"targets": ["no_such_layer"]}})
    with pytest.raises(WeightsError, match="no_such_layer"):
        load(config)


DATED = "<|im_start|>system\nToday: {{ strftime_now('%d %b %Y') }}<|im_end|>\n" + CHATML
INSTRUCTION = "What is this?"


class Clock(datetime):
    """The library's clock, on a day of our choice."""

    day = 1

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return datetime(2026, 11, cls.day)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> type[Clock]:
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    return Clock


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, toy_data: Path) -> RunConfig:
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("dated")
    config = parse_config(
        {
            "output": str(folder / "run"),
            "model": {
                "llm": str(write_language_model(folder / "llm", template=DATED)),
                "vision": str(write_tower(folder / "tower")),
                "instruction": INSTRUCTION,
            },
            "data": {"train": str(toy_data / "manifest.jsonl"), "train_images": 4, "evaluate_images": 2},
            "train": {"epochs": 1, "batch_size": 10, "warmup_steps": 0},
            "evaluate": {"max_new_tokens": 3, "train_slice": 0},
        }
    )
    train(config)
    return config


def change_template(config: RunConfig, template: str) -> None:
    (Path(str(config.model.llm)) / "chat_template.jinja").write_text(template, encoding="utf-8")


def test_prompts_are_the_same_on_every_day(tmp_path: Path, clock: type[Clock], caplog: Any) -> None:
    tokenizer = write_tokenizer(tmp_path, ["<|im_start|>", "<|im_end|>"], template=DATED)
    texts = []
    for day in (1, 2):
        clock.day = day
        assert f"{day:02d} Nov 2026" in tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False
        )
        texts.append(read_chat_template(tokenizer, str(tmp_path)))
    assert texts[0] == texts[1]
    assert "Today: 26 Jul 2024" in texts[0].template
    assert caplog.text.count("contains the date") == 1


@pytest.mark.parametrize(
    "written",
    ["{{ strftime_now('%Y')[:2] }}", "{{ strftime_now('%-d. %B') }}", "{% if strftime_now('%j') %}x{% endif %}"],
)
def test_what_templates_do_with_the_date(tmp_path: Path, written: str) -> None:
    tokenizer = write_tokenizer(tmp_path, ["<|im_start|>", "<|im_end|>"], template=written + CHATML)
    date = read_chat_template(tokenizer).template.partition("<|im_start|>")[0]
    assert date in ("20", "26. July", "x")


def test_a_template_of_chance_is_refused(tmp_path: Path) -> None:
    template = "{{ range(100000) | random }}" + CHATML
    with pytest.raises(ConfigError, match="is not deterministic"):
        read_chat_template(write_tokenizer(tmp_path, ["<|im_start|>", "<|im_end|>"], template=template))


def test_a_run_keeps_its_prompt(begun: RunConfig, tmp_path: Path) -> None:
    """Evaluation, captioning and the signature go by the text that was trained, not by today's template."""
    checkpoint = begun.output / "checkpoints" / "epoch-000"
    record = read_record(checkpoint)
    assert record.wrapping is not None
    assert "26 Jul 2024" in record.wrapping["template"]
    assert json.loads((begun.output / "prompt.json").read_text())["wrapping"] == record.wrapping
    before = read_scores(begun.output).checkpoints
    tuned = load_pretrained(checkpoint)
    ids = tuned.processor.layout.prompt(INSTRUCTION).ids
    text = tuned.processor.layout.chat_template.wrap(INSTRUCTION)
    assert f"prompt:{prompt_hash(text)}|" in before[-1].signature
    change_template(begun, CHATML)
    try:
        assert (
            config_and_processor_of_parts(str(begun.model.llm), str(begun.model.vision))[1]
            .layout.prompt(INSTRUCTION)
            .ids
            != ids
        )
        again = load_pretrained(checkpoint)
        assert again.processor.layout.prompt(INSTRUCTION).ids == ids
        again.save_pretrained(tmp_path / "whole")
        assert MiniGPT4.from_pretrained(tmp_path / "whole").processor.layout.prompt(INSTRUCTION).ids == ids
        elsewhere = begun.model_copy(update={"output": tmp_path / "evaluation"})
        rows = evaluate_checkpoints(elsewhere, [checkpoint]).checkpoints
        assert [row.captions for row in rows] == [row.captions for row in before]
        assert [row.signature for row in rows] == [row.signature for row in before]
    finally:
        change_template(begun, DATED)


def test_a_resumed_run_keeps_its_prompt(begun: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"epochs": 2, "batch_size": 10, "warmup_steps": 0}
    config = begun.model_copy(
        update={"output": tmp_path / "run", "train": begun.train.model_copy(update=changes), "save_every": 1}
    )

    def stop(event: Any) -> None:
        if event["event"] == "checkpoint":
            raise StoppedError("stopped", 15)  # type: ignore[arg-type]

    with pytest.raises(StoppedError):
        train(config, stop)
    kept = tmp_path / "old"
    shutil.copytree(config.output, kept)
    change_template(begun, CHATML)
    try:
        train(config)
        last = read_record(config.output / "checkpoints" / "epoch-001")
        assert last.wrapping == read_record(config.output / "checkpoints" / "epoch-000").wrapping
        old = config.model_copy(update={"output": kept})
        (kept / "prompt.json").unlink()
        written = (kept / "config.yaml").read_text(encoding="utf-8")
        (kept / "config.yaml").write_text(written.replace(str(config.output), str(kept)), encoding="utf-8")
        with pytest.raises(WeightsError, match="did not store the text of its prompts"):
            train(old)
    finally:
        change_template(begun, DATED)


def test_a_checkpoint_of_an_earlier_captune_is_refused(begun: RunConfig, tmp_path: Path) -> None:
    """It has only the conversation's name, which does not say what was trained."""
    shutil.copytree(begun.output / "checkpoints" / "epoch-000", tmp_path / "old")
    record = json.loads((tmp_path / "old" / "checkpoint.json").read_text(encoding="utf-8"))
    for name in ("wrapping", "sha256"):
        record.pop(name, None)
    (tmp_path / "old" / "checkpoint.json").write_text(json.dumps(record), encoding="utf-8")
    model = build_model(llm=str(begun.model.llm), vision=str(begun.model.vision), dtype=torch.float32)
    with pytest.raises(WeightsError, match="did not store the text of its prompts"):
        load_trained(model, tmp_path / "old")
    assert AutoTokenizer.from_pretrained(str(begun.model.llm)).chat_template == DATED
