"""Groups of servers: kept connections, failures and what is tried next, what variables say of it."""

import re
import threading

import pytest

from harness.ports import free_port
from harness.proxied import GET, MODERN
from harness.proxy import eventually
from harness.upstream import answering, chunked, close, head, pause, request, reset, response, script, send, to_end
from harness.wire import DEADLINE

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
OK = response(b"ok")
LOG = "$status | $upstream_status | $upstream_addr"


@pytest.fixture
def group(serve, upstream):
    """`group(handlers, …)`: the proxy in front of a group with a server for each handler; None is a
    closed port. `parameters` are those of every server."""

    def start(*handlers, parameters="", inside="keepalive 8;", location="", log=LOG, more="", http=""):
        servers = [upstream(handler) if handler else None for handler in handlers]
        addresses = [server.address if server else f"127.0.0.1:{free_port()}" for server in servers]
        lines = "".join(f"server {address} {parameters};" for address in addresses)
        proxy = serve(
            f"""
            log_format upstream '{log}';
            access_log logs/access.log upstream;
            {http}
            upstream group {{ {lines} {inside} }}
            server {{
                listen 127.0.0.1:@port@;
                {MODERN}
                location / {{ {location} proxy_pass http://group; }}
                {more}
            }}
            """
        )
        proxy.servers, proxy.addresses = servers, addresses
        return proxy

    return start


def ask(proxy, *targets, method="GET", body=None):
    """Over one connection; the bodies."""
    wire = proxy.connect()
    answers = []
    for target in targets:
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        wire.send(f"{method} {target} HTTP/1.1\r\nHost: a\r\n{length}\r\n".encode() + (body or b""))
        answers.append(wire.read_response(method).body)
    return answers


def statuses(proxy, count):
    """The upstream statuses of each request so far."""
    return [line.split(" | ")[1] for line in proxy.accessed(count)]


# Kept connections.


@pytest.mark.parametrize(
    "answer, connections",
    [
        (OK, 1),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"o", b"k"), 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 1),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 1),
        (response(b"ok", "Connection: keep-alive"), 1),
        (response(b"ok", "Connection: close"), 3),
        (response(b"ok", "Connection: x, CLOSE"), 3),
        (response(b"ok", "Connection: keep-alive", "Connection: close"), 3),
        (OK.replace(b"1.1", b"1.0"), 3),
        (OK.replace(b"1.1", b"1.0").replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"), 3),
        (OK + b"more", 3),
        (response(b"", status="500 Oops"), 1),
    ],
)
def test_what_keeps_a_connection(group, answer, connections):
    proxy = group(answering(answer))
    for _ in range(3):
        proxy.get("/")
    assert len(proxy.servers[0].connections) == connections


@pytest.mark.parametrize(
    "fields, status, body, connections",
    [
        (["Content-Length: 0"], "200 OK", b"", 1),
        ([], "204 No Content", b"", 1),
        ([], "304 Not Modified", b"", 1),
        (["Content-Length: 0", "Connection: close"], "200 OK", b"", 2),
        (["Content-Length: 2"], "200 OK", b"ok", 2),
        (["Transfer-Encoding: chunked"], "200 OK", b"0\r\n\r\n", 2),
    ],
)
@pytest.mark.parametrize("how", ["redirected", "intercepted"])
def test_what_keeps_a_connection_whose_response_another_takes_the_place_of(group, fields, status, body, connections, how):
    if how == "redirected":
        fields = [*fields, "X-Accel-Redirect: /page"]
    elif status == "200 OK":
        status = "403 Forbidden"
    elif status.startswith("204"):
        pytest.skip("no error")
    answer = "".join(f"{line}\r\n" for line in [f"HTTP/1.1 {status}", *fields]).encode() + b"\r\n" + body
    proxy = group(
        answering(answer),
        location="proxy_intercept_errors on; error_page 403 304 =200 /page;",
        more="location /page { return 200 page; }",
    )
    assert ask(proxy, "/1", "/2") == [b"page"] * 2
    assert len(proxy.servers[0].connections) == connections


