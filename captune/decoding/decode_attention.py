"""Decode attention on a GPU: one query a row, which reads the keys and values of its columns, each once.

Letters: N rows, H heads, G heads of keys, W columns of a slot, D width of a head.

A decode step moves bytes and hardly computes. Kernels made for long queries read every column of every slot, expand the
mask in memory and spend their time on queries that do not exist; here a row stops at its last column. The Triton kernel
is in `decode_attention_kernel`, because its import needs `triton`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

__all__ = ["DECODE_ATTENTION", "current_device", "has_kernel"]

DECODE_ATTENTION = "captune_decode"
"""Name in transformers' `AttentionInterface`; it needs `columns` among the arguments of a model's forward."""


def has_kernel(device: torch.device) -> bool:
    """Whether there is a kernel for a device."""
    return device.type == "cuda" and torch.version.hip is None and find_spec("triton") is not None


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: Triton's kernels and CUDA graphs run there, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def attend(
    module: Any,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    *,
    columns: Tensor,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function for one query a row.

    Args:
        module: a layer's attention.
        query: (N, H, 1, D).
        keys: (N, G, W, D); H is a multiple of G.
        values: (N, G, W, D).
        mask: ignored; it is equivalent to `columns`.
        columns: (N,) int64, the last column that each row sees.
        scaling: of the scores; one over the root of D by default.
        settings: ignored.

    Returns:
        (N, 1, H, D).
    """
    from captune.decoding.decode_attention_kernel import BLOCK, WARPS, one_query

    rows, heads, _, size = query.shape
    output = torch.empty((rows, heads, 1, size), dtype=query.dtype, device=query.device)
    one_query[(rows, heads)](
        query,
        keys,
        values,
        columns,
        output,
        size**-0.5 if scaling is None else scaling,
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        keys.stride(2),
        values.stride(0),
        values.stride(1),
        values.stride(2),
        output.stride(0),
        output.stride(1),
        GROUP=heads // keys.shape[1],
        D=size,
        SIZE=1 << (size - 1).bit_length(),
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return output.transpose(1, 2), None


AttentionInterface.register(DECODE_ATTENTION, attend)
