"""`captune demo` prepares its data and starts the training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest

import captune.toy
import captune.training
from captune.cli.demo import demo
from captune.data import read_manifest
from captune.errors import StoppedError
from captune.toy import write_flickr30k


@pytest.mark.parametrize("model", ["toy", "toy-vlm"])
def test_the_demo_prepares_its_data_and_trains(
    model: Literal["toy", "toy-vlm"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Any, *args: Any, **options: Any) -> None:
        assert config.model.path == model
        assert len(read_manifest(config.data.train)) == 7
        raise StoppedError("stopped by the test", 15)

    monkeypatch.setattr(captune.toy, "write_flickr30k", partial(write_flickr30k, train=3, val=2, test=2))
    monkeypatch.setattr(captune.training, "train", train)
    with pytest.raises(StoppedError, match="stopped by the test"):
        demo(tmp_path / "demo", model=model)
