"""The store: exact bits back, complete shards or none, and only what changed is recomputed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from captune.config import ModelConfig
from captune.distributed import DistributedContext
from captune.errors import DataError, WeightsError
from captune.features import (
    FeatureStore,
    StoredFeatures,
    TowerIdentity,
    encode_images,
    features_of,
    tower_identity,
)
from captune.features import prepare as prepare_module
from captune.features.shards import FixedShape, open_shard, write_shard
from captune.hub import locate_model
from captune.model.loading import LANGUAGE, load_model

CPU = torch.device("cpu")
TOY = ModelConfig(path="toy")


def identity(dtype: torch.dtype = torch.float32, weights: str = "w") -> TowerIdentity:
    return TowerIdentity(weights, "s", "t", dtype, 2, 3)


def contents(count: int, seed: int = 0) -> list[bytes]:
    random = np.random.default_rng(seed)
    # Bytes of zero at the end, as a hash may have them, are part of an id.
    return [random.bytes(15) + b"\0" for _ in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_is_added_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    store, ids = FeatureStore(tmp_path, identity(dtype)), contents(10)
    features = torch.randn(10, 2, 3).to(dtype)
    store.add(ids[:6], features[:6])
    store.refresh()
    assert store.missing(ids) == [6, 7, 8, 9]
    store.add(ids[6:], features[6:])
    store.refresh()
    other = FeatureStore(tmp_path, identity(dtype))
    other.refresh()
    order = [9, 0, 3, 3, 7]
    for one in (store, other):
        read = one.read([ids[index] for index in order])
        assert torch.equal(read[[0, 1, 2, 3, 4]], features[order])
        assert torch.equal(read[1:3], features[order[1:3]])
        assert torch.equal(read.every(2, 1)[:], features[order][1::2])
    with pytest.raises(KeyError):
        store.read([bytes(16)])


def test_every_identity_has_separate_features(tmp_path: Path) -> None:
    FeatureStore(tmp_path, identity()).add(contents(1), torch.ones(1, 2, 3))
    other = FeatureStore(tmp_path, identity(weights="v"))
    other.refresh()
    assert contents(1)[0] not in other
    again = FeatureStore(tmp_path, identity())
    again.refresh()
    assert contents(1)[0] in again


def test_one_content_is_missing_once(tmp_path: Path) -> None:
    ids = contents(3)
    assert FeatureStore(tmp_path, identity()).missing([ids[0], ids[1], ids[0], ids[2], ids[1]]) == [0, 1, 3]


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_shard_that_is_cut_off_is_passed_over(tmp_path: Path, kept: int, caplog: Any) -> None:
    store, ids = FeatureStore(tmp_path, identity()), contents(4)
    store.add(ids[:2], torch.ones(2, 2, 3))
    victim = next(store.folder.glob("shard-*"))
    store.add(ids[2:], torch.ones(2, 2, 3))
    victim.write_bytes(victim.read_bytes()[:kept])
    store.refresh()
    assert store.missing(ids) == [0, 1]
    assert victim.name in caplog.text


@pytest.mark.parametrize("part", ["features", "ids"])
def test_a_shard_with_a_flipped_bit_is_passed_over(tmp_path: Path, caplog: Any, part: str) -> None:
    store, ids = FeatureStore(tmp_path, identity()), contents(4)
    store.add(ids[:2], torch.ones(2, 2, 3))
    victim = next(store.folder.glob("shard-*"))
    store.add(ids[2:], torch.ones(2, 2, 3))
    data = bytearray(victim.read_bytes())
    length = int.from_bytes(data[:8], "little")
    # Of the ids that of the second image: the first one is still found here.
    begin = json.loads(data[8 : 8 + length])[part]["data_offsets"][0] + (20 if part == "ids" else 0)
    data[8 + length + begin] ^= 0x40
    victim.write_bytes(data)
    store.refresh()
    damaged = store.damaged(store.used(ids))
    assert damaged == [victim.name]
    store.exclude(damaged)
    assert store.missing(ids) == [0, 1]
    assert f"{victim.name} is damaged" in caplog.text


def test_a_shard_of_an_older_version_has_no_hash_and_is_read(tmp_path: Path) -> None:
    store, ids = FeatureStore(tmp_path, identity()), contents(2)
    store.add(ids, torch.ones(2, 2, 3))
    shard = next(store.folder.glob("shard-*"))
    save_file(load_file(shard), shard)
    store.refresh()
    assert store.damaged(store.used(ids)) == []
    assert store.missing(ids) == []


def test_a_shard_of_other_features_is_refused(tmp_path: Path) -> None:
    path = write_shard(tmp_path, contents(2), torch.ones(2, 2, 3), FixedShape(2, 3, torch.float32))
    with pytest.raises(ValueError, match="float32"):
        open_shard(path, FixedShape(2, 3, torch.bfloat16))
    with pytest.raises(ValueError, match="shape"):
        open_shard(path, FixedShape(2, 4, torch.float32))


def test_the_layout_of_shards_and_the_names_of_stores_do_not_change(tmp_path: Path) -> None:
    """Stores of earlier versions are read as they are."""
    features = torch.arange(12, dtype=torch.float32).view(2, 2, 3)
    path = write_shard(tmp_path, [bytes(range(16)), bytes(range(16, 32))], features, FixedShape(2, 3, torch.float32))
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] == "c1ad46d88e3fe383"
    assert identity().key == "eb6f48c71d8c7574"


def test_reading_maps_and_does_not_load(tmp_path: Path) -> None:
    """Of a large shard, only the requested rows become part of this process's memory."""
    wide = TowerIdentity("w", "s", "t", torch.float32, 64, 4096)
    store, ids = FeatureStore(tmp_path, wide), contents(64)
    store.add(ids, torch.ones(64, 64, 4096))
    store.refresh()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    before = resident()
    read = store.read(ids)
    assert len(read) == 64
    assert float(read[[5]].sum()) == 64 * 4096
    assert resident() - before < 24 * 2**20


