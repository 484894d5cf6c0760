"""`tunnel_rebalance`: tunnels that move from shard to shard, and nobody at their ends who notices."""

import json
import random
import selectors
import signal
import socket
import threading
import time

import pytest

from harness.proxy import Proxy, eventually
from harness.tunnel import (
    RAW,
    WEBSOCKET,
    frame_flood,
    handshake,
    open_pipes,
    raw_flood,
    read_flood,
    switch,
    together,
    write_flood,
)
from harness.wire import Wire

pytestmark = pytest.mark.ringx_only("nginx moves no tunnels")

CONF = """
worker_processes 2;
tunnel_rebalance @rebalance@;
events { worker_connections 8192; }
http {
    log_format tunnel '$connection $status $bytes_sent $upstream_addr $websocket_messages_in';
    access_log logs/access.log tunnel;
    upstream ends { server @up@ max_conns=5000; }
    server {
        listen 127.0.0.1:@port@;
        location = /status { access_log off; ringx_status; }
        location / {
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            websocket_metrics on;
            proxy_read_timeout 600s;
            proxy_pass http://ends;
        }
    }
}
"""
MIB = 1 << 20


def shards(proxy: Proxy) -> list[dict]:
    return [shard["tunnels"] for shard in json.loads(proxy.get("/status").body)["shards"]]


def split(proxy: Proxy) -> list[int]:
    return [shard["open"] for shard in shards(proxy)]


class Ends:
    """Both ends of tunnels of which it is known on which shard they are."""

    def __init__(self, proxy: Proxy, server, protocol: str):
        self.proxy, self.server, self.protocol = proxy, server, protocol

    def pair(self) -> tuple[socket.socket, socket.socket]:
        number = len(self.server.connections) + 1
        client = self.proxy.connect()
        client.send(handshake(self.protocol))
        upstream = self.server.connection(number)
        assert client.read_head().start.startswith("HTTP/1.1 101 ")
        return blocking(client), blocking(upstream)

    def opened(self) -> list[int]:
        return [shard["opened"] for shard in shards(self.proxy)]

    def on_shards(self, counts: list[int]) -> list[list[tuple[socket.socket, socket.socket]]]:
        """So many tunnels on each shard; those that are too many are closed again."""
        kept, closed = [[] for _ in counts], []
        while [len(pairs) for pairs in kept] != counts:
            before = self.opened()
            pair = self.pair()
            # The 101 is sent before.
            eventually(lambda: sum(self.opened()) == sum(before) + 1, "it is counted")
            shard = next(at for at, opened in enumerate(self.opened()) if opened > before[at])
            (kept[shard] if len(kept[shard]) < counts[shard] else closed).append(pair)
        for pair in closed:
            for end in pair:
                end.close()
        eventually(lambda: split(self.proxy) == counts, "so many are on each shard")
        return kept

    def on_one_shard(self, count: int) -> list[tuple[socket.socket, socket.socket]]:
        """So many tunnels on the second shard."""
        return self.on_shards([0, count])[1]


def blocking(wire: Wire) -> socket.socket:
    wire.sock.setblocking(True)
    wire.sock.settimeout(60)
    return wire.sock


@pytest.fixture
def ends(proxy, upstream):
    finished = threading.Event()

    def hold(wire: Wire) -> None:
        wire.send(switch(wire.read_head().get("Upgrade")))
        finished.wait(300)

    def start(protocol: str) -> Ends:
        server = upstream(hold)
        return Ends(proxy(CONF, up=server.address, rebalance="off"), server, protocol)

    yield start
    finished.set()


def rebalance(proxy: Proxy, every: str) -> None:
    proxy.write(CONF.replace("@rebalance@", every))
    proxy.signal(signal.SIGHUP)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("protocol", [RAW, WEBSOCKET])
