"""EXIF rotation: images are upright everywhere, or as stored where the original's way is requested."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from captune.captioner import Captioner  # noqa: E402
from captune.config import ModelConfig, RunConfig, parse_config  # noqa: E402
from captune.data.leaks import ImageFile, find_leaks  # noqa: E402
from captune.data.manifest import Sample, write_manifest  # noqa: E402
from captune.distributed import DistributedContext  # noqa: E402
from captune.evaluation import (  # noqa: E402
    Evaluation,
    evaluation_set,
    exif_mark,
)
from captune.features import features_of, tower_identity  # noqa: E402
from captune.report.thumbnails import thumbnail_path, write_thumbnails  # noqa: E402

CPU = torch.device("cpu")
TOY = ModelConfig(path="toy")


@pytest.fixture
def photos(toy_data: Path, tmp_path: Path) -> Path:
    """An upright picture, and the same one as a camera that was held sideways stores it."""
    source = sorted((toy_data / "flickr30k-images").iterdir())[0]
    folder = tmp_path / "photos"
    folder.mkdir()
    with Image.open(source) as opened:
        upright = opened.convert("RGB").crop((0, 0, 60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(folder / "upright.png")
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "sideways.png", exif=exif)
    return folder


@pytest.fixture
def config(photos: Path, tmp_path: Path) -> RunConfig:
    rows = [Sample(name, f"{name}.png", ("A dog .",), "test") for name in ("upright", "sideways")]
    write_manifest(photos / "manifest.jsonl", rows)
    settings = [f"data.train={photos / 'manifest.jsonl'}", "data.train_split=test", f"output={tmp_path / 'run'}"]
    return parse_config({}, [*settings, f"data.features={tmp_path / 'features'}", "evaluate.max_new_tokens=4"])


def with_setting(config: RunConfig, exif_rotation: bool | None, protocol: str = "karpathy") -> RunConfig:
    data = config.data.model_copy(update={"exif_rotation": exif_rotation})
    evaluate = config.evaluate.model_copy(update={"protocol": protocol})
    return config.model_copy(update={"data": data, "evaluate": evaluate})


@pytest.mark.parametrize(
    ("setting", "protocol", "expected"),
    [
        (None, "karpathy", True),
        (None, "slides", False),
        (True, "slides", True),
        (False, "karpathy", False),
        (None, "own.yaml", True),
    ],
)
def test_the_switch(config: RunConfig, setting: bool | None, protocol: str, expected: bool) -> None:
    assert with_setting(config, setting, protocol).exif_rotation is expected


def test_features(photos: Path, config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [photos / "upright.png", photos / "sideways.png"]

    def encoded(exif_rotation: bool) -> Any:
        return features_of(
            TOY, files, tmp_path / "store", DistributedContext(CPU), exif_rotation=exif_rotation
        ).features[:]

    stored = encoded(False)
    assert not torch.allclose(stored[0], stored[1], atol=1e-3)
    with caplog.at_level(logging.WARNING):
        upright = encoded(True)
    assert torch.allclose(upright[0], upright[1], atol=1e-5)
    assert torch.allclose(upright[0], stored[0], atol=1e-5)
    assert "are encoded again" in caplog.text
    kinds = [tower_identity(TOY, CPU, tmp_path / "store", exif_rotation=turned) for turned in (True, False)]
    assert kinds[0].as_stored.key == kinds[1].key != kinds[0].key
    assert {kind.key for kind in kinds} <= {path.name for path in (tmp_path / "store").iterdir()}


def test_captions(photos: Path) -> None:
    turned, stored = (Captioner.from_pretrained("toy", exif_rotation=way) for way in (True, False))
    assert turned.fingerprint != stored.fingerprint
    for picture in (photos / "sideways.png", (photos / "sideways.png").read_bytes()):
        upright = turned.prepare(photos / "upright.png")
        assert np.array_equal(turned.prepare(picture), upright)
        assert not np.array_equal(stored.prepare(picture), upright)
    with Image.open(photos / "sideways.png") as opened:
        assert np.array_equal(turned.prepare(opened), upright)


def test_signatures_speak_of_it_where_it_makes_a_difference(photos: Path, config: RunConfig) -> None:
    assert exif_mark(config, evaluation_set(config)) == "upright"
    assert exif_mark(with_setting(config, False), evaluation_set(config)) == "stored"
    evaluation = Evaluation(config, evaluation_set(config))
    scores = evaluation._scorer.score({"upright": "a dog", "sideways": "a dog"})
    assert "|exif:upright|" in scores.signature
    Image.open(photos / "upright.png").save(photos / "sideways.png")
    eval_set = evaluation_set(config)
    assert exif_mark(config, eval_set) is None
    scores = Evaluation(config, eval_set)._scorer.score({"upright": "a dog", "sideways": "a dog"})
    assert "exif" not in scores.signature


def test_the_leak_guard_sees_the_same_picture(photos: Path) -> None:
    pytest.importorskip("imagehash")
    files = [ImageFile(name, str(photos / f"{name}.png")) for name in ("upright", "sideways")]
    report = find_leaks(files[:1], files[1:], store=None)
    assert [leak.kind for leak in report.leaks] == ["picture"]


def test_the_page_shows_what_the_model_saw(photos: Path, tmp_path: Path) -> None:
    files = {"sideways": photos / "sideways.png"}
    for exif_rotation, size in ((True, (60, 40)), (False, (40, 60))):
        run = tmp_path / f"run-{exif_rotation}"
        assert write_thumbnails(run, files, exif_rotation=exif_rotation) == 1
        with Image.open(io.BytesIO(thumbnail_path(run, "sideways").read_bytes())) as opened:
            assert opened.size == size
            assert not opened.getexif()


def test_the_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from captune import cli

    def caption(*more: str) -> dict[str, str]:
        command = ["caption", "toy", str(photos), "--out", str(tmp_path / f"out{len(more)}.jsonl"), *more]
        assert cli.run(lambda: cli.call(cli.app, command)) == 0
        lines = (tmp_path / f"out{len(more)}.jsonl").read_text().splitlines()
        return {row["id"]: row["caption"] for row in map(json.loads, lines)}

    turned, stored = caption(), caption("--no-exif-rotation")
    assert turned["sideways.png"] == turned["upright.png"] == stored["upright.png"]
    capsys.readouterr()
    command = ["caption", "toy", str(photos), "--out", str(tmp_path / "out0.jsonl"), "--no-exif-rotation"]
    assert cli.run(lambda: cli.call(cli.app, command)) == 2
    assert "choose --exif-rotation or --no-exif-rotation" in capsys.readouterr().err
