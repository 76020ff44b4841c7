"""Scores of transformers models that are not numbers: no caption, and the neighbours keep theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioner_models import save
from PIL import Image

from captune.captioner import Captioner, TransformersBackend
from captune.decoding import DecodingOptions
from captune.errors import NonFiniteScoresError

WAYS = [{}, {"beams": 2}, {"temperature": 0.7, "seed": 3}]


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> TransformersBackend:
    folder = save("blip2", tmp_path_factory.mktemp("blip2") / "model")
    backend = Captioner.from_pretrained(folder, device="cpu", dtype="float32").backend
    assert isinstance(backend, TransformersBackend)
    return backend


@pytest.fixture(scope="module")
def prepared(captioner: TransformersBackend) -> list[Any]:
    draws = np.random.default_rng(0)
    return [captioner.prepare(Image.fromarray(draws.integers(0, 255, (30, 40, 3), dtype=np.uint8))) for _ in range(4)]


def spoil(captioner: TransformersBackend, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let `change` spoil the pixels of a batch."""
    batch = captioner.inputs.batch

    def spoiled(images: Any, text: Any) -> Any:
        inputs = batch(images, text)
        change(inputs["pixel_values"])
        return inputs

    monkeypatch.setattr(captioner.inputs, "batch", spoiled)


@pytest.mark.parametrize("settings", WAYS)
def test_an_image_is_lost_and_its_neighbours_are_not(
    captioner: TransformersBackend, prepared: list[Any], monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    options = DecodingOptions(max_new_tokens=6, **settings)
    expected = captioner.generate(prepared, options=options, keys=list("abcd"))
    mark = captioner.inputs.batch([prepared[2]], captioner.prompt())["pixel_values"][0]

    def change(pixels: torch.Tensor) -> None:
        pixels[(pixels == mark).flatten(1).all(dim=1)] = torch.nan

    spoil(captioner, monkeypatch, change)
    with pytest.raises(NonFiniteScoresError, match="scores are not numbers") as raised:
        captioner.generate(prepared, options=options, keys=list("abcd"))
    assert raised.value.captions == [*expected[:2], None, expected[3]]
    assert list(raised.value.reasons) == [2]


def test_an_image_that_spoils_the_batch_costs_itself_alone(
    captioner: TransformersBackend, prepared: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in models that lay the patches of all images end to end."""
    options = DecodingOptions(max_new_tokens=6)
    expected = captioner.generate(prepared, options=options)
    mark = captioner.inputs.batch([prepared[1]], captioner.prompt())["pixel_values"][0]

    def change(pixels: torch.Tensor) -> None:
        if (pixels == mark).flatten(1).all(dim=1).any():
            pixels.fill_(torch.nan)

    spoil(captioner, monkeypatch, change)
    with pytest.raises(NonFiniteScoresError) as raised:
        captioner.generate(prepared, options=options)
    assert raised.value.captions == [expected[0], None, *expected[2:]]


def test_files_and_a_model_that_overflows(
    captioner: TransformersBackend, prepared: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{n}.png" for n in range(7)]
    for file in files:
        prepared[0].save(file)
    calls = []
    spoil(captioner, monkeypatch, lambda pixels: (calls.append(len(pixels)), pixels.fill_(torch.inf)))
    with pytest.raises(NonFiniteScoresError, match=r"7 of 7 images.*0\.png is the first: the model's scores") as raised:
        Captioner(captioner).caption_files(files, options=DecodingOptions(max_new_tokens=3, batch_size=7))
    assert raised.value.captions == [None] * 7
    assert calls == [7, 1, 1, 1, 1]  # not each of them again
