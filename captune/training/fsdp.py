"""A frozen language model divided among processes, for cards that do not hold it whole.

Each process keeps its share of every decoder layer (FSDP2's `fully_shard`). A layer is gathered when it is computed and
let go of afterwards: once in a forward, once more in its backward. What is trained, the vocabulary and the last norm
stay whole on each. Frozen layers have no gradient, so nothing is reduced.

To gather a layer all processes have to take part, at the same time and in the same order, with work or without:

    turn    every process says what its next pass is: nothing (0), a forward (1), a forward and its backward (2)
    pass    the layers are gathered from first to last, and for a 2 also from last to first
    end     when all say nothing

The largest number counts for all. Who has nothing left, or a forward only, takes part in the gathering and computes
nothing. So the processes may have different numbers of micro-batches, of decoding steps, of second attempts after
memory ran out, and none waits for a gathering that another one does not come to. A pass that an error cut short is made
up for before the next turn.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from captune.errors import TrainingError
from captune.model import MiniGPT4
from captune.model.language_model import decoder_layers
from captune.training.distributed import World

__all__ = ["Shards", "held_bytes"]

NOTHING, FORWARD, BOTH = range(3)
"""What a process says of its next pass."""


class Shards:
    """The processes' shares of a language model, and the order in which they gather it.

    Args:
        place: this process among the others; all of them make this together.
    """

    def __init__(self, place: World) -> None:
        self._place = place
        self._mesh = init_device_mesh(place.device.type, (place.size,))
        self._decoder: Any = None
        self._layers: list[Any] = []
        self._due: deque[Any] = deque()
        self._fresh = True
        self._open = False
        self._computing = False
        self._torn = False

    @contextmanager
    def turn_to_load(self) -> Iterator[None]:
        """Run the block when the processes before this one on the same machine have run it.

        A model is loaded whole before it is divided, so that the machine's memory holds one at a time.
        """
        before = int(os.environ.get("LOCAL_RANK", self._place.rank))
        turns = int(self._place.largest(int(os.environ.get("LOCAL_WORLD_SIZE", self._place.size))))
        for _ in range(before):
            self._place.wait()
        yield
        for _ in range(turns - before):
            self._place.wait()

    def divide(self, model: MiniGPT4) -> None:
        """Keep this process's share of the language model's layers, and put it on the device, layer by layer.

        Args:
            model: on the CPU, the same in every process.

        Raises:
            ConfigError: its layers are not found.
        """
        self._decoder = model.llm.get_decoder()
        self._layers = list(decoder_layers(model.llm))
        for number, layer in enumerate(self._layers):
            # LoRA is trained and stays whole: beside frozen weights it would make FSDP allocate gradients for them.
            trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
            fully_shard(layer, mesh=self._mesh, reshard_after_forward=True, ignored_params=trained)
            layer.register_forward_pre_hook(self._gathered)
            layer.register_forward_hook(self._await_backward)
            # While a layer's backward is computed the one before it is gathered. Left to itself FSDP goes by the order
            # of the forwards that it has seen, which is not the same in every process. The first layer names itself,
            # which does nothing, for an empty list is no order.
            layer.set_modules_to_backward_prefetch([self._layers[max(number - 1, 0)]])
        fully_shard(self._decoder, mesh=self._mesh, ignored_params=set(self._decoder.parameters()))
        self._decoder.forward = self._in_turn(self._decoder.forward)
        model.to(self._place.device)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within the block the language model may be run, by each process as often as it needs.

        All processes enter it together. At its end each goes on taking part until all are done.
        """
        if self._fresh:
            # FSDP makes the gathered tensors once; made in inference mode, they could not be trained through.
            self._fresh = False
            self._due.extend(self._layers)
            self._settle()
        self._open = True
        yield
        self._open = False
        self._settle()
        while self._next(NOTHING) != NOTHING:
            self._settle()

    def _in_turn(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """A pass through the layers, which begins when all processes have said what they do."""

        def run(*args: Any, **given: Any) -> Any:
            assert self._open, "a divided language model was run outside of together()"
            self._settle()
            trains = torch.is_grad_enabled() and any(
                isinstance(value, Tensor) and value.requires_grad for value in (*args, *given.values())
            )
            self._next(BOTH if trains else FORWARD)
            self._torn = trains
            self._computing = True
            try:
                return forward(*args, **given)
            except BaseException:
                self._torn = len(self._due) > 0
                # Decoding leaves a forward in the middle of the last layer when it has what it needs.
                for layer in self._layers:
                    layer.reshard()
                raise
            finally:
                self._computing = False

        return run

    def _next(self, wanted: int) -> int:
        """Agree on the next pass; from here on its gatherings are due."""
        turn = int(self._place.largest(wanted))
        if turn >= FORWARD:
            self._due.extend(self._layers)
        if turn == BOTH:
            self._due.extend(reversed(self._layers))
        return turn

    def _gathered(self, layer: nn.Module, args: Any) -> None:
        """FSDP has gathered a layer for its forward; computed again in the backward pass it is there already."""
        if self._computing:
            self._take_off(layer)

    def _await_backward(self, layer: nn.Module, args: Any, output: Any) -> None:
        """FSDP gathers a layer when its output's gradient is there, just before this is told."""
        states = output[0] if isinstance(output, tuple) else output
        if self._computing and states.requires_grad:
            states.register_hook(lambda gradient: self._take_off(layer))

    def _take_off(self, layer: nn.Module) -> None:
        due = self._due.popleft() if self._due else None
        assert due is layer, "the layers of a divided language model were run out of order"

    def _settle(self) -> None:
        """Take part in what is due and was not computed here."""
        if not self._due:
            return
        while self._due:
            # One that was gathered when the error came, or is on its way, is not gathered again.
            layer = self._due.popleft()
            layer.unshard()
            layer.reshard()
        if self._torn:
            self._torn = False
            if not hasattr(FSDPModule, "reset_iter_state"):
                raise TrainingError(
                    "A pass through the divided language model did not come to its end, most likely for want of "
                    "memory, and torch before 2.13 cannot go on from there; lower train.micro_batch_size."
                )
            self._decoder.reset_iter_state()


def held_bytes(model: MiniGPT4) -> tuple[int, int]:
    """Bytes of the language model that this process holds, and of all of it."""
    held = whole = 0
    for parameter in model.llm.parameters():
        whole += parameter.nbytes
        held += parameter.to_local().nbytes if isinstance(parameter, DTensor) else parameter.nbytes
    return held, whole
