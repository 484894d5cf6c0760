"""`stub_status`: how many connections and requests there are."""

import re
import signal

import pytest

from harness.proxy import eventually
from harness.upstream import head, script, to_end

CONF = """
worker_processes @shards@;
events { }
http {
    server {
        listen 127.0.0.1:@port@;
        location / { return 200 "$connections_active $connections_reading $connections_writing $connections_waiting"; }
        location /status { stub_status; }
        location /old { stub_status on; }
        location /slow { proxy_pass http://127.0.0.1:@backend@; proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade; proxy_http_version 1.1; }
    }
}
"""
PAGE = re.compile(
    r"Active connections: (\d+) \nserver accepts handled requests\n (\d+) (\d+) (\d+) \n"
    r"Reading: (\d+) Writing: (\d+) Waiting: (\d+) \n"
)
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def page(proxy) -> dict[str, int]:
    body = proxy.get("/status").body.decode()
    match = PAGE.fullmatch(body)
    assert match, body
    names = ["active", "accepts", "handled", "requests", "reading", "writing", "waiting"]
    return dict(zip(names, map(int, match.groups())))


def now(proxy) -> tuple[int, int, int, int]:
    """Active, reading, writing, waiting; without the one that asks."""
    seen = page(proxy)
    return (seen["active"] - 1, seen["reading"], seen["writing"] - 1, seen["waiting"])


@pytest.fixture
def started(proxy, upstream):
    def start(shards: int = 1, *handlers):
        backend = upstream(*(handlers or [lambda wire: wire.read_to_end()]))
        return proxy(CONF, shards_by_default=True, shards=shards, backend=backend.port)

    return start


def test_the_response(started):
    proxy = started()
    response = proxy.get("/status")
    assert (response.status, response.get("Content-Type")) == (200, "text/plain")
    assert response.framing == "length"
    assert PAGE.fullmatch(response.body.decode())
    assert PAGE.fullmatch(proxy.get("/old").body.decode())


def test_methods(started):
    proxy = started()
    head = proxy.get("/status", method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.get("Content-Length")) > 90
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert proxy.get("/status", method=method).status == 405


def test_a_body_must_be_one(started):
    proxy = started()
    head = b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert proxy.ask(head + b"1\r\nx\r\n0\r\n\r\n").status == 200
    assert proxy.ask(head + b"x\r\n").status == 400


def test_on_the_level_of_a_server(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; stub_status; location /other { return 200 other; } }")
    assert PAGE.fullmatch(proxy.get("/any").body.decode())
    assert proxy.get("/other").body == b"other"


@pytest.mark.parametrize("shards", [1, 2])
def test_what_connections_are_at(started, shards):
    proxy = started(shards)
    eventually(lambda: now(proxy) == (0, 0, 0, 0), "nobody else is there")
    wires = [proxy.connect() for _ in range(4)]
    eventually(lambda: now(proxy) == (4, 0, 0, 4), "they wait for their first request")
    wires[0].send(GET[:9])
    eventually(lambda: now(proxy) == (4, 1, 0, 3), "one sends a head")
    wires[1].send(GET)
    wires[1].read_response()
    eventually(lambda: now(proxy) == (4, 1, 0, 3), "one waits for its second request")
    wires[2].send(GET.replace(b"/ ", b"/slow "))
    eventually(lambda: now(proxy) == (4, 1, 1, 2), "one waits for its answer")
    wires[0].send(GET[9:])
    wires[0].read_response()
    eventually(lambda: now(proxy) == (4, 0, 1, 3), "the head was read")
    wires[3].send(GET[:9])
    eventually(lambda: now(proxy) == (4, 1, 1, 2), "another head")
    for wire in wires:
        wire.close()
    eventually(lambda: now(proxy) == (0, 0, 0, 0), "all are gone")


def test_a_tunnel_is_writing(started):
    def echo(wire):
        wire.read_request()
        wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        while data := wire.read_some():
            wire.send(data)

    proxy = started(1, echo)
    wire = proxy.connect()
    wire.send("GET /slow HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    assert wire.read_head().start.split(" ")[1] == "101"
    wire.send(b"hello")
    assert wire.read_exactly(5) == b"hello"
    eventually(lambda: now(proxy) == (1, 0, 1, 0), "the tunnel is open")
    wire.close()
    eventually(lambda: now(proxy) == (0, 0, 0, 0), "it is gone")


@pytest.mark.parametrize("shards", [1, 2])
def test_totals(started, shards):
    proxy = started(shards)
    before = page(proxy)
    assert before["accepts"] == before["handled"]
    for _ in range(10):
        with proxy.connect() as wire:
            for _ in range(3):
                wire.send(GET)
                wire.read_response()
    after = page(proxy)
    difference = {name: after[name] - before[name] for name in ("accepts", "handled", "requests")}
    # This look at the page is one more.
    assert difference == {"accepts": 11, "handled": 11, "requests": 31}


def test_a_reload_keeps_the_totals(started):
    proxy = started()
    for _ in range(5):
        proxy.get("/")
    before = page(proxy)
    proxy.write(CONF.replace("location / {", "location /reloaded { return 200 yes; } location / {"))
    proxy.signal(signal.SIGHUP)
    eventually(lambda: proxy.get("/reloaded").body == b"yes", "the new configuration holds")
    after = page(proxy)
    assert after["requests"] > before["requests"] and after["accepts"] > before["accepts"]


def test_variables(started):
    proxy = started()
    eventually(lambda: now(proxy) == (0, 0, 0, 0), "nobody else is there")
    wires = [proxy.connect() for _ in range(2)]
    wires[0].send(GET[:9])
    eventually(lambda: proxy.get("/").body == b"3 1 1 1", "one reads, one waits, one asks")


@pytest.mark.ringx_only("connections to servers are connections of nginx's worker, too")
def test_too_many_connections_are_accepted_but_not_handled(proxy, upstream):
    held = upstream(script(head, to_end))
    running = proxy(
        """
        worker_processes 1;
        events { worker_connections 10; }
        http {
            server {
                listen 127.0.0.1:@port@;
                location / { proxy_pass http://@held@; }
                location /status { stub_status; }
            }
        }
        """,
        held=held.address,
    )
    running.expected_alerts.append("worker_connections are not enough")
    # Those that wait for their answer cannot be closed to make room.
    busy = []
    for number in range(1, 11):
        busy.append(running.connect())
        busy[-1].send(GET)
        held.connection(number)
    for _ in range(5):
        running.connect().read_to_end()
    assert "[alert]" in running.logged("worker_connections are not enough")
    for wire in busy:
        wire.close()

    def seen():
        numbers = page(running)
        return numbers["accepts"] - numbers["handled"] >= 5

    eventually(seen, "some were closed at once")


@pytest.mark.parametrize(
    "text, error",
    [
        ("stub_status a b;", 'invalid number of arguments in "stub_status" directive'),
        ("if ($uri) { stub_status; }", '"stub_status" directive is not allowed here'),
    ],
)
def test_refused(binary, tmp_path, text, error):
    conf = tmp_path / "x.conf"
    conf.write_text(f"events {{ }}\nhttp {{\nserver {{\n{text}\n}}\n}}\n")
    run = binary.run("-t", "-c", conf, "-p", f"{tmp_path}/", "-e", "stderr")
    assert run.returncode == 1
    assert f"{error} in {conf}:4" in run.stderr
