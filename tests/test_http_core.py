"""The HTTP side: reading requests and refusing bad ones, choosing server and location, files, pages, logs."""

import json
import os
import re
import signal
import time
from email.utils import formatdate

import pytest

from harness.upstream import answering, chunked, response
from harness.wire import Wire

differs = pytest.mark.differs_in_nginx
wants = pytest.mark.wants
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def server(serve):
    """`server(text)`: one server with `text` in it; its root is html under the prefix."""

    def start(text: str, http: str = "", **values):
        return serve(f"{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{text}\n}}", **values)

    return start


@pytest.fixture
def hello(server):
    return server("location / { return 200 hello; }")


def requests(wire: Wire, *targets: str) -> list[bytes]:
    """The bodies of these requests, one after the other on one connection."""
    bodies = []
    for target in targets:
        wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
        bodies.append(wire.read_response().body)
    return bodies


# Connections.


def test_a_connection_is_kept(hello):
    wire = hello.connect()
    for _ in range(10):
        wire.send(GET)
        answer = wire.read_response()
        assert (answer.body, answer.get("Connection")) == (b"hello", "keep-alive")


@pytest.mark.parametrize(
    "head, kept",
    [
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", False),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", False),
        ("GET / HTTP/1.0\r\n\r\n", False),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
        ("GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n", True),
    ],
)
def test_who_decides_about_keepalive(hello, head, kept):
    wire = hello.connect()
    wire.send(head)
    assert wire.read_response().get("Connection") == ("keep-alive" if kept else "close")
    if kept:
        wire.send(GET)
        assert wire.read_response().body == b"hello"
    else:
        wire.expect_end()


def test_pipelined_requests_are_answered_in_order(server):
    proxy = server("location / { return 200 $request_uri; }")
    wire = proxy.connect()
    wire.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(100)))
    assert [wire.read_response().body for _ in range(100)] == [b"/%d" % number for number in range(100)]


def test_empty_lines_between_requests_are_skipped(hello):
    wire = hello.connect()
    wire.send(b"\r\n\n" + GET + b"\r\n\r\n" + GET)
    assert [wire.read_response().body for _ in range(2)] == [b"hello"] * 2


def test_pipelining_over_bodies_that_nobody_reads(hello):
    wire = hello.connect()
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789"
    chunks = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abc", b"d")
    wire.send(post + chunks + GET)
    assert [wire.read_response().body for _ in range(3)] == [b"hello"] * 3


def test_a_head_that_comes_byte_by_byte(hello):
    wire = hello.connect()
    wire.send_pieces(GET, list(range(1, len(GET))))
    assert wire.read_response().body == b"hello"


def test_keepalive_requests(server):
    proxy = server("keepalive_requests 3; location / { return 200 x; }")
    wire = proxy.connect()
    seen = []
    for _ in range(3):
        wire.send(GET)
        seen.append(wire.read_response().get("Connection"))
    assert seen == ["keep-alive", "keep-alive", "close"]
    wire.expect_end()


def test_keepalive_timeout_and_its_header(server):
    proxy = server("keepalive_timeout 1s 20s; location / { return 200 x; }")
    wire = proxy.connect()
    wire.send(GET)
    assert wire.read_response().get("Keep-Alive") == "timeout=20"
    began = time.monotonic()
    wire.expect_end()
    assert 0.5 < time.monotonic() - began < 3
    assert len(proxy.accessed()) == 1


def test_keepalive_timeout_0_closes(server):
    assert server("keepalive_timeout 0; location / { return 200 x; }").ask(GET).get("Connection") == "close"


def test_an_idle_keepalive_connection_closed_by_the_client_is_told_at_info(hello):
    wire = hello.connect()
    wire.send(GET)
    wire.read_response()
    wire.close()
    assert "[info]" in hello.logged("client 127.0.0.1 closed keepalive connection")


# Limits.


def test_a_request_line_may_fill_one_large_buffer(hello):
    def line(length: int) -> bytes:
        return b"GET /" + b"x" * (length - len("GET / HTTP/1.1\r\n")) + b" HTTP/1.1\r\n"

    assert hello.ask(line(8192) + b"Host: a\r\n\r\n").status == 200
    answer = hello.ask(line(8193) + b"Host: a\r\n\r\n")
    assert answer.start == "HTTP/1.1 414 Request-URI Too Large"
    hello.logged("client sent too long URI while reading client request line")


def test_a_header_line_longer_than_a_large_buffer(hello):
    answer = hello.get("/", "X-Long: " + "x" * 9000)
    assert answer.start == "HTTP/1.1 400 Bad Request"
    assert b"<center>Request Header Or Cookie Too Large</center>" in answer.body
    hello.logged("client sent too long header line")
    assert " 400 " in hello.accessed()[0]


def test_headers_that_fill_all_large_buffers(hello):
    answer = hello.get("/", *[f"X-{number}: " + "x" * 6000 for number in range(6)])
    assert b"Request Header Or Cookie Too Large" in answer.body
    hello.logged("client sent too ")  # "long header line" or "large request", by where the last buffer ends


BUFFERS = [
    # The first buffer comes on top of the large ones.
    ("large_client_header_buffers 1 8k;", [300, 7908], 200),
    ("large_client_header_buffers 1 8k;", [300, 8192], 400),
    ("large_client_header_buffers 2 1k;", [100] * 23, 200),
    ("large_client_header_buffers 2 1k;", [100] * 29, 200),
    ("large_client_header_buffers 2 1k;", [100] * 30, 400),
    ("", [8190, 8190, 8190, 8171], 200),
    ("", [8190, 8190, 8190, 8172], 400),
    # Of a buffer that the next line does not fit in, the rest is lost.
    ("", [4100] * 4, 200),
    ("", [4100] * 7, 400),
    ("client_header_buffer_size 256; large_client_header_buffers 2 1k;", [604] * 2, 200),
    ("client_header_buffer_size 256; large_client_header_buffers 2 1k;", [604] * 3, 400),
    # A line may be longer than a large buffer as long as it needs none.
    ("client_header_buffer_size 2k; large_client_header_buffers 1 512;", [1900], 200),
    ("client_header_buffer_size 2k; large_client_header_buffers 1 512;", [200, 1900], 400),
    ("client_header_buffer_size 2k; large_client_header_buffers 1 512;", [1800, 400], 200),
]