def test_tunnels_move_in_the_middle_of_floods(ends, protocol):
    """Byte-exact both ways, with readers that stall, so that bytes wait in the proxy when they move."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    started = ends(protocol)
    proxy = started.proxy
    pairs = started.on_one_shard(24)
    masked = protocol == WEBSOCKET
    flood = (lambda s, client: frame_flood(s, 24 * MIB, client)) if masked else (lambda s, _: raw_flood(s, 24 * MIB))
    calls = [(rebalance, proxy, "100ms")]
    for number, (client, server) in enumerate(pairs):
        up, down = seed + 2 * number, seed + 2 * number + 1
        calls += [
            (write_flood, client, flood(up, True)),
            (write_flood, server, flood(down, False)),
            (read_flood, client, flood(down, False), random.Random(up)),
            (read_flood, server, flood(up, True), random.Random(down)),
        ]
    together(*calls)
    assert split(proxy) == [12, 12]
    now = shards(proxy)
    assert now[0]["taken_over"] == 12
    carried = [shard["bytes_copied"] + shard["bytes_spliced"] for shard in now]
    assert min(carried) > 16 * MIB, "they moved while bytes flowed"
    assert sum(shard["backlog_bytes"] for shard in now) == 0
    assert sum(shard["pipes_in_use"] for shard in now) == 0
    eventually(lambda: open_pipes(proxy) == 0, "no pipe is left open")
    for client, server in pairs:
        client.close()
        server.close()
    eventually(lambda: split(proxy) == [0, 0], "all have ended")
    lines = [line.split() for line in proxy.accessed(len(pairs)) if " 101 " in line]
    # Those that moved are logged as they would have been, by the shard where they ended.
    of_pairs = [line for line in lines if int(line[2]) > 24 * MIB]
    assert len(of_pairs) == len(pairs) and len({line[0] for line in of_pairs}) == len(pairs)
    assert {line[3] for line in of_pairs} == {started.server.address}
    if masked:
        assert all(int(line[4]) > 20 for line in of_pairs), "frames are counted on"
    # The one that asks; the one that asked before it may still be being closed.
    connections = lambda: [shard["connections"] for shard in json.loads(proxy.get("/status").body)["shards"]]
    eventually(lambda: connections() in ([1, 0], [0, 1]), "no connection of a tunnel is counted")


@pytest.mark.timeout(120)
def test_a_thousand_on_one_shard_are_split_within_five_seconds(ends):
    started = ends(RAW)
    proxy = started.proxy
    pairs = started.on_one_shard(1000)
    stopping = threading.Event()

    def echo() -> None:
        selector = selectors.DefaultSelector()
        for _, server in pairs:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ)
        while not stopping.is_set():
            for key, _ in selector.select(0.1):
                key.fileobj.sendall(key.fileobj.recv(4096))

    echoing = threading.Thread(target=echo)
    echoing.start()
    try:
        calm = talk([client for client, _ in pairs], 3)
        rebalance(proxy, "on")
        began = time.monotonic()
        moving = talk([client for client, _ in pairs], 5)
        now = split(proxy)
        print(f"p99 {calm * 1e3:.1f} ms calm, {moving * 1e3:.1f} ms while they move; {now}")
        assert time.monotonic() - began < 8
        assert sum(now) == 1000 and abs(now[0] - now[1]) <= 100, now
    finally:
        stopping.set()
        echoing.join()


class Torrent:
    """As many bytes as go through one tunnel, for as long as they are to, and compared."""

    NOISE = random.Random("torrent").randbytes(3 * MIB)

    def __init__(self, client: socket.socket, server: socket.socket, stopping: threading.Event):
        self.client, self.server, self.stopping = client, server, stopping
        # The last piece, once it is known. Whoever reads is not left waiting for another.
        self.last: int | None = None

    def start_of(self, number: int) -> int:
        return number * 65537 % (2 * MIB)

    def write(self) -> None:
        number = 0
        while not self.stopping.is_set():
            self.send(number)
            number += 1
        self.last = number
        self.send(number)

    def send(self, number: int) -> None:
        start = self.start_of(number)
        self.client.sendall(memoryview(self.NOISE)[start : start + MIB])

    def read(self) -> None:
        buffer, number = memoryview(bytearray(MIB)), 0
        while self.last is None or number <= self.last:
            start, at = self.start_of(number), 0
            while at < MIB:
                count = self.server.recv_into(buffer[: MIB - at])
                assert count, f"it ended in piece {number}"
                same = self.NOISE.startswith(buffer[:count], start + at)
                assert same, f"piece {number} is not as it was sent, at byte {at} or behind it"
                at += count
            number += 1


@pytest.mark.timeout(300)
def test_idle_tunnels_make_room_for_busy_ones(ends):
    """And come back when these have ended."""
    started = ends(RAW)
    proxy = started.proxy
    count = 100
    first, second = started.on_shards([count, count])
    stopping = threading.Event()
    torrents = [Torrent(*pair, stopping) for pair in second[:2]]

    def carried(shard: int) -> int:
        counted = shards(proxy)[shard]
        return counted["bytes_copied"] + counted["bytes_spliced"]

    def have_left() -> bool:
        now = split(proxy)
        return sum(now) == 2 * count and now[1] <= count * 3 // 4

    def watch() -> None:
        try:
            rebalance(proxy, "100ms")
            before = carried(1)
            eventually(have_left, "idle ones have left the busy shard", 120)
            between = carried(1)
            eventually(lambda: carried(1) > between + 64 * MIB, "the busy ones go on where they were", 60)
            counted = shards(proxy)
            print(f"{(between - before) / MIB:.0f} MiB until they had left; {counted}")
            assert counted[1]["taken_over"] == 0, "none has come back meanwhile"
        finally:
            stopping.set()

    together((watch,), *((torrent.write,) for torrent in torrents), *((torrent.read,) for torrent in torrents))
    # Busy ones of the other shard would show here.
    assert carried(0) == 0
    assert carried(1) == MIB * sum(torrent.last + 1 for torrent in torrents)

    def are_even() -> bool:
        # Each shard keeps up to eight that are above its share.
        now = split(proxy)
        return sum(now) == 2 * count and abs(now[0] - now[1]) <= 18

    eventually(are_even, "they are spread evenly again", 120)
    for number, (client, server) in enumerate(first + second):
        for one, other in [(client, server), (server, client)]:
            text = b"%016d" % number
            one.sendall(text)
            assert other.recv(64) == text
    assert sum(shard["backlog_bytes"] + shard["pipes_in_use"] for shard in shards(proxy)) == 0


def talk(clients: list[socket.socket], seconds: float) -> float:
    """Every tunnel says a number of its own each half second, and hears it again. The p99, seconds."""
    selector = selectors.DefaultSelector()
    for number, client in enumerate(clients):
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ, number)
    start = time.monotonic()
    due = [start + 0.5 * number / len(clients) for number in range(len(clients))]
    said: dict[int, tuple[bytes, float]] = {}
    count, times = 0, []
    while (now := time.monotonic()) < start + seconds or said:
        assert now < start + seconds + 20, f"{len(said)} answers are missing"
        for number, client in enumerate(clients):
            if number not in said and due[number] <= now < start + seconds:
                count += 1
                said[number] = (b"%016d" % count, time.monotonic())
                client.sendall(said[number][0])
                due[number] = now + 0.5
        for key, _ in selector.select(0.002):
            heard = key.fileobj.recv(4096)
            text, since = said.pop(key.data)
            assert heard == text, f"{heard} is not {text}"
            times.append(time.monotonic() - since)
    return sorted(times)[len(times) * 99 // 100]
