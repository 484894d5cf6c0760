"""Responses between a server and a slow client: when a buffer goes out, temporary files, back-pressure."""

import functools
import os
import re
import select
import subprocess
import threading
import time

import pytest

from harness.proxied import CHUNKED, GET, LENGTH, proxied
from harness.proxy import eventually
from harness.upstream import answering, chunked, head, request, response, script, send, until
from harness.wire import Closed

differs = pytest.mark.differs_in_nginx
WARNING = "an upstream response is buffered to a temporary file "


@pytest.fixture
def through(serve, upstream):
    """`through(handler, …, location=)`: the proxy in front of a scripted server, in a group with keepalive."""
    group = "upstream group { server @upstream@; keepalive 4; }"
    start = functools.partial(proxied, serve, upstream, http=group, listen="sndbuf=16k")
    return functools.partial(start, pass_="proxy_pass http://group;")


@functools.lru_cache
def pattern(length: int) -> bytes:
    """Bytes that tell where they belong."""
    return b"".join(b"%07d\n" % at for at in range(0, length, 8))[:length]


def stalled(proxy):
    """A client that has asked and does not read."""
    wire = proxy.connect(receive_buffer=4096)
    wire.send(GET)
    return wire


# When a buffer goes to the client.

CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
NO = b"HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nContent-Length: 10\r\n\r\n"
YES = NO.replace(b"no", b"yes")
OTHER = NO.replace(b"no", b"off")


def several(*values: bytes) -> bytes:
    lines = b"".join(b"X-Accel-Buffering: %s\r\n" % value for value in values)
    return NO.replace(b"X-Accel-Buffering: no\r\n", lines)


OFF = "proxy_buffering off;"
SMALL = "proxy_buffer_size 1k; proxy_buffers 4 1k;"
UNHEARD = "proxy_ignore_headers X-Accel-Buffering;"


@pytest.mark.parametrize(
    "location, pieces, seen",
    [
        # `seen`: the body bytes that the client has after each piece; None is not even the head.
        ("", [LENGTH % 10, b"0123456789"], [None, 10]),
        ("", [LENGTH % 10 + b"01234", b"56789"], [None, 10]),
        ("", [LENGTH % 10 + b"01234", b"5678", b"9"], [None, None, 10]),
        ("", [LENGTH % 0], [0]),
        ("", [CLOSE + b"01234", b"56789"], [None, None]),
        ("", [CHUNKED, b"5\r\nabcde\r\n", b"5\r\nfghij\r\n"], [None, 5, 10]),
        ("", [CHUNKED + b"3\r\nabc\r\n", b"2\r\nde\r\n"], [3, 5]),
        ("", [CHUNKED + b"a\r\nabcde", b"fg", b"hij\r\n0\r\n\r\n"], [5, 5, 10]),
        ("", [CHUNKED + b"a", b"\r\nabcde"], [None, 5]),
        ("", [NO, b"01234", b"56789"], [0, 5, 10]),
        ("", [OTHER, b"01234", b"56789"], [None, None, 10]),
        (UNHEARD, [NO, b"01234", b"56789"], [None, None, 10]),
        (OFF, [LENGTH % 10, b"01234", b"5", b"6789"], [0, 5, 6, 10]),
        (OFF, [CLOSE, b"01234", b"5"], [0, 5, 6]),
        (OFF, [CHUNKED, b"5\r\nab", b"cde\r\n"], [0, 2, 5]),
        (OFF, [YES + b"01234", b"56789"], [None, 10]),
        # Of several the last counts that says yes or no.
        ("", [several(b"yes", b"no"), b"01234", b"56789"], [0, 5, 10]),
        (OFF, [several(b"no", b"yes", b"off") + b"01234", b"56789"], [None, 10]),
        (OFF + UNHEARD, [YES + b"01234", b"56789"], [5, 10]),
        # With their heads, of 41 and 19 bytes, 1 KiB makes a full buffer.
        (SMALL, [LENGTH % 1985 + bytes(982), b"0", bytes(1002)], [None, 983, 1985]),
        (SMALL, [CLOSE + bytes(1005 - 1), b"0", bytes(1023), b"0"], [None, 1005, 1005, 2029]),
    ],
)
def test_when_a_piece_reaches_the_client(through, location, pieces, seen):
    """A piece is sent when the client has seen what it may of the one before."""
    steps = [threading.Event() for _ in pieces]
    over = threading.Event()

    def handler(wire):
        wire.read_head()
        for piece, step in zip(pieces, steps):
            until(step)(wire)
            wire.send(piece)
        until(over)(wire)

    proxy, _ = through(handler, location=location)
    wire = proxy.connect()
    wire.send(GET)
    before = None
    for step, wanted in zip(steps, seen):
        step.set()
        if wanted == before:
            wire.expect_silence(0.15)
        eventually(lambda: body_so_far(wire) == wanted, f"{wanted} bytes of the body", 3)
        before = wanted
    over.set()


