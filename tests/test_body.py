"""The client's request body: limits, memory and file, Expect, chunks, early reading, what is discarded."""

import os
import stat
import time

import pytest

from harness.upstream import Upstream, answering, chunked, head, response, script, send, to_end
from harness.wire import Late

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only

HEAD = "POST {target} HTTP/1.1\r\nHost: a\r\n"


def post(target: str, body: bytes, *fields: str) -> bytes:
    lines = [HEAD.format(target=target), *(f"{field}\r\n" for field in fields), f"Content-Length: {len(body)}\r\n\r\n"]
    return "".join(lines).encode() + body


def post_chunked(target: str, body: bytes, *fields: str) -> bytes:
    lines = [HEAD.format(target=target), *(f"{field}\r\n" for field in fields), "Transfer-Encoding: chunked\r\n\r\n"]
    return "".join(lines).encode() + body


@pytest.fixture(scope="module")
def echo():
    """Answers with the body it was sent, and tells how it came."""

    def answer(request):
        told = request.get("Content-Length") or request.get("Transfer-Encoding") or "nothing"
        extra = [f"X-{name}: {request.get(name)}" for name in ("File", "Body") if request.get(name) is not None]
        return response(request.body, f"X-Framing: {told}", *extra)

    server = Upstream(answering(answer))
    yield server
    server.stop()


# Limits.

