"""What an independent reading of the code found, each with the request that showed it."""

import shutil
import socket
import threading
import time

import pytest

from harness.upstream import answering, response, script, send, to_end
from harness.upstream import request as take_request

ringx_only = pytest.mark.ringx_only


@pytest.fixture
def through(serve, upstream):
    def start(handler, text: str, http: str = ""):
        server = f"{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{text}\n}}"
        return serve(server, upstream=upstream(handler).address)

    return start


@pytest.mark.parametrize("fields", [["Transfer-Encoding: chunked"], []], ids=["chunked", "no length"])
def test_a_get_sent_on_as_head_has_an_end(through, fields):
    head = "\r\n".join(["HTTP/1.1 200 OK", *fields]).encode() + b"\r\n\r\n"
    proxy = through(answering(head), "location / { proxy_method HEAD; proxy_pass http://@upstream@; }")
    with proxy.connect() as wire:
        for _ in range(2):
            wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_response().body == b""


@pytest.mark.differs_in_nginx("it passes on the length, and no body")
def test_a_get_sent_on_as_head_does_not_tell_of_a_body(through):
    proxy = through(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        "location / { proxy_method HEAD; proxy_pass http://@upstream@; }",
    )
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_head().get("Content-Length") == "0"


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_page_without_a_body_has_an_end(through, status):
    proxy = through(
        answering(f"HTTP/1.1 {status}\r\n\r\n".encode()),
        "error_page 404 /e; location / { return 404; } location = /e { proxy_pass http://@upstream@; }",
    )
    with proxy.connect() as wire:
        for _ in range(2):
            wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = wire.read_response()
            assert (answer.status, answer.body) == (404, b"")


def test_x_accel_limit_rate_holds_the_response_up(through):
    proxy = through(
        answering(response(b"x" * 6144, "X-Accel-Limit-Rate: 2048")), "location / { proxy_pass http://@upstream@; }"
    )
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wire.read_until(b"\r\n\r\n")
        first = wire.read_some()
        assert len(first) <= 2048
        rest = wire.read_exactly(6144 - len(first))
        assert first + rest == b"x" * 6144


def test_an_error_page_is_not_cut_to_a_range(through):
    proxy = through(
        answering(response(b"0123456789")),
        "error_page 404 /e; location / { return 404; } location = /e { proxy_force_ranges on; proxy_pass http://@upstream@; }",
    )
    answer = proxy.get("/", "Range: bytes=2-3")
    assert (answer.status, answer.body, answer.get("Content-Range")) == (404, b"0123456789", None)


def test_a_nested_exact_location_wins_over_outer_regexes(serve):
    proxy = serve(
        "server { listen 127.0.0.1:@port@; location /n { location = /n/x.php { return 200 exact; } }"
        " location ~ \\.php$ { return 200 regex; } }"
    )
    assert [proxy.get(path).body for path in ("/n/x.php", "/n/y.php")] == [b"exact", b"regex"]


@ringx_only("its expressions are PCRE's, with other limits")
@pytest.mark.parametrize(
    "text",
    [
        r'location ~ "(?:(?!tmp)[a-z]+)+\.(?:bak|sql)$" { return 403; } location / { return 200; }',
        r'location / { if ($uri ~ "(?:(?!tmp)[a-z]+)+\.(?:bak|sql)$") { return 403; } return 200; }',
        r'location / { rewrite "(?:(?!tmp)[a-z]+)+\.(?:bak|sql)$" /x break; return 200; }',
    ],
    ids=["location", "if", "rewrite"],
)
def test_a_match_that_is_given_up_lets_nobody_through(serve, text):
    proxy = serve("server { listen 127.0.0.1:@port@; " + text + " }")
    assert proxy.get(f"/{'a' * 35}!/x.bak").status == 500
    proxy.logged("took too many steps")
    assert proxy.get("/x").status == 200


def test_a_body_that_finds_no_room_is_a_500(through):
    proxy = through(
        answering(response(b"ok")),
        "client_body_buffer_size 8k; client_body_temp_path bodies; location / { proxy_pass http://@upstream@; }",
    )
    shutil.rmtree(proxy.prefix / "bodies")
    (proxy.prefix / "bodies").write_text("no folder")
    assert proxy.get("/", method="POST", body=b"x" * 20_000).status == 500