class Counting:
    """Counts the images that the towers see."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.encoded: list[int] = []
        self.loads = 0
        real = prepare_module.encode_missing
        load = prepare_module.load_model

        def encode(
            model: Any, files: Sequence[Path], ids: Any, store: Any, places: Sequence[int], **kwargs: Any
        ) -> Any:
            self.encoded.append(len(places))
            return real(model, files, ids, store, places, **kwargs)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.loads += 1
            return load(*args, **kwargs)

        patch.setattr(prepare_module, "encode_missing", encode)
        patch.setattr(prepare_module, "load_model", counted)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


@pytest.fixture
def images(toy_data: Path, tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    sources = sorted((toy_data / "flickr30k-images").iterdir())[:6]
    return [Path(shutil.copy(source, folder / source.name)) for source in sources]


def stored(images: Sequence[Path], root: Path) -> StoredFeatures:
    return features_of(TOY, images, root, DistributedContext(CPU)).require_all("images")


def test_features_are_the_towers_and_are_made_once(images: list[Path], tmp_path: Path, counting: Counting) -> None:
    features = stored(images, tmp_path / "store")
    assert torch.equal(features[:], encode_images(load_model(TOY, CPU), images))
    again = stored(list(reversed(images)), tmp_path / "store")
    assert torch.equal(again[:], features[:].flip(0))
    assert counting.encoded == [6]
    assert counting.loads == 1


def test_only_what_changed_is_made_anew(images: list[Path], tmp_path: Path, counting: Counting) -> None:
    before = stored(images, tmp_path / "store")[:]
    with Image.open(images[2]) as picture:
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(images[2])
    after = stored(images, tmp_path / "store")[:]
    assert [bool(torch.equal(a, b)) for a, b in zip(before, after, strict=True)] == [
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    renamed = images[0].rename(images[0].with_name("renamed.jpg"))
    copied = Path(shutil.copy(images[1], images[1].with_name("copied.jpg")))
    stored([renamed, copied, *images[2:]], tmp_path / "store")
    assert counting.encoded == [6, 1]


def test_an_exchanged_image_of_equal_size_and_time_is_made_anew(tmp_path: Path, counting: Counting) -> None:
    """As archives and copies leave them that set times; also in the stored digests of complete folders."""
    files = [tmp_path / f"{colour}.bmp" for colour in ("red", "blue")]
    for file in files:
        Image.new("RGB", (64, 64), file.stem).save(file)
        os.utime(file, (0, 0))
    before = stored(files, tmp_path / "store")[:]
    data = [file.read_bytes() for file in files]
    for file, other in zip(files, reversed(data), strict=True):
        file.write_bytes(other)
        os.utime(file, (0, 0))
    assert torch.equal(stored(files, tmp_path / "store")[:], before.flip(0))
    replacement = tmp_path / "new.bmp"
    Image.new("RGB", (64, 64), "green").save(replacement)
    os.utime(replacement, (0, 0))
    replacement.replace(files[0])
    assert not torch.equal(stored(files, tmp_path / "store")[:1], before[1:])
    assert counting.encoded == [2, 1]


def test_damaged_features_are_made_again(images: list[Path], tmp_path: Path, counting: Counting) -> None:
    before = stored(images, tmp_path / "store")[:]
    (victim,) = (tmp_path / "store").glob("*/shard-*")
    data = bytearray(victim.read_bytes())
    data[-30] ^= 1
    victim.write_bytes(data)
    for _ in range(2):
        assert torch.equal(stored(images, tmp_path / "store")[:], before)
    assert counting.encoded == [6, 6]
    assert victim.exists()


def test_a_changed_tower_or_setting_is_another_store(images: list[Path], tmp_path: Path, counting: Counting) -> None:
    """One value of one tensor of a tower is enough; the language model and the projection do not matter."""
    model = load_model(TOY, CPU)
    seen = {tower_identity(TOY, CPU, tmp_path).key}
    folder = tmp_path / "copy"
    with torch.no_grad():
        next(model.llm.parameters()).add_(1.0)
        model.projection.weight.add_(1.0)
    model.save_pretrained(folder)
    config = ModelConfig(path=str(folder))
    assert tower_identity(config, CPU, tmp_path).key in seen
    with torch.no_grad():
        model.vision.encoder.layers[0].mlp.fc1.weight[0, 0] += 1e-3
    model.save_pretrained(folder)
    changed = tower_identity(config, CPU, tmp_path).key
    assert changed not in seen
    half = ModelConfig(path="toy", dtype="bfloat16")
    assert tower_identity(half, CPU, tmp_path).key not in seen | {changed}
    model.config.vision_norm_eps = 1e-3
    model.save_pretrained(folder)
    assert tower_identity(config, CPU, tmp_path).key not in seen | {changed}


@pytest.mark.parametrize("shards", [1, 2])
def test_towers_in_files_of_torch(shards: int, tmp_path: Path) -> None:
    """Many towers on the hub have no safetensors file."""
    folder = Path(shutil.copytree(locate_model("toy"), tmp_path / "model"))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    files = ["pytorch_model.bin"] if shards == 1 else ["pytorch_model-1.bin", "pytorch_model-2.bin"]
    for number, file in enumerate(files):
        torch.save({name: state[name] for name in names[number::shards]}, folder / file)
    if shards > 1:
        weight_map = {name: files[index % shards] for index, name in enumerate(names)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    identity = tower_identity(ModelConfig(path=str(folder)), CPU, tmp_path)
    assert shards > 1 or identity.key == tower_identity(TOY, CPU, tmp_path).key
    for file in files:
        (folder / file).unlink()
    with pytest.raises(WeightsError, match=r"expected model\.safetensors or pytorch_model\.bin|which .* lists"):
        tower_identity(ModelConfig(path=str(folder)), CPU, tmp_path)


def test_broken_images_are_named_and_the_others_are_stored(images: list[Path], tmp_path: Path) -> None:
    images[1].write_bytes(images[1].read_bytes()[:-700])
    images[3].unlink()
    images[4].write_bytes(b"")
    os.mkfifo(images[5].with_name("pipe.jpg"))
    read = features_of(TOY, [*images, images[5].with_name("pipe.jpg")], tmp_path / "store", DistributedContext(CPU))
    assert read.readable == (0, 2, 5)
    assert [item.position for item in read.unreadable] == [1, 3, 4, 6]
    assert all(images[item.position].name in item.reason for item in read.unreadable[:3])
    assert torch.equal(read.features[:], encode_images(load_model(TOY, CPU), [images[0], images[2], images[5]]))
    with pytest.raises(DataError, match="4 of the test images cannot be read"):
        read.require_all("test images")


def test_the_language_model_alone_has_the_same_fingerprint(tmp_path: Path) -> None:

    complete, alone = load_model(TOY, CPU), load_model(TOY, CPU, parts=LANGUAGE)
    assert complete.frozen_fingerprint() == alone.frozen_fingerprint()
    assert sum(p.numel() for p in alone.parameters()) < sum(p.numel() for p in complete.parameters())
    assert Path(locate_model("toy")).is_dir()


def test_read_only_stores_are_still_read(images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of file contents is a convenience; where it cannot be written, files are read again."""
    root = tmp_path / "store"
    before = stored(images, root)[:]
    (root / "contents.sqlite").write_bytes(b"not a database")
    assert torch.equal(stored(images, root)[:], before)


