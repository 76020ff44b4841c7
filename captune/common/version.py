"""The version of captune, which signatures, checkpoints and model cards show."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.2.0"
