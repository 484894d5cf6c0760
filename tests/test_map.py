"""Variables from values: `map`, `geo`, `split_clients`."""

import re

import pytest

from harness.upstream import answering, response

differs = pytest.mark.differs_in_nginx


@pytest.fixture
def values(serve):
    """`values(http, [(request header X, value of $v), …])`: one server answers all of them."""

    def check(http: str, expected: dict[str, str], answer: str = "[$v]", **settings):
        proxy = serve(
            f'{http}\nserver {{ listen 127.0.0.1:@port@; location / {{ return 200 "{answer}"; }} }}', **settings
        )
        fields = {given: [f"X: {given}"] if given is not None else [] for given in expected}
        told = {given: proxy.get("/", *fields[given]).body.decode("latin-1") for given in expected}
        assert told == {given: f"[{value}]" for given, value in expected.items()}
        return proxy

    return check


def test_keys_are_exact_and_in_any_case(values):
    values(
        """map $http_x $v { default none; one 1; TWO 2; "" empty; "a b" spaced; *.c star; .c dot; }""",
        {
            "one": "1", "ONE": "1", "two": "2", "Two": "2", "three": "none", "": "empty", "a b": "spaced",
            "*.c": "star", ".c": "dot", "x.c": "none", "ones": "none", "on": "none", None: "empty",
        },
    )  # fmt: skip


def test_without_a_default_the_value_is_empty(values):
    values("map $http_x $v { a 1; b ''; }", {"a": "1", "b": "", "c": "", None: ""})


def test_words_with_a_meaning_can_be_keys(values):
    values(
        r"""map $http_x $v {
            default none; \default d; \include i; \hostnames h; \volatile v; \~x tilde; \\\y backslash;
        }""",
        {"default": "d", "include": "i", "hostnames": "h", "volatile": "v", "~x": "tilde", r"\y": "backslash",
         "x": "none"},
    )  # fmt: skip


def test_hostnames(values):
    values(
        """map $http_x $v {
            hostnames;
            default none;
            example.com exact; *.example.com sub; *.a.example.com suba; .dot.com dot; www.* www; www.x.* wwwx;
            ~^www\\.re regex; ~re\\.org$ "regex2";
        }""",
        {
            "example.com": "exact", "EXAMPLE.com": "exact", "example.com.": "exact", "b.example.com": "sub",
            "b.example.com.": "sub", "c.b.example.com": "sub", "a.example.com": "sub", "b.a.example.com": "suba",
            "dot.com": "dot", "x.dot.com": "dot", "y.x.dot.com": "dot", "xdot.com": "none", "www.y": "www",
            "www.x.y": "wwwx", "www.x": "www", "www": "none", "www.re.y": "www", "a.re.org": "regex2",
            "a.re.org.": "regex2", ".": "none", None: "none", "com": "none",
        },
    )  # fmt: skip


def test_regexes_come_in_order_behind_the_keys(values):
    values(
        r"""map $http_x $v {
            ~^a(?<rest>.*)$ "a($rest)";
            ~*^B(.)(.*)$ "b($1,$2)";
            ~^ab never;
            ~^C upper;
            abc key;
            default "none($http_x)";
        }""",
        {
            "abc": "key", "ABC": "key", "abd": "a(bd)", "a": "a()", "bxyz": "b(x,yz)", "BXY": "b(X,Y)",
            "c": "none(c)", "C": "upper", "ABd": "none(ABd)", None: "none()",
        },
    )  # fmt: skip


def test_no_regex_sees_an_empty_source(values):
    values("map $http_x $v { ~^ any; default none; }", {"a": "any", None: "none"})


def test_captures_stay_set(values):
    values(
        r"map $http_x $v { ~^(.)(?<second>.) hit; default miss; }",
        {"xyz": "hit x y", "q": "miss  "},
        answer="[$v $1 $second]",
    )


def test_a_source_of_several_parts(values):
    values("map $http_x:$request_method $v { a:get 1; default $http_x; }", {"a": "1", "b": "b"})


def test_maps_read_maps(values):
    values(
        """
        map $w $v { 2 two; 3 three; default "other $w"; }
        map $http_x $w { a 2; b 3; default $http_x; }
        """,
        {"a": "two", "b": "three", "c": "other c"},
    )


