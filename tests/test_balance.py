"""Which server of a group gets a request: every method against a model of its formula."""

import socket
import threading
import zlib
from pathlib import Path

import pytest

from harness.group import grouped, letter
from harness.ports import free_port
from harness.proxy import Binary, Proxy, eventually
from harness.upstream import answering, response
from harness.wire import DEADLINE, Wire

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only


@pytest.fixture
def group(serve, upstream):
    """`group(lines, method)`: the proxy in front of servers that answer with their letter, or do what
    `handlers` has for it."""

    def start(lines, method="", after="", handlers=None):
        handler = lambda name: (handlers or {}).get(name) or letter(name)
        return grouped(serve, upstream, lines, method, after, handler)

    return start


def bodies(proxy, targets):
    """What each of these targets is answered, over one connection."""
    wire = proxy.connect()
    answers = []
    for target in targets:
        wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
        answers.append(wire.read_response().body.decode())
    return answers


# Models, from the formulas.


def by_weight(number, weights):
    number %= sum(weights)
    for at, weight in enumerate(weights):
        if number < weight:
            return at
        number -= weight


def hash_walk(key, weights):
    total, n = 0, 0
    while True:
        total += zlib.crc32((str(n).encode() if n else b"") + key) >> 16 & 0x7FFF
        yield by_weight(total, weights)
        n += 1


def ip_walk(address, weights):
    value = 89
    while True:
        for byte in [int(part) for part in address.split(".")][:3]:
            value = (value * 113 + byte) % 6271
        yield by_weight(value, weights)


def ring_walk(key, weights, servers):
    points = {}
    for at, (server, weight) in enumerate(zip(servers, weights)):
        host, _, port = (server[5:], "", "") if server.startswith("unix:") else server.rpartition(":")
        previous = 0
        for _ in range(160 * weight):
            previous = zlib.crc32(host.encode() + b"\0" + port.encode() + previous.to_bytes(4, "little"))
            points.setdefault(previous, at)
    ring = sorted(points.items())
    start = next((i for i, (value, _) in enumerate(ring) if value >= zlib.crc32(key)), 0)
    for step in range(len(ring)):
        yield ring[(start + step) % len(ring)][1]


def smooth(weights, count):
    current = [0] * len(weights)
    for _ in range(count):
        current = [now + weight for now, weight in zip(current, weights)]
        best = current.index(max(current))
        current[best] -= sum(weights)
        yield best


LETTERS = "ABCDEFGH"
KEYS = [f"{n}" for n in range(12)] + ["a", "key", "/path/x", "%20", "longer-than-the-others-are"]


@pytest.mark.parametrize("weights", [(1, 1), (5, 1, 1), (1, 2, 3), (4, 3, 2, 1), (7, 2)])
def test_round_robin_is_smooth(group, weights):
    proxy = group([f"{LETTERS[at]} weight={weight}" for at, weight in enumerate(weights)])
    count = 2 * sum(weights)
    assert bodies(proxy, ["/"] * count) == [LETTERS[at] for at in smooth(weights, count)]


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1), (1, 2, 3), (5, 1, 1)])
@pytest.mark.parametrize("consistent", ["", " consistent"])
def test_a_key_chooses_the_server(group, weights, consistent):
    lines = [f"{LETTERS[at]} weight={weight}" for at, weight in enumerate(weights)]
    proxy = group(lines, f"hash $arg_k{consistent};")
    for key, body in zip(KEYS, bodies(proxy, [f"/?k={key}" for key in KEYS])):
        walk = ring_walk(key.encode(), weights, proxy.servers) if consistent else hash_walk(key.encode(), weights)
        assert body == LETTERS[next(walk)], key


