"""What becomes of an upstream's response head: accepted or not, hidden, rewritten, acted on."""

import re
import threading

import pytest

from harness.packet import read_packet
from harness.proxied import MODERN
from harness.upstream import answering, chunked, response

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
EPOCH = "Thu, 01 Jan 1970 00:00:01 GMT"


@pytest.fixture
def through(serve, upstream):
    """`through(answer, directives)`: /app/ is proxied without a URI part, /uri/ with one."""

    def start(answer, directives="", http="", server="", more=""):
        scripted = upstream(answering(answer))
        proxy = serve(
            f"""
            log_format exchange '$status $upstream_status';
            access_log logs/access.log exchange;
            {http}
            server {{
                listen 127.0.0.1:@port@;
                {MODERN}
                {server}
                location /app/ {{ proxy_pass http://@upstream@; {directives} }}
                location /uri/ {{ proxy_pass http://@upstream@/base/; {directives} }}
                location = /page {{ return 200 page; }}
                location @named {{ return 200 "named $uri$is_args$args $request_method"; }}
                location /inner {{ internal; return 200 "inner $uri$is_args$args $request_method"; }}
                location /files/ {{ alias html/; }}
                {more}
            }}
            """,
            upstream=scripted.address,
        )
        (proxy.prefix / "html/file.css").write_text("0123456789")
        proxy.upstream = scripted
        return proxy

    return start


def own(answer) -> list[str]:
    """The lines that are not about the connection, without Server and Date."""
    mine = ("server", "date", "connection", "content-length", "transfer-encoding")
    return [line for line in answer.lines()[1:] if line.split(":")[0].lower() not in mine]


# The status line.