@ringx_only("the bytes behind the head would be the answer to the next request")
def test_surplus_behind_a_response_that_another_takes_the_place_of(group):
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Accel-Redirect: /page\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"
    proxy = group(answering(answer), more="location /page { return 200 page; }")
    assert ask(proxy, "/1", "/2") == [b"page"] * 2
    assert len(proxy.servers[0].connections) == 2


def test_a_head_keeps_a_connection_whose_response_another_takes_the_place_of(group):
    proxy = group(
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Accel-Redirect: /page\r\n\r\n"),
        more="location /page { return 200 page; }",
    )
    ask(proxy, "/1", "/2", method="HEAD")
    assert len(proxy.servers[0].connections) == 1


def test_a_head_keeps_a_connection(group):
    proxy = group(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))
    ask(proxy, "/", "/", method="HEAD")
    assert len(proxy.servers[0].connections) == 1


@pytest.mark.parametrize(
    "order",
    [
        pytest.param("keepalive 8; least_conn;", marks=differs("before 1.29.7 it had to come last")),
        "least_conn; keepalive 8;",
    ],
)
def test_keepalive_before_or_behind_the_method(group, order):
    proxy = group(answering(OK), answering(OK), inside=order)
    ask(proxy, *["/"] * 6)
    assert [len(server.connections) for server in proxy.servers] == [1, 1]


def test_a_connection_is_kept_for_each_server(group):
    proxy = group(answering(OK), answering(OK), answering(OK))
    ask(proxy, *["/"] * 9)
    assert [len(server.connections) for server in proxy.servers] == [1, 1, 1]


def test_the_oldest_makes_room(group):
    """One place, two servers in turn: each answer's connection takes the place of the other's."""
    proxy = group(answering(OK), answering(OK), inside="keepalive 1;")
    ask(proxy, *["/"] * 6)
    assert [len(server.connections) for server in proxy.servers] == [3, 3]


@ringx_only("local is younger")
@pytest.mark.parametrize("keepalive, connections", [("keepalive 8 local;", 2), ("keepalive 8;", 1), ("", 2)])
def test_local_connections_are_a_location_s_own(group, keepalive, connections):
    proxy = group(answering(OK), inside=keepalive, more="location /other { proxy_pass http://group; }")
    ask(proxy, "/", "/other", "/", "/other")
    assert len(proxy.servers[0].connections) == connections


@pytest.mark.parametrize("limit, connections", [("keepalive_requests 2;", 3), ("keepalive_requests 5;", 1), ("", 1)])
def test_requests_of_a_connection_are_limited(group, limit, connections):
    proxy = group(answering(OK), inside=f"keepalive 8; {limit}")
    ask(proxy, *["/"] * 5)
    assert len(proxy.servers[0].connections) == connections


def test_the_age_of_a_connection_is_limited(group):
    """An answer that takes longer than the age allowed ends its connection."""
    proxy = group(script(request, pause(0.3), send(OK), to_end), inside="keepalive 8; keepalive_time 100ms;")
    ask(proxy, "/", "/")
    assert len(proxy.servers[0].connections) == 2


def test_the_most_recent_connection_is_taken(group):
    order = []

    def note(wire):
        while True:
            wire.read_request()
            order.append(wire)
            if len(order) == 1:
                assert both.wait(DEADLINE)
            wire.send(OK)

    both = threading.Event()
    proxy = group(note)
    first, second = proxy.connect(), proxy.connect()
    first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    proxy.servers[0].request()
    second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    second.read_response()
    both.set()
    first.read_response()
    # The first request's connection was given back last.
    ask(proxy, "/")
    assert order[2] is order[0]


