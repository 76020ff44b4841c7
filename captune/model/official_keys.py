"""Which tensor of the original files is which tensor here.

Every key of a file is either mapped, or on the short list of keys that the original code ignores as well; any other
key is an error. Sources: the original `eva_vit.py`, `Qformer.py` and `mini_gpt4.py`, and transformers'
`Blip2VisionModel` and `Blip2QFormerModel`, whose parts these are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from captune.errors import WeightsError

__all__ = [
    "BLIP2_IGNORED",
    "LORA_KEY",
    "PROJECTION_IGNORED",
    "State",
    "Table",
    "map_keys",
    "qformer_shape",
    "qformer_table",
    "resize_positions",
    "strip_wrappers",
    "vision_depth",
    "vision_ignored",
    "vision_table",
]

State: TypeAlias = dict[str, Tensor]

Table: TypeAlias = dict[str, tuple[str, ...]]
"""Key here -> the original keys that are joined to make it; "" stands for zeros shaped like the first one."""

BLIP2_IGNORED = re.compile(
    r"(t5_proj|opt_proj)\..+|Qformer\.cls\..+"
    r"|Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..+|temp|(vision_proj|text_proj|itm_head)\..+"
)
"""The text branch of BLIP-2, its heads, and its own way into a language model."""

PROJECTION_IGNORED = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")
"""Buffers that the original's training saves beside what it trains."""

LORA_KEY = re.compile(r"llama_model\.base_model\.model\.(.*\.lora_[AB])(\.default)?\.weight")
"""LoRA under the names of peft 0.2, which puts two wrappers around the language model; newer peft adds `.default`."""

_BLOCK_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_KINDS = ("weight", "bias")


def vision_table(depth: int) -> Table:
    """`Blip2VisionModel` without its last LayerNorm, from `eva_vit_g.pth`.

    Args:
        depth: blocks that are used.
    """
    table: Table = {
        "embeddings.class_embedding": ("cls_token",),
        "embeddings.position_embedding": ("pos_embed",),
    }
    table |= {f"embeddings.patch_embedding.{kind}": (f"patch_embed.proj.{kind}",) for kind in _KINDS}
    for i in range(depth):
        for original, here in _BLOCK_PARTS.items():
            table |= {f"encoder.layers.{i}.{here}.{kind}": (f"blocks.{i}.{original}.{kind}",) for kind in _KINDS}
        attention = f"blocks.{i}.attn"
        table[f"encoder.layers.{i}.self_attn.qkv.weight"] = (f"{attention}.qkv.weight",)
        # The original has no bias on the keys.
        table[f"encoder.layers.{i}.self_attn.qkv.bias"] = (f"{attention}.q_bias", "", f"{attention}.v_bias")
    return table


def vision_ignored(depth: int) -> re.Pattern[str]:
    """Keys of `eva_vit_g.pth` that the original ignores: blocks behind the last one used, and what follows them."""
    used = "|".join(map(str, range(depth)))
    return re.compile(rf"blocks\.(?!({used})\.)\d+\..+|(norm|fc_norm|head)\.(weight|bias)")


def vision_depth(keys: list[str]) -> int:
    """Blocks of the tower that the file holds; the original uses all but the last of 40."""
    blocks = {int(match.group(1)) for key in keys if (match := re.match(r"blocks\.(\d+)\.", key))}
    return max(blocks) + 1 if blocks else 0


def qformer_shape(keys: list[str]) -> tuple[int, int]:
    """Layers of the Q-Former that the file holds, and of how many of them one looks at the image."""
    layers = {
        int(match.group(1)) for key in keys if (match := re.match(r"Qformer\.bert\.encoder\.layer\.(\d+)\.", key))
    }
    crossed = sorted({int(key.split(".")[4]) for key in keys if ".crossattention." in key})
    count = max(layers) + 1 if layers else 0
    return count, crossed[1] - crossed[0] if len(crossed) > 1 else max(count, 1)


def qformer_table(layers: int, frequency: int) -> Table:
    """`Blip2QFormerModel`, from BLIP-2's file; the queries and `ln_vision` stand under their own names.

    Args:
        layers: of the Q-Former.
        frequency: every so many layers one looks at the image, the first one always.
    """
    table: Table = {"query_tokens": ("query_tokens",)}
    table |= {f"ln_vision.{kind}": (f"ln_vision.{kind}",) for kind in _KINDS}
    table |= {f"layernorm.{kind}": (f"Qformer.bert.embeddings.LayerNorm.{kind}",) for kind in _KINDS}
    for i in range(layers):
        original, here = f"Qformer.bert.encoder.layer.{i}", f"encoder.layer.{i}"
        for attention in ("attention", "crossattention")[: 2 if i % frequency == 0 else 1]:
            for part in ("query", "key", "value"):
                for kind in _KINDS:
                    table[f"{here}.{attention}.attention.{part}.{kind}"] = (
                        f"{original}.{attention}.self.{part}.{kind}",
                    )
            for part in ("dense", "LayerNorm"):
                same = [f"{attention}.output.{part}.{kind}" for kind in _KINDS]
                table |= {f"{here}.{name}": (f"{original}.{name}",) for name in same}
        for part in ("intermediate_query.dense", "output_query.dense", "output_query.LayerNorm"):
            table |= {f"{here}.{part}.{kind}": (f"{original}.{part}.{kind}",) for kind in _KINDS}
    return table


def map_keys(state: Mapping[str, Tensor], table: Table, ignored: re.Pattern[str], *, file: str) -> State:
    """Give the tensors of an original file the names they have here.

    Args:
        state: the file's tensors.
        table: what is made of them; every original key in it has to be there.
        ignored: keys that may stand in the file beside these.
        file: the file's name, for messages.

    Returns:
        One tensor for each key of the table.

    Raises:
        WeightsError: a key is missing, or one is neither in the table nor ignored.
    """
    expected = {original for originals in table.values() for original in originals if original}
    missing = [key for key in expected if key not in state]
    if missing:
        raise WeightsError(f"{file} has no key '{min(missing)}' ({len(missing)} missing in all); it is incomplete.")
    unknown = [key for key in state if key not in expected and not ignored.fullmatch(key)]
    if unknown:
        raise WeightsError(
            f"{file} holds the key '{unknown[0]}' ({len(unknown)} such in all), which this model does not have; "
            "it is of another model."
        )
    mapped: State = {}
    for key, originals in table.items():
        first = state[originals[0]]
        if len(originals) == 1:
            mapped[key] = first
        else:
            mapped[key] = torch.cat([state[name] if name else torch.zeros_like(first) for name in originals])
    return mapped


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
