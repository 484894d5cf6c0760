"""Which timer runs when, who is told what at the end of it, and what becomes of a client that leaves."""

import functools
import re
import socket
import threading
import time

import pytest

from harness.ports import connecting_to
from harness.proxied import CHUNKED, GET, LENGTH, MODERN, proxied
from harness.proxy import eventually
from harness.upstream import answering, chunked, head, request, reset, response, script, send, to_end, until
from harness.wire import DEADLINE, Closed

differs = pytest.mark.differs_in_nginx
TIMED_OUT = "upstream timed out (110: Connection timed out)"
LEFT = "client prematurely closed connection, so upstream connection is closed too"


@pytest.fixture
def through(serve, upstream):
    """`through(handler, …, location=)`: the proxy in front of a scripted server."""
    return functools.partial(proxied, serve, upstream, log="$status $upstream_status $body_bytes_sent")


def dripping(data: bytes, seconds: float, count: int, then: bytes = b""):
    """Sends `data` this often, so many seconds apart, then the rest."""

    def step(wire):
        for _ in range(count):
            wire.send(data)
            time.sleep(seconds)
        wire.send(then)

    return step



# The read timer.


@pytest.mark.parametrize(
    "steps",
    [
        [to_end],
        [send(b"HTTP/1.1 200"), to_end],
        # Parts of a head do not renew it.
        [*[dripping(bytes([byte]), 0.1, 1) for byte in b"HTTP/1.1 200 OK"], to_end],
        [send(b"HTTP/1.1 200 OK\r\n"), dripping(b"A: b\r\n", 0.15, 10), to_end],
    ],
)
@pytest.mark.parametrize("family", ["proxy", "uwsgi"])
def test_the_whole_head_must_come_in_time(through, steps, family):
    begin = request if family == "proxy" else (lambda wire: wire.read_some())
    proxy, _ = through(
        script(begin, *steps),
        location=f"{family}_read_timeout 500ms;",
        pass_="proxy_pass http://@upstream@;" if family == "proxy" else "uwsgi_pass @upstream@;",
    )
    started = time.monotonic()
    answer = proxy.get("/")
    assert answer.status == 504
    assert 0.45 < time.monotonic() - started < 2.5
    line = proxy.logged(TIMED_OUT)
    assert "[error]" in line and "while reading response header from upstream, client: 127.0.0.1" in line
    assert f'upstream: "{"http" if family == "proxy" else "uwsgi"}://127.0.0.1:' in line
    assert proxy.accessed()[0].startswith("504 504 ")


# ringx looks at the client after 100 ms; the limit is the same before, then, and behind.
@pytest.mark.parametrize("ignores", ["off", "on"])
@pytest.mark.parametrize("limit_ms", [30, 100, 101, 250])
def test_a_silent_server_is_waited_for_that_long(through, limit_ms, ignores):
    proxy, _ = through(
        script(request, to_end),
        location=f"proxy_read_timeout {limit_ms}ms; proxy_ignore_client_abort {ignores};",
    )
    started = time.monotonic()
    assert proxy.get("/").status == 504
    assert limit_ms / 1000 - 0.01 < time.monotonic() - started < 2.5
    proxy.logged(TIMED_OUT)


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_every_read_of_the_body_renews_the_timer(through, buffering):
    proxy, _ = through(
        script(request, send(CHUNKED), dripping(b"2\r\nab\r\n", 0.3, 4, b"0\r\n\r\n")),
        location=f"proxy_read_timeout 600ms; proxy_buffering {buffering};",
    )
    assert proxy.get("/").body == b"ab" * 4
    assert TIMED_OUT not in proxy.error_log()


