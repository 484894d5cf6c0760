"""uwsgi through conf/examples/uwsgi.conf: with uWSGI, gunicorn, Flask and Django, and packet by packet."""

import hashlib
import json
import random
import time
from collections.abc import Callable

import pytest

from harness.packet import Packet, read_body, read_packet
from harness.proxy import Proxy, eventually
from harness.upstream import close, reset
from harness.wire import Response, Wire

differs = pytest.mark.differs_in_nginx


@pytest.fixture
def apps(example):
    """`apps(address, directives…)`: the example in front of this uwsgi server, with more lines in its location."""

    def start(address: str, *more: str) -> Proxy:
        changes = {"listen 7001;": "listen 127.0.0.1:@port@;", "uwsgi_pass 127.0.0.1:7000;": f"uwsgi_pass {address};"}
        if more:
            changes["location / {"] = "location / {\n" + "\n".join(more)
        return example("uwsgi.conf", changes)

    return start


# Real servers.


def test_the_tutorial_application(apps, tutorial, via):
    response = apps(via(tutorial)).get("/")
    assert response.start == "HTTP/1.1 200 OK"
    assert response.body == b"hello world\n"
    assert response.get("Content-Type") == "text/html"
    # uWSGI gives no length and closes: a client that stays is told the end by chunks.
    assert response.framing == "chunked"


def test_a_client_connection_is_kept_over_many_uwsgi_requests(apps, tutorial, via):
    wire = apps(via(tutorial)).connect()
    for _ in range(50):
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b"hello world\n"


def test_an_http_1_0_client_is_told_the_end_by_close(apps, tutorial):
    response = apps(tutorial.address).ask("GET / HTTP/1.0\r\n\r\n")
    assert (response.framing, response.body) == ("close", b"hello world\n")


def test_the_access_log_of_the_tutorial(apps, tutorial):
    proxy = apps(tutorial.address)
    proxy.get("/greet?who=me", "User-Agent: curl")
    (line,) = proxy.accessed(1, "uwsgi.log")
    assert '"GET /greet?who=me HTTP/1.1" 200 22 "-" "curl"' in line  # 12 bytes, framed: c CRLF … CRLF 0 CRLF CRLF


@pytest.fixture(params=["flask", "django", "gunicorn"])
def framework(request):
    fixture = {"flask": "flask_app", "django": "django_app", "gunicorn": "gunicorn_app"}[request.param]
    return request.getfixturevalue(fixture)


def test_a_get_with_arguments(apps, framework, via):
    response = apps(via(framework)).get("/?name=ringx%21")
    assert (response.status, response.body) == (200, b"hello ringx!")


