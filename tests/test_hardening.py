"""Two requests never mix, and one never holds up the others: what reviews of the request's road have found."""

import signal
import threading
import time

import pytest

from harness.upstream import answering, close, head, request, response, script, send, to_end, until

differs = pytest.mark.differs_in_nginx


@differs("it sends the length again without the body")
def test_a_streamed_body_is_not_promised_to_a_second_server(serve, upstream):
    """The first server took it as it came: a POST that falls back cannot be sent again without it."""
    first = upstream(script(request, close))
    second = upstream(answering(lambda asked: response(asked.target.encode())))
    proxy = serve(
        """
        upstream second { server @second@; keepalive 4; }
        server {
            listen 127.0.0.1:@port@;
            location /un { proxy_request_buffering off; proxy_pass http://@first@; error_page 502 = @fallback; }
            location /page { proxy_request_buffering off; proxy_pass http://@first@; error_page 502 /sorry; }
            location @fallback { proxy_pass http://second; }
            location / { proxy_pass http://second; }
        }
        """,
        first=first.address,
        second=second.address,
    )

    def post(target: str, connection: int):
        # In two pieces: a body that comes whole with its head is not streamed.
        wire = proxy.connect()
        wire.send(f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234")
        first.connection(connection)
        wire.send("56789")
        return wire.read_response()

    assert post("/un", 1).status == 502
    answer = post("/page", 2)
    assert (answer.status, answer.body) == (502, b"/sorry")
    assert proxy.get("/victim").body == b"/victim"
    assert [asked.target for asked in second.requests] == ["/sorry", "/victim"]
    assert second.requests[0].get("Content-Length") is None


def test_error_pages_that_lead_to_each_other_end(serve):
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            recursive_error_pages on;
            error_page 404 500 /err;
            root /nonexistent;
            location /ok { return 200 ok; }
        }
        """
    )
    assert proxy.get("/loop").status == 500
    assert proxy.get("/ok").body == b"ok"
    assert proxy.log("error.log").count("redirection cycle") == 1


def test_the_method_that_is_sent_decides_about_the_body(serve, upstream):
    go = threading.Event()
    early = send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    late = script(head, early, until(go), send(b"hello"), head, send(response(b"again")), to_end)
    server = upstream(late, answering(response(b"again")))
    proxy = serve(
        """
        upstream group { server @upstream@; keepalive 4; }
        server {
            listen 127.0.0.1:@port@;
            location /get { proxy_method GET; proxy_pass http://group; }
            location / { proxy_pass http://group; }
        }
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    wire.send(b"HEAD /get HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_head().start == "HTTP/1.1 200 OK"
    go.set()
    wire.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"again"


@differs("it passes the length on and the client waits")
def test_proxy_method_head_promises_no_body(serve, upstream):
    server = upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    proxy = serve(
        "server { listen 127.0.0.1:@port@; location / { proxy_method HEAD; proxy_pass http://@upstream@; } }",
        upstream=server.address,
    )
    wire = proxy.connect()
    for _ in range(2):
        wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b""


@differs("it keeps the connection")
def test_a_head_without_its_body_ends_the_server_connection(serve, upstream):
    server = upstream(script(head, send(response(b"one")), to_end), answering(response(b"two")))
    proxy = serve(
        """
        upstream group { server @upstream@; keepalive 4; }
        server {
            listen 127.0.0.1:@port@;
            location /auth { proxy_pass_request_body off; proxy_pass http://group; }
            location / { proxy_pass http://group; }
        }
        """,
        upstream=server.address,
    )
    assert proxy.get("/auth", method="POST", body=b"abc").body == b"one"
    assert proxy.get("/").body == b"two"
    assert len(server.connections) == 2


@pytest.mark.parametrize("status", [204, 304])
def test_no_body_follows_a_status_that_has_none(serve, status):
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            location = /text {{ return {status} "HTTP/1.1 200 smuggled"; }}
            location = /page {{ return 404; error_page 404 ={status} @text; }}
            location @text {{ return 200 "HTTP/1.1 200 smuggled"; }}
            location = /next {{ return 200 next; }}
        }}
        """
    )
    for target in ["/text", "/page"]:
        wire = proxy.connect()
        wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert wire.read_head().start.startswith(f"HTTP/1.1 {status} ")
        wire.send(b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b"next"


@differs("it goes on in chunks")
def test_an_interim_status_as_an_answer_is_the_last_of_its_connection(serve, upstream):
    server = upstream(script(head, send(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx"), close))
    proxy = serve(
        "server { listen 127.0.0.1:@port@; location / { proxy_pass http://@upstream@; } }", upstream=server.address
    )
    wire = proxy.connect()
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    got = wire.read_to_end()
    assert b"chunked" not in got
    assert got.startswith(b"HTTP/1.1 100 Continue\r\n") and got.endswith(b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\nx")


@differs("it sends the refused length on")
def test_a_refused_head_has_no_body_for_its_page(serve, upstream):
    server = upstream(answering(response(b"page")))
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            error_page 400 /bad;
            location /bad { proxy_pass http://@upstream@; }
        }
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello")
    answer = wire.read_response()
    assert (answer.start, answer.body) == ("HTTP/1.1 400 Bad Request", b"page")
    assert server.requests[0].get("Content-Length") is None


def test_a_streamed_chunked_body_has_its_limit(serve, upstream):
    server = upstream(answering(response(b"all")))
    proxy = serve(
        """
        client_max_body_size 10;
        proxy_request_buffering off;
        server { listen 127.0.0.1:@port@; location / { proxy_pass http://@upstream@; } }
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n14\r\n" + b"x" * 20)
    assert wire.read_response().start == "HTTP/1.1 413 Request Entity Too Large"
    proxy.logged("client intended to send too large chunked body: ")


@differs("what it reads from the server renews its send_timeout")
def test_send_timeout_strikes_although_the_server_goes_on(serve, upstream):
    """A client that takes nothing is not kept by a server that sends a little now and then."""
    gone = threading.Event()

    def dripping(wire):
        wire.read_head()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (6 << 20))
        try:
            for _ in range(200):
                wire.send(b"x")
                time.sleep(0.05)
        except OSError:
            gone.set()

    server = upstream(dripping)
    proxy = serve(
        """
        send_timeout 1s; proxy_max_temp_file_size 0;
        proxy_buffers 64 256k; proxy_busy_buffers_size 512k;
        server { listen 127.0.0.1:@port@ sndbuf=16k; location / { proxy_pass http://@upstream@; } }
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert gone.wait(8)
    proxy.logged("client timed out (110: Connection timed out) while sending to client")


@differs("nginx's old workers close idle connections on a reload")
def test_an_idle_connection_sees_the_new_configuration(proxy):
    text = "events { }\nhttp { server { listen 127.0.0.1:@port@; return 200 one; } }\n"
    started = proxy(text)
    wire = started.connect()
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"one"
    started.write(text.replace("one", "two"))
    started.signal(signal.SIGHUP)
    until_new = time.monotonic() + 10
    while started.get("/").body != b"two":
        assert time.monotonic() < until_new
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"two"


def test_an_http_0_9_client_gets_no_head_from_a_server(serve, upstream):
    server = upstream(answering(response(b"body alone")))
    proxy = serve(
        "server { listen 127.0.0.1:@port@; location / { proxy_pass http://@upstream@; } }", upstream=server.address
    )
    wire = proxy.connect()
    wire.send(b"GET /p\r\n")
    assert wire.read_to_end() == b"body alone"


@pytest.mark.parametrize("code", [408, 444, 499])
def test_codes_that_close_without_a_byte(serve, code):
    proxy = serve(f"server {{ listen 127.0.0.1:@port@; return {code}; }}")
    wire = proxy.connect()
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_to_end() == b""
    assert f" {code} 0 " in proxy.accessed()[0]


def test_proxy_set_body_sees_the_whole_body(serve, upstream):
    server = upstream(answering(lambda asked: response(asked.body)))
    proxy = serve(
        """
        proxy_request_buffering off;
        server { listen 127.0.0.1:@port@; location / { proxy_set_body "<$request_body>"; proxy_pass http://@upstream@; } }
        """,
        upstream=server.address,
    )
    assert proxy.get("/", method="POST", body=b"abc").body == b"<abc>"


@differs("it switches")
def test_no_tunnel_is_built_on_half_a_request(serve, upstream):
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
    server = upstream(script(head, send(switch), to_end))
    proxy = serve(
        """
        proxy_request_buffering off;
        server { listen 127.0.0.1:@port@; location / { proxy_set_header Upgrade $http_upgrade; proxy_pass http://@upstream@; } }
        """,
        upstream=server.address,
    )
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 100000\r\n\r\nbegin")
    assert wire.read_response().start == "HTTP/1.1 502 Bad Gateway"
