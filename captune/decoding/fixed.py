"""Steps of one shape: every slot is fed a token, whether a caption is in it or not.

That costs work and changes no caption, and on a GPU it pays. A step launches more than a thousand kernels one by one,
which takes Python longer than the GPU needs for them; with one shape, and with inputs that stay in place, they are
recorded once as a CUDA graph and launched together from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captune.common import error_text
from captune.decoding.backoff import is_out_of_memory
from captune.decoding.compiled import CompiledForward
from captune.decoding.forwards import read, read_newest
from captune.decoding.slots import SlotCache
from captune.decoding.trial import takes_newest
from captune.model.language_model import is_divided

__all__ = ["FixedStep", "Recorder", "recorder_for"]

logger = logging.getLogger(__name__)

Recorder = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Makes of a function, which has run before, one that does the same on the same tensors and gives the same one."""


class FixedStep:
    """The logits behind one new token a row.

    Args:
        llm: a causal language model.
        cache: the rows' keys and values.
        start: column that no row still needs in a slot without a caption.
        compiled: go through compiled layers.
        record: how to record a step; None to run each one.
    """

    def __init__(
        self, llm: Any, cache: SlotCache, start: int, *, compiled: bool = False, record: Recorder | None = None
    ) -> None:
        self._llm = llm
        self._forward: Any = CompiledForward(llm) if compiled else llm
        self._cache = cache
        self._start = start
        self._newest = takes_newest(llm)
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
            return read_newest(forward, self._llm.config, self._cache, self._fed, columns)
        seen = (torch.arange(width, device=columns.device) <= columns.unsqueeze(1)).unsqueeze(1)
        return read(forward, self._llm.config, self._cache, self._fed, columns.unsqueeze(1), seen)

    def _try_to_record(self, record: Recorder) -> None:
        self._record = None
        try:
            self._recorded = record(self._run)
        except Exception as error:  # what a driver or a library may raise has no common type
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            why = error_text(error)
            logger.warning("steps of decoding are launched one by one, since they cannot be recorded: %s", why)


def recorder_for(llm: Any) -> Recorder | None:
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