LIMITS = """
client_max_body_size 10;
location / { proxy_pass http://@up@; }
location /text { return 200 text; }
location /free { client_max_body_size 0; proxy_pass http://@up@; }
location /small { client_max_body_size 1; proxy_pass http://@up@; }
location /moved { rewrite ^ /small last; }
location /grown { client_max_body_size 20; proxy_pass http://@up@; }
location /page { error_page 413 =200 /sorry; client_max_body_size 1; proxy_pass http://@up@; }
location /sorry { return 200 sorry; }
location /passed { error_page 413 =200 /up; client_max_body_size 1; proxy_pass http://@up@; }
location /up { proxy_pass http://@up@; }
location /to_small { client_max_body_size 20; return 404; error_page 404 =200 /small; }
location = /file { client_max_body_size 2; root html; }
"""
LIMIT_ROWS = [
    ("as large as allowed", post("/", b"0123456789"), 200),
    ("one more", post("/", b"0123456789+"), 413),
    ("no limit", post("/free", bytes(2 << 20)), 200),
    ("a location's own", post("/small", b"12"), 413),
    ("where a rewrite leads", post("/moved", b"12"), 413),
    ("a larger one", post("/grown", b"0123456789+"), 200),
    ("where nobody reads", post("/text", b"0123456789+"), 413),
    ("a file", post("/file", b"123"), 413),
    ("a body of a GET", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n0123456789+", 413),
    ("an error page of its own", post("/page", b"12"), 200),
    ("chunks as large as allowed", post_chunked("/", chunked(b"01234", b"56789")), 200),
    ("chunks too large", post_chunked("/", chunked(b"01234", b"56789", b"+")), 413),
    ("one chunk too large", post_chunked("/", chunked(b"0123456789+")), 413),
    ("chunks without a limit", post_chunked("/free", chunked(*[bytes(1 << 16)] * 20)), 200),
    ("chunks where nobody reads", post_chunked("/text", chunked(bytes(100))), 200),
    ("an upstream makes the page", post("/passed", b"0123456789+"), 200),
    ("an upstream makes the page of chunks", post_chunked("/passed", chunked(b"01234")), 200),
    ("chunks and an error page", post_chunked("/page", chunked(b"12")), 200),
]


@pytest.mark.parametrize("name, data, status", LIMIT_ROWS, ids=[row[0] for row in LIMIT_ROWS])
def test_limits(shared, echo, name, data, status):
    proxy = shared(LIMITS, up=echo.address)
    answer = proxy.ask(data)
    assert answer.status == status
    if status == 413:
        assert answer.start == "HTTP/1.1 413 Request Entity Too Large"
        assert answer.get("Connection") == "close"
    if name.endswith("error page of its own"):
        assert answer.body == b"sorry"


def test_the_limit_holds_where_an_error_page_leads(shared, echo):
    assert shared(LIMITS, up=echo.address).ask(post("/to_small", b"12")).status == 413


SAID = [
    ("a length", post("/", b"0123456789++"), "client intended to send too large body: 12 bytes"),
    ("the first chunk", post_chunked("/", chunked(bytes(11))), "client intended to send too large chunked body: 0+11 bytes"),
    (
        "a later chunk",
        post_chunked("/", chunked(bytes(4), bytes(7))),
        "client intended to send too large chunked body: 4+7 bytes",
    ),
    (
        "a chunk of which little is here",
        post_chunked("/", b"3\r\nabc\r\n1000\r\nx"),
        "client intended to send too large chunked body: 3+4096 bytes",
    ),
]


@pytest.mark.parametrize("name, data, text", SAID, ids=[row[0] for row in SAID])
def test_what_is_too_large_is_told(serve, echo, name, data, text):
    proxy = serve(f"server {{ listen 127.0.0.1:@port@;\n{LIMITS}\n}}", up=echo.address)
    assert proxy.ask(data).status == 413
    assert "[error]" in proxy.logged(text)


def test_a_client_that_still_sends_gets_the_413(shared, echo):
    """The connection lingers: it is not reset under the answer."""
    proxy = shared(LIMITS, up=echo.address)
    wire = proxy.connect()
    wire.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {8 << 20}\r\n\r\n")
    assert wire.read_response().status == 413
    wire.send(bytes(64 << 10))
    wire.finish()
    wire.expect_end()
    assert not wire.was_reset


# Chunks.

CHUNKS = [
    ("none", b"0\r\n\r\n", 200, b""),
    ("several", chunked(b"a", b"bc", b"def"), 200, b"abcdef"),
    ("leading zeros", b"0003\r\nabc\r\n0\r\n\r\n", 200, b"abc"),
    ("capitals", b"A\r\n0123456789\r\n0\r\n\r\n", 200, b"0123456789"),
    ("an extension", b"3;x=y\r\nabc\r\n0;z\r\n\r\n", 200, b"abc"),
    ("a space behind", b"3 \r\nabc\r\n0\r\n\r\n", 200, b"abc"),
    ("a tab behind", b"3\t;x\r\nabc\r\n0\r\n\r\n", 200, b"abc"),
    ("trailers", b"3\r\nabc\r\n0\r\nA: b\r\nC: d\r\n\r\n", 200, b"abc"),
    ("no digits", b"\r\nabc\r\n0\r\n\r\n", 400, None),
    ("no hex", b"g\r\n\r\n", 400, None),
    ("0x", b"0x3\r\nabc\r\n0\r\n\r\n", 400, None),
    ("a space before", b" 3\r\nabc\r\n0\r\n\r\n", 400, None),
    ("a sign", b"+3\r\nabc\r\n0\r\n\r\n", 400, None),
    ("too much data", b"3\r\nabcd\r\n0\r\n\r\n", 400, None),
    ("too large a number", b"fffffffffffffffff\r\n", 400, None),
    ("the largest number and more", b"8000000000000000\r\n", 400, None),
]
NEWER = [
    ("LF behind the size", b"3\nabc\r\n0\r\n\r\n"),
    ("LF behind the data", b"3\r\nabc\n0\r\n\r\n"),
    ("LF in an extension", b"3;x\nabc\r\n0\r\n\r\n"),
    ("LF at the end", b"3\r\nabc\r\n0\r\n\n"),
    ("LF behind a trailer", b"3\r\nabc\r\n0\r\nA: b\n\r\n"),
]


@pytest.mark.parametrize("name, body, status, got", CHUNKS, ids=[row[0] for row in CHUNKS])
def test_chunks(shared, echo, name, body, status, got):
    proxy = shared("location / { client_max_body_size 0; proxy_pass http://@up@; }", up=echo.address)
    answer = proxy.ask(post_chunked("/", body))
    assert answer.status == status
    if status == 200:
        # A whole chunked body is sent on with its length.
        assert (answer.body, answer.get("X-Framing")) == (got, str(len(got)))
    else:
        assert "[error]" in proxy.logged("client sent invalid chunked body")


@differs("older ones take a bare LF")
@pytest.mark.parametrize("name, body", NEWER, ids=[row[0] for row in NEWER])
def test_a_bare_lf_is_no_line_end(shared, echo, name, body):
    proxy = shared("location / { client_max_body_size 0; proxy_pass http://@up@; }", up=echo.address)
    assert proxy.ask(post_chunked("/", body)).status == 400


def test_what_follows_the_last_chunk_is_the_next_request(shared, echo):
    proxy = shared("location / { client_max_body_size 0; proxy_pass http://@up@; }", up=echo.address)
    wire = proxy.connect()
    wire.send(post_chunked("/1", chunked(b"a", b"b")) + post("/2", b"cd") + post_chunked("/3", chunked(b"e")))
    assert [wire.read_response().body for _ in range(3)] == [b"ab", b"cd", b"e"]


def test_a_body_byte_by_byte(shared, echo):
    proxy = shared("location / { client_max_body_size 0; proxy_pass http://@up@; }", up=echo.address)
    data = post_chunked("/", chunked(b"abc", b"defgh") + b"")
    wire = proxy.connect()
    wire.send_pieces(data, list(range(data.index(b"\r\n\r\n"), len(data))))
    assert wire.read_response().body == b"abcdefgh"


# Expect.

EXPECT = [
    ("100-continue", "/", 2, "1.1", True),
    ("100-Continue", "/", 2, "1.1", True),
    ("100-continue, x", "/", 2, "1.1", False),
    ("x", "/", 2, "1.1", False),
    ("100-continue", "/", 2, "1.0", False),
    ("100-continue", "/text", 2, "1.1", True),
    ("100-continue", "/file", 0, "1.1", False),
    ("100-continue", "/none", 2, "1.1", False),
    ("100-continue", "/", 11, "1.1", False),
]


@pytest.mark.parametrize("value, target, length, version, told", EXPECT)
def test_expect(shared, echo, value, target, length, version, told):
    proxy = shared(LIMITS + "location /none { root html; } location = /file2 { root html; }", up=echo.address)
    wire = proxy.connect()
    wire.send(
        f"POST {target} HTTP/{version}\r\nHost: a\r\nExpect: {value}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )
    if told:
        assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(b"x" * length)
        assert wire.read_response().status == 200
    elif length > 10:
        assert wire.read_response().status == 413
    elif target in ("/none", "/file"):
        assert wire.read_response().status == 404
    else:
        # Nothing is said before the body has come.
        wire.send(b"x" * length)
        assert wire.read_response().status == 200


def test_continue_is_said_once_also_when_the_body_is_here_already(shared, echo):
    proxy = shared(LIMITS, up=echo.address)
    for target in ("/", "/text"):
        wire = proxy.connect()
        wire.send(post(target, b"12", "Expect: 100-continue"))
        assert [wire.read_response().status for _ in range(2)] == [100, 200]


def test_continue_for_a_get_of_a_file(shared):
    proxy = shared("root html;", files={"html/f": "file"})
    wire = proxy.connect()
    wire.send("GET /f HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
    assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert wire.read_response().body == b"file"


# Memory and file.

FILES = """
client_body_buffer_size 1k;
client_max_body_size 0;
log_format body '$request_uri [$request_body] [$request_body_file]';
"""
FILE_LOCATIONS = """
access_log logs/body.log body;
proxy_set_header File $request_body_file;
location / { proxy_pass http://@up@; }
location /on { client_body_in_file_only on; proxy_pass http://@up@; }
location /clean { client_body_in_file_only clean; proxy_pass http://@up@; }
location /leveled { client_body_in_file_only on; client_body_temp_path leveled 1 2; proxy_pass http://@up@; }
location /three { client_body_in_file_only on; client_body_temp_path three 1 2 3; proxy_pass http://@up@; }
location /single { client_body_in_single_buffer on; proxy_pass http://@up@; }
location /text { return 200 "[$request_body]"; }
location /unread { client_body_in_file_only on; return 200 "[$request_body_file]"; }
"""


@pytest.fixture
def files(serve, echo):
    return serve(f"{FILES}\nserver {{ listen 127.0.0.1:@port@;\n{FILE_LOCATIONS}\n}}", up=echo.address)


def body_line(proxy, target: str) -> str:
    (line,) = [line for line in proxy.accessed(1, "body.log") if line.startswith(f"{target} ")]
    return line


def test_a_small_body_is_in_memory(files):
    assert files.ask(post("/small", b"x" * 1024)).body == b"x" * 1024
    assert body_line(files, "/small") == f"/small [{'x' * 1024}] [-]"
    assert "temporary file" not in files.error_log()


def test_a_large_body_is_in_a_file_without_a_name(files):
    answer = files.ask(post("/large", b"x" * 3000))
    assert answer.body == b"x" * 3000
    path = answer.get("X-File")
    assert path == f"{files.prefix}/client_body_temp/0000000001"
    line = files.logged("a client request body is buffered to a temporary file")
    assert "[warn]" in line and f"a client request body is buffered to a temporary file {path}, client: " in line
    assert body_line(files, "/large") == f"/large [-] [{path}]"
    assert not os.path.exists(path)


def test_a_large_chunked_body_is_in_a_file(files):
    answer = files.ask(post_chunked("/large", chunked(*[b"y" * 300] * 10)))
    assert (answer.body, answer.get("X-Framing")) == (b"y" * 3000, "3000")
    assert answer.get("X-File").endswith("client_body_temp/0000000001")


FITS = [
    # (bytes that come with the head, bytes that come later, whether it is held in memory)
    (0, 1279, True),
    (0, 1280, False),
    (400, 1279, True),
    (400, 1280, False),
]


@pytest.mark.parametrize("ahead, rest, fits", FITS)
def test_what_fits_into_the_buffer(files, ahead, rest, fits):
    """A body of a known length may be a quarter larger, and what came with the head counts for nothing."""
    body = b"x" * (ahead + rest)
    wire = files.connect()
    wire.send(post("/", body, "Expect: 100-continue")[: -rest])
    wire.read_until(b"\r\n\r\n")
    wire.send(body[ahead:])
    assert wire.read_response("POST").body == body
    assert body_line(files, "/").startswith(f"/ [{body.decode()}] [-]" if fits else "/ [-] [/")
    assert ("temporary file" in files.error_log()) != fits


@pytest.mark.parametrize("data", [post("/", b"x" * 300), post_chunked("/", chunked(b"x" * 300))])
def test_a_body_that_came_with_the_head_takes_no_buffer(serve, echo, data):
    proxy = serve(
        "server { listen 127.0.0.1:@port@; client_body_buffer_size 100; location / { proxy_pass http://@up@; } }",
        up=echo.address,
    )
    assert proxy.ask(data).body == b"x" * 300
    assert "temporary file" not in proxy.error_log()


def test_a_body_in_a_file_only(files):
    answer = files.ask(post("/on", b"abc"))
    path = answer.get("X-File")
    assert answer.body == b"abc"
    with open(path, "rb") as file:
        assert file.read() == b"abc"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert "[notice]" in files.logged(f"a client request body is buffered to a temporary file {path}")
    assert body_line(files, "/on") == f"/on [-] [{path}]"


def test_a_file_that_is_cleaned_up(files):
    answer = files.ask(post("/clean", b"abc", "Connection: close"))
    path = answer.get("X-File")
    assert answer.body == b"abc"
    assert body_line(files, "/clean") == f"/clean [-] [{path}]"
    until = time.monotonic() + 10
    while os.path.exists(path):
        assert time.monotonic() < until
    assert "[notice]" in files.logged("a client request body is buffered to a temporary file")


def test_the_file_of_a_clean_body_is_there_while_it_is_answered(serve, upstream):
    seen = []

    def answer(request):
        seen.append(open(request.get("File"), "rb").read())
        return response(b"")

    proxy = serve(f"{FILES}\nserver {{ listen 127.0.0.1:@port@;\n{FILE_LOCATIONS}\n}}", up=upstream(answering(answer)).address)
    assert proxy.ask(post("/clean", b"abc")).status == 200
    assert seen == [b"abc"]


def test_an_empty_body_in_a_file_only(files):
    path = files.ask(post("/on", b"")).get("X-File")
    assert os.path.getsize(path) == 0
    # Without a body there is no file.
    assert files.ask("GET /on?none HTTP/1.1\r\nHost: a\r\n\r\n").get("X-File") is None


@pytest.mark.parametrize(
    "target, path", [("/leveled", "leveled/1/00/0000000001"), ("/three", "three/1/00/000/0000000001")]
)
def test_levels_of_the_temporary_path(files, target, path):
    assert files.ask(post(target, b"abc")).get("X-File") == f"{files.prefix}/{path}"
    directory = os.path.dirname(f"{files.prefix}/{path}")
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700


VARIABLES = [
    ("a body that was read", post("/v1", b"abc"), "/v1 [abc] [-]"),
    ("quotes are escaped", post("/v2", b'a"b'), "/v2 [a\\x22b] [-]"),
    ("chunks are joined", post_chunked("/v3", chunked(b"ab", b"c")), "/v3 [abc] [-]"),
    ("an empty body", post("/v4", b""), "/v4 [] [-]"),
    ("no body", b"GET /v5 HTTP/1.1\r\nHost: a\r\n\r\n", "/v5 [-] [-]"),
    ("nobody read it", post("/text", b"abc"), "/text [-] [-]"),
    ("nobody wrote it", post("/unread", b"abc"), "/unread [-] [-]"),
    ("one buffer", post("/single", b"x" * 500), f"/single [{'x' * 500}] [-]"),
]


@pytest.mark.parametrize("name, data, line", VARIABLES, ids=[row[0] for row in VARIABLES])
def test_the_body_as_a_variable(shared, echo, name, data, line):
    proxy = shared(FILE_LOCATIONS, FILES, up=echo.address)
    count = len(proxy.log("body.log").splitlines())
    answer = proxy.ask(data)
    assert answer.status == 200
    assert proxy.accessed(count + 1, "body.log")[-1] == line


def test_the_length_of_a_chunked_body_is_known_when_it_was_read(shared, echo):
    proxy = shared(
        "access_log logs/l.log l; location / { proxy_pass http://@up@; } location /text { return 200 x; }",
        "log_format l '$request_uri $content_length $request_length';",
        up=echo.address,
    )
    data = post_chunked("/read", chunked(b"abc", b"de"))
    proxy.ask(data)
    assert proxy.accessed(1, "l.log")[-1] == f"/read 5 {len(data)}"


@differs("older ones do not know client_body_early_read")
def test_early_reading(serve):
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            client_body_early_read $arg_early $http_early;
            client_max_body_size 5;
            location / { return 200 "[$request_body]"; }
            location /large { client_max_body_size 100; return 200 "[$request_body]"; }
            location /small { client_max_body_size 1; return 200 x; }
        }
        """
    )
    assert proxy.ask(post("/?early=1", b"abc")).body == b"[abc]"
    assert proxy.ask(post("/?early=0", b"abc", "Early: 1")).body == b"[abc]"
    assert proxy.ask(post("/?early=0", b"abc")).body == b"[]"
    assert proxy.ask(post("/", b"abc")).body == b"[]"
    assert proxy.ask(post_chunked("/?early=1", chunked(b"ab", b"c"))).body == b"[abc]"
    assert proxy.ask(post_chunked("/?early=1", chunked(b"ab", b"cdef"))).status == 413
    assert proxy.ask(post_chunked("/?early=1", b"zz\r\n")).status == 400
    assert proxy.ask(post("/small?early=1", b"abc")).status == 413
    assert proxy.ask(post_chunked("/small?early=1", chunked(b"abc"))).status == 413
    wire = proxy.connect()
    wire.send(post("/?early=1", b"abc") + post("/?early=0", b"abc") + post("/?early=1", b"d"))
    assert [wire.read_response().body for _ in range(3)] == [b"[abc]", b"[]", b"[d]"]


# A client that leaves, or is slow.

LEAVES = [
    ("in a body that is read", "/", "400"),
    ("in a body that nobody reads", "/text", "200"),
]


@pytest.mark.parametrize("name, target, status", LEAVES, ids=[row[0] for row in LEAVES])
def test_a_client_that_leaves_within_its_body(serve, echo, name, target, status):
    proxy = serve(f"server {{ listen 127.0.0.1:@port@;\n{LIMITS}\n}}", up=echo.address)
    wire = proxy.connect()
    wire.send(HEAD.format(target=target) + "Content-Length: 10\r\n\r\n123")
    if status == "200":
        assert wire.read_response().status == 200
    wire.finish()
    wire.expect_end()
    wire.close()
    assert f'" {status} ' in proxy.accessed()[0]
    if status == "400":
        proxy.logged("client prematurely closed connection")


@pytest.mark.parametrize("settings", ["", "proxy_request_buffering off; proxy_http_version 1.1;"], ids=["buffered", "streamed"])
def test_nothing_is_told_of_a_gap_in_a_body(serve, echo, settings):
    proxy = serve(
        "server { listen 127.0.0.1:@port@; client_body_timeout 300ms;"
        f" location / {{ {settings} proxy_pass http://@up@; }} }}",
        up=echo.address,
    )
    wire = proxy.connect()
    wire.send(HEAD.format(target="/") + "Content-Length: 10\r\n\r\n123")
    assert wire.read_to_end() == b""
    assert '" 408 0 ' in proxy.accessed()[0]
    assert proxy.error_log().count("timed out") == 0


def test_a_gap_in_a_discarded_body_ends_the_connection(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; client_body_timeout 300ms; lingering_timeout 300ms; return 200 x; }")
    wire = proxy.connect()
    wire.send(HEAD.format(target="/") + "Content-Length: 10\r\n\r\n123")
    assert wire.read_response().status == 200
    wire.expect_end()
    assert '" 200 ' in proxy.accessed()[0]


DISCARDED = [
    ("a length", post("/text", b"0123456789")),
    ("chunks", post_chunked("/text", chunked(b"abc", b"d"))),
    ("a 404", post("/none", b"0123456789")),
    ("a 405", post("/found", b"0123456789")),
    ("a GET", b"GET /text HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"),
    ("a redirect", post("/away", b"0123456789")),
]


@pytest.mark.parametrize("name, data", DISCARDED, ids=[row[0] for row in DISCARDED])
def test_an_unread_body_is_discarded_and_the_connection_kept(shared, name, data):
    proxy = shared(
        "root html; location /text { return 200 text; } location /away { return 302 /x; }", files={"html/found": "x"}
    )
    wire = proxy.connect()
    wire.send(data)
    first = wire.read_response()
    assert first.get("Connection") == "keep-alive"
    wire.send("GET /text HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"text"


def test_a_discarded_body_that_comes_late(shared):
    proxy = shared("location / { return 200 text; }")
    wire = proxy.connect()
    wire.send(HEAD.format(target="/") + "Content-Length: 10\r\n\r\n")
    assert wire.read_response().body == b"text"
    wire.send(b"01234")
    wire.send(b"56789GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"text"


MUCH = 20 << 20
WRITTEN_FIRST = [
    ("an error page", post("/moved", bytes(MUCH)), "keep-alive"),
    ("a GET", post("/big", bytes(MUCH)).replace(b"POST", b"GET", 1), "keep-alive"),
    ("chunks", post_chunked("/moved", chunked(*[bytes(1 << 20)] * 20)), "keep-alive"),
    ("a body too large", post("/limited", bytes(MUCH)), "close"),
]


@pytest.mark.parametrize("name, data, connection", WRITTEN_FIRST, ids=[row[0] for row in WRITTEN_FIRST])
def test_a_client_may_write_all_before_it_reads(shared, name, data, connection):
    """Both the body that nobody wants and the response are more than the sockets hold."""
    proxy = shared(
        """
        root html; client_max_body_size 0; send_timeout 5s;
        location /moved { error_page 405 =200 /big; }
        location /limited { client_max_body_size 1k; error_page 413 /big; }
        """,
        files={"html/moved": "", "html/big": "x" * MUCH},
    )
    wire = proxy.connect()
    # What comes right behind the body is the next request.
    wire.send(data + (HEAD.format(target="/moved").replace("POST", "GET") + "\r\n").encode())
    answer = wire.read_response()
    assert len(answer.body) == MUCH
    assert answer.get("Connection") == connection
    if connection == "keep-alive":
        assert wire.read_response().status == 200


EARLY = pytest.param("/early", marks=ringx_only("nginx reads no more"), id="a server")


@pytest.mark.parametrize("target", [pytest.param("/moved", id="a file"), EARLY])
def test_a_client_that_writes_and_never_reads_is_ended(serve, upstream, target):
    """However much of a body comes: the response's time runs out."""
    server = upstream(script(head, send(response(bytes(MUCH))), to_end))
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@; root html; client_max_body_size 0; send_timeout 1s; lingering_close off;
            location /moved { error_page 405 =200 /big; }
            location /early { proxy_request_buffering off; proxy_pass http://@up@; }
        }
        """,
        up=server.address,
    )
    (proxy.prefix / "html").mkdir(exist_ok=True)
    (proxy.prefix / "html/moved").touch()
    (proxy.prefix / "html/big").write_bytes(bytes(MUCH))
    wire = proxy.connect()
    wire.send(HEAD.format(target=target) + "Transfer-Encoding: chunked\r\n\r\n")
    until = time.monotonic() + 5
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while time.monotonic() < until:
            wire.send(chunked(bytes(1 << 14)).removesuffix(b"0\r\n\r\n"))
    proxy.logged("client timed out (110: Connection timed out)")


@ringx_only("nginx waits for the client to read")
def test_a_client_may_write_all_to_a_server_that_answers_before(serve, upstream):
    server = upstream(script(head, send(response(bytes(MUCH))), to_end))
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@; client_max_body_size 0; send_timeout 5s;
            location / { proxy_request_buffering off; proxy_pass http://@up@; }
        }
        """,
        up=server.address,
    )
    wire = proxy.connect()
    wire.send(post("/", bytes(MUCH)))
    assert len(wire.read_response().body) == MUCH


def test_a_bad_chunked_body_that_nobody_reads_ends_the_connection(shared):
    proxy = shared("location / { return 200 text; }")
    wire = proxy.connect()
    wire.send(post_chunked("/", b"zz\r\n"))
    try:
        assert wire.read_response().status in (200, 400)
    except Late:
        raise
    wire.finish()
    assert b"HTTP/1.1" not in wire.read_to_end()


REFUSED = [
    ("client_max_body_size x;", '[emerg] "client_max_body_size" directive invalid value in F:6'),
    ("client_body_buffer_size 1g;", '[emerg] "client_body_buffer_size" directive invalid value in F:6'),
    ("client_body_in_file_only maybe;", '[emerg] invalid value "maybe" in F:6'),
    ("client_body_in_single_buffer 1;", '[emerg] invalid value "1" in "client_body_in_single_buffer" directive, it must be "on" or "off" in F:6'),
    ("client_body_temp_path a 0;", '[emerg] "client_body_temp_path" directive invalid value in F:6'),
    ("client_body_temp_path a 1 2 3 4;", '[emerg] invalid number of arguments in "client_body_temp_path" directive in F:6'),
    ("client_body_timeout 1y;", '[emerg] "client_body_timeout" directive invalid value in F:6'),
    ("location / { if ($uri) { client_max_body_size 1; } }", '[emerg] "client_max_body_size" directive is not allowed here in F:6'),
]


@pytest.mark.parametrize("text, expected", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_said_when_it_is_read(refused, text, expected):
    assert refused(text)[0] == expected
