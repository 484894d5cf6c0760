"""What an independent reading of the code found, each with the request that showed it."""

import re
import shutil
import socket
import threading
import time

import pytest

from harness.proxy import eventually
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
        r'location / { if ($uri !~ "(?:(?!tmp)[a-z]+)+\.(?:bak|sql)$") { set $x 1; } return 200; }',
        r'if ($uri !~ "(?:(?!tmp)[a-z]+)+\.(?:bak|sql)$") { set $x 1; } location / { return 200; }',
    ],
    ids=["location", "if", "rewrite", "if not", "if not in the server"],
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


@pytest.fixture
def local(serve):
    """One server; `f` is a file of ten bytes."""

    def start(text: str, http: str = "", **values):
        proxy = serve(f"{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{text}\n}}", **values)
        (proxy.prefix / "html/f").write_text("0123456789")
        (proxy.prefix / "html/page.html").write_text("page")
        return proxy

    return start


STATUS_LOG = "log_format status '$status'; access_log logs/status.log status;"


@pytest.mark.parametrize(
    "page", ["return 200 hi;", "root html; try_files /f =404;", "stub_status;"], ids=["text", "file", "stub_status"]
)
def test_a_page_sent_with_200_can_be_a_304(local, page):
    proxy = local(f"location / {{ error_page 404 =200 /t; return 404; }} location = /t {{ {page} }}", STATUS_LOG)
    with proxy.connect() as wire:
        for _ in range(2):
            wire.send("GET / HTTP/1.1\r\nHost: a\r\nIf-None-Match: *\r\n\r\n")
            answer = wire.read_response()
            assert (answer.status, answer.body, answer.get("Content-Length")) == (304, b"", None)
    assert proxy.accessed(2, "status.log") == ["200", "200"]


def test_a_page_sent_with_200_can_be_cut_to_a_range(local):
    proxy = local(
        "location / { error_page 404 =200 /f; return 404; } location = /f { root html; }", STATUS_LOG
    )
    answer = proxy.get("/", "Range: bytes=2-3")
    assert (answer.status, answer.body, answer.get("Content-Range")) == (206, b"23", "bytes 2-3/10")
    assert proxy.accessed(1, "status.log") == ["200"]


def test_a_page_of_an_upstream_sent_with_200_can_be_cut_to_a_range(through):
    proxy = through(
        answering(response(b"0123456789")),
        "error_page 404 =200 /e; location / { return 404; }"
        "location = /e { proxy_force_ranges on; proxy_pass http://@upstream@; }",
        STATUS_LOG,
    )
    answer = proxy.get("/", "Range: bytes=2-3")
    assert (answer.status, answer.body, answer.get("Content-Range")) == (206, b"23", "bytes 2-3/10")
    assert proxy.accessed(1, "status.log") == ["200"]


UNSATISFIABLE = {
    "built in": ("", 416, b"416 Requested"),
    "page": ("error_page 416 /page.html;", 416, b"page"),
    "named": ("error_page 416 @n; location @n { return 200 named; }", 416, b"named"),
}


@pytest.mark.parametrize("name", UNSATISFIABLE)
def test_a_416_has_what_the_200_would_have_had(local, name):
    page, status, body = UNSATISFIABLE[name]
    proxy = local(f"root html; add_header Access-Control-Allow-Origin *; expires 1h; {page}")
    answer = proxy.get("/f", "Range: bytes=999999-")
    assert (answer.status, body in answer.body) == (status, True)
    assert answer.all("Access-Control-Allow-Origin") == ["*"]
    assert answer.all("Cache-Control") == ["max-age=3600"]
    assert len(answer.all("Expires")) == 1
    assert answer.all("Content-Range") == ["bytes */10"]


def test_a_built_in_416_tells_no_state_of_the_file(local):
    proxy = local("root html; add_header ETag '\"v1\"'; expires modified 1h;")
    answer = proxy.get("/f", "Range: bytes=999999-")
    assert answer.status == 416
    assert [answer.get(name) for name in ("ETag", "Last-Modified", "Accept-Ranges")] == [None] * 3
    assert answer.get("Expires")


