"""Names that are looked up while running: proxy_pass with variables, servers with `resolve`."""

import threading
import time

import pytest

from harness.dns import FORMERR, NOTIMP, NXDOMAIN, REFUSED, SERVFAIL, Answer, NameServer
from harness.ports import free_port
from harness.proxy import eventually
from harness.upstream import Upstream, answering, response

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only
RESOLVE = "nginx resolves upstream servers at run time from 1.27.3 on"


@pytest.fixture
def names():
    """`names({name: answer})`: a name server."""
    started: list[NameServer] = []

    def start(table: dict[str, Answer] | None = None, **options) -> NameServer:
        started.append(NameServer(table, **options))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def backend(upstream) -> Upstream:
    """Answers with the Host it was asked for."""
    return upstream(answering(lambda request: response(request.get("Host").encode())))


@pytest.fixture
def through(serve, names, backend):
    """`through(table, …)`: `/NAME/…` is passed on to that name, at the backend's port."""

    def start(table=None, resolver="resolver @dns@;", location="", http="", server=None, **values):
        server = server or names(table)
        started = serve(
            f"""
            log_format upstream '$status [$upstream_addr]';
            access_log logs/access.log upstream;
            {http}
            server {{
                listen 127.0.0.1:@port@;
                {resolver}
                location ~ ^/(?<name>[^/]*)/ {{
                    {location}
                    proxy_pass http://$name:@backend@;
                }}
                location /plain {{ return 200 plain; }}
            }}
            """,
            dns=server.address,
            backend=backend.port,
            **values,
        )
        return started, server

    return start


GOOD = Answer(a=["127.0.0.1"])


# Questions and answers.


def test_a_name_is_asked_for(through, backend):
    proxy, server = through({"a.test": GOOD})
    got = proxy.get("/a.test/x?y")
    assert (got.status, got.body) == (200, f"a.test:{backend.port}".encode())
    assert sorted(asked.kind for asked in server.asked) == ["A", "AAAA"]
    assert {asked.transport for asked in server.asked} == {"udp"}
    assert backend.request().raw.startswith(b"GET /a.test/x?y HTTP/1.")
    assert proxy.accessed() == [f"200 [127.0.0.1:{backend.port}]"]


def test_names_are_lower_case_without_the_final_dot(through, backend):
    proxy, server = through({"a.test": GOOD})
    got = proxy.get("/A.Test./")
    assert (got.status, got.body) == (200, f"A.Test.:{backend.port}".encode())
    assert {asked.name for asked in server.asked} == {"a.test"}
    # Both are one.
    assert proxy.get("/a.test/").status == 200
    assert len(server.asked) == 2


@pytest.mark.parametrize(("switch", "kinds"), [("ipv6=off", ["A"]), pytest.param("ipv4=off", ["AAAA"], marks=differs("ipv4= is newer"))])
def test_one_family_alone(through, switch, kinds):
    proxy, server = through({"a.test": GOOD}, resolver=f"resolver @dns@ {switch};")
    status = 200 if switch == "ipv6=off" else 502
    assert proxy.get("/a.test/").status == status
    assert [asked.kind for asked in server.asked] == kinds


def test_an_ip_address_needs_no_name_server(through, backend):
    proxy, server = through()
    assert proxy.get("/127.0.0.1/").status == 200
    assert server.asked == []


def test_every_question_has_its_own_id_and_port(through):
    proxy, server = through({f"n{n}.test": GOOD for n in range(12)}, resolver="resolver @dns@ ipv6=off;")
    for n in range(12):
        assert proxy.get(f"/n{n}.test/").status == 200
    assert len({asked.id for asked in server.asked}) > 9


@ringx_only("nginx asks all its questions from one port")
def test_ports_differ_too(through):
    proxy, server = through({f"n{n}.test": GOOD for n in range(12)}, resolver="resolver @dns@ ipv6=off;")
    for n in range(12):
        assert proxy.get(f"/n{n}.test/").status == 200
    assert len({asked.port for asked in server.asked}) > 6


