"""Whether transformers' `generate` gives rows of a batch what it gives each alone; measured, for some families do not.

A recurrent state may be mixed up between rows (RWKV), or read padding as if it were text.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import GenerationConfig

__all__ = ["batchable"]

_TOKENS, _NEW = 12, 4
"""Tokens of a row that is tried, and how many more are generated."""
_ALLOWED = 1e-3
"""Largest relative difference of logits that rounding explains in float32."""
_ALLOWED_IN_HALF = 0.1
_TRIED: WeakKeyDictionary[Any, dict[bool, bool]] = WeakKeyDictionary()


def batchable(llm: Any, *, padded: bool) -> bool:
    """Whether rows of a batch are generated as if each were alone.

    Args:
        llm: a causal language model.
        padded: whether the rows have other lengths, and shorter ones are padded on the left.
    """
    tried = _TRIED.setdefault(llm, {})
    if padded not in tried:
        tried[padded] = _trial(llm, _TOKENS // 2 if padded else _TOKENS)
    return tried[padded]


@torch.no_grad()
def _trial(llm: Any, shorter: int) -> bool:
    embedding = llm.get_input_embeddings()
    ids = torch.arange(3 * _TOKENS, device=embedding.weight.device).view(3, _TOKENS)
    rows = embedding((ids * 7 + 5) % embedding.weight.shape[0])
    mask = torch.ones_like(ids)
    mask[1, : _TOKENS - shorter] = 0
    batch = _logits(llm, rows, mask)
    allowed = _ALLOWED_IN_HALF if rows.dtype in (torch.bfloat16, torch.float16) else _ALLOWED
    for number, row in enumerate(rows):
        seen = mask[number].bool()
        alone = _logits(llm, row[seen].unsqueeze(0), mask[number][seen].unsqueeze(0))
        if not alone.isfinite().all():
            # No evidence about batches; generation reports scores that are not numbers.
            continue
        for batched, single in zip(batch[number], alone[0], strict=True):
            # Written this way round, so that logits which are no numbers do not pass.
            if not float((batched - single).norm() / single.norm()) <= allowed:
                return False
            if batched.argmax() != single.argmax():
                # Rounding chose another word, after which the rows have other texts.
                break
    return True


def _logits(llm: Any, embeddings: Tensor, mask: Tensor) -> Tensor:
    """(B, N, V) logits of new tokens."""
    settings = GenerationConfig(max_new_tokens=_NEW, min_new_tokens=_NEW, do_sample=False, pad_token_id=0)
    llm.generation_config = GenerationConfig()
    made = llm.generate(
        inputs_embeds=embeddings,
        attention_mask=mask,
        generation_config=settings,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(made.logits, dim=1).float()