@pytest.mark.differs_in_nginx("it tells of both files")
def test_a_page_in_place_of_a_416_has_ranges_of_its_own(local):
    proxy = local("root html; location = /page.html { error_page 416 =200 /f; }")
    answer = proxy.get("/page.html", "Range: bytes=5-")
    assert (answer.status, answer.body, answer.all("Content-Range")) == (206, b"56789", ["bytes 5-9/10"])


def test_a_416_of_an_upstream_has_what_the_200_would_have_had(through):
    proxy = through(
        answering(response(b"0123456789", "X-Up: 1", 'ETag: "e"')),
        "add_header X 1; add_header Y 1 always; expires 1h; location / { proxy_force_ranges on; proxy_pass http://@upstream@; }",
    )
    answer = proxy.get("/", "Range: bytes=10-")
    assert answer.status == 416
    told = {name: answer.all(name) for name in ("X-Up", "X", "Cache-Control", "Content-Range", "ETag")}
    assert told == {
        "X-Up": ["1"], "X": ["1"], "Cache-Control": ["max-age=3600"], "Content-Range": ["bytes */10"], "ETag": [],
    }


@pytest.mark.parametrize("if_range, status", [('"v1"', 206), ('"e"', 200)])
def test_if_range_asks_for_what_the_client_is_told_of_an_upstream(through, if_range, status):
    proxy = through(
        answering(response(b"0123456789", 'ETag: "e"')),
        "add_header ETag '\"v1\"'; location / { proxy_force_ranges on; proxy_pass http://@upstream@; }",
    )
    assert proxy.get("/", "Range: bytes=0-1", f"If-Range: {if_range}").status == status


IF_RANGE = [
    # what is added, If-Range, status
    ("add_header ETag '\"v1\"';", '"v1"', 206),
    ("add_header ETag '\"v1\"';", "etag", 200),
    ("add_header ETag '';", "etag", 200),
    ("add_header Last-Modified '';", "date", 200),
    ("add_header Last-Modified 'Sun, 06 Nov 1994 08:49:37 GMT';", "Sun, 06 Nov 1994 08:49:37 GMT", 206),
    ("add_header Last-Modified 'Sun, 06 Nov 1994 08:49:37 GMT';", "date", 200),
    ("add_header X 1;", "etag", 206),
    ("add_header X 1;", "date", 206),
]


@pytest.mark.parametrize("added, if_range, status", IF_RANGE)
def test_if_range_asks_for_what_the_client_is_told(local, added, if_range, status):
    proxy = local(f"root html; location = /f {{ {added} }} location = /plain {{ alias html/f; }}")
    plain = proxy.get("/plain")
    if_range = {"etag": plain.get("ETag"), "date": plain.get("Last-Modified")}.get(if_range, if_range)
    answer = proxy.get("/f", "Range: bytes=0-1", f"If-Range: {if_range}")
    assert (answer.status, answer.body) == (status, b"01" if status == 206 else b"0123456789")


@pytest.mark.parametrize("fields, status", [("If-None-Match: *", 304), ('If-Match: "x"', 412), ("If-Match: *", 200)])
def test_conditions_hold_for_stub_status(local, fields, status):
    proxy = local("location / { stub_status; }")
    assert proxy.get("/", fields).status == status


@ringx_only("its expressions are PCRE's, with other limits")
def test_a_page_given_up_is_logged_as_what_it_became(local):
    proxy = local(
        "add_header X $slow always; error_page 404 /p; location / { return 404; } location /p { return 200 x; }",
        STATUS_LOG + r' map $request_uri $slow { "~(?:(?!tmp)[a-z]+)+\.(?:bak|sql)$" 1; default 0; }',
    )
    assert proxy.get(f"/{'a' * 35}!/x.bak").status == 500
    assert proxy.accessed(1, "status.log") == ["500"]


