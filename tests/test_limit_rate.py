"""limit_rate towards clients, proxy_limit_rate from servers: how much goes in which second."""

import threading
import time

import pytest

from harness.proxied import MODERN
from harness.proxy import eventually
from harness.upstream import answering, chunked, response

differs = pytest.mark.differs_in_nginx
K = 1024
GET = "GET %s HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def limited(serve, upstream):
    """`limited(text, handler)`: a server with these lines, in front of a scripted one; /f is a file of 40 KiB."""

    def start(text, handler=answering(response(b"x" * 40 * K))):
        server = upstream(handler)
        proxy = serve(
            """
            log_format rate '$uri $limit_rate $status $body_bytes_sent';
            access_log logs/access.log rate;
            server {
                listen 127.0.0.1:@port@;
            """
            + MODERN
            + text
            + "}",
            upstream=server.address,
        )
        (proxy.prefix / "html/f").write_bytes(b"x" * 40 * K)
        return proxy

    return start


def at_a_second(wire, target="/f"):
    """Asks early in a second of the clock: the arithmetic is in whole ones."""
    now = time.time()
    time.sleep((0.02 - now) % 1)
    wire.send(GET % target)
    return time.monotonic()


def came(wire) -> int:
    """Bytes that have come, head and all, as far as they are there now."""
    while wire._is_ready(1, 0) and not wire.ended:
        wire.read_some()
    return len(wire.transcript)


def taken(wire, started: float, milestones: list[tuple[float, int, int]]) -> None:
    """At each time the client must have between so many and so many bytes."""
    for at, least, most in milestones:
        time.sleep(max(0, started + at - time.monotonic()))
        assert least <= came(wire) <= most, f"after {at} s"


# The first write is all that the first second has; that of the second comes a second later.
STEPS = [(0.6, 16 * K, 16 * K), (1.6, 32 * K, 33 * K)]


@pytest.mark.parametrize(
    "text, target",
    [
        ("limit_rate 16k;", "/f"),
        ("location / { limit_rate 16k; }", "/f"),
        ("limit_rate 1m; location / { limit_rate 16384; }", "/f"),
        ("location / { limit_rate 1m; set $limit_rate 16k; }", "/f"),
        ("limit_rate 1m; set $limit_rate 16k;", "/f"),
        ("location / { if ($arg_slow) { limit_rate 16k; } }", "/f?slow=1"),
        ("limit_rate $arg_rate;", "/f?rate=16k"),
        ("location / { limit_rate 16k; proxy_pass http://@upstream@; }", "/"),
        ("location / { set $limit_rate $arg_r; proxy_pass http://@upstream@; }", "/?r=16k"),
    ],
)
def test_a_second_has_its_bytes(limited, text, target):
    proxy = limited(text)
    wire = proxy.connect()
    started = at_a_second(wire, target)
    taken(wire, started, STEPS)
    eventually(lambda: came(wire) > 40 * K, "the rest", 3)
    assert time.monotonic() - started < 3.5
    assert proxy.accessed()[0].split()[1:] == ["16384", "200", str(40 * K)]


@pytest.mark.parametrize(
    "text, target",
    [
        ("limit_rate 16k; limit_rate_after 16k;", "/f"),
        ("limit_rate 16k; limit_rate_after $arg_after;", "/f?after=16k"),
        ("limit_rate 16k; limit_rate_after 16k; location / { proxy_pass http://@upstream@; }", "/"),
    ],
)
def test_the_first_bytes_are_free(limited, text, target):
    proxy = limited(text)
    wire = proxy.connect()
    started = at_a_second(wire, target)
    taken(wire, started, [(0.6, 32 * K, 32 * K)])
    eventually(lambda: came(wire) > 40 * K, "the rest", 2)
    assert time.monotonic() - started > 0.9


