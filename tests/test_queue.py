"""`queue`: requests that wait for a place at a server; and `max_conns`, which nothing exceeds."""

import json
import re
import signal
import socket
import threading

import pytest

from harness.packet import read_packet
from harness.ports import free_port
from harness.proxy import eventually
from harness.upstream import Upstream, answering, close, request, response, script, send, until
from harness.wire import DEADLINE

ringx_only = pytest.mark.ringx_only("queue is part of the commercial version")

LOG = "$status | $upstream_addr | $upstream_status | $upstream_queue_time | $uri"
WAITED = re.compile(r"\d+\.\d{3}")


class Held:
    """A handler that answers each request when told: `held` counts those that have come, `free` those
    that may be answered."""

    def __init__(self, free=None):
        self.held = threading.Semaphore(0)
        self.free = free or threading.Semaphore(0)

    def __call__(self, wire):
        while True:
            target = wire.read_request().target
            self.held.release()
            assert self.free.acquire(timeout=DEADLINE), "the test never let the upstream go on"
            wire.send(response(target.encode()))

    def has_one(self):
        assert self.held.acquire(timeout=DEADLINE), "no request came"


class Late(Upstream):
    """A server on a unix socket with a backlog of one, which accepts nothing until told."""

    def __init__(self, *handlers, **options):
        self.accepts = threading.Event()
        super().__init__(*handlers, backlog=0, **options)

    def _accept(self):
        self.accepts.wait()
        super()._accept()

    def stop(self):
        self.accepts.set()
        super().stop()


def text(inside, location="proxy_pass http://group;", more=""):
    return f"""
        log_format queue '{LOG}';
        access_log logs/access.log queue;
        {more}
        upstream group {{ {inside} }}
        server {{
            listen 127.0.0.1:@port@;
            location / {{ {location} }}
            location = /status {{ access_log off; ringx_status; }}
        }}
    """


@pytest.fixture
def many(proxy):
    """The proxy on two shards, with this in `http`."""
    return lambda text: proxy("worker_processes 2;\nevents { }\nhttp {\n" + text + "\n}\n")


@pytest.fixture
def late(tmp_path):
    """`late(handler)`: a [`Late`] server."""
    started = []

    def start(handler, name="late"):
        started.append(Late(handler, path=str(tmp_path / name)))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def status(proxy):
    return json.loads(proxy.get("/status").body)["shards"]


def queued(proxy):
    return sum(shard["queued"] for shard in status(proxy))


def ask(proxy, target):
    wire = proxy.connect()
    wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    return wire


def wait(proxy, *targets, already=0):
    """Requests that come to wait, one behind the other."""
    wires = []
    for target in targets:
        wires.append(ask(proxy, target))
        eventually(lambda: queued(proxy) == already + len(wires), f"{target} waits")
    return wires


# A place.


@ringx_only
def test_a_request_waits_for_a_place(serve, upstream):
    a = Held()
    server = upstream(a)
    proxy = serve(text(f"server {server.address} max_conns=1; queue 5;"))
    first = ask(proxy, "/1")
    a.has_one()
    (second,) = wait(proxy, "/2")
    assert len(server.requests) == 1
    a.free.release()
    assert first.read_response().body == b"/1"
    a.has_one()
    assert queued(proxy) == 0
    a.free.release()
    assert second.read_response().body == b"/2"
    lines = [line.split(" | ") for line in proxy.accessed(2)]
    assert lines[0] == ["200", server.address, "200", "-", "/1"]
    assert lines[1][:3] == ["200", server.address, "200"]
    assert WAITED.fullmatch(lines[1][3])
    assert proxy.error_log().count("upstream") == 0


@ringx_only
def test_who_came_first_is_served_first(serve, upstream):
    a = Held()
    server = upstream(a)
    proxy = serve(text(f"server {server.address} max_conns=2; queue 20;"))
    busy = [ask(proxy, "/a"), ask(proxy, "/b")]
    a.has_one()
    a.has_one()
    targets = [f"/{n}" for n in range(12)]
    waiting = wait(proxy, *targets)
    for n, wire in enumerate(waiting):
        a.free.release()
        a.has_one()
        assert server.request(n + 3).target == targets[n]
    for _ in busy:
        a.free.release()
    assert sorted(wire.read_response().body for wire in busy) == [b"/a", b"/b"]
    assert [wire.read_response().body.decode() for wire in waiting] == targets


