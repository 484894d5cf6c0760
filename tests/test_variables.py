"""Variables: their values in responses and in log lines, found or not, one table for each kind of request."""

import os
import re
import socket
import threading
import time

import pytest

from harness.ports import free_port
from harness.proxy import eventually
from harness.upstream import answering, chunked, close, head, reset, response, script, send, to_end, until

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only


class Values:
    """`values(text)`: a server that logs these variables, one line a request, and answers as `text` says."""

    def __init__(self, serve):
        self.serve = serve

    def __call__(self, names: str, text: str, http: str = "", listen: str = "127.0.0.1:@port@", **values):
        self.names = names.split()
        body = "|".join("${%s}" % name for name in self.names)
        self.proxy = self.serve(
            f"""
            log_format v escape=default '{body}';
            access_log logs/v.log v;
            {http}
            server {{ listen {listen}; server_name first.example second.example; {text} }}
            """,
            **values,
        )
        return self.proxy

    def logged(self, count: int = 1) -> dict[str, str]:
        """The last of so many lines, by name."""
        lines = self.proxy.accessed(count, "v.log")
        assert len(lines) == count, lines
        return dict(zip(self.names, lines[-1].split("|"), strict=True))


@pytest.fixture
def values(serve):
    return Values(serve)


class Since:
    """A value that nginx has had since a version; before, it was another one."""

    def __init__(self, value: str | re.Pattern, before: str):
        self.value = value
        self.before = before


def expect(told: dict[str, str], table: dict[str, str | re.Pattern | Since], binary) -> None:
    wrong = {}
    for name, wanted in table.items():
        if isinstance(wanted, Since):
            wanted = wanted.before if binary.is_nginx else wanted.value
        fits = wanted.fullmatch(told[name]) if isinstance(wanted, re.Pattern) else told[name] == wanted
        if not fits:
            wrong[name] = (told[name], wanted)
    assert not wrong, f"(is, should be): {wrong}"


NUMBER = re.compile(r"\d+")
SECONDS = re.compile(r"\d+\.\d{3}")