@pytest.mark.parametrize(
    "text, target, rate",
    [
        ("limit_rate 0;", "/f", 0),
        ("limit_rate 1m;", "/f", 1 << 20),
        ("limit_rate 1k; set $limit_rate 0;", "/f", 0),
        ("limit_rate $arg_rate;", "/f?rate=0", 0),
        ("location / { proxy_buffering off; limit_rate 1k; proxy_pass http://@upstream@; }", "/", 0),
        ("limit_rate 1k; location = /f { if ($arg_fast) { limit_rate 0; } }", "/f?fast=1", 0),
    ],
)
def test_no_limit_that_is_felt(limited, text, target, rate):
    proxy = limited(text)
    started = time.monotonic()
    assert len(proxy.ask(GET % target).body) == 40 * K
    assert time.monotonic() - started < 0.9
    assert proxy.accessed()[0].split()[1] == str(rate)


@pytest.mark.parametrize("bad", ["x", "-1", "1g", "16kk"])
@pytest.mark.parametrize(
    "text, what", [("limit_rate $arg_rate;", "size"), ("set $limit_rate $arg_rate;", "$limit_rate")]
)
def test_a_value_that_is_no_size(limited, text, what, bad):
    proxy = limited(text)
    assert len(proxy.get(f"/f?rate={bad}").body) == 40 * K
    line = proxy.logged(f'invalid {what} "{bad}"')
    assert "[error]" in line


@differs("the wait behind the last write holds up the next request")
def test_each_request_begins_anew(limited):
    """The second request of a connection has a first second of its own."""
    proxy = limited("limit_rate 48k;")
    with proxy.connect() as wire:
        started = time.monotonic()
        for _ in range(3):
            wire.send(GET % "/f")
            assert len(wire.read_response().body) == 40 * K
        assert time.monotonic() - started < 0.9


def test_what_is_returned_is_limited_too(limited):
    proxy = limited('location /r { limit_rate 100; return 200 "%s"; }' % ("y" * 150))
    wire = proxy.connect()
    started = at_a_second(wire, "/r")
    taken(wire, started, [(0.6, 100, 100)])
    assert wire.transcript.startswith(b"HTTP/1.1 200 OK\r\n")
    eventually(lambda: came(wire) > 200, "the next second", 2)


def test_other_requests_go_on_meanwhile(limited):
    proxy = limited("location /f { limit_rate 1k; } location /p { return 200 p; }")
    wire = proxy.connect()
    wire.send(GET % "/f")
    for _ in range(20):
        assert proxy.get("/p").body == b"p"
    assert came(wire) <= 2 * K


def test_a_limited_client_lets_go_of_the_server(limited):
    """The whole response is read ahead, up to the buffers."""
    closed = threading.Event()

    def handler(wire):
        wire.read_request()
        wire.send(response(b"x" * 40 * K))
        wire.read_to_end()
        closed.set()

    proxy = limited(
        "location / { limit_rate 16k; proxy_buffers 16 4k; proxy_pass http://@upstream@; } access_log off;", handler
    )
    wire = proxy.connect()
    started = at_a_second(wire, "/")
    assert closed.wait(0.8)
    taken(wire, started, [(0.9, 16 * K, 16 * K)])


def test_a_limited_chunked_response(limited):
    parts = [b"a" * 10 * K, b"b" * 10 * K, b"c" * 10 * K]
    proxy = limited(
        "location / { limit_rate 16k; proxy_pass http://@upstream@; }",
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*parts)),
    )
    started = time.monotonic()
    assert proxy.ask(GET % "/").body == b"".join(parts)
    assert time.monotonic() - started > 0.5


# From the server.


def dripless(length, *fields):
    return answering(response(b"x" * length, *fields))


@pytest.mark.parametrize(
    "text",
    [
        "location / { proxy_limit_rate 8k; proxy_buffers 8 4k; proxy_pass http://@upstream@; }",
        "proxy_limit_rate 8k; location / { proxy_pass http://@upstream@; }",
    ],
)
def test_a_server_is_read_by_the_second(limited, text):
    proxy = limited(text, answering(response(b"x" * 20 * K)))
    wire = proxy.connect()
    started = at_a_second(wire, "/")
    # What came with the head, and then what the second has left.
    taken(wire, started, [(0.5, 1 * K, 12 * K)])
    eventually(lambda: came(wire) > 20 * K, "the rest", 4)
    assert 1.0 < time.monotonic() - started < 3.9


