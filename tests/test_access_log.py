"""Access logs: formats and escapes, buffers, compression, paths with variables, conditions, and every refusal."""

import gzip
import os
import re
import signal
import threading

import pytest

from harness.proxy import Proxy, eventually
from harness.upstream import answering, response

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only


@pytest.fixture
def logged(serve):
    """`logged(access_log…, http=…)`: a server that answers everything with 200 and logs so."""

    def start(text: str, http: str = "log_format f '$uri $status';", **values):
        return serve(f"{http}\nserver {{\nlisten 127.0.0.1:@port@;\n{text}\nlocation / {{ return 200 x; }}\n}}", **values)

    return start


@pytest.mark.parametrize("level", ["access_log off; access_log logs/a f;", "access_log logs/a f; access_log off;"])
def test_off_holds_whatever_stands_beside_it(logged, level):
    proxy = logged(f"access_log logs/b f; location = /quiet {{ {level} return 200 x; }}")
    proxy.get("/quiet")
    proxy.get("/told")
    eventually(lambda: "/told 200\n" in (proxy.prefix / "logs/b").read_text(), "the line is there")
    written = [path.read_text() for path in (proxy.prefix / "logs").glob("[ab]")]
    assert "".join(written) == "/told 200\n"


def test_a_file_without_a_name_is_standard_error(logged):
    proxy = logged('access_log "" f;')
    proxy.get("/told")
    # Which is where the error log goes.
    proxy.logged("/told 200")
    proxy.signal(signal.SIGUSR1)
    proxy.get("/again")
    proxy.logged("/again 200")


# Refusals: the level's text, and the message behind it.
REFUSED = {
    "format": ("access_log logs/a none; # here", 'unknown log format "none"'),
    "format-later": ("access_log logs/a later; # here", 'unknown log format "later"'),
    "buffer-0": ("access_log logs/a f buffer=0; # here", 'invalid buffer size "0"'),
    "buffer-x": ("access_log logs/a f buffer=x; # here", 'invalid buffer size "x"'),
    "flush-0": ("access_log logs/a f buffer=1k flush=0; # here", 'invalid flush time "0"'),
    "flush-x": ("access_log logs/a f buffer=1k flush=x; # here", 'invalid flush time "x"'),
    "flush-alone": ("access_log logs/a f flush=1s; # here", 'no buffer is defined for access_log "logs/a"'),
    "gzip-0": ("access_log logs/a f gzip=0; # here", 'invalid compression level "0"'),
    "gzip-10": ("access_log logs/a f gzip=10; # here", 'invalid compression level "10"'),
    "gzip-x": ("access_log logs/a f gzip=x; # here", 'invalid compression level "x"'),
    "gzipped": ("access_log logs/a f gzipped; # here", 'invalid parameter "gzipped"'),
    "parameter": ("access_log logs/a f x=1; # here", 'invalid parameter "x=1"'),
    "off": ("access_log off f; # here", 'invalid parameter "f"'),
    "variables-buffer": ("access_log logs/$host f buffer=1k; # here", "buffered logs cannot have variables in name"),
    "variables-gzip": ("access_log logs/$host f gzip; # here", "buffered logs cannot have variables in name"),
    "variable": ("access_log logs/${host f; # here", 'the closing bracket in "host" variable is missing'),
    "syslog-buffer": ("access_log syslog:server=127.0.0.1 f buffer=1k; # here", "logs to syslog cannot be buffered"),
    "conflict": (
        "access_log logs/a f buffer=1k; access_log logs/a f buffer=2k; # here",
        'access_log "logs/a" already defined with conflicting parameters',
    ),
    "conflict-flush": (
        "access_log logs/a f buffer=1k; access_log logs/a f buffer=1k flush=1s; # here",
        'access_log "logs/a" already defined with conflicting parameters',
    ),
    "conflict-gzip": (
        "access_log logs/a f buffer=1k; access_log logs/a f buffer=1k gzip; # here",
        'access_log "logs/a" already defined with conflicting parameters',
    ),
    "syslog-none": ("access_log syslog:tag=x f; # here", "no syslog server specified"),
    "syslog-facility": ("access_log syslog:server=127.0.0.1,facility=x f; # here", 'unknown syslog facility "x"'),
    "syslog-severity": ("access_log syslog:server=127.0.0.1,severity=x f; # here", 'unknown syslog severity "x"'),
    "syslog-parameter": ("access_log syslog:server=127.0.0.1,x=y f; # here", 'unknown syslog parameter "x=y"'),
    "cache-max": ("open_log_file_cache inactive=1s; # here", '"open_log_file_cache" must have "max" parameter'),
    "cache-x": ("open_log_file_cache max=x; # here", 'invalid "open_log_file_cache" parameter "max=x"'),
    "cache-y": ("open_log_file_cache max=1 y; # here", 'invalid "open_log_file_cache" parameter "y"'),
    "cache-time": ("open_log_file_cache max=1 valid=x; # here", 'invalid "open_log_file_cache" parameter "valid=x"'),
    "cache-uses": ("open_log_file_cache max=1 min_uses=x; # here", 'invalid "open_log_file_cache" parameter "min_uses=x"'),
    "cache-twice": (
        "open_log_file_cache off; open_log_file_cache off; # here",
        '"open_log_file_cache" directive is duplicate',
    ),
}

