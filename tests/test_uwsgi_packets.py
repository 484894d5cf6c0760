"""The same requests to ringx and to nginx, both with conf/uwsgi_params: the same packets, byte for byte.

Each shape of a request names the differences that it shows, of the list `DIFFERENCES`; where it names
none, the packets are equal as they are. Only the digits of the two ports are made equal before.
"""

import queue
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.packet import decode_block
from harness.proxy import Binary, Proxy
from harness.servers import TESTS
from harness.upstream import Upstream
from harness.wire import DEADLINE, Wire

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"

pytestmark = [
    pytest.mark.ringx_only("compares ringx with nginx"),
    pytest.mark.skipif(not Path(NGINX).exists(), reason="there is no nginx to compare with"),
]

CONFIGURATION = """
events { }
http {
    access_log off;
    server {
        listen 127.0.0.1:@port@;
        server_name app.example;
        root /srv/app;
        location / { include uwsgi_params; uwsgi_pass @upstream@; }
        location = /bare { uwsgi_pass @upstream@; }
        location = /set {
            uwsgi_param FIRST "a constant";
            uwsgi_param HTTP_X_REAL_IP $remote_addr;
            uwsgi_param EMPTY $arg_none;
            uwsgi_param LEFT_OUT $arg_none if_not_empty;
            uwsgi_param TWICE 1;
            uwsgi_param TWICE $arg_a;
            uwsgi_param HTTP_X_GONE "";
            uwsgi_modifier1 5;
            uwsgi_modifier2 9;
            uwsgi_string tail;
            uwsgi_pass @upstream@;
        }
    }
    server {
        listen 127.0.0.1:@port_loose@;
        server_name app.example;
        root /srv/app;
        underscores_in_headers on;
        ignore_invalid_headers off;
        location / { include uwsgi_params; uwsgi_pass @upstream@; }
    }
}
"""


@dataclass
class Shape:
    name: str
    raw: bytes
    differences: tuple[str, ...] = ()
    host: str = "app.example"
    """What `$host` is, with the port that the request named."""
    loose: bool = False


Pairs = list[tuple[str, str]]


# What nginx 1.22 sends, as 1.31 sends it (the first two), and as ringx does.


def with_clean_host(pairs: Pairs, shape: Shape) -> Pairs:
    rest = [pair for pair in pairs if pair[0] != "HTTP_HOST"]
    # One HTTP_X is the configuration's.
    is_header = [key.startswith("HTTP_") and key != "HTTP_X_REAL_IP" for key, _ in rest]
    at = is_header.index(True) if True in is_header else len(rest)
    return [*rest[:at], ("HTTP_HOST", shape.host), *rest[at:]]


def joined(pairs: Pairs, shape: Shape) -> Pairs:
    told: dict[str, str] = {}
    for key, value in pairs:
        if key.startswith("HTTP_") and key in told:
            told[key] += ("; " if key == "HTTP_COOKIE" else ", ") + value
        elif key.startswith("HTTP_"):
            told[key] = value
    done: set[str] = set()
    result = []
    for key, value in pairs:
        if key not in done:
            result.append((key, told.get(key, value)))
        if key.startswith("HTTP_"):
            done.add(key)
    return result


def without_coding(pairs: Pairs, _: Shape) -> Pairs:
    return [pair for pair in pairs if pair[0] != "HTTP_TRANSFER_ENCODING"]


def without_h2c(pairs: Pairs, _: Shape) -> Pairs:
    if ("HTTP_UPGRADE", "h2c") not in pairs:
        return pairs
    return [pair for pair in pairs if pair[0] not in ("HTTP_UPGRADE", "HTTP_HTTP2_SETTINGS")]


DIFFERENCES: dict[str, tuple[str, Callable[[Pairs, Shape], Pairs]]] = {
    "host": ("since 1.29 HTTP_HOST is `$host` with the port named, before all other headers", with_clean_host),
    "joined": ("since 1.23 repeated headers are one variable; in ringx those of one variable are", joined),
    "coding": ("a decoded body is not called chunked (uwsgi.md 9.3)", without_coding),
    "h2c": ("an upgrade to HTTP/2 is not passed on", without_h2c),
}


def ask(
    name: str,
    target: str = "/",
    *fields: str,
    method: str = "GET",
    version: str = "1.1",
    host: str | None = "app.example",
    body: bytes = b"",
    differs: str = "",
    told_host: str = "app.example",
    loose: bool = False,
) -> Shape:
    lines = [f"{method} {target} HTTP/{version}", *([f"Host: {host}"] if host is not None else []), *fields]
    raw = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    return Shape(name, raw, tuple(differs.split()), told_host, loose)


KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
CHUNKS = b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nT: t\r\n\r\n"
CHUNKED = "Transfer-Encoding: chunked"