def test_a_connection_that_its_server_closed_is_not_used(group):
    closed = threading.Event()

    def once(wire):
        wire.read_request()
        wire.send(OK)
        wire.close()
        closed.set()

    proxy = group(once, answering(OK), parameters="", log=LOG)
    assert ask(proxy, "/") == [b"ok"]
    assert closed.wait(DEADLINE)
    # Of two servers the second; then the first again, on a new connection.
    assert ask(proxy, "/", "/") == [b"ok", b"ok"]
    assert statuses(proxy, 3) == ["200"] * 3


def test_a_connection_with_stray_bytes_is_not_used(group):
    sent = threading.Event()

    def stray(wire):
        wire.read_request()
        wire.send(OK)
        if not sent.is_set():
            asked.wait(DEADLINE)
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray")
            sent.set()
        wire.read_to_end()

    asked = threading.Event()
    proxy = group(stray)
    assert ask(proxy, "/") == [b"ok"]
    asked.set()
    assert sent.wait(DEADLINE)
    assert ask(proxy, "/") == [b"ok"]
    assert len(proxy.servers[0].connections) == 2


# A kept connection that fails: the server closes with its second request.

STALE = script(request, send(OK), head, close)


def test_a_stale_connection_is_one_more_try(group):
    proxy = group(STALE, location="proxy_next_upstream_tries 1;")
    assert ask(proxy, "/", "/") == [b"ok", b"ok"]
    assert statuses(proxy, 2) == ["200", "502, 200"]


@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
def test_what_changes_things_is_not_sent_twice(group, method):
    proxy = group(STALE)
    ask(proxy, "/")
    assert b"502" in ask(proxy, "/", method=method, body=b"x")[0]
    assert statuses(proxy, 2)[1] == "502"


@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
def test_unless_it_may_be(group, method):
    proxy = group(STALE, location="proxy_next_upstream error non_idempotent;")
    ask(proxy, "/")
    assert ask(proxy, "/", method=method, body=b"x") == [b"ok"]
    assert statuses(proxy, 2)[1] == "502, 200"


@pytest.mark.parametrize("conditions", ["off", "timeout", "http_500"])
def test_a_stale_connection_is_an_error_that_must_be_listed(group, conditions):
    proxy = group(STALE, location=f"proxy_next_upstream {conditions};")
    assert b"502" in ask(proxy, "/", "/")[1]


def test_stale_connections_count_as_failures(group):
    """Each server has closed its connection: all of them are out for their time."""
    proxy = group(STALE, STALE)
    assert ask(proxy, "/", "/") == [b"ok", b"ok"]
    assert b"502" in ask(proxy, "/")[0]
    a, b = proxy.addresses
    assert proxy.accessed(3)[2] in (f"502 | 502, 502, 502 | {a}, {b}, group", f"502 | 502, 502, 502 | {b}, {a}, group")
    proxy.logged("upstream server temporarily disabled while reading response header from upstream")
    proxy.logged("no live upstreams while connecting to upstream")


def test_stale_connections_of_servers_that_are_never_out(group):
    """Both were tried: that one more try is left does not help."""
    proxy = group(STALE, STALE, parameters="max_fails=0")
    ask(proxy, "/", "/")
    assert b"502" in ask(proxy, "/")[0]
    assert proxy.accessed(3)[2].endswith(", group")


# What is tried next, and what counts.

SENT = script(request, close)
SILENT = to_end
BAD_HEAD = script(request, send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000), to_end)
SHORT = "proxy_read_timeout 200ms;"


def saying(code):
    return answering(response(b"no", status=f"{code} No"))


FAILURES = [
    # (the first server, its condition, its status in the log, whether it counts as a failure when listed, and when not)
    (None, "error", 502, True, True),
    (SENT, "error", 502, True, True),
    (script(request, reset), "error", 502, True, True),
    (SILENT, "timeout", 504, True, True),
    (BAD_HEAD, "invalid_header", 502, True, True),
    (saying(500), "http_500", 500, True, False),
    (saying(502), "http_502", 502, True, False),
    (saying(503), "http_503", 503, True, False),
    (saying(504), "http_504", 504, True, False),
    (saying(429), "http_429", 429, True, False),
    (saying(403), "http_403", 403, False, False),
    (saying(404), "http_404", 404, False, False),
]


