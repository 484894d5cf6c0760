"""From the command line to a running process: mistakes outside of http, warnings, side effects of a test, the start."""

import os
import re
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from harness.ports import free_port
from harness.proxy import Proxy, eventually

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="asks for root")

EVENTS = "events { }\n"

# The text of a file whose third line has the mistake, and what is said of it.
MAIN = {
    "daemon": ("daemon maybe;", 'invalid value "maybe" in "daemon" directive, it must be "on" or "off"'),
    "master-process": ("master_process 1;", 'invalid value "1" in "master_process" directive, it must be "on" or "off"'),
    "user": ("user no-such-user;", 'getpwnam("no-such-user") failed'),
    "group": ("user root no-such-group;", 'getgrnam("no-such-group") failed'),
    "user-arguments": ("user a b c;", 'invalid number of arguments in "user" directive'),
    "processes": ("worker_processes x;", '"worker_processes" directive invalid value'),
    "processes-negative": ("worker_processes -1;", '"worker_processes" directive invalid value'),
    "affinity": ("worker_cpu_affinity 2;", 'invalid character "2" in "worker_cpu_affinity"'),
    "priority": ("worker_priority x;", '"worker_priority" directive invalid number'),
    "nofile": ("worker_rlimit_nofile x;", '"worker_rlimit_nofile" directive invalid number'),
    "core": ("worker_rlimit_core x;", '"worker_rlimit_core" directive invalid value'),
    "shutdown": ("worker_shutdown_timeout x;", '"worker_shutdown_timeout" directive invalid value'),
    "debug-points": ("debug_points x;", 'invalid value "x"'),
    "pcre-jit": ("pcre_jit x;", 'invalid value "x" in "pcre_jit" directive, it must be "on" or "off"'),
    "timer": ("timer_resolution x;", '"timer_resolution" directive invalid value'),
    "pool": ("thread_pool a max_queue=1;", '"thread_pool" must have "threads" parameter'),
    "pool-0": ("thread_pool a threads=0;", 'invalid threads value "threads=0"'),
    "events-twice": ("events { }", '"events" directive is duplicate'),
    "events-argument": ("events a { }", 'invalid number of arguments in "events" directive'),
    "http-twice": ("http { } http { }", '"http" directive is duplicate'),
    "pid-twice": ("pid a; pid b;", '"pid" directive is duplicate'),
    "include": ("include none;", 'open() "@conf@/none" failed (2: No such file or directory)'),
}

IN_EVENTS = {
    "connections": ("worker_connections 1x;", 'invalid number "1x"'),
    "connections-twice": ("worker_connections 100; worker_connections 100;", '"worker_connections" directive is duplicate'),
    "use": ("use foo;", 'invalid event type "foo"'),
    "multi-accept": ("multi_accept x;", 'invalid value "x" in "multi_accept" directive, it must be "on" or "off"'),
    "accept-mutex": ("accept_mutex x;", 'invalid value "x" in "accept_mutex" directive, it must be "on" or "off"'),
    "mutex-delay": ("accept_mutex_delay x;", '"accept_mutex_delay" directive invalid value'),
    "unknown": ("foo;", 'unknown directive "foo"'),
    "context": ("listen 80;", '"listen" directive is not allowed here'),
}


def first_line(binary, directory: Path, text: str, *options: str):
    proxy = Proxy(binary, directory, text)
    done = binary.run(
        "-t", "-p", f"{directory}/", "-c", proxy.conf, "-e", "logs/e.log", "-g", "error_log stderr;", *options
    )
    return proxy, done


@pytest.mark.parametrize("name", MAIN)
def test_a_mistake_outside_of_blocks(binary, tmp_path, name):
    text, error = MAIN[name]
    before = "\n\n" if name.startswith("events") else f"{EVENTS}\n"
    before = "events { }\n\n" if name == "events-twice" else before
    proxy, done = first_line(binary, tmp_path, before + text + "\n")
    error = error.replace("@conf@", str(proxy.conf.parent))
    shown = done.stderr.splitlines()[0]
    assert shown.startswith(f"nginx: [emerg] {error}"), shown
    assert shown.endswith(f" in {proxy.conf}:3"), shown
    assert done.returncode == 1


