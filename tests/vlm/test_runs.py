"""Runs that tune a transformers model: killed, in two processes, on unusual data, with wrong settings."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, CLIPConfig, LlamaConfig
from vision_families import save_family
from vlm_run import (
    PowerFailure,
    cards,
    data_of,
    is_equal,
    losses_of,
    run,
    run_processes,
    settings,
    weights_of,
    write_rows,
)

from captune import hub
from captune.config import RunConfig, commented_yaml
from captune.data import resolve_image
from captune.distributed import DistributedContext
from captune.errors import InputError, WeightsError
from captune.evaluation import evaluate_checkpoints, training_images
from captune.features import PixelSource, image_features_of
from captune.hub import resolve_model
from captune.report import read_scores
from captune.run_checkpoints import ADAPTER, read_record
from captune.training.trainer import TrainStep
from captune.training.vlm_loss import ImageTextObjective, images_at_once
from captune.vlm import Computation, export_tuned, load_image_text_model
from captune.weights import adapter_tensors, load_adapter_tensors

# Processors of the library make an array of a tensor in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            folders[name] = save_family(name, tmp_path_factory.mktemp("family"))
        return folders[name]

    return folder_of


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return data_of(tmp_path_factory.mktemp("data") / "cards")


# Features in packed rows, features in plain rows, pixels in packed rows.
@pytest.mark.parametrize(
    ("name", "train", "expected"),
    [
        ("qwen2_5_vl", {}, (True, True)),
        ("florence2", {}, (True, False)),
        ("llava", {"feature_store": False}, (False, True)),
    ],
)
def test_a_killed_run_resumes_with_equal_bits(
    name: str,
    train: dict[str, Any],
    expected: tuple[bool, bool],
    family: Callable[[str], Path],
    manifest: Path,
    tmp_path: Path,
) -> None:
    undisturbed = settings(family(name), manifest, tmp_path / "undisturbed", train=train)
    moments = run(undisturbed)
    computation = json.loads((undisturbed.output / "computation.json").read_text())
    assert (computation["features"], computation["packed"]) == expected
    # While images are read, while the first captions are scored, while a state is saved, while a checkpoint is.
    fatal = [
        moments.index("features") + 3,
        moments.index("evaluation") + 1,
        moments.index("progress") + 8,
        moments.index("checkpoint"),
    ]
    for moment in fatal if name == "qwen2_5_vl" else fatal[2:3]:
        ended = settings(family(name), manifest, tmp_path / f"ended-{moment}", train=train)
        with pytest.raises(PowerFailure):
            run(ended, moment)
        run(ended)
        assert is_equal(ended.output, undisturbed.output)
    assert not run(undisturbed), "a finished run is not repeated"


def test_sigkill_while_a_state_is_saved(family: Callable[[str], Path], manifest: Path, tmp_path: Path) -> None:
    configs = [settings(family("qwen2_5_vl"), manifest, tmp_path / name) for name in ("undisturbed", "killed")]
    moment = run(configs[0]).index("progress") + 9
    assert run_processes(configs[1], fatal=moment)[0][0] == -signal.SIGKILL
    run(configs[1])
    assert is_equal(configs[1].output, configs[0].output)


def special_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows with images of unusual sizes and formats, and unusual captions."""
    rows = cards(folder, train=12)
    noise = Image.effect_noise((70, 50), 90)
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.convert("RGB").save(folder / "turned.jpg", exif=turned)
    noise.resize((1, 40)).convert("RGB").save(folder / "narrow.png")
    noise.resize((1, 1)).convert("RGB").save(folder / "dot.png")
    noise.convert("P").save(folder / "palette.png")
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.linspace(0, 65535, 3500).reshape(50, 70).astype(np.uint16)).save(folder / "deep.png")
    noise.resize((400, 90)).convert("RGB").save(folder / "wide.png")
    names = ["turned.jpg", "narrow.png", "dot.png", "palette.png", "cmyk.jpg", "deep.png", "wide.png"]
    captions = [["It is turned.", "Noise <|im_end|> here."], ["A line."], ["A dot."], ["Grey."], ["Ink.", "Ink!"]]
    for name, texts in zip(names, [*captions, ["Sixteen bits of grey"], ["A wide noise."]], strict=True):
        rows.append({"id": name, "image": name, "captions": texts, "split": "train"})
    (folder / "broken.png").write_bytes((folder / "wide.png").read_bytes()[:300])
    noise.resize((900, 3)).convert("RGB").save(folder / "strip.png")
    # The longest captions, so that the first images that are tried are the broken one and the strip.
    rows.append({"id": "strip", "image": "strip.png", "captions": ["A very long strip " * 4], "split": "train"})
    rows.append({"id": "broken", "image": "broken.png", "captions": ["A very long caption " * 4], "split": "train"})
    return rows


