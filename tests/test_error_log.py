"""The error log: destinations, levels and how they inherit, the line and what is in it, frequent texts."""

import os
import re
import socket
import subprocess
import threading

import pytest

from harness.ports import free_port
from harness.proxy import Proxy, eventually
from harness.upstream import answering, chunked, close, head, reset, response, script, send, to_end, until

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only

HEAD = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d \[(?P<level>\w+)\] \d+#\d+: \*\d+ "


def http(text: str) -> str:
    return f"events {{ }}\nhttp {{\n{text}\n}}\n"


@pytest.fixture
def server(serve):
    def start(text: str, before: str = "", **values) -> Proxy:
        return serve(f"{before}\nserver {{\nlisten 127.0.0.1:@port@;\n{text}\n}}", **values)

    return start


# The directive.

REFUSED = {
    "level": ("logs/a x", 'invalid log level "x"'),
    "case": ("logs/a Error", 'invalid log level "Error"'),
    "empty": ('logs/a ""', 'invalid log level ""'),
    "debug-part": ("logs/a debug_foo", 'invalid log level "debug_foo"'),
    "twice": ("logs/a warn warn", 'duplicate log level "warn"'),
    "two": ("logs/a error warn", 'duplicate log level "warn"'),
    "part-behind-level": ("logs/a error debug_http", 'invalid log level "debug_http"'),
    "level-behind-part": ("logs/a debug_http error", 'duplicate log level "error"'),
    "memory": ("memory:1m debug", "nginx was built without debug support"),
    "syslog": ("syslog:tag=a", "no syslog server specified"),
    "none": ("", 'invalid number of arguments in "error_log" directive'),
}


