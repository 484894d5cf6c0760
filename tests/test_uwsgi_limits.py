"""uwsgi beyond nginx: sizes that a server does not take, chunks as they come, and what a client may set."""

import hashlib
import json
import random
import re
import struct
from collections.abc import Callable

import pytest

from harness.packet import read_packet
from harness.proxy import Proxy
from harness.servers import TESTS
from harness.upstream import close, reset
from harness.wire import Wire

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def apps(example):
    """`apps(address, directives…)`: conf/examples/uwsgi.conf in front of this server, with more lines."""

    def start(address: str, *more: str) -> Proxy:
        lines = {"location / {": "location / {\n" + "\n".join(more), "uwsgi_pass 127.0.0.1:7000": f"uwsgi_pass {address}"}
        return example("uwsgi.conf", {"listen 7001;": "listen 127.0.0.1:@port@;", **lines})

    return start


@pytest.fixture
def server(upstream) -> Callable:
    """`server()`: answers every packet."""

    def serve(wire: Wire) -> None:
        read_packet(wire)
        wire.send(ANSWER)

    return lambda: upstream(serve)


# uwsgi_vars_limit


@ringx_only("uwsgi_vars_limit")
def test_a_block_above_the_limit_is_a_431_and_nothing_is_sent(apps, server):
    behind = server()
    proxy = apps(behind.address, "uwsgi_vars_limit 4k;")
    assert proxy.get("/", "Cookie: small").body == b"ok"
    response = proxy.get("/", f"Cookie: {'c' * 4012}")
    assert response.start == "HTTP/1.1 431 Request Header Fields Too Large"
    assert b"<center><h1>431 Request Header Fields Too Large</h1></center>" in response.body
    line = proxy.logged("uwsgi_vars_limit")
    assert "[error]" in line
    assert re.search(
        r"uwsgi block \d{4} bytes, \d\d vars, largest HTTP_COOKIE 4012 bytes: "
        r'more than "uwsgi_vars_limit 4096 0" lets pass',
        line,
    ), line
    assert "ccc" not in line
    assert "upstream:" not in line
    assert len(behind.connections) == 1


