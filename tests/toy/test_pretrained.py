"""The checkpoint that ships: small, complete, it sees and speaks, and does not know the captions' style yet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captune.data.images import to_pixels
from captune.toy.captions import terse_caption
from captune.toy.drawing import draw_scene
from captune.toy.flickr30k import plan_rows
from tools.toy.scene_agreement import scene_agreement

torch = pytest.importorskip("torch")

from captune.decoding import DecodingOptions, generate_captions  # noqa: E402
from captune.hub import locate_model  # noqa: E402
from captune.model import MiniGPT4  # noqa: E402
from tools.toy.model import INSTRUCTIONS  # noqa: E402

FOLDER = Path(locate_model("toy"))


@pytest.fixture(scope="module")
def model() -> MiniGPT4:
    return MiniGPT4.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.fixture(scope="module")
def rows():
    return plan_rows(train=0, val=0, test=60, seed=42)


@pytest.fixture(scope="module")
def features(model: MiniGPT4, rows):
    pixels = np.stack([to_pixels(draw_scene(row.scene), model.processor.image_size) for row in rows])
    with torch.no_grad():
        return model.encode_features(torch.from_numpy(pixels))


def answers(model: MiniGPT4, features, instruction: str) -> list[str]:
    options = DecodingOptions(max_new_tokens=40, batch_size=len(features))
    return [caption.text for caption in generate_captions(model, features, instruction, options)]


def test_it_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8_000_000


def test_the_instruction_of_the_configuration_was_pretrained() -> None:
    from captune.config import ModelConfig

    assert ModelConfig().instruction in INSTRUCTIONS


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_it_notes_what_is_in_new_pictures(model: MiniGPT4, rows, features, instruction: str) -> None:
    texts = answers(model, features, instruction)
    noted = [set(text.split(", ")) for text in texts]
    right = [set(terse_caption(row.scene).split(", ")) for row in rows]
    recall = sum(len(a & b) for a, b in zip(noted, right, strict=True)) / sum(len(b) for b in right)
    assert recall > 0.75, texts[:5]


def test_it_does_not_speak_in_captions_yet(model: MiniGPT4, rows, features) -> None:
    texts = answers(model, features, INSTRUCTIONS[0])
    assert not any(text.endswith(".") for text in texts)
    assert not any(text in row.captions for text, row in zip(texts, rows, strict=True))


def test_a_moved_projection_speaks_in_captions(model: MiniGPT4, rows, features) -> None:
    """What tuning does, in small: sixty steps on the projection alone."""
    torch.manual_seed(0)
    tuned = MiniGPT4.from_pretrained(FOLDER, dtype=torch.float32)
    train = plan_rows(train=160, val=0, test=0, seed=5)
    pixels = np.stack([to_pixels(draw_scene(row.scene), tuned.processor.image_size) for row in train])
    with torch.no_grad():
        seen = torch.cat([tuned.encode_features(part) for part in torch.from_numpy(pixels).split(80)])
    optimizer = torch.optim.AdamW(tuned.projection.parameters(), lr=2e-3)
    draw = np.random.default_rng(0)
    for _ in range(60):
        picked = draw.integers(0, len(train), 24)
        sequences = [
            tuned.processor.layout.sample(INSTRUCTIONS[0], train[i].captions[draw.integers(5)]) for i in picked
        ]
        optimizer.zero_grad()
        tuned(**tuned.processor.pad(sequences), features=seen[torch.from_numpy(picked)]).loss.backward()
        optimizer.step()
    texts = answers(tuned, features, INSTRUCTIONS[0])
    verdicts = [scene_agreement(text, row.scene) for text, row in zip(texts, rows, strict=True)]
    assert np.mean([text.endswith(".") and text[0].isupper() for text in texts]) > 0.9, texts[:5]
    assert np.mean([verdict.subject for verdict in verdicts]) > 0.6, texts[:10]


def test_transformers_reads_the_vocabulary_as_a_llama_tokenizer(model: MiniGPT4) -> None:
    from transformers import AutoTokenizer

    hf_tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ours = model.processor.tokenizer
    for text in ("A man in a red shirt kicks a ball.", "Two dogs run through the snow", "Zürich, 犬 42!"):
        assert ours.decode(ours.encode(text)) == text
        assert hf_tokenizer.encode(text, add_special_tokens=False) == ours.encode(text)


def test_the_vocabulary_has_subwords_and_bytes(model: MiniGPT4) -> None:
    encode = model.processor.tokenizer.encode
    assert len(encode("umbrella")) == 1
    assert 1 < len(encode("windsurfing")) <= 8
    assert len(encode("犬")) == 4
    assert len(model.processor.layout.stop_ids) <= 3
