"""Conversion of the original MiniGPT-4 files to a `MiniGPT4`, and of a checkpoint back to the original format.

The original consists of the EVA-CLIP vision encoder (`eva_vit_g.pth`), BLIP-2's Q-Former with the vision encoder's last
LayerNorm (`blip2_pretrained_flant5xxl.pth`), the language model's folder, and the projection
(`pretrained_minigpt4_7b.pth`, or another checkpoint).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2VisionConfig

from captune.errors import ConfigError, WeightsError
from captune.hub import locate_model
from captune.model.checkpoint import is_checkpoint, read_trained
from captune.model.configuration import MiniGPT4Config
from captune.model.language_model import language_config, load_language_model
from captune.model.lora import add_lora
from captune.model.minigpt4 import MiniGPT4
from captune.model.official_layout import (
    BLIP2,
    BLIP2_IGNORED,
    CHECKPOINT,
    LORA_KEY,
    PROJECTION_IGNORED,
    TOWER,
    State,
    Table,
    map_keys,
    qformer_shape,
    qformer_table,
    read_pth,
    read_state,
    recorded_alpha,
    resize_positions,
    vision_depth,
    vision_ignored,
    vision_table,
)
from captune.model.processor import MiniGPT4Processor
from captune.model.tokenizer import load_tokenizer
from captune.parsing import load_json
from captune.run_checkpoints import read_record
from captune.weights import check_values

__all__ = ["load_official", "official_checkpoint", "read_pth"]

logger = logging.getLogger(__name__)

OFFICIAL_VISION_HEADS = 16
OFFICIAL_VISION_DEPTH = {1408: 39}
"""Blocks that the original builds at this width. BLIP-2 uses the output of the last but one block of EVA-CLIP."""
OFFICIAL_QFORMER_HEADS = 12
OFFICIAL_LORA = {64: 16.0}
"""Rank and alpha of the original's LoRA (`minigpt_v2.py`); the default for other ranks is twice the rank."""
CONVERSATION = {"minigpt4": "llama-2", "minigpt_v2": "minigpt-v2"}
ENLARGEMENT = {"minigpt4": 1, "minigpt_v2": 2}
"""MiniGPT-v2 uses twice the image size that its vision encoder was trained with."""


def load_official(
    arch: str,
    *,
    llm: str | Path,
    vision: str | Path,
    qformer: str | Path | None = None,
    checkpoint: str | Path | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    vision_heads: int = OFFICIAL_VISION_HEADS,
    qformer_heads: int = OFFICIAL_QFORMER_HEADS,
    image_size: int | None = None,
    lora_alpha: float | None = None,
    max_target_tokens: int = 160,
    **llm_options: Any,
) -> MiniGPT4:
    """Load a model from the original files.

    Args:
        arch: "minigpt4" (with Q-Former for Vicuna, without for Llama-2) or "minigpt_v2".
        llm: folder of the language model, or hub id.
        vision: `eva_vit_g.pth`.
        qformer: BLIP-2's file, or None for the variants without a Q-Former.
        checkpoint: the projection (and LoRA); without it the projection is random.
        dtype: of all weights; by default bfloat16 if there is a GPU and float32 otherwise. "auto" keeps the dtypes of
            the files, for saving only: a model of several dtypes does not run.
        vision_heads: attention heads of the vision encoder, which the tensors do not determine.
        qformer_heads: attention heads of the Q-Former.
        image_size: side of the images in pixels; by default that of the position embeddings, doubled for minigpt_v2.
        lora_alpha: of LoRA; by default the value in the checkpoint or in a configuration or log next to it, otherwise
            the original's 16 at rank 64, and twice the rank at other ranks.
        max_target_tokens: longest caption in tokens, stop symbol included.
        llm_options: for the language model's `from_pretrained`: `quantization_config`, `device_map`, ...

    Returns:
        The model in eval mode with its processor.

    Raises:
        ConfigError: `arch` is unknown.
        WeightsError: a file is missing or broken, or does not fit the others.
    """
    if arch not in CONVERSATION:
        raise ConfigError(f"There is no arch '{arch}'; expected one of: {', '.join(CONVERSATION)}.")
    if dtype is None:
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    tower, _, _ = read_state(vision, TOWER)
    text_config = language_config(llm)
    config = MiniGPT4Config(
        vision_config=_vision_config(tower, str(vision), vision_heads, image_size, ENLARGEMENT[arch]),
        text_config=text_config,
        conversation="vicuna-v0" if qformer is not None else CONVERSATION[arch],
        max_target_tokens=max_target_tokens,
    )
    bridge = _read_qformer(config, qformer, qformer_heads) if qformer is not None else None
    trained = None if checkpoint is None else _read_checkpoint(checkpoint, config)
    with torch.device("meta"):
        model = MiniGPT4(config, parts=("vision", "qformer"))
    grid = config.vision_config.image_size // config.vision_config.patch_size
    depth = config.vision_config.num_hidden_layers
    state = map_keys(tower, vision_table(depth), vision_ignored(depth), file=str(vision))
    state["embeddings.position_embedding"] = resize_positions(state["embeddings.position_embedding"], grid)
    # Without BLIP-2's file the original does not load this LayerNorm.
    width = config.vision_config.hidden_size
    norm = {"weight": torch.ones(width), "bias": torch.zeros(width)}
    if bridge is not None:
        norm = {kind: bridge.pop(f"ln_vision.{kind}") for kind in norm}
        if any(tensor.shape != (width,) for tensor in norm.values()):
            raise WeightsError(
                f"{qformer}: 'ln_vision' is not {width} wide like the vision encoder; they belong to two models."
            )
        model.query_tokens = nn.Parameter(_cast(bridge.pop("query_tokens"), dtype))
        _fill(model.qformer, bridge, str(qformer), dtype)
    state |= {f"post_layernorm.{kind}": tensor for kind, tensor in norm.items()}
    _fill(model.vision, state, str(vision), dtype)
    model.llm = load_language_model(llm, dtype=dtype, **llm_options)
    kept = torch.float32 if dtype == "auto" else dtype
    model.projection = nn.Linear(config.feature_size, config.text_width, dtype=kept)
    if trained is not None:
        _fill_trained(model, *trained, str(checkpoint), lora_alpha)
    model.processor = MiniGPT4Processor(load_tokenizer(llm), config)
    model.freeze().eval()
    return model