@pytest.mark.parametrize("buffers, lines, status", BUFFERS)
def test_lines_are_packed_into_buffers(server, buffers, lines, status):
    proxy = server(buffers + "return 200 hello;")
    data = head("GET / HTTP/1.1", "Host: a", *lines)
    assert proxy.ask(data).status == status
    wire = proxy.connect()
    wire.send_pieces(data, [20, 1000, len(data) - 1])
    assert wire.read_response().status == status


def test_a_head_is_refused_as_soon_as_all_buffers_are_full(server):
    proxy = server("large_client_header_buffers 1 512; return 200 hello;")
    full = head("GET / HTTP/1.1", "Host: a", 999, 512).removesuffix(b"Connection: close\r\n\r\n")
    assert len(full) == 1024 + 512
    assert proxy.ask(full).status == 400


@pytest.mark.parametrize("empty, status", [(0, 200), (20, 400), (1023, 400), (1024, 200), (50 * 1024, 200)])
def test_empty_lines_fill_the_first_buffer_over_and_over(server, empty, status):
    proxy = server("large_client_header_buffers 1 512; return 200 hello;")
    data = b"\n" * empty + head("GET / HTTP/1.1", "Host: a", 990)
    assert proxy.ask(data).status == status


def test_empty_lines_without_end_time_out(server):
    proxy = server("client_header_timeout 1s; return 200 hello;")
    wire = proxy.connect()
    begin = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - begin < 5:
            wire.send(b"\r\n" * 20_000)
            assert proxy.get("/").body == b"hello"
    assert time.monotonic() - begin < 4


def test_error_page_494(server):
    proxy = server("error_page 494 =431 /big; location / { return 200 x; } location /big { return 200 big; }")
    answer = proxy.get("/", "X-Long: " + "x" * 9000)
    assert (answer.status, answer.body) == (431, b"big")


def test_max_headers(server):
    proxy = server("max_headers 5; location / { return 200 x; }")
    assert proxy.get("/", "A: 1", "B: 2", "C: 3").status == 200
    assert b"Too Large" in proxy.get("/", "A: 1", "B: 2", "C: 3", "D: 4").body
    proxy.logged("client sent too many header lines")


def test_client_max_body_size(server):
    proxy = server(
        "client_max_body_size 10; location / { return 200 x; } location /free { client_max_body_size 0; return 200 x; }"
    )
    assert proxy.get("/", method="POST", body=b"0123456789").status == 200
    answer = proxy.get("/", method="POST", body=b"0123456789+")
    assert answer.start == "HTTP/1.1 413 Request Entity Too Large"
    assert answer.get("Connection") == "close"
    assert "[error]" in proxy.logged("client intended to send too large body: 11 bytes")
    assert proxy.get("/free", method="POST", body=bytes(2 << 20)).status == 200


def test_a_chunked_body_that_grows_too_large(server, upstream):
    proxy = server(
        "client_max_body_size 10; location / { proxy_pass http://@up@; }",
        up=upstream(answering(response(b"x"))).address,
    )
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert proxy.ask(head + chunked(b"01234", b"56789")).status == 200
    assert proxy.ask(head + chunked(b"01234", b"56789", b"+")).status == 413
    proxy.logged("client intended to send too large chunked body: 10+1 bytes")


# Time.


def test_a_connection_that_says_nothing_is_closed_without_a_log_line(server):
    proxy = server("client_header_timeout 300ms; location / { return 200 x; }")
    wire = proxy.connect()
    wire.expect_end()
    proxy.logged("client timed out (110: Connection timed out) while waiting for request")
    assert proxy.log("access.log") == ""


@pytest.mark.parametrize("part, doing", [(b"GET / HT", "line"), (b"GET / HTTP/1.1\r\nHost: a\r\n", "headers")])
def test_a_head_that_does_not_end_is_a_408_in_the_log_only(server, part, doing):
    proxy = server("client_header_timeout 1s; location / { return 200 x; }")
    wire = proxy.connect()
    wire.send(part)
    wire.expect_end()
    assert ' 408 0 "-" "-"' in proxy.accessed()[0]
    proxy.logged(f"client timed out (110: Connection timed out) while reading client request {doing}")


def test_what_had_come_of_a_head_that_does_not_end_is_in_the_logs(server):
    form = "log_format got '$status [$request] $http_a'; access_log logs/access.log got;"
    proxy = server("client_header_timeout 1s; location / { return 200 x; }", form)
    with proxy.connect() as wire:
        wire.send(b"GET /x?y HTTP/1.1\r\nHost: a\r\nA: b\r\n")
        wire.expect_end()
    with proxy.connect() as wire:
        wire.send(b"GET /x?y HTT")
        wire.expect_end()
    with proxy.connect() as wire:
        wire.send(b"GET /x?y HT")
        wire.finish()
        wire.expect_end()
    assert proxy.accessed(3) == ["408 [GET /x?y HTTP/1.1] b", "408 [GET /x?y HTT] -", "400 [GET /x?y HT] -"]
    assert 'request: "GET /x?y HTTP/1.1", host: "a"' in proxy.logged("while reading client request headers")


def test_the_header_timeout_is_for_the_whole_head(server):
    proxy = server("client_header_timeout 1s; location / { return 200 x; }")
    wire = proxy.connect()
    began = time.monotonic()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        for _ in range(30):
            wire.send(b"G" if time.monotonic() - began < 0.05 else b"E")
            time.sleep(0.1)
    assert time.monotonic() - began < 2.5


def test_a_gap_in_the_body_is_a_408_in_the_log_only(server, upstream):
    proxy = server(
        "client_body_timeout 300ms; location / { proxy_pass http://@up@; }", up=upstream(answering(b"")).address
    )
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123")
    wire.expect_end()
    assert ' 408 0 "-" "-"' in proxy.accessed()[0]


def test_a_client_that_does_not_read_is_closed_after_send_timeout(server):
    proxy = server("send_timeout 500ms; root html;")
    (proxy.prefix / "html/big").write_bytes(bytes(32 << 20))
    wire = proxy.connect(receive_buffer=1 << 14)
    wire.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    proxy.logged("client timed out (110: Connection timed out) while sending")
    assert " 200 " in proxy.accessed()[0]