@pytest.mark.parametrize("where", ["main", "http", "server", "location"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake(binary, tmp_path, name, where):
    arguments, error = REFUSED[name]
    if name == "memory" and binary.is_nginx:
        pytest.skip("Debian builds with debug support")
    line = f"error_log {arguments};"
    text = {
        "main": f"events {{ }}\n\n{line}\n",
        "http": f"events {{ }}\nhttp {{\n{line}\n}}\n",
        "server": f"events {{ }} http {{\nserver {{\n{line}\n}}\n}}\n",
        "location": f"events {{ }} http {{\nserver {{ location / {{\n{line}\n}}\n}}\n}}\n",
    }[where]
    proxy = Proxy(binary, tmp_path, text)
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/e.log", "-g", "pid logs/x.pid;")
    assert done.stderr.splitlines()[0] == f"nginx: [emerg] {error} in {proxy.conf}:3"
    assert done.returncode == 1


TAKEN = [
    "logs/a",
    "stderr",
    "stderr debug",
    '""',
    "off",
    "logs/a debug_http",
    "logs/a debug_http debug_event debug_core",
    "logs/a debug_alloc debug_mutex debug_mail debug_stream",
    *(f"logs/a {level}" for level in "emerg alert crit error warn notice info debug".split()),
]


@pytest.mark.parametrize("arguments", TAKEN)
def test_what_is_taken(binary, tmp_path, arguments):
    proxy = Proxy(binary, tmp_path, http(f"error_log {arguments}; server {{ listen 127.0.0.1:@port@; }}"))
    done = binary.run("-tq", *proxy.arguments())
    assert (done.returncode, done.stderr) == (0, "")
    if arguments == "off":
        assert (tmp_path / "off").exists(), "it is a file's name"


def test_a_log_that_cannot_be_opened(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, http("error_log none/a.log; server { listen 127.0.0.1:@port@; }"))
    done = binary.run("-t", *proxy.arguments())
    assert f'[emerg] open() "{tmp_path}/none/a.log" failed (2: No such file or directory)\n' in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    "text",
    [
        "error_log none/a.log; server { listen 127.0.0.1:@port@; error_log stderr; }",
        "access_log none/a.log; server { listen 127.0.0.1:@port@; access_log off; }",
        "server { listen 127.0.0.1:@port@; access_log off; location / { access_log off; access_log none/a.log; } }",
    ],
)
def test_a_log_that_nobody_writes_to_is_opened_too(binary, tmp_path, text):
    proxy = Proxy(binary, tmp_path, http(text))
    done = binary.run("-t", *proxy.arguments())
    assert f'[emerg] open() "{tmp_path}/none/a.log" failed (2: No such file or directory)\n' in done.stderr
    assert done.returncode == 1


# Levels.

# What is done, the level of its line, and a part of it.
LINES = {
    "info": (b"GARBAGE\r\n\r\n", "client sent invalid"),
    "error": (b"GET /none/x HTTP/1.0\r\n\r\n", "No such file"),
    "notice": (b"GET /rewritten HTTP/1.0\r\n\r\n", "rewritten data"),
    "warn": (b"GET /warned HTTP/1.0\r\n\r\n", "using uninitialized"),
    "crit": (b"GET /crit HTTP/1.0\r\n\r\n", "failed (20: Not a directory)"),
}
ORDER = "emerg alert crit error warn notice info debug".split()


@pytest.mark.parametrize("level", ORDER)
def test_a_level_takes_what_is_as_severe(server, level):
    proxy = server(
        f"""
        error_log logs/own.log {level}; access_log logs/all.log;
        location /none {{ root none; }}
        location /rewritten {{ rewrite_log on; rewrite ^ /done break; return 200 x; }}
        location /warned {{ if ($arg_x) {{ set $late 1; }} return 200 "$late"; }}
        location /crit {{ access_log logs/own.log/$host/x; access_log logs/all.log; return 200 x; }}
        """
    )
    for data, _ in LINES.values():
        with proxy.connect() as wire:
            wire.send(data)
            wire.read_to_end()
    proxy.accessed(len(LINES), "all.log")
    text = proxy.log("own.log")
    for of, (_, part) in LINES.items():
        assert (part in text) == (ORDER.index(of) <= ORDER.index(level)), (of, text)
        assert part not in text or f"[{of}] " in next(line for line in text.splitlines() if part in line)


def test_inner_logs_replace_outer_ones(server):
    proxy = server(
        """
        root none; error_log logs/server.log; error_log logs/server-info.log info;
        location /own { error_log logs/own.log; }
        location /quiet { error_log logs/quiet.log crit; }
        location /nested { location /nested/in { error_log logs/in.log; } }
        location /if { if ($arg_x) { error_log logs/if.log; } }
        """.replace("location /if { if ($arg_x) { error_log logs/if.log; } }", ""),
        before="error_log logs/http.log;",
    )
    for target in ("/own/x", "/quiet/x", "/nested/x", "/nested/in/x", "/x"):
        assert proxy.get(target).status == 404

    def paths(name: str) -> list[str]:
        return re.findall(rf'open\(\) "{proxy.prefix}/none(\S*)" failed', proxy.log(name))

    eventually(lambda: paths("server.log") == ["/nested/x", "/x"], "the server's log has its lines")
    assert paths("server-info.log") == ["/nested/x", "/x"]
    assert (paths("own.log"), paths("quiet.log"), paths("in.log")) == (["/own/x"], [], ["/nested/in/x"])
    assert paths("http.log") == paths("error.log") == []


def test_one_file_at_two_levels(server):
    proxy = server("root none; error_log logs/a.log error; error_log logs/b.log crit;")
    proxy.get("/x")
    eventually(lambda: "/x" in proxy.log("a.log"), "the line is there")
    assert proxy.log("b.log") == ""


def test_stderr(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, http("server { listen 127.0.0.1:@port@; error_log stderr; root none; }"))
    proxy.start()
    try:
        proxy.get("/x")
        eventually(lambda: "/none/x" in proxy.stderr.read_text(), "the line is on standard error")
    finally:
        proxy.stop()
    assert "/none/x" not in proxy.error_log()


@pytest.mark.parametrize("beside, where", [("", "the main log"), ("location /y { error_log stderr; }", "standard error")])
def test_a_log_without_a_name(binary, tmp_path, beside, where):
    """It is standard error by its number, which stands for the main log, unless some log is called stderr."""
    text = f'server {{ listen 127.0.0.1:@port@; error_log ""; root none; {beside} }}'
    proxy = Proxy(binary, tmp_path, http(text))
    proxy.start()
    try:
        proxy.get("/x")
        places = {"the main log": proxy.error_log, "standard error": proxy.stderr.read_text}
        eventually(lambda: "/none/x" in places[where](), f"the line is in {where}")
    finally:
        proxy.stop()
    assert [place for place, read in places.items() if "/none/x" in read()] == [where]


# The line.


def test_everything_in_a_line(server):
    dead = free_port()
    proxy = server(f"server_name name.example; location / {{ proxy_pass http://127.0.0.1:{dead}/up; }}")
    proxy.get("/a%20b?c", "Referer: http://r/\"\\", host="Name.Example:80")
    line = proxy.logged("connect() failed")
    tail = (
        r"connect\(\) failed \(111: Connection refused\) while connecting to upstream, client: 127\.0\.0\.1, "
        r'server: name\.example, request: "GET /a%20b\?c HTTP/1\.1", '
        rf'upstream: "http://127\.0\.0\.1:{dead}/up\S*", host: "Name\.Example:80", referrer: "http://r/'
    )
    match = re.match(HEAD + tail, line)
    assert match and match["level"] == "error", line


# Where a server has failed, and what else goes wrong then: the text, what is said to go on, and whether
# the server is named.
BEHIND_AN_EXCHANGE = {
    "error-page": ("/a", "(2: No such file or directory)", "", True),
    "named-location": ("/b", "access forbidden by rule", " while sending to client", True),
    "x-accel-redirect": ("/c", "(2: No such file or directory)", "", True),
    "intercepted": ("/d", "(2: No such file or directory)", "", True),
    "next-request": ("/none", "(2: No such file or directory)", "", False),
}


@pytest.mark.parametrize("name", BEHIND_AN_EXCHANGE)
def test_a_line_behind_an_exchange(server, upstream, name):
    uri, text, action, has_upstream = BEHIND_AN_EXCHANGE[name]
    dead = f"127.0.0.1:{free_port()}"
    answers = {"/c": response(b"", "X-Accel-Redirect: /none"), "/d": response(b"", status="404 Not Found")}
    origin = upstream(answering(lambda request: answers[request.target]))
    proxy = server(
        f"""
        location /a {{ error_page 502 /none; proxy_pass http://{dead}; }}
        location /b {{ error_page 502 @b; proxy_pass http://{dead}; }}
        location @b {{ deny all; }}
        location /c {{ proxy_pass http://{origin.address}; }}
        location /d {{ proxy_intercept_errors on; error_page 404 /none; proxy_pass http://{origin.address}; }}
        location /none {{ }}
        """
    )
    with proxy.connect() as wire:
        if name == "next-request":
            wire.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_response().status == 404
        wire.send(f"GET {uri} HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().status in (403, 404)
    asked = f'request: "GET {uri} HTTP/1.1"'
    eventually(lambda: f"{text}{action}, " in proxy.error_log(), "the line is there")
    (line,) = [line for line in proxy.error_log().splitlines() if text in line and asked in line]
    named = f', upstream: "http://{origin.address if uri in answers else dead}{uri}"' if has_upstream else ""
    assert line.endswith(f'{text}{action}, client: 127.0.0.1, server: , {asked}{named}, host: "a"'), line


def test_a_line_while_a_request_is_read(server):
    proxy = server("client_header_timeout 300ms; server_name name.example;")
    with proxy.connect() as wire:
        wire.send(b"GE")
        wire.read_to_end()
    line = proxy.logged("client timed out")
    expected = (
        r"client timed out \(110: Connection timed out\) while reading client request line, "
        r'client: 127\.0\.0\.1, server: name\.example(, request: "GE")?'  # what a receive that is given up had taken is gone
    )
    assert re.fullmatch(HEAD + expected, line)["level"] == "info", line


def test_a_line_before_there_is_a_request(server):
    proxy = server("server_name name.example;")
    wire = proxy.connect()
    wire.close()
    line = proxy.logged("while waiting for request")
    expected = rf"client closed connection while waiting for request, client: 127\.0\.0\.1, server: 127\.0\.0\.1:{proxy.port}"
    assert re.fullmatch(HEAD + expected, line)["level"] == "info", line


def test_a_line_ends_at_2048_bytes(server):
    proxy = server("root none; large_client_header_buffers 4 16k;")
    proxy.get("/" + "x" * 5000)
    line = proxy.logged("/xxxxx")
    assert len(line) + 1 <= 2048 and len(line) > 2000
    assert "xxx... (36: File name too long), client: " in line, "what it is about is cut before what it says"


@differs("a line feed in a path is written as it is")
def test_nobody_can_forge_a_line(server):
    proxy = server("root none;")
    proxy.get("/a%0a2026/01/01%20[emerg]%20forged", 'Referer: x"y')
    proxy.expected_alerts.append("forged")
    proxy.logged("No such file")
    lines = proxy.error_log().splitlines()
    assert not any(line.startswith("2026/01/01 [emerg]") for line in lines)


# Frequent texts: what the upstream does, and the line of it.

BIG = b"X: " + b"x" * 5000

UPSTREAM = {
    "closed": (script(head, close), "error", "upstream prematurely closed connection while reading response header from upstream"),
    "reset": (
        script(head, reset),
        "error",
        "recv() failed (104: Connection reset by peer) while reading response header from upstream",
    ),
    "invalid-header": (
        script(head, send(b"HTTP/1.1 200 OK\r\n: x\r\n\r\n"), to_end),
        "error",
        'upstream sent invalid header: "\\x3a..." while reading response header from upstream',
    ),
    "big-head": (
        script(head, send(b"HTTP/1.1 200 OK\r\n" + BIG + b"\r\n\r\n"), to_end),
        "error",
        "upstream sent too big header while reading response header from upstream",
    ),
    "no-status": (
        script(head, send(b"HELLO\r\n\r\n"), close),
        "error",
        "upstream sent no valid HTTP/1.0 header while reading response header from upstream",
    ),
    "two-lengths": (
        script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx"), to_end),
        "error",
        'upstream sent duplicate header line: "Content-Length: 1", previous value: "Content-Length: 1" '
        "while reading response header from upstream",
    ),
    "length-and-chunked": (
        script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"), to_end),
        "error",
        'upstream sent "Content-Length" and "Transfer-Encoding" headers at the same time '
        "while reading response header from upstream",
    ),
    "bad-length": (
        script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), to_end),
        "error",
        'upstream sent invalid "Content-Length" header: "Content-Length: x" while reading response header from upstream',
    ),
    "more": (
        script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxyz"), to_end),
        "warn",
        'upstream sent more data than specified in "Content-Length" header while reading',
    ),
    "less": (
        script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nxyz"), close),
        "error",
        "upstream prematurely closed connection while reading upstream",
    ),
    "bad-chunk": (
        script(head, send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), send(b"zz\r\n"), to_end),
        "error",
        "upstream sent invalid chunked response while reading",
    ),
    "silent": (
        script(head, to_end),
        "error",
        "upstream timed out (110: Connection timed out) while reading response header from upstream",
    ),
    "stuck": (
        script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), to_end),
        "error",
        "upstream timed out (110: Connection timed out) while reading upstream",
    ),
}

