"""captune: instruction-tune vision-language captioners, and know whether they got better."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captune.captioner import Captioner
    from captune.model import MiniGPT4

__all__ = ["Captioner", "MiniGPT4", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for: scoring and preparing do without."""
    if name == "MiniGPT4":
        from captune.model import MiniGPT4

        return MiniGPT4
    if name == "Captioner":
        from captune.captioner import Captioner

        return Captioner
    raise AttributeError(f"module 'captune' has no attribute '{name}'")
