"""`captune export` and `Captioner.from_pretrained` on checkpoints of transformers models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captioner_models import save
from peft import PeftModel
from transformers import AutoModelForImageTextToText
from tuned_models import LORA, OPTIONS, load, perturb, record_of, texts, tune

from captune.captioner import Captioner, probe_images, probe_scores
from captune.cli import app, call, run
from captune.errors import WeightsError
from captune.hub import resolve_model
from captune.model import MiniGPT4, load_pretrained
from captune.vlm import ImageTextModel, export_merged, is_image_text_model, save_adapter

FAMILIES = ["llava", "qwen2_5_vl", "blip2"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of models, by family."""
    root = tmp_path_factory.mktemp("bases")
    return lambda family: root / family if (root / family).is_dir() else save(family, root / family)


def export(*arguments: object) -> int:
    return run(lambda: call(app, ["export", *map(str, arguments)]))


def captions(folder: Path, **options: Any) -> list[str]:
    captioner = Captioner.from_pretrained(folder, **options)
    return [caption.text for caption in captioner.generate(probe_images(), None, OPTIONS)]


@pytest.mark.parametrize("projector", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_and_the_merged_model_have_equal_captions(
    bases: Callable[[str], Path], family: str, projector: bool, tmp_path: Path
) -> None:
    tuned = tune(bases(family), tmp_path / "tuned", projector=projector)
    expected = texts(tuned)
    assert captions(tmp_path / "tuned") == expected
    assert Captioner.from_pretrained(tmp_path / "tuned").instruction == "What is this?"
    assert export(tmp_path / "tuned", "--out", tmp_path / "adapter") == 0
    assert captions(tmp_path / "adapter") == expected
    assert export(tmp_path / "tuned", "--out", tmp_path / "merged", "--merge") == 0
    assert captions(tmp_path / "merged") == expected
    assert Captioner.from_pretrained(tmp_path / "merged").instruction == "What is this?"
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    for name in ("generation_config.json", "tokenizer.json", "processor_config.json", "README.md"):
        assert (tmp_path / "merged" / name).is_file()
    generation = (bases(family) / "generation_config.json").read_bytes()
    assert (tmp_path / "merged" / "generation_config.json").read_bytes() == generation
    assert "library_name: transformers" in (tmp_path / "merged" / "README.md").read_text()

    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    by_transformers = ImageTextModel(plain, tuned.processor, name="merged", instruction="What is this?")
    assert texts(by_transformers) == expected
    plain = AutoModelForImageTextToText.from_pretrained(bases(family)).eval()
    PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    by_peft = ImageTextModel(plain, tuned.processor, name="peft", instruction="What is this?")
    assert texts(by_peft) == expected
    difference = probe_scores(by_transformers.backend) - probe_scores(by_peft.backend)
    assert difference.abs().max() < 1e-4


def test_complete_parts_are_exported(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = load(bases("llava"))
    tuned.train_parts(language_model=True)
    perturb(tuned)
    (tmp_path / "tuned").mkdir()
    save_adapter(tmp_path / "tuned", tuned, record_of(tuned, "language_model"))
    for options in ((), ("--merge",)):
        out = tmp_path / f"out{len(options)}"
        assert export(tmp_path / "tuned", "--out", out, *options) == 0
        assert captions(out) == texts(tuned)


def test_weights_are_rounded_once(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tune(bases("llava"), tmp_path / "tuned")
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        export_merged(tmp_path / "tuned", tmp_path / dtype, dtype=dtype)
    exact = AutoModelForImageTextToText.from_pretrained(bases("llava"), dtype=torch.bfloat16)
    rounded = AutoModelForImageTextToText.from_pretrained(tmp_path / "bfloat16")
    assert rounded.dtype == torch.bfloat16
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(rounded.get_parameter(name), exact.get_parameter(name))
    name = "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
    names = dict(rounded.named_parameters())
    frozen = [name for name in names if "vision_tower" in name]
    assert frozen
    assert all(torch.equal(names[name], exact.get_parameter(name)) for name in frozen)


def test_pixel_limits_are_part_of_the_files(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = tune(bases("qwen2_5_vl"), tmp_path / "plain")
    (tmp_path / "tuned").mkdir()
    save_adapter(tmp_path / "tuned", tuned, record_of(tuned, "lora", max_pixels=1024, min_pixels=512))
    for folder, options in ((tmp_path / "adapter", ()), (tmp_path / "merged", ("--merge",))):
        assert export(tmp_path / "tuned", "--out", folder, *options) == 0
        assert captions(folder) == captions(tmp_path / "tuned")
    limited = Captioner.from_pretrained(tmp_path / "tuned").backend
    settings = limited.inputs.processor.image_processor.to_dict()  # type: ignore[attr-defined]
    assert settings["size"] == {"longest_edge": 1024, "shortest_edge": 512}
    for folder in (tmp_path / "adapter", tmp_path / "merged"):
        backend = Captioner.from_pretrained(folder).backend
        assert backend.inputs.processor.image_processor.to_dict() == settings  # type: ignore[attr-defined]


def run_of(base: Path, folder: Path, epochs: int) -> Path:
    """A run's folder with checkpoints."""
    for epoch in range(epochs):
        tuned = load(base)
        tuned.add_lora(LORA)
        perturb(tuned)
        checkpoint = folder / "checkpoints" / f"epoch-{epoch:03d}"
        checkpoint.mkdir(parents=True)
        save_adapter(checkpoint, tuned, record_of(tuned, "lora", epoch=epoch))
    return folder


def test_an_epoch_of_a_run_is_exported(
    bases: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run_of(bases("llava"), tmp_path / "run", 2)
    assert export(folder, "--out", tmp_path / "last") == 0
    assert json.loads((tmp_path / "last" / "checkpoint.json").read_text())["epoch"] == 1
    assert export(folder, "--out", tmp_path / "first", "--epoch", 0) == 0
    assert json.loads((tmp_path / "first" / "checkpoint.json").read_text())["epoch"] == 0
    capfd.readouterr()
    assert export(folder, "--out", tmp_path / "third", "--epoch", 3) == 2
    assert "no checkpoint 3; it has epoch0, epoch1, best and last" in capfd.readouterr().err
    assert export(folder / "checkpoints" / "epoch-000", "--out", tmp_path / "third", "--epoch", 0) == 2
    assert "is one checkpoint" in capfd.readouterr().err
    assert export(tmp_path / "absent", "--out", tmp_path / "third") == 2
    assert "does not exist" in capfd.readouterr().err
    assert export(bases("llava"), "--out", tmp_path / "third") == 2
    assert "holds no checkpoints" in capfd.readouterr().err
    assert export(folder, "--out", tmp_path / "third", "--dtype", "bfloat16") == 2
    assert "add --merge" in capfd.readouterr().err
    assert not (tmp_path / "third").exists()


def test_a_folder_with_files_is_not_replaced(
    bases: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tune(bases("llava"), tmp_path / "tuned")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert export(tmp_path / "tuned", "--out", tmp_path / "out") == 2
    assert "not empty" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    assert export(tmp_path / "tuned", "--out", tmp_path / "empty") == 0
    assert (tmp_path / "empty" / "adapter_config.json").is_file()


def test_no_incomplete_folder_is_left(
    bases: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(bases("llava"), tmp_path / "tuned")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("captune.vlm.export.copy_processor", fail)
    for options in ((), ("--merge",)):
        assert export(tmp_path / "tuned", "--out", tmp_path / "out", *options) == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned"]


def test_a_base_model_that_moved_is_named(bases: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(bases("llava"), tmp_path / "base")
    tuned = tune(tmp_path / "base", tmp_path / "tuned")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(WeightsError, match=r"there is no such folder. If it has moved, .* with --base, or base= in"):
        Captioner.from_pretrained(tmp_path / "tuned")
    assert captions(tmp_path / "tuned", base=tmp_path / "moved") == texts(tuned)
    assert export(tmp_path / "tuned", "--out", tmp_path / "copy", "--base", tmp_path / "moved") == 0
    file = tmp_path / "tuned" / "adapter_config.json"
    file.write_text(file.read_text().replace(str(tmp_path / "base"), str(tmp_path / "moved")))
    assert captions(tmp_path / "tuned") == texts(tuned)
    assert export(tmp_path / "tuned", "--out", tmp_path / "merged", "--merge") == 0


def test_a_minigpt4_is_exported(tmp_path: Path, toy_checkpoint: Path) -> None:
    assert export(toy_checkpoint, "--out", tmp_path / "trained") == 0
    assert export(toy_checkpoint, "--out", tmp_path / "complete", "--merge") == 0
    expected = load_pretrained(toy_checkpoint)
    for model in (load_pretrained(tmp_path / "trained"), MiniGPT4.from_pretrained(tmp_path / "complete")):
        assert torch.equal(model.projection.weight, expected.projection.weight)


@pytest.mark.parametrize("part", ["lora", "language_model"])
def test_a_checkpoint_on_the_hub_is_loaded(
    bases: Callable[[str], Path], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = load(bases("llava"))
    if part == "lora":
        tuned.add_lora(LORA)
    else:
        tuned.train_parts(language_model=True)
    perturb(tuned)
    (tmp_path / "tuned").mkdir()
    save_adapter(tmp_path / "tuned", tuned, record_of(tuned, part))
    assert export(tmp_path / "tuned", "--out", tmp_path / "hub") == 0

    def fetch_file(name: str, file: str, **_: object) -> Path | None:
        assert name == "me/captioner"
        return path if (path := tmp_path / "hub" / file).exists() else None

    monkeypatch.setattr("captune.model.checkpoint.fetch_file", fetch_file)
    monkeypatch.setattr("captune.model.checkpoint.snapshot_download", lambda *_, **__: str(tmp_path / "hub"))
    captioner = Captioner.from_pretrained("me/captioner")
    assert [caption.text for caption in captioner.generate(probe_images(), None, OPTIONS)] == texts(tuned)


def test_a_checkpoint_is_merged_before_it_is_tuned_further(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tune(bases("llava"), tmp_path / "tuned")
    with pytest.raises(WeightsError, match="merge it before it is tuned further"):
        is_image_text_model(resolve_model(str(tmp_path / "tuned")))
    assert export(tmp_path / "tuned", "--out", tmp_path / "merged", "--merge") == 0
    assert is_image_text_model(resolve_model(str(tmp_path / "merged")))
