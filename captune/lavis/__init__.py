"""Configurations of the original code, MiniGPT-4 on LAVIS, understood."""

from __future__ import annotations

from captune.lavis.translation import Translation, is_lavis, translate

__all__ = ["Translation", "is_lavis", "translate"]
