"""Planning a run that tunes a transformers model: predicted bytes are those that are counted, and proposals fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from vision_families import save_family

from captune.cli import app, call
from captune.config import RunConfig, parse_config
from captune.data import Sample
from captune.data.manifest import write_manifest
from captune.hub import resolve_model
from captune.training import ImageTextPlanner, Measured, measure_image_text_memory
from captune.vlm import ImageTextMemory

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CPU = torch.device("cpu")
FAMILIES = ("idefics3", "llava", "paligemma", "qwen2_5_vl")
CAPTIONS = ("A dog runs over the grass and around the tree.", "A dog sits on grass.", "Two dogs.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a family once."""
    root = tmp_path_factory.mktemp("families")

    def folder(family: str) -> Path:
        path = root / family
        return path if path.exists() else save_family(family, path)

    return folder


@pytest.fixture
def make(folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., RunConfig]:
    """A run on a family with two images."""
    for number, size in enumerate([(90, 60), (40, 40)]):
        Image.new("RGB", size, (200, 40, 90)).save(tmp_path / f"{number}.png")
    samples = [Sample("0", "0.png", CAPTIONS, "train"), Sample("1", "1.png", CAPTIONS[2:], "train")]
    write_manifest(tmp_path / "manifest.jsonl", samples)

    def config(family: str, *overrides: str) -> RunConfig:
        content = {
            "output": str(tmp_path / "run"),
            "model": {"path": str(folders(family))},
            "data": {"train": str(tmp_path / "manifest.jsonl")},
        }
        return parse_config(content, overrides)

    return config


def measured(config: RunConfig, planner: ImageTextPlanner) -> dict[str, Measured]:
    return {row.name: row for row in measure_image_text_memory(config, resolve_model(config.model), planner)}


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("train.debug.shared_prefix=false",),
        ("train.lora={rank: 4, targets: [q_proj, v_proj]}", "model.dtype=bfloat16"),
        ("train.parts=[lora, projector]",),
        ("train.parts=[language_model]",),
        ("train.micro_batch_size=9",),
    ],
    ids=["packed", "plain", "bfloat16", "projector", "language model", "three images"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_predicted_bytes_are_counted_ones(
    make: Callable[..., RunConfig], family: str, overrides: tuple[str, ...]
) -> None:
    config = make(family, *overrides)
    planner = ImageTextPlanner(config, CPU)
    assert planner.from_data
    rows = measured(config, planner)
    assert planner.memory(config).traced
    assert rows["weights"].ratio == 1
    for name, row in rows.items():
        # Before a projector, some towers return two more vectors than patches: a class token and its pooled state.
        patches = name == "features of an image" and "train.parts=[lora, projector]" in overrides
        assert row.ratio == pytest.approx(1, abs=0.15 if patches else 0.05), (name, row)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "override",
    ["train.debug.shared_prefix=false", "train.gradient_checkpointing=true"],
    ids=["equal lengths", "checkpointing"],
)
def test_predicted_bytes_of_made_up_captions(make: Callable[..., RunConfig], family: str, override: str) -> None:
    """Rows of equal lengths have no mask."""
    config = make(family, override)
    planner = ImageTextPlanner(config, CPU, caption_tokens=20)
    assert measured(config, planner)["kept for the backward pass"].ratio == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("family", ["blip-2 (T5)", "florence2", "qwen3_vl"])
def test_other_families_are_planned(make: Callable[..., RunConfig], family: str) -> None:
    planner = ImageTextPlanner(make(family), CPU)
    plan = planner.plan()
    assert plan.training.total > 0
    assert plan.generation.total > 0
    memory = planner.memory(make(family))
    assert memory.traced == (family == "qwen3_vl")
    estimated = [part for part in plan.training.parts if part.name == "activations" and "estimated" in part.why]
    assert len(estimated) == (family != "qwen3_vl")


def test_the_longest_sample_and_image_are_planned(make: Callable[..., RunConfig]) -> None:
    config = make("qwen2_5_vl")
    planner = ImageTextPlanner(config, CPU)
    memory = planner.memory(config)
    assert planner.largest_size(memory) == (90, 60)
    assert sorted(map(len, planner.targets(memory))) == sorted(
        len(memory.model.conversation.target_ids(text)) for text in CAPTIONS
    )
    made_up = ImageTextPlanner(config, CPU, caption_tokens=7)
    assert not made_up.from_data
    assert [len(ids) for ids in made_up.targets(memory)] == [7] * 5