# The same of `log_format`, on the level of http.
REFUSED_FORMATS = {
    "twice": ("log_format f x; # here", 'duplicate "log_format" name "f"'),
    "combined": ("log_format combined x; # here", 'duplicate "log_format" name "combined"'),
    "escape": ("log_format g escape=xml x; # here", 'unknown log format escaping "xml"'),
    "dollar": ("log_format g 'a$'; # here", 'invalid parameter "$"'),
    "dollar-inside": ("log_format g '$uri $-b'; # here", 'invalid parameter "$-b"'),
    "dollar-empty": ("log_format g '$uri ${}b'; # here", 'invalid parameter "${}b"'),
    "bracket": ("log_format g '${a'; # here", 'the closing bracket in "a" variable is missing'),
    "arguments": ("log_format g; # here", 'invalid number of arguments in "log_format" directive'),
    "context": ("server { log_format g x; # here\n}", '"log_format" directive is not allowed here'),
}


def refused(binary, tmp_path, http: str, error: str) -> None:
    text = f"events {{ }}\nhttp {{\nlog_format f x;\n{http}\nlog_format later x;\n}}\n"
    proxy = Proxy(binary, tmp_path, text)
    done = binary.run("-t", *proxy.arguments())
    line = next(number for number, line in enumerate(text.splitlines(), 1) if line.endswith("# here"))
    first = done.stderr.splitlines()[0]
    assert first == f"nginx: [emerg] {error} in {proxy.conf}:{line}"
    assert done.returncode == 1


@pytest.mark.parametrize("name", REFUSED)
def test_a_mistake(binary, tmp_path, name):
    text, error = REFUSED[name]
    refused(binary, tmp_path, f"server {{\n{text}\n}}", error)


@pytest.mark.parametrize("name", REFUSED_FORMATS)
def test_a_mistake_of_a_format(binary, tmp_path, name):
    refused(binary, tmp_path, *REFUSED_FORMATS[name])


def test_what_is_taken(binary, tmp_path):
    text = """events { } http {
        access_log logs/0.log;
        log_format f escape=default 'a' "b" c;
        access_log logs/1.log f buffer=32k flush=1m if=$arg_a;
        access_log logs/1.log f;
        access_log logs/1.log combined flush=60s buffer=32k;
        access_log logs/2.log f gzip; access_log logs/3.log f gzip=9 buffer=4k flush=500ms;
        access_log logs/$host.log f; access_log syslog:server=127.0.0.1 f if=$arg_x;
        open_log_file_cache max=10 inactive=20s min_uses=2 valid=1m;
        server { open_log_file_cache off; access_log off; location / { access_log logs/4.log; if ($arg_y) { access_log off; }
            limit_except GET { access_log off; } } }
    }"""
    proxy = Proxy(binary, tmp_path, text.replace("limit_except GET { access_log off; }", ""))
    done = binary.run("-tq", *proxy.arguments())
    assert (done.returncode, done.stderr) == (0, "")


# Lines.


def test_strings_are_put_together_without_space(logged):
    proxy = logged("access_log logs/a.log f;", "log_format f 'a' \"b $uri\" c${status}d;")
    proxy.get("/x")
    assert proxy.accessed(1, "a.log") == ["ab /xc200d"]


