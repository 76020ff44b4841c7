"""Steps of one shape, recorded: what is replayed is the graph of the first, on inputs that stay in place."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from captune.decoding import DecodingOptions, Request, cuda_graph, engine, generate_ids
from captune.decoding.cuda_graph import graph_capture_for
from captune.model import MiniGPT4

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"beams": 3, "length_penalty": 0.6},
    "sampled": {"temperature": 0.1, "top_k": 20, "seed": 5},
}


def traced(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """What a CUDA graph is, on any machine: the operations of one run on the tensors that it found, without Python."""
    nothing = torch.zeros(1)
    graph = make_fx(lambda inputs: run())(nothing)
    return lambda: graph(nothing)


def mixed(model: MiniGPT4, features: Tensor) -> list[Request]:
    layout = model.processor.layout
    texts = itertools.cycle(("Describe it.", "What is this, and where?", "Say"))
    return [Request(n, layout.prompt(next(texts)).ids, features[n : n + 1], key=str(n)) for n in range(len(features))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 2, 5, 32])
def test_recorded_steps_change_nothing(
    model: MiniGPT4, features: Tensor, way: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, options = mixed(model, features), DecodingOptions(max_new_tokens=14, batch_size=size, **WAYS[way])
    expected = generate_ids(model, requests, options)
    recordings = 0

    def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        nonlocal recordings
        recordings += 1
        return traced(run)

    monkeypatch.setattr(engine, "graph_capture_for", lambda llm: record)
    ran = 0
    handle = model.llm.register_forward_hook(lambda *_: count())

    def count() -> None:
        nonlocal ran
        ran += 1

    try:
        assert generate_ids(model, requests, options) == expected
    finally:
        handle.remove()
    assert recordings == 1
    # The constant text, one step and its recording; all others are prompts that come in, or replayed.
    assert ran <= 3 + len(requests)


def test_a_step_that_cannot_be_recorded_is_run(
    model: MiniGPT4, features: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests, options = mixed(model, features), DecodingOptions(max_new_tokens=14, batch_size=5)
    expected = generate_ids(model, requests, options)

    def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(engine, "graph_capture_for", lambda llm: record)
    assert generate_ids(model, requests, options) == expected
    assert caplog.text.count("capture failed: operation not permitted") == 1


def test_memory_that_runs_out_while_recording_halves_the_batch(
    model: MiniGPT4, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, options = mixed(model, features), DecodingOptions(max_new_tokens=14, batch_size=8)
    expected = generate_ids(model, requests, options)
    slots = []

    class Watched(cuda_graph.GraphedStep):
        def __init__(self, llm: Any, cache: Any, *args: Any, **kwargs: Any) -> None:
            slots.append(cache.slots)
            super().__init__(llm, cache, *args, **kwargs)

    def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        if slots[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return traced(run)

    monkeypatch.setattr(engine, "graph_capture_for", lambda llm: record)
    monkeypatch.setattr(engine, "GraphedStep", Watched)
    assert generate_ids(model, requests, options) == expected
    assert slots == [8, 4, 2]


def test_nothing_is_recorded_on_a_processor(model: MiniGPT4) -> None:
    assert graph_capture_for(model.llm) is None
