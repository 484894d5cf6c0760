"""From the request head to the location: hosts, servers, listen, heads, URIs, locations, redirects between
them, and how a connection goes on."""

import os
import signal
import socket
import time

import pytest

from harness.ports import free_port
from harness.upstream import Upstream, answering, response
from harness.wire import Wire

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def named(rows):
    return [str(row[0])[:70] for row in rows]


# Hosts.

HOSTS = [
    ("a", "a", ""),
    ("A.b", "a.b", ""),
    ("a:80", "a", ":80"),
    ("a:", "a", ""),
    ("a.", "a", ""),
    ("a.:80", "a", ":80"),
    ("a:65535", "a", ":65535"),
    ("[::1]", "[::1]", ""),
    ("[::1]:80", "[::1]", ":80"),
    ("[FE80::A]", "[fe80::a]", ""),
    ("1.2.3.4", "1.2.3.4", ""),
    ("a_b", "a_b", ""),
    ("a~b!c$d&e'f(g)h*i+j,k;l=m%n", "a~b!c$d&e'f(g)h*i+j,k;l=m%n", ""),
    (".a", ".a", ""),
    ("-", "-", ""),
    ("", None, None),
    (".", None, None),
    ("a..b", None, None),
    ("a..", None, None),
    ("..", None, None),
    ("a b", None, None),
    ("a/b", None, None),
    ("a@b", None, None),
    ('a"b', None, None),
    ("a\\b", None, None),
    ("a#b", None, None),
    ("a?b", None, None),
    ("a<b", None, None),
    ("a>b", None, None),
    ("a\x80b", None, None),
    ("a\x01b", None, None),
    ("a\tb", None, None),
    ("[::1", None, None),
    ("[::1]x", None, None),
    ("a:x", None, None),
    ("a:65536", None, None),
    ("a:80:80", None, None),
]
OLD_HOSTS = {'a"b', "a#b", "a?b", "a<b", "a>b", "a\x80b", "[::1]x", "a:x", "a:65536", "a@b", "a\\b", "[::1", "a:80:80"}


@pytest.mark.parametrize(
    "value, host, port",
    [
        pytest.param(*row, marks=[differs("older ones take more hosts")] if row[0] in OLD_HOSTS else [], id=repr(row[0]))
        for row in HOSTS
    ],
)
def test_the_value_of_host(shared, value, host, port):
    proxy = shared("location / { return 200 [$host]; }")
    answer = proxy.ask(f"GET / HTTP/1.1\r\nHost: {value}\r\n\r\n")
    if host is None:
        assert answer.status == 400
        proxy.logged("client sent invalid host header" if value else "client sent")
    else:
        assert answer.body.decode() == f"[{host}]"


@differs("older ones do not have these variables")
@pytest.mark.parametrize("value, host, port", [row for row in HOSTS if row[1]][:10])
def test_the_port_of_host(shared, value, host, port):
    proxy = shared('location / { return 200 "$is_request_port$request_port"; }')
    assert proxy.ask(f"GET / HTTP/1.1\r\nHost: {value}\r\n\r\n").body.decode() == port


# Server names.

NAMES = """
server { listen 127.0.0.1:@port@; server_name first.example other.example; return 200 "first $server_name"; }
server { listen 127.0.0.1:@port@; server_name exact.org; return 200 exact; }
server { listen 127.0.0.1:@port@; server_name .dot.org; return 200 "dot $server_name"; }
server { listen 127.0.0.1:@port@; server_name *.star.org; return 200 "star $server_name"; }
server { listen 127.0.0.1:@port@; server_name *.deep.star.org; return 200 deep; }
server { listen 127.0.0.1:@port@; server_name mail.*; return 200 "mail $server_name"; }
server { listen 127.0.0.1:@port@; server_name mail.star.*; return 200 longer; }
server { listen 127.0.0.1:@port@; server_name ~^re(\\d+)\\.(?<tld>net|com)$; return 200 "re $1 $tld $server_name"; }
server { listen 127.0.0.1:@port@; server_name ~^re; return 200 re2; }
server { listen 127.0.0.1:@port@; server_name ~^UPPER; return 200 upper; }
server { listen 127.0.0.1:@port@; server_name ""; return 200 "empty [$server_name]"; }
server { listen 127.0.0.1:@port@; server_name $hostname; return 200 "machine"; }
server { listen 127.0.0.1:@port_b@; server_name exact.org; return 200 "b"; }
server { listen 127.0.0.1:@port_b@ default_server; server_name _; return 200 "b default"; }
"""
CHOSEN = [
    ("first.example", "first first.example"),
    ("other.example", "first first.example"),
    ("OTHER.Example:8080", "first first.example"),
    ("nowhere", "first first.example"),
    ("exact.org", "exact"),
    ("exact.org.", "exact"),
    ("x.exact.org", "first first.example"),
    ("dot.org", "dot dot.org"),
    ("a.dot.org", "dot dot.org"),
    ("a.b.dot.org", "dot dot.org"),
    ("adot.org", "first first.example"),
    ("star.org", "first first.example"),
    ("a.star.org", "star *.star.org"),
    ("a.b.star.org", "star *.star.org"),
    ("a.deep.star.org", "deep"),
    ("deep.star.org", "star *.star.org"),
    ("mail.star.org", "star *.star.org"),
    ("mail.star.net", "longer"),
    ("mail.x", "mail mail.*"),
    ("mail.x.y", "mail mail.*"),
    ("mail", "first first.example"),
    ("re1.net", "re 1 net ~^re(\\d+)\\.(?<tld>net|com)$"),
    ("re12.com", "re 12 com ~^re(\\d+)\\.(?<tld>net|com)$"),
    ("re1.org", "re2"),
    ("upper", "upper"),
    ("_", "first first.example"),
    ("[::1]", "first first.example"),
    (socket.gethostname(), "machine"),
]


@pytest.fixture(scope="module")
def names(binary, tmp_path_factory):
    from harness.proxy import Proxy

    proxy = Proxy(binary, tmp_path_factory.mktemp("names"), "events { }\nhttp {\n" + NAMES + "\n}\n").start()
    yield proxy
    proxy.stop()


@pytest.mark.parametrize("host, body", CHOSEN, ids=named(CHOSEN))
def test_which_server(names, host, body):
    assert names.get("/", host=host).body.decode() == body


def test_which_server_without_a_host(names):
    assert names.ask("GET / HTTP/1.0\r\n\r\n").body == b"empty []"
    wire = names.connect()
    wire.send("GET /\r\n")
    assert wire.read_to_end() == b"empty []"


def test_each_address_has_its_servers(names):
    (port,) = [port for port in names.ports() if port != names.port]
    got = [names.get("/", host=host, port=port).body for host in ("exact.org", "first.example")]
    assert got == [b"b", b"b default"]