ESCAPES = [
    ("default", "/%22%5C%0a%09%7f%c3%a9", r"/\x22\x5C\x0A\x09\x7F\xC3\xA9|-||lit\"eral"),
    ("json", "/%22%5C%0a%09%08%0c%0d%01", r"/\"\\\n\t\b\f\r\u0001|||lit\"eral"),
    ("none", "/%22%5C%09x", '/"\\\tx|||lit\\"eral'),
]


@pytest.mark.parametrize("escape, target, line", ESCAPES)
def test_escapes(logged, escape, target, line):
    proxy = logged("access_log logs/a.log f;", f"log_format f escape={escape} '$uri|$http_none|$http_empty|lit\\\\\"eral';")
    proxy.get(target, "Empty:")
    assert proxy.accessed(1, "a.log") == [line]


CONDITIONS = [("", False), ("c=", False), ("c=0", False), ("c=00", True), ("c=1", True), ("c=false", True)]


@pytest.mark.parametrize("args, is_logged", CONDITIONS)
def test_a_condition(logged, args, is_logged):
    proxy = logged("access_log logs/if.log f if=$arg_c; access_log logs/all.log f;")
    proxy.get(f"/?{args}")
    proxy.accessed(1, "all.log")
    assert (proxy.log("if.log") != "") == is_logged


def test_a_condition_of_several_parts(logged):
    proxy = logged("access_log logs/if.log f if=$arg_a$arg_b; access_log logs/all.log f;")
    for target in ("/none", "/a?a=1", "/b?b=0", "/ab?a=0&b=0"):
        proxy.get(target)
    proxy.accessed(4, "all.log")
    assert [line.split()[0] for line in proxy.accessed(2, "if.log")] == ["/a", "/ab"]


def test_levels_replace_each_others_logs(serve):
    proxy = serve(
        """
        log_format f '$uri';
        access_log logs/http.log f;
        server {
            listen 127.0.0.1:@port@;
            location / { return 200 x; }
            location /own { access_log logs/own.log f; access_log logs/too.log f; return 200 x; }
            location /off { access_log off; return 200 x; }
            location /if { if ($arg_own) { access_log logs/if.log f; return 200 x; } return 200 x; }
            location /page { error_page 404 /own/page; return 404; }
        }
        """
    )
    for target in ("/", "/own", "/off", "/if?own=1", "/if", "/page", "/end"):
        proxy.get(target)
    assert proxy.accessed(3, "http.log") == ["/", "/if", "/end"]
    assert proxy.accessed(2, "own.log") == proxy.accessed(2, "too.log") == ["/own", "/own/page"]
    assert proxy.accessed(1, "if.log") == ["/if"]


# Buffers.


def test_a_buffer_is_written_when_the_next_line_does_not_fit(logged):
    proxy = logged("access_log logs/b.log f buffer=1k;", "log_format f '$arg_n $http_fill';")
    fill = "Fill: " + "x" * 240
    for number in range(4):
        proxy.get(f"/?n={number}", fill)
    assert proxy.log("b.log") == ""
    proxy.get("/?n=4", fill)
    assert [line[0] for line in proxy.accessed(4, "b.log")] == ["0", "1", "2", "3"]
    proxy.get("/?n=5", fill)
    assert len(proxy.log("b.log").splitlines()) == 4


def test_a_line_longer_than_the_buffer_is_written_at_once(logged):
    proxy = logged("access_log logs/b.log f buffer=1k flush=1m;", "log_format f '$arg_n $http_fill';")
    proxy.get("/?n=0", "Fill: " + "x" * 1021)
    assert proxy.log("b.log") == ""
    proxy.get("/?n=1", "Fill: " + "x" * 1022)
    assert [line[0] for line in proxy.accessed(2, "b.log")] == ["0", "1"]
    proxy.get("/?n=2")
    assert len(proxy.log("b.log").splitlines()) == 2


@pytest.mark.parametrize("how", ["flush", "quit", "reopen", "reload"])
def test_when_a_buffer_is_written(logged, how):
    flush = " flush=300ms" if how == "flush" else ""
    proxy = logged(f"access_log logs/b.log f buffer=32k{flush};")
    proxy.get("/one")
    assert proxy.log("b.log") == ""
    if how == "quit":
        proxy.signal(signal.SIGQUIT)
        assert proxy.wait() == 0
    elif how == "reopen":
        proxy.signal(signal.SIGUSR1)
    elif how == "reload":
        proxy.write(proxy.text.replace("buffer=32k", ""))
        proxy.signal(signal.SIGHUP)
    assert proxy.accessed(1, "b.log") == ["/one 200"]


