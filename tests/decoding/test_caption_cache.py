"""Captions are generated once: by a cache, by an evaluation that is repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import captune.evaluation.run_models
from captune.config import RunConfig
from captune.decoding import Caption, DecodingEngine, collect_captions, has_captions, stored_identities
from captune.decoding.caption_cache import cached_captions
from captune.evaluation import evaluate_checkpoints
from captune.hub import locate_model
from captune.model import MiniGPT4
from captune.model.checkpoint import save_trained
from captune.run_checkpoints import CheckpointRecord

IDENTITY = ("model", "checkpoint", "prompt", "greedy")


class Counted:
    """Returns a caption for each image, and records the requests."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []

    def __call__(self, indices: list[int]) -> list[Caption]:
        self.requests.append(indices)
        return [Caption(f"caption {index}", index + 2, index % 2 == 0) for index in indices]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


def test_what_is_known_is_not_generated(tmp_path: Path, images: list[Path]) -> None:
    generate = Counted()
    first = cached_captions(tmp_path / "cache", IDENTITY, images[:2], generate)
    assert [caption.text for caption in first] == ["caption 0", "caption 1"]
    assert cached_captions(tmp_path / "cache", IDENTITY, images[:2], generate) == first
    assert cached_captions(tmp_path / "cache", IDENTITY, images[1::-1], generate) == first[::-1]
    assert generate.requests == [[0, 1]]
    assert cached_captions(tmp_path / "cache", IDENTITY, images, generate)[:2] == first
    assert generate.requests == [[0, 1], [2]]


@pytest.mark.parametrize("index", range(4))
def test_each_part_of_the_identity_counts(tmp_path: Path, images: list[Path], index: int) -> None:
    generate = Counted()
    cached_captions(tmp_path / "cache", IDENTITY, images, generate)
    other = tuple("another" if i == index else part for i, part in enumerate(IDENTITY))
    cached_captions(tmp_path / "cache", other, images, generate)
    assert len(generate.requests) == 2


def test_images_are_identified_by_their_bytes(tmp_path: Path, images: list[Path]) -> None:
    generate = Counted()
    first = cached_captions(tmp_path / "cache", IDENTITY, images, generate)
    moved = images[0].rename(tmp_path / "moved.jpg")
    assert cached_captions(tmp_path / "cache", IDENTITY, [moved], generate) == first[:1]
    images[1].write_text("another picture")
    cached_captions(tmp_path / "cache", IDENTITY, [moved, *images[1:]], generate)
    assert generate.requests == [[0, 1, 2], [1]]
    twice = tmp_path / "twice.jpg"
    twice.write_text("new")
    again = tmp_path / "again.jpg"
    again.write_text("new")
    cached_captions(tmp_path / "cache", IDENTITY, [twice, again], generate)
    assert generate.requests[-1] == [0]


@pytest.mark.parametrize("content", ["", "no json\n", '{"identity": []}\n{"image": "x"}\n', '{"identity": []}\n[1]\n'])
def test_a_broken_file_is_written_anew(tmp_path: Path, images: list[Path], content: str) -> None:
    generate = Counted()
    expected = cached_captions(tmp_path / "cache", IDENTITY, images, generate)
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(content)
    assert cached_captions(tmp_path / "cache", IDENTITY, images, generate) == expected
    assert len(generate.requests) == 2
    assert cached_captions(tmp_path / "cache", IDENTITY, images, generate) == expected
    assert len(generate.requests) == 2


