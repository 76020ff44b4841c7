"""The attention of single tokens: its kernel under Triton's interpreter, and where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captune.decoding import DecodingOptions, Request, capabilities, engine, generate_ids
from captune.decoding.decode_attention import current_device, has_kernel
from captune.model import MiniGPT4


def test_the_kernel_under_the_interpreter() -> None:
    """In a separate process, for Triton chooses its interpreter on import, and torch imports it first."""
    pytest.importorskip("triton", reason="needs triton")
    tests = Path(__file__).with_name("interpreted_decode_attention.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)]
    ran = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "skipped" not in ran.stdout


def test_a_kernel_that_cannot_be_made_is_done_without(
    model: MiniGPT4, features: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A machine without a C compiler, or a home that cannot be written to."""
    assert model.processor is not None
    prompt = model.processor.layout.prompt("Say").ids
    requests = [Request(n, prompt, features[n : n + 1]) for n in range(4)]
    options = DecodingOptions(max_new_tokens=6, batch_size=4)
    expected = generate_ids(model, requests, options)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("no cache for kernels")

    monkeypatch.setattr(capabilities, "has_kernel", lambda device: True)
    monkeypatch.setattr(capabilities, "_TESTED_DECODE_ATTENTION", {})
    monkeypatch.setattr(capabilities, "decode_step", fail)
    monkeypatch.setattr(engine, "graph_capture_for", lambda llm: lambda run: run)
    for _ in range(2):
        assert generate_ids(model, requests, options) == expected
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == "decoding runs without captune's attention kernel, which failed (no cache for kernels)"


def test_work_goes_to_the_gpu_that_holds_the_model() -> None:
    assert current_device(torch.device("cuda", 1)).idx == 1
    with current_device(torch.device("cpu")):
        pass


def test_a_processor_has_no_kernel() -> None:
    assert not has_kernel(torch.device("cpu"))