@ringx_only("uwsgi_vars_limit")
@pytest.mark.parametrize("size, count, status", [
    (41, 3, 200), (41, 0, 200), (0, 3, 200), (0, 0, 200), (40, 3, 431), (40, 0, 431), (41, 2, 431), (0, 2, 431)
])  # fmt: skip
def test_the_limit_is_exact(serve, server, size, count, status):
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location / { uwsgi_param A b; uwsgi_vars_limit @size@ @count@; uwsgi_pass @upstream@; }
        }
        """,
        upstream=server().address,
        size=size,
        count=count,
    )
    # A=b, HTTP_HOST=h, HTTP_X_AA=cccc: 6 + 14 + 17 bytes, and 4 more by a header that is joined.
    assert proxy.ask("GET / HTTP/1.1\r\nHost: h\r\nX-AA: cccc\r\nx-aa: dd\r\n\r\n").status == status


@ringx_only("uwsgi_vars_limit")
def test_too_many_variables(apps, server):
    proxy = apps(server().address, "uwsgi_vars_limit 64k 30;")
    assert proxy.get("/", *[f"X-{n}: {n}" for n in range(10)]).status == 200
    # Those that are joined count once.
    assert proxy.get("/", *["X-A: 1"] * 40).status == 200
    assert proxy.get("/", *[f"X-{n}: {n}" for n in range(30)]).status == 431
    assert re.search(r" bytes, 4\d vars, largest \w+ \d+ bytes: more than", proxy.logged("uwsgi_vars_limit"))


@ringx_only("uwsgi_vars_limit")
def test_a_page_of_ones_own_for_431(apps, server):
    proxy = apps(server().address, "uwsgi_vars_limit 2k;", "error_page 431 =200 /plain;", "location /plain { return 200 mine; }")
    assert proxy.get("/", f"Cookie: {'c' * 3000}").body == b"mine"


@ringx_only("uwsgi_vars_limit")
@pytest.mark.parametrize("framing", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
def test_a_body_that_is_still_to_come_is_not_waited_for(apps, server, framing):
    behind = server()
    lines = ("uwsgi_vars_limit 2k;", "uwsgi_request_buffering off;", "uwsgi_chunked_body raw;")
    wire = apps(behind.address, *lines).connect()
    wire.send(f"POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\nCookie: {'c' * 3000}\r\n\r\n")
    assert wire.read_response().status == 431
    assert not behind.connections


@ringx_only("uwsgi_vars_limit")
@pytest.mark.parametrize("value", ["x", "4k 1k", "off 1", "-1"])
def test_what_is_no_limit(refused, value):
    assert refused(f"uwsgi_vars_limit {value};")[0].startswith('[emerg] "uwsgi_vars_limit" directive invalid ')


# Servers that hang up.

HANG_UPS = [
    (close, "upstream prematurely closed connection while reading response header from upstream"),
    (reset, "recv() failed (104: Connection reset by peer) while reading response header from upstream"),
]


@pytest.fixture
def hangs_up(upstream) -> Callable:
    def start(end: Callable, first: bytes = b""):
        def serve(wire):
            read_packet(wire)
            wire.send(first)
            end(wire)

        return upstream(serve).address

    return start


@differs("the log does not explain it (uwsgi.md 9.5)")
@pytest.mark.parametrize("end, text", HANG_UPS)
def test_a_large_block_is_told_in_the_line_about_a_server_that_hangs_up(apps, hangs_up, end, text):
    proxy = apps(hangs_up(end))
    assert proxy.get("/", f"Cookie: {'c' * 4012}").status == 502
    line = proxy.logged(text)
    assert re.search(
        r', host: "example.com", uwsgi block \d{4} bytes, 1\d vars, largest HTTP_COOKIE 4012 bytes: '
        r"check the server's buffer-size$",
        line,
    ), line


@differs("the log does not explain it (uwsgi.md 9.5)")
def test_it_is_told_also_where_the_line_is_too_long(apps, hangs_up):
    proxy = apps(hangs_up(close))
    assert proxy.get("/?" + "q" * 5000).status == 502
    line = proxy.logged("upstream prematurely closed connection")
    assert line.endswith(", largest REQUEST_URI 5002 bytes: check the server's buffer-size"), line


@differs("the log does not explain it (uwsgi.md 9.5)")
def test_many_variables_are_told(apps, hangs_up):
    proxy = apps(hangs_up(close))
    assert proxy.get("/", *[f"X-{n}: {n}" for n in range(120)]).status == 502
    assert re.search(r" 13\d vars, .*buffer-size$", proxy.logged("upstream prematurely closed connection"))


@pytest.mark.parametrize("end, text", HANG_UPS)
def test_a_block_that_any_server_takes_explains_nothing(apps, hangs_up, end, text):
    proxy = apps(hangs_up(end))
    assert proxy.get("/").status == 502
    assert proxy.logged(text).endswith('host: "example.com"')


@pytest.mark.parametrize("end, text", HANG_UPS)
def test_a_server_that_has_begun_to_answer_took_the_block(apps, hangs_up, end, text):
    proxy = apps(hangs_up(end, b"HTTP/1.1 200 OK\r\nX-"))
    assert proxy.get("/", f"Cookie: {'c' * 4012}").status == 502
    if end is close:  # a reset may take the bytes before it along
        assert proxy.logged(text).endswith('host: "example.com"')


@differs("the log does not explain it (uwsgi.md 9.5)")
def test_more_than_a_packet_can_carry(serve, server):
    proxy = serve(
        """
        large_client_header_buffers 4 200k;
        server {
            listen 127.0.0.1:@port@;
            location / { uwsgi_param A $http_big; uwsgi_pass @upstream@; }
            location /limited { uwsgi_vars_limit 32k; uwsgi_pass @upstream@; }
        }
        """,
        upstream=server().address,
    )
    proxy.expected_alerts.append("uwsgi request is too big")
    for length in (60_000, 70_000):
        assert proxy.ask(f"GET / HTTP/1.1\r\nHost: h\r\nBig: {'b' * length}\r\n\r\n").status == 500
        # A, HTTP_HOST and HTTP_BIG: what the block would have come to, had it been possible.
        size = (4 + 1 + length) + (4 + 9 + 1) + (4 + 8 + length)
        line = proxy.logged(f"uwsgi request is too big: {size}")
        assert "[alert]" in line
        assert line.endswith(
            f", uwsgi block {size} bytes, 3 vars, largest A {length} bytes: check the server's buffer-size"
        )
    assert proxy.ask(f"GET /limited HTTP/1.1\r\nHost: h\r\nBig: {'b' * 70000}\r\n\r\n").status == 431
    assert proxy.ask(f"GET /limited HTTP/1.1\r\nHost: h\r\n{'N' * 70000}: b\r\n\r\n").status == 431
    proxy.logged("largest HTTP_BIG 70000 bytes: more than")
    proxy.logged("... 1 bytes: more than")


# uWSGI itself.


@differs("the log does not explain it (uwsgi.md 9.5)")
def test_a_cookie_larger_than_the_buffer_of_uwsgi(apps, tutorial):
    proxy = apps(tutorial.address)
    assert proxy.get("/", f"Cookie: {'c' * 3000}").status == 200
    assert proxy.get("/", f"Cookie: {'c' * 4012}").status == 502
    line = proxy.logged("largest HTTP_COOKIE 4012 bytes: check the server's buffer-size")
    assert "upstream prematurely closed" in line or "(104: Connection reset by peer)" in line


@differs("the log does not explain it (uwsgi.md 9.5)")
def test_more_variables_than_uwsgi_takes(apps, tutorial):
    proxy = apps(tutorial.address)
    assert proxy.get("/", *[f"X-{n}: {n}" for n in range(130)]).status == 502
    proxy.logged(": check the server's buffer-size")


@pytest.mark.parametrize("path", ["/hang", "/raise"])
def test_a_worker_that_is_killed_and_an_exception_are_an_end_without_a_byte(apps, uwsgi_app, path):
    proxy = apps(uwsgi_app.address)
    assert proxy.get(path).status == 502
    line = proxy.logged("upstream prematurely closed connection while reading response header from upstream")
    assert line.endswith('host: "example.com"')


# Chunks.

RAW = ("uwsgi_request_buffering off;", "uwsgi_chunked_body raw;")


@ringx_only("uwsgi_chunked_body")
def test_an_application_reads_the_chunks(apps, uwsgi_app):
    body = random.Random(12).randbytes(200_000)
    pieces = [body[at : at + 7000] for at in range(0, len(body), 7000)]
    proxy = apps(uwsgi_app.address, *RAW)
    for cut in (len(pieces), 3, 0):  # all at once, in two parts, head first
        chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
        wire = proxy.connect()
        head = b"POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.send(head + b"".join(chunks[:cut]))
        wire.send(b"".join(chunks[cut:]) + b"0\r\n\r\n")
        told = json.loads(wire.read_response().body)
        assert told.pop("pieces") > 1
        assert told == {
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "coding": "chunked",
            "content_length": None,
        }


@ringx_only("uwsgi_chunked_body")
@pytest.mark.parametrize("body", [b"", b"abc"])
def test_an_application_reads_a_small_body_that_came_with_its_head(apps, uwsgi_app, body):
    chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
    request = b"POST /chunks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
    told = json.loads(apps(uwsgi_app.address, *RAW).ask(request).body)
    assert (told["length"], told["coding"], told["content_length"]) == (len(body), "chunked", None)


@ringx_only("uwsgi_chunked_body")
def test_chunks_go_out_as_they_come(apps, upstream):
    seen, told = [], []

    def serve(wire):
        seen.append(read_packet(wire))
        wire.send(b"HTTP/1.1 200 OK\r\n")
        for _ in range(2):
            told.append(wire.read_until(b"\r\n") + wire.read_until(b"\r\n"))
            client.send(b"4;ext=1\r\nmore\r\n")
        client.send(b"0\r\nTrailer: t\r\n\r\n")
        told.append(wire.read_until(b"0\r\n\r\n"))
        wire.send(b"Content-Length: 2\r\n\r\nok")

    proxy = apps(upstream(serve).address, *RAW)
    client = proxy.connect()
    client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
    assert client.read_response().body == b"ok"
    assert told[:2] == [b"5\r\nfirst\r\n", b"4\r\nmore\r\n"]
    assert b"".join(told).endswith(b"4\r\nmore\r\n0\r\n\r\n")
    (packet,) = seen
    assert packet.get("HTTP_TRANSFER_ENCODING") == "chunked"
    assert "CONTENT_LENGTH" not in packet.names()


@ringx_only("uwsgi_chunked_body")
@pytest.mark.parametrize(
    "lines, sent",
    [
        (("uwsgi_chunked_body raw;",), b"abc"),  # buffered
        (("uwsgi_request_buffering off;",), b"abc"),
        (RAW, b"3\r\nabc\r\n0\r\n\r\n"),
        ((*RAW, "uwsgi_pass_request_headers off;"), b"3\r\nabc\r\n0\r\n\r\n"),
        ((*RAW, "uwsgi_pass_request_body off;"), b""),
    ],
)
def test_when_chunks_are_sent(apps, upstream, lines, sent):
    seen = []

    def serve(wire):
        packet = read_packet(wire)
        seen.append((packet, wire.read_exactly(len(sent))))
        wire.send(ANSWER)

    proxy = apps(upstream(serve).address, *lines)
    request = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert proxy.ask(request).body == b"ok"
    ((packet, body),) = seen
    assert body == sent
    is_raw = sent.endswith(b"0\r\n\r\n")
    assert packet.get("CONTENT_LENGTH") == (None if is_raw else "3")
    assert packet.get("HTTP_TRANSFER_ENCODING") == ("chunked" if is_raw else None)


@ringx_only("uwsgi_chunked_body")
def test_no_other_server_gets_chunks_that_have_gone_out(serve, upstream):
    def hang_up(wire):
        read_packet(wire)
        wire.read_until(b"abc\r\n")

    first, second = upstream(hang_up), upstream(lambda wire: wire.send(ANSWER))
    proxy = serve(
        """
        upstream app { server @first@; server @second@ backup; }
        server {
            listen 127.0.0.1:@port@;
            location / {
                uwsgi_param A b; uwsgi_pass app; uwsgi_next_upstream error timeout non_idempotent;
                uwsgi_request_buffering off; uwsgi_chunked_body raw;
            }
        }
        """,
        first=first.address,
        second=second.address,
    )
    request = "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert proxy.ask(request).status == 502
    assert not second.connections


@ringx_only("uwsgi_chunked_body")
def test_after_a_redirect_chunks_that_have_gone_out_are_not_told_of(serve, upstream):
    """The next server would wait for them."""
    packets = []

    def answer(wire):
        packets.append(read_packet(wire))
        if packets[-1].get("PATH_INFO") == "/raw":
            wire.read_until(b"0\r\n\r\n")
            wire.send(b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /page\r\nContent-Length: 0\r\n\r\n")
        else:
            wire.send(ANSWER)

    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            uwsgi_param PATH_INFO $document_uri;
            uwsgi_param CONTENT_LENGTH $content_length;
            location / {{ uwsgi_pass @app@; }}
            location /raw {{ {" ".join(RAW)} uwsgi_pass @app@; }}
        }}
        """,
        app=upstream(answer, answer).address,
    )
    request = "POST /raw HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert proxy.ask(request).status == 200
    told = [(packet.get("HTTP_TRANSFER_ENCODING"), packet.get("CONTENT_LENGTH")) for packet in packets]
    assert told == [("chunked", None), (None, "")]