# Of a request that `return 200 12345;` answers: how it is sent, and what its variables are.
REQUEST = {
    "plain": (
        b"GET /a%20b/?x=1&Y=2&x=3&e=&flag HTTP/1.1\r\nHost: Some.Example:8080\r\nX-One: 1\r\nX_Under: u\r\n"
        b"X-Two: a\r\nx-two: b\r\nCookie: c=1; D=2; q=\"x y\"\r\nCookie: c=3; z=\r\nUser-Agent: ua\r\n"
        b"Referer: http://r/\r\nAccept: */*\r\nAuthorization: Basic dXNlcjpwYXNz\r\n\r\n",
        {
            "arg_x": "1",
            "arg_X": "1",
            "arg_y": "2",
            "arg_e": "",
            "arg_flag": "-",
            "arg_none": "-",
            "args": "x=1&Y=2&x=3&e=&flag",
            "query_string": "x=1&Y=2&x=3&e=&flag",
            "is_args": "?",
            "binary_remote_addr": r"\x7F\x00\x00\x01",
            "body_bytes_sent": "5",
            "connection": NUMBER,
            "connection_requests": "1",
            "connection_time": SECONDS,
            "content_length": "-",
            "content_type": "-",
            "cookie_c": "1",
            "cookie_d": "2",
            "cookie_Q": r"\x22x y\x22",
            "cookie_z": "",
            "cookie_none": "-",
            "host": "some.example",
            "hostname": socket.gethostname().lower(),
            "http_x_one": "1",
            "http_X_ONE": "1",
            "http_x_two": Since("a, b", before="a"),
            "http_x_under": "-",
            "http_none": "-",
            "http_host": "Some.Example:8080",
            "http_user_agent": "ua",
            "http_referer": "http://r/",
            "http_accept": "*/*",
            "http_cookie": r"c=1; D=2; q=\x22x y\x22; c=3; z=",
            "http_via": "-",
            "http_x_forwarded_for": "-",
            "https": "",
            "http2": "",
            "limit_rate": "0",
            "msec": re.compile(r"\d{10}\.\d{3}"),
            "nginx_version": re.compile(r"\d+\.\d+\.\d+"),
            "pid": NUMBER,
            "pipe": ".",
            "remote_addr": "127.0.0.1",
            "remote_port": NUMBER,
            "remote_user": "user",
            "request": "GET /a%20b/?x=1&Y=2&x=3&e=&flag HTTP/1.1",
            "request_body": "-",
            "request_body_file": "-",
            "request_completion": "OK",
            "request_id": re.compile("[0-9a-f]{32}"),
            "request_method": "GET",
            "request_time": SECONDS,
            "request_uri": "/a%20b/?x=1&Y=2&x=3&e=&flag",
            "scheme": "http",
            "server_addr": "127.0.0.1",
            "server_name": "first.example",
            "server_protocol": "HTTP/1.1",
            "status": "200",
            "tcpinfo_rtt": NUMBER,
            "tcpinfo_rttvar": NUMBER,
            "tcpinfo_snd_cwnd": NUMBER,
            "tcpinfo_rcv_space": NUMBER,
            "time_iso8601": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d"),
            "time_local": re.compile(r"\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}"),
            "uri": "/a b/",
            "document_uri": "/a b/",
            "upstream_addr": "-",
            "upstream_status": "-",
            "upstream_connect_time": "-",
            "upstream_header_time": "-",
            "upstream_response_time": "-",
            "upstream_response_length": "-",
            "upstream_bytes_sent": "-",
            "upstream_bytes_received": "-",
            "upstream_http_server": "-",
            "upstream_cookie_a": "-",
            "upstream_trailer_a": "-",
            "sent_http_content_type": "text/plain",
            "sent_http_content_length": "5",
            "sent_http_connection": "close",  # while the line is made
            "sent_http_keep_alive": "-",
            "sent_http_transfer_encoding": "-",
            "sent_http_last_modified": "-",
            "sent_http_location": "-",
            "sent_http_cache_control": "-",
            "sent_http_link": "-",
            "sent_http_none": "-",
            "sent_trailer_none": "-",
        },
    ),
    "bare": (
        b"GET / HTTP/1.0\r\n\r\n",
        {
            "host": "first.example",
            "http_host": "-",
            "args": "-",
            "query_string": "-",
            "is_args": "",
            "request_uri": "/",
            "server_protocol": "HTTP/1.0",
            "remote_user": "-",
            "sent_http_connection": "close",
            "http_cookie": "-",
        },
    ),
    "http-0.9": (
        b"GET /\r\n",
        {
            "server_protocol": "-",
            "status": "200",
            "request": "GET /",
            "sent_http_content_type": "text/plain",
            "body_bytes_sent": "5",
            "bytes_sent": "5",
        },
    ),
    "absolute": (
        b"GET http://Abs.example:99/x HTTP/1.1\r\nHost: other\r\n\r\n",
        {
            "host": "abs.example",
            "http_host": "other",
            "request": "GET http://Abs.example:99/x HTTP/1.1",
            "uri": "/x",
        },
    ),
    "empty-args": (
        b"GET /? HTTP/1.1\r\nHost: a\r\n\r\n",
        {"args": "-", "is_args": "", "query_string": "-", "request_uri": "/?"},
    ),
    "empty-args-before-a-fragment": (
        b"GET /?#f HTTP/1.1\r\nHost: a\r\n\r\n",
        {"args": "", "is_args": "", "query_string": "", "request_uri": "/?#f"},
    ),
    "no-host-in-the-target": (
        b"GET http:///x?y HTTP/1.1\r\nHost: a\r\n\r\n",
        {
            "status": "400",
            "uri": "/x",
            "args": "y",
            "request_uri": "/x?y",
            "request_method": "GET",
            "server_protocol": "HTTP/1.1",
            "request_length": "26",
            "http_host": "-",
        },
    ),
    "close": (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        {"sent_http_connection": "close", "http_connection": "close"},
    ),
    "post": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: t/t\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc",
        {
            "content_length": "3",
            "content_type": "t/t",
            "http_content_type": "t/t",
            "http_content_length": "3",
            "request_method": "POST",
            "request_body": "-",
        },
    ),
    "empty-fields": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX-E:\r\nX-Two:\r\nX-Two: b\r\nContent-Type:\r\nCookie:\r\n\r\n",
        {"http_x_e": "", "http_x_two": Since(", b", before=""), "content_type": "", "http_cookie": "", "cookie_c": "-"},
    ),
    "cookies": (
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: xc=0;c=1 ;  d=2\r\n\r\n",
        {"cookie_c": "1 ", "cookie_d": "2", "cookie_xc": "0"},
    ),
    "no-user": (
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer dXNlcjpwYXNz\r\n\r\n",
        {"remote_user": "-", "http_authorization": "Bearer dXNlcjpwYXNz"},
    ),
    "user-without-password": (
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: basic dXNlcg==\r\n\r\n",
        {"remote_user": "-"},
    ),
    "empty-user": (
        b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic OnBhc3M=\r\n\r\n",
        {"remote_user": "-"},
    ),
    "forwarded": (
        b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2, 3.3.3.3\r\n\r\n",
        {
            "http_x_forwarded_for": "1.1.1.1, 2.2.2.2, 3.3.3.3",
            "proxy_add_x_forwarded_for": "1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1",
            "proxy_host": "-",
            "proxy_port": "-",
        },
    ),
    "odd-bytes": (
        b"GET /\xc3\xa9\"?\xff HTTP/1.1\r\nHost: a\r\nX-One: \xe4\t\\\r\n\r\n",
        {"uri": r"/\xC3\xA9\x22", "args": r"\xFF", "http_x_one": r"\xE4\x09\x5C"},
    ),
}