def test_a_files_buffer_is_for_all_who_log_to_it(serve):
    proxy = serve(
        """
        log_format f '$uri';
        server { listen 127.0.0.1:@port@;
            location / { access_log logs/b.log f; return 200 x; }
            location /held { access_log logs/b.log f buffer=4k; return 200 x; }
        }
        """
    )
    proxy.get("/")
    proxy.get("/held")
    assert proxy.log("b.log") == ""
    proxy.signal(signal.SIGUSR1)
    assert proxy.accessed(2, "b.log") == ["/", "/held"]


@pytest.mark.parametrize("level", ["", "=1", "=9"])
def test_gzip(logged, level):
    proxy = logged(f"access_log logs/b.gz f gzip{level} flush=200ms;")
    path = proxy.prefix / "logs/b.gz"

    def text() -> str:
        return gzip.decompress(path.read_bytes()).decode() if path.stat().st_size else ""

    for number in range(50):
        proxy.get(f"/same/{number}")
    eventually(lambda: len(text().splitlines()) == 50, "all lines are written")
    proxy.get("/last")
    eventually(lambda: text().endswith("/last 200\n"), "another member is appended")
    members = path.read_bytes().count(b"\x1f\x8b\x08")
    assert members >= 2
    assert text().splitlines()[:2] == ["/same/0 200", "/same/1 200"]


def test_gzip_is_written_at_the_end(logged):
    proxy = logged("access_log logs/b.gz f gzip=4 buffer=1m;")
    proxy.get("/one")
    proxy.signal(signal.SIGQUIT)
    assert proxy.wait() == 0
    assert gzip.decompress((proxy.prefix / "logs/b.gz").read_bytes()) == b"/one 200\n"


# Paths with variables.


def test_a_path_with_variables(logged):
    proxy = logged("access_log logs/$arg_name.log f;")
    for target in ("/1?name=a", "/2?name=b", "/3?name=a"):
        proxy.get(target)
    assert proxy.accessed(2, "a.log") == ["/1 200", "/3 200"]
    assert proxy.accessed(1, "b.log") == ["/2 200"]


def test_a_path_is_under_the_prefix_unless_absolute(logged, tmp_path):
    proxy = logged(f"access_log {tmp_path}/abs-$status.log f; access_log logs/rel-$status.log f;")
    proxy.get("/x")
    assert proxy.accessed(1, "rel-200.log") == ["/x 200"]
    eventually(lambda: (tmp_path / "abs-200.log").read_text() == "/x 200\n", "the absolute path is written to")


def test_the_root_must_be_there(serve):
    proxy = serve(
        """
        log_format f '$uri';
        server { listen 127.0.0.1:@port@; access_log logs/p-$arg_n.log f; access_log logs/all.log f;
            location / { root none; return 200 x; }
            location /there { return 200 x; }
        }
        """
    )
    proxy.get("/?n=1")
    proxy.get("/there?n=1")
    proxy.accessed(2, "all.log")
    assert proxy.accessed(1, "p-1.log") == ["/there"]
    line = proxy.logged(f'testing "{proxy.prefix}/none" existence failed (2: No such file or directory)')
    assert "[error]" in line and " while logging request, client: 127.0.0.1" in line


def test_a_path_that_cannot_be_opened(logged):
    proxy = logged("access_log logs/$arg_n/a.log f; access_log logs/all.log f;")
    assert proxy.get("/?n=none").body == b"x"
    line = proxy.logged(f'open() "{proxy.prefix}/logs/none/a.log" failed (2: No such file or directory)')
    assert "[crit]" in line and " while logging request, client: 127.0.0.1, server: , request: " in line


def test_no_line_outside_of_its_path(logged):
    """A value is part of the path as it is: `..` is the configuration's affair; a zero byte ends nothing."""
    proxy = logged("access_log logs/p-$arg_n.log f; access_log logs/all.log f;")
    proxy.get("/?n=%2e%2e")
    assert proxy.accessed(1, "p-%2e%2e.log") == ["/ 200"]


