"""captune's decoding loop gives the captions of `generate`, from images and from features, in any batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from PIL import Image
from vision_families import save_family

from captune.config import LoraConfig, ModelConfig
from captune.decoding import DecodingOptions
from captune.errors import NonFiniteScoresError, WeightsError
from captune.hub import resolve_model
from captune.vlm import CaptionGenerator, ImageTextModel, load_image_text_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

OPTIONS = DecodingOptions(max_new_tokens=10, batch_size=2)
# In early releases, the mask of PaliGemma is made in another way.
EARLY = Version(transformers.__version__) < Version("5.20")
SUPPORTED = ("gemma3", "idefics3", "llava_next", "paligemma", "qwen2_5_vl", "qwen3_vl")
OTHERS = ("blip-2 (OPT)", "florence2", "kosmos-2", "mllama")


def images() -> list[Image.Image]:
    draws = np.random.default_rng(0)
    sizes = [(40, 30), (64, 64), (30, 90), (90, 30), (20, 20)]
    return [Image.fromarray(draws.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def load(name: str, folder: Path) -> ImageTextModel:
    source = resolve_model(ModelConfig(path=str(save_family(name, folder))))
    model = load_image_text_model(source, torch.device("cpu"), instruction="What is it?")
    model.add_lora(LoraConfig(rank=2, targets=("all-linear",)))
    with torch.no_grad():
        for parameter in (p for n, p in model.trained_parameters() if ".lora_B." in n):
            parameter.normal_(0, 0.05)
    assert model.find_features()
    return model.eval()


@pytest.mark.parametrize("name", [name for name in SUPPORTED if not (EARLY and name == "paligemma")])
def test_captions_are_those_of_generate(name: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    generator = CaptionGenerator(model)
    assert generator.unsupported_reason(images()[0]) == ""
    expected = model.backend.generate(images(), None, OPTIONS)
    assert len({caption.text for caption in expected}) > 1
    assert generator.generate(images(), None, OPTIONS) == expected
    assert [generator.generate([image], None, OPTIONS)[0] for image in images()] == expected
    features = [model.encode(image) for image in images()]
    assert generator.generate(features, None, OPTIONS) == expected


@pytest.mark.parametrize("name", OTHERS)
def test_generate_captions_where_the_loop_cannot(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(name, tmp_path)
    generator = CaptionGenerator(model)
    assert generator.generate(images(), None, OPTIONS) == model.backend.generate(images(), None, OPTIONS)
    assert "captioning with transformers' generate" in caplog.text
    with pytest.raises(WeightsError, match="stored features"):
        generator.generate([model.encode(images()[0])], None, OPTIONS)


def test_beams_and_penalties_are_those_of_generate(tmp_path: Path) -> None:
    model = load("llava", tmp_path)
    for settings in ({"beams": 2}, {"repetition_penalty": 1.5}, {"temperature": 1.0}):
        options = DecodingOptions(max_new_tokens=6, **settings)  # type: ignore[arg-type]
        assert CaptionGenerator(model).generate(images(), None, options) == model.backend.generate(
            images(), None, options
        )


def test_a_loop_that_gives_other_logits_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a layer which keeps a state besides the cache."""
    model = load("llava", tmp_path)
    assert model.decoder is not None
    layer = model.decoder.layers[0]
    forward = layer.forward

    def stateful(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(hidden_states + hidden_states.mean(dim=1, keepdim=True), *args, **kwargs)

    monkeypatch.setattr(layer, "forward", stateful)
    assert "changes the logits" in CaptionGenerator(model).unsupported_reason(images()[0])


def test_an_image_with_broken_features_fails_without_the_others(tmp_path: Path) -> None:
    model = load("llava", tmp_path)
    generator = CaptionGenerator(model)
    features = [model.encode(image) for image in images()]
    expected = generator.generate(features, None, OPTIONS)
    for tensor in features[1].tensors:
        tensor.fill_(torch.nan)
    with pytest.raises(NonFiniteScoresError) as error:
        generator.generate(features, None, OPTIONS)
    assert list(error.value.reasons) == [1]
    assert [caption for n, caption in enumerate(error.value.captions) if n != 1] == [
        caption for n, caption in enumerate(expected) if n != 1
    ]
