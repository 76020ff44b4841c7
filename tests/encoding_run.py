"""A process that encodes images with a transformers model; it may be one of several."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from captune.distributed import distributed_context
from captune.features import image_features_of, vlm_encoding
from captune.hub import resolve_model
from captune.vlm import load_image_text_model


def child(variables: Mapping[str, str], folder: Path, root: Path, files: Sequence[Path], out: Path, stop: int) -> None:
    """Encode files in shards of two images, and write the result; the process is killed after `stop` images."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    vlm_encoding.SHARD = 2

    def progress(done: int, missing: int) -> None:
        if done == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    with distributed_context() as group:
        group.device = torch.device("cpu")
        source = resolve_model(str(folder))
        model = load_image_text_model(source, group.device)
        images = image_features_of(model, source, files, root, group, on_progress=progress)
        sums = [float(tensor.double().sum()) for item in images.features[:] for tensor in item.tensors]
        out.write_text(f"{images.readable} {images.digest} {sums}")