def test_a_client_that_leaves_inside_its_head_is_a_400_in_the_log(hello):
    wire = hello.connect()
    wire.send(b"GET / HTTP/1.1\r\nHos")
    wire.finish()
    wire.expect_end()
    assert ' 400 0 "-" "-"' in hello.accessed()[0]
    hello.logged("client prematurely closed connection while reading client request headers")


# Bad requests.

LINE, HEADERS = "while reading client request line", "while reading client request headers"
REFUSED = {
    "lower-case method": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid method {LINE}"),
    "TRACE": (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 405, "client sent TRACE method"),
    "tab in the line": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "client sent invalid"),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "relative target": (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "control in target": (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "DEL in target": (b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "space in target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "version 2": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505, f"client sent invalid version {LINE}"),
    "lower-case version": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "userinfo": (b"GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, "client sent invalid"),
    "bare CR": (b"GET / HTTP/1.1\rX\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "above root": (b"GET /../x HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "bad percent": (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "NUL by percent": (b"GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, f"client sent invalid request {LINE}"),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", 400, f'client sent HTTP/1.1 request without "Host" header {HEADERS}'),
    "empty Host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "client sent"),
    "two Hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "client sent duplicate host header"),
    "slash in Host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, f"client sent invalid host header {HEADERS}"),
    "dots in Host": (b"GET / HTTP/1.1\r\nHost: a..b\r\n\r\n", 400, f"client sent invalid host header {HEADERS}"),
    "two lengths": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        400,
        'client sent duplicate header line: "Content-Length: 1", previous value: "Content-Length: 1"',
    ),
    "bad length": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1x\r\n\r\n",
        400,
        'client sent invalid "Content-Length" header',
    ),
    "signed length": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        400,
        'client sent invalid "Content-Length" header',
    ),
    "huge length": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9223372036854775808\r\n\r\n",
        400,
        'client sent invalid "Content-Length" header',
    ),
    "length and chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        'client sent "Content-Length" and "Transfer-Encoding" headers at the same time',
    ),
    "chunked in 1.0": (
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        'client sent HTTP/1.0 request with "Transfer-Encoding" header',
    ),
    "unknown coding": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
        501,
        'client sent unknown "Transfer-Encoding": "chunked, gzip"',
    ),
    "NUL in a value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400, "client sent invalid header line"),
    "control in a name": (b"GET / HTTP/1.1\r\nHost: a\r\nX\x01: a\r\n\r\n", 400, "client sent invalid header line"),
    "space before colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX : a\r\n\r\n", 400, "client sent invalid header line"),
    "folded line": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400, "client sent invalid header line"),
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 405, "client sent CONNECT"),
}
OLD = {"CONNECT": "older ones do not know its target's form: 400"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=differs(OLD[n])) if n in OLD else n for n in REFUSED])
def test_a_bad_request_is_refused(hello, name):
    data, status, text = REFUSED[name]
    wire = hello.connect()
    wire.send(data)
    answer = wire.read_response()
    assert answer.status == status
    assert answer.get("Connection") == "close"
    wire.expect_end()
    wire.close()  # A lingering close ends, and the line is written.
    assert "[info]" in hello.logged(text)
    assert f'" {status} ' in hello.accessed()[0]


