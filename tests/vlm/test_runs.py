"""Runs that tune a transformers model: killed, in two processes, on unusual data, with wrong settings."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_text_run import PowerFailure, data_of, is_equal, run, run_processes, settings
from vision_families import save_family

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
