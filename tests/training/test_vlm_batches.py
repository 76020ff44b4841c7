"""Several images of a transformers model in one forward pass: the same loss, or one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tuned_models import tune
from vision_families import save_family

from captune.config import TrainConfig
from captune.training.sample_order import TrainingSample
from captune.training.vlm_loss import ImageTextObjective, images_at_once
from captune.vlm import Computation

TEXTS = (("A dog runs.", "A dog."), ("Two dogs sit.", "Red."), ("A man.", "A man and a dog."))
SIZES = ((40, 30), (64, 64), (30, 60))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[TrainingSample], list[Any]]:
    root = tmp_path_factory.mktemp("batches")
    model = tune(save_family("qwen2_5_vl", root / "base"), root / "tuned")
    assert model.find_features()
    draws = np.random.default_rng(0)
    images = [Image.fromarray(draws.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]
    samples = [TrainingSample(n, texts) for n, texts in enumerate(TEXTS)]
    return model, samples, [model.encode(image) for image in images]


def test_the_loss_of_a_batch_is_that_of_its_images(prepared: tuple[Any, list[TrainingSample], list[Any]]) -> None:
    model, samples, features = prepared
    single = ImageTextObjective(model, Computation(True, True))
    batched = ImageTextObjective(model, Computation(True, True), 2)
    assert single.packing_groups(samples) == [[0], [1], [2]]
    assert batched.packing_groups(samples) == [[0, 1], [2]]
    assert batched.check(samples, features) is None
    calls = 0
    forward = model.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return forward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model.model, "forward", counted)
        loss = batched.loss(samples, features)
    assert calls == 2
    assert torch.allclose(loss, single.loss(samples, features), rtol=1e-5)


def test_a_batch_with_another_gradient_is_not_used(
    prepared: tuple[Any, list[TrainingSample], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples, features = prepared
    objective = ImageTextObjective(model, Computation(True, True), 3)
    batch_loss = model.batch_loss
    monkeypatch.setattr(model, "batch_loss", lambda *args: 1.01 * batch_loss(*args))
    assert "One image is computed at a time: the gradient of a batch differs" in (
        objective.check(samples, features) or ""
    )
    assert objective.packing_groups(samples) == [[0], [1], [2]]


def test_plain_rows_are_not_batched(prepared: tuple[Any, list[TrainingSample], list[Any]]) -> None:
    model, samples, _ = prepared
    assert ImageTextObjective(model, Computation(True, False), 3).packing_groups(samples) == [[0], [1], [2]]


@pytest.mark.parametrize(("captions", "expected"), [(None, 1), (4, 1), (5, 1), (39, 7), (40, 8)])
def test_images_at_once(captions: int | None, expected: int) -> None:
    assert images_at_once(TrainConfig(micro_batch_size=captions), 5) == expected
