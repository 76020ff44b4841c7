"""Images at remote addresses, where the server's owner has allowed them: public addresses only, and little of each.

A request that names an address makes the server look there. So that nobody sees through it what only the server can
reach (a router's page, a cloud's metadata), the name is looked up once, every address it has must be public, and the
connection goes to the address that was checked; redirects are not followed.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from captune.apps.serving.errors import APIError

__all__ = ["fetch_image", "is_public"]

SECONDS = 10.0
PIECE = 1 << 16


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        # IPv4 in the clothes of IPv6 is judged as IPv4.
        inner = parsed.ipv4_mapped or parsed.sixtofour or (parsed.teredo[1] if parsed.teredo else None)
        if inner is not None:
            return is_public(str(inner))
        if parsed in ipaddress.ip_network("64:ff9b::/96"):
            return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
    return parsed.is_global and not parsed.is_multicast


def fetch_image(
    url: str, *, most_bytes: int, seconds: float = SECONDS, allowed: Callable[[str], bool] = is_public
) -> bytes:
    """Get an image.

    Args:
        url: http or https.
        most_bytes: more is 413.
        seconds: for all of it.
        allowed: whether an IP address may be connected to.

    Raises:
        APIError: 400 for an address that is refused or does not answer with 200, 413 for too much.
    """
    deadline = time.monotonic() + seconds
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        host = parts.hostname or ""
        if parts.username is not None or not host:
            raise ValueError
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (ValueError, KeyError, OSError, UnicodeError):
        raise _refused("An image's address is not understood, or its host is not known.") from None
    addresses = [str(entry[4][0]) for entry in found]
    if not addresses or not all(map(allowed, addresses)):
        raise _refused("An image's address leads into a network that is not public.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Pinned(host, port, addresses[0], seconds, secure=parts.scheme == "https")
    try:
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "captune"})
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise _refused(f"An image's address answers with {answer.status}; redirects are not followed.")
            data = bytearray()
            while piece := answer.read1(PIECE):
                data += piece
                if len(data) > most_bytes:
                    raise APIError(413, f"A remote image is larger than {most_bytes:,} bytes.", param="messages")
                if time.monotonic() > deadline:
                    raise _refused(f"An image did not arrive within {seconds:g} seconds.")
            return bytes(data)
    except (OSError, http.client.HTTPException, ValueError):
        raise _refused("An image's address does not answer.") from None
    finally:
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to an address that was checked, under the name that it was asked for."""

    def __init__(self, host: str, port: int, address: str, seconds: float, *, secure: bool) -> None:
        super().__init__(host, port, timeout=seconds)
        self._address = address
        self._secure = secure

    def connect(self) -> None:
        """Connect to the checked address; TLS is for the name."""
        plain: Any = socket.create_connection((self._address, self.port), self.timeout)
        self.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=self.host) if self._secure else plain
        )


def _refused(sentence: str) -> APIError:
    return APIError(400, sentence, code="invalid_image", param="messages")
