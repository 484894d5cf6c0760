"""proxy_pass on the wire: what is sent upstream, what comes back, connections, failures, buffering."""

import functools
import socket
import threading
from email.utils import parsedate_to_datetime

import pytest

from harness.ports import free_port
from harness.proxied import MODERN, proxied
from harness.proxy import eventually
from harness.upstream import answering, chunked, close, head, request, reset, response, script, send, to_end, until
from harness.wire import Closed

differs = pytest.mark.differs_in_nginx
OK = response(b"ok")


@pytest.fixture
def through(serve, upstream):
    """`through(handler, …, location=, http=)`: the proxy in front of a scripted server."""
    log = "$status $upstream_status $upstream_addr $request_completion"
    return functools.partial(proxied, serve, upstream, log=log)


# The request sent upstream.


def test_the_head_byte_for_byte(through):
    proxy, server = through(answering(OK))
    proxy.ask(
        b"GET /a%20b/../c//d?x=%41&y HTTP/1.1\r\nHost: Example.com:99\r\nUser-Agent: t/1\r\nx-mIxEd:  two  words \r\n"
        b"Connection: close, X-Listed\r\nX-Listed: stays\r\nKeep-Alive: 5\r\n"
        b"TE: trailers\r\nUpgrade: h2c\r\nX-Twice: 1\r\nX-Twice: 2\r\nTrailer: t\r\nProxy-Authorization: p\r\n"
        b"X-Empty:\r\nX_Under: dropped\r\n\r\n"
    )
    expected = (
        f"GET /a%20b/../c//d?x=%41&y HTTP/1.1\r\nHost: {server.address}\r\nUser-Agent: t/1\r\nx-mIxEd: two  words\r\n"
        "X-Listed: stays\r\nX-Twice: 1\r\nX-Twice: 2\r\nTrailer: t\r\nProxy-Authorization: p\r\nX-Empty: \r\n\r\n"
    ).encode()
    assert server.request().raw == expected


@differs("older ones pass it on")
def test_proxy_connection_is_dropped(through):
    proxy, server = through(answering(OK))
    proxy.get("/", "Proxy-Connection: keep-alive")
    assert server.request().get("Proxy-Connection") is None


@differs("before 1.29.7 the default is HTTP/1.0 with Connection: close")
def test_the_default_head(through):
    proxy, server = through(answering(OK), modern=False)
    proxy.get("/x")
    assert server.request().raw == f"GET /x HTTP/1.1\r\nHost: {server.address}\r\n\r\n".encode()


@differs("older ones send Host after the configured lines")
def test_configured_headers_come_in_order_behind_host(through):
    proxy, server = through(
        answering(OK),
        location="""
            proxy_set_header X-First $request_method;
            proxy_set_header Host "$host:8443";
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Gone "";
            proxy_set_header X-Twice one;
            proxy_set_header X-Twice two;
        """,
    )
    proxy.get("/", "X-Forwarded-For: 10.0.0.1", "X-Gone: here", "x-twice: mine", "Accept: */*", host="shop.example")
    lines = [line for line in server.request().lines() if line != "Connection: close"]
    assert lines == [
        "GET / HTTP/1.1",
        "Host: shop.example:8443",
        "X-First: GET",
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-For: 10.0.0.1, 127.0.0.1",
        "X-Twice: one",
        "X-Twice: two",
        "Accept: */*",
    ]


