"""What both servers share: limits on what comes in, headers on what goes out, and the start of a server."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from captune.errors import InputError, ToolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

__all__ = ["LOCAL_HOSTS", "Guard", "answered_hosts", "base_url", "is_local", "listening_socket", "run_server"]

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    # Not `no-referrer`: with it browsers hide the origin of a form, too, and that is checked here.
    (b"referrer-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)

Refusal = Callable[[int, str], tuple[str, bytes]]
"""Makes content type and body of a refusal from its status and sentence."""


def _plain(status: int, sentence: str) -> tuple[str, bytes]:
    return "text/plain; charset=utf-8", f"{sentence}\n".encode()


class Guard:
    """Lets through what is small, for this host, and from this site.

    A body is read before the application sees the request, so that one without a length or slower than anybody's
    line ends here.

    Args:
        application: what is guarded.
        max_body: bytes of one request's body; more is 413.
        max_waiting: bytes of all bodies that are being read or answered together; more is 429.
        hosts: names in the Host header that are answered, against DNS rebinding; None is any. The host of `site` and
            the address that a connection was made to are answered too.
        site: what addresses begin with where a proxy is in front, which browsers then name as the origin.
        refusal: how a refusal is written.
        body_seconds: time to send a body in; longer is 408.
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
        """Answer one connection event, as ASGI asks."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if problem := self._wrong_host(headers, scope) or self._wrong_request(scope["method"], headers):
            await self._refuse(send, *problem)
            return
        body, held, arrived = bytearray(), 0, False
        try:
            async with asyncio.timeout(self._body_seconds):
                more = scope["method"] not in ("GET", "HEAD")
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    chunk: bytes = message.get("body", b"")
                    more = message.get("more_body", False)
                    held += len(chunk)
                    self._waiting += len(chunk)
                    if held > self._max_body:
                        await self._refuse(send, 413, f"The request is larger than {self._max_body:,} bytes.")
                        return
                    if self._waiting > self._max_waiting:
                        await self._refuse(send, 429, "Too much is waiting to be answered; try again in a moment.")
                        return
                    body += chunk
            arrived = True
            await self._application(scope, _replaying(bytes(body), receive), _with_headers(send))
        except TimeoutError:
            if arrived:  # a time-out of the application's own
                raise
            await self._refuse(send, 408, f"The request did not arrive within {self._body_seconds:g} seconds.")
        finally:
            self._waiting -= held

    def _wrong_host(self, headers: dict[bytes, str], scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        """Status and sentence for a request to a name that is not answered."""
        if self._hosts is None:
            return None
        name = _name(headers.get(b"host", ""))
        # An address cannot be bound anew, so the one that the client has connected to is as good as a name.
        if name in self._hosts or _same_address(name, (scope.get("server") or ("",))[0]):
            return None
        return 400, (
            f"This server answers to {', '.join(self._hosts)} only; --host lets others in, and --url names the "
            "address of a proxy in front."
        )

    def _wrong_request(self, method: str, headers: dict[bytes, str]) -> tuple[int, str] | None:
        """Status and sentence for another request that is refused by its headers."""
        host = headers.get(b"host", "").lower()
        if method not in ("GET", "HEAD", "OPTIONS"):
            # Browsers tell where a post comes from; programs that are no browser tell neither, and have no cookies.
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
            # What is left of the body is not read.
            headers.append((b"connection", b"close"))
        answer = _with_headers(send)
        await answer({"type": "http.response.start", "status": status, "headers": headers})
        await answer({"type": "http.response.body", "body": body})


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in LOCAL_HOSTS or host.startswith("127.")


def answered_hosts(host: str, url: str | None) -> tuple[str, ...] | None:
    """The hosts of a `Guard`: this machine's names; None, which is any, where others are let in by no name.

    Args:
        host: that the server was told to listen on.
        url: what addresses begin with, where that was named.

    Raises:
        InputError: `url` is not the beginning of an address.
    """
    if url is None:
        return LOCAL_HOSTS if is_local(host) else None
    _site(url)
    return (*LOCAL_HOSTS, socket.gethostname().lower())


def base_url(host: str, port: int) -> str:
    """What addresses of a server begin with, as those may type them who can reach it.

    Args:
        host: that it was told to listen on; for all addresses of the machine, the one that leads outwards is named.
        port: that it listens on.
    """
    if host == "localhost":
        host = "127.0.0.1"
    elif host in ("0.0.0.0", "::", ""):
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                # Nothing is sent: the machine only says which of its addresses it would use.
                probe.connect(("192.0.2.1", 9))
                host = str(probe.getsockname()[0])
        except OSError:
            host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a taken port is one sentence before anything is loaded.

    Args:
        host: name or address to bind to.
        port: 0 takes a free one.

    Raises:
        InputError: the port is taken, or the host is not one of this machine.
        ToolError: the machine does not let it listen for another reason.
    """
    listener: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The protocol is named because asyncio turns delays off (Nagle) only for sockets that say they are TCP.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        if listener is not None:
            listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"Port {port} of {host} is in use; give another one with --port.") from None
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"{host} is no address of this machine; give 127.0.0.1, or 0.0.0.0 for all.") from None
        raise ToolError(f"Cannot listen on {host}, port {port}: {error.strerror}.") from None
    return listener


def run_server(application: Any, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; requests that are being answered are answered first.

    Args:
        application: an ASGI application.
        listener: from `listening_socket`.
    """
    import uvicorn

    from captune.apps.connections import ACCEPTED_AT_ONCE, Connection, Server, most_connections

    class Limited(Connection):
        most = most_connections()

    config = uvicorn.Config(
        application,
        # Named, so that other libraries that happen to be installed change nothing.
        loop="asyncio",
        http=Limited,
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=20,
        # People look at a page for a while.
        timeout_keep_alive=60,
        lifespan="on",
    )
    Server(config).run(sockets=[listener])


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
            f"--url is {url!r}, expected what addresses begin with, such as https://demo.example."
        ) from None
    origin = f"{parts.scheme}://[{host}]" if ":" in host else f"{parts.scheme}://{host}"
    return origin if port == usual else f"{origin}:{port}", host


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")


def _same_address(name: str, address: str) -> bool:
    """Whether both are the same IP address; names are none."""
    try:
        one, other = ipaddress.ip_address(name), ipaddress.ip_address(address)
    except ValueError:
        return False
    return (getattr(one, "ipv4_mapped", None) or one) == (getattr(other, "ipv4_mapped", None) or other)


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Give the application the body that was read, then whatever comes (the client's leaving)."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sending
