"""The headers module: expires, add_header, add_trailer, and the order of a response's head."""

import os
import re
import time
from email.utils import formatdate, parsedate_to_datetime

import pytest

from harness.proxied import MODERN
from harness.upstream import answering, chunked, response

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
EPOCH = "Thu, 01 Jan 1970 00:00:01 GMT"
MAX = "Thu, 31 Dec 2037 23:55:55 GMT"


@pytest.fixture
def local(serve):
    """`local(directives)`: a location that answers by itself, and files under /files/."""

    def start(directives="", answer="return 200 text;", http="", server=""):
        proxy = serve(
            f"""
            {http}
            server {{
                listen 127.0.0.1:@port@;
                {server}
                location / {{ {directives} {answer} }}
                location /files/ {{ {directives} alias html/; }}
            }}
            """
        )
        (proxy.prefix / "html/page.html").write_text("0123456789")
        return proxy

    return start


@pytest.fixture
def proxied(serve, upstream):
    def start(answer, directives="", http=""):
        server = upstream(answering(answer))
        return serve(
            f"""
            {http}
            server {{
                listen 127.0.0.1:@port@;
                {MODERN}
                location / {{ {directives} proxy_pass http://@upstream@; }}
            }}
            """,
            upstream=server.address,
        )

    return start


def seconds_ahead(answer, name="Expires") -> int:
    """How much later than its Date an answer's date is."""
    return round((parsedate_to_datetime(answer.get(name)) - parsedate_to_datetime(answer.get("Date"))).total_seconds())


# expires


@pytest.mark.parametrize(
    "value, ahead, cache_control",
    [
        ("1h", 3600, "max-age=3600"),
        ("+1h", 3600, "max-age=3600"),
        ("90", 90, "max-age=90"),
        ("1d2h", 93600, "max-age=93600"),
        ('"1h 30"', 3630, "max-age=3630"),
        ("1M", 2592000, "max-age=2592000"),
        ("1y", 31536000, "max-age=31536000"),
        ("0", 0, "max-age=0"),
        ("-1", -1, "no-cache"),
        ("-1h", -3600, "no-cache"),
        ("modified 1h", 3600, "max-age=3600"),
        ("modified -1h", -3600, "no-cache"),
    ],
)
def test_expires_in_time(local, value, ahead, cache_control):
    answer = local(f"expires {value};").get("/")
    assert seconds_ahead(answer) == ahead
    assert answer.all("Cache-Control") == [cache_control]


@pytest.mark.parametrize(
    "value, date, cache_control",
    [
        ("epoch", EPOCH, "no-cache"),
        ("max", MAX, "max-age=315360000"),
        ("off", None, None),
        ("$arg_e", None, None),
    ],
)
def test_expires_at_a_fixed_time(local, value, date, cache_control):
    answer = local(f"expires {value};").get("/")
    assert (answer.get("Expires"), answer.get("Cache-Control")) == (date, cache_control)


@pytest.mark.parametrize(
    "argument, cache_control",
    [
        ("1h", "max-age=3600"),
        ("epoch", "no-cache"),
        ("max", "max-age=315360000"),
        ("off", None),
        ("", None),
        ("nonsense", None),
        ("-5", "no-cache"),
        ("0", "max-age=0"),
    ],
)
def test_expires_out_of_a_variable(local, argument, cache_control):
    answer = local("expires $arg_e;").get(f"/?e={argument}")
    assert answer.get("Cache-Control") == cache_control
    assert (answer.get("Expires") is None) == (cache_control is None)


@pytest.mark.parametrize("hour", ["0", "6h", "12h", "18h30m", "24h"])
def test_expires_at_a_time_of_day(local, hour):
    answer = local(f"expires @{hour};").get("/")
    ahead = seconds_ahead(answer)
    assert 0 < ahead <= 86400
    assert answer.get("Cache-Control") == f"max-age={ahead}"
    local_time = time.localtime(parsedate_to_datetime(answer.get("Expires")).timestamp())
    wanted = {"0": (0, 0), "6h": (6, 0), "12h": (12, 0), "18h30m": (18, 30), "24h": (0, 0)}[hour]
    assert (local_time.tm_hour, local_time.tm_min, local_time.tm_sec) == (*wanted, 0)