@pytest.mark.parametrize(
    ("name", "train"),
    [("qwen2_5_vl", {}), ("internvl", {"instructions": ["What is it?", "Say <|im_end|> now."]}), ("florence2", {})],
)
@pytest.mark.parametrize("store", ["auto", False])
def test_unusual_images_and_captions(
    name: str, train: dict[str, Any], store: Any, family: Callable[[str], Path], tmp_path: Path
) -> None:
    manifest = write_rows(tmp_path, special_rows(tmp_path))
    config = settings(family(name), manifest, tmp_path / "run", train={"epochs": 1, "feature_store": store, **train})
    run(config)
    quarantined = json.loads((config.output / "quarantine.json").read_text())
    assert "broken.png" in quarantined["broken"]
    # Qwen's processor refuses an aspect ratio of 300.
    assert set(quarantined) == ({"broken", "strip"} if name == "qwen2_5_vl" else {"broken"})
    assert all(np.isfinite(loss) for _, loss in losses_of(config.output))


def refusal(config: RunConfig, kind: type[Exception] = InputError) -> str:
    """The sentence with which a run is refused, before anything is written."""

    def files() -> list[Path]:
        return sorted(path for path in config.output.rglob("*") if path.name != ".captune.lock")

    before = files()
    with pytest.raises(kind) as caught:
        run(config)
    assert files() == before
    return str(caught.value)


def test_captions_that_are_too_long_are_named(family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = cards(tmp_path)
    rows[1]["captions"] = ["A card.", "word " * 500]
    folder = tmp_path / "model"
    shutil.copytree(family("llava"), folder)
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(content))
    config = settings(folder, write_rows(tmp_path, rows), tmp_path / "run")
    assert "Image 'card-1': The caption 'word word" in refusal(config)
    # Those of an image are longer together, and fit one by one.
    rows[1]["captions"] = ["word " * 40, "name " * 40, "dogs " * 40]
    manifest = write_rows(tmp_path, rows)
    run(settings(folder, manifest, tmp_path / "fits", train={"epochs": 1}))
    joined = settings(folder, manifest, tmp_path / "run", train={"caption_targets": "joined"})
    assert "Image 'card-1': The caption 'word word" in refusal(joined)


def test_rows_without_an_image_are_refused(family: Callable[[str], Path], tmp_path: Path) -> None:
    rows = cards(tmp_path)
    del rows[2]["image"]
    config = settings(family("llava"), write_rows(tmp_path, rows), tmp_path / "run")
    assert "manifest.jsonl:3: the key 'image' is missing." in refusal(config)


