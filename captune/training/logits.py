"""The loss at target positions, without ever holding logits of the others, or of too many targets at once.

The language model's own forward is used throughout, so that what a family does to its logits (a soft cap, a scale) is
done here too. A hook on its head lets the target states through and drops the others. With a large vocabulary the
targets go through in chunks whose logits are computed again in the backward pass: 2,000 targets over 256,000 words take
6 GB at once and 0.8 GB in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

__all__ = ["VALUES_AT_ONCE", "loss_at", "targets_at_once"]

VALUES_AT_ONCE = 1 << 26
"""Logits that are held at once: 256 MB in float32, twice that with their gradient."""


def targets_at_once(vocabulary: int) -> int:
    """How many targets' logits are computed together."""
    return max(1, VALUES_AT_ONCE // vocabulary)


def loss_at(llm: Any, given: dict[str, Any], rows: Tensor, columns: Tensor, targets: Tensor) -> Tensor:
    """Sum of the negative log-likelihood over N targets, in nats.

    Args:
        llm: a causal language model of transformers.
        given: arguments of its forward: embeddings (B, S, D), masks, positions, a cache.
        rows: (N,) rows of the states that predict the targets.
        columns: (N,) their columns.
        targets: (N,) token ids.

    Returns:
        A scalar in float32, or in float64 for a model in float64.
    """
    head = llm.get_output_embeddings()
    chunk = targets_at_once(head.weight.shape[0])
    if len(targets) <= chunk:
        with _states_at(head, rows, columns):
            logits = llm(**given).logits.squeeze(0)
        return _cross_entropy(logits, targets)
    with _states_kept(head) as kept:
        llm(**given)
    states = _at(kept[0], rows, columns)
    parts = zip(torch.split(states, chunk), torch.split(targets, chunk), strict=True)
    losses: list[Tensor] = [checkpoint(_loss_of_states, llm, *part, use_reentrant=False) for part in parts]
    return torch.stack(losses).sum()


def _at(states: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """States (N, D) at N places of (B, S, D); a place may be asked for several times.

    As a look-up of embeddings, whose gradient is summed in one order. The gradient of an index is summed by threads
    that race where places repeat, so that the last bit of a run's weights would be left to chance.
    """
    return F.embedding(rows * states.shape[1] + columns, states.flatten(0, 1))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(precise, targets, reduction="sum")


def _loss_of_states(llm: Any, states: Tensor, targets: Tensor) -> Tensor:
    """The loss of N last hidden states (N, D), through whatever the language model has behind its decoder."""
    decoder = llm.get_decoder()

    def passed(*args: Any, inputs_embeds: Tensor, **settings: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

    own = decoder.__dict__.get("forward")
    decoder.forward = passed
    try:
        logits = llm(inputs_embeds=states.unsqueeze(0), use_cache=False).logits.squeeze(0)
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own
    return _cross_entropy(logits, targets)


@contextmanager
def _states_at(head: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let only the states (B, S, D) at N places reach the head, as (1, N, D)."""

    def pick(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_at(states[0], rows, columns).unsqueeze(0), *states[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _states_kept(head: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the states (B, S, D) in front of the head, which sees a single one."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(states[0])
        return (states[0][:1, :1], *states[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()
