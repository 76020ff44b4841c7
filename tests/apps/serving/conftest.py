"""A served run on the toy: the pretrained model, and a checkpoint that says other things."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captune.hub import locate_model
from captune.model.checkpoint import save_trained
from captune.model.minigpt4 import MiniGPT4
from captune.run_checkpoints import CheckpointRecord
from captune.toy.drawing import draw_scene
from captune.toy.scenes import sample_scenes


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Forty drawn scenes."""
    return [draw_scene(scene) for scene in islice(sample_scenes(3, held_out=True), 40)]


@pytest.fixture(scope="session")
def picture_files(pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    return [folder / f"{number}.png" for number in range(len(pictures))]


@pytest.fixture(scope="session")
def served_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with two checkpoints, whose projections were bent a little and a lot."""
    folder = tmp_path_factory.mktemp("run")
    model = MiniGPT4.from_pretrained(locate_model("toy"))
    (folder / "config.yaml").write_text("model: {path: toy}\n", encoding="utf-8")
    for epoch, bend in enumerate((0.05, 0.6)):
        checkpoint = folder / "checkpoints" / f"epoch-{epoch:03d}"
        checkpoint.mkdir(parents=True)
        torch.manual_seed(epoch)
        state = {
            name: value + bend * value.std() * torch.randn_like(value) for name, value in model.trained_state().items()
        }
        record = CheckpointRecord(
            model="toy",
            frozen=model.frozen_fingerprint(),
            instruction="Describe this image in detail.",
            conversation="vicuna-v0",
            stop_symbol="###",
            manifest_hash="0",
            epoch=epoch,
            step=1,
            seed=1,
            captune="0",
        )
        save_trained(checkpoint, state, record)
    return folder


@pytest.fixture(scope="session")
def server(start_server: Any, served_run: Path) -> tuple[Any, str]:
    """A running `captune serve` with small limits: its process and its address."""
    process, line = start_server(
        "serve", served_run, "--port", 0, "--max-body", 4, "--max-pixels", 10, "--max-waiting", 64
    )
    return process, line.strip()


@pytest.fixture
def ask(server: Any) -> Callable[..., Any]:
    """`chat.completions.create` of OpenAI's client about one picture, without its retries."""
    client = open_client(server[1])

    def create(picture: Image.Image | str | None, text: str = "", **settings: Any) -> Any:
        content: list[dict[str, Any]] = []
        if picture is not None:
            url = picture if isinstance(picture, str) else data_url(picture)
            content.append({"type": "image_url", "image_url": {"url": url}})
        if text:
            content.append({"type": "text", "text": text})
        messages = [{"role": "user", "content": content}]
        return client.chat.completions.create(**{"model": "pretrained", "messages": messages, **settings})

    return create


def open_client(address: str) -> Any:
    """OpenAI's own client, without its retries."""
    openai = pytest.importorskip("openai", reason="needs openai")
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)


def data_url(picture: Image.Image) -> str:
    """A picture as a request contains it."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