SHAPES = [
    # Methods.
    ask("get"),
    ask("head", method="HEAD"),
    ask("options", method="OPTIONS"),
    ask("delete", method="DELETE"),
    ask("unknown method", method="PURGE"),
    ask("post", "/", "Content-Type: text/plain", "Content-Length: 3", method="POST", body=b"abc"),
    ask("put", "/", "Content-Length: 3", method="PUT", body=b"abc"),
    ask("patch", "/", "Content-Length: 3", method="PATCH", body=b"abc"),
    # Targets.
    ask("query", "/a?q=1"),
    ask("empty query", "/a?"),
    ask("question marks", "/a?b?c?"),
    ask("plus and escapes in the query", "/?q=%20&r=+&s=%C3%BC"),
    ask("space", "/a%20b"),
    ask("slash escaped", "/a%2Fb"),
    ask("question mark escaped", "/a%3Fb?c"),
    ask("percent escaped", "/a%25b"),
    ask("not ASCII escaped", "/%C3%BC%FF"),
    ask("not ASCII", "/\xfc"),
    ask("two dots", "/a/../b"),
    ask("dots and escapes", "/a%20b/../c?q=1"),
    ask("dots escaped", "/a/%2e%2e/b"),
    ask("one dot", "/a/./b/."),
    ask("slashes", "//a///b//"),
    ask("fragment", "/a#b?c"),
    ask("parameters", "/a;x=1,y/b@c:d"),
    ask("long query", "/?q=" + "y" * 4000),
    ask("absolute", "http://app.example/x?y=1"),
    ask("absolute, other host", "http://real.example/x", host="other.example", differs="host", told_host="real.example"),
    ask("absolute with port", "http://app.example:81/", host="app.example:81", told_host="app.example:81"),
    # Hosts.
    ask("host in capitals", host="App.EXAMPLE", differs="host"),
    ask("host with port", host="app.example:8080", told_host="app.example:8080"),
    ask("host with port in capitals", host="APP.example:8080", differs="host", told_host="app.example:8080"),
    ask("host with dot", host="app.example.", differs="host"),
    ask("IPv4 host", host="127.0.0.1", told_host="127.0.0.1"),
    ask("IPv6 host", host="[::1]:80", told_host="[::1]:80"),
    ask("host behind another header", "/", "Accept: */*", "Host: app.example", host=None, differs="host"),
    ask("HTTP/1.0", version="1.0"),
    ask("HTTP/1.0 without host", version="1.0", host=None, differs="host"),
    ask("HTTP/1.0 kept alive", "/", "Connection: keep-alive", version="1.0"),
    # Headers.
    ask("browser", "/", "User-Agent: Mozilla/5.0 (X11)", "Accept: text/html,*/*;q=0.8", "Accept-Language: de,en",
        "Accept-Encoding: gzip, deflate", "Referer: http://app.example/", "Connection: keep-alive", "Cookie: a=1; b=2",
        "Sec-Fetch-Dest: document", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Site: none", "Sec-Fetch-User: ?1"),
    ask("lower case", "/", "x-lower: a", "X-MiXeD: B"),
    ask("empty value", "/", "X-Empty:", "X-Blank:   "),
    ask("blanks around", "/", "X-A:   a b  ", "X-B:b"),
    ask("tab", "/", "X-A: a\tb"),
    ask("not ASCII value", "/", "X-A: \xfc\xff"),
    ask("digits", "/", "X-1-2: 3", "1: 2"),
    ask("repeated", "/", "X-A: 1", "X-B: x", "x-a: 2", "X-A: 3", differs="joined"),
    ask("repeated with empty ones", "/", "X-A:", "X-A: 2", "X-A:", differs="joined"),
    ask("forwarded twice", "/", "X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2", differs="joined"),
    ask("cookie", "/", "Cookie: a=1"),
    ask("cookies", "/", "Cookie: a=1", "X-B: x", "Cookie: b=2", differs="joined"),
    ask("long cookie", "/", "Cookie: a=" + "c" * 4000),
    ask("long values", "/", *[f"X-{n}: {'v' * 5000}" for n in range(4)]),
    ask("values around 1024 bytes", "/", *[f"X-{n}: {'v' * n}" for n in (1023, 1024, 1025)]),
    ask("many headers", "/", *[f"X-{n}: {n}" for n in range(90)]),
    ask("long name", "/", f"{'X' * 500}: a"),
    ask("authorization", "/", "Authorization: Basic dTpw"),
    ask("conditions", "/", 'If-None-Match: "e"', "If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT", "Range: bytes=0-1"),
    ask("hop by hop", "/", "Connection: close, x", "TE: trailers", "Keep-Alive: 5", "Trailer: T"),
    ask("proxy", "/", "Proxy: http://evil/", "X-A: 1"),
    ask("names that are left out", "/", "X_Und: 1", "X.Dot: 2", "X!: 3", "X-A: 4"),
    ask("names with underscores", "/", "X_Und: 1", "_: 2", "X-A: 3", loose=True),
    ask("odd names", "/", "X.Dot: 1", "X!Y#Z: 2", "X~'*: 3", loose=True),
    ask("names of one variable", "/", "X_Und: 1", "X-A: a", "X-Und: 2", loose=True, differs="joined"),
    # Upgrades.
    ask("websocket", "/", "Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", KEY),
    ask("other upgrade", "/", "Upgrade: foo/1", "Connection: upgrade"),
    ask("h2c", "/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk", differs="h2c"),
    # Bodies.
    ask("no body", "/", "Content-Length: 0", method="POST"),
    ask("body with get", "/", "Content-Length: 3", body=b"abc"),
    ask("form", "/", "Content-Type: application/x-www-form-urlencoded", "Content-Length: 7", method="POST", body=b"a=1&b=2"),
    ask("large body", "/", "Content-Length: 100000", method="POST", body=bytes(range(250)) * 400),
    ask("expect", "/", "Expect: 100-continue", "Content-Length: 3", method="POST", body=b"abc"),
    ask("chunked", "/", CHUNKED, method="POST", body=CHUNKS, differs="coding"),
    ask("empty chunked", "/", CHUNKED, method="POST", body=b"0\r\n\r\n", differs="coding"),
    # How it is written.
    Shape("line feeds alone", b"GET / HTTP/1.1\nHost: app.example\nX-A: 1\n\n"),
    Shape("empty line before", b"\r\nGET / HTTP/1.1\r\nHost: app.example\r\n\r\n"),
    # Other configurations.
    ask("without variables", "/bare", "X-A: 1"),
    ask("with others", "/set?a=b", "X-Real-IP: 6.6.6.6", "X-Gone: 1", "X-A: 2"),
]  # fmt: skip


class Lane:
    """A program in front of an upstream that keeps what it is sent."""

    def __init__(self, binary: Binary, prefix: Path):
        self.seen: queue.Queue[tuple[bytes, bytes, bytes]] = queue.Queue()
        self.upstream = Upstream(self._serve)
        (prefix / "conf").mkdir(parents=True)
        shutil.copy(TESTS.parent / "conf/uwsgi_params", prefix / "conf")
        self.proxy = Proxy(binary, prefix, CONFIGURATION, upstream=self.upstream.address)

    def _serve(self, wire: Wire) -> None:
        header = wire.read_exactly(4)
        block = wire.read_exactly(struct.unpack("<BHB", header)[1])
        length = re.search(rb"(?s)CONTENT_LENGTH(..)", block)
        size = struct.unpack("<H", length[1])[0] if length else 0
        body = wire.read_exactly(int(block[length.end() :][:size])) if size else b""
        self.seen.put((header, block, body))
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def packet(self, shape: Shape) -> tuple[bytes, bytes, bytes]:
        """What this request becomes: header, block, body."""
        wire = self.proxy.connect(int(self.proxy.values["port_loose" if shape.loose else "port"]))
        wire.send(shape.raw)
        header, block, body = self.seen.get(timeout=DEADLINE)
        wire.read_head()
        wire.close()
        return header, re.sub(rb"((?:REMOTE|SERVER)_PORT\x05\x00)\d{5}", rb"\g<1>00000", block), body

    def stop(self) -> None:
        self.proxy.stop()
        self.upstream.stop()


@pytest.fixture(scope="module")
def lanes(binary: Binary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lane, Lane]]:
    folder = tmp_path_factory.mktemp("packets")
    ours, theirs = Lane(binary, folder / "ringx"), Lane(Binary(Path(NGINX)), folder / "nginx")
    try:
        ours.proxy.start()
        theirs.proxy.start()
        yield ours, theirs
    finally:
        ours.stop()
        theirs.stop()