def body_so_far(wire) -> int | None:
    """How much of the body has come; None as long as there is no head."""
    if wire._is_ready(select.POLLIN, 0.02) and not wire.ended:
        wire.read_some()
    start, end, rest = bytes(wire.transcript).partition(b"\r\n\r\n")
    if not end:
        return None
    if b"chunked" not in start:
        return len(rest)
    size = 0
    while rest:
        line, _, rest = rest.partition(b"\r\n")
        chunk = int(line or b"0", 16)
        size += min(chunk, len(rest))
        rest = rest[chunk + 2 :]
    return size


def test_unbuffered_reads_are_no_larger_than_the_buffer(through):
    """Each is a chunk of its own to the client."""
    proxy, _ = through(
        script(head, send(CLOSE + pattern(20000))), location=OFF + "proxy_buffer_size 1k; proxy_buffers 4 1k;"
    )
    answer = proxy.ask(GET)
    assert answer.body == pattern(20000)
    assert max(map(len, answer.chunks)) <= 1024


# Temporary files.

LARGE = 400 << 10
FRAMINGS = {
    "length": lambda body: response(body),
    "chunked": lambda body: b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    + chunked(*[body[at : at + 50000] for at in range(0, len(body), 50000)]),
    "close": lambda body: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,
}


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("sizes", ["", "proxy_buffers 2 4k; proxy_busy_buffers_size 4k;", "proxy_buffers 8 16k;"])
def test_a_slow_client_does_not_hold_the_server(through, framing, sizes):
    body = pattern(LARGE)
    sent, reused = threading.Event(), threading.Event()

    def handler(wire):
        wire.read_request()
        wire.send(FRAMINGS[framing](body))
        sent.set()
        if framing != "close":
            wire.read_request()
            reused.set()
            wire.send(response(b"next"))

    once = script(request, send(response(b"other", "Connection: close")))
    proxy, server = through(handler, once, location=sizes)
    wire = stalled(proxy)
    assert sent.wait(10), "the server could not get rid of its response"
    line = proxy.logged(WARNING)
    assert "[warn]" in line and "while reading upstream" in line and 'upstream: "http://127.0.0.1:' in line
    # The connection of a complete response is free for the next request.
    if framing != "close":
        eventually(lambda: proxy.get("/") and reused.is_set(), "the connection is used again")
    answer = wire.read_response()
    assert answer.body == body and len(answer.body) == LARGE


def test_the_file_has_the_configured_name_and_is_gone(through):
    sent = threading.Event()
    proxy, _ = through(
        script(request, send(response(pattern(LARGE))), lambda wire: sent.set()),
        location="proxy_temp_path spool 2 1; proxy_temp_file_write_size 16k;",
    )
    wire = stalled(proxy)
    assert sent.wait(10)
    line = proxy.logged(WARNING)
    path = re.search(WARNING + r"(\S+) while", line)[1]
    assert re.fullmatch(rf"{proxy.prefix}/spool/(\d\d)/(\d)/\d{{10}}", path), path
    name = path.rsplit("/", 1)[1]
    assert path.endswith(f"/spool/{name[-2:]}/{name[-3]}/{name}")
    assert not os.path.exists(path)
    assert wire.read_response().body == pattern(LARGE)


def test_a_uwsgi_response_goes_to_a_file_as_well(through):
    sent = threading.Event()

    def handler(wire):
        wire.read_some()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + pattern(LARGE))
        sent.set()

    proxy, _ = through(handler, pass_="uwsgi_pass group;")
    wire = stalled(proxy)
    assert sent.wait(10)
    path = re.search(WARNING + r"(\S+) while", proxy.logged(WARNING))[1]
    assert path.startswith(f"{proxy.prefix}/uwsgi_temp/")
    assert wire.read_response().body == pattern(LARGE)


def test_a_client_that_reads_now_and_then(through):
    """Reading and writing of the file take turns, and the order stays."""
    body = pattern(LARGE)
    proxy, _ = through(answering(response(body)), location="proxy_buffers 4 4k; proxy_max_temp_file_size 128k;")
    wire = stalled(proxy)
    start = wire.read_head()
    taken = b""
    for n in range(40):
        taken += wire.read_exactly(5000 * (n % 4))
        proxy.get("/plain")
    taken += wire.read_exactly(int(start.get("Content-Length")) - len(taken))
    assert taken == body