@pytest.mark.parametrize(
    "line, shown",
    [
        ("HTTP/1.1 200 OK", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 200 ", "HTTP/1.1 200 "),
        ("HTTP/1.1 200", "HTTP/1.1 200"),
        ("HTTP/1.0 200 Fine, thanks", "HTTP/1.1 200 Fine, thanks"),
        ("HTTP/1.1 404 Gone Fishing", "HTTP/1.1 404 Gone Fishing"),
        ("HTTP/1.9 299 x", "HTTP/1.1 299 x"),
        ("HTTP/1.1   200 OK", "HTTP/1.1 200 OK"),
        ("HTTP/1.1 999 Nine", "HTTP/1.1 999 Nine"),
        ("HTTP/1.1 600 Six", "HTTP/1.1 600 Six"),
    ],
)
def test_status_lines(through, line, shown):
    proxy = through(line.encode() + b"\r\nContent-Length: 2\r\n\r\nok")
    assert proxy.get("/app/").start == shown


def test_a_sub_code_is_passed_on(through):
    with through(b"HTTP/1.1 403.1 Foo bar\r\nContent-Length: 2\r\n\r\nok").connect() as wire:
        wire.send("GET /app/ HTTP/1.1\r\nHost: h\r\n\r\n")
        assert wire.read_head().start == "HTTP/1.1 403.1 Foo bar"


@differs("it passes the rest on, without a head")
@pytest.mark.parametrize("method, status, body", [("GET", 200, b"second"), ("POST", 502, None)])
def test_the_late_body_of_a_head_is_no_answer_to_the_next_request(serve, upstream, method, status, body):
    """A connection that was kept has not spoken HTTP/0.9: another one is tried, if the request may be repeated."""

    def handler(wire):
        wire.read_request()
        wire.send("HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
        wire.read_request()
        wire.send("the bodyHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")

    server = upstream(handler, answering(response(b"second")))
    proxy = serve(
        f"""
        upstream kept {{ server @upstream@; keepalive 4; }}
        server {{ listen 127.0.0.1:@port@; location / {{ {MODERN} proxy_pass http://kept; }} }}
        """,
        upstream=server.address,
    )
    with proxy.connect() as wire:
        wire.send("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert wire.read_response("HEAD").status == 200
        wire.send(f"{method} / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        answer = wire.read_response()
        assert answer.status == status
        assert body in (None, answer.body)
        assert b"evil" not in wire.transcript
    proxy.logged("upstream sent no valid HTTP/1.0 header")


@differs("it goes on, and what the client asks next is answered to what it asked first")
@pytest.mark.parametrize("method, lines", [("GET", "Content-Length: 0\r\n"), ("HEAD", "")])
def test_an_interim_response_that_is_passed_on_as_the_last_ends_both_connections(serve, upstream, method, lines):
    """The client, which knows what a 100 is, would take the next response for this one, and so would ringx."""
    done = threading.Event()

    def handler(wire):
        wire.read_request()
        wire.send(f"HTTP/1.1 100 Continue\r\n{lines}\r\n")
        assert done.wait(10)
        wire.close()

    server = upstream(handler, answering(response(b"second")))
    proxy = serve(
        f"""
        upstream kept {{ server @upstream@; keepalive 4; }}
        server {{ listen 127.0.0.1:@port@; location / {{ {MODERN} proxy_pass http://kept; }} }}
        """,
        upstream=server.address,
    )
    with proxy.connect() as wire:
        wire.send(f"{method} / HTTP/1.1\r\nHost: h\r\n\r\n" * 2)
        head = wire.read_head()
        assert (head.start, head.get("Connection")) == ("HTTP/1.1 100 Continue", "close")
        wire.expect_end()
    assert proxy.get("/").body == b"second"
    assert len(server.requests) == 2
    done.set()


@ringx_only("the older one waits for more")
@pytest.mark.parametrize("first", [b"hello world", b"http/1.1 200 OK", b"HTTP 200 OK"])
def test_what_does_not_begin_like_a_status_line_is_an_answer_of_http_0_9(serve, upstream, first):
    def handler(wire):
        wire.read_request()
        wire.send(first + b"\r\nX: y\r\n\r\nrest")

    server = upstream(handler)
    proxy = serve(
        f"""
        log_format exchange '$status $upstream_status';
        access_log logs/access.log exchange;
        server {{ listen 127.0.0.1:@port@; location / {{ {MODERN} proxy_pass http://@upstream@; }} }}
        """,
        upstream=server.address,
    )
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert wire.read_to_end() == first + b"\r\nX: y\r\n\r\nrest"
    assert "[error]" in proxy.logged("upstream sent no valid HTTP/1.0 header")
    assert proxy.accessed() == ["009 200"]


# Lines.


@pytest.mark.parametrize(
    "line, shown",
    [
        (b"X-A: b", "X-A: b"),
        (b"X_A: b", "X_A: b"),
        (b"x-MiXed:no-space", "x-MiXed: no-space"),
        (b"X-A:   b c  ", "X-A: b c"),
        (b"X-A: \tb", "X-A: \tb"),
        (b"X-Empty:", "X-Empty: "),
        (b"X(a)!: b", "X(a)!: b"),
        (b"X-\xc3\xa4: \xc3\xb6", "X-\xc3\xa4: \xc3\xb6"),
        (b"X-A: b\r", "X-A: b"),
        (b"X-Control: a\x01b", "X-Control: a\x01b"),
        (b"X-Colon: a:b", "X-Colon: a:b"),
    ],
)
def test_lines_that_pass(through, line, shown):
    answer = through(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + line + b"\r\nX-Last: 1\r\n\r\n").get("/app/")
    assert own(answer) == [shown, "X-Last: 1"]


def test_a_line_without_colon_has_an_empty_value(through):
    with through(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nNoColon\r\nX: y\r\n\r\n").connect() as wire:
        wire.send("GET /app/ HTTP/1.1\r\nHost: h\r\n\r\n")
        assert wire.read_until(b"\r\n\r\n").endswith(b"\r\nNoColon: \r\nX: y\r\n\r\n")


def test_a_second_status_line_is_skipped(through):
    answer = through(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nHTTP/1.1 302 Moved\r\nX: y\r\n\r\n").get("/app/")
    assert (answer.status, own(answer)) == (200, ["X: y"])


def test_lone_line_feeds(through):
    answer = through(b"HTTP/1.1 200 OK\nContent-Length: 2\nX: y\n\nok").get("/app/")
    assert (answer.body, own(answer)) == (b"ok", ["X: y"])


@pytest.mark.parametrize(
    "lines, told",
    [
        (b"Foo : bar", r"upstream sent invalid header: \"Foo\\x20...\""),
        (b": bar", r"upstream sent invalid header: \"\\x3a...\""),
        (b"A: b\r\n folded", r"upstream sent invalid header: \"\\x20...\""),
        (b"A: b\0c", r"upstream sent invalid header: \"A: b\\x00...\""),
        (b"A: b\rc", r"upstream sent invalid header: \"A: b\\x0d...\""),
        (b"A\x01: b", r"upstream sent invalid header: \"A\\x01...\""),
        (b"X: " + b"y" * 5000, "upstream sent too big header"),
    ],
)
def test_lines_that_make_it_a_502(through, lines, told):
    check_502(through, lines, told)


@ringx_only("older ones are less strict")
@pytest.mark.parametrize(
    "lines, told",
    [
        (
            b"Content-Length: 2\r\nContent-Length: 2",
            'upstream sent duplicate header line: "Content-Length: 2", previous value: "Content-Length: 2"',
        ),
        (
            b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            'upstream sent duplicate header line: "Transfer-Encoding: chunked", '
            'previous value: "Transfer-Encoding: chunked"',
        ),
        (
            b"Content-Length: 2\r\nTransfer-Encoding: chunked",
            'upstream sent "Content-Length" and "Transfer-Encoding" headers at the same time',
        ),
        (
            b"Transfer-Encoding: chunked\r\nContent-Length: 2",
            'upstream sent "Content-Length" and "Transfer-Encoding" headers at the same time',
        ),
        (b"Transfer-Encoding: gzip, chunked", 'upstream sent unknown "Transfer-Encoding": "gzip, chunked"'),
        (b"Transfer-Encoding: identity", 'upstream sent unknown "Transfer-Encoding": "identity"'),
        (b"Content-Length: -1", 'upstream sent invalid "Content-Length" header: "Content-Length: -1"'),
        (b"Content-Length: 1x", 'upstream sent invalid "Content-Length" header: "Content-Length: 1x"'),
        (b"Content-Length: ", 'upstream sent invalid "Content-Length" header: "Content-Length: "'),
        (
            b"Content-Length: 99999999999999999999",
            'upstream sent invalid "Content-Length" header: "Content-Length: 99999999999999999999"',
        ),
    ],
)
def test_lengths_that_make_it_a_502(through, lines, told):
    check_502(through, lines, told)


def check_502(through, lines, told):
    proxy = through(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n\r\nok")
    assert proxy.get("/app/").status == 502
    told = told.replace('\\"', '"').replace("\\\\", "\\")
    assert "while reading response header from upstream" in proxy.logged(told)
    assert proxy.accessed() == ["502 502"]


@ringx_only("older ones take them all")
@pytest.mark.parametrize(
    "name, first, second",
    [
        ("Content-Type", "a/b", "c/d"),
        ("ETag", '"a"', '"b"'),
        ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT", "x"),
        ("Location", "http://a/", "http://b/"),
        ("Refresh", "1", "2"),
        ("Expires", "0", "1"),
        ("Server", "s", "t"),
        ("Date", "d", "e"),
        ("Status", "200", "201"),
        ("X-Accel-Expires", "1", "2"),
        ("X-Accel-Limit-Rate", "0", "2"),
    ],
)
def test_lines_of_which_the_first_counts(through, name, first, second):
    proxy = through(
        response(b"x", f"{name}: {first}", f"{name}: {second}"), "proxy_pass_header Server; proxy_pass_header Date;"
    )
    answer = proxy.get("/app/")
    assert answer.status == 200
    assert answer.all(name) == ([] if name.startswith("X-Accel") else [first])
    line = proxy.logged(f'upstream sent duplicate header line: "{name}: {second}", previous value: "{name}: {first}", ignored')
    assert "[warn]" in line


@pytest.mark.parametrize("name", ["Set-Cookie", "Cache-Control", "Vary", "Link", "WWW-Authenticate", "X-Any", "Via"])
def test_lines_that_may_be_repeated(through, name):
    answer = through(response(b"x", f"{name}: a", "X-Between: 1", f"{name}: b")).get("/app/")
    assert own(answer) == [f"{name}: a", "X-Between: 1", f"{name}: b"]


def test_an_empty_type_is_none(through):
    answer = through(response(b"ok", "Content-Type:", "X-A:")).get("/app/")
    assert (answer.body, own(answer)) == (b"ok", ["X-A: "])


def test_an_empty_type_of_a_response_that_another_takes_the_place_of(through):
    answer = through(response(b"", "Content-Type: ", "X-Accel-Redirect: /files/file.css")).get("/app/")
    assert (answer.body, answer.get("Content-Type")) == (b"0123456789", "text/plain")


def test_what_is_hidden(through):
    lines = [
        "Date: d", "Server: s", "X-Pad: 1", "X-Accel-Expires: 1", "X-Accel-Limit-Rate: 0", "X-Accel-Buffering: yes",
        "X-Accel-Charset: x", "Connection: keep-alive", "Keep-Alive: timeout=5", "X-Shown: 1",
    ]  # fmt: skip
    answer = through(response(b"x", *lines)).get("/app/")
    assert own(answer) == ["X-Shown: 1"]
    assert answer.get("Server") != "s" and answer.get("Date") != "d"
    assert answer.get("Keep-Alive") is None


@pytest.mark.parametrize(
    "directives, lines",
    [
        ("proxy_hide_header x-b;", ["X-A: 1", "Content-Type: t/t"]),
        ("proxy_hide_header X-A; proxy_hide_header X-B;", ["Content-Type: t/t"]),
        ("proxy_hide_header Content-Type;", ["X-A: 1", "X-B: 2"]),
        ("proxy_pass_header X-Pad;", ["X-A: 1", "X-B: 2", "X-Pad: p", "Content-Type: t/t"]),
        ("proxy_pass_header X-Accel-Expires;", ["X-A: 1", "X-B: 2", "X-Accel-Expires: 0", "Content-Type: t/t"]),
        ("proxy_hide_header X-A; proxy_pass_header X-A;", ["X-A: 1", "X-B: 2", "Content-Type: t/t"]),
    ],
)
def test_hidden_and_passed(through, directives, lines):
    upstream = response(b"x", "X-A: 1", "X-B: 2", "X-Pad: p", "X-Accel-Expires: 0", "Content-Type: t/t")
    assert sorted(own(through(upstream, directives).get("/app/"))) == sorted(lines)


@pytest.mark.parametrize(
    "directives, lines, shown",
    [
        ("proxy_pass_header Server;", ["X: 1", "Server: up"], {"Server": ["up"]}),
        ("proxy_pass_header Server;", [], {"Server": []}),
        ("proxy_pass_header Date;", ["Date: then"], {"Date": ["then"]}),
        ("proxy_pass_header Date;", [], {"Date": []}),
    ],
)
def test_server_and_date_of_the_upstream(through, directives, lines, shown):
    answer = through(response(b"x", *lines), directives).get("/app/")
    for name, values in shown.items():
        assert answer.all(name) == values


# proxy_redirect

BASE = "http://@upstream@"


def redirected(through, location, directives="", target="/app/x", line="Location", **options):
    proxy = through(
        lambda request: response(b"", f"{line}: {location.replace('@upstream@', request.get('Host'))}", status="302 Found"),
        directives,
        **options,
    )
    answer = proxy.get(target)
    return answer.get(line).replace(f":{proxy.port}", ":PORT").replace(proxy.upstream.address, "UPSTREAM")


@pytest.mark.parametrize(
    "location, target, expected",
    [
        ("http://@upstream@/a", "/app/x", "http://example.com:PORT/a"),
        ("http://@upstream@/", "/app/x", "http://example.com:PORT/"),
        ("http://@upstream@", "/app/x", "http://UPSTREAM"),
        ("https://@upstream@/a", "/app/x", "https://UPSTREAM/a"),
        ("HTTP://@upstream@/a", "/app/x", "HTTP://UPSTREAM/a"),
        ("/a", "/app/x", "/a"),
        ("a", "/app/x", "a"),
        ("http://other/a", "/app/x", "http://other/a"),
        ("http://@upstream@/base/a", "/uri/x", "http://example.com:PORT/uri/a"),
        ("http://@upstream@/base", "/uri/x", "http://UPSTREAM/base"),
        ("http://@upstream@/other/a", "/uri/x", "http://UPSTREAM/other/a"),
    ],
)
def test_the_default_redirect(through, location, target, expected):
    assert redirected(through, location, target=target) == expected


@pytest.mark.parametrize(
    "location, directives, expected",
    [
        ("http://@upstream@/a", "proxy_redirect off;", "http://UPSTREAM/a"),
        ("http://@upstream@/a", "proxy_redirect default;", "http://example.com:PORT/a"),
        ("http://b/x/y", "proxy_redirect http://b/x/ /z/;", "http://example.com:PORT/z/y"),
        ("http://b/x/y", "proxy_redirect http://b/ http://c/;", "http://c/x/y"),
        ("http://b/x", "proxy_redirect http://B/ /z/;", "http://b/x"),
        ("http://b/x", "proxy_redirect http://no/ /n/; proxy_redirect http://b/ /z/;", "http://example.com:PORT/z/x"),
        ("http://b/x", "proxy_redirect http://b/ /first/; proxy_redirect http://b/x /z;", "http://example.com:PORT/first/x"),
        ("http://@upstream@/a", "proxy_redirect http://no/ /n/;", "http://UPSTREAM/a"),
        ("http://@upstream@/a", "proxy_redirect http://no/ /n/; proxy_redirect default;", "http://example.com:PORT/a"),
        ("http://h/x", "proxy_redirect http://$arg_h/ /$arg_h/;", "http://example.com:PORT/h/x"),
        ("http://b/a-7/x", "proxy_redirect ~/a-(\\d)/(.*)$ /$2/$1;", "http://example.com:PORT/x/7"),
        ("http://b/A-7", "proxy_redirect ~a-(\\d) /$1;", "http://b/A-7"),
        ("http://b/A-7", "proxy_redirect ~*a-(\\d) /$1;", "http://example.com:PORT/7"),
        ("http://b/q/r", "proxy_redirect ~^http://(?<host_of>[a-z]+)/(?<rest_of>.+)$ http://$host_of.c/$rest_of;", "http://b.c/q/r"),
        ("http://b/x", "proxy_redirect http://b/ /; absolute_redirect off;", "/x"),
        ("http://b/x", "proxy_redirect http://b/ x/;", "x/x"),
        ("http://b/x", "proxy_redirect http://b/ /; port_in_redirect off;", "http://example.com/x"),
        ("http://b/x", "proxy_redirect ~b /$request_method;", "http://example.com:PORT/GET"),
        ("/old/x", "proxy_redirect /old/ /new/;", "http://example.com:PORT/new/x"),
    ],
)
def test_redirects(through, location, directives, expected):
    assert redirected(through, location, directives, target="/app/x?h=h") == expected


@pytest.mark.parametrize(
    "value, directives, expected",
    [
        ("5; url=http://@upstream@/a", "", "5; url=/a"),
        ("5; URL=http://b/a", "proxy_redirect http://b/ /z/;", "5; URL=/z/a"),
        ("5;url=http://b/a", "proxy_redirect ~^http://b/(.*) http://c/$1;", "5;url=http://c/a"),
        ("5", "", "5"),
        ("http://@upstream@/a", "", "http://UPSTREAM/a"),
        ("5; url=http://@upstream@/a", "proxy_redirect off;", "5; url=http://UPSTREAM/a"),
    ],
)
def test_refresh(through, value, directives, expected):
    assert redirected(through, value, directives, line="Refresh") == expected


def test_a_redirect_from_where_variables_lead(serve, upstream):
    server = upstream()
    server.handlers = (answering(response(b"", f"Location: http://{server.address}/x", status="302 Found")),)
    proxy = serve(
        """
        log_format destination '$proxy_host $proxy_port';
        access_log logs/access.log destination;
        server {
            listen 127.0.0.1:@port@;
            location / { set $b @upstream@; proxy_pass http://$b; proxy_redirect http://$proxy_host/ /moved/; }
        }
        """,
        upstream=server.address,
    )
    assert proxy.get("/").get("Location") == f"http://example.com:{proxy.port}/moved/x"
    assert proxy.accessed() == [f"{server.address} {server.port}"]


def test_a_location_that_is_redirected_to_has_a_destination_of_its_own(serve, upstream):
    server = upstream(answering(response(b"ok")))
    proxy = serve(
        """
        server {
            listen 127.0.0.1:@port@;
            location / { set $b 127.0.0.1:1; proxy_pass http://$b; error_page 502 = /other; }
            location /other { set $was "<$proxy_host>"; set $b @upstream@; proxy_pass http://$b; add_header X-Was $was; }
        }
        """,
        upstream=server.address,
    )
    answer = proxy.get("/")
    assert (answer.body, answer.get("X-Was")) == (b"ok", "<>")


def test_rules_are_inherited_but_not_mixed(through):
    options = {"server": "proxy_redirect http://outer/ /outer/;"}
    assert redirected(through, "http://outer/x", **options) == "http://example.com:PORT/outer/x"


def test_own_rules_replace_inherited_ones(through):
    options = {"server": "proxy_redirect http://outer/ /outer/;", "directives": "proxy_redirect http://own/ /own/;"}
    assert redirected(through, "http://outer/x", **options) == "http://outer/x"


def test_the_place_of_a_rewritten_location(through):
    upstream = response(b"", "X-A: 1", "Location: http://b/x", "X-B: 2", status="302 Found")
    names = through(upstream, "proxy_redirect http://b/ /;").get("/app/").names()
    assert names[-4:] == ["Location", "Connection", "X-A", "X-B"]


def test_the_place_of_one_that_is_not_made_absolute(through):
    upstream = response(b"", "X-A: 1", "Location: http://b/x", "X-B: 2", status="302 Found")
    assert own(through(upstream, "proxy_redirect http://b/ http://c/;").get("/app/")) == [
        "X-A: 1",
        "Location: http://c/x",
        "X-B: 2",
    ]


def test_the_default_redirect_in_an_if_block(through):
    more = "location /if/ { set $x 1; if ($x) { set $y 1; } proxy_pass http://@upstream@/base/; }"
    assert redirected(through, "http://@upstream@/base/a", target="/if/x", more=more) == "http://example.com:PORT/if/a"


# Cookies.


@pytest.mark.parametrize(
    "directives, cookie, expected",
    [
        ("proxy_cookie_domain a.b c.d;", "n=v; Domain=a.b", "n=v; Domain=c.d"),
        ("proxy_cookie_domain a.b c.d;", "n=v; Domain=.A.B;Path=/", "n=v; Domain=.c.d; Path=/"),
        ("proxy_cookie_domain .a.b .c.d;", "n=v;domain = a.b ; x", "n=v; domain=c.d; x"),
        ("proxy_cookie_domain a.b c.d;", "n=v; Domain=x.a.b", "n=v; Domain=x.a.b"),
        ("proxy_cookie_domain a.b c.d;", "n=v;  Domain=a.bc", "n=v;  Domain=a.bc"),
        ("proxy_cookie_domain ~\\.([a-z]+)$ $1.test;", "n=v; Domain=A.COM", "n=v; Domain=COM.test"),
        ("proxy_cookie_domain $host x.y;", "n=v; Domain=example.com", "n=v; Domain=x.y"),
        ("proxy_cookie_domain a.b $arg_h;", "n=v; Domain=a.b", "n=v; Domain=h"),
        ("proxy_cookie_domain no n; proxy_cookie_domain a.b y;", "n=v; Domain=a.b", "n=v; Domain=y"),
        ("proxy_cookie_domain off;", "n=v; Domain=a.b", "n=v; Domain=a.b"),
        ("proxy_cookie_path /a/ /b/;", "n=v; Path=/a/x", "n=v; Path=/b/x"),
        ("proxy_cookie_path /a/ /b/;", "n=v; Path=/A/x", "n=v; Path=/A/x"),
        ("proxy_cookie_path / /p/;", "n=v; path=/; HttpOnly", "n=v; path=/p/; HttpOnly"),
        ("proxy_cookie_path ~^/(.+)/x$ /y/$1;", "n=v; Path=/q/x", "n=v; Path=/y/q"),
        ("proxy_cookie_path ~*^/A /b;", "n=v; Path=/a/c", "n=v; Path=/b"),
        ("proxy_cookie_path / $uri;", "n=v; Path=/", "n=v; Path=/app/x"),
        ("proxy_cookie_path / /p/; proxy_cookie_domain a b;", "n=v;Path=/;Domain=a", "n=v; Path=/p/; Domain=b"),
        ("proxy_cookie_path / /p/;", "n; Path=/", "n; Path=/"),
        ("proxy_cookie_path / /p/;", "Path=/; Path=/", "Path=/; Path=/p/"),
        ("proxy_cookie_flags n secure;", "n=v", "n=v; Secure"),
        ("proxy_cookie_flags N httponly samesite=strict;", "n=v; Path=/", "n=v; Path=/; HttpOnly; SameSite=Strict"),
        ("proxy_cookie_flags m secure;", "n=v", "n=v"),
        ("proxy_cookie_flags ~^N secure;", "name=v", "name=v; Secure"),
        ("proxy_cookie_flags n nosecure nohttponly nosamesite;", "n=v; Secure; HttpOnly; SameSite=Lax; x", "n=v; x"),
        ("proxy_cookie_flags n samesite=none;", "n=v; samesite=Lax;  x", "n=v; SameSite=None; x"),
        ("proxy_cookie_flags n samesite=lax;", "n=v", "n=v; SameSite=Lax"),
        ("proxy_cookie_flags n samesite=lax;", "n=v; samesite=LAX", "n=v; samesite=LAX"),
        ("proxy_cookie_flags n secure;", "n=v;secure", "n=v; secure"),
        ("proxy_cookie_flags n secure; proxy_cookie_flags ~ httponly;", "n=v", "n=v; Secure"),
        ("proxy_cookie_flags m secure; proxy_cookie_flags ~ httponly;", "n=v", "n=v; HttpOnly"),
        ("proxy_cookie_flags $arg_h secure;", "h=v", "h=v; Secure"),
        ("proxy_cookie_flags n $arg_f;", "n=v", "n=v; HttpOnly"),
        ("proxy_cookie_flags n unknown;", "n=v;  a", "n=v;  a"),
        ("proxy_cookie_flags n nosecure;", "n=v;  a", "n=v; a"),
        ("proxy_cookie_flags n nosecure secure;", "n=v; secure", "n=v; secure"),
        ("proxy_cookie_flags n samesite=none samesite=lax;", "n=v", "n=v; SameSite=Lax"),
        ("proxy_cookie_domain a '';", "n=v;  Domain=a", "n=v; Domain="),
        ("proxy_cookie_domain a b;", "n=v;  Domain=a; ; =;x", "n=v; Domain=b; ; =; x"),
        ("proxy_cookie_flags off;", "n=v;  a", "n=v;  a"),
    ],
)
def test_cookies(through, directives, cookie, expected):
    proxy = through(response(b"x", f"Set-Cookie: {cookie}"), directives)
    assert proxy.get("/app/x?h=h&f=httponly").all("Set-Cookie") == [expected]


def test_every_cookie_is_looked_at(through):
    upstream = response(b"x", "Set-Cookie: a=1; Path=/", "X: y", "set-cookie: b=2; path=/q", "Set-Cookie: c=3")
    answer = through(upstream, "proxy_cookie_path / /p/;").get("/app/")
    assert own(answer) == ["Set-Cookie: a=1; Path=/p/", "X: y", "set-cookie: b=2; path=/p/q", "Set-Cookie: c=3"]


@pytest.mark.parametrize(
    "directives, told",
    [
        ("proxy_redirect off; proxy_redirect a b;", '"proxy_redirect" directive is duplicate'),
        ("proxy_redirect a b; proxy_redirect off;", '"proxy_redirect" directive is duplicate'),
        ("proxy_redirect x;", 'invalid parameter "x"'),
        ("proxy_redirect ~( b;", "pcre2_compile() failed: missing closing parenthesis"),
        ("proxy_cookie_domain off; proxy_cookie_domain a b;", '"proxy_cookie_domain" directive is duplicate'),
        ("proxy_cookie_domain a b; proxy_cookie_domain off;", '"proxy_cookie_domain" directive is duplicate'),
        ("proxy_cookie_domain x;", 'invalid parameter "x"'),
        ("proxy_cookie_path off; proxy_cookie_path a b;", '"proxy_cookie_path" directive is duplicate'),
        ("proxy_cookie_path x;", 'invalid parameter "x"'),
        ("proxy_cookie_path ~( b;", "pcre2_compile() failed: missing closing parenthesis"),
        ("proxy_cookie_flags off; proxy_cookie_flags a secure;", '"proxy_cookie_flags" directive is duplicate'),
        ("proxy_cookie_flags a secure; proxy_cookie_flags off;", '"proxy_cookie_flags" directive is duplicate'),
        ("proxy_cookie_flags x;", 'invalid parameter "x"'),
        ("proxy_ignore_headers X-Foo;", 'invalid value "X-Foo"'),
        (
            "location /app/in { proxy_redirect default; }",
            '"proxy_redirect default" should be placed after the "proxy_pass" directive',
        ),
        (
            "location /app/in { proxy_pass http://$arg_x; proxy_redirect default; }",
            '"proxy_redirect default" cannot be used with "proxy_pass" directive with variables',
        ),
    ],
)
def test_what_is_refused(through, directives, told):
    with pytest.raises(RuntimeError, match=re.escape(told)):
        through(b"", directives)


# Whatever is decided about a response may go by its head.


@pytest.mark.parametrize(
    "directives, name, value",
    [
        ("add_header X $upstream_http_x_a;", "X", "/a"),
        ("add_header X $upstream_cookie_c;", "X", "1"),
        ("proxy_cookie_path / $upstream_http_x_a;", "Set-Cookie", "c=1; Path=/a"),
        ("proxy_redirect /from $upstream_http_x_a;", "Location", "http://example.com:@port@/a/x"),
        ("proxy_redirect /from $upstream_http_x_a;", "Refresh", "1; url=/a/y"),
    ],
)
def test_variables_of_the_head_that_is_passed_on(through, directives, name, value):
    lines = ["X-A: /a", "Location: /from/x", "Refresh: 1; url=/from/y", "Set-Cookie: c=1; Path=/"]
    proxy = through(response(b"ok", *lines), directives)
    assert proxy.get("/app/").get(name) == value.replace("@port@", str(proxy.port))


def test_variables_of_the_head_in_a_trailer(through):
    answer = b"HTTP/1.1 200 OK\r\nX-A: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    proxy = through(answer + chunked(b"ok"), "add_trailer X $upstream_http_x_a;")
    with proxy.connect() as wire:
        wire.send("GET /app/ HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().trailers == ["X: a"]


# X-Accel-*


@pytest.mark.parametrize(
    "target, method, status, body",
    [
        ("/inner?a=b", "GET", 200, "inner /inner?a=b GET"),
        ("/inner", "POST", 200, "inner /inner GET"),
        ("/inner%20x", "GET", 200, "inner /inner x GET"),
        ("@named", "GET", 200, "named /app/x?q GET"),
        ("@named", "POST", 200, "named /app/x?q POST"),
        ("/page", "GET", 200, "page"),
        ("/none", "GET", 404, None),
        ("/a/../b", "GET", 404, None),
        ("..", "GET", 404, None),
        ("/a/..", "GET", 404, None),
        ("@missing", "GET", 500, None),
    ],
)
def test_accel_redirect(through, target, method, status, body):
    proxy = through(response(b"upstream", f"X-Accel-Redirect: {target}", status="201 Created"))
    answer = proxy.get("/app/x?q", method=method)
    assert answer.status == status
    if body:
        assert answer.body.decode() == body
    if ".." in target:
        assert "[error]" in proxy.logged(f'unsafe URI "{target}" was detected')


def test_headers_that_outlive_an_accel_redirect(through):
    upstream = response(
        b"gone", "X-Accel-Redirect: /files/file.css", "Content-Type: a/b", "Set-Cookie: c=1", "X-Gone: 1", "ETag: up",
        "Content-Disposition: attachment", "Cache-Control: private", "Expires: 0", "Set-Cookie: d=2", "Vary: gone",
        "Last-Modified: gone", "Content-Language: gone",
    )  # fmt: skip
    answer = through(upstream).get("/app/")
    assert (answer.status, answer.body) == (200, b"0123456789")
    lines = [line for line in own(answer) if not line.startswith(("Last-Modified", "ETag"))]
    assert lines == [
        "Content-Type: a/b",
        "Set-Cookie: c=1",
        "Content-Disposition: attachment",
        "Cache-Control: private",
        "Expires: 0",
        "Set-Cookie: d=2",
        "Accept-Ranges: bytes",
    ]
    assert answer.get("ETag") != "up" and answer.get("Last-Modified") != "gone"


@pytest.mark.parametrize("target, lines", [("/page", 1), ("/files/file.css", 2), ("/none", 0)])
def test_kept_word_of_ranges(through, target, lines):
    answer = through(response(b"", f"X-Accel-Redirect: {target}", "Accept-Ranges: none")).get("/app/")
    assert answer.all("Accept-Ranges") == ["none", "bytes"][:lines]


def test_a_cookie_that_outlives_an_accel_redirect_is_rewritten(through):
    upstream = response(b"", "X-Accel-Redirect: /page", "Set-Cookie: a=1; Path=/", "Set-Cookie: b")
    answer = through(upstream, "proxy_cookie_path / /app/; proxy_cookie_flags ~ secure;").get("/app/")
    assert (answer.body, answer.all("Set-Cookie")) == (b"page", ["a=1; Path=/app/; Secure", "b"])


def test_a_hidden_cookie_behind_an_accel_redirect(through):
    upstream = response(b"", "X-Accel-Redirect: /page", "Set-Cookie: a=1")
    answer = through(upstream, "proxy_hide_header Set-Cookie;").get("/app/")
    assert (answer.body, answer.all("Set-Cookie")) == (b"page", ["a=1"])


def test_the_type_of_a_page_behind_an_accel_redirect(through):
    upstream = response(b"", "X-Accel-Redirect: /none", "Content-Type: a/b", "Set-Cookie: c=1")
    answer = through(upstream).get("/app/")
    assert (answer.status, answer.get("Content-Type"), answer.all("Set-Cookie")) == (404, "text/html", ["c=1"])


@pytest.mark.parametrize("page", ["location = /own { alias html/own.html; }", "location = /own { return 200 own; }"])
def test_the_type_of_a_page_of_ones_own_behind_an_accel_redirect(through, page):
    upstream = response(b"", "X-Accel-Redirect: /none", "Content-Type: application/pdf")
    proxy = through(upstream, server="error_page 404 /own; types { text/html html; } default_type text/html;", more=page)
    (proxy.prefix / "html/own.html").write_text("own")
    answer = proxy.get("/app/")
    assert (answer.status, answer.get("Content-Type"), answer.body) == (404, "text/html", b"own")


@pytest.mark.parametrize(
    "header, ignored, hidden",
    [("X-Accel-Redirect: /page", "X-Accel-Redirect", True), ("X-Accel-Buffering: no", "X-Accel-Buffering", True)],
)
def test_ignored_but_hidden_all_the_same(through, header, ignored, hidden):
    answer = through(response(b"upstream", header), f"proxy_ignore_headers {ignored};").get("/app/")
    assert (answer.status, answer.body, own(answer)) == (200, b"upstream", [])


# proxy_intercept_errors


@pytest.mark.parametrize(
    "status, page, intercepted",
    [
        ("404 Not Here", "error_page 404 /page;", True),
        ("404 Not Here", "error_page 404 =200 /page;", True),
        ("404 Not Here", "error_page 500 /page;", False),
        ("302 Found", "error_page 302 /page;", True),
        ("200 OK", "error_page 404 /page;", False),
        ("503 Busy", "error_page 502 503 @named;", True),
    ],
)
def test_intercepted_errors(through, status, page, intercepted):
    proxy = through(response(b"upstream", "X-Up: 1", status=status), f"proxy_intercept_errors on; {page}")
    answer = proxy.get("/app/")
    assert (answer.body != b"upstream") is intercepted
    assert (answer.get("X-Up") is None) is intercepted


@pytest.mark.parametrize("page, body", [("error_page 403 /page;", b"page"), ("error_page 404 /page;", b"inner /inner GET")])
def test_an_intercepted_error_is_not_redirected(through, page, body):
    upstream = response(b"", "X-Accel-Redirect: /inner", status="403 Forbidden")
    answer = through(upstream, f"proxy_intercept_errors on; {page}").get("/app/")
    assert (answer.status, answer.body) == (403 if body == b"page" else 200, body)


def test_an_intercepted_401_says_how_to_log_in(through):
    upstream = response(b"upstream", "X-Up: 1", "WWW-Authenticate: Basic realm=x", status="401 No")
    answer = through(upstream, "proxy_intercept_errors on; error_page 401 /page;").get("/app/")
    assert (answer.status, answer.body) == (401, b"page")
    assert (answer.get("WWW-Authenticate"), answer.get("X-Up")) == ("Basic realm=x", None)


@differs("the older one keeps the first alone")
def test_all_ways_to_log_in_are_kept(through):
    upstream = response(b"", "WWW-Authenticate: Basic", "WWW-Authenticate: Digest", status="401 No")
    answer = through(upstream, "proxy_intercept_errors on; error_page 401 /page;").get("/app/")
    assert answer.all("WWW-Authenticate") == ["Basic", "Digest"]


# proxy_force_ranges

BODY = bytes(range(48, 58)) * 1000


@pytest.mark.parametrize(
    "wanted, status, content_range, part",
    [
        ("bytes=0-9", 206, "bytes 0-9/10000", slice(0, 10)),
        ("bytes=5000-5004", 206, "bytes 5000-5004/10000", slice(5000, 5005)),
        ("bytes=9990-", 206, "bytes 9990-9999/10000", slice(9990, None)),
        ("bytes=-3", 206, "bytes 9997-9999/10000", slice(9997, None)),
        ("bytes=0-99999", 206, "bytes 0-9999/10000", slice(None)),
        ("bytes=10000-", 416, "bytes */10000", None),
        ("bytes=x", 416, "bytes */10000", None),
        ("lines=0-1", 200, None, slice(None)),
        ("bytes=0-1,4-5", 200, None, slice(None)),
    ],
)
def test_forced_ranges(through, wanted, status, content_range, part):
    proxy = through(response(BODY, "Accept-Ranges: none", "X-A: 1"), "proxy_force_ranges on;")
    answer = proxy.get("/app/", f"Range: {wanted}")
    assert (answer.status, answer.get("Content-Range")) == (status, content_range)
    assert answer.get("X-A") == "1"
    if part:
        assert answer.body == BODY[part]
    assert answer.all("Accept-Ranges") == (["bytes"] if status == 200 else [])
    if status == 206:
        assert answer.start == "HTTP/1.1 206 Partial Content"


def test_the_head_of_a_forced_range(through):
    answer = through(response(b"", 'ETag: "x"', "X-A: 1").replace(b"Length: 0", b"Length: 10"), "proxy_force_ranges on;").get(
        "/app/", "Range: bytes=2-3", method="HEAD"
    )
    assert (answer.status, answer.get("Content-Length")) == (206, "2")
    assert own(answer) == ['ETag: "x"', "X-A: 1", "Content-Range: bytes 2-3/10"]


@pytest.mark.parametrize(
    "if_range, status",
    [('"e"', 206), ('"x"', 200), ("Sun, 06 Nov 1994 08:49:37 GMT", 206), ("Sun, 06 Nov 1994 08:49:38 GMT", 200)],
)
def test_if_range_of_a_forced_range(through, if_range, status):
    upstream = response(BODY, 'ETag: "e"', "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT")
    answer = through(upstream, "proxy_force_ranges on;").get("/app/", "Range: bytes=1-2", f"If-Range: {if_range}")
    assert answer.status == status


@pytest.mark.parametrize(
    "directives, answer, status",
    [
        ("", response(BODY), 200),
        ("proxy_force_ranges on;", response(b"no", status="404 Not Found"), 404),
        ("proxy_force_ranges on;", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"0123"), 200),
        ("proxy_force_ranges on; max_ranges 0;", response(BODY), 200),
    ],
)
def test_where_no_range_is_forced(through, directives, answer, status):
    answer = through(answer, directives).get("/app/", "Range: bytes=1-2")
    assert (answer.status, answer.get("Content-Range"), answer.get("Accept-Ranges")) == (status, None, None)


def test_keepalive_goes_on_behind_a_forced_range(through):
    proxy = through(response(BODY), "proxy_force_ranges on;")
    with proxy.connect() as wire:
        for start in (0, 4000, 9000):
            wire.send(f"GET /app/ HTTP/1.1\r\nHost: h\r\nRange: bytes={start}-{start + 4}\r\n\r\n")
            assert wire.read_response().body == BODY[start : start + 5]


# Length.


def test_a_304_keeps_its_length(through):
    with through(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n").connect() as wire:
        wire.send("GET /app/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        head = wire.read_head()
        assert (head.start, head.get("Content-Length")) == ("HTTP/1.1 304 Not Modified", "5")
        wire.expect_end()


@pytest.mark.parametrize(
    "line, length, encoding", [("Content-Length: 7", "7", None), ("Transfer-Encoding: chunked", None, None)]
)
def test_the_head_of_a_head(through, line, length, encoding):
    answer = through(f"HTTP/1.1 200 OK\r\n{line}\r\n\r\n".encode()).get("/app/", method="HEAD")
    assert (answer.get("Content-Length"), answer.get("Transfer-Encoding")) == (length, encoding)


def test_upgrade_is_passed_on_with_any_status(through):
    answer = through(response(b"x", "Upgrade: h2c", status="426 Upgrade Required")).get("/app/")
    assert (answer.status, answer.get("Upgrade")) == (426, "h2c")


# uwsgi: the same rows for another protocol.


@pytest.fixture
def uwsgi(serve, upstream):
    def start(answer: bytes, directives=""):
        def handler(wire):
            read_packet(wire)
            wire.send(answer)

        server = upstream(handler)
        return serve(
            f"""
            server {{
                listen 127.0.0.1:@port@;
                location / {{ {directives} uwsgi_pass @upstream@; }}
                location = /page {{ return 200 page; }}
            }}
            """,
            upstream=server.address,
        )

    return start


@pytest.mark.parametrize(
    "directives, lines, expected",
    [
        ("", "Server: s\r\nDate: d\r\nX-Pad: p\r\nX-Accel-Expires: 1", {"Server": ["s"], "Date": ["d"], "X-Pad": ["p"]}),
        ("uwsgi_hide_header X-A;", "X-A: 1\r\nX-B: 2", {"X-A": [], "X-B": ["2"]}),
        ("uwsgi_pass_header X-Accel-Expires;", "X-Accel-Expires: 1", {"X-Accel-Expires": ["1"]}),
        ("", "X-Accel-Limit-Rate: 0\r\nX-Accel-Charset: x", {"X-Accel-Limit-Rate": [], "X-Accel-Charset": []}),
        ("", "Location: /x", {"Location": ["/x"]}),
        ("expires epoch; add_header X-Own 1;", "Expires: 0", {"Expires": [EPOCH], "X-Own": ["1"]}),
    ],
)
def test_heads_of_uwsgi(uwsgi, directives, lines, expected):
    answer = uwsgi(f"Status: 200 OK\r\n{lines}\r\n\r\nbody".encode(), directives).get("/")
    assert (answer.status, answer.body) == (200, b"body")
    for name, values in expected.items():
        assert answer.all(name) == values


def test_a_redirect_of_uwsgi_s(uwsgi):
    answer = uwsgi(b"Status: 200 OK\r\nX-Accel-Redirect: /page\r\nSet-Cookie: a=b\r\n\r\nbody").get("/")
    assert (answer.body, answer.all("Set-Cookie")) == (b"page", ["a=b"])


@pytest.mark.parametrize("wanted, status, body", [("bytes=2-4", 206, b"234"), ("bytes=10-", 416, None), ("x", 200, b"0123456789")])
def test_ranges_forced_on_uwsgi(uwsgi, wanted, status, body):
    head = b"Status: 200 OK\r\nContent-Length: 10\r\n\r\n"
    answer = uwsgi(head + b"0123456789", "uwsgi_force_ranges on;").get("/", f"Range: {wanted}")
    assert answer.status == status
    assert body is None or answer.body == body