def _vision_config(tower: State, file: str, heads: int, image_size: int | None, enlargement: int) -> Blip2VisionConfig:
    for key in ("pos_embed", "blocks.0.mlp.fc1.weight"):
        if key not in tower:
            raise WeightsError(f"{file} has no key '{key}'; it is incomplete.")
    patches, positions = tower["patch_embed.proj.weight"], tower["pos_embed"]
    side = int((positions.shape[1] - 1) ** 0.5) if positions.ndim == 3 else 0
    if patches.ndim != 4 or side == 0 or positions.shape[1] != side * side + 1:
        shapes = f"{tuple(patches.shape)} and {tuple(positions.shape)}"
        raise WeightsError(f"{file}: 'patch_embed.proj.weight' and 'pos_embed' have the shapes {shapes}; it is broken.")
    width, patch = patches.shape[0], patches.shape[-1]
    if width % heads:
        raise WeightsError(f"{file} is {width} wide, which {heads} attention heads do not divide; give vision_heads.")
    return Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=tower["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=OFFICIAL_VISION_DEPTH.get(width, vision_depth(list(tower)) - 1),
        num_attention_heads=heads,
        image_size=image_size or side * patch * enlargement,
        patch_size=patch,
    )


def _read_qformer(config: MiniGPT4Config, file: str | Path, heads: int) -> State:
    """Read BLIP-2's file and set the Q-Former of `config` from its shapes."""
    content, _, _ = read_state(file, BLIP2)
    layers, frequency = qformer_shape(list(content))
    state = map_keys(content, qformer_table(layers, frequency), BLIP2_IGNORED, file=str(file))
    width, seen = state["query_tokens"].shape[-1], state["encoder.layer.0.crossattention.attention.key.weight"].shape[1]
    if width % heads:
        raise WeightsError(f"{file} is {width} wide, which {heads} attention heads do not divide; give qformer_heads.")
    if seen != config.vision_config.hidden_size:
        raise WeightsError(
            f"{file} needs a vision encoder of width {seen}, but this one is {config.vision_config.hidden_size} wide; "
            "the files belong to different models."
        )
    config.qformer_config = Blip2QFormerConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=state["encoder.layer.0.intermediate_query.dense.weight"].shape[0],
        cross_attention_frequency=frequency,
        encoder_hidden_size=seen,
    )
    config.query_tokens = state["query_tokens"].shape[1]
    return state


def _read_checkpoint(file: str | Path, config: MiniGPT4Config) -> tuple[State, dict[str, Any]]:
    """Read a MiniGPT-4 checkpoint, and check that its projection fits the other parts."""
    state, wrappers, content = read_state(file, CHECKPOINT)
    if wrappers:
        logger.warning(
            "%s: the keys have the prefix '%s' of data-parallel wrappers, which is removed. The original evaluation "
            "ignored such weights.",
            file,
            "module." * wrappers,
        )
    out, into = state["llama_proj.weight"].shape[0], state["llama_proj.weight"].shape[1]
    if into != config.feature_size:
        reason = "it was trained with another vision encoder"
        if config.qformer_config is None:
            reason = "if it was trained with a Q-Former, give BLIP-2's file (blip2_pretrained_flant5xxl.pth) as well"
        elif into == config.vision_config.hidden_size * config.patches_per_token:
            reason = "it was trained without a Q-Former, so omit BLIP-2's file"
        raise WeightsError(
            f"{file} expects features {into} wide, but this vision encoder gives {config.feature_size}; {reason}."
        )
    if out != config.text_width:
        raise WeightsError(
            f"{file} was trained for a language model {out} wide, but this one is {config.text_width} wide"
            f"{_named_sizes(out, config.text_width)}; give the one that belongs to it."
        )
    return state, content