@pytest.mark.parametrize(
    "location, pass_uri, target, sent",
    [
        ("/", "", "/a%2Fb/./c?q=1", "/a%2Fb/./c?q=1"),
        ("/", "", "//x/..//y", "//x/..//y"),
        ("/a/", "/b/", "/a/x%20y%2Fz?k", "/b/x%20y/z?k"),
        ("/a/", "/", "/a/b?", "/b"),
        ("/a", "/b", "/abc", "/bbc"),
        ("/a/", "/b?fixed=", "/a/c", "/b?fixed=c"),
        ("/a/", "/", "/a/%C3%A4", "/%C3%A4"),
        ("~ ^/(x+)", "", "/xx%2e", "/xx%2e"),
        ("/v/", "/as/is?$arg_q", "/v/zzz?q=7", "/as/is?7"),
    ],
)
def test_the_uri_sent(serve, upstream, location, pass_uri, target, sent):
    server = upstream(answering(OK))
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            location {location} {{ {MODERN} proxy_pass http://@upstream@{pass_uri}; }}
        }}
        """,
        upstream=server.address,
    )
    assert proxy.get(target).status == 200
    assert server.request().target == sent


def test_the_uri_after_a_rewrite_is_escaped_anew(through):
    proxy, server = through(answering(OK), location="rewrite ^/old(.*)$ /new$1 break;")
    proxy.get("/old/%D0%B0%20b?q=%20")
    assert server.request().target == "/new/%D0%B0%20b?q=%20"


def test_a_name_without_its_slash_is_sent_home(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; location /app/ { proxy_pass http://127.0.0.1:1/; } }")
    answer = proxy.get("/app?x=1", host="example.com")
    assert answer.status == 301
    assert answer.get("Location") == f"http://example.com:{proxy.port}/app/?x=1"


def test_method_and_body_can_be_set(through):
    proxy, server = through(answering(OK), location='proxy_method PUT; proxy_set_body "from $remote_addr";')
    proxy.get("/")
    sent = server.request()
    assert (sent.method, sent.body, sent.get("Content-Length")) == ("PUT", b"from 127.0.0.1", "14")


def test_the_body_may_be_kept_back(through):
    location = 'proxy_pass_request_body off; proxy_set_header Content-Length "";' + MODERN
    proxy, server = through(answering(OK), location=location, modern=False)
    proxy.get("/", method="POST", body=b"secret")
    assert server.request().get("Content-Length") is None


@pytest.mark.parametrize("length, sent", [(None, None), (0, "0"), (5, "5")])
def test_the_length_of_a_request_body(through, length, sent):
    proxy, server = through(answering(OK))
    proxy.get("/", method="POST", body=None if length is None else b"x" * length)
    got = server.request()
    assert (got.get("Content-Length"), got.get("Transfer-Encoding")) == (sent, None)
    assert got.body == b"x" * (length or 0)


def test_a_chunked_request_is_buffered_into_a_length(through):
    proxy, server = through(answering(OK))
    proxy.ask(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(b"abc", b"de", end=b"0\r\nX: y\r\n\r\n")
    )
    got = server.request()
    assert (got.framing, got.get("Content-Length"), got.body) == ("length", "5", b"abcde")


def test_a_chunked_request_is_streamed_without_buffering(through):
    proxy, server = through(answering(OK), location="proxy_request_buffering off;")
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"first", end=b""))
    arrived = server.connection().transcript
    eventually(lambda: b"first" in arrived, "the first chunk is upstream before the second is sent")
    wire.send(chunked(b"second"))
    assert wire.read_response().body == b"ok"
    got = server.request()
    assert (got.framing, got.body, got.get("Content-Length")) == ("chunked", b"firstsecond", None)


def test_a_buffered_body_is_read_before_the_server_is_asked(through):
    proxy, server = through(answering(OK))
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nfir")
    wire.expect_silence(0.2)
    assert not server.connections
    wire.send(b"st!")
    assert wire.read_response().body == b"ok"
    assert server.request().body == b"first!"


def test_a_body_with_length_is_streamed_without_buffering(through):
    proxy, server = through(answering(OK), location="proxy_request_buffering off;")
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nfir")
    arrived = server.connection().transcript
    eventually(lambda: arrived.endswith(b"\r\n\r\nfir"), "the first half is upstream before the second is sent")
    wire.send(b"st!")
    assert wire.read_response().body == b"ok"
    assert server.request().body == b"first!"


def test_a_large_body_goes_through_a_file(through):
    body = bytes(range(256)) * 1000
    proxy, server = through(answering(OK), location="client_body_buffer_size 16k;")
    assert proxy.get("/", method="POST", body=body).body == b"ok"
    assert server.request().body == body
    proxy.logged("a client request body is buffered to a temporary file")


def test_expect_continue_is_answered_by_the_proxy(through):
    proxy, server = through(answering(OK))
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"body")
    assert wire.read_response().body == b"ok"
    assert server.request().get("Expect") is None


# The response.


def answer_of(through, data: bytes, *, location="", target="/", method="GET"):
    """(what the client got, proxy) for this answer, after which the server closes."""
    proxy, _ = through(script(head, send(data)), location=location)
    return proxy.get(target, method=method), proxy


def test_the_response_head_in_nginx_order(through):
    data = (
        b"HTTP/1.1 200 Fine\r\nX-Pad: gone\r\nx-OwN: 1\r\nServer: other\r\nDate: never\r\nConnection: keep-alive\r\n"
        b"Keep-Alive: 9\r\nContent-Length: 2\r\nSet-Cookie: a\r\nContent-Type: text/x\r\nSet-Cookie: b\r\n"
        b"X-Accel-Expires: 1\r\nLast-Modified: Thu, 01 Jan 1970 00:00:01 GMT\r\n\r\nok"
    )
    answer, proxy = answer_of(through, data)
    assert answer.start == "HTTP/1.1 200 Fine"
    assert answer.fields[:1] + answer.fields[2:] == [
        ("Server", proxy.binary.product),
        ("Content-Type", "text/x"),
        ("Content-Length", "2"),
        ("Connection", "close"),
        ("x-OwN", "1"),
        ("Set-Cookie", "a"),
        ("Set-Cookie", "b"),
        ("Last-Modified", "Thu, 01 Jan 1970 00:00:01 GMT"),
    ]
    name, date = answer.fields[1]
    assert (name, parsedate_to_datetime(date).tzname()) == ("Date", "UTC")


@pytest.mark.parametrize(
    "line, start",
    [
        ("HTTP/1.1 200 ", "HTTP/1.1 200 "),
        ("HTTP/1.0 200 OK", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 299 My  Own: text", "HTTP/1.1 299 My  Own: text"),
        ("HTTP/1.1 599 x", "HTTP/1.1 599 x"),
    ],
)
def test_the_status_line_is_passed_on(through, line, start):
    answer, _ = answer_of(through, line.encode() + b"\r\nContent-Length: 0\r\n\r\n")
    assert answer.start == start


def test_a_response_until_close_is_chunked_for_the_client(through):
    answer, _ = answer_of(through, b"HTTP/1.1 200 OK\r\n\r\nuntil the end")
    assert (answer.framing, answer.body) == ("chunked", b"until the end")


def test_a_response_until_close_keeps_the_client_connection(through):
    proxy, _ = through(script(head, send(b"HTTP/1.1 200 OK\r\n\r\nend")))
    wire = proxy.connect()
    for _ in range(2):
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b"end"


def test_a_chunked_response_is_chunked_for_the_client(through):
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunked(b"one", b"two" * 1000)
    answer, _ = answer_of(through, data)
    assert (answer.framing, answer.body) == ("chunked", b"one" + b"two" * 1000)
    assert answer.all("Transfer-Encoding") == ["chunked"]


def test_chunk_extensions_and_trailers_end_at_the_proxy(through):
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0003;a=b\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
    answer, _ = answer_of(through, data)
    assert (answer.body, answer.trailers) == (b"abc", [])


def test_a_1_0_client_gets_the_chunked_body_raw_and_close(through):
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"raw")
    proxy, _ = through(script(head, send(data), to_end))
    answer = proxy.ask("GET / HTTP/1.0\r\n\r\n")
    assert answer.start == "HTTP/1.1 200 OK"
    assert (answer.framing, answer.body, answer.get("Connection")) == ("close", b"raw", "close")


@pytest.mark.parametrize(
    "data", [b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\n\r\n"]
)
def test_a_response_without_body_leaves_the_connection_usable(through, data):
    method = "HEAD" if b"200" in data else "GET"
    proxy, _ = through(answering(data))
    wire = proxy.connect()
    for _ in range(2):
        wire.send(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = wire.read_response(method)
    assert answer.get("Content-Length") == ("7" if method == "HEAD" else None)
    assert answer.get("Connection") == "keep-alive"


def test_a_204_has_no_body(through):
    answer, _ = answer_of(through, b"HTTP/1.1 204 No Content\r\n\r\n")
    assert (answer.status, answer.body, answer.get("Transfer-Encoding")) == (204, b"", None)


def test_surplus_bytes_are_not_passed_on(through):
    answer, proxy = answer_of(through, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more")
    assert answer.body == b"ok"
    proxy.logged('upstream sent more data than specified in "Content-Length" header')


def test_a_short_body_cuts_the_client_off(through):
    proxy, _ = through(script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort")))
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_head()
    assert wire.read_to_end() == b"short"
    assert "upstream prematurely closed connection while reading upstream" in proxy.logged("prematurely")


def test_a_chunked_body_without_end_is_not_ended_for_the_client(through):
    proxy, _ = through(script(head, send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")))
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_head()
    with pytest.raises(Closed):
        wire.read_chunked()
    proxy.logged("upstream prematurely closed connection")


def test_a_broken_chunk_cuts_the_client_off(through):
    proxy, _ = through(script(head, send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), to_end))
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_to_end()
    proxy.logged("upstream sent invalid chunked response")


_CL_TE = 'upstream sent "Content-Length" and "Transfer-Encoding" headers at the same time'
BAD_HEADS = [
    ("HTTP/1.1 200 OK\r\nFoo\x01: 1\r\n", "upstream sent invalid header"),
    ("HTTP/1.1 200 OK\r\nX: a\0b\r\n", "upstream sent invalid header"),
    *(
        pytest.param("HTTP/1.1 200 OK\r\n" + lines, text, marks=differs("before 1.23.0 such framing was taken"))
        for lines, text in [
            ("Content-Length: -1\r\n", 'upstream sent invalid "Content-Length" header: "Content-Length: -1"'),
            ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", _CL_TE),
            ("Transfer-Encoding: chunked\r\nContent-Length: 2\r\n", _CL_TE),
            ("Transfer-Encoding: gzip, chunked\r\n", 'upstream sent unknown "Transfer-Encoding": "gzip, chunked"'),
            (
                "Content-Length: 2\r\nContent-Length: 2\r\n",
                'upstream sent duplicate header line: "Content-Length: 2", previous value: "Content-Length: 2"',
            ),
        ]
    ),
    ("HTTP/1.1 200 OK\r\nX-Long: " + "x" * 5000 + "\r\n", "upstream sent too big header"),
]


@pytest.mark.parametrize("head_, text", BAD_HEADS)
def test_a_bad_head_is_a_502(through, head_, text):
    answer, proxy = answer_of(through, head_.encode() + b"\r\nok")
    assert answer.status == 502
    assert "while reading response header from upstream" in proxy.logged(text)


def test_a_first_line_that_is_no_status_line_is_http_0_9(through):
    proxy, _ = through(script(head, send(b"just text\n")))
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert wire.read_to_end() == b"just text\n"
    proxy.logged("upstream sent no valid HTTP/1.0 header")


def test_hide_and_pass_header(through):
    data = b"HTTP/1.1 200 OK\r\nServer: inner\r\nX-Secret: s\r\nContent-Length: 0\r\n\r\n"
    answer, _ = answer_of(through, data, location="proxy_hide_header X-Secret; proxy_pass_header Server;")
    assert answer.all("Server") == ["inner"]
    assert answer.get("X-Secret") is None


def test_location_is_rewritten_by_proxy_redirect(serve, upstream):
    server = upstream(answering(lambda asked: response(b"", f"Location: {asked.get('X-To')}", status="302 Found")))
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location /a/ { proxy_pass http://@upstream@/b/; }
        }
        """,
        upstream=server.address,
    )

    def location(to):
        return proxy.get("/a/", f"X-To: {to}").get("Location")

    assert location(f"http://{server.address}/b/c?d") == f"http://example.com:{proxy.port}/a/c?d"
    assert location("http://elsewhere/b/") == "http://elsewhere/b/"


