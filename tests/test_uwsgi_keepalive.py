"""`uwsgi_keepalive`: which servers are asked again on a connection, and what becomes of the others."""

import select
import socket
import threading

import pytest

from conftest import ROOT
from harness.packet import read_body, read_packet
from harness.proxy import eventually
from harness.upstream import Upstream, response
from harness.wire import Wire

pytestmark = pytest.mark.ringx_only("uwsgi_keepalive is ringx's")
KEEP = "Connection: keep-alive"
GET = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def open_to(address: str) -> socket.socket:
    if address.startswith("unix:"):
        there = socket.socket(socket.AF_UNIX)
        there.connect(address.removeprefix("unix:"))
        return there
    host, port = address.rsplit(":", 1)
    return socket.create_connection((host, int(port)))


@pytest.fixture
def counted(upstream):
    """`counted(server)`: the same server, behind a relay that knows how many connections there were."""

    def relay_to(server) -> Upstream:
        def relay(wire: Wire) -> None:
            ends = {wire.sock: open_to(server.address)}
            wire.sock.setblocking(True)
            ends[ends[wire.sock]] = wire.sock
            while True:
                for end in select.select(list(ends), [], [])[0]:
                    piece = end.recv(1 << 16)
                    if not piece:
                        for each in ends:
                            each.close()
                        return
                    ends[end].sendall(piece)

        return upstream(relay)

    return relay_to


@pytest.fixture
def group(serve):
    """`group(server …)`: ringx in front of a group of these."""

    def start(*servers: Upstream, keepalive: str = "on", of_group: str = "keepalive 8;", location: str = ""):
        lines = "\n".join(f"server {server.address} max_fails=1;" for server in servers)
        return serve(
            f"""
            upstream up {{ {of_group} {lines} }}
            server {{
                listen 127.0.0.1:@port@;
                include @root@/conf/uwsgi_params;
                uwsgi_keepalive {keepalive};
                {location}
                location / {{ uwsgi_pass up; }}
            }}
            """.replace("@root@", str(ROOT))
        )

    return start


def ask(proxy, times: int, request: str = GET, status: int = 200) -> None:
    with proxy.connect() as wire:
        for _ in range(times):
            wire.send(request)
            assert wire.read_response().status == status


# Real servers.


@pytest.mark.parametrize(
    "server, keepalive, connections",
    [
        ("bare_gthread", "on", 1),
        ("bare_gthread", "off", 6),
        ("bare_asgi", "on", 6),
        ("bare_asgi", "assume", 1),
        ("bare_green", "on", 1),
        ("bare_gunicorn_26", "on", 1),
        ("bare_sync", "on", 6),
        ("bare_sync", "assume", 6),
    ],
)
def test_gunicorn(group, counted, request, server, keepalive, connections):
    relay = counted(request.getfixturevalue(server))
    ask(group(relay, keepalive=keepalive), 6)
    assert len(relay.connections) == connections


@pytest.mark.parametrize(
    "keepalive, told",
    [
        ("on", '"uwsgi_keepalive" has no effect: the server does not say "Connection: keep-alive"'),
        ("assume", '"uwsgi_keepalive assume" is given up: the server closes connections after one response'),
    ],
)
def test_uwsgi_closes_and_that_is_said_once(group, counted, bare_uwsgi, keepalive, told):
    relay = counted(bare_uwsgi)
    proxy = group(relay, keepalive=keepalive)
    ask(proxy, 30)
    assert len(relay.connections) == 30
    assert "[warn]" in proxy.logged(told)
    assert proxy.error_log().count("uwsgi_keepalive") == 1


def test_bodies_and_long_answers_do_not_get_in_each_others_way(group, counted, bare_gthread):
    relay = counted(bare_gthread)
    proxy = group(relay)
    with proxy.connect() as wire:
        for size in (1, 70_000, 0, 300_000, 8192):
            wire.send(f"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n" + "x" * size)
            assert f'"length": {size},'.encode() in wire.read_response().body
            wire.send(f"GET /download/{size} HTTP/1.1\r\nHost: a\r\n\r\n")
            assert len(wire.read_response().body) == size


# The conditions, one by one.


def scripted(upstream, answer: bytes, then=lambda wire: None) -> Upstream:
    """Gives this answer to all packets of a connection."""

    def serve(wire):
        while True:
            read_body(wire, read_packet(wire))
            wire.send(answer)
            then(wire)

    return upstream(serve)


@pytest.mark.parametrize(
    "answer, keepalive, connections",
    [
        (response(b"ok", KEEP), "on", 1),
        (response(b"ok", "connection: Keep-Alive"), "on", 1),
        (response(b"ok"), "on", 2),
        (response(b"ok"), "assume", 1),
        (response(b"ok", "Connection: close"), "assume", 2),
        (response(b"ok", "Connection: keep-alive, close"), "on", 2),
        (response(b"", KEEP, status="204 No Content"), "on", 1),
        (response(b"", KEEP, status="304 Not Modified"), "on", 1),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n2\r\nok\r\n0\r\n\r\n", "on", 1),
        (response(b"ok", KEEP) + b"!", "on", 2),
        (b"HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n!", "on", 2),
    ],
)
def test_what_a_response_must_be_like(group, upstream, answer, keepalive, connections):
    server = scripted(upstream, answer)
    with group(server, keepalive=keepalive).connect() as wire:
        for _ in range(2):
            wire.send(GET)
            wire.read_response()
    assert len(server.connections) == connections


