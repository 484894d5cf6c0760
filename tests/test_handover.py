"""A new binary's process takes over the tunnels: who is at their ends does not notice."""

import json
import os
import random
import signal
import socket
import sys
import threading
from pathlib import Path

import pytest

from harness.daemon import Clients, Daemon
from harness.ports import free_port
from harness.proxy import eventually
from harness.servers import TESTS, Server
from harness.tunnel import (
    RAW,
    WEBSOCKET,
    Talk,
    frame_flood,
    handshake,
    raw_flood,
    read_flood,
    switch,
    together,
    write_flood,
)
from harness.wire import Wire

pytestmark = pytest.mark.ringx_only("nginx's tunnels stay with the old process")

CONF = """
worker_processes 2;
events { worker_connections 8192; }
http {
    log_format tunnel '$pid $connection $status $bytes_sent $request_time $upstream_addr $websocket_messages_in';
    access_log logs/access.log tunnel;
    upstream ends { server @up@ max_conns=5000; }
    server {
        listen 127.0.0.1:@port@;
        location = / { return 200 $pid; }
        location = /status { access_log off; ringx_status; }
        location / {
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout 120s;
            websocket_metrics on;
            proxy_pass http://ends;
        }
    }
}
"""
MIB = 1 << 20
# What a process can be told to die of: only builds with debug assertions can.
HOOK = b"RINGX_HANDOVER_FAULT"


@pytest.fixture
def daemon(binary, tmp_path):
    started: list[Daemon] = []

    def start(address: str, **environment: str) -> Daemon:
        started.append(Daemon(binary, tmp_path / "prefix", CONF, up=address))
        return started[-1].start(**environment)

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def ends(upstream):
    """Upstreams that agree to upgrade and then are the test's to play."""
    finished = threading.Event()

    def hold(wire: Wire) -> None:
        wire.send(switch(wire.read_head().get("Upgrade")))
        finished.wait(300)

    yield upstream(hold)
    finished.set()


def open_tunnel(started: Daemon, server, protocol: str = RAW) -> tuple[socket.socket, socket.socket]:
    number = len(server.connections) + 1
    client = started.connect()
    client.send(handshake(protocol))
    upstream = server.connection(number)
    assert client.read_head().start.startswith("HTTP/1.1 101 ")
    for wire in (client, upstream):
        assert not wire.unread
        wire.sock.settimeout(60)
    return client.sock, upstream.sock


def tunnels(started: Daemon) -> dict[str, int]:
    shards = json.loads(started.get("/status").body)["shards"]
    return {name: sum(shard["tunnels"][name] for shard in shards) for name in shards[0]["tunnels"]}


def hands_over(started: Daemon, count: int) -> tuple[int, int]:
    old, new = started.upgrade()
    assert f" {count} tunnels handed over to new binary process {new}" in started.error_log()
    assert tunnels(started)["open"] == count
    return old, new


# All of it arrives.


