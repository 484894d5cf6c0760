"""sticky: a session goes to the server that began it."""

import hashlib
import re
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from harness.group import grouped, letter
from harness.proxy import Binary, Proxy, eventually
from harness.upstream import answering, request, response, script, send, to_end

pytestmark = pytest.mark.ringx_only("sticky is younger")


@pytest.fixture
def group(serve, upstream):
    """`group(sticky, lines)`: servers that answer with their letter and begin a session of it."""

    def start(sticky, lines=("A", "B"), method=""):
        handler = lambda name: letter(name, f"Set-Cookie: session=of-{name}", "X-From: up")
        proxy = grouped(serve, upstream, lines, method, sticky, handler)
        proxy.ids = {name: hashlib.md5(it.encode()).hexdigest() for name, it in proxy.addresses.items()}
        return proxy

    return start


def cookie(answer, name="srv"):
    lines = [value for value in answer.all("Set-Cookie") if value.startswith(f"{name}=")]
    assert len(lines) == 1, lines
    return lines[0]


def asked(proxy, *fields, count=4):
    return "".join(proxy.get("/", *fields).body.decode() for _ in range(count))


# cookie


def test_a_cookie_names_the_server(group):
    proxy = group("sticky cookie srv;")
    for letter in "ABAB":
        answer = proxy.get("/")
        assert (answer.body.decode(), cookie(answer)) == (letter, f"srv={proxy.ids[letter]}")


def test_the_cookie_stands_before_the_server_s_headers(group):
    answer = group("sticky cookie srv;").get("/")
    names = answer.names()
    first = names.index("Set-Cookie")
    assert answer.fields[first][1].startswith("srv=") and names[first + 1 :] == ["Set-Cookie", "X-From"]


@pytest.mark.parametrize("letter", "AB")
@pytest.mark.parametrize("method", ["", "least_conn;", "ip_hash;", "hash $uri;", "hash $uri consistent;", "random;"])
def test_a_session_stays(group, letter, method):
    proxy = group("sticky cookie srv;", method=method)
    answers = [proxy.get("/", f"Cookie: a=b; srv={proxy.ids[letter]}; c=d") for _ in range(4)]
    assert [answer.body.decode() for answer in answers] == [letter] * 4
    assert {cookie(answer) for answer in answers} == {f"srv={proxy.ids[letter]}"}


@pytest.mark.parametrize("value", ["", "nobody", "0" * 32, "%00"])
def test_an_unknown_session_is_balanced(group, value):
    assert asked(group("sticky cookie srv;"), f"Cookie: srv={value}") == "ABAB"


def test_a_route_is_the_id(group):
    proxy = group("sticky cookie srv;", ["A route=one", "B route=two"])
    assert cookie(proxy.get("/")) == "srv=one"
    assert asked(proxy, "Cookie: srv=two") == "BBBB"


@pytest.mark.parametrize(
    "parameters, attributes",
    [
        ("", ""),
        ("domain=.example.com", "; domain=.example.com"),
        ("path=/", "; path=/"),
        ("httponly", "; httponly"),
        ("secure", "; secure"),
        ("samesite=strict", "; samesite=strict"),
        ("samesite=lax", "; samesite=lax"),
        ("samesite=none", "; samesite=none"),
        ("samesite=$arg_s", "; samesite=lax"),
        ("domain=$host", "; domain=example.com"),
        ("path=/x samesite=lax secure httponly domain=d", "; domain=d; httponly; secure; samesite=lax; path=/x"),
        ("expires=max", "; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age=315360000"),
        ("path=/ expires=max", "; expires=Thu, 31-Dec-37 23:55:55 GMT; max-age=315360000; path=/"),
    ],
)
def test_attributes(group, parameters, attributes):
    proxy = group(f"sticky cookie srv {parameters};", ["A route=a", "B"])
    assert cookie(proxy.get("/?s=lax")) == f"srv=a{attributes}"


def test_a_samesite_of_another_word_is_left_out(group):
    assert cookie(group("sticky cookie srv samesite=$arg_s;", ["A route=a", "B"]).get("/?s=x")) == "srv=a"


