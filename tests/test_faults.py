"""Bad days: panics, no descriptors, full disks, broken servers, slow clients. Each fault is made for real,
and whoever is connected beside notices nothing."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import servers
from harness.proxy import Binary, Proxy, eventually
from harness.tunnel import BINARY, frame, handshake, read_frame, resident
from harness.upstream import answering, close, head, request, reset, response, script, send, to_end
from harness.wire import Closed, Wire

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="asks for root")

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
NEIGHBOURS = """
    location = /beside { access_log off; return 200 beside; }
    location = /tunnel {
        access_log off;
        proxy_http_version 1.1;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection upgrade;
        proxy_pass http://@echo@;
    }
"""


class Neighbours:
    """A keepalive connection with a request each few milliseconds, and a tunnel that echoes."""

    def __init__(self, proxy: Proxy, keepalive: bool = True):
        self.stop = threading.Event()
        self.errors: list[BaseException] = []
        self.wires = [proxy.connect() for _ in range(1 + keepalive)]
        self.wires[0].send(handshake())
        assert self.wires[0].read_head().start.startswith("HTTP/1.1 101 ")
        self.turns = [0] * len(self.wires)
        self.threads = [
            threading.Thread(target=self._run, args=(which, turn, wire), daemon=True)
            for which, (turn, wire) in enumerate(zip([self._echo, self._ask], self.wires))
        ]

    def _run(self, which: int, turn, wire: Wire) -> None:
        try:
            while not self.stop.wait(0.005):
                turn(wire)
                self.turns[which] += 1
        except BaseException as error:
            self.errors.append(error)

    @staticmethod
    def _ask(wire: Wire) -> None:
        wire.send(b"GET /beside HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = wire.read_response()
        assert (answer.status, answer.body) == (200, b"beside")

    @staticmethod
    def _echo(wire: Wire) -> None:
        payload = os.urandom(random.randrange(1, 2000))
        wire.send(frame(BINARY, payload, masked=True))
        assert read_frame(wire).payload == payload

    def go_on(self) -> None:
        """Both have come round a few more times."""
        seen = list(self.turns)
        eventually(
            lambda: self.errors or all(now > before + 3 for now, before in zip(self.turns, seen)),
            "the neighbours go on",
        )
        assert not self.errors, self.errors

    def __enter__(self) -> "Neighbours":
        for thread in self.threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:
                self.go_on()
        finally:
            self.stop.set()
            for thread in self.threads:
                thread.join()
            for wire in self.wires:
                wire.close()


@pytest.fixture
def serving(proxy, python_echo):
    """`serving(server, …)`: a proxy with this in its server, and with room for neighbours."""

    def start(server: str = "", http: str = "", main: str = "", events: str = "", listen: str = "", **values: object) -> Proxy:
        text = f"""
        {main}
        events {{ {events} }}
        http {{
            access_log logs/access.log;
            {http}
            server {{
                listen 127.0.0.1:@port@ {listen};
                {NEIGHBOURS}
                {server}
            }}
        }}
        """
        return proxy(text, echo=python_echo.address, **values)

    return start


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=0777", "none", path]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(disk: Path) -> Path:
    """Until nothing more fits."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


def counted(proxy: Proxy) -> dict:
    """`ringx_status`, of the one shard."""
    (shard,) = json.loads(proxy.get("/status").body)["shards"]
    return shard


# Panics.

HOOK = b"X-Ringx-Panic"


@pytest.fixture
def panicking(binary: Binary, serving, upstream):
    """A proxy that panics where a request asks for it: only builds with debug assertions can."""
    if HOOK not in binary.path.read_bytes():
        pytest.skip("no debug assertions, no panics on demand")
    held = upstream(answering(response(b"x" * 100_000)))

    def start() -> Proxy:
        proxy = serving(
            """
            location = /status { access_log off; ringx_status; }
            location = /own { return 200 own; }
            location /up { proxy_pass http://group; }
            """,
            http="upstream group { zone z 64k; server @up@ max_conns=1; queue 5; keepalive 4; }",
            up=held.address,
        )
        proxy.expected_alerts.append("panic")
        return proxy

    return start


