"""A model ready for use: found, loaded, put on its device in its number format."""

from __future__ import annotations

import logging
from importlib.resources import files
from pathlib import Path

import torch

from captune.config import ModelConfig
from captune.errors import WeightsError
from captune.model.minigpt4 import MiniGPT4

__all__ = ["compute_dtype", "load_model", "pick_device", "resolve_model"]

logger = logging.getLogger(__name__)

TOY = "toy"


def resolve_model(path: str) -> str:
    """Where a model's files are: `toy` is the one that comes with captune, everything else stays as it is.

    Raises:
        WeightsError: the path looks like a folder of this machine, and there is none.
    """
    if path == TOY:
        return str(files("captune") / "toy" / "pretrained")
    is_hub_id = path.count("/") <= 1 and not path.startswith((".", "/", "~")) and "\\" not in path
    folder = Path(path).expanduser()
    if folder.is_dir():
        # A checkpoint of a run names the model it belongs to, which from_pretrained loads with it.
        if not (folder / "config.json").is_file() and not (folder / "checkpoint.json").is_file():
            raise WeightsError(
                f"{path} holds no config.json; expected a captune model, which `captune convert` makes of the original "
                "files and save_pretrained writes."
            )
        return str(folder)
    if folder.exists() or not is_hub_id:
        raise WeightsError(f"There is no model folder {path}; give the folder of a captune model, a hub id, or 'toy'.")
    return path


def pick_device(local_rank: int = 0) -> torch.device:
    """This process's GPU when there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The frozen parts' number format: as set, or bfloat16 on a GPU and float32 on a CPU."""
    if setting != "auto":
        chosen: torch.dtype = getattr(torch, setting)
        return chosen
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_model(config: ModelConfig, device: torch.device) -> MiniGPT4:
    """Load a captune model.

    Args:
        config: which one, in which number format.
        device: where it goes.

    Returns:
        The model in eval mode; the projection, which is trained, in float32 whatever the frozen parts have.

    Raises:
        WeightsError: it is not there, is broken, or is no captune model.
    """
    path = resolve_model(config.path)
    dtype = compute_dtype(config.dtype, device)
    try:
        model = MiniGPT4.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"The model {config.path} cannot be loaded: {reason}") from error
    model.projection.float()
    model.to(device)
    logger.info("loaded %s: %s on %s, projection in float32", config.path, str(dtype).removeprefix("torch."), device)
    return model