@pytest.mark.parametrize("first, condition, status, counts, _", FAILURES)
def test_a_listed_condition_goes_on_to_the_next(group, first, condition, status, counts, _):
    proxy = group(first, answering(OK), location=f"{SHORT} proxy_next_upstream {condition};")
    assert ask(proxy, "/", "/", "/") == [b"ok"] * 3
    again = ["200", f"{status}, 200"]
    assert statuses(proxy, 3) == [f"{status}, 200", *(["200"] * 2 if counts else again)]


@pytest.mark.parametrize("first, condition, status, _, counts", FAILURES)
def test_a_condition_not_listed_is_the_answer(group, first, condition, status, _, counts):
    other = "timeout" if condition == "error" else "error"
    proxy = group(first, answering(OK), location=f"{SHORT} proxy_next_upstream {other};")
    for _ in range(3):
        proxy.get("/")
    expected = [str(status), "200", "200" if counts else str(status)]
    assert statuses(proxy, 3) == expected


@pytest.mark.parametrize("first, condition, status, _, counts", FAILURES)
def test_off_tries_nothing_and_counts(group, first, condition, status, _, counts):
    proxy = group(first, answering(OK), location=f"{SHORT} proxy_next_upstream off;")
    for _ in range(3):
        proxy.get("/")
    assert statuses(proxy, 3) == [str(status), "200", "200" if counts else str(status)]


def test_a_listed_answer_of_the_last_server_is_passed_on(group):
    proxy = group(saying(503), saying(503), location="proxy_next_upstream http_503;")
    answer = proxy.get("/")
    assert (answer.status, answer.body) == (503, b"no")
    assert statuses(proxy, 1) == ["503, 503"]


@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
@pytest.mark.parametrize(
    "first, conditions, expected",
    [
        (SENT, "error", "502"),
        (SENT, "error non_idempotent", "502, 200"),
        (None, "error", "502, 200"),
        (saying(503), "http_503", "503"),
        (saying(503), "http_503 non_idempotent", "503, 200"),
    ],
)
def test_requests_that_change_things(group, method, first, conditions, expected):
    proxy = group(first, answering(OK), location=f"proxy_next_upstream {conditions};")
    ask(proxy, "/", method=method, body=b"x")
    assert statuses(proxy, 1) == [expected]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_requests_that_may_be_repeated(group, method):
    proxy = group(SENT, answering(OK))
    assert ask(proxy, "/", method=method, body=b"x") == [b"ok"]


@pytest.mark.parametrize("tries, expected", [(0, "502, 502, 502, 200"), (1, "502"), (2, "502, 502"), (9, "502, 502, 502, 200")])
def test_tries_are_limited(group, tries, expected):
    proxy = group(None, None, None, answering(OK), location=f"proxy_next_upstream_tries {tries};")
    proxy.get("/")
    assert statuses(proxy, 1) == [expected]


def test_the_time_for_tries_is_limited(group):
    slow = script(request, pause(0.3), close)
    proxy = group(slow, slow, answering(OK), location="proxy_next_upstream_timeout 200ms;")
    assert proxy.get("/").status == 502
    assert statuses(proxy, 1) == ["502"]


def test_an_unbuffered_body_that_was_sent_is_sent_once(group):
    proxy = group(script(head, close), answering(OK), location="proxy_request_buffering off;")
    wire = proxy.connect()
    wire.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
    proxy.servers[0].connection()
    wire.send(b"x" * 10)
    assert wire.read_response().status == 502


def test_an_unbuffered_body_goes_on_while_nothing_was_sent(group):
    proxy = group(None, answering(OK), location="proxy_request_buffering off;")
    assert ask(proxy, "/", method="PUT", body=b"x" * 10) == [b"ok"]


