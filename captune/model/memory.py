"""Estimates of peak memory, computed from the size of a model.

    training      weights + projection, its gradient and AdamW's two moments (LoRA: a float32 master as well)
                  + saved by each layer: rows * tokens * (layer_bytes + tokens * pair_bytes)
                    (activation checkpointing: hidden states only; last layer: keys and values only of unused tokens)
                  + logits: positions * vocabulary * (number format + 4 + 4)       values, float32 copy, gradient
    generation    weights + projection
                  + keys and values: rows * beams * tokens * layers * cache_bytes

Shape letters: B rows, T tokens of a row, N positions with logits, V vocabulary, D width, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM

from captune.common import error_text
from captune.errors import ConfigError
from captune.model.configuration import MiniGPT4Config
from captune.model.lora import with_lora
from captune.model.minigpt4 import MiniGPT4
from captune.transformers_compat import kv_cache_of

__all__ = [
    "FLOAT32",
    "QUANTIZED",
    "RESERVE",
    "GenerationLoad",
    "MemoryEstimate",
    "ModelSize",
    "Part",
    "TrainingLoad",
    "cache_size",
    "generation_memory",
    "measure_model",
    "saved_bytes",
    "training_memory",
]


# The size of a model from its configuration, and the memory of a decoder layer per token.

FLOAT32 = 4
"""Bytes of a value."""
QUANTIZED = {
    "int8": 1.0,
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "torchao-int8": 1.0,
    "torchao-int4": 0.5 + 4 / 128,
    "torchao-fp8": 1.0,
}
"""Bytes of a weight with its share of the scales: 8-bit formats have one a row or none, nf4 an 8-bit one every
64 weights and a float32 every 256 of those, int4 a bfloat16 scale and zero point every 128."""
TRACED_TOKENS = (32, 64)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Bytes of a model's parts, and memory of its language model per token.

    Attributes:
        llm: the language model's weights.
        towers: vision encoder, Q-Former and queries.
        projection: bytes of the trained projection, always float32.
        lora: number of LoRA's values; their bytes are part of those of the language model.
        layers: L, of the language model.
        width: D, of the language model.
        vocabulary: V.
        image_tokens: Q.
        feature_size: F.
        value_bytes: of a value in the frozen parts' number format.
        layer_bytes: saved by a layer for the backward pass, per token.
        pair_bytes: the same per pair of tokens: masks, and attention that is not fused.
        cache_bytes: keys and values of a token in a layer.
    """

    llm: int
    towers: int
    projection: int
    lora: int
    layers: int
    width: int
    vocabulary: int
    image_tokens: int
    feature_size: int
    value_bytes: int
    layer_bytes: float
    pair_bytes: float
    cache_bytes: float

    def layer(self, rows: int, tokens: int, cached_tokens: int = 0) -> int:
        """Bytes that one layer saves for rows of tokens after a cached prefix."""
        # Each row has a copy of the cached keys and values.
        of_a_row = tokens * (self.layer_bytes + (tokens + cached_tokens) * self.pair_bytes)
        return int(rows * (of_a_row + cached_tokens * self.cache_bytes))


def measure_model(config: MiniGPT4Config, dtype: torch.dtype, quantization: str | None = None) -> ModelSize:
    """Measure a model from its configuration.

    Args:
        config: of the model.
        dtype: number format of the frozen parts.
        quantization: a format of `captune.model.quantization`, of the language model's matrices except its head; None
            is none.

    Raises:
        ConfigError: the quantization is unknown, or the language model cannot be built from its configuration.
    """
    if quantization is not None and quantization not in QUANTIZED:
        raise ConfigError(f"There is no quantization '{quantization}'; expected one of: {', '.join(QUANTIZED)}.")
    with torch.device("meta"):
        model = MiniGPT4(config)
    value_bytes = dtype.itemsize
    llm = _unique_values(model.llm.parameters()) * value_bytes
    if quantization is not None:
        head = model.llm.get_output_embeddings()
        matrices = [m.weight for m in model.llm.modules() if isinstance(m, nn.Linear) and m is not head]
        llm += int(_unique_values(matrices) * (QUANTIZED[quantization] - value_bytes))
    towers = [*model.vision.parameters()]
    if model.qformer is not None:
        towers += [*model.qformer.parameters(), model.query_tokens]
    text = config.text_config.get_text_config()
    layer_bytes, pair_bytes, cache_bytes = _layer(text, dtype, config.lora)
    return ModelSize(
        llm=llm,
        towers=_unique_values(towers) * value_bytes,
        projection=_unique_values(model.projection.parameters()) * FLOAT32,
        lora=_unique_values(p for p in model.llm.parameters() if p.requires_grad),
        layers=int(text.num_hidden_layers),
        width=int(text.hidden_size),
        vocabulary=int(text.vocab_size),
        image_tokens=config.image_tokens,
        feature_size=config.feature_size,
        value_bytes=value_bytes,
        layer_bytes=layer_bytes,
        pair_bytes=pair_bytes,
        cache_bytes=cache_bytes,
    )


