"""A frozen language model sharded over the processes (FSDP), for GPUs that cannot hold it.

Each process keeps its shard of every decoder layer (FSDP2's `fully_shard`). A layer is gathered when it is computed and
resharded afterwards: once in a forward, once more in its backward. Trained parameters, the vocabulary and the last norm
are replicated. Frozen layers have no gradient, so nothing is reduced.

Gathering a layer is a collective operation: all processes take part, at the same time and in the same order, whether
they have work or not:

    agree   every process reports its next pass: none, a forward, or a forward and its backward
    pass    the layers are gathered from first to last, and for a backward also from last to first
    end     when all processes report none

The maximum applies to all. A process without work, or with a forward only, takes part in the gathering and computes
nothing. So the processes may have different numbers of micro-batches, of decoding steps, and of retries after running
out of memory, and no process waits for a gathering that another one skips. A pass that an error interrupted is
completed before the next agreement.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from captune.distributed import DistributedContext
from captune.errors import TrainingError
from captune.model import MiniGPT4, decoder_layers

__all__ = ["FsdpContext", "llm_bytes"]


class NextPass(IntEnum):
    """What a process runs next; the maximum over all processes is what they all gather for."""

    NONE = 0
    FORWARD = 1
    FORWARD_AND_BACKWARD = 2


class FsdpContext:
    """The shards of a language model, and the order in which the processes gather its layers.

    Args:
        dist: this process among the others; all of them create this at the same time.
    """

    def __init__(self, dist: DistributedContext) -> None:
        self._dist = dist
        self._mesh = init_device_mesh(dist.device.type, (dist.size,))
        self._decoder: Any = None
        self._layers: list[Any] = []
        self._pending: deque[Any] = deque()
        self._first_use = True
        self._open = False
        self._computing = False
        self._failed = False

    @contextmanager
    def load_in_rank_order(self) -> Iterator[None]:
        """Run the block after the lower ranks on the same machine have run it.

        A complete model is loaded before it is sharded, so that the machine's memory holds one at a time.
        """
        local_rank = int(os.environ.get("LOCAL_RANK", self._dist.rank))
        turns = int(self._dist.all_reduce_max(int(os.environ.get("LOCAL_WORLD_SIZE", self._dist.size))))
        for _ in range(local_rank):
            self._dist.barrier()
        yield
        for _ in range(turns - local_rank):
            self._dist.barrier()

    def shard(self, model: MiniGPT4) -> None:
        """Keep this process's shard of the language model's layers, and move it to the device, layer by layer.

        Args:
            model: on the CPU, the same in every process.

        Raises:
            ConfigError: its layers are not found.
        """
        self._decoder = model.llm.get_decoder()
        self._layers = list(decoder_layers(model.llm))
        for number, layer in enumerate(self._layers):
            # LoRA is trained and not sharded: next to frozen weights it would make FSDP allocate gradients for them.
            trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
            fully_shard(layer, mesh=self._mesh, reshard_after_forward=True, ignored_params=trained)
            layer.register_forward_pre_hook(self._before_forward)
            layer.register_forward_hook(self._after_forward)
            # While a layer's backward is computed, the previous layer is gathered. By default FSDP prefetches in the
            # order of the forwards that it has seen, which differs between processes. The first layer names itself,
            # which has no effect, since an empty list means the default.
            layer.set_modules_to_backward_prefetch([self._layers[max(number - 1, 0)]])
        fully_shard(self._decoder, mesh=self._mesh, ignored_params=set(self._decoder.parameters()))
        self._decoder.forward = self._collective(self._decoder.forward)
        model.to(self._dist.device)

    @contextmanager
    def collective_forward(self) -> Iterator[None]:
        """Within the block the language model may be run, by each process as often as it needs.

        All processes enter the block. At its end each one takes part in the gathering until all are done.
        """
        if self._first_use:
            # FSDP creates the gathered tensors once; created in inference mode, they could not be trained through.
            self._first_use = False
            self._pending.extend(self._layers)
            self._drain()
        self._open = True
        yield
        self._open = False
        self._drain()
        while self._agree(NextPass.NONE) != NextPass.NONE:
            self._drain()

    def _collective(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A pass through the layers, which starts when all processes have agreed on it."""

        def run(*args: Any, **kwargs: Any) -> Any:
            assert self._open, "a sharded language model was run outside of collective_forward()"
            self._drain()
            trains = torch.is_grad_enabled() and any(
                isinstance(value, Tensor) and value.requires_grad for value in (*args, *kwargs.values())
            )
            self._agree(NextPass.FORWARD_AND_BACKWARD if trains else NextPass.FORWARD)
            self._failed = trains
            self._computing = True
            try:
                return forward(*args, **kwargs)
            except BaseException:
                self._failed = len(self._pending) > 0
                # Decoding leaves a forward in the middle of the last layer when it has what it needs.
                for layer in self._layers:
                    layer.reshard()
                raise
            finally:
                self._computing = False

        return run

    def _agree(self, mine: NextPass) -> NextPass:
        """Agree on the next pass; its gatherings are pending from here on."""
        agreed = NextPass(int(self._dist.all_reduce_max(mine)))
        if agreed >= NextPass.FORWARD:
            self._pending.extend(self._layers)
        if agreed == NextPass.FORWARD_AND_BACKWARD:
            self._pending.extend(reversed(self._layers))
        return agreed

    def _before_forward(self, layer: nn.Module, args: Any) -> None:
        """FSDP has gathered a layer for its forward; recomputed in the backward pass it is gathered already."""
        if self._computing:
            self._gathered(layer)

    def _after_forward(self, layer: nn.Module, args: Any, output: Any) -> None:
        """FSDP gathers a layer when its output's gradient is computed, just before this hook runs."""
        states = output[0] if isinstance(output, tuple) else output
        if self._computing and states.requires_grad:
            states.register_hook(lambda gradient: self._gathered(layer))

    def _gathered(self, layer: nn.Module) -> None:
        expected = self._pending.popleft() if self._pending else None
        assert expected is layer, "the layers of a sharded language model were run out of order"

    def _drain(self) -> None:
        """Take part in the pending gatherings, without computing."""
        if not self._pending:
            return
        while self._pending:
            # A layer that was gathered when the error came, or is being gathered, is not gathered again.
            layer = self._pending.popleft()
            layer.unshard()
            layer.reshard()
        if self._failed:
            self._failed = False
            if not hasattr(FSDPModule, "reset_iter_state"):
                raise TrainingError(
                    "A pass through the sharded language model was interrupted, most likely for lack of memory, and "
                    "torch before 2.13 cannot continue from there; lower train.micro_batch_size."
                )
            self._decoder.reset_iter_state()


def llm_bytes(model: MiniGPT4) -> tuple[int, int]:
    """Bytes of the language model that this process holds, and of the complete one."""
    local = total = 0
    for parameter in model.llm.parameters():
        total += parameter.nbytes
        local += parameter.to_local().nbytes if isinstance(parameter, DTensor) else parameter.nbytes
    return local, total
