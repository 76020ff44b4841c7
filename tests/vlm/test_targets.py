"""Target ids of captions: the words, and the end of the turn exactly once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from vision_families import save_family

from captune.config import ModelConfig
from captune.errors import WeightsError
from captune.hub import resolve_model
from captune.vlm import ImageTextModel, load_image_text_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def load(name: str, folder: Path) -> ImageTextModel:
    source = resolve_model(ModelConfig(path=str(save_family(name, folder))))
    return load_image_text_model(source, torch.device("cpu"), instruction="What is it?")


@pytest.mark.parametrize("name", ["gemma3", "idefics3", "llava", "paligemma", "qwen2_5_vl"])
@pytest.mark.parametrize("words", ["A sign says <image>.", "A sign says <|im_end|> twice.", "The end: </s>"])
def test_the_text_of_a_special_token_in_a_caption_is_text(name: str, words: str, tmp_path: Path) -> None:
    model = load(name, tmp_path)
    ids = model.conversation.target_ids(words)
    ends = [token for token in ids if token == ids[-1]]
    assert len(ends) == 1, "the end of the turn once, at the end"
    tokenizer = model.processor.tokenizer
    assert tokenizer.decode(ids[:-1], skip_special_tokens=True).strip() == words
    image = Image.new("RGB", (40, 30))
    assert model.loss(image, [words]).isfinite(), "an image token among the targets would be another image"


def test_complete_parts_are_the_decoder_with_its_head_or_all_before_it(tmp_path: Path) -> None:
    model = load("blip-2 (OPT)", tmp_path)
    model.train_parts(language_model=True)
    language = {name for name, _ in model.trained_parameters()}
    model.train_parts(vision_tower=True)
    tower = {name for name, _ in model.trained_parameters()}
    assert all(name.startswith("language_model.") for name in language)
    assert not any(name.startswith("language_model.") for name in tower)
    assert len(language) + len(tower) == len(dict(model.model.named_parameters()))


def test_a_prompt_that_begins_the_caption_of_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    """Generation continues the prompt in the decoder, which training would not see."""
    source = resolve_model(ModelConfig(path=str(save_family("pix2struct", tmp_path))))
    image = Image.new("RGB", (40, 30))
    assert load_image_text_model(source, torch.device("cpu")).loss(image, ["A dog."]).isfinite()
    with pytest.raises(WeightsError, match=r"beginning of its caption.*remove model\.instruction"):
        load_image_text_model(source, torch.device("cpu"), instruction="A photo of").loss(image, ["A dog."])