NEWER = {"two-lengths", "length-and-chunked", "bad-length"}


@pytest.mark.parametrize("name", UPSTREAM)
def test_what_an_upstream_does(server, upstream, binary, name):
    handler, level, text = UPSTREAM[name]
    if binary.is_nginx and name in NEWER:
        pytest.skip("an older text")
    back = upstream(handler)
    proxy = server(
        f"proxy_read_timeout 500ms; location / {{ proxy_http_version 1.1; proxy_pass http://{back.address}; }}"
    )
    with proxy.connect() as wire:
        wire.send("GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        wire.read_to_end()
    line = proxy.logged(text.split(" while ")[0])
    tail = rf'.*, client: 127\.0\.0\.1, server: , request: "GET /x HTTP/1\.1", upstream: "http://{back.address}/x", host: "a"'
    assert re.fullmatch(HEAD + re.escape(text) + tail, line), line
    assert f"[{level}]" in line, line


def test_no_live_upstreams(server):
    proxy = server("location / { proxy_pass http://u; }", before="upstream u { server 127.0.0.1:1 down; }")
    proxy.get("/x")
    line = proxy.logged("no live upstreams while connecting to upstream, client: 127.0.0.1")
    assert "[error]" in line and 'upstream: "http://u/x"' in line


def test_a_server_is_disabled(server):
    http = f"upstream u {{ server 127.0.0.1:{free_port()}; server 127.0.0.1:{free_port()}; }}"
    proxy = server("location / { proxy_pass http://u; }", before=http)
    proxy.get("/x")
    line = proxy.logged("upstream server temporarily disabled while connecting to upstream, client: 127.0.0.1")
    assert "[warn]" in line and 'upstream: "http://127.0.0.1:' in line


def test_a_server_that_is_disabled_by_a_timeout(server, upstream):
    """It is counted out before the timeout is told; any other failure is told first."""
    silent = upstream(to_end)
    http = f"upstream u {{ server {silent.address}; server 127.0.0.1:{free_port()}; }}"
    proxy = server("location / { proxy_read_timeout 100ms; proxy_pass http://u; }", before=http)
    proxy.get("/x")
    timed_out = "upstream timed out (110: Connection timed out) while reading response header from upstream"
    lines = [line.split(": ", 1)[1].split(", ")[0] for line in proxy.error_log().splitlines() if "upstream" in line]
    told = [re.sub(r"^\*\d+ ", "", line) for line in lines]
    assert told == [
        "upstream server temporarily disabled while reading response header from upstream",
        timed_out,
        "connect() failed (111: Connection refused) while connecting to upstream",
        "upstream server temporarily disabled while connecting to upstream",
    ]


CLIENT = {
    "large-body": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n",
        "error",
        'client intended to send too large body: 5000000 bytes, client: 127.0.0.1, server: , request: "POST / HTTP/1.1"',
    ),
    "no-host": (
        b"GET / HTTP/1.1\r\n\r\n",
        "info",
        'client sent HTTP/1.1 request without "Host" header while reading client request headers, client: 127.0.0.1',
    ),
    "method": (b"\x01\r\n\r\n", "info", "client sent invalid method while reading client request line, client: 127.0.0.1"),
    "version": (
        b"GET / HTTP/9.9\r\n\r\n",
        "info",
        "client sent invalid version while reading client request line, client: 127.0.0.1",
    ),
    "header": (
        b"GET / HTTP/1.1\r\nHost: a\r\nb\x00d: x\r\n\r\n",
        "info",
        "client sent invalid header line",
    ),
    "two-hosts": (
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "info",
        'client sent duplicate host header: "Host: b", previous value: "Host: a" while reading client request headers',
    ),
    "bad-length": (
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        "info",
        'client sent invalid "Content-Length" header while reading client request headers, client: 127.0.0.1',
    ),
    "long-line": (
        b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n",
        "info",
        "client sent too long URI while reading client request line, client: 127.0.0.1",
    ),
    "long-header": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n",
        "info",
        "client sent too long header line: \"X: xxx",
    ),
}