def _named_sizes(*widths: int) -> str:
    """The sizes of LLaMA models with these widths, in brackets."""
    known = {4096: "7B", 5120: "13B", 8192: "70B"}
    return f" ({known[widths[0]]} and {known[widths[1]]})" if all(width in known for width in widths) else ""


def _cast(tensor: Tensor, dtype: torch.dtype | Literal["auto"]) -> Tensor:
    return tensor if dtype == "auto" else tensor.to(dtype)


def _fill(module: nn.Module | None, state: State, file: str, dtype: torch.dtype | Literal["auto"]) -> None:
    """Set all tensors of a module that was created on the meta device."""
    assert module is not None
    tensors = module.state_dict()
    assert set(tensors) == set(state)
    for key, tensor in tensors.items():
        if state[key].shape != tensor.shape:
            raise WeightsError(f"{file}: '{key}' has shape {tuple(state[key].shape)}; expected {tuple(tensor.shape)}.")
    check_values(f"The file {file}", state.items())
    module.load_state_dict({key: _cast(tensor, dtype) for key, tensor in state.items()}, assign=True)


def _fill_trained(model: MiniGPT4, state: State, content: dict[str, Any], file: str, lora_alpha: float | None) -> None:
    """Load projection and LoRA of a checkpoint into a model."""
    lora: State = {
        f"{match[1]}.default.weight": tensor for key, tensor in state.items() if (match := LORA_KEY.fullmatch(key))
    }
    rest = {key: tensor for key, tensor in state.items() if not LORA_KEY.fullmatch(key)}
    table: Table = {kind: (f"llama_proj.{kind}",) for kind in ("weight", "bias")}
    projection: dict[str, Tensor] = map_keys(rest, table, PROJECTION_IGNORED, file=file)
    with torch.no_grad():
        for kind, parameter in model.projection.named_parameters():
            if projection[kind].shape != parameter.shape or not projection[kind].isfinite().all():
                raise WeightsError(
                    f"{file}: 'llama_proj.{kind}' has another shape than expected, or holds NaN; copy it again."
                )
            parameter.copy_(projection[kind])
    if lora:
        rank = min(next(iter(lora.values())).shape)
        alpha = lora_alpha if lora_alpha is not None else recorded_alpha(content, file)
        if alpha is None:
            alpha = OFFICIAL_LORA.get(rank, 2.0 * rank)
            logger.warning(
                "%s does not record lora_alpha; using %g for its rank %d; lora_alpha changes it.",
                file,
                alpha,
                rank,
            )
        add_lora(model, lora, alpha, file)


# Export of the trained tensors to a checkpoint of the original MiniGPT-4 code.

_ORIGINAL_CONVERSATIONS = ("vicuna-v0", "llama-2", "minigpt-v2", "alignment")


def official_checkpoint(source: str | Path) -> dict[str, Any]:
    """The content of a `.pth` file for the original code's `ckpt`.

    Args:
        source: a checkpoint of a run (`checkpoints/epoch-NNN`), or the folder of a complete model, of which only the
            trained tensors are read.

    Returns:
        `{"model": {"llama_proj.weight": ..., ...}, "config": {"model": {...}}}`, tensors in float32; LoRA under the
        names of peft 0.2.

    Raises:
        WeightsError: it does not exist or is broken, or the original code has no such model.
    """
    if is_checkpoint(source):
        record = read_record(Path(source))
        conversation, lora = record.conversation, record.lora
        read_trained(Path(source))  # refuses damaged files
        files = [Path(source) / "trained.safetensors"]
    else:
        folder = Path(locate_model(str(source)))
        conversation, lora = _settings(folder)
        files = sorted(folder.glob("model*.safetensors"))
    if conversation not in _ORIGINAL_CONVERSATIONS:
        raise WeightsError(
            f"{source} has the chat template '{conversation}'; the original code has those of Vicuna, Llama-2 and "
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
    """The original name of a trained tensor; None for a frozen one."""
    if name.startswith("projection."):
        return "llama_proj." + name.removeprefix("projection.")
    if ".lora_" in name:
        return "llama_model.base_model.model." + name.removeprefix("llm.").replace(".default.", ".")
    return None
