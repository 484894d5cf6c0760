"""Shards that die and come back, and shards that come and go with `worker_processes`: whoever is connected to
another one notices nothing, and no connection is lost on the way."""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import threading
from pathlib import Path

import pytest

from harness.proxy import Proxy, eventually
from harness.tunnel import BINARY, frame, handshake, read_frame, switch
from harness.upstream import head, response, script, send, to_end
from harness.wire import Closed, Wire
from test_faults import HOOK, NEIGHBOURS, Neighbours, is_pipe

ringx_only = pytest.mark.ringx_only

PANIC = b"GET /beside HTTP/1.1\r\nHost: a\r\nX-Ringx-Panic: in the shard\r\n\r\n"


def configuration(shards: int, server: str = "", http: str = "", load: int = 0) -> str:
    return f"""
    worker_processes {shards};
    events {{ }}
    http {{
        access_log logs/access.log;
        {http}
        server {{
            listen 127.0.0.1:@port@;
            location = /status {{ access_log off; ringx_status; }}
            location = /load {{ access_log off; return 200 {load}; }}
            {NEIGHBOURS}
            {server}
        }}
    }}
    """


@pytest.fixture
def serving(proxy, python_echo):
    def start(shards: int, server: str = "", http: str = "", **values: object) -> Proxy:
        return proxy(configuration(shards, server, http), echo=python_echo.address, **values)

    return start


@pytest.fixture
def mortal(binary, serving):
    """A proxy whose shards can be killed: only builds with debug assertions let them."""
    if HOOK not in binary.path.read_bytes():
        pytest.skip("no debug assertions, no panics on demand")

    def start(shards: int, **options) -> Proxy:
        proxy = serving(shards, **options)
        proxy.expected_alerts.append("panic")
        return proxy

    return start


def ask(wire: Wire, target: str = "/beside"):
    wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
    return wire.read_response()


def status(proxy: Proxy, wire: Wire | None = None) -> list[dict]:
    answer = ask(wire, "/status") if wire else proxy.get("/status")
    return json.loads(answer.body)["shards"]


def shard_of(proxy: Proxy, wire: Wire) -> int:
    """The one that counts this wire's requests. Nothing else is to be going on."""
    before, after = status(proxy, wire), status(proxy, wire)
    (shard,) = [a["shard"] for a, b in zip(after, before) if a["requests"] != b["requests"]]
    return shard


def on_shard(proxy: Proxy, wanted: int) -> Wire:
    """A connection to that shard, after a request."""

    def find() -> Wire | None:
        wire = proxy.connect()
        if shard_of(proxy, wire) == wanted:
            return wire
        wire.close()
        return None

    return eventually(find, f"shard {wanted} serves")


def tunnel(wire: Wire) -> Wire:
    wire.send(handshake())
    assert wire.read_head().start.startswith("HTTP/1.1 101 ")
    echo(wire)
    return wire


def echo(wire: Wire) -> None:
    payload = os.urandom(100)
    wire.send(frame(BINARY, payload, masked=True))
    assert read_frame(wire).payload == payload


def threads(proxy: Proxy) -> list[str]:
    names = [(task / "comm").read_text().strip() for task in Path(f"/proc/{proxy.pid}/task").iterdir()]
    return sorted(name for name in names if name.startswith("ringx shard "))


def lasting_descriptors(proxy: Proxy) -> list[str]:
    """What they are, by kind. Without pipes, which are kept for some time."""
    names = [name for name in os.listdir(f"/proc/{proxy.pid}/fd") if not is_pipe(proxy, name)]
    links = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/{proxy.pid}/fd/{name}"))
    return sorted(re.sub(r"\[\d+\]", "", link) for link in links)


# Death.


