"""A model behind a web page and an OpenAI-compatible endpoint; concurrent requests share batches.

`served_models` loads, `messages` and `request_images` turn messages into prompts, `jobs` and `engine` decode, `schema`
and `completions` are the endpoint, and `server` is the application with its page.
"""

from __future__ import annotations

from captune.apps.serving.completions import Limits
from captune.apps.serving.request_images import ImageLimits, fetch_image
from captune.apps.serving.served_models import ServedCaptioner, ServedModel, load_served
from captune.apps.serving.server import Example, serving_application

__all__ = [
    "Example",
    "ImageLimits",
    "Limits",
    "ServedCaptioner",
    "ServedModel",
    "fetch_image",
    "load_served",
    "serving_application",
]
