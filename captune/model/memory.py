"""How many bytes a run takes at its peak: arithmetic on a model's size.

    training      weights + projection, its gradient and AdamW's two moments (LoRA: a float32 master as well)
                  + kept by each layer: rows * tokens * (layer_bytes + tokens * pair_bytes)
                    (checkpointed: hidden states only; the last layer: keys and values only of tokens that are not read)
                  + logits: positions * vocabulary * (number format + 4 + 4)       values, float32 copy, gradient
    generation    weights + projection
                  + keys and values: rows * beams * tokens * layers * cache_bytes

Shape letters: B rows, T tokens of a row, N positions with logits, V vocabulary, D width, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from captune.model.size import FLOAT32, ModelSize

__all__ = [
    "RESERVE",
    "GenerationLoad",
    "MemoryEstimate",
    "Part",
    "TrainingLoad",
    "generation_memory",
    "training_memory",
]

RESERVE = 1_500_000_000
"""Bytes of a GPU that the CUDA context and the gaps of the allocator take."""


@dataclass(frozen=True, slots=True)
class Part:
    """One line of an estimate.

    Attributes:
        name: what takes the memory.
        bytes: how much.
        why: from which numbers it comes.
    """

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """What one phase of a run takes.

    Attributes:
        phase: "training" or "generation".
        parts: its parts, together the peak.
    """

    phase: str
    parts: tuple[Part, ...]

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class TrainingLoad:
    """What is in the works at once in training: one micro-batch.

    Attributes:
        rows: B, rows for the language model.
        tokens: T, tokens of each row, padding included.
        logit_positions: N, positions at which logits are computed.
        images: I, images in these rows.
        cached_tokens: tokens in front of each row whose keys and values are computed once for all.
        unread_tokens: tokens of each row of which the last layer computes keys and values only.
    """

    rows: int
    tokens: int
    logit_positions: int
    images: int
    cached_tokens: int = 0
    unread_tokens: int = 0


@dataclass(frozen=True, slots=True)
class GenerationLoad:
    """What is in the works at once in generation: one batch.

    Attributes:
        images: images captioned at once.
        prompt_tokens: tokens of the prompt, the image's included.
        new_tokens: longest caption in tokens.
        beams: beams of beam search.
    """

    images: int
    prompt_tokens: int
    new_tokens: int
    beams: int = 1

    @property
    def cached_tokens(self) -> int:
        """Tokens of a row whose keys and values are kept; the last new one is never fed."""
        return self.prompt_tokens + self.new_tokens - 1


def training_memory(
    model: ModelSize,
    load: TrainingLoad,
    *,
    checkpointing: bool = False,
    towers: bool = True,
    reserve: int = 0,
) -> MemoryEstimate:
    """What training takes at its peak.

    Args:
        model: sizes of the model.
        load: one micro-batch.
        checkpointing: keep hidden states only and compute each layer again in the backward pass.
        towers: vision tower and Q-Former stay loaded.
        reserve: bytes of the device that no tensor gets.
    """
    tokens = load.rows * load.tokens
    one_layer = model.layer(load.rows, load.tokens, load.cached_tokens)
    if checkpointing:
        kept = tokens * model.layers * model.width * model.value_bytes
        how = f"{load.rows} rows x {load.tokens} tokens x {model.layers} hidden states"
    else:
        unread = load.rows * load.unread_tokens
        kept = one_layer * model.layers - int(unread * max(0.0, model.layer_bytes - 2 * model.cache_bytes))
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
        Part("layer at work", one_layer, "what one layer holds while it is computed"),
    ]
    return MemoryEstimate("training", (*parts, *_reserve(reserve)))


def generation_memory(
    model: ModelSize, load: GenerationLoad, *, towers: bool = True, reserve: int = 0
) -> MemoryEstimate:
    """What captioning takes at its peak.

    Args:
        model: sizes of the model.
        load: one batch.
        towers: vision tower and Q-Former stay loaded.
        reserve: bytes of the device that no tensor gets.
    """
    rows = load.images * load.beams
    cache = int(rows * load.cached_tokens * model.layers * model.cache_bytes)
    parts = [
        *_weights(model, towers),
        Part(
            "keys and values",
            cache,
            f"{rows} rows x {load.cached_tokens} tokens x {model.layers} layers x {model.cache_bytes / 1024:.1f} KiB",
        ),
        Part(
            "logits",
            rows * model.vocabulary * (model.value_bytes + 2 * FLOAT32),
            f"{rows} rows x {model.vocabulary:,} words, and their scores",
        ),
        Part("layer at work", model.layer(rows, load.prompt_tokens), "while the prompts are read"),
    ]
    return MemoryEstimate("generation", (*parts, *_reserve(reserve)))


def _weights(model: ModelSize, towers: bool) -> list[Part]:
    parts = [Part("language model", model.llm, f"{model.layers} layers, {model.width} wide")]
    if towers:
        parts.append(Part("vision tower and Q-Former", model.towers, "stay loaded beside the language model"))
    return [*parts, Part("projection", model.projection, "trained, float32")]


def _lora(model: ModelSize) -> list[Part]:
    if not model.lora:
        return []
    # Values that are float32 already are their own masters.
    master = 0 if model.value_bytes >= FLOAT32 else FLOAT32
    trained = model.lora * (model.value_bytes + master + 2 * FLOAT32)
    how = "gradient, float32 master and AdamW" if master else "gradient and AdamW"
    return [Part("LoRA", trained, f"{how} of {model.lora:,} values")]


def _reserve(reserve: int) -> list[Part]:
    return [Part("reserve", reserve, "CUDA context and the allocator's gaps")] if reserve else []