@pytest.mark.parametrize("consistent", ["", " consistent"])
def test_a_dead_server_s_keys_go_on_to_the_next(group, consistent):
    proxy = group(["A", "dead max_fails=0", "B"], f"hash $arg_k{consistent};")
    weights = (1, 1, 1)
    for key, body in zip(KEYS, bodies(proxy, [f"/?k={key}" for key in KEYS])):
        walk = ring_walk(key.encode(), weights, proxy.servers) if consistent else hash_walk(key.encode(), weights)
        assert body == {0: "A", 2: "B"}[next(at for at in walk if at != 1)], key


@pytest.mark.parametrize("consistent", ["", " consistent"])
def test_a_down_server_keeps_its_keys_from_nobody(group, consistent):
    proxy = group(["A", "B down", "C"], f"hash $arg_k{consistent};")
    weights = (1, 1, 1)
    for key, body in zip(KEYS, bodies(proxy, [f"/?k={key}" for key in KEYS])):
        walk = ring_walk(key.encode(), weights, proxy.servers) if consistent else hash_walk(key.encode(), weights)
        assert body == LETTERS[next(at for at in walk if at != 1)], key


def test_a_key_on_a_ring_with_a_unix_socket(serve, upstream, tmp_path):
    servers = [
        upstream(answering(response(b"A")), path=f"{tmp_path}/a.sock").address,
        upstream(answering(response(b"B"))).address,
    ]
    proxy = serve(
        f"""
        upstream group {{ hash $arg_k consistent; server {servers[0]}; server {servers[1]}; }}
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
        """
    )
    for key, body in zip(KEYS, bodies(proxy, [f"/?k={key}" for key in KEYS])):
        assert body == "AB"[next(ring_walk(key.encode(), (1, 1), servers))], key


@pytest.mark.parametrize("consistent", ["", " consistent"])
def test_without_a_key_it_is_round_robin(group, consistent):
    proxy = group(["A", "B"], f"hash $arg_k{consistent};")
    assert bodies(proxy, ["/"] * 4) == ["A", "B", "A", "B"]


CLIENTS = ["127.0.0.1", "127.0.1.1", "127.0.2.9", "127.1.0.1", "127.9.8.7", "127.20.30.40", "127.255.1.1"]


def ask_from(proxy, address):
    sock = socket.create_connection(("127.0.0.1", proxy.port), DEADLINE, (address, 0))
    with Wire(sock) as wire:
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        return wire.read_response().body.decode()


@pytest.mark.parametrize("weights", [(1, 1), (1, 1, 1), (1, 2, 3), (3, 1, 2)])
def test_a_client_s_address_chooses_the_server(group, weights):
    lines = [f"{LETTERS[at]} weight={weight}" for at, weight in enumerate(weights)]
    proxy = group(lines, "ip_hash;")
    for client in CLIENTS:
        expected = LETTERS[next(ip_walk(client, weights))]
        assert [ask_from(proxy, client) for _ in range(2)] == [expected] * 2, client


@pytest.mark.parametrize("how", ["down", "dead"])
def test_a_client_s_server_that_is_gone_is_replaced_by_the_next_of_its_sequence(group, how):
    weights = (1, 1, 1, 1)
    proxy = group(["A", "B down" if how == "down" else "dead max_fails=0", "C", "D"], "ip_hash;")
    for client in CLIENTS:
        expected = next(at for at in ip_walk(client, weights) if at != 1)
        assert ask_from(proxy, client) == LETTERS[expected], client


# The methods that count and draw.


class Held:
    """A handler that holds back its answer to /hold until released."""

    def __init__(self, name):
        self.name = name.encode()
        self.free = threading.Event()
        self.held = threading.Semaphore(0)

    def __call__(self, wire):
        while True:
            if wire.read_request().target == "/hold":
                self.held.release()
                assert self.free.wait(DEADLINE)
            wire.send(response(self.name))


def hold(proxy, held):
    wire = proxy.connect()
    wire.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
    assert held.held.acquire(timeout=DEADLINE)
    return wire


