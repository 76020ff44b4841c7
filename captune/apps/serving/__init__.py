"""A model behind a web page and an OpenAI-compatible endpoint; requests are decoded together as they arrive.

`served_models` loads, `messages` turns messages into prompts, `jobs` and `engine` decode, `schema` and `completions`
are the endpoint, and `server` is the application with its page.
"""

from __future__ import annotations

__all__: list[str] = []
