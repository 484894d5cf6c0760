"""Who is let in: allow and deny, satisfy, limit_except."""

import socket

import pytest

from harness.upstream import answering, response
from harness.wire import Wire

differs = pytest.mark.differs_in_nginx
GET = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def marked(rows, old: dict[str, str]):
    """The rows of a table; those that an older nginx answers differently are marked."""
    return [pytest.param(*row, id=row[0], marks=[differs(old[row[0]])] if row[0] in old else []) for row in rows]


# allow, deny.

RULES = [
    ("nothing said", "", 200),
    ("deny all", "deny all;", 403),
    ("allow all", "allow all; deny all;", 200),
    ("the first that matches decides", "deny 127.0.0.1; allow all;", 403),
    ("an address", "allow 127.0.0.1; deny all;", 200),
    ("another address", "allow 127.0.0.2; deny all;", 403),
    ("no match is no opinion", "deny 127.0.0.2;", 200),
    ("a network", "allow 127.0.0.0/8; deny all;", 200),
    ("another network", "allow 10.0.0.0/8; deny all;", 403),
    ("the network of everything", "deny 0.0.0.0/0;", 403),
    ("IPv6 rules do not hold for IPv4", "deny ::/0;", 200),
    ("unix: does not hold for IPv4", "deny unix:;", 200),
    ("a whole address by mask", "deny 127.0.0.1/32;", 403),
    ("low bits are left out", "deny 127.1.2.3/8;", 403),
    ("leading zeros are decimal", "deny 127.000.000.001;", 403),
]


@pytest.mark.parametrize("name, rules, status", RULES, ids=[row[0] for row in RULES])
def test_rules(shared, name, rules, status):
    locations = "\n".join(f"location /{at}/ {{ root none; {row[1]} index /ok; }}" for at, row in enumerate(RULES))
    proxy = shared(f"{locations}\nlocation = /ok {{ try_files $uri @ok; }} location @ok {{ return 200 ok; }}")
    at = [row[0] for row in RULES].index(name)
    assert proxy.get(f"/{at}/").status == status


def test_a_refusal_is_told(shared):
    proxy = shared("location / { deny all; }")
    answer = proxy.get("/told?x=1")
    assert answer.start == "HTTP/1.1 403 Forbidden"
    line = proxy.logged("access forbidden by rule")
    assert "[error]" in line
    assert line.endswith(
        'access forbidden by rule, client: 127.0.0.1, server: , request: "GET /told?x=1 HTTP/1.1", host: "example.com"'
    )


INHERITANCE = [
    ("/", 403, "from the server"),
    ("/in/", 403, "from the server to nested ones"),
    ("/own/", 404, "a level with a rule has no others"),
    ("/own/deep/", 404, "and hands on its own"),
    ("/other/", 404, "an opinion that does not match is no opinion"),
]


@pytest.mark.parametrize("target, status, why", INHERITANCE, ids=[row[2] for row in INHERITANCE])
def test_rules_are_inherited_as_a_whole(shared, target, status, why):
    proxy = shared(
        """
        deny all;
        location / { root none; }
        location /own/ { root none; allow 127.0.0.1; location /own/deep/ { } }
        location /other/ { root none; deny 127.0.0.2; }
        """
    )
    assert proxy.get(target).status == status


ORDER = [
    ("return comes first", "location / { deny all; return 200 x; }", 200),
    ("rewrite comes first", "location / { deny all; rewrite ^ /y last; } location /y { return 201; }", 201),
    ("the server's rewrite comes first", "return 202 x; deny all;", 202),
    ("try_files comes later", "location / { deny all; try_files /none =418; }", 403),
    ("a file that is not there", "location / { deny all; root none; }", 403),
    ("a method that a file does not have", "location / { deny all; root none; }", 403),
    ("internal comes first", "location / { deny all; internal; }", 404),
    ("a body that is too large comes first", "location / { deny all; client_max_body_size 1; }", 403),
    (
        "error_page goes through it again",
        "location / { deny all; error_page 403 /e; } location /e { deny all; }",
        403,
    ),
    ("error_page is let in", "location / { deny all; error_page 403 =201 /e; } location /e { return 200; }", 201),
    ("error_page of a server that is closed", "deny all; error_page 403 =201 /e; location /e { allow all; }", 404),
    ("a named location has its own", "location / { try_files /n @n; } location @n { deny all; }", 403),
    ("an index is a new request", "location = / { index x; root html; } location / { deny all; }", 403),
]


@pytest.mark.parametrize("name, server, status", ORDER, ids=[row[0] for row in ORDER])
def test_access_has_its_phase(serve, name, server, status):
    proxy = serve(f"server {{ listen 127.0.0.1:@port@;\n{server}\n}}")
    (proxy.prefix / "html/x").write_text("x")
    assert proxy.get("/").status == status


