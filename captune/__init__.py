"""captune: instruction-tune vision-language captioners, and know whether they got better."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from captune.errors import MissingExtraError

if TYPE_CHECKING:
    from captune.captioner import Captioner
    from captune.model import MiniGPT4

__all__ = ["Captioner", "MiniGPT4", "__version__"]

__version__ = "0.1.0"
_WITH_TORCH = {"Captioner": "captune.captioner", "MiniGPT4": "captune.model"}


def __getattr__(name: str) -> Any:
    """Import what needs torch at its first use only: scoring and preparing work without."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'captune' has no attribute '{name}'")
    try:
        return getattr(import_module(_WITH_TORCH[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "captune").split(".")[0] == "captune":
            raise
        raise MissingExtraError(f"captune.{name}", "train") from error
