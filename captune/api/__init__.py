"""The functions of the top level for Python and notebooks: `captune.tune`, `evaluate`, `score` and `compare`.

Importing them imports no torch; `tune` and `evaluate` check their input before they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.api.captions import Captions
    from captune.api.running import evaluate, tune
    from captune.api.scoring import ComparedSystems, compare, score

__all__ = ["Captions", "ComparedSystems", "compare", "evaluate", "score", "tune"]

__getattr__ = lazy_names(
    __name__,
    {
        "captions": ["Captions"],
        "running": ["evaluate", "tune"],
        "scoring": ["ComparedSystems", "compare", "score"],
    },
)
