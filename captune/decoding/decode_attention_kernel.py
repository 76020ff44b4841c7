"""The Triton kernel of `decode_attention`; `triton` comes with torch for CUDA.

With TRITON_INTERPRET=1 in the environment at its import it runs on any processor, slowly, as the tests do.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["BLOCK", "WARPS", "one_query"]

BLOCK, WARPS = 32, 1
"""Columns read at once, and warps that do it: the fastest of those tried on an H100."""


@triton.jit  # type: ignore[untyped-decorator]
def one_query(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    columns,
    output,
    scaling,
    query_row,
    query_head,
    keys_row,
    keys_head,
    keys_column,
    values_row,
    values_head,
    values_column,
    output_row,
    output_head,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row's and one head's attention, softmax and all in one pass over its columns (Milakov & Gimelshein 2018).

    Args:
        query: (N, H, ., D), pointer; `query_row` and `query_head` are its strides, and so on.
        keys: (N, H / GROUP, W, D).
        values: (N, H / GROUP, W, D).
        columns: (N,) int64, the last column that a row sees.
        output: (N, H, ., D), written.
        scaling: of the scores.
        SIZE: D, or the next power of two.
        BLOCK: columns read at once.
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(columns + row) + 1
    dims = tl.arange(0, SIZE)
    inside = dims < D
    scaled = tl.load(query + row * query_row + head * query_head + dims, mask=inside, other=0.0).to(tl.float32)
    scaled = (scaled * scaling).to(tl.float32)
    keys += row * keys_row + (head // GROUP) * keys_head
    values += row * values_row + (head // GROUP) * values_head
    highest = -float("inf")
    total = 0.0
    summed = tl.zeros([SIZE], dtype=tl.float32)
    for start in range(0, length, BLOCK):
        block = start + tl.arange(0, BLOCK)
        in_row = block < length
        in_block = in_row[:, None] & inside[None, :]
        key = tl.load(keys + block[:, None] * keys_column + dims[None, :], mask=in_block, other=0.0)
        value = tl.load(values + block[:, None] * values_column + dims[None, :], mask=in_block, other=0.0)
        scores = tl.sum(key.to(tl.float32) * scaled[None, :], axis=1)
        scores = tl.where(in_row, scores, -float("inf"))
        new = tl.maximum(highest, tl.max(scores, axis=0))
        weights = tl.exp(scores - new)
        shrink = tl.exp(highest - new)
        summed = summed * shrink + tl.sum(weights[:, None] * value.to(tl.float32), axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        highest = new
    tl.store(output + row * output_row + head * output_head + dims, summed / total, mask=inside)