@ringx_only
def test_a_full_queue_is_a_502_at_once(serve, upstream):
    a = Held()
    server = upstream(a)
    proxy = serve(text(f"server {server.address} max_conns=1; queue 2;"))
    first = ask(proxy, "/1")
    a.has_one()
    waiting = wait(proxy, "/2", "/3")
    assert proxy.get("/4").status == 502
    line = proxy.logged("upstream queue is full")
    assert re.search(
        r'\[error\] .*: \*\d+ upstream queue is full while connecting to upstream, client: 127\.0\.0\.1, server: , '
        r'request: "GET /4 HTTP/1\.1", upstream: "http://group/4", host: "example\.com"$',
        line,
    )
    assert proxy.accessed(1) == ["502 | group | 502 | - | /4"]
    for wire in [first, *waiting]:
        a.free.release()
        assert wire.read_response().status == 200


@ringx_only
def test_who_waits_for_too_long_gets_a_502(serve, upstream):
    a = Held()
    server = upstream(a)
    proxy = serve(text(f"server {server.address} max_conns=1; queue 2 timeout=150ms;"))
    first = ask(proxy, "/1")
    a.has_one()
    answers = [wire.read_response().status for wire in [ask(proxy, "/2"), ask(proxy, "/3")]]
    assert answers == [502, 502] and queued(proxy) == 0
    assert "[error]" in proxy.logged("upstream queue timed out while connecting to upstream, client: 127.0.0.1")
    for line in proxy.accessed(2):
        waited = re.fullmatch(r"502 \| group \| 502 \| (\d\.\d{3}) \| /[23]", line)
        assert waited and 0.145 < float(waited[1]) < 5, line
    # The queue is what it was before.
    (second,) = wait(proxy, "/4")
    a.free.release()
    assert first.read_response().status == 200
    a.free.release()
    assert second.read_response().status == 200


@ringx_only
def test_a_client_that_leaves_gives_up_its_place(serve, upstream):
    a = Held()
    server = upstream(a)
    proxy = serve(text(f"server {server.address} max_conns=1; queue 3;"))
    first = ask(proxy, "/1")
    a.has_one()
    gone, _, last = wait(proxy, "/gone", "/2", "/3")
    gone.close()
    eventually(lambda: queued(proxy) == 2, "its place is free")
    assert "499 | - | - | - | /gone" in proxy.accessed(1)
    proxy.logged("client prematurely closed connection, so upstream connection is closed too")
    more = wait(proxy, "/4", already=2)
    for _ in range(4):
        a.free.release()
    assert [wire.read_response().body for wire in [first, last, *more]] == [b"/1", b"/3", b"/4"]
    assert [request.target for request in server.requests] == ["/1", "/2", "/3", "/4"]


@ringx_only
def test_a_request_waits_for_any_server(serve, upstream):
    a, b = Held(), Held()
    servers = [upstream(a), upstream(b)]
    lines = " ".join(f"server {server.address} max_conns=1;" for server in servers)
    proxy = serve(text(f"{lines} queue 5;"))
    busy = [ask(proxy, "/1"), ask(proxy, "/2")]
    a.has_one()
    b.has_one()
    waiting = wait(proxy, "/3")
    b.free.release()
    b.has_one()
    assert servers[1].request(2).target == "/3"
    a.free.release()
    b.free.release()
    assert [wire.read_response().status for wire in busy + waiting] == [200] * 3


@ringx_only
def test_a_request_waits_after_a_failure_too(serve, upstream):
    a = Held()
    server = upstream(a)
    dead = f"127.0.0.1:{free_port()}"
    proxy = serve(text(f"server {dead} max_fails=0; server {server.address} max_conns=1 weight=2; queue 5;"))
    first = ask(proxy, "/1")
    a.has_one()
    (second,) = wait(proxy, "/2")
    a.free.release()
    a.free.release()
    assert [wire.read_response().status for wire in (first, second)] == [200, 200]
    (line,) = [line for line in proxy.accessed(2) if line.endswith("/2")]
    assert re.fullmatch(rf"200 \| {dead}, {server.address} \| 502, 200 \| -, \d\.\d{{3}} \| /2", line)