@pytest.mark.parametrize(
    ("code", "text"),
    [
        pytest.param(FORMERR, "1: Format error", marks=differs("waits for another answer")),
        (SERVFAIL, "2: Server failure"),
        (NXDOMAIN, "3: Host not found"),
        (NOTIMP, "4: Unimplemented"),
        (REFUSED, "5: Operation refused"),
    ],
)
def test_refusals(through, code, text):
    proxy, server = through({"a.test": Answer(code=code)})
    assert proxy.get("/a.test/").status == 502
    line = proxy.logged(f"a.test could not be resolved ({text})")
    assert "[error]" in line and ', request: "GET /a.test/ HTTP/1.1", host: "example.com"' in line
    asked = server.count()
    # It is not kept.
    server.set("a.test", GOOD)
    assert proxy.get("/a.test/").status == 200
    assert server.count() > asked


def test_a_name_without_addresses_is_not_found(through):
    proxy, _ = through({"a.test": Answer()})
    assert proxy.get("/a.test/").status == 502
    proxy.logged("a.test could not be resolved (3: Host not found)")


@differs("the failure of one is that of both")
def test_one_family_is_enough(through):
    proxy, _ = through({"a.test": Answer(a=["127.0.0.1"], code6=SERVFAIL)})
    assert proxy.get("/a.test/").status == 200


@pytest.mark.parametrize("name", ["a..test", pytest.param("x" * 64 + ".test", marks=differs("asks, and waits"))])
def test_what_is_no_name_is_not_found(through, name):
    proxy, server = through()
    assert proxy.get(f"/{name}/").status == 502
    proxy.logged("could not be resolved (3: Host not found)")
    assert server.asked == []


def test_nothing_comes_within_resolver_timeout(through):
    proxy, server = through({"a.test": Answer(silent=True)}, resolver="resolver @dns@; resolver_timeout 1s;")
    began = time.monotonic()
    assert proxy.get("/a.test/").status == 502
    assert 0.9 < time.monotonic() - began < 4
    proxy.logged("a.test could not be resolved (110: Operation timed out)")
    server.set("a.test", GOOD)
    assert proxy.get("/a.test/").status == 200


def test_without_a_resolver(through):
    proxy, _ = through(resolver="")
    assert proxy.get("/a.test/").status == 502
    assert "[error]" in proxy.logged("no resolver defined to resolve a.test")
    assert proxy.get("/127.0.0.1/").status == 200


def test_a_location_has_its_own(through, names):
    other = names({"a.test": GOOD})
    proxy, server = through({}, location="resolver @other@; resolver_timeout 2s;", other=other.address)
    assert proxy.get("/a.test/").status == 200
    assert server.asked == [] and other.count("a.test") == 2


# What is believed.


@pytest.mark.parametrize("bad", ["id", "question", "kind", "query", "garbage"])
def test_what_does_not_answer_the_question_is_passed_over(through, bad, binary):
    if binary.is_nginx and bad in ("question", "kind", "query", "garbage"):
        pytest.skip("nginx drops the question, or takes the answer")
    proxy, _ = through({"a.test": Answer(a=["127.0.0.1"], before=(bad,))}, resolver="resolver @dns@ ipv6=off;")
    assert proxy.get("/a.test/").status == 200


