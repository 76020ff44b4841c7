"""Planning a run: loads from data and settings, proposals that fit, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from captune.cli import app, call, run
from captune.cli.plan import card_bytes
from captune.config import parse_config
from captune.errors import InputError
from captune.model.loading import load_config_and_processor
from captune.training.memory_plan import Planner

GPU = torch.device("cuda")


def planner(config: Any, **settings: Any) -> Planner:
    model_config, processor = load_config_and_processor(config.model)
    return Planner(config, model_config, processor, settings.pop("device", GPU), **settings)


def test_loads_come_from_the_data(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna", "train.batch_size=10")
    plans = planner(config)
    assert plans.from_data
    packed = plans.training_load(config)
    assert (packed.rows, packed.images) == (2, 2)
    _, processor = load_config_and_processor(config.model)
    targets = [len(processor.layout.target_ids(text)[0]) for texts in plans.captions for text in texts]
    assert packed.logit_positions == sum(targets)
    plain = make_config("vicuna", "train.batch_size=10", *(f"train.debug.{key}=false" for key in
                        ("shared_prefix", "constant_prefix", "target_logits")))  # fmt: skip
    load = plans.training_load(plain)
    prompt = len(processor.layout.prompt(config.model.instruction).ids)
    assert load.rows == len(targets) == 7
    assert load.tokens == prompt + max(targets)
    assert load.logit_positions == load.rows * (load.tokens - 1)


def test_a_step_is_shared(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna", "data.train=absent.jsonl", "train.batch_size=40")
    assert planner(config).training_load(config).rows == 8
    assert planner(config, processes=4).training_load(config).rows == 2
    small = make_config("vicuna", "data.train=absent.jsonl", "train.batch_size=40", "train.micro_batch_size=5")
    assert planner(small).training_load(small).rows == 1


def test_divided_layers_are_a_share_and_three_that_are_gathered(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna", "train.sharding=fsdp")
    full, mine = planner(config).size(config).llm, planner(config, processes=8).size(config).llm
    # Three layers in bfloat16: they are all of this tiny model, but for the vocabulary and the last norm.
    layers = 3 * (4 * 64 * 64 + 3 * 64 * 172 + 2 * 64) * 2
    assert full == layers + (2 * 400 * 64 + 64) * 2
    assert mine == pytest.approx(full + layers / 8, rel=1e-3)
    size = replace(planner(config).size(config), layers=80)
    assert planner(config, processes=8)._divided(size).llm == pytest.approx(full - layers * (7 / 8 - 3 / 80), rel=1e-3)


def test_several_processes_shard_before_they_quantize(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna", "data.train=absent.jsonl")
    _, _, *levers = planner(config, processes=8)._formats()
    assert levers == [
        ("train.gradient_checkpointing=true", "train.sharding=fsdp"),
        ("train.gradient_checkpointing=true", "model.quantization=nf4"),
    ]


def test_made_up_captions_have_the_requested_length(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna", "train.batch_size=5")
    plans = planner(config, caption_tokens=20)
    assert not plans.from_data
    load = plans.training_load(config)
    assert 100 <= load.logit_positions <= 5 * 24
    # They have nothing in common that their row would hold once.
    assert load.tokens >= load.logit_positions - 5


def test_a_proposal_fits_and_nothing_else_is_changed(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna", "data.train=absent.jsonl")
    plans = planner(config)
    plan = plans.plan()
    limit = 1_500_000_000 + 30_000_000
    assert plan.training.total > limit > plan.generation.total
    proposal = plans.propose(limit)
    assert proposal is not None
    (override,) = proposal.overrides
    assert override.startswith("train.micro_batch_size=")
    assert proposal.plan.peak <= limit
    changed = parse_config(config.model_dump(mode="json"), proposal.overrides)
    assert plans.plan(changed) == proposal.plan
    captions = int(override.split("=")[1])
    larger = parse_config(config.model_dump(mode="json"), [f"train.micro_batch_size={2 * captions}"])
    assert plans.plan(larger).training.total > limit


def test_float32_is_halved_where_nothing_else_helps(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna", "data.train=absent.jsonl", "model.dtype=float32")
    plans = planner(config)
    least = ["train.micro_batch_size=1", "evaluate.batch_size=1"]
    full, half = (
        plans.plan(parse_config(config.model_dump(mode="json"), [*least, *more])).peak
        for more in ([], ["model.dtype=bfloat16"])
    )
    assert half < full
    proposal = plans.propose((half + full) // 2)
    assert proposal is not None
    assert proposal.overrides[0] == "model.dtype=bfloat16"
    assert plans.smallest().peak <= half


def test_every_lever_is_pulled_in_turn(make_config: Callable[..., Any]) -> None:
    """Where halves and small batches do not do, activations are computed again, and then fewer bits come."""
    config = make_config("vicuna", "data.train=absent.jsonl", "train.debug.shared_prefix=false")
    plans = planner(config)
    least = ["model.dtype=bfloat16", "train.micro_batch_size=1", "evaluate.batch_size=1"]
    levers = ["train.gradient_checkpointing=true", "model.quantization=nf4"]

    def peak(*overrides: str) -> int:
        return plans.plan(parse_config(config.model_dump(mode="json"), [*least, *overrides])).peak

    without, one, both = peak(), peak(levers[0]), peak(*levers)
    assert without > one > both
    assert plans.smallest().peak == both
    for limit, pulled in ((one, levers[:1]), (both, levers)):
        proposal = plans.propose(limit)
        assert proposal is not None
        assert [lever for lever in proposal.overrides if lever in levers] == pulled


def test_nothing_fits(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna")
    assert planner(config).propose(1_500_000_000) is None
    assert planner(config).smallest().peak > 1_500_000_000


def test_no_reserve_on_a_processor(make_config: Callable[..., Any]) -> None:
    config = make_config("vicuna")
    assert planner(config, device=torch.device("cpu")).plan().peak < 100_000_000


@pytest.mark.parametrize(
    ("text", "size"),
    [("24GB", 24 * 10**9), ("24", 24 * 10**9), (" 79.6 GiB", int(79.6 * 2**30)), ("12000mb", 12 * 10**9)],
)
def test_sizes_of_cards(text: str, size: int) -> None:
    assert card_bytes(text) == size


@pytest.mark.parametrize("text", ["", "big", "-24GB", "24XB", "0GB", "24GB24", "nan"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="expected the memory of a card"):
        card_bytes(text)


def command(*arguments: object) -> int:
    return run(lambda: call(app, [str(argument) for argument in arguments]))


def test_command_line(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", yaml_file, "--gpu", "24GB") == 0
    out = capsys.readouterr().out
    assert "in bfloat16 on a GPU" in out
    assert "It fits 24.0 GB: the peak is 1.5 GB" in out


def test_command_line_proposes(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", yaml_file, "data.train=absent.jsonl", "--gpu", "1530MB") == 1
    out = capsys.readouterr().out
    assert "It does not fit 1.5 GB" in out
    assert "It fits with train.micro_batch_size=" in out
    assert command("plan", yaml_file, "--gpu", "1GB") == 1
    assert "use a larger card or a smaller model" in capsys.readouterr().out


def test_command_line_json(yaml_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("plan", yaml_file, "data.train=absent.jsonl", "--gpu", "1530MB", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["fits"] is False
    assert answer["card"] == 1_530_000_000
    for phase in ("training", "generation"):
        assert sum(part["bytes"] for part in answer[phase]["parts"]) == answer[phase]["total"]
        assert answer["proposal"][phase] <= answer["card"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--gpu", "big"], "--gpu is 'big'"), (["model.path=./nowhere"], "There is no model folder ./nowhere")],
)
def test_command_line_errors(
    yaml_file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert command("plan", yaml_file, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_a_model_that_is_neither_here_nor_on_the_hub(
    yaml_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder's name without "./" could be a model of the hub; the sentence must speak of the folder too."""

    def out_of_reach(name: str) -> Any:
        raise OSError(f"We couldn't connect to 'https://somewhere' to load {name}")

    monkeypatch.setattr("captune.model.loading.MiniGPT4Config.from_pretrained", out_of_reach)
    assert command("plan", yaml_file, "model.path=weights/absent") == 2
    message = capsys.readouterr().err
    assert "weights/absent cannot be read: there is no such folder here" in message
    assert message.count("\n") == 1