@ringx_only("uwsgi_decode_chunked")
@pytest.mark.parametrize("lines, body", [
    ((), b"hello"),
    (("uwsgi_decode_chunked on;",), b"hello"),
    (("uwsgi_decode_chunked off;",), b"5\r\nhello\r\n0\r\n\r\n"),
])  # fmt: skip
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_chunks_of_a_response(apps, upstream, lines, body, version):
    def serve(wire):
        read_packet(wire)
        wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")

    response = apps(upstream(serve).address, *lines).ask(f"GET / HTTP/{version}\r\nHost: a\r\n\r\n")
    assert (response.body, response.framing) == (body, "chunked" if version == "1.1" else "close")


# What a client may set.


@ringx_only("refused where nginx passes it on")
@pytest.mark.parametrize("key", ["UWSGI_FILE", "UWSGI_MODULE", "UWSGI_SCHEME", "UWSGI_SETENV"])
def test_variables_that_load_code_are_constant(refused, key):
    (line,) = refused(f"location / {{ uwsgi_param {key} /srv/$host.py; uwsgi_pass 127.0.0.1:1; }}")
    assert line.startswith(
        f'[emerg] the value of "uwsgi_param {key}" must be constant: uWSGI loads code or changes settings by it, '
        "and variables may hold what a client has sent"
    )