@ringx_only("nginx reads on, and nothing else meanwhile")
def test_a_server_that_floods_is_given_up(through, names):
    flooding, good = names({"a.test": Answer(flood=True)}), names({"a.test": GOOD})
    proxy, _ = through(server=flooding, resolver="resolver @dns@ @other@ ipv6=off;", other=good.address)
    wire = proxy.connect()
    wire.send(b"GET /a.test/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert proxy.get("/plain").body == b"plain"
    assert wire.read_response("GET").status == 200
    assert "[error]" in proxy.logged(f"1024 unexpected messages while resolving, resolver: {flooding.address}")


@ringx_only("nginx reads on, and nothing else meanwhile")
def test_a_server_that_floods_alone(through):
    proxy, server = through({"a.test": Answer(flood=True)}, resolver="resolver @dns@ ipv6=off; resolver_timeout 1s;")
    assert proxy.get("/a.test/").status == 502
    proxy.logged(f"1024 unexpected messages while resolving, resolver: {server.address}")
    proxy.logged("a.test could not be resolved (110: Operation timed out)")
    # It was not asked again and again.
    assert server.count() == 1
    server.set("a.test", GOOD)
    assert proxy.get("/a.test/").status == 200


def test_a_truncated_answer_is_asked_for_over_tcp(through):
    proxy, server = through({"a.test": Answer(a=["127.0.0.1"] * 40, truncated=True)})
    assert proxy.get("/a.test/").status == 200
    assert server.count("a.test", "A", "tcp") == 1 and server.count("a.test", "AAAA", "tcp") == 1


# Aliases.


def test_aliases_in_one_answer(through):
    table = {"a.test": Answer(cname="b.test"), "b.test": Answer(cname="c.test"), "c.test": GOOD}
    proxy, server = through(table)
    assert proxy.get("/a.test/").status == 200
    assert {asked.name for asked in server.asked} == {"a.test"}


def test_an_alias_alone_is_asked_for(through):
    table = {"a.test": Answer(cname="b.test", alone=True), "b.test": GOOD}
    proxy, server = through(table)
    assert proxy.get("/a.test/").status == 200
    assert server.count("b.test") >= 1


def test_long_chains_of_aliases(through):
    table = {f"n{n}.test": Answer(cname=f"n{n + 1}.test", alone=True) for n in range(48)}
    proxy, server = through({**table, "n48.test": GOOD})
    assert proxy.get("/n0.test/").status == 200
    assert server.count("n48.test") >= 1


def test_a_circle_of_aliases_ends(through):
    table = {"a.test": Answer(cname="b.test", alone=True), "b.test": Answer(cname="a.test", alone=True)}
    proxy, server = through(table, resolver="resolver @dns@ ipv6=off; resolver_timeout 5s;")
    assert proxy.get("/a.test/").status == 502
    proxy.logged("could not be resolved (3: Host not found)")
    assert server.count() <= 60


# What is kept.


def test_an_answer_is_kept_for_its_time(through):
    proxy, server = through({"a.test": Answer(a=["127.0.0.1"], ttl=60)})
    for _ in range(3):
        assert proxy.get("/a.test/").status == 200
    assert server.count("a.test", "A") == 1


def test_an_answer_that_is_out_of_date_is_asked_for_again(through):
    proxy, server = through({"a.test": Answer(a=["127.0.0.1"], ttl=1)})
    assert proxy.get("/a.test/").status == 200
    eventually(lambda: proxy.get("/a.test/").status == 200 and server.count("a.test", "A") == 2, "asked again")


def test_valid_is_longer_than_the_answers_time(through):
    proxy, server = through({"a.test": Answer(a=["127.0.0.1"], ttl=0)}, resolver="resolver @dns@ valid=60s;")
    for _ in range(3):
        assert proxy.get("/a.test/").status == 200
    assert server.count("a.test", "A") == 1


def test_valid_is_shorter_than_the_answers_time(through):
    proxy, server = through({"a.test": Answer(a=["127.0.0.1"], ttl=600)}, resolver="resolver @dns@ valid=1s;")
    assert proxy.get("/a.test/").status == 200
    eventually(lambda: proxy.get("/a.test/").status == 200 and server.count("a.test", "A") == 2, "asked again")


def test_one_question_for_all_who_want_to_know(through):
    go = threading.Event()
    proxy, server = through({"a.test": Answer(a=["127.0.0.1"], after=go)})
    wires = [proxy.connect() for _ in range(8)]
    for wire in wires:
        wire.send(b"GET /a.test/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    server.wait(1, "a.test")
    # Everything else goes on meanwhile.
    assert proxy.get("/plain").body == b"plain"
    go.set()
    assert [wire.read_response("GET").status for wire in wires] == [200] * 8
    assert server.count("a.test", "A") == 1


PENDING_MAX = 256


@ringx_only("nginx asks for as many names as there are requests")
def test_more_names_than_are_asked_for_at_a_time(through):
    table = {f"n{n}.test": Answer(silent=True) for n in range(PENDING_MAX)}
    proxy, server = through(table, resolver="resolver @dns@ ipv6=off; resolver_timeout 4s;")
    server.set("good.test", GOOD)
    wires = [proxy.connect() for _ in table]
    for name, wire in zip(table, wires):
        wire.send(f"GET /{name}/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    for name in table:
        server.wait(1, name)
    for _ in range(2):
        assert proxy.get("/good.test/").status == 502
    line = proxy.logged("good.test could not be resolved (11: Resource temporarily unavailable)")
    assert "[error]" in line and ', request: "GET /good.test/ HTTP/1.1", host: "example.com"' in line
    assert server.count("good.test") == 0
    # Why is told once, whoever asks.
    why = f"{PENDING_MAX} names at a time are not enough while resolving good.test"
    assert "[error]" in proxy.logged(why) and proxy.error_log().count(why) == 1
    # One who asks for what is being asked for already waits with the others; the rest goes on.
    assert proxy.get("/plain").body == b"plain"
    assert {wire.read_response("GET").status for wire in wires} == {502}
    proxy.logged("n0.test could not be resolved (110: Operation timed out)")
    assert proxy.get("/good.test/").status == 200


def test_a_client_that_leaves_takes_nobody_along(through):
    go = threading.Event()
    proxy, server = through({"a.test": Answer(a=["127.0.0.1"], after=go)})
    leaving, staying = proxy.connect(), proxy.connect()
    leaving.send(b"GET /a.test/ HTTP/1.1\r\nHost: h\r\n\r\n")
    server.wait(1, "a.test")
    staying.send(b"GET /a.test/ HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    leaving.close()
    assert proxy.accessed() == ["499 [-]"]
    go.set()
    assert staying.read_response("GET").status == 200


# Several servers.


def test_servers_are_asked_in_turn(through, names):
    table = {f"n{n}.test": GOOD for n in range(6)}
    servers = [names(table), names(table)]
    proxy, _ = through(
        server=servers[0], resolver="resolver @dns@ @other@ ipv6=off;", other=servers[1].address
    )
    for n in range(6):
        assert proxy.get(f"/n{n}.test/").status == 200
    assert [server.count() for server in servers] == [3, 3]


def test_the_next_one_is_asked_after_five_seconds(through, names):
    silent, good = names({"a.test": Answer(silent=True)}), names({"a.test": GOOD})
    proxy, _ = through(server=silent, resolver="resolver @dns@ @other@ ipv6=off;", other=good.address)
    began = time.monotonic()
    for _ in range(2):
        assert proxy.get("/a.test/").status == 200
    if silent.asked:
        assert 4.5 < time.monotonic() - began < 9


@differs("waits five seconds for one that does not listen")
def test_one_that_does_not_listen_costs_no_time(through, names):
    good = names({"a.test": GOOD, "b.test": GOOD})
    proxy, _ = through(server=good, resolver="resolver 127.0.0.1:@gone@ @dns@ ipv6=off;", gone=free_port())
    began = time.monotonic()
    assert proxy.get("/a.test/").status == 200
    assert proxy.get("/b.test/").status == 200
    assert time.monotonic() - began < 3
    assert "(111: Connection refused) while resolving, resolver: 127.0.0.1:" in proxy.logged("while resolving")


# What is done with the addresses.


def test_the_addresses_are_tried_one_after_the_other(through, backend):
    table = {"a.test": Answer(a=["127.0.0.1", "127.0.0.2", "127.0.0.3"])}
    proxy, _ = through(table, location="proxy_next_upstream error;")
    for n in range(1, 9):
        assert proxy.get("/a.test/").status == 200
    good = f"127.0.0.1:{backend.port}"
    tried = [line.split("[")[1].rstrip("]").split(", ") for line in proxy.accessed(8)]
    for addresses in tried:
        assert addresses[-1] == good and good not in addresses[:-1] and len(set(addresses)) == len(addresses)
    # From one taken by chance on: eight times the same is one in 2187.
    assert len({len(addresses) for addresses in tried}) > 1


def test_none_of_the_addresses_answers(through):
    proxy, _ = through({"a.test": Answer(a=["127.0.0.2", "127.0.0.3"])})
    assert proxy.get("/a.test/").status == 502
    assert proxy.accessed()[0].count("127.0.0.") == 2


def test_ipv6_addresses_are_peers_too(through, backend):
    proxy, _ = through({"a.test": Answer(aaaa=["::1"])})
    assert proxy.get("/a.test/").status == 502
    assert proxy.accessed() == [f"502 [[::1]:{backend.port}]"]


def test_an_upstream_block_or_a_literal_name_wins(through, backend):
    proxy, server = through(
        http="upstream Block { server 127.0.0.1:@backend@; }",
        location="if ($name = block) { proxy_pass http://$name; }"
        "if ($name = localhost) { proxy_pass http://$name:@backend@; }"
        "if ($name = never) { proxy_pass http://localhost:@backend@; }",
    )
    assert proxy.get("/block/").status == 200
    assert proxy.get("/localhost/").status == 200
    assert server.asked == []


def test_a_block_is_not_meant_where_there_is_a_port(through):
    proxy, server = through({"block": GOOD}, http="upstream block { server 127.0.0.2:1; }")
    assert proxy.get("/block/").status == 200
    assert server.count("block", "A") == 1


def test_a_body_is_sent_to_what_was_found(through, backend):
    proxy, _ = through({"a.test": GOOD})
    assert proxy.get("/a.test/", method="POST", body=b"x" * 5000).status == 200
    assert backend.request().body == b"x" * 5000


@pytest.mark.parametrize(
    "pass_, status",
    [("http://$nohost", 502), ("http://$nohost:81", 502), ("uwsgi://$nohost", 500)],
    ids=["no resolver", "with a port", "no port"],
)
def test_the_body_is_read_before_a_name_is_looked_up(serve, pass_, status):
    directive = "uwsgi_pass" if pass_.startswith("uwsgi") else "proxy_pass"
    proxy = serve(f"server {{ listen 127.0.0.1:@port@; set $nohost nohost; location / {{ {directive} {pass_}; }} }}")
    wire = proxy.connect()
    wire.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert wire.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.expect_silence(0.2)
    wire.send("abc")
    assert wire.read_response("POST").status == status


def test_a_bad_url_is_told_before_the_body_is_read(serve):
    proxy = serve("server { listen 127.0.0.1:@port@; location / { proxy_pass $arg_to; } }")
    wire = proxy.connect()
    wire.send("POST /?to=ftp://a HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert wire.read_until(b"\r\n").startswith(b"HTTP/1.1 500 ")


def test_a_failed_lookup_is_an_error_page(through):
    proxy, _ = through({}, location="error_page 502 = /plain;")
    got = proxy.get("/a.test/")
    assert (got.status, got.body) == (200, b"plain")


def test_a_reload_forgets(through):
    proxy, server = through({"a.test": GOOD})
    assert proxy.get("/a.test/").status == 200
    proxy.signal(1)
    eventually(lambda: proxy.get("/a.test/").status == 200 and server.count("a.test", "A") == 2, "asked again")


# The directives.


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("resolver valid=10s;", "no name servers defined"),
        ("resolver 127.0.0.1 valid=x;", "invalid parameter: valid=x"),
        ("resolver 127.0.0.1 ipv6=maybe;", "invalid parameter: ipv6=maybe"),
        ("resolver 127.0.0.1:x;", 'invalid port in resolver "127.0.0.1:x"'),
        ("resolver 127.0.0.1; resolver 127.0.0.1;", '"resolver" directive is duplicate'),
        ("resolver_timeout x;", '"resolver_timeout" directive invalid value'),
        ("resolver_timeout 1s; resolver_timeout 1s;", '"resolver_timeout" directive is duplicate'),
        ("resolver;", 'invalid number of arguments in "resolver" directive'),
    ],
)
def test_what_is_refused(refused, text, told):
    assert refused(text) == [f"[emerg] {told} in F:6"]


@differs("ipv4= is newer")
def test_one_family_must_be_left(refused):
    told = '"ipv4" and "ipv6" cannot both be "off"'
    assert refused("resolver 127.0.0.1 ipv4=off ipv6=off;") == [f"[emerg] {told} in F:6"]


# Servers that are looked up again.


@pytest.fixture
def group(serve, names, upstream):
    """`group(table, servers)`: an upstream block with these servers; `ports` are two backends."""

    def start(table, servers, block="zone z 64k;", resolver="resolver @dns@ valid=1s ipv6=off;", **values):
        server = names(table)
        one, two = (upstream(answering(response(body))) for body in (b"one", b"two"))
        started = serve(
            f"""
            {resolver}
            upstream group {{ {block} {servers} }}
            log_format upstream '$status [$upstream_addr]';
            access_log logs/access.log upstream;
            server {{
                listen 127.0.0.1:@port@;
                location / {{ proxy_pass http://group; }}
            }}
            """,
            dns=server.address,
            one=one.port,
            two=two.port,
            **values,
        )
        return started, server, one, two

    return start


def body_becomes(proxy, body: bytes) -> None:
    eventually(lambda: proxy.get("/").body == body, f"answers {body!r}")


@ringx_only(RESOLVE)
def test_a_group_follows_its_name(group):
    proxy, server, one, _ = group({"a.test": GOOD}, "server a.test:@one@ resolve;")
    body_becomes(proxy, b"one")
    server.set("a.test", Answer(a=["127.0.0.9"]))
    eventually(lambda: proxy.get("/").status == 502, "the address is another")
    eventually(lambda: f"502 [127.0.0.9:{one.port}]" in proxy.accessed(), "the other address was tried")
    server.set("a.test", GOOD)
    body_becomes(proxy, b"one")


@ringx_only(RESOLVE)
def test_a_group_is_empty_until_its_name_is_known(group):
    go = threading.Event()
    proxy, server, _, _ = group({"a.test": Answer(a=["127.0.0.1"], after=go)}, "server a.test:@one@ resolve;")
    server.wait(1, "a.test")
    assert proxy.get("/").status == 502
    proxy.logged("no live upstreams")
    assert proxy.accessed() == ["502 [group]"]
    go.set()
    body_becomes(proxy, b"one")


@ringx_only(RESOLVE)
@pytest.mark.parametrize("method", ["ip_hash;", "hash $uri;", "hash $uri consistent;", "random two;", "least_conn;"])
def test_every_method_knows_an_empty_group(group, method):
    proxy, server, _, _ = group({}, "server a.test:@one@ resolve;", block=f"zone z 64k; {method}")
    server.wait(1, "a.test")
    assert proxy.get("/").status == 502
    server.set("a.test", GOOD)
    body_becomes(proxy, b"one")


@ringx_only(RESOLVE)
def test_old_addresses_stay_where_the_lookup_fails(group):
    proxy, server, _, _ = group(
        {"a.test": GOOD}, "server a.test:@one@ resolve;", block="zone z 64k; resolver_timeout 1s;"
    )
    body_becomes(proxy, b"one")
    server.set("a.test", Answer(code=SERVFAIL))
    proxy.logged("a.test could not be resolved (2: Server failure)")
    assert proxy.get("/").body == b"one"
    server.set("a.test", Answer(code=NXDOMAIN))
    proxy.logged("a.test could not be resolved (3: Host not found)")
    eventually(lambda: proxy.get("/").status == 502, "the group is empty")


@ringx_only(RESOLVE)
def test_a_server_that_stays_is_beside_one_that_is_looked_up(group):
    proxy, server, _, _ = group({"a.test": GOOD}, "server 127.0.0.1:@two@ backup; server a.test:@one@ resolve;")
    body_becomes(proxy, b"one")
    server.set("a.test", Answer(code=NXDOMAIN))
    body_becomes(proxy, b"two")


@ringx_only(RESOLVE)
def test_a_block_has_its_own_resolver(group, names):
    other = names({"a.test": GOOD})
    proxy, server, _, _ = group(
        {}, "server a.test:@one@ resolve;", block="zone z 64k; resolver @other@;", other=other.address
    )
    body_becomes(proxy, b"one")
    assert server.asked == []


@ringx_only(RESOLVE)
def test_services(group):
    table = {"a.test": GOOD}
    proxy, server, one, two = group(table, "server a.test service=http resolve;")
    assert proxy.get("/").status == 502
    server.set("_http._tcp.a.test", Answer(srv=[(10, 5, one.port, "a.test"), (20, 0, two.port, "a.test")]))
    body_becomes(proxy, b"one")
    # Those of a higher number are backups.
    assert {proxy.get("/").body for _ in range(6)} == {b"one"}
    server.set("_http._tcp.a.test", Answer(srv=[(10, 3, one.port, "a.test"), (10, 1, two.port, "a.test")]))
    body_becomes(proxy, b"two")

    def shares():
        bodies = [proxy.get("/").body for _ in range(8)]
        return (bodies.count(b"one"), bodies.count(b"two")) == (6, 2)

    eventually(shares, "three to one")
    server.set("_http._tcp.a.test", Answer(srv=[(10, 1, 1, "a.test"), (20, 1, two.port, "a.test")]))
    eventually(lambda: proxy.get("/").body == b"two", "the backup takes over")


@ringx_only(RESOLVE)
def test_a_service_with_dots_is_asked_for_as_it_is(group):
    proxy, server, one, _ = group({"a.test": GOOD}, "server a.test service=_x._udp resolve;")
    server.set("_x._udp.a.test", Answer(srv=[(1, 1, one.port, "a.test")]))
    body_becomes(proxy, b"one")


@ringx_only(RESOLVE)
def test_a_reload_keeps_what_was_found(group):
    proxy, server, _, _ = group({"a.test": Answer(a=["127.0.0.1"])}, "server a.test:@one@ resolve;")
    body_becomes(proxy, b"one")
    server.set("a.test", Answer(silent=True))
    asked = server.count("a.test")
    proxy.signal(1)
    server.wait(asked + 1, "a.test")
    assert [proxy.get("/").body for _ in range(5)] == [b"one"] * 5


@ringx_only(RESOLVE)
def test_what_a_group_needs(refused):
    def told(block, http=""):
        return refused("", f"{http} upstream u {{ {block} }}")

    text = 'resolving names at run time requires upstream "u" in '
    (line,) = told("server a.test resolve;", "resolver 127.0.0.1;")
    assert line.startswith(f"[emerg] {text}") and line.endswith(":3 to be in shared memory")
    (line,) = told("zone z 64k; server a.test resolve;")
    assert line.startswith('[emerg] no resolver defined to resolve names at run time in upstream "u" in ')
    for server, text in [
        ("a.test service=http", 'service upstream "a.test" requires "resolve" parameter'),
        ("a.test:1 service=http resolve", 'service upstream "a.test:1" may not have port'),
        ("127.0.0.1 service=http resolve", 'service upstream "127.0.0.1" requires domain name'),
        ("a.test service= resolve", "service is empty"),
    ]:
        assert told(f"zone z 64k; server {server};", "resolver 127.0.0.1;") == [f"[emerg] {text} in F:3"]
    assert told("zone z 64k; server 127.0.0.1 resolve;") == []
    assert told("zone z 64k; server a.test resolve backup;", "resolver 127.0.0.1;") == [
        '[emerg] no servers in upstream "u" in F:3'
    ]