@pytest.mark.parametrize("sections", [{"train": {"instructions": [""]}}, {"model": {"instruction": ""}}])
def test_empty_instructions_are_refused(sections: dict[str, Any], manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instruction.* is ''"):
        settings(tmp_path, manifest, tmp_path / "run", **sections)


def changed_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_run_resumes_with_the_same_model_only(family: Callable[[str], Path], manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(family("qwen2_5_vl"), folder)
    config = settings(folder, manifest, tmp_path / "run")
    with pytest.raises(PowerFailure):
        run(config, run_moment(config, family("qwen2_5_vl"), manifest))
    limited = config.model_copy(update={"model": config.model.model_copy(update={"max_pixels": 1600})})
    assert "already holds a run with another configuration" in refusal(limited)

    images = folder / "preprocessor_config.json"
    kept = images.read_text()
    changed_json(images, image_mean=[0.1, 0.1, 0.1])
    assert "The settings of the image processor of" in refusal(config)
    images.write_text(kept)

    template = folder / "chat_template.jinja"
    kept = template.read_text()
    template.write_text(kept.replace("user", "human") if "user" in kept else "Now: " + kept)
    assert "began with the prompt" in refusal(config)
    template.write_text(kept)

    weights = folder / "model.safetensors"
    kept_bytes = weights.read_bytes()
    with safe_open(weights, "pt") as stored:
        metadata = stored.metadata()
    state = load_file(weights)
    save_file({name: tensor * 1.5 for name, tensor in state.items()}, weights, metadata=metadata)
    assert "The frozen weights of" in refusal(config)
    weights.write_bytes(kept_bytes)
    run(config)


def run_moment(config: RunConfig, model: Path, manifest: Path) -> int:
    """The moment after the first state of such a run."""
    other = settings(model, manifest, config.output.parent / "other")
    return run(other).index("checkpoint")


def of_another_kind(folder: Path, what: str, family: Callable[[str], Path]) -> None:
    """Write a model that cannot be tuned."""
    if what in ("text", "clip"):
        sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        sizes["num_attention_heads"] = 2
        if what == "clip":
            config: Any = CLIPConfig(text_config=sizes, vision_config=sizes, projection_dim=8)
        else:
            config = LlamaConfig(vocab_size=32, **sizes)
        AutoModel.from_config(config).save_pretrained(folder)
        return
    shutil.copytree(family("llava"), folder, dirs_exist_ok=True)
    if what == "shards":
        model = AutoModelForImageTextToText.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="40KB")
        shards = sorted(folder.glob("model-*.safetensors"))
        assert len(shards) > 1
        for shard in shards[::2]:
            shard.unlink()


@pytest.mark.parametrize(
    ("what", "train", "sentence"),
    [
        ("text", {}, "llama"),
        ("clip", {}, "clip"),
        ("shards", {}, "model-0"),
        ("llava", {"lora": {"targets": ["q_porj"]}}, "LoRA finds no layers q_porj in the decoder"),
        ("llava", {"sharding": "fsdp"}, "train.sharding is fsdp, which supports MiniGPT-4 only"),
    ],
)
def test_models_that_cannot_be_tuned(
    what: str,
    train: dict[str, Any],
    sentence: str,
    family: Callable[[str], Path],
    manifest: Path,
    tmp_path: Path,
) -> None:
    of_another_kind(tmp_path / "model", what, family)
    assert sentence in refusal(settings(tmp_path / "model", manifest, tmp_path / "run", train=train))


def test_pixel_limits_without_effect_are_refused(family: Callable[[str], Path], manifest: Path, tmp_path: Path) -> None:
    config = settings(family("llava"), manifest, tmp_path / "run", model={"max_pixels": 900})
    assert "has no pixel limits: its size is shortest_edge 32; set model.max_pixels to null" in refusal(config)


def test_a_library_that_fails_is_one_sentence(family: Callable[[str], Path], manifest: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    # bitsandbytes multiplies no matrices with so few rows on a CPU.
    config = settings(family("llava"), manifest, tmp_path / "run", model={"quantization": "nf4"})
    assert "cannot be trained with these settings on this machine: a library fails (" in refusal(config)


def test_other_runs_are_not_overwritten(family: Callable[[str], Path], manifest: Path, tmp_path: Path) -> None:
    config = settings(family("llava"), manifest, tmp_path / "run")
    config.output.mkdir()
    other = config.model_copy(update={"model": config.model.model_copy(update={"path": "toy"})})
    (config.output / "config.yaml").write_text(commented_yaml(other))
    assert "already holds a run with another configuration" in refusal(config)


@pytest.mark.parametrize("full", ["shard-", "step-", "epoch-"])
def test_a_full_disk_leaves_nothing_half_written(
    full: str, family: Callable[[str], Path], manifest: Path, tmp_path: Path
) -> None:
    config = settings(family("llava"), manifest, tmp_path / "run")
    rename = os.rename if full != "shard-" else os.replace

    def fail(source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        if Path(target).name.startswith(full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        rename(source, target, *args, **kwargs)

    with patch.object(os, rename.__name__, fail), pytest.raises(OSError, match="No space"):
        run(config)
    assert not [path for path in tmp_path.rglob("*.partial") if "manifest" not in path.name]
    assert not list(tmp_path.rglob(f"{full}*"))
    run(config)


def test_two_processes_have_the_curve_of_one(family: Callable[[str], Path], manifest: Path, tmp_path: Path) -> None:
    for store in ("auto", False):
        train = {"feature_store": store, "epochs": 1}
        one, two = (settings(family("qwen2_5_vl"), manifest, tmp_path / f"{n}-{store}", train=train) for n in "12")
        run(one)
        assert [code for code, _ in run_processes(two, 2)] == [0, 0]
        losses, others = losses_of(one.output), losses_of(two.output)
        assert [loss for _, loss in others] == pytest.approx([loss for _, loss in losses], rel=1e-5)
        weights, expected = weights_of(two.output, 0), weights_of(one.output, 0)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)


def test_a_run_starts_from_a_checkpoint_of_another_run(
    family: Callable[[str], Path], manifest: Path, tmp_path: Path
) -> None:
    first = settings(family("qwen2_5_vl"), manifest, tmp_path / "first")
    run(first)
    name = str(first.output / "checkpoints" / "epoch-001")
    train = {"start": name, "epochs": 1, "learning_rate": 0.02, "warmup_steps": 0}
    second = settings(family("qwen2_5_vl"), manifest, tmp_path / "second", train=train, seed=7)
    run(second)
    rows = read_scores(second.output).checkpoints
    assert [row.name for row in rows] == ["start", "epoch0"]
    assert rows[0].captions == read_scores(first.output).checkpoints[-1].captions

    users = (second.feature_folder / ".captune-runs").read_text()
    assert users == json.dumps(str(second.output)) + "\n"

    # By hand: the base model with the adapter of the checkpoint, and a new optimizer.
    expected = train_by_hand(second, Path(name))
    tensors = load_file(second.output / "checkpoints" / "epoch-000" / "adapter_model.safetensors")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in tensors)

    # The start checkpoint is evaluated as the first row again, without the earlier run.
    shutil.rmtree(first.output)
    evaluated = second.model_copy(update={"output": tmp_path / "evaluated"})
    again = evaluate_checkpoints(evaluated, [second.output / "checkpoints" / "epoch-000"]).checkpoints
    assert [(row.name, row.captions) for row in again] == [(row.name, row.captions) for row in rows]


def test_two_processes_start_from_a_checkpoint_stop_early_and_continue(
    family: Callable[[str], Path], manifest: Path, tmp_path: Path
) -> None:
    first = settings(family("qwen2_5_vl"), manifest, tmp_path / "first", train={"epochs": 1})
    run(first)
    # Scores of two images do not differ significantly.
    train = {"start": str(first.output), "epochs": 4, "early_stop": 1, "keep": 1}
    second = settings(family("qwen2_5_vl"), manifest, tmp_path / "second", train=train)
    assert [code for code, _ in run_processes(second, 2)] == [0, 0]
    assert [row.name for row in read_scores(second.output).checkpoints] == ["start", "epoch0"]
    assert not run(second), "the run is finished"
    longer = settings(
        family("qwen2_5_vl"), manifest, second.output, train={**train, "epochs": 3, "early_stop": None, "keep": None}
    )
    with pytest.raises(InputError, match="more epochs continue a run"):
        run(longer)
    longer = longer.model_copy(update={"train": longer.train.model_copy(update={"epochs": 5})})
    assert [code for code, _ in run_processes(longer, 2)] == [0, 0]
    assert len(read_scores(second.output).checkpoints) == 6
    assert (second.output / "checkpoints" / "best").is_dir()


def train_by_hand(config: RunConfig, checkpoint: Path, *, projector: bool = False) -> dict[str, torch.Tensor]:
    """The adapter after training a model that was loaded with a checkpoint."""
    lora = config.train.lora
    assert lora is not None
    model = load_image_text_model(resolve_model(config.model), torch.device("cpu"))
    model.add_lora(lora, projector=projector, seed=3)
    load_adapter_tensors(model.adapter, load_file(checkpoint / ADAPTER), "", keeps_other_modules=projector)
    images = training_images(config)
    files = [resolve_image(config.data.train, image.image) for image in images]
    dist = DistributedContext(torch.device("cpu"))
    stored = json.loads((config.output / "computation.json").read_text())
    computation = Computation(stored["features"], stored["packed"], ())
    features: Any = PixelSource(files, config.exif_rotation)
    if computation.features:
        model.find_features()
        root = config.feature_folder
        features = image_features_of(model, resolve_model(config.model), files, root, dist, exif_rotation=True).features
    objective = ImageTextObjective(model, computation, images_at_once(config.train, 3))
    step = TrainStep(model, objective, images, features, config.train, seed=config.seed, dist=dist)
    model.train()
    losses = [step.run(number).loss for number in range(step.samples.total_steps)]
    assert losses == [loss for _, loss in losses_of(config.output)]
    return adapter_tensors(model.adapter)


def test_a_run_that_trains_more_parts_than_its_start_equals_a_continuation_by_hand(
    family: Callable[[str], Path], manifest: Path, tmp_path: Path
) -> None:
    first = settings(family("qwen2_5_vl"), manifest, tmp_path / "first", train={"epochs": 1})
    run(first)
    checkpoint = first.output / "checkpoints" / "epoch-000"
    train = {"start": str(checkpoint), "epochs": 1, "warmup_steps": 0, "parts": ["lora", "projector"]}
    second = settings(family("qwen2_5_vl"), manifest, tmp_path / "second", train=train, seed=7)
    run(second)
    rows = read_scores(second.output).checkpoints
    assert [row.name for row in rows] == ["start", "epoch0"]
    assert rows[0].captions == read_scores(first.output).checkpoints[-1].captions

    expected = train_by_hand(second, checkpoint, projector=True)
    tensors = weights_of(second.output, 0)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], expected[key]) for key in tensors)

    # The start has the earlier LoRA and the base model's projector, and both are scored with one load of the model.
    start = load_file(second.output / "checkpoints" / "start" / "adapter_model.safetensors")
    earlier, base = weights_of(first.output, 0), load_image_text_model(resolve_model(first.model), torch.device("cpu"))
    projector = base.model.get_submodule(base.projector_path).state_dict()
    assert {name for name in start if ".lora_" in name} == earlier.keys()
    assert all(torch.equal(start[name], earlier[name]) for name in earlier)
    others = {name.rpartition(f"{base.projector_path}.")[2]: start[name] for name in start.keys() - earlier.keys()}
    assert others.keys() == projector.keys()
    assert all(torch.equal(others[name], projector[name]) for name in others)
    shutil.rmtree(first.output)
    evaluated = second.model_copy(update={"output": tmp_path / "evaluated"})
    again = evaluate_checkpoints(evaluated, [second.output / "checkpoints" / "epoch-000"]).checkpoints
    assert [(row.name, row.captions) for row in again] == [(row.name, row.captions) for row in rows]