@pytest.mark.parametrize("target", ["/x", "http://b/"])
def test_a_redirect_by_rewrite_asks_for_no_body(local, target):
    proxy = local(f"location / {{ rewrite ^ {target} permanent; }}")
    with proxy.connect() as wire:
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert wire.read_response().status == 301


def test_a_redirect_by_rewrite_comes_before_a_broken_body(local):
    proxy = local("location / { rewrite ^ /x permanent; }")
    answer = proxy.ask("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n")
    assert (answer.status, answer.get("Connection")) == (301, "close")


def test_a_redirect_by_return_lets_the_body_come(local):
    proxy = local("location / { return 301 /x; }")
    with proxy.connect() as wire:
        wire.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert wire.read_response().status == 100
        wire.send("12345")
        assert wire.read_response().status == 301


SENT = "log_format sent '$sent_http_server $sent_http_date'; access_log logs/sent.log sent;"


def test_a_server_that_is_not_passed_on_is_not_one_that_was_sent(through):
    fields = ("Server: up", "Date: Sun, 06 Nov 1994 08:49:37 GMT")
    proxy = through(
        answering(response(b"x", *fields)), "location / { proxy_pass http://@upstream@; }", SENT
    )
    proxy.get("/")
    assert proxy.accessed(1, "sent.log") == ["- -"]


def test_a_server_that_is_passed_on_was_sent(through):
    fields = ("Server: up", "Date: now")
    proxy = through(
        answering(response(b"x", *fields)),
        "location / { proxy_pass http://@upstream@; proxy_pass_header Server; proxy_pass_header Date; }",
        SENT,
    )
    proxy.get("/")
    assert proxy.accessed(1, "sent.log") == ["up now"]


def test_a_server_that_is_added_was_sent(local):
    proxy = local("add_header Server s; add_header Date d; return 200 x;", SENT)
    proxy.get("/")
    assert proxy.accessed(1, "sent.log") == ["s d"]


def logged_reset(proxy) -> str:
    line = proxy.logged("104: Connection reset by peer")
    assert "prematurely closed" not in proxy.error_log()
    return line


RESETS = [
    # what is sent before the reset, text, status that is logged
    ("GET / HT", "recv() failed (104: Connection reset by peer) while reading client request line", "400"),
    ("GET / HTTP/1.1\r\nHost: a\r\n", "recv() failed (104: Connection reset by peer) while reading client request headers", "400"),
    (
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
        "recv() failed (104: Connection reset by peer), client",
        "400",
    ),
]


@pytest.mark.parametrize("sent, text, status", RESETS, ids=["line", "headers", "body"])
def test_the_words_about_a_reset_while_something_is_read(local, upstream, sent, text, status):
    proxy = local("location / { proxy_pass http://@upstream@; }", STATUS_LOG, upstream=upstream(to_end).address)
    wire = proxy.connect()
    wire.send(sent)
    eventually(wire.is_taken, "what was sent is read")
    wire.reset()
    line = logged_reset(proxy)
    assert "[info]" in line and text in line, line
    assert proxy.accessed(1, "status.log") == [status]


