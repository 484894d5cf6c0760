"""The last answer on a connection arrives whole, whatever the client sends behind its request: a close with
unread bytes would be a reset, and that overtakes what is still on its way."""

import signal
import socket
import threading
import time

import pytest

from harness.proxy import Proxy, eventually
from harness.upstream import request, script, send, until
from harness.wire import Wire

SIZE = 16 << 20
BIG = b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n"
SMALL = b"GET /small HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def serving(proxy):
    def start(http: str = "", shards: int = 2) -> Proxy:
        started = proxy(
            f"""
            worker_processes {shards};
            events {{ }}
            http {{
                access_log logs/access.log;
                {http}
                server {{
                    listen 127.0.0.1:@port@;
                    root html;
                    location = /small {{ return 200 x; }}
                    location = /refused {{ client_max_body_size 1; return 200 x; }}
                }}
            }}
            """
        )
        (started.prefix / "html/big").write_bytes(bytes(SIZE))
        return started

    return start


def begins_to_quit(proxy: Proxy) -> None:
    """Every shard has heard of it."""

    def is_refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", proxy.port)).close()
        except OSError:
            return True
        return False

    proxy.signal(signal.SIGQUIT)
    eventually(is_refused, "nobody listens any more")


def takes_slowly(wire: Wire) -> None:
    """The body of an answer, with most of it on its way for some time."""
    left = SIZE
    while left:
        piece = min(left, 1 << 16)
        assert not wire.read_exactly(piece).strip(b"\0")
        left -= piece
        time.sleep(0.0005)


def test_requests_behind_the_last_one(serving):
    wire = serving("keepalive_requests 1;").connect(receive_buffer=1 << 16)
    wire.send(BIG)
    assert wire.read_head().get("Connection") == "close"
    wire.send(SMALL * 100)
    takes_slowly(wire)
    wire.expect_end()
    assert not wire.was_reset


@pytest.mark.parametrize("how", ["quit", "reload"])
def test_the_shard_ends_meanwhile(serving, how):
    """The answer has said that the connection is kept."""
    proxy = serving(shards=4)
    wires = [proxy.connect(receive_buffer=1 << 16) for _ in range(4)]
    for wire in wires:
        wire.send(BIG)
        assert wire.read_head().get("Connection") == "keep-alive"
        wire.send(SMALL * 200)
    if how == "quit":
        begins_to_quit(proxy)
    else:
        fewer = proxy.text.replace("worker_processes 4", "worker_processes 1")
        proxy.reload(fewer.replace("root html;", "root html; server_tokens off;"))
    for wire in wires:
        takes_slowly(wire)


def test_requests_behind_the_first_one_after_a_quit(serving):
    proxy = serving()
    wires = [proxy.connect(receive_buffer=1 << 16) for _ in range(2)]
    begins_to_quit(proxy)
    for wire in wires:
        wire.send(BIG * 1000)
        assert wire.read_head().get("Connection") == "close"
        takes_slowly(wire)


def test_a_quit_ends_no_lingering(serving):
    """Whoever is told that its upload is refused, and has to stop it, is given the time."""
    proxy = serving()
    wires = [proxy.connect() for _ in range(2)]
    for wire in wires:
        wire.send(b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        assert wire.read_response().status == 413
    begins_to_quit(proxy)
    for _ in range(5):
        for wire in wires:
            wire.send(bytes(1000))
    for wire in wires:
        wire.finish()
        wire.expect_end()
        assert not wire.was_reset
    assert proxy.wait() == 0


def test_an_answer_that_its_server_breaks_off(proxy, upstream):
    """What there is of it arrives, and the client can see that there is more."""
    part, sent = bytes(600_000), threading.Event()
    answer = send(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + part)
    server = upstream(script(request, answer, until(sent)))
    proxy = proxy(
        """
        events { }
        http {
            access_log logs/access.log;
            server { listen 127.0.0.1:@port@; location / { proxy_pass http://@up@; } }
        }
        """,
        up=server.address,
    )
    wire = proxy.connect(receive_buffer=1 << 14)
    wire.send(BIG)
    assert wire.read_head().get("Content-Length") == "9000000"
    wire.send(SMALL)
    sent.set()
    proxy.logged("upstream prematurely closed connection")
    assert len(wire.read_to_end()) == len(part)
    assert not wire.was_reset
