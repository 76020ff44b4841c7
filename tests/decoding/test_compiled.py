"""Compiled forwards: the same captions, one graph, and a way back."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from captune.decoding import DecodingOptions, Request, generate_ids
from captune.model import MiniGPT4


def mixed(model: MiniGPT4, features: Tensor) -> list[Request]:
    questions = itertools.cycle(("Say", "Describe it.", "What is this, and where?"))
    prompts = [model.processor.layout.prompt(next(questions)).ids for _ in features]
    return [Request(n, prompt, features[n : n + 1]) for n, prompt in enumerate(prompts)]


@pytest.mark.slow
# torch's own compiler imports what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("way", [{}, {"beams": 2, "length_penalty": 0.6}], ids=["greedy", "beams"])
def test_compiled_captions_are_the_same(model: MiniGPT4, features: Tensor, way: dict[str, Any]) -> None:
    """With one graph for two evaluations: a shape that changes would be compiled again and again."""
    requests, options = mixed(model, features), DecodingOptions(max_new_tokens=14, batch_size=5, **way)
    expected = generate_ids(model, requests, options)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert generate_ids(model, requests, replace(options, compiled=True)) == expected
    # The last images of a job are fewer than a batch.
    assert generate_ids(model, requests[:3], replace(options, compiled=True)) == expected[:3]
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_compiler_that_fails_is_done_without(
    model: MiniGPT4, features: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **inputs: Any) -> Any:
            raise RuntimeError("no C++ compiler was found")

        return run

    requests, options = mixed(model, features), DecodingOptions(max_new_tokens=14, batch_size=5)
    expected = generate_ids(model, requests, options)
    monkeypatch.setattr(torch, "compile", broken)
    assert generate_ids(model, requests, replace(options, compiled=True)) == expected
    assert caplog.text.count("continues without torch.compile, which failed: no C++ compiler was found") == 1


def test_how_it_runs_is_not_how_it_decodes() -> None:
    assert str(DecodingOptions(compiled=True)) == str(DecodingOptions())
