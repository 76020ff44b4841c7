"""Web applications: blind human rating (`rating`), and a model behind a page and an endpoint (`serving`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captune.common import lazy_names

if TYPE_CHECKING:
    from captune.apps.connections import listening_socket, run_server
    from captune.apps.security import LOCAL_HOSTS, SecurityMiddleware, answered_hosts, base_url, is_local

__all__ = [
    "LOCAL_HOSTS",
    "SecurityMiddleware",
    "answered_hosts",
    "base_url",
    "is_local",
    "listening_socket",
    "run_server",
]

__getattr__ = lazy_names(
    __name__,
    {
        "connections": ["listening_socket", "run_server"],
        "security": ["LOCAL_HOSTS", "SecurityMiddleware", "answered_hosts", "base_url", "is_local"],
    },
)
