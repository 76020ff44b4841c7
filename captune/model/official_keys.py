"""Which tensor of the original files is which tensor here.

Every key of a file is either mapped, or on the short list of keys that the original code ignores as well; any other
key is an error. Sources: the original `eva_vit.py`, `Qformer.py` and `mini_gpt4.py`, and transformers'
`Blip2VisionModel` and `Blip2QFormerModel`, whose parts these are.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from torch.nn import functional as F

from captune.errors import WeightsError

__all__ = ["map_blip2", "map_projection", "map_vision", "resize_positions", "strip_wrappers", "vision_depth"]

State = dict[str, Tensor]

_BLOCK_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_VISION_IGNORED = re.compile(r"(norm|fc_norm|head)\.(weight|bias)")
_BLIP2_IGNORED = re.compile(
    r"(t5_proj|opt_proj)\.|Qformer\.cls\.|Qformer\.bert\.embeddings\.(position_ids|word_embeddings|position_embeddings)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.|(temp|vision_proj|text_proj|itm_head)(\.|$)"
)
_CHECKPOINT_IGNORED = re.compile(r"(rotary_emb\.inv_freq|position_ids)$")
_LORA = re.compile(r"llama_model\.(base_model\.model\..*\.lora_[AB])(\.default)?\.weight$")


def vision_depth(keys: list[str]) -> int:
    """Blocks of the tower that the file holds; the original uses all but the last of 40."""
    blocks = {int(match.group(1)) for key in keys if (match := re.match(r"blocks\.(\d+)\.", key))}
    return max(blocks) + 1 if blocks else 0


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Carry the tower's absolute positions to another grid as the original does.

    Args:
        positions: (1, 1 + n * n, D) class position and raster-ordered patch positions.
        grid: patches per side wanted.

    Returns:
        (1, 1 + grid * grid, D): the class position untouched, the others resized bicubically in float32.
    """
    side = int((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    patches = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1].float(), patches], dim=1)


def map_vision(state: State, *, depth: int, grid: int, file: str) -> State:
    """Keys of `eva_vit_g.pth` to those of `Blip2VisionModel`, without its last LayerNorm.

    Args:
        state: the file's tensors.
        depth: blocks that are used; those behind them are ignored, as in the original.
        grid: patches per side of the images to be read.
        file: the file's name, for messages.

    Returns:
        State of the tower.

    Raises:
        WeightsError: a key is unknown or missing.
    """
    mapped: State = {}
    for key, tensor in state.items():
        block = re.fullmatch(r"blocks\.(\d+)\.(.+)", key)
        if block and int(block[1]) >= depth:
            continue
        if key == "cls_token":
            mapped["embeddings.class_embedding"] = tensor
        elif key == "pos_embed":
            mapped["embeddings.position_embedding"] = resize_positions(tensor, grid)
        elif key.startswith("patch_embed.proj."):
            mapped["embeddings.patch_embedding." + key.rsplit(".", 1)[1]] = tensor
        elif block and block[2] == "attn.qkv.weight":
            mapped[f"encoder.layers.{block[1]}.self_attn.qkv.weight"] = tensor
        elif block and block[2] == "attn.q_bias":
            value = _need(state, f"blocks.{block[1]}.attn.v_bias", file)
            # The original has no bias on the keys.
            bias = torch.cat([tensor, torch.zeros_like(tensor), value])
            mapped[f"encoder.layers.{block[1]}.self_attn.qkv.bias"] = bias
        elif block and block[2] == "attn.v_bias":
            _need(state, f"blocks.{block[1]}.attn.q_bias", file)
        elif block and block[2].rpartition(".")[0] in _BLOCK_PARTS:
            part, _, kind = block[2].rpartition(".")
            mapped[f"encoder.layers.{block[1]}.{_BLOCK_PARTS[part]}.{kind}"] = tensor
        elif not _VISION_IGNORED.fullmatch(key):
            raise WeightsError(f"{file} holds the key '{key}', which no EVA-CLIP tower of MiniGPT-4 has.")
    return mapped


def map_blip2(state: State, *, file: str) -> tuple[State, State, Tensor]:
    """Keys of a BLIP-2 file to those of the tower's last LayerNorm and of `Blip2QFormerModel`.

    Args:
        state: the file's tensors.
        file: the file's name, for messages.

    Returns:
        State of `ln_vision` (`weight`, `bias`), state of the Q-Former, and the queries (1, Q, F).

    Raises:
        WeightsError: a key is unknown, or the queries are missing.
    """
    norm: State = {}
    qformer: State = {}
    for key, tensor in state.items():
        if key.startswith("ln_vision."):
            norm[key.removeprefix("ln_vision.")] = tensor
        elif key == "query_tokens" or _BLIP2_IGNORED.match(key):
            continue
        elif key.startswith("Qformer.bert.embeddings.LayerNorm."):
            qformer["layernorm." + key.rsplit(".", 1)[1]] = tensor
        elif key.startswith("Qformer.bert.encoder.layer."):
            name = key.removeprefix("Qformer.bert.")
            name = name.replace(".attention.self.", ".attention.attention.")
            qformer[name.replace(".crossattention.self.", ".crossattention.attention.")] = tensor
        else:
            raise WeightsError(f"{file} holds the key '{key}', which no BLIP-2 checkpoint of MiniGPT-4 has.")
    return norm, qformer, _need(state, "query_tokens", file)


def map_projection(state: State, *, file: str) -> tuple[State, State]:
    """Keys of a MiniGPT-4 checkpoint to those of the projection and of LoRA adapters.

    Args:
        state: the file's tensors, wrappers stripped.
        file: the file's name, for messages.

    Returns:
        State of the projection (`weight`, `bias`), and LoRA tensors under their peft names (empty without LoRA).

    Raises:
        WeightsError: a key is unknown, or the projection is missing.
    """
    projection = {kind: _need(state, f"llama_proj.{kind}", file) for kind in ("weight", "bias")}
    lora: State = {}
    for key, tensor in state.items():
        match = _LORA.fullmatch(key)
        if match:
            lora[f"{match[1]}.default.weight"] = tensor
        elif not key.startswith("llama_proj.") and not _CHECKPOINT_IGNORED.search(key):
            raise WeightsError(f"{file} holds the key '{key}', which no MiniGPT-4 checkpoint has.")
    return projection, lora


def strip_wrappers(state: State) -> tuple[State, int]:
    """Take the `module.` prefixes off that data-parallel wrappers leave.

    Returns:
        The state without them, and how many there were.
    """
    layers = 0
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
        layers += 1
    return state, layers


def _need(state: State, key: str, file: str) -> Tensor:
    if key not in state:
        raise WeightsError(f"{file} has no key '{key}'; it is not the file that is expected here, or is incomplete.")
    return state[key]
