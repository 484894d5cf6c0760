"""uwsgi servers of every kind, with one application: framing, parallel work, their limits, WebSocket."""

import hashlib
import json
import random
import socket
import subprocess
from pathlib import Path

import pytest
from websockets.sync.client import connect as websocket

from harness.proxy import Proxy, eventually
from harness.servers import Server

ROOT = Path(__file__).resolve().parent.parent
differs = pytest.mark.differs_in_nginx
CHUNKED = "nginx passes the chunks of a uwsgi response as data (uwsgi.md 9.2)"


# Every kind of server, by TCP and by its unix socket.

KINDS = {
    "prefork": "bare_uwsgi",
    "threads": "bare_threads",
    "gevent": "bare_gevent",
    "gunicorn-sync": "bare_sync",
    "gunicorn-gthread": "bare_gthread",
    "gunicorn-gevent": "bare_green",
    "gunicorn-asgi": "bare_asgi",
    "gunicorn-26": "bare_gunicorn_26",
}
# How many requests each is sure to work on at the same time: what is more waits in its backlog. A gthread worker
# takes connections before it has a thread for them, so it may be one of the two that gets them all.
AT_ONCE = {
    "prefork": 4,
    "threads": 8,
    "gevent": 60,
    "gunicorn-sync": 2,
    "gunicorn-gthread": 4,
    "gunicorn-gevent": 60,
    "gunicorn-asgi": 60,
    "gunicorn-26": 4,
}




@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def app(kind, via, shared, request) -> Proxy:
    address = via(request.getfixturevalue(KINDS[kind]))
    return shared(f"client_max_body_size 0; include {ROOT}/conf/uwsgi_params; location / {{ uwsgi_pass {address}; }}")


without_length = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=differs(CHUNKED)) if kind == "gunicorn-26" else kind for kind in KINDS],
    indirect=True,
)


def test_a_client_connection_stays_over_many_requests(app):
    wire = app.connect()
    for _ in range(20):
        wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        response = wire.read_response()
        assert (response.start, response.framing, response.body) == ("HTTP/1.1 200 OK", "length", b"hello\n")
        assert response.get("Connection") == "keep-alive"


@without_length
def test_a_response_without_length_is_chunked_for_the_client(app):
    wire = app.connect()
    for _ in range(2):
        wire.send("GET /download/300000 HTTP/1.1\r\nHost: a\r\n\r\n")
        response = wire.read_response()
        assert (response.framing, response.get("Connection")) == ("chunked", "keep-alive")
        assert response.body == (bytes(range(256)) * 1172)[:300_000]


@without_length
def test_a_response_without_length_ends_by_close_for_an_old_client(app):
    response = app.ask("GET /download/300000 HTTP/1.0\r\n\r\n")
    assert (response.framing, len(response.body)) == ("close", 300_000)


@pytest.mark.parametrize("size", [0, 1, 8192, 300_000])
def test_a_body_of_known_length(app, size):
    body = random.Random(size).randbytes(size)
    response = app.get("/upload", method="POST", body=body)
    assert json.loads(response.body) == {"length": size, "sha256": hashlib.sha256(body).hexdigest()}


def test_a_head_request_has_no_body_in_front_of_the_next_answer(app):
    wire = app.connect()
    for method, body in [("HEAD", b""), ("GET", b"hello\n")] * 3:
        wire.send(f"{method} / HTTP/1.1\r\nHost: a\r\n\r\n")
        response = wire.read_response(method)
        assert (response.status, response.get("Content-Length"), response.body) == (200, "6", body)


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_that_has_no_body(app, status):
    wire = app.connect()
    for _ in range(2):
        wire.send(f"GET /status/{status} HTTP/1.1\r\nHost: a\r\n\r\n")
        response = wire.read_response()
        assert (response.status, response.get("X-From"), response.framing) == (status, "application", "none")