@pytest.mark.timeout(180)
@pytest.mark.parametrize("protocol", [RAW, WEBSOCKET])
def test_three_upgrades_in_the_middle_of_floods(daemon, ends, protocol):
    """Byte-exact both ways, with readers that stall: bytes wait in pipes and memory when they move."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    started = daemon(ends.address)
    pairs = [open_tunnel(started, ends, protocol) for _ in range(8)]
    size = 48 * MIB
    masked = protocol == WEBSOCKET
    flood = (lambda s, client: frame_flood(s, size, client)) if masked else (lambda s, _: raw_flood(s, size))
    calls, carried = [], []

    def upgrades() -> None:
        for _ in range(3):
            hands_over(started, len(pairs))
            counted = tunnels(started)
            carried.append(counted["bytes_copied"] + counted["bytes_spliced"])

    for number, (client, server) in enumerate(pairs):
        up, down = seed + 2 * number, seed + 2 * number + 1
        calls += [
            (write_flood, client, flood(up, True)),
            (write_flood, server, flood(down, False)),
            (read_flood, client, flood(down, False), random.Random(up)),
            (read_flood, server, flood(up, True), random.Random(down)),
        ]
    together((upgrades,), *calls)
    counted = tunnels(started)
    assert (counted["open"], counted["backlog_bytes"], counted["pipes_in_use"]) == (len(pairs), 0, 0)
    for client, server in pairs:
        client.close()
        server.close()
    eventually(lambda: tunnels(started)["open"] == 0, "all have ended")
    lines = [line.split() for line in started.accessed(len(pairs)) if " 101 " in line]
    # Each has one line, of the last process, as if it had been there all the time.
    assert len(lines) == len({line[1] for line in lines}) == len(pairs)
    assert all(int(line[3]) > size and float(line[4]) > 0 for line in lines), lines
    assert {line[5] for line in lines} == {ends.address}
    if masked:
        assert all(int(line[6]) > 20 for line in lines), "frames are counted on"


@pytest.fixture
def echo(tmp_path_factory):
    port = free_port()
    server = Server(tmp_path_factory.mktemp("echo"), [sys.executable, TESTS / "servers/tunnel_echo.py", port], port)
    yield server
    server.stop()


@pytest.mark.timeout(120)
def test_ten_upgrades_keep_every_tunnel(daemon, echo):
    """While HTTP requests, on kept and on new connections, are answered as well."""
    started = daemon(echo.address)
    with Talk(started, 200) as talk, Clients(("127.0.0.1", started.port)) as clients:
        for _ in range(10):
            clients.wait_for(20)
            hands_over(started, 200)
        clients.wait_for(20)
        assert not talk.errors
    assert not talk.errors and not any(talk.said), "every answer came"
    assert not clients.failed


@pytest.mark.parametrize("protocol", [RAW, WEBSOCKET])
def test_a_handshake_under_way_goes_to_the_new_process(daemon, upstream, protocol):
    """Its tunnel begins when all the others have gone."""
    asks, agrees, finished = threading.Event(), threading.Event(), threading.Event()

    def hold(wire: Wire) -> None:
        asked = wire.read_head().get("Upgrade")
        asks.set()
        agrees.wait(60)
        wire.send(switch(asked))
        finished.wait(60)

    server = upstream(hold)
    started = daemon(server.address)
    client = started.connect()
    client.send(handshake(protocol))
    assert asks.wait(10)
    old, new = started.begin()
    started.signal(signal.SIGQUIT, old)
    started.logged("gracefully shutting down")
    agrees.set()
    assert client.read_head().start.startswith("HTTP/1.1 101 ")
    started.wait_for(old)
    assert f" 1 tunnels handed over to new binary process {new}" in started.error_log()
    eventually(lambda: tunnels(started)["open"] == 1, "the new process has it")
    for near, far in [(client, server.connection(1)), (server.connection(1), client)]:
        near.send(b"\x81\x00")
        assert far.read_exactly(2) == b"\x81\x00"
    finished.set()
    client.expect_end()


# It does not arrive.


@pytest.mark.parametrize("place", ["Tunnels", "Run"])
def test_a_new_process_that_dies_meanwhile_leaves_all_to_the_old_one(daemon, echo, binary, place):
    if HOOK not in binary.path.read_bytes():
        pytest.skip("no debug assertions, no deaths on demand")
    started = daemon(echo.address, RINGX_HANDOVER_FAULT=place)
    started.expected_alerts += ["exited on signal 6", "handing tunnels over to new binary process"]
    with Talk(started, 100) as talk:
        old, new = started.begin()
        started.signal(signal.SIGQUIT, old)
        started.logged("handing tunnels over to new binary process")
        eventually(lambda: f"new binary process {new} exited on signal 6" in started.error_log(), "it is missed")
        started.started_pids.remove(new)
        eventually(lambda: started.pid == old and not started.old_pid_file.exists(), "the pid file is its own again")
        assert started.serving() == old
        before = talk.count
        eventually(lambda: talk.count > before + 1000, "they talk on")
        assert tunnels(started)["open"] == 100
    assert not talk.errors and not any(talk.said)


def test_a_new_process_that_does_not_answer_gets_none(daemon, echo):
    """It is stopped: after five seconds the old one goes on."""
    started = daemon(echo.address)
    started.expected_alerts.append("handing tunnels over to new binary process")
    with Talk(started, 20) as talk:
        old, new = started.begin()
        started.signal(signal.SIGSTOP, new)
        try:
            started.signal(signal.SIGQUIT, old)
            line = started.logged("handing tunnels over to new binary process")
            assert "failed: the new binary process does not answer, going on" in line
        finally:
            started.signal(signal.SIGCONT, new)
        before = talk.count
        eventually(lambda: talk.count > before + 100, "they talk on")
        started.signal(signal.SIGTERM, new)
        started.wait_for(new)
        eventually(lambda: started.serving() == old, "the old process serves")
    assert not talk.errors


def test_descriptors_do_not_pile_up(daemon, ends):
    """From process to process they are as many: those of the tunnels, and each process's own."""
    started = daemon(ends.address)
    count = lambda: len(list(Path(f"/proc/{started.pid}/fd").iterdir()))
    pairs = [open_tunnel(started, ends) for _ in range(100)]
    counts = []
    for _ in range(4):
        hands_over(started, 100)
        counts.append(count())
    assert 200 < min(counts) and max(counts) < 230 and max(counts) - min(counts) <= 2, counts
    for client, server in pairs:
        client.close()
        server.close()
    eventually(lambda: count() <= counts[-1] - 200, "all are closed")


