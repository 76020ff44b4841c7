"""The original `.pth` files: safe reading, detection of their kind, and names of their tensors."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from captune.errors import WeightsError
from captune.weights import refuse_pointer

__all__ = [
    "BLIP2",
    "BLIP2_IGNORED",
    "CHECKPOINT",
    "LORA_KEY",
    "PROJECTION_IGNORED",
    "TOWER",
    "FileKind",
    "State",
    "Table",
    "map_keys",
    "qformer_shape",
    "qformer_table",
    "read_pth",
    "read_state",
    "recorded_alpha",
    "resize_positions",
    "strip_wrappers",
    "vision_depth",
    "vision_ignored",
    "vision_table",
]


# Names of the tensors in the original files and in captune.

State: TypeAlias = dict[str, Tensor]

Table: TypeAlias = dict[str, tuple[str, ...]]
"""Key in captune -> the original keys that are concatenated to it; "" is zeros of the first one's shape."""

BLIP2_IGNORED = re.compile(
    r"(t5_proj|opt_proj)\..+|Qformer\.cls\..+"
    r"|Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)"
    r"|Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..+|temp|(vision_proj|text_proj|itm_head)\..+"
)
"""The text branch of BLIP-2, its heads, and its projection into a language model."""

PROJECTION_IGNORED = re.compile(r".*(rotary_emb\.inv_freq|position_ids)")
"""Buffers that the original saves together with the trained tensors."""

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
        depth: number of used blocks.
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
        # The original has no bias for the keys.
        table[f"encoder.layers.{i}.self_attn.qkv.bias"] = (f"{attention}.q_bias", "", f"{attention}.v_bias")
    return table


def vision_ignored(depth: int) -> re.Pattern[str]:
    """Keys of `eva_vit_g.pth` that the original ignores: unused last blocks, and what follows them."""
    used = "|".join(map(str, range(depth)))
    return re.compile(rf"blocks\.(?!({used})\.)\d+\..+|(norm|fc_norm|head)\.(weight|bias)")


def vision_depth(keys: list[str]) -> int:
    """Number of blocks in the file; the original uses all but the last of 40."""
    blocks = {int(match.group(1)) for key in keys if (match := re.match(r"blocks\.(\d+)\.", key))}
    return max(blocks) + 1 if blocks else 0


def qformer_shape(keys: list[str]) -> tuple[int, int]:
    """Number of layers of the Q-Former in the file, and the interval of layers with cross-attention."""
    layers = {
        int(match.group(1)) for key in keys if (match := re.match(r"Qformer\.bert\.encoder\.layer\.(\d+)\.", key))
    }
    crossed = sorted({int(key.split(".")[4]) for key in keys if ".crossattention." in key})
    count = max(layers) + 1 if layers else 0
    return count, crossed[1] - crossed[0] if len(crossed) > 1 else max(count, 1)


def qformer_table(layers: int, frequency: int) -> Table:
    """`Blip2QFormerModel`, from BLIP-2's file; the queries and `ln_vision` keep their names.

    Args:
        layers: of the Q-Former.
        frequency: every `frequency`-th layer has cross-attention, starting with the first.
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
    """Rename the tensors of an original file.

    Args:
        state: the file's tensors.
        table: the mapping; all of its original keys are required.
        ignored: keys of the file that are not used.
        file: the file's name, for messages.

    Returns:
        A tensor for each key of the table.

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
            "it belongs to another model."
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
    """Resize absolute position embeddings to another grid as the original does.

    Args:
        positions: (1, 1 + n * n, D) class position and raster-ordered patch positions.
        grid: new number of patches per side.

    Returns:
        (1, 1 + grid * grid, D): the class position unchanged, the others resized bicubically in float32.
    """
    side = int((positions.shape[1] - 1) ** 0.5)
    if side == grid:
        return positions
    patches = positions[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).flatten(1, 2)
    return torch.cat([positions[:, :1].float(), patches], dim=1)


def strip_wrappers(state: State) -> tuple[State, int]:
    """Remove the `module.` prefixes of data-parallel wrappers.

    Returns:
        The state without prefixes, and the number of removed prefixes.
    """
    layers = 0
    while state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
        layers += 1
    return state, layers


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileKind:
    """One kind of original file.

    Attributes:
        name: its name in messages.
        marker: a key that every file of the kind has.
    """

    name: str
    marker: str


TOWER = FileKind("the EVA-CLIP vision encoder (eva_vit_g.pth)", "patch_embed.proj.weight")
BLIP2 = FileKind("BLIP-2's file (blip2_pretrained_flant5xxl.pth)", "query_tokens")
CHECKPOINT = FileKind("a MiniGPT-4 checkpoint (such as pretrained_minigpt4_7b.pth)", "llama_proj.weight")
_LANGUAGE_MODEL = FileKind("a language model's weights", "model.embed_tokens.weight")
_FILE_KINDS = (TOWER, BLIP2, CHECKPOINT, _LANGUAGE_MODEL)

_SIDECARS = ("*.yaml", "*.yml", "*.json", "log.txt")
_ALPHA = re.compile(r"""["']?lora_alpha["']?\s*[:=]\s*(\d+(?:\.\d+)?)""")
_SIDECAR_BYTES = 1 << 20


def read_pth(path: str | Path) -> dict[str, Any]:
    """Read a `.pth` file without executing code in it.

    Args:
        path: the file.

    Returns:
        Its dictionary; tensors stay on disk until they are used.

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
        kind: the expected kind.

    Returns:
        Its tensors, the number of `module.` prefixes of their keys, and the complete content of the file.

    Raises:
        WeightsError: the file is broken, or of another kind.
    """
    content = read_pth(path)
    inner = content.get("model", content)
    state, wrappers = strip_wrappers(dict(inner)) if isinstance(inner, Mapping) else ({}, 0)
    if kind.marker not in state:
        actual = next((other.name for other in _FILE_KINDS if other.marker in state), None)
        if actual is not None:
            raise WeightsError(f"{path} is {actual}; expected {kind.name} here. Were two files swapped?")
        raise WeightsError(f"{path} has no key '{kind.marker}'; expected {kind.name}.")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: '{key}' is a {type(value).__name__}; expected a tensor.")
    return state, wrappers, content


def recorded_alpha(content: dict[str, Any], path: str | Path) -> float | None:
    """The `lora_alpha` that a checkpoint records, or a configuration or log next to it.

    Args:
        content: of the checkpoint file; the original's training saves its configuration in it.
        path: of that file.

    Returns:
        `lora_alpha`, or None if it is not recorded, or if two files record different values.
    """
    config = content.get("config")
    model = config.get("model") if isinstance(config, Mapping) else None
    if isinstance(model, Mapping) and isinstance(model.get("lora_alpha"), (int, float)):
        return float(model["lora_alpha"])
    sidecars = [actual for pattern in _SIDECARS for actual in Path(path).parent.glob(pattern) if actual.is_file()]
    recorded: dict[float, Path] = {}
    for file in sorted(sidecars):
        text = file.read_bytes()[:_SIDECAR_BYTES].decode("utf-8", "replace")
        recorded |= {float(value): file for value in _ALPHA.findall(text)}
    if len(recorded) != 1:
        return None
    alpha, source = recorded.popitem()
    logger.warning("%s does not record lora_alpha; using %g from %s next to it.", path, alpha, source.name)
    return alpha


def _is_zip(path: str | Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"PK"
