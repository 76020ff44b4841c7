"""Decoding steps of one fixed shape, captured as a CUDA graph or compiled: every slot is fed a token, used or not.

That costs work and changes no caption, and on a GPU it pays. A step launches more than a thousand kernels one by one,
which takes Python longer than the GPU needs for them; with one shape, and with inputs at fixed addresses, they are
captured once as a CUDA graph and launched with a single call from then on.

Letters: N rows, H heads, W columns of a slot, D width of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captune.common import error_text
from captune.decoding.capabilities import supports_decode_attention
from captune.decoding.forward import decode_step, read
from captune.decoding.kv_cache import StaticKVCache
from captune.decoding.oom import is_out_of_memory
from captune.errors import ConfigError
from captune.model.compiled import CompiledLayers
from captune.model.language_model import is_divided

__all__ = ["CompiledForward", "GraphCapture", "GraphedStep", "graph_capture_for"]

logger = logging.getLogger(__name__)

GraphCapture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Makes of a function, which has run before, one that does the same on the same tensors and gives the same one."""


class GraphedStep:
    """The logits behind one new token a row.

    Args:
        llm: a causal language model.
        cache: the rows' keys and values.
        start: column that no row still needs in a slot without a caption.
        compiled: go through compiled layers.
        record: how to record a step; None to run each one.
    """

    def __init__(
        self, llm: Any, cache: StaticKVCache, start: int, *, compiled: bool = False, record: GraphCapture | None = None
    ) -> None:
        self._llm = llm
        self._forward: Any = CompiledForward(llm) if compiled else llm
        self._cache = cache
        self._start = start
        self._newest = supports_decode_attention(llm)
        self._record = record
        self._recorded: Callable[[], Tensor] | None = None
        self._fed = torch.zeros(0)
        self._columns = torch.zeros(0, dtype=torch.int64)

    @property
    def is_recorded(self) -> bool:
        """Whether steps are, or will be, recorded."""
        return self._recorded is not None or self._record is not None

    def __call__(self, fed: Tensor, columns: Tensor) -> Tensor:
        """Run a step.

        Args:
            fed: (R, 1, D) embeddings of the newest tokens of the first R slots.
            columns: (R,) int64, where they go.

        Returns:
            (R, V) logits, which the next step overwrites.
        """
        rows = len(fed)
        if not len(self._fed):
            self._fed = fed.new_zeros(self._cache.slots, *fed.shape[1:])
            self._columns = columns.new_full((self._cache.slots,), self._start)
        self._fed[:rows] = fed
        self._columns[:rows] = columns
        # An empty slot writes behind the constant text, which no row that comes in will see unwritten.
        self._columns[rows:] = self._start
        if self._recorded is not None:
            return self._recorded()[:rows]
        whole = self._cache.is_whole
        logits = self._run()
        if self._record is not None and whole:
            self._try_to_record(self._record)
        return logits[:rows]

    def _run(self) -> Tensor:
        columns, width = self._columns, self._cache.width
        self._cache.extend(columns, width, width)
        forward = self._forward if self._cache.is_whole else self._llm
        if self._newest:
            return decode_step(forward, self._llm.config, self._cache, self._fed, columns)
        seen = (torch.arange(width, device=columns.device) <= columns.unsqueeze(1)).unsqueeze(1)
        return read(forward, self._llm.config, self._cache, self._fed, columns.unsqueeze(1), seen)

    def _try_to_record(self, record: GraphCapture) -> None:
        self._record = None
        try:
            self._recorded = record(self._run)
        except Exception as error:  # what a driver or a library may raise has no common type
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            why = error_text(error)
            logger.warning("steps of decoding are launched one by one, since they cannot be recorded: %s", why)


def graph_capture_for(llm: Any) -> GraphCapture | None:
    """How steps of a language model are recorded: as CUDA graphs on one GPU, else not at all."""
    devices = {parameter.device for parameter in llm.parameters()}
    alone = len(devices) == 1 and next(iter(devices)).type == "cuda"
    # Quantized layers may wait for the GPU, and divided ones for other processes; a graph can do neither.
    return _as_cuda_graph if alone and not is_divided(llm) and not getattr(llm, "is_quantized", False) else None


def _as_cuda_graph(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as those of a server, may use the GPU meanwhile.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class _Newest:
    """One layer's slots, to which each row brings one token: stands for a cache of all layers.

    Args:
        layer: of a `StaticKVCache` after `StaticKVCache.extend`.
    """

    def __init__(self, layer: Any) -> None:
        self.keys, self.values = layer.keys, layer.values
        self.rows, self.columns = layer.newest

    def update(self, keys: Tensor, values: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
        """Write (N, H, 1, D) states into the slots (N, H, W, D) and give these."""
        self.keys[self.rows, :, self.columns] = keys[:, :, 0]
        self.values[self.rows, :, self.columns] = values[:, :, 0]
        return self.keys, self.values


class CompiledForward:
    """Calls a model through its layers, compiled for the one shape that it is fed; where that fails, as it is.

    Args:
        llm: a causal language model.
        backend: of `torch.compile`.
    """

    def __init__(self, llm: Any, backend: str = "inductor") -> None:
        self._llm = llm
        self._layers: CompiledLayers | None = None
        try:
            self._layers = CompiledLayers(llm, _Newest, dynamic=False, backend=backend)
        except (ConfigError, ImportError, RuntimeError) as error:
            self._give_up(error)

    def __call__(self, **inputs: Any) -> Any:
        """The model's output; the arguments are those of its `forward`."""
        if self._layers is not None:
            try:
                with self._layers.in_use():
                    return self._llm(**inputs)
            except Exception as error:  # what a compiler, its back end or a driver may raise has no common type
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                self._give_up(error)
        return self._llm(**inputs)

    def _give_up(self, error: Exception) -> None:
        why = error_text(error)
        logger.warning("decoding goes on without torch.compile, which failed: %s", why)
        self._layers = None
