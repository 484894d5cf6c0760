"""Trailers and early hints of an upstream: passed on where the configuration asks for them."""

import threading

import pytest

from harness.upstream import answering, chunked, response, script, send, until
from harness.upstream import request as take_request

ringx_only = pytest.mark.ringx_only("newer than the distribution's nginx")
pytestmark = ringx_only
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = response(b"ok", "X-Final: 1")


@pytest.fixture
def through(serve, upstream):
    def start(*handlers, directives="", keepalive=False):
        server = upstream(*(answering(each) if isinstance(each, bytes) else each for each in handlers))
        proxy = serve(
            f"""
            log_format exchange '$status|$upstream_status|$upstream_trailer_x_t|$sent_trailer_x_t|$body_bytes_sent';
            upstream up {{ server @upstream@; keepalive 4; }}
            server {{
                listen 127.0.0.1:@port@;
                location / {{
                    access_log logs/access.log exchange;
                    {directives}
                    proxy_pass http://up;
                }}
            }}
            """,
            upstream=server.address,
        )
        proxy.upstream = server
        return proxy

    return start


@pytest.mark.parametrize(
    "directives, lines, passed",
    [
        ("proxy_pass_trailers on;", "X-T: 1", ["X-T: 1"]),
        ("proxy_pass_trailers on;", "X-T: 1\r\nx-u:2", ["X-T: 1", "x-u: 2"]),
        ("proxy_pass_trailers on;", "X-T: 1\r\nX-T: 2", ["X-T: 1", "X-T: 2"]),
        ("proxy_pass_trailers on;", "", []),
        ("", "X-T: 1", []),
        ("proxy_pass_trailers off;", "X-T: 1", []),
        ("proxy_pass_trailers on; proxy_hide_header X-T;", "X-T: 1\r\nX-U: 2", ["X-U: 2"]),
        ("proxy_pass_trailers on;", "Date: d\r\nX-Pad: p\r\nX-T: 1", ["X-T: 1"]),
        ("proxy_pass_trailers on;", "content-length: 5\r\nTransfer-Encoding: chunked\r\nX-T: 1\r\nTrailer: x", ["X-T: 1"]),
        ("proxy_pass_trailers on;", "Host: h\r\nConnection: close\r\nTE: x\r\nUpgrade: h2c\r\nKeep-Alive: 1", []),
        ("proxy_pass_trailers on;", "Authorization: a\r\nWWW-Authenticate: b\r\nContent-Type: c\r\nETag: e", ["ETag: e"]),
        ("proxy_pass_trailers on;", "Set-Cookie: a=1\r\nSet-Cookie2: b\r\nCookie: c\r\nWarning: w\r\nX-T: 1", ["X-T: 1"]),
        ("proxy_pass_trailers on; add_trailer X-Own 3;", "X-T: 1", ["X-T: 1", "X-Own: 3"]),
        ("add_trailer X-Own 3;", "X-T: 1", ["X-Own: 3"]),
    ],
)
def test_trailers(through, directives, lines, passed):
    end = b"0\r\n" + lines.encode() + (b"\r\n" if lines else b"") + b"\r\n"
    answer = through(HEAD + chunked(b"one", b"two", end=end), directives=directives).get("/")
    assert (answer.body, answer.trailers) == (b"onetwo", passed)


@pytest.mark.parametrize("cut", range(1, 24, 3))
def test_trailers_in_pieces(through, cut):
    gate = threading.Event()
    end = b"1\r\nx\r\n0;e\r\nX-T: 1\r\n\r\n"
    proxy = through(
        script(take_request, send(HEAD + end[:cut]), until(gate), send(end[cut:])),
        # With buffering the head would wait for what goes with it.
        directives="proxy_pass_trailers on; proxy_buffering off;",
    )
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        wire.read_until(b"\r\n\r\n")
        gate.set()
        assert wire.read_chunked() == ([b"x"], ["X-T: 1"])


def test_the_connection_is_used_again(through):
    proxy = through(HEAD + chunked(b"x", end=b"0\r\nX-T: 1\r\n\r\n"), directives="proxy_pass_trailers on;")
    with proxy.connect() as wire:
        for _ in range(3):
            wire.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            assert wire.read_response().trailers == ["X-T: 1"]
    assert len(proxy.upstream.connections) == 1


def test_variables(through):
    proxy = through(HEAD + chunked(end=b"0\r\nX-T: up\r\n\r\n"), directives="proxy_pass_trailers on; add_trailer X-T own;")
    proxy.get("/")
    assert [line.rsplit("|", 1)[0] for line in proxy.accessed()] == ["200|200|up|up, own"]


