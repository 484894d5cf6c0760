"""uwsgi_keepalive: which connections carry another request, and what becomes of one that breaks."""

import select
import socket
import threading
import time

import pytest

from harness.packet import read_body, read_packet
from harness.proxy import eventually
from harness.upstream import answering, chunked, response
from harness.wire import DEADLINE

pytestmark = pytest.mark.ringx_only("nginx closes a uwsgi connection after each response")

KEEP = "Connection: keep-alive"
OK = response(b"ok", KEEP)
HANDSHAKE = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
NO_EFFECT = '"uwsgi_keepalive" has no effect'
GIVEN_UP = '"uwsgi_keepalive" is given up'


@pytest.fixture
def group(serve):
    """`group(addresses, mode, …)`: the proxy in front of a group of uwsgi servers."""

    def start(*addresses, mode="on", inside="keepalive 8;", params="", location="", more=""):
        servers = "".join(f"server {address};" for address in addresses)
        return serve(
            f"""
            log_format upstream '$status | $upstream_status | $upstream_addr';
            access_log logs/access.log upstream;
            upstream app {{ {servers} {inside} }}
            uwsgi_keepalive {mode};
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param PATH_INFO $document_uri;
            uwsgi_param QUERY_STRING $query_string;
            uwsgi_param SERVER_PROTOCOL $server_protocol;
            uwsgi_param SERVER_NAME $server_name;
            uwsgi_param SERVER_PORT $server_port;
            uwsgi_param CONTENT_LENGTH $content_length;
            {params}
            server {{
                listen 127.0.0.1:@port@;
                error_log logs/error.log info;
                location / {{ {location} uwsgi_pass app; }}
                {more}
            }}
            """
        )

    return start


def answers(*replies, packets=None, then=None):
    """Answers one request after another, the last reply for all further ones; None closes instead."""

    def serve(wire):
        for number in range(10_000):
            packet = read_packet(wire)
            if packets is not None:
                packets.append(packet)
            read_body(wire, packet)
            reply = replies[min(number, len(replies) - 1)]
            if reply is None:
                return
            wire.send(reply)
            if then:
                return then(wire)

    return serve


def ask(proxy, count, method="GET", body=None, fields="", target="/"):
    """So many requests over one client connection; the responses."""
    wire = proxy.connect()
    length = "" if body is None else f"Content-Length: {len(body)}\r\n"
    got = []
    for _ in range(count):
        wire.send(f"{method} {target} HTTP/1.1\r\nHost: a\r\n{fields}{length}\r\n".encode() + (body or b""))
        got.append(wire.read_response(method))
    return got


# Real servers, with a relay before them that counts connections.


def relaying(server):
    def serve(wire):
        with socket.create_connection(("127.0.0.1", server.port)) as behind:
            while True:
                ready, _, _ = select.select([wire.sock, behind], [], [], DEADLINE)
                for side, other in ((wire.sock, behind), (behind, wire.sock)):
                    if side in ready:
                        data = side.recv(65536)
                        if not data:
                            return
                        other.sendall(data)

    return serve


def test_gunicorn_s_threads_keep_their_connections(group, upstream, gunicorn_app):
    relay = upstream(relaying(gunicorn_app))
    got = ask(group(relay.address), 20, target="/?name=a")
    assert {(each.status, each.body) for each in got} == {(200, b"hello a")}
    assert len(relay.connections) == 1


def test_gunicorn_s_threads_and_uploads(group, upstream, gunicorn_app):
    relay = upstream(relaying(gunicorn_app))
    got = ask(group(relay.address), 5, "POST", b"a=1", "Content-Type: application/x-www-form-urlencoded\r\n", "/form")
    assert {each.status for each in got} == {200}
    assert len(relay.connections) == 1


def test_a_client_that_closes_does_not_make_gunicorn_close(group, upstream, gunicorn_app):
    relay = upstream(relaying(gunicorn_app))
    proxy = group(relay.address)
    for _ in range(5):
        assert ask(proxy, 1, fields="Connection: close\r\n")[0].status == 200
    assert len(relay.connections) == 1