@ringx_only
@pytest.mark.parametrize("state", ["down", "max_fails=1"])
def test_nobody_waits_for_servers_that_are_not_there(serve, state):
    # Those that are not down are out from the second request on.
    servers = "".join(f"server 127.0.0.1:{free_port()} {state};" for _ in range(2))
    proxy = serve(text(f"{servers} queue 5;"))
    assert [proxy.get("/").status for _ in range(2)] == [502, 502]
    assert "[error]" in proxy.logged("no live upstreams while connecting to upstream")
    assert "queue" not in proxy.error_log()


@ringx_only
@pytest.mark.parametrize("method", ["least_conn;", "hash $uri;", "hash $uri consistent;", "ip_hash;", "random two;"])
def test_whatever_the_method(serve, upstream, method):
    a = Held()
    b = Held(a.free)
    servers = [f"server {upstream(handler).address} max_conns=1;" for handler in (a, b)]
    proxy = serve(text(f"{method} {' '.join(servers)} queue 9;"))
    busy = [ask(proxy, f"/{n}") for n in range(2)]
    a.has_one()
    b.has_one()
    waiting = wait(proxy, *[f"/{n}" for n in range(2, 8)])
    for _ in busy + waiting:
        a.free.release()
    assert [wire.read_response().status for wire in busy + waiting] == [200] * 8


@ringx_only
def test_a_tunnel_has_its_place_until_it_ends(serve, upstream):
    def tunnel(wire):
        wire.read_request()
        wire.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
        wire.send(wire.read_exactly(2))
        wire.expect_end()

    server = upstream(tunnel, answering(response(b"ok")))
    upgrade = "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;"
    proxy = serve(text(f"server {server.address} max_conns=1; queue 5;", f"{upgrade} proxy_pass http://group;"))
    client = proxy.connect()
    client.send("GET /tunnel HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\n")
    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
    client.send(b"hi")
    assert client.read_exactly(2) == b"hi"
    waiting = wait(proxy, "/1", "/2")
    assert len(server.connections) == 1
    client.close()
    assert [wire.read_response().body for wire in waiting] == [b"ok", b"ok"]


@ringx_only
def test_a_quit_lets_those_who_wait_finish(serve, upstream):
    a = Held()
    server = upstream(a)
    proxy = serve(text(f"server {server.address} max_conns=1; queue 5;"))
    first = ask(proxy, "/1")
    a.has_one()
    waiting = wait(proxy, "/2", "/3")
    proxy.signal(signal.SIGQUIT)
    proxy.logged("gracefully shutting down")
    for _ in range(3):
        a.free.release()
    assert [wire.read_response().body for wire in [first, *waiting]] == [b"/1", b"/2", b"/3"]
    assert proxy.wait() == 0


@ringx_only
def test_a_reload_keeps_those_who_wait_and_their_order(many, upstream):
    a = Held()
    server = upstream(a)
    inside = f"server {server.address} max_conns=1; queue 5;"
    proxy = many(text(inside))
    first = ask(proxy, "/1")
    a.has_one()
    waiting = wait(proxy, "/2")
    proxy.write("worker_processes 2;\nevents { }\nhttp {\n" + text(inside, more="server_tokens off;") + "\n}\n")
    proxy.signal(signal.SIGHUP)
    eventually(lambda: proxy.get("/status").get("Server") == "ringx", "the new configuration serves")
    # Either shard may be the one that is late.
    eventually(lambda: all(proxy.get("/status").get("Server") == "ringx" for _ in range(8)), "on both shards")
    waiting += wait(proxy, "/3", already=1)
    for _ in range(3):
        a.free.release()
    assert [wire.read_response().body for wire in [first, *waiting]] == [b"/1", b"/2", b"/3"]
    assert [request.target for request in server.requests] == ["/1", "/2", "/3"]


# A full backlog.


@ringx_only
def test_a_full_backlog_is_waited_for(serve, late):
    server = late(script(request, send(response(b"ok", "Connection: close"))))
    proxy = serve(text(f"server {server.address}; server {server.address} backup down; queue 9;"))
    first = ask(proxy, "/1")
    # Who waits for the answer is connected: what comes next finds the backlog full.
    eventually(lambda: sum(shard["writing"] for shard in status(proxy)) == 2, "the first is connected")
    waiting = wait(proxy, "/2", "/3", "/4")
    server.accepts.set()
    assert [wire.read_response().body for wire in [first, *waiting]] == [b"ok"] * 4
    assert [request.target for request in sorted(server.requests[1:], key=lambda r: r.target)] == ["/2", "/3", "/4"]
    lines = [line.split(" | ") for line in proxy.accessed(4)]
    assert [line[:3] for line in lines] == [["200", server.address, "200"]] * 4
    # It was no failure, and nobody was told of one.
    assert "connect()" not in proxy.error_log() and "disabled" not in proxy.error_log()


