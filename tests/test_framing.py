"""Where a message ends, both sides must agree: what hostile clients and servers tried to make of it."""

import socket
import threading
import time

import pytest

from harness.proxy import eventually
from harness.upstream import answering, head, request, response, script, send, to_end, until
from harness.wire import WireError

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only


def post(target: str, body: bytes, *fields: str) -> bytes:
    lines = [f"POST {target} HTTP/1.1", "Host: a", f"Content-Length: {len(body)}", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + body


CHUNKED = "POST {} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


# The client's body, and what comes behind it.

BAD_HEADER = b"HTTP/1.1 200 OK\r\nBad header: x\r\n\r\n"
TOO_BIG = b"HTTP/1.1 302 Found\r\nLocation: /" + b"a" * 5000 + b"\r\n\r\n"
OLD_HINT = b"HTTP/1.0 103 Early Hints\r\nLink: a\r\n\r\n"


@pytest.mark.parametrize("coding", ["length", "chunks", "one chunk"])
@pytest.mark.parametrize(
    "refused",
    [
        pytest.param(BAD_HEADER, id="an invalid line"),
        pytest.param(TOO_BIG, id="a head that is too big"),
        pytest.param(OLD_HINT, id="hints of HTTP 1.0", marks=ringx_only("early hints are of nginx 1.29")),
    ],
)
def test_a_body_is_not_read_as_requests_when_the_server_breaks_off(serve, upstream, refused, coding):
    """The server stops reading and answers what is refused, while a piece of the body is on its way to it."""
    go, done = threading.Event(), threading.Event()
    server = upstream(script(head, until(go), send(refused), until(done)))
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    proxy = serve(
        """
        client_max_body_size 0;
        lingering_timeout 300ms;
        server {
            listen 127.0.0.1:@port@;
            location / { proxy_http_version 1.1; proxy_request_buffering off; proxy_pass http://@upstream@; }
            location /smuggled { return 200 SMUGGLED; }
        }
        """,
        upstream=server.address,
    )
    unit = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    if coding == "one chunk":
        unit = b"\r\n0\r\n\r\n" + unit
    body = unit * 200_000
    wire = proxy.connect()
    if coding == "length":
        data = post("/", body)
    else:
        size = len(body) if coding == "one chunk" else 60_000
        pieces = (body[at : at + size] for at in range(0, len(body), size))
        data = CHUNKED.format("/").encode() + b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"
    sender = threading.Thread(target=send_what_is_taken, args=(wire, data))
    sender.start()
    # Every socket on the way is full.
    deadline = time.monotonic() + 10
    while not wire.is_held_up(0.3):
        assert time.monotonic() < deadline
    go.set()
    answer = wire.read_response()
    assert answer.status == 502
    rest = wire.read_to_end()
    done.set()
    sender.join(10)
    assert rest == b"" and b"SMUGGLED" not in bytes(wire.transcript)
    assert proxy.get("/smuggled").body == b"SMUGGLED"
    lines = {line.split('"')[1] for line in proxy.accessed(2)}
    assert lines == {"POST / HTTP/1.1", "GET /smuggled HTTP/1.1"}


@ringx_only("proxy_socket_sndbuf is of nginx 1.29")
def test_the_last_piece_of_a_body_is_not_counted_twice(serve, upstream):
    """As above, with less left of some of the bodies than the piece that is on its way."""
    go, done = threading.Event(), threading.Event()
    server = upstream(script(head, until(go), send(BAD_HEADER), until(done)))
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    proxy = serve(
        """
        client_max_body_size 0;
        proxy_socket_sndbuf 4k;
        server {
            listen 127.0.0.1:@port@;
            location / { proxy_http_version 1.1; proxy_request_buffering off; proxy_pass http://@upstream@; }
            location /next { return 200 next; }
        }
        """,
        upstream=server.address,
    )
    wires = []
    for length in range(4000, 200_000, 4000):
        wire = proxy.connect()
        wire.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")
        server.connection(len(wires) + 1)
        send_what_is_taken(wire, b"x" * length)
        wires.append(wire)
    go.set()
    kept = 0
    for wire in wires:
        assert wire.read_response().status == 502
        send_what_is_taken(wire, b"GET /next HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        rest = wire.read_to_end()
        kept += rest.endswith(b"next")
        assert rest == b"" or rest.startswith(b"HTTP/1.1 200 ")
    done.set()
    assert 0 < kept < len(wires)
    assert "panic" not in proxy.error_log()


def send_what_is_taken(wire, data: bytes) -> None:
    try:
        wire.send(data)
    except (OSError, WireError):
        pass


# What is told of a body, and what comes of it.

PAGES = """
    upstream group { server @upstream@; keepalive 4; }
    server {
        listen 127.0.0.1:@port@;
        location /old { return 302 /new; error_page 302 = @page; }
        location /text { return 200 text; error_page 412 = @page; }
        location /file { root html; error_page 412 = @page; }
        location /directory { root html; error_page 301 = @page; }
        location @page { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://group; }
        location / { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://group; }
    }
"""
UNMET = 'If-Match: "x"'


THROWN_AWAY = differs("the page's server is promised a body that has been thrown away")


@pytest.mark.parametrize("part", [0, 3, 10], ids=["behind its head", "in two parts", "with its head"])
@pytest.mark.parametrize(
    "method, target, field",
    [
        pytest.param("POST", "/old", "X: y", marks=THROWN_AWAY),
        pytest.param("POST", "/text", UNMET, marks=THROWN_AWAY),
        pytest.param("GET", "/file", UNMET, marks=THROWN_AWAY),
        ("GET", "/directory", "X: y"),
    ],
)
def test_the_server_that_makes_a_page_gets_the_body(serve, upstream, method, target, field, part):
    server = upstream(answering(lambda asked: response(asked.target.encode() + asked.body)))
    files = {"html/file": "file", "html/directory/x": "x"}
    proxy = serve(PAGES, upstream=server.address)
    for name, content in files.items():
        path = proxy.prefix / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    wire = proxy.connect()
    data = f"{method} {target} HTTP/1.1\r\nHost: a\r\n{field}\r\nContent-Length: 10\r\n\r\n"
    wire.send(data.encode() + b"0123456789"[:part])
    if part < 10:
        eventually(wire.is_taken, "the first part is read")
        wire.send(b"0123456789"[part:])
    assert wire.read_response().body == target.encode() + b"0123456789"
    wire.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"/next"
    assert [asked.target for asked in server.requests] == [target, "/next"]
    assert len(server.connections) == 1


@differs("the page's server is sent what is left of the body")
def test_a_body_with_a_gap_goes_nowhere(serve, upstream):
    """The piece that no file could be made for is lost: the page's server must not get the others as the body."""
    server = upstream(answering(lambda asked: response(asked.target.encode() + asked.body)))
    proxy = serve(
        """
        client_body_temp_path temp;
        upstream group { server @upstream@; keepalive 4; }
        server {
            listen 127.0.0.1:@port@;
            location / { client_body_buffer_size 1k; proxy_pass http://group; error_page 500 = @page; }
            location @page { client_body_buffer_size 64k; proxy_pass http://group; }
        }
        """,
        upstream=server.address,
    )
    (proxy.prefix / "temp").rmdir()
    (proxy.prefix / "temp").write_text("no directory")
    proxy.expected_alerts.append("temp")
    wire = proxy.connect()
    wire.send(post("/gap", bytes(6000))[:-3000])
    answer = wire.read_response()
    assert answer.body == b"/gap"
    wire.expect_end()
    assert [asked.get("Content-Length") for asked in server.requests] == [None]
    assert [asked.body for asked in server.requests] == [b""]


@pytest.mark.parametrize(
    "body",
    [b"5\r\nhello\r\n5;\nXX\r\n0\r\n\r\n", b"5\r\nhello\r\nxyz", b"5\r\nhelloo\r\n0\r\n\r\n"],
    ids=["a bare LF", "no size", "too long a chunk"],
)
@pytest.mark.parametrize("buffering", ["on", "off"])
@differs("what is left of an invalid body is read on by the page's location")
def test_an_invalid_body_is_not_read_again(serve, upstream, buffering, body):
    server = upstream(answering(lambda asked: response(asked.target.encode() + asked.body)))
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            proxy_http_version 1.1;
            proxy_request_buffering {buffering};
            error_page 400 = @page;
            location / {{ proxy_pass http://@upstream@; }}
            location @page {{ proxy_pass http://@upstream@; }}
        }}
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    wire.send(CHUNKED.format("/").encode() + body)
    answer = wire.read_response()
    wire.expect_end()
    page = server.requests[-1]
    assert (answer.body, page.body) == (b"/", b"")
    assert page.get("Content-Length") is None and page.get("Transfer-Encoding") is None
    assert proxy.error_log().count("client sent invalid chunked body") == 1


@differs("it sends the next request on the same connection")
@pytest.mark.parametrize(
    "directives, data",
    [
        ('proxy_set_header Transfer-Encoding "";', [CHUNKED.format("/").encode(), b"3\r\nabc\r\n0\r\n\r\n"]),
        ("proxy_set_header Transfer-Encoding gzip;", [CHUNKED.format("/").encode(), b"3\r\nabc\r\n0\r\n\r\n"]),
        ('proxy_set_header Content-Length "";', [post("/", b"abc")]),
        ("proxy_set_header Content-Length $arg_n;", [post("/?n=2", b"abc")]),
        ("proxy_set_header Content-Length $http_content_length; proxy_pass_request_body off;", [post("/", b"abc")]),
        ('proxy_set_header Content-Length 4; proxy_set_body "$request_method";', [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]),
        ("proxy_set_header Content-Length 3;", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]),
    ],
)
def test_a_connection_on_which_the_head_was_untrue_is_not_used_again(serve, upstream, directives, data):
    server = upstream(script(head, send(response(b"first")), to_end), answering(response(b"second")))
    proxy = serve_with(serve, directives, server)
    with proxy.connect() as wire:
        for number, piece in enumerate(data):
            if number:
                # Only what comes behind its head is streamed.
                server.connection(1)
            wire.send(piece)
        assert wire.read_response().body == b"first"
    assert proxy.get("/second").body == b"second"
    assert len(server.connections) == 2


@pytest.mark.parametrize(
    "directives, data",
    [
        ("", post("/", b"abc")),
        ("", CHUNKED.format("/").encode() + b"3\r\nabc\r\n0\r\n\r\n"),
        ("proxy_set_header Content-Length $http_content_length;", post("/", b"abc")),
        ('proxy_set_header Content-Length ""; proxy_pass_request_body off;', post("/", b"abc")),
        ('proxy_set_header Content-Length 3; proxy_set_body "$request_method";', b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    ],
)
def test_a_connection_on_which_the_head_was_true_is_used_again(serve, upstream, directives, data):
    server = upstream(answering(response(b"answer")))
    proxy = serve_with(serve, directives, server)
    for each in (data, b"GET /second HTTP/1.1\r\nHost: a\r\n\r\n"):
        with proxy.connect() as wire:
            wire.send(each)
            assert wire.read_response().body == b"answer"
    assert len(server.connections) == 1


def serve_with(serve, directives: str, server):
    return serve(
        f"""
        upstream group {{ server @upstream@; keepalive 4; }}
        server {{
            listen 127.0.0.1:@port@;
            location / {{
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_request_buffering off;
                {directives}
                proxy_pass http://group;
            }}
            location /second {{ proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://group; }}
        }}
        """,
        upstream=server.address,
    )


# Peers that never come to an end.


@pytest.mark.parametrize("pause", [0.05, 0], ids=["slowly", "at full speed"])
@pytest.mark.parametrize("target", ["/text", "/none"])
def test_a_body_is_not_thrown_away_for_ever(shared, target, pause):
    proxy = shared("lingering_time 1s; lingering_timeout 500ms; location /text { return 200 text; }")
    with proxy.connect() as wire:
        wire.send(CHUNKED.format(target))
        began = time.monotonic()
        with pytest.raises((OSError, WireError)):
            while time.monotonic() < began + 8:
                wire.send(b"1\r\nx\r\n" if pause else b"ffff\r\n" + bytes(0xFFFF) + b"\r\n")
                time.sleep(pause)
        assert time.monotonic() - began < 6


HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"


@ringx_only("early hints are of nginx 1.29")
@pytest.mark.parametrize("hints", ["off", "on"])
@pytest.mark.parametrize("request_", ["a GET", "an upload", "a streamed upload"])
def test_early_hints_give_a_server_no_more_time(serve, upstream, request_, hints):
    """It says one after the other, and neither reads the body nor answers."""
    gone = threading.Event()

    def hint(wire):
        wire.read_until(b"\r\n\r\n")
        while not gone.wait(0.05):
            wire.send(HINT)

    server = upstream(hint)
    server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    proxy = serve(
        f"""
        client_max_body_size 0;
        proxy_read_timeout 1s;
        proxy_send_timeout 1s;
        early_hints {"1" if hints == "on" else "0"};
        server {{
            listen 127.0.0.1:@port@;
            location / {{
                proxy_request_buffering {"off" if "streamed" in request_ else "on"};
                proxy_pass http://@upstream@;
            }}
        }}
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    data = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" if request_ == "a GET" else post("/", bytes(16 << 20))
    sender = threading.Thread(target=send_what_is_taken, args=(wire, data))
    began = time.monotonic()
    sender.start()
    answer = wire.read_response()
    while answer.status == 103:
        answer = wire.read_response()
    took = time.monotonic() - began
    gone.set()
    wire.close()
    sender.join(10)
    assert answer.status == 504 and took < 5


@ringx_only("early hints are of nginx 1.29")
@pytest.mark.parametrize("hints", ["off", "on"])
@pytest.mark.parametrize("count, status", [(100, 200), (101, 502)])
def test_early_hints_are_counted(serve, upstream, hints, count, status):
    server = upstream(answering(HINT * count + response(b"ok")))
    proxy = serve(
        f"""
        early_hints {"1" if hints == "on" else "0"};
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://@upstream@; }} }}
        """,
        upstream=server.address,
    )
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = wire.read_response()
        while answer.status == 103:
            answer = wire.read_response()
        assert answer.status == status
    if status == 502:
        proxy.logged("upstream sent too many early hints while reading response header from upstream")


# Trailers of a request.


@pytest.mark.parametrize("handler", ["proxy_pass http://@upstream@;", "return 200 text;"], ids=["proxied", "discarded"])
@pytest.mark.parametrize(
    "trailers, status",
    [
        pytest.param(trailers, status, marks=[differs("it reads over whatever trailers hold")] if status == 400 else [])
        for trailers, status in [
            (b"", 200),
            (b"T: x\r\n", 200),
            (b"T:\r\nT\r\nT_(): x\x01\xe9\t\r\n", 200),
            (b"T : x\r\n", 400),
            (b"T: x\r\n folded\r\n", 400),
            (b"\x00\x01: z\r\n", 400),
            (b"T: a\x00b\r\n", 400),
            (b": x\r\n", 400),
        ]
    ],
)
def test_trailers_are_header_lines(serve, upstream, handler, trailers, status):
    server = upstream(answering(response(b"ok")))
    proxy = serve(f"server {{ listen 127.0.0.1:@port@; location / {{ {handler} }} }}", upstream=server.address)
    with proxy.connect() as wire:
        wire.send(CHUNKED.format("/").encode() + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n")
        wire.send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().status == status
        if status == 200:
            assert wire.read_response().status == 200
        else:
            wire.expect_end()
            proxy.logged("client sent invalid chunked body")


# A response that tells of a body it does not have.


@differs("it passes the length on")
def test_a_204_tells_of_no_length(serve, upstream):
    server = upstream(answering(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nX: y\r\n\r\n"))
    proxy = serve("server { listen 127.0.0.1:@port@; location / { proxy_pass http://@upstream@; } }", upstream=server.address)
    with proxy.connect() as wire:
        for _ in range(2):
            wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = wire.read_head()
            assert (answer.start, answer.get("X")) == ("HTTP/1.1 204 No Content", "y")
            assert answer.get("Content-Length") is None and answer.get("Transfer-Encoding") is None


@ringx_only("the older one waits for more")
@pytest.mark.parametrize("first", [b"HTTP/1.1 200 O\rK", b"HTTP/1.1 200 \0", b"HTTP/1.1 20 OK", b"HTTP/2 200"])
def test_a_doubtful_status_line_lets_nothing_through(serve, upstream, first):
    lines = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nX-Accel-Redirect: /x"
    server = upstream(answering(first + b"\r\n" + lines + b"\r\n\r\nhello"))
    proxy = serve("server { listen 127.0.0.1:@port@; location / { proxy_pass http://@upstream@; } }", upstream=server.address)
    assert proxy.get("/").status == 502
    line = proxy.logged("upstream sent no valid HTTP/1.0 header")
    assert "[error]" in line and "while reading response header from upstream" in line


# What nobody waits for.


def test_a_page_of_a_server_gets_the_body_that_waits_for_100(serve, upstream):
    up = upstream(answering(lambda asked: response(asked.body)))
    proxy = serve(
        """
        client_body_timeout 4s;
        server {
            listen 127.0.0.1:@port@;
            error_page 403 = @up;
            location / { return 403; }
            location @up { proxy_pass http://@upstream@; }
        }
        """,
        upstream=up.address,
    )
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
    assert wire.read_head().start == "HTTP/1.1 100 Continue"
    wire.send(b"hello")
    assert wire.read_response().body == b"hello"


def test_a_body_that_goes_nowhere_is_not_waited_for(serve, upstream):
    """To a HEAD that was made a GET the server gives a body without end."""
    done = threading.Event()
    start = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome"
    up = upstream(script(head, send(start), until(done)))
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location / { proxy_method GET; proxy_pass http://@upstream@; }
            location /next { return 200 next; }
        }
        """,
        upstream=up.address,
    )
    wire = proxy.connect()
    wire.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response("HEAD").status == 200
    wire.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"next"
    done.set()