def test_a_head_request_ends_its_connection(group, upstream):
    server = scripted(upstream, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n")
    with group(server).connect() as wire:
        for _ in range(2):
            wire.send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_response("HEAD").status == 200
    assert len(server.connections) == 2


def test_an_answer_before_the_body_ends_its_connection(group, upstream):
    def early(wire):
        read_packet(wire)
        wire.send(response(b"no", KEEP, status="413 Too Large"))
        wire.read_to_end()

    server = upstream(early)
    size = 8 << 20
    proxy = group(server, location="client_max_body_size 0;")
    for _ in range(2):
        with proxy.connect() as wire:
            wire.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n")
            threading.Thread(target=_send_all, args=(wire, size), daemon=True).start()
            assert wire.read_response().status == 413
    assert len(server.connections) == 2


def _send_all(wire: Wire, size: int) -> None:
    try:
        wire.send(bytes(size))
    except OSError:
        pass


def test_limits_of_the_group(group, upstream):
    server = scripted(upstream, response(b"ok", KEEP))
    ask(group(server, of_group="keepalive 8; keepalive_requests 2;"), 5)
    assert len(server.connections) == 3


def test_a_group_that_keeps_nothing(group, upstream):
    server = scripted(upstream, response(b"ok", KEEP))
    ask(group(server, of_group="keepalive 0;"), 3)
    assert len(server.connections) == 3


def test_an_idle_connection_is_closed_before_gunicorn_would(group, upstream):
    server = scripted(upstream, response(b"ok", KEEP))
    proxy = group(server)
    ask(proxy, 1)
    # The script reads on that connection, too: its end is seen by its own thread.
    eventually(lambda: server.connection().ended, "the connection was closed")


# The other side closes first.


def closing_after_one(upstream, seen: list, **options) -> Upstream:
    """Says that it keeps connections, and closes with the second packet, before any answer."""

    def serve(wire):
        seen.append(read_packet(wire).get("REQUEST_METHOD"))
        wire.send(response(b"ok", KEEP))
        seen.append(read_packet(wire).get("REQUEST_METHOD") + " unanswered")

    return upstream(serve, **options)


def test_a_kept_connection_that_fails_is_replaced(group, upstream):
    """And the server is not taken for a failed one: two of them with max_fails=1 stay."""
    seen = []
    servers = [closing_after_one(upstream, seen) for _ in range(2)]
    proxy = group(*servers)
    ask(proxy, 8)
    assert seen.count("GET") == 8 and "GET unanswered" in seen
    assert "no live upstreams" not in proxy.error_log()
    assert "temporarily disabled" not in proxy.error_log()


def test_a_post_that_may_have_been_carried_out_is_not_repeated(group, upstream):
    seen = []
    proxy = group(closing_after_one(upstream, seen))
    post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    ask(proxy, 1)
    ask(proxy, 1, post, 502)
    assert seen == ["GET", "POST unanswered"]
    proxy.logged("upstream prematurely closed connection while reading response header from upstream")


# What the server is told.


@pytest.mark.parametrize(
    "keepalive, lines, sent",
    [
        ("off", ["Connection: close", "Keep-Alive: 5"], {"HTTP_CONNECTION": "close", "HTTP_KEEP_ALIVE": "5"}),
        ("on", ["Connection: close", "Keep-Alive: 5"], {"HTTP_CONNECTION": None, "HTTP_KEEP_ALIVE": None}),
        ("assume", ["Connection: keep-alive"], {"HTTP_CONNECTION": None}),
        ("on", ["Connection: upgrade", "Upgrade: x"], {"HTTP_CONNECTION": "upgrade", "HTTP_UPGRADE": "x"}),
    ],
)
def test_the_clients_connection_is_its_own(group, upstream, keepalive, lines, sent):
    packets = []

    def serve(wire):
        packets.append(read_packet(wire))
        wire.send(response(b"ok"))

    fields = "".join(f"{line}\r\n" for line in lines)
    group(upstream(serve), keepalive=keepalive).ask(f"GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    assert {name: packets[0].get(name) for name in sent} == sent


def test_protocols_of_one_group_are_not_mixed_up(group, upstream):
    """One server that tells uwsgi from HTTP by the first byte, and hangs up when that changes."""
    kinds: list[set[str]] = []

    def serve(wire):
        kinds.append(mine := set())
        while True:
            wire.wait()
            if wire.unread[:1] == b"\0":
                read_packet(wire)
                mine.add("uwsgi")
            else:
                wire.read_request()
                mine.add("http")
            wire.send(response(b"ok", KEEP))

    proxy = group(upstream(serve), location="location /http { proxy_pass http://up; }")
    with proxy.connect() as wire:
        for path in ("/", "/http", "/", "/http"):
            wire.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_response().body == b"ok"
    assert kinds == [{"uwsgi"}, {"http"}]
