"""A language model's forward, compiled for the one shape that a loop of fixed shapes feeds it."""

from __future__ import annotations

import logging
from typing import Any

import torch

from captune.decoding.backoff import is_out_of_memory

__all__ = ["CompiledForward"]

logger = logging.getLogger(__name__)


class CompiledForward:
    """Calls a model through `torch.compile`, which on a GPU records CUDA graphs; where that fails, the model as it is.

    A step of a small batch is bound by the hundreds of kernels that Python launches one by one; a recorded graph
    launches them together.

    Args:
        llm: a causal language model.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        on_gpu = next(llm.parameters()).is_cuda
        self._compiled: Any = torch.compile(llm, dynamic=False, mode="reduce-overhead" if on_gpu else "default")

    def __call__(self, **inputs: Any) -> Any:
        """The model's output; the arguments are those of its `forward`."""
        if self._compiled is not None:
            try:
                return self._compiled(**inputs)
            except Exception as error:  # what a compiler, its back end or a driver may raise has no common type
                if isinstance(error, RuntimeError) and is_out_of_memory(error):
                    raise
                logger.warning(
                    "decoding goes on without torch.compile, which failed: %s", " ".join(str(error).split())[:200]
                )
                self._compiled = None
        return self._llm(**inputs)
