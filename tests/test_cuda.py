"""On a CUDA GPU: what runs there automatically (recorded steps, compiled layers) gives what the processor gives.

    python -m pytest tests/test_cuda.py

Every other test computes on the processor, where the same code takes the other branches.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ending_minigpt4

import captune
from captune import distributed
from captune.config import RunConfig, parse_config
from captune.decoding import DecodingOptions, Request, generate_ids
from captune.decoding.capabilities import supports_decode_attention
from captune.decoding.cuda_graph import graph_capture_for
from captune.decoding.decode_attention import attend
from captune.evaluation import checkpoints
from captune.model import MiniGPT4
from captune.training import train

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    # The compiler of another release of torch may warn of what is torch's own.
    pytest.mark.filterwarnings("default"),
]

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"beams": 3, "length_penalty": 0.6},
    "sampled": {"temperature": 0.1, "top_k": 20, "seed": 5},
}


@pytest.fixture(scope="module")
def model() -> MiniGPT4:
    """In float32 on the GPU, with captions that end at all places."""
    return ending_minigpt4().to("cuda")


def mixed(model: MiniGPT4) -> list[Request]:
    assert model.processor is not None
    drawn = torch.Generator().manual_seed(11)
    features = torch.randn(24, model.config.image_tokens, model.config.feature_size, generator=drawn).cuda() * 3
    instructions = itertools.cycle(("Describe it.", "What is this, and where?", "Say"))
    prompts = [model.processor.layout.prompt(next(instructions)).ids for _ in features]
    return [Request(n, prompt, features[n : n + 1], key=str(n)) for n, prompt in enumerate(prompts)]


@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize("size", [64, 80, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_of_single_tokens_is_attention(groups: int, size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    heads, width = 8, 200
    columns = torch.tensor([0, 31, 32, 99, 199], device="cuda")
    query = torch.randn(len(columns), 1, heads, size, dtype=dtype, device="cuda").transpose(1, 2)
    keys, values = (torch.randn(len(columns), groups, width, size, dtype=dtype, device="cuda") for _ in range(2))
    output, _ = attend(torch.nn.Module(), query, keys, values, None, columns=columns)
    mask = (torch.arange(width, device="cuda") <= columns.unsqueeze(1)).view(-1, 1, 1, width)
    exact = [states.double().repeat_interleave(heads // groups, 1) for states in (keys, values)]
    expected = torch.nn.functional.scaled_dot_product_attention(query.double(), *exact, mask)
    distance = (output.transpose(1, 2) - expected).norm() / expected.norm()
    assert distance < {torch.float32: 1e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}[dtype]


@pytest.mark.parametrize("way", WAYS)
def test_recorded_and_compiled_steps_change_no_caption(
    model: MiniGPT4, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    requests, options = mixed(model), DecodingOptions(max_new_tokens=14, **WAYS[way])
    assert graph_capture_for(model.llm) is not None
    assert supports_decode_attention(model.llm)
    expected = generate_ids(model, requests, options, engine="transformers")
    assert len({len(row) for row in expected}) > 2
    for size in (1, 5, 32):
        assert generate_ids(model, requests, replace(options, batch_size=size)) == expected, size
    assert generate_ids(model, requests, replace(options, batch_size=8, compiled=True)) == expected
    assert not warned(caplog)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("captune") and r.levelno >= logging.WARNING]


def settings(data: Path, output: Path, *overrides: str) -> RunConfig:
    content = {
        "output": str(output),
        "log_every": 1,
        "model": {"path": "toy", "dtype": "float32"},
        "data": {"train": str(data / "manifest.jsonl"), "features": str(output / "features")},
        "train": {"epochs": 2, "batch_size": 20, "warmup_steps": 2},
        "evaluate": {"max_new_tokens": 12},
    }
    return parse_config(content, overrides)


def losses(output: Path) -> list[float]:
    entries = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if entry["event"] == "step"]


def on(device: str, patch: pytest.MonkeyPatch) -> None:
    for module in (distributed, checkpoints):
        patch.setattr(module, "default_device", lambda rank=0: torch.device(device))


def test_training_is_the_same_on_both(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    curves = {}
    for device in ("cpu", "cuda"):
        with monkeypatch.context() as patch:
            on(device, patch)
            train(settings(toy_data, tmp_path / device))
        curves[device] = losses(tmp_path / device)
    assert not any("compiled" in line for line in warned(caplog))
    assert len(curves["cuda"]) == len(curves["cpu"]) > 8
    assert curves["cuda"] == pytest.approx(curves["cpu"], rel=1e-3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dtype=auto"],
        ["model.dtype=auto", "train.lora={rank: 4}"],
        ["train.gradient_checkpointing=true"],
        [
            "train.debug.shared_prefix=false",
            "train.debug.constant_prefix=false",
            "train.debug.target_logits=false",
        ],
        ["evaluate.compile=true"],
        ["evaluate.beams=3"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_other_settings_train_on_a_gpu(toy_data: Path, tmp_path: Path, overrides: list[str]) -> None:
    train(settings(toy_data, tmp_path / "run", "train.epochs=1", *overrides))
    curve = losses(tmp_path / "run")
    assert len(curve) > 4
    assert all(map(math.isfinite, curve))
    rows = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert sum(row["event"] == "evaluation" for row in rows) == 2


def test_a_picture_is_captioned_as_on_the_processor(toy_data: Path) -> None:
    pictures = sorted((toy_data).rglob("*.jpg"))[:6] or sorted(toy_data.rglob("*.png"))[:6]
    captions = {
        device: captune.Captioner.from_pretrained("toy", device=device, dtype="float32")(pictures)
        for device in ("cpu", "cuda")
    }
    assert captions["cuda"] == captions["cpu"]
