"""The packaged model of SmolVLM's shape: what it notes, what a run makes of it, and who captions alike afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune.hub import locate_model, resolve_model
from captune.toy.captions import terse_caption
from captune.toy.drawing import draw_scene
from captune.toy.flickr30k import plan_rows, write_flickr30k

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from captune.captioner import Captioner  # noqa: E402
from captune.cli.convert import NumberFormat  # noqa: E402
from captune.cli.export import export  # noqa: E402
from captune.cli.prepare import flickr30k  # noqa: E402
from captune.config import parse_config  # noqa: E402
from captune.data.images import to_pixels  # noqa: E402
from captune.decoding import DecodingOptions  # noqa: E402
from captune.report import RunScores, read_scores  # noqa: E402
from captune.toy import TOY_VLM_SETTINGS  # noqa: E402
from captune.training import train  # noqa: E402
from captune.vlm import load_image_text_model  # noqa: E402
from tools.toy.model import INSTRUCTIONS  # noqa: E402

FOLDER = Path(locate_model("toy-vlm"))
OPTIONS = DecodingOptions(max_new_tokens=40, batch_size=30)
COMPARED = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the demo, with fewer images and one epoch of 15 steps."""
    root = tmp_path_factory.mktemp("demo")
    data = write_flickr30k(root / "flickr30k", train=120, val=0, test=40)
    flickr30k(source=data.annotations, out=root / "manifest.jsonl", images=data.images)
    settings: dict[str, Any] = {
        **TOY_VLM_SETTINGS,
        "output": str(root / "run"),
        "data": {"train": str(root / "manifest.jsonl")},
        "train": {**TOY_VLM_SETTINGS["train"], "epochs": 1},
    }
    train(parse_config(settings))
    return root / "run"


@pytest.fixture(scope="module")
def scores(run: Path) -> RunScores:
    return read_scores(run)


@pytest.fixture(scope="module")
def images(run: Path, scores: RunScores) -> list[Image.Image]:
    """Some evaluated images, in the order of the scores."""
    folder = run.parent / "flickr30k" / "flickr30k-images"
    return [Image.open(folder / f"{name}.jpg").convert("RGB") for name in list(scores.references)[:COMPARED]]


@pytest.fixture(scope="module")
def expected(scores: RunScores) -> list[str]:
    """The captions of the trained model in its run."""
    captions = [scores.checkpoints[-1].captions[name] for name in list(scores.references)[:COMPARED]]
    assert len(set(captions)) > COMPARED / 2
    return captions


def by_captune(path: Path, images: list[Image.Image], instruction: str | None = None) -> list[str]:
    captioner = Captioner.from_pretrained(path, dtype="float32")
    return [caption.text for caption in captioner.generate(images, instruction, OPTIONS)]


def by_transformers(model: Any, images: list[Image.Image]) -> list[str]:
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


def test_it_is_small_and_has_smolvlms_parts() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 6_000_000
    model = load_image_text_model(resolve_model("toy-vlm"), torch.device("cpu"))
    assert 1e6 < sum(parameter.numel() for parameter in model.model.parameters()) < 4e6
    assert type(model.model.model.connector).__name__ == "Idefics3Connector"
    assert model.model.config.text_config.model_type == "llama"
    end = model.processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    assert model.model.generation_config.eos_token_id == end
    assert model.conversation.target_ids("A dog runs.")[-1] == end


def test_its_processor_makes_the_pixels_of_pretraining() -> None:
    from transformers import AutoProcessor

    picture = draw_scene(plan_rows(train=1, val=0, test=0, seed=1)[0].scene)
    pixels = AutoProcessor.from_pretrained(FOLDER).image_processor([picture], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(pixels[0, 0], to_pixels(picture, 64), atol=1e-6)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_it_notes_what_is_in_new_pictures(instruction: str) -> None:
    rows = plan_rows(train=0, val=0, test=60, seed=42)
    texts = by_captune(FOLDER, [draw_scene(row.scene) for row in rows], instruction)
    noted = [set(text.split(", ")) for text in texts]
    right = [set(terse_caption(row.scene).split(", ")) for row in rows]
    recall = sum(len(a & b) for a, b in zip(noted, right, strict=True)) / sum(len(b) for b in right)
    assert recall > 0.9, texts[:5]
    assert not any(text.endswith(".") for text in texts)


def test_a_run_raises_cider_of_new_pictures(scores: RunScores) -> None:
    before, after = scores.checkpoints
    assert after.corpus["CIDEr"] > before.corpus["CIDEr"] + 1
    assert after.p_values["CIDEr"]["pretrained"] < 0.01


def test_captune_transformers_and_the_merged_model_caption_alike(
    run: Path, images: list[Image.Image], expected: list[str], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    checkpoint = run / "checkpoints" / "epoch-000"
    assert by_captune(checkpoint, images) == expected

    base = AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, checkpoint).eval()
    assert by_transformers(adapted, images) == expected
    assert by_transformers(adapted.merge_and_unload(), images) == expected

    merged = tmp_path / "merged"
    export(run, merged, merge=True, dtype=NumberFormat.FLOAT32)
    assert by_captune(merged, images) == expected
    complete = AutoModelForImageTextToText.from_pretrained(merged, dtype=torch.float32).eval()
    assert by_transformers(complete, images) == expected
