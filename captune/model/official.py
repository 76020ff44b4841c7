"""The original MiniGPT-4 files as a `MiniGPT4`.

Three files and a folder make a model: the EVA-CLIP tower (`eva_vit_g.pth`), BLIP-2's Q-Former with the tower's last
LayerNorm (`blip2_pretrained_flant5xxl.pth`), the language model's folder, and the projection
(`pretrained_minigpt4_7b.pth`, or a checkpoint of one's own).
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, Blip2QFormerConfig, Blip2VisionConfig

from captune.errors import ConfigError, WeightsError
from captune.model.configuration import MiniGPT4Config
from captune.model.minigpt4 import MiniGPT4
from captune.model.official_keys import map_blip2, map_projection, map_vision, strip_wrappers, vision_depth
from captune.model.processor import MiniGPT4Processor
from captune.model.tokenizer import load_tokenizer

__all__ = ["load_official", "read_pth"]

logger = logging.getLogger(__name__)

OFFICIAL_VISION_HEADS = 16
OFFICIAL_VISION_DEPTH = {1408: 39}
"""Blocks that the original builds for a tower of this width. BLIP-2 reads EVA-CLIP one block before its end."""
OFFICIAL_QFORMER_HEADS = 12
CONVERSATION = {"minigpt4": "llama-2", "minigpt_v2": "minigpt-v2"}
ENLARGEMENT = {"minigpt4": 1, "minigpt_v2": 2}
"""MiniGPT-v2 reads images at twice the side that its tower was trained on."""


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
        raise WeightsError(f"{path} does not exist; give the path of the .pth file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors and plain values, or is not a torch file; it was not opened, "
            "because that could run code. Save it again with only its state_dict."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"{path} is broken or incomplete; copy it again from its source.") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a dictionary of tensors.")
    return content


def load_official(
    arch: str,
    *,
    llm: str | Path,
    vision: str | Path,
    qformer: str | Path | None = None,
    checkpoint: str | Path | None = None,
    dtype: torch.dtype | None = None,
    vision_heads: int = OFFICIAL_VISION_HEADS,
    qformer_heads: int = OFFICIAL_QFORMER_HEADS,
    image_size: int | None = None,
    lora_alpha: float | None = None,
    max_target_tokens: int = 160,
) -> MiniGPT4:
    """Put the original files together.

    Args:
        arch: "minigpt4" (with Q-Former for Vicuna, without for Llama-2) or "minigpt_v2".
        llm: folder of the language model, or hub id.
        vision: `eva_vit_g.pth`.
        qformer: BLIP-2's file, or None for the variants without a Q-Former.
        checkpoint: the projection (and LoRA); without it the projection is random and has to be trained first.
        dtype: of all weights; by default bfloat16 on a machine with a GPU and float32 elsewhere.
        vision_heads: attention heads of the tower, which no tensor tells.
        qformer_heads: attention heads of the Q-Former.
        image_size: side of the images in pixels; by default that of the tower's positions, doubled for minigpt_v2.
        lora_alpha: scale of LoRA; by default the checkpoint's own, or 16 where it does not say.
        max_target_tokens: longest caption in tokens, stop symbol included.

    Returns:
        The model in eval mode, its processor attached.

    Raises:
        ConfigError: `arch` is unknown.
        WeightsError: a file is missing, broken, or does not belong to the others.
    """
    if arch not in CONVERSATION:
        raise ConfigError(f"There is no arch '{arch}'; expected one of: {', '.join(CONVERSATION)}.")
    if dtype is None:
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    tower = read_pth(vision)
    text_config = _language_config(llm)
    config = MiniGPT4Config(
        vision_config=_vision_config(tower, str(vision), vision_heads, image_size, ENLARGEMENT[arch]),
        text_config=text_config,
        conversation="vicuna-v0" if qformer is not None else CONVERSATION[arch],
        max_target_tokens=max_target_tokens,
    )
    parts = _qformer_parts(config, qformer, qformer_heads) if qformer is not None else None
    with torch.device("meta"):
        model = MiniGPT4(config)
    grid = config.vision_config.image_size // config.vision_config.patch_size
    depth = config.vision_config.num_hidden_layers
    vision_state = map_vision(tower, depth=depth, grid=grid, file=str(vision))
    # Without BLIP-2's file the original leaves this LayerNorm as it was made.
    width = config.vision_config.hidden_size
    norm = {"weight": torch.ones(width), "bias": torch.zeros(width)}
    if parts is not None:
        norm, qformer_state, queries = parts
        _fill(model.qformer, qformer_state, str(qformer), dtype)
        model.query_tokens = nn.Parameter(queries.to(dtype))
    vision_state |= {f"post_layernorm.{kind}": tensor for kind, tensor in norm.items()}
    _fill(model.vision, vision_state, str(vision), dtype)
    model.llm = AutoModelForCausalLM.from_pretrained(str(llm), dtype=dtype)
    model.projection = nn.Linear(config.feature_size, text_config.hidden_size, dtype=dtype)
    if checkpoint is not None:
        _load_checkpoint(model, checkpoint, lora_alpha)
    model.processor = MiniGPT4Processor(load_tokenizer(llm), config)
    model.freeze().eval()
    return model


def _is_zip(path: str | Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(2) == b"PK"


def _language_config(llm: str | Path) -> Any:
    try:
        return AutoConfig.from_pretrained(str(llm))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{llm} is not the folder of a language model; expected a config.json in it.") from error


def _vision_config(
    tower: dict[str, Any], file: str, heads: int, image_size: int | None, enlargement: int
) -> Blip2VisionConfig:
    for key in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if key not in tower:
            raise WeightsError(f"{file} has no key '{key}'; expected the EVA-CLIP tower, eva_vit_g.pth.")
    patches: Tensor = tower["patch_embed.proj.weight"]
    width, patch = patches.shape[0], patches.shape[-1]
    if width % heads:
        raise WeightsError(f"{file} is {width} wide, which {heads} attention heads do not divide; give vision_heads.")
    side = int((tower["pos_embed"].shape[1] - 1) ** 0.5)
    return Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=tower["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=OFFICIAL_VISION_DEPTH.get(width, vision_depth(list(tower)) - 1),
        num_attention_heads=heads,
        image_size=image_size or side * patch * enlargement,
        patch_size=patch,
    )


def _qformer_parts(
    config: MiniGPT4Config, file: str | Path, heads: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Read BLIP-2's file and complete `config` with what its tensors tell."""
    content = read_pth(file)
    norm, state, queries = map_blip2(content.get("model", content), file=str(file))
    layers = {int(key.split(".")[2]) for key in state if key.startswith("encoder.layer.")}
    crossed = sorted({int(key.split(".")[2]) for key in state if ".crossattention." in key})
    config.qformer_config = Blip2QFormerConfig(
        hidden_size=queries.shape[-1],
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=heads,
        intermediate_size=state["encoder.layer.0.intermediate_query.dense.weight"].shape[0],
        cross_attention_frequency=crossed[1] - crossed[0] if len(crossed) > 1 else len(layers),
        encoder_hidden_size=state[f"encoder.layer.{crossed[0]}.crossattention.attention.key.weight"].shape[1],
    )
    config.query_tokens = queries.shape[1]
    return norm, state, queries