@without_length
def test_each_event_arrives_before_the_next_is_made(app, cues):
    wire = app.connect()
    wire.send(f"GET /events?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    actor = cues.actor()
    for number in range(20):
        actor.say(f"number {number}")
        if number == 0:
            assert wire.read_head().get("Content-Type") == "text/event-stream"
        assert wire.read_until(b"\r\n") == b"%x\r\n" % len(f"data: number {number}\n\n")
        assert wire.read_until(b"\r\n") == f"data: number {number}\n\n\r\n".encode()
    actor.end()
    assert wire.read_until(b"\r\n\r\n") == b"0\r\n\r\n"
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().body == b"hello\n"


def test_as_many_requests_at_once_as_the_server_can(app, kind, cues):
    wires = [app.connect() for _ in range(AT_ONCE[kind])]
    for wire in wires:
        wire.send(f"GET /held?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    actors = [cues.actor() for _ in wires]
    for actor in actors:
        actor.end()
    assert [wire.read_response().body for wire in wires] == [b"hello\n"] * len(wires)


# What uWSGI makes of SERVER_PROTOCOL.


@pytest.mark.parametrize("told", ["HTTP/1.1", "HTTP/1.0", None])
def test_an_answer_in_the_version_that_uwsgi_was_told(serve, bare_uwsgi, via, told):
    """uWSGI's own version is the variable's, 1.0 without one: to the client it is the proxy's all the same."""
    param = f"uwsgi_param SERVER_PROTOCOL {told};" if told else ""
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            uwsgi_param REQUEST_METHOD $request_method;
            uwsgi_param PATH_INFO $document_uri;
            uwsgi_param QUERY_STRING $query_string;
            {param}
            location / {{ uwsgi_pass {via(bare_uwsgi)}; }}
        }}
        """
    )
    wire = proxy.connect()
    for _ in range(2):
        wire.send("GET /protocol HTTP/1.1\r\nHost: a\r\n\r\n")
        response = wire.read_response()
        assert (response.start, response.framing) == ("HTTP/1.1 200 OK", "chunked")
        assert response.get("Connection") == "keep-alive"
        assert response.body == (told or "none").encode()


# Limits of uWSGI.


def test_a_block_above_buffer_size_is_a_502(front, bare_uwsgi, via):
    proxy = front(via(bare_uwsgi))
    assert proxy.get("/", f"X-Long: {'x' * 3000}").status == 200
    assert proxy.get("/", f"X-Long: {'x' * 4000}").status == 502
    proxy.logged("recv() failed (104: Connection reset by peer) while reading response header from upstream")
    assert proxy.get("/").status == 200
    eventually(lambda: "(max 4096)...skip" in bare_uwsgi.log.read_text(), "uWSGI says why")


def test_a_larger_buffer_size_takes_it(front, bare_roomy, via):
    proxy = front(via(bare_roomy))
    assert proxy.get("/", *[f"X-Long-{number}: {'x' * 7000}" for number in range(3)]).status == 200


def test_more_variables_than_max_vars_are_a_502(front, bare_uwsgi, via):
    proxy = front(via(bare_uwsgi))
    assert proxy.get("/", *[f"X-{number}: 1" for number in range(130)]).status == 502
    proxy.logged("while reading response header from upstream")
    assert proxy.get("/").status == 200


def test_an_unknown_modifier_is_a_502(front, bare_uwsgi, via):
    proxy = front(via(bare_uwsgi), "uwsgi_modifier1 5;")
    assert proxy.get("/").status == 502
    proxy.logged("upstream prematurely closed connection while reading response header from upstream")


def waiting(server: Server, via_unix: bool) -> int:
    """How many connections wait in the server's backlog."""
    if via_unix:
        command = ["ss", "--no-header", "--listening", "--unix", "src", str(server.path)]
        column = 2
    else:
        command = ["ss", "--no-header", "--listening", "--tcp", "--numeric", "src", server.address]
        column = 1
    (line,) = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return int(line.split()[column])