def test_least_conn_avoids_the_busy_server(group):
    a = Held("A")
    proxy = group(["A", "B", "C"], "least_conn;", handlers={"A": a})
    wire = hold(proxy, a)
    assert bodies(proxy, ["/"] * 6) in (list("BCBCBC"), list("CBCBCB"))
    a.free.set()
    assert wire.read_response().body == b"A"
    eventually(lambda: "A" in bodies(proxy, ["/"] * 3), "A is asked again")


def test_least_conn_weighs(group):
    a = Held("A")
    proxy = group(["A weight=3", "B"], "least_conn;", handlers={"A": a})
    wires = [hold(proxy, a)]
    # One of three against none of one.
    assert bodies(proxy, ["/"] * 2) == ["B", "B"]
    a.free.set()
    assert wires[0].read_response().body == b"A"


def test_least_conn_without_load_is_round_robin(group):
    proxy = group(["A weight=2", "B"], "least_conn;")
    assert bodies(proxy, ["/"] * 6) == [LETTERS[at] for at in smooth((2, 1), 6)]


def test_random_reaches_all(group):
    proxy = group(["A", "B weight=2", "C down"], "random;")
    answers = bodies(proxy, ["/"] * 120)
    assert set(answers) == {"A", "B"}
    assert 15 < answers.count("A") < 70


@pytest.mark.parametrize("method", ["random two;", "random two least_conn;"])
def test_of_two_the_less_busy(group, method):
    a = Held("A")
    proxy = group(["A", "B"], method, handlers={"A": a})
    wire = proxy.connect()
    # Both are drawn, and either may be the first of two that are alike.
    while not a.held.acquire(blocking=False):
        wire = proxy.connect()
        wire.send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        if a.held.acquire(timeout=0.2):
            break
        assert wire.read_response().body == b"B"
    assert bodies(proxy, ["/"] * 8) == ["B"] * 8
    a.free.set()
    assert wire.read_response().body == b"A"


def slow_head(wire):
    wire.read_request()
    threading.Event().wait(0.6)
    wire.send(response(b"A"))


def slow_body(wire):
    wire.read_request()
    wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n")
    threading.Event().wait(0.6)
    wire.send(b"A")


@ringx_only("least_time is younger")
@pytest.mark.parametrize(
    "method, slow, expected",
    [
        ("header", slow_head, "ABBBB"),
        ("header", slow_body, "ABABA"),
        ("last_byte", slow_head, "ABBBB"),
        ("last_byte", slow_body, "ABBBB"),
        ("last_byte inflight", slow_body, "ABBBB"),
    ],
)
def test_least_time_avoids_the_slow_server(group, method, slow, expected):
    proxy = group(["A", "B"], f"least_time {method};", handlers={"A": slow})
    assert bodies(proxy, ["/"] * 5) == list(expected)


# Servers that are not asked.


@pytest.mark.parametrize("method", ["", "least_conn;", "random;", "hash $uri;", "hash $uri consistent;", "ip_hash;"])
def test_a_down_server_gets_nothing(group, method):
    proxy = group(["A down", "B"], method)
    assert bodies(proxy, ["/", "/a", "/b", "/c"]) == ["B"] * 4


@ringx_only("drain is younger")
@pytest.mark.parametrize("method", ["", "least_conn;", "random;", "hash $uri;", "hash $uri consistent;", "ip_hash;"])
def test_a_draining_server_gets_nothing_new(group, method):
    proxy = group(["A drain", "B"], method)
    assert bodies(proxy, ["/", "/a", "/b", "/c"]) == ["B"] * 4


@pytest.mark.parametrize("method", ["", "least_conn;"])
def test_backups_serve_when_primaries_cannot(group, method):
    proxy = group(["dead", "A backup", "B backup"], method)
    assert sorted(bodies(proxy, ["/"] * 4)) == list("AABB")


@pytest.mark.parametrize("method", ["", "least_conn;"])
def test_a_backup_rests_while_a_primary_is_there(group, method):
    proxy = group(["A", "B backup"], method)
    assert bodies(proxy, ["/"] * 3) == ["A"] * 3


