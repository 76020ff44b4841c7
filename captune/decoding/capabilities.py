"""Whether a language model's rows can be decoded from slots, tried out and not looked up in a list of names."""

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
from captune.decoding.decode_attention import at, has_kernel
from captune.decoding.forward import decode_step, fill, mixed_forward, read
from captune.decoding.kv_cache import MixedBatch, StaticKVCache, layers_of
from captune.errors import ConfigError

__all__ = [
    "supports_decode_attention",
    "supports_mixed_batch",
    "supports_sequence_ends",
    "unsupported_reason",
]

logger = logging.getLogger(__name__)

_ROWS, _TOKENS = 3, 12
"""Rows with which a model is tried out, and tokens of each."""
_EXACT = 1e-3
"""Largest relative difference of logits that rounding in float32 explains."""
_EXACT_IN_HALF = 0.1
"""The same for 16-bit formats, whose own noise is several percent."""
_LAST = 6
"""Tokens at the end of a long row whose logits are compared; all tokens of a short one are."""
_STEP = 64
"""Widths are tried in multiples of this, so that rows a little longer need no other trial."""
_TRIED: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_TRIED_WIDE: WeakKeyDictionary[Any, dict[int, str | None]] = WeakKeyDictionary()
_TRIED_MIXED: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_TRIED_ENDS: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()
_TRIED_DECODE_ATTENTION: WeakKeyDictionary[Any, str | None] = WeakKeyDictionary()


