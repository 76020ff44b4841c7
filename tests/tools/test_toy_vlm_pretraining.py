"""The pretraining of `toy-vlm`: it begins with the toy's parts, and runs from end to end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from captune.captioner import Captioner  # noqa: E402
from captune.hub import locate_model  # noqa: E402
from captune.model import MiniGPT4  # noqa: E402
from captune.toy import draw_scene, sample_scenes  # noqa: E402
from tools.toy import pretrain_vlm  # noqa: E402
from tools.toy.vlm_model import build_processor, build_vlm  # noqa: E402


def test_it_begins_with_the_language_model_and_the_tower_of_the_toy() -> None:
    torch.manual_seed(0)
    processor = build_processor()
    model = build_vlm(processor)
    toy = MiniGPT4.from_pretrained(locate_model("toy"), dtype=torch.float32)
    ids = torch.tensor([[5, 300, 301, 302]])
    known = toy.config.text_config.vocab_size
    with torch.no_grad():
        logits = model(input_ids=ids).logits[..., :known]
        torch.testing.assert_close(logits, toy.llm(input_ids=ids).logits)
        layer, original = model.model.vision_model.encoder.layers[0], toy.vision.encoder.layers[0]
        states = torch.randn(2, 64, 96)
        torch.testing.assert_close(layer(states, None), original(states))


def test_the_script_runs_from_end_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    pretrain_vlm.main(["--out", str(folder), "--scenes", "50", "--vision-steps", "1", "--joint-steps", "1"])
    logging.getLogger().handlers.clear()
    picture = draw_scene(next(sample_scenes(3, held_out=True)))
    assert Captioner.from_pretrained(folder)([picture])