@ringx_only("its workers are processes")
def test_a_shard_that_dies_comes_back_and_leaves_nothing_behind(mortal, upstream):
    silent = upstream(script(head, to_end), script(head, send(response(b"up"))))
    proxy = mortal(
        2,
        server="location = /up { proxy_pass http://group; }",
        http="upstream group { zone z 64k; server @up@ max_conns=1 max_fails=0; }",
        up=silent.address,
    )
    assert proxy.get("/beside").status == 200
    eventually(lambda: sum(shard["connections"] for shard in status(proxy)) == 1, "all is quiet")
    # Whoever has logged or connected has what it keeps.
    for shard in (0, 1):
        tunnel(on_shard(proxy, shard)).close()
    eventually(lambda: sum(shard["connections"] for shard in status(proxy)) == 1, "all is quiet")
    before = lasting_descriptors(proxy)

    living = [on_shard(proxy, 0), tunnel(on_shard(proxy, 0))]
    dying = {name: on_shard(proxy, 1) for name in ("idle", "tunnel", "held", "head", "killer")}
    tunnel(dying["tunnel"])
    dying["head"].send(b"GET /half HTTP/1.1\r\nHos")
    dying["held"].send(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
    eventually(lambda: len(silent.connections) == 1, "the server holds a request")
    seen = status(proxy, living[0])
    assert (seen[1]["connections"], seen[1]["reading"], seen[1]["tunnels"]["open"]) == (5, 1, 1)

    dying["killer"].send(PANIC)
    for name, wire in dying.items():
        try:
            wire.read_to_end()
        except Closed:
            pytest.fail(f"{name} was not ended")
    assert ask(living[0]).body == b"beside"
    echo(living[1])
    assert "[alert]" in proxy.logged("shard 1 exited: panic: asked for in the shard at src/http/fault.rs")
    eventually(lambda: proxy.error_log().count("start shard 1 on ") == 2, "it is started again")
    # The request that was under way has its line, and its place at the server is free.
    assert any('"GET /up HTTP/1.1"' in line for line in proxy.accessed())
    assert proxy.get("/up").body == b"up"

    again = on_shard(proxy, 1)
    after = status(proxy, again)
    assert (after[1]["connections"], after[1]["reading"], after[1]["writing"]) == (1, 0, 1)
    assert (after[1]["tunnels"]["open"], after[1]["queued"]) == (0, 0)
    assert (after[1]["restarts"], after[0]["restarts"]) == (1, 0)
    assert after[1]["panics"] == 1
    for total in ("accepted", "requests"):
        assert after[1][total] >= seen[1][total]
    assert after[1]["tunnels"]["opened"] >= seen[1]["tunnels"]["opened"]
    tunnel(on_shard(proxy, 1)).close()
    for wire in proxy.wires:
        wire.close()

    def is_as_before() -> bool:
        now = lasting_descriptors(proxy)
        assert now == before
        return True

    eventually(is_as_before, "no descriptor is left open")


@ringx_only("its workers are processes")
def test_who_waits_while_a_shard_is_down_is_served(mortal):
    """It dies a second time, and stays down for a second."""
    proxy = mortal(2)
    for death in (1, 2):
        on_shard(proxy, 1).send(PANIC)
        eventually(lambda death=death: proxy.error_log().count("shard 1 exited") == death, "it has died")
    wires = [proxy.connect() for _ in range(40)]
    for wire in wires:
        wire.send(b"GET /beside HTTP/1.1\r\nHost: a\r\n\r\n")
    assert proxy.error_log().count("start shard 1 on ") == 2, "it is down"
    assert [wire.read_response().body for wire in wires] == [b"beside"] * 40
    assert proxy.error_log().count("start shard 1 on ") == 3
    assert status(proxy)[1]["restarts"] == 2


@ringx_only("its workers are processes")
def test_the_only_shard_comes_back(mortal):
    proxy = mortal(1)
    first = proxy.connect()
    first.send(PANIC)
    first.read_to_end()
    assert proxy.get("/beside").body == b"beside"
    assert threads(proxy) == ["ringx shard 0"]
    (shard,) = status(proxy)
    assert (shard["restarts"], shard["connections"]) == (1, 1)
    # A configuration that came meanwhile is that of the next life.
    proxy.reload(configuration(1, http="server_tokens off;"))
    second = on_shard(proxy, 0)
    second.send(PANIC)
    second.read_to_end()
    assert proxy.get("/").get("Server") == "ringx"


@ringx_only("its workers are processes")
def test_a_process_ends_though_a_shard_is_down(mortal):
    proxy = mortal(2)
    for death in (1, 2, 3):
        on_shard(proxy, 1).send(PANIC)
        eventually(lambda death=death: proxy.error_log().count("shard 1 exited") == death, "it has died")
    proxy.signal(signal.SIGQUIT)
    assert proxy.wait() == 0
    assert proxy.error_log().count("start shard 1 on ") == 3


# Coming and going.


class Stream:
    """Clients that connect anew for each request, or keep their connections. A connection that ends between
    requests is no loss: that is what a shard does that finishes. One that is refused counts, where that is
    allowed, and ends the stream."""

    def __init__(self, proxy: Proxy, keep: bool = False, port: int | None = None, refusals: bool = False, clients: int = 4):
        self.proxy, self.keep, self.port, self.refusals = proxy, keep, port, refusals
        self.stop = threading.Event()
        self.served = [0] * clients
        self.refused = [False] * clients
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(clients)]

    def _run(self, n: int) -> None:
        wire = None
        try:
            while not self.stop.is_set():
                fresh = wire is None
                if fresh:
                    try:
                        wire = self._connect()
                    except ConnectionRefusedError:
                        if not self.refusals:
                            raise
                        self.refused[n] = True
                        return
                try:
                    close = "" if self.keep else "Connection: close\r\n"
                    wire.send(f"GET /beside HTTP/1.1\r\nHost: a\r\n{close}\r\n")
                    answer = wire.read_response()
                except (Closed, BrokenPipeError, ConnectionResetError):
                    if fresh or wire.unread:
                        raise
                    wire.close()
                    wire = None
                    continue
                assert (answer.status, answer.body) == (200, b"beside")
                self.served[n] += 1
                if not self.keep or answer.get("Connection") == "close":
                    wire.close()
                    wire = None
        except BaseException as error:
            self.errors.append(error)
        finally:
            if wire:
                wire.close()

    def _connect(self) -> Wire:
        if isinstance(self.port, str):
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(10)
                sock.connect(self.port)
            except FileNotFoundError:
                raise ConnectionRefusedError from None
            return Wire(sock)
        return Wire(socket.create_connection(("127.0.0.1", self.port or self.proxy.port), 10))

    def go_on(self) -> None:
        seen = list(self.served)
        eventually(
            lambda: self.errors or all(now > before + 3 for now, before in zip(self.served, seen)), "all go on"
        )
        assert not self.errors, self.errors

    def __enter__(self) -> "Stream":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, *_) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
        if kind is None:
            assert not self.errors, self.errors


