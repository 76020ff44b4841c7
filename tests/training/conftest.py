"""A model of a few hundred parameters in place of the one that a run trains."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny import tiny_features, tiny_minigpt4

from captune.training import minigpt4, preparation, trainer


@pytest.fixture(scope="module")
def tiny_model() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "is_image_text_model", lambda source: False)
        patch.setattr(minigpt4, "load_for_training", lambda *args: tiny_minigpt4())
        patch.setattr(preparation, "features_of", tiny_features)
        torch.set_num_threads(1)
        yield
