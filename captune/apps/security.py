"""Security of the servers: limits on requests, accepted hosts and origins, keys, security headers.

Starlette's TrustedHostMiddleware is not used: it does not know the address that a client has connected to, and its
error is plain text without a hint.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote_from_bytes, unquote_to_bytes, urlsplit

from captune.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

__all__ = [
    "LOCAL_HOSTS",
    "KeyMiddleware",
    "SecurityMiddleware",
    "answered_hosts",
    "base_url",
    "is_local",
]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    # Not `no-referrer`, with which browsers also hide the origin of a form, which is checked here.
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)

Refusal = Callable[[int, str], tuple[str, bytes]]
"""Makes content type and body of an error response from its status and sentence."""


def _plain(status: int, sentence: str) -> tuple[str, bytes]:
    return "text/plain; charset=utf-8", f"{sentence}\n".encode()


class SecurityMiddleware:
    """ASGI middleware that refuses large or slow requests, unknown hosts and requests from other sites.

    The body is read before the application is called, so that bodies without a length or at a trickle end here.

    Args:
        application: the protected application.
        max_body: limit on the bytes of a body; more is 413.
        max_waiting: limit on the bytes of all bodies that are being read or answered; more is 429.
        hosts: accepted names in the Host header, against DNS rebinding; None accepts any. The host of `site` and the
            address of the connection are accepted too.
        site: beginning of the addresses behind a proxy, which browsers send as the origin.
        refusal: formats error responses.
        body_seconds: limit on the time of a body to arrive; longer is 408.
    """

    def __init__(
        self,
        application: Application,
        *,
        max_body: int,
        max_waiting: int = 256 << 20,
        hosts: Sequence[str] | None = LOCAL_HOSTS,
        site: str | None = None,
        refusal: Refusal = _plain,
        body_seconds: float = 30.0,
    ) -> None:
        self._application = application
        self._max_body = max_body
        self._max_waiting = max_waiting
        self._site, *site_host = _site(site) if site is not None else ("",)
        self._hosts = None if hosts is None else tuple(dict.fromkeys([*hosts, *site_host]))
        self._refusal = refusal
        self._body_seconds = body_seconds
        self._waiting = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self._wrong_host(headers, scope) or self._wrong_request(scope["method"], headers):
            await self._refuse(send, *problem)
            return
        body, received, is_complete = bytearray(), 0, False
        try:
            async with asyncio.timeout(self._body_seconds):
                more = scope["method"] not in ("GET", "HEAD")
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    chunk: bytes = message.get("body", b"")
                    more = message.get("more_body", False)
                    received += len(chunk)
                    self._waiting += len(chunk)
                    if received > self._max_body:
                        await self._refuse(send, 413, f"The request is larger than {self._max_body:,} bytes.")
                        return
                    if self._waiting > self._max_waiting:
                        await self._refuse(send, 429, "Too much is waiting to be answered; try again in a moment.")
                        return
                    body += chunk
            is_complete = True
            await self._application(scope, _replaying(bytes(body), receive), _with_headers(send))
        except TimeoutError:
            if is_complete:  # raised by the application
                raise
            await self._refuse(send, 408, f"The request did not arrive within {self._body_seconds:g} seconds.")
        finally:
            self._waiting -= received

    def _wrong_host(self, headers: dict[bytes, str], scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        """Status and sentence of the refusal of another host name."""
        if self._hosts is None:
            return None
        name = _name(headers.get(b"host", ""))
        # DNS rebinding needs a name, so the address that the client has connected to is accepted.
        if name in self._hosts or _same_address(name, (scope.get("server") or ("",))[0]):
            return None
        return 400, (
            f"This server answers to {', '.join(self._hosts)} only; --host opens it to others, and --url sets the "
            "address of a proxy."
        )

    def _wrong_request(self, method: str, headers: dict[bytes, str]) -> tuple[int, str] | None:
        """Status and sentence of other refusals by the headers."""
        host = headers.get(b"host", "").lower()
        if method not in ("GET", "HEAD", "OPTIONS"):
            # Browsers send where a POST comes from; other programs send neither header and have no cookies.
            origin = headers.get(b"origin")
            if headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin") or (
                origin is not None and origin.lower().partition("://")[2] != host and origin.lower() != self._site
            ):
                return 403, "The request comes from another site and was refused."
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > self._max_body:
            return 413, f"The request is larger than {self._max_body:,} bytes."
        return None

    async def _refuse(self, send: Send, status: int, sentence: str) -> None:
        content_type, body = self._refusal(status, sentence)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        if status in (408, 413):
            # The rest of the body is not read.
            headers.append((b"connection", b"close"))
        answer = _with_headers(send)
        await answer({"type": "http.response.start", "status": status, "headers": headers})
        await answer({"type": "http.response.body", "body": body})


class KeyMiddleware:
    """ASGI middleware that answers 401 to requests without a key.

    Programs send `Authorization: Bearer KEY`. A browser opens `/?key=KEY` once, which sets a cookie and redirects to
    the page.

    Args:
        application: the protected application.
        key: the key.
        public: paths that need no key.
        refusal: formats error responses.
    """

    def __init__(
        self, application: Application, key: str, *, public: Sequence[str] = (), refusal: Refusal = _plain
    ) -> None:
        self._application, self._public, self._refusal = application, public, refusal
        self._key = key.encode()
        # Servers on several ports of a machine share their cookies, so each key has its name.
        self._cookie = f"captune_key_{hashlib.sha256(self._key).hexdigest()[:12]}".encode()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in self._public:
            await self._application(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        scheme, _, bearer = headers.get(b"authorization", b"").partition(b" ")
        cookies = (part.strip().partition(b"=") for part in headers.get(b"cookie", b"").split(b";"))
        cookie = next((value for name, _, value in cookies if name == self._cookie), b"")
        if (scheme.lower() == b"bearer" and self._fits(bearer.strip())) or self._fits(unquote_to_bytes(cookie)):
            await self._application(scope, receive, send)
        elif self._fits(_query_key(scope["query_string"])):
            value = quote_from_bytes(self._key, safe="").encode()
            cookie = self._cookie + b"=" + value + b"; HttpOnly; Path=/; SameSite=strict"
            answer = [(b"location", b"/"), (b"set-cookie", cookie), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": answer})
            await send({"type": "http.response.body", "body": b""})
        else:
            sentence = "The key is missing or wrong; send it as a bearer token, or open the page with ?key=... once."
            content_type, body = self._refusal(401, sentence)
            answer = [
                (b"content-type", content_type.encode()),
                (b"content-length", str(len(body)).encode()),
                (b"www-authenticate", b"Bearer"),
            ]
            await send({"type": "http.response.start", "status": 401, "headers": answer})
            await send({"type": "http.response.body", "body": body})

    def _fits(self, sent: bytes) -> bool:
        return hmac.compare_digest(sent, self._key)


def _query_key(query: bytes) -> bytes:
    """The field "key" of a query; empty without one, and for a query that is not one."""
    try:
        return parse_qs(query.decode("latin-1"), max_num_fields=20).get("key", [""])[0].encode()
    except ValueError:
        return b""


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in LOCAL_HOSTS or host.startswith("127.")


def answered_hosts(host: str, url: str | None) -> tuple[str, ...] | None:
    """The hosts of a `SecurityMiddleware`: the names of this machine, or None (any) for other machines without a name.

    Args:
        host: the one to listen on.
        url: beginning of the addresses, if it is set.

    Raises:
        InputError: `url` is not the beginning of an address.
    """
    if url is None:
        return LOCAL_HOSTS if is_local(host) else None
    _site(url)
    return (*LOCAL_HOSTS, socket.gethostname().lower())


def base_url(host: str, port: int) -> str:
    """Beginning of the addresses of a server, for those who can reach it.

    Args:
        host: the one it listens on; of all addresses of the machine the outward one is used.
        port: the one it listens on.
    """
    if host == "localhost":
        host = "127.0.0.1"
    elif host in ("0.0.0.0", "::", ""):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                # Sends nothing: the system only picks the address that it would use.
                probe.connect(("192.0.2.1", 9))
                host = str(probe.getsockname()[0])
        except OSError:
            host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _site(url: str) -> tuple[str, str]:
    """The origin of an address as a browser writes it, and its host.

    Raises:
        InputError: it is no address.
    """
    try:
        parts = urlsplit(url)
        usual = {"http": 80, "https": 443}[parts.scheme]
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port or usual
        if not host or parts.username is not None:
            raise ValueError
    except (KeyError, ValueError):
        raise InputError(
            f"--url is {url!r}, expected the beginning of the address, such as https://demo.example."
        ) from None
    origin = f"{parts.scheme}://[{host}]" if ":" in host else f"{parts.scheme}://{host}"
    return origin if port == usual else f"{origin}:{port}", host


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _same_address(name: str, address: str) -> bool:
    """Whether both are the same IP address; False for names."""
    try:
        first, second = ipaddress.ip_address(name), ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(first, "ipv4_mapped", None) or first) == (getattr(second, "ipv4_mapped", None) or second)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Give the application the received body, then the following messages (the disconnect of the client)."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            names = {name.lower() for name, _ in headers}
            # A page with a policy in its response, such as a report with an inline script, keeps it.
            message["headers"] = headers + [header for header in _HEADERS if header[0] not in names]
        await send(message)

    return sending