def unsupported_reason(llm: Any, width: int) -> str | None:
    """Why a language model's rows cannot be decoded from slots.

    Slots need a cache that is keys and values and nothing else, and no window narrower than the rows. Whether masks and
    positions are honoured is tried out on a few tokens, once for a model, and on rows of this width: some families
    ignore them without a word, or only beyond a window that their cache knows nothing of (GPT-Neo).

    Args:
        llm: a causal language model.
        width: W, the longest row.

    Returns:
        A reason, or None.
    """
    try:
        layers = DynamicCache(config=llm.config.get_text_config(decoder=True)).layers
    except (AttributeError, TypeError, ValueError) as error:
        return f"its cache is not known ({error})"
    for layer in layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"it keeps a {type(layer).__name__}"
        window = getattr(layer, "sliding_window", None)
        if layer.is_sliding and (window is None or window < width):
            return f"its window of {window} tokens is narrower than a row of {width}"
    if llm not in _TRIED:
        _TRIED[llm] = _trial(llm, _from_slots)
    if _TRIED[llm] is not None or width <= _TOKENS:
        return _TRIED[llm]
    tried = _TRIED_WIDE.setdefault(llm, {})
    positions = getattr(llm.config.get_text_config(decoder=True), "max_position_embeddings", None) or width
    wide = max(width, min(-(-width // _STEP) * _STEP, int(positions)))
    if wide not in tried:
        tried[wide] = _trial(llm, _from_slots, wide)
    return tried[wide]


def supports_mixed_batch(llm: Any) -> bool:
    """Whether prompts can come in beside the newest tokens of other rows, in one forward (`captune.decoding.kv_cache`).

    Args:
        llm: a causal language model that slots fit.
    """
    if llm.config.get_text_config(decoder=True)._attn_implementation != "sdpa":
        return False
    if llm not in _TRIED_MIXED:
        _TRIED_MIXED[llm] = _trial(llm, _from_mixed_batch)
    return _TRIED_MIXED[llm] is None


def supports_sequence_ends(llm: Any) -> bool:
    """Whether the last layer can be run for the ends of prompts only, and read the rest of them.

    Args:
        llm: a causal language model that takes packs.
    """
    if llm not in _TRIED_ENDS:
        _TRIED_ENDS[llm] = _trial(llm, partial(_from_mixed_batch, ends=True))
    return _TRIED_ENDS[llm] is None


def supports_decode_attention(llm: Any) -> bool:
    """Whether single tokens can attend by the kernel of `captune.decoding.decode_attention`: on a GPU only.

    Args:
        llm: a causal language model that slots fit.
    """
    if llm.config.get_text_config(decoder=True)._attn_implementation != "sdpa" or not has_kernel(llm.device):
        return False
    if llm not in _TRIED_DECODE_ATTENTION:
        try:
            with at(llm.device):
                reason = _trial(llm, _from_decode_attention)
        except Exception as error:  # what a kernel's compiler, its tools or a driver may raise has no common type
            reason = f"it cannot be made ({error_text(error)})"
        _TRIED_DECODE_ATTENTION[llm] = reason
        if reason is not None:
            logger.warning("decoding attends without captune's own kernel: %s", reason)
    return _TRIED_DECODE_ATTENTION[llm] is None


@torch.inference_mode()
def _trial(llm: Any, run: Callable[[Any, Tensor], list[tuple[Tensor, Tensor]]], tokens: int = _TOKENS) -> str | None:
    """Run rows from slots and each alone, and compare the logits: a reason why not, or None.

    `forward` is called itself, past what somebody may have hooked to the model.

    Args:
        llm: a causal language model.
        run: given the model and (R, T, D) embeddings, (R, V) logits behind some tokens and (R,) these tokens' columns.
        tokens: T; of rows longer than a few tokens only the last ones are compared.
    """
    embedding = llm.get_input_embeddings()
    ids = torch.arange(_ROWS * tokens, device=embedding.weight.device).view(_ROWS, tokens)
    embeddings = embedding(ids * 7 % embedding.weight.shape[0])
    kept: dict[str, Any] = {} if tokens == _TOKENS else {"logits_to_keep": _LAST}
    skipped = 0 if tokens == _TOKENS else tokens - _LAST
    try:
        alone = [llm.forward(inputs_embeds=row.unsqueeze(0), use_cache=False, **kept).logits[0] for row in embeddings]
        worst = 0.0
        for found, columns in run(llm, embeddings):
            places = (columns - skipped).tolist()
            wanted = torch.stack([row[place] for row, place in zip(alone, places, strict=True)])
            worst = max(worst, float((found - wanted).float().norm() / wanted.float().norm()))
    except (AttributeError, ConfigError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"it does not take rows from slots ({error_text(error)})"
    allowed = _EXACT_IN_HALF if wanted.dtype in (torch.bfloat16, torch.float16) else _EXACT
    # Written this way round, so that logits which are no numbers do not pass.
    return None if worst <= allowed else f"rows from slots change its logits by {worst:.1e}"


def _from_decode_attention(llm: Any, embeddings: Tensor) -> list[tuple[Tensor, Tensor]]:
    """As from slots, by the kernel for single tokens."""

    def read_next(llm: Any, cache: StaticKVCache, fed: Tensor, columns: Tensor) -> Tensor:
        return decode_step(llm.forward, llm.config, cache, fed, columns)

    return _from_slots(llm, embeddings, read_next)


def _read_seen(llm: Any, cache: StaticKVCache, fed: Tensor, columns: Tensor) -> Tensor:
    seen = torch.arange(cache.width, device=columns.device) <= columns.unsqueeze(1)
    return read(llm.forward, llm.config, cache, fed, columns.unsqueeze(1), seen.unsqueeze(1))


def _from_slots(
    llm: Any, embeddings: Tensor, read_next: Callable[[Any, StaticKVCache, Tensor, Tensor], Tensor] = _read_seen
) -> list[tuple[Tensor, Tensor]]:
    """Rows of other lengths side by side, three tokens one after the other."""
    tokens = embeddings.shape[1]
    cache = StaticKVCache(_ROWS, tokens, layers=layers_of(llm))
    lengths = torch.tensor([tokens - 3, tokens - _LAST, tokens - 4], device=embeddings.device)
    _begin(llm, cache, embeddings, int(lengths.max()))
    return [_next(llm, cache, embeddings, lengths + step, read_next) for step in range(3)]


def _from_mixed_batch(llm: Any, embeddings: Tensor, *, ends: bool = False) -> list[tuple[Tensor, Tensor]]:
    """One row under way, two that come in beside its next token, and one more token of all."""
    cache = StaticKVCache(_ROWS, _TOKENS, layers=layers_of(llm))
    under_way, longest, shorter = 5, 8, 6
    _begin(llm, cache, embeddings[:1], under_way)
    device = embeddings.device
    places = torch.arange(longest, device=device)
    pack = MixedBatch(
        columns=torch.tensor([under_way], device=device),
        seen=(torch.arange(under_way + 1, device=device) <= under_way).view(1, 1, 1, -1),
        first=1,
        start=0,
        begun=(places <= places.unsqueeze(1)).view(1, 1, longest, longest),
    )
    tokens = torch.cat([embeddings[0, under_way : under_way + 1], *embeddings[1:, :longest]]).unsqueeze(0)
    positions = torch.cat([pack.columns, places, places]).unsqueeze(0)
    last = torch.tensor([0, longest, longest + shorter], device=device)
    logits = mixed_forward(llm.forward, llm.config, cache, tokens, positions, last, pack, llm if ends else None)
    columns = torch.tensor([under_way, longest - 1, shorter - 1], device=device)
    return [(logits, columns), _next(llm, cache, embeddings, columns + 1)]


def _begin(llm: Any, cache: StaticKVCache, embeddings: Tensor, length: int) -> None:
    cache.fill(0, len(embeddings), 0, length)
    positions = torch.arange(length, device=embeddings.device)
    seen = (positions <= positions.unsqueeze(1)).unsqueeze(0)
    fill(llm.forward, llm.config, cache, embeddings[:, :length], positions.expand(len(embeddings), -1), seen)


def _next(
    llm: Any,
    cache: StaticKVCache,
    embeddings: Tensor,
    columns: Tensor,
    read_next: Callable[[Any, StaticKVCache, Tensor, Tensor], Tensor] = _read_seen,
) -> tuple[Tensor, Tensor]:
    """Logits behind the tokens of these columns, and the columns."""
    cache.extend(columns, int(columns.max()) + 1, embeddings.shape[1])
    fed = embeddings[torch.arange(len(columns), device=columns.device), columns].unsqueeze(1)
    return read_next(llm, cache, fed, columns), columns
