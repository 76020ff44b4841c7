"""The attention of single tokens: its kernel under Triton's interpreter, and where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from captune.decoding.newest import has_kernel


def test_the_kernel_under_the_interpreter() -> None:
    """In a process of its own, for Triton asks for its interpreter when it is imported, and torch imports it first."""
    pytest.importorskip("triton", reason="needs triton")
    tests = Path(__file__).with_name("interpreted_newest.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)]
    ran = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-4000:]
    assert "skipped" not in ran.stdout


def test_a_processor_has_no_kernel() -> None:
    assert not has_kernel(torch.device("cpu"))