def encode(pairs: Pairs) -> bytes:
    strings = [string.encode("latin-1") for pair in pairs for string in pair]
    return b"".join(struct.pack("<H", len(string)) + string for string in strings)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_packet_is_that_of_nginx(lanes: tuple[Lane, Lane], shape: Shape) -> None:
    ours, theirs = (lane.packet(shape) for lane in lanes)
    assert ours[2] == theirs[2]
    expected = theirs[1]
    # uwsgi_string may be anything: it is not decoded.
    expected, tail = (expected[:-4], b"tail") if expected.endswith(b"tail") else (expected, b"")
    pairs = decode_block(expected)
    assert encode(pairs) == expected
    for name, (_, change) in DIFFERENCES.items():
        changed = change(pairs, shape)
        assert (changed != pairs) == (name in shape.differences), f"{name}: {pairs}"
        pairs = changed
    block = encode(pairs) + tail
    assert ours[1] == block
    assert ours[0] == theirs[0][:1] + struct.pack("<H", len(block)) + theirs[0][3:]


def test_the_shapes_are_many_and_each_difference_is_shown() -> None:
    names = [shape.name for shape in SHAPES]
    assert len(names) == len(set(names)) >= 50
    assert {name for shape in SHAPES for name in shape.differences} == DIFFERENCES.keys()
