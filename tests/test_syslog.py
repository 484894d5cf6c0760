"""Logs to a syslog server: the datagrams of error and access logs, over UDP and unix sockets, and what is refused."""

import re
import signal
import socket
import threading

import pytest

from harness.proxy import Proxy, eventually
from harness.upstream import head, script, send, to_end

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only

STAMP = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) [ \d]\d \d\d:\d\d:\d\d"
HOST = re.escape(socket.gethostname().lower())


class Receiver:
    """A syslog server that keeps its datagrams."""

    def __init__(self, path=None, family: int = socket.AF_INET):
        if path:
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.socket.bind(str(path))
            self.address = f"unix:{path}"
        else:
            self.socket = socket.socket(family, socket.SOCK_DGRAM)
            self.socket.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            port = self.socket.getsockname()[1]
            self.address = f"[::1]:{port}" if family == socket.AF_INET6 else f"127.0.0.1:{port}"
        self.socket.settimeout(10)

    def next(self, holding: str = "") -> str:
        """The next datagram that holds this text."""
        while True:
            text = self.socket.recv(1 << 16).decode("utf-8", "surrogateescape")
            if holding in text:
                return text

    def is_silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(1 << 16)
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(10)
        return False

    def close(self):
        self.socket.close()


@pytest.fixture
def receiver():
    started = []

    def start(*arguments, **options) -> Receiver:
        started.append(Receiver(*arguments, **options))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def logging(serve):
    """`logging(directives)`: a server with these, that answers everything with 200; its main log is a file."""

    def start(text: str, **values) -> Proxy:
        return serve(
            f"log_format f '$uri $status';\nserver {{\nlisten 127.0.0.1:@port@;\n{text}\n"
            "location / { return 200 x; } location /none { root none; }\n}",
            **values,
        )

    return start


# Access logs.

ACCESS = {
    "default": ("", f"<190>{STAMP} {HOST} nginx: /x 200"),
    "facility": (",facility=local3", f"<158>{STAMP} {HOST} nginx: /x 200"),
    "kern": (",facility=kern", f"<6>{STAMP} {HOST} nginx: /x 200"),
    "user": (",facility=user", f"<14>{STAMP} {HOST} nginx: /x 200"),
    "cron": (",facility=cron", f"<126>{STAMP} {HOST} nginx: /x 200"),
    "severity": (",severity=notice", f"<189>{STAMP} {HOST} nginx: /x 200"),
    "debug": (",severity=debug", f"<191>{STAMP} {HOST} nginx: /x 200"),
    "emerg": (",severity=emerg,facility=auth", f"<32>{STAMP} {HOST} nginx: /x 200"),
    "both": (",severity=notice,facility=local3", f"<157>{STAMP} {HOST} nginx: /x 200"),
    "tag": (",tag=Edge_1", f"<190>{STAMP} {HOST} Edge_1: /x 200"),
    "nohostname": (",nohostname", f"<190>{STAMP} nginx: /x 200"),
    "all": (",nohostname,tag=t,severity=error,facility=daemon", f"<27>{STAMP} t: /x 200"),
}


@pytest.mark.parametrize("name", ACCESS)
def test_a_line_of_an_access_log(logging, receiver, name):
    parameters, datagram = ACCESS[name]
    server = receiver()
    proxy = logging(f"access_log syslog:server={server.address}{parameters} f;")
    proxy.get("/x")
    assert re.fullmatch(datagram, server.next())


@pytest.mark.parametrize("kind", ["unix", "v6", "v4"])
def test_where_a_server_may_be(logging, receiver, tmp_path, kind):
    server = receiver(tmp_path / "log") if kind == "unix" else receiver(family=socket.AF_INET6 if kind == "v6" else socket.AF_INET)
    proxy = logging(f"access_log syslog:server={server.address} f; error_log syslog:server={server.address} error;")
    proxy.get("/x")
    assert server.next().endswith("nginx: /x 200")
    proxy.get("/none/y")
    assert "<187>" in server.next("open() ")


def test_several_destinations(logging, receiver):
    one, two = receiver(), receiver()
    proxy = logging(
        f"access_log syslog:server={one.address} f; access_log syslog:server={two.address},tag=b combined;"
        " access_log logs/a.log f;"
    )
    proxy.get("/x")
    assert one.next().endswith(" nginx: /x 200")
    assert ' b: 127.0.0.1 - - [' in two.next()
    assert proxy.accessed(1, "a.log") == ["/x 200"]


def test_a_condition(logging, receiver):
    server = receiver()
    proxy = logging(f"access_log syslog:server={server.address} f if=$arg_c;")
    for target in ("/no", "/yes?c=1", "/zero?c=0", "/again?c=2"):
        proxy.get(target)
    assert server.next().endswith(" /yes 200")
    assert server.next().endswith(" /again 200")
    assert server.is_silent()


