"""One optimiser step: the same whatever it is divided into, and what happens when it cannot be taken."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_minigpt4

from captune.config import RunConfig, parse_config
from captune.data.manifest import Sample
from captune.distributed import DistributedContext
from captune.errors import TrainingError
from captune.model import MiniGPT4
from captune.training.equivalence import CheckedObjective
from captune.training.loss import Objective
from captune.training.trainer import TrainStep

SINGLE = DistributedContext(torch.device("cpu"))
IMAGES = [Sample(str(i), f"{i}.jpg", ("a dog", f"{'very ' * i}long", "two"), "train") for i in range(6)]


def settings(*overrides: str) -> RunConfig:
    return parse_config(
        {"train": {"batch_size": 15, "learning_rate": 0.01, "warmup_steps": 0, "captions_per_image": 3}}, overrides
    )


def build_step(config: RunConfig, model: MiniGPT4 | None = None) -> tuple[MiniGPT4, TrainStep]:
    model = model or tiny_minigpt4()
    torch.manual_seed(2)
    features = torch.randn(len(IMAGES), 4, 24)
    objective = CheckedObjective(model, config.model.instruction, config.train.enabled_optimizations)
    return model, TrainStep(model, objective, IMAGES, features, config.train, seed=1, dist=SINGLE)


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.micro_batch_size=3"],
        ["train.debug.shared_prefix=false"],
        [
            "train.debug.shared_prefix=false",
            "train.debug.constant_prefix=false",
            "train.debug.target_logits=false",
        ],
    ],
    ids=["micro-batches", "separate rows", "plain rows"],
)
def test_what_a_step_is_divided_into_changes_nothing(overrides: list[str]) -> None:
    one, complete = build_step(settings())
    other, divided = build_step(settings(*overrides))
    for step in range(3):
        expected, result = complete.run(step), divided.run(step)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5)
        assert (result.targets, result.captions) == (expected.targets, expected.captions)
    torch.testing.assert_close(other.projection.weight, one.projection.weight, atol=1e-5, rtol=0)


def test_only_the_projection_moves() -> None:
    model, taker = build_step(settings())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    taker.run(0)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {"projection.weight", "projection.bias"}


def test_frozen_parts_stay_in_eval_mode() -> None:
    model = tiny_minigpt4().train()
    assert model.projection.training
    assert not any(module.training for part in (model.vision, model.qformer, model.llm) for module in part.modules())


def test_an_undefined_loss_is_skipped_and_then_ends_the_run() -> None:
    model, taker = build_step(settings("train.max_nonfinite_steps=1"))
    taker.run(0)
    before = model.projection.weight.detach().clone()
    with torch.no_grad():
        model.projection.bias.fill_(float("nan"))
    taker.run(1)
    assert taker.progress.skipped == 1
    assert torch.equal(model.projection.weight, before)
    with pytest.raises(TrainingError, match=r"infinite or undefined in 2 steps, last on '.*'; lower"):
        taker.run(2)


def test_out_of_memory_halves_the_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    expected_model, calm = build_step(settings())
    expected = calm.run(0)
    model, cramped = build_step(settings())
    sizes = []
    loss = Objective.loss

    def limited(self: Objective, samples: list, features: torch.Tensor) -> torch.Tensor:
        sizes.append(len(samples))
        if len(samples) > 2:
            raise torch.OutOfMemoryError
        return loss(self, samples, features)

    monkeypatch.setattr(Objective, "loss", limited)
    halved = cramped.run(0)
    assert sizes == [5, 3, 2, 2, 1]
    assert halved.loss == pytest.approx(expected.loss, rel=1e-5)
    torch.testing.assert_close(model.projection.weight, expected_model.projection.weight, atol=1e-5, rtol=0)


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Objective, samples: list, features: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Objective, "loss", never)
    with pytest.raises(TrainingError, match="Not even one image"):
        build_step(settings())[1].run(0)


def test_clipping_shortens_long_gradients_only() -> None:
    model, free = build_step(settings("train.clip_norm=null", "train.weight_decay=0"))
    clipped_model, clipped = build_step(settings("train.clip_norm=1e6", "train.weight_decay=0"))
    assert free.run(0).gradient_norm == pytest.approx(clipped.run(0).gradient_norm)
    assert torch.equal(model.projection.weight, clipped_model.projection.weight)
