"""Remote images: public addresses only, one place, little of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from captune.apps.serving.errors import APIError
from captune.apps.serving.remote import fetch_image, is_public

fetch = partial(fetch_image, most_bytes=10_000)


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/image")
            self.end_headers()
            return
        self.send_response(200 if self.path in ("/image?a=1", "/large") else 404)
        self.end_headers()
        self.wfile.write(b"x" * (20_000 if self.path == "/large" else 100))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


def test_local_addresses_are_refused_whatever_they_are_called(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = site.rsplit(":", 1)[1]
    for name in ("localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"):
        with pytest.raises(APIError, match=r"not public|not understood"):
            fetch(f"http://{name}:{port}/image?a=1")
    # A name with a public address and a local one.
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.215.14", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(APIError, match="not public"):
        fetch("http://two-faced.example/")


def test_what_is_got_and_what_is_not(site: str) -> None:
    anywhere = partial(fetch, allowed=lambda address: True)
    assert anywhere(f"{site}/image?a=1") == b"x" * 100
    with pytest.raises(APIError, match="answers with 302; redirects are not followed"):
        anywhere(f"{site}/moved")
    with pytest.raises(APIError, match="answers with 404"):
        anywhere(f"{site}/none")
    with pytest.raises(APIError, match="larger than 10,000 bytes") as caught:
        anywhere(f"{site}/large")
    assert caught.value.status == 413
    with pytest.raises(APIError, match="does not answer"):
        anywhere(site.replace("http://", "https://") + "/image")


@pytest.mark.parametrize(
    "url", ["ftp://a.example/x", "http://", "http://user:word@a.example/", "http://[", "http://a:99999/"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(APIError, match="not understood"):
        fetch(url)
