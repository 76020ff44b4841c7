"""captune: instruction-tune vision-language captioners, and know whether they got better.

    import captune

    scores = captune.score({"1": "a dog runs"}, {"1": ["A dog runs.", "The dog is running."]})

    result = captune.tune(data="photos/manifest.jsonl", model="toy-vlm", output="runs/photos", train={"epochs": 3})
    captioner = result.captioner()
    captioner("photo.jpg", beams=3)

    captune.evaluate(["toy", "toy-vlm"], "photos/manifest.jsonl")
    captune.compare({"before": before, "after": after}, references)

Importing this package imports nothing heavy; scoring and preparing work without torch. Every error that captune raises
on purpose is a `CaptuneError`, with one sentence.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from captune.common import __version__, lazy_names
from captune.errors import CaptuneError, MissingExtraError

if TYPE_CHECKING:
    from captune.api import ComparedSystems, compare, evaluate, score, tune
    from captune.captioner import Captioner
    from captune.config import RunConfig, load_config
    from captune.decoding import DecodingOptions
    from captune.metrics import Scores
    from captune.model import MiniGPT4
    from captune.results import EvaluationResult, TuningResult

__all__ = [
    "Captioner",
    "CaptuneError",
    "ComparedSystems",
    "DecodingOptions",
    "EvaluationResult",
    "MiniGPT4",
    "RunConfig",
    "Scores",
    "TuningResult",
    "__version__",
    "compare",
    "evaluate",
    "load_config",
    "score",
    "tune",
]

_WITH_TORCH = ("Captioner", "MiniGPT4")
_import_name = lazy_names(
    __name__,
    {
        "api": ["ComparedSystems", "compare", "evaluate", "score", "tune"],
        "captioner": ["Captioner"],
        "config": ["RunConfig", "load_config"],
        "decoding": ["DecodingOptions"],
        "metrics": ["Scores"],
        "model": ["MiniGPT4"],
        "results": ["EvaluationResult", "TuningResult"],
    },
)


def __getattr__(name: str) -> Any:
    """Import a name at its first use."""
    if name in _WITH_TORCH and not _has_torch():
        raise MissingExtraError(f"captune.{name}", "train")
    return _import_name(name)


def __dir__() -> list[str]:
    """The names that `help` and completion show."""
    hidden = () if _has_torch() else _WITH_TORCH
    return [name for name in (*globals(), *__all__) if name not in hidden]


def _has_torch() -> bool:
    return find_spec("torch") is not None and find_spec("transformers") is not None
