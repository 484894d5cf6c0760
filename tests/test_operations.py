"""Operating the program: command line, configuration test, signals, logs, ports, threads."""

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness.ports import free_port
from harness.proxy import Binary, Proxy, eventually
from harness.upstream import answering, head, request, response, script, send, to_end, until

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="asks for root")

PIDFD_GETFD = 438

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def conf(server: str, http: str = "", main: str = "") -> str:
    return f"{main}\nevents {{ }}\nhttp {{\n{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{server}\n}}\n}}\n"


@pytest.fixture
def tried(binary: Binary, tmp_path: Path):
    """`tried(text, options…)`: runs the program on a configuration it need not serve."""

    def run(text: str, *options: str, more: dict[str, str | bytes] | None = None):
        proxy = Proxy(binary, tmp_path / "tried", text)
        for name, content in (more or {}).items():
            path = proxy.conf.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        options = options or ("-t",)
        done = binary.run(
            "-p", f"{proxy.prefix}/", "-c", proxy.conf, "-e", "logs/error.log", "-g", "pid logs/nginx.pid;", *options
        )
        done.conf = proxy.conf
        return done

    return run


# The command line.


def test_version(binary):
    done = binary.run("-v")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"nginx version: \w+/\d+\.\d+\.\d+\n", done.stderr)


def test_long_version(binary):
    done = binary.run("-V")
    assert done.returncode == 0
    assert done.stderr.startswith(f"nginx version: {binary.product}\nbuilt ")


@pytest.mark.parametrize("option", ["-h", "-?"])
def test_help(binary, option):
    done = binary.run(option)
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if line.strip() != "[--demo] [--manual]"]
    assert lines[:6] == [
        f"nginx version: {binary.product}",
        f"Usage: {binary.name} [-?hvVtTq] [-s signal] [-p prefix]",
        f"{' ' * (len(binary.name) + 8)}[-e filename] [-c filename] [-g directives]",
        "",
        "Options:",
        "  -?,-h         : this help",
    ]
    assert "  -s signal     : send signal to a master process: stop, quit, reopen, reload" in lines


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["-x"], 'invalid option: "x"'),
        (["foo"], 'invalid option: "foo"'),
        (["-s", "foo"], 'invalid option: "-s foo"'),
        (["-p"], 'option "-p" requires directory name'),
        (["-c"], 'option "-c" requires file name'),
        (["-e"], 'option "-e" requires file name'),
        (["-g"], 'option "-g" requires parameter'),
        (["-s"], 'option "-s" requires parameter'),
    ],
)
def test_a_wrong_command_line(binary, arguments, text):
    done = binary.run(*arguments)
    assert (done.returncode, done.stderr) == (1, f"nginx: {text}\n")


# -t.


