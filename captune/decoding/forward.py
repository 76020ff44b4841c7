"""A language model's forward passes over a static KV cache: prefill, decode step, and both at once.

Letters: B prompts of T tokens, R rows that are decoded, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captune.decoding.decode_attention import DECODE_ATTENTION
from captune.decoding.kv_cache import MIXED_ATTENTION, MixedBatch, StaticKVCache
from captune.model import LayerCall, StopAfterKV, decoder_layers, hidden_states, patched_layer, with_hidden_states
from captune.transformers_compat import CACHE_ARGUMENT, attention_implementation, use_attention

__all__ = ["decode_step", "forward", "mixed_forward", "prefill"]


def prefill(
    model: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, positions: Tensor, mask: Tensor
) -> None:
    """Write the keys and values of prompts into their slots.

    The model's output for a prompt without its last token is unused, so the forward ends in the last layer as soon as
    that has its keys and values: neither its attention and feed-forward nor the head are computed.

    Args:
        model: the language model, or its `forward`.
        config: its configuration.
        cache: after `StaticKVCache.set_prefill`.
        embeddings: (B, T, D).
        positions: (B, T) int64.
        mask: (B or 1, T, columns) bool, the columns that each token sees.
    """
    with suppress(StopAfterKV):
        _run(model, config, cache, embeddings, positions, mask)


def forward(
    model: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, positions: Tensor, mask: Tensor
) -> Tensor:
    """(R, V) logits after one new token a row; arguments of `prefill`, after `StaticKVCache.set_decode`."""
    logits: Tensor = _run(model, config, cache, embeddings, positions, mask).logits[:, -1]
    return logits


def decode_step(
    model: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, columns: Tensor
) -> Tensor:
    """The same as `forward` where every row sees its column and all before it, by captune's decode attention.

    Args:
        model: the language model, or its `forward`.
        config: its configuration; its attention must be `sdpa`.
        cache: after `StaticKVCache.set_decode`.
        embeddings: (R, 1, D).
        columns: (R,) int64, where the tokens are written.

    Returns:
        (R, V).
    """
    with use_attention(config, DECODE_ATTENTION):
        logits: Tensor = model(
            inputs_embeds=embeddings,
            attention_mask=_no_mask(embeddings),
            position_ids=columns.unsqueeze(1),
            use_cache=True,
            logits_to_keep=1,
            columns=columns,
            **{CACHE_ARGUMENT: cache},
        ).logits[:, -1]
    return logits


def mixed_forward(
    model: Callable[..., Any],
    config: Any,
    cache: StaticKVCache,
    embeddings: Tensor,
    positions: Tensor,
    last: Tensor,
    batch: MixedBatch,
    llm: Any = None,
) -> Tensor:
    """Logits after the newest token of rows and after new prompts, from one forward over both.

    Args:
        model: the language model, or its `forward`.
        config: its configuration; its attention must be `sdpa`.
        cache: receives the keys and values.
        embeddings: (1, R + B * T, D), R newest tokens and B prompts of T tokens, end to end.
        positions: (1, R + B * T) int64.
        last: (R + B,) int64, the tokens whose logits are returned.
        batch: where each token is written and what it sees.
        llm: the language model again, to compute its last layer for these tokens only; of the others that layer
            computes keys and values.

    Returns:
        (R + B, V).
    """
    cache.set_mixed(batch)
    replaced = partial(_set_sequence_ends, cache, last, batch, positions[0, last])
    last_layer = nullcontext() if llm is None else patched_layer(decoder_layers(llm)[-1], replaced)
    with use_attention(config, MIXED_ATTENTION), last_layer:
        logits: Tensor = model(
            inputs_embeds=embeddings,
            attention_mask=_no_mask(embeddings),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=last,
            mixed_batch=batch,
            **{CACHE_ARGUMENT: cache},
        ).logits
    return logits[0]


def _set_sequence_ends(cache: StaticKVCache, last: Tensor, batch: MixedBatch, columns: Tensor, call: LayerCall) -> Any:
    """The last layer's output with new states for the `last` tokens only."""
    call.fill_cache(cache, mixed_batch=batch)
    ends = batch.only_newest(columns)
    cache.set_mixed(ends)
    output = call.select(last)(cache, mixed_batch=ends)
    return with_hidden_states(output, call.states.index_copy(1, last, hidden_states(output)))


def _no_mask(embeddings: Tensor) -> Tensor:
    """A mask of four dimensions, which models pass on unchanged; the attention function takes its mask elsewhere."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device)


def _run(
    model: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, positions: Tensor, mask: Tensor
) -> Any:
    mask = mask.unsqueeze(1)
    if attention_implementation(config) == "eager":
        mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(~mask, torch.finfo(embeddings.dtype).min)
    return model(
        inputs_embeds=embeddings,
        attention_mask=mask.expand(len(embeddings), -1, -1, -1),
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{CACHE_ARGUMENT: cache},
    )
