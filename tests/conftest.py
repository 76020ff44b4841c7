"""What all tests share: the folder of goldens beside the repository, or a reason to skip."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real captions and recorded outputs that lies beside a developer's checkout."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "captions").is_dir():
        pytest.skip("needs the folder '../shared' with recorded outputs, which is not beside this checkout")
    return folder


@dataclass(frozen=True)
class Finished:
    """What a program left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


def run_program(*command: object, cwd: Path | None = None, timeout: float = 300, **environment: str) -> Finished:
    """Run a program as a person would, with one thread, and wait for it."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **environment}
    # The programs of this environment come first: `python`, `torchrun`, `captune`.
    settings["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{settings['PATH']}"
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, env=settings, capture_output=True, text=True, timeout=timeout, check=False, encoding="utf-8"
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes in the layout of Flickr30k with their manifest: 24 to train on, 4 to validate, 12 to test."""
    from captune.data.flickr30k import flickr30k_rows
    from captune.data.importing import prepare
    from captune.data.text import Reading
    from captune.toy import write_flickr30k

    folder = tmp_path_factory.mktemp("toy") / "flickr30k"
    written = write_flickr30k(folder, train=24, val=4, test=12, seed=7)
    reading = Reading(written.annotations)
    prepare(
        flickr30k_rows(reading),
        source=str(written.annotations),
        images=written.images,
        out=folder / "manifest.jsonl",
    )
    reading.close()
    return folder