def test_an_evaluation_loads_once_and_captions_each_image_once(
    toy_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pretrained and five checkpoints on twelve images: one load, 72 captions; again: one load, none."""
    config = RunConfig.model_validate(
        {
            "output": tmp_path / "run",
            # A separate store: other tests may have encoded some of these images.
            "data": {"train": toy_data / "manifest.jsonl", "features": tmp_path / "features"},
            "evaluate": {"max_new_tokens": 6, "batch_size": 5},
        }
    )
    counts = {"loads": 0, "captions": 0, "encoded": 0}
    load, admit, encode = captune.evaluation.run_models.load_model, DecodingEngine.admit, MiniGPT4.encode_features

    def counted_load(*args: Any, **settings: Any) -> MiniGPT4:
        counts["loads"] += 1
        return load(*args, **settings)

    def counted_admit(self: DecodingEngine, requests: Any) -> None:
        counts["captions"] += len(requests)
        admit(self, requests)

    def counted_encode(self: MiniGPT4, pixels: Tensor) -> Tensor:
        counts["encoded"] += len(pixels)
        return encode(self, pixels)

    monkeypatch.setattr(captune.evaluation.run_models, "load_model", counted_load)
    monkeypatch.setattr(DecodingEngine, "admit", counted_admit)
    monkeypatch.setattr(MiniGPT4, "encode_features", counted_encode)
    model = captune.MiniGPT4.from_pretrained(locate_model("toy"))
    record = CheckpointRecord(
        "toy", model.frozen_fingerprint(), "Describe this image in detail.", "", "", "", 0, 1, 0, ""
    )
    checkpoints = []
    for epoch in range(5):
        folder = tmp_path / f"epoch-{epoch:03d}"
        folder.mkdir()
        shift = 1e-4 * (epoch + 1)
        state = {name: tensor + shift * torch.ones_like(tensor) for name, tensor in model.trained_state().items()}
        save_trained(folder, state, record.at(epoch, epoch))
        checkpoints.append(folder)
    first = evaluate_checkpoints(config, checkpoints)
    assert counts == {"loads": 1, "captions": 6 * 12, "encoded": 12}
    second = evaluate_checkpoints(config, checkpoints)
    assert counts == {"loads": 2, "captions": 6 * 12, "encoded": 12}
    assert [row.captions for row in second.checkpoints] == [row.captions for row in first.checkpoints]
    assert [row.unfinished for row in second.checkpoints] == [row.unfinished for row in first.checkpoints]


def test_captions_that_arrive_one_by_one_are_stored_at_once(tmp_path: Path) -> None:
    """A request that fails keeps what has arrived, and images without a caption are requested again."""
    files = [tmp_path / f"{name}.png" for name in "abcd"]
    for number, file in enumerate(files):
        file.write_text(str(number % 3))  # the first and the last are equal
    cache, identity, indices_of = tmp_path / "cache", ("endpoint", "prompt"), []

    def request(indices: list[int], keep: Callable[[int, Caption, Mapping[str, str]], None]) -> None:
        indices_of.append(indices)
        keep(indices[0], Caption(f"of {indices[0]}", 1, True), {"model": "other"} if indices[0] == 2 else {})
        if len(indices_of) == 1:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        collect_captions(cache, identity, files, request)
    assert has_captions(cache, identity)
    assert not has_captions(cache, ("endpoint", "another prompt"))
    (stored,) = cache.glob("*.jsonl")
    with stored.open("a") as stream:
        stream.write('{"image": "a process was kil')
    collected = collect_captions(cache, identity, files, request)
    texts = [None if caption is None else caption.text for caption in collected.captions]
    assert texts == [None, "of 1", "of 2", None]
    assert (collected.reused, collected.remarks, collected.file) == (1, [{}, {}, {"model": "other"}, {}], stored)
    collected = collect_captions(cache, identity, files, request)
    assert collected.captions[0] == Caption("of 0", 1, True)
    assert (collected.reused, collected.remarks) == (2, [{}, {}, {"model": "other"}, {}])
    assert stored_identities(cache) == [identity]
    assert stored_identities(tmp_path / "none") == []
    assert indices_of == [[1, 2, 0], [2, 0], [0]], "equal images are requested once"
    assert cached_captions(cache, identity, files, lambda indices: pytest.fail(f"generated {indices}")) == (
        collect_captions(cache, identity, files, request).captions
    )
    assert len(indices_of) == 3