@pytest.mark.parametrize("name", CLIENT)
def test_what_a_client_does(server, binary, name):
    sent, level, text = CLIENT[name]
    proxy = server("location / { return 200 x; }")
    with proxy.connect() as wire:
        wire.send(sent)
        wire.read_to_end() if name not in ("header",) else wire.read_response("GET")
    line = proxy.logged(text)
    assert f"[{level}] " in line, line


def test_a_client_that_leaves(server, upstream):
    asked, go = threading.Event(), threading.Event()
    back = upstream(script(head, lambda wire: asked.set(), until(go), close))
    proxy = server(f"location / {{ proxy_pass http://{back.address}; }}")
    wire = proxy.connect()
    wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(10)
    wire.close()
    line = proxy.logged("client prematurely closed connection, so upstream connection is closed too")
    go.set()
    assert "[info]" in line
    assert "while sending request to upstream" in line or "while reading response header from upstream" in line


@pytest.mark.parametrize("uwsgi", [False, True])
def test_a_second_exchange_has_no_server_yet(server, uwsgi):
    second = "set $b nohost:81; uwsgi_pass $b;" if uwsgi else "proxy_pass http://$nohost;"
    proxy = server(
        "error_page 502 @fallback; recursive_error_pages on; set $nohost nohost;"
        f" location / {{ proxy_pass http://127.0.0.1:{free_port()}; }} location @fallback {{ error_page 502 /none; {second} }}"
    )
    proxy.get("/x")
    assert "upstream: " not in proxy.logged("no resolver defined to resolve nohost")


