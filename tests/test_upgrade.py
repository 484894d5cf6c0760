"""The binary upgrade: processes that take over from each other, and those that are started with sockets."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from harness.daemon import Clients, Daemon
from harness.ports import free_port
from harness.proxy import Proxy, eventually
from harness.upstream import request, response, script, send, to_end, until
from harness.wire import connect

ringx_only = pytest.mark.ringx_only
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="asks for root")

IGNORED = (
    "the changing binary signal is ignored: you should shutdown or terminate before either old or new "
    "binary's process"
)


def conf(server: str = "return 200 $pid;", http: str = "", main: str = "") -> str:
    return f"{main}\nevents {{ }}\nhttp {{\n{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{server}\n}}\n}}\n"


@pytest.fixture
def daemon(binary, tmp_path, upstream):
    """`daemon(configuration)`: the program in the background, until the test ends."""
    started: list[Daemon] = []

    def start(text: str = conf(), user: str = "root", **values: object) -> Daemon:
        started.append(Daemon(binary, tmp_path / f"daemon{len(started) or ''}", text, **values))
        started[-1].user = user
        return started[-1].start()

    yield start
    for each in started:
        each.stop()


def files(started: Daemon) -> dict[str, int]:
    """The pid files that there are, and what they name."""
    return {path.name: int(path.read_text()) for path in (started.prefix / "logs").glob("nginx.pid*")}


# Forward.


@ringx_only("nginx does not wait")
@pytest.mark.parametrize("first, second", [("SIGQUIT", "SIGWINCH"), ("SIGWINCH", "SIGQUIT")])
def test_what_waits_for_the_new_binary_ends_the_old_one_in_either_order(daemon, first, second):
    started = daemon()
    old = started.pid
    # The new one reads it when somebody writes.
    rest = started.prefix / "rest.conf"
    os.mkfifo(rest)
    started.write(conf(main="include ../rest.conf;"))
    started.signal(signal.SIGUSR2, old)
    new = int(started.logged("start new binary process ").split()[-1])
    started.started_pids.add(new)
    for name in (first, second):
        started.signal(signal.Signals[name], old)
        started.logged(f"({name}) received")
    assert started.serving() == old
    rest.write_bytes(b"")
    started.wait_for(old)
    assert started.serving() == new


def test_the_new_binary_takes_over(daemon):
    started = daemon()
    old, new = started.begin()
    assert files(started) == {"nginx.pid": new, "nginx.pid.oldbin": old}
    log = started.error_log()
    said = [
        f"{old}#{old}: signal 12 (SIGUSR2) received from {os.getpid()}, changing binary",
        f"{old}#{old}: changing binary",
        f"{old}#{old}: start new binary process {new}",
        f"{new}#{new}: using inherited sockets from \"",
    ]  # fmt: skip
    places = [log.index(f"[notice] {text}") for text in said[:3]] + [log.index(said[3])]
    assert places[:3] == sorted(places[:3])
    assert re.search(r'using inherited sockets from "(\d+;)+"', log)
    started.signal(signal.SIGQUIT, old)
    started.wait_for(old)
    assert files(started) == {"nginx.pid": new}
    assert started.serving() == new
    # And on: its parent is gone, so it can be replaced in its turn.
    third = started.upgrade()
    assert third[0] == new and started.serving() == third[1]


def test_ten_upgrades_lose_no_request(daemon):
    started = daemon(conf(main="worker_processes 2;"))
    with Clients(("127.0.0.1", started.port)) as clients:
        for _ in range(10):
            clients.wait_for(20)
            old, new = started.begin()
            clients.wait_for(20)
            started.signal(signal.SIGQUIT, old)
            started.wait_for(old)
        clients.wait_for(20)
    assert not clients.failed
    assert files(started) == {"nginx.pid": new}
    if not started.binary.is_nginx:
        assert len(clients.pids) == 11


def test_a_request_in_flight_is_finished_by_the_old_process(daemon, upstream):
    go = threading.Event()
    slow = upstream(script(request, until(go), send(response(b"slow")), to_end))
    started = daemon(conf("location / { return 200 $pid; } location /slow { proxy_pass http://@up@; }"), up=slow.address)
    wire = started.connect()
    wire.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
    slow.request()
    old, new = started.begin()
    started.signal(signal.SIGQUIT, old)
    started.logged("gracefully shutting down")
    eventually(lambda: {started.serving() for _ in range(10)} == {new}, "the old process accepts nothing")
    assert started.old_pid_file.exists()
    go.set()
    answer = wire.read_response()
    assert (answer.body, answer.get("Connection")) == (b"slow", "close")
    started.wait_for(old)
    assert files(started) == {"nginx.pid": new}


def test_a_fast_exit_of_the_old_process_refuses_nobody(daemon):
    started = daemon(conf(main="worker_processes 2;"))
    old, new = started.begin()
    started.signal(signal.SIGTERM, old)
    started.wait_for(old)
    assert files(started) == {"nginx.pid": new}
    assert {started.serving() for _ in range(20)} == {new}


def test_unix_sockets_survive(daemon, tmp_path):
    path = tmp_path / "s.sock"
    started = daemon(conf(http=f"server {{ listen unix:{path}; return 200 $pid; }}"))
    with Clients(str(path), 1) as clients:
        for _ in range(3):
            clients.wait_for(10)
            started.upgrade()
        clients.wait_for(10)
    assert not clients.failed
    assert path.exists()
    started.stop()
    assert not path.exists()


@pytest.mark.parametrize("counts", [(1, 3), (3, 1), (2, 3)])
def test_another_number_of_workers(daemon, counts):
    """Whatever waits in the queue of a socket is accepted by somebody."""
    before, after = (conf(main=f"worker_processes {count};") for count in counts)
    started = daemon(before)
    with Clients(("127.0.0.1", started.port)) as clients:
        for text in (after, before):
            started.write(text)
            started.upgrade()
            clients.wait_for(50)
    assert not clients.failed


def listen(*addresses: str) -> str:
    return conf(http="\n".join(f"server {{ listen {each}; return 200 $pid; }}" for each in addresses))


def test_addresses_that_come_and_go(daemon, tmp_path):
    gone_file, gone, added = tmp_path / "gone.sock", free_port(), free_port()
    started = daemon(listen(f"127.0.0.1:{gone}", f"unix:{gone_file}"))
    started.write(listen(f"127.0.0.1:{added}"))
    old, new = started.begin()
    assert started.serving(gone) == old
    started.signal(signal.SIGQUIT, old)
    started.wait_for(old)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", gone)) != 0
    assert started.serving(added) == new
    started.stop()
    assert not gone_file.exists()


@ringx_only("nginx cannot bind an address that overlaps one of its old process")
@pytest.mark.parametrize("user", ["root", "nobody nogroup"])
def test_an_address_that_takes_in_the_one_before(daemon, user):
    port = free_port()
    started = daemon(listen(f"127.0.0.1:{port}"), user=user)
    started.write(listen(f"*:{port}"))
    old, new = started.upgrade()
    assert started.serving(port) == new


@ringx_only("nginx has no line to its old process")
def test_the_old_process_is_told_that_the_new_one_serves(daemon):
    started = daemon()
    old, new = started.begin()
    assert f"{old}#{old}: new binary process {new} is ready" in started.logged("is ready")


def test_the_environment_and_the_arguments_are_those_of_the_start(daemon):
    started = daemon()
    old, new = started.upgrade()
    if not started.binary.is_nginx:  # which has written its title there
        arguments = Path(f"/proc/{new}/cmdline").read_text().split("\0")[:-1]
        assert arguments == [str(started.program), *started.arguments()]
    assert started.get("/").status == 200
    environment = Path(f"/proc/{new}/environ").read_text().split("\0")
    assert any(entry.startswith("NGINX=") for entry in environment) or started.binary.is_nginx
    _, third = started.upgrade()
    names = [entry.split("=")[0] for entry in Path(f"/proc/{third}/environ").read_text().split("\0")]
    assert names.count("NGINX") <= 1


# Back.


def test_rollback(daemon):
    """WINCH to the old, HUP to the old, QUIT to the new: the old serves as before."""
    started = daemon(conf(main="worker_processes 2;"))
    with Clients(("127.0.0.1", started.port)) as clients:
        old, new = started.begin()
        started.signal(signal.SIGWINCH, old)
        eventually(lambda: {started.serving() for _ in range(10)} == {new}, "the old process accepts nothing")
        clients.wait_for(20)
        started.write("a mistake: what is not read again does no harm")
        started.signal(signal.SIGHUP, old)
        eventually(lambda: started.serving() == old, "the old process serves again")
        clients.wait_for(20)
        started.signal(signal.SIGQUIT, new)
        started.logged(f"new binary process {new} exited with code 0")
        eventually(lambda: files(started) == {"nginx.pid": old}, "the pid file is the old process's")
        clients.wait_for(20)
    assert not clients.failed
    assert started.serving() == old
    started.write(started.text)
    started.upgrade()


def test_workers_come_back_by_themselves_when_the_new_binary_is_gone(daemon):
    started = daemon()
    old, new = started.begin()
    started.signal(signal.SIGWINCH, old)
    eventually(lambda: {started.serving() for _ in range(10)} == {new}, "the old process accepts nothing")
    started.signal(signal.SIGQUIT, new)
    eventually(lambda: started.serving() == old, "the old process serves again")
    assert files(started) == {"nginx.pid": old}


def test_a_rollback_keeps_unix_sockets(daemon, tmp_path):
    path = tmp_path / "s.sock"
    started = daemon(conf(http=f"server {{ listen unix:{path}; return 200 $pid; }}"))
    with Clients(str(path), 1) as clients:
        old, new = started.begin()
        clients.wait_for(10)
        started.signal(signal.SIGQUIT, new)
        eventually(lambda: files(started) == {"nginx.pid": old}, "the pid file is the old process's")
        clients.wait_for(10)
    assert not clients.failed
    started.stop()
    assert not path.exists()


def test_a_rollback_from_more_workers(daemon):
    """What the new process has bound beside the sockets of the old one goes away with it, and nobody waits
    in its queues."""
    started = daemon(conf(main="worker_processes 1;"))
    with Clients(("127.0.0.1", started.port)) as clients:
        for _ in range(3):
            started.write(conf(main="worker_processes 3;"))
            old, new = started.begin()
            clients.wait_for(50)
            started.signal(signal.SIGQUIT, new)
            eventually(lambda: files(started) == {"nginx.pid": old}, "the pid file is the old process's")
            clients.wait_for(50)
    assert not clients.failed
    started.upgrade()
    assert started.serving() == started.pid


def test_a_rollback_while_a_worker_of_the_old_process_still_finishes(daemon, upstream):
    go = threading.Event()
    slow = upstream(script(request, until(go), send(response(b"slow")), to_end))
    started = daemon(conf("location / { return 200 $pid; } location /slow { proxy_pass http://@up@; }"), up=slow.address)
    wire = started.connect()
    wire.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
    slow.request()
    old, new = started.begin()
    started.signal(signal.SIGWINCH, old)
    eventually(lambda: {started.serving() for _ in range(10)} == {new}, "the old process accepts nothing")
    started.signal(signal.SIGHUP, old)
    eventually(lambda: started.serving() == old, "the old process serves again")
    started.signal(signal.SIGQUIT, new)
    eventually(lambda: files(started) == {"nginx.pid": old}, "the pid file is the old process's")
    go.set()
    assert wire.read_response().body == b"slow"
    assert started.serving() == old


def test_workers_come_back_while_one_still_finishes(daemon, upstream, tmp_path):
    """WINCH and HUP without an upgrade: the file is read, and nobody waits for who is not done."""
    go = threading.Event()
    slow = upstream(script(request, until(go), send(response(b"slow")), to_end))
    more = f"listen unix:{tmp_path}/s.sock; location /slow {{ proxy_pass http://@up@; }}"
    started = daemon(conf(f"location / {{ return 200 old; }} {more}"), up=slow.address)
    wire = started.connect()
    wire.send(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
    slow.request()
    started.signal(signal.SIGWINCH)
    started.logged("gracefully shutting down")
    started.write(conf(f"location / {{ return 200 new; }} {more}"))
    started.signal(signal.SIGHUP)
    eventually(lambda: started.get("/").body == b"new", "workers serve, with the new configuration")
    with connect(str(tmp_path / "s.sock")) as beside:
        beside.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert beside.read_response().body == b"new"
    go.set()
    assert wire.read_response().body == b"slow"
    assert started.get("/").body == b"new"


def test_who_still_finishes_has_no_more_time_when_others_come_back(daemon, upstream):
    stuck = upstream(script(request, to_end))
    text = conf("location / { return 200 x; } location /stuck { proxy_pass http://@up@; }", main="worker_shutdown_timeout 1s;")
    started = daemon(text, up=stuck.address)
    wire = started.connect()
    wire.send(b"GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n")
    stuck.request()
    started.signal(signal.SIGWINCH)
    started.logged("gracefully shutting down")
    started.signal(signal.SIGHUP)
    eventually(lambda: started.get("/").body == b"x", "workers serve")
    wire.expect_end()
    assert started.get("/").body == b"x"


@ringx_only("its workers are processes, each with its own time")
def test_a_shard_that_leaves_has_its_own_time(daemon, upstream):
    """Others are made to end meanwhile, and the next reload is carried out."""
    go = threading.Event()
    stuck = upstream(script(request, to_end))
    slow = upstream(script(request, until(go), send(response(b"slow")), to_end))
    places = "location /stuck { proxy_pass http://@stuck@; } location /slow { proxy_pass http://@slow@; }"

    def text(shards: int, answer: str) -> str:
        main = f"worker_shutdown_timeout 2s; worker_processes {shards};"
        return conf(f"location / {{ return 200 {answer}; }} {places}", main=main)

    def asks(target: str):
        wire = started.connect()
        wire.send(f"GET /{target} HTTP/1.1\r\nHost: a\r\n\r\n")
        return wire

    started = daemon(text(2, "first"), stuck=stuck.address, slow=slow.address)
    straggler = asks("stuck")
    stuck.request()
    started.signal(signal.SIGWINCH)
    started.logged("gracefully shutting down")
    started.write(text(2, "second"))
    started.signal(signal.SIGHUP)
    eventually(lambda: started.get("/").body == b"second", "others serve")
    wires = [asks("slow") for _ in range(16)]
    for number in range(16):
        slow.request(number + 1)
    started.write(text(1, "third"))
    started.signal(signal.SIGHUP)
    eventually(lambda: {started.get("/").body for _ in range(8)} == {b"third"}, "one of them leaves")
    straggler.expect_end()
    go.set()
    for wire in wires:
        assert wire.read_response().body == b"slow"
    started.logged("shard 1 exited")
    started.write(text(1, "fourth"))
    started.signal(signal.SIGHUP)
    eventually(lambda: started.get("/").body == b"fourth", "it is obeyed")


# What does not work.


def test_a_new_binary_that_fails(daemon):
    started = daemon()
    started.expected_alerts.append('unknown directive "foo"')
    old = started.pid
    started.write(conf("foo;"))
    started.signal(signal.SIGUSR2)
    line = started.logged("exited with code 1")
    new = int(re.search(r"new binary process (\d+) exited", line)[1])
    assert "[notice]" in line and new != old
    assert f"signal 17 (SIGCHLD) received from {new}" in started.error_log()
    assert "[emerg]" in started.logged('unknown directive "foo"')
    eventually(lambda: files(started) == {"nginx.pid": old}, "the pid file is the old process's")
    assert started.serving() == old
    started.write(started.text)
    started.upgrade()


@pytest.mark.parametrize("fault", ["missing", "not executable"])
def test_a_binary_that_cannot_be_executed(daemon, fault):
    started = daemon()
    old = started.pid
    started.program.unlink()
    if fault == "missing":
        error = "2: No such file or directory"
    else:
        started.program.write_text("")
        error = "13: Permission denied"
    text = f'execve() failed while executing new binary process "{started.program}" ({error})'
    started.expected_alerts.append(text)
    started.signal(signal.SIGUSR2)
    assert "[alert]" in started.logged(text)
    eventually(lambda: files(started) == {"nginx.pid": old}, "the pid file is the old process's")
    assert started.serving() == old
    started.program.unlink(missing_ok=True)
    started.program.symlink_to(started.binary.path)
    started.upgrade()


def test_no_second_upgrade_while_one_is_under_way(daemon):
    started = daemon()
    started.expected_alerts.append(IGNORED)
    old, new = started.begin()
    for pid in (old, new):
        started.signal(signal.SIGUSR2, pid)
        eventually(lambda pid=pid: f"[crit] {pid}#{pid}: {IGNORED}" in started.error_log(), "it is ignored")
        assert f"{pid}#{pid}: signal 12 (SIGUSR2) received from {os.getpid()}, ignoring" in started.error_log()
    assert files(started) == {"nginx.pid": new, "nginx.pid.oldbin": old}


def test_no_upgrade_in_the_foreground(proxy):
    started = proxy(conf())
    started.signal(signal.SIGUSR2)
    assert "[crit]" in started.logged(IGNORED)
    assert started.get("/").status == 200


@pytest.mark.parametrize(
    "value, texts",
    [
        ("x;", ["x;\" in NGINX environment variable, ignoring the rest of the variable", "x;\" in NGINX environment variable, ignoring"]),
        ("600", ["600\" in NGINX environment variable, ignoring"]),
    ],
)  # fmt: skip
def test_sockets_that_are_none(binary, tmp_path, value, texts):
    bad = Daemon(binary, tmp_path / "prefix", conf())
    bad.expected_alerts.append("invalid socket number")
    try:
        bad_process = subprocess.Popen(
            [bad.program, *bad.arguments()],
            cwd=bad.prefix,
            env=os.environ | {"NGINX": value},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        bad.started = True
        bad.logged(f'[notice] {bad_process.pid}#{bad_process.pid}: using inherited sockets from "{value}"')
        for text in texts:
            assert "[emerg]" in bad.logged(f'invalid socket number "{text}')
        assert eventually(lambda: bad.pid == bad_process.pid, "it serves all the same, and in the foreground")
        assert bad.get("/").status == 200
    finally:
        bad.stop()


def test_sockets_that_are_not_open(binary, tmp_path):
    bad = Daemon(binary, tmp_path / "prefix", conf())
    bad.expected_alerts += ["of the inherited socket", "close() socket"]
    try:
        process = subprocess.Popen(
            [bad.program, *bad.arguments()],
            cwd=bad.prefix,
            env=os.environ | {"NGINX": "600;"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        bad.started = True
        assert "[crit]" in bad.logged("getsockname() of the inherited socket #600 failed (9: Bad file descriptor)")
        eventually(lambda: bad.pid == process.pid, "it serves all the same")
    finally:
        bad.stop()


# By command.


def by_command(started: Proxy) -> subprocess.CompletedProcess:
    program = getattr(started, "program", started.binary.path)
    return subprocess.run([program, *started.arguments(), "-s", "upgrade"], capture_output=True, text=True, timeout=90)


@ringx_only("nginx has no such command")
def test_upgrade_by_command(daemon):
    started = daemon(conf(main="worker_processes 2;"))
    with Clients(("127.0.0.1", started.port)) as clients:
        for _ in range(3):
            clients.wait_for(10)
            old = started.pid
            done = by_command(started)
            new = started.pid
            said = f"nginx: process {new} serves, process {old} finishes and quits\n"
            assert (done.returncode, done.stdout, done.stderr) == (0, "", said)
            started.wait_for(old)
        clients.wait_for(10)
    assert not clients.failed
    assert files(started) == {"nginx.pid": new}


@ringx_only("nginx has no such command")
@pytest.mark.parametrize("fault", ["configuration", "binary"])
def test_upgrade_by_command_that_fails(daemon, fault):
    started = daemon()
    started.expected_alerts += ['unknown directive "foo"', "execve() failed"]
    old = started.pid
    pristine = shutil.copy(started.conf, started.prefix / "conf/good.conf")
    if fault == "configuration":
        # What the command reads is good; what the new process reads is not.
        started.program.unlink()
        started.program.write_text(f'#!/bin/sh\nexec {started.binary.path} -e stderr -g "foo;"\n')
        started.program.chmod(0o755)
    else:
        started.program.unlink()
    done = subprocess.run(
        [started.binary.path, *started.arguments(), "-c", pristine, "-s", "upgrade"], capture_output=True, text=True
    )
    said = f"nginx: [error] the new binary process has failed, process {old} goes on, see the error log\n"
    assert (done.returncode, done.stderr) == (1, said)
    assert files(started) == {"nginx.pid": old}
    assert started.serving() == old


@ringx_only("nginx has no such command")
def test_upgrade_by_command_when_there_can_be_none(daemon, proxy):
    started = daemon()
    old, new = started.begin()
    done = by_command(started)
    said = f'nginx: [error] an upgrade is under way: "{started.old_pid_file}" names process {old}\n'
    assert (done.returncode, done.stderr) == (1, said)
    in_front = proxy(conf())
    in_front.expected_alerts.append("changing binary")
    done = by_command(in_front)
    said = f"nginx: [error] process {in_front.pid} has not begun to change its binary, see its error log\n"
    assert (done.returncode, done.stderr) == (1, said)


# Privileges.


@root_only
@ringx_only("nginx's master stays root")
def test_the_new_process_may_do_what_the_old_one_might(daemon):
    started = daemon(conf(main="worker_processes 1;"), user="nobody nogroup")
    for path in (started.prefix, *started.prefix.parents[:3]):
        path.chmod(0o755)
    (started.prefix / "logs").chmod(0o700)  # root's: nobody may not write there

    def capabilities(pid: int) -> dict[str, tuple[str, ...]]:
        """Inheritable, permitted, effective, ambient of each thread."""
        found = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            status = (task / "status").read_text()
            name = re.search(r"Name:\s*(.*)", status)[1]
            found[name] = tuple(re.search(rf"{kind}:\s*(\w+)", status)[1] for kind in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
        return found

    assert started.get("/").status == 200  # so it is nobody by now
    before = capabilities(started.pid)
    started.write(conf(main="worker_processes 2;"))  # binds one more socket beside root's
    old, new = started.upgrade()
    after = capabilities(new)
    assert after["program"] == before["program"]
    assert set(before["program"]) != {"0" * 16}
    assert after["ringx shard 0"] == after["ringx shard 1"] == ("0" * 16,) * 4
    assert "shards share sockets" not in started.error_log()
    status = Path(f"/proc/{new}/status").read_text()
    assert re.search(r"Uid:\s*65534\s+65534\s+65534", status)
    text = f"server {{ listen 127.0.0.1:{free_port()}; return 200 $pid; error_log logs/new.log; }}"
    started.write(conf(http=text))
    started.signal(signal.SIGHUP, new)
    eventually((started.prefix / "logs/new.log").exists, "a new log is opened in root's folder")
    started.upgrade()


# Sockets of a service manager.


def activated(binary, prefix: Path, text: str, sockets: list[socket.socket], daemon: bool = False, **environment: str):
    """The program, started as a service manager does with these sockets."""
    started = Daemon(binary, prefix, text)
    *rest, main = started.arguments()
    arguments = [*rest, main if daemon else f"daemon off; {main}"]

    def place() -> None:
        spare = [os.dup(each.fileno()) for each in sockets]
        spare = [os.dup2(each, 200 + at) for at, each in enumerate(spare)]
        for at, each in enumerate(spare):
            os.dup2(each, 3 + at)

    # The shell has the number that it is told, and becomes the program.
    command = ["/bin/sh", "-c", 'LISTEN_PID=${WHO:-$$} exec "$0" "$@"', str(started.program), *arguments]
    process = subprocess.Popen(
        command,
        cwd=prefix,
        env=os.environ | {"LISTEN_FDS": str(len(sockets))} | environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=place,
        close_fds=False,
    )
    started.started = True
    if daemon:
        assert process.wait(10) == 0
    eventually(lambda: started.pid, "the pid file is written")
    started.started_pids.add(started.pid)
    return started


def listening(path: Path | None = None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
    sock.bind(str(path) if path else ("127.0.0.1", 0))
    sock.listen(64)
    return sock


@ringx_only("nginx has no socket activation")
@pytest.mark.parametrize("in_background", [False, True])
def test_sockets_of_a_service_manager(binary, tmp_path, in_background):
    path = tmp_path / "s.sock"
    inet, unix = listening(), listening(path)
    address = inet.getsockname()
    text = conf(http=f"server {{ listen unix:{path}; return 200 $pid; }}", main="worker_processes 2;")
    text = text.replace("@port@", str(address[1]))
    started = activated(binary, tmp_path / "prefix", text, [inet, unix], in_background)

    def ask(where) -> int:
        with connect(where) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return int(wire.read_response().body)

    try:
        assert "[notice]" in started.logged('using sockets from "LISTEN_FDS=2"')
        pid = started.pid
        for where in (address, str(path)):
            assert {ask(where) for _ in range(20)} == {pid}
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "LISTEN_FDS" in environment  # what the kernel keeps is that of the start
        if in_background:
            with Clients(address, 1) as clients:
                clients.wait_for(10)
                new = replaced(started)
                clients.wait_for(10)
            assert not clients.failed
            assert {ask(where) for where in (address, str(path))} == {new}
    finally:
        started.stop()
    assert path.exists(), "it is the service manager's"
    # The manager has them still, and whoever connects waits for the next process.
    for where, sock in ((address, inet), (str(path), unix)):
        connect(where).close()
        sock.accept()[0].close()


def replaced(started: Daemon) -> int:
    """The process that takes over."""
    old = started.pid
    started.signal(signal.SIGUSR2, old)
    eventually(lambda: started.pid != old, "a new process writes its pid file")
    started.started_pids.add(started.pid)
    started.signal(signal.SIGQUIT, old)
    started.wait_for(old)
    return started.pid


@ringx_only("nginx has no socket activation")
def test_sockets_that_are_for_another_process(binary, tmp_path):
    inet = listening()
    port = free_port()
    started = activated(binary, tmp_path / "prefix", conf().replace("@port@", str(port)), [inet], WHO="1")
    try:
        assert "LISTEN_FDS" not in started.error_log()
        assert started.get("/", port=port).status == 200
    finally:
        started.stop()


def test_a_second_instance_is_still_refused(daemon, binary, tmp_path):
    """An upgrade shares addresses; who is no heir does not."""
    started = daemon()
    started.upgrade()
    second = Daemon(binary, tmp_path / "second", conf(), port=started.port)
    try:
        with pytest.raises(AssertionError, match="Address already in use"):
            second.start()
    finally:
        second.stop()