@pytest.mark.parametrize("files", ["checkpoint", "adapter"])
def test_a_run_starts_from_a_repository_of_the_hub(
    files: str, family: Callable[[str], Path], manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pushed checkpoint, and an adapter of peft without captune's record, equal a start from the folder."""
    first = settings(family("qwen2_5_vl"), manifest, tmp_path / "first", train={"epochs": 1})
    run(first)
    repository = tmp_path / "hub"
    export_tuned(first.output / "checkpoints" / "epoch-000", repository_folder(repository))
    if files == "adapter":
        (repository / "checkpoint.json").unlink()
    requested = []

    def download(name: str, **options: Any) -> str:
        requested.append((name, options["allow_patterns"]))
        return str(repository)

    monkeypatch.setattr(hub, "detect_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    train = {"start": "user/tuned", "epochs": 1, "warmup_steps": 0}
    second = settings(family("qwen2_5_vl"), manifest, tmp_path / "second", train=train)
    run(second)
    assert requested[0] == ("user/tuned", ["*.json", "trained.safetensors", "adapter_model.safetensors"])
    local = settings(family("qwen2_5_vl"), manifest, tmp_path / "local", train={**train, "start": str(first.output)})
    run(local)
    assert losses_of(second.output) == losses_of(local.output)
    expected = weights_of(local.output, 0)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in weights_of(second.output, 0).items())
    ancestors = read_record(second.output / "checkpoints" / "epoch-000").ancestors
    assert [ancestor["checkpoint"] for ancestor in ancestors] == ["user/tuned"]
    records = [read_record(config.output / "checkpoints" / "start") for config in (second, local)]
    assert records[0].frozen == records[1].frozen
    # Evaluation and further epochs need the copy only.
    shutil.rmtree(repository)
    more = second.model_copy(update={"train": second.train.model_copy(update={"epochs": 2})})
    run(more)
    assert [row.name for row in read_scores(second.output).checkpoints] == ["start", "epoch0", "epoch1"]


def repository_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_repositories_that_are_no_start_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "detect_offline", lambda: False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path))
    with pytest.raises(WeightsError, match=r"user/model on the Hugging Face hub has neither .* is set as model\.path"):
        hub.locate_checkpoint("user/model")

    def fail(name: str, **_: Any) -> str:
        raise OSError("404 Client Error\nRepository Not Found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(
        WeightsError, match=r"no folder user/none, and the .* hub does not provide it: 404 Client Error"
    ):
        hub.locate_checkpoint("user/none")