def is_open(proxy, name: str) -> bool:
    """Whether a thread or a worker of the proxy holds the file."""
    children = open(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read().split()
    for pid in [str(proxy.pid), *children]:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{fd}").endswith(f"/logs/{name}"):
                    return True
            except OSError:
                pass
    return False


def test_open_log_file_cache_keeps_what_is_used(logged):
    proxy = logged("open_log_file_cache max=2 min_uses=2 inactive=1h; access_log logs/$arg_n.log f;")
    proxy.get("/?n=a")
    proxy.accessed(1, "a.log")
    assert not is_open(proxy, "a.log"), "used once"
    proxy.get("/?n=a")
    proxy.accessed(2, "a.log")
    assert is_open(proxy, "a.log")
    for name in ("b", "b", "c", "c"):
        proxy.get(f"/?n={name}")
    proxy.accessed(2, "c.log")
    eventually(lambda: is_open(proxy, "c.log") and not is_open(proxy, "a.log"), "more than max")


def test_without_a_cache_no_file_stays_open(logged):
    proxy = logged("access_log logs/$arg_n.log f;")
    for _ in range(3):
        proxy.get("/?n=a")
    proxy.accessed(3, "a.log")
    assert not is_open(proxy, "a.log")


@differs("a cached file is looked at again after `valid`, not at USR1")
def test_reopening_closes_cached_files(logged):
    proxy = logged("open_log_file_cache max=10 valid=1h; access_log logs/$arg_n.log f;")
    proxy.get("/one?n=a")
    proxy.accessed(1, "a.log")
    logs = proxy.prefix / "logs"
    (logs / "a.log").rename(logs / "a.1")
    proxy.signal(signal.SIGUSR1)
    proxy.logged("reopening logs")

    def moved() -> bool:
        proxy.get("/two?n=a")
        return "/two" in proxy.log("a.log")

    eventually(moved, "new lines go to a new file")


def test_a_tunnels_line_goes_where_its_request_says(serve, upstream):
    from harness.upstream import head, script, send, to_end

    switch = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    switch += b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    server = upstream(script(head, send(switch), to_end))
    proxy = serve(
        f"""
        log_format f '$uri $status';
        server {{ listen 127.0.0.1:@port@; access_log logs/t-$arg_n.log f;
            location / {{ proxy_pass http://{server.address}; proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; }} }}
        """
    )
    wire = proxy.connect()
    wire.send("GET /ws?n=x HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
              "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
    wire.read_head()
    wire.close()
    assert proxy.accessed(1, "t-x.log") == ["/ws 101"]


# Failures.


def test_a_full_device_is_told_once(logged):
    proxy = logged("access_log /dev/full f;")
    proxy.expected_alerts.append("No space left on device")
    for number in range(5):
        proxy.get(f"/{number}")
    line = proxy.logged('write() to "/dev/full" failed (28: No space left on device)')
    assert "[alert]" in line
    assert proxy.error_log().count("No space left") == 1


def test_a_log_that_cannot_be_opened_keeps_the_start_from_succeeding(binary, tmp_path):
    proxy = Proxy(binary, tmp_path, "events { }\nhttp { access_log none/a.log;\nserver { listen 127.0.0.1:@port@; } }\n")
    done = binary.run(*proxy.arguments())
    path = f"{proxy.prefix}/none/a.log"
    assert done.returncode == 1
    assert f'nginx: [emerg] open() "{path}" failed (2: No such file or directory)\n' in done.stderr


def test_lines_of_several_workers_do_not_mix(proxy):
    started = proxy(
        "worker_processes 2; events { }\nhttp { log_format f '$arg_n-$http_fill-$arg_n'; access_log logs/m.log f;\n"
        "server { listen 127.0.0.1:@port@; location / { return 200 x; } } }\n"
    )
    fill = "Fill: " + "y" * 500

    def some(first: int) -> None:
        for number in range(first, first + 25):
            started.get(f"/?n={number}", fill)

    threads = [threading.Thread(target=some, args=(first,)) for first in (100, 200, 300, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = started.accessed(100, "m.log")
    assert len(lines) == 100
    assert all(re.fullmatch(r"(\d{3})-y{500}-\1", line) for line in lines)
