"""Small helpers that every room may use; this room imports nothing of captune."""

from __future__ import annotations

from captune.common.lazy import lazy_names
from captune.common.text import did_you_mean, error_text, first_line, listed, one_line, shorten

__all__ = ["did_you_mean", "error_text", "first_line", "lazy_names", "listed", "one_line", "shorten"]
