"""The original files: read strictly, refused in one sentence, and nothing in them executed."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import reference_captions
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel

from captune.errors import CaptuneError, ConfigError, WeightsError
from captune.model.official_layout import (
    BLIP2_IGNORED,
    map_keys,
    qformer_table,
    read_pth,
    recorded_alpha,
    resize_positions,
    vision_ignored,
    vision_table,
)

from .conftest import OfficialFiles, load


def refusal(files: OfficialFiles, **changes: Any) -> str:
    """What a person reads who gives these files; it is one sentence or two, on one line."""
    with pytest.raises(CaptuneError) as caught:
        load(files, **changes)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert len(message) < 420
    return message


def test_every_variant_loads_and_captions(official_files: OfficialFiles, tmp_path: Path) -> None:
    pictures = [torch.randint(0, 256, (9, 13, 3), dtype=torch.uint8).numpy() for _ in range(2)]
    vicuna = load(official_files)
    llama2 = load(official_files, qformer=None, checkpoint=official_files.checkpoint_llama2)
    v2 = load(official_files, "minigpt_v2", qformer=None, checkpoint=official_files.checkpoint_llama2)
    for model, image_tokens, side in ((vicuna, 6, 28), (llama2, 4 // 2, 28), (v2, 16 // 2, 56)):
        assert model.config.image_tokens == {6: 6, 2: 4, 8: 16}[image_tokens]
        assert model.config.vision_config.image_size == side
        assert len(reference_captions(model, pictures, max_new_tokens=3)) == 2
    assert vicuna.config.conversation == "vicuna-v0"
    assert (llama2.config.conversation, v2.config.conversation) == ("llama-2", "minigpt-v2")


def test_a_checkpoint_of_the_users_training(
    official_files: OfficialFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the original's training saves, once and twice wrapped, is read, and the wrappers are named."""
    plain = torch.load(official_files.checkpoint)["model"]
    buffers = {"Qformer.bert.embeddings.position_ids": torch.arange(4)[None]}
    buffers["llama_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    expected = load(official_files).projection.weight
    for wrappers in (0, 1, 2):
        state = {"module." * wrappers + key: tensor for key, tensor in (plain | buffers).items()}
        path = tmp_path / f"checkpoint_{wrappers}.pth"
        torch.save(
            {"model": state, "optimizer": {"state": {}}, "config": {"run": {}}, "scaler": None, "epoch": 4}, path
        )
        with caplog.at_level(logging.WARNING):
            loaded = load(official_files, checkpoint=path)
        assert torch.equal(loaded.projection.weight, expected)
        assert (f"have the prefix '{'module.' * wrappers}'" in caplog.text) == (wrappers > 0)


def test_files_of_different_models(official_files: OfficialFiles, tmp_path: Path) -> None:
    other = tmp_path / "13b.pth"
    torch.save({"model": {"llama_proj.weight": torch.zeros(40, 16), "llama_proj.bias": torch.zeros(40)}}, other)
    assert "language model 40 wide, but this one is 32 wide" in refusal(official_files, checkpoint=other)
    assert "give BLIP-2's file (blip2_pretrained_flant5xxl.pth)" in refusal(official_files, qformer=None)
    assert "omit BLIP-2's file" in refusal(official_files, checkpoint=official_files.checkpoint_llama2)
    swapped = "Were two files swapped?"
    assert swapped in refusal(official_files, checkpoint=official_files.vision)
    assert swapped in refusal(official_files, vision=official_files.qformer, qformer=official_files.vision)
    assert swapped in refusal(official_files, qformer=official_files.checkpoint)
    assert "give vision_heads" in refusal(official_files, vision_heads=5)
    assert "give qformer_heads" in refusal(official_files, qformer_heads=5)
    with pytest.raises(ConfigError, match="expected one of: minigpt4, minigpt_v2"):
        load(official_files, "minigpt5")


@pytest.mark.parametrize("which", ["vision", "qformer", "checkpoint"])
def test_a_key_too_few_or_too_many(official_files: OfficialFiles, tmp_path: Path, which: str) -> None:
    content = torch.load(getattr(official_files, which))
    state = content.get("model", content)
    key = {"vision": "blocks.1.attn.v_bias", "qformer": "ln_vision.bias", "checkpoint": "llama_proj.bias"}[which]
    path = tmp_path / f"{which}.pth"
    for changed, named in (
        ({name: tensor for name, tensor in state.items() if name != key}, key),
        (state | {"stranger.weight": torch.zeros(1)}, "stranger.weight"),
        (state | {key: 3}, f"'{key}' is a int"),
    ):
        torch.save(changed, path)
        message = refusal(official_files, **{which: path})
        assert str(path) in message
        assert named in message
    torch.save(state | {key: torch.zeros(7)}, path)
    assert str(path) in refusal(official_files, **{which: path})


@pytest.mark.parametrize("which", ["vision", "qformer", "checkpoint"])
def test_broken_files(official_files: OfficialFiles, tmp_path: Path, which: str) -> None:
    data = getattr(official_files, which).read_bytes()
    path = tmp_path / "broken.pth"
    contents = [b"", b"PK", b"hello, this is no model", pickle.dumps([1, 2]), pickle.dumps({"a": 1})]
    contents += [data[: len(data) * part // 8] for part in range(1, 8)]
    for content in contents:
        path.write_bytes(content)
        assert str(path) in refusal(official_files, **{which: path})
    torch.save(torch.zeros(3), path)
    assert "holds a Tensor" in refusal(official_files, **{which: path})
    assert "does not exist" in refusal(official_files, **{which: tmp_path / "nowhere.pth"})
    assert "is not a file" in refusal(official_files, **{which: tmp_path})


class _Code:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(official_files: OfficialFiles, tmp_path: Path, zipped: bool) -> None:
    trace, path = tmp_path / "executed", tmp_path / "evil.pth"
    state = torch.load(official_files.checkpoint)["model"]
    torch.save({"model": state, "extra": _Code(trace)}, path, _use_new_zipfile_serialization=zipped)
    for which in ("vision", "qformer", "checkpoint"):
        assert "could run code; it was not opened" in refusal(official_files, **{which: path})
    assert not trace.exists()


def test_wrong_language_models(official_files: OfficialFiles, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(official_files.llm, tmp_path / name))

    assert "not the folder of a language model" in refusal(official_files, llm=tmp_path)
    bare = copied("bare")
    (bare / "model.safetensors").unlink()
    assert "cannot be loaded" in refusal(official_files, llm=bare)
    cut = copied("cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "is cut off" in refusal(official_files, llm=cut)
    deeper = copied("deeper")
    config = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "lack 9 of its 30 tensors ('model.layers.2" in refusal(official_files, llm=deeper)
    (deeper / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    assert "hold 9 that it does not have ('model.layers.1" in refusal(official_files, llm=deeper)
    (deeper / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "x.Y"}, "model_type": "own"}))
    assert "needs remote code" in refusal(official_files, llm=deeper)
    mute = copied("mute")
    (mute / "tokenizer.model").unlink()
    assert "No tokenizer was found" in refusal(official_files, llm=mute)
    (mute / "tokenizer.model").write_bytes(b"rubbish")
    assert "not a SentencePiece vocabulary" in refusal(official_files, llm=mute)


def test_scale_of_lora(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    assert recorded_alpha({"config": {"model": {"lora_alpha": 32}}}, path) == 32.0
    assert recorded_alpha({}, path) is None
    (tmp_path / "finetune.yaml").write_text("model:\n  lora_r: 8\n  lora_alpha: 24\n")
    assert recorded_alpha({"config": {"run": {}}}, path) == 24.0
    (tmp_path / "log.txt").write_text('{"model": {"lora_alpha": 16}}')
    assert recorded_alpha({}, path) is None


def test_positions_are_resized_as_the_original_does() -> None:
    positions = torch.randn(1, 17, 8, dtype=torch.float16)
    assert resize_positions(positions, 4) is positions
    larger = resize_positions(positions, 8)
    assert larger.shape == (1, 65, 8)
    assert larger.dtype == torch.float32
    assert torch.equal(larger[:, 0], positions[:, 0].float())


def test_real_dimensions() -> None:
    """Every tensor of the real tower and Q-Former is made once, from every official key once, with equal shapes."""
    with torch.device("meta"):
        modules = Blip2VisionModel(Blip2VisionConfig()), Blip2QFormerModel(Blip2QFormerConfig())
    extras = {"post_layernorm.weight", "post_layernorm.bias"}, {"query_tokens", "ln_vision.weight", "ln_vision.bias"}
    tables = vision_table(39), qformer_table(12, 2)
    for module, table, extra in zip(modules, tables, extras, strict=True):
        shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
        assert set(shapes) ^ set(table) == extra
        used = [name for names in table.values() for name in names if name]
        assert len(used) == len(set(used))
    # The original's own counts; here the keys have a bias of zeros, and the last LayerNorm belongs to the tower.
    assert sum(p.numel() for p in modules[0].parameters()) == 985_894_528 + 39 * 1408 + 2 * 1408
    assert sum(p.numel() for p in modules[1].parameters()) == 105_137_664


def test_the_recorded_key_map(shared: Path) -> None:
    """The recorded official keys with their shapes go through the same mapping as files do."""
    recorded = json.loads((shared / "goldens" / "key_map.json").read_text())
    tower: dict[str, torch.Tensor] = {}
    bridge: dict[str, torch.Tensor] = {}
    expected: dict[str, tuple[int, ...]] = {}
    for state, entries in ((tower, recorded["vision"]), (bridge, recorded["qformer"])):
        for entry in entries:
            layers = [i for i in range(39 if state is tower else 12) if entry["count"] != 6 or i % 2 == 0]
            for i in layers if entry["count"] > 1 else [0]:
                tensor = torch.empty(entry["shape"], device="meta")
                target = bridge if entry["original"].startswith("ln_vision") else state
                target[entry["original"].replace("{i}", str(i))] = tensor
                if entry["hf_shape"] is not None:
                    expected[entry["hf"].replace("{i}", str(i))] = tuple(entry["hf_shape"])
    made = map_keys(tower, vision_table(39), vision_ignored(39), file="eva_vit_g.pth")
    made |= map_keys(bridge, qformer_table(12, 2), BLIP2_IGNORED, file="blip2.pth")
    for kind in ("weight", "bias"):
        made[f"post_layernorm.{kind}"] = made.pop(f"ln_vision.{kind}")
    expected["query_tokens"] = expected.pop("(Blip2Model.query_tokens) own parameter")
    assert {key: tuple(tensor.shape) for key, tensor in made.items()} == expected


def test_reading_is_lazy_about_nothing_else(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    assert torch.equal(read_pth(tmp_path / "a.pth")["a"], torch.ones(2))
    with pytest.raises(WeightsError, match="does not exist"):
        read_pth(tmp_path / "b.pth")