def saved_bytes(compute: Callable[[], Any], tensors: Iterable[Tensor]) -> tuple[int, Any]:
    """Bytes that autograd saves for the backward pass of a computation, each storage counted once.

    Args:
        compute: the computation.
        tensors: weights and buffers, which are not counted.

    Returns:
        The bytes, and what `compute` returned.
    """
    existing = {tensor.untyped_storage()._cdata for tensor in tensors}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in existing:
            # The reference keeps the address of the storage from being reused.
            saved.setdefault(storage, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values()), result


def _layer(text_config: Any, dtype: torch.dtype, lora: dict[str, Any] | None) -> tuple[float, float, float]:
    """Bytes in one layer: saved per token, saved per pair of tokens, and cached per token.

    The difference between two layers and one excludes what all layers share: rotary tables, the last norm. Two lengths
    separate the linear from the quadratic part.
    """
    try:
        traces = [[_traced(text_config, layers, tokens, dtype, lora) for layers in (1, 2)] for tokens in TRACED_TOKENS]
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        reason = error_text(error)
        raise ConfigError(f"The memory of a '{text_config.model_type}' layer cannot be traced: {reason}") from error
    kept = [two[0] - one[0] for one, two in traces]
    cached = traces[0][1][1] - traces[0][0][1]
    short, long = TRACED_TOKENS
    of_pair = (kept[1] / long - kept[0] / short) / (long - short)
    return kept[0] / short - short * of_pair, of_pair, cached / short