@pytest.mark.parametrize(
    "data, location, body",
    [
        (LENGTH % 10, "", b""),
        # A buffer that is not full is lost.
        (LENGTH % 10 + b"01234", "", b""),
        (LENGTH % 10 + b"01234", "proxy_buffering off;", b"01234"),
        (CHUNKED + b"5\r\nabcde\r\n", "", b"5\r\nabcde\r\n"),
        (CHUNKED + b"5\r\nabcde\r\n", "proxy_buffering off;", b"5\r\nabcde\r\n"),
    ],
)
@pytest.mark.parametrize("end", ["timeout", "reset"])
def test_a_body_that_breaks_off(through, data, location, body, end):
    """The head is passed on, with what was due, and the close says that it is not all."""
    sent, proceed = threading.Event(), threading.Event()
    last = (lambda wire: sent.set(), until(proceed), reset) if end == "reset" else (to_end,)
    proxy, server = through(script(request, send(data), *last), location=location + ("proxy_read_timeout 400ms;" if end == "timeout" else ""))
    wire = proxy.connect()
    wire.send(GET)
    if end == "reset":
        # Not before it has been read: a reset takes back what has not.
        assert sent.wait(DEADLINE)
        eventually(server.connection().is_taken, "the data was read")
        proceed.set()
    answer = wire.read_head()
    assert answer.start == "HTTP/1.1 200 OK"
    assert wire.read_to_end() == body
    line = proxy.logged(TIMED_OUT if end == "timeout" else "failed (104: Connection reset by peer)")
    assert "[error]" in line
    # Unbuffered, nginx is still "sending to client" when the next read fails.
    assert "while reading upstream" in line or ("off" in location and "while sending to client" in line)
    if end == "reset":
        assert ("recv() failed" if "off" in location else "readv() failed") in line
    assert proxy.accessed()[0] == f"200 200 {len(body)}"


@pytest.mark.parametrize(
    "data, location, body, while_",
    [
        (LENGTH % 10, "", b"", "reading upstream"),
        (LENGTH % 10 + b"01234", "", b"01234", "reading upstream"),
        (LENGTH % 10 + b"01234", "proxy_buffering off;", b"01234", "sending to client"),
        (CHUNKED + b"5\r\nabcde\r\n", "", b"5\r\nabcde\r\n", "reading upstream"),
        (CHUNKED + b"5\r\nabcde\r\n2\r\nf", "", b"6\r\nabcdef\r\n", "reading upstream"),
        (CHUNKED, "", b"", "reading upstream"),
    ],
)
def test_a_body_that_ends_too_soon(through, data, location, body, while_):
    # In one segment with its end: where nginx has got to when it meets that would be chance otherwise.
    cork = lambda wire: wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    proxy, _ = through(script(request, cork, send(data)), location=location)
    wire = proxy.connect()
    wire.send(GET)
    assert wire.read_head().start == "HTTP/1.1 200 OK"
    assert wire.read_to_end() == body
    line = proxy.logged("upstream prematurely closed connection")
    assert "[error]" in line and f"upstream prematurely closed connection while {while_}, client" in line
    assert proxy.accessed()[0] == f"200 200 {len(body)}"


@pytest.mark.parametrize(
    "data, text",
    [
        (LENGTH % 5 + b"01234more", 'upstream sent more data than specified in "Content-Length" header'),
        (CHUNKED + chunked(b"01234") + b"more", "upstream sent data after final chunk"),
    ],
)
def test_more_than_the_body(through, data, text):
    proxy, server = through(script(request, send(data), to_end), location="")
    answer = proxy.get("/")
    assert answer.body == b"01234"
    line = proxy.logged(text)
    assert "[warn]" in line and "while reading upstream" in line
    assert proxy.get("/").body == b"01234"
    assert len(server.connections) == 2


@pytest.mark.parametrize(
    "body",
    [
        b"zz\r\n",
        pytest.param(b"5\nabcde\n", marks=differs("a lone LF is an error since 1.29.4")),
        b"5\r\nabcdefg\r\n",
        b"-1\r\n",
        b"fffffffffffffffff\r\n",
    ],
)
def test_chunks_that_are_none(through, body):
    """Nothing is sent, not even a head that waited for its body."""
    proxy, _ = through(script(request, send(CHUNKED + body + b"0\r\n\r\n"), to_end))
    wire = proxy.connect()
    wire.send(GET)
    assert b"0\r\n\r\n" not in wire.read_to_end()
    line = proxy.logged("upstream sent invalid chunked response")
    assert "[error]" in line and "while reading upstream" in line


# The other timers.