def test_nothing_is_tried_once_the_head_was_taken(group):
    half = script(request, send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), close)
    proxy = group(half, answering(OK))
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_head()
    assert wire.read_to_end() == b"half"
    assert statuses(proxy, 1) == ["200"]


# How long a failed server is out.


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_max_fails(group, fails):
    proxy = group(None, answering(OK), parameters=f"max_fails={fails}")
    assert ask(proxy, *["/"] * 8) == [b"ok"] * 8
    assert statuses(proxy, 8).count("502, 200") == fails
    assert proxy.error_log().count("upstream server temporarily disabled") == 1
    assert "[warn]" in proxy.logged("upstream server temporarily disabled while connecting to upstream")


def test_max_fails_0_is_never_out(group):
    proxy = group(None, answering(OK), parameters="max_fails=0")
    assert ask(proxy, *["/"] * 6) == [b"ok"] * 6
    assert statuses(proxy, 6).count("502, 200") >= 3


def test_fail_timeout_0_is_soon_over(group):
    proxy = group(None, answering(OK), parameters="fail_timeout=1s")
    ask(proxy, "/", "/", "/")
    assert statuses(proxy, 3).count("502, 200") == 1
    eventually(lambda: ask(proxy, "/") and statuses(proxy, 1).count("502, 200") == 2, "the server is tried again")


def test_a_server_that_is_back_serves_again(group):
    proxy = group(SENT, answering(OK), parameters="fail_timeout=1s")
    server = proxy.servers[0]
    ask(proxy, "/", "/")
    server.handlers = [answering(response(b"back"))]
    server_is_back = lambda: b"back" in ask(proxy, "/", "/")  # noqa: E731
    eventually(server_is_back, "it is asked")
    eventually(lambda: ask(proxy, "/", "/", "/", "/").count(b"back") == 2, "its turn is every second one")


def test_a_trial_that_is_no_failure_ends_the_time_out(group):
    """A listed 404 asks for another server, and is no failure of this one."""
    proxy = group(
        SENT, answering(OK), parameters="fail_timeout=1s", location="proxy_next_upstream error http_404;"
    )
    ask(proxy, "/", "/")
    proxy.servers[0].handlers = [saying(404)]
    is_tried = lambda: ask(proxy, "/") and "404, 200" in statuses(proxy, 1)  # noqa: E731
    eventually(is_tried, "it is asked again")
    before = len(proxy.accessed())
    ask(proxy, "/", "/", "/", "/")
    assert statuses(proxy, before + 4)[before:].count("404, 200") == 2


def test_a_trial_whose_client_leaves_ends_the_time_out(group):
    proxy = group(SENT, answering(OK), parameters="fail_timeout=1s")
    server, other = proxy.servers
    ask(proxy, "/", "/")
    server.handlers = [script(request, to_end)]
    failed = len(server.requests)

    def is_tried():
        wire = proxy.connect()
        asked = len(server.requests) + len(other.requests)
        wire.send(GET)
        eventually(lambda: len(server.requests) + len(other.requests) > asked, "one of them is asked")
        wire.close()
        return len(server.requests) > failed

    eventually(is_tried, "it is asked again")
    eventually(lambda: "499" in proxy.log("access.log"), "the client is found gone")
    server.handlers = [answering(response(b"back"))]
    assert ask(proxy, "/", "/", "/", "/").count(b"back") == 2


def test_a_single_server_is_never_out(group):
    proxy = group(None)
    for _ in range(4):
        assert proxy.get("/").status == 502
    assert [line.split(" | ")[2] for line in proxy.accessed(4)] == proxy.addresses * 4
    assert "temporarily disabled" not in proxy.error_log()


def test_all_out_is_no_live_upstreams_without_recovery(group):
    proxy = group(None, None)
    for _ in range(3):
        assert proxy.get("/").status == 502
    a, b = proxy.addresses
    assert proxy.accessed(3) == [f"502 | 502, 502 | {a}, {b}", "502 | 502 | group", "502 | 502 | group"]


