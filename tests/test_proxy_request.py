"""The request a proxy sends: line, URI, headers, body."""

import re

import pytest

from harness.proxied import MODERN
from harness.upstream import answering, response

differs = pytest.mark.differs_in_nginx
OK = response(b"ok")


@pytest.fixture
def sent(serve, upstream):
    """`sent(request, …)`: what the upstream got for it."""

    def send(request, directives="", pass_="proxy_pass http://@upstream@;", location="/", server="", http="", more="", modern=True):
        scripted = upstream(answering(OK))
        proxy = serve(
            f"""
            {http}
            upstream group {{ server @upstream@; }}
            server {{
                listen 127.0.0.1:@port@;
                {server}
                location {location} {{ {MODERN if modern else ""} {directives} {pass_} }}
                {more}
            }}
            """,
            upstream=scripted.address,
            upstream_port=scripted.port,
        )
        request = request(scripted.address) if callable(request) else request
        data = request if isinstance(request, bytes) else request.encode("latin-1")
        answer = proxy.ask(data)
        assert answer.status == 200, answer.raw + answer.body
        got = scripted.request()
        got.address = scripted.address
        return got

    return send


def get(target, *fields):
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: example.com", *fields, "Connection: close", "", ""])


def post(body, *fields, method="POST"):
    length = [f"Content-Length: {len(body)}"] if body is not None else []
    head = "\r\n".join([f"{method} /x HTTP/1.1", "Host: example.com", "Connection: close", *length, *fields, "", ""])
    return head.encode() + (body or b"")


CHUNKED = (
    b"POST /x HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: t\r\n\r\n"
)


# The URI.


