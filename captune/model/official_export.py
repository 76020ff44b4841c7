"""What was trained, as a checkpoint that the original MiniGPT-4 code loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from captune.errors import WeightsError
from captune.hub import locate_model
from captune.model.adapter import is_adapter, read_record, read_trained
from captune.parsing import load_json

__all__ = ["official_checkpoint"]

_ORIGINAL_CONVERSATIONS = ("vicuna-v0", "llama-2", "minigpt-v2", "alignment")


def official_checkpoint(source: str | Path) -> dict[str, Any]:
    """The content of a `.pth` file that the original code takes as `ckpt`.

    Args:
        source: a checkpoint of a run (`checkpoints/epoch-NNN`), or the folder of a whole model, of which only what is
            trained is read.

    Returns:
        `{"model": {"llama_proj.weight": ..., ...}, "config": {"model": {...}}}`, tensors in float32; LoRA under the
        names of peft 0.2.

    Raises:
        WeightsError: there is nothing of the kind, it is broken, or the original code has no such model.
    """
    if is_adapter(source):
        record = read_record(Path(source))
        conversation, lora = record.conversation, record.lora
        read_trained(Path(source))  # what is damaged is refused
        files = [Path(source) / "trained.safetensors"]
    else:
        folder = Path(locate_model(str(source)))
        conversation, lora = _settings(folder)
        files = sorted(folder.glob("model*.safetensors"))
    if conversation not in _ORIGINAL_CONVERSATIONS:
        raise WeightsError(
            f"{source} talks in the conversation '{conversation}'; the original code knows Vicuna, Llama-2 and "
            "MiniGPT-v2 only."
        )
    state = _read(files)
    if not {"llama_proj.weight", "llama_proj.bias"} <= set(state):
        raise WeightsError(f"{source} holds no projection; expected a captune model or a checkpoint of a run.")
    model: dict[str, Any] = {"arch": "minigpt_v2" if conversation == "minigpt-v2" else "minigpt4"}
    if lora is not None:
        model |= {"lora_r": lora["r"], "lora_alpha": lora["alpha"]}
    return {"model": state, "config": {"model": model}}


def _settings(folder: Path) -> tuple[str, dict[str, Any] | None]:
    try:
        config = load_json((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["conversation"]), config.get("lora")
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{folder / 'config.json'} is not that of a captune model.") from error


def _read(files: list[Path]) -> dict[str, Tensor]:
    """The trained tensors of safetensors files under their original names; no other tensor is read."""
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # not a dictionary
                    original = _original_name(name)
                    if original is not None:
                        state[original] = tensors.get_tensor(name).to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file} is missing or broken; copy it again from its source.") from error
    return state


def _original_name(name: str) -> str | None:
    """What the original calls a trained tensor; None for a frozen one."""
    if name.startswith("projection."):
        return "llama_proj." + name.removeprefix("projection.")
    if ".lora_" in name:
        return "llama_model.base_model.model." + name.removeprefix("llm.").replace(".default.", ".")
    return None
