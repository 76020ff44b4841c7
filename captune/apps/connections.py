"""Connections of both servers: bounded in number, and in the time that a request may take to arrive."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["ACCEPTED_AT_ONCE", "Connection", "Server", "most_connections"]

HEADER_SECONDS = 30.0
"""Time for the headers of a request to arrive, from its first byte or from the connection."""

BODY_SECONDS = 35.0
"""Time for its body. `captune.apps.http.Guard` answers 408 before; this ends connections that nobody reads from."""

WRITE_SECONDS = 60.0
"""Time for which a client may leave an answer unread that its buffers do not hold."""

ACCEPTED_AT_ONCE = 8
"""Connections accepted before any of them is looked at; each is an open file beyond the limit for a moment."""

RESERVED_FILES = 64
"""Open files that are kept for other things: images, pages, look-ups of names, connections just accepted."""

MOST_CONNECTIONS = 4096


def most_connections() -> int:
    """How many connections may be open, so that the process never runs out of files."""
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
    """A connection that is closed when a request takes too long to arrive, or when others need its place.

    Where too many are open, the one goes that has been idle or sending for longest: a client that sends its request at
    once is answered, however many others do not.

    Attributes:
        most: connections that may be open.
    """

    most: int = MOST_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a new connection in, and close another one if there are too many."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._phase: tuple[Any, Any] | None = None
        self._watch()
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for timer in (self._timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read: it has some time for that."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    @property
    def is_arriving(self) -> bool:
        """Whether the next request, or the rest of one, is still to come."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _watch(self) -> None:
        """Start the clock of what arrives now: headers or body of one request."""
        state = self.conn.their_state
        if (state, self.cycle) == self._phase:
            return
        self._phase, self._since = (state, self.cycle), self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
        seconds = {h11.IDLE: HEADER_SECONDS, h11.SEND_BODY: BODY_SECONDS}.get(state)
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _make_room(self) -> None:
        """Close the connection that can be spared best: this one, where all others are being answered."""
        others = [
            other
            for other in self.connections
            if isinstance(other, Connection) and other is not self and other.is_arriving
        ]
        spared = min(others, key=lambda other: (other.conn.their_state is h11.SEND_BODY, other._since), default=self)
        # It is counted until its loss is told, and more may come in before.
        self.connections.discard(spared)
        spared.transport.abort()


class Server(uvicorn.Server):
    """uvicorn's server, with a long queue of connections that are still to be accepted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; asyncio takes the number that it accepts at once for the length of the queue."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(2048)
