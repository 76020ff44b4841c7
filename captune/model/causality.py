"""Tests on a loaded language model: it reads embeddings as it reads token ids, and no token depends on a later one.

Both are measured on a few tokens, so no list of model families has to be kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captune.common import error_text
from captune.errors import WeightsError

__all__ = ["check_causal"]

_TOKENS = 12
_ALLOWED = 1e-3
"""Largest relative difference of logits that rounding explains in float32."""
_ALLOWED_IN_HALF = 0.02
"""The same in 16-bit formats. The tensors compared have the same shapes, so most models give equal numbers."""


@torch.no_grad()
def check_causal(llm: Any, name: str) -> None:
    """Refuse a model whose logits depend on later tokens, or differ between token ids and their embeddings.

    Image tokens are embeddings between those of words, and training predicts each token from those before it.

    Args:
        llm: a model with a language modelling head, in eval mode.
        name: of the model, for the messages.

    Raises:
        WeightsError: the model is not causal, or cannot read image tokens.
    """
    embedding = llm.get_input_embeddings()
    if embedding.weight.is_meta:
        return
    size = embedding.weight.shape[0]
    # Spread over the vocabulary; the first ids are special tokens, such as padding, which some models skip.
    ids = (torch.arange(_TOKENS, device=embedding.weight.device) * 7 + 5).remainder(size).unsqueeze(0)
    words = embedding(ids)
    changed = words.clone()
    changed[:, _TOKENS // 2 :] = words[:, : _TOKENS - _TOKENS // 2].roll(1, dims=1)
    try:
        from_ids, from_embeddings, from_changed = (
            llm(**inputs, use_cache=False).logits[0]
            for inputs in ({"input_ids": ids}, {"inputs_embeds": words}, {"inputs_embeds": changed})
        )
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = error_text(error)
        raise WeightsError(
            f"The language model {name} cannot be run on words and their embeddings ({reason}); give another."
        ) from error
    allowed = _ALLOWED_IN_HALF if words.dtype in (torch.bfloat16, torch.float16) else _ALLOWED
    kept = slice(0, _TOKENS // 2)
    difference = _difference(from_changed[kept], from_embeddings[kept])
    # Written this way round, so that logits which are no numbers are left to the checks that name them.
    if difference > allowed:
        raise WeightsError(
            f"{name} is no causal language model: its logits change by {difference:.1e} with later tokens, so training "
            "would read the captions it has to predict; give a decoder."
        )
    difference = _difference(from_embeddings, from_ids)
    if difference > allowed:
        raise WeightsError(
            f"The language model {name} gives other logits for the embeddings of words than for the words (by "
            f"{difference:.1e}), so image tokens cannot be put between them; give another model."
        )


def _difference(logits: Tensor, expected: Tensor) -> float:
    """Relative difference of logits at the median position, which a single rerouted token does not decide."""
    differences = (logits.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return float(differences.median())
