"""Features of transformers models: exact bits back for every shape, and another folder for whatever changes them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import encoding_run
import numpy as np
import pytest
import torch
from PIL import Image

from captune.config import LoraConfig, RunConfig
from captune.data import load_image
from captune.distributed import DistributedContext
from captune.errors import DataError, WeightsError
from captune.features import (
    FeatureBatch,
    FeatureStore,
    PixelSource,
    choose_store,
    feature_identity,
    forecast_bytes,
    image_features_of,
    image_pixels_of,
)
from captune.features.vlm_features import VariableShape
from captune.hub import ResolvedModel, resolve_model
from captune.training import store_features
from captune.training.vlm_model import load_image_text_for_training
from captune.vlm import ImageFeatures, ImageTextModel, load_image_text_model

CPU = torch.device("cpu")
ALONE = DistributedContext(CPU)
SIZES = [(90, 60), (50, 100), (64, 64), (200, 40), (1, 30)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, draws = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    paths = [folder / f"{index}.png" for index in range(len(SIZES))]
    for path, (width, height) in zip(paths, SIZES, strict=True):
        Image.fromarray(draws.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def load(folder: Path, **settings: Any) -> tuple[ImageTextModel, ResolvedModel]:
    source = replace(resolve_model(str(folder)), **settings)
    model = load_image_text_model(source, CPU)
    assert model.find_features()
    return model, source


def same(one: Any, other: ImageFeatures) -> bool:
    equal = [torch.equal(a, b) for a, b in zip(one.tensors, other.tensors, strict=True)]
    return one.size == other.size and all(equal)


def key(model: ImageTextModel, **settings: Any) -> str:
    return feature_identity(model, **settings).key


# One tensor of equal shape; one of a length for each size; tiles; tensors of several layers; before a Q-Former.
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl", "qwen3_vl", "instructblip"])
def test_stored_features_are_those_of_the_model(name: str, folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    model, source = load(folder_of(name))
    stored = image_features_of(model, source, files, tmp_path, ALONE)
    expected = [model.encode(load_image(files[index])) for index in stored.readable]
    assert len(stored.features) == len(expected) >= len(SIZES) - 1
    batch = stored.features[[2, 0, 2]]
    assert [same(item, expected[index]) for item, index in zip(batch, [2, 0, 2], strict=True)] == [True] * 3
    assert same(batch[[1, 0]].to(CPU)[0], expected[0])
    assert same(stored.features.every(2, 1)[:][1], expected[3])
    picture = load_image(files[0])
    assert torch.equal(model.loss(batch[1], ["A dog."]), model.loss(picture, ["A dog."]))
    again = image_features_of(
        model, source, [*reversed(files)], tmp_path, ALONE, on_progress=lambda *_: pytest.fail("encoded")
    )
    assert same(again.features[[len(expected) - 1]][0], expected[0])
    assert again.digest != stored.digest


def test_shards_hold_features_of_any_shape(tmp_path: Path) -> None:
    class Numbers:
        key, form = "numbers", VariableShape()

        def describe(self) -> dict[str, str]:
            return {}

    def features(seed: int) -> ImageFeatures:
        torch.manual_seed(seed)
        shapes: list[list[tuple[int, ...]]] = [[(2, 3), (1, 2, 2), ()], [(5, 3), (0, 2, 2), (4,)], [(1, 3), (3, 1), ()]]
        kinds = (torch.bfloat16, torch.float32, torch.int64)
        tensors = (torch.randn(shape).mul(9).to(kind) for shape, kind in zip(shapes[seed], kinds, strict=True))
        return ImageFeatures(tuple(tensors), (seed, 7))

    store: FeatureStore[FeatureBatch] = FeatureStore(tmp_path, Numbers())
    ids = [bytes([number] * 16) for number in range(3)]
    store.add(ids, FeatureBatch([features(0), features(1), features(2)]))
    store.refresh()
    read = store.read(ids)[:]
    assert [same(item, features(number)) for number, item in enumerate(read)] == [True] * 3
    assert [tensor.dtype for tensor in features(0).tensors] == [torch.bfloat16, torch.float32, torch.int64]
    assert read.nbytes == sum(features(number).nbytes for number in range(3))
    bad = ImageFeatures((features(0).tensors[0], torch.full((1, 2, 2), torch.inf), features(0).tensors[2]), (1, 1))
    store.add([bytes(16)[:15] + b"x"], FeatureBatch([bad]))
    store.refresh()
    read = store.read([ids[0], bytes(16)[:15] + b"x"])
    with pytest.raises(DataError, match=r"shard-.*holds features that are not numbers; remove this file"):
        read[:]


@pytest.mark.parametrize(
    ("part", "byte"), [("ids", 0), ("sizes", 0), ("shapes.0", 0), ("shapes.0", 7), ("values.1", 3)]
)
def test_damaged_shards_are_encoded_again(
    part: str, byte: int, folder_of: Any, files: list[Path], tmp_path: Path
) -> None:
    model, source = load(folder_of("qwen3_vl"))
    before = image_features_of(model, source, files, tmp_path, ALONE).features[:]
    (victim,) = tmp_path.glob("*/shard-*")
    data = bytearray(victim.read_bytes())
    length = int.from_bytes(data[:8], "little")
    data[8 + length + json.loads(data[8 : 8 + length])[part]["data_offsets"][0] + byte] ^= 0x41
    victim.write_bytes(data)
    after = image_features_of(model, source, files, tmp_path, ALONE).features[:]
    assert [same(item, other) for item, other in zip(after, before, strict=True)] == [True] * len(before)
    assert len(list(tmp_path.glob("*/shard-*"))) == 2


def test_whatever_changes_features_has_another_folder(folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    folder = folder_of("qwen2_vl")
    model, _ = load(folder)
    keys = [key(model), key(model, exif_rotation=False), key(load(folder, max_pixels=1024)[0])]
    keys += [key(load(folder, min_pixels=1024)[0]), key(load(folder, dtype="bfloat16")[0])]
    model.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    keys.append(key(model))
    model.processor.image_processor.__class__ = type("FastProcessor", (type(model.processor.image_processor),), {})
    keys.append(key(model))
    with torch.no_grad():
        next(p for name, p in model.model.named_parameters() if "merger" in name)[0] += 1e-3
    keys.append(key(model))
    assert len(set(keys)) == len(keys)
    assert key(load(folder)[0]) == key(load(folder)[0], instruction="Is it a dog?") == keys[0]


def test_weights_of_the_decoder_change_no_folder(folder_of: Any) -> None:
    model, _ = load(folder_of("llava"))
    before = key(model)
    model.add_lora(LoraConfig(rank=2, targets=("all-linear",)))
    with torch.no_grad():
        model.model.get_output_embeddings().weight.add_(1)
    assert key(model) == before
    names = set(model.feature_tensors())
    assert any("multi_modal_projector" in name for name in names)
    assert not any("language_model" in name or "lm_head" in name for name in names)


def test_features_of_a_prompt(folder_of: Any) -> None:
    model, _ = load(folder_of("instructblip"))
    assert model.features_depend_on_prompt
    assert key(model) != key(model, instruction="Is it a dog?")


def test_rotated_images(folder_of: Any, tmp_path: Path) -> None:
    image, exif = Image.linear_gradient("L").resize((90, 60)).convert("RGB"), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    model, source = load(folder_of("qwen2_vl"))
    for rotation, size in ((True, (60, 90)), (False, (90, 60))):
        stored = image_features_of(
            model, source, [tmp_path / "turned.png"], tmp_path / "store", ALONE, exif_rotation=rotation
        )
        assert same(stored.features[[0]][0], model.encode(load_image(tmp_path / "turned.png", exif=rotation)))
        assert stored.features[[0]][0].size == size  # type: ignore[union-attr]
        assert PixelSource([tmp_path / "turned.png"], rotation)[[0]][0].size == size
    assert len(list((tmp_path / "store").glob("*/header.json"))) == 2


@pytest.mark.parametrize("kind", ["features", "pixels"])
def test_images_that_cannot_be_read_are_named(kind: str, folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    broken, absent, long = (tmp_path / name for name in ("broken.png", "absent.png", "long.png"))
    broken.write_bytes(files[0].read_bytes()[:-40])
    (tmp_path / "copy.png").write_bytes(broken.read_bytes())
    Image.new("RGB", (900, 3)).save(long)
    listed = [files[0], broken, absent, files[1], long, tmp_path / "copy.png"]
    model, source = load(folder_of("qwen2_vl"))
    if kind == "features":
        images: Any = image_features_of(model, source, listed, tmp_path / "store", ALONE)
    else:
        images = image_pixels_of(model, listed, tmp_path / "store", ALONE)
    assert images.readable == (0, 3)
    assert [item.position for item in images.unreadable] == [1, 2, 4, 5]
    for item, word in zip(images.unreadable, ("broken.png", "absent.png", "aspect ratio", ".png"), strict=True):
        assert word in item.reason
    assert [item.size for item in images.features[:]] == SIZES[:2]
    assert [item.size for item in images.features.every(2, 1)[[0]]] == SIZES[1:2]
    with pytest.raises(DataError, match="4 of the images cannot be read"):
        images.require_all("images")


def test_features_that_are_not_numbers_are_not_stored(folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    model, source = load(folder_of("llava"))
    encode = model.encode

    def overflow(image: Image.Image, instruction: str | None = None) -> ImageFeatures:
        features = encode(image, instruction)
        return features if image.size != SIZES[1] else ImageFeatures((features.tensors[0] * torch.inf,), image.size)

    model.encode = overflow  # type: ignore[method-assign]
    stored = image_features_of(model, source, files, tmp_path, ALONE)
    assert [item.position for item in stored.unreadable] == [1]
    assert f"the features of '{files[1]}' are not numbers" in stored.unreadable[0].reason


def test_a_model_that_refuses_every_image_is_one_sentence(folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    model, source = load(folder_of("llava"))

    def fail(*arguments: Any) -> Any:
        raise KeyError("cache")

    model.encode = fail  # type: ignore[method-assign]
    with pytest.raises(WeightsError, match=r"cannot encode images with these settings \(KeyError: 'cache'\)"):
        image_features_of(model, source, files, tmp_path, ALONE)


class Free:
    """Sets the free space of all disks."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def __call__(self, count: float) -> None:
        self.patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": int(count)})())


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Free:
    return Free(monkeypatch)


