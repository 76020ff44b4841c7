"""Rows of ids: all image tokens, the stop symbol last, one BOS first, whatever the text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from captune.errors import ConfigError, DataError
from captune.model import CHAT_TEMPLATES, IMAGE_SLOT, MiniGPT4Processor, PromptLayout
from captune.model.tokenizer import load_tokenizer

from .conftest import OfficialFiles, load
from .test_huggingface import PICTURE

SLOW_FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
TOOLS = ("vicuna-v0", "llama-2", "minigpt-v2")


@pytest.fixture(scope="module")
def processor(official_files: OfficialFiles) -> MiniGPT4Processor:
    loaded = load(official_files).processor
    assert loaded is not None
    return loaded


@SLOW_FIXTURE
@given(
    caption=st.text(max_size=80), question=st.text(max_size=40), limit=st.integers(9, 40), name=st.sampled_from(TOOLS)
)
def test_image_and_stop_symbol_survive(
    official_files: OfficialFiles, caption: str, question: str, limit: int, name: str
) -> None:
    tokenizer = load_tokenizer(official_files.llm)
    layout = PromptLayout(tokenizer, name, image_tokens=5, max_target_tokens=limit)
    row = layout.sample(question, caption)
    assert row.ids[0] == tokenizer.bos_id
    assert row.ids.count(IMAGE_SLOT) == 5
    assert row.ids[-len(layout.stop_ids) :] == layout.stop_ids or not row.truncated
    # A caption that ends in "#" may share tokens with the stop symbol "###".
    answer = tokenizer.decode(row.ids[row.prompt_length :]).strip()
    assert answer.endswith(CHAT_TEMPLATES[name].stop_symbol) or not tokenizer.decode(layout.stop_ids).strip()
    assert row.target_count <= limit
    assert IMAGE_SLOT not in row.ids[row.prompt_length :]
    assert row.ids[: row.prompt_length] == layout.prompt(question).ids


@SLOW_FIXTURE
@given(
    turns=st.lists(st.tuples(st.text(max_size=20), st.text(max_size=30)), min_size=1, max_size=4),
    limit=st.integers(9, 60),
)
def test_dialogues_learn_their_answers(official_files: OfficialFiles, turns: list[tuple[str, str]], limit: int) -> None:
    tokenizer = load_tokenizer(official_files.llm)
    layout = PromptLayout(tokenizer, "minigpt-v2", image_tokens=3, max_target_tokens=limit)
    turns[0] = (f"<Img><ImageHere></Img> {turns[0][0]}", turns[0][1])
    row = layout.dialogue(turns)
    assert row.ids.count(IMAGE_SLOT) == 3
    assert len(row.ids) - row.prompt_length <= limit
    assert row.ids[-len(layout.stop_ids) :] == layout.stop_ids
    assert all(row.prompt_length <= position < len(row.ids) for position in row.masked)
    if not row.truncated:
        answer_tokens = sum(len(tokenizer.encode(answer + "</s>")) for _, answer in turns)
        assert row.target_count == answer_tokens


def test_one_turn_is_a_sample(processor: MiniGPT4Processor) -> None:
    layout = processor.layout
    question = "<Img><ImageHere></Img> What is this?"
    assert layout.dialogue([(question, "A dog.")]) == layout.sample("What is this?", "A dog.")


def test_batches(processor: MiniGPT4Processor) -> None:
    pictures = [PICTURE, Image.fromarray(PICTURE)]
    samples = processor(pictures, "What is this?", ["A dog.", "Two girls are eating ice cream."])
    assert set(samples) == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert samples["pixel_values"].shape == (2, 3, 28, 28)
    assert samples["attention_mask"][0, -1] == 0
    prompts = processor(pictures, ["What is this?", "Who is there in the park?"])
    assert set(prompts) == {"input_ids", "attention_mask", "pixel_values"}
    assert prompts["attention_mask"][0, 0] == 0
    assert prompts["attention_mask"][:, -1].all()
    text_only = processor(None, "Who is there?", "A dog.")
    assert (text_only["input_ids"] != IMAGE_SLOT).all()
    assert processor(PICTURE)["input_ids"].shape[0] == 1
    assert processor(np.stack([PICTURE] * 3))["input_ids"].shape[0] == 3


def test_batches_that_do_not_fit(processor: MiniGPT4Processor) -> None:
    with pytest.raises(DataError, match="expected as many of each"):
        processor([PICTURE] * 2, "a", ["b"] * 3)
    with pytest.raises(DataError, match="expected as many of each"):
        processor([PICTURE] * 2, ["a"] * 3)
    with pytest.raises(DataError, match=r"shape \(3, 20, 30\)"):
        processor(PICTURE.transpose(2, 0, 1))
    with pytest.raises(DataError, match="float64"):
        processor(PICTURE / 255)
    with pytest.raises(DataError, match="nowhere"):
        processor("nowhere.jpg")
    with pytest.raises(ConfigError, match="no chat template 'chatml'"):
        PromptLayout(processor.tokenizer, "chatml", image_tokens=1)
    with pytest.raises(ConfigError, match="give room for a caption"):
        PromptLayout(processor.tokenizer, "vicuna-v0", image_tokens=1, max_target_tokens=1)


@pytest.mark.parametrize("name", TOOLS)
def test_a_reply_starts_from_the_dialogue_of_training(official_files: OfficialFiles, name: str) -> None:
    layout = PromptLayout(load_tokenizer(official_files.llm), name, image_tokens=5, max_target_tokens=400)
    turns = [("<Img><ImageHere></Img> What is this?", "A dog."), ("Which colour?", "Brown."), ("Is it old?", "No.")]
    for count in range(1, len(turns) + 1):
        sample = layout.dialogue(turns[:count])
        prompt = layout.dialogue_prompt(turns[: count - 1], turns[count - 1][0])
        answer = layout.target_ids(turns[count - 1][1])[0]
        assert prompt.ids + answer == sample.ids
    assert layout.dialogue_prompt([], "<Img><ImageHere></Img> What is this?") == layout.prompt("What is this?")
    both = layout.dialogue_prompt(turns[:1], "And <Img><ImageHere></Img>?")
    assert both.ids.count(IMAGE_SLOT) == 10