@pytest.mark.parametrize("name", IN_EVENTS)
def test_a_mistake_in_events(binary, tmp_path, name):
    text, error = IN_EVENTS[name]
    proxy, done = first_line(binary, tmp_path, f"events {{\n\n{text}\n}}\n")
    assert done.stderr.splitlines()[0] == f"nginx: [emerg] {error} in {proxy.conf}:3"
    assert done.returncode == 1


TAKEN = [
    "daemon on; master_process on; worker_processes 2; worker_priority -5; worker_rlimit_nofile 4096;",
    "worker_processes auto; worker_cpu_affinity auto;",
    "worker_processes 2; worker_cpu_affinity 01 10;",
    "worker_processes 2; worker_cpu_affinity auto 11;",
    "pcre_jit on; timer_resolution 100ms; debug_points abort; lock_file logs/l; thread_pool p threads=4;",
    "env A; env B=c; env TZ=UTC; working_directory /tmp; worker_rlimit_core 10m; worker_shutdown_timeout 10s;",
    "error_log logs/a; error_log logs/b warn; error_log stderr crit;",
]


@pytest.mark.parametrize("text", TAKEN)
def test_what_is_taken(binary, tmp_path, text):
    _, done = first_line(binary, tmp_path, f"{text}\nevents {{ worker_connections 64; multi_accept on; accept_mutex off; }}\n")
    assert done.returncode == 0
    assert "[emerg]" not in done.stderr


def test_fewer_masks_than_workers(binary, tmp_path):
    _, done = first_line(binary, tmp_path, "worker_processes 3; worker_cpu_affinity 01 10;\n" + EVENTS)
    assert (
        'nginx: [warn] the number of "worker_processes" is not equal to the number of "worker_cpu_affinity" masks, '
        "using last mask for remaining worker processes\n"
    ) in done.stderr
    assert done.returncode == 0


@differs("it warns when it starts")
def test_more_connections_than_descriptors(binary, tmp_path):
    _, done = first_line(binary, tmp_path, "events { worker_connections 9999999; }\n")
    assert re.search(r"nginx: \[warn\] 9999999 worker_connections exceed open file resource limit: \d+\n", done.stderr)
    assert done.returncode == 0


# What a test leaves behind.


def test_a_test_makes_the_files_it_needs(binary, tmp_path):
    text = (
        f"{EVENTS}http {{ client_body_temp_path body; proxy_temp_path proxy; uwsgi_temp_path uwsgi;\n"
        "access_log logs/a.log; error_log logs/b.log;\nserver { listen 127.0.0.1:@port@; } }\n"
    )
    proxy = Proxy(binary, tmp_path, text)
    if binary.is_nginx:
        proxy.write(text.replace("uwsgi_temp_path uwsgi;", "").replace("client_body_temp_path body; proxy_temp_path proxy;", ""))
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/e.log", "-g", "pid logs/x.pid; error_log logs/c.log;")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs/x.pid").read_bytes() == b""
    for name in ("a.log", "b.log", "c.log", "e.log"):
        assert (tmp_path / "logs" / name).exists(), name
        assert stat.S_IMODE((tmp_path / "logs" / name).stat().st_mode) == 0o644
    if not binary.is_nginx:
        assert stat.S_IMODE((tmp_path / "body").stat().st_mode) == 0o700


def test_a_test_leaves_a_pid_file_alone(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, EVENTS)
    (tmp_path / "logs/x.pid").write_text("12345\n")
    binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/e.log", "-g", "pid logs/x.pid;")
    assert (tmp_path / "logs/x.pid").read_text() == "12345\n"