def test_a_backup_with_a_single_primary_is_a_group(group):
    proxy = group(None, http="", inside="server @backup@ backup;".replace("@backup@", f"127.0.0.1:{free_port()}"))
    assert proxy.get("/").status == 502
    assert statuses(proxy, 1) == ["502, 502"]


# Variables.

TIMES = "$upstream_status | $upstream_connect_time | $upstream_header_time | $upstream_response_time"
BYTES = "$upstream_status | $upstream_response_length | $upstream_bytes_received | $upstream_bytes_sent"


def test_times_of_each_try(group):
    proxy = group(None, script(request, pause(0.25), send(OK), to_end), log=TIMES)
    proxy.get("/")
    status, connect, header, whole = proxy.accessed()[0].split(" | ")
    assert status == "502, 200"
    assert re.fullmatch(r"-, 0\.\d\d\d", connect) and re.match(r"0\.\d\d\d, ", whole)
    first, second = header.split(", ")
    assert first == "-"
    assert 0.2 <= float(second) < 5 and 0.2 <= float(whole.split(", ")[1]) < 5


def test_bytes_of_each_try(group):
    proxy = group(SENT, answering(OK), log=BYTES)
    proxy.get("/")
    sent = len(proxy.servers[1].request().raw)
    assert proxy.accessed() == [f"502, 200 | 0, 2 | 0, {len(OK)} | {sent}, {sent}"]


LEAVING = "$status | $upstream_status | $upstream_response_time | $upstream_bytes_sent"


def test_the_time_of_a_try_whose_client_leaves(group):
    proxy = group(script(request, to_end), log=LEAVING)
    wire = proxy.connect()
    wire.send(GET)
    raw = proxy.servers[0].request().raw
    wire.close()
    assert re.fullmatch(rf"499 \| - \| \d\.\d\d\d \| {len(raw)}", proxy.accessed()[0])


def half_a_body(group):
    """A proxy that streams bodies, and what its server has read of one up to `01234`."""
    raw = []

    def handler(wire):
        raw.append(wire.read_until(b"01234"))
        wire.read_to_end()

    return group(handler, log=LEAVING, location="proxy_request_buffering off;"), raw


def test_the_bytes_of_a_try_whose_client_breaks_off_its_body(group):
    proxy, raw = half_a_body(group)
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234")
    eventually(lambda: raw, "the first half is with the server")
    wire.close()
    assert re.fullmatch(rf"4\d\d \| - \| \d\.\d\d\d \| {len(raw[0])}", proxy.accessed()[0])


def test_the_time_and_bytes_of_a_try_whose_request_is_refused_by_its_body(group):
    proxy, raw = half_a_body(group)
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n01234\r\n")
    eventually(lambda: raw, "the first chunk is with the server")
    wire.send(b"no chunk\r\n")
    assert wire.read_response("POST").status == 400
    assert re.match(r"400 \| - \| \d\.\d\d\d \| [1-9]", proxy.accessed()[0])


def test_groups_are_told_apart(group):
    proxy = group(
        None,
        answering(OK),
        inside="",
        parameters="max_fails=0",
        location="error_page 502 = @other; proxy_next_upstream off;",
        more="location @other { proxy_pass http://group; }",
    )
    proxy.get("/")
    a, b = proxy.addresses
    assert proxy.accessed() == [f"200 | 502 : 200 | {a} : {b}"]


NOHOST = "set $nohost nohost;"
UNRESOLVED = "$upstream_addr | $upstream_status | $upstream_response_time | $upstream_response_length"


def test_an_exchange_after_another_that_finds_no_name(group):
    proxy = group(
        None,
        log=UNRESOLVED,
        location="error_page 502 = @other;",
        more=f"{NOHOST} location @other {{ proxy_pass http://$nohost; }}",
    )
    assert proxy.get("/").status == 502
    assert re.fullmatch(rf"{proxy.addresses[0]} :  \| 502 :  \| 0\.\d\d\d :  \| 0 : ", proxy.accessed()[0])


