"""What a language model's layers support, tested on a few tokens instead of listed by model type."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from captune.common import error_text
from captune.decoding.decode_attention import current_device, has_kernel
from captune.decoding.forward import decode_step, forward, mixed_forward, prefill
from captune.decoding.kv_cache import MixedBatch, StaticKVCache, cache_layer_count
from captune.errors import ConfigError
from captune.transformers_compat import attention_implementation

__all__ = ["supports_decode_attention", "supports_mixed_batch", "supports_sequence_ends", "unsupported_reason"]

logger = logging.getLogger(__name__)

_ROWS, _TOKENS = 3, 12
"""Rows of the test, and tokens of each."""
_TOLERANCE = 1e-3
"""Largest relative difference of logits that rounding in float32 explains."""
_HALF_TOLERANCE = 0.1
"""The same for 16-bit formats, whose noise is several percent."""
_LAST = 6
"""Tokens at the end of a long row whose logits are compared; all tokens of a short one are."""
_WIDTH_STEP = 64
"""Widths are tested in multiples of this, so that slightly longer rows need no further test."""
_TESTED: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_TESTED_WIDE: WeakKeyDictionary[Any, dict[int, str | None]] = WeakKeyDictionary()
_TESTED_MIXED: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_TESTED_ENDS: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_TESTED_DECODE_ATTENTION: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()


def unsupported_reason(llm: Any, width: int) -> str | None:
    """Why a language model cannot decode with the static KV cache.

    The static cache holds keys and values only, and needs an attention window as wide as the rows. Masks and positions
    are tested on a few tokens, once for a model, and on rows of this width: some families ignore them silently, or
    beyond a window that their cache does not report (GPT-Neo).

    Args:
        llm: a causal language model.
        width: W, the longest row.

    Returns:
        A reason, or None.
    """
    try:
        layers = DynamicCache(config=llm.config.get_text_config(decoder=True)).layers
    except (AttributeError, TypeError, ValueError) as error:
        return f"its cache is unknown ({error})"
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"its cache has a {type(layer).__name__}"
        window = getattr(layer, "sliding_window", None)
        if layer.is_sliding and (window is None or window < width):
            return f"its window of {window} tokens is narrower than a row of {width}"
    if llm not in _TESTED:
        _TESTED[llm] = _compare(llm, _with_static_cache)
    if _TESTED[llm] is not None or width <= _TOKENS:
        return _TESTED[llm]
    tested = _TESTED_WIDE.setdefault(llm, {})
    positions = getattr(llm.config.get_text_config(decoder=True), "max_position_embeddings", None) or width
    wide = max(width, min(-(-width // _WIDTH_STEP) * _WIDTH_STEP, int(positions)))
    if wide not in tested:
        tested[wide] = _compare(llm, _with_static_cache, wide)
    return tested[wide]


def supports_mixed_batch(llm: Any) -> bool:
    """Whether new prompts and the newest tokens of other rows can share a forward (`MixedBatch`).

    Args:
        llm: a causal language model that the static KV cache supports.
    """
    if attention_implementation(llm.config) != "sdpa":
        return False
    if llm not in _TESTED_MIXED:
        _TESTED_MIXED[llm] = _compare(llm, _with_mixed_batch)
    return _TESTED_MIXED[llm] is None


def supports_sequence_ends(llm: Any) -> bool:
    """Whether the last layer can be computed for the last tokens of prompts only, and keys and values for the others.

    Args:
        llm: a causal language model that supports mixed batches.
    """
    if llm not in _TESTED_ENDS:
        _TESTED_ENDS[llm] = _compare(llm, partial(_with_mixed_batch, ends=True))
    return _TESTED_ENDS[llm] is None


def supports_decode_attention(llm: Any) -> bool:
    """Whether decode steps can use the kernel of `captune.decoding.decode_attention`: on a GPU only.

    Args:
        llm: a causal language model that the static KV cache supports.
    """
    if attention_implementation(llm.config) != "sdpa" or not has_kernel(llm.device):
        return False
    if llm not in _TESTED_DECODE_ATTENTION:
        try:
            with current_device(llm.device):
                reason = _compare(llm, partial(_with_static_cache, step=_decode_step))
        except Exception as error:  # compilers and drivers raise errors without a common type
            reason = error_text(error)
        _TESTED_DECODE_ATTENTION[llm] = reason
        if reason is not None:
            logger.warning("decoding runs without captune's attention kernel, which failed (%s)", reason)
    return _TESTED_DECODE_ATTENTION[llm] is None


@torch.inference_mode()
def _compare(llm: Any, run: Callable[[Any, Tensor], list[tuple[Tensor, Tensor]]], tokens: int = _TOKENS) -> str | None:
    """Compare the logits of a few rows with those of each row in a forward without cache.

    `forward` is called directly, without the hooks of the model.

    Args:
        llm: a causal language model.
        run: takes the model and embeddings (R, T, D); returns logits (R, V) after some tokens, and their columns (R,).
        tokens: T; only the last ones of longer rows are compared.

    Returns:
        The difference as text, or None.
    """
    embedding = llm.get_input_embeddings()
    ids = torch.arange(_ROWS * tokens, device=embedding.weight.device).view(_ROWS, tokens)
    embeddings = embedding(ids * 7 % embedding.weight.shape[0])
    kept: dict[str, Any] = {} if tokens == _TOKENS else {"logits_to_keep": _LAST}
    skipped = 0 if tokens == _TOKENS else tokens - _LAST
    try:
        alone = [llm.forward(inputs_embeds=row.unsqueeze(0), use_cache=False, **kept).logits[0] for row in embeddings]
        worst = 0.0
        for logits, columns in run(llm, embeddings):
            indices = (columns - skipped).tolist()
            expected = torch.stack([row[index] for row, index in zip(alone, indices, strict=True)])
            worst = max(worst, float((logits - expected).float().norm() / expected.float().norm()))
    except (AttributeError, ConfigError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"it does not support the static KV cache ({error_text(error)})"
    tolerance = _HALF_TOLERANCE if expected.dtype in (torch.bfloat16, torch.float16) else _TOLERANCE
    # NaN does not pass this comparison.
    return None if worst <= tolerance else f"the static KV cache changes its logits by {worst:.1e}"


_Step = Callable[[Any, StaticKVCache, Tensor, Tensor], Tensor]
"""A decode step: (R, V) logits of a model after the tokens with embeddings (R, 1, D) in columns (R,) of a cache."""


def _decode_step(llm: Any, cache: StaticKVCache, inputs: Tensor, columns: Tensor) -> Tensor:
    return decode_step(llm.forward, llm.config, cache, inputs, columns)


def _forward(llm: Any, cache: StaticKVCache, inputs: Tensor, columns: Tensor) -> Tensor:
    mask = torch.arange(cache.width, device=columns.device) <= columns.unsqueeze(1)
    return forward(llm.forward, llm.config, cache, inputs, columns.unsqueeze(1), mask.unsqueeze(1))


def _with_static_cache(llm: Any, embeddings: Tensor, step: _Step = _forward) -> list[tuple[Tensor, Tensor]]:
    """Rows of different lengths in one batch, three decode steps."""
    tokens = embeddings.shape[1]
    cache = StaticKVCache(_ROWS, tokens, layers=cache_layer_count(llm))
    lengths = torch.tensor([tokens - 3, tokens - _LAST, tokens - 4], device=embeddings.device)
    _prefill(llm, cache, embeddings, int(lengths.max()))
    return [_next(llm, cache, embeddings, lengths + more, step) for more in range(3)]


def _with_mixed_batch(llm: Any, embeddings: Tensor, *, ends: bool = False) -> list[tuple[Tensor, Tensor]]:
    """One row in its decode step, two new prompts in the same forward, and one more step of all."""
    cache = StaticKVCache(_ROWS, _TOKENS, layers=cache_layer_count(llm))
    length, longest, shorter = 5, 8, 6
    _prefill(llm, cache, embeddings[:1], length)
    device = embeddings.device
    positions = torch.arange(longest, device=device)
    batch = MixedBatch(
        columns=torch.tensor([length], device=device),
        mask=(torch.arange(length + 1, device=device) <= length).view(1, 1, 1, -1),
        first_slot=1,
        first_column=0,
        prompt_mask=(positions <= positions.unsqueeze(1)).view(1, 1, longest, longest),
    )
    tokens = torch.cat([embeddings[0, length : length + 1], *embeddings[1:, :longest]]).unsqueeze(0)
    all_positions = torch.cat([batch.columns, positions, positions]).unsqueeze(0)
    last = torch.tensor([0, longest, longest + shorter], device=device)
    logits = mixed_forward(llm.forward, llm.config, cache, tokens, all_positions, last, batch, llm if ends else None)
    columns = torch.tensor([length, longest - 1, shorter - 1], device=device)
    return [(logits, columns), _next(llm, cache, embeddings, columns + 1)]


def _prefill(llm: Any, cache: StaticKVCache, embeddings: Tensor, length: int) -> None:
    cache.set_prefill(0, len(embeddings), 0, length)
    positions = torch.arange(length, device=embeddings.device)
    mask = (positions <= positions.unsqueeze(1)).unsqueeze(0)
    prefill(llm.forward, llm.config, cache, embeddings[:, :length], positions.expand(len(embeddings), -1), mask)


def _next(
    llm: Any, cache: StaticKVCache, embeddings: Tensor, columns: Tensor, step: _Step = _forward
) -> tuple[Tensor, Tensor]:
    """Logits after the tokens of these columns, and the columns."""
    cache.set_decode(columns, int(columns.max()) + 1, embeddings.shape[1])
    inputs = embeddings[torch.arange(len(columns), device=columns.device), columns].unsqueeze(1)
    return step(llm, cache, inputs, columns), columns