@differs("variables are taken since 1.27.0")
def test_a_servers_rate_with_variables(limited):
    proxy = limited("location / { proxy_limit_rate $arg_r; proxy_pass http://@upstream@; }", dripless(20 * K))
    for target, least, most in [("/?r=8k", 1.0, 3.9), ("/?r=0", 0, 0.9)]:
        started = time.monotonic()
        assert len(proxy.ask(GET % target).body) == 20 * K
        assert least <= time.monotonic() - started < most


def test_an_unbuffered_response_is_read_at_any_speed(limited):
    proxy = limited(
        "location / { proxy_limit_rate 1k; proxy_buffering off; proxy_pass http://@upstream@; }", dripless(20 * K)
    )
    started = time.monotonic()
    assert len(proxy.ask(GET % "/").body) == 20 * K
    assert time.monotonic() - started < 0.9


def test_a_uwsgi_server_is_read_by_the_second(limited):
    def handler(wire):
        wire.read_some()
        wire.send(response(b"x" * 20 * K))

    proxy = limited("location / { uwsgi_limit_rate 8k; uwsgi_pass @upstream@; }", handler)
    started = time.monotonic()
    assert len(proxy.ask(GET % "/").body) == 20 * K
    assert 1.0 < time.monotonic() - started < 3.9


def test_a_client_that_leaves_a_slowed_exchange(limited):
    """The server is told although nothing is awaited from it."""
    gone = []

    def handler(wire):
        wire.read_request()
        wire.send(response(b"x" * 400 * K))
        try:
            wire.read_to_end()
        finally:
            gone.append(True)

    proxy = limited("location / { proxy_limit_rate 4k; proxy_pass http://@upstream@; }", handler)
    wire = proxy.connect()
    wire.send(GET % "/")
    wire.read_head()
    wire.close()
    proxy.logged("client prematurely closed connection, so upstream connection is closed too")
    eventually(lambda: gone, "the server's connection is closed")


def test_a_limit_that_the_head_of_the_response_tells(limited):
    text = "location / { limit_rate $upstream_http_x_rate; proxy_pass http://@upstream@; }"
    proxy = limited(text, answering(response(b"ok", "X-Rate: 1000000")))
    assert proxy.get("/").body == b"ok"
    assert proxy.accessed() == ["/ 1000000 200 2"]


@pytest.mark.parametrize(
    "status, location",
    [
        ("200 OK", "proxy_pass http://@upstream@;"),
        ("403 Forbidden", "proxy_pass http://@upstream@; proxy_intercept_errors on; error_page 403 = /f;"),
    ],
)
@pytest.mark.parametrize("ignored", [False, True])
def test_the_limit_of_a_response_that_another_takes_the_place_of(limited, status, location, ignored):
    fields = ["X-Accel-Limit-Rate: 1000000", *(["X-Accel-Redirect: /f"] if status == "200 OK" else [])]
    ignores = "proxy_ignore_headers X-Accel-Limit-Rate;" if ignored else ""
    proxy = limited(f"location / {{ {location} {ignores} }} location = /f {{ root html; }}", answering(response(b"", *fields, status=status)))
    assert proxy.get("/").body == b"x" * 40 * K
    assert proxy.accessed() == [f"/f {0 if ignored else 1000000} {status[:3]} {40 * K}".replace(" 403 ", " 200 ")]


@pytest.mark.parametrize("pace", ["limit_rate 400k;", "limit_rate 8m;", "limit_rate_after 1m; limit_rate 8m;"])
@pytest.mark.parametrize("buffers", ["proxy_buffers 8 4k;", "proxy_buffers 3 4k; proxy_busy_buffers_size 8k;"])
def test_full_buffers_that_go_out_at_once(limited, pace, buffers):
    """Nothing is left to wait for but the server."""
    body = b"x" * 100 * K
    proxy = limited(
        f"location / {{ {pace} {buffers} proxy_max_temp_file_size 0; proxy_pass http://@upstream@; }}",
        answering(response(body)),
    )
    assert proxy.get("/").body == body