@pytest.mark.parametrize(
    "location, pass_, target, uri",
    [
        ("/", "http://@upstream@", "/a/../b/./c//d", "/a/../b/./c//d"),
        ("/", "http://@upstream@", "/%61%2f%20?x=%20", "/%61%2f%20?x=%20"),
        ("/", "http://@upstream@", "/a?", "/a?"),
        ("/", "http://@upstream@", "/a??b", "/a??b"),
        ("/", "http://@upstream@", "http://other/p?q", "/p?q"),
        ("/", "http://@upstream@", "http://other", "/"),
        ("/", "http://@upstream@/", "/a//b", "/a/b"),
        ("/", "http://@upstream@/", "/a/./b/../c", "/a/c"),
        ("/", "http://@upstream@/", "/%41", "/A"),
        ("/", "http://@upstream@/", "/a%2fb", "/a/b"),
        ("/", "http://@upstream@/", "/a%20b", "/a%20b"),
        ("/", "http://@upstream@/", "/a%3fb%23c%25d", "/a%3Fb%23c%25d"),
        ("/", "http://@upstream@/", "/a%22%3c%3e%5c%5e%60%7b%7c%7d", "/a%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("/", "http://@upstream@/", "/a%7f%c3%a4", "/a%7F%C3%A4"),
        ("/", "http://@upstream@/", "/a\"<>\\^`{|}\xe4", "/a\"<>\\^`{|}\xe4"),
        ("/", "http://@upstream@/", "/a?x y".replace(" ", "%20"), "/a?x%20y"),
        ("/a/", "http://@upstream@/b/", "/a/c?d", "/b/c?d"),
        ("/a/", "http://@upstream@/b/", "/a/c?", "/b/c"),
        ("/a/", "http://@upstream@/b", "/a/c", "/bc"),
        ("/a", "http://@upstream@/b/", "/a/c", "/b//c"),
        ("/a/", "http://@upstream@/b?c=", "/a/d?e", "/b?c=d?e"),
        ("= /a", "http://@upstream@/b", "/a?c", "/b?c"),
        ("^~ /a/", "http://@upstream@/b/", "/a/c", "/b/c"),
        ("~ ^/(a)", "http://@upstream@", "/a%2e?c", "/a%2e?c"),
        ("~ ^/(a)/(.*)", "http://@upstream@/$2/$1", "/a/b?c", "/b/a"),
        ("~ ^/(a)/(.*)", "http://@upstream@/$2$is_args$args", "/a/b?c", "/b?c"),
        ("/", "http://@upstream@$request_uri", "/a%20b?c", "/a%20b?c"),
        ("/", "http://@upstream@$uri", "/a%41b?c", "/aAb"),
        ("/", "http://@upstream@?$args", "/a?c", "/?c"),
        ("/", "http://@upstream@$arg_none", "/a%41b?c", "/a%41b?c"),
        ("/", "http://$arg_to", "/a%20?to=@upstream@", "/a%20?to=@upstream@"),
        ("/", "http://group", "/a", "/a"),
        ("/a/", "http://GROUP/b/", "/a/c", "/b/c"),
        ("/", "HTTP://@upstream@", "/a", "/a"),
    ],
)
def test_uris(sent, location, pass_, target, uri):
    got = sent(lambda address: get(target.replace("@upstream@", address)), pass_=f"proxy_pass {pass_};", location=location)
    assert got.start == f"GET {uri} HTTP/1.1".replace("@upstream@", got.address)


@pytest.mark.parametrize(
    "directives, location, pass_, target, uri",
    [
        ("rewrite ^/a/(.*)$ /z/$1 break;", "/a/", "http://@upstream@", "/a/b?c", "/z/b?c"),
        ("rewrite ^/a/(.*)$ /z/$1 break;", "/a/", "http://@upstream@/ignored/", "/a/b?c", "/z/b?c"),
        ("rewrite ^/a/(.*)$ /z/$1? break;", "/a/", "http://@upstream@", "/a/b?c", "/z/b"),
        ("rewrite ^/a/(.*)$ /z/$1?d break;", "/a/", "http://@upstream@", "/a/b?c", "/z/b?d&c"),
        ("rewrite ^/a/(.*)$ /z/$1 break;", "/a/", "http://@upstream@", "/a/%20", "/z/%20"),
        ("set $args x=1;", "/a/", "http://@upstream@/b/", "/a/c?d", "/b/c?x=1"),
        ("set $x 1; if ($x) { set $y 2; }", "/a/", "http://@upstream@/b/", "/a/c", "/b/c"),
        ("set $x 1; if ($x) { set $y 2; }", "/a/", "http://@upstream@", "/a/c", "/a/c"),
    ],
)
def test_uris_after_a_rewrite(sent, directives, location, pass_, target, uri):
    assert sent(get(target), directives, f"proxy_pass {pass_};", location).target == uri


@pytest.mark.parametrize(
    "page, target, uri",
    [
        ("error_page 404 @up;", "/a%20b/../c?d", "/a%20b/../c?d"),
        ("error_page 404 = /up/x?y;", "/a", "/base/x?y"),
        ("error_page 404 = /up/a%20b;", "/a", "/base/a%2520b"),
        ('error_page 404 = "/up/a b";', "/a", "/base/a%20b"),
    ],
)
def test_uris_after_an_internal_redirect(sent, page, target, uri):
    got = sent(
        get(target),
        f"{page} error_page 404 =200 /never;" if "@" not in page else page.replace("404", "404 =200"),
        "return 404;",
        more=f"""
            location @up {{ {MODERN} proxy_pass http://@upstream@; }}
            location /up/ {{ {MODERN} proxy_pass http://@upstream@/base/; }}
        """,
    )
    assert got.target == uri


# Method and version.


@pytest.mark.parametrize(
    "directives, method, start",
    [
        ("", "GET", "GET /x HTTP/1.1"),
        ("", "PURGE", "PURGE /x HTTP/1.1"),
        ("", "X-Y_Z", "X-Y_Z /x HTTP/1.1"),
        ("proxy_http_version 1.0;", "GET", "GET /x HTTP/1.0"),
        ("proxy_method PUT;", "GET", "PUT /x HTTP/1.1"),
        ("proxy_method $arg_m;", "GET", "PATCH /x?m=PATCH HTTP/1.1"),
        ("proxy_method x;", "POST", "x /x HTTP/1.1"),
    ],
)
def test_request_lines(sent, directives, method, start):
    target = "/x?m=PATCH" if "$" in directives else "/x"
    request = f"{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    assert sent(request, directives, modern="http_version" not in directives).start == start


@pytest.mark.parametrize("method", ["HEAD", "head"])
def test_a_method_without_a_body_to_come(serve, upstream, method):
    scripted = upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: 1\r\n\r\n"))
    proxy = serve(
        f"server {{ listen 127.0.0.1:@port@; location / {{ {MODERN} proxy_method {method}; proxy_pass http://@upstream@; }} }}",
        upstream=scripted.address,
    )
    with proxy.connect() as wire:
        wire.send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        head = wire.read_head()
        assert head.get("X-A") == "1"
        wire.expect_end()


# Host.


@pytest.mark.parametrize(
    "directives, pass_, host",
    [
        ("", "http://@upstream@", "UPSTREAM"),
        ("", "http://group", "group"),
        ("", "http://Group/", "Group"),
        ("proxy_set_header Host $host;", "http://@upstream@", "example.com"),
        ("proxy_set_header Host $http_host;", "http://@upstream@", "example.com"),
        ("proxy_set_header host own;", "http://@upstream@", "own"),
        ("proxy_set_header Host $proxy_host:$proxy_port;", "http://group", "group:80"),
    ],
)
def test_hosts(sent, directives, pass_, host):
    got = sent(get("/"), directives, f"proxy_pass {pass_};")
    assert got.all("Host") == [host.replace("UPSTREAM", got.address)]


@differs("older ones send none")
def test_an_empty_host_falls_back(sent):
    got = sent(get("/"), 'proxy_set_header Host "";')
    assert got.all("Host") == [got.address]


def test_an_empty_host_in_http_1_0(sent):
    got = sent(get("/"), 'proxy_http_version 1.0; proxy_set_header Host "";', modern=False)
    assert (got.start, got.all("Host")) == ("GET / HTTP/1.0", [])


def test_the_last_host_is_the_first_line(sent):
    got = sent(get("/", "Accept: a"), "proxy_set_header X-A 1; proxy_set_header Host a; proxy_set_header HOST b;")
    hosts = got.all("Host")
    assert hosts[-1] == "b"


# proxy_set_header


@pytest.mark.parametrize(
    "directives, fields, expected",
    [
        ("proxy_set_header X-A 1;", [], ["X-A: 1"]),
        ("proxy_set_header X-A 1;", ["X-A: mine", "x-a: mine"], ["X-A: 1"]),
        ("proxy_set_header X-A 1; proxy_set_header X-A 2;", [], ["X-A: 1", "X-A: 2"]),
        ('proxy_set_header X-A "";', ["X-A: mine"], []),
        ("proxy_set_header X-A $arg_none;", ["X-A: mine"], []),
        ("proxy_set_header X-A $http_x_b;", ["X-B: b"], ["X-A: b", "X-B: b"]),
        ("proxy_set_header X-A $remote_addr-$scheme-$server_port;", [], ["X-A: 127.0.0.1-http-PORT"]),
        ("proxy_pass_request_headers off;", ["X-A: mine"], []),
        ("proxy_pass_request_headers off; proxy_set_header X-A 1;", ["X-B: mine"], ["X-A: 1"]),
        ("", ["X-A: 1", "X-B: 2", "X-A: 3"], ["X-A: 1", "X-B: 2", "X-A: 3"]),
        ("", ["X_A: 1", "X.A: 2", "X-B: 3"], ["X-B: 3"]),
        ("", ["Keep-Alive: 1", "TE: trailers", "Upgrade: x", "X-A: 1"], ["X-A: 1"]),
        ("", ["If-Modified-Since: x", "Range: bytes=0-1", "X-A: 1"], ["If-Modified-Since: x", "Range: bytes=0-1", "X-A: 1"]),
        ("proxy_set_header TE trailers;", [], ["TE: trailers"]),
        ("proxy_set_header Keep-Alive 5;", [], ["Keep-Alive: 5"]),
        ("proxy_set_header X-For $proxy_add_x_forwarded_for;", [], ["X-For: 127.0.0.1"]),
        (
            "proxy_set_header X-For $proxy_add_x_forwarded_for;",
            ["X-Forwarded-For: 1.2.3.4, 5.6.7.8"],
            ["X-For: 1.2.3.4, 5.6.7.8, 127.0.0.1", "X-Forwarded-For: 1.2.3.4, 5.6.7.8"],
        ),
    ],
)
def test_header_lines(sent, directives, fields, expected):
    got = sent(get("/", *fields), directives)
    lines = [line for line in got.lines()[1:] if not line.lower().startswith(("host:", "connection:"))]
    lines = [re.sub(r"-http-\d+", "-http-PORT", line) for line in lines]
    assert lines == expected


@pytest.mark.parametrize(
    "http, server, location, expected",
    [
        ("X-H", "", "", ["X-H"]),
        ("X-H", "X-S", "", ["X-S"]),
        ("X-H", "X-S", "X-L", ["X-L"]),
        ("", "X-S", "", ["X-S"]),
    ],
)
def test_lines_are_inherited_all_or_none(sent, http, server, location, expected):
    def lines(name):
        return f'{MODERN} proxy_set_header {name} 1; proxy_set_header Host h;' if name else ""

    got = sent(get("/"), lines(location), http=lines(http), server=lines(server), modern=False)
    assert [name for name in got.names() if name.startswith("X-")] == expected
    assert got.get("Host") == "h"


# The body.


@pytest.mark.parametrize(
    "directives, request_, framing, body, length",
    [
        ("", post(None, method="GET"), "none", b"", None),
        ("", post(None), "none", b"", None),
        ("", post(b""), "length", b"", "0"),
        ("", post(b"abc"), "length", b"abc", "3"),
        ("", post(b"abc", method="GET"), "length", b"abc", "3"),
        ("", post(b"abc", method="DELETE"), "length", b"abc", "3"),
        ("", CHUNKED, "length", b"abcde", "5"),
        ("proxy_request_buffering off;", post(b"abc"), "length", b"abc", "3"),
        ("proxy_set_body own;", post(b"abc"), "length", b"own", "3"),
        ("proxy_set_body own;", post(None, method="GET"), "length", b"own", "3"),
        ('proxy_set_body "";', post(b"abc"), "length", b"", "0"),
        ("proxy_set_body $request_method-$request_body;", post(b"abc"), "length", b"POST-abc", "8"),
        ("proxy_set_body own;", CHUNKED, "length", b"own", "3"),
        ("proxy_set_body own; proxy_request_buffering off;", CHUNKED, "length", b"own", "3"),
        ('proxy_pass_request_body off; proxy_set_header Content-Length "";', post(b"abc"), "none", b"", None),
        ('proxy_set_header Transfer-Encoding "";', post(b"abc"), "length", b"abc", "3"),
        ('proxy_set_header Transfer-Encoding "";', CHUNKED, "length", b"abcde", "5"),
        ("client_body_buffer_size 8; client_max_body_size 1m;", post(b"x" * 50_000), "length", b"x" * 50_000, "50000"),
    ],
)
def test_bodies(sent, directives, request_, framing, body, length):
    got = sent(request_, directives)
    assert (got.framing, got.body, got.get("Content-Length")) == (framing, body, length)
    assert got.get("Transfer-Encoding") is None


@pytest.mark.parametrize("version, framing", [("1.1", "chunked"), ("1.0", "length")])
def test_a_chunked_body_that_is_not_buffered(serve, upstream, version, framing):
    scripted = upstream(answering(OK))
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            location / {{
                proxy_http_version {version};
                proxy_set_header Connection "";
                proxy_request_buffering off;
                proxy_pass http://@upstream@;
            }}
        }}
        """,
        upstream=scripted.address,
    )
    with proxy.connect() as wire:
        wire.send(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        if framing == "chunked":
            scripted.connection()
        wire.send(b"3\r\nabc\r\n")
        wire.send(b"2\r\nde\r\n0\r\nX-T: 1\r\n\r\n")
        assert wire.read_response().status == 200
    got = scripted.request()
    assert (got.framing, got.body, got.trailers) == (framing, b"abcde", [])


def test_order_of_a_head_with_a_body(sent):
    got = sent(post(b"abc", "X-A: 1", "Content-Type: t/t"), "proxy_set_header X-Own 1;")
    names = [name for name in got.names() if name not in ("Connection",)]
    assert names == ["Host", "X-Own", "Content-Length", "X-A", "Content-Type"] or names == [
        "X-Own",
        "Host",
        "Content-Length",
        "X-A",
        "Content-Type",
    ]


# What is refused.


@pytest.mark.parametrize(
    "line, told",
    [
        ("proxy_pass ftp://x;", "invalid URL prefix"),
        ("proxy_pass x;", "invalid URL prefix"),
        ("proxy_pass http://;", 'no host in upstream ""'),
        ("proxy_pass http://a:x;", 'invalid port in upstream "a:x"'),
        ("proxy_pass http://127.0.0.1:99999;", 'invalid port in upstream "127.0.0.1:99999"'),
        ("proxy_pass http://no-such-host.invalid;", 'host not found in upstream "no-such-host.invalid"'),
        ("proxy_pass http://group:8080;", 'upstream "group" may not have port 8080'),
        ("proxy_pass http://127.0.0.1; proxy_pass http://127.0.0.1;", '"proxy_pass" directive is duplicate'),
        ("proxy_http_version 1.2;", 'invalid value "1.2"'),
        ("proxy_method a; proxy_method b;", '"proxy_method" directive is duplicate'),
        ("proxy_set_header a;", 'invalid number of arguments in "proxy_set_header" directive'),
        ("if ($host) { proxy_pass http://127.0.0.1/x; }", '"proxy_pass" cannot have URI part in location given by'),
        ("location ~ x { proxy_pass http://127.0.0.1/; }", '"proxy_pass" cannot have URI part in location given by'),
    ],
)
def test_what_is_refused(serve, line, told):
    with pytest.raises(RuntimeError, match=re.escape(told)):
        serve(f"upstream group {{ server 127.0.0.1:1; }} server {{ listen 127.0.0.1:@port@; location / {{ {line} }} }}")


@pytest.mark.parametrize(
    "value, status, told",
    [
        ("ftp://x", 500, 'invalid URL prefix in "ftp://x"'),
        ("", 500, 'invalid URL prefix in ""'),
        ("http://nobody.invalid", 502, "no resolver defined to resolve nobody.invalid"),
    ],
)
def test_values_that_lead_nowhere(serve, value, status, told):
    proxy = serve("server { listen 127.0.0.1:@port@; location / { proxy_pass $arg_u; } }")
    assert proxy.get(f"/?u={value}").status == status
    proxy.logged(told)


@pytest.mark.parametrize(
    "location, pass_",
    [("~ ^/(.*)$", "proxy_pass http://@upstream@/$1;"), ("/", "proxy_pass http://@upstream@$uri;"), ("/", "proxy_pass http://group$uri;")],
)
def test_a_value_is_sent_byte_for_byte(sent, location, pass_):
    assert sent(get("/caf%E9/%c3%a9"), location=location, pass_=pass_).target == "/caf\xe9/\xc3\xa9"


# $proxy_host and $proxy_port of a URL with variables are those of its value.


@pytest.mark.parametrize(
    "pass_, host, port",
    [
        ("set $b @upstream@; proxy_pass http://$b;", "127.0.0.1:@upstream_port@", "@upstream_port@"),
        ("set $b group; proxy_pass http://$b/x;", "group", "80"),
    ],
)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_the_destination_that_a_value_names(sent, pass_, host, port, version):
    lines = "proxy_set_header Host $proxy_host; proxy_set_header X-Port $proxy_port; proxy_set_header X-Host $proxy_host;"
    got = sent(get("/x"), directives=f"{lines} proxy_http_version {version};", pass_=pass_, modern=False)
    told = got.address.split(":")[1]
    host, port = (text.replace("@upstream_port@", told) for text in (host, port))
    assert (got.get("Host"), got.get("X-Host"), got.get("X-Port")) == (host, host, port)