def test_a_good_configuration(tried):
    done = tried(conf("return 200;"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        f"nginx: the configuration file {done.conf} syntax is ok\n"
        f"nginx: configuration file {done.conf} test is successful\n"
    )


def test_glued_options(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, conf("return 200;"))
    done = binary.run("-tq", f"-p{tmp_path}/", f"-c{proxy.conf}", "-elogs/error.log", "-gpid logs/nginx.pid;")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_quiet_test_says_nothing_good(tried):
    done = tried(conf("return 200;"), "-t", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_dump_holds_each_file_once_in_reading_order(tried):
    text = conf("include part.conf;", http="include types.conf;\ninclude part*.none;")
    done = tried(text, "-T", more={"part.conf": "return 200 a;\n", "types.conf": "types { a/b c; }\n"})
    assert done.returncode == 0, done.stderr
    files = re.findall(r"^# configuration file (.*):$", done.stdout, re.M)
    assert [Path(file).name for file in files] == ["nginx.conf", "types.conf", "part.conf"]
    assert f"# configuration file {done.conf}:\n{done.conf.read_text()}\n" in done.stdout
    assert done.stdout.endswith("part.conf:\nreturn 200 a;\n\n")


def test_directives_of_the_command_line(tried):
    done = tried(conf("return 200;"), "-t", "-g", "foo;")
    assert done.returncode == 1
    assert 'nginx: [emerg] unknown directive "foo" in command line\n' in done.stderr


# One mistake each: the text, and the message. `@here@` in a message is ` in FILE:LINE` with the line
# of the text that ends in `# here`, or none of it where nginx names no place.
EVENTS = "events { }\n"


def http(text: str) -> str:
    return f"events {{ }}\nhttp {{\n{text}\n}}\n"


def server(text: str) -> str:
    return http(f"server {{\nlisten 127.0.0.1:8123;\n{text}\n}}")


BROKEN = {
    "unknown": (EVENTS + "foo on; # here\n", 'unknown directive "foo"@here@'),
    "context": (http("listen 80; # here"), '"listen" directive is not allowed here@here@'),
    "arguments": (server("root; # here"), 'invalid number of arguments in "root" directive@here@'),
    "block-for-line": (server("root html { } # here"), 'directive "root" is not terminated by ";"@here@'),
    "line-for-block": (EVENTS + "http; # here\n", 'directive "http" has no opening "{"@here@'),
    "brace": (EVENTS + "} # here\n", 'unexpected "}"@here@'),
    "semicolon": (EVENTS + "; # here\n", 'unexpected ";"@here@'),
    "eof-in-block": (EVENTS + "http {\n# here", 'unexpected end of file, expecting "}"@here@'),
    "eof-in-line": (EVENTS + "user root # here", 'unexpected end of file, expecting ";" or "}"@here@'),
    "behind-quote": (server('root "a"b; # here'), 'unexpected "b"@here@'),
    "size": (server("client_max_body_size 1x; # here"), '"client_max_body_size" directive invalid value@here@'),
    "time": (server("send_timeout 1q; # here"), '"send_timeout" directive invalid value@here@'),
    "flag": (
        server("merge_slashes maybe; # here"),
        'invalid value "maybe" in "merge_slashes" directive, it must be "on" or "off"@here@',
    ),
    "enum": (server("proxy_http_version 3; # here"), 'invalid value "3"@here@'),
    "duplicate": (server("root a;\nroot b; # here"), '"root" directive is duplicate@here@'),
    "root-and-alias": (
        server("location / { root a;\nalias b; # here\n}"),
        '"alias" directive is duplicate, "root" directive was specified earlier@here@',
    ),
    "location-twice": (server("location /a { }\nlocation /a { # here\n}"), 'duplicate location "/a"@here@'),
    "location-outside": (
        server("location /a {\nlocation /b { # here\n}\n}"),
        'location "/b" is outside location "/a"@here@',
    ),
    "location-modifier": (server("location ! /a { # here\n}"), 'invalid location modifier "!"@here@'),
    "variable": (server("return 200 $nosuch;"), 'unknown "nosuch" variable'),
    "variable-brace": (
        server('return 200 "${abc"; # here'),
        'the closing bracket in "abc" variable is missing@here@',
    ),
    "include": (
        EVENTS + "include none.conf; # here\n",
        'open() "@conf@/none.conf" failed (2: No such file or directory)@here@',
    ),
    "upstream-empty": (http("upstream a {\n} # here"), "no servers are inside upstream@here@"),
    "upstream-twice": (
        http("upstream a { server 127.0.0.1; }\nupstream a { # here\nserver 127.0.0.1; }"),
        'duplicate upstream "a"@here@',
    ),
    "proxy-prefix": (server("location / {\nproxy_pass 127.0.0.1; # here\n}"), "invalid URL prefix@here@"),
    "proxy-regex": (
        server("location ~ x {\nproxy_pass http://127.0.0.1/; # here\n}"),
        '"proxy_pass" cannot have URI part in location given by regular expression, '
        'or inside named location, or inside "if" statement, or inside "limit_except" block@here@',
    ),
    "uwsgi-port": (server("location / {\nuwsgi_pass 127.0.0.1; # here\n}"), 'no port in upstream "127.0.0.1"@here@'),
    "listen-port": (
        http("server {\nlisten 127.0.0.1:0; # here\n}"),
        'invalid port in "127.0.0.1:0" of the "listen" directive@here@',
    ),
    "listen-parameter": (http("server {\nlisten 8123 foo; # here\n}"), 'invalid parameter "foo"@here@'),
    "default-twice": (
        http("server { listen 8123 default_server; }\nserver {\nlisten 8123 default_server; # here\n}"),
        "a duplicate default server for 0.0.0.0:8123@here@",
    ),
    "regex": (
        server("location ~ ( { # here\n}"),
        'pcre2_compile() failed: missing closing parenthesis in "("@here@',
    ),
    "log-format": (server("access_log logs/a.log none; # here"), 'unknown log format "none"@here@'),
    "return": (server("return x y; # here"), 'invalid return code "x"@here@'),
    "if": (server("if (x) { # here\n}"), 'invalid condition "x"@here@'),
    "error-page": (server("error_page 200 /x; # here"), 'value "200" must be between 300 and 599@here@'),
    "buffers": (
        server("proxy_busy_buffers_size 100k;"),
        '"proxy_busy_buffers_size" must be less than the size of all "proxy_buffers" minus one buffer@last@',
    ),
    "set": (server("set x 1; # here"), 'invalid variable name "x"@here@'),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_named_with_its_file_and_line(tried, name):
    text, message = BROKEN[name]
    done = tried(text)
    lines = text.splitlines()
    here = next((number for number, line in enumerate(lines, 1) if line.endswith("# here")), 0)
    message = message.replace("@here@", f" in {done.conf}:{here}").replace("@last@", f" in {done.conf}:{len(lines)}")
    message = message.replace("@conf@", str(done.conf.parent))
    assert done.stderr == f"nginx: [emerg] {message}\nnginx: configuration file {done.conf} test failed\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_a_configuration_without_events(tried):
    done = tried("http { }\n")
    assert done.returncode == 1
    lines = f'nginx: [emerg] no "events" section in configuration\nnginx: configuration file {done.conf} test failed\n'
    assert done.stderr.endswith(lines)  # nginx calls the syntax ok before that


def test_a_mistake_in_an_included_file_is_named_there(tried):
    done = tried(http("include part.conf;"), more={"part.conf": "\n\nfoo;\n"})
    assert f'nginx: [emerg] unknown directive "foo" in {done.conf.parent}/part.conf:3\n' in done.stderr


def test_a_pattern_names_no_hidden_file_and_goes_into_no_directory(tried):
    done = tried(
        conf("", http="include parts/*;\ninclude parts/**.more;"),
        "-T",
        more={
            "parts/a.conf": "\n",
            "parts/a.more": "\n",
            "parts/.a.conf.swp": "foo;",
            "parts/in/b.more": "foo;",
            "parts/B.conf": "\n",
        },
    )
    assert done.returncode == 1, "a directory is no file"
    assert f'nginx: [crit] pread() "{done.conf.parent}/parts/in" failed (21: Is a directory)\n' in done.stderr


def test_a_directory_is_no_configuration(binary, tmp_path):
    (tmp_path / "logs").mkdir()
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", tmp_path, "-e", "logs/error.log")
    said = f'nginx: [crit] pread() "{tmp_path}" failed (21: Is a directory)\n'
    assert done.stderr == f"{said}nginx: configuration file {tmp_path} test failed\n"
    assert done.returncode == 1


def test_a_pattern_reads_in_the_order_of_bytes(tried):
    names = ["app/n.conf", "app-api/n.conf", "Z/n.conf", ".hidden/n.conf"]
    done = tried(conf("", http="include sites/*/n.conf;"), "-T", more={f"sites/{name}": "\n" for name in names})
    assert done.returncode == 0, done.stderr
    files = re.findall(r"^# configuration file .*/sites/(.*):$", done.stdout, re.M)
    assert files == ["Z/n.conf", "app-api/n.conf", "app/n.conf"]


def test_a_comment_may_be_in_any_encoding(tried):
    done = tried(conf("include part;"), more={"part": b"# f\xfcr alle\nreturn 200;\n"})
    assert done.returncode == 0, done.stderr


@ringx_only("nginx takes any bytes")
def test_what_is_no_text_is_told(tried):
    done = tried(conf("include part;"), more={"part": b"\nreturn 200 f\xfcr;\n"})
    assert done.returncode == 1
    assert f"nginx: [emerg] not valid UTF-8 in {done.conf.parent}/part:2\n" in done.stderr


def test_the_command_line_includes(tried):
    more = {"global.conf": "user nobody_at_all_;\n"}
    done = tried(conf("return 200;"), "-t", "-g", "include global.conf;", more=more)
    assert done.returncode == 1
    assert f'getpwnam("nobody_at_all_") failed' in done.stderr
    done = tried(conf("return 200;"), "-t", "-g", "include none.conf;")
    assert done.returncode == 1
    assert f'nginx: [emerg] open() "{done.conf.parent}/none.conf" failed (2: No such file or directory)' in done.stderr


def test_a_warning_does_not_fail_the_test(tried):
    done = tried(
        http("server { listen 127.0.0.1:@port@; server_name a; }\nserver { listen 127.0.0.1:@port@; server_name a; }")
    )
    assert done.returncode == 0
    assert re.search(r'nginx: \[warn\] conflicting server name "a" on 127\.0\.0\.1:\d+, ignored\n', done.stderr)
    assert "test is successful" in done.stderr


@ringx_only("nginx has all of nginx's directives")
def test_a_directive_of_nginx_that_ringx_lacks_is_named(tried):
    done = tried(server("location / {\nfastcgi_pass 127.0.0.1:9000;\n}"))
    assert done.returncode == 1
    assert re.search(r'nginx: \[emerg\] .*"fastcgi_pass".* is not supported.* in .*nginx\.conf:6\n', done.stderr)


# Start.


def test_a_missing_configuration(binary, tmp_path):
    done = binary.run("-p", f"{tmp_path}/", "-c", "none.conf", "-e", "stderr")
    assert done.returncode == 1
    assert f'[emerg] open() "{tmp_path}/none.conf" failed (2: No such file or directory)' in re.sub(
        r"\[emerg\] \d+#\d+:", "[emerg]", done.stderr
    )


def test_a_port_in_use(binary, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        proxy = Proxy(binary, tmp_path, conf("return 200;"), port=port)
        done = binary.run(*proxy.arguments())
    assert done.returncode == 1
    assert f"nginx: [emerg] bind() to 127.0.0.1:{port} failed (98: Address already in use)\n" in done.stderr
    assert "nginx: [emerg] still could not bind()\n" in done.stderr
    assert not (tmp_path / "logs/nginx.pid").exists()


def test_a_second_instance_does_not_share_the_port(binary, proxy, tmp_path):
    first = proxy(conf("return 200 first;", main="worker_processes 2;"))
    second = Proxy(binary, tmp_path / "second", conf("return 200 second;"), port=first.port)
    done = binary.run(*second.arguments())
    assert done.returncode == 1
    assert "(98: Address already in use)" in done.stderr
    assert {first.get("/").body for _ in range(20)} == {b"first"}


def test_the_pid_file(proxy):
    started = proxy(conf("return 200;"))
    pid_file = started.prefix / "logs/nginx.pid"
    assert pid_file.read_text() == f"{started.pid}\n"
    started.signal(signal.SIGQUIT)
    assert started.wait() == 0
    assert not pid_file.exists()


def test_what_the_log_says_at_start(proxy):
    started = proxy(conf("return 200;"))
    line = started.logged(f"{started.binary.product}")
    assert re.match(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[notice\] \d+#\d+: ", line)
    started.logged("getrlimit(RLIMIT_NOFILE): ")


# Signals.


def test_quit_lets_a_request_in_flight_finish(proxy, upstream):
    go = threading.Event()
    slow = upstream(script(request, until(go), send(response(b"done")), to_end))
    started = proxy(conf("location / { proxy_pass http://@up@; }"), up=slow.address)
    wire = started.connect()
    wire.send(GET)
    slow.request()
    started.signal(signal.SIGQUIT)

    def refused() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", started.port)) != 0

    eventually(refused, "the listener is closed")
    assert started.process.poll() is None
    go.set()
    answer = wire.read_response()
    assert (answer.body, answer.get("Connection")) == (b"done", "close")
    assert started.wait() == 0
    assert '" 200 4 ' in started.accessed()[0]


@ringx_only("its workers do not shut sockets down")
@root_only
def test_a_socket_that_another_shard_has_shut_down_is_no_failure(proxy):
    """Shards share what an nginx has handed over, and do not hear of the end at the same moment."""
    started = proxy(conf("return 200 x;"))
    libc, pidfd = ctypes.CDLL(None), os.pidfd_open(started.pid)
    found = 0
    for name in os.listdir(f"/proc/{started.pid}/fd"):
        copy = libc.syscall(PIDFD_GETFD, pidfd, int(name), 0)
        if copy < 0:
            continue
        if not os.readlink(f"/proc/self/fd/{copy}").startswith("socket:"):
            os.close(copy)
            continue
        with socket.socket(fileno=copy) as copied:
            if copied.getsockname() == ("127.0.0.1", started.port):
                # The shard's copy, or the master's: the second finds nothing to end.
                with contextlib.suppress(OSError):
                    copied.shutdown(socket.SHUT_RD)
                found += 1
    os.close(pidfd)
    assert found
    started.signal(signal.SIGQUIT)
    assert started.wait() == 0
    assert "[crit]" not in started.error_log()


def test_quit_closes_idle_connections_at_once(proxy):
    started = proxy(conf("return 200 x;"))
    wire = started.connect()
    wire.send(GET)
    wire.read_response()
    started.signal(signal.SIGQUIT)
    wire.expect_end()
    assert started.wait() == 0


def test_worker_shutdown_timeout_ends_what_does_not_end(proxy, upstream):
    stuck = upstream(script(request, to_end))
    text = conf("location / { proxy_pass http://@up@; }", main="worker_shutdown_timeout 300ms;")
    started = proxy(text, up=stuck.address)
    wire = started.connect()
    wire.send(GET)
    stuck.request()
    started.signal(signal.SIGQUIT)
    assert started.wait() == 0
    wire.expect_end()


def test_a_quit_that_is_told_again_has_no_more_time(proxy, upstream):
    stuck = upstream(script(request, to_end))
    text = conf("location / { proxy_pass http://@up@; }", main="worker_shutdown_timeout 1500ms;")
    started = proxy(text, up=stuck.address)
    wire = started.connect()
    wire.send(GET)
    stuck.request()
    began = time.monotonic()
    while started.process.poll() is None and time.monotonic() < began + 5:
        started.signal(signal.SIGQUIT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.process.wait(0.3)
    assert time.monotonic() < began + 3
    assert started.wait() == 0


def test_a_forced_end_writes_the_lines_that_wait(proxy, upstream):
    """That of the request that it ends, too."""
    stuck = upstream(script(request, to_end))
    text = conf(
        "location /stuck { proxy_pass http://@up@; } location / { return 200 x; }",
        http="access_log logs/access.log combined buffer=64k flush=5m;",
        main="worker_shutdown_timeout 300ms;",
    )
    started = proxy(text, up=stuck.address)
    assert started.get("/first").status == 200
    wire = started.connect()
    wire.send("GET /stuck HTTP/1.1\r\nHost: a\r\n\r\n")
    stuck.request()
    started.signal(signal.SIGQUIT)
    assert started.wait() == 0
    wire.expect_end()
    targets = [line.split('"')[1] for line in started.log("access.log").splitlines()]
    assert targets == ["GET /first HTTP/1.1", "GET /stuck HTTP/1.1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_fast_exit_drops_what_is_in_flight(proxy, upstream, number):
    stuck = upstream(script(request, to_end))
    started = proxy(conf("location / { proxy_pass http://@up@; }"), up=stuck.address)
    wire = started.connect()
    wire.send(GET)
    stuck.request()
    started.signal(number)
    assert started.wait() == 0
    assert wire.read_to_end() == b""
    assert started.log("access.log") == ""
    assert not (started.prefix / "logs/nginx.pid").exists()


def test_a_reload_brings_the_new_configuration(proxy):
    started = proxy(conf("return 200 old;"))
    assert started.get("/").body == b"old"
    started.write(conf("return 200 new;"))
    started.signal(signal.SIGHUP)
    eventually(lambda: started.get("/").body == b"new", "the new configuration answers")
    assert "signal 1 (SIGHUP) received from" in started.logged("reconfiguring")


def test_a_reload_loses_no_request(proxy, upstream):
    """One client asks on and on, each time on a new connection, while the configuration is loaded ten times."""
    started = proxy(conf("return 200 0;"))
    stop = threading.Event()
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            while not stop.is_set():
                assert started.get("/").status == 200
        except BaseException as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for turn in range(1, 11):
            started.write(conf(f"return 200 {turn};"))
            started.signal(signal.SIGHUP)
            eventually(lambda turn=turn: started.get("/").body == b"%d" % turn, f"load {turn} answers")
    finally:
        stop.set()
        asking.join()
    assert not failed, failed


def test_a_reload_with_a_mistake_changes_nothing(proxy):
    started = proxy(conf("return 200 old;"))
    started.expected_alerts.append('unknown directive "foo"')
    started.write(conf("foo;"))
    started.signal(signal.SIGHUP)
    assert "[emerg]" in started.logged(f'unknown directive "foo" in {started.conf}:')
    assert started.get("/").body == b"old"
    started.write(conf("return 200 mended;"))
    started.signal(signal.SIGHUP)
    eventually(lambda: started.get("/").body == b"mended", "the mended configuration answers")


def test_a_reload_opens_and_closes_ports(proxy):
    started = proxy(conf("return 200 x;", http="server { listen 127.0.0.1:@port_b@; return 200 b; }"))
    old, third = int(started.values["port_b"]), free_port()
    assert started.get("/", port=old).body == b"b"
    started.write(conf("return 200 x;", http=f"server {{ listen 127.0.0.1:{third}; return 200 c; }}"))
    started.signal(signal.SIGHUP)

    def moved() -> bool:
        with socket.socket() as probe:
            gone = probe.connect_ex(("127.0.0.1", old)) != 0
        return gone and started.get("/", port=third).body == b"c"

    eventually(moved, "the old port is closed and the new one answers")
    assert started.get("/").body == b"x"


def test_a_reload_ends_deferring(proxy):
    """A connection without a byte is accepted at once again, not when the kernel has waited for one."""
    text = "worker_processes 1; events { }\nhttp { server { listen 127.0.0.1:@port@%s; stub_status; %s } }"
    started = proxy(text % (" deferred", ""))
    started.reload(text % ("", "server_tokens off;"))
    silent = started.connect()
    eventually(lambda: b"Active connections: 2 " in started.get("/").body, "it is accepted", 0.7)
    silent.close()


def test_a_request_in_flight_keeps_its_configuration_over_a_reload(proxy, upstream):
    go = threading.Event()
    slow = upstream(script(request, until(go), send(response(b"slow")), to_end))
    text = "location / { add_header X-Load @load@; proxy_pass http://@up@; } location /new { return 200 @load@; }"
    started = proxy(conf(text), up=slow.address, load="one")
    wire = started.connect()
    wire.send(GET)
    slow.request()
    started.values["load"] = "two"
    started.write(conf(text))
    started.signal(signal.SIGHUP)
    eventually(lambda: started.get("/new").body == b"two", "the new configuration answers")
    go.set()
    answer = wire.read_response()
    assert (answer.body, answer.get("X-Load")) == (b"slow", "one")


@pytest.mark.parametrize("how", ["signal", "command"])
def test_logs_are_reopened(proxy, how):
    started = proxy(conf("return 200 x;"))
    logs = started.prefix / "logs"
    started.get("/before")
    started.accessed()
    (logs / "access.log").rename(logs / "access.1")
    (logs / "error.log").rename(logs / "error.1")
    if how == "signal":
        started.signal(signal.SIGUSR1)
    else:
        done = started.binary.run(*started.arguments(), "-s", "reopen")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    eventually((logs / "access.log").exists, "the access log is there again")
    eventually((logs / "error.log").exists, "the error log is there again")

    def moved() -> bool:
        started.get("/after")
        return "/after" in started.log("access.log")

    eventually(moved, "new lines go to the new file")
    assert "/before" in started.log("access.1")
    assert "reopening logs" in started.log("error.1") + started.log("error.log")


@pytest.mark.parametrize("word", ["stop", "quit"])
def test_stop_and_quit_by_command(proxy, word):
    started = proxy(conf("return 200 x;"))
    done = started.binary.run(*started.arguments(), "-s", word)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert started.wait() == 0


def test_reload_by_command(proxy):
    started = proxy(conf("return 200 old;"))
    started.write(conf("return 200 new;"))
    assert started.binary.run(*started.arguments(), "-s", "reload").returncode == 0
    eventually(lambda: started.get("/").body == b"new", "the new configuration answers")


def test_a_signal_to_nobody(binary, tmp_path):
    stopped = Proxy(binary, tmp_path, conf("return 200;"))
    pid_file = tmp_path / "logs/nginx.pid"

    def stop() -> tuple[int, str]:
        done = binary.run(*stopped.arguments(), "-s", "stop")
        return done.returncode, done.stderr

    assert stop() == (1, f'nginx: [error] open() "{pid_file}" failed (2: No such file or directory)\n')
    pid_file.write_text("")
    assert stop() == (1, f'nginx: [error] invalid PID number "" in "{pid_file}"\n')
    gone = subprocess.Popen(["true"])
    gone.wait()
    pid_file.write_text(f"{gone.pid}\n")
    assert stop() == (1, f"nginx: [alert] kill({gone.pid}, 15) failed (3: No such process)\n")


# Logs that cannot be written.


def full_log(started: Proxy, log: str) -> None:
    """Requests are answered all the same, and the error log says why lines are missing."""
    started.expected_alerts.append("No space left on device")
    for number in range(5):
        assert started.get(f"/{number}").body == b"x"
    line = started.logged(f'write() to "{log}" failed (28: No space left on device)')
    assert "[alert]" in line
    assert started.error_log().count("No space left on device") == 1, "said again within a minute"


def test_a_log_on_a_full_device(proxy):
    full_log(proxy(conf("access_log /dev/full; return 200 x;")), "/dev/full")


@root_only
def test_a_log_on_a_full_disk(proxy, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode != 0:
        pytest.skip(f"may not mount: {mount.stderr}")
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler", "bs=4k"], capture_output=True)  # until it is full
        started = proxy(conf(f"access_log {disk}/a.log; return 200 x;"))
        full_log(started, f"{disk}/a.log")
        started.stop()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# Shards.


@ringx_only("nginx has processes, and one listening socket for all")
def test_each_shard_listens_by_itself(proxy):
    started = proxy(conf("return 200 x;", main="worker_processes 2;"))

    def listening() -> list[str]:
        told = subprocess.run(["ss", "-Htlnp"], capture_output=True, text=True, check=True).stdout
        return [line for line in told.splitlines() if f":{started.port} " in line]

    lines = listening()
    assert len(lines) == 2
    assert all(f"pid={started.pid}," in line for line in lines)


@ringx_only("nginx has processes, not threads")
def test_each_shard_is_a_named_thread_on_a_core_of_its_own(proxy):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("asks for two cores")
    started = proxy(conf("return 200 x;", main="worker_processes 2; worker_cpu_affinity auto;"))

    def are_pinned() -> bool:
        """It listens before its threads are there, and they are there before they are pinned."""
        allowed = {}
        for task in Path(f"/proc/{started.pid}/task").iterdir():
            name = (task / "comm").read_text().strip()
            if re.fullmatch(r"ringx shard \d+", name):
                allowed[name] = re.search(r"Cpus_allowed_list:\s*(\S+)", (task / "status").read_text())[1]
        on_one = all(core.isdigit() and int(core) in cores for core in allowed.values())
        return sorted(allowed) == ["ringx shard 0", "ringx shard 1"] and on_one and len(set(allowed.values())) == 2

    eventually(are_pinned, "two shards, each on a core of its own")


@root_only  # it takes a privilege to be nicer to oneself again
def test_a_reload_gives_other_cores_and_another_priority(binary, proxy):
    cores = sorted(os.sched_getaffinity(0))[:2]
    masks = [format(1 << core, "b") for core in cores]

    def text(*lines: str) -> str:
        return conf("return 200 x;", main=f"worker_processes {len(masks)}; " + " ".join(lines))

    started = proxy(text(f"worker_cpu_affinity {' '.join(masks)};"))

    def workers() -> list[int]:
        tasks = Path(f"/proc/{started.pid}/task")
        if binary.is_nginx:
            return sorted(map(int, (tasks / f"{started.pid}/children").read_text().split()))
        return sorted(int(task.name) for task in tasks.iterdir() if "ringx shard" in (task / "comm").read_text())

    def places() -> list[tuple[set[int], int]]:
        return [(os.sched_getaffinity(pid), os.getpriority(os.PRIO_PROCESS, pid)) for pid in workers()]

    nice = os.getpriority(os.PRIO_PROCESS, 0)
    eventually(lambda: places() == [({core}, nice) for core in cores], "each is on its core")
    for lines, expected in [
        ([f"worker_cpu_affinity {' '.join(reversed(masks))};", "worker_priority 15;"], 15),
        ([f"worker_cpu_affinity {' '.join(reversed(masks))};"], nice),
    ]:
        started.write(text(*lines))
        started.signal(signal.SIGHUP)
        wanted = [({core}, expected) for core in reversed(cores)]
        eventually(lambda wanted=wanted: places() == wanted, f"they are at {wanted}")


def test_a_reload_goes_to_another_working_directory(binary, proxy, tmp_path):
    directories = [tmp_path / name for name in ("one", "two")]
    for directory in directories:
        directory.mkdir()
    texts = [conf("return 200 x;", main=f"working_directory {directory};") for directory in directories]
    started = proxy(texts[0])

    def directory() -> str:
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        return os.readlink(f"/proc/{children[-1] if binary.is_nginx else started.pid}/cwd")

    eventually(lambda: directory() == str(directories[0]), "it is there")
    started.write(texts[1])
    started.signal(signal.SIGHUP)
    eventually(lambda: directory() == str(directories[1]), "it has gone")


def test_many_connections_over_two_workers(proxy):
    started = proxy(conf("return 200 x;", main="worker_processes 2;"))
    wires = [started.connect() for _ in range(100)]
    for wire in wires:
        wire.send(GET)
    assert [wire.read_response().body for wire in wires] == [b"x"] * 100


def test_worker_connections_are_limited(proxy, upstream):
    """The one over the limit is closed without a byte, and the log says so."""
    held = upstream(script(head, to_end))
    text = conf("location / { proxy_pass http://@up@; }").replace("events { }", "events { worker_connections 10; }")
    started = proxy(text, up=held.address)
    started.expected_alerts.append("worker_connections are not enough")
    wires = []
    while "[alert]" not in started.error_log():
        assert len(wires) < 12
        wires.append(started.connect())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wires[-1].send(GET)
            eventually(lambda: len(held.connections) == len(wires) or "[alert]" in started.error_log(), "it has it")
    assert wires[-1].read_to_end() == b""
    assert "10 worker_connections are not enough" in started.error_log()


def test_an_answering_upstream_after_a_reload_is_still_the_same(proxy, upstream):
    """Kept server connections do not outlive their configuration in a way a client could see."""
    server_ = upstream(answering(response(b"ok")))
    text = conf("location / { proxy_http_version 1.1; proxy_set_header Connection ''; proxy_pass http://g; }",
                http="upstream g { server @up@; keepalive 2; }")  # fmt: skip
    started = proxy(text, up=server_.address)
    assert started.get("/").body == b"ok"
    started.signal(signal.SIGHUP)
    started.logged("reconfiguring")
    for _ in range(5):
        assert started.get("/").body == b"ok"