def test_a_test_of_an_address_in_use_is_good(binary, tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        proxy = Proxy(binary, tmp_path, f"{EVENTS}http {{ server {{ listen 127.0.0.1:{port}; }} }}\n")
        done = binary.run("-t", *proxy.arguments())
    assert done.returncode == 0
    assert "test is successful" in done.stderr


def test_a_test_removes_its_unix_socket(binary, tmp_path):
    path = tmp_path / "s"
    proxy = Proxy(binary, tmp_path, f"{EVENTS}http {{ server {{ listen unix:{path}; }} }}\n")
    assert binary.run("-t", *proxy.arguments()).returncode == 0
    assert not path.exists()


# The start.


@pytest.mark.parametrize("name", ["logs/x.pid", "absolute"])
def test_in_the_background(binary, tmp_path, name):
    """The parent ends with 0 once the pid file says who goes on."""
    pid_file = tmp_path / "logs/x.pid"
    shown = str(pid_file) if name == "absolute" else name
    text = f"pid {shown}; error_log logs/e.log notice; {EVENTS}http {{ access_log off; server {{ listen 127.0.0.1:@port@; return 200 x; }} }}\n"
    proxy = Proxy(binary, tmp_path, text)
    done = subprocess.run(
        [binary.path, "-p", f"{tmp_path}/", "-c", str(proxy.conf), "-e", "logs/e.log"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=20,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    eventually(lambda: pid_file.exists() and pid_file.read_text() != "", "the pid file is written")
    pid = int(pid_file.read_text())
    try:
        assert re.fullmatch(r"\d+\n", pid_file.read_text())
        assert stat.S_IMODE(pid_file.stat().st_mode) == 0o644
        eventually(lambda: proxy.get("/").body == b"x", "it serves")
        assert os.getsid(pid) == pid or os.getppid() != pid
        done = binary.run("-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/e.log", "-s", "quit")
        assert (done.returncode, done.stderr) == (0, "")
        eventually(lambda: not pid_file.exists(), "the pid file is gone")
        eventually(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), "it ended")
    finally:
        if Path(f"/proc/{pid}/stat").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
            os.kill(pid, signal.SIGKILL)
    text = (tmp_path / "logs/e.log").read_text()
    assert "signal process started" in text and re.search(r"\[notice\] .*: exit\n", text)


NOTICES = [
    r'using the "\w+" event method',
    r"(nginx|ringx)/\d+\.\d+\.\d+",
    r"OS: Linux \S+",
    r"getrlimit\(RLIMIT_NOFILE\): \d+:\d+",
    r"start worker processes",
]


def test_what_is_said_at_the_start_in_its_order(proxy):
    started = proxy(f"{EVENTS}http {{ server {{ listen 127.0.0.1:@port@; }} }}\n")
    started.logged("start worker processes")
    text = started.error_log()
    found = [re.search(rf"\[notice\] \d+#\d+: {notice}\n", text) for notice in NOTICES]
    assert all(found), text
    assert [match.start() for match in found] == sorted(match.start() for match in found)


def test_a_port_in_use_is_tried_five_times(binary, tmp_path):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        proxy = Proxy(binary, tmp_path, f"{EVENTS}http {{ server {{ listen 127.0.0.1:{port}; }} }}\n")
        done = binary.run(*proxy.arguments())
    line = f"nginx: [emerg] bind() to 127.0.0.1:{port} failed (98: Address already in use)\n"
    assert done.stderr.count(line) == 5
    assert done.stderr.endswith("nginx: [emerg] still could not bind()\n")
    assert done.returncode == 1


@pytest.mark.parametrize("order", ["stop", "quit", "reload", "reopen"])
def test_an_order_with_a_broken_configuration(binary, tmp_path, order):
    proxy = Proxy(binary, tmp_path, "foo;\n")
    done = binary.run(*proxy.arguments(), "-s", order)
    assert done.returncode == 1
    assert done.stderr == f'nginx: [emerg] unknown directive "foo" in {proxy.conf}:1\n'