@pytest.mark.parametrize(
    "value, age, cache_control",
    [("modified 1h", 600, "max-age=3000"), ("modified 10m", 3600, "no-cache"), ("modified 0", 500, "max-age=0")],
)
def test_expires_after_the_modification_of_a_file(local, value, age, cache_control):
    proxy = local(f"expires {value};")
    now = int(time.time())
    os.utime(proxy.prefix / "html/page.html", (now - age, now - age))
    answer = proxy.get("/files/page.html")
    late = int(parsedate_to_datetime(answer.get("Date")).timestamp()) - now
    if cache_control == "max-age=3000":
        cache_control = f"max-age={3000 - late}"
    assert answer.get("Cache-Control") == cache_control


def test_expires_after_the_modification_an_upstream_tells(proxied):
    modified = formatdate(time.time() - 7200, usegmt=True)
    answer = proxied(response(b"x", f"Last-Modified: {modified}"), "expires modified 1d;").get("/")
    assert seconds_ahead(answer) in range(79198, 79202)


def test_expires_replaces_what_the_upstream_says(proxied):
    upstream = response(
        b"x", "Expires: Thu, 01 Jan 1998 00:00:00 GMT", "X-A: 1", "cache-control: private", "Cache-Control: no-store"
    )
    answer = proxied(upstream, "expires epoch;").get("/")
    assert answer.lines()[-3:] == [f"Expires: {EPOCH}", "X-A: 1", "cache-control: no-cache"]


@pytest.mark.parametrize(
    "status, has", [(200, True), (204, True), (301, True), (302, True), (404, False), (500, False), (202, False)]
)
def test_expires_is_for_what_is_no_error(local, status, has):
    answer = local("expires max;", f"return {status};").get("/")
    assert (answer.get("Expires") == MAX) is has


@pytest.mark.parametrize(
    "directives, told",
    [
        ("expires 5ms;", '"expires" directive invalid value'),
        ("expires x;", '"expires" directive invalid value'),
        ("expires modified max;", '"expires" directive invalid value'),
        ("expires foo 1h;", '"expires" directive invalid value'),
        ("expires @25h;", '"expires" directive daily time value must be less than 24 hours'),
        ("expires modified @1h;", '"expires" directive daily time cannot be used with "modified" parameter'),
        ("expires 1h; expires 2h;", '"expires" directive is duplicate'),
        ("add_header a b c;", 'invalid parameter "c"'),
        ("add_header a;", 'invalid number of arguments in "add_header" directive'),
        ("add_trailer a b c;", 'invalid parameter "c"'),
    ],
)
def test_what_is_refused(local, directives, told):
    with pytest.raises(RuntimeError, match=re.escape(told)):
        local(directives)


# add_header


def test_lines_come_behind_expires_in_order(local):
    answer = local("add_header X-One 1; expires epoch; add_header Cache-Control private; add_header X-Two $uri;").get("/a")
    assert answer.lines()[-5:] == [
        f"Expires: {EPOCH}",
        "Cache-Control: no-cache",
        "X-One: 1",
        "Cache-Control: private",
        "X-Two: /a",
    ]


@pytest.mark.parametrize(
    "status, plain", [(200, 1), (201, 1), (202, 0), (204, 1), (206, 1), (301, 1), (302, 1), (303, 1), (307, 1), (308, 1)]
    + [(400, 0), (401, 0), (403, 0), (404, 0), (405, 0), (500, 0), (502, 0), (503, 0)],
)
def test_statuses_of_add_header(local, status, plain):
    answer = local('add_header X-Plain 1; add_header X-Always 1 always; add_header X-Empty "" always;', f"return {status};").get("/")
    assert answer.status == status
    assert answer.all("X-Plain") == ["1"] * plain
    assert answer.all("X-Always") == ["1"]
    assert answer.all("X-Empty") == []


def test_names_that_exist_are_added_once_more(proxied):
    answer = proxied(
        response(b"x", "X-A: up", "Content-Type: text/css"),
        "add_header X-A own; add_header Server s; add_header Content-Type t/t; add_header Date d;",
    ).get("/")
    assert answer.all("X-A") == ["up", "own"]
    assert answer.all("Content-Type") == ["text/css", "t/t"]
    assert answer.all("Server")[1:] == ["s"]
    assert answer.all("Date")[1:] == ["d"]


