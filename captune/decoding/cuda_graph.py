"""Decoding steps of one fixed shape, captured as a CUDA graph or compiled: every slot gets a token, also unused ones.

This costs work and changes no caption, but is faster on a GPU. A step launches more than a thousand kernels, and this
takes Python longer than the GPU needs to run them; with one shape and inputs at fixed addresses, they are captured
once as a CUDA graph and launched with a single call.

Letters: N slots, R of them in use, H heads, W columns of a slot, D width of a head or of the model, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captune.common import error_text
from captune.decoding.capabilities import supports_decode_attention
from captune.decoding.forward import decode_step, forward
from captune.decoding.kv_cache import StaticKVCache
from captune.decoding.oom import is_out_of_memory
from captune.errors import ConfigError
from captune.model import CompiledLayers, is_sharded

__all__ = ["CompiledForward", "GraphCapture", "GraphedStep", "graph_capture_for"]

logger = logging.getLogger(__name__)

GraphCapture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Captures a function that has run before: the result does the same on the same tensors and returns the same one."""


class GraphedStep:
    """The logits after one new token a row.

    Args:
        llm: a causal language model.
        cache: the rows' keys and values.
        start: column to which unused slots write.
        compiled: run compiled layers.
        capture: how to capture a step; None runs each one.
    """

    def __init__(
        self, llm: Any, cache: StaticKVCache, start: int, *, compiled: bool = False, capture: GraphCapture | None = None
    ) -> None:
        self._llm = llm
        self._forward: Any = CompiledForward(llm) if compiled else llm
        self._cache = cache
        self._start = start
        self._uses_decode_attention = supports_decode_attention(llm)
        self._capture = capture
        self._captured: Callable[[], Tensor] | None = None
        self._inputs = torch.zeros(0)
        self._columns = torch.zeros(0, dtype=torch.int64)

    @property
    def is_captured(self) -> bool:
        """Whether steps are, or will be, captured."""
        return self._captured is not None or self._capture is not None

    def __call__(self, inputs: Tensor, columns: Tensor) -> Tensor:
        """Run a step.

        Args:
            inputs: (R, 1, D) embeddings of the newest tokens of the first R slots.
            columns: (R,) int64, where they are written.

        Returns:
            (R, V) logits, which the next step overwrites.
        """
        rows = len(inputs)
        if not len(self._inputs):
            self._inputs = inputs.new_zeros(self._cache.slots, *inputs.shape[1:])
            self._columns = columns.new_full((self._cache.slots,), self._start)
        self._inputs[:rows] = inputs
        self._columns[:rows] = columns
        # An unused slot writes after the shared prefix, which every new row overwrites before it sees it.
        self._columns[rows:] = self._start
        if self._captured is not None:
            return self._captured()[:rows]
        is_allocated = self._cache.is_allocated
        logits = self._run()
        if self._capture is not None and is_allocated:
            self._try_to_capture(self._capture)
        return logits[:rows]

    def _run(self) -> Tensor:
        columns, width = self._columns, self._cache.width
        self._cache.set_decode(columns, width, width)
        model = self._forward if self._cache.is_allocated else self._llm
        if self._uses_decode_attention:
            return decode_step(model, self._llm.config, self._cache, self._inputs, columns)
        mask = (torch.arange(width, device=columns.device) <= columns.unsqueeze(1)).unsqueeze(1)
        return forward(model, self._llm.config, self._cache, self._inputs, columns.unsqueeze(1), mask)

    def _try_to_capture(self, capture: GraphCapture) -> None:
        self._capture = None
        try:
            self._captured = capture(self._run)
        except Exception as error:  # what a driver or a library may raise has no common type
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            logger.warning("decoding steps run without a CUDA graph, since capture failed: %s", error_text(error))


def graph_capture_for(llm: Any) -> GraphCapture | None:
    """How steps of a language model are captured: as CUDA graphs on one GPU, else not at all."""
    devices = {parameter.device for parameter in llm.parameters()}
    on_one_gpu = len(devices) == 1 and next(iter(devices)).type == "cuda"
    # Quantized layers may wait for the GPU, and divided ones for other processes; a graph can do neither.
    captures = on_one_gpu and not is_sharded(llm) and not getattr(llm, "is_quantized", False)
    return _capture_cuda_graph if captures else None


def _capture_cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those of a server, may use the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class _DecodeCache:
    """One layer's slots during a decode step, in place of the cache of all layers.

    Args:
        layer: of a `StaticKVCache` after `StaticKVCache.set_decode`.
    """

    def __init__(self, layer: Any) -> None:
        self.keys, self.values = layer.keys, layer.values
        self.rows, self.columns = layer.write_index

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (N, H, 1, D) states into the slots (N, H, W, D) and return these."""
        self.keys[self.rows, :, self.columns] = keys[:, :, 0]
        self.values[self.rows, :, self.columns] = values[:, :, 0]
        return self.keys, self.values


class CompiledForward:
    """Calls a model through layers compiled for the one shape of a step; where that fails, uncompiled.

    Args:
        llm: a causal language model.
        backend: of `torch.compile`.
    """

    def __init__(self, llm: Any, backend: str = "inductor") -> None:
        self._llm = llm
        self._layers: CompiledLayers | None = None
        try:
            self._layers = CompiledLayers(llm, _DecodeCache, dynamic=False, backend=backend)
        except (ConfigError, ImportError, RuntimeError) as error:
            self._disable(error)

    def __call__(self, **inputs: Any) -> Any:
        """The model's output; the arguments are those of its `forward`."""
        if self._layers is not None:
            try:
                with self._layers.in_use():
                    return self._llm(**inputs)
            except Exception as error:  # what a compiler, its back end or a driver may raise has no common type
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                self._disable(error)
        return self._llm(**inputs)

    def _disable(self, error: Exception) -> None:
        logger.warning("decoding continues without torch.compile, which failed: %s", error_text(error))
        self._layers = None
