"""A captioner without a model, for tests of the code around it: its caption is a hash of the pixels."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captune.bulk import Job, JobIdentity, read_inputs, run_shards
from captune.bulk.work import Captions
from captune.data.images import decode_image, load_image

IDENTITY = JobIdentity("words", "0", None, "greedy,max40")


class _Options:
    batch_size = 4


class _Caption:
    def __init__(self, text: str) -> None:
        self.text = text
        self.stopped = len(text) % 2 == 0
        self.thinking = "none"


class Words:
    """Looks like a `Captioner`, and imports no torch."""

    instruction = None
    name = "words"
    fingerprint = "0"

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.captioned: list[str] = []

    def prepare(self, picture: Any, name: str = "") -> Image.Image:
        if isinstance(picture, bytes):
            return decode_image(io.BytesIO(picture), name)
        return load_image(picture)

    def generate(self, prepared: Sequence[Any], instruction: Any, options: Any, *, keys: Sequence[str]) -> list[Any]:
        time.sleep(self.delay)
        texts = [
            hashlib.sha256(image.tobytes()).hexdigest()[:12] + f" of {key}"
            for image, key in zip(prepared, keys, strict=True)
        ]
        self.captioned += keys
        return [_Caption(text) for text in texts]


def captions(captioner: Any = None) -> Captions:
    return Captions(captioner or Words(), _Options(), workers=2)  # type: ignore[arg-type]


def draw(path: Path, count: int, ending: str = ".png") -> list[Path]:
    path.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(count)
    files = [path / f"{number:04d}{ending}" for number in range(count)]
    for file in files:
        Image.fromarray(colours.integers(0, 255, (5, 7, 3), dtype=np.uint8)).save(file)
    return files


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def files_of(folder: Path) -> dict[str, bytes]:
    """All files and their bytes, hidden ones left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def main() -> None:
    """Run a job in a separate process: IMAGES OUT."""
    job = Job(Path(sys.argv[2]), read_inputs([sys.argv[1]]), IDENTITY, shard_size=int(os.environ["SHARD"]))
    run_shards(captions(Words(delay=float(os.environ["DELAY"]))), job, job.open_shards())
    job.gather_quarantine()


if __name__ == "__main__":
    main()