def test_expires_is_from_now(group):
    answer = group("sticky cookie srv expires=1h;", ["A route=a", "B"]).get("/")
    match = re.fullmatch(r"srv=a; expires=(\w{3}, \d\d-\w{3}-\d\d \d\d:\d\d:\d\d GMT); max-age=3600", cookie(answer))
    passed = parsedate_to_datetime(match[1].replace("-", " ")) - parsedate_to_datetime(answer.get("Date"))
    assert 3598 <= passed.total_seconds() <= 3602


def test_a_failed_server_s_session_moves(group):
    proxy = group("sticky cookie srv;", ["dead", "A"])
    for _ in range(3):
        answer = proxy.get("/", f"Cookie: srv={proxy.ids['dead']}")
        assert (answer.body, cookie(answer)) == (b"A", f"srv={proxy.ids['A']}")


@pytest.mark.parametrize("state, served", [("drain", "AAAA"), ("down", "BBBB")])
def test_bound_to_a_server_that_leaves(group, state, served):
    proxy = group("sticky cookie srv;", [f"A {state}", "B"])
    assert asked(proxy, f"Cookie: srv={proxy.ids['A']}") == served
    assert asked(proxy) == "BBBB"


def test_the_cookie_comes_with_an_error_too(group):
    proxy = group("sticky cookie srv;", ["dead"])
    answer = proxy.get("/")
    assert (answer.status, cookie(answer)) == (502, f"srv={proxy.ids['dead']}")