# Failures of connect(): those that are told at once name the address.
CONNECT = {
    "refused": ("127.0.0.1:@closed@", "error", "connect() failed (111: Connection refused)"),
    "unreachable": ("127.255.255.255:81", "error", "connect() to 127.255.255.255:81 failed (101: Network is unreachable)"),
    "missing": ("unix:@folder@/none", "crit", "connect() to unix:@folder@/none failed (2: No such file or directory)"),
    "no-folder": ("unix:@folder@/file/x", "crit", "connect() to unix:@folder@/file/x failed (20: Not a directory)"),
    "no-socket": ("unix:@folder@/file", "error", "connect() to unix:@folder@/file failed (111: Connection refused)"),
    "datagrams": (
        "unix:@folder@/datagrams",
        "crit",
        "connect() to unix:@folder@/datagrams failed (91: Protocol wrong type for socket)",
    ),
}


@pytest.mark.parametrize("name", CONNECT)
def test_a_server_that_cannot_be_connected_to(server, name, tmp_path):
    address, level, text = (
        part.replace("@folder@", str(tmp_path)).replace("@closed@", str(free_port())) for part in CONNECT[name]
    )
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(tmp_path / "datagrams"))
        (url, uri) = (f"http://{address}:", ":/") if address.startswith("unix:") else (f"http://{address}", "/")
        proxy = server(f"location / {{ proxy_pass {url}; }}")
        assert proxy.get("/").status == 502
        line = proxy.logged("connect()")
    assert re.search(rf"\[{level}\] .* {re.escape(text)} while connecting to upstream, ", line), line
    assert f'upstream: "http://{address}{uri}"' in line, line