def test_a_full_backlog_of_a_unix_socket_is_a_502_at_once(front, bare_small, cues):
    """One is worked on, listen and one wait; who waited is served all the same."""
    proxy = front(f"unix:{bare_small.path}")
    wires = [ask_held(proxy, cues)]
    actors = [cues.actor()]
    for number in range(5):
        wires.append(ask_held(proxy, cues))
        eventually(lambda: waiting(bare_small, True) == number + 1, f"{number + 1} connections wait")
    assert proxy.get("/").status == 502
    line = proxy.logged(f"connect() to unix:{bare_small.path} failed (11: Resource temporarily unavailable)")
    assert "[error]" in line
    actors[0].end()
    for _ in wires[1:]:
        cues.actor().end()
    assert [wire.read_response().body for wire in wires] == [b"hello\n"] * 6
    assert proxy.get("/").status == 200


def test_a_full_backlog_of_a_tcp_socket_is_a_504(front, bare_small, cues):
    proxy = front(bare_small.address, "uwsgi_connect_timeout 500ms;")
    wires = [ask_held(proxy, cues)]
    actors = [cues.actor()]
    for number in range(5):
        wires.append(ask_held(proxy, cues))
        eventually(lambda: waiting(bare_small, False) == number + 1, f"{number + 1} connections wait")
    assert proxy.get("/").status == 504
    proxy.logged("upstream timed out (110: Connection timed out) while connecting to upstream")
    actors[0].end()
    for _ in wires[1:]:
        cues.actor().end()
    assert [wire.read_response().body for wire in wires] == [b"hello\n"] * 6
    assert proxy.get("/").status == 200


def ask_held(proxy, cues):
    wire = proxy.connect()
    wire.send(f"GET /held?cue={cues.port} HTTP/1.1\r\nHost: a\r\n\r\n")
    return wire


# The WebSocket API of uWSGI.


@pytest.fixture
def dial(front, uwsgi_websocket, via):
    """`dial(path)`: a WebSocket client at the echo of uWSGI."""
    proxy = front(via(uwsgi_websocket))
    return lambda path="/": websocket(f"ws://127.0.0.1:{proxy.port}{path}", compression=None, max_size=4 << 20)


def test_text_and_binary_frames_of_uwsgi_come_back(dial):
    with dial("/") as client:
        for text in ["a", "ünïcode ✓", "x" * 125, "x" * 126, "x" * 70_000]:
            client.send(text)
            assert client.recv(timeout=10) == text
    with dial("/binary") as client:
        for size in [1, 125, 126, 65_535, 65_536]:
            message = random.Random(size).randbytes(size)
            client.send(message)
            assert client.recv(timeout=10) == message


def test_a_message_of_1_mib_through_uwsgi(dial):
    message = random.Random(1).randbytes(1 << 20)
    with dial("/binary") as client:
        for _ in range(3):
            client.send(message)
            assert client.recv(timeout=10) == message


def test_a_ping_of_the_client_is_answered_by_uwsgi(dial):
    """uWSGI's pong never has the data of the ping, so the ping has none."""
    with dial() as client:
        for _ in range(3):
            assert client.ping(b"").wait(10)
        client.send("still here")
        assert client.recv(timeout=10) == "still here"


def test_a_closed_websocket_frees_the_worker_of_uwsgi(dial):
    """Two workers: more connections than that, one after the other, need the ends to be seen."""
    for number in range(6):
        with dial() as client:
            client.send(str(number))
            assert client.recv(timeout=10) == str(number)


def test_a_client_that_hangs_up_frees_the_worker_of_uwsgi(dial):
    for number in range(6):
        with dial() as client:
            client.send(str(number))
            assert client.recv(timeout=10) == str(number)
            client.socket.shutdown(socket.SHUT_RDWR)


def test_uwsgi_answers_a_plain_request_beside_its_websockets(front, uwsgi_websocket, via):
    proxy = front(via(uwsgi_websocket))
    with websocket(f"ws://127.0.0.1:{proxy.port}/", compression=None) as client:
        assert proxy.get("/").body == b"plain"
        client.send("x")
        assert client.recv(timeout=10) == "x"