def test_no_server_left_is_no_live_upstreams(group):
    proxy = group(["A down", "B down"])
    assert proxy.get("/").status == 502
    proxy.logged("[error]")
    assert "no live upstreams while connecting to upstream" in proxy.logged("no live upstreams")
    assert proxy.accessed() == ["502 group"]


def test_max_conns_of_a_single_server(group):
    a = Held("A")
    proxy = group(["A max_conns=1"], handlers={"A": a})
    wire = hold(proxy, a)
    assert proxy.get("/").status == 502
    a.free.set()
    assert wire.read_response().body == b"A"
    eventually(lambda: proxy.get("/").body == b"A", "the place is free again")


def test_max_conns_sends_on_to_others(group):
    a = Held("A")
    proxy = group(["A max_conns=1 weight=9", "B"], handlers={"A": a})
    wire = hold(proxy, a)
    assert bodies(proxy, ["/"] * 4) == ["B"] * 4
    a.free.set()
    assert wire.read_response().body == b"A"


# Many shards.


def many(proxy, text):
    return proxy("worker_processes 2;\nevents { }\nhttp {\n" + text + "\n}\n")


@pytest.mark.parametrize("zone", ["zone z 64k;", pytest.param("", marks=ringx_only("each worker counts alone"))])
def test_max_conns_counts_all_shards(proxy, upstream, zone):
    a = Held("A")
    server = upstream(a)
    started = many(
        proxy,
        f"""
        upstream group {{ {zone} server {server.address} max_conns=1; }}
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
        """,
    )
    wire = hold(started, a)
    assert [started.get("/").status for _ in range(12)] == [502] * 12
    a.free.set()
    assert wire.read_response().body == b"A"


@ringx_only("a reload starts to count anew")
def test_max_conns_counts_what_began_before_a_reload(proxy, upstream):
    a = Held("A")
    server = upstream(a)

    def text(more):
        return f"""
            worker_processes 2;
            events {{ }}
            http {{
                {more}
                upstream group {{ server {server.address} max_conns=1; }}
                server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
            }}
        """

    started = proxy(text(""))
    wire = hold(started, a)
    started.reload(text("server_tokens off;"))
    assert [started.get("/").status for _ in range(6)] == [502] * 6
    a.free.set()
    assert wire.read_response().body == b"A"
    eventually(lambda: started.get("/").body == b"A", "the place is free again")


ZONE_OF_TWO = """
    log_format upstream '$upstream_status';
    access_log logs/access.log upstream;
    upstream group { zone z 64k; server 127.0.0.1:@dead@ fail_timeout=1h; server @a@; }
    server { listen 127.0.0.1:@port@; location / { proxy_pass http://group; } }
"""


def test_a_zone_shares_failures(proxy, upstream):
    server = upstream(answering(response(b"A")))
    text = ZONE_OF_TWO.replace("@dead@", str(free_port())).replace("@a@", server.address)
    started = many(proxy, text)
    assert [started.get("/").body for _ in range(16)] == [b"A"] * 16
    assert sorted(started.accessed(16)) == ["200"] * 15 + ["502, 200"]


@ringx_only("a reload forgets")
def test_a_zone_survives_a_reload(proxy, upstream):
    server = upstream(answering(response(b"A")))
    text = ZONE_OF_TWO.replace("@dead@", str(free_port())).replace("@a@", server.address)
    started = many(proxy, text)
    assert [started.get("/").body for _ in range(4)] == [b"A"] * 4
    started.reload("worker_processes 2;\nevents { }\nhttp {\n" + text + "\nserver_tokens off; }\n")
    for _ in range(8):
        assert started.get("/").body == b"A"
    assert started.accessed(13).count("502, 200") == 1


# The configuration.