@pytest.mark.parametrize(
    "directive, etags, modified",
    [
        ('add_header ETag "\\"x\\"";', ['"x"'], 1),
        ('add_header etag "";', [], 1),
        ("add_header Last-Modified yesterday;", None, ["yesterday"]),
        ('add_header Last-Modified "";', None, 0),
        ("add_header Last-Modified one; add_header last-modified two;", None, ["two"]),
    ],
)
def test_validators_of_a_file_are_replaced(local, directive, etags, modified):
    answer = local(directive).get("/files/page.html")
    if etags is not None:
        assert answer.all("ETag") == etags
    if isinstance(modified, list):
        assert answer.all("Last-Modified") == modified
        # Not in its fixed place any more.
        assert answer.names().index("Connection") < answer.names().index(answer.names()[-2])
    else:
        assert len(answer.all("Last-Modified")) == modified


@pytest.mark.parametrize(
    "directive, lines",
    [
        ("add_header Last-Modified m; add_header X-B 2;", ["ETag: e", "Last-Modified: m", "X-A: 1", "X-B: 2"]),
        ("add_header ETag n;", ["ETag: n", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "X-A: 1"]),
        ('add_header ETag ""; add_header Last-Modified "";', ["X-A: 1"]),
    ],
)
def test_validators_of_an_upstream_are_replaced_in_their_place(proxied, directive, lines):
    answer = proxied(
        response(b"x", "ETag: e", "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT", "X-A: 1"), directive
    ).get("/")
    assert answer.lines()[-len(lines) :] == lines
    assert len(answer.all("ETag")) + len(answer.all("Last-Modified")) == len(lines) - (2 if "X-B" in directive else 1)


def test_lines_of_an_inner_level_replace_all(serve):
    proxy = serve(
        """
        add_header X-Http 1;
        server {
            listen 127.0.0.1:@port@;
            location / { return 200; }
            location /own { add_header X-Own 1; return 200; }
            location /if { if ($arg_x) { add_header X-If 1; } add_header X-Location 1; return 200; }
        }
        """
    )
    assert proxy.get("/").all("X-Http") == ["1"]
    own = proxy.get("/own")
    assert (own.get("X-Http"), own.get("X-Own")) == (None, "1")
    assert proxy.get("/if").get("X-Location") == "1"


@ringx_only("newer than the distribution's nginx")
@pytest.mark.parametrize(
    "mode, own, names",
    [
        ("", "", ["X-Outer"]),
        ("", "add_header X-Own 1;", ["X-Own"]),
        ("add_header_inherit on;", "add_header X-Own 1;", ["X-Own"]),
        ("add_header_inherit off;", "", []),
        ("add_header_inherit off;", "add_header X-Own 1;", ["X-Own"]),
        ("add_header_inherit merge;", "", ["X-Outer"]),
        ("add_header_inherit merge;", "add_header X-Own 1;", ["X-Own", "X-Outer"]),
    ],
)
def test_how_lines_are_inherited(local, mode, own, names):
    answer = local(f"{mode} {own}", server="add_header X-Outer 1;").get("/")
    assert [name for name in answer.names() if name.startswith("X-")] == names


@ringx_only("newer than the distribution's nginx")
def test_trailers_are_inherited_likewise(local):
    proxy = local("add_trailer X-Own 1; add_trailer_inherit merge;", server="add_trailer X-Outer 2;")
    assert proxy.get("/").trailers == ["X-Own: 1", "X-Outer: 2"]


def test_the_order_of_a_file_s_head(local):
    proxy = local("add_header X-A 1; expires max; keepalive_timeout 5 7;")
    answer = proxy.ask(b"GET /files/page.html HTTP/1.1\r\nHost: h\r\n\r\n")
    assert answer.names() == [
        "Server", "Date", "Content-Type", "Content-Length", "Last-Modified", "Connection", "Keep-Alive", "ETag",
        "Expires", "Cache-Control", "X-A", "Accept-Ranges",
    ]  # fmt: skip


