"""People in the loop: blind human rating, a page to try a model on, and an endpoint for programs."""

from __future__ import annotations

__all__: list[str] = []