@pytest.mark.parametrize("how", ["close", "reset"])
def test_the_words_about_a_client_that_leaves(server, upstream, how):
    asked = threading.Event()
    back = upstream(script(head, lambda wire: asked.set(), to_end))
    proxy = server(f"location / {{ proxy_pass http://{back.address}; }}")
    wire = proxy.connect()
    wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(10)
    getattr(wire, how)()
    line = proxy.logged("prematurely closed connection")
    text = "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too"
    error = r" \(104: Connection reset by peer\)" if how == "reset" else ""
    tail = rf', client: 127\.0\.0\.1, server: , request: "GET /x HTTP/1\.1", upstream: "http://{back.address}/x", host: "a"'
    assert re.fullmatch(HEAD + re.escape(text) + error + " while (sending request|reading response header) ?(to|from) upstream" + tail, line), line
    assert "[info]" in line


def test_a_kept_connection_closed_by_its_client(server):
    proxy = server("return 200 x;")
    wire = proxy.connect()
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    wire.read_response("GET")
    wire.close()
    line = proxy.logged("closed keepalive connection")
    assert re.fullmatch(HEAD + r"client 127\.0\.0\.1 closed keepalive connection", line)["level"] == "info"


def test_temporary_files(server, upstream):
    back = upstream(answering(response(b"y" * 300_000)))
    proxy = server(
        f"client_body_buffer_size 1k; location / {{ proxy_pass http://{back.address}; }}"
    )
    proxy.get("/x", method="POST", body=b"x" * 5000)
    line = proxy.logged("a client request body is buffered to a temporary file /")
    assert "[warn]" in line and ', request: "POST /x HTTP/1.1"' in line


FILES = {
    "missing": ("/none", "error", 'open() "@root@/none" failed (2: No such file or directory), client: 127.0.0.1'),
    "directory": ("/dir/", "error", 'directory index of "@root@/dir/" is forbidden, client: 127.0.0.1'),
    "not-a-directory": ("/file/x", "error", 'open() "@root@/file/x" failed (20: Not a directory), client: 127.0.0.1'),
    "index": ("/gone/", "error", '"@root@/gone/index.html" is not found (2: No such file or directory), client: 127.0.0.1'),
    "cycle": ("/cycle", "error", 'rewrite or internal redirection cycle while'),
}