class Flood:
    """A server that sends as long as it is let, and counts, over all its connections."""

    def __init__(self, length: int):
        self.body = pattern(length)
        self.data = response(self.body)
        self.sent: dict[int, int] = {}

    def __call__(self, wire) -> None:
        wire.read_request()
        rest = memoryview(self.data)
        wire.sock.settimeout(20)
        while rest:
            n = wire.sock.send(rest[: 1 << 16])
            self.sent[id(wire)] = self.sent.get(id(wire), 0) + n
            rest = rest[n:]
        wire.sock.settimeout(0)

    def comes_to_rest(self, seconds: float = 0.3, connections: int = 1) -> int:
        """How much it has got rid of, when that is all."""

        def rests():
            before = dict(self.sent)
            time.sleep(seconds)
            return len(before) == connections and self.sent == before and sum(before.values())

        return eventually(rests, "the server is held up")


@pytest.mark.parametrize(
    "location, warned, least, most",
    [
        ("proxy_max_temp_file_size 0;", False, 0, 9 << 20),
        ("proxy_max_temp_file_size 2m;", True, 2 << 20, 11 << 20),
        ("proxy_buffering off;", False, 0, 9 << 20),
    ],
)
def test_back_pressure(through, location, warned, least, most):
    """Sockets hold up to some megabytes by themselves."""
    flood = Flood(32 << 20)
    proxy, _ = through(flood, location=location + "proxy_read_timeout 1s;")
    wire = stalled(proxy)
    assert least < flood.comes_to_rest(1.4) < most
    # The server's silence is the proxy's doing: its time does not run.
    assert not wire.ended and "timed out" not in proxy.error_log()
    assert wire.read_response().body == flood.body
    assert (WARNING in proxy.error_log()) == warned


def test_memory_is_bounded_by_the_buffers(through):
    """Many clients that do not read cost a few buffers each."""

    def memory() -> int:
        children = open(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read().split()
        pids = [proxy.pid, *map(int, children)]
        return sum(
            int(re.search(r"RssAnon:\s+(\d+)", open(f"/proc/{pid}/status").read())[1]) << 10 for pid in pids
        )

    flood = Flood(12 << 20)
    proxy, _ = through(flood, location="proxy_max_temp_file_size 0;")
    before = memory()
    wires = [stalled(proxy) for _ in range(20)]
    flood.comes_to_rest(connections=len(wires))
    assert memory() - before < len(wires) * (150 << 10)
    for wire in wires:
        wire.reset()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0777", "none", path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


CUT = pytest.mark.differs_in_nginx("what cannot be written is cut short")


@CUT
def test_with_a_full_disk_the_server_waits(through, small_disk):
    proxy, server = through(
        lambda wire: (wire.read_request(), wire.send(response(pattern(3 << 20)))), location=f"proxy_temp_path {small_disk};"
    )
    wire = stalled(proxy)
    line = proxy.logged("No space left on device")
    assert re.search(r"\[crit\] .* pwritev?\(\) \"[^\"]+\" (failed|has written)", line), line
    assert wire.read_response().body == pattern(3 << 20)
    assert proxy.get("/plain").body == b"plain"
    assert len(re.findall("crit", proxy.error_log())) == 1


@CUT
def test_a_temporary_directory_that_has_become_unusable(through):
    proxy, _ = through(
        lambda wire: (wire.read_request(), wire.send(response(pattern(LARGE)))), location="proxy_temp_path spool;"
    )
    (proxy.prefix / "spool").rmdir()
    (proxy.prefix / "spool").write_text("a file")
    wire = stalled(proxy)
    line = proxy.logged("Not a directory")
    assert re.search(r'\[crit\] .* open\(\) "[^"]+" failed \(20: Not a directory\) while', line), line
    assert wire.read_response().body == pattern(LARGE)
    assert proxy.get("/plain").body == b"plain"


def test_a_client_that_stalls_for_too_long(through):
    """The rest of a complete response waits for send_timeout, not for ever."""
    sent = threading.Event()
    proxy, _ = through(
        script(request, send(response(pattern(LARGE))), lambda wire: sent.set()), location="send_timeout 1s;"
    )
    wire = stalled(proxy)
    assert sent.wait(10)
    line = proxy.logged("client timed out (110: Connection timed out)")
    assert "[info]" in line and "while sending to client" in line
    with pytest.raises(Closed):
        wire.read_response()


def test_a_client_that_resets_while_much_waits(through):
    broken = threading.Event()

    def flooded(wire):
        try:
            Flood(32 << 20)(wire)
        except OSError:
            broken.set()

    proxy, server = through(flooded, answering(response(b"next")), location="proxy_max_temp_file_size 0;")
    wire = stalled(proxy)
    wire.read_head()
    wire.reset()
    assert broken.wait(5), "the server is told"
    assert proxy.get("/").body == b"next"
    assert len(server.connections) == 2
