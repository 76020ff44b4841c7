"""Distributed data parallel: each process computes its shard of a step, and sums are reduced over all processes.

Only gradients of trained parameters are communicated. Each process loads the frozen parts; they are not broadcast.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import nn

from captune.model import default_device

__all__ = ["CollectiveForward", "DistributedContext", "distributed_context"]

Item = TypeVar("Item")
CollectiveForward = Callable[[], contextlib.AbstractContextManager[None]]
"""Context for all runs of the language model: `FsdpContext.collective_forward` if it is sharded."""
TIMEOUT = timedelta(hours=12)
"""Maximum time that a process waits for others, which may be captioning a large test set."""


class DistributedContext:
    """Rank of this process and communication with the others; by default a single process.

    Attributes:
        device: of this process.
        rank: number of this process, from 0.
        size: number of processes.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device = device
        self.rank = rank
        self.size = size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports events."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`: every `size`-th item, so that each item is in exactly one shard."""
        return items[self.rank :: self.size]

    def any_rank(self, condition: bool) -> bool:
        """Whether a condition is true in at least one process."""
        return self.all_reduce_sum(float(condition)) > 0

    def all_reduce_sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        return self._all_reduce(value, torch.distributed.ReduceOp.SUM)

    def all_reduce_max(self, value: float) -> float:
        """The maximum of a number over all processes."""
        return self._all_reduce(value, torch.distributed.ReduceOp.MAX)

    def all_reduce_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        torch.distributed.all_reduce(flat)
        for parameter, summed in zip(parameters, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            parameter.grad = summed.reshape(parameter.shape).clone()

    def all_gather(self, item: Item) -> list[Item]:
        """Every process's `item`, in the order of ranks, on every process."""
        if self.size == 1:
            return [item]
        gathered: list[Item | None] = [None] * self.size
        torch.distributed.all_gather_object(gathered, item)
        return [item for item in gathered if item is not None]

    def gather(self, results: Sequence[Item], count: int) -> list[Item]:
        """All `count` results in order, from the results for every process's `shard`; on every process."""
        merged: list[Item | None] = [None] * count
        for rank, shard in enumerate(self.all_gather(list(results))):
            merged[rank :: self.size] = shard
        return [item for item in merged if item is not None]

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            torch.distributed.barrier()

    def _all_reduce(self, value: float, operation: torch.distributed.ReduceOp.RedOpType) -> float:
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor, op=operation)
        return float(tensor.item())


@contextlib.contextmanager
def distributed_context() -> Iterator[DistributedContext]:
    """Join the process group that torchrun started, or use a single process.

    Yields:
        This process's context; the process group is destroyed at the end.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = default_device(int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield DistributedContext(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield DistributedContext(device, torch.distributed.get_rank(), torch.distributed.get_world_size())
    finally:
        torch.distributed.destroy_process_group()
