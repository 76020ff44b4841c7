"""The packaged model of SmolVLM's shape: it sees, tuning teaches it captions, and three libraries caption alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune.hub import locate_model, resolve_model
from captune.metrics import paired_bootstrap, score_captions
from captune.toy.captions import terse_caption
from captune.toy.drawing import draw_scene
from captune.toy.flickr30k import ToyRow, plan_rows

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from captune.captioner import Captioner  # noqa: E402
from captune.config import LoraConfig  # noqa: E402
from captune.data.images import to_pixels  # noqa: E402
from captune.decoding import DecodingOptions  # noqa: E402
from captune.model import CheckpointRecord  # noqa: E402
from captune.vlm import ImageTextModel, load_image_text_model, save_adapter  # noqa: E402
from tools.toy.model import INSTRUCTIONS  # noqa: E402

FOLDER = Path(locate_model("toy-vlm"))
OPTIONS = DecodingOptions(max_new_tokens=40, batch_size=30)
STEPS, IMAGES = 30, 8


def pictures(rows: list[ToyRow]) -> list[Image.Image]:
    return [draw_scene(row.scene) for row in rows]


def captions(model: ImageTextModel | Captioner, images: list[Image.Image], instruction: str | None = None) -> list[str]:
    return [caption.text for caption in model.backend.generate(images, instruction, OPTIONS)]


def load() -> ImageTextModel:
    return load_image_text_model(resolve_model("toy-vlm"), torch.device("cpu"))


@pytest.fixture(scope="module")
def rows() -> list[ToyRow]:
    return plan_rows(train=0, val=0, test=60, seed=42)


@dataclass
class Tuned:
    """A tuned model, its checkpoint, and its captions before and after."""

    model: ImageTextModel
    folder: Path
    before: list[str]
    after: list[str]


@pytest.fixture(scope="module")
def tuned(rows: list[ToyRow], tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """What tuning does, in small: LoRA, thirty steps of eight images with five captions each."""
    model = load()
    before = captions(model, pictures(rows))
    lora = LoraConfig(rank=16, alpha=32, targets=("all-linear",))
    model.add_lora(lora, seed=0)
    assert model.find_features()
    train = plan_rows(train=120, val=0, test=0, seed=5)
    features = [model.encode(picture) for picture in pictures(train)]
    parameters = [parameter for _, parameter in model.trained_parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    draw = np.random.default_rng(0)
    model.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        for index in draw.integers(0, len(train), IMAGES):
            (model.loss(features[index], train[index].captions, packed=True) / (IMAGES * 75)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    model.eval()
    folder = tmp_path_factory.mktemp("run") / "epoch-000"
    folder.mkdir()
    record = CheckpointRecord(
        model="toy-vlm",
        frozen=model.frozen_fingerprint(),
        instruction=INSTRUCTIONS[0],
        conversation="",
        stop_symbol="",
        manifest_hash="",
        epoch=0,
        step=STEPS,
        seed=0,
        captune="0.1",
        lora={"r": lora.rank, "alpha": lora.alpha, "targets": ["all-linear"], "dropout": 0.0},
        kind="transformers",
        trained=("lora",),
    )
    save_adapter(folder, model, record)
    return Tuned(model, folder, before, captions(model, pictures(rows)))


def test_it_is_small_and_has_smolvlms_parts() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000
    model = load()
    assert 1e6 < sum(parameter.numel() for parameter in model.model.parameters()) < 4e6
    assert type(model.model.model.connector).__name__ == "Idefics3Connector"
    assert model.model.config.text_config.model_type == "llama"
    end = model.processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert model.model.generation_config.eos_token_id == end
    assert model.conversation.target_ids("A dog runs.")[-1] == end


def test_its_processor_makes_the_pixels_of_pretraining(rows: list[ToyRow]) -> None:
    prompt = load().conversation.prompt(draw_scene(rows[0].scene))
    np.testing.assert_allclose(prompt.inputs["pixel_values"][0, 0], to_pixels(draw_scene(rows[0].scene), 64), atol=1e-6)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_it_notes_what_is_in_new_pictures(rows: list[ToyRow], instruction: str) -> None:
    texts = captions(load(), pictures(rows), instruction)
    noted = [set(text.split(", ")) for text in texts]
    right = [set(terse_caption(row.scene).split(", ")) for row in rows]
    recall = sum(len(a & b) for a, b in zip(noted, right, strict=True)) / sum(len(b) for b in right)
    assert recall > 0.75, texts[:5]
    assert not any(text.endswith(".") for text in texts)


def test_tuning_raises_cider_of_new_pictures(rows: list[ToyRow], tuned: Tuned) -> None:
    references = {row.filename: list(row.captions) for row in rows}
    before, after = (
        score_captions(dict(zip(references, texts, strict=True)), references, ["cider"])
        for texts in (tuned.before, tuned.after)
    )
    difference = paired_bootstrap(after, before)["CIDEr"]
    assert difference.difference > 0.3, difference
    assert difference.p_value < 0.01


def documented_captions(model: Any, images: list[Image.Image]) -> list[str]:
    """Captions in transformers alone, by the calls of its documentation."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(FOLDER)
    content = [{"type": "image"}, {"type": "text", "text": INSTRUCTIONS[0]}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    texts = []
    for image in images:
        inputs = processor(images=[image], text=prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=OPTIONS.max_new_tokens, do_sample=False)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts.append(processor.batch_decode(new, skip_special_tokens=True)[0].strip())
    return texts


def test_captune_transformers_and_the_merged_model_caption_alike(
    rows: list[ToyRow], tuned: Tuned, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    images = pictures(rows)[:20]
    expected = tuned.after[:20]
    assert len(set(expected)) > 5
    assert captions(Captioner.from_pretrained(tuned.folder, dtype="float32"), images) == expected

    base = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tuned.folder).eval()
    assert documented_captions(adapted, images) == expected

    merged = adapted.merge_and_unload()
    assert documented_captions(merged, images) == expected
    merged.save_pretrained(tmp_path / "merged")
    tuned.model.processor.save_pretrained(tmp_path / "merged")
    assert captions(Captioner.from_pretrained(tmp_path / "merged", dtype="float32"), images) == expected