def test_the_cookie_comes_with_a_101(serve, upstream):
    switch = send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                  b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")  # fmt: skip
    server = upstream(script(request, switch, to_end))
    proxy = serve(
        f"""
        upstream group {{ server {server.address} route=a; sticky cookie srv; }}
        server {{
            listen 127.0.0.1:@port@;
            location / {{
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection upgrade;
                proxy_pass http://group;
            }}
        }}
        """
    )
    wire = proxy.connect()
    wire.send(
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    answer = wire.read_head()
    assert answer.start.split()[1] == "101" and answer.all("Set-Cookie") == ["srv=a"]


# route


@pytest.mark.parametrize(
    "target, field, served",
    [
        ("/?r=b", "X: y", "BBBB"),
        ("/", "Cookie: r=b", "BBBB"),
        ("/?r=a", "Cookie: r=b", "AAAA"),
        ("/?r=", "Cookie: r=b", "BBBB"),
        ("/?r=c", "Cookie: r=b", "ABAB"),
        ("/", "X: y", "ABAB"),
    ],
)
def test_a_route(group, target, field, served):
    proxy = group("sticky route $arg_r $cookie_r;", ["A route=a", "B route=b"])
    answers = [proxy.get(target, field) for _ in range(4)]
    assert "".join(answer.body.decode() for answer in answers) == served
    assert not any("srv" in line for answer in answers for line in answer.all("Set-Cookie"))


# learn

LEARN = "sticky learn create=$upstream_cookie_session lookup=$cookie_session zone=z:64k"


@pytest.mark.parametrize("how", ["", " header", " timeout=1h"])
def test_a_session_is_learned(group, how):
    proxy = group(f"{LEARN}{how};")
    assert asked(proxy, "Cookie: session=of-B") == "ABBB"
    assert asked(proxy, "Cookie: session=of-A") == "AAAA"
    assert asked(proxy, "Cookie: session=of-C") in ("ABAB", "BABA")


def test_of_several_lookups_the_first_with_a_value(group):
    proxy = group(LEARN.replace("lookup=", "lookup=$arg_s lookup=") + ";")
    asked(proxy, count=2)
    assert "".join(proxy.get("/?s=of-B", "Cookie: session=of-A").body.decode() for _ in range(3)) == "BBB"
    assert "".join(proxy.get("/?s=", "Cookie: session=of-A").body.decode() for _ in range(3)) == "AAA"


def test_a_session_is_forgotten(group):
    proxy = group(f"{LEARN} timeout=1s;", ["A", "B drain"])
    assert asked(proxy, "Cookie: session=of-A") == "AAAA"
    # What B began before it was drained nobody knows here.
    assert asked(proxy, "Cookie: session=of-B") == "AAAA"


def test_a_full_zone_forgets_the_oldest(serve, upstream):
    server = upstream(answering(lambda asked: response(b"x", f"X-Session: {asked.target}")))
    proxy = serve(
        f"""
        upstream group {{
            server {server.address};
            sticky learn create=$upstream_http_x_session lookup=$arg_s zone=z:32k;
        }}
        server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
        """
    )
    wire = proxy.connect()
    for number in range(300):
        wire.send(f"GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n")
        wire.read_response()
    line = proxy.logged('could not allocate node in sticky session zone "z"')
    assert "[warn]" in line and "expiring least recently used session" in line


def test_sessions_survive_a_reload_and_are_known_to_all_shards(proxy, upstream):
    servers = [
        upstream(answering(response(name, f"Set-Cookie: session=of-{name.decode()}"))) for name in (b"A", b"B")
    ]
    lines = "".join(f"server {server.address};" for server in servers)

    def text(more):
        return f"""
            worker_processes 2;
            events {{ }}
            http {{
                {more}
                upstream group {{ {lines} {LEARN}; }}
                server {{ listen 127.0.0.1:@port@; location / {{ proxy_pass http://group; }} }}
            }}
        """

    started = proxy(text(""))
    while started.get("/").body != b"B":
        pass
    # It is learned at the end of the answer, which the client has by then.
    eventually(lambda: started.get("/", "Cookie: session=of-B").body == b"B", "the session is known")
    assert [started.get("/", "Cookie: session=of-B").body for _ in range(8)] == [b"B"] * 8
    started.reload(text("server_tokens off;"))
    assert [started.get("/", "Cookie: session=of-B").body for _ in range(8)] == [b"B"] * 8


# The configuration.


@pytest.fixture
def tried(binary: Binary, tmp_path: Path):
    def run(text):
        proxy = Proxy(binary, tmp_path / "tried", f"events {{ }}\nhttp {{\nupstream a {{ {text} }}\n}}\n")
        arguments = ("-p", f"{proxy.prefix}/", "-c", proxy.conf, "-e", "logs/error.log", "-g", "pid logs/nginx.pid;")
        return binary.run(*arguments, "-t")

    return run


@pytest.mark.parametrize(
    "sticky, text",
    [
        ("sticky cookie a; sticky cookie b;", '"sticky" directive is duplicate'),
        ("sticky cookie a path;", '"sticky" directive no value for "path"'),
        ("sticky cookie a path=;", '"sticky" directive no value for "path"'),
        ("sticky cookie a domain;", '"sticky" directive no value for "domain"'),
        ("sticky cookie a expires=;", '"sticky" directive no value for "expires"'),
        ("sticky cookie a samesite=maybe;", '"sticky" directive invalid "samesite" parameter value'),
        ("sticky cookie a foo;", 'unknown parameter "foo"'),
        ("sticky cookie a httponly=1;", 'unknown parameter "httponly=1"'),
        ("sticky magic a;", 'unknown parameter "magic"'),
        ("sticky learn create=$uri zone=z:64k;", '"sticky" directive "lookup" parameter is not specified'),
        ("sticky learn lookup=$uri zone=z:64k;", '"sticky" directive "create" parameter is not specified'),
        ("sticky learn create=$uri lookup=$uri;", '"sticky" directive "zone" parameter is not specified'),
        ("sticky learn create=$uri lookup=$uri zone=z:1k;", '"sticky" directive zone is too small'),
        ("sticky learn create=$uri lookup=$uri zone=z:64k foo=1;", 'unknown parameter "foo=1"'),
        ("sticky cookie;", 'invalid number of arguments in "sticky" directive'),
        ("sticky route $nobody;", 'unknown "nobody" variable'),
    ],
)
def test_what_is_wrong(tried, sticky, text):
    done = tried(f"server 127.0.0.1; {sticky}")
    assert done.returncode == 1
    assert "[emerg]" in done.stderr and text in done.stderr


def test_a_method_behind_it_is_a_warning_and_the_end_of_it(tried, group):
    done = tried("server 127.0.0.1; sticky cookie a; least_conn;")
    assert done.returncode == 0 and "load balancing method redefined" in done.stderr
    assert group("sticky cookie srv; least_conn;").get("/").all("Set-Cookie") == ["session=of-A"]