loads = itertools.count(1)


def resize(proxy: Proxy, shards: int, **options) -> None:
    """Waits until the configuration is in force."""
    load = next(loads)
    proxy.write(configuration(shards, load=load, **options))
    proxy.signal(signal.SIGHUP)
    eventually(lambda: proxy.get("/load").body == b"%d" % load, "the configuration is in force")


def are_there(proxy: Proxy, shards: int) -> None:
    wanted = [f"ringx shard {shard}" for shard in range(shards)]
    eventually(lambda: threads(proxy) == wanted, f"there are {shards} shards")


def sums(proxy: Proxy) -> dict[str, int]:
    shards = status(proxy)
    return {name: sum(shard[name] for shard in shards) for name in ("accepted", "requests", "connections")}


@ringx_only("its workers are processes, and are not counted")
def test_shards_come_and_go_and_nothing_is_lost(serving):
    proxy = serving(1)
    with Neighbours(proxy, keepalive=False) as beside, Stream(proxy) as new, Stream(proxy, keep=True) as kept:
        before = sums(proxy)
        for shards in (3, 1, 2, 3, 2, 1):
            resize(proxy, shards)
            for each in (new, kept, beside):
                each.go_on()
            after = sums(proxy)
            assert all(after[name] >= before[name] for name in ("accepted", "requests"))
            before = after
        for shards in (3, 1):
            resize(proxy, shards)
            are_there(proxy, shards)
            new.go_on()
    served = sum(new.served) + sum(kept.served)
    assert sums(proxy)["requests"] >= served
    eventually(lambda: sums(proxy)["connections"] == 1, "no connection is counted that is gone")
    assert "takes effect after a restart" not in proxy.error_log()
    assert proxy.get("/beside").status == 200