@pytest.mark.parametrize("name", REQUEST)
def test_of_a_request(values, name, binary):
    sent, table = REQUEST[name]
    proxy = values(" ".join(table), "location / { return 200 12345; }")
    with proxy.connect() as wire:
        wire.send(sent)
        if name == "http-0.9":
            wire.read_to_end()
        else:
            wire.read_response("GET")
    expect(values.logged(), table, binary)


# How args come to be none, and what that is then: no value, or an empty one.
NO_ARGS = {
    "not-sent": ("return 200;", "/", "-"),
    "empty-sent": ("return 200;", "/?", "-"),
    "set": ('set $args ""; return 200;', "/", ""),
    "set-anew": ('set $args ""; return 200;', "/?a", ""),
    "rewrite-drops": ("rewrite ^ /end? last;", "/x?a", ""),
    "rewrite-drops-none": ("rewrite ^ /end? last;", "/x", "-"),
    "rewrite-to-none": ("rewrite ^ /end?$arg_none? last;", "/x?a", ""),
    "rewrite-alone": ("rewrite ^ /end last;", "/x", "-"),
    "try-files": ("try_files /none /end?$args;", "/x", ""),
    "try-files-without": ("try_files /none /end;", "/x?a", ""),
    "try-files-named": ("try_files /none @end;", "/x?", "-"),
    "error-page": ("error_page 404 /end?; return 404;", "/x?a", ""),
    "error-page-without": ("error_page 404 /end; return 404;", "/x?a", "-"),
    "index": ("index none /end;", "/", "-"),
    "index-of-set": ('set $args ""; index none /end;', "/?a", ""),
}


@pytest.mark.parametrize("name", NO_ARGS)
def test_no_args_and_empty_ones(values, name):
    text, target, args = NO_ARGS[name]
    ends = "location = /end { return 200; } location @end { return 200; }"
    proxy = values("args query_string is_args", f"location / {{ {text} }} {ends}")
    proxy.get(target)
    assert values.logged() == {"args": args, "query_string": args, "is_args": ""}


@pytest.mark.parametrize("redirect, args", [("/end", "-"), ("/end?", "")])
def test_args_of_an_accelerated_redirect(values, upstream, redirect, args):
    server = upstream(answering(response(b"", f"X-Accel-Redirect: {redirect}")))
    proxy = values("args", "location / { proxy_pass http://127.0.0.1:@up@; } location = /end { return 200; }", up=server.port)
    proxy.get("/?a")
    assert values.logged() == {"args": args}


def test_a_refused_redirect_changes_nothing(values):
    proxy = values("uri args", "location / { try_files /none $uri/x?$args.; }")
    assert proxy.get("/a").status == 500
    assert values.logged() == {"uri": "/a" + "/x" * 10, "args": "." * 10}
    proxy.logged(f'redirection cycle while internally redirecting to "/a{"/x" * 11}"')


@pytest.mark.parametrize(
    "redirect, text",
    [("/again", 'redirection cycle while internally redirecting to "/again"'), ("@none", 'could not find named location "@none"')],
)
def test_a_refused_accelerated_redirect_is_said_of_the_head_it_came_in(values, upstream, redirect, text):
    server = upstream(*[answering(response(b"", f"X-Accel-Redirect: {redirect}"))] * 11)
    proxy = values("uri", "location / { proxy_pass http://127.0.0.1:@up@; }", up=server.port)
    assert proxy.get("/").status == 500
    assert " while reading response header from upstream, client: " in proxy.logged(text)


def test_a_uri_that_is_rewritten_to_nothing_is_empty(values):
    proxy = values("uri document_uri", "rewrite ^ $arg_none;")
    assert proxy.get("/x").status == 500
    assert values.logged() == {"uri": "", "document_uri": ""}