def test_x_accel_redirect(serve, upstream):
    inner = response(b"discarded", "X-Accel-Redirect: /files/a%20b?q=1", "Content-Type: text/x")
    server = upstream(answering(inner))
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location / { proxy_pass http://@upstream@; }
            location /files { internal; return 200 "$request_method $uri $args"; }
        }
        """,
        upstream=server.address,
    )
    answer = proxy.get("/", method="POST", body=b"")
    assert answer.body == b"GET /files/a b q=1"
    assert answer.get("X-Accel-Redirect") is None


def test_intercepted_errors(through):
    http_ = "proxy_intercept_errors on; error_page 404 =410 /plain;"
    proxy, _ = through(answering(lambda asked: response(b"inner", status=f"{asked.target[1:]} X")), http=http_)
    assert (proxy.get("/404").status, proxy.get("/404").body) == (410, b"plain")
    assert (proxy.get("/403").status, proxy.get("/403").body) == (403, b"inner")


def test_unbuffered_responses_arrive_piece_by_piece(through):
    go = threading.Event()
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst"
    proxy, _ = through(script(head, send(data), until(go), send(b"later"), to_end), location="proxy_buffering off;")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_head()
    assert wire.read_exactly(5) == b"first"
    go.set()
    assert wire.read_exactly(5) == b"later"


def test_buffered_chunks_arrive_chunk_by_chunk(through):
    go = threading.Event()
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    proxy, _ = through(
        script(head, send(data + chunked(b"first", end=b"")), until(go), send(chunked(b"later")), to_end)
    )
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_head()
    assert wire.read_exactly(10) == b"5\r\nfirst\r\n"
    go.set()
    assert wire.read_until(b"0\r\n\r\n") == chunked(b"later")


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_slow_client_gets_a_large_response_whole(through, buffering):
    body = bytes(range(256)) * (8 << 12)
    sent = threading.Event()
    proxy, server = through(
        script(request, send(response(body)), lambda wire: sent.set(), to_end),
        location=f"proxy_buffering {buffering}; proxy_max_temp_file_size 0;",
    )
    wire = proxy.connect(receive_buffer=1 << 14)
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_head()
    eventually(lambda: sent.is_set() or server.connection().is_held_up(), "all buffers on the way are full")
    assert wire.read_exactly(len(body)) == body


# Connections to the server.

GROUP = "upstream group { server @upstream@; keepalive 4; }"
TO_GROUP = "proxy_pass http://group;"


def ask_three_times(proxy):
    wire = proxy.connect()
    for _ in range(3):
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b"ok"


def test_a_group_with_keepalive_keeps_its_connection(through):
    proxy, server = through(answering(OK), http=GROUP, pass_=TO_GROUP)
    ask_three_times(proxy)
    assert len(server.connections) == 1
    assert server.request().get("Host") == "group"


@differs("before 1.29.7 keepalive was off unless configured")
def test_a_group_keeps_connections_by_default(through):
    proxy, server = through(answering(OK), http="upstream group { server @upstream@; }", pass_=TO_GROUP)
    ask_three_times(proxy)
    assert len(server.connections) == 1


@pytest.mark.parametrize(
    "http, pass_",
    [
        ("", "proxy_pass http://@upstream@;"),
        pytest.param("upstream group { server @upstream@; keepalive 0; }", TO_GROUP, marks=differs("0 is newer")),
    ],
)
def test_no_group_or_keepalive_0_keeps_none(through, http, pass_):
    proxy, server = through(answering(OK), http=http, pass_=pass_)
    ask_three_times(proxy)
    assert len(server.connections) == 3


@pytest.mark.parametrize(
    "answer",
    [
        response(b"ok", "Connection: close"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"),
        OK + b"surplus",
    ],
)
def test_an_answer_that_forbids_reuse(through, answer):
    proxy, server = through(answering(answer), http=GROUP, pass_=TO_GROUP)
    ask_three_times(proxy)
    assert len(server.connections) == 3


def test_keepalive_requests_limits_a_server_connection(through):
    group = GROUP.replace("keepalive 4;", "keepalive 4; keepalive_requests 2;")
    proxy, server = through(answering(OK), http=group, pass_=TO_GROUP)
    ask_three_times(proxy)
    assert len(server.connections) == 2


def test_keepalive_timeout_closes_an_idle_server_connection(through):
    group = GROUP.replace("keepalive 4;", "keepalive 4; keepalive_timeout 200ms;")
    closed = threading.Event()

    def serve(wire):
        wire.read_request()
        wire.send(OK)
        wire.expect_end()
        closed.set()

    proxy, _ = through(serve, http=group, pass_=TO_GROUP)
    assert proxy.get("/").body == b"ok"
    assert closed.wait(5)


def test_a_stale_connection_is_replaced_without_a_word(through):
    """The server closes right behind its second request: the request is sent again on a new connection."""
    group = GROUP.replace("server @upstream@;", "server @upstream@ max_fails=0;")
    first = script(request, send(OK), head, close)
    proxy, server = through(first, answering(OK), http=group, pass_=TO_GROUP)
    ask_three_times(proxy)
    assert len(server.connections) == 2


def test_a_post_on_a_stale_connection_is_not_sent_twice(through):
    group = GROUP.replace("server @upstream@;", "server @upstream@ max_fails=0;")
    proxy, server = through(script(request, send(OK), head, close), answering(OK), http=group, pass_=TO_GROUP)
    assert proxy.get("/").status == 200
    assert proxy.get("/", method="POST", body=b"x").status == 502
    assert len(server.connections) == 1


def test_round_robin_with_weights(serve, upstream):
    servers = [upstream(answering(response(name))) for name in (b"A", b"B", b"C")]
    proxy = serve(
        """
        upstream group { server @a@ weight=5; server @b@; server @c@; }
        server { listen 127.0.0.1:@port@; location / { proxy_pass http://group; } }
        """,
        **{name: server.address for name, server in zip("abc", servers)},
    )
    assert b"".join(proxy.get("/").body for _ in range(7)) == b"AABACAA"


def test_a_backup_serves_when_the_primaries_fail(serve, upstream):
    backup = upstream(answering(response(b"backup")))
    proxy = serve(
        """
        upstream group { server 127.0.0.1:@dead@; server @backup@ backup; }
        server { listen 127.0.0.1:@port@; location / { proxy_pass http://group; } }
        """,
        dead=free_port(),
        backup=backup.address,
    )
    assert [proxy.get("/").body for _ in range(3)] == [b"backup"] * 3


def test_a_unix_socket_upstream(serve, upstream, tmp_path):
    server = upstream(answering(OK), path=f"{tmp_path}/u.sock")
    proxy = serve(
        "server { listen 127.0.0.1:@port@; location / { proxy_pass http://@upstream@:/x/; } }",
        upstream=server.address,
    )
    assert proxy.get("/a").body == b"ok"
    assert (server.request().target, server.request().get("Host")) == ("/x/a", "localhost")


# Failures.


@pytest.fixture
def two(serve, upstream):
    """`two(first, second, directives)`: a group of two scripted servers; None is a closed port."""

    def start(first, second, directives=""):
        servers = [upstream(handler) if handler else None for handler in (first, second)]
        addresses = [server.address if server else f"127.0.0.1:{free_port()}" for server in servers]
        proxy = serve(
            f"""
            log_format upstream '$status | $upstream_status | $upstream_addr';
            access_log logs/access.log upstream;
            upstream group {{ server @first@; server @second@; }}
            server {{
                listen 127.0.0.1:@port@;
                location / {{ {MODERN} {directives} proxy_pass http://group; }}
            }}
            """,
            first=addresses[0],
            second=addresses[1],
        )
        return proxy, addresses

    return start


def test_a_refused_connection_goes_to_the_next_server(two):
    proxy, (first, second) = two(None, answering(OK))
    assert proxy.get("/").body == b"ok"
    assert proxy.accessed() == [f"200 | 502, 200 | {first}, {second}"]
    assert f'upstream: "http://{first}/"' in proxy.logged(
        "connect() failed (111: Connection refused) while connecting to upstream"
    )


def test_all_refused_is_a_502_and_then_no_live_upstreams(two):
    proxy, (first, second) = two(None, None)
    assert proxy.get("/").status == 502
    assert proxy.get("/").status == 502
    proxy.logged("no live upstreams while connecting to upstream")
    assert proxy.accessed(2) == [f"502 | 502, 502 | {first}, {second}", "502 | 502 | group"]


@pytest.mark.parametrize("first", [script(head, close), script(head, reset)])
def test_a_connection_lost_before_the_head_goes_to_the_next_server(two, first):
    proxy, _ = two(first, answering(OK))
    assert proxy.get("/").body == b"ok"
    assert proxy.accessed()[0].startswith("200 | 502, 200 |")


def test_a_post_once_sent_is_not_sent_again(two):
    proxy, _ = two(script(request, close), answering(OK))
    assert proxy.get("/", method="POST", body=b"once").status == 502


def test_a_listed_status_goes_to_the_next_server(two):
    first = answering(response(b"sorry", status="503 Busy"))
    proxy, _ = two(first, answering(OK), "proxy_next_upstream error http_503;")
    assert proxy.get("/").body == b"ok"
    assert proxy.accessed()[0].startswith("200 | 503, 200 |")


def test_the_last_listed_status_is_passed_on(two):
    busy = answering(response(b"sorry", status="503 Busy"))
    proxy, _ = two(busy, busy, "proxy_next_upstream error http_503;")
    answer = proxy.get("/")
    assert (answer.start, answer.body) == ("HTTP/1.1 503 Busy", b"sorry")


def test_next_upstream_off(two):
    proxy, _ = two(None, answering(OK), "proxy_next_upstream off;")
    assert proxy.get("/").status == 502


def test_a_silent_server_is_a_504(through):
    proxy, server = through(to_end, location="proxy_read_timeout 300ms;")
    answer = proxy.get("/slow")
    assert answer.start == "HTTP/1.1 504 Gateway Time-out"
    line = proxy.logged("upstream timed out (110: Connection timed out) while reading response header from upstream")
    assert "[error]" in line
    assert line.endswith(
        ', client: 127.0.0.1, server: , request: "GET /slow HTTP/1.1", '
        f'upstream: "http://{server.address}/slow", host: "example.com"'
    )


def test_a_server_that_stalls_in_its_body_cuts_the_client_off(through):
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"
    proxy, _ = through(script(head, send(data), to_end), location="proxy_read_timeout 300ms; proxy_buffering off;")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_head()
    assert wire.read_to_end() == b"half"
    proxy.logged("upstream timed out (110: Connection timed out) while")


def test_the_page_of_a_502(through):
    proxy, server = through(script(request, close))
    answer = proxy.get("/")
    assert answer.start == "HTTP/1.1 502 Bad Gateway"
    assert b"<center><h1>502 Bad Gateway</h1></center>" in answer.body
    proxy.logged("upstream prematurely closed connection while reading response header from upstream")


def test_a_client_that_leaves_is_a_499_and_the_server_is_told(through):
    left = threading.Event()

    def serve(wire):
        wire.read_request()
        wire.read_to_end()
        left.set()

    proxy, server = through(serve)
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.request()
    wire.close()
    assert left.wait(10)
    assert proxy.accessed()[0].startswith("499 ")
    line = proxy.logged("client prematurely closed connection")
    assert "so upstream connection is closed too" in line


def test_a_client_that_leaves_may_be_ignored(through):
    go, done = threading.Event(), threading.Event()

    def serve(wire):
        wire.read_request()
        assert go.wait(10)
        wire.send(OK)
        done.set()

    proxy, server = through(serve, location="proxy_ignore_client_abort on;")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    server.request()
    wire.close()
    go.set()
    assert done.wait(10)
    assert proxy.accessed()[0].startswith("200 200 ")


def test_an_early_answer_stops_the_upload(through):
    """The server answers 413 before the body is there: the client gets it."""
    go = threading.Event()
    answer = response(b"too much", "Connection: close", status="413 Stop")
    proxy, _ = through(
        script(head, send(answer), until(go)), location="proxy_request_buffering off; client_max_body_size 0;"
    )
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))
    got = wire.read_response()
    go.set()
    assert (got.start, got.body) == ("HTTP/1.1 413 Stop", b"too much")


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_connection_with_half_a_request_is_not_used_again(serve, upstream, buffering):
    """The server answers early and keeps its connection: the next request must not become the rest of the body."""
    go = threading.Event()
    early = script(head, send(response(b"early")), until(go), to_end)
    server = upstream(early, answering(response(b"second")))
    proxy = serve(
        f"""
        upstream group {{ server @upstream@; keepalive 4; }}
        client_max_body_size 0;
        proxy_request_buffering {buffering};
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    length = 16 << 20
    wire.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode())
    sender = threading.Thread(target=lambda: send_what_is_taken(wire, bytes(length)))
    sender.start()
    assert wire.read_response().body == b"early"
    assert proxy.get("/").body == b"second"
    go.set()
    sender.join(10)
    assert len(server.connections) == 2


def send_what_is_taken(wire, data):
    try:
        wire.send(data)
    except OSError:
        pass


def test_variables_of_the_exchange(through):
    variables = "$upstream_http_x_a|$upstream_response_length|$upstream_bytes_received|$proxy_host|$proxy_port"
    answer = response(b"12345", "X-A: value")
    proxy, server = through(
        answering(answer),
        http=f"log_format exchange '{variables}';",
        location="access_log logs/exchange.log exchange;",
    )
    proxy.get("/")
    assert proxy.accessed(1, "exchange.log") == [f"value|5|{len(answer)}|{server.address}|{server.port}"]


def test_a_full_backlog_is_a_connect_timeout(serve):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = []
        for _ in range(8):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        proxy = serve(
            """
            server {
                listen 127.0.0.1:@port@;
                proxy_connect_timeout 300ms;
                location / { proxy_pass http://127.0.0.1:@full@; }
            }
            """,
            full=address[1],
        )
        assert proxy.get("/").status == 504
        proxy.logged("upstream timed out (110: Connection timed out) while connecting to upstream")
        for filler in fillers:
            filler.close()