def test_the_order_of_an_upstream_s_head(proxied):
    answer = proxied(
        b"HTTP/1.1 200 OK\r\nX-First: 1\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: a/b\r\n"
        b"set-cookie: a=b\r\nTransfer-Encoding: chunked\r\nVary: x\r\n\r\n" + chunked(b"x"),
        "add_header X-A 1; expires max;",
    ).get("/")
    assert answer.names() == [
        "Server", "Date", "Content-Type", "Transfer-Encoding", "Connection", "X-First", "Last-Modified", "set-cookie",
        "Vary", "Expires", "Cache-Control", "X-A",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "directives, answer, place",
    [
        ("", "return 301 /x;", "fixed"),
        ("", "return 301 http://h/x;", "list"),
        ("absolute_redirect off;", "return 301 /x;", "list"),
        ("", "rewrite ^ /y redirect;", "fixed"),
    ],
)
def test_the_place_of_a_location(local, directives, answer, place):
    names = local(f"{directives} add_header X-A 1;", answer).get("/").names()
    assert names[-3:] == (["Location", "Connection", "X-A"] if place == "fixed" else ["Connection", "Location", "X-A"])


# add_trailer


def test_a_trailer_makes_chunks(local):
    answer = local('add_trailer X-T "$status"; add_trailer X-None "";').get("/")
    assert (answer.framing, answer.body, answer.trailers) == ("chunked", b"text", ["X-T: 200"])
    assert answer.get("Content-Length") is None


def test_a_trailer_behind_a_file(local):
    answer = local("add_trailer X-T $body_bytes_sent;").get("/files/page.html")
    assert (answer.framing, answer.body) == ("chunked", b"0123456789")
    assert [line.split(":")[0] for line in answer.trailers] == ["X-T"]


def test_a_trailer_behind_a_range(local):
    answer = local("add_trailer X-T 1;").get("/files/page.html", "Range: bytes=2-4")
    assert (answer.status, answer.body, answer.trailers) == (206, b"234", ["X-T: 1"])
    assert answer.get("Content-Range") == "bytes 2-4/10"


@pytest.mark.parametrize(
    "body", [response(b"hello"), b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hel", b"lo")]
)
def test_a_trailer_behind_an_upstream_s_body(proxied, body):
    answer = proxied(body, "add_trailer X-T $upstream_http_x_none$upstream_status;").get("/")
    assert (answer.framing, answer.body, answer.trailers) == ("chunked", b"hello", ["X-T: 200"])


def test_a_large_body_with_a_trailer(proxied):
    body = bytes(range(256)) * 4096
    answer = proxied(response(body), "add_trailer X-T 1;").get("/")
    assert (answer.body == body, answer.trailers) == (True, ["X-T: 1"])


def test_keepalive_goes_on_behind_a_trailer(local):
    proxy = local("add_trailer X-T $request_uri;")
    with proxy.connect() as wire:
        for target in ("/1", "/2", "/files/page.html"):
            wire.send(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")
            assert wire.read_response().trailers == [f"X-T: {target}"]


@pytest.mark.parametrize(
    "request_, framing",
    [
        ("GET / HTTP/1.0\r\n\r\n", "length"),
        ("HEAD / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "none"),
    ],
)
def test_no_trailer_for(local, request_, framing):
    answer = local("add_trailer X-T 1;").ask(request_)
    assert (answer.framing, answer.trailers, answer.get("Content-Length")) == (framing, [], "4")


@pytest.mark.parametrize("always, framing", [("", "length"), ("always", "chunked")])
def test_a_trailer_of_an_error(local, always, framing):
    answer = local(f"add_trailer X-T 1 {always};", "return 404;").get("/")
    assert (answer.status, answer.framing) == (404, framing)


def test_no_trailer_without_chunks(local):
    answer = local("add_trailer X-T 1; chunked_transfer_encoding off;").get("/")
    assert (answer.framing, answer.body) == ("length", b"text")


@pytest.mark.parametrize("status", [204, 304])
def test_no_trailer_without_a_body(local, status):
    answer = local("add_trailer X-T 1;", f"return {status};").get("/")
    assert answer.get("Transfer-Encoding") is None


@differs("the older one knows the first of several")
def test_trailers_are_variables(local):
    proxy = local(
        "add_trailer X-T one; add_trailer X-T two; access_log logs/trailers.log trailers;",
        http="log_format trailers '$sent_trailer_x_t|$sent_trailer_x_none';",
    )
    proxy.get("/")
    assert proxy.accessed(1, "trailers.log") == ["one, two|-"]