def test_the_forecast_decides(folder_of: Any, files: list[Path], tmp_path: Path, free: Free) -> None:
    model, source = load(folder_of("qwen2_vl"))
    mean, total = forecast_bytes(model, files, sample=99)
    encoded = [model.encode(load_image(file)).nbytes for file in files]
    assert (mean, total) == (sum(encoded) / len(files), sum(encoded))
    assert forecast_bytes(model, files, sample=1)[0] == encoded[0]
    assert forecast_bytes(model, [tmp_path / "absent.png"]) == (0.0, 0)

    def choose(setting: Any) -> tuple[bool, str]:
        return choose_store(model, source, files, tmp_path, setting)

    free(2 * total + 1)
    assert choose("auto")[0]
    assert not choose(False)[0]
    free(2 * total)
    stored, reason = choose("auto")
    assert not stored
    assert "\n" not in reason
    assert "5 images take 0.0 GB, 0.00 MB each" in reason
    assert choose(True)[0]
    free(total - 1)
    for work in (lambda: choose(True), lambda: image_features_of(model, source, files, tmp_path, ALONE)):
        with pytest.raises(DataError, match=r"The features of 5 images take .* with more room"):
            work()
    free(1e12)
    image_features_of(model, source, files, tmp_path, ALONE)
    free(1)
    assert choose("auto")[0], "stored features need no more room"
    assert choose(True)[0]
    assert "GB" not in choose("auto")[1]