def floods_are_right(pairs, seed: int) -> None:
    calls = []
    for number, (client, server) in enumerate(pairs):
        calls += [
            (write_flood, client, raw_flood(seed + number, 4 * MIB)),
            (read_flood, server, raw_flood(seed + number, 4 * MIB)),
        ]
    together(*calls)


def test_what_a_hand_over_has_failed_with_is_never_run_twice(daemon, ends):
    """The new process wakes up with tunnels that the old one goes on with; and is asked no second time."""
    started = daemon(ends.address)
    started.expected_alerts.append("handing tunnels over to new binary process")
    pairs = [open_tunnel(started, ends) for _ in range(10)]
    old, new = started.begin()
    started.signal(signal.SIGSTOP, new)
    started.signal(signal.SIGQUIT, old)
    started.logged("handing tunnels over to new binary process")
    started.signal(signal.SIGCONT, new)
    started.signal(signal.SIGQUIT, old)
    started.logged("gracefully shutting down")
    floods_are_right(pairs, 1)
    assert "took over" not in started.error_log()
    for client, server in pairs[:5]:
        client.close()
        assert server.recv(1) == b"", "nobody else holds it open"
        server.close()
    for client, server in pairs[5:]:
        client.close()
        server.close()
    started.wait_for(old)
    assert started.serving() == new


@pytest.mark.parametrize("who", [signal.SIGQUIT, signal.SIGTERM], ids=["quit", "terminated"])
def test_a_new_process_that_is_ending_takes_no_tunnels(daemon, ends, who):
    started = daemon(ends.address)
    started.expected_alerts.append("handing tunnels over to new binary process")
    pairs = [open_tunnel(started, ends) for _ in range(10)]
    old, new = started.begin()
    started.signal(who, new)
    started.signal(signal.SIGQUIT, old)
    started.wait_for(new)
    eventually(lambda: started.serving() == old, "the old process goes on")
    floods_are_right(pairs, 1)
    for client, server in pairs:
        client.close()
        server.close()
    eventually(lambda: sum(" 101 " in line for line in started.accessed(10)) == 10, "each has its line")


def test_who_is_called_back_while_tunnels_go_stays(daemon, ends):
    """WINCH, and HUP before the shards were told to end."""
    started = daemon(ends.address)
    old, new = started.begin()
    started.signal(signal.SIGWINCH, old)
    # Of two that wait the kernel would give out HUP first.
    started.logged("(SIGWINCH) received")
    started.signal(signal.SIGHUP, old)
    eventually(lambda: {old, new} == {started.serving() for _ in range(20)}, "both serve")
    started.signal(signal.SIGQUIT, new)
    started.wait_for(new)
    assert started.serving() == old


def test_tunnels_are_counted_where_they_are(daemon, ends):
    started = daemon(ends.address)
    pairs = [open_tunnel(started, ends) for _ in range(20)]
    hands_over(started, 20)

    def counted() -> tuple[int, int]:
        shards = json.loads(started.get("/status").body)["shards"]
        return sum(shard["writing"] for shard in shards), sum(shard["connections"] for shard in shards)

    # And the one that asks. One that has asked before may still be about to be counted out.
    eventually(lambda: counted() == (21, 21), "all tunnels are counted")
    for client, server in pairs:
        client.close()
        server.close()
    eventually(lambda: tunnels(started)["open"] == 0, "all have ended")
    eventually(lambda: counted() == (1, 1), "none is counted any more")


@pytest.mark.skipif(os.geteuid() != 0, reason="asks for root")
def test_logs_that_nobody_may_open_any_more(binary, tmp_path, ends):
    """The new configuration names another access log; that of the tunnels is root's."""
    started = Daemon(binary, tmp_path / "prefix", CONF, up=ends.address)
    started.user = "nobody nogroup"
    started.prefix.chmod(0o755)
    tmp_path.chmod(0o755)
    started.start()
    try:
        pairs = [open_tunnel(started, ends) for _ in range(5)]
        started.write(CONF.replace("logs/access.log", "logs/other.log"))
        hands_over(started, 5)
        for client, server in pairs:
            client.close()
            server.close()
        eventually(lambda: sum(" 101 " in line for line in started.accessed(5)) == 5, "each has its line")
    finally:
        started.stop()