def test_too_large_a_body_comes_before_access(shared):
    proxy = shared("location / { deny all; client_max_body_size 1; }")
    assert proxy.get("/", method="POST", body=b"12").status == 413


SATISFY = [
    ("all", "satisfy all; allow 127.0.0.1;", 404),
    ("all refused", "satisfy all; deny all;", 403),
    ("any", "satisfy any; allow 127.0.0.1;", 404),
    ("any refused", "satisfy any; deny all;", 403),
    ("any without an opinion", "satisfy any; deny 127.0.0.2;", 404),
    ("any in capitals", "satisfy ANY; deny all;", 403),
]


@pytest.mark.parametrize("name, text, status", SATISFY, ids=[row[0] for row in SATISFY])
def test_satisfy(shared, name, text, status):
    proxy = shared(f"location / {{ root none; {text} }}")
    assert proxy.get("/").status == status
    if status == 403:
        # With `any`, too, when it is the final answer.
        proxy.logged("access forbidden by rule")


def test_a_client_of_a_unix_socket(serve, tmp_path):
    path = tmp_path / "s"
    proxy = serve(
        f"""
        server {{
            listen 127.0.0.1:@port@;
            listen unix:{path};
            root none;
            location /local {{ allow unix:; deny all; }}
            location /all {{ deny all; }}
            location /ip {{ deny 0.0.0.0/0; deny ::/0; }}
        }}
        """
    )
    for target, status in {"/local": 404, "/all": 403, "/ip": 404}.items():
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        with Wire(sock) as wire:
            wire.send(GET.replace("/ ", f"{target} ", 1))
            assert wire.read_response().status == status, target
        assert proxy.get(target).status == {"/local": 403, "/all": 403, "/ip": 403}[target]


def test_a_client_of_an_ipv6_socket(serve):
    proxy = serve(
        """
        server {
            listen [::]:@port@ ipv6only=off;
            root none;
            location /v4 { deny 127.0.0.1; }
            location /mapped { deny ::ffff:127.0.0.1; }
            location /both { allow 10.0.0.1; deny ::/0; }
            location /v6 { deny ::/0; }
        }
        """
    )
    # A mapped address is tested by the rules for IPv4 when there are any.
    for target, status in {"/v4": 403, "/mapped": 403, "/both": 404, "/v6": 403}.items():
        assert proxy.get(target).status == status, target
    sock = socket.create_connection(("::1", proxy.port))
    with Wire(sock) as wire:
        wire.send(GET.replace("/ ", "/v6 ", 1))
        assert wire.read_response().status == 403


REFUSED = [
    ("a host name", "allow localhost;", '[emerg] invalid parameter "localhost" in F:6'),
    ("33 bits", "deny 1.2.3.4/33;", '[emerg] invalid parameter "1.2.3.4/33" in F:6'),
    ("129 bits", "deny ::1/129;", '[emerg] invalid parameter "::1/129" in F:6'),
    ("a dotted mask", "deny 1.2.3.4/255.0.0.0;", '[emerg] invalid parameter "1.2.3.4/255.0.0.0" in F:6'),
    ("an address cut short", "deny 1.2.3;", '[emerg] invalid parameter "1.2.3" in F:6'),
    ("unix with a path", "deny unix:/x;", '[emerg] invalid parameter "unix:/x" in F:6'),
    ("no argument", "deny;", '[emerg] invalid number of arguments in "deny" directive in F:6'),
    ("low bits", "deny 1.2.3.4/24;", "[warn] low address bits of 1.2.3.4/24 are meaningless in F:6"),
    ("low bits of IPv6", "deny 2001:db8::1/32;", "[warn] low address bits of 2001:db8::1/32 are meaningless in F:6"),
    ("in an if", "location / { if ($uri) { deny all; } }", '[emerg] "deny" directive is not allowed here in F:6'),
    ("satisfy", "satisfy some;", '[emerg] invalid value "some" in F:6'),
    ("satisfy twice", "satisfy any; satisfy any;", '[emerg] "satisfy" directive is duplicate in F:6'),
    ("auth_delay", "auth_delay 1y;", '[emerg] "auth_delay" directive invalid value in F:6'),
    ("a method", "location / { limit_except FOO { } }", '[emerg] invalid method "FOO" in F:6'),
    ("no method", "location / { limit_except { } }", '[emerg] invalid number of arguments in "limit_except" directive in F:6'),
    ("in a server", "limit_except GET { }", '[emerg] "limit_except" directive is not allowed here in F:6'),
    (
        "twice",
        "location / { limit_except GET { } limit_except POST { } }",
        '[emerg] "limit_except" directive is duplicate in F:6',
    ),
    (
        "a return in it",
        "location / { limit_except GET { return 403; } }",
        '[emerg] "return" directive is not allowed here in F:6',
    ),
    (
        "a root in it",
        "location / { limit_except GET { root x; } }",
        '[emerg] "root" directive is not allowed here in F:6',
    ),
    (
        "a URI of proxy_pass in it",
        "location / { limit_except GET { proxy_pass http://127.0.0.1:1/; } }",
        '[emerg] "proxy_pass" cannot have URI part in location given by regular expression, or inside named location,'
        ' or inside "if" statement, or inside "limit_except" block in F:6',
    ),
]