def _fill(module: nn.Module | None, state: dict[str, Tensor], file: str, dtype: torch.dtype) -> None:
    """Give a module that was made on the meta device its tensors, every one of them and no other."""
    assert module is not None
    wanted = module.state_dict()
    for key, tensor in wanted.items():
        if key not in state:
            raise WeightsError(f"{file} has no tensor for '{key}'; it is incomplete or of another model.")
        if state[key].shape != tensor.shape:
            raise WeightsError(f"{file}: '{key}' has shape {tuple(state[key].shape)}; expected {tuple(tensor.shape)}.")
    unexpected = sorted(set(state) - set(wanted))
    if unexpected:
        raise WeightsError(f"{file} holds a tensor for '{unexpected[0]}', which this model does not have.")
    module.load_state_dict({key: tensor.to(dtype) for key, tensor in state.items()}, assign=True)


def _load_checkpoint(model: MiniGPT4, file: str | Path, lora_alpha: float | None) -> None:
    content = read_pth(file)
    state, wrappers = strip_wrappers(content.get("model", content))
    if wrappers:
        logger.warning(
            "%s: the keys carry '%s', left by data-parallel wrappers; they are read without it. The original "
            "evaluation ignored such weights.",
            file,
            "module." * wrappers,
        )
    projection, lora = map_projection(state, file=str(file))
    weight = model.projection.weight
    if projection["weight"].shape != weight.shape:
        raise WeightsError(
            f"{file} projects {tuple(reversed(projection['weight'].shape))}, but this vision side and language model "
            f"need {tuple(reversed(weight.shape))}; it was trained for a language model of another size."
        )
    with torch.no_grad():
        weight.copy_(projection["weight"])
        model.projection.bias.copy_(projection["bias"])
    if lora:
        settings = content.get("config", {}).get("model", {}) if isinstance(content.get("config"), dict) else {}
        alpha = lora_alpha if lora_alpha is not None else settings.get("lora_alpha", 16)
        _add_lora(model, lora, float(alpha), str(file))


def _add_lora(model: MiniGPT4, lora: dict[str, Tensor], alpha: float, file: str) -> None:
    from peft import LoraConfig, get_peft_model

    ranks = {tensor.shape[0] for key, tensor in lora.items() if ".lora_A." in key}
    targets = sorted({key.split(".lora_")[0].rsplit(".", 1)[1] for key in lora})
    settings = LoraConfig(r=ranks.pop(), lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)
    adapted = get_peft_model(model.llm, settings)
    state = adapted.state_dict()
    wanted = {key for key in state if ".lora_" in key}
    if wanted != set(lora):
        key = sorted(wanted ^ set(lora))[0]
        raise WeightsError(f"{file}: the LoRA tensors do not fit this language model; '{key}' has no partner.")
    adapted.load_state_dict(lora, strict=False)
    model.llm = adapted
