"""A language model's forwards over rows in slots: prompts that fill them, one more token of each, or both at once.

Letters: B prompts of T tokens, R rows under way, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from captune.decoding.decode_attention import DECODE_ATTENTION
from captune.decoding.kv_cache import MIXED_ATTENTION, MixedBatch, StaticKVCache, attention
from captune.model.language_model import decoder_layers
from captune.model.layer_call import KeysTaken, LayerCall, intercepted, states_of, with_states
from captune.transformers_compat import CACHE_ARGUMENT

__all__ = ["decode_step", "fill", "mixed_forward", "read"]


def fill(
    forward: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, positions: Tensor, seen: Tensor
) -> None:
    """Put the keys and values of prompts into the slots that the cache was told.

    Nobody reads what the model would say behind a prompt without its last token, so the forward ends in the last layer
    as soon as that has its keys and values: neither its attention and feed-forward nor the head are computed.

    Args:
        forward: the model, or its `forward`.
        config: its configuration.
        cache: after `StaticKVCache.fill`.
        embeddings: (B, T, D).
        positions: (B, T) int64.
        seen: (B or 1, T, columns) bool, what each token looks at.
    """
    with suppress(KeysTaken):
        _run(forward, config, cache, embeddings, positions, seen)


def read(
    forward: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, positions: Tensor, seen: Tensor
) -> Tensor:
    """(B, V) logits behind one token a row, whose keys and values go where the cache was told; arguments of `fill`."""
    logits: Tensor = _run(forward, config, cache, embeddings, positions, seen).logits[:, -1]
    return logits


def decode_step(
    forward: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, columns: Tensor
) -> Tensor:
    """The same as `read` where every row looks at its own column and all before it, by the attention of `newest`.

    Args:
        forward: the model, or its `forward`.
        config: its configuration; its attention must be `sdpa`.
        cache: after `StaticKVCache.extend`.
        embeddings: (B, 1, D).
        columns: (B,) int64, where the tokens go.

    Returns:
        (B, V).
    """
    with attention(config, DECODE_ATTENTION):
        logits: Tensor = forward(
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
    forward: Callable[..., Any],
    config: Any,
    cache: StaticKVCache,
    embeddings: Tensor,
    positions: Tensor,
    last: Tensor,
    pack: MixedBatch,
    llm: Any = None,
) -> Tensor:
    """Logits behind the newest token of rows under way and behind prompts that come in, from one forward over both.

    Args:
        forward: the model, or its `forward`.
        config: its configuration; its attention must be `sdpa`.
        cache: where the keys and values go.
        embeddings: (1, R + B * T, D), R newest tokens and B prompts of T tokens, end to end.
        positions: (1, R + B * T) int64.
        last: (R + B,) int64, behind which of these tokens logits are wanted.
        pack: where each token goes and what it sees.
        llm: the model again, where its last layer is to be run for these tokens only and to read the others.

    Returns:
        (R + B, V).
    """
    cache.pack(pack)
    said = partial(_say_ends, cache, last, pack, positions[0, last])
    ends = nullcontext() if llm is None else intercepted(decoder_layers(llm)[-1], said)
    with attention(config, MIXED_ATTENTION), ends:
        logits: Tensor = forward(
            inputs_embeds=embeddings,
            attention_mask=_no_mask(embeddings),
            position_ids=positions,
            use_cache=True,
            logits_to_keep=last,
            pack=pack,
            **{CACHE_ARGUMENT: cache},
        ).logits
    return logits[0]


def _say_ends(cache: StaticKVCache, last: Tensor, pack: MixedBatch, columns: Tensor, call: LayerCall) -> Any:
    """What the last layer returns, but that only the states of the `last` tokens are new."""
    call.read(cache, pack=pack)
    ends = pack.ends(columns)
    cache.pack(ends)
    said = call.part(last)(cache, pack=ends)
    return with_states(said, call.states.index_copy(1, last, states_of(said)))


def _no_mask(embeddings: Tensor) -> Tensor:
    """Four dimensions, which models hand on as they are; what each token sees, the attention is told otherwise."""
    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device)


def _run(
    forward: Callable[..., Any], config: Any, cache: StaticKVCache, embeddings: Tensor, positions: Tensor, seen: Tensor
) -> Any:
    mask = seen.unsqueeze(1)
    if config.get_text_config(decoder=True)._attn_implementation == "eager":
        mask = torch.zeros_like(mask, dtype=embeddings.dtype).masked_fill(~mask, torch.finfo(embeddings.dtype).min)
    return forward(
        inputs_embeds=embeddings,
        attention_mask=mask.expand(len(embeddings), -1, -1, -1),
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **{CACHE_ARGUMENT: cache},
    )