ABSOLUTE = [
    ("GET http://exact.org/ HTTP/1.1\r\nHost: dot.org\r\n\r\n", "exact"),
    ("GET http://EXACT.org:80/ HTTP/1.1\r\nHost: dot.org\r\n\r\n", "exact"),
    ("GET http://exact.org HTTP/1.1\r\nHost: dot.org\r\n\r\n", "exact"),
    ("GET other-scheme+1.0://exact.org/ HTTP/1.1\r\nHost: dot.org\r\n\r\n", "exact"),
    ("GET http://exact.org/ HTTP/1.0\r\n\r\n", "exact"),
]


@pytest.mark.parametrize("request_, body", ABSOLUTE, ids=named(ABSOLUTE))
def test_the_host_of_the_target_wins(names, request_, body):
    assert names.ask(request_).body.decode() == body


TARGETS = [
    ("GET http://h/x?y HTTP/1.1\r\nHost: a\r\n\r\n", "/x?y|/x|y|h|a"),
    ("GET http://h HTTP/1.1\r\nHost: a\r\n\r\n", "/|/||h|a"),
    ("GET http://h?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", None),
    ("GET /x HTTP/1.1\r\nHost: A:80\r\n\r\n", "/x|/x||a|A:80"),
    ("GET /x#f?y HTTP/1.1\r\nHost: a\r\n\r\n", "/x#f?y|/x||a|a"),
    ("GET /x?a#f HTTP/1.1\r\nHost: a\r\n\r\n", "/x?a#f|/x|a|a|a"),
    ("GET /x? HTTP/1.1\r\nHost: a\r\n\r\n", "/x?|/x||a|a"),
    ("GET /x?#f HTTP/1.1\r\nHost: a\r\n\r\n", "/x?#f|/x||a|a"),
    ("GET /x?? HTTP/1.1\r\nHost: a\r\n\r\n", "/x??|/x|?|a|a"),
    ("GET /?%41+%zz HTTP/1.1\r\nHost: a\r\n\r\n", "/?%41+%zz|/|%41+%zz|a|a"),
]


@pytest.mark.parametrize("request_, expected", TARGETS, ids=named(TARGETS))
def test_parts_of_the_target(shared, request_, expected):
    proxy = shared('location / { return 200 "$request_uri|$uri|$args|$host|$http_host"; }')
    body = proxy.ask(request_).body.decode()
    if expected is None:
        # An older nginx leaves the slash to be thought of.
        assert body in ("?x=1|/|x=1|h|a", "/?x=1|/|x=1|h|a")
    else:
        assert body == expected


# Request heads that test_http_core does not have.

