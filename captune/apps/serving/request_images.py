"""Images of a request: from `data:` URLs, and from remote addresses if the server's owner has allowed them.

A remote URL in a request makes the server connect to it. So that a client cannot read what only the server can reach
(the page of a router, the metadata of a cloud), the name is resolved once, every address of it must be public, and the
connection goes to a checked address; redirects are not followed. The public ranges are listed here because
`ipaddress.is_global` differs between patch releases of Python. An HTTP client such as httpx has time-outs for each
read only, so that a server which sends one byte now and then would hold a thread for hours; here a timer closes the
connection.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from captune.apps.serving.schema import APIError
from captune.data import image_size
from captune.errors import DataError, ImageTooLargeError

__all__ = ["ImageLimits", "decode_data_url", "fetch_image", "image_bytes", "is_public", "is_remote"]

_DATA_URL = re.compile(r"data:(?P<type>[\w.+/-]*)(?P<settings>(?:;[\w.=+-]+)*?)(?P<base64>;base64)?,", re.IGNORECASE)
_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")
_PERCENT_CODES = (("%2B", "+"), ("%2b", "+"), ("%2F", "/"), ("%2f", "/"), ("%3D", "="), ("%3d", "="))

SECONDS = 10.0
PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on images.

    Attributes:
        count: images of one request.
        pixels: of one image before it is resized.
    """

    count: int = 8
    pixels: int = 25_000_000


def image_bytes(url: str, limits: ImageLimits, where: str, fetch: Callable[[str], bytes] | None) -> bytes:
    """The bytes of an image, whose size is checked.

    Args:
        url: a `data:` URL, or an address.
        limits: on images.
        where: the part of the request, for errors.
        fetch: downloads a remote image; None refuses it.

    Raises:
        APIError: 400 or 413.
    """
    if not is_remote(url):
        return decode_data_url(url, limits, where)
    if fetch is None:
        raise APIError(
            400,
            "Images at remote addresses are not fetched; send the image itself as a data: URL.",
            code="remote_images_off",
            param=where,
        )
    data = fetch(url)
    _check_size(data, limits, where)
    return data


def decode_data_url(url: str, limits: ImageLimits, where: str) -> bytes:
    """The bytes of an image in a `data:` URL; its size is checked.

    The base64 may use the URL-safe alphabet, lack padding, be percent-encoded and have line breaks.

    Raises:
        APIError: 400 for invalid base64 or another file than an image, 413 for too many pixels.
    """
    match = _DATA_URL.match(url[:200])
    if match is None or match["base64"] is None:
        raise APIError(400, "An image must be a URL of the form data:image/jpeg;base64,...", param=where)
    text = url[match.end() :]
    for code, letter in _PERCENT_CODES:
        text = text.replace(code, letter)
    try:
        letters = text.encode("ascii").translate(_URL_ALPHABET, b" \t\r\n").rstrip(b"=")
        data = base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise APIError(400, "The image's base64 is malformed.", code="invalid_base64", param=where) from None
    _check_size(data, limits, where)
    return data


def _check_size(data: bytes, limits: ImageLimits, where: str) -> None:
    """Refuse an image by its header, before a pixel is decoded.

    Raises:
        APIError: 400 for another file than an image, 413 for too many pixels.
    """
    try:
        image_size(io.BytesIO(data), where, most_pixels=limits.pixels)
    except ImageTooLargeError as error:
        raise APIError(413, str(error), code="image_too_large", param=where) from None
    except DataError as error:
        raise APIError(400, str(error), code="invalid_image", param=where) from None


def is_remote(url: str) -> bool:
    """Whether the URL of an image is a remote address."""
    return url[:8].lower().startswith(("http://", "https://"))


# From IANA's registries of special-purpose addresses. Some of them are reachable, but hold no images.
_SPECIAL_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT
            "127.0.0.0/8",  # this machine
            "169.254.0.0/16",  # link-local, with the metadata of clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # multicast relays
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All allocated addresses; internal ones (fc00::/7, fe80::/10, fec0::/10, ::a.b.c.d, ...) are outside of it."""

_SPECIAL_IPV6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments, Teredo among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the open internet.

    IPv4 in IPv6 is checked as IPv4 where its translation is standard: mapped addresses and NAT64's well-known prefix.
    Other forms (6to4, Teredo, local NAT64) are refused.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return not any(parsed in network for network in _SPECIAL_IPV4)
    if parsed in _MAPPED or parsed in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)))
    return parsed in _UNICAST_IPV6 and not any(parsed in network for network in _SPECIAL_IPV6)


def fetch_image(
    url: str, *, most_bytes: int, seconds: float = SECONDS, allowed: Callable[[str], bool] = is_public
) -> bytes:
    """Download an image.

    Args:
        url: http or https.
        most_bytes: limit on its size; more is 413.
        seconds: limit on the complete download.
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
        results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (ValueError, KeyError, OSError, UnicodeError):
        raise _refused("An image's address is not understood, or its host is not known.") from None
    addresses = [str(entry[4][0]) for entry in results]
    if not addresses or not all(map(allowed, addresses)):
        raise _refused("An image's address leads into a network that is not public.")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connection = _Pinned(host, port, addresses[0], seconds, secure=parts.scheme == "https")
    # The time-out of a socket restarts with every received byte.
    timer = threading.Timer(seconds, connection.abort)
    timer.start()
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
            if time.monotonic() >= deadline:
                raise TimeoutError
            return bytes(data)
    except (OSError, http.client.HTTPException, ValueError):
        if time.monotonic() >= deadline:
            raise _refused(f"An image did not arrive within {seconds:g} seconds.") from None
        raise _refused("An image's address does not answer.") from None
    finally:
        timer.cancel()
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to a checked address, with the requested host name."""

    def __init__(self, host: str, port: int, address: str, seconds: float, *, secure: bool) -> None:
        super().__init__(host, port, timeout=seconds)
        self._address = address
        self._secure = secure
        # `self.sock` is already None while the end of an answer is read.
        self._open: socket.socket | None = None

    def connect(self) -> None:
        """Connect to the checked address; TLS is for the name."""
        self.sock: Any = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self._open = self.sock
        if self._secure:
            self.sock.do_handshake()

    def abort(self) -> None:
        """Close the connection, from another thread."""
        with suppress(OSError):
            if self._open is not None:
                # Not the method of the TLS socket, which removes the object that the other thread reads from.
                socket.socket.shutdown(self._open, socket.SHUT_RDWR)


def _refused(sentence: str) -> APIError:
    return APIError(400, sentence, code="invalid_image", param="messages")