@pytest.mark.parametrize(
    "server, mode, connections",
    [
        ("bare_gthread", "off", 5),
        ("bare_green", "on", 1),
        ("bare_gunicorn_26", "on", 1),
        # It announces nothing.
        ("bare_asgi", "on", 5),
        ("bare_asgi", "assume", 1),
    ],
)
def test_gunicorn_s_other_workers(group, upstream, request, server, mode, connections):
    relay = upstream(relaying(request.getfixturevalue(server)))
    got = ask(group(relay.address, mode=mode), 5)
    assert {(each.status, each.body) for each in got} == {(200, b"hello\n")}
    assert len(relay.connections) == connections


def test_bodies_and_long_answers_do_not_get_in_each_others_way(group, upstream, bare_gthread):
    proxy = group(upstream(relaying(bare_gthread)).address)
    with proxy.connect() as wire:
        for size in (1, 70_000, 0, 300_000, 8192):
            wire.send(f"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n" + "x" * size)
            assert f'"length": {size},'.encode() in wire.read_response().body
            wire.send(f"GET /download/{size} HTTP/1.1\r\nHost: a\r\n\r\n")
            assert len(wire.read_response().body) == size


@pytest.mark.parametrize("mode", ["on", "assume"])
def test_gunicorn_s_sync_worker_closes_and_that_is_told(group, upstream, bare_sync, mode):
    relay = upstream(relaying(bare_sync))
    proxy = group(relay.address, mode=mode)
    assert {each.status for each in ask(proxy, 20)} == {200}
    assert len(relay.connections) == 20
    assert '"Connection: close", in upstream "app"' in proxy.logged(NO_EFFECT)


def test_uwsgi_is_never_asked_twice_and_that_is_told_once(group, upstream, tutorial):
    relay = upstream(relaying(tutorial))
    proxy = group(relay.address)
    assert {each.body for each in ask(proxy, 30)} == {b"hello world\n"}
    assert len(relay.connections) == 30
    line = proxy.logged(NO_EFFECT)
    assert "[warn]" in line and 'no "Connection: keep-alive", in upstream "app"' in line
    assert proxy.error_log().count(NO_EFFECT) == 1


# What allows it, response by response.