@pytest.mark.parametrize("request_", ["GET / HTTP/1.0\r\n\r\n", "HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"])
def test_who_gets_none(through, request_):
    proxy = through(HEAD + (chunked(b"x", end=b"0\r\nX-T: 1\r\n\r\n") if "GET" in request_ else b""), directives="proxy_pass_trailers on;")
    with proxy.connect() as wire:
        wire.send(request_)
        assert b"X-T" not in wire.read_to_end()


@pytest.mark.parametrize(
    "section, told, level",
    [
        (b"X T: 1\r\n\r\n", r'upstream sent invalid trailer: "X\x20..."', "error"),
        (b": 1\r\n\r\n", r'upstream sent invalid trailer: "\x3a..."', "error"),
        (b"X-T: " + b"y" * 5000 + b"\r\n\r\n", "upstream sent too big trailers", "error"),
        (b"X-T: 1\r\n\r\nmore", "upstream sent data after trailers", "warn"),
    ],
)
def test_bad_trailers(through, section, told, level):
    proxy = through(HEAD + chunked(b"x", end=b"0\r\n" + section), directives="proxy_pass_trailers on;")
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        whole = wire.read_to_end()
    assert f"[{level}]" in proxy.logged(told)
    assert whole.endswith(b"0\r\nX-T: 1\r\n\r\n") is (level == "warn")


# Early hints.


def hint(*lines: str, version: str = "1.1") -> bytes:
    return f"HTTP/{version} 103 Early Hints\r\n".encode() + "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


@pytest.mark.parametrize(
    "condition, passes", [("on", True), ("$arg_h", True), ("0", False), ('""', False), ("$arg_none", False), ("0 $arg_h", True)]
)
def test_early_hints(through, condition, passes):
    proxy = through(hint("Link: </a>; rel=preload", "X-Pad: p") + OK, directives=f"early_hints {condition}; add_header X-A 1;")
    with proxy.connect() as wire:
        wire.send("GET /?h=1 HTTP/1.1\r\nHost: h\r\n\r\n")
        if passes:
            assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n"
        answer = wire.read_response()
        assert (answer.status, answer.body, answer.get("X-Final"), answer.get("X-A")) == (200, b"ok", "1", "1")


def test_a_hint_is_passed_on_at_once(through):
    gate = threading.Event()
    proxy = through(
        script(take_request, send(hint("Link: a")), until(gate), send(hint("Link: b") + OK)), directives="early_hints on;"
    )
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert wire.read_head().get("Link") == "a"
        gate.set()
        assert wire.read_head().get("Link") == "b"
        assert wire.read_response().body == b"ok"
    assert proxy.accessed()[0].startswith("200|103|")


def test_hints_are_not_for_http_1_0(through):
    answer = through(hint("Link: a") + OK, directives="early_hints on;").ask("GET / HTTP/1.0\r\n\r\n")
    assert (answer.status, answer.body) == (200, b"ok")


def test_hints_over_http_1_0(through):
    proxy = through(hint("Link: a", version="1.0") + OK, directives="early_hints on;")
    assert proxy.get("/").status == 502
    proxy.logged("upstream sent HTTP/1.0 response with early hints while reading response header from upstream")


def test_too_many_hints(through):
    hints = [hint(f"X-{n}: " + "y" * 2000) for n in range(3)]
    proxy = through(b"".join(hints) + OK, directives="early_hints on; proxy_buffer_size 4k;")
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"X-0" in wire.read_until(b"\r\n\r\n")
        assert wire.read_response().status in (103, 200)
    assert "[info]" in proxy.logged("upstream sent too big early hints")


UPLOAD = b"u" * (8 << 20)


@pytest.mark.parametrize("buffering", ["on", "off"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_hint_does_not_end_an_upload(through, buffering, framing):
    """The server says 103 before it reads the body, more than sockets hold, and wants it all the same."""

    def server(wire):
        head = wire.read_head()
        wire.send(hint("Link: a"))
        whole = b"".join(wire.read_chunked()[0]) if head.get("Transfer-Encoding") else wire.read_exactly(len(UPLOAD))
        wire.send(response(b"whole" if whole == UPLOAD else b"other"))

    proxy = through(
        server,
        directives=f"early_hints on; client_max_body_size 0; proxy_http_version 1.1; proxy_request_buffering {buffering};",
    )
    with proxy.connect() as wire:
        if framing == "length":
            wire.send(f"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {len(UPLOAD)}\r\n\r\n")
            wire.send(UPLOAD)
        else:
            wire.send("PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            wire.send(chunked(*(UPLOAD[at : at + 65536] for at in range(0, len(UPLOAD), 65536))))
        assert wire.read_head().get("Link") == "a"
        assert wire.read_response().body == b"whole"
