"""A tiny random captioner that ends some captions early, and features for it."""

from __future__ import annotations

import pytest
import torch
from tiny import ending_minigpt4
from torch import Tensor

from captune.model import MiniGPT4


@pytest.fixture(scope="session")
def model() -> MiniGPT4:
    """Its captions end at all places: by the stop symbol, by the end of text, at the limit."""
    return ending_minigpt4()


@pytest.fixture(scope="session")
def features(model: MiniGPT4) -> Tensor:
    """(12, Q, F)."""
    generator = torch.Generator().manual_seed(11)
    return torch.randn(12, model.config.image_tokens, model.config.feature_size, generator=generator) * 3