@pytest.mark.parametrize(
    "mode, reply, connections",
    [
        ("off", OK, 3),
        ("on", OK, 1),
        ("on", response(b"ok"), 3),
        ("assume", response(b"ok"), 1),
        ("on", response(b"ok", "Connection: keep-alive, close"), 3),
        ("assume", response(b"ok", "Connection: close"), 3),
        ("on", b"Status: 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", 1),
        ("on", b"HTTP/1.1 204 None\r\nConnection: keep-alive\r\n\r\n", 1),
        ("on", b"HTTP/1.1 304 Same\r\nConnection: keep-alive\r\n\r\n", 1),
        ("on", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n" + chunked(b"ok"), 1),
        ("on", OK + b"x", 3),
        ("on", b"HTTP/1.1 204 None\r\nConnection: keep-alive\r\n\r\nx", 3),
    ],
)
def test_what_a_response_must_be_like(group, upstream, mode, reply, connections):
    server = upstream(answers(reply))
    ask(group(server.address, mode=mode), 3)
    assert len(server.connections) == connections


def test_without_a_length_the_close_is_the_end(group, upstream):
    server = upstream(answers(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\n\r\nok", then=lambda wire: wire.finish()))
    assert {each.body for each in ask(group(server.address, mode="assume"), 3)} == {b"ok"}
    assert len(server.connections) == 3


def test_after_a_head_request(group, upstream):
    """Some servers send the body all the same."""
    server = upstream(answers(response(b"", KEEP)))
    ask(group(server.address), 3, "HEAD")
    assert len(server.connections) == 3


@pytest.mark.parametrize("inside", ["keepalive 0;", "keepalive 8; keepalive_requests 1;"])
def test_the_limits_of_the_group(group, upstream, inside):
    server = upstream(answers(OK))
    ask(group(server.address, inside=inside), 3)
    assert len(server.connections) == 3


@pytest.mark.parametrize("params, connections", [("", 1), ("uwsgi_param CONTENT_LENGTH 2;", 3)])
def test_a_body_whose_length_may_not_be_what_is_told(group, upstream, params, connections):
    """Such a body's end could be read as the next packet."""
    server = upstream(answers(OK))
    got = ask(group(server.address, params=params), 3, "POST", b"ab")
    assert {each.body for each in got} == {b"ok"}
    assert len(server.connections) == connections


@pytest.mark.parametrize("params", ["uwsgi_param CONTENT_LENGTH 0;", "uwsgi_string abc;"])
def test_a_length_that_is_the_configurations_own(group, upstream, params):
    """What a server makes of it is not known, not even for a request without a body."""
    packets = 0

    def serve(wire):
        nonlocal packets
        while True:
            read_packet(wire, decode=False)
            packets += 1
            wire.send(OK)

    server = upstream(serve)
    assert {each.body for each in ask(group(server.address, params=params), 3)} == {b"ok"}
    assert (packets, len(server.connections)) == (3, 3)


def test_a_body_that_is_kept_back_but_announced(group, upstream):
    def serve(wire):
        while True:
            read_packet(wire)
            wire.send(OK)

    server = upstream(serve)
    ask(group(server.address, location="uwsgi_pass_request_body off;"), 3, "POST", b"ab")
    assert len(server.connections) == 3


@pytest.mark.parametrize("way", ["error_page", "X-Accel-Redirect", "chunked"])
def test_a_body_that_was_given_up_is_not_announced(group, upstream, way):
    """The server would wait for it, or take the next packet for it: that one goes elsewhere all the same."""
    lengths = []

    def serve(wire):
        while True:
            packet = read_packet(wire)
            lengths.append(packet.get("CONTENT_LENGTH"))
            assert "HTTP_TRANSFER_ENCODING" not in packet.names()
            if packet.get("PATH_INFO") == "/stream":
                read_body(wire, packet)
                wire.send(response(b"", KEEP, "X-Accel-Redirect: /page"))
            else:
                wire.send(OK)

    server = upstream(serve)
    proxy = group(
        server.address,
        more="""
        location = /small { client_max_body_size 1; error_page 413 /page; uwsgi_pass app; }
        location = /stream { uwsgi_request_buffering off; uwsgi_pass app; }
        """,
    )
    target = "/stream" if way == "X-Accel-Redirect" else "/small"
    framing = "Transfer-Encoding: chunked" if way == "chunked" else "Content-Length: 2"
    with_body = f"POST {target} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"
    wire = proxy.connect()
    wire.send(with_body)
    if way == "X-Accel-Redirect":
        eventually(lambda: lengths, "the packet")
    wire.send("2\r\nab\r\n0\r\n\r\n" if way == "chunked" else "ab")
    assert wire.read_response().body == b"ok"
    assert lengths[-1] == ""
    behind_the_page = len(server.connections)
    assert ask(proxy, 1)[0].body == b"ok"
    assert len(server.connections) == behind_the_page + 1


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_body_that_a_return_has_no_use_for(group, upstream, part):
    """The page is the server's to make: it gets the body that it is told of, and the next packet is none."""
    bodies = []

    def serve(wire):
        while True:
            packet = read_packet(wire)
            # As a server that answers before it has read the body.
            wire.send(OK)
            bodies.append(read_body(wire, packet))

    server = upstream(serve)
    more = "location /old { return 302 /new; error_page 302 = @page; } location @page { uwsgi_pass app; }"
    proxy = group(server.address, more=more)
    wire = proxy.connect()
    wire.send("POST /old HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n" + "ab"[:part])
    if part < 2:
        eventually(wire.is_taken, "the first part is read")
        wire.send("ab"[part:])
    assert wire.read_response().body == b"ok"
    assert ask(proxy, 1)[0].body == b"ok"
    eventually(lambda: len(bodies) == 2, "both are read")
    assert (bodies, len(server.connections)) == ([b"ab", b""], 1)


def test_an_answer_before_the_whole_body(group, upstream):
    """The rest of the body must not become the next packet."""
    ended = []

    def serve(wire):
        read_packet(wire)
        wire.send(response(b"early", KEEP, status="413 Much"))
        wire.read_to_end()
        ended.append(True)

    server = upstream(serve, answers(OK))
    proxy = group(server.address, location="uwsgi_request_buffering off;")
    wire = proxy.connect()
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
    assert wire.read_response().status == 413
    assert ask(proxy, 1)[0].body == b"ok"
    assert len(server.connections) == 2
    eventually(lambda: ended, "the end of the first connection")


@pytest.mark.parametrize(
    "fields, sent",
    [
        ("Connection: close\r\nKeep-Alive: 5\r\n", []),
        ("Connection: upgrade\r\nUpgrade: websocket\r\n" + HANDSHAKE, ["HTTP_CONNECTION"]),
    ],
)
def test_the_client_s_connection_is_not_told(group, upstream, fields, sent):
    packets = []
    proxy = group(upstream(answers(OK, packets=packets)).address)
    ask(proxy, 1, fields=fields)
    assert [name for name in packets[0].names() if name in ("HTTP_CONNECTION", "HTTP_KEEP_ALIVE")] == sent


def test_it_is_told_where_nothing_is_kept(group, upstream):
    packets = []
    ask(group(upstream(answers(OK, packets=packets)).address, mode="off"), 1, fields="Connection: close\r\n")
    assert packets[0].get("HTTP_CONNECTION") == "close"


def test_protocols_are_not_mixed_up(group, upstream):
    """A group that serves both: each connection stays what it was."""

    def either(wire):
        # A packet begins with its modifier, 0; a request with a letter.
        wire._fill(time.monotonic() + DEADLINE, "a first byte")
        first = bytes(wire.unread[:1])
        kinds.append(first)
        (answers(OK) if first == b"\0" else answering(response(b"ok")))(wire)

    kinds = []
    server = upstream(either)
    more = 'location /http { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://app; }'
    proxy = group(server.address, more=more)
    for _ in range(3):
        assert ask(proxy, 1)[0].body == b"ok"
        assert ask(proxy, 1, target="/http")[0].body == b"ok"
    assert sorted(kinds) == [b"\0", b"G"]


# Idle connections.


@pytest.mark.parametrize("inside, longest", [("keepalive 8;", 2.9), ("keepalive 8; keepalive_timeout 60s;", None)])
def test_how_long_one_is_idle(group, upstream, inside, longest):
    ended = threading.Event()
    took = []

    def serve(wire):
        answers(OK, then=lambda _: None)(wire)
        began = time.monotonic()
        wire.read_to_end()
        took.append(time.monotonic() - began)
        ended.set()

    proxy = group(upstream(serve).address, inside=inside)
    ask(proxy, 1)
    if longest is None:
        assert not ended.wait(3)
    else:
        assert ended.wait(DEADLINE) and 0.9 < took[0] < longest


def test_one_that_was_closed_while_idle_is_not_used(group, upstream):
    server = upstream(answers(OK, then=lambda wire: wire.finish()), answers(OK))
    proxy = group(server.address)
    assert {each.body for each in ask(proxy, 2)} == {b"ok"}


def closing_the_second(packets):
    """Keeps the connection, and closes it when the next packet has come: as if both had met."""
    return answers(OK, None, packets=packets)


def test_a_request_that_meets_the_close_is_repeated(group, upstream):
    packets = []
    one, other = upstream(closing_the_second(packets)), upstream(answers(OK))
    parameters = " max_fails=1 fail_timeout=1h"
    proxy = group(one.address + parameters, other.address + parameters)
    assert {(each.status, each.body) for each in ask(proxy, 8)} == {(200, b"ok")}
    lines = proxy.accessed(8, "access.log")
    assert [line for line in lines if "502, 200 | " in line]
    # Neither counts as failed: both went on to be asked.
    assert "temporarily disabled" not in proxy.error_log()
    assert len([line for line in lines if other.address in line]) >= 4


def test_a_single_server_is_asked_again(group, upstream):
    server = upstream(answers(OK, None), answers(OK))
    assert [each.status for each in ask(group(server.address), 3)] == [200, 200, 200]
    assert len(server.connections) == 2


@pytest.mark.parametrize(
    "location, statuses",
    [("", [200, 502, 200]), ("uwsgi_next_upstream error non_idempotent;", [200, 200, 200])],
)
def test_a_post_is_not_repeated_unless_it_may_be(group, upstream, location, statuses):
    packets = []
    server = upstream(answers(OK, None, packets=packets), answers(OK, packets=packets))
    proxy = group(server.address, location=location)
    assert [each.status for each in ask(proxy, 3, "POST", b"ab")] == statuses
    assert len(packets) == 3 + statuses.count(200) - 2


def test_nothing_is_repeated_when_error_is_not_listed(group, upstream):
    server = upstream(answers(OK, None), answers(OK))
    proxy = group(server.address, location="uwsgi_next_upstream timeout;")
    assert [each.status for each in ask(proxy, 3)] == [200, 502, 200]


def test_a_half_head_is_a_failure(group, upstream):
    """It had begun to answer: that was no idle close."""
    def serve(wire):
        packet = read_packet(wire)
        read_body(wire, packet)
        wire.send(OK)
        read_packet(wire)
        wire.send(b"HTTP/1.1 2")

    parameters = " max_fails=1 fail_timeout=1h"
    one, other = upstream(serve), upstream(answers(OK))
    proxy = group(one.address + parameters, other.address + parameters)
    assert {each.status for each in ask(proxy, 6)} == {200}
    proxy.logged("upstream server temporarily disabled")


def test_assuming_is_given_up(group, upstream):
    """The server announces nothing, and closes: after some of that no connection is kept."""
    server = upstream(answers(response(b"ok"), None))
    proxy = group(server.address, mode="assume")
    assert {each.status for each in ask(proxy, 20)} == {200}
    line = proxy.logged(GIVEN_UP)
    assert "[warn]" in line and 'in upstream "app"' in line
    assert proxy.error_log().count(GIVEN_UP) == 1
    assert len(server.connections) == 20
    assert proxy.error_log().count("prematurely closed") == 4


# A reset behind an answer (uwsgi.md 9.4).


@pytest.mark.parametrize("length", ["", "Content-Length: 4\r\n"])
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_reset_behind_the_answer_to_an_unread_upload(group, upstream, length, buffering):
    def serve(wire):
        read_packet(wire)
        wire.send(f"HTTP/1.1 413 Much\r\n{KEEP}\r\n{length}\r\nless")

    server = upstream(serve)
    proxy = group(server.address, location=f"client_max_body_size 0; uwsgi_request_buffering {buffering};")
    got = [proxy.get("/", method="POST", body=bytes(3 << 20)) for _ in range(10)]
    assert {(each.status, each.body) for each in got} == {(413, b"less")}
    assert len(server.connections) == 10


def test_a_reset_without_a_request_body_stays_an_error(group, upstream):
    passed_on = threading.Event()

    def serve(wire):
        read_packet(wire)
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        assert passed_on.wait(DEADLINE)
        wire.reset()

    proxy = group(upstream(serve).address, location="uwsgi_buffering off;")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_until(b"half")
    passed_on.set()
    assert b"0\r\n\r\n" not in wire.read_to_end()
    proxy.logged("recv() failed (104: Connection reset by peer)")
