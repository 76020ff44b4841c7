"""Raters that know what they like."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from captune.apps.rating import Store

MakeStudy = Callable[..., "Store"]


def opinion(store: Store, rater: int, position: int, chance: random.Random) -> str:
    """What a rater would say who likes later checkpoints better, with some noise."""
    trial, captions = store.trials(rater)[position], store.captions()
    liked = {"pretrained": 0.0, "epoch0": 1.0, "epoch1": 2.0, "human": 3.0}

    def worth(index: int) -> float:
        if trial.expected is not None:
            return 9.0 if index == trial.expected else 0.0
        return max((liked[name] for name in captions[index].systems), default=-9.0) + chance.gauss(0, 1)

    worths = [worth(index) for index in trial.captions]
    if trial.part == "pairwise":
        if abs(worths[0] - worths[1]) < 0.4:
            return "tie"
        return "first" if worths[0] > worths[1] else "second"
    return "".join(str(min(5, max(1, round(2.5 + worths[0] / 2 + chance.gauss(0, 0.6))))) for _ in range(4))