@ringx_only("nginx has processes, and one listening socket for all")
def test_every_shard_that_comes_gets_connections_and_none_that_has_gone(serving):
    proxy = serving(1)
    resize(proxy, 3)
    are_there(proxy, 3)
    for shard in range(3):
        on_shard(proxy, shard)
    resize(proxy, 2)
    assert "[notice]" in proxy.logged("gracefully shutting down shard 2")
    are_there(proxy, 2)
    assert "[notice]" in proxy.logged("shard 2 exited")

    def sockets() -> int:
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return len([line for line in lines if f":{proxy.port:04X} 00000000:0000 0A" in line])

    eventually(lambda: sockets() == 2, "its socket is closed")
    gone = status(proxy)[2]
    for wire in [proxy.connect() for _ in range(50)]:
        assert ask(wire).body == b"beside"
    now = status(proxy)
    assert now[2] == gone and gone["connections"] == 0
    for shard in range(2):
        on_shard(proxy, shard)


@ringx_only("nginx has processes")
def test_a_tunnel_moves_away_from_a_shard_that_goes(serving):
    """And the thread ends at once."""
    proxy = serving(3)
    are_there(proxy, 3)
    wire = tunnel(on_shard(proxy, 2))
    idle = on_shard(proxy, 2)
    resize(proxy, 1)
    idle.expect_end()
    eventually(lambda: threads(proxy) == ["ringx shard 0"], "the others are gone")
    echo(wire)
    assert [shard["tunnels"]["open"] for shard in status(proxy)] == [1, 0, 0]
    resize(proxy, 3)
    are_there(proxy, 3)
    other = tunnel(on_shard(proxy, 2))
    echo(wire)
    echo(other)
    tunnels = [shard["tunnels"] for shard in status(proxy)]
    assert [each["open"] for each in tunnels] == [1, 0, 1]
    assert [each["opened"] for each in tunnels] == [0, 0, 2]


@ringx_only("nginx has processes")
def test_a_quit_says_goodbye_to_tunnels_of_shards_that_have_gone(serving):
    proxy = serving(2)
    are_there(proxy, 2)
    wire = tunnel(on_shard(proxy, 1))
    resize(proxy, 1)
    echo(wire)
    proxy.signal(signal.SIGQUIT)
    assert read_frame(wire).code == 1001
    wire.close()
    assert proxy.wait() == 0


@ringx_only("nginx has processes")
def test_a_server_has_no_more_tunnels_than_it_may_while_they_move(proxy, upstream):
    """Those that wait in the queue are called when a tunnel ends, not when it moves."""
    finished = threading.Event()

    def hold(wire) -> None:
        wire.send(switch(wire.read_head().get("Upgrade")))
        finished.wait(60)

    server = upstream(hold)
    text = """
        worker_processes @shards@;
        events { }
        http {
            upstream ends { server @up@ max_conns=10; queue 10 timeout=30s; }
            server {
                listen 127.0.0.1:@port@;
                location = /status { ringx_status; }
                location / { proxy_pass http://ends; websocket on; }
            }
        }
    """
    running = proxy(text, up=server.address, shards=2)
    try:
        wires = [running.connect() for _ in range(15)]
        for wire in wires:
            wire.send(handshake())
        server.connection(10)
        running.write(text.replace("@shards@", "1"))
        running.signal(signal.SIGHUP)
        # The one that goes is there as long as any wait there for a place. Where the others have waited for
        # that one, none do.
        eventually(lambda: [shard["tunnels"]["open"] for shard in status(running)] in ([10], [10, 0]), "all have moved")
        assert len(server.connections) == 10
    finally:
        finished.set()


def test_connection_numbers_stay_unique(serving):
    proxy = serving(1, server="location = /number { return 200 $connection; }")
    numbers = []
    for shards in (1, 3, 2, 3, 1):
        resize(proxy, shards, server="location = /number { return 200 $connection; }")
        numbers += [int(proxy.get("/number").body) for _ in range(30)]
    assert len(set(numbers)) == len(numbers)


# Addresses.