@pytest.mark.parametrize("name, text, expected", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_said_when_it_is_read(refused, name, text, expected):
    assert refused(text)[0] == expected


# limit_except.

LIMITED = """
root html;
location /files/ { alias html/; limit_except GET { deny all; } }
location /post { limit_except POST { deny all; } return 200 posted; }
location /lower { limit_except get post { deny all; } return 200 x; }
location /unknown { limit_except GET POST PUT DELETE MKCOL COPY MOVE OPTIONS PROPFIND PROPPATCH LOCK UNLOCK PATCH {
    deny all; } return 200 x; }
location /proxied { proxy_pass http://@up@; limit_except GET { allow all; } }
location /uri/ { proxy_pass http://@up@/to/; limit_except GET { allow all; } }
location /other { root html; limit_except GET { proxy_pass http://@up@; } }
location /steps { set $v set; add_header X-V "v=$v" always; proxy_pass http://@up@; limit_except GET { allow all; } }
location /if { limit_except GET { deny all; } if ($arg_x) { return 201; } return 200 x; }
location /nested/ { limit_except GET { deny all; } location /nested/free/ { return 200 x; } return 200 x; }
location /tried { limit_except GET { allow all; } try_files /none =418; }
location /error { return 404; error_page 404 /files/; }
location /named { try_files /none @named; }
location @named { limit_except GET { deny all; } return 200 x; }
location ~ ^/re { limit_except GET { deny all; } return 200 x; }
location = /exact { limit_except GET { deny all; } return 200 x; }
"""
LIMITED_ROWS = [
    ("GET", "/files/f", 200, "GET is allowed"),
    ("HEAD", "/files/f", 200, "GET is HEAD as well"),
    ("POST", "/files/f", 403, "all others are limited"),
    ("DELETE", "/files/f", 403, "one that files do not have"),
    ("FOO", "/files/f", 403, "one that nobody knows"),
    ("POST", "/post", 200, "only POST"),
    ("GET", "/post", 403, "not even GET"),
    ("HEAD", "/post", 403, "nor HEAD"),
    ("GET", "/lower", 200, "any case"),
    ("POST", "/lower", 200, "several"),
    ("PUT", "/lower", 403, "and no others"),
    ("MKCOL", "/unknown", 200, "methods of WebDAV"),
    ("PATCH", "/unknown", 200, "PATCH"),
    ("FOO", "/unknown", 403, "what is unknown is limited"),
    ("GET", "/proxied", 222, "an upstream for all"),
    ("POST", "/proxied", 222, "the upstream is inherited"),
    ("POST", "/uri/x", 222, "its URI too"),
    ("GET", "/other", 404, "no upstream outside"),
    ("POST", "/other", 222, "an upstream of the block's own"),
    ("PUT", "/if?x=1", 403, "rewrite steps do not run"),
    ("GET", "/if?x=1", 201, "but for allowed methods"),
    ("POST", "/nested/x", 403, "the outer location"),
    ("POST", "/nested/free/x", 200, "is not inherited"),
    ("GET", "/tried", 418, "try_files for allowed methods"),
    ("POST", "/tried", 404, "try_files is not inherited"),
    ("POST", "/error", 403, "an error page is a GET"),
    ("POST", "/named", 403, "a named location keeps the method"),
    ("GET", "/named", 200, "a named location"),
    ("POST", "/reg", 403, "a regex"),
    ("POST", "/exact", 403, "an exact location"),
]


@pytest.fixture(scope="module")
def limited(shared):
    from harness.upstream import Upstream

    server = Upstream(answering(lambda r: response(r.target.encode(), status="222 Up")))
    yield shared(LIMITED, files={"html/f": "file"}, up=server.address)
    server.stop()


@pytest.mark.parametrize("method, target, status, why", LIMITED_ROWS, ids=[row[3] for row in LIMITED_ROWS])
def test_a_limit_on_methods(limited, method, target, status, why):
    body = b"" if method in ("POST", "PUT") else None
    answer = limited.get(target, method=method, body=body)
    assert answer.status == status
    if status == 222:
        assert answer.body.decode() == ("/to/x" if target == "/uri/x" else target)


def test_set_does_not_run_for_limited_methods(limited):
    assert limited.get("/steps").get("X-V") == "v=set"
    # The variable is there, but nobody gave it a value.
    assert limited.get("/steps", method="POST", body=b"").get("X-V") == "v="
    limited.logged('using uninitialized "v" variable')
