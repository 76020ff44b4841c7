"""Connections of both servers: listening, and limits on their number and on the time of a request to arrive."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from captune.errors import InputError, ToolError

__all__ = ["ACCEPTED_AT_ONCE", "Connection", "Server", "listening_socket", "most_connections", "run_server"]

HEADER_SECONDS = 30.0
"""Time for the headers of a request to arrive, from its first byte or from the connection."""

BODY_SECONDS = 35.0
"""Time for its body. `SecurityMiddleware` answers 408 earlier; this closes connections whose body is not read."""

WRITE_SECONDS = 60.0
"""Time for which a client may leave a response unread once the buffers are full."""

ACCEPTED_AT_ONCE = 8
"""Connections accepted before any of them is handled; each is briefly an open file beyond the limit."""

RESERVED_FILES = 64
"""Open files reserved for images, pages, name look-ups and connections just accepted."""

MOST_CONNECTIONS = 4096


def listening_socket(host: str, port: int) -> socket.socket:
    """A listening socket, so that a used port is reported before the model is loaded.

    Args:
        host: name or address to bind to.
        port: 0 picks a free one.

    Raises:
        InputError: the port is in use, or the host is not one of this machine.
        ToolError: listening fails for another reason.
    """
    listener: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With an explicit protocol: asyncio disables Nagle's algorithm only for sockets of IPPROTO_TCP.
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


def most_connections() -> int:
    """Limit on open connections, so that the process never runs out of files."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MOST_CONNECTIONS
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    listing = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        open_files = len(os.listdir(listing))
    except OSError:
        open_files = 32
    return max(8, min(MOST_CONNECTIONS, limit - open_files - RESERVED_FILES))


class Connection(H11Protocol):
    """A connection that is closed when a request takes too long to arrive, or when too many connections are open.

    In the second case the connection that has been idle or sending for longest is closed, so that a client that sends
    its request at once is answered, however many others do not.

    Attributes:
        most: limit on open connections.
    """

    most: int = MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, and close another one if there are too many."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._phase: tuple[Any, Any] | None = None
        self._watch()
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Handle received bytes."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read; it has `WRITE_SECONDS` to do so."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    @property
    def is_arriving(self) -> bool:
        """Whether the next request, or the rest of one, is still to come."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _watch(self) -> None:
        """Start the timer of the headers or the body of one request."""
        state = self.conn.their_state
        if (state, self.cycle) == self._phase:
            return
        self._phase, self._since = (state, self.cycle), self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
        seconds = {h11.IDLE: HEADER_SECONDS, h11.SEND_BODY: BODY_SECONDS}.get(state)
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _make_room(self) -> None:
        """Close the connection that has waited longest, or this one if all others are being answered."""
        others = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and other.is_arriving
        ]
        closed = min(others, key=lambda other: (other.conn.their_state is h11.SEND_BODY, other._since), default=self)
        # It would be counted until `connection_lost` is called, and more may be accepted before.
        self.connections.discard(closed)
        closed.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server with a long queue of connections to accept."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; asyncio would use the number of connections accepted at once as the length of the queue."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(2048)


def run_server(application: Any, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; running requests are completed first.

    Args:
        application: an ASGI application.
        listener: from `listening_socket`.
    """

    class Limited(Connection):
        most = most_connections()

    config = uvicorn.Config(
        application,
        # Explicit, so that other installed libraries change nothing.
        loop="asyncio",
        http=Limited,
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=20,
        # Users look at a page for a while.
        timeout_keep_alive=60,
        lifespan="on",
    )
    Server(config).run(sockets=[listener])