BAD = [
    ("a digit in the method", b"G3T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("no target", b"GET \r\nHost: a\r\n\r\n", 400),
    ("a query alone", b"GET ?x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("tab behind the target", b"GET /\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("an empty host in the target", b"GET http:///x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("underscore in the target's host", b"GET http://a_b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("HTTP/0.9 said", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 400),
    ("four digits", b"GET / HTTP/1.1000\r\nHost: a\r\n\r\n", 400),
    ("HTTP/3", b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
    ("HTTP/10", b"GET / HTTP/10.1\r\nHost: a\r\n\r\n", 505),
    ("something behind the version", b"GET / HTTP/1.1 x\r\nHost: a\r\n\r\n", 400),
    ("a line that starts with a colon", b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400),
    ("a line that starts with a space", b"GET / HTTP/1.1\r\nHost: a\r\n X: x\r\n\r\n", 400),
    ("a line that starts with a tab", b"GET / HTTP/1.1\r\nHost: a\r\n\tX: x\r\n\r\n", 400),
    ("DEL in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\x7f: x\r\n\r\n", 400),
    ("a tab in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX\t: x\r\n\r\n", 400),
    ("CR in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    ("CR in the end", b"GET / HTTP/1.1\r\nHost: a\r\n\rx", 400),
    ("an empty length", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    ("a list of lengths", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\nx", 400),
    ("a negative length", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    ("identity", b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501),
    ("an unknown coding and a length", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: x\r\n\r\n", 501),
    ("an empty coding", b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", 501),
    ("chunked twice", b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", 501),
    ("a length and a coding in 1.0", b"GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\nx", 400),
]
TWICE = [
    "Content-Length: 1", "Transfer-Encoding: chunked", "Content-Range: x", "Expect: x", "Authorization: x",
    "Proxy-Authorization: x", "If-Modified-Since: x", "If-Unmodified-Since: x", "If-Match: x", "If-None-Match: x",
    "If-Range: x",
]
OLD_TWICE = {"Proxy-Authorization: x"}


@pytest.mark.parametrize("name, data, status", BAD, ids=named(BAD))
def test_a_bad_head(shared, name, data, status):
    proxy = shared("location / { return 200 hello; }")
    wire = proxy.connect()
    wire.send(data)
    answer = wire.read_response()
    assert (answer.status, answer.get("Connection")) == (status, "close")


@pytest.mark.parametrize(
    "line", [pytest.param(t, marks=[differs("older ones do not look")] if t in OLD_TWICE else []) for t in TWICE]
)
def test_a_line_that_must_come_once(shared, line):
    proxy = shared("location / { return 200 hello; }")
    answer = proxy.ask(f"GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n{line}\r\n\r\nx")
    assert answer.status == 400
    proxy.logged(f'client sent duplicate header line: "{line}", previous value: "{line}"')


HEADERS = [
    ("X-A: 1", "[1]"),
    ("x-a:1", "[1]"),
    ("X-A:   1   ", "[1]"),
    ("X-A: \t1\t ", "[\t1\t]"),
    ("X-A", "[]"),
    ("X-A:", "[]"),
    ("X-A: 1\r\nX-A: 2", "[1, 2]"),
    ("X-A: a b\x80\xff", "[a b\x80\xff]"),
    ("X-A: 1\r", "[1]"),
    ("X_A: 1", "[]"),
    ("X@A: 1\r\nX-A: 2", "[2]"),
    ("X-A\x80: 1", "[]"),
]
OLD_HEADERS = {"X-A: 1\r\nX-A: 2": "older ones take the first"}


@pytest.mark.parametrize(
    "lines, body",
    [
        pytest.param(*row, id=repr(row[0]), marks=[differs(OLD_HEADERS[row[0]])] if row[0] in OLD_HEADERS else [])
        for row in HEADERS
    ],
)
def test_header_lines(shared, lines, body):
    proxy = shared("location / { return 200 [$http_x_a]; }")
    answer = proxy.ask(f"GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n")
    assert answer.body.decode("latin-1") == body


def test_an_odd_line_is_dropped_and_told(shared):
    proxy = shared("location / { return 200 x; }")
    proxy.get("/", "X@Y: 1")
    assert "[info]" in proxy.logged('client sent invalid header line: "X@Y: 1"')


def test_odd_lines_that_are_kept(shared):
    server = Upstream(answering(lambda r: response("|".join(r.names()).encode())))
    try:
        proxy = shared("ignore_invalid_headers off; location / { proxy_pass http://@up@; }", up=server.address)
        assert proxy.get("/", "X@Y: 1", "X_Z: 2").body.decode().endswith("X@Y|X_Z")
    finally:
        server.stop()


def test_pages_of_a_bad_line(shared):
    proxy = shared(
        "error_page 400 =200 /page; error_page 505 @named; location /page { return 200 page; } location @named { return 200 x; }"
    )
    assert proxy.ask("GET x HTTP/1.1\r\nHost: a\r\n\r\n").body == b"page"
    assert proxy.ask("GET / HTTP/2.0\r\nHost: a\r\n\r\n").status == 500
    proxy.logged('empty URI in redirect to named location "@named"')


# URIs.

URIS = [
    ("/a/./b", "/a/b"),
    ("/a/../b", "/b"),
    ("/a/b/../../c", "/c"),
    ("/a/.", "/a/"),
    ("/a/..", "/"),
    ("/a/...", "/a/..."),
    ("/..b", "/..b"),
    ("/.b", "/.b"),
    ("/a/.b/", "/a/.b/"),
    ("//", "/"),
    ("///a//b/", "/a/b/"),
    ("/a%2fb", "/a/b"),
    ("/a%2f%2fb", "/a/b"),
    ("/a/%2e%2e/b", "/b"),
    ("/a%2f..%2fb", "/b"),
    ("/%41%62", "/Ab"),
    ("/%3f%23%25", "/?#%"),
    ("/%2541", "/%41"),
    ("/%0a%01%7f", "/\n\x01\x7f"),
    ("/%E4%ff", "/\xe4\xff"),
    ("/\xe4\xff", "/\xe4\xff"),
    ("/a+b;c\\d|e", "/a+b;c\\d|e"),
    ("/a#b", "/a"),
    ("/a/#/../..", "/a/"),
    ("/..", None),
    ("/../a", None),
    ("/a/../..", None),
    ("/%2e%2e/a", None),
    ("/%", None),
    ("/%4", None),
    ("/%zz", None),
    ("/%00", None),
]


@pytest.mark.parametrize("target, uri", URIS, ids=named(URIS))
def test_uris(shared, target, uri):
    proxy = shared("location / { return 200 $uri|$request_uri; }")
    answer = proxy.ask(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
    if uri is None:
        assert answer.status == 400
    else:
        assert answer.body.decode("latin-1") == f"{uri}|{target}"


def test_slashes_that_are_not_merged(shared):
    proxy = shared("merge_slashes off; location / { return 200 $uri; }")
    got = {target: proxy.get(target).body.decode() for target in ("//a///b", "/a%2f%2fb", "/a//../b", "/a/.//b")}
    assert got == {"//a///b": "//a///b", "/a%2f%2fb": "/a//b", "/a//../b": "/a/b", "/a/.//b": "/a//b"}


# Locations.

LOCATIONS = """
location / { return 200 root; }
location = / { return 200 exact-root; }
location = /exact { return 200 exact; }
location /exact { return 200 prefix-of-exact; }
location /a { return 200 a; }
location /a/b { return 200 ab; }
location /a/b/c/ { return 200 abc; }
location ^~ /no { return 200 no; }
location ~ ^/re/(?<what>[a-z]+) { return 200 "re $what $1"; }
location ~ ^/re { return 200 re-second; }
location ~* \\.GIF$ { return 200 gif; }
location ~\\.glued$ { return 200 glued; }
location ~*\\.GLUED2$ { return 200 glued2; }
location =/glued3 { return 200 glued3; }
location ^~/glued4 { return 200 glued4; }
location /in/ {
    return 200 in;
    location /in/deep/ { return 200 deep; location /in/deep/er/ { return 200 deeper; } }
    location = /in/exact { return 200 in-exact; }
    location ~ x$ { return 200 in-regex; }
    location ^~ /in/no/ { return 200 in-no; }
}
location ^~ /stop/ { return 200 stop; location ~ x$ { return 200 stop-regex; } location /stop/deep/ { return 200 stop-deep; } }
location ~ ^/nest(ed)?/ { return 200 "nest [$1]"; location ~ (.)y$ { return 200 "nest-y $1"; } }
location "/with space" { return 200 space; }
location "/semi;{brace}" { return 200 semi; }
location /a%20b { return 200 literal-percent; }
"""
LOCATION_ROWS = [
    ("/", "exact-root"),
    ("/x", "root"),
    ("/exact", "exact"),
    ("/exact/", "prefix-of-exact"),
    ("/exactly", "prefix-of-exact"),
    ("/exact?x", "exact"),
    ("/a", "a"),
    ("/ab", "a"),
    ("/a/b", "ab"),
    ("/a/bc", "ab"),
    ("/a/b/c", "ab"),
    ("/a/b/c/", "abc"),
    ("/A", "root"),
    ("/a.gif", "gif"),
    ("/a/b/c/x.GiF", "gif"),
    ("/no/a.gif", "no"),
    ("/nothing.gif", "no"),
    ("/re/abc", "re abc abc"),
    ("/re/1", "re-second"),
    ("/re/abc.gif", "re abc abc"),
    ("/x.glued", "glued"),
    ("/x.gluED2", "glued2"),
    ("/glued3", "glued3"),
    ("/glued4.gif", "glued4"),
    ("/in/", "in"),
    ("/in/y", "in"),
    ("/in/deep/", "deep"),
    ("/in/deep/er/z", "deeper"),
    ("/in/exact", "in-exact"),
    ("/in/exact/", "in"),
    ("/in/x", "in-regex"),
    ("/in/deep/x", "in-regex"),
    ("/in/no/x", "in-no"),
    ("/in/a.gif", "gif"),
    ("/in/no/a.gif", "gif"),
    ("/stop/a.gif", "stop"),
    ("/stop/x", "stop-regex"),
    ("/stop/deep/a.gif", "stop-deep"),
    ("/nested/a", "nest [ed]"),
    ("/nest/a", "nest []"),
    ("/nested/zy", "nest-y z"),
    ("/with%20space/", "space"),
    ("/semi;{brace}", "semi"),
    ("/a%2520b", "literal-percent"),
    ("/a%20b", "a"),
    ("/%61", "a"),
    ("/x/../a", "a"),
    ("//a", "a"),
]


@pytest.mark.parametrize("target, body", LOCATION_ROWS, ids=named(LOCATION_ROWS))
def test_locations(shared, target, body):
    assert shared(LOCATIONS).get(target).body.decode() == body


def test_no_location_at_all(shared):
    proxy = shared("root html; location /x { return 200 x; }", files={"html/f": "file"})
    assert proxy.get("/f").body == b"file"
    assert proxy.get("/none").status == 404


AUTO = [
    ("location /p/ { proxy_pass http://@up@; }", "/p", 301, "/p/"),
    ("location /p/ { proxy_pass http://@up@; }", "/p?a=1&b", 301, "/p/?a=1&b"),
    ("location /p/ { proxy_pass http://@up@; }", "/p/", 200, None),
    ("location /p/ { proxy_pass http://@up@; } location = /p { return 201; }", "/p", 201, None),
    ("location /p/ { proxy_pass http://@up@; } location /p { return 201; }", "/p", 201, None),
    ("location /p/ { proxy_pass http://@up@; }", "/px", 404, None),
    ("location /p/ { root html; }", "/p", 404, None),
    ("location /p/ { uwsgi_pass 127.0.0.1:1; }", "/p", 301, "/p/"),
    ("location ^~ /p/ { proxy_pass http://@up@; }", "/p", 301, "/p/"),
    ("location '/p q/' { proxy_pass http://@up@; }", "/p%20q", 301, "/p%20q/"),
    ("location /o/ { location /o/p/ { proxy_pass http://@up@; } }", "/o/p", 301, "/o/p/"),
    ("location /p/ { internal; proxy_pass http://@up@; }", "/p", 404, None),
    ("location /p/ { internal; proxy_pass http://@up@; } location /q { rewrite ^ /p last; }", "/q", 301, "/p/"),
]


@pytest.fixture(scope="module")
def hello():
    server = Upstream(answering(lambda r: response(r.target.encode())))
    yield server
    server.stop()


@pytest.mark.parametrize("server, target, status, location", AUTO, ids=[f"{row[0]} {row[1]}"[:70] for row in AUTO])
def test_a_slash_is_added_for_an_upstream(shared, hello, server, target, status, location):
    proxy = shared(server, up=hello.address)
    answer = proxy.get(target)
    assert (answer.status, answer.get("Location")) == (status, location and f"http://example.com:{proxy.port}{location}")


def test_a_body_is_too_large_also_for_a_slash(shared, hello):
    proxy = shared("location /p/ { client_max_body_size 1; proxy_pass http://@up@; }", up=hello.address)
    assert [proxy.get("/p", method="POST", body=body).status for body in (b"1", b"12")] == [301, 413]


INTERNAL = [
    ("/i", 404),
    ("/i/nested", 404),
    ("/by-error", 200),
    ("/by-try", 200),
    ("/by-last", 200),
    ("/by-server", 200),
    ("/by-index/", 200),
    ("/by-named", 200),
    ("/by-break", 200),
]


@pytest.mark.parametrize("target, status", INTERNAL)
def test_internal(shared, target, status):
    proxy = shared(
        """
        rewrite ^/by-server$ /i;
        location /i { internal; default_type a/b; alias html/index; location /i/nested { } }
        location /by-error { error_page 404 =200 /i; return 404; }
        location /by-try { try_files /none /i; }
        location /by-last { rewrite ^ /i last; }
        location /by-index/ { root html; index /i; }
        location /by-named { error_page 404 = @i; return 404; }
        location /by-break { rewrite ^ /index break; root html; }
        location @i { internal; return 200 x; }
        """,
        files={"html/index": "inside"},
    )
    answer = proxy.get(target)
    assert answer.status == status


NAMED = [
    (r"location ~ ^/u/(?<user>\w+)/ { location ~ \.(?<ext>\w+)$ { return 200 [$user][$ext]; } }", "/u/bob/a.png", "[bob][png]"),
    (r"location ~ ^/u/(?<user>\w+)/ { location ~ \.(?<ext>\w+)$ { return 200 [$user][$ext][$1]; } }", "/u/bob/a.png", "[bob][png][png]"),
    (r"location ~ ^/u/(?<user>\w+)/ { location ~ \.(?<ext>\w+)$ { } return 200 [$user][$ext]; }", "/u/bob/a", "[bob][]"),
    (r"location ~ ^/u/(?<user>\w+)/ { location ~ /(?<user>\w+)$ { return 200 [$user]; } }", "/u/bob/ann", "[ann]"),
    (r"location ~ ^/u/(?<user>\w+)/ { location ~ ^/u/\w+/(?<dir>\w+)/ { location ~ \.(?<ext>\w+)$ { return 200 [$user][$dir][$ext]; } } }", "/u/bob/d/a.gif", "[bob][d][gif]"),
    (r"location ~ ^/u/(?<user>\w+)/ { location ~ \.x$ { } } location ~ ^/(?<other>.*) { return 200 [$user][$other]; }", "/v/a", "[][v/a]"),
]


@pytest.mark.parametrize("server, target, body", NAMED, ids=[f"{row[0]} {row[1]}"[:90] for row in NAMED])
def test_named_captures_of_nested_locations(shared, server, target, body):
    proxy = shared(server.replace("return 200 [", "return 200 '[").replace("];", "]';"))
    assert proxy.get(target).body.decode() == body


REDIRECTED = [
    ("location /a { error_page 404 /b; return 404; } location /b { return 200 '$uri $args $request_uri'; }", "/a?x=1", "404 /b  /a?x=1"),
    ("location /a { error_page 404 /b?$args; return 404; } location /b { return 200 '$uri $args'; }", "/a?x=1", "404 /b x=1"),
    ("location /a { error_page 404 = @n; return 404; } location @n { return 200 '$uri $args'; }", "/a?x=1", "200 /a x=1"),
    ("location /a { error_page 404 = @none; return 404; }", "/a", "500 "),
    ("location /a { try_files /none /b; } location /b { set $x $uri; rewrite ^ /c last; } location /c { return 200 $x; }", "/a", "200 /b"),
    ("set $s $uri; location /a { try_files /n /b; } location /b { return 200 $s; }", "/a", "200 /b"),
    ("set $s $uri; location /a { rewrite ^ /b last; } location /b { return 200 $s; }", "/a", "200 /a"),
    ("set $s $uri; location /a { try_files /n @b; } location @b { return 200 '$s $uri'; }", "/a", "200 /a /a"),
    ("location /a { try_files /n @b; } location @b { rewrite ^ /c; } location /c { return 200 '$uri'; }", "/a", "200 /c"),
    ("location @a { return 200 x; } location / { root none; }", "/@a", "404 "),
]


@pytest.mark.parametrize("server, target, expected", REDIRECTED, ids=[f"{row[0]} {row[1]}"[:90] for row in REDIRECTED])
def test_redirects_within(shared, server, target, expected):
    answer = shared(server).get(target)
    text = answer.body.decode() if b"<html>" not in answer.body else ""
    assert f"{answer.status} {text}" == expected


# Connections.

KEPT = [
    ("", "", True),
    ("", "Connection: close", False),
    ("", "Connection: CLOSE", False),
    ("", "Connection: keep-alive, close", False),
    ("", "Connection: x-closed", False),
    ("", "Connection: keep-alive\r\nConnection: close", False),
    ("", "Connection: close\r\nConnection: keep-alive", True),
    ("", "Connection: something", True),
    ("keepalive_timeout 0;", "", False),
    ("keepalive_requests 1;", "", False),
    ("keepalive_disable none;", "User-Agent: Mozilla/4.0 (compatible; MSIE 6.0; Windows)", True),
    ("", "User-Agent: Mozilla/4.0 (compatible; MSIE 6.0; Windows)", True),
    ("keepalive_disable safari;", "User-Agent: (Macintosh; Mac OS X) Safari/5", False),
    ("keepalive_disable safari;", "User-Agent: (Windows) Safari/5", True),
    ("keepalive_disable msie6 safari;", "User-Agent: (Macintosh; Mac OS X) Safari/5", False),
    ("", "User-Agent: (Macintosh; Mac OS X) Safari/5", True),
    ("return 400;", "", False),
    ("return 404;", "", True),
    ("return 413;", "", False),
    ("return 414;", "", False),
    ("return 500;", "", False),
    ("return 501;", "", False),
    ("return 502;", "", True),
    ("return 403;", "", True),
]


@pytest.mark.parametrize("settings, lines, kept", KEPT, ids=[f"{row[0]} {row[1]}"[:70] for row in KEPT])
def test_who_keeps_a_connection(shared, settings, lines, kept):
    proxy = shared(f"location / {{ {settings} return 200 x; }}")
    wire = proxy.connect()
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n" + (f"{lines}\r\n" if lines else "") + "\r\n")
    assert wire.read_response().get("Connection") == ("keep-alive" if kept else "close")
    if kept:
        wire.send(GET)
        assert wire.read_response().start.startswith("HTTP/1.1")
    else:
        wire.finish()
        wire.expect_end()


REACHED = [
    ("location / { keepalive_timeout 0; error_page 404 /e; return 404; } location /e { return 200 e; }", False),
    ("location / { error_page 404 /e; return 404; } location /e { keepalive_timeout 0; return 200 e; }", False),
    ("location / { error_page 404 /e; return 404; } location /e { return 200 e; }", True),
    ("location / { keepalive_requests 1; error_page 404 @e; return 404; } location @e { return 200 e; }", False),
    ("location / { error_page 404 @e; return 404; } location @e { keepalive_timeout 0; return 200 e; }", False),
    ("location / { keepalive_timeout 0; rewrite ^ /e last; } location /e { return 200 e; }", False),
    ("keepalive_timeout 0; location / { keepalive_timeout 60s; return 200 x; }", True),
    ("keepalive_timeout 0; location / { keepalive_timeout 60s; rewrite ^ /e last; } location /e { keepalive_timeout 60s; return 200 x; }", True),
    ("keepalive_timeout 0; location / { keepalive_timeout 60s; try_files /n /e; } location /e { keepalive_timeout 60s; return 200 x; }", False),
    ("location / { limit_except POST { allow all; } keepalive_timeout 0; return 200 x; }", False),
]


@pytest.mark.parametrize("server, kept", REACHED, ids=[row[0][:90] for row in REACHED])
def test_every_location_reached_can_end_a_connection(shared, server, kept):
    wire = shared(server).connect()
    wire.send(GET)
    assert wire.read_response().get("Connection") == ("keep-alive" if kept else "close")


def test_an_old_msie_that_has_posted(shared):
    proxy = shared("location / { error_page 404 /e; return 404; } location /e { return 200 e; }")
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nUser-Agent: MSIE 6.0; Windows\r\nContent-Length: 0\r\n\r\n")
    assert wire.read_response().get("Connection") == "close"


MSIE = [
    ("MSIE 6.0; Windows", "POST", False),
    ("MSIE 5.5; Windows", "POST", False),
    ("MSIE 6.0; Windows; SV1", "POST", True),
    ("MSIE 7.0; Windows", "POST", True),
    ("MSIE 6.0; Windows", "GET", True),
    ("MSIE 6.0; Windows) Opera 8", "POST", True),
]


@pytest.mark.parametrize("agent, method, kept", MSIE, ids=[f"{row[0]} {row[1]}" for row in MSIE])
def test_an_old_msie_that_posts(shared, agent, method, kept):
    proxy = shared("location / { return 200 x; }")
    wire = proxy.connect()
    wire.send(f"{method} / HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\nContent-Length: 0\r\n\r\n")
    assert wire.read_response().get("Connection") == ("keep-alive" if kept else "close")


REFRESH = [
    ("msie_refresh on; return 301 /to;", "MSIE 9.0; x", 200),
    ("msie_refresh on; return 302 /to;", "MSIE 9.0; x", 200),
    ("msie_refresh on; return 303 /to;", "MSIE 9.0; x", 303),
    ("msie_refresh on; return 301 /to;", "Firefox", 301),
    ("msie_refresh on; return 301 /to;", "MSIE 9.0; Opera", 301),
    ("return 301 /to;", "MSIE 9.0; x", 301),
]


@pytest.mark.parametrize("settings, agent, status", REFRESH)
def test_msie_refresh(shared, settings, agent, status):
    answer = shared(f"location / {{ {settings} }}").get("/", f"User-Agent: {agent}")
    assert answer.status == status
    if status == 200:
        page = b'<html><head><meta http-equiv="Refresh" content="0; URL=/to"></head><body></body></html>\r\n'
        assert (answer.body, answer.get("Content-Type"), answer.get("Location")) == (page, "text/html", None)


def test_the_keepalive_timeout_is_that_of_the_location(shared):
    proxy = shared("keepalive_timeout 60s; location / { return 200 x; } location /short { keepalive_timeout 300ms; return 200 x; }")
    wire = proxy.connect()
    wire.send(GET)
    wire.read_response()
    wire.send(GET.replace(b" / ", b" /short "))
    wire.read_response()
    wire.expect_end()


@differs("older ones do not know keepalive_min_timeout")
def test_keepalive_min_timeout(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; keepalive_min_timeout 700ms; return 200 x; }")
    wire, other = proxy.connect(), proxy.connect()
    wire.send(GET)
    wire.read_response()
    proxy.signal(signal.SIGQUIT)
    # Neither is it closed, nor is it too late to ask.
    wire.expect_silence(0.2)
    wire.send(GET)
    assert wire.read_response().body == b"x"
    wire.expect_end()
    other.close()
    assert proxy.wait() == 0


def test_keepalive_time(shared):
    proxy = shared("keepalive_time 300ms; location / { return 200 x; }")
    wire = proxy.connect()
    wire.send(GET)
    assert wire.read_response().get("Connection") == "keep-alive"
    began = time.monotonic()
    while time.monotonic() - began < 0.5:
        wire.expect_silence(0.1)
    wire.send(GET)
    assert wire.read_response().get("Connection") == "close"


LINGER = [
    # How, whether the client's late bytes are taken without a reset.
    ("lingering_close on;", True),
    ("lingering_close always;", True),
    ("lingering_close off;", False),
]


@pytest.mark.parametrize("settings, lingers", LINGER)
def test_lingering(shared, settings, lingers):
    proxy = shared(f"{settings} client_max_body_size 1; location / {{ return 200 x; }}")
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + bytes(1000))
    assert wire.read_response().status == 413
    if lingers:
        for _ in range(5):
            wire.send(bytes(1000))
        wire.finish()
        wire.expect_end()
        assert not wire.was_reset
    else:
        assert wire.read_to_end() == b""


def test_lingering_has_an_end(shared):
    proxy = shared("lingering_timeout 300ms; client_max_body_size 1; location / { return 200 x; }")
    wire = proxy.connect()
    wire.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
    assert wire.read_response().status == 413
    proxy.accessed(1)


RESET = [
    ("client_header_timeout 300ms;", b"GET / HT", True),
    ("client_header_timeout 300ms;", b"", False),
    ("client_body_timeout 300ms;", b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n1", True),
    ("keepalive_timeout 300ms;", GET, False),
    ("", b"GET /444 HTTP/1.1\r\nHost: a\r\n\r\n", True),
]


@pytest.mark.parametrize("settings, data, is_reset", RESET, ids=[f"{row[0]} {row[1][:12]}" for row in RESET])
def test_reset_timedout_connection(shared, hello, settings, data, is_reset):
    proxy = shared(
        f"{settings} reset_timedout_connection on; location / {{ return 200 x; }} location /444 {{ return 444; }}"
        " location /up { proxy_pass http://@up@; }",
        up=hello.address,
    )
    wire = proxy.connect()
    wire.send(data)
    if data == GET:
        wire.read_response()
    wire.expect_end()
    assert wire.was_reset == is_reset


# What is said of listen, server_name and location.

SAID = [
    ("listen 0;", '[emerg] invalid port in "0" of the "listen" directive in F:6'),
    ("listen 65536;", '[emerg] invalid port in "65536" of the "listen" directive in F:6'),
    ("listen 127.0.0.1:x;", '[emerg] invalid port in "127.0.0.1:x" of the "listen" directive in F:6'),
    ("listen :80;", '[emerg] no host in ":80" of the "listen" directive in F:6'),
    ("listen [::1;", '[emerg] invalid host in "[::1" of the "listen" directive in F:6'),
    ("listen [x]:80;", '[emerg] invalid IPv6 address in "[x]:80" of the "listen" directive in F:6'),
    ("listen unix:;", '[emerg] no path in the unix domain socket in "unix:" of the "listen" directive in F:6'),
    ("listen 127.0.0.1:9-8;", '[emerg] invalid port range in "127.0.0.1:9-8" of the "listen" directive in F:6'),
    ("listen nosuch.invalid:80;", '[emerg] host not found in "nosuch.invalid:80" of the "listen" directive in F:6'),
    ("listen 8080 foo;", '[emerg] invalid parameter "foo" in F:6'),
    ("listen 8080 backlog=x;", '[emerg] invalid backlog "backlog=x" in F:6'),
    ("listen 8080 backlog=0;", '[emerg] invalid backlog "backlog=0" in F:6'),
    ("listen 8080 rcvbuf=x;", '[emerg] invalid rcvbuf "rcvbuf=x" in F:6'),
    ("listen 8080 sndbuf=x;", '[emerg] invalid sndbuf "sndbuf=x" in F:6'),
    ("listen 8080 fastopen=x;", '[emerg] invalid fastopen "fastopen=x" in F:6'),
    ("listen 8080 so_keepalive=x;", '[emerg] invalid so_keepalive value: "x" in F:6'),
    ("listen 8080 so_keepalive=::;", '[emerg] invalid so_keepalive value: "::" in F:6'),
    ("listen 8080 so_keepalive=0;", '[emerg] invalid so_keepalive value: "0" in F:6'),
    ("listen 8080 so_keepalive=0:0:0;", '[emerg] invalid so_keepalive value: "0:0:0" in F:6'),
    ("listen 8080 so_keepalive=::0;", '[emerg] invalid so_keepalive value: "::0" in F:6'),
    (
        "listen 8080 accept_filter=x;",
        '[emerg] accept filters "accept_filter=x" are not supported on this platform, ignored in F:6',
    ),
    ("listen [::]:8080 ipv6only=x;", '[emerg] invalid parameter "ipv6only=x" in F:6'),
    ("listen 8080; listen 8080;", "[emerg] a duplicate listen 0.0.0.0:8080 in F:6"),
    ("listen;", '[emerg] invalid number of arguments in "listen" directive in F:6'),
    ("server_name *;", '[emerg] server name "*" is invalid in F:6'),
    ("server_name *.;", '[emerg] server name "*." is invalid in F:6'),
    ("server_name .;", '[emerg] server name "." is invalid in F:6'),
    ("server_name a/b;", '[warn] server name "a/b" has suspicious symbols in F:6'),
    ("server_name ~^a/b$;", '[warn] server name "~^a/b$" has suspicious symbols in F:6'),
    ("sendfile on; sendfile off;", '[emerg] "sendfile" directive is duplicate in F:6'),
    ("aio threads; aio off;", '[emerg] "aio" directive is duplicate in F:6'),
    ("aio foo;", '[emerg] "aio" directive invalid value in F:6'),
    ("proxy_headers_hash_max_size x;", '[emerg] "proxy_headers_hash_max_size" directive invalid number in F:6'),
    ("server_name ~;", '[emerg] empty regex in server name "~" in F:6'),
    ("server_name ~(;", '[emerg] pcre2_compile() failed: missing closing parenthesis in "(" in F:6'),
    ("location / { } location / { }", '[emerg] duplicate location "/" in F:6'),
    ("location /a { location /b { } }", '[emerg] location "/b" is outside location "/a" in F:6'),
    ("location = /a { location /a/b { } }", '[emerg] location "/a/b" cannot be inside the exact location "/a" in F:6'),
    ("location @a { location /b { } }", '[emerg] location "/b" cannot be inside the named location "@a" in F:6'),
    ("location /a { location @b { } }", '[emerg] named location "@b" can be on the server level only in F:6'),
    ("location ! /a { }", '[emerg] invalid location modifier "!" in F:6'),
    ("location ~ ( { }", '[emerg] pcre2_compile() failed: missing closing parenthesis in "(" in F:6'),
    ("internal;", '[emerg] "internal" directive is not allowed here in F:6'),
    ("keepalive_disable opera;", '[emerg] invalid value "opera" in F:6'),
    ("keepalive_disable msie6 msie6;", '[warn] duplicate value "msie6" in F:6'),
    ("msie_refresh x;", '[emerg] invalid value "x" in "msie_refresh" directive, it must be "on" or "off" in F:6'),
    ("lingering_close maybe;", '[emerg] invalid value "maybe" in F:6'),
    ("keepalive_timeout x;", '[emerg] "keepalive_timeout" directive invalid value in F:6'),
    ("keepalive_requests x;", '[emerg] "keepalive_requests" directive invalid number in F:6'),
    ("location / { client_header_timeout 1s; }", '[emerg] "client_header_timeout" directive is not allowed here in F:6'),
    ("log_subrequest x;", '[emerg] invalid value "x" in "log_subrequest" directive, it must be "on" or "off" in F:6'),
    ("error_page 600 /x;", '[emerg] value "600" must be between 300 and 599 in F:6'),
    ("error_page 499 /x;", '[emerg] invalid value "499" in F:6'),
    ("error_page 404 =x /x;", '[emerg] invalid value "=x" in F:6'),
    ("error_page x /x;", '[emerg] invalid value "x" in F:6'),
]

@pytest.mark.parametrize("text, expected", SAID, ids=named(SAID))
def test_what_is_said_when_it_is_read(refused, text, expected):
    said = refused(text)
    assert said and said[0].replace("pcre_compile() failed: missing )", "pcre2_compile() failed: missing closing parenthesis") == expected


TWO = [
    (
        "server { listen 127.0.0.1:@port@; server_name a; } server { listen 127.0.0.1:@port@; server_name a; }",
        '[warn] conflicting server name "a" on 127.0.0.1:@port@, ignored',
    ),
    (
        "server { listen 127.0.0.1:@port@ default_server; } server { listen 127.0.0.1:@port@ default_server; }",
        "[emerg] a duplicate default server for 127.0.0.1:@port@ in F:3",
    ),
    (
        "server { listen 127.0.0.1:@port@ backlog=9; } server { listen 127.0.0.1:@port@ backlog=9; }",
        "[emerg] duplicate listen options for 127.0.0.1:@port@ in F:3",
    ),
    (
        "server { listen 127.0.0.1:@port@; server_name a*b; } server { listen 127.0.0.1:@port@; server_name c; }",
        '[emerg] invalid server name or wildcard "a*b" on 127.0.0.1:@port@',
    ),
]


@pytest.mark.parametrize("http, expected", TWO, ids=[row[1][:40] for row in TWO])
def test_what_is_said_of_two_servers(refused, http, expected):
    port = str(free_port())
    assert expected.replace("@port@", port) in refused("return 200;", http.replace("@port@", port))


# Who has `proxy_protocol` and who has the socket's options, server by server, and how often it is told that
# they do not agree.
PROTOCOLS = [
    (("proxy_protocol", ""), 0),
    (("", "proxy_protocol"), 0),
    (("reuseport", "proxy_protocol"), 1),
    (("proxy_protocol", "reuseport"), 1),
    (("reuseport proxy_protocol", ""), 0),
    (("", "reuseport proxy_protocol"), 0),
    (("proxy_protocol", "", "proxy_protocol"), 1),
    (("proxy_protocol", "", "reuseport"), 1),
    (("", "proxy_protocol", ""), 0),
    (("proxy_protocol", "proxy_protocol", ""), 1),
]


@differs("older than 1.25.1")
@pytest.mark.parametrize("servers, times", [row for row in PROTOCOLS if row[1]], ids=lambda row: str(row))
def test_servers_that_do_not_agree_on_a_protocol(refused, servers, times):
    told_of_protocols(refused, servers, times)


@pytest.mark.parametrize("servers, times", [row for row in PROTOCOLS if not row[1]], ids=lambda row: str(row))
def test_servers_that_agree_on_a_protocol(refused, servers, times):
    told_of_protocols(refused, servers, times)


def told_of_protocols(refused, servers, times):
    port = free_port()
    http = "".join(f"server {{ listen 127.0.0.1:{port} {options}; server_name s{n}; }}" for n, options in enumerate(servers))
    said = refused("return 200;", http)
    assert said == [f"[warn] protocol options redefined for 127.0.0.1:{port} in F:3"] * times


@pytest.mark.parametrize("earlier, host", [("example.com", "x.example.com"), ("*.example.com", "example.com")])
def test_a_name_for_two_in_conflict_is_ignored_whole(serve, earlier, host):
    proxy = serve(
        f"""
        server {{ listen 127.0.0.1:@port@; return 200 default; }}
        server {{ listen 127.0.0.1:@port@; server_name {earlier}; return 200 earlier; }}
        server {{ listen 127.0.0.1:@port@; server_name .example.com; return 200 later; }}
        """
    )
    assert proxy.get("/", host=earlier.replace("*", "y")).body == b"earlier"
    assert proxy.get("/", host=host).body == b"default"


IN_REGEX = "location ~ /p { location /p/ { return 200 in; } location = /p { return 200 in; } location ~ q { return 200 q; } return 200 out; }"


def test_in_a_regex_location_only_regexes_are_looked_at(shared):
    proxy = shared(IN_REGEX)
    assert [proxy.get(target).body for target in ("/p/x", "/p", "/p/q")] == [b"out", b"out", b"q"]


@pytest.mark.ringx_only("nginx says nothing")
def test_a_location_that_is_never_used_is_told(refused):
    text = "is never used: in a regex location only regexes are looked at in F:6"
    assert refused(IN_REGEX) == [f'[warn] location "{name}" {text}' for name in ("/p/", "/p")]


LISTEN = [
    ("{0}", "127.0.0.1"),
    ("*:{0}", "127.0.0.1"),
    ("127.0.0.1:{0}", "127.0.0.1"),
    ("localhost:{0}", "127.0.0.1"),
    ("[::1]:{0}", "::1"),
    ("[::]:{0}", "::1"),
    ("[::]:{0} ipv6only=off", "127.0.0.1"),
    ("{0} bind backlog=10 rcvbuf=64k sndbuf=64k deferred", "127.0.0.1"),
    ("{0} so_keepalive=on", "127.0.0.1"),
    ("{0} so_keepalive=30m::10", "127.0.0.1"),
    ("{0} so_keepalive=0::10", "127.0.0.1"),
    ("{0} reuseport fastopen=5", "127.0.0.1"),
    ("{0} default", "127.0.0.1"),
    ("127.0.0.1:{0}-{1}", "127.0.0.1"),
]


@pytest.mark.parametrize("form, address", LISTEN, ids=named(LISTEN))
def test_forms_of_listen(proxy, form, address):
    port = free_port()
    started = proxy(
        f"events {{ }} http {{ server {{ listen {form.format(port, port + 1)}; return 200 \"$server_addr $server_port\"; }} }}"
    )
    assert started.process.poll() is None
    with Wire(socket.create_connection((address, port), 5)) as wire:
        wire.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        body = wire.read_response().body.decode()
    assert body.split(" ")[-1] == str(port)


def test_a_unix_socket(proxy, tmp_path):
    path = tmp_path / "socket"
    started = proxy(f"events {{ }} http {{ server {{ listen unix:{path}; return 200 '$remote_addr|$server_addr|$remote_port'; }} }}")
    assert os.stat(path).st_mode & 0o777 == 0o666
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    with Wire(sock) as wire:
        wire.send(GET)
        assert wire.read_response().body.decode() == f"unix:|unix:{path}|"
    started.stop()
    assert not path.exists()


def test_an_exact_address_beside_the_wildcard(proxy):
    port = free_port()
    started = proxy(
        f"events {{ }} http {{ server {{ listen {port}; return 200 wildcard; }}"
        f" server {{ listen 127.0.0.2:{port}; return 200 exact; }} }}"
    )
    assert started.process.poll() is None
    for address, body in {"127.0.0.1": b"wildcard", "127.0.0.2": b"exact", "127.0.0.3": b"wildcard"}.items():
        with Wire(socket.create_connection((address, port), 5)) as wire:
            wire.send(GET)
            assert wire.read_response().body == body


# Heads and redirects that do not fit into a table of their own.

MORE = [
    # server, request, status, fields, body
    ("return 302 /x;", "GET / HTTP/1.0\r\n\r\n", 302, {"Location": "http://127.0.0.1:@port@/x"}, None),
    ("return 200 text;", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 200, {"Content-Length": "4"}, b""),
    ("return 200 text;", "GET / HTTP/1.1\r\nHost: a\r\nRange: bytes=0-1\r\n\r\n", 200, {"Accept-Ranges": None}, b"text"),
    ("return 404;", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", 404, {"Content-Type": "text/html"}, b""),
    ("error_page 302 =200 /p; location / { return 302 /y; } location /p { return 200 p; }", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200, {}, b"p"),
    ("error_page 404 /none.html; root html;", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 404, {"Content-Type": "text/html"}, None),
    ("error_page 404 =301 http://b/; return 404;", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 301, {"Location": "http://b/"}, None),
    ("error_page 404 =418 http://b/; return 404;", "GET /x HTTP/1.1\r\nHost: a\r\n\r\n", 302, {"Location": "http://b/"}, None),
    ("location / { error_page 404 = /f; return 404; } location /f { return 418; }", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 418, {}, b""),
    ("location / { error_page 404 /f; return 404; } location /f { return 403; }", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 403, {}, None),
    ("location / { error_page 404 /f; return 404; } location /f { return 302 /z; }", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 302, {"Location": "http://a:@port@/z"}, None),
    ("location / { error_page 405 /f; return 405; } location /f { return 200 $request_method; }", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405, {}, b"GET"),
    ("location / { error_page 405 @f; return 405; } location @f { return 200 $request_method; }", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", 405, {}, b"POST"),
    ("location / { error_page 404 =204 /f; return 404; } location /f { return 200 body; }", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 204, {}, b""),
    ("error_page 400 =222 /f; location / { return 200 x; } location /f { return 200 '$uri [$request_uri]'; }", "GET /x y HTTP/1.1\r\nHost: a\r\n\r\n", 222, {}, b"/f []"),
    ("error_page 400 =222 /f; location / { return 200 x; } location /f { return 200 '$uri [$request_uri]'; }", "GET /x HTTP/1.1\r\n\r\n", 222, {}, b"/f [/x]"),
    ("root html; location /v { root $arg_r; index index.$arg_i; }", "GET /v/?r=@prefix@/html&i=txt HTTP/1.1\r\nHost: a\r\n\r\n", 200, {}, b"by variable"),
    ("location ~ ^/(?<a>.)(.) { if ($arg_x ~ (z)) { } return 200 $1$2$a; }", "GET /bc?x=y HTTP/1.1\r\nHost: a\r\n\r\n", 200, {}, b"b"),
    ("location ~ ^/(.)(.) { if ($arg_x ~ (y)) { } return 200 [$1$2]; }", "GET /bc?x=y HTTP/1.1\r\nHost: a\r\n\r\n", 200, {}, b"[y]"),
    ("break; return 200 server; location / { return 200 location; }", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 200, {}, b"location"),
    ("root html; max_ranges 1; add_header X 1 always;", "GET /f HTTP/1.1\r\nHost: a\r\nRange: bytes=9-\r\n\r\n", 416, {"Content-Range": "bytes */4"}, None),
    ("root html; error_page 416 =200 /f;", "GET /f HTTP/1.1\r\nHost: a\r\nRange: bytes=9-\r\n\r\n", 416, {}, None),
    ("root html; error_page 412 =222 /p; location /p { return 200 p; }", 'GET /f HTTP/1.1\r\nHost: a\r\nIf-Match: "x"\r\n\r\n', 222, {}, b"p"),
]


@pytest.mark.parametrize("server, request_, status, fields, body", MORE, ids=[f"{row[0]} {row[1][:20]!r}"[:90] for row in MORE])
def test_more(shared, server, request_, status, fields, body):
    proxy = shared(server, files={"html/f": "file", "html/v/index.txt": "by variable"})
    answer = proxy.ask(request_.replace("@prefix@", str(proxy.prefix)))
    assert answer.status == status
    assert {name: answer.get(name) for name in fields} == {name: v and proxy.fill(v) for name, v in fields.items()}
    if body is not None:
        assert answer.body == body


@differs("it passes a decoded line feed on as it is")
def test_a_line_feed_of_the_uri_ends_no_line(shared):
    proxy = shared("return 302 /x$uri;")
    answer = proxy.ask("GET /a%0d%0aX:%20y HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (answer.status, answer.get("X")) == (302, None)
    assert answer.get("Location") == proxy.fill("http://a:@port@/x/a%0D%0AX: y")


@differs("it adds the line twice")
def test_a_416_has_what_is_added_always(shared):
    proxy = shared("root html; max_ranges 1; add_header X 1 always;", files={"html/f": "file"})
    assert proxy.get("/f", "Range: bytes=9-").all("X") == ["1"]


LOGGED = [
    ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1|200|27"),
    ("GET /" + "x" * 9000 + " HTTP/1.1\r\nHost: a\r\n\r\n", "GET /" + "x" * 8187 + "|414|0"),
    ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", "GET x HTTP/1.1|400|0"),
    ("GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", "GET /%zz HTTP/1.1|400|19"),
    ("GET /%zz\r\n", "GET /%zz|400|10"),
    ("G\x01T / HTTP/1.1\r\nHost: a\r\n\r\n", "G\\x01T / HTTP/1.1|400|0"),
    ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "GET / HTTP/1.1|400|27"),
    ("GET / HTTP/1.1\r\nX: " + "x" * 9000 + "\r\nHost: a\r\n\r\n", "GET / HTTP/1.1|400|16"),
    ("GET / HTTP/1.1\r\nX: 1\r\nY\x01: 2\r\n\r\n", "GET / HTTP/1.1|400|22"),
    ("GET / HTTP/1.1\r\nX: 1\r\n\r\n", "GET / HTTP/1.1|400|24"),
    ("GET /\r\n", "GET /|200|7"),
    ("\x16\x03\x01\x02\x00\x01", "\\x16\\x03\\x01\\x02\\x00\\x01|400|0"),
]


@pytest.mark.parametrize("data, line", LOGGED, ids=[repr(row[0][:20]) for row in LOGGED])
def test_what_the_log_shows_of_a_request(serve, data, line):
    proxy = serve(
        "log_format l '$request|$status|$request_length'; access_log logs/l.log l;"
        "server { listen 127.0.0.1:@port@; location / { return 200 x; } }"
    )
    wire = proxy.connect()
    wire.send(data)
    wire.finish()
    wire.read_to_end()
    assert proxy.accessed(1, "l.log")[0].startswith(line)