def test_complete_parts_are_added_to_those_of_the_start(
    family: Callable[[str], Path], manifest: Path, tmp_path: Path
) -> None:
    train = {"epochs": 1, "lora": None, "parts": ["language_model"], "learning_rate": 1e-3}
    first = settings(family("qwen2_5_vl"), manifest, tmp_path / "first", train=train)
    run(first)
    earlier = weights_of(first.output, 0)
    train |= {"start": str(first.output), "parts": ["language_model", "vision_tower"]}
    second = settings(family("qwen2_5_vl"), manifest, tmp_path / "second", train=train)
    run(second)
    start = load_file(second.output / "checkpoints" / "start" / "trained.safetensors")
    assert earlier.keys() < start.keys()
    assert all(torch.equal(start[name], earlier[name]) for name in earlier)
    assert weights_of(second.output, 0).keys() == start.keys()
    rows = read_scores(second.output).checkpoints
    assert rows[0].captions == read_scores(first.output).checkpoints[-1].captions


@pytest.mark.parametrize(
    ("before", "train", "sentence"),
    [
        (
            {},
            {"lora": {"rank": 8, "alpha": 8, "targets": ["all-linear"]}},
            "rank is 8, in the checkpoint 4. Set train",
        ),
        (
            {"parts": ["lora", "projector"]},
            {},
            "has trained [lora, projector]; without projector its weights would be lost, so set train.parts to these.",
        ),
        (
            {},
            {"parts": ["language_model"], "lora": None},
            "has trained [lora]; set train.parts to these, or merge the checkpoint (captune export ",
        ),
    ],
)
def test_trained_parts_that_do_not_continue_those_of_the_start_are_refused(
    before: dict[str, Any],
    train: dict[str, Any],
    sentence: str,
    family: Callable[[str], Path],
    manifest: Path,
    tmp_path: Path,
) -> None:
    first = settings(family("qwen2_5_vl"), manifest, tmp_path / "first", train={"epochs": 1, **before})
    run(first)
    second = settings(family("qwen2_5_vl"), manifest, tmp_path / "second", train={"start": str(first.output), **train})
    with pytest.raises(InputError) as refused:
        run(second)
    assert sentence in str(refused.value)
    assert not (second.output / "config.yaml").exists()
