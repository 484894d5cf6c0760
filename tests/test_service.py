"""ringx as a service of a machine: what a service manager is told, the unit, the rotation of logs, the package."""

import configparser
import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import servers
from harness.daemon import adopt_orphans
from harness.frozen import Frozen
from harness.machine import Machine
from harness.proxy import Proxy, eventually
from harness.wire import DEADLINE

pytestmark = pytest.mark.ringx_only("nginx has no notify protocol, and a package of its own")

ROOT = Path(__file__).resolve().parent.parent
IS_FULL = os.environ.get("RINGX_TEST_FULL") == "1"
METADATA = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["metadata"]["deb"]


def conf(server: str = "return 200 x;", main: str = "") -> str:
    return f"{main}\nevents {{ }}\nhttp {{\nserver {{\nlisten 127.0.0.1:@port@;\n{server}\n}}\n}}\n"


# The notify protocol.


class Manager:
    """The service manager's end of the notify socket."""

    def __init__(self, name: str):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        self.socket.settimeout(DEADLINE)

    def hears(self) -> dict[str, str]:
        """The next message that is not a ping."""
        while True:
            message = self.hears_any()
            if "WATCHDOG" not in message:
                return message

    def hears_any(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.socket.recv(4096).decode().split("\n"))

    def pings(self, seconds: float) -> int:
        """How many come in this time."""
        count, until = 0, time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                count += "WATCHDOG" in self.hears_any()
            except TimeoutError:
                break
        self.socket.settimeout(DEADLINE)
        return count

    def is_pinged(self) -> None:
        while "WATCHDOG" not in self.hears_any():
            pass