@pytest.fixture
def tried(binary: Binary, tmp_path: Path):
    def run(text):
        proxy = Proxy(binary, tmp_path / "tried", f"events {{ }}\nhttp {{\n{text}\n}}\n")
        arguments = ("-p", f"{proxy.prefix}/", "-c", proxy.conf, "-e", "logs/error.log", "-g", "pid logs/nginx.pid;")
        return binary.run(*arguments, "-t")

    return run


@pytest.mark.parametrize(
    "block, text",
    [
        ("hash $uri; server 127.0.0.1 backup;", 'balancing method does not support parameter "backup"'),
        ("ip_hash; server 127.0.0.1 backup;", 'balancing method does not support parameter "backup"'),
        ("random; server 127.0.0.1 backup;", 'balancing method does not support parameter "backup"'),
        ("server 127.0.0.1; hash;", 'invalid number of arguments in "hash" directive'),
        ("server 127.0.0.1; hash $uri round;", 'invalid parameter "round"'),
        ("server 127.0.0.1; ip_hash on;", 'invalid number of arguments in "ip_hash" directive'),
        ("server 127.0.0.1; least_conn on;", 'invalid number of arguments in "least_conn" directive'),
        ("server 127.0.0.1; random three;", 'invalid parameter "three"'),
        ("server 127.0.0.1; random two most_conn;", 'invalid parameter "most_conn"'),
        ("server 127.0.0.1 weight=0;", 'invalid parameter "weight=0"'),
        ("server 127.0.0.1 max_conns=x;", 'invalid parameter "max_conns=x"'),
        ("server 127.0.0.1 slow_start=5s;", 'invalid parameter "slow_start=5s"'),
        ("server 127.0.0.1; zone z 4k;", 'zone "z" is too small'),
        ("server 127.0.0.1; zone z x;", 'invalid zone size "x"'),
        ('server 127.0.0.1; zone "" 64k;', 'invalid zone name ""'),
        ("server 127.0.0.1; zone z;", 'zero size shared memory zone "z"'),
        ("zone z 64k; server 127.0.0.1; } upstream b { server 127.0.0.1; zone z 32k;", "the size 32768 of shared memory"),
        ("server 127.0.0.1 backup;", 'no servers in upstream "a"'),
        ("hash $nothing; server 127.0.0.1;", 'unknown "nothing" variable'),
        pytest.param("server 127.0.0.1; least_time;", "invalid number of arguments", marks=ringx_only("younger")),
        pytest.param("server 127.0.0.1; least_time body;", 'invalid parameter "body"', marks=ringx_only("younger")),
        pytest.param("server 127.0.0.1 route=;", "route is empty", marks=ringx_only("younger")),
        pytest.param(f"server 127.0.0.1 route={'x' * 33};", "route is longer than 32", marks=ringx_only("younger")),
    ],
)
def test_what_is_wrong_with_a_group(tried, block, text):
    done = tried(f"upstream a {{ {block} }}")
    assert done.returncode == 1
    assert text in done.stderr and "[emerg]" in done.stderr


@pytest.mark.parametrize("first", ["ip_hash", "least_conn", "random", "hash $uri"])
def test_the_last_method_counts_and_a_warning_says_so(tried, first):
    done = tried(f"upstream a {{ {first}; hash $uri consistent; server 127.0.0.1; }}")
    assert done.returncode == 0
    assert "[warn]" in done.stderr and "load balancing method redefined in " in done.stderr


def test_a_backup_before_the_method_is_taken_and_never_asked(group):
    """nginx looks only at what stands before the server's line."""
    proxy = group(["A", "B", "C backup"], after="hash $uri;")
    assert set(bodies(proxy, [f"/{n}" for n in range(20)])) == {"A", "B"}


def test_several_groups_share_a_zone_and_one_names_its_size(tried):
    text = "upstream a { zone z 64k; server 127.0.0.1; } upstream b { zone z; server 127.0.0.1; }"
    assert tried(text).returncode == 0