def _traced(
    text_config: Any, layers: int, tokens: int, dtype: torch.dtype, lora: dict[str, Any] | None
) -> tuple[int, int]:
    """Run the language model's first layers with fake tensors and the masks of training."""
    short = copy.deepcopy(text_config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(short, dtype=dtype).eval().requires_grad_(False)
        if lora is not None:
            with_lora(llm, lora)
    decoder = llm.get_decoder()
    with FakeTensorMode():
        _make_fake(decoder)
        embeddings = torch.empty(1, tokens, llm.get_input_embeddings().weight.shape[1], dtype=dtype, requires_grad=True)
        mask = torch.ones(1, 1, tokens, tokens, dtype=torch.bool)
        positions = torch.arange(tokens).unsqueeze(0)
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": positions}
        tensors = [*decoder.parameters(), *decoder.buffers()]
        kept, _ = saved_bytes(lambda: decoder(**inputs, use_cache=False), tensors)
        with torch.no_grad():
            cache = kv_cache_of(decoder(**inputs, use_cache=True))
        return kept, cache_size(cache)


def _make_fake(module: nn.Module) -> None:
    """Replace the meta tensors of a module by fake tensors, which select the kernels of a real device."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            empty = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(part, name, nn.Parameter(empty, requires_grad=weight.requires_grad))
        for name, buffer in list(part.named_buffers(recurse=False)):
            setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def cache_size(cache: Any) -> int:
    """Bytes of the keys and values in a transformers cache."""
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


def _unique_values(parameters: Iterable[Tensor]) -> int:
    """Number of values; tied weights count once."""
    return sum({id(parameter): parameter.numel() for parameter in parameters}.values())


RESERVE = 1_500_000_000
"""Bytes of a GPU for the CUDA context and memory fragmentation."""


@dataclass(frozen=True, slots=True)
class Part:
    """One line of an estimate.

    Attributes:
        name: of the part.
        bytes: its size.
        why: the numbers behind it.
    """

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory of one phase of a run.

    Attributes:
        phase: "training" or "generation".
        parts: its parts, which sum to the peak.
    """

    phase: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class TrainingLoad:
    """The size of one micro-batch in training.

    Attributes:
        rows: B, rows for the language model.
        tokens: T, tokens of each row, padding included.
        logit_positions: N, positions at which logits are computed.
        images: I, images in these rows.
        cached_tokens: length of the shared prefix, whose keys and values are computed once.
        kv_only_tokens: tokens of each row for which the last layer computes keys and values only.
    """

    rows: int
    tokens: int
    logit_positions: int
    images: int
    cached_tokens: int = 0
    kv_only_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationLoad:
    """The size of one batch in generation.

    Attributes:
        images: images in a batch.
        prompt_tokens: tokens of the prompt with the image.
        new_tokens: longest caption in tokens.
        beams: beams of beam search.
    """

    images: int
    prompt_tokens: int
    new_tokens: int
    beams: int = 1

    @property
    def cached_tokens(self) -> int:
        """Cached tokens of a row; the last new token is never an input."""
        return self.prompt_tokens + self.new_tokens - 1


def training_memory(
    model: ModelSize,
    load: TrainingLoad,
    *,
    checkpointing: bool = False,
    towers: bool = True,
    reserve: int = 0,
) -> MemoryEstimate:
    """Estimate the peak memory of training.

    Args:
        model: sizes of the model.
        load: one micro-batch.
        checkpointing: activation checkpointing.
        towers: vision encoder and Q-Former stay loaded.
        reserve: bytes of the device that are not available for tensors.
    """
    tokens = load.rows * load.tokens
    one_layer = model.layer(load.rows, load.tokens, load.cached_tokens)
    if checkpointing:
        kept = tokens * model.layers * model.width * model.value_bytes
        how = f"{load.rows} rows x {load.tokens} tokens x {model.layers} hidden states"
    else:
        kv_only = load.rows * load.kv_only_tokens
        kept = one_layer * model.layers - int(kv_only * max(0.0, model.layer_bytes - 2 * model.cache_bytes))
        each = one_layer / tokens / 1024
        how = f"{load.rows} rows x {load.tokens} tokens x {model.layers} layers x {each:.1f} KiB"
    features = load.images * model.image_tokens * model.feature_size * FLOAT32
    values = load.logit_positions * model.vocabulary
    at = f"{load.logit_positions:,} positions x {model.vocabulary:,} words"
    parts = [
        *_weights(model, towers),
        Part("gradient and AdamW", 3 * model.projection, "of the projection, float32"),
        *_lora(model),
        Part("features", features, f"{load.images} images x {model.image_tokens} tokens"),
        Part("activations", kept, how),
        Part("log-probabilities", values * FLOAT32, f"{at}, kept for the backward pass"),
        Part("logits", values * (model.value_bytes + FLOAT32), f"{at}, and their gradient"),
        Part("active layer", one_layer, "the tensors of one layer while it is computed"),
    ]
    return MemoryEstimate("training", (*parts, *_reserve(reserve)))


def generation_memory(
    model: ModelSize, load: GenerationLoad, *, towers: bool = True, reserve: int = 0
) -> MemoryEstimate:
    """Estimate the peak memory of captioning.

    Args:
        model: sizes of the model.
        load: one batch.
        towers: vision encoder and Q-Former stay loaded.
        reserve: bytes of the device that are not available for tensors.
    """
    rows = load.images * load.beams
    cache = int(rows * load.cached_tokens * model.layers * model.cache_bytes)
    parts = [
        *_weights(model, towers),
        Part(
            "KV cache",
            cache,
            f"{rows} rows x {load.cached_tokens} tokens x {model.layers} layers x {model.cache_bytes / 1024:.1f} KiB",
        ),
        Part(
            "logits",
            rows * model.vocabulary * (model.value_bytes + 2 * FLOAT32),
            f"{rows} rows x {model.vocabulary:,} words, and their scores",
        ),
        Part("active layer", model.layer(rows, load.prompt_tokens), "during prefill"),
    ]
    return MemoryEstimate("generation", (*parts, *_reserve(reserve)))


def _weights(model: ModelSize, towers: bool) -> list[Part]:
    parts = [Part("language model", model.llm, f"{model.layers} layers, {model.width} wide")]
    if towers:
        parts.append(Part("vision encoder and Q-Former", model.towers, "stay loaded"))
    return [*parts, Part("projection", model.projection, "trained, float32")]


def _lora(model: ModelSize) -> list[Part]:
    if not model.lora:
        return []
    # Values in float32 need no master copy.
    master = 0 if model.value_bytes >= FLOAT32 else FLOAT32
    trained = model.lora * (model.value_bytes + master + 2 * FLOAT32)
    how = "gradient, float32 master and AdamW" if master else "gradient and AdamW"
    return [Part("LoRA", trained, f"{how} of {model.lora:,} values")]


def _reserve(reserve: int) -> list[Part]:
    return [Part("reserve", reserve, "CUDA context and fragmentation")] if reserve else []
