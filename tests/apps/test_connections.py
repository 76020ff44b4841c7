"""Connections that send or read slowly, and more of them than files may be open: others are answered all the while."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from captune.apps import connections
from captune.apps.connections import Connection, Server, listening_socket, most_connections
from captune.apps.security import SecurityMiddleware

Serve = Callable[..., int]


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/long":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * (1 << 20), "more_body": True})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[Serve]:
    """A function that starts a server in a thread, with short times, and returns its port."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(most: int = 100, seconds: float = 0.3) -> int:
        for name in ("HEADER_SECONDS", "BODY_SECONDS", "WRITE_SECONDS"):
            monkeypatch.setattr(connections, name, seconds)
        listener = listening_socket("127.0.0.1", 0)
        port = int(listener.getsockname()[1])
        application: Any = SecurityMiddleware(_hello, max_body=1000, body_seconds=seconds)
        config = uvicorn.Config(
            application,
            http=type("Few", (Connection,), {"most": most}),
            ws="none",
            lifespan="off",
            log_config=None,
            backlog=connections.ACCEPTED_AT_ONCE,
        )
        server = Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        running.append((server, thread))
        return port

    with caplog.at_level(logging.WARNING):
        yield start
        for server, thread in running:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()
    assert not [record for record in caplog.records if record.exc_info], caplog.text


def _status(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/")
    status = connection.getresponse().status
    connection.close()
    return status


def _open(port: int, data: bytes) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port), timeout=10)
    one.sendall(data)
    return one


def _is_closed(one: socket.socket, drip: bytes = b"a", seconds: float = 10.0) -> bool:
    """Whether a connection that sends a byte now and then is closed."""
    deadline = time.monotonic() + seconds
    one.settimeout(0.05)
    while time.monotonic() < deadline:
        try:
            one.sendall(drip)
            if not one.recv(1000):
                return True
        except TimeoutError:
            continue
        except OSError:
            return True
    return False


HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"G",
        HEAD + b"X-A: ",
        # A request before it that was answered.
        HEAD + b"\r\n" + HEAD + b"X-A: ",
        # A body that is read, and one that is not.
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n",
        HEAD + b"Content-Length: 900\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 900\r\n\r\n",
    ],
)
def test_a_request_that_does_not_end_is_cut(serve: Serve, data: bytes) -> None:
    port = serve()
    with _open(port, data) as slow:
        assert _status(port) == 200
        assert _is_closed(slow)


def test_a_client_that_sends_at_once_keeps_its_connection(serve: Serve) -> None:
    port = serve()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    first = connection.sock
    for _ in range(4):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello"
        time.sleep(0.2)
    assert connection.sock is first
    connection.close()


def test_a_client_that_reads_nothing_is_cut(serve: Serve) -> None:
    port = serve()
    with _open(port, b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n") as lazy:
        time.sleep(1)
        lazy.settimeout(10)
        received = 0
        try:
            while piece := lazy.recv(1 << 20):
                received += len(piece)
        except OSError:
            pass
        assert received < 100 << 20


def test_the_slowest_make_room_for_others(serve: Serve) -> None:
    port = serve(most=10, seconds=30)
    slow = [_open(port, HEAD + b"X-A: ") for _ in range(10)]
    idle = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    idle.request("GET", "/")
    assert idle.getresponse().read() == b"hello"
    more = [_open(port, HEAD + b"X-A: ") for _ in range(30)]
    for _ in range(20):
        assert _status(port) == 200
    assert _is_closed(slow[0])
    assert not _is_closed(more[-1], seconds=0.2)
    for one in (*slow, *more, idle):
        one.close()


def test_garbage_leaves_no_traceback(serve: Serve) -> None:
    port = serve()
    for data in (
        b"\x16\x03\x01\x00\xa5\x01\x00",
        b"\r\n" * 100 + b"hello\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello\x00\x01garbage\r\n\r\n",
        HEAD + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        HEAD + b"X-A: " + b"a" * 200_000,
    ):
        with _open(port, data) as one:
            assert _is_closed(one, drip=b"")
    assert _status(port) == 200


def test_connections_leave_files_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert 8 <= most_connections() <= 256 - connections.RESERVED_FILES
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    assert most_connections() == 8
    for limit in (resource.RLIM_INFINITY, 1 << 20):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert most_connections() == connections.MOST_CONNECTIONS
