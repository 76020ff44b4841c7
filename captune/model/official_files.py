"""Reading the original `.pth` files: nothing in them is executed, and each is known by what it holds."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captune.errors import WeightsError
from captune.model.official_keys import State, strip_wrappers
from captune.weights.pointers import refuse_pointer

__all__ = ["BLIP2", "CHECKPOINT", "TOWER", "FileKind", "read_pth", "read_state", "stated_alpha"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileKind:
    """One kind of original file.

    Attributes:
        name: what it is called in messages.
        marker: a key that every file of the kind has.
    """

    name: str
    marker: str


TOWER = FileKind("the EVA-CLIP tower (eva_vit_g.pth)", "patch_embed.proj.weight")
BLIP2 = FileKind("BLIP-2's file (blip2_pretrained_flant5xxl.pth)", "query_tokens")
CHECKPOINT = FileKind("a MiniGPT-4 checkpoint (such as pretrained_minigpt4_7b.pth)", "llama_proj.weight")
_LANGUAGE_MODEL = FileKind("a language model's weights", "model.embed_tokens.weight")
_KINDS = (TOWER, BLIP2, CHECKPOINT, _LANGUAGE_MODEL)

_SIDECARS = ("*.yaml", "*.yml", "*.json", "log.txt")
_ALPHA = re.compile(r"""["']?lora_alpha["']?\s*[:=]\s*(\d+(?:\.\d+)?)""")
_SIDECAR_BYTES = 1 << 20


def read_pth(path: str | Path) -> dict[str, Any]:
    """Read a `.pth` file without running any code that it may carry.

    Args:
        path: the file.

    Returns:
        The dictionary it holds; tensors stay on disk until they are used.

    Raises:
        WeightsError: the file is missing, truncated, or holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        what = "is not a file" if Path(path).exists() else "does not exist"
        raise WeightsError(f"{path} {what}; give the path of the .pth file.")
    refuse_pointer(Path(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise WeightsError(
                f"{path} holds more than tensors and plain values, and opening it could run code; it was not opened. "
                "Save it again with only its state_dict."
            ) from error
        raise WeightsError(f"{path} is broken, or is not a torch file; copy it again from its source.") from error
    except Exception as error:  # on broken files torch raises nearly anything
        raise WeightsError(f"{path} is broken or incomplete; copy it again from its source.") from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors.")
    return dict(content)


def read_state(path: str | Path, kind: FileKind) -> tuple[State, int, dict[str, Any]]:
    """Read the tensors of an original file of a known kind.

    Args:
        path: the file.
        kind: what it should be.

    Returns:
        Its tensors, how many `module.` wrappers their keys carried, and all that the file holds.

    Raises:
        WeightsError: the file is broken, or of another kind.
    """
    content = read_pth(path)
    inner = content.get("model", content)
    state, wrappers = strip_wrappers(dict(inner)) if isinstance(inner, Mapping) else ({}, 0)
    if kind.marker not in state:
        actual = next((other.name for other in _KINDS if other.marker in state), None)
        if actual is not None:
            raise WeightsError(f"{path} is {actual}; expected {kind.name} here. Were two files swapped?")
        raise WeightsError(f"{path} has no key '{kind.marker}'; expected {kind.name}.")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: '{key}' is a {type(value).__name__}; expected a tensor.")
    return state, wrappers, content


def stated_alpha(content: dict[str, Any], path: str | Path) -> float | None:
    """The scale of LoRA as the checkpoint itself states it, or the configuration or log that lies beside it.

    Args:
        content: what the checkpoint file holds; the original's training writes its configuration into it.
        path: of that file.

    Returns:
        `lora_alpha`, or None where nothing states it, or two places state it differently.
    """
    config = content.get("config")
    model = config.get("model") if isinstance(config, Mapping) else None
    if isinstance(model, Mapping) and isinstance(model.get("lora_alpha"), (int, float)):
        return float(model["lora_alpha"])
    beside = [actual for pattern in _SIDECARS for actual in Path(path).parent.glob(pattern) if actual.is_file()]
    stated: dict[float, Path] = {}
    for file in sorted(beside):
        text = file.read_bytes()[:_SIDECAR_BYTES].decode("utf-8", "replace")
        stated |= {float(value): file for value in _ALPHA.findall(text)}
    if len(stated) != 1:
        return None
    alpha, source = stated.popitem()
    logger.warning("%s does not state lora_alpha; %g is taken from %s beside it.", path, alpha, source.name)
    return alpha


def _is_zip(path: str | Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"PK"