ACCEPTED = {
    "LF only": b"GET / HTTP/1.1\nHost: a\n\n",
    "several spaces": b"GET   /   HTTP/1.1  \r\nHost: a\r\n\r\n",
    "unknown method": b"FOO_BAR-X / HTTP/1.1\r\nHost: a\r\n\r\n",
    "minor version 7": b"GET / HTTP/1.7\r\nHost: a\r\n\r\n",
    "high bytes": b"GET /\xff\xe4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "absolute form": b"GET http://b:80/x?y HTTP/1.1\r\nHost: a\r\n\r\n",
    "IPv6 Host": b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n",
    "1.0 without Host": b"GET / HTTP/1.0\r\n\r\n",
    "fragment": b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash": b"GET /a\\b HTTP/1.1\r\nHost: a\r\n\r\n",
    "control by percent": b"GET /%01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "invalid name dropped": b"GET / HTTP/1.1\r\nHost: a\r\nX@Y: 1\r\n\r\n",
    "header without value": b"GET / HTTP/1.1\r\nHost: a\r\nX:\r\n\r\n",
    "chunked in capitals": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_odd_request_is_served(hello, name):
    assert hello.ask(ACCEPTED[name], method="GET").status == 200


def test_http_0_9(hello):
    wire = hello.connect()
    wire.send("GET /\r\n")
    assert wire.read_to_end() == b"hello"


@pytest.mark.parametrize("body", [b"zz\r\n", b"1\r\nab\r\n", b"fffffffffffffffff\r\n", b"0x1\r\na\r\n"])
def test_a_broken_chunked_body_is_a_400(server, upstream, body):
    proxy = server("location / { proxy_pass http://@up@; }", up=upstream(answering(b"")).address)
    answer = proxy.ask(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert answer.status == 400
    proxy.logged("client sent invalid chunked body")


def test_underscores_in_headers(server):
    proxy = server("underscores_in_headers on; location / { return 200 [$http_x_y]; }")
    assert proxy.get("/", "X_Y: seen").body == b"[seen]"


def test_expect_continue_is_answered_before_a_body_is_read(hello):
    wire = hello.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-Continue\r\n\r\n")
    assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"ab")
    assert wire.read_response().body == b"hello"


def test_expect_continue_is_not_answered_ahead_of_an_error(server):
    proxy = server("client_max_body_size 1; location / { return 200 x; }")
    answer = proxy.ask(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert answer.status == 413


# The URI.


@pytest.mark.parametrize(
    "target, uri, args",
    [
        ("/a/./b/../c", "/a/c", ""),
        ("/a//b", "/a/b", ""),
        ("/%61%2fb", "/a/b", ""),
        ("/a/%2e%2e/b", "/b", ""),
        ("/a%3Fb%23c%2525", "/a?b#c%25", ""),
        ("/a/..", "/", ""),
        ("/a/.", "/a/", ""),
        ("/...", "/...", ""),
        ("/a?x=%41&y=?", "/a", "x=%41&y=?"),
        ("/a#frag?no", "/a", ""),
        ("/a+b;c\\d", "/a+b;c\\d", ""),
        ("/a?", "/a", ""),
    ],
)
def test_the_uri_is_normalised(server, target, uri, args):
    proxy = server('location / { return 200 "$uri|$args|$request_uri"; }')
    assert proxy.get(target).body.decode() == f"{uri}|{args}|{target}"


def test_merge_slashes_off(server):
    assert server("merge_slashes off; location / { return 200 $uri; }").get("//a///b").body == b"//a///b"


# Which server reads, answers and logs a head: the default one until the host is known.

READERS = """
    log_format at '$server_name $status $uri';
    server {
        listen 127.0.0.1:@port@ default_server;
        server_name first;
        access_log logs/first at;
        error_log logs/first.error info;
        large_client_header_buffers 2 2k;
        error_page 400 405 414 494 = /page;
        location / { return 200 "first $uri"; }
        location /page { return 200 "page of first"; }
    }
    server {
        listen 127.0.0.1:@port@;
        server_name wide;
        access_log logs/wide at;
        error_log logs/wide.error info;
        large_client_header_buffers 4 8k;
        merge_slashes off;
        underscores_in_headers on;
        error_page 400 405 414 494 = @page;
        location / { return 200 "wide $uri $http_a_b"; }
        location @page { return 200 "page of wide for $uri"; }
    }
    server {
        listen 127.0.0.1:@port@;
        server_name narrow;
        large_client_header_buffers 1 512;
        error_page 400 405 414 494 = /page;
        location / { return 200 "narrow $uri"; }
        location /page { return 200 "page of narrow"; }
    }
    server {
        listen 127.0.0.1:@port@;
        server_name "";
        error_page 400 405 414 494 = /page;
        location / { return 200 "nameless $uri"; }
        location /page { return 200 "page of nameless"; }
    }
    server {
        listen 127.0.0.1:@port@;
        server_name ~^.*$;
        location / { return 200 "any $uri"; }
    }
"""


def head(line: str, *fields: str | int) -> bytes:
    """A number stands for a line of so many bytes."""
    fields = [f"A: {'x' * (field - 5)}" if isinstance(field, int) else field for field in fields]
    return "".join(f"{text}\r\n" for text in [line, *fields, "Connection: close", ""]).encode()


READ = {
    "a bad line behind the host": (head("GET /p HTTP/1.1", "Host: wide", "a b: c"), "page of wide for /p"),
    "a bad line before the host": (head("GET /p HTTP/1.1", "a b: c", "Host: wide"), "page of first"),
    "a second host": (head("GET /p HTTP/1.1", "Host: wide", "Host: narrow"), "page of wide for /p"),
    "a bad host": (head("GET /p HTTP/1.1", "Host: w..e"), "page of first"),
    "a bad host behind that of the target": (head("GET http://wide/p HTTP/1.1", "Host: w..e"), "page of wide for /p"),
    "no host but that of the target": (head("GET http://wide/p HTTP/1.1"), "page of wide for /p"),
    "a bad line behind the target's host": (head("GET http://wide/p HTTP/1.1", "a b: c"), "page of wide for /p"),
    "a bad length": (head("GET /p HTTP/1.1", "Content-Length: x", "Host: wide"), "page of wide for /p"),
    "a method": (head("TRACE /p HTTP/1.1", "Host: wide"), "page of wide for /p"),
    "no host at all": (head("GET /p HTTP/1.1"), "page of nameless"),
    "no host, and a bad line": (head("GET /p HTTP/1.1", "a b: c"), "page of first"),
    "no host, and a method": (head("TRACE /p HTTP/1.0"), "page of nameless"),
    "no host for a regex": (head("GET /p HTTP/1.0"), "nameless /p"),
    "a host for a regex": (head("GET /p HTTP/1.0", "Host: a"), "any /p"),
    "a bad path": (head("GET /%zz HTTP/1.1", "Host: wide"), "page of first"),
    "a bad path behind a host": (head("GET http://wide/%zz HTTP/1.1", "Host: wide"), "page of first"),
    "a bad path, then a bad line": (head("GET /%zz HTTP/1.1", "Host: wide", "a b: c"), "page of first"),
    "a long target": (head(f"GET http://wide/{'x' * 3000} HTTP/1.1", "Host: wide"), "page of first"),
    "slashes": (head("GET //p HTTP/1.1", "Host: wide"), "wide /p "),
    "slashes behind a host": (head("GET http://wide//p HTTP/1.1", "Host: wide"), "wide /p "),
    "an underscore behind the host": (head("GET /p HTTP/1.1", "Host: wide", "a_b: c"), "wide /p c"),
    "an underscore before the host": (head("GET /p HTTP/1.1", "a_b: c", "Host: wide"), "wide /p "),
    "a long line behind the host": (head("GET /p HTTP/1.1", "Host: wide", 8000), "wide /p "),
    "a long line before the host": (head("GET /p HTTP/1.1", 3000, "Host: wide"), "page of first"),
    "a long line behind the target's host": (head("GET http://wide/p HTTP/1.1", 8000, "Host: wide"), "wide /p "),
    "too long a line": (head("GET /p HTTP/1.1", "Host: wide", 8500), "page of wide for /p"),
    "long lines": (head("GET /p HTTP/1.1", "Host: wide", 7000, 7000, 7000, "a_b: c"), "wide /p c"),
    "too many long lines": (head("GET /p HTTP/1.1", "Host: wide", *[7000] * 6), "page of wide for /p"),
    "a line of the first buffer": (head("GET /p HTTP/1.1", "Host: narrow", 900), "narrow /p"),
    "a long line for narrow buffers": (head("GET /p HTTP/1.1", "Host: narrow", 1900), "page of narrow"),
    "a line in what a wide buffer has left": (head("GET /p HTTP/1.1", 1500, "Host: narrow", 500), "narrow /p"),
    "too long a line for what is left": (head("GET /p HTTP/1.1", 1500, "Host: narrow", 1000), "page of narrow"),
    "many lines for narrow buffers": (head("GET /p HTTP/1.1", "Host: narrow", *[400] * 9), "page of narrow"),
}


@pytest.fixture
def readers(serve):
    return serve(READERS)


@pytest.mark.parametrize("name", READ)
def test_who_reads_and_answers_a_head(readers, name):
    data, body = READ[name]
    assert readers.ask(data, method="GET").body.decode() == body


@pytest.mark.parametrize("cut", [1, 20, 36, 2000, 2080, 5000])
def test_a_long_head_in_two_pieces(readers, cut):
    data, body = READ["long lines"]
    wire = readers.connect()
    wire.send_pieces(data, [cut])
    assert wire.read_response().body.decode() == body


def test_the_next_head_is_read_by_the_default_server_again(readers):
    wire = readers.connect()
    long = head("GET /p HTTP/1.1", "Host: wide", 8000).replace(b"Connection: close\r\n", b"")
    for _ in range(2):
        wire.send(long)
        assert wire.read_response().body == b"wide /p "
    wire.send(head("GET /p HTTP/1.1", 3000, "Host: wide"))
    assert wire.read_response().body == b"page of first"


@pytest.mark.parametrize(
    "start, body",
    [
        (b"GET /%zz HTTP/1.1\r\nHost: wide\r\n", b"page of first"),
        (b"GET /p HTTP/1.1\r\nHost: wide\r\nA: " + b"x" * 8500, b"page of wide for /p"),
        (b"GET /p HTTP/1.1\r\nHost: narrow\r\nA: " + b"x" * 1500, b"page of narrow"),
    ],
)
def test_a_head_is_refused_before_its_end(readers, start, body):
    assert readers.ask(start).body == body


def test_a_refused_head_is_told_where_it_was_read(readers):
    for name in ("a bad line behind the host", "a bad line before the host", "too long a line"):
        readers.ask(READ[name][0])
    assert readers.accessed(2, "wide") == ["wide 200 /p"] * 2
    assert readers.accessed(1, "first") == ["first 200 /page"]
    wide, first = readers.log("wide.error"), readers.log("first.error")
    where = 'while reading client request headers, client: 127.0.0.1, server: {}, request: "GET /p HTTP/1.1"'
    assert [wide.count(text) for text in ("client sent invalid header line", "client sent too long header line")] == [1, 1]
    assert wide.count(where.format("wide") + ', host: "wide"') == 2
    assert first.count(where.format("first")) == 1


def test_a_client_that_leaves_behind_the_host_is_told_in_its_server(readers):
    with readers.connect() as wire:
        wire.send(b"GET /p HTTP/1.1\r\nHost: wide\r\nA: b\r\n")
        wire.finish()
        wire.expect_end()
    assert readers.accessed(1, "wide") == ["wide 400 /p"]
    assert "client prematurely closed connection while reading client request headers" in readers.log("wide.error")


def test_a_head_that_does_not_end_is_told_in_the_server_of_its_host(serve):
    proxy = serve(READERS.replace("server_name first;", "server_name first; client_header_timeout 1s;"))
    wire = proxy.connect()
    wire.send(b"GET /p HTTP/1.1\r\nHost: wide\r\n")
    wire.expect_end()
    assert proxy.accessed(1, "wide") == ["wide 408 /p"]


@wants("max_headers")
def test_max_headers_of_the_server_that_the_host_names(serve):
    proxy = serve(
        """
        max_headers 5;
        server { listen 127.0.0.1:@port@; return 200 first; }
        server { listen 127.0.0.1:@port@; server_name more; max_headers 8; return 200 more; }
        server { listen 127.0.0.1:@port@; server_name less; max_headers 3; return 200 less; }
        """
    )

    def status(*fields):
        return proxy.ask(head("GET / HTTP/1.1", *fields)).status

    many = [f"A{number}: b" for number in range(9)]
    assert [status("Host: more", *many[:count]) for count in (4, 6, 7)] == [200, 200, 400]
    assert [status("Host: less", *many[:count]) for count in (1, 2, 3)] == [200, 400, 400]
    assert [status("Host: first", *many[:count]) for count in (3, 4)] == [200, 400]
    assert status(*many[:6], "Host: more") == 400


@pytest.mark.parametrize(
    "form, start", [("494", "HTTP/1.1 400 Bad Request"), ("494 =", "HTTP/1.1 200 OK"), ("494 =419", "HTTP/1.1 419 ")]
)
def test_the_status_of_a_page_for_494(server, form, start):
    proxy = server(f"error_page {form} @big; location / {{ return 200 x; }} location @big {{ return 200 big; }}")
    answer = proxy.get("/", "X-Long: " + "x" * 9000)
    assert (answer.start, answer.body) == (start, b"big")
    assert f" {answer.status} " in proxy.accessed()[0]


def test_no_named_location_answers_a_bad_path(server):
    proxy = server("error_page 400 @bad; location / { return 200 x; } location @bad { return 200 bad; }")
    assert proxy.get("/a%zz").status == 500
    proxy.logged('empty URI in redirect to named location "@bad"')


# Servers and locations.


def test_server_names_in_their_order(serve):
    names = {
        "exact": "www.example.com",
        "dot": ".dot.org",
        "lead": "*.example.com",
        "long": "*.deep.example.com",
        "tail": "www.example.*",
        "re": "~^re(?<digits>[0-9]+)\\.net$",
        "empty": '""',
    }
    blocks = "\n".join(
        f"server {{ listen 127.0.0.1:@port@; server_name {name}; return 200 {label}; }}"
        for label, name in names.items()
    )
    proxy = serve("server { listen 127.0.0.1:@port@ default_server; server_name _; return 200 default; }\n" + blocks)
    chosen = {
        "www.example.com": "exact",
        "WWW.Example.COM:80": "exact",
        "www.example.com.": "exact",
        "dot.org": "dot",
        "a.b.dot.org": "dot",
        "x.example.com": "lead",
        "example.com": "default",
        "a.deep.example.com": "long",
        "www.example.net": "tail",
        "re42.net": "re",
        "re.net": "default",
        "elsewhere": "default",
    }
    assert {host: proxy.get("/", host=host).body.decode() for host in chosen} == chosen
    assert proxy.ask("GET / HTTP/1.0\r\n\r\n").body == b"empty"


def test_the_first_server_is_the_default(serve):
    proxy = serve(
        "server { listen 127.0.0.1:@port@; server_name a; return 200 first; }"
        "server { listen 127.0.0.1:@port@; server_name b; return 200 second; }"
        "server { listen 127.0.0.1:@port_b@; server_name a; return 200 other; }"
    )
    assert proxy.get("/", host="zzz").body == b"first"
    assert proxy.get("/", host="b").body == b"second"
    assert proxy.get("/", host="b", port=proxy.ports()[1]).body == b"other"


def test_a_named_capture_of_the_server_name(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; server_name ~^(?<who>.+)\\.users$; return 200 $who; }")
    assert proxy.get("/", host="ann.users").body == b"ann"


def test_locations_in_their_order(server):
    proxy = server(
        """
        location / { return 200 root; }
        location = / { return 200 exact; }
        location /docs/ { return 200 docs; }
        location ^~ /images/ { return 200 images; }
        location ~* \\.(gif|jpg)$ { return 200 pictures:$1; }
        location ~ ^/docs/.*\\.txt$ { return 200 text; }
        location /nested/ {
            return 200 outer;
            location /nested/deep/ { return 200 inner; }
            location ~ x$ { return 200 regex; }
        }
        location "/with space/" { return 200 space; }
        """
    )
    chosen = {
        "/": "exact",
        "/other": "root",
        "/docs/a": "docs",
        "/docs/a.GIF": "pictures:GIF",
        "/docs/a.txt": "text",
        "/images/a.gif": "images",
        "/a.jpg": "pictures:jpg",
        "/nested/": "outer",
        "/nested/deep/a": "inner",
        "/nested/ax": "regex",
        "/with%20space/": "space",
        "/Docs/a": "root",
    }
    assert {target: proxy.get(target).body.decode() for target in chosen} == chosen


# return, rewrite, error_page.


@pytest.mark.parametrize(
    "line, status, body, location",
    [
        ("return 200 text;", 200, b"text", None),
        ('return 200 "";', 200, b"", None),
        ("return 201 made;", 201, b"made", None),
        ("return 204;", 204, b"", None),
        ("return 301 /moved;", 301, None, "http://example.com:@port@/moved"),
        ("return 302 http://b/$uri;", 302, None, "http://b//x"),
        ("return 307 /again?$args;", 307, None, "http://example.com:@port@/again?q=1"),
        ("return 308 /x;", 308, None, "http://example.com:@port@/x"),
        ("return https://c/;", 302, None, "https://c/"),
        ("return 403;", 403, None, None),
        ("return 404 gone;", 404, b"gone", None),
        ("return 418;", 418, b"", None),
    ],
)
def test_return(server, line, status, body, location):
    proxy = server(f"location / {{ {line} }}")
    answer = proxy.get("/x?q=1")
    assert answer.status == status
    if body is None:
        assert f"<center><h1>{status} ".encode() in answer.body
    else:
        assert answer.body == body
    assert answer.get("Location") == (location and proxy.fill(location))


def test_return_444_closes_without_a_byte(server):
    proxy = server("location / { return 444; }")
    wire = proxy.connect()
    wire.send(GET)
    wire.expect_end()
    assert '" 444 0 ' in proxy.accessed()[0]


def test_rewrite(server):
    proxy = server(
        """
        location /a/ { rewrite ^/a/(.*)$ /b/$1 last; }
        location /b/ { return 200 "$uri $args"; }
        location /c/ { rewrite ^/c/(.*)$ /d/$1? permanent; }
        location /e/ { rewrite ^ /b/x?new=1 last; }
        location /set { set $v one; set $v "$v two"; return 200 $v; }
        location /if {
            if ($arg_x = yes) { return 200 yes; }
            if ($request_method ~ ^P) { return 200 p; }
            return 200 no;
        }
        location /loop { rewrite ^ /loop last; }
        """
    )
    assert proxy.get("/a/1?q").body == b"/b/1 q"
    assert proxy.get("/c/2?q").get("Location") == f"http://example.com:{proxy.port}/d/2"
    assert proxy.get("/e/?old=2").body == b"/b/x new=1&old=2"
    assert proxy.get("/set").body == b"one two"
    assert [proxy.get(target).body for target in ("/if?x=yes", "/if?x=no")] == [b"yes", b"no"]
    assert proxy.get("/if", method="POST", body=b"").body == b"p"
    assert proxy.get("/loop").status == 500
    proxy.logged('rewrite or internal redirection cycle while processing "/loop"')


def test_error_page(server):
    proxy = server(
        """
        error_page 403 /sorry;
        error_page 404 =200 /found?why=404;
        error_page 405 = /any;
        error_page 500 @named;
        error_page 503 http://elsewhere/;
        location / { return 404; }
        location /403 { return 403; }
        location /405 { return 405; }
        location /500 { return 500; }
        location /503 { return 503; }
        location /sorry { return 200 "sorry $request_method $uri $args"; }
        location /found { return 200 "found $args"; }
        location /any { return 202 any; }
        location @named { return 200 "named $request_method $uri $args"; }
        """
    )

    def got(target, **options):
        answer = proxy.get(target, **options)
        return answer.status, answer.body.decode()

    assert got("/403?x=1", method="POST", body=b"") == (403, "sorry GET /sorry ")
    assert got("/x") == (200, "found why=404")
    assert got("/405") == (202, "any")
    assert got("/500?x=1", method="PUT", body=b"") == (500, "named PUT /500 x=1")
    answer = proxy.get("/503")
    assert (answer.status, answer.get("Location")) == (302, "http://elsewhere/")


def test_an_internal_location_is_not_there_for_clients(server):
    proxy = server("location /inside { internal; return 200 x; } location / { error_page 404 /inside; return 404; }")
    assert proxy.get("/inside").status == 404
    assert proxy.get("/").body == b"x"


@pytest.mark.parametrize("tokens, product", [("on", None), ("off", "name")])
def test_the_built_in_page(server, tokens, product):
    proxy = server(f"server_tokens {tokens}; location / {{ return 404; }}")
    name = proxy.binary.name if product else proxy.binary.product
    answer = proxy.get("/")
    assert answer.body.decode() == (
        "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n"
        f"<center><h1>404 Not Found</h1></center>\r\n<hr><center>{name}</center>\r\n</body>\r\n</html>\r\n"
    )
    assert answer.get("Content-Type") == "text/html"
    assert answer.get("Server") == name


def test_the_built_in_page_is_padded_for_chrome(server):
    plain, padded = (
        server("location / { return 404; }").get("/", f"User-Agent: {agent}").body for agent in ("curl", "x Chrome/1")
    )
    line = b"<!-- a padding to disable MSIE and Chrome friendly error page -->\r\n"
    assert padded == plain + line * 6


@wants("limit_except", "deny")
def test_a_limit_on_methods(server):
    proxy = server("location / { limit_except GET { deny all; } root html; }")
    (proxy.prefix / "html/f").write_text("file")
    assert [proxy.get("/f", method=method).status for method in ("GET", "HEAD", "DELETE")] == [200, 200, 403]
    proxy.logged("access forbidden by rule")


# Files.


@pytest.fixture
def files(server):
    def start(text="", http=""):
        proxy = server(text, http)
        html = proxy.prefix / "html"
        (html / "index.html").write_text("index")
        (html / "a.txt").write_text("0123456789")
        (html / "a.HTML").write_text("page")
        (html / "noext").write_text("none")
        (html / "dir").mkdir()
        (html / "dir/b.gif").write_bytes(b"gif")
        os.utime(html / "a.txt", (1700000000, 1700000000))
        return proxy

    return start


def test_a_file(files):
    answer = files().get("/a.txt")
    assert answer.body == b"0123456789"
    assert answer.names() == [
        "Server",
        "Date",
        "Content-Type",
        "Content-Length",
        "Last-Modified",
        "Connection",
        "ETag",
        "Accept-Ranges",
    ]
    assert answer.get("Last-Modified") == formatdate(1700000000, usegmt=True)
    assert answer.get("ETag") == '"6553f100-a"'
    assert answer.get("Content-Type") == "text/plain"


def test_what_is_not_a_file(files):
    proxy = files()
    assert proxy.get("/none.txt").status == 404
    proxy.logged(f'open() "{proxy.prefix}/html/none.txt" failed (2: No such file or directory)')
    assert proxy.get("/dir/").status == 403
    proxy.logged(f'directory index of "{proxy.prefix}/html/dir/" is forbidden')
    assert proxy.get("/dir?x=1").get("Location") == f"http://example.com:{proxy.port}/dir/?x=1"
    assert proxy.get("/a.txt", method="POST", body=b"").status == 405
    assert proxy.get("/a.txt", method="PUT", body=b"").status == 405
    assert proxy.get("/a.txt/x").status == 404


def test_head_of_a_file(files):
    proxy = files()
    got, head = proxy.get("/a.txt"), proxy.get("/a.txt", method="HEAD")
    assert head.body == b""
    assert [f for f in head.fields if f[0] != "Date"] == [f for f in got.fields if f[0] != "Date"]


def test_index(files):
    proxy = files("location / { index none.html index.html; } location /dir/ { index /a.txt; }")
    assert proxy.get("/").body == b"index"
    assert proxy.get("/dir/").body == b"0123456789"


def test_root_and_alias(files):
    proxy = files(
        "location /in/ { alias html/dir/; } location /dir/ { root html; } location ~ ^/re/(.*)$ { alias html/$1; }"
    )
    assert proxy.get("/in/b.gif").body == b"gif"
    assert proxy.get("/dir/b.gif").body == b"gif"
    assert proxy.get("/re/a.txt").body == b"0123456789"


def test_try_files(files):
    proxy = files(
        """
        location / { try_files $uri $uri/ /fallback?u=$uri; }
        location /fallback { return 200 "fallback $args"; }
        location /coded { try_files $uri =410; }
        location /named { try_files $uri @there; }
        location @there { return 200 "there $uri $args"; }
        """
    )
    assert proxy.get("/a.txt").body == b"0123456789"
    assert proxy.get("/x?q=1").body == b"fallback u=/x"
    assert proxy.get("/coded/x").status == 410
    assert proxy.get("/named/x?q=1").body == b"there /named/x q=1"


def test_types(files):
    types = "types { text/html html; image/gif gif; x/y noext; } default_type application/octet-stream;"
    proxy = files(
        "location /dir/ { types { } default_type image/x; } location /bare/ { default_type ''; return 200 x; }", types
    )
    kinds = {
        target: proxy.get(target).get("Content-Type")
        for target in ("/a.HTML", "/a.txt", "/noext", "/dir/b.gif", "/bare/")
    }
    assert kinds == {
        "/a.HTML": "text/html",
        "/a.txt": "application/octet-stream",
        "/noext": "application/octet-stream",
        "/dir/b.gif": "image/x",
        "/bare/": None,
    }


@pytest.mark.parametrize(
    "field, status, body",
    [
        ("Range: bytes=2-4", 206, b"234"),
        ("Range: bytes=8-99", 206, b"89"),
        ("Range: bytes=-3", 206, b"789"),
        ("Range: bytes=10-", 416, None),
        ("Range: bytes=x", 416, None),
        ("Range: lines=1-2", 200, b"0123456789"),
        ('If-None-Match: "6553f100-a"', 304, b""),
        ('If-None-Match: W/"6553f100-a", "x"', 304, b""),
        ('If-None-Match: "other"', 200, b"0123456789"),
        (f"If-Modified-Since: {formatdate(1700000000, usegmt=True)}", 304, b""),
        (f"If-Modified-Since: {formatdate(1700000001, usegmt=True)}", 200, b"0123456789"),
        ('If-Match: "other"', 412, None),
        (f"If-Unmodified-Since: {formatdate(1600000000, usegmt=True)}", 412, None),
    ],
)
def test_conditions_and_ranges(files, field, status, body):
    answer = files().get("/a.txt", field)
    assert answer.status == status
    assert body is None or answer.body == body


# Response headers.


def test_add_header(server):
    proxy = server(
        """
        add_header X-Outer 1;
        location / {
            add_header X-A "$uri!";
            add_header X-A two;
            add_header X-Empty "";
            add_header X-Always 1 always;
            return 200 x;
        }
        location /404 { add_header X-A 1; add_header X-Always 1 always; return 404; }
        location /inherits { return 200 x; }
        """
    )
    answer = proxy.get("/u")
    assert answer.all("X-A") == ["/u!", "two"]
    assert answer.get("X-Empty") is None
    assert answer.get("X-Outer") is None
    assert (proxy.get("/404").get("X-A"), proxy.get("/404").get("X-Always")) == (None, "1")
    assert proxy.get("/inherits").get("X-Outer") == "1"


@wants("expires")
def test_expires(server):
    proxy = server(
        """
        location /hour { expires 1h; return 200 x; }
        location /past { expires -1; return 200 x; }
        location /max { expires max; return 200 x; }
        location /epoch { expires epoch; return 200 x; }
        """
    )
    control = {target: proxy.get(target).get("Cache-Control") for target in ("/hour", "/past", "/max", "/epoch")}
    assert control == {"/hour": "max-age=3600", "/past": "no-cache", "/max": "max-age=315360000", "/epoch": "no-cache"}
    assert proxy.get("/max").get("Expires") == "Thu, 31 Dec 2037 23:55:55 GMT"
    assert proxy.get("/epoch").get("Expires") == "Thu, 01 Jan 1970 00:00:01 GMT"


# Logs and variables.


def test_the_combined_log(hello):
    hello.get("/x?y", "Referer: http://r/", 'User-Agent: a"b\\c\u00e4', "Authorization: Basic YW5uOnB3")
    (line,) = hello.accessed()
    stamp = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
    expected = rf'127\.0\.0\.1 - ann {stamp} "GET /x\?y HTTP/1\.1" 200 5 "http://r/" "a\\x22b\\x5Cc\\xE4"'
    assert re.fullmatch(expected, line), line


@pytest.mark.parametrize(
    "escape, logged",
    [
        ("default", rb"a\x22b\x5C\x09\xE4|-|"),
        ("json", b'a\\"b\\\\\\t\xe4||'),
        ("none", b'a"b\\\t\xe4||'),
    ],
)
def test_escapes_of_the_log(server, escape, logged):
    http = f"log_format f escape={escape} '$http_x|$http_none|$http_empty'; access_log logs/f.log f;"
    proxy = server("location / { return 200 x; }", http)
    proxy.get("/", 'X: a"b\\\t\u00e4', "Empty:")
    (line,) = proxy.accessed(1, "f.log")
    assert line.encode("utf-8", "surrogateescape") == logged


def test_a_json_log_is_json(server):
    http = """
        log_format j escape=json '{"uri":"$request_uri","status":$status,'
                                 '"agent":"$http_user_agent","time":$request_time}';
        access_log logs/j.log j;
    """
    proxy = server("location / { return 200 x; }", http)
    proxy.get("/a", 'User-Agent: quote " and \\ back')
    told = json.loads(proxy.accessed(1, "j.log")[0])
    assert (told["uri"], told["status"], told["agent"]) == ("/a", 200, 'quote " and \\ back')


def test_conditional_several_and_switched_off_logs(server):
    http = """log_format short $status; access_log logs/all.log short; access_log logs/x.log short if=$arg_x;"""
    proxy = server("location / { return 200 x; } location /off { access_log off; return 200 x; }", http)
    for target in ("/", "/?x=1", "/?x=0", "/off", "/?x=2"):
        proxy.get(target)
    assert len(proxy.accessed(4, "all.log")) == 4
    assert len(proxy.accessed(2, "x.log")) == 2


def test_a_buffered_log_is_written_at_its_flush_time(server):
    proxy = server("access_log logs/b.log combined buffer=32k flush=500ms; location / { return 200 x; }")
    proxy.get("/")
    assert proxy.log("b.log") == ""
    assert len(proxy.accessed(1, "b.log")) == 1


def test_a_buffered_log_is_written_at_the_end(server):
    proxy = server("access_log logs/b.log combined buffer=32k; location / { return 200 x; }")
    proxy.get("/")
    proxy.signal(signal.SIGQUIT)
    assert proxy.wait() == 0
    assert len(proxy.accessed(1, "b.log")) == 1


def test_variables(server):
    names = (
        "arg_X arg_none args is_args host request_method request_uri uri scheme server_name server_port server_addr "
        "server_protocol remote_addr http_x_y cookie_C content_length content_type request connection_requests pipe "
        "document_root request_filename https"
    )
    text = "|".join("$" + name for name in names.split())
    proxy = server(f"server_name name.example; location / {{ return 200 '{text}'; }}")
    answer = proxy.get(
        "/p%20q?x=1&X=2",
        "X-Y: hy",
        "Cookie: a=1; C=2; b=3",
        "Content-Type: t/t",
        host="Name.Example:80",
        method="POST",
        body=b"abc",
    )
    root = f"{proxy.prefix}/html"
    assert answer.body.decode().split("|") == [
        "1", "", "x=1&X=2", "?", "name.example", "POST", "/p%20q?x=1&X=2", "/p q", "http", "name.example",
        str(proxy.port), "127.0.0.1", "HTTP/1.1", "127.0.0.1", "hy", "2", "3", "t/t", "POST /p%20q?x=1&X=2 HTTP/1.1",
        "1", ".", root, f"{root}/p q", "",
    ]  # fmt: skip


def test_counts_in_the_log(server):
    http = """
        log_format n '$status $bytes_sent $body_bytes_sent $request_length $connection_requests $pipe';
        access_log logs/n.log n;
    """
    proxy = server("location / { return 200 12345; }", http)
    wire = proxy.connect()
    wire.send(GET + GET)
    first, second = wire.read_response(), wire.read_response()
    assert proxy.accessed(2, "n.log") == [
        f"200 {len(first.raw) + 5} 5 {len(GET)} 1 .",
        f"200 {len(second.raw) + 5} 5 {len(GET)} 2 p",
    ]


def test_map(serve):
    proxy = serve(
        """
        map $arg_k $v { default none; a one; ~^b(.+)$ "re $1"; "" empty; }
        server { listen 127.0.0.1:@port@; return 200 "$v"; }
        """
    )
    values = {"?k=a": b"one", "?k=bcd": b"re cd", "?k=zz": b"none", "": b"empty"}
    assert {args: proxy.get("/" + args).body for args in values} == values