def test_features_that_cannot_be_stored(folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    source = resolve_model(str(folder_of("llava")))
    model = load_image_text_model(source, CPU)
    model.train_parts(vision_tower=True)
    with pytest.raises(WeightsError, match=r"cannot be stored; set train\.feature_store to false"):
        image_features_of(model, source, files, tmp_path, ALONE)
    assert not choose_store(model, source, files, tmp_path, "auto")[0]
    with pytest.raises(WeightsError, match="cannot be stored"):
        choose_store(model, source, files, tmp_path, True)


def test_features_before_training(folder_of: Any, toy_data: Path, tmp_path: Path) -> None:
    """`captune features` stores what training reads: LoRA in the decoder is no part of the identity."""
    config = RunConfig.model_validate(
        {
            "output": tmp_path / "run",
            "model": {"path": str(folder_of("qwen2_vl"))},
            "data": {"train": toy_data / "manifest.jsonl", "features": tmp_path / "store"},
        }
    )
    events: list[dict[str, Any]] = []
    assert store_features(config, events.append).broken == ()
    counts = {event["what"]: event["count"] for event in events if event["event"] == "features"}
    assert counts == {"training images": 24, "evaluation images": 12}
    model = load_image_text_for_training(resolve_model(config.model), config.train, None, 0, CPU)
    files = sorted((toy_data / "flickr30k-images").iterdir())
    missing: list[int] = []
    image_features_of(
        model, resolve_model(config.model), files, tmp_path / "store", ALONE,
        on_progress=lambda _, count: missing.append(count),
    )  # fmt: skip
    assert len(missing) == missing[0] == len(files) - 24 - 12


def run(folder: Path, root: Path, files: Sequence[Path], *variables: dict[str, str], stop: int = 0) -> list[Any]:
    """Processes that encode files at the same time; returns their exit codes, and what those wrote that finished."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["encoding_run"])
    outputs = [root.parent / f"{root.name}-{number}" for number in range(len(variables))]
    processes = [
        context.Process(target=encoding_run.child, args=(some, folder, root, files, out, stop))
        for some, out in zip(variables, outputs, strict=True)
    ]
    # Python 3.11 does not pass the process that they are forked from where the tests' modules are.
    with patch.dict(os.environ, PYTHONPATH=str(Path(encoding_run.__file__).parent)):
        for process in processes:
            process.start()
    for process in processes:
        process.join(120)
    return [(p.exitcode, out.read_text() if out.exists() else "") for p, out in zip(processes, outputs, strict=True)]


def test_a_killed_pass_resumes(folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    folder = folder_of("qwen2_vl")
    assert run(folder, tmp_path, files, {}, stop=3) == [(-signal.SIGKILL, "")]
    (shard,) = tmp_path.glob("*/shard-*")
    model, source = load(folder)
    counts: list[tuple[int, int]] = []
    stored = image_features_of(
        model, source, files, tmp_path, ALONE, on_progress=lambda done, missing: counts.append((done, missing))
    )
    assert counts == [(1, 3), (2, 3), (3, 3)]
    assert [same(stored.features[[n]][0], model.encode(load_image(files[n]))) for n in range(5)] == [True] * 5
    assert shard.exists()


@pytest.mark.parametrize("kind", ["ranks", "runs"])
def test_two_processes(kind: str, folder_of: Any, files: list[Path], tmp_path: Path) -> None:
    """As ranks they divide the work; as separate runs one computes and the other waits, or finds the features."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    variables = [common | {"RANK": str(n), "LOCAL_RANK": str(n)} if kind == "ranks" else {} for n in range(2)]
    first, second = run(folder_of("qwen2_vl"), tmp_path, files, *variables)
    assert first == second
    assert first[0] == 0
    assert len(list(tmp_path.glob("*/shard-*"))) == 3
    assert len(list(tmp_path.glob("*/header.json"))) == 1