@ringx_only("it closes what waits in the queue")
@pytest.mark.parametrize("kind", ["port", "unix"])
def test_who_has_connected_to_an_address_that_goes_is_served(serving, tmp_path, kind):
    """Connections until the reload are, and later ones are not made at all."""
    path = str(tmp_path / "own.sock")
    listen = {"port": "127.0.0.1:@port_b@", "unix": f"unix:{path}"}[kind]
    other = f"server {{ listen {listen}; location = /beside {{ access_log off; return 200 beside; }} }}"
    proxy = serving(2, http=other)
    port = path if kind == "unix" else int(proxy.values["port_b"])
    for _ in range(2):
        with Stream(proxy, port=port, refusals=True, clients=8) as stream, Stream(proxy) as beside:
            stream.go_on()
            resize(proxy, 2)
            eventually(lambda: stream.errors or all(stream.refused), "new clients are refused")
            beside.go_on()
        assert kind == "port" or not os.path.exists(path)
        # And back again.
        resize(proxy, 2, http=other)
        eventually(lambda: Stream(proxy, port=port)._connect(), "it is listened on again").close()


@ringx_only("it closes idle connections at each reload")
def test_connections_of_an_address_that_goes_end_with_their_next_answer(serving):
    """Or who keeps one would be served for ever by a server that is not there any more."""
    other = "server { listen 127.0.0.1:@port_b@; return 200 other; }"
    proxy = serving(1, http=other)
    kept, left = proxy.connect(), proxy.connect(int(proxy.values["port_b"]))
    assert ask(kept).get("Connection") == ask(left).get("Connection") == "keep-alive"
    resize(proxy, 1)
    answer = ask(left)
    assert (answer.body, answer.get("Connection")) == (b"other", "close")
    left.expect_end()
    assert ask(kept).get("Connection") == "keep-alive"
    # One that comes back is as any other.
    resize(proxy, 1, http=other)
    back = eventually(lambda: proxy.connect(int(proxy.values["port_b"])), "it is listened on again")
    assert ask(back).get("Connection") == "keep-alive"


@ringx_only("it closes what waits in the queue")
def test_who_has_not_finished_the_handshake_is_served(serving):
    """With `deferred` it is finished by the first bytes of a request. First a shard goes, then the address."""
    other = "server { listen 127.0.0.1:@port_b@ deferred; location = /beside { access_log off; return 200 beside; } }"
    proxy = serving(3, http=other)
    port = int(proxy.values["port_b"])
    for shards, http in ((1, other), (1, "")):
        wires = [proxy.connect(port) for _ in range(30)]
        resize(proxy, shards, http=http)
        assert [ask(wire).body for wire in wires] == [b"beside"] * 30

    def is_refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) != 0

    eventually(is_refused, "nobody listens there any more")


@ringx_only("its sockets are shared")
def test_an_address_that_is_wanted_again_was_never_away(serving):
    other = "server { listen 127.0.0.1:@port_b@; location = /beside { access_log off; return 200 beside; } }"
    proxy = serving(2, http=other)
    port = int(proxy.values["port_b"])
    with Stream(proxy, port=port) as stream:
        for _ in range(3):
            stream.go_on()
            resize(proxy, 2)
            resize(proxy, 2, http=other)
            stream.go_on()


@ringx_only("its sockets are shared")
def test_a_wider_address_takes_the_place_of_a_narrow_one(serving):
    """Who connects while it does so may have to try again; nobody is lost."""
    started = serving(2)
    with Stream(started) as stream:
        for address in ("0.0.0.0", "127.0.0.1", "0.0.0.0"):
            started.write(configuration(2).replace("listen 127.0.0.1:", f"listen {address}:"))
            started.signal(signal.SIGHUP)
            eventually(
                lambda: re.findall(r"127\.0\.0\.1|0\.0\.0\.0", listeners(started.port)) == [address] * 2,
                f"{address} is listened on",
            )
            stream.go_on()


def listeners(port: int) -> str:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    found = [line.split()[1].split(":") for line in lines if line.split()[3] == "0A"]
    return " ".join(socket.inet_ntoa(bytes.fromhex(ip)[::-1]) for ip, at in found if int(at, 16) == port)