@pytest.fixture(params=["path", "abstract"])
def any_manager(request, tmp_path, monkeypatch):
    name = str(tmp_path / "notify") if request.param == "path" else f"@ringx-test-{os.getpid()}"
    manager = Manager(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    yield manager
    manager.socket.close()


@pytest.fixture
def manager(tmp_path, monkeypatch):
    manager = Manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


def now_microseconds() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_a_life_is_told_in_order(proxy, any_manager):
    started = proxy(conf(main="worker_processes 2;"))
    ready = {"READY": "1", "MAINPID": str(started.pid), "STATUS": "2 of 2 shards serve"}
    assert any_manager.hears() == ready

    before = now_microseconds()
    started.signal(signal.SIGHUP)
    told = any_manager.hears()
    assert told["RELOADING"] == "1" and before <= int(told["MONOTONIC_USEC"]) <= now_microseconds()
    assert any_manager.hears() == ready

    started.expected_alerts.append("unknown directive")
    started.write(conf("nonsense;"))
    started.signal(signal.SIGHUP)
    assert any_manager.hears()["RELOADING"] == "1"
    told = any_manager.hears()
    assert told["READY"] == "1"
    assert told["STATUS"].startswith('2 of 2 shards serve as before: unknown directive "nonsense" in ')
    assert started.get("/").body == b"x"

    started.signal(signal.SIGQUIT)
    assert any_manager.hears()["STOPPING"] == "1"
    assert started.wait() == 0


def test_who_is_ready_serves_and_who_reloaded_serves_the_new(proxy, manager):
    started = proxy(conf("return 200 0;"))
    manager.hears()
    for turn in range(1, 6):
        started.write(conf(f"return 200 {turn};"))
        started.signal(signal.SIGHUP)
        assert "RELOADING" in manager.hears() and "READY" in manager.hears()
        assert started.get("/").body == b"%d" % turn


def test_a_reload_is_answered_also_when_it_comes_during_another(proxy, manager):
    started = proxy(conf())
    manager.hears()
    # Signals of a kind that wait are one, so nobody knows how many there are.
    for _ in range(20):
        started.signal(signal.SIGHUP)
    told = [next(iter(manager.hears())) for _ in range(2)]
    started.signal(signal.SIGQUIT)
    while told[-1] != "STOPPING":
        told.append(next(iter(manager.hears())))
    # The last may be overtaken by the end.
    assert set(told[:-1:2]) == {"RELOADING"} and set(told[1:-1:2]) == {"READY"}, told


def test_the_end_is_told_when_it_begins(proxy, manager):
    started = proxy(conf())
    manager.hears()
    wire = started.connect()
    wire.send(b"GET / HTTP/1.1\r\n")
    eventually(lambda: started.get("/").body == b"x", "what was sent before has been read")
    started.signal(signal.SIGQUIT)
    told = manager.hears()
    assert told == {"STOPPING": "1", "STATUS": "finishing what is under way"}
    assert started.process.poll() is None
    wire.send(b"Host: a\r\n\r\n")
    assert wire.read_response().body == b"x"
    assert started.wait() == 0


def test_a_fast_exit_is_told_too(proxy, manager):
    started = proxy(conf())
    manager.hears()
    started.signal(signal.SIGTERM)
    assert manager.hears() == {"STOPPING": "1", "STATUS": "ending what is under way"}
    assert started.wait() == 0


@pytest.mark.parametrize("name", ["/nowhere/notify", "vsock:2:1234"])
def test_a_manager_that_is_not_there_keeps_nobody_from_serving(proxy, monkeypatch, name):
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    started = proxy(conf())
    assert started.get("/").body == b"x"
    if name.startswith("/"):
        assert "[warn]" in started.logged("the service manager was not told (2: No such file or directory)")
    else:
        assert "cannot be used (97: " in started.stderr.read_text()


def test_a_configuration_test_tells_nothing(proxy, manager, binary):
    started = proxy(conf())
    manager.hears()
    assert binary.run(*started.arguments(), "-t").returncode == 0
    started.signal(signal.SIGQUIT)
    assert "STOPPING" in manager.hears_any()


# The binary upgrade.


def test_the_manager_follows_to_the_new_binary_and_back(proxy, manager, monkeypatch):
    adopt_orphans()
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    started = proxy(conf(main="worker_processes 2;"))
    old = started.pid
    assert manager.hears()["MAINPID"] == str(old)

    # One that cannot start has never been the service.
    started.expected_alerts += ["unknown directive"]
    good = conf(main="worker_processes 2;")
    started.write(conf("nonsense;"))
    started.signal(signal.SIGUSR2)
    assert manager.hears() == {"MAINPID": str(old)}
    started.write(good)

    def upgrade() -> int:
        """Both tell of the new process, once that serves."""
        started.signal(signal.SIGUSR2)
        told = [manager.hears(), manager.hears()]
        new = int(told[0]["MAINPID"])
        assert new != old and {message["MAINPID"] for message in told} == {str(new)}
        ready = {"READY": "1", "MAINPID": str(new), "STATUS": "2 of 2 shards serve"}
        assert ready in told and {"MAINPID": str(new)} in told
        return new

    # Whoever gives the service back is not its end: a manager that hears that would kill both.
    new = upgrade()
    os.kill(new, signal.SIGQUIT)
    assert [manager.hears(), manager.hears()] == [{"MAINPID": str(old)}] * 2
    assert started.get("/").body == b"x"

    new = upgrade()
    try:
        # That the old one ends is no end of the service.
        started.signal(signal.SIGQUIT)
        assert started.wait() == 0
        manager.is_pinged()
        os.kill(new, signal.SIGHUP)
        assert manager.hears()["RELOADING"] == "1"
        while "READY" not in (told := manager.hears()):
            assert list(told) == ["WATCHDOG_USEC"]
        assert told["MAINPID"] == str(new)
        os.kill(new, signal.SIGQUIT)
        assert manager.hears()["STOPPING"] == "1"
    finally:
        os.kill(new, signal.SIGKILL if sys.exc_info()[0] else signal.SIGQUIT)
        assert os.waitpid(new, 0)[0] == new


@pytest.fixture
def starting(proxy, manager):
    """`starting()`: the process of a new binary that waits in the middle of its configuration, and what
    lets it go on."""
    adopt_orphans()
    begun = []

    def start() -> tuple[Proxy, int, Callable[[], object]]:
        started = proxy(conf())
        manager.hears()
        # Reading it waits for somebody to write.
        rest = started.prefix / "rest.conf"
        os.mkfifo(rest)
        started.write(conf(main="include ../rest.conf;"))
        started.signal(signal.SIGUSR2)
        new = int(started.logged("start new binary process ").split()[-1])
        begun.append(new)
        return started, new, lambda: rest.write_bytes(b"")

    yield start
    for new in begun:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(new, signal.SIGKILL)
            os.waitpid(new, 0)


@pytest.mark.parametrize("quits", ["once", "twice"])
def test_the_end_before_the_new_binary_serves_is_no_end_of_the_service(starting, manager, quits):
    started, new, go_on = starting()
    started.signal(signal.SIGQUIT)
    started.logged(f"waiting for new binary process {new} to serve")
    assert started.get("/").body == b"x"
    if quits == "twice":
        started.signal(signal.SIGQUIT)
        assert started.wait() == 0
    go_on()
    assert started.wait() == 0
    told = [manager.hears()]
    while {"MAINPID": str(new)} not in told or not any("READY" in message for message in told):
        told.append(manager.hears())
    # All that the old one has said is here.
    manager.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            told.append(manager.hears())
    assert {message["MAINPID"] for message in told} == {str(new)}
    assert not any("STOPPING" in message for message in told)


def test_a_new_binary_that_dies_before_it_serves_leaves_the_service_to_the_old(starting, manager):
    started, new, _ = starting()
    started.expected_alerts += ["exited on signal 9", "has not come to serve, going on"]
    started.signal(signal.SIGQUIT)
    started.logged(f"waiting for new binary process {new} to serve")
    os.kill(new, signal.SIGKILL)
    started.logged("the new binary process has not come to serve, going on")
    assert manager.hears() == {"MAINPID": str(started.pid)}
    assert started.get("/").body == b"x"


# The watchdog.


def test_the_watchdog_is_fed_while_every_shard_runs(proxy, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    started = proxy(conf(main="worker_processes 2;"))
    assert "READY" in manager.hears_any()
    assert 1 <= manager.pings(5) <= 3, "at half the interval, not all the time"
    with Frozen(started.pid, "ringx shard 1"):
        started.expected_alerts.append("does not run")
        started.logged("[alert]")
        assert "shard 1 does not run, the watchdog is not told" in started.error_log()
        manager.pings(0.1)  # those from before
        assert manager.pings(5) == 0
    manager.is_pinged()
    assert started.error_log().count("does not run") == 1


def test_the_watchdog_is_patient_during_a_load(proxy, manager, monkeypatch):
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    started = proxy(conf())
    manager.hears()
    started.signal(signal.SIGHUP)
    told = [manager.hears_any() for _ in range(3)]
    assert int(told[0]["WATCHDOG_USEC"]) == 600_000_000 and told[0]["RELOADING"] == "1"
    rest = {**told[1], **told[2]}
    assert rest["WATCHDOG_USEC"] == "60000000" and rest["READY"] == "1"


@pytest.mark.parametrize("value, pid", [("200000", "1"), ("0", None), ("x", None)])
def test_a_watchdog_that_is_not_ours_is_not_fed(proxy, manager, monkeypatch, value, pid):
    monkeypatch.setenv("WATCHDOG_USEC", value)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    proxy(conf())
    assert "READY" in manager.hears_any()
    assert manager.pings(0.5) == 0


# The files of the package.


def packaged() -> set[str]:
    """The path of every file."""
    paths = set()
    for source, destination, _ in METADATA["assets"]:
        names = ["ringx"] if source == "target/release/ringx" else [file.name for file in ROOT.glob(source)]
        assert names, f"nothing is {source}"
        paths.update(f"/{destination}{name}" for name in names)
    return paths


def test_what_the_unit_names_is_in_the_package(binary, tmp_path):
    # A key that comes twice is a list to systemd.
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    text = (ROOT / "conf/systemd/ringx.service").read_text()
    unit.read_string(text)
    assert unit["Service"]["Type"] == "notify" and unit["Service"]["NotifyAccess"] == "all"
    made = (ROOT / "conf/debian/postinst").read_text()
    commands = re.findall(r"^Exec\w+=(/usr/sbin/ringx .*)$", text, re.M)
    assert len(commands) == 3
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program in packaged()
        options = dict(zip(arguments[:8:2], arguments[1:8:2]))
        assert options["-c"] in packaged() and options["-c"] in METADATA["conf-files"]
        assert f"{options['-p'].rstrip('/')}\n" in made
        assert f"{Path(options['-e']).parent}\n" in made
        assert options["-g"] == "daemon off;"
        assert arguments[8:] in ([], ["-t", "-q"])


def test_conffiles_are_files_of_the_package():
    assert set(METADATA["conf-files"]) == {path for path in packaged() if path.startswith("/etc/")}


def test_the_filter_of_system_calls_has_io_uring():
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    allowed, sets = set(), ["@system-service"]
    assert "SystemCallFilter=@system-service\n" in (ROOT / "conf/systemd/ringx.service").read_text()
    while sets:
        told = subprocess.run(["systemd-analyze", "syscall-filter", sets.pop()], capture_output=True, text=True, check=True)
        names = [line.strip() for line in told.stdout.splitlines()[1:] if not line.strip().startswith("#")]
        sets += [name for name in names if name.startswith("@")]
        allowed.update(names)
    assert {"io_uring_setup", "io_uring_enter", "io_uring_register", "sched_setaffinity", "capset"} <= allowed


# The package, on a machine.


@pytest.fixture(scope="module")
def package(binary, tmp_path_factory) -> Path:
    """With cargo-deb where it is there; built as a release when all is to be whole."""
    command = [sys.executable, ROOT / "scripts/deb", "--fast", "--output", tmp_path_factory.mktemp("package")]
    if not IS_FULL:
        command += ["--binary", binary.path]
        if not (servers.TARGET / "tools/bin/cargo-deb").exists():
            command.append("--plain")
    environment = {**os.environ, "CARGO_TARGET_DIR": str(servers.TARGET)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.mark.timeout(180)
def test_the_plain_package_is_the_same(binary, package, tmp_path):
    """But for what is generated: the sums, and the libraries."""
    command = [sys.executable, ROOT / "scripts/deb", "--fast", "--plain", "--binary", binary.path, "--output", tmp_path]
    plain = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert plain.name == package.name

    def content(deb: Path) -> dict[str, str]:
        told = subprocess.run(["dpkg-deb", "--contents", deb], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 5) for line in told.splitlines()]
        return {line[5]: line[0] for line in lines if not line[5].endswith("/")}

    def control(deb: Path, name: str) -> str:
        told = subprocess.run(["dpkg-deb", "--info", deb, name], capture_output=True, text=True, check=True)
        return told.stdout

    assert content(plain) == content(package)
    assert f"./{'usr/sbin/ringx'}" in content(package)
    for name in ("postinst", "prerm", "postrm", "conffiles"):
        assert control(plain, name).split() == control(package, name).split()


@pytest.fixture
def machine(package, tmp_path):
    try:
        started = Machine(tmp_path, package)
    except OSError as error:
        pytest.skip(f"no machine can be made here: {error}")
    yield started
    started.stop()


def install(machine: Machine) -> None:
    machine.run("dpkg", "--force-confold", "-i", "/opt/package.deb")


def answers(machine: Machine, target: str, port: int = 8080) -> str:
    return machine.shell(f"curl -s --max-time 10 http://localhost:{port}{target}", check=False)


def other_main(machine: Machine, pid: str) -> str | None:
    (main,) = machine.show("ringx", "MainPID")
    return main if main != pid else None


@pytest.mark.timeout(240)
def test_the_package_on_a_machine(machine, binary):
    # An administrator who wants nothing started by itself is obeyed.
    machine.shell("printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d")
    install(machine)
    assert machine.show("ringx", "ActiveState", "UnitFileState") == ["inactive", "enabled"]
    machine.shell("rm /usr/sbin/policy-rc.d")
    units = "/usr/lib/systemd/system/ringx.service", "/usr/share/doc/ringx/examples/ringx.socket"
    verified = machine.run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert [line for line in verified.stderr.splitlines() if "ringx" in line] == []

    # It starts, as somebody who may do little.
    machine.shell("sed -i 's/error.log;/error.log notice;/' /etc/ringx/ringx.conf")
    machine.run("systemctl", "start", "ringx")
    assert "ringx serves" in answers(machine, "/")
    state, status, pid = machine.show("ringx", "ActiveState", "StatusText", "MainPID")
    assert state == "active" and re.fullmatch(r"(\d+) of \1 shards serve", status)
    about = machine.shell(f"cat /proc/{pid}/status; cat /run/ringx.pid")
    user = machine.shell("id -u ringx").strip()
    assert f"\nUid:\t{user}\t{user}\t" in about and about.endswith(f"\n{pid}\n")
    assert "\nNoNewPrivs:\t1\n" in about and "\nSeccomp:\t2\n" in about
    log = machine.shell("cat /var/log/ringx/error.log")
    denied = binary.without_io_uring or "io_uring denied" in binary.run("-V").stderr
    assert denied or 'using the "io_uring" event method' in log
    assert "[alert]" not in log and "[emerg]" not in log
    if IS_FULL:
        # The prefix of a program that was built for the package.
        assert "test is successful" in machine.run("ringx", "-t").stderr

    # A reload, here to a port for which it was root once; one that is no good changes nothing.
    site = "/etc/ringx/conf.d/site.conf"
    machine.shell(f"echo 'server {{ listen 80; return 200 low; }}' >{site}")
    machine.run("systemctl", "reload", "ringx")
    eventually(lambda: answers(machine, "/", 80) == "low", "the new configuration serves")
    machine.shell(f"echo nonsense >>{site}")
    failed = machine.run("systemctl", "reload", "ringx", check=False)
    assert failed.returncode != 0
    assert answers(machine, "/", 80) == "low"
    assert machine.show("ringx", "ActiveState", "MainPID") == ["active", pid]
    machine.shell(f"rm {site}")
    machine.run("systemctl", "reload", "ringx")

    # Logs are rotated beneath it.
    if machine.run("sh", "-c", "command -v logrotate", check=False).returncode == 0:
        machine.run("logrotate", "--force", "/etc/logrotate.d/ringx")
        assert "GET / " in machine.shell("cat /var/log/ringx/access.log.1")
        eventually(lambda: answers(machine, "/after") and "GET /after " in machine.shell("cat /var/log/ringx/access.log"),
                   "what comes now is in the new file")  # fmt: skip
        assert "GET /after " not in machine.shell("cat /var/log/ringx/access.log.1")
        assert machine.shell("stat -c '%U %G %a' /var/log/ringx/access.log") == "ringx adm 640\n"

    # A shard that hangs ends the process, and the next one serves.
    machine.shell(
        "mkdir /run/systemd/system/ringx.service.d && "
        "printf '[Service]\\nWatchdogSec=2\\n' >/run/systemd/system/ringx.service.d/watchdog.conf && "
        "systemctl daemon-reload && systemctl restart ringx"
    )
    pid = int(machine.show("ringx", "MainPID")[0])
    with Frozen(machine.pid_here(pid), "ringx shard 0") as frozen:
        frozen.ends()
    eventually(lambda: machine.show("ringx", "ActiveState", "NRestarts") == ["active", "1"], "it is started anew")
    assert "shard 0 does not run, the watchdog is not told" in machine.shell("cat /var/log/ringx/error.log")
    assert "ringx serves" in answers(machine, "/")

    # The next version takes its place; what the administrator has changed stays.
    pid = machine.show("ringx", "MainPID")[0]
    machine.shell("echo '# mine' >>/etc/ringx/ringx.conf")
    install(machine)
    state, next_pid = machine.show("ringx", "ActiveState", "MainPID")
    assert state == "active" and next_pid != pid
    assert machine.shell("tail -n 1 /etc/ringx/ringx.conf") == "# mine\n"

    # So it does without a stop.
    pid = next_pid
    options = "-p /var/lib/ringx/ -c /etc/ringx/ringx.conf -e /var/log/ringx/error.log -g 'daemon off;'"
    machine.shell(f"/usr/sbin/ringx {options} -s upgrade")
    eventually(lambda: machine.run("test", "-e", f"/proc/{pid}", check=False).returncode, "the old process ends", 20)
    state, next_pid, status = machine.show("ringx", "ActiveState", "MainPID", "StatusText")
    assert (state, next_pid) == ("active", machine.shell("cat /run/ringx.pid").strip()) and next_pid != pid
    assert re.fullmatch(r"(\d+) of \1 shards serve", status)
    assert "ringx serves" in answers(machine, "/")

    # Whoever ends it without systemd is not contradicted.
    machine.shell("/usr/sbin/ringx -p /var/lib/ringx/ -c /etc/ringx/ringx.conf -s quit")
    eventually(lambda: machine.show("ringx", "ActiveState", "Result") == ["inactive", "success"], "it has ended", 20)
    machine.run("systemctl", "start", "ringx")
    (next_pid,) = machine.show("ringx", "MainPID")

    # And back: the new one is told to quit, and the old one is the service again.
    old = next_pid
    machine.shell(f"kill -USR2 {old}")
    new = eventually(lambda: other_main(machine, old), "the new one is the service")
    machine.shell(f"kill -QUIT {new}")
    eventually(lambda: machine.show("ringx", "ActiveState", "MainPID") == ["active", old], "the old one is", 20)
    assert "ringx serves" in answers(machine, "/")

    # The end: of the service, of the package, of all traces.
    machine.run("systemctl", "stop", "ringx")
    assert machine.show("ringx", "ActiveState", "Result") == ["inactive", "success"]
    assert not machine.shell("ls /run/ringx.pid", check=False)
    machine.run("systemctl", "start", "ringx")
    machine.run("dpkg", "--remove", "ringx")
    assert machine.show("ringx", "ActiveState") == ["inactive"]
    assert "ringx.conf" in machine.shell("ls /etc/ringx /var/log/ringx")
    machine.run("dpkg", "--purge", "ringx")
    left = machine.shell("ls -d /etc/ringx /var/log/ringx /var/lib/ringx /usr/share/ringx /run/ringx.pid", check=False)
    left += machine.shell("getent passwd ringx; getent group ringx; pgrep ringx", check=False)
    left += machine.shell("find /etc/systemd/system /var/lib/systemd -name '*ringx*'")
    assert left == ""