def test_the_connect_timer(serve):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        others = [socket.socket() for _ in range(3)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        proxy = serve(
            "server { listen 127.0.0.1:@port@; proxy_connect_timeout 400ms; proxy_read_timeout 10s;"
            f" location / {{ proxy_pass http://127.0.0.1:{port}; }} }}"
        )
        started = time.monotonic()
        assert proxy.get("/").status == 504
        assert 0.35 < time.monotonic() - started < 2.5
        assert "while connecting to upstream" in proxy.logged(TIMED_OUT)
        # A client that leaves meanwhile ends it.
        for other in others:
            other.close()


def test_a_client_that_leaves_while_the_server_is_connected_to(serve):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        others = [socket.socket() for _ in range(3)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
        proxy = serve(
            f"server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://127.0.0.1:{port}; }} }}"
        )
        ours = {other.getsockname()[1] for other in others}
        wire = proxy.connect()
        wire.send(GET)
        eventually(lambda: connecting_to(port) - ours, "the server is connected to")
        wire.close()
        assert "while connecting to upstream" in proxy.logged(LEFT)
        assert " 499 0 " in proxy.accessed()[0]
        for other in others:
            other.close()


def test_the_send_timer(through):
    """A server that does not read the request."""
    over = threading.Event()
    proxy, _ = through(
        script(until(over)),
        location="proxy_send_timeout 500ms; client_max_body_size 0; client_body_buffer_size 16m;",
    )
    wire = proxy.connect()
    body = b"x" * (12 << 20)
    started = time.monotonic()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    answer = wire.read_response()
    over.set()
    assert answer.status == 504 and time.monotonic() - started > 0.45
    line = proxy.logged(TIMED_OUT)
    assert "while sending request to upstream" in line


def test_a_slow_reader_renews_the_send_timer(through):
    def slowly(wire):
        wire.read_head()
        left = 9 << 20
        while left:
            left -= len(wire.read_exactly(min(left, 1 << 20)))
            time.sleep(0.15)
        wire.send(response(b"ok"))

    proxy, _ = through(
        slowly, location="proxy_send_timeout 700ms; client_max_body_size 0; client_body_buffer_size 16m;"
    )
    assert proxy.get("/", method="POST", body=b"x" * (9 << 20)).body == b"ok"


@pytest.mark.parametrize("text", ["proxy_request_buffering off;", ""])
def test_a_client_that_does_not_send_its_body(through, text):
    proxy, server = through(script(head, to_end), location=text + "client_body_timeout 400ms;")
    wire = proxy.connect()
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234")
    started = time.monotonic()
    wire.read_to_end()
    assert 0.35 < time.monotonic() - started < 2.5
    assert proxy.accessed()[0].startswith("408 ")
    assert len(server.connections) == (1 if text else 0)


# A client that leaves.


@pytest.mark.parametrize("how", ["close", "finish", "reset"])
@pytest.mark.parametrize(
    "data, status, while_",
    [
        (b"", "499 - 0", "sending request to upstream"),
        (CHUNKED + b"5\r\nabcde\r\n", "200 200 10", "reading upstream"),
    ],
)
def test_a_client_that_leaves_ends_the_exchange(through, how, data, status, while_):
    told = threading.Event()

    def handler(wire):
        wire.read_request()
        wire.send(data)
        wire.read_to_end()
        told.set()

    proxy, server = through(handler)
    wire = proxy.connect()
    wire.send(GET)
    server.request()
    if b"abcde" in data:
        wire.read_until(b"abcde\r\n")
    getattr(wire, how)()
    assert told.wait(5), "the server is told"
    line = proxy.logged(LEFT)
    assert "[info]" in line and f"while {while_}" in line
    assert proxy.accessed()[0] == status


# How long a client may have been gone before ringx sees it: it looks at one only after a while.
SEEN = 0.3


@pytest.mark.parametrize("family", ["proxy", "uwsgi"])
def test_a_client_that_leaves_may_be_ignored(through, family):
    proceed, done = threading.Event(), threading.Event()

    def handler(wire):
        wire.read_some()
        assert proceed.wait(10)
        wire.send(response(b"late"))
        done.set()
        wire.read_to_end()

    proxy, server = through(
        handler,
        location=f"{family}_ignore_client_abort on;",
        pass_="proxy_pass http://@upstream@;" if family == "proxy" else "uwsgi_pass @upstream@;",
    )
    wire = proxy.connect()
    wire.send(GET)
    server.connection()
    wire.close()
    time.sleep(SEEN)
    assert LEFT not in proxy.error_log()
    proceed.set()
    assert done.wait(5)
    assert proxy.accessed()[0].startswith("200 200")


def test_a_half_closed_client_gets_what_it_asked_for_if_ignored(through):
    proceed = threading.Event()
    proxy, server = through(
        script(request, until(proceed), send(response(b"late"))), location="proxy_ignore_client_abort on;"
    )
    wire = proxy.connect()
    wire.send(GET)
    wire.finish()
    server.request()
    time.sleep(SEEN)
    proceed.set()
    assert wire.read_response().body == b"late"


# Answers that come early.

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
LARGE = 6 << 20
EARLY = "client_max_body_size 0; client_body_buffer_size 16m;"


@pytest.mark.parametrize("streamed", ["on", "off"])
@pytest.mark.parametrize(
    "answer, body",
    [
        (b"HTTP/1.1 413 No\r\nContent-Length: 5\r\n\r\nlarge", b"large"),
        (b"HTTP/1.1 413 No\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"large"), b"large"),
        (b"HTTP/1.1 413 No\r\nConnection: close\r\n\r\nlarge", b"large"),
    ],
)
@pytest.mark.ringx_only("nginx loses some of these answers, to a write error or a reset")
def test_an_answer_before_the_body_is_kept(through, streamed, answer, body):
    """The server answers, and closes with much unread: its reset must not take the answer back."""
    for _ in range(4):
        proxy, server = through(script(head, send(answer)), location=EARLY + f"proxy_request_buffering {streamed};")
        wire = proxy.connect()

        def upload():
            try:
                wire.send(POST % LARGE + b"x" * LARGE)
            except OSError:
                pass

        sending = threading.Thread(target=upload)
        sending.start()
        got = wire.read_response("POST")
        sending.join()
        assert (got.status, got.body) == (413, body)
        wire.close()


def test_a_reset_without_a_request_body_stays_an_error(through):
    proceed = threading.Event()
    proxy, _ = through(script(request, send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000), until(proceed), reset))
    wire = proxy.connect()
    wire.send(GET)
    wire.read_head()
    proceed.set()
    with pytest.raises(Closed):
        wire.read_chunked()
    proxy.logged("failed (104: Connection reset by peer)")


# proxy_request_buffering off.

OFF = "proxy_request_buffering off;"


@pytest.mark.parametrize(
    "sent, framing",
    [
        # All of it came with the head: it is sent with its length.
        (b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n3;x=y\r\nfgh\r\n0\r\nT: t\r\n\r\n", "length"),
        (b"Content-Length: 8\r\n\r\nabcdefgh", "length"),
    ],
)
def test_an_unbuffered_body_that_is_all_there(through, sent, framing):
    proxy, server = through(answering(response(b"ok")), location=OFF)
    assert proxy.ask(b"POST / HTTP/1.1\r\nHost: a\r\n" + sent).body == b"ok"
    got = server.request()
    assert (got.framing, got.body) == (framing, b"abcdefgh")
    assert got.get("Content-Length") == "8"


def test_an_unbuffered_body_goes_chunk_by_chunk(through):
    proxy, server = through(answering(response(b"ok")), location=OFF)
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1f;ext\r\n" + b"a" * 31 + b"\r\n")
    eventually(lambda: b"\r\n1f\r\n" + b"a" * 31 + b"\r\n" in server.connection().transcript or seen(server), "a chunk")
    wire.send(b"2\r\nbc\r\n0\r\nTrailer: none\r\n\r\n")
    assert wire.read_response("POST").body == b"ok"
    got = server.request()
    assert (got.chunks, got.trailers) == ([b"a" * 31, b"bc"], [])
    assert got.get("Content-Length") is None


def seen(server) -> bool:
    return b"a" * 31 in bytes(server.connection().transcript)


@pytest.mark.parametrize(
    "text, body, requests",
    [
        # It has been sent, and no copy was kept.
        (OFF + "proxy_next_upstream error non_idempotent;", b"late", [1, 0]),
        ("proxy_next_upstream error non_idempotent;", b"late", [1, 1]),
        # All of it was there: it can go again.
        (OFF + "proxy_next_upstream error non_idempotent;", b"", [1, 1]),
        (OFF + "proxy_next_upstream error;", b"", [1, 0]),
    ],
)
def test_an_unbuffered_body_goes_to_one_server(serve, upstream, text, body, requests):
    first = upstream(script(lambda wire: (wire.read_until(b"abcd"), wire.close())))
    second = upstream(answering(response(b"ok")))
    proxy = serve(
        f"""
        upstream two {{ server {first.address}; server {second.address} backup; }}
        server {{ listen 127.0.0.1:@port@; {MODERN} {text} location / {{ proxy_pass http://two; }} }}
        """
    )
    wire = proxy.connect()
    wire.send(POST % (4 + len(body)) + b"abcd")
    if body:
        if "off" in text:
            first.connection()
        else:
            eventually(wire.is_taken, "the start of it was read")
        wire.send(body)
    answer = wire.read_response("POST")
    assert answer.status == (200 if requests[1] else 502)
    assert [len(first.connections), len(second.connections)] == requests


@pytest.mark.parametrize("text", [OFF, ""])
def test_a_client_that_leaves_in_the_middle_of_its_body(through, text):
    told = threading.Event()

    def handler(wire):
        try:
            wire.read_head()
            wire.read_to_end()
        finally:
            told.set()

    proxy, server = through(handler, location=text)
    wire = proxy.connect()
    wire.send(POST % 10 + b"01234")
    if text:
        server.connection()
    wire.close()
    line = proxy.accessed()[0]
    assert re.match(r"(400|499) ", line), line
    if text:
        assert told.wait(5), "the server is told"
    else:
        assert not server.connections


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_body_that_is_kept_back_is_read_first(through, version):
    proxy, server = through(
        answering(response(b"ok")),
        location=OFF + f'proxy_pass_request_body off; proxy_set_header Content-Length ""; proxy_http_version {version};',
    )
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    eventually(wire.is_taken, "the beginning has been read")
    wire.send(b"0\r\n\r\n")
    assert wire.read_response("POST").body == b"ok"
    got = server.request()
    assert (got.get("Transfer-Encoding"), got.get("Content-Length"), got.body) == (None, None, b"")


def test_a_body_that_is_kept_back_does_not_keep_others_from_being_tried(serve, upstream):
    first = upstream(answering(response(b"", status="503 Busy")))
    second = upstream(answering(response(b"ok")))
    proxy = serve(
        f"""
        upstream group {{ server {first.address}; server {second.address}; }}
        server {{
            listen 127.0.0.1:@port@;
            location / {{
                {MODERN} {OFF} proxy_pass_request_body off; proxy_set_header Content-Length "";
                proxy_next_upstream http_503;
                proxy_pass http://group;
            }}
        }}
        """
    )
    wire = proxy.connect()
    wire.send(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
    eventually(wire.is_taken, "the head has been read")
    wire.send(b"abc")
    assert wire.read_response("PUT").body == b"ok"


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("ahead", [b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n", b"x" * 100_000])
def test_a_client_that_leaves_with_bytes_sent_ahead(through, how, ahead):
    asked, told = threading.Event(), threading.Event()

    def handler(wire):
        wire.read_request()
        asked.set()
        wire.read_to_end()
        told.set()

    proxy, _ = through(handler)
    wire = proxy.connect()
    wire.send(GET)
    assert asked.wait(10)
    # What is sent while the server works on the first request.
    time.sleep(SEEN)
    wire.send(ahead)
    time.sleep(SEEN)
    getattr(wire, how)()
    assert told.wait(5), "the server is told"
    line = proxy.logged(LEFT)
    assert ("(104: Connection reset by peer) while " in line) is (how == "reset"), line
    assert proxy.accessed()[0] == "499 - 0"


def test_a_client_that_has_sent_bytes_ahead_and_stays(through):
    asked, go = threading.Event(), threading.Event()

    def handler(wire):
        for number in range(2):
            wire.read_request()
            asked.set()
            assert go.wait(10)
            wire.send(response(b"%d" % number))

    proxy, _ = through(handler, http="upstream kept { server @upstream@; keepalive 1; }", pass_="proxy_pass http://kept;")
    wire = proxy.connect()
    wire.send(GET)
    assert asked.wait(10)
    time.sleep(SEEN)
    wire.send(GET)
    time.sleep(SEEN)
    go.set()
    assert [wire.read_response().body for _ in range(2)] == [b"0", b"1"]
    assert "prematurely" not in proxy.error_log()