@ringx_only("nginx has had these since 1.31")
@pytest.mark.parametrize(
    "target, host, port, is_port",
    [("/", "a:81", "81", ":"), ("/", "a", "", ""), ("http://b:82/", "a:81", "82", ":"), ("/", "[::1]:9", "9", ":")],
)
def test_the_port_of_the_request(values, binary, target, host, port, is_port):
    proxy = values("request_port is_request_port", "return 200;")
    proxy.ask(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")
    expect(values.logged(), {"request_port": port, "is_request_port": is_port}, binary)


def test_lengths_and_counts(values, binary):
    proxy = values("request_length bytes_sent body_bytes_sent connection_requests pipe", "return 200 12345;")
    one = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    two = b"GET /again HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n"
    wire = proxy.connect()
    wire.send(one + two)
    first, second = wire.read_response(), wire.read_response()
    proxy.accessed(2, "v.log")
    lines = [line.split("|") for line in proxy.log("v.log").splitlines()]
    assert lines[0] == [str(len(one)), str(len(first.raw) + 5), "5", "1", "."]
    assert lines[1] == [str(len(two)), str(len(second.raw) + 5), "5", "2", "p"]


def test_empty_lines_before_a_request_are_not_of_its_length(values, binary):
    proxy = values("request_length", "return 200 12345;")
    requests = [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /0.9\r\n", b"GET / HTTP/1.1\r\nX: y\r\n\r\n"]
    for count, sent in enumerate(requests, 1):
        with proxy.connect() as wire:
            wire.send(b"\r\n\n" + sent)
            wire.read_some()
            expect(values.logged(count), {"request_length": str(len(sent))}, binary)


DISCARDED = [
    (b"Content-Length: 2\r\n\r\n", b"12"),
    (b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n0\r\n\r\n"),
]


@pytest.mark.parametrize("lines, body", DISCARDED, ids=["length", "chunks"])
@pytest.mark.parametrize("comes", ["with the head", "later"])
def test_a_body_that_nobody_reads_is_not_of_the_requests_length(values, binary, lines, body, comes):
    proxy = values("request_length", "return 200 12345;")
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + lines
    with proxy.connect() as wire:
        wire.send(head + body if comes == "with the head" else head)
        assert wire.read_response().status == 200
        if comes == "later":
            wire.send(body)
        expect(values.logged(), {"request_length": str(len(head))}, binary)


def test_the_length_of_what_had_come_of_a_head(values, binary):
    proxy = values("request_length", "client_header_timeout 300ms; return 200 x;")
    for count, (sent, length) in enumerate([(b"GET /", 0), (b"GET / HTTP/1.1\r\nHost", 16), (b"GET / HTTP/1.1\r\nHost: a\r\nX", 25)], 1):
        with proxy.connect() as wire:
            wire.send(b"\r\n" + sent)
            wire.expect_end()
        expect(values.logged(count), {"request_length": str(length)}, binary)


def test_100_continue_counts_as_body(values, binary):
    proxy = values("bytes_sent body_bytes_sent", "return 200 ok;")
    with proxy.connect() as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n12")
        told = len(wire.read_until(b"\r\n\r\n"))
        answer = wire.read_response()
    sent = {"bytes_sent": str(told + len(answer.raw) + 2), "body_bytes_sent": str(told + 2)}
    expect(values.logged(), sent, binary)


def test_a_head_request_sends_no_body(values, binary):
    proxy = values("body_bytes_sent sent_http_content_length request_method status", "return 200 12345;")
    proxy.get("/", method="HEAD")
    table = {"body_bytes_sent": "0", "sent_http_content_length": "5", "request_method": "HEAD", "status": "200"}
    expect(values.logged(), table, binary)


def test_of_a_file(values, binary):
    names = (
        "document_root realpath_root request_filename sent_http_last_modified sent_http_content_length "
        "sent_http_content_type sent_http_etag sent_http_accept_ranges status"
    )
    proxy = values(names, "location / { root real; } location /link/ { root link; } location /al/ { alias real/; }")
    (proxy.prefix / "real/link").mkdir(parents=True)
    (proxy.prefix / "real/a.txt").write_text("hello")
    (proxy.prefix / "real/link/a.txt").write_text("hello")
    (proxy.prefix / "link").symlink_to("real")
    real = os.path.realpath(proxy.prefix / "real")
    proxy.get("/a.txt")
    table = {
        "document_root": f"{proxy.prefix}/real",
        "realpath_root": real,
        "request_filename": f"{proxy.prefix}/real/a.txt",
        "sent_http_last_modified": re.compile(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT"),
        "sent_http_content_length": "5",
        "sent_http_content_type": "text/plain",
        "sent_http_etag": re.compile(r"\\x22[0-9a-f]+-5\\x22"),
        "sent_http_accept_ranges": "bytes",
        "status": "200",
    }
    expect(values.logged(), table, binary)
    proxy.get("/link/a.txt")
    told = values.logged(2)
    assert told["document_root"] == f"{proxy.prefix}/link"
    assert (told["realpath_root"], told["request_filename"]) == (real, f"{proxy.prefix}/link/link/a.txt")
    proxy.get("/al/a.txt")
    told = values.logged(3)
    assert (told["document_root"], told["request_filename"]) == (f"{proxy.prefix}/real/", f"{proxy.prefix}/real/a.txt")


def test_a_root_that_is_not_there_has_no_real_path(values, binary):
    proxy = values("realpath_root document_root status", "location / { root none; return 200 x; }")
    proxy.get("/")
    expect(values.logged(), {"realpath_root": "-", "document_root": f"{proxy.prefix}/none", "status": "200"}, binary)


RESPONSES = {
    "redirect": (
        "return 301 /there;",
        {
            "status": "301",
            "sent_http_location": re.compile(r"http://a(:\d+)?/there"),
            "sent_http_content_type": "text/html",
        },
    ),
    "404": ("root none;", {"status": "404", "sent_http_content_type": "text/html", "request_completion": "OK"}),
    "204": ("return 204;", {"status": "204", "sent_http_content_length": "-", "body_bytes_sent": "0"}),
    "444": ("return 444;", {"status": "444", "bytes_sent": "0", "request_completion": "", "sent_http_server": "-"}),
    "added": (
        "add_header X-A 1; add_header X-A 2; add_header Link </a>; add_header Link </b>; add_header Cache-Control a; "
        "add_header Cache-Control b; add_header ETag t; return 200 x;",
        {
            "sent_http_x_a": Since("1, 2", before="1"),
            "sent_http_link": "</a>, </b>",
            "sent_http_cache_control": "a, b",
            "sent_http_etag": "t",
            "sent_http_server": "-",
            "sent_http_date": "-",
        },
    ),
    "error-page": (
        "error_page 404 /page; location = /page { return 200 x; } location / { return 404; }",
        {"status": "404", "uri": "/page", "request_uri": "/", "request_method": "GET"},
    ),
    "error-page-post": (
        "error_page 404 /page; location = /page { return 200 x; } location / { return 404; }",
        {"status": "404", "request_method": "GET", "request": "POST / HTTP/1.1"},
    ),
    "rewritten": (
        "location / { rewrite ^ /new?a=b last; } location /new { return 200 x; }",
        {"uri": "/new", "args": "a=b", "request_uri": "/", "is_args": "?", "arg_a": "b"},
    ),
    "set-args": (
        "location / { set $args a=1&b=2; return 200 x; }",
        {"args": "a=1&b=2", "query_string": "a=1&b=2", "arg_b": "2", "request_uri": "/", "is_args": "?"},
    ),
    "captures": (
        r"location ~ ^/(?<name>.)?(y)? { set $one $1; return 200 x; }",
        {"name": "", "one": "", "request_uri": "/"},
    ),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_of_a_response(values, binary, name):
    text, table = RESPONSES[name]
    proxy = values(" ".join(table), text)
    method = "POST" if name.endswith("post") else "GET"
    with proxy.connect() as wire:
        wire.send(f"{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        wire.read_to_end()
    expect(values.logged(), table, binary)


def test_values_while_the_response_is_made(serve):
    """In a response and in headers to upstreams, a missing value is empty."""
    names = "status body_bytes_sent bytes_sent request_completion sent_http_content_type http_none arg_none upstream_addr"
    body = "|".join(f"${name}" for name in names.split())
    proxy = serve(f"server {{ listen 127.0.0.1:@port@; return 200 '{body}'; }}")
    assert proxy.get("/").body == b"200|0|0|||||"


def test_a_value_that_changes_is_computed_anew(serve):
    proxy = serve(
        """
        server { listen 127.0.0.1:@port@;
            set $before "$args/$arg_a/$uri"; rewrite ^/x /y?a=2?; return 200 "$before $args/$arg_a/$uri $request_uri"; }
        """
    )
    assert proxy.get("/x?a=1").body == b"a=1/1//x a=2/2//y /x?a=1"


def test_one_request_id_a_request(serve):
    proxy = serve('server { listen 127.0.0.1:@port@; return 200 "$request_id $request_id"; }')
    first, second = (proxy.get("/").body.decode().split() for _ in range(2))
    assert first[0] == first[1] and second[0] == second[1] and first[0] != second[0]


def test_over_a_unix_socket(values, binary, tmp_path):
    path = tmp_path / "s"
    names = "remote_addr remote_port server_addr server_port binary_remote_addr tcpinfo_rtt connection_requests"
    proxy = values(names, "listen 127.0.0.1:@port@; return 200 x;", listen=f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.settimeout(10)
        while client.recv(1000):
            pass
    table = {
        "remote_addr": "unix:",
        "remote_port": "",
        "server_addr": f"unix:{path}",
        "server_port": "",
        "binary_remote_addr": "unix:",
        "tcpinfo_rtt": "-",
        "connection_requests": "1",
    }
    expect(values.logged(), table, binary)


UPSTREAM = (
    "upstream_addr upstream_status upstream_connect_time upstream_header_time upstream_response_time "
    "upstream_response_length upstream_bytes_sent upstream_bytes_received upstream_http_x_up upstream_cookie_c "
    "upstream_http_content_type upstream_http_set_cookie upstream_http_hidden sent_http_x_up sent_http_content_length "
    "sent_http_transfer_encoding status proxy_host proxy_port"
)


def test_of_an_upstream(values, binary, upstream):
    answer = response(
        b"hello", "X-Up: 1", "X-Up: 2", "Set-Cookie: c=v; Path=/", "Set-Cookie: d=w", "Content-Type: a/b", "Hidden: h"
    )
    server = upstream(answering(answer))
    proxy = values(UPSTREAM, f"location / {{ proxy_pass http://{server.address}; proxy_hide_header Hidden; }}")
    proxy.get("/")
    sent = server.requests[0].raw
    table = {
        "upstream_addr": server.address,
        "upstream_status": "200",
        "upstream_connect_time": SECONDS,
        "upstream_header_time": SECONDS,
        "upstream_response_time": SECONDS,
        "upstream_response_length": "5",
        "upstream_bytes_sent": str(len(sent)),
        "upstream_bytes_received": str(len(answer)),
        "upstream_http_x_up": Since("1, 2", before="1"),
        "upstream_cookie_c": "v",
        "upstream_http_content_type": "a/b",
        "upstream_http_set_cookie": Since("c=v; Path=/, d=w", before="c=v; Path=/"),
        "upstream_http_hidden": "h",
        "sent_http_x_up": Since("1, 2", before="1"),
        "sent_http_content_length": "5",
        "status": "200",
        "proxy_host": server.address,
        "proxy_port": str(server.port),
    }
    expect(values.logged(), table, binary)


def test_of_a_chunked_answer(values, binary, upstream):
    body = chunked(b"hello", b"you")
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Up: 1\r\n\r\n" + body
    server = upstream(answering(answer))
    text = f"location / {{ proxy_http_version 1.1; proxy_pass http://{server.address}; }}"
    proxy = values(UPSTREAM, text)
    proxy.get("/")
    table = {
        "upstream_bytes_received": str(len(answer)),
        "sent_http_transfer_encoding": "chunked",
        "sent_http_content_length": "-",
    }
    expect(values.logged(), table, binary)


def test_each_try_is_an_item(values, binary, upstream):
    bad = upstream(script(head, close))
    good = upstream(answering(response(b"fine")))
    dead = free_port()
    http = f"upstream u {{ server 127.0.0.1:{dead}; server {bad.address}; server {good.address}; }}"
    proxy = values(UPSTREAM, "location / { proxy_pass http://u; }", http)
    proxy.get("/")
    table = {
        "upstream_addr": f"127.0.0.1:{dead}, {bad.address}, {good.address}",
        "upstream_status": "502, 502, 200",
        "upstream_connect_time": re.compile(r"-, \d\.\d{3}, \d\.\d{3}"),
        "upstream_header_time": re.compile(r"-, -, \d\.\d{3}"),
        "upstream_response_time": re.compile(r"\d\.\d{3}, \d\.\d{3}, \d\.\d{3}"),
        "upstream_response_length": "0, 0, 4",
        "upstream_bytes_received": re.compile(r"0, 0, \d+"),
        "upstream_bytes_sent": re.compile(r"0, \d+, \d+"),
        "status": "200",
        "proxy_host": "u",
        "proxy_port": "80",
    }
    expect(values.logged(), table, binary)


def test_exchanges_after_a_redirect_are_groups(values, binary, upstream):
    first = upstream(answering(response(b"", status="503 No")))
    second = upstream(answering(response(b"sorry", "X-Up: second")))
    text = f"""
        proxy_intercept_errors on; error_page 503 /sorry;
        location / {{ proxy_pass http://{first.address}; }} location /sorry {{ proxy_pass http://{second.address}; }}
    """
    proxy = values(UPSTREAM, text)
    proxy.get("/")
    table = {
        "upstream_addr": f"{first.address} : {second.address}",
        "upstream_status": "503 : 200",
        "upstream_header_time": re.compile(r"\d\.\d{3} : \d\.\d{3}"),
        "upstream_response_length": "0 : 5",
        "upstream_http_x_up": "second",
        "status": "503",
    }
    expect(values.logged(), table, binary)


def test_what_an_error_page_is_told_of_the_exchange_before(values, upstream):
    dead = free_port()
    told = upstream(answering(response(b"sorry")))
    text = f"""
        error_page 502 /sorry;
        location / {{ proxy_pass http://127.0.0.1:{dead}; }}
        location /sorry {{
            proxy_set_header X-Status $upstream_status;
            proxy_set_header X-Addr $upstream_addr;
            proxy_pass http://{told.address};
        }}
    """
    values(UPSTREAM, text).get("/")
    asked = told.request()
    assert (asked.get("X-Status"), asked.get("X-Addr")) == ("502", f"127.0.0.1:{dead}")
    assert values.logged()["upstream_status"] == "502 : 200"


BODIES = {
    "none": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "-", "-"),
    "length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "3", "-"),
    "chunked": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "3", "-"),
    "streamed": (
        b"POST /s HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "-",
        "chunked",
    ),
    "own": (b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n", "5", "-"),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_body_as_an_upstream_is_sent_it(values, binary, upstream, name):
    sent, length, is_chunked = BODIES[name]
    server = upstream(answering(response(b"x")))
    to = f"proxy_http_version 1.1; proxy_pass http://{server.address};"
    text = f"""
        location / {{ {to} }} location /s {{ proxy_request_buffering off; {to} }}
        location /own {{ proxy_set_body 12345; {to} }}
    """
    proxy = values("proxy_internal_body_length proxy_internal_chunked", text)
    head, end, body = sent.partition(b"\r\n\r\n")
    with proxy.connect() as wire:
        wire.send(head + end)
        if name == "streamed":
            eventually(lambda: server.connections, "the upstream is asked before there is a body")
        wire.send(body)
        wire.read_response("GET")
    expect(values.logged(), {"proxy_internal_body_length": length, "proxy_internal_chunked": is_chunked}, binary)


def test_a_dead_upstream(values, binary):
    dead = free_port()
    proxy = values(UPSTREAM, f"location / {{ proxy_pass http://127.0.0.1:{dead}; }}")
    proxy.get("/")
    table = {
        "upstream_addr": f"127.0.0.1:{dead}",
        "upstream_status": "502",
        "upstream_connect_time": "-",
        "upstream_header_time": "-",
        "upstream_response_time": SECONDS,
        "upstream_response_length": "0",
        "upstream_bytes_sent": "0",
        "upstream_bytes_received": "0",
        "upstream_http_x_up": "-",
        "status": "502",
    }
    expect(values.logged(), table, binary)


def test_no_live_upstream(values, binary):
    http = "upstream u { server 127.0.0.1:1 down; }"
    proxy = values(UPSTREAM, "location / { proxy_pass http://u; }", http)
    proxy.get("/")
    table = {
        "upstream_addr": "u",
        "upstream_status": "502",
        "upstream_connect_time": "-",
        "upstream_header_time": "-",
        "upstream_response_time": SECONDS,
        "upstream_response_length": "0",
        "upstream_bytes_sent": "0",
        "upstream_bytes_received": "0",
    }
    expect(values.logged(), table, binary)


@pytest.mark.parametrize(
    "url, host, port",
    [
        ("http://127.0.0.1:@dead@/x", "127.0.0.1:@dead@", "@dead@"),
        ("http://127.0.0.1", "127.0.0.1", "80"),
        ("http://unix:/tmp/none-such:/x", "localhost", ""),
    ],
)
def test_the_host_of_proxy_pass(values, binary, url, host, port):
    dead = str(free_port())
    url, host, port = (text.replace("@dead@", dead) for text in (url, host, port))
    proxy = values("proxy_host proxy_port proxy_add_x_forwarded_for", f"location / {{ proxy_pass {url}; }}")
    proxy.get("/")
    expect(values.logged(), {"proxy_host": host, "proxy_port": port, "proxy_add_x_forwarded_for": "127.0.0.1"}, binary)


@pytest.mark.parametrize("text", ["return 200;", "deny all;", "if ($proxy_host) { return 500; } return 200;"])
def test_without_an_exchange_there_is_no_host_of_it(values, binary, text):
    proxy = values("proxy_host proxy_port", f"location / {{ {text} proxy_pass http://127.0.0.1:1; }}")
    assert proxy.get("/").status in (200, 403)
    expect(values.logged(), {"proxy_host": "-", "proxy_port": "-"}, binary)


def test_without_a_cache_it_has_no_status(values, binary, upstream):
    server = upstream(answering(response(b"x")))
    proxy = values("upstream_cache_status", f"location / {{ proxy_cache off; proxy_pass http://{server.address}; }}")
    proxy.get("/")
    expect(values.logged(), {"upstream_cache_status": "-"}, binary)


def test_what_stands_behind_the_head_for_a_head_request_is_no_response(values, binary, upstream):
    server = upstream(answering(response(b"body")))
    proxy = values("upstream_response_length", f"location / {{ proxy_pass http://{server.address}; }}")
    proxy.ask("HEAD / HTTP/1.0\r\n\r\n")
    expect(values.logged(), {"upstream_response_length": "0"}, binary)


def test_the_body_of_a_request(values, binary, upstream):
    server = upstream(answering(response(b"x")))
    names = "request_body request_body_file content_length request_length"
    text = f"""
        client_body_buffer_size 1k;
        location / {{ proxy_pass http://{server.address}; }}
        location /streamed {{ proxy_request_buffering off; proxy_http_version 1.1; proxy_pass http://{server.address}; }}
    """
    proxy = values(names, text)
    proxy.get("/", method="POST", body=b"in memory")
    expect(values.logged(), {"request_body": "in memory", "request_body_file": "-", "content_length": "9"}, binary)
    proxy.get("/", method="POST", body=b"x" * 5000)
    table = {"request_body": "-", "request_body_file": re.compile(r"/.*/\d{10}"), "content_length": "5000"}
    expect(values.logged(2), table, binary)
    chunks = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"abc", b"de")
    proxy.ask(chunks)
    table = {"request_body": "abcde", "content_length": "5", "request_length": str(len(chunks))}
    expect(values.logged(3), table, binary)


STATUSES = {
    "broken-line": (b"GARBAGE\r\n\r\n", {"status": "400", "request": "GARBAGE", "request_method": "-", "uri": "-"}),
    "broken-uri": (b"GET /%zz?a HTTP/1.1\r\nHost: a\r\n\r\n", {"status": "400", "uri": "", "document_uri": "", "args": "-"}),
    "no-host": (b"GET /x HTTP/1.1\r\n\r\n", {"status": "400", "request": "GET /x HTTP/1.1", "host": "first.example"}),
    "too-large": (
        b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n",
        {"status": "413", "request": "POST /x HTTP/1.1", "request_completion": "OK"},
    ),
}


@pytest.mark.parametrize("name", STATUSES)
def test_of_a_refused_request(values, binary, name):
    sent, table = STATUSES[name]
    proxy = values(" ".join(table), "location / { return 200 x; }")
    with proxy.connect() as wire:
        wire.send(sent)
        wire.read_to_end()
    expect(values.logged(), table, binary)


def test_a_client_that_leaves_in_the_first_line_of_0_9(values, binary):
    """Without a status: 009 when the line named no version."""
    proxy = values("status request server_protocol", "location / { return 444; }")
    with proxy.connect() as wire:
        wire.send(b"GET /\r\n")
        wire.read_to_end()
    expect(values.logged(), {"status": "444", "request": "GET /"}, binary)


def test_a_client_that_leaves_early(values, binary, upstream):
    asked, go = threading.Event(), threading.Event()
    server = upstream(script(head, lambda wire: asked.set(), until(go), close))
    proxy = values("status upstream_status bytes_sent request_completion", f"location / {{ proxy_pass http://{server.address}; }}")
    wire = proxy.connect()
    wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert asked.wait(10)
    wire.close()
    told = values.logged()
    go.set()
    expect(told, {"status": "499", "upstream_status": "-", "bytes_sent": "0", "request_completion": ""}, binary)


def test_an_uninitialized_variable_is_told_at_warn(serve):
    proxy = serve(
        """
        server { listen 127.0.0.1:@port@;
            location /never { if ($arg_x) { set $late 1; } return 200 "<$late>"; }
            location /quiet { uninitialized_variable_warn off; if ($arg_x) { set $late 1; } return 200 "<$late>"; }
        }
        """
    )
    assert proxy.get("/quiet").body == b"<>"
    assert proxy.get("/never?x=1").body == b"<1>"
    assert "uninitialized" not in proxy.error_log()
    assert proxy.get("/never").body == b"<>"
    line = proxy.logged('using uninitialized "late" variable')
    assert "[warn]" in line and ', client: 127.0.0.1, server: , request: "GET /never HTTP/1.1", host: "example.com"' in line


# What `set` may write to: the name, and what is said.
SETTABLE = {
    "own": ("$own", None),
    "args": ("$args", None),
    "arg_x": ("$arg_x", None),
    "http_x": ("$http_x", None),
    "cookie_x": ("$cookie_x", None),
    "sent_http_x": ("$sent_http_x", None),
    "uri": ("$uri", 'the duplicate "uri" variable'),
    "query_string": ("$query_string", 'the duplicate "query_string" variable'),
    "status": ("$status", 'the duplicate "status" variable'),
    "host": ("$host", 'the duplicate "host" variable'),
    "no-dollar": ("own", 'invalid variable name "own"'),
    "empty": ("$", 'invalid variable name "$"'),
    "upstream_http_x": ("$upstream_http_x", None),
    "limit_rate": ("$limit_rate", None),
}


@pytest.mark.parametrize("name", SETTABLE)
def test_what_set_may_write_to(binary, tmp_path, name):
    from harness.proxy import Proxy

    variable, error = SETTABLE[name]
    text = f"events {{ }}\nhttp {{\nserver {{\nset {variable} 1;\n}}\n}}\n"
    proxy = Proxy(binary, tmp_path, text)
    done = binary.run("-t", *proxy.arguments())
    if error:
        assert done.stderr == f"nginx: [emerg] {error} in {proxy.conf}:4\nnginx: configuration file {proxy.conf} test failed\n"
    else:
        assert done.returncode == 0, done.stderr


def test_a_family_member_that_is_set_is_the_requests_own(serve):
    proxy = serve(
        """
        server { listen 127.0.0.1:@port@;
            location / { return 200 "$http_x $cookie_c"; }
            location /set { set $http_x mine; set $cookie_c "$arg_c"; return 200 "$http_x $cookie_c"; }
        }
        """
    )
    assert proxy.get("/set?c=1", "X: theirs", "Cookie: c=2").body == b"mine 1"
    assert proxy.get("/", "X: theirs", "Cookie: c=2").body == b"theirs 2"
