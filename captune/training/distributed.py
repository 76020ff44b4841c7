"""Several processes as one: each works on its share of a step, sums are taken over all.

Only what is trained crosses between processes. Each holds the frozen parts by itself; they are never broadcast.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from captune.model.loading import pick_device

__all__ = ["World", "world"]

Item = TypeVar("Item")
EVALUATION_HOURS = 12
"""How long a process waits for the others, which may be captioning a large test set."""


class World:
    """This process among those of the run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        device: where it computes.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's part of `items`; together the parts are all of them, each once."""
        return items[self.rank :: self.size]

    def any(self, here: bool) -> bool:
        """Whether something is so in at least one process."""
        return self.sum(float(here)) > 0

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor.item())

    def largest(self, value: float) -> float:
        """The largest of a number over all processes."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return float(tensor.item())

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, summed in zip(parameters, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            parameter.grad = summed.reshape(parameter.shape).clone()

    def gather(self, item: Item) -> list[Item]:
        """Every process's `item`, in the order of ranks, on every process."""
        if self.size == 1:
            return [item]
        gathered: list[Item | None] = [None] * self.size
        dist.all_gather_object(gathered, item)
        return [found for found in gathered if found is not None]

    def merge(self, mine: Sequence[Item], count: int) -> list[Item]:
        """All `count` items in order, put together from every process's `share` of them."""
        merged: list[Item | None] = [None] * count
        for rank, part in enumerate(self.gather(list(mine))):
            merged[rank :: self.size] = part
        return [item for item in merged if item is not None]

    def wait(self) -> None:
        """Go on when every process has come here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Join the other processes that torchrun started, or be alone.

    Yields:
        This process's place; the connection is closed at the end.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(hours=EVALUATION_HOURS))
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()