def test_an_exchange_that_finds_no_name_before_another(group):
    proxy = group(
        answering(OK),
        log=UNRESOLVED,
        more=f"{NOHOST} location = /x {{ error_page 502 = @other; proxy_pass http://$nohost; }}"
        " location @other { proxy_pass http://group; }",
    )
    assert proxy.get("/x").status == 200
    assert re.fullmatch(rf", {proxy.addresses[0]} \| -, 200 \| 0\.000, 0\.\d\d\d \| 0, 2", proxy.accessed()[0])


def test_an_exchange_alone_that_finds_no_name(group):
    proxy = group(answering(OK), log=UNRESOLVED, more=f"{NOHOST} location = /x {{ proxy_pass http://$nohost; }}")
    assert proxy.get("/x").status == 502
    assert proxy.accessed() == ["- | - | - | -"]


def test_without_an_upstream_there_are_none(group):
    proxy = group(answering(OK), log="[$upstream_addr][$upstream_status][$upstream_response_time]", more="location = /x { return 204; }")
    proxy.get("/x")
    assert proxy.accessed() == ["[-][-][-]"]


# What the configuration may say.


@pytest.mark.parametrize("family", ["proxy", "uwsgi"])
def test_updating_is_for_a_cache_alone(serve, upstream, family):
    server = upstream(answering(OK))
    proxy = serve(
        f"upstream u {{ server 127.0.0.1:{free_port()}; server @upstream@; }} server {{ listen 127.0.0.1:@port@;"
        f" location / {{ {family}_next_upstream updating; {family}_pass {'http' if family == 'proxy' else 'uwsgi'}://u; }} }}",
        upstream=server.address,
    )
    assert proxy.get("/").status == 502
    assert not server.connections


# The head of an earlier try is nobody's any more.


@pytest.mark.parametrize("second", [None, script(head, close), answering(response(b"", "X-B: 1", status="503 Busy"))])
def test_headers_of_an_earlier_try(group, second):
    first = answering(response(b"", "X-A: 1", "Set-Cookie: c=2", status="503 Busy"))
    proxy = group(first, second, location="proxy_next_upstream http_503 error; add_header X $upstream_http_x_a$upstream_cookie_c always;")
    answer = proxy.get("/")
    assert answer.status in (502, 503)
    assert answer.get("X") is None


def test_headers_of_the_last_try_when_there_is_no_other(group):
    first = answering(response(b"", "X-A: 1", status="503 Busy"))
    proxy = group(first, None, parameters="max_fails=1", location="proxy_next_upstream http_503 error; add_header X $upstream_http_x_a always;")
    assert [proxy.get("/").get("X") for _ in range(2)] == [None, None]


@differs("it forgets them when it has begun to connect")
def test_headers_of_an_earlier_try_and_a_socket_that_is_not_there(serve, upstream):
    server = upstream(answering(response(b"", "X-A: 1", status="503 Busy")))
    proxy = serve(
        "upstream group { server @upstream@; server unix:/nonexistent/socket; }"
        " server { listen 127.0.0.1:@port@; location / { proxy_next_upstream http_503 error; proxy_pass http://group;"
        " add_header X $upstream_http_x_a always; } }",
        upstream=server.address,
    )
    answer = proxy.get("/")
    assert (answer.status, answer.get("X")) == (502, None)


@pytest.mark.parametrize("value", ["$upstream_http_x_a", "$upstream_cookie_c"])
def test_headers_of_an_earlier_exchange(group, value):
    proxy = group(
        answering(response(b"", "X-A: 1", "Set-Cookie: c=2", status="503 Busy")),
        location="proxy_intercept_errors on; error_page 503 @other;",
        more=f"set $nohost nohost; location @other {{ add_header X '{value}' always; proxy_pass http://$nohost; }}",
    )
    answer = proxy.get("/")
    assert (answer.status, answer.get("X")) == (502, None)