@ringx_only("its workers die as a whole")
@pytest.mark.parametrize(
    "place, target, action",
    [
        ("before the phases", "/own", None),
        ("while the date is borrowed", "/own", None),
        ("before the request is sent on", "/up", "sending request to upstream"),
        ("in the response", "/up", "reading upstream"),
        ("before the log line", "/own", "logging request"),
    ],
)
def test_a_panic_ends_one_connection(panicking, place, target, action):
    proxy = panicking()
    assert proxy.get("/up").status == 200
    before = counted(proxy)
    with Neighbours(proxy) as beside:
        for _ in range(3):
            wire = proxy.connect()
            line = f"GET {target} HTTP/1.1"
            wire.send(f"{line}\r\nHost: panic.example\r\nX-Ringx-Panic: {place}\r\n\r\n")
            if place == "before the log line":
                assert wire.read_response().body == b"own"
            wire.read_to_end()
            beside.go_on()
        # Its place at the server is free again, and so is its place in memory.
        assert [proxy.get("/up").status for _ in range(5)] == [200] * 5
        assert proxy.get("/own").body == b"own"
    said = proxy.logged(f"panic: asked for {place} at src/")
    assert "[alert]" in said
    while_ = f" while {action}, " if action else ", "
    assert f'{while_}client: 127.0.0.1, server: , request: "{line}"' in said, said
    assert 'host: "panic.example"' in said
    status = 200 if place in ("before the log line", "in the response") else 500
    if place != "before the log line":
        lines = [line_ for line_ in proxy.accessed() if f'"{line}" {status} ' in line_]
        assert len(lines) >= 3
    after = counted(proxy)
    assert after["panics"] == before["panics"] + 3
    eventually(lambda: counted(proxy)["connections"] == 1, "no connection is counted that is gone")
    assert counted(proxy)["queued"] == 0


@ringx_only("its workers die as a whole")
def test_a_panic_ends_one_tunnel(panicking):
    proxy = panicking()
    with Neighbours(proxy) as beside:
        for _ in range(3):
            tunnel = proxy.connect()
            tunnel.send(handshake())
            tunnel.read_head()
            tunnel.send(frame(BINARY, HOOK, masked=True))
            tunnel.expect_end()
            beside.go_on()
        assert counted(proxy)["tunnels"]["open"] == 1
    line = proxy.logged("panic in a tunnel: asked for in a tunnel at src/http/tunnel/")
    assert "[alert]" in line and ' while proxying upgraded connection, client: 127.0.0.1, ' in line
    assert counted(proxy)["panics"] == 3