def test_a_form_post(apps, framework, via):
    response = apps(via(framework)).get(
        "/form", "Content-Type: application/x-www-form-urlencoded", method="POST", body=b"a=1&b=two+words&c=%C3%BC"
    )
    assert json.loads(response.body) == {"a": "1", "b": "two words", "c": "ü"}


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_an_upload_of_10_mib(apps, framework, via, buffering):
    body = random.Random(10).randbytes(10 << 20)
    proxy = apps(via(framework), "client_max_body_size 0;", f"uwsgi_request_buffering {buffering};")
    response = proxy.get("/upload", "Content-Type: application/octet-stream", method="POST", body=body)
    assert json.loads(response.body) == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize(
    "framework",
    [
        pytest.param(
            "flask", marks=differs("HTTP_TRANSFER_ENCODING is sent, and Flask looks for chunks (uwsgi.md 9.3)")
        ),
        "django",
        "gunicorn",
    ],
    indirect=True,
)
def test_an_upload_in_chunks(apps, framework):
    body = random.Random(11).randbytes(300_000)
    pieces = [body[at : at + 7000] for at in range(0, len(body), 7000)]
    wire = apps(framework.address).connect()
    wire.send("POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in pieces:
        wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    wire.send(b"0\r\n\r\n")
    assert json.loads(wire.read_response().body) == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_download_of_10_mib(apps, framework, via, buffering):
    response = apps(via(framework), f"uwsgi_buffering {buffering};").get(f"/download/{10 << 20}")
    assert response.status == 200
    assert hashlib.sha256(response.body).digest() == hashlib.sha256(bytes(range(256)) * (40 << 10)).digest()


def test_a_streamed_response(apps, framework, via):
    response = apps(via(framework)).get("/stream/500")
    assert response.framing == "chunked"
    assert response.body == b"".join(b"line %d\n" % number for number in range(500))


def test_a_page_that_is_not_there(apps, framework):
    response = apps(framework.address).get("/nowhere")
    assert response.status == 404
    assert b"Not Found" in response.body


def test_what_flask_is_told(apps, flask_app):
    response = apps(flask_app.address).get("/who", "User-Agent: tests", host="shop.example")
    told = json.loads(response.body)
    del told["pid"]
    assert told == {
        "remote": "127.0.0.1",
        "scheme": "http",
        "host": "shop.example",
        "url": "http://shop.example/who",
        "path": "/who",
        "agent": "tests",
    }


def test_a_killed_worker_is_a_502_and_the_next_request_is_fine(apps, flask_app):
    proxy = apps(flask_app.address)
    assert proxy.get("/die").status == 502
    line = proxy.logged("upstream prematurely closed connection while reading response header from upstream")
    assert f'request: "GET /die HTTP/1.1", upstream: "uwsgi://{flask_app.address}", host: "example.com"' in line
    for _ in range(5):
        assert proxy.get("/").status == 200


def test_a_worker_that_dies_many_times_takes_no_request_of_others_down(apps, flask_app):
    proxy = apps(flask_app.address)
    assert [proxy.get(path).status for path in ["/die", "/"] * 3] == [502, 200] * 3


# What is sent.

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Recorder:
    """A uwsgi server that keeps packet and body, and gives a fixed answer."""

    def __init__(self, upstream: Callable, answer: bytes, **options):
        self.seen: list[tuple[Packet, bytes]] = []
        self.decode = options.pop("decode", True)
        self.answer = answer
        self.server = upstream(self._serve, **options)
        self.address = self.server.address

    def _serve(self, wire: Wire) -> None:
        packet = read_packet(wire, self.decode)
        self.seen.append((packet, read_body(wire, packet)))
        wire.send(self.answer)

    @property
    def packet(self) -> Packet:
        ((packet, _),) = self.seen
        return packet


@pytest.fixture
def recorder(upstream):
    return lambda answer=ANSWER, **options: Recorder(upstream, answer, **options)


def test_the_variables_of_uwsgi_params_in_their_order(apps, recorder):
    server = recorder()
    proxy = apps(server.address)
    wire = proxy.connect()
    port = wire.sock.getsockname()[1]
    wire.send(
        "POST /a%20b/../c?q=1 HTTP/1.1\r\nHost: Example.com\r\nContent-Type: text/plain\r\n"
        "Content-Length: 3\r\nX-Custom: yes\r\n\r\nabc"
    )
    assert wire.read_response().body == b"ok"
    ((packet, body),) = server.seen
    assert (packet.modifier1, packet.modifier2) == (0, 0)
    assert body == b"abc"
    assert packet.variables[:13] == [
        ("QUERY_STRING", "q=1"),
        ("REQUEST_METHOD", "POST"),
        ("CONTENT_TYPE", "text/plain"),
        ("CONTENT_LENGTH", "3"),
        ("REQUEST_URI", "/a%20b/../c?q=1"),
        ("PATH_INFO", "/c"),
        ("DOCUMENT_ROOT", str(proxy.prefix / "html")),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("REQUEST_SCHEME", "http"),
        ("REMOTE_ADDR", "127.0.0.1"),  # HTTPS is empty, so it is left out
        ("REMOTE_PORT", str(port)),
        ("SERVER_PORT", str(proxy.port)),
        ("SERVER_NAME", ""),
    ]
    assert sorted(packet.names()[13:]) == ["HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_HOST", "HTTP_X_CUSTOM"]


def test_a_request_without_body_has_an_empty_content_length(apps, recorder):
    server = recorder()
    apps(server.address).get("/")
    assert server.packet.get("CONTENT_LENGTH") == ""
    assert server.packet.get("CONTENT_TYPE") == ""


def test_all_headers_become_variables(apps, recorder):
    server = recorder()
    apps(server.address).ask(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, x\r\nTE: trailers\r\nUpgrade: foo/1\r\n"
        "Accept-Language: de\r\nX-empty:\r\n\r\n"
    )
    told = {name: value for name, value in server.packet.variables if name.startswith("HTTP_")}
    assert told == {
        "HTTP_HOST": "a",
        "HTTP_CONNECTION": "close, x",
        "HTTP_TE": "trailers",
        "HTTP_UPGRADE": "foo/1",
        "HTTP_ACCEPT_LANGUAGE": "de",
        "HTTP_X_EMPTY": "",
    }


@differs("before 1.23.0 repeated headers became repeated variables")
def test_repeated_headers_are_joined_at_their_first_position(apps, recorder):
    server = recorder()
    apps(server.address).get("/", "X-A: 1", "Cookie: a=1", "X-B: x", "x-a: 2", "Cookie: b=2", "X-A: 3")
    told = [pair for pair in server.packet.variables if pair[0] in ("HTTP_X_A", "HTTP_COOKIE", "HTTP_X_B")]
    assert told == [("HTTP_X_A", "1, 2, 3"), ("HTTP_COOKIE", "a=1; b=2"), ("HTTP_X_B", "x")]


def test_a_name_with_an_underscore_cannot_pose_as_a_header(apps, recorder):
    server = recorder()
    apps(server.address).get("/", "X_User: evil", "X-User: good")
    assert [value for name, value in server.packet.variables if name == "HTTP_X_USER"] == ["good"]


@pytest.mark.parametrize("sent, told", [("SHOP.example:8080", "shop.example:8080"), ("SHOP.example", "shop.example")])
@differs("older ones pass the Host header as it came")
def test_http_host_is_the_cleaned_host_with_its_port(apps, recorder, sent, told):
    server = recorder()
    apps(server.address).get("/", host=sent)
    assert server.packet.get("HTTP_HOST") == told


@differs("older ones pass the Host header as it came")
def test_http_host_of_an_absolute_request_is_that_of_the_uri(apps, recorder):
    server = recorder()
    apps(server.address).ask("GET http://real.example/x HTTP/1.1\r\nHost: other.example\r\n\r\n")
    assert server.packet.get("HTTP_HOST") == "real.example"
    assert server.packet.get("REQUEST_URI") == "/x"


def test_a_uwsgi_param_takes_the_place_of_a_header(apps, recorder):
    server = recorder()
    proxy = apps(
        server.address,
        'uwsgi_param HTTP_PROXY "";',
        "uwsgi_param HTTP_X_REAL_IP $remote_addr;",
        "uwsgi_param SCRIPT_NAME /app;",
        "uwsgi_param EMPTY $arg_none;",
        "uwsgi_param LEFT_OUT $arg_none if_not_empty;",
        "uwsgi_param TWICE 1;",
        "uwsgi_param TWICE 2;",
    )
    proxy.get("/", "Proxy: http://evil/", "X-Real-IP: 6.6.6.6")
    packet = server.packet
    assert "HTTP_PROXY" not in packet.names()
    assert [value for name, value in packet.variables if name == "HTTP_X_REAL_IP"] == ["127.0.0.1"]
    assert packet.get("SCRIPT_NAME") == "/app"
    assert packet.get("EMPTY") == ""
    assert "LEFT_OUT" not in packet.names()
    assert [value for name, value in packet.variables if name == "TWICE"] == ["1", "2"]


def test_modifiers_and_string(apps, recorder):
    string = "\\x05"  # nginx has no such escape: four bytes as they are
    server = recorder(decode=False)
    proxy = apps(server.address, "uwsgi_modifier1 5;", "uwsgi_modifier2 7;", f"uwsgi_string '{string}';")
    assert proxy.get("/").status == 200
    packet = server.packet
    assert (packet.modifier1, packet.modifier2) == (5, 7)
    assert packet.block.endswith(string.encode())


def test_headers_and_body_can_be_kept_back(apps, upstream):
    seen = []

    def serve(wire):
        packet = read_packet(wire)
        wire.send(ANSWER)
        seen.append((packet, wire.read_to_end()))

    server = upstream(serve)
    proxy = apps(server.address, "uwsgi_pass_request_headers off;", "uwsgi_pass_request_body off;")
    assert proxy.get("/", "X-Custom: 1", method="POST", body=b"secret").status == 200
    server.threads[-1].join(10)
    ((packet, body),) = seen
    assert body == b""
    assert packet.get("CONTENT_LENGTH") == "6"
    assert "HTTP_X_CUSTOM" not in packet.names()


def test_a_chunked_body_is_decoded(apps, recorder):
    server = recorder()
    response = apps(server.address).ask(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nT: t\r\n\r\n"
    )
    assert response.body == b"ok"
    ((packet, body),) = server.seen
    assert (packet.get("CONTENT_LENGTH"), body) == ("7", b"abcdefg")
    assert "HTTP_CONTENT_LENGTH" not in packet.names()


@differs("HTTP_TRANSFER_ENCODING is sent although the body is decoded (uwsgi.md 9.3)")
def test_a_decoded_body_is_not_called_chunked(apps, recorder):
    server = recorder()
    apps(server.address).ask("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert "HTTP_TRANSFER_ENCODING" not in server.packet.names()


def test_a_block_above_65535_bytes_is_a_500(apps, recorder):
    proxy = apps(recorder().address, f"uwsgi_param BIG {'x' * 4000};", *[f"uwsgi_param B{n} $uri;" for n in range(20)])
    proxy.expected_alerts.append("uwsgi request is too big")
    assert proxy.get("/" + "y" * 4000).status == 500
    proxy.logged("uwsgi request is too big: ")


# What is answered.


def respond(apps, recorder, answer: bytes, *more: str, method: str = "GET") -> Response:
    """The client's view of this answer of a uwsgi server."""
    return apps(recorder(answer).address, *more).get("/", method=method)


@pytest.mark.parametrize(
    "head, status",
    [
        ("HTTP/1.1 201 Made\r\n", "201 Made"),
        ("HTTP/1.0 200 OK\r\n", "200 OK"),
        ("Status: 404 Gone Fishing\r\n", "404 Gone Fishing"),
        pytest.param("Status: 404\r\n", "404 Not Found", marks=differs("older ones send no phrase")),
        ("HTTP/1.1 200 OK\r\nStatus: 500 Oops\r\n", "200 OK"),
        pytest.param("Status: 200OK\r\n", "200 OK", marks=differs("no status line: HTTP/1.1 200OK")),
        ("Location: http://elsewhere/\r\n", "302 Moved Temporarily"),
        ("Content-Type: text/html\r\n", "200 OK"),
        ("", "200 OK"),
    ],
)
def test_forms_of_the_status(apps, recorder, head, status):
    response = respond(apps, recorder, head.encode() + b"\r\nbody")
    assert response.start == f"HTTP/1.1 {status}"
    assert response.body == b"body"


@pytest.mark.parametrize(
    "head, text",
    [
        ("Status: abc\r\n", 'upstream sent invalid status "abc"'),
        ("Status: 4\r\n", 'upstream sent invalid status "4"'),
        pytest.param("Status: 200 O\x01K\r\n", 'upstream sent invalid status "200 O', marks=differs("it is passed on")),
        pytest.param("Status: 2000 OK\r\n", 'upstream sent invalid status "2000 OK"', marks=differs("another status for the client than for the log")),
        ("hello world\r\n", "upstream sent invalid header"),
        pytest.param(
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n",
            'upstream sent duplicate header line: "Content-Length: 4", previous value: "Content-Length: 4"',
            marks=differs("before 1.23.0 the last one won"),
        ),
    ],
)
def test_a_bad_head_is_a_502(apps, recorder, head, text):
    proxy = apps(recorder(head.encode() + b"\r\nbody").address)
    assert proxy.get("/").status == 502
    proxy.logged(text)


def test_headers_of_the_application_pass(apps, recorder):
    answer = (
        b"HTTP/1.1 200 OK\r\nServer: app/1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nX-Pad: p\r\n"
        b"X-Accel-Buffering: no\r\nX-Accel-Expires: 0\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"X-MiXeD: Case\r\nContent-Length: 2\r\n\r\nok"
    )
    response = respond(apps, recorder, answer)
    assert response.all("Server") == ["app/1"]
    assert response.all("Date") == ["Thu, 01 Jan 1970 00:00:00 GMT"]
    assert response.all("Set-Cookie") == ["a=1", "b=2"]
    assert ("X-Pad", "p") in response.fields
    assert ("X-MiXeD", "Case") in response.fields
    assert not [name for name in response.names() if name.startswith("X-Accel")]


@pytest.mark.parametrize("method, answer, body", [
    ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    ("GET", b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b""),
    ("HEAD", b"HTTP/1.1 200 OK\r\n\r\nabc", b""),
])  # fmt: skip
def test_ends_of_the_body(apps, recorder, method, answer, body):
    assert respond(apps, recorder, answer, method=method).body == body


def test_surplus_bytes_are_not_passed_on(apps, recorder):
    proxy = apps(recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more").address)
    assert proxy.get("/").body == b"ok"
    proxy.logged('upstream sent more data than specified in "Content-Length" header')


def test_a_short_body_cuts_the_client_off(apps, recorder):
    proxy = apps(recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort").address)
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_head().get("Content-Length") == "10"
    assert wire.read_to_end() == b"short"
    proxy.logged("upstream prematurely closed connection")


@differs("nginx passes the inner framing as data (uwsgi.md 9.2)")
def test_a_chunked_response_is_decoded(apps, recorder):
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    assert respond(apps, recorder, answer).body == b"hello world"


@pytest.mark.wants("uwsgi_decode_chunked")
def test_chunked_responses_are_left_alone_on_demand(apps, recorder):
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    assert respond(apps, recorder, answer, "uwsgi_decode_chunked off;").body == b"5\r\nhello\r\n0\r\n\r\n"


def test_x_accel_redirect_goes_to_another_location(serve, recorder):
    server = recorder(b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /inside?x=1\r\nSet-Cookie: a=1\r\n\r\n")
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location / { uwsgi_pass @upstream@; }
            location /inside { internal; return 200 "$uri $args"; }
        }
        """,
        upstream=server.address,
    )
    assert proxy.get("/").body == b"/inside x=1"
    assert proxy.get("/inside").status == 404


@pytest.mark.parametrize("url", ["uwsgi://@upstream@", "UWSGI://@upstream@", "uWsgi://$up"])
def test_a_scheme_in_any_case(serve, recorder, url):
    server = recorder()
    location = f"location / {{ set $up @upstream@; uwsgi_pass {url}; }}"
    proxy = serve(f"server {{ listen 127.0.0.1:@port@; {location} }}", upstream=server.address)
    assert proxy.get("/").body == b"ok"


# Connections.


def test_each_request_has_a_connection_of_its_own(serve, recorder):
    server = recorder()
    proxy = serve(
        """
        upstream app { server @upstream@; keepalive 8; }
        server { listen 127.0.0.1:@port@; location / { uwsgi_pass app; } }
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    for _ in range(3):
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b"ok"
    assert len(server.server.connections) == 3


@pytest.mark.ringx_only("nginx leaves a port waiting on one of the sides")
@pytest.mark.parametrize("body, by_reset", [("", True), ("body", False)])
def test_a_finished_exchange_over_tcp_ends_by_a_reset(apps, upstream, body, by_reset):
    """Both sides have all there was; of a body, some may still be on its way."""
    ended = []

    def serve(wire):
        read_body(wire, read_packet(wire))
        wire.send(ANSWER)
        wire.read_to_end()
        ended.append(wire.was_reset)

    server = upstream(serve)
    proxy = apps(server.address)
    assert proxy.ask(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}").body == b"ok"
    assert eventually(lambda: ended, "the connection has ended") == [by_reset]


def test_a_server_that_writes_in_two_pieces_is_not_kept_waiting(apps, upstream):
    """Its kernel holds the second until the first has been acknowledged (Nagle)."""
    times = 20

    def serve(wire):
        read_packet(wire)
        wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        wire.send(b"ok")
        # Closing would send what is held.
        wire.read_to_end()

    proxy = apps(upstream(serve).address)
    began = time.monotonic()
    with proxy.connect() as wire:
        for _ in range(times):
            wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_response().body == b"ok"
    # A late acknowledgement takes 40 ms.
    assert time.monotonic() - began < times * 0.030


@pytest.mark.parametrize(
    "end, text",
    [
        (close, "upstream prematurely closed connection while reading response header from upstream"),
        (reset, "recv() failed (104: Connection reset by peer) while reading response header from upstream"),
    ],
)
def test_a_server_that_hangs_up_is_a_502(apps, upstream, end, text):
    def serve(wire):
        read_packet(wire)
        end(wire)

    proxy = apps(upstream(serve).address)
    assert proxy.get("/").status == 502
    proxy.logged(text)


def test_a_silent_server_is_a_504(apps, upstream):
    server = upstream(lambda wire: wire.read_to_end())
    proxy = apps(server.address, "uwsgi_read_timeout 300ms;")
    assert proxy.get("/").status == 504
    line = proxy.logged("upstream timed out (110: Connection timed out) while reading response header from upstream")
    assert f'upstream: "uwsgi://{server.address}"' in line


def test_a_missing_socket_is_a_502(apps, tmp_path):
    proxy = apps(f"unix:{tmp_path}/none.sock")
    assert proxy.get("/").status == 502
    line = proxy.logged(f"connect() to unix:{tmp_path}/none.sock failed (2: No such file or directory)")
    assert "[crit]" in line
    assert f'upstream: "uwsgi://unix:{tmp_path}/none.sock:"' in line


@differs("an early answer to a large upload is lost to the reset (uwsgi.md 9.4)")
def test_an_early_refusal_of_a_large_upload_reaches_the_client(apps, upstream):
    """Answer, then close with the body unread: over TCP that is a reset behind the response."""

    def serve(wire):
        read_packet(wire)
        wire.send(b"HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\n\r\nless")

    proxy = apps(upstream(serve).address, "client_max_body_size 0;")
    answers = [proxy.get("/", method="POST", body=bytes(3 << 20)) for _ in range(20)]
    assert {(answer.start, answer.body) for answer in answers} == {("HTTP/1.1 413 Too Much", b"less")}