def test_a_disk_without_room_is_reported_before_the_towers_run(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100})())
    monkeypatch.setattr("captune.features.prepare.load_model", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(DataError, match="more room"):
        features_of(TOY, images, tmp_path / "store", DistributedContext(CPU))


def test_features_that_are_not_numbers_are_not_stored(
    images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from captune.model import MiniGPT4

    encode = MiniGPT4.encode_features

    def overflow(model: MiniGPT4, pixels: torch.Tensor) -> torch.Tensor:
        features = encode(model, pixels)
        features[1] = torch.inf
        return features

    monkeypatch.setattr(MiniGPT4, "encode_features", overflow)
    shutil.copyfile(images[1], tmp_path / "same.jpg")
    features = features_of(TOY, [*images, tmp_path / "same.jpg"], tmp_path / "features", DistributedContext(CPU))
    assert [item.position for item in features.unreadable] == [1, len(images)]
    assert all(f"the features of '{images[1]}' are not numbers" in item.reason for item in features.unreadable)
    assert bool(features.features[:].isfinite().all())
    monkeypatch.undo()
    assert len(stored([*images, tmp_path / "same.jpg"], tmp_path / "features")) == len(images) + 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_stored_features_that_are_not_numbers_are_refused(tmp_path: Path, value: float) -> None:
    store, ids = FeatureStore(tmp_path, identity(torch.float16)), contents(4)
    features = torch.full((4, 2, 3), 6e4, dtype=torch.float16)  # their sum is no float16
    features[2, 1, 1] = value
    store.add(ids, features)
    store.refresh()
    read = store.read(ids)
    assert torch.equal(read[[0, 1, 3]], features[[0, 1, 3]])
    with pytest.raises(DataError, match=r"shard-.*holds features that are not numbers; remove this file"):
        read[1:3]