def test_values_are_escaped_and_there_is_no_line_feed(logging, receiver):
    server = receiver()
    proxy = logging(f"access_log syslog:server={server.address},nohostname f;")
    proxy.get("/a%0a%22")
    assert server.next().endswith(r" nginx: /a\x0A\x22 200")


def test_a_line_may_be_long(serve, receiver):
    server = receiver()
    proxy = serve(
        f"log_format f '$uri'; server {{ listen 127.0.0.1:@port@; access_log syslog:server={server.address} f; return 200 x; }}"
    )
    proxy.get("/" + "x" * 7000)
    assert server.next().endswith(" /" + "x" * 7000)


def test_the_line_of_a_tunnel(serve, receiver, upstream):
    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    switch += b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    server, back = receiver(), upstream(script(head, send(switch), to_end))
    proxy = serve(
        f"""
        log_format f '$uri $status';
        server {{ listen 127.0.0.1:@port@; access_log syslog:server={server.address} f;
            location / {{ proxy_pass http://{back.address}; proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }} }}
        """
    )
    wire = proxy.connect()
    wire.send(
        "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    wire.read_head()
    assert server.is_silent()
    wire.close()
    assert server.next().endswith(" /ws 101")


# Error logs.

LEVELS = {
    "error": ("error", 187, True),
    "default": ("", 187, True),
    "warn": ("warn", 187, True),
    "info": ("info", 187, True),
    "crit": ("crit", 187, False),
    "emerg": ("emerg", 187, False),
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_level_of_an_error_log(logging, receiver, name):
    level, priority, is_sent = LEVELS[name]
    server = receiver()
    proxy = logging(f"error_log syslog:server={server.address} {level}; access_log logs/a.log f;")
    proxy.get("/none/x")
    proxy.accessed(1, "a.log")
    if is_sent:
        text = server.next("open() ")
        line = (
            rf"<{priority}>{STAMP} {HOST} nginx: \d{{4}}/\d\d/\d\d \d\d:\d\d:\d\d \[error\] \d+#\d+: \*\d+ "
            rf'open\(\) "{proxy.prefix}/none/none/x" failed \(2: No such file or directory\), client: 127\.0\.0\.1, '
            r'server: , request: "GET /none/x HTTP/1\.1", host: "example\.com"'
        )
        assert re.fullmatch(line, text), text
    else:
        assert server.is_silent()


SEVERITIES = {
    "info": ("client sent invalid", 190, lambda proxy: proxy.ask(b"GARBAGE\r\n\r\n", method="GET")),
    "error": ("open() ", 187, lambda proxy: proxy.get("/none/x")),
}


@pytest.mark.parametrize("name", SEVERITIES)
def test_an_error_line_has_its_own_severity(logging, receiver, name):
    text, priority, act = SEVERITIES[name]
    server = receiver()
    proxy = logging(f"error_log syslog:server={server.address},severity=debug info;")
    act(proxy)
    assert server.next(text).startswith(f"<{priority}>")


def test_parameters_of_an_error_log(logging, receiver):
    server = receiver()
    proxy = logging(f"error_log syslog:server={server.address},facility=local0,tag=edge,nohostname error;")
    proxy.get("/none/x")
    assert re.match(rf"<131>{STAMP} edge: \d{{4}}/\d\d/\d\d \d\d:\d\d:\d\d \[error\] ", server.next("open()"))


def test_a_file_beside_a_server(logging, receiver):
    server = receiver()
    proxy = logging(f"error_log logs/own.log; error_log syslog:server={server.address} crit;")
    proxy.get("/none/x")
    eventually(lambda: "open() " in proxy.log("own.log"), "the file has the line")
    assert server.is_silent()
    assert "open() " not in proxy.error_log(), "the inner logs replace the outer ones"


def test_the_main_log_on_a_server(binary, tmp_path, receiver):
    """A log that is only sent elsewhere keeps the one of this machine."""
    server = receiver()
    text = f"daemon off; pid logs/nginx.pid; error_log syslog:server={server.address} notice; events {{ }}"
    proxy = Proxy(binary, tmp_path, text)
    options = ["-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/first.log"]
    import subprocess

    process = subprocess.Popen([binary.path, *map(str, options)], stdin=subprocess.DEVNULL)
    try:
        assert "<189>" in server.next("start worker process")
        process.send_signal(signal.SIGQUIT)
        assert process.wait(10) == 0
        assert "[notice]" in server.next(": exit")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert (tmp_path / "logs/first.log").exists()


# Servers that are not there.


def test_a_unix_server_that_is_away(logging, receiver, tmp_path, binary):
    path = tmp_path / "log"
    proxy = logging(f"access_log syslog:server=unix:{path} f;")
    proxy.expected_alerts += ["connect() failed"]
    assert proxy.get("/lost").body == b"x"
    line = proxy.logged("connect() failed (2: No such file or directory)")
    assert "[alert]" in line
    # The old nginx does not say what it was doing.
    assert binary.is_nginx or line.endswith(f" while logging to syslog, server: unix:{path}")
    server = receiver(path)
    proxy.get("/x")
    assert server.next().endswith(" /x 200")


@differs("each is told of")
def test_lost_lines_are_told_of_once_a_minute(logging, tmp_path):
    proxy = logging(f"access_log syslog:server=unix:{tmp_path}/none f;")
    proxy.expected_alerts += ["connect() failed"]
    for number in range(5):
        proxy.get(f"/{number}")
    assert proxy.error_log().count("connect() failed") == 1


def test_nobody_listens_on_the_port(logging, binary):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        port = gone.getsockname()[1]
    proxy = logging(f"access_log syslog:server=127.0.0.1:{port} f;")
    proxy.expected_alerts += ["logging to syslog"]
    for number in range(3):
        assert proxy.get(f"/{number}").body == b"x"
    line = proxy.logged("send() failed (111: Connection refused)")
    assert "[error]" in line
    assert binary.is_nginx or line.endswith(f" while logging to syslog, server: 127.0.0.1:{port}")


def test_a_server_that_reads_nothing_makes_nobody_wait(logging, receiver, tmp_path):
    server = receiver(tmp_path / "log")
    proxy = logging(f"access_log syslog:server={server.address} f;")
    proxy.expected_alerts += ["logging to syslog"]
    with proxy.connect() as wire:
        for number in range(600):
            wire.send(f"GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_response("GET").body == b"x"
    assert server.next().endswith(" /0 200")


def test_a_reload_brings_another_server(logging, receiver):
    one, two = receiver(), receiver()
    proxy = logging("access_log syslog:server=@server@ f;", server=one.address)
    proxy.get("/one")
    assert one.next().endswith(" /one 200")
    proxy.values["server"] = two.address
    proxy.write(proxy.text)
    proxy.signal(signal.SIGHUP)

    def moved() -> bool:
        proxy.get("/two")
        return not two.is_silent()

    eventually(moved, "lines go to the other server")


# Refusals, the same for both directives.

REFUSED = {
    "nothing": ("", 'unknown syslog parameter ""'),
    "no-server": ("tag=a", "no syslog server specified"),
    "empty": ("server=", 'no host in syslog server ""'),
    "port": ("server=127.0.0.1:x", 'invalid port in syslog server "127.0.0.1:x"'),
    "big-port": ("server=127.0.0.1:99999", 'invalid port in syslog server "127.0.0.1:99999"'),
    "path": ("server=unix:", 'no path in the unix domain socket in syslog server "unix:"'),
    "host": ("server=no-such-host.invalid", 'host not found in syslog server "no-such-host.invalid"'),
    "facility": ("server=127.0.0.1,facility=Local7", 'unknown syslog facility "Local7"'),
    "severity": ("server=127.0.0.1,severity=err", 'unknown syslog severity "err"'),
    "tag": ("server=127.0.0.1,tag=a-b", 'syslog "tag" only allows alphanumeric characters and underscore'),
    "long-tag": (f"server=127.0.0.1,tag={'a' * 33}", "syslog tag length exceeds 32"),
    "parameter": ("server=127.0.0.1,foo=bar", 'unknown syslog parameter "foo=bar"'),
    "flag": ("server=127.0.0.1,nohost", 'unknown syslog parameter "nohost"'),
    "comma": ("server=127.0.0.1,", 'unknown syslog parameter ""'),
    "two-servers": ("server=127.0.0.1,server=127.0.0.2", 'duplicate syslog "server"'),
    "two-tags": ("server=127.0.0.1,tag=a,tag=b", 'duplicate syslog "tag"'),
    "two-facilities": ("facility=user,facility=user,server=127.0.0.1", 'duplicate syslog "facility"'),
    "two-severities": ("severity=info,severity=warn,server=127.0.0.1", 'duplicate syslog "severity"'),
}


@pytest.mark.parametrize("directive", ["access_log", "error_log"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake(binary, tmp_path, directive, name):
    parameters, error = REFUSED[name]
    proxy = Proxy(binary, tmp_path, f"events {{ }}\nhttp {{\n{directive} syslog:{parameters};\n}}\n")
    done = binary.run("-t", *proxy.arguments())
    assert done.stderr.splitlines()[0] == f"nginx: [emerg] {error} in {proxy.conf}:3"
    assert done.returncode == 1
