"""A model behind a page and an OpenAI-style endpoint, requests decoded together as they come.

`checkpoints` loads, `questions` turns messages into prompts, `engine` decodes, `server` and `schema` are the endpoint,
`page` the page.
"""

from __future__ import annotations

__all__: list[str] = []