@ringx_only
def test_a_full_backlog_that_stays_is_a_502(serve, late):
    server = late(close)
    proxy = serve(text(f"server {server.address}; queue 9 timeout=200ms;"))
    first = ask(proxy, "/1")
    eventually(lambda: sum(shard["writing"] for shard in status(proxy)) == 2, "the first is connected")
    assert proxy.get("/2").status == 502
    assert "upstream queue timed out while connecting to upstream" in proxy.logged("queue timed out")
    assert re.fullmatch(r"502 \| group \| 502 \| 0\.[2-9]\d\d \| /2", proxy.accessed(1)[0])
    first.close()


@ringx_only
def test_of_a_full_backlog_the_next_server_is_asked(serve, late, upstream):
    server, other = late(answering(response(b"late"))), upstream(answering(response(b"other")))
    proxy = serve(
        text(
            f"server {server.address} weight=9; server {other.address}; queue 9;",
            "proxy_next_upstream off; proxy_pass http://group;",
        )
    )
    first = ask(proxy, "/1")
    eventually(lambda: sum(shard["writing"] for shard in status(proxy)) == 2, "the first is connected")
    assert [proxy.get(f"/{n}").body for n in range(8)] == [b"other"] * 8
    assert proxy.accessed(8)[0].startswith(f"200 | {other.address} | 200 | ")
    server.accepts.set()
    assert first.read_response().body == b"late"
    eventually(lambda: proxy.get("/").body == b"late", "it is asked again")


@ringx_only
def test_a_uwsgi_server_with_a_full_backlog(serve, late):
    def application(wire):
        target = read_packet(wire).get("REQUEST_URI")
        wire.send(f"HTTP/1.1 200 OK\r\n\r\n{target}".encode())

    server = late(application)
    proxy = serve(text(f"server {server.address}; queue 50;", "uwsgi_param REQUEST_URI $request_uri; uwsgi_pass group;"))
    first = ask(proxy, "/first")
    eventually(lambda: sum(shard["writing"] for shard in status(proxy)) == 2, "the first is connected")
    targets = [f"/{n}" for n in range(20)]
    waiting = wait(proxy, *targets)
    server.accepts.set()
    assert first.read_response().body == b"/first"
    assert [wire.read_response().body.decode() for wire in waiting] == targets


@pytest.mark.parametrize("status, others", [(502, ""), (200, "server @other@ backup;")])
def test_without_a_queue_a_full_backlog_is_a_failure(serve, late, upstream, status, others):
    server, other = late(close), upstream(answering(response(b"other")))
    with socket.socket(socket.AF_UNIX) as filler:
        filler.connect(server.address.removeprefix("unix:"))
        proxy = serve(
            f"""
            upstream group {{ server {server.address}; {others} }}
            server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
            """,
            other=other.address,
        )
        assert proxy.get("/").status == status
        line = proxy.logged(f"connect() to {server.address} failed (11: Resource temporarily unavailable)")
        assert "[error]" in line and "while connecting to upstream" in line


@pytest.mark.parametrize(
    "gone, text", [("missing", "(2: No such file or directory)"), ("refused", "(111: Connection refused)")]
)
@pytest.mark.parametrize("queue", ["", pytest.param("queue 5;", marks=ringx_only)])
def test_a_unix_server_that_is_gone_is_passed_over_at_once(serve, upstream, tmp_path, gone, text, queue):
    path = tmp_path / "gone"
    if gone == "refused":
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    other = upstream(answering(response(b"other")))
    proxy = serve(
        f"""
        log_format upstream '$upstream_addr | $upstream_status';
        access_log logs/access.log upstream;
        upstream group {{ server unix:{path}; server {other.address} backup; {queue} }}
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
        """
    )
    assert [proxy.get("/").body for _ in range(3)] == [b"other"] * 3
    line = proxy.logged(f"connect() to unix:{path} failed {text}")
    assert ("[crit]" if gone == "missing" else "[error]") in line
    assert proxy.accessed(3) == [f"unix:{path}, {other.address} | 502, 200"] + [f"{other.address} | 200"] * 2


# Many shards.


