"""The shipped configurations of models of the hub, tried with tiny models of the same families."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm
from vision_families import save_family

from captune.config import load_config
from captune.hub import is_hub_id, resolve_model
from captune.vlm import weightless_model

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FAMILIES = {
    "blip2_opt_2_7b": "blip-2 (OPT)",
    "gemma3_4b": "gemma3",
    "paligemma2_3b": "paligemma",
    "qwen2_5_vl_3b": "qwen2_5_vl",
    "qwen3_vl_2b": "qwen3_vl",
    "smolvlm2_2b": "smolvlm",
}


def test_every_configuration_of_a_hub_model_is_tried(repository: Path) -> None:
    paths = {path.stem: load_config(path).model.path for path in (repository / "train_configs").glob("*.yaml")}
    assert {name for name, path in paths.items() if "/" in path and is_hub_id(path)} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_comments_name_license_and_memory(repository: Path, name: str) -> None:
    path = repository / "train_configs" / f"{name}.yaml"
    text = path.read_text()
    assert "# License: " in text
    assert "# Memory, an estimate for " in text
    assert f"captune train train_configs/{name}.yaml" in text
    assert f"[{name}.yaml](../train_configs/{name}.yaml)" in (repository / "docs" / "tuning.md").read_text()
    config = load_config(path)
    assert config.output == Path("runs", name)
    assert 1e-4 <= config.train.learning_rate <= 2e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_the_family_accepts_the_settings(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Pixel limits are those of its processor, and captions follow its prompt."""
    monkeypatch.setattr(processing_smolvlm, "num2words", str, raising=False)
    folder = save_family(FAMILIES[name], tmp_path)
    config = load_config(repository / "train_configs" / f"{name}.yaml", [f"model.path={folder}"])
    model = weightless_model(resolve_model(config.model), instruction=config.model.instruction)
    image, caption = Image.new("RGB", (40, 30)), "Two dogs."
    model.conversation.check(image, caption)
    prompt = model.backend.prompt_text(config.model.instruction)
    assert config.model.instruction in str(prompt)
    targets = model.conversation.target_ids(caption)
    assert model.processor.tokenizer.decode(targets, skip_special_tokens=True).strip() == caption