@ringx_only("older ones do not have it")
def test_early_reading_takes_no_more_than_the_server_allows(through):
    proxy = through(
        answering(response(b"ok")),
        "client_body_early_read 1; client_max_body_size 10; location / { proxy_pass http://@upstream@; }",
    )
    assert proxy.get("/", method="POST", body=b"x" * 100_000).status == 413
    assert "temporary file" not in proxy.error_log()


def test_stub_status_says_continue(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; location / { stub_status; } }")
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert wire.read_head().start == "HTTP/1.1 100 Continue"


@pytest.mark.differs_in_nginx("it begins to wait for the upstream anew with every step of the client")
def test_a_slow_client_does_not_give_the_upstream_more_time(through):
    """The upstream stops in the middle, while the client takes what has come, little by little."""
    size = 24 << 20
    proxy = through(
        script(take_request, send(response(b"x" * size)[: size // 2]), to_end),
        "location / { proxy_read_timeout 500ms; proxy_pass http://@upstream@; }",
    )
    with proxy.connect() as wire:
        # Then the proxy sees every step.
        wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wire.read_until(b"\r\n\r\n")
        taken = 0
        while "upstream timed out" not in proxy.error_log():
            # Each step is shorter than the time-out, all of them together are many times longer.
            assert taken < size // 3, "the upstream has been waited for as long as the client moved"
            wire.read_exactly(64 << 10)
            taken += 64 << 10
            time.sleep(0.02)

def asks_meanwhile(proxy, head: str, piece: bytes) -> None:
    """Asks for something else while a client sends as fast as it is taken, and goes on until that is answered."""
    stop = threading.Event()

    def upload() -> None:
        with proxy.connect() as wire:
            wire.send(head)
            while not stop.is_set():
                wire.send(piece)

    thread = threading.Thread(target=upload)
    thread.start()
    try:
        for _ in range(3):
            assert proxy.get("/else").body == b"else"
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_fast_upload_leaves_others_their_turn(serve, upstream, buffering):
    proxy = serve(
        """
        client_max_body_size 0;
        server {
            listen 127.0.0.1:@port@;
            location = /else { return 200 else; }
            location / {
                proxy_http_version 1.1;
                proxy_request_buffering @buffering@;
                proxy_pass http://@upstream@;
            }
        }
        """,
        upstream=upstream(to_end).address,
        buffering=buffering,
    )
    asks_meanwhile(
        proxy, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * (64 << 10)
    )


def test_small_chunks_go_on_together(through):
    """Each for itself they would be as many sends."""
    sizes = []

    def count(wire):
        wire.read_until(b"\r\n\r\n")
        chunks, _ = wire.read_chunked()
        sizes.append((len(chunks), sum(map(len, chunks))))
        wire.send(response())

    proxy = through(
        count, "location / { proxy_http_version 1.1; proxy_request_buffering off; proxy_pass http://@upstream@; }"
    )
    with proxy.connect() as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20000)
        wire.send(b"0\r\n\r\n")
        assert wire.read_response().status == 200
    ((chunks, total),) = sizes
    assert total == 20000 and chunks < 2000


def test_behind_a_refused_uri_nothing_is_read(serve):
    proxy = serve(
        """
        log_format f "$status $http_x_y";
        access_log logs/access.log f;
        server { listen 127.0.0.1:@port@; }
        """
    )
    with proxy.connect() as wire:
        wire.send("GET /.. HTTP/1.1\r\nHost: a\r\nX-Y: z\r\nin_valid: x\r\n\r\n")
        assert wire.read_response().status == 400
    assert proxy.accessed() == ["400 -"]
    assert "host:" not in proxy.logged("invalid request")
    assert "invalid header" not in proxy.error_log()


@ringx_only("early hints are of nginx 1.29")
def test_early_hints_give_a_client_no_more_time(through):
    gone = threading.Event()

    def hint(wire):
        wire.read_until(b"\r\n\r\n")
        try:
            while not gone.wait(0.1):
                wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        except OSError:
            pass

    proxy = through(
        hint,
        """
        client_body_timeout 1s;
        location / { proxy_http_version 1.1; proxy_request_buffering off; proxy_pass http://@upstream@; }
        """,
    )
    with proxy.connect() as wire:
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
        wire.expect_end()
    gone.set()