@ringx_only("its workers die as a whole")
def test_who_waits_in_the_queue_behind_a_panic_is_served(panicking):
    """Each takes the one place at the server with it, one after the other."""
    proxy = panicking()
    lost = [proxy.connect() for _ in range(3)]
    served = [proxy.connect() for _ in range(3)]
    for bad, good in zip(lost, served):
        bad.send(b"GET /up HTTP/1.1\r\nHost: a\r\nX-Ringx-Panic: in the response\r\n\r\n")
        good.send(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [len(wire.read_response().body) for wire in served] == [100_000] * 3
    for wire in lost:
        wire.read_to_end()
    assert counted(proxy)["panics"] == 3


@ringx_only("it has no such thing")
def test_a_release_has_no_panics_on_demand(pytestconfig, binary):
    if pytestconfig.getoption("--profile") != "release":
        pytest.skip("this is none")
    assert HOOK not in binary.path.read_bytes()


# Descriptors.


def descriptors(proxy: Proxy) -> int:
    return len(os.listdir(f"/proc/{proxy.pid}/fd"))


def is_pipe(proxy: Proxy, descriptor: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(f"/proc/{proxy.pid}/fd/{descriptor}").startswith("pipe:")
    return False


@ringx_only("its limit is a worker's")
def test_no_descriptors_left(serving):
    """Accepting pauses half a second at a time, and goes on when there are some again."""
    proxy = serving("location / { return 200 x; }", main="worker_rlimit_nofile 60;")
    proxy.expected_alerts.append("Too many open files")
    with Neighbours(proxy) as beside:
        bulk = proxy.connect()
        bulk.send(handshake())
        bulk.read_head()
        wires = [proxy.connect() for _ in range(70)]
        line = proxy.logged("accept4() failed (24: Too many open files)")
        assert "[crit]" in line
        assert descriptors(proxy) == 60
        began = time.monotonic()
        beside.go_on()
        # Without a pipe to splice through, bulk is copied.
        payload = random.Random(1).randbytes(8 << 20)
        bulk.send(frame(BINARY, payload, masked=True))
        assert read_frame(bulk).payload == payload
        assert not [name for name in os.listdir(f"/proc/{proxy.pid}/fd") if is_pipe(proxy, name)]
        time.sleep(1.2)
        # Not with each attempt of a client, nor each turn of the loop.
        passed = time.monotonic() - began
        assert proxy.error_log().count("accept4() failed") <= 3 + passed / 0.5
        for wire in wires[:40]:
            wire.close()
        for wire in wires[40:]:
            wire.send(GET)
            assert wire.read_response().body == b"x"
        assert proxy.get("/").body == b"x"


@ringx_only("its limit is a worker's")
def test_no_descriptor_for_a_server_or_a_file(serving, upstream):
    """That request is answered with 500, and no server is held to have failed."""
    up = upstream(answering(response(b"up")))
    proxy = serving(
        "location /up { proxy_pass http://group; } location /file { root html; }",
        http="upstream group { server @up@ max_fails=1 fail_timeout=1h; server 127.0.0.1:1 backup; }",
        main="worker_rlimit_nofile 60;",
        up=up.address,
    )
    proxy.expected_alerts.append("Too many open files")
    (proxy.prefix / "html/file").write_text("file")
    with Neighbours(proxy):
        ready = [proxy.connect() for _ in range(2)]
        for wire in ready:
            wire.send(b"GET /beside HTTP/1.1\r\nHost: a\r\n\r\n")
            wire.read_response()
        idle = [proxy.connect() for _ in range(70)]
        proxy.logged("accept4() failed (24: Too many open files)")
        ready[0].send(b"GET /up HTTP/1.1\r\nHost: a\r\n\r\n")
        assert ready[0].read_response().status == 500
        assert "[alert]" in proxy.logged("socket() failed (24: Too many open files) while connecting to upstream")
        # A 500 ends its connection, and another is accepted instead.
        ready[0].expect_end()
        eventually(lambda: descriptors(proxy) == 60, "there are none again")
        ready[1].send(b"GET /file HTTP/1.1\r\nHost: a\r\n\r\n")
        assert ready[1].read_response().status == 500
        assert "[crit]" in proxy.logged('html/file" failed (24: Too many open files)')
        # A configuration that cannot be loaded now is not, and the one in force stays.
        for wire in idle:
            wire.close()
        eventually(lambda: descriptors(proxy) < 50, "there are descriptors again")
        for target, body in [("/up", b"up"), ("/file", b"file")]:
            assert proxy.get(target).body == body


@ringx_only("nginx checks health in its commercial edition alone")
def test_a_health_check_without_descriptors_says_nothing_of_the_server(serving, upstream):
    up = upstream(answering(response(b"up")))
    proxy = serving(
        "location /up { proxy_pass http://group; health_check interval=50ms; }",
        http="upstream group { server @up@; }",
        main="worker_rlimit_nofile 60;",
        up=up.address,
    )
    proxy.expected_alerts.append("Too many open files")
    with Neighbours(proxy):
        idle = [proxy.connect() for _ in range(70)]
        line = proxy.logged("socket() failed (24: Too many open files) while connecting to upstream, health check")
        assert "[alert]" in line
        for wire in idle:
            wire.close()
        assert proxy.get("/up").body == b"up"
    assert "peer is unhealthy" not in proxy.error_log()


@ringx_only("its limit is a worker's")
def test_a_reload_without_descriptors_changes_nothing(serving):
    proxy = serving("location / { return 200 old; }", main="worker_rlimit_nofile 60;")
    proxy.expected_alerts.append("Too many open files")
    with Neighbours(proxy):
        idle = [proxy.connect() for _ in range(70)]
        proxy.logged("accept4() failed (24: Too many open files)")
        proxy.write(proxy.text.replace("200 old", "200 new"))
        proxy.signal(signal.SIGHUP)
        eventually(
            lambda: [line for line in proxy.error_log().splitlines() if "[emerg]" in line and "(24:" in line],
            "the reload failed",
        )
        for wire in idle:
            wire.close()
        assert proxy.get("/").body == b"old"
        proxy.signal(signal.SIGHUP)
        eventually(lambda: proxy.get("/").body == b"new", "the next reload succeeds")


@ringx_only("nginx closes its sockets at once")
def test_who_waits_for_a_descriptor_at_the_end_is_served(serving):
    """All connections are gone while the listener pauses; not all in its queue find room at once."""
    proxy = serving("location / { return 200 x; }", main="worker_rlimit_nofile 60;")
    proxy.expected_alerts.append("Too many open files")
    wires = [proxy.connect() for _ in range(150)]
    for wire in wires:
        wire.send(GET)
    proxy.logged("accept4() failed (24: Too many open files)")
    proxy.signal(signal.SIGQUIT)
    for wire in wires:
        assert wire.read_response().body == b"x"
    assert proxy.wait() == 0


# worker_connections.


def test_connections_that_wait_make_room(serving):
    """Idle ones and such as have sent nothing are closed, the oldest first."""
    # nginx counts its listening socket and those to servers as well.
    proxy = serving("location / { return 200 x; } keepalive_timeout 60s;", events="worker_connections 32;")
    beside = Neighbours(proxy)
    fresh = [proxy.connect() for _ in range(4)]
    idle = [proxy.connect() for _ in range(20)]
    for wire in idle:
        wire.send(GET)
        assert wire.read_response().body == b"x"
    with beside:
        more = [proxy.connect() for _ in range(20)]
        for wire in more:
            wire.send(GET)
            assert wire.read_response().body == b"x"
    fresh[0].expect_end()
    idle[0].expect_end()
    line = proxy.logged("32 worker_connections are not enough, reusing connections")
    assert "[warn]" in line
    assert proxy.error_log().count("reusing connections") <= 3, "at most once a second"
    assert "[alert]" not in proxy.error_log()
    # The last that came is the last to go.
    more[-1].send(GET)
    assert more[-1].read_response().body == b"x"


def test_busy_connections_make_no_room(serving, upstream):
    held = upstream(script(head, to_end))
    proxy = serving("location /held { proxy_pass http://@held@; }", events="worker_connections 32;", held=held.address)
    proxy.expected_alerts.append("worker_connections are not enough")
    # One that waits between two requests would make room.
    with Neighbours(proxy, keepalive=False):
        wires = []
        while "[alert]" not in proxy.error_log():
            assert len(wires) < 40
            wires.append(proxy.connect())
            with contextlib.suppress(OSError):
                wires[-1].send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
            time.sleep(0.02)
        assert re.search(r"\[alert\] \d+#\d+: 32 worker_connections are not enough$", proxy.error_log(), re.M)
        wires[-1].read_to_end()  # at once: nothing can be had by waiting
        for wire in wires[:-1]:
            wire.close()
        eventually(lambda: proxy.get("/beside").body == b"beside", "there is room again")


# Disks.


@differs("it says so in the log of the location, which is full as well")
@root_only
def test_full_logs(serving, small_disk):
    """Lines are lost, requests are not; what can be written again is."""
    proxy = serving(
        f"location / {{ access_log {small_disk}/access.log; error_log {small_disk}/error.log info; return 200 x; }}"
    )
    proxy.expected_alerts.append("No space left on device")
    assert proxy.get("/first").status == 200
    filler = fill(small_disk)
    # The page that a log has begun has room for some lines.
    long = "x" * 3000
    with Neighbours(proxy):
        for number in range(20):
            assert proxy.get(f"/{number}{long}").status == 200
        proxy.logged(f'write() to "{small_disk}/access.log" failed (28: No space left on device)')
        assert proxy.error_log().count("No space left on device") == 1
        filler.unlink()

        def is_written() -> bool:
            proxy.get("/again")
            return "/again" in (small_disk / "access.log").read_text()

        eventually(is_written, "lines are written again")


@root_only
def test_a_full_disk_under_request_bodies(serving, small_disk, upstream):
    """500, the line once for each; with room again everything is taken."""
    up = upstream(answering(lambda asked: response(b"%d" % len(asked.body))))
    proxy = serving(
        f"""
        location / {{
            client_body_buffer_size 16k;
            client_body_temp_path {small_disk};
            proxy_pass http://@up@;
        }}
        """,
        up=up.address,
    )
    filler = fill(small_disk)
    with Neighbours(proxy):
        for count in range(1, 4):
            assert proxy.get("/", method="POST", body=bytes(150_000)).status == 500
            eventually(
                lambda count=count: proxy.error_log().count("(28: No space left on device)") == count, "one line each"
            )
        # nginx has another word for a piece that was written in part.
        says = r'\[crit\] .*pwritev?\(\) "[^"]+/\d{10}" (failed \(28: No space left on device\)|has written only)'
        assert re.search(says, proxy.error_log())
        filler.unlink()
        assert proxy.get("/", method="POST", body=bytes(150_000)).body == b"150000"


@root_only
@differs("what cannot be written is cut short")
def test_a_full_disk_under_a_response(serving, small_disk, upstream):
    """Without a file the server waits for the client: nothing is lost, and said once."""
    up = upstream(answering(lambda asked: response(bytes(int(asked.target[1:])))))
    proxy = serving(
        f"""
        location / {{
            proxy_temp_path {small_disk};
            proxy_buffers 4 8k; proxy_buffer_size 8k; proxy_busy_buffers_size 8k; proxy_temp_file_write_size 8k;
            proxy_pass http://@up@;
        }}
        """,
        up=up.address,
    )
    filler = fill(small_disk)

    def ask(length: int) -> Wire:
        wire = proxy.connect(receive_buffer=4096)
        wire.send(f"GET /{length} HTTP/1.1\r\nHost: a\r\n\r\n")
        return wire

    with Neighbours(proxy):
        # More than fits in the sockets between.
        wires = [ask(8 << 20) for _ in range(3)]
        eventually(lambda: proxy.error_log().count("(28: No space left on device)") == 3, "one line each")
        for wire in wires:
            assert len(wire.read_response().body) == 8 << 20
        assert proxy.error_log().count("(28: No space left on device)") == 3
        filler.unlink()
        wire = ask(150_000)
        assert len(wire.read_response().body) == 150_000


def test_no_place_for_files(serving, upstream):
    """So many slow clients that a response would go to a file before its buffers are full."""
    up = upstream(answering(lambda asked: response(bytes(60_000))))
    proxy = serving(
        "location / { proxy_buffers 8 16k; proxy_temp_path none; proxy_pass http://@up@; }",
        listen="sndbuf=4k backlog=1024",
        events="worker_connections 2048;",
        up=up.address,
    )
    folder = proxy.prefix / "none"
    shutil.rmtree(folder, ignore_errors=True)
    folder.touch()
    with Neighbours(proxy):
        wires = [proxy.connect(receive_buffer=4096) for _ in range(400)]
        for wire in wires:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert {len(wire.read_response().body) for wire in wires} == {60_000}


# Memory.


def test_many_large_bodies_take_the_memory_they_are_given(serving, upstream):
    """200 clients upload 1 MiB each, all under way at the same time: 16 KiB of each are in memory."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    up = upstream(answering(lambda asked: response(b"%d" % len(asked.body))))
    proxy = serving(
        "location / { client_body_buffer_size 16k; client_max_body_size 2m; proxy_pass http://@up@; }",
        events="worker_connections 1024;",
        up=up.address,
    )
    size, pieces = 1 << 20, 16
    with Neighbours(proxy):
        before = resident(proxy)
        wires = [proxy.connect() for _ in range(200)]
        for wire in wires:
            wire.send(f"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n")
        most = 0
        for _ in range(pieces - 1):
            for wire in wires:
                wire.send(bytes(size // pieces))
            most = max(most, resident(proxy) - before)
        for wire in wires:
            wire.send(bytes(size // pieces))
        assert {wire.read_response().body for wire in wires} == {b"%d" % size}
    # 16 KiB and as much again for all the rest of a connection.
    assert most < 200 * (32 << 10) + (4 << 20), f"{most >> 10} KiB"


# Signals.


@differs("its old workers close idle connections")
def test_a_storm_of_reloads(serving):
    proxy = serving("location / { return 200 @load@; }", load="0")
    with Neighbours(proxy) as beside:
        seen = list(beside.turns)
        for number in range(1, 51):
            proxy.values["load"] = str(number)
            proxy.write(proxy.text)
            proxy.signal(signal.SIGHUP)
            assert proxy.get("/").status == 200
            time.sleep(0.04)
        assert all(now > before + 50 for now, before in zip(beside.turns, seen))
        eventually(lambda: proxy.get("/").body == b"50", "the last configuration serves")
    eventually(lambda: descriptors(proxy) < 40, "nothing of the configurations before is left")


# Servers.


def drip(data: bytes, seconds: float):
    """A byte at a time, for ever."""

    def step(wire: Wire) -> None:
        wire.send(data)
        while True:
            wire.send(b"x")
            time.sleep(seconds)

    return step


def endless_head(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        wire.send(b"X-More: and more\r\n" * 50)


LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
TIMED_OUT = "upstream timed out (110: Connection timed out) while reading response header from upstream"
SERVERS = {
    "never-answers": ([request, to_end], 504, TIMED_OUT),
    "one-byte-a-time": ([request, drip(b"HTTP/1.1 200 OK\r\nX-Slow: ", 0.1)], 504, TIMED_OUT),
    "resets-at-once": ([request, reset], 502, "recv() failed (104: Connection reset by peer) while reading response header"),
    "resets-in-the-head": (
        [request, send(b"HTTP/1.1 200 OK\r\nX: "), reset],
        502,
        "recv() failed (104: Connection reset by peer) while reading response header",
    ),
    "closes-in-the-head": (
        [request, send(b"HTTP/1.1 200 OK\r\nX: "), close],
        502,
        "upstream prematurely closed connection while reading response header from upstream",
    ),
    "resets-in-the-body": ([request, send(LENGTH + b"12345"), lambda wire: time.sleep(0.2), reset], None, "(104: Connection reset by peer)"),
    "closes-in-the-body": ([request, send(LENGTH + b"12345"), close], None, "upstream prematurely closed connection"),
    "stalls-in-the-body": ([request, send(LENGTH + b"12345"), to_end], None, "upstream timed out (110: Connection timed out)"),
    "garbage": ([request, send(b"HTTP/1.1 200 OK\r\n\x01\xff\x00: \x02\r\n\r\n"), to_end], 502, "upstream sent invalid header"),
    "an-endless-head": ([request, endless_head], 502, "upstream sent too big header while reading response header from upstream"),
}


@pytest.mark.parametrize("name", SERVERS)
def test_a_broken_server(serving, upstream, name):
    steps, status, text = SERVERS[name]
    up = upstream(script(*steps))
    proxy = serving("location / { proxy_read_timeout 600ms; proxy_pass http://@up@; }", up=up.address)
    with Neighbours(proxy):
        wire = proxy.connect()
        wire.send(GET)
        if status is None:
            # Whatever had come of a body that is cut short may have been kept back.
            assert wire.read_head().start == "HTTP/1.1 200 OK"
            assert b"12345".startswith(wire.read_to_end())
        else:
            assert wire.read_response().status == status
        assert "[error]" in proxy.logged(text)
        assert proxy.get("/beside").status == 200


def test_a_server_is_killed_in_the_middle_of_its_answer(serving, tmp_path):
    """gunicorn's worker, with no chance to say anything. Its master starts another."""
    gunicorn = servers.gunicorn_http(tmp_path, "news:app")
    try:
        proxy = serving("location / { proxy_http_version 1.1; proxy_pass http://@up@; }", up=gunicorn.address)
        with Neighbours(proxy):
            wire = proxy.connect()
            wire.send(b"GET /stream HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_head().start == "HTTP/1.1 200 OK"
            wire.read_until(b"retry: 50")
            children = Path(f"/proc/{gunicorn.process.pid}/task/{gunicorn.process.pid}/children")
            for worker in children.read_text().split():
                os.kill(int(worker), signal.SIGKILL)
            assert b"0\r\n\r\n" not in wire.read_to_end(), "the client takes it for a whole answer"
            proxy.logged("upstream")
            eventually(lambda: proxy.get("/").status == 200, "the next worker answers", 30)
    finally:
        gunicorn.stop()


# io_uring.


@ringx_only("it has no ring")
def test_neighbours_without_io_uring(binary, proxy, python_echo, tmp_path):
    denied = Binary(binary.path, without_io_uring=True)
    text = f"events {{ }}\nhttp {{ server {{ listen 127.0.0.1:@port@; {NEIGHBOURS} }} }}\n"
    started = Proxy(denied, tmp_path / "denied", text, echo=python_echo.address).start()
    try:
        with Neighbours(started) as beside:
            started.signal(signal.SIGHUP)
            started.logged("reconfiguring")
            beside.go_on()
        assert started.error_log().count("io_uring is not available") == 1
    finally:
        started.stop()


@pytest.mark.parametrize("privileged", [True, False])
def test_little_memory_may_be_locked(binary, serving, tmp_path, python_echo, privileged):
    """Rings count as locked memory, in kernels before 5.12 and for who is not root."""
    limited = tmp_path / "limited"
    drop = "" if privileged or os.geteuid() != 0 else "setpriv --bounding-set=-ipc_lock --inh-caps=-ipc_lock "
    limited.write_text(f'#!/bin/sh\nulimit -l 0\nexec {drop}{binary.path} "$@"\n')
    limited.chmod(0o755)
    text = f"events {{ }}\nhttp {{ server {{ listen 127.0.0.1:@port@; {NEIGHBOURS} }} }}\n"
    started = Proxy(Binary(limited), tmp_path / "little", text, echo=python_echo.address).start()
    try:
        with Neighbours(started):
            pass
        assert started.error_log().count("using epoll") <= 1
    finally:
        started.stop()


# Slow clients.


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("what", ["line", "headers", "body", "nothing", "return"])
def test_a_slow_client_is_ended_in_its_time(serving, upstream, how, what):
    up = upstream(answering(response(b"up")))
    proxy = serving(
        "location / { proxy_pass http://@up@; } location /none { return 444; }",
        http=f"""
        client_header_timeout 500ms; client_body_timeout 500ms; lingering_close off;
        reset_timedout_connection {"on" if how == "reset" else "off"};
        """,
        up=up.address,
    )
    sent, text = {
        "line": ("GET / HT", "client timed out (110: Connection timed out) while reading client request line"),
        "headers": ("GET / HTTP/1.1\r\nHost: a\r\n", "client timed out (110: Connection timed out) while reading client request headers"),
        "body": ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345", None),
        "nothing": ("", "client timed out (110: Connection timed out) while waiting for request"),
        "return": ("GET /none HTTP/1.1\r\nHost: a\r\n\r\n", None),
    }[what]
    with Neighbours(proxy):
        wire = proxy.connect()
        began = time.monotonic()
        wire.send(sent)
        assert wire.read_to_end() == b""
        passed = time.monotonic() - began
        if what != "return":
            assert 0.4 < passed < 3
        assert wire.was_reset == (how == "reset" and what != "nothing")
        if text:
            assert "[info]" in proxy.logged(text)
        if what != "nothing":
            status = 444 if what == "return" else 408
            assert f'" {status} 0 ' in proxy.accessed()[0]


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_slow_reader_is_ended_in_its_time(serving, how):
    proxy = serving(
        "location / { root html; }",
        http=f"send_timeout 700ms; reset_timedout_connection {'on' if how == 'reset' else 'off'};",
    )
    (proxy.prefix / "html/large").write_bytes(bytes(8 << 20))
    with Neighbours(proxy):
        wire = proxy.connect(receive_buffer=4096)
        wire.send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        assert "[info]" in proxy.logged("client timed out (110: Connection timed out) while sending response to client")
        wire.read_to_end()
        assert wire.was_reset == (how == "reset")
        assert '"GET /large HTTP/1.1" 200 ' in proxy.accessed()[0]


@pytest.mark.parametrize("whose", ["file", "server"])
def test_slow_heads_and_slow_readers_by_the_hundred(serving, upstream, whose):
    """What slowloris does: whoever is served beside is served, and it costs little memory."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    size = 2 << 20
    up = upstream(answering(lambda asked: response(bytes(size))))
    proxy = serving(
        "location / { root html; } location = /server { proxy_pass http://@up@; }",
        http="client_header_timeout 3s; send_timeout 3s;",
        events="worker_connections 2048;",
        # On loopback the kernel would take it all.
        listen="sndbuf=32k",
        up=up.address,
    )
    (proxy.prefix / "html/file").write_bytes(bytes(size))
    with Neighbours(proxy) as beside:
        before = resident(proxy)
        heads = [proxy.connect() for _ in range(500)]
        for wire in heads:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        readers = [proxy.connect(receive_buffer=4096) for _ in range(200)]
        for wire in readers:
            wire.send(f"GET /{whose} HTTP/1.1\r\nHost: a\r\n\r\n")
        most = 0
        for _ in range(10):
            for wire in heads:
                with contextlib.suppress(OSError):
                    wire.send(b"X-A: b\r\n")
            beside.go_on()
            most = max(most, resident(proxy) - before)
        # 8 KiB for a head and for a reader; and what a shard has for all its responses together, which a
        # busy machine makes it use: 8 MiB that wait, 4 MiB of pieces that they are received in.
        assert most < 700 * (8 << 10) + (8 << 20) + (4 << 20) + (2 << 20), f"{most >> 10} KiB"
        for wire in heads:
            wire.read_to_end()
        assert proxy.error_log().count("while reading client request headers") == 500
        eventually(
            lambda: proxy.error_log().count("while sending response to client")
            + proxy.error_log().count("while sending to client")
            == 200,
            "slow readers are ended",
        )


# Privileges and paths.


class AsUser(Proxy):
    def arguments(self) -> list[str]:
        return [argument.replace("user root;", "user nobody nogroup;") for argument in super().arguments()]


@root_only
def test_no_thread_that_serves_has_privileges(binary, tmp_path):
    """`user` is for all threads; what a reload takes, the main one keeps and no shard has."""
    proxy = AsUser(binary, tmp_path / "user", "worker_processes 2;\nevents { }\nhttp { server { listen 127.0.0.1:@port@; return 200 x; } }\n")
    for folder in [proxy.prefix, *proxy.prefix.parents]:
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    proxy.start()
    try:
        assert proxy.get("/").body == b"x"
        children = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children")
        pids = [proxy.pid, *map(int, children.read_text().split())]
        nobody = "65534"

        def threads() -> dict[int, dict[str, str]]:
            tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
            lines = {int(task.name): (task / "status").read_text().splitlines() for task in tasks}
            return {id_: dict(line.split(":\t", 1) for line in of if ":\t" in line) for id_, of in lines.items()}

        def is_done() -> bool:
            """The second shard may still be on its way."""
            shards = [status for id_, status in threads().items() if id_ != proxy.pid]
            shards = [status for status in shards if status["Name"].startswith(("ringx shard", "nginx"))]
            assert len(shards) >= 2
            for status, name in ((status, name) for status in shards for name in ("CapEff", "CapPrm", "CapInh")):
                assert int(status[name], 16) == 0, (status["Name"], name)
            return True

        eventually(is_done, "who serves has no capabilities")
        fields = threads()
        for status in (status for id_, status in fields.items() if id_ != proxy.pid):
            assert set(status["Uid"].split()) == {nobody}
            assert set(status["Gid"].split()) == {nobody}
            assert set(status["Groups"].split()) <= {nobody}
        if not binary.is_nginx:
            assert set(fields[proxy.pid]["Uid"].split()) == {nobody}
    finally:
        proxy.stop()


@pytest.mark.parametrize(
    "target",
    [
        "/../secret",
        "/a/../../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/%2e%2e%2fsecret",
        "/a/..%2f..%2fsecret",
        "/./..//../secret",
        "/..%5csecret",
        "/%252e%252e/secret",
        "/..\\secret",
        "/alias../secret",
        "/alias/../../secret",
        "/alias/%2e%2e/secret",
        *(
            pytest.param(target, marks=pytest.mark.differs_in_nginx("`..` out of a configuration's seams leaves the root"))
            for target in [
                "/bare../secret",
                "/bare../",
                "/bare..",
                "/tried../secret",
                "/dotted./secret",
                "/rewritten?name=../../secret",
                "/candidate?name=../../secret",
                "/directory?name=../..",
                "/index/?name=../secret",
                "/by-regex?name=../secret",
                "/variable?name=html/..",
                "/accel",
            ]
        ),
    ],
)
def test_no_path_leaves_its_root(serving, upstream, target):
    backend = upstream(answering(b"HTTP/1.1 200 OK\r\nX-Accel-Redirect: /bare../secret\r\nContent-Length: 0\r\n\r\n"))
    proxy = serving(
        """
        location / { root html; }
        location /alias/ { alias html/inner/; }
        location /bare { alias html/inner/deep/; }
        location /tried { alias html/inner/deep/; try_files $uri =404; }
        location /dotted { alias html/inner/deep/.; }
        location /rewritten { rewrite ^ /inner/$arg_name last; }
        location /candidate { root html; try_files /inner/$arg_name =404; }
        location /directory { root html; try_files /inner/$arg_name/ =404; }
        location /index/ { alias html/inner/deep/; index $arg_name; }
        location ~ ^/by-regex { alias html/inner/deep/$arg_name; }
        location /variable { root $arg_name; rewrite ^ /secret break; }
        location /accel { proxy_pass http://@backend@; }
        """,
        backend=backend.address,
    )
    (proxy.prefix / "html/inner/deep").mkdir(parents=True)
    for directory in (proxy.prefix, proxy.prefix / "html/inner"):
        (directory / "secret").write_text("secret")
    answer = proxy.ask(f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.status in (400, 404)
    assert b"secret" not in answer.body


def test_what_the_configuration_itself_goes_up_to_is_served(serving):
    proxy = serving(
        """
        location /root { root html/inner/..; }
        location /alias/ { alias html/inner/../inner/; }
        location ~ ^/captured/(.*) { alias html/inner/../$1; }
        location /dots { root html; }
        """
    )
    (proxy.prefix / "html/inner").mkdir()
    for name in ("root..", "inner/a..b", "inner/...", "dots..a"):
        (proxy.prefix / "html" / name).write_text(name)
    for target, name in [
        ("/root..", "root.."), ("/alias/a..b", "inner/a..b"), ("/alias/...", "inner/..."),
        ("/captured/inner/a..b", "inner/a..b"), ("/dots..a", "dots..a"),
    ]:  # fmt: skip
        answer = proxy.get(target)
        assert (answer.status, answer.body) == (200, name.encode()), target
