"""Web applications: blind human rating (`rating`), and a model behind a page and an endpoint (`serving`)."""

from __future__ import annotations

from captune.apps.http import (
    LOCAL_HOSTS,
    SecurityMiddleware,
    answered_hosts,
    base_url,
    is_local,
    listening_socket,
    run_server,
)

__all__ = [
    "LOCAL_HOSTS",
    "SecurityMiddleware",
    "answered_hosts",
    "base_url",
    "is_local",
    "listening_socket",
    "run_server",
]
