"""Reloads and upgrades under every kind of load: no request fails, no tunnel misses a byte.

RINGX_TEST_FULL=1 is the long run: 60 reloads in as many seconds, ten upgrades, 2000 tunnels.
"""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness.daemon import Clients, Daemon
from harness.ports import free_port
from harness.proxy import eventually
from harness.servers import TESTS, Server, uwsgi
from harness.tunnel import Talk, resident

pytestmark = pytest.mark.ringx_only("nginx's tunnels stay with the old process, and so does the old process")

FULL = bool(os.environ.get("RINGX_TEST_FULL"))
RELOADS, UPGRADES, TUNNELS = (60, 10, 2000) if FULL else (6, 3, 200)

CONF = """
worker_processes 2;
events { worker_connections 8192; }
http {
    access_log off;
    server {
        listen 127.0.0.1:@port@ backlog=4096;
        location = / { return 200 $pid; }
        location = /status { ringx_status; }
        location /app { include @conf@/uwsgi_params; uwsgi_pass unix:@app@; }
        location / {
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout 120s;
            proxy_pass http://127.0.0.1:@echo@;
        }
    }
}
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(16384, hard)), hard))
    port = free_port()
    server = Server(tmp_path_factory.mktemp("echo"), [sys.executable, TESTS / "servers/tunnel_echo.py", port], port)
    yield server
    server.stop()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    server = uwsgi(tmp_path_factory.mktemp("app"), "tutorial", 2, "--listen", "100")
    yield server
    server.stop()


@pytest.fixture
def daemon(binary, tmp_path, echo, app):
    values = {"echo": echo.port, "app": app.path, "conf": TESTS.parent / "conf"}
    started = Daemon(binary, tmp_path / "prefix", CONF, **values)
    yield started.start()
    started.stop()


class Wrk:
    """Asks as fast as it can, until the context ends; then `answers`, and `errors` in its words."""

    def __init__(self, url: str, *fields: str):
        command = ["wrk", "-t1", "-c16", "-d600", "--timeout", "20"]
        for field in fields:
            command += ["-H", field]
        self.command = [*command, url]
        self.answers, self.errors = 0, ""

    def __enter__(self) -> "Wrk":
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_) -> None:
        self.process.send_signal(signal.SIGINT)
        said = self.process.communicate(timeout=30)[0]
        found = re.search(r"(\d+) requests in", said)
        self.answers = int(found[1]) if found else 0
        self.errors = "\n".join(line for line in said.splitlines() if "errors" in line or "Non-2xx" in line)


def threads(pid: int) -> list[str]:
    return sorted((task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir())


@pytest.mark.timeout(300 if FULL else 90)
@pytest.mark.skipif(not shutil.which("wrk"), reason="no wrk")
def test_reloads(daemon):
    url = f"http://127.0.0.1:{daemon.port}"
    seen = []
    kept, fresh, app = Wrk(f"{url}/"), Wrk(f"{url}/", "Connection: close"), Wrk(f"{url}/app")
    with Talk(daemon, TUNNELS) as talk:
        with kept, fresh, app:
            for turn in range(1, RELOADS + 1):
                began = time.monotonic()
                daemon.signal(signal.SIGHUP)
                eventually(lambda: daemon.error_log().count("reconfiguring") >= turn, "it was read again")
                seen.append((len([name for name in threads(daemon.pid) if "shard" in name]), resident(daemon)))
                time.sleep(max(0, began + 1 - time.monotonic()))
            before = talk.count
            eventually(lambda: talk.count > before + TUNNELS, "they talk on")
        assert not talk.errors
    assert not talk.errors and not any(talk.said)
    print(f"{kept.answers} kept, {fresh.answers} new, {app.answers} uwsgi, {talk.count} messages; memory {seen}")
    assert [kept.errors, fresh.errors, app.errors] == ["", "", ""]
    assert min(kept.answers, fresh.answers, app.answers) > 100
    assert {count for count, _ in seen} == {2}, "one generation of threads"
    settled = [size for _, size in seen[len(seen) // 2 :]]
    assert max(settled) < 1.2 * min(settled) + (1 << 20), "memory is flat"


@pytest.fixture
def builds(daemon, binary):
    """Takes the other build, if there are two, for the next upgrade."""
    target = Path(os.environ.get("RINGX_TEST_TARGET") or TESTS.parent / "target")
    changed = max(path.stat().st_mtime for path in (TESTS.parent / "src").rglob("*.rs"))
    built = [target / "release/ringx", target / "debug/ringx"]
    known = [path for path in built if path.exists() and path.stat().st_mtime > changed]
    assert len(known) == 2 or not FULL, "for two builds: cargo build; cargo build --release"
    turn = iter(range(1000))

    def take() -> None:
        daemon.program.unlink()
        daemon.program.symlink_to(known[next(turn) % len(known)] if known else binary.path)

    return take


@pytest.mark.timeout(300 if FULL else 90)
@pytest.mark.skipif(not shutil.which("wrk"), reason="no wrk")
def test_upgrades(daemon, builds):
    """Kept connections are closed between two requests: who asks again then is a client's own affair, so they
    are not wrk's."""
    url = f"http://127.0.0.1:{daemon.port}"
    fresh, app = Wrk(f"{url}/", "Connection: close"), Wrk(f"{url}/app", "Connection: close")
    with Talk(daemon, TUNNELS) as talk, Clients(("127.0.0.1", daemon.port)) as clients:
        with fresh, app:
            for _ in range(UPGRADES):
                clients.wait_for(20)
                builds()
                old, new = daemon.upgrade()
                assert f" tunnels handed over to new binary process {new}" in daemon.error_log()
                before = talk.count
                eventually(lambda: talk.errors or talk.count > before + TUNNELS, "they talk on", 30)
                assert not talk.errors
            clients.wait_for(20)
    assert not talk.errors and not any(talk.said), "every answer came"
    assert not clients.failed
    print(f"{fresh.answers} new, {app.answers} uwsgi, {clients.answers} by Python, {talk.count} messages")
    assert [fresh.errors, app.errors] == ["", ""]
    assert min(fresh.answers, app.answers) > 100
    handed = re.findall(r" (\d+) tunnels handed over", daemon.error_log())
    assert sum(map(int, handed)) >= UPGRADES * TUNNELS