def test_the_words_about_a_reset_while_something_is_sent(local):
    proxy = local("root html;", STATUS_LOG)
    (proxy.prefix / "html/big").write_bytes(b"x" * 30_000_000)
    wire = proxy.connect(receive_buffer=4096)
    wire.send("GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_until(b"\r\n\r\n")
    wire.reset()
    line = logged_reset(proxy)
    assert "[info]" in line and re.search(r"(writev|sendfile)\(\) failed .* while sending response to client, ", line), line
    assert proxy.accessed(1, "status.log") == ["200"]


def test_the_words_about_a_reset_while_nothing_is_going_on(local):
    proxy = local("return 200 x;")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_response()
    wire.reset()
    line = logged_reset(proxy)
    assert "[info]" in line and "client 127.0.0.1 closed keepalive connection (104" in line, line


LINES = [
    # what is sent, $request_method, $server_protocol, $request_uri
    ("GET /a HTTP/1.1\r\nHost: a\r\n\r\n", "GET|HTTP/1.1|/a"),
    ("GET /a HTTP/1.7\r\nHost: a\r\n\r\n", "GET|HTTP/1.7|/a"),
    ("GET /a  HTTP/1.0  \r\n\r\n", "GET|HTTP/1.0  |/a"),
    ("GET /a\r\n", "GET|-|/a"),
    ("GET /a HTTP/2.0\r\n\r\n", "-||-"),
    ("GET rel HTTP/1.1\r\n\r\n", "-|-|-"),
    ("GET /.. HTTP/1.1\r\nHost: a\r\n\r\n", "GET|HTTP/1.1|-"),
    ("\x16\x03\x01", "-|-|-"),
    ("G\x01T / HTTP/1.1\r\n\r\n", "-|-|-"),
    ("GET /" + "x" * 9000 + " HTTP/1.1\r\n\r\n", "-|-|-"),
    ("GET /a HTTP/1.1\r\nHost: a b\r\n\r\n", "GET|HTTP/1.1|/a"),
    ("GET /a HTTP/1.1", "-||-"),
    ("GET /a HTTP/1.1\r\nHost: a\r\n", "GET|HTTP/1.1|/a"),
]


@pytest.mark.parametrize("sent, told", LINES, ids=[repr(row[0][:24]) for row in LINES])
def test_what_is_known_of_a_request_line(local, sent, told):
    proxy = local(
        "location / { return 200 x; }",
        "log_format line '$request_method|$server_protocol|$request_uri'; access_log logs/line.log line;",
    )
    with proxy.connect() as wire:
        wire.send(sent)
        wire.finish()
        wire.read_to_end()
    assert proxy.accessed(1, "line.log") == [told]


def test_a_page_for_a_refused_line_is_a_get(local):
    proxy = local("error_page 400 =222 /p; location = /p { return 200 '$request_method $server_protocol.'; }")
    assert proxy.ask("GET rel HTTP/1.1\r\n\r\n").body == b"GET ."


def test_a_root_that_is_not_there_is_told(local):
    proxy = local("root none; location / { return 200 '$realpath_root.'; }")
    assert proxy.get("/").body == b"."
    line = proxy.logged("realpath()")
    assert '[crit] ' in line and f'realpath() "{proxy.prefix}/none" failed (2: No such file or directory)' in line


USERS = [
    ("dXNlcjpwYXNz", "user"),
    ("dX5+Pj86Og==", "u~~>?"),
    ("dX5-Pj86Og==", ""),
    ("dTo_", ""),
    ("dTo=x_", "u"),
    ("dTo", "u"),
    ("dTpwd", ""),
    ("dT==pw", ""),
]


@pytest.mark.parametrize("encoded, user", USERS)
def test_the_alphabet_of_credentials(local, encoded, user):
    proxy = local("location / { return 200 '[$remote_user]'; }")
    assert proxy.get("/", f"Authorization: Basic {encoded}").body.decode() == f"[{user}]"


COOKIES = [("a; a=1", ""), ("a; b=1; a=2", "2"), ("a, a=1", ""), ("ab; a=1", "1"), ("a ; a=1", ""), ("a=1; a", "1"), ("ab=1;a=2", "2")]


@pytest.mark.parametrize("line, value", COOKIES)
def test_a_cookie_behind_a_name_alone(local, line, value):
    proxy = local("location / { return 200 '[$cookie_a]'; }")
    assert proxy.get("/", f"Cookie: {line}").body.decode() == f"[{value}]"


@pytest.mark.differs_in_nginx("it leads to http://:PORT/")
def test_the_name_in_a_redirect_of_a_server_without_one(local):
    proxy = local("server_name_in_redirect on; return 301 /x;")
    assert proxy.get("/", host="h").get("Location") == proxy.fill("http://h:@port@/x")