class Counted:
    """A handler that counts the requests it has at once."""

    def __init__(self):
        self.lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, wire):
        while True:
            target = wire.read_request().target
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            # As long as the work takes, so that a second request would meet it.
            threading.Event().wait(0.001)
            with self.lock:
                self.now -= 1
            wire.send(response(target.encode()))


def flood(proxy, clients, each):
    """So many clients at once, each with so many requests one after another; what they were answered."""
    answers, lock = [], threading.Lock()

    def client(number):
        wire = proxy.connect()
        for n in range(each):
            wire.send(f"GET /{number}/{n} HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = wire.read_response().status
            with lock:
                answers.append(answer)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * DEADLINE)
    return answers


@ringx_only
@pytest.mark.parametrize("most", [1, 3])
def test_two_shards_never_exceed_max_conns_and_everybody_is_served(many, upstream, most):
    counted = Counted()
    server = upstream(counted)
    proxy = many(text(f"server {server.address} max_conns={most}; queue 100; keepalive 0;"))
    assert flood(proxy, 32, 20) == [200] * 640
    assert counted.most == most
    assert all(shard["requests"] > 10 for shard in status(proxy)), "both shards have served"
    # Nobody starves: a request waits about as long as the 31 of the others take.
    waits = sorted(float(waited) for waited in re.findall(r"\| (\d+\.\d+) \|", "\n".join(proxy.accessed(640))))
    assert len(waits) > 300
    assert waits[-1] < 5 * waits[len(waits) // 2] + 0.1, waits[-5:]


@pytest.mark.ringx_only("each worker counts alone")
def test_without_a_queue_two_shards_never_exceed_max_conns(many, upstream):
    counted = Counted()
    server = upstream(counted)
    proxy = many(
        f"upstream group {{ server {server.address} max_conns=1; }}"
        "server { listen 127.0.0.1:@port@; location / { proxy_pass http://group; } }"
    )
    answers = flood(proxy, 16, 30)
    assert counted.most == 1
    assert set(answers) == {200, 502}


@ringx_only
def test_a_place_that_another_shard_frees_is_taken(many, upstream):
    a = Held()
    server = upstream(a)
    proxy = many(text(f"server {server.address} max_conns=1; queue 50;"))
    first = ask(proxy, "/1")
    a.has_one()
    # Of so many some are on each shard.
    waiting = wait(proxy, *[f"/{n}" for n in range(2, 18)])
    assert all(shard["queued"] > 0 for shard in status(proxy))
    for _ in range(17):
        a.free.release()
    assert [wire.read_response().status for wire in [first, *waiting]] == [200] * 17
    # The shards' requests are one line.
    assert [request.target for request in server.requests] == [f"/{n}" for n in range(1, 18)]


@pytest.mark.ringx_only("each worker counts alone")
def test_a_dead_server_is_found_once_for_all_shards(many, upstream):
    server = upstream(answering(response(b"ok")))
    proxy = many(
        f"""
        log_format upstream '$upstream_status';
        access_log logs/access.log upstream;
        upstream group {{ server 127.0.0.1:{free_port()} fail_timeout=1h; server {server.address}; }}
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
        """
    )
    assert [proxy.get("/").body for _ in range(16)] == [b"ok"] * 16
    assert sorted(proxy.accessed(16)) == ["200"] * 15 + ["502, 200"]


# The configuration.


@ringx_only
@pytest.mark.parametrize(
    "queue, text",
    [
        ("queue;", 'invalid number of arguments in "queue" directive'),
        ("queue 1 timeout=1s 2;", 'invalid number of arguments in "queue" directive'),
        ("queue x;", 'invalid value "x" in "queue" directive'),
        ("queue 0;", 'invalid value "0" in "queue" directive'),
        ("queue 5 timeout=soon;", 'invalid parameter "timeout=soon"'),
        ("queue 5 time=1s;", 'invalid parameter "time=1s"'),
        ("queue 5; queue 6;", '"queue" directive is duplicate'),
        ("queue 5; least_conn;", '"queue" should be placed after the "least_conn" directive'),
        ("queue 5; hash $uri;", '"queue" should be placed after the "hash" directive'),
    ],
)
def test_what_is_wrong(refused, queue, text):
    line = refused("", f"upstream a {{ server 127.0.0.1; {queue} }}")[0]
    assert line.startswith(f"[emerg] {text} in F:"), line