def test_a_cycle_is_noticed(serve):
    proxy = serve(
        """
        map $b $a { default $b; }
        map $a $b { default $a; }
        server { listen 127.0.0.1:@port@; return 200 "[$a]"; }
        """
    )
    assert proxy.get("/").body == b"[]"
    line = proxy.logged('cycle while evaluating variable "a"')
    assert "[error]" in line and "client: 127.0.0.1" in line


def test_a_map_of_itself(serve):
    proxy = serve("map $a $a { default x; } server { listen 127.0.0.1:@port@; return 200 [$a]; }")
    assert proxy.get("/").body == b"[x]"
    proxy.logged('cycle while evaluating variable "a"')


@pytest.mark.parametrize("volatile, told", [("", "/a /a"), ("volatile;", "/a /b")])
def test_a_value_is_kept_unless_volatile(serve, volatile, told):
    proxy = serve(
        f"""
        map $uri $v {{ {volatile} default $uri; }}
        server {{
            listen 127.0.0.1:@port@;
            location /a {{ set $first $v; rewrite ^ /b last; }}
            location /b {{ return 200 "$first $v"; }}
        }}
        """
    )
    assert proxy.get("/a").body.decode() == told
    # The next request on the connection begins anew.
    wire = proxy.connect()
    for _ in range(2):
        wire.send(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_response().body == b" /b"
        assert wire.read_response().body.decode() == told


@pytest.mark.parametrize("volatile, told", [("", "/a /a"), ("volatile;", "/a /b")])
def test_a_literal_value_is_kept_unless_volatile(serve, volatile, told):
    proxy = serve(
        f"""
        map $uri $v {{ {volatile} /a /a; /b /b; }}
        server {{
            listen 127.0.0.1:@port@;
            location /a {{ set $first $v; rewrite ^ /b last; }}
            location /b {{ return 200 "$first $v"; }}
        }}
        """
    )
    assert proxy.get("/a").body.decode() == told


def test_a_set_takes_the_place_of_the_map(serve):
    proxy = serve(
        """
        map $http_x $v { default mapped; }
        server {
            listen 127.0.0.1:@port@;
            location /set { set $v own; return 200 $v; }
            location / { return 200 $v; }
        }
        """
    )
    assert (proxy.get("/set").body, proxy.get("/").body) == (b"own", b"mapped")


def test_of_two_maps_the_last_one_holds(values):
    values("map $http_x $v { default one; } map $http_x $v { default two; }", {"a": "two"})


def test_included_lines(serve, tmp_path):
    (tmp_path / "lines").write_text("a 1;\nb 2;\n")
    proxy = serve(
        """
        map $http_x $v { default 0; include @lines@; c 3; }
        server { listen 127.0.0.1:@port@; return 200 $v; }
        """,
        lines=tmp_path / "lines",
    )
    assert [proxy.get("/", f"X: {x}").body for x in "abcd"] == [b"1", b"2", b"3", b"0"]


def test_hash_sizes_are_taken(values):
    values("map_hash_max_size 4096; map_hash_bucket_size 128; map $http_x $v { a 1; }", {"a": "1"})


def test_connection_upgrade(serve, upstream):
    """What the manual recommends for WebSocket."""
    seen = []

    def handler(wire):
        request = wire.read_request()
        seen.append((request.get("Upgrade"), request.get("Connection")))
        wire.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    backend = upstream(handler)
    proxy = serve(
        """
        map $http_upgrade $connection_upgrade { default upgrade; '' close; }
        server {
            listen 127.0.0.1:@port@;
            location / {
                proxy_pass http://127.0.0.1:@backend@;
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection $connection_upgrade;
            }
        }
        """,
        backend=backend.port,
    )
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    proxy.ask(f"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}\r\n\r\n")
    proxy.get("/")
    assert seen == [("websocket", "upgrade"), (None, "close")]


def test_in_a_condition_and_in_the_log(serve):
    proxy = serve(
        """
        map $status $loggable { ~^[23] 0; default 1; }
        map $http_x $is_bad { bad 1; default 0; }
        log_format v "$uri $nothing";
        map $http_y $nothing { x 1; }
        access_log logs/v.log v if=$loggable;
        server {
            listen 127.0.0.1:@port@;
            if ($is_bad) { return 403; }
            return 200 ok;
        }
        """
    )
    assert [proxy.get(f"/{x}", f"X: {x}").status for x in ("bad", "good", "bad")] == [403, 200, 403]
    assert proxy.accessed(2, "v.log") == ["/bad ", "/bad "]


def test_many_keys(values):
    lines = "".join(f"key{n} value{n};" for n in range(2000))
    values(f"map $http_x $v {{ {lines} }}", {f"key{n}": f"value{n}" for n in (0, 1, 777, 1999)} | {"key2000": ""})


def said(run) -> str:
    """Without nginx's process number."""
    return re.sub(r"\] \d+#\d+: ", "] ", run.stderr)


REFUSED = [
    ("map $uri v { }", 'invalid variable name "v"'),
    ("map $uri $ { }", 'invalid variable name "$"'),
    ("map $uri $uri { }", 'the duplicate "uri" variable'),
    ("map $uri $v { a; }", "invalid number of the map parameters"),
    ("map $uri $v { a b c; }", "invalid number of the map parameters"),
    ("map $uri $v { default 1; default 2; }", "duplicate default map parameter"),
    ("map $uri $v { a 1; A 2; }", 'conflicting parameter "a"'),
    ("map $uri $v { hostnames; .a.B 1; .A.b 2; }", 'conflicting parameter ".a.b"'),
    ("map $uri $v { hostnames; .a 1; *.a 2; }", 'conflicting parameter "*.a"'),
    ("map $uri $v { hostnames; a*b 1; }", 'invalid hostname or wildcard "a*b"'),
    ("map $uri $v { hostnames; a..b 1; }", 'invalid hostname or wildcard "a..b"'),
    ("map $uri $v { ~( 1; }", 'pcre2_compile() failed: missing closing parenthesis in "("'),
    ("map $uri $v { a $nowhere; }", 'unknown "nowhere" variable'),
    ("map $nowhere $v { a 1; }", 'unknown "nowhere" variable'),
    ("map $uri { }", 'invalid number of arguments in "map" directive'),
    ("split_clients $uri v { }", 'invalid variable name "v"'),
    ("split_clients $uri $v { 50 a; }", 'invalid percent value "50"'),
    ("split_clients $uri $v { 0% a; }", 'invalid percent value "0%"'),
    ("split_clients $uri $v { 1.234% a; }", 'invalid percent value "1.234%"'),
    ("split_clients $uri $v { x% a; }", 'invalid percent value "x%"'),
    ("split_clients $uri $v { 60% a; 40.01% b; }", "percent total is greater than 100%"),
    ("split_clients $uri $v { * a; 1% b; }", "percent total is greater than 100%"),
    ("geo v { }", 'invalid variable name "v"'),
    ("geo uri $v { }", 'invalid variable name "uri"'),
    ("geo $v { 1.2.3.4; }", "invalid number of the geo parameters"),
    ("geo $v { 1.2.3.4/33 a; }", 'invalid network "1.2.3.4/33"'),
    ("geo $v { x a; }", 'invalid network "x"'),
    ("geo $v { proxy x; }", 'invalid network "x"'),
    ("geo $v { 1.2.3.4 a; ranges; }", 'the "ranges" directive must be the first directive inside "geo" block'),
    ("geo $v { ranges; 1.2.3.4 a; }", 'invalid range "1.2.3.4"'),
    ("geo $v { ranges; 1.2.3.4-1.2.3.3 a; }", 'invalid range "1.2.3.4-1.2.3.3"'),
    (
        "geo $v { ranges; 1.2.3.4-1.2.3.8 a; 1.2.3.6-1.2.3.10 b; }",
        'range "1.2.3.6-1.2.3.10" overlaps "1.2.3.4-1.2.3.8"',
    ),
]


@pytest.mark.parametrize("text, error", REFUSED)
def test_refused(binary, tmp_path, text, error):
    conf = tmp_path / "x.conf"
    conf.write_text(f"events {{ }}\nhttp {{\n{text}\n}}\n")
    run = binary.run("-t", "-c", conf, "-p", f"{tmp_path}/", "-e", "stderr")
    assert run.returncode == 1
    assert f"[emerg] {error}" in said(run), run.stderr


@pytest.mark.parametrize(
    "text, warning",
    [
        ("geo $v { 1.2.3.4 a; 1.2.3.4 b; }", 'duplicate network "1.2.3.4", value: "b", old value: "a"'),
        ("geo $v { delete 1.2.3.4; }", 'no network "1.2.3.4" to delete'),
        ("geo $v { 1.2.3.4/8 a; }", "low address bits of 1.2.3.4/8 are meaningless"),
        (
            "geo $v { ranges; 1.2.3.4-1.2.3.4 a; 1.2.3.4-1.2.3.4 b; }",
            'duplicate range "1.2.3.4-1.2.3.4", value: "b", old value: "a"',
        ),
        ("geo $v { ranges; delete 1.2.3.4-1.2.3.5; }", 'no address range "1.2.3.4-1.2.3.5" to delete'),
    ],
)
def test_warnings(binary, tmp_path, text, warning):
    (tmp_path / "logs").mkdir()
    conf = tmp_path / "x.conf"
    conf.write_text(f"events {{ }}\nhttp {{\n{text}\n}}\n")
    run = binary.run("-t", "-c", conf, "-p", f"{tmp_path}/", "-e", "stderr")
    assert run.returncode == 0
    assert f"[warn] {warning} in {conf}:3" in said(run), run.stderr


# geo


def test_the_most_specific_network_decides(values):
    values(
        """geo $http_x $v {
            default none;
            10.0.0.0/8 a; 10.1.0.0/16 b; 10.1.1.0/24 c; 10.1.1.1 d; 10.9.0.0/16 e; delete 10.9.0.0/16;
            255.255.255.255 nobody; 2001:db8::/32 six; 2001:db8:1::/48 six1;
        }""",
        {
            "10.0.0.1": "a", "10.1.0.1": "b", "10.1.1.0": "c", "10.1.1.1": "d", "10.1.1.2": "c", "10.9.0.1": "a",
            "11.0.0.0": "none", "9.255.255.255": "none", "255.255.255.255": "nobody", "x": "nobody",
            "10.1.1.1:80": "nobody", "unix:": "nobody", "": "nobody", None: "nobody", "::ffff:10.1.1.1": "d",
            "2001:db8::1": "six", "2001:db8:1::1": "six1", "2001:db9::": "none", "::": "none",
        },
    )  # fmt: skip


def test_ranges(values):
    values(
        """geo $http_x $v {
            ranges;
            default none;
            1.0.0.0-1.0.0.255 a; 1.0.0.16-1.0.0.31 b; 1.0.0.250-1.0.0.255 c; 2.0.0.0-2.2.0.0 d;
            3.0.0.0-3.0.0.1 e; delete 3.0.0.0-3.0.0.1;
        }""",
        {
            "1.0.0.0": "a", "1.0.0.15": "a", "1.0.0.16": "b", "1.0.0.31": "b", "1.0.0.32": "a", "1.0.0.250": "c",
            "1.0.1.0": "none", "2.0.255.255": "d", "2.1.0.0": "d", "2.2.0.0": "d", "2.2.0.1": "none",
            "3.0.0.0": "none", "::1": "none", "::ffff:1.0.0.1": "a", "x": "none",
        },
    )  # fmt: skip


def test_geo_of_the_client(values):
    values("geo $v { default other; 127.0.0.1 local; }", {"": "local"})


def test_geo_without_a_default(values):
    values("geo $http_x $v { 1.2.3.4 a; }", {"1.2.3.4": "a", "1.2.3.5": "", "::1": ""})


def test_geo_of_a_real_address(values):
    values(
        "set_real_ip_from 127.0.0.1; real_ip_header X; geo $v { default other; 127.0.0.1 local; 1.2.3.0/24 near; }",
        {"1.2.3.4": "near", "4.3.2.1": "other", "bad": "local"},
    )


@pytest.mark.parametrize(
    "recursive, field, told",
    [
        ("", "X-Forwarded-For: 1.1.1.1", "one"),
        ("", "X-Forwarded-For: 1.1.1.1, 2.2.2.2", "two"),
        ("", "X-Forwarded-For: 1.1.1.1, 10.0.0.1", "proxy"),
        ("proxy_recursive;", "X-Forwarded-For: 1.1.1.1, 10.0.0.1", "one"),
        ("proxy_recursive;", "X-Forwarded-For: 2.2.2.2, 1.1.1.1, 10.0.0.1", "one"),
        ("", "X-Forwarded-For: bad", "local"),
        ("", "X: 1.1.1.1", "local"),
    ],
)
def test_geo_behind_a_proxy(serve, recursive, field, told):
    proxy = serve(
        f"""
        geo $v {{
            proxy 127.0.0.1; proxy 10.0.0.0/8; {recursive}
            1.1.1.1 one; 2.2.2.2 two; 10.0.0.0/8 proxy; 127.0.0.1 local;
        }}
        server {{ listen 127.0.0.1:@port@; return 200 $v; }}
        """
    )
    assert proxy.get("/", field).body.decode() == told


def test_geo_includes(serve, tmp_path):
    (tmp_path / "nets").write_text("1.1.1.1 one;\n")
    proxy = serve(
        """
        geo $http_x $v { include @nets@; default none; }
        server { listen 127.0.0.1:@port@; return 200 $v; }
        """,
        nets=tmp_path / "nets",
    )
    assert [proxy.get("/", f"X: {x}").body for x in ("1.1.1.1", "2.2.2.2")] == [b"one", b"none"]


# split_clients


def murmur_hash2(data: bytes) -> int:
    """MurmurHash2, 32 bits, seed 0."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = len(data)
    whole = len(data) & ~3
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if data[whole:]:
        h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return h ^ h >> 15


def test_clients_are_split_by_their_hash(values):
    shares = [(0.5, "half"), (20, "fifth"), (33.33, "third")]

    def expected(text: str) -> str:
        last = 0
        for percent, name in shares:
            last += round(percent * 100) * 0xFFFFFFFF // 10000
            if murmur_hash2(text.encode()) < last:
                return name
        return "rest"

    texts = [f"{'x' * (n % 7)}{n}" for n in range(150)]
    told = {text: expected(text) for text in texts}
    assert set(told.values()) >= {"fifth", "third", "rest"}
    values("split_clients $http_x $v { 0.5% half; 20% fifth; 33.33% third; * rest; }", told)


def test_shares_need_not_be_all(values):
    texts = [str(n) for n in range(20)]
    half = 5000 * 0xFFFFFFFF // 10000
    told = {text: "first" if murmur_hash2(text.encode()) < half else "" for text in texts}
    assert len(set(told.values())) == 2
    values("split_clients $http_x $v { 50% first; }", told)


def test_shares_that_are_all(values):
    texts = [str(n) for n in range(20)]
    half = 5000 * 0xFFFFFFFF // 10000
    told = {text: "first" if murmur_hash2(text.encode()) < half else "second" for text in texts}
    values("split_clients $http_x $v { 50% first; 50% second; }", told)


def test_the_string_may_have_several_parts(values):
    told = {"a": "all", "": "all"}
    values("split_clients $http_x:$uri:salt $v { 100% all; }", told)


GIVES_UP = r"~^/m/(?=a)(a|aa)+(?=$)|evil"
LONG = f"/m/{'a' * 60}b/evil"


@pytest.mark.parametrize(
    "server",
    [
        "location / { if ($bad) { return 403; } return 200 pass; }",
        'location / { if ($bad = "1") { return 403; } return 200 pass; }',
        'location / { if ($bad != "1") { set $x 1; } return 200 pass; }',
        "location / { set $copy $bad; return 200 pass; }",
        "location / { return 200 pass$twice; }",
        "location / { return 200 pass; add_header X $bad; }",
        "location / { alias /nowhere/$bad; }",
        "location / { try_files /$bad =404; }",
        "location / { proxy_pass http://127.0.0.1:@backend@; proxy_set_header X $bad; }",
        "location / { proxy_pass http://127.0.0.1:@backend@; add_header X $bad; }",
        "location / { proxy_pass http://127.0.0.1:@backend@/$bad; }",
        "location / { proxy_pass http://$bad; }",
        "location / { uwsgi_pass 127.0.0.1:@backend@; uwsgi_param X $bad; }",
        "error_page 500 /e; location / { if ($bad) { return 403; } } location = /e { return 200 $bad; }",
    ],
)
@differs("its expressions have a limit of ten million steps, and what goes beyond it gets the default")
def test_a_match_that_is_given_up_decides_nothing(serve, upstream, server):
    backend = upstream(answering(response(b"ok")))
    proxy = serve(
        f'map $uri $bad {{ "{GIVES_UP}" 1; default 0; }} map $bad $twice {{ volatile; 0 a; default b; }}\n'
        "keepalive_timeout 0;"
        "server { listen 127.0.0.1:@port@; location = /other { return 200 fine; } " + server + " }",
        backend=backend.port,
    )
    assert proxy.get(LONG).status == 500
    proxy.logged("took too many steps")
    # It was that request's alone: the next one, whose memory is the same, has nothing of it.
    for _ in range(3):
        assert proxy.get("/other").body == b"fine"
    if "uwsgi_pass" not in server:
        assert proxy.get("/m/aa").status != 500


@differs("its expressions have a limit of ten million steps, and what goes beyond it gets the default")
def test_a_server_whose_name_cannot_be_told_is_not_left_to_another(serve):
    proxy = serve(
        "server { listen 127.0.0.1:@port@; return 200 default; }\n"
        r'server { listen 127.0.0.1:@port@; server_name "~^(?=a)(a|aa)+(?=$)|evil"; return 403; }'
    )
    assert proxy.get("/", host=f"{'a' * 60}b.evil").status == 500
    assert [proxy.get("/", host=host).status for host in ("b.evil", "b")] == [403, 200]


@differs("its expressions have a limit of ten million steps, and what goes beyond it is left as it is")
@pytest.mark.parametrize("directive", ["proxy_redirect", "proxy_cookie_path", "proxy_cookie_flags"])
def test_a_line_that_cannot_be_rewritten_is_not_passed_on(serve, upstream, directive):
    rules = {
        "proxy_redirect": r'proxy_redirect "~^/(?=a)(a|aa)+(?=$)|evil" /;',
        "proxy_cookie_path": r'proxy_cookie_path "~^/(?=a)(a|aa)+(?=$)|evil" /;',
        "proxy_cookie_flags": r'proxy_cookie_flags "~^(?=a)(a|aa)+(?=$)|evil" secure;',
    }
    long = b"a" * 60 + b"b"
    lines = {
        "proxy_redirect": b"Location: /" + long,
        "proxy_cookie_path": b"Set-Cookie: c=1; Path=/" + long,
        "proxy_cookie_flags": b"Set-Cookie: " + long + b"=1",
    }

    backend = upstream(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + lines[directive] + b"\r\n\r\nok"))
    proxy = serve(
        "server { listen 127.0.0.1:@port@; location / { proxy_pass http://127.0.0.1:@backend@;"
        f" {rules[directive]} }} }}",
        backend=backend.port,
    )
    answer = proxy.get("/")
    assert (answer.status, answer.body) == (500, b"")
    proxy.logged("took too many steps")


@differs("its expressions have a limit of ten million steps, and what goes beyond it gets the default")
def test_a_switch_whose_head_cannot_be_made_makes_no_tunnel(serve, upstream):
    backend = upstream(answering(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbehind"))
    proxy = serve(
        f'map $uri $bad {{ "{GIVES_UP}" 1; default 0; }}\n'
        "server { listen 127.0.0.1:@port@; location / { proxy_pass http://@backend@; proxy_http_version 1.1;"
        " proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; add_header X $bad always; } }",
        backend=backend.address,
    )
    with proxy.connect() as wire:
        wire.send(f"GET {LONG} HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
        answer = wire.read_response()
        assert (answer.status, answer.body, answer.get("Connection")) == (500, b"", "close")
        wire.expect_end()