@pytest.mark.parametrize("name", FILES)
def test_files(server, name):
    target, level, text = FILES[name]
    proxy = server("location /cycle { rewrite ^ /cycle last; }")
    root = proxy.prefix / "html"
    (root / "dir").mkdir()
    (root / "file").write_text("x")
    proxy.get(target)
    line = proxy.logged(text.replace("@root@", str(root)))
    assert f"[{level}] " in line and f'request: "GET {target} HTTP/1.1"' in line


# The command line, and before there is a configuration.


def test_the_first_log_cannot_be_opened(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, "events { }\n")
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "none/e.log", "-g", "pid logs/x.pid; error_log stderr;")
    first = done.stderr.splitlines()[0]
    path = f"{tmp_path}/none/e.log"
    assert first == f'nginx: [alert] could not open error log file: open() "{path}" failed (2: No such file or directory)'
    assert done.returncode == 0


def test_a_mistake_is_in_the_first_log_too(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, "foo;\n")
    binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/e.log")
    assert re.search(rf'\[emerg\] \d+#\d+: unknown directive "foo" in {proxy.conf}:1\n', (tmp_path / "logs/e.log").read_text())


def test_e_stderr(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, "foo;\n")
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "stderr")
    assert done.stderr.count('unknown directive "foo"') == 1


GLOBALS = {
    "unfinished": ("daemon off", 'unexpected end of parameter, expecting ";" in command line'),
    "block": ("events { }", "block directives are not supported in -g option in command line"),
    "twice": ("daemon off; daemon off;", '"daemon" directive is duplicate in command line'),
    "unknown": ("foo;", 'unknown directive "foo" in command line'),
    "arguments": ("daemon;", 'invalid number of arguments in "daemon" directive in command line'),
}


@pytest.mark.parametrize("name", GLOBALS)
def test_global_directives(binary, tmp_path, name):
    text, error = GLOBALS[name]
    proxy = Proxy(binary, tmp_path, "events { }\n")
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/e.log", "-g", text)
    assert done.stderr.splitlines()[0] == f"nginx: [emerg] {error}"
    assert done.returncode == 1


def test_a_directive_of_the_command_line_again_in_the_file(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, "events { }\npid logs/a.pid;\n")
    done = binary.run("-t", "-p", f"{tmp_path}/", "-c", proxy.conf, "-e", "logs/e.log", "-g", "pid logs/b.pid;")
    assert done.stderr.splitlines()[0] == f'nginx: [emerg] "pid" directive is duplicate in {proxy.conf}:2'


HELP = """  -?,-h         : this help
  -v            : show version and exit
  -V            : show version and configure options then exit
  -t            : test configuration and exit
  -T            : test configuration, dump it and exit
  -q            : suppress non-error messages during configuration testing
  -s signal     : send signal to a master process: stop, quit, reopen, reload
""".splitlines()


@pytest.mark.parametrize("line", HELP)
def test_the_help(binary, line):
    assert f"\n{line}\n" in binary.run("-h").stderr


ORDERS = {
    "-Vt": ("version first", lambda done: done.stderr.startswith("nginx version: ") and "syntax is ok" in done.stderr),
    "-vt": ("version, then the test", lambda done: "syntax is ok" in done.stderr and "built" not in done.stderr),
    "-ht": ("help, then the test", lambda done: "Usage:" in done.stderr and "syntax is ok" in done.stderr),
    "-vV": ("the longer one", lambda done: "configure arguments:" in done.stderr),
    "-vh": ("help", lambda done: "Usage:" in done.stderr),
    "-Tq": ("the dump alone", lambda done: done.stderr == "" and done.stdout.startswith("# configuration file ")),
    "-tT": ("a dump", lambda done: done.stdout.startswith("# configuration file ")),
    "-qt": ("nothing", lambda done: done.stderr == done.stdout == ""),
}


@pytest.mark.parametrize("options", ORDERS)
def test_options_together(binary, tmp_path, options):
    what, holds = ORDERS[options]
    proxy = Proxy(binary, tmp_path, "events { }\n")
    done = binary.run(options, *proxy.arguments())
    assert done.returncode == 0 and holds(done), (what, done)
