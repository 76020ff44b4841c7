"""A folder of images with captions, as a person reviews it."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

CAPTIONS = {"a.jpg": "sks, a red wall", "b.png": "sks, a green wall", "sub/c.webp": "sks, a blue wall", "d.jpg": ""}
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images below a folder, three of them with a text."""
    folder = tmp_path / "my photos"
    (folder / "sub").mkdir(parents=True)
    for (name, caption), colour in zip(CAPTIONS.items(), COLOURS, strict=True):
        Image.new("RGB", (64, 48), colour).save(folder / name)
        if caption:
            (folder / name).with_suffix(".txt").write_text(f"{caption}\n")
    return folder
