"""Remote images: public addresses only, one place, little of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from captune.apps.serving.request_images import fetch_image, is_public
from captune.apps.serving.schema import APIError

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


PRIVATE_IPV4 = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.0", "10.255.255.255", "100.64.0.0", "100.127.255.255", "127.0.0.1"),
    *("127.255.255.255", "169.254.0.1", "169.254.169.254", "172.16.0.0", "172.31.255.255", "192.0.0.8", "192.0.0.9"),
    *("192.0.0.170", "192.0.2.1", "192.88.99.1", "192.168.0.0", "192.168.255.255", "198.18.0.1", "198.19.255.255"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
)
PUBLIC_IPV4 = (
    *("1.1.1.1", "9.255.255.255", "11.0.0.0", "93.184.215.14", "100.63.255.255", "100.128.0.0", "126.255.255.255"),
    *("128.0.0.0", "169.253.255.255", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.167.0.1"),
    *("198.17.255.255", "198.20.0.0", "223.255.255.255"),
)


@pytest.mark.parametrize(
    "address",
    [
        *PRIVATE_IPV4,
        *(f"::ffff:{address}" for address in PRIVATE_IPV4),
        *(f"64:ff9b::{address}" for address in PRIVATE_IPV4),
        # Forms of IPv4 that some machines send on to it, wherever they lead.
        *("::127.0.0.1", "::10.0.0.1", "::1.1.1.1", "::ffff:0:7f00:1", "::ffff:0:101:101", "2002:7f00:1::"),
        *("2002:101:101::", "64:ff9b:1::7f00:1", "64:ff9b:1::101:101", "64:ff9b:1:ffff::1", "64:ff9b:0:1::1"),
        *("2001::1", "2001:0:7f00:1:0:0:80ff:fffe", "2001:1::1", "2001:2::1", "2001:10::1", "2001:20::1", "2001:30::1"),
        # Private and reserved networks.
        *("::", "::1", "fc00::1", "fd00::1", "fdff::1", "fe80::1", "fe80::1%eth0", "febf::1", "fec0::1", "feff::1"),
        *(
            "ff02::1",
            "ff0e::1",
            "2001:db8::1",
            "3fff::1",
            "3fff:fff::1",
            "100::1",
            "100:0:0:1::1",
            "5f00::1",
            "4000::1",
        ),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *PUBLIC_IPV4,
        *(f"::ffff:{address}" for address in PUBLIC_IPV4),
        *(f"64:ff9b::{address}" for address in PUBLIC_IPV4),
        *("2606:4700:4700::1111", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "2001:200::1", "2001:4860:4860::8888"),
        *("2003::1", "2a00:1450:4001:80b::200e", "3ffe::1"),
    ],
)
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


@pytest.mark.parametrize("trickle", [b"H", b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n", b""])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_site_that_sends_a_byte_now_and_then_takes_no_longer(trickle: bytes, scheme: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        one, _ = listener.accept()
        with one:
            try:
                one.sendall(trickle)
                while True:
                    one.sendall(b"a" if trickle else b"")
                    time.sleep(0.05)
                    if not trickle and not one.recv(1000):
                        return
            except OSError:
                return

    thread = threading.Thread(target=drip)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(APIError, match=r"within 0.5 seconds|does not answer"):
        fetch(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/", seconds=0.5, allowed=lambda address: True)
    assert time.monotonic() - begun < 5
    thread.join(10)
    assert not thread.is_alive()
    listener.close()


@pytest.mark.parametrize(
    "url", ["ftp://a.example/x", "http://", "http://user:word@a.example/", "http://[", "http://a:99999/"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(APIError, match="not understood"):
        fetch(url)