@pytest.mark.parametrize("value, sent", [("shop", "shop"), ("$scheme", "http")])
def test_constant_ones_are_sent(apps, upstream, value, sent):
    seen = []

    def serve(wire):
        seen.append(read_packet(wire))
        wire.send(ANSWER)

    apps(upstream(serve).address, f"uwsgi_param UWSGI_SCHEME {value};").get("/")
    assert seen[0].get("UWSGI_SCHEME") == sent


LOOSE = """
server {
    listen 127.0.0.1:@port@;
    underscores_in_headers on;
    ignore_invalid_headers off;
    location / { uwsgi_param ONE 1; uwsgi_pass @upstream@; }
}
"""


def test_a_client_sets_nothing_outside_http(serve, upstream):
    blocks = []

    def handle(wire):
        blocks.append(read_packet(wire))
        wire.send(ANSWER)

    names = ["UWSGI_FILE", "UWSGI-FILE", "SCRIPT_NAME", "REMOTE_USER", "ONE", "HTTP_HOST", "HTTP_", "\x7f\xff", "A.B"]
    values = ["x", "a\tb", "\xff" * 30, struct.pack("<H", 3).decode() + "UWSGI"[:3]]
    values = [value.replace("\0", "") for value in values]
    proxy = serve(LOOSE, upstream=upstream(handle).address)
    for value in values:
        for name in names:
            proxy.ask(f"GET / HTTP/1.1\r\nHost: h\r\n{name}: {value}\r\n\r\n")
    assert len(blocks) > len(values) * (len(names) - 2)
    for packet in blocks:
        assert packet.names()[0] == "ONE"
        assert all(name.startswith("HTTP_") for name in packet.names()[1:]), packet.names()


@differs("two variables are sent, and servers keep the last")
def test_headers_of_one_variable_do_not_hide_each_other(serve, upstream):
    seen = []

    def handle(wire):
        seen.append(read_packet(wire))
        wire.send(ANSWER)

    serve(LOOSE, upstream=upstream(handle).address).get("/", "X_User: evil", "X-User: good")
    assert [value for name, value in seen[0].variables if name == "HTTP_X_USER"] == ["evil, good"]


def test_the_samples_pass_no_proxy_header_on(apps, upstream):
    seen = []

    def serve(wire):
        seen.append(read_packet(wire))
        wire.send(ANSWER)

    apps(upstream(serve).address).get("/", "Proxy: http://evil/")
    assert "HTTP_PROXY" not in seen[0].names()


def test_all_samples_with_uwsgi_pass_have_that_line():
    for path in (TESTS.parent / "conf").rglob("*.conf"):
        blocks = re.findall(r"location[^{}]*\{([^{}]*uwsgi_pass[^{}]*)\}", path.read_text())
        assert all("include" in block and "uwsgi_params;" in block for block in blocks), path
    assert 'uwsgi_param  HTTP_PROXY         "";' in (TESTS.parent / "conf/uwsgi_params").read_text()
