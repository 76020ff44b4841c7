"""Compiled layers: the same loss and gradient at any length, from one graph, and a run that outlives its compiler."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tiny import tiny_minigpt4
from torch._dynamo.utils import counters

from captune.config import OptimizationsConfig, RunConfig, parse_config
from captune.data.manifest import Sample
from captune.distributed import DistributedContext
from captune.model import MiniGPT4
from captune.model.lora import attach_lora
from captune.training.equivalence import CheckedObjective
from captune.training.loss import Objective
from captune.training.optimizations import compile_if_enabled, compile_layers
from captune.training.sample_order import TrainingSample
from captune.training.trainer import TrainStep

# Dynamo itself looks at the gradient of what has none.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")

SINGLE = DistributedContext(torch.device("cpu"))
IMAGES = [Sample(str(i), f"{i}.jpg", ("a dog", f"{'very ' * i}long", "two"), "train") for i in range(6)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()
    counters.clear()


def model_with(lora: bool) -> MiniGPT4:
    model = tiny_minigpt4().train()
    if lora:
        torch.manual_seed(1)
        attach_lora(model, rank=4)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B" in name:
                    parameter.normal_(std=0.1)
    return model


def gradient(objective: Objective, model: MiniGPT4, samples: list[TrainingSample]) -> tuple[float, torch.Tensor]:
    features = torch.randn(len(samples), 4, 24, generator=torch.Generator().manual_seed(3))
    loss = objective.loss(samples, features)
    parts = torch.autograd.grad(loss, [parameter for _, parameter in model.trained_parameters()])
    return float(loss.detach()), torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("lora", [False, True], ids=["constant prefix", "lora"])
def test_every_length_and_layer_is_one_graph_with_the_same_gradient(lora: bool) -> None:
    model = model_with(lora)
    fast = OptimizationsConfig()
    eager = Objective(model, "what is it?", fast)
    compiled = Objective(model, "what is it?", fast, compile_layers(model, "aot_eager"))
    for rows in (2, 3, 4):
        for length in (3, 8, 17, 30):
            samples = [TrainingSample(0, ("a dog", "y" * length, "x" * (length + row))) for row in range(rows)]
            expected, computed = gradient(eager, model, samples), gradient(compiled, model, samples)
            assert computed[0] == pytest.approx(expected[0], rel=1e-5)
            assert (computed[1] - expected[1]).norm() <= 1e-5 * expected[1].norm()
    assert counters["stats"]["unique_graphs"] == 1
    # The compiler treats one row alone as a separate case.
    assert gradient(compiled, model, samples[:1])[0] == pytest.approx(gradient(eager, model, samples[:1])[0], rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 2


def settings(*overrides: str) -> RunConfig:
    return parse_config(
        {"train": {"batch_size": 15, "learning_rate": 0.01, "warmup_steps": 0, "captions_per_image": 3}}, overrides
    )


def run(backend: Any, steps: int = 3) -> tuple[TrainStep, str | None, list[float], torch.Tensor]:
    """A step, why rows are not packed, and some steps' losses and projection."""
    config, model = settings(), tiny_minigpt4().train()
    features = torch.randn(len(IMAGES), 4, 24, generator=torch.Generator().manual_seed(2))
    compiled = None if backend is None else compile_layers(model, backend)
    objective = CheckedObjective(model, config.model.instruction, config.train.enabled_optimizations, compiled)
    step = TrainStep(model, objective, IMAGES, features, config.train, seed=1, dist=SINGLE)
    unpacked = step.check_packing()
    losses = [step.run(number).loss for number in range(steps)]
    return step, unpacked, losses, model.projection.weight.detach().clone()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_steps_on_real_kernels() -> None:
    _, _, expected, weight = run(None)
    step, unpacked, losses, compiled_weight = run("inductor")
    assert unpacked is None
    assert step.objective.compiled is not None
    assert losses == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(compiled_weight, weight, atol=1e-5, rtol=0)


def captune_log(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The messages of captune, without those of the compiler."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("captune")]


def broken_forward(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler here")


def broken_backward(graph: Any, inputs: Any) -> Any:
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.exc import BackendCompilerFailed

    def fail(backward: Any, example: Any) -> Any:
        raise BackendCompilerFailed(broken_backward, RuntimeError("no compiler here"), None)

    return aot_autograd(fw_compiler=lambda forward, example: forward, bw_compiler=fail)(graph, inputs)


@pytest.mark.parametrize("backend", [broken_forward, broken_backward])
def test_a_run_outlives_its_compiler(backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, _, expected, weight = run(None)
    with caplog.at_level(logging.WARNING, "captune"):
        _, unpacked, losses, same = run(backend)
    assert unpacked is None
    assert losses == expected
    assert torch.equal(same, weight)
    (message,) = captune_log(caplog)
    assert message.startswith("the language model's layers are not compiled from here on: compiled layers fail (")
    assert "no compiler here" in message


def test_a_compiler_may_fail_in_any_step(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, expected, _ = run(None)
    monkeypatch.setattr(TrainStep, "check_packing", lambda self: None)
    with caplog.at_level(logging.WARNING, "captune"):
        _, _, losses, _ = run(broken_backward)
    assert losses == expected
    assert len(captune_log(caplog)) == 1


def test_a_compiler_that_changes_the_gradient_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(graph: Any, inputs: Any) -> Any:
        return lambda *args: tuple(1.5 * output for output in graph(*args))

    with caplog.at_level(logging.WARNING, "captune"):
        step, unpacked, _, _ = run(wrong, steps=0)
    assert unpacked is None
    assert step.objective.compiled is None
    assert "compiled layers change the gradient by" in captune_log(caplog)[0]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (
            ["train.debug.compile=on", "train.gradient_checkpointing=true"],
            "train.gradient_checkpointing computes them",
        ),
        (
            ["train.debug.compile=on"]
            + [f"train.debug.{name}=false" for name in ("shared_prefix", "constant_prefix", "target_logits")],
            "train.debug.target_logits is off",
        ),
        (["train.debug.compile=auto"], None),
        (["train.debug.compile=off"], None),
    ],
)
def test_when_layers_are_not_compiled(
    overrides: list[str], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "captune"):
        assert compile_if_enabled(tiny_minigpt4(), settings(*overrides).train) is None
    assert [message.partition("since ")[2].startswith(str(reason)) for message in captune_log(caplog)] == [True] * (
        reason is not None
    )
