"""The pretraining of the toy: its data, its targets, and that it runs from end to end."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from captune.model import MiniGPT4  # noqa: E402
from captune.toy.scenes import sample_scenes  # noqa: E402
from tools.toy import pretrain  # noqa: E402
from tools.toy.model import build_model, write_vocabulary  # noqa: E402
from tools.toy.pretraining_data import FIELDS, FieldCodes, PretrainingConfig, PretrainingData  # noqa: E402

TINY = PretrainingConfig(scenes=40, language_steps=2, vision_steps=2, joint_steps=1)


def test_a_record_has_one_value_for_every_field_and_distinguishes_contents() -> None:
    codes = FieldCodes(16, seed=0)
    seen: dict[tuple[int, ...], object] = {}
    for scene in islice(sample_scenes(2, held_out=False), 2000):
        ids = tuple(codes.ids(scene))
        assert len(ids) == len(FIELDS)
        assert seen.setdefault(ids, scene.content) == scene.content


def test_the_loss_is_least_and_the_accuracy_one_at_the_record_itself() -> None:
    codes = FieldCodes(96, seed=0)
    ids = torch.tensor([codes.ids(scene) for scene in islice(sample_scenes(2, held_out=False), 50)])
    vectors = codes.vectors(ids)
    torch.testing.assert_close(vectors.mean(-1), torch.zeros(vectors.shape[:2]), atol=1e-5, rtol=0)
    assert codes.loss(vectors, ids) < 0.05
    assert set(codes.accuracy(vectors, ids).values()) == {1.0}
    assert codes.loss(vectors.roll(1, dims=0), ids) > 1
    assert codes.accuracy(vectors.roll(1, dims=0), ids)["color"] < 0.5


def test_as_many_queries_as_fields() -> None:
    assert build_model(300).config.query_tokens == len(FIELDS)


def test_no_image_comes_with_a_caption_and_none_is_held_out(tmp_path: Path) -> None:
    data = PretrainingData(TINY, FieldCodes(96, seed=0), stage=3)
    captions = {caption for five in data.captions for caption in five}
    _, ids, notes = data.images(30)
    assert ids.shape == (30, len(FIELDS))
    assert set(notes) <= set(data.notes)
    assert not set(notes) & captions
    assert not any(scene.held_out for scene in data._scenes)


def test_rows_of_captions_carry_the_style_and_rows_of_notes_do_not() -> None:
    model = build_model(300)
    config = PretrainingConfig(scenes=40, noise=0.0)
    style = torch.full((model.config.text_config.hidden_size,), 5.0)
    plain, _ = PretrainingData(config, FieldCodes(96, 0), 1).rows_of_text(3, 4, model, torch.zeros_like(style))
    styled, answers = PretrainingData(config, FieldCodes(96, 0), 1).rows_of_text(3, 4, model, style)
    torch.testing.assert_close(styled[:3], plain[:3])
    torch.testing.assert_close(styled[3:], plain[3:] + 5.0)
    assert [answer.endswith(".") for answer in answers] == [False] * 3 + [True] * 4


def test_the_vocabulary_is_the_same_for_the_same_captions(tmp_path: Path) -> None:
    data = PretrainingData(PretrainingConfig(scenes=300), FieldCodes(96, 0), 0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_vocabulary(tmp_path / name, [*(c for five in data.captions for c in five), *data.notes])
    files = [sorted(path.read_bytes() for path in (tmp_path / name).iterdir()) for name in ("a", "b")]
    assert files[0] == files[1]


@pytest.mark.slow
def test_the_script_runs_from_end_to_end(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "model"), "--scenes", "250", "--vision-steps", "2"]
    pretrain.main([*arguments, "--language-steps", "2", "--joint-steps", "1"])
    logging.getLogger().handlers.clear()
    model = MiniGPT4.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert model.processor is not None
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