def test_quantized_weights_and_trained_values(make: Callable[..., RunConfig]) -> None:
    gpu = torch.device("cuda")
    sizes = {name: ImageTextPlanner(make("llava", f"model.quantization={name}"), gpu) for name in ("null", "nf4")}
    parts = {name: {part.name: part.bytes for part in planner.plan().training.parts} for name, planner in sizes.items()}
    # Three layers: four matrices of attention with two of four heads, three of the feed-forward part.
    matrices = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert parts["null"]["language model"] - parts["nf4"]["language model"] == pytest.approx(
        matrices * (2 - 0.5 - 1 / 64), rel=1e-2
    )
    assert parts["null"]["vision tower and projector"] == parts["nf4"]["vision tower and projector"]
    lora = 3 * 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48))
    assert parts["null"]["LoRA"] == 2 * lora
    assert parts["null"]["gradient and AdamW"] == lora * (2 + 4 + 8)


def test_feature_store(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make("qwen2_5_vl")
    planner = ImageTextPlanner(config, CPU)
    memory = planner.memory(config)
    store = planner.store()
    sizes = [memory.feature_bytes(size) for size in ((90, 60), (40, 40))]
    assert (store.image_bytes, store.images, store.used) == (sum(sizes) // 2, 2, True)
    assert store.total == 2 * store.image_bytes
    assert not planner.store(make("qwen2_5_vl", "train.feature_store=false")).used
    assert not planner.store(make("qwen2_5_vl", "train.parts=[vision_tower]")).used


def test_proposal_fits(make: Callable[..., RunConfig]) -> None:
    planner = ImageTextPlanner(make("llava", "evaluate.batch_size=1", "model.dtype=float32"), torch.device("cuda"))
    first = planner.plan().training.total
    proposal = planner.propose(first - 1)
    assert proposal is not None
    assert proposal.overrides == ("model.dtype=bfloat16",)
    assert proposal.plan.peak < first
    assert planner.propose(1_500_000_000) is None
    half = ImageTextPlanner(make("llava", "evaluate.batch_size=1"), torch.device("cuda"))
    proposal = half.propose(half.plan().training.total - 1)
    assert proposal is not None
    assert proposal.overrides[0] == "train.gradient_checkpointing=true"
    assert half.smallest().peak <= proposal.plan.peak
    large = ImageTextPlanner(make("llava", "evaluate.batch_size=64"), torch.device("cuda"))
    proposal = large.propose(large.plan().peak - 1)
    assert proposal is not None
    assert proposal.overrides == ("evaluate.batch_size=32",)


def test_fewer_images_at_once_are_proposed_first(make: Callable[..., RunConfig]) -> None:
    config = make("llava", "evaluate.batch_size=1", "train.micro_batch_size=20")
    planner = ImageTextPlanner(config, torch.device("cuda"), caption_tokens=20)
    assert len(planner.micro_batch(config)) == 4
    proposal = planner.propose(planner.plan().training.total - 1)
    assert proposal is not None
    assert proposal.overrides == ("train.micro_batch_size=10",)


def test_command(make: Callable[..., RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = make("llava")
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"model": {"path": config.model.path}, "data": {"train": str(config.data.train)}}))
    assert call(app, ["plan", str(path), "--probe"]) == 0
    shown = capsys.readouterr().out
    assert "image features are stored on disk" in shown
    assert "one row per caption" in shown
    assert "kept for the backward pass" in shown
    assert call(app, ["plan", str(path), "--gpu", "1501MB", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["feature_store"]["images"] == 2
    assert answer["plain_rows"] > 0
    assert not answer["fits"]


def test_no_weights_are_read(make: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = make("llava")
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(config.model.path).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    memory = ImageTextMemory(resolve_model(str(folder)), torch.float32, lora=None, parts=("language_model",))
    assert memory.size.trained * 4 <= memory.size.language
    assert memory.saved(1, 64, packed=True) > 0
