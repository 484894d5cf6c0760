"""One connection that always has something to do leaves all others of its shard their turns."""

import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from harness.proxy import Binary

pytestmark = pytest.mark.ringx_only("an nginx has such times, too")


@pytest.fixture(params=["io_uring", "epoll"])
def binary(binary: Binary, request) -> Binary:
    return Binary(binary.path, without_io_uring=request.param == "epoll")


def waits(proxy, count: int = 11) -> list[float]:
    """How long others wait for an answer, in seconds."""
    times = []
    for _ in range(count):
        start = time.monotonic()
        assert proxy.get("/other").status == 200
        times.append(time.monotonic() - start)
    return times


@contextmanager
def busy(proxy, sends: Callable[[socket.socket], None]) -> Iterator[None]:
    """A client that takes whatever comes, and does what it is told."""
    sock = socket.create_connection(("127.0.0.1", proxy.port))
    has_begun, taken = threading.Event(), bytearray(1 << 20)

    def take() -> None:
        try:
            while sock.recv_into(taken):
                has_begun.set()
        except OSError:
            pass

    def send() -> None:
        try:
            sends(sock)
        except OSError:
            pass

    threads = [threading.Thread(target=each, daemon=True) for each in (take, send)]
    for thread in threads:
        thread.start()
    assert has_begun.wait(10)
    try:
        yield
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        sock.close()


@pytest.mark.parametrize("target", ["/", "/file", "/refused"])
def test_a_client_that_is_always_ahead(serve, target):
    proxy = serve(
        """
        access_log off; keepalive_requests 1000000000;
        server {
            listen 127.0.0.1:@port@;
            location / { return 200 ok; }
            location /file { root html; }
            location /refused { deny all; }
        }
        """
    )
    (proxy.prefix / "html/file").write_text("file")
    requests = f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode() * 400

    def ahead(sock: socket.socket) -> None:
        while True:
            sock.sendall(requests)

    with busy(proxy, ahead):
        times = waits(proxy)
    assert statistics.median(times) < 0.25, times


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_server_that_is_always_ahead(serve, upstream, buffering):
    def answer(peer) -> None:
        peer.read_request()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\n")
        piece = bytes(1 << 20)
        while True:
            peer.send(piece)

    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location / { proxy_pass http://@backend@; proxy_buffering BUFFERING; }
            location /other { return 200 ok; }
        }
        """.replace("BUFFERING", buffering),
        backend=upstream(answer).address,
    )
    with busy(proxy, lambda sock: sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")):
        times = waits(proxy, 40)
    assert statistics.median(times) < 0.1, times
    assert max(times) < 0.75, times
