"""Active health checks: `health_check` and `match`."""

import json
import socket
import threading
import time

import pytest

from harness.dns import Answer, NameServer
from harness.proxy import eventually
from harness.upstream import answering, chunked, pause, request, response, script, send, to_end

pytestmark = pytest.mark.ringx_only("nginx checks health in its commercial edition alone")

QUICK = "interval=50ms"
UNHEALTHY, HEALTHY = "peer is unhealthy while", "peer is healthy while"


class Switch:
    """A handler whose probes and other requests are answered as the test says."""

    def __init__(self, name: bytes, status: str = "200 OK"):
        self.name = name
        self.status = status
        self.probes = 0
        self.changed = threading.Condition()

    def __call__(self, wire) -> None:
        answering(self.answer)(wire)

    def answer(self, request) -> bytes:
        if request.get("User-Agent") != "ringx health check":
            return response(self.name)
        with self.changed:
            self.probes += 1
            self.changed.notify_all()
        return response(b"probed " + self.name, status=self.status)

    def probed(self, times: int = 1) -> None:
        """Waits for so many more probes."""
        with self.changed:
            until = self.probes + times
            assert self.changed.wait_for(lambda: self.probes >= until, 10), f"{self.probes} probes came, not {until}"


@pytest.fixture
def checked(proxy, upstream):
    """`checked(handlers, check, …)`: a group `u` of servers with these handlers, checked like that."""

    def start(*handlers, check: str, http: str = "", block: str = "", location: str = "", shards: int = 1, **values):
        servers = [handler if hasattr(handler, "address") else upstream(handler) for handler in handlers]
        lines = "".join(f"server {server.address} max_fails=0; " for server in servers)
        text = f"""
        worker_processes {shards};
        events {{ }}
        http {{
            access_log off;
            {http}
            upstream u {{ {block} {lines} }}
            server {{
                listen 127.0.0.1:@port@;
                location / {{ proxy_pass http://u; {location} {check} }}
                location /plain {{ return 200 plain; }}
                location /status {{ ringx_status; }}
            }}
        }}
        """
        return proxy(text, **values), servers

    return start


def bodies(proxy, count: int = 6) -> set[bytes]:
    return {proxy.get("/").body for _ in range(count)}


def of(server, name: str = "", tail: str = "") -> str:
    return f'health check "{name}" of peer {server.address} in upstream "u"{tail}'


def test_a_server_that_fails_is_left_out_and_comes_back(checked):
    one, two = Switch(b"one"), Switch(b"two")
    proxy, servers = checked(one, two, check=f"health_check {QUICK};")
    assert bodies(proxy) == {b"one", b"two"}
    one.status = "500 Internal Server Error"
    line = proxy.logged(f"{UNHEALTHY} checking status code, {of(servers[0])}")
    assert "[warn]" in line
    proxy.logged(f"the response with status 500 does not pass while checking status code, {of(servers[0])}")
    assert bodies(proxy) == {b"two"}
    one.status = "302 Found"
    line = proxy.logged(f"{HEALTHY} checking status code, {of(servers[0])}")
    assert "[notice]" in line
    assert bodies(proxy) == {b"one", b"two"}
    assert proxy.error_log().count(UNHEALTHY) == 1


def test_without_a_healthy_server_there_is_none(checked):
    one = Switch(b"one", "503 Service Unavailable")
    proxy, servers = checked(one, check=f"health_check {QUICK};")
    proxy.logged(UNHEALTHY)
    assert proxy.get("/").status == 502
    proxy.logged('no live upstreams while connecting to upstream')
    one.status = "200 OK"
    proxy.logged(HEALTHY)
    assert proxy.get("/").body == b"one"


def test_what_is_asked(checked):
    switch = Switch(b"one")
    check = f"health_check {QUICK} uri=/health?deep=1;"
    headers = 'proxy_set_header X-Const "a b"; proxy_set_header X-Var $remote_addr; proxy_set_header Connection upgrade;'
    proxy, (server,) = checked(switch, check=check, location=headers)
    asked = server.request()
    assert asked.start == "GET /health?deep=1 HTTP/1.1"
    assert [(name.lower(), value) for name, value in asked.fields] == [
        ("host", "u"),
        ("x-const", "a b"),
        ("user-agent", "ringx health check"),
        ("connection", "close"),
    ]
    assert asked.body == b""


@pytest.mark.parametrize(("header", "host"), [("example.org", "example.org"), ("$host", "u"), ("$proxy_host:1", "u")])
def test_host(checked, header, host):
    proxy, (server,) = checked(
        Switch(b"one"), check=f"health_check {QUICK};", location=f"proxy_set_header Host {header};"
    )
    assert server.request().get("Host") == host


def test_each_probe_has_its_own_connection_at_its_time(checked):
    came = []

    def answer(request):
        came.append(time.monotonic())
        return response()

    proxy, (server,) = checked(answering(answer), check="health_check interval=200ms keepalive_time=60s;")
    server.request(5)
    # The clock of the proxy ticks in milliseconds. A late probe makes the pause before it longer, and
    # the one behind it shorter: from the first to the fourth there are three intervals.
    assert 0.5 < came[3] - came[0] < 5
    assert len(server.connections) >= len(server.requests)


def test_jitter_comes_on_top(checked):
    proxy, (server,) = checked(Switch(b"one"), check="health_check interval=20ms jitter=60ms;")
    server.request(5)


def test_fails_and_passes(checked):
    switch = Switch(b"one")
    proxy, (server,) = checked(switch, check=f"health_check {QUICK} fails=3 passes=2;")
    switch.probed()
    count = 0

    def answer(request):
        nonlocal count
        count += 1
        # Twice ill is not yet ill; three times is; once well is not yet well.
        ill = count in (1, 2, 4, 5, 6, 8)
        return response(status="500 Oh" if ill else "200 OK")

    switch.answer = answer
    proxy.logged(HEALTHY)
    # Of the probes that fail, how many came before which change.
    before_ill, before_well = proxy.error_log().split(UNHEALTHY)
    before_well, _ = before_well.split(HEALTHY)
    assert (before_ill.count("does not pass"), before_well.count("does not pass")) == (5, 1)


@pytest.mark.parametrize("shards", [2])
def test_all_shards_know(checked, shards):
    one, two = Switch(b"one"), Switch(b"two")
    proxy, servers = checked(one, two, check=f"health_check {QUICK};", shards=shards)
    assert bodies(proxy, 20) == {b"one", b"two"}
    two.status = "500 Oh"
    proxy.logged(UNHEALTHY)
    # So many connections reach both.
    assert bodies(proxy, 40) == {b"one"}
    counted = json.loads(proxy.get("/status").body)["shards"]
    assert all(shard["requests"] > 3 for shard in counted)
    two.status = "200 OK"
    proxy.logged(HEALTHY)
    assert bodies(proxy, 20) == {b"one", b"two"}


# Before the first answer.


def held(event: threading.Event, then):
    """Answers nothing before the test lets it."""

    def handler(wire):
        assert event.wait(10)
        then(wire)

    return handler


def test_mandatory(checked):
    event = threading.Event()
    proxy, (server,) = checked(held(event, Switch(b"one")), check=f"health_check {QUICK} mandatory fails=3 passes=3;")
    server.connection()
    assert proxy.get("/").status == 502
    event.set()
    proxy.logged(HEALTHY)
    # Once is enough where nothing is known.
    assert proxy.get("/").body == b"one"


def test_not_mandatory(checked):
    event = threading.Event()
    switch = Switch(b"one")
    proxy, (server,) = checked(held(event, switch), check=f"health_check {QUICK};")
    server.connection()
    assert proxy.get("/plain").status == 200
    event.set()
    assert proxy.get("/").body == b"one"
    assert HEALTHY not in proxy.error_log()


def test_a_mandatory_check_that_fails_at_once(checked):
    switch = Switch(b"one", "500 Oh")
    proxy, (server,) = checked(switch, check=f"health_check {QUICK} mandatory fails=3;")
    proxy.logged(UNHEALTHY)
    assert proxy.get("/").status == 502
    switch.status = "200 OK"
    proxy.logged(HEALTHY)
    assert proxy.get("/").body == b"one"


# What an answer must be like.

ANSWER = response(b"Welcome to nginx!", "Content-Type: text/html", "X-A: 1", "X-A: 2", status="201 Created")


@pytest.mark.parametrize(
    ("tests", "stage", "passes"),
    [
        ("status 200-299;", "checking status code", True),
        ("status 201;", "checking status code", True),
        ("status 200 204;", "checking status code", False),
        ("status ! 201 500;", "checking status code", False),
        ("status ! 301-303 307;", "checking status code", True),
        ("header Content-Type = text/html;", "checking header", True),
        ('header Content-Type ~ "^text/(html|plain)$";', "checking header", True),
        ("header Content-Type != text/html;", "checking header", False),
        ("header X-A; header ! X-B;", "checking header", True),
        ("header X-B;", "checking header", False),
        ("header x-a = 2; header X-A !~ 3;", "checking header", True),
        ('body ~ "Welcome to nginx!";', "checking body", True),
        ('status 201; header X-A; body !~ "[Ee]rror"; body ~ !$;', "checking body", True),
        ("body !~ nginx;", "checking body", False),
        ("body ~ ^nginx;", "checking body", False),
        ("status 200; body ~ nginx;", "checking status code", False),
    ],
)
def test_tests(checked, tests, stage, passes):
    proxy, (server,) = checked(
        answering(ANSWER),
        check=f"health_check {QUICK} match=m{' mandatory' if passes else ''};",
        # It may stand behind what names it.
        http=f"match m {{ {tests} }}",
    )
    proxy.logged(f"peer is {'healthy' if passes else 'unhealthy'} while {stage}, {of(server, 'm')}")


@pytest.mark.parametrize(
    "answer",
    [
        response(b"x" * 20_000 + b"END"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"x" * 9000, b"E", b"ND"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"END", end=b"0;a=b\r\nT: r\r\n\r\n"),
        b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 50_000 + b"END",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + response(b"END"),
    ],
    ids=["length", "chunked", "trailers", "close", "informational"],
)
def test_bodies_however_they_come(checked, answer):
    proxy, (server,) = checked(
        script(request, send(answer)),
        check=f"health_check {QUICK} mandatory match=m;",
        http="match m { body ~ END$; }",
    )
    proxy.logged(f"{HEALTHY} checking body")


def endless(head: bytes, piece: bytes):
    def handler(wire):
        wire.read_request()
        wire.send(head)
        while True:
            wire.send(piece)

    return handler


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 4096),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 4096),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", b"x" * 4096),
    ],
    ids=["close", "length", "chunks", "one chunk"],
)
def test_an_endless_body_is_looked_at_as_far_as_it_counts(checked, head, piece):
    proxy, (server,) = checked(
        endless(head, piece), check=f"health_check {QUICK} mandatory match=m;", http='match m { body ~ "^x{9}"; }'
    )
    proxy.logged(f"{HEALTHY} checking body")


def test_what_stands_behind_256_kib_does_not_count(checked):
    size = 256 << 10
    inside, outside = b"x" * (size - 3) + b"END", b"x" * (size - 2) + b"END"
    proxy, servers = checked(
        answering(response(inside)),
        answering(response(outside)),
        check=f"health_check {QUICK} mandatory match=m;",
        http="match m { body ~ END; }",
    )
    proxy.logged(f"{HEALTHY} checking body, {of(servers[0], 'm')}")
    proxy.logged(f"{UNHEALTHY} checking body, {of(servers[1], 'm')}")


def test_without_a_test_of_it_no_body_is_waited_for(checked):
    proxy, _ = checked(
        script(request, send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), to_end),
        check=f"health_check {QUICK} mandatory;",
    )
    proxy.logged(HEALTHY)


# Servers that are ill.


def test_a_server_that_is_not_there(checked, upstream):
    gone = upstream(answering(response()))
    gone.stop()
    proxy, _ = checked(gone, check=f"health_check {QUICK};")
    assert "[error]" in proxy.logged(
        f"connect() failed (111: Connection refused) while connecting to upstream, {of(gone)}"
    )
    proxy.logged(f"{UNHEALTHY} connecting to upstream, {of(gone)}")


@pytest.mark.parametrize(
    ("handler", "text", "stage"),
    [
        (script(to_end), "upstream timed out (110: Connection timed out)", "reading response header from upstream"),
        (
            endless(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 1000 + b"\r\n"),
            "upstream sent too big header",
            "reading response header from upstream",
        ),
        (endless(b"", b"a" * 1000), "upstream sent too big header", "reading response header from upstream"),
        (script(request, send(b"\x00\x01garbage\r\n\r\n")), "upstream sent invalid header", "reading response header"),
        (script(request, send(b"HTTP/1.1 200 OK\r\nA B: c\r\n\r\n")), "upstream sent invalid header", "reading"),
        (script(request, send(b"HTTP/1.1 200 OK\r\nX: y")), "upstream prematurely closed connection", "reading"),
        (script(request), "upstream prematurely closed connection", "reading response header from upstream"),
        (script(request, lambda wire: wire.reset()), "recv() failed (104: Connection reset by peer)", "reading"),
        (
            script(request, send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")),
            "upstream prematurely closed connection",
            "checking body",
        ),
        (
            script(request, send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"), to_end),
            "upstream sent invalid chunked response",
            "checking body",
        ),
        (
            script(request, send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"), to_end),
            "upstream timed out (110: Connection timed out)",
            "checking body",
        ),
        (
            script(request, send(b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nab"), to_end),
            "upstream sent invalid header",
            "reading",
        ),
    ],
)
def test_answers_that_are_none(checked, handler, text, stage):
    proxy, (server,) = checked(
        handler,
        check=f"health_check {QUICK} match=m;",
        http="match m { status 200; body ~ .; }",
        location="proxy_read_timeout 300ms;",
    )
    line = proxy.logged(f"{text}")
    assert "[error]" in line and f" while {stage}" in line and of(server, "m") in line
    proxy.logged(f"{UNHEALTHY} {stage}")
    assert proxy.get("/").status == 502


def test_a_slow_answer_has_one_limit_in_all(checked):
    """A byte now and then does not keep a probe alive."""

    def drip(wire):
        wire.read_request()
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2000:
            wire.send(bytes([byte]))
            time.sleep(0.02)

    proxy, (server,) = checked(drip, check=f"health_check {QUICK};", location="proxy_read_timeout 300ms;")
    proxy.logged("upstream timed out (110: Connection timed out) while reading response header from upstream")
    # And there is another probe after it.
    server.connection(2)


def test_a_hanging_server_does_not_hold_up_another(checked):
    switch = Switch(b"two")
    proxy, servers = checked(script(to_end), switch, check=f"health_check {QUICK};")
    servers[0].connection()
    switch.probed(5)


def test_connections_are_closed(checked):
    """Descriptors do not pile up, however probes end."""
    from pathlib import Path

    proxy, servers = checked(
        script(to_end), Switch(b"two"), check=f"health_check {QUICK};", location="proxy_read_timeout 50ms;"
    )

    def sockets() -> int:
        return len(list(Path(f"/proc/{proxy.pid}/fd").iterdir()))

    servers[0].connection(3)
    before = sockets()
    servers[0].connection(20)
    eventually(lambda: sockets() <= before + 3, "as many descriptors as before")
    # The server sees the end as well.
    eventually(lambda: sum(wire.ended for wire in servers[0].connections) >= 15, "ended connections")


# Where servers are.


def test_another_port(checked, upstream):
    switch = Switch(b"", "500 Oh")
    probed = upstream(switch)
    proxy, (server,) = checked(Switch(b"one"), check=f"health_check {QUICK} port={probed.port};")
    proxy.logged(f"{UNHEALTHY} checking status code, {of(server, tail=f', port {probed.port}')}")
    assert proxy.get("/").status == 502
    switch.status = "200 OK"
    proxy.logged(HEALTHY)
    assert proxy.get("/").body == b"one"


def test_unix_sockets(checked, upstream, tmp_path):
    switch = Switch(b"one")
    server = upstream(switch, path=str(tmp_path / "s"))
    gone = upstream(switch, path=str(tmp_path / "t"))
    gone.stop()
    proxy, _ = checked(server, gone, check=f"health_check {QUICK} port=1;")
    proxy.logged(f"connect() to {gone.address} failed (111: Connection refused) while connecting to upstream")
    proxy.logged(f"{UNHEALTHY} connecting to upstream, {of(gone, tail=', port 1')}")
    switch.status = "500 Oh"
    proxy.logged(f"{UNHEALTHY} checking status code, {of(server, tail=', port 1')}")


def test_a_local_address(checked):
    proxy, (server,) = checked(Switch(b"one"), check=f"health_check {QUICK};", location="proxy_bind 127.0.0.9;")
    server.request()
    assert server.peers()[0] == "127.0.0.9"


def test_a_server_that_is_down_is_not_asked(proxy, upstream):
    down, up = upstream(answering(response())), upstream(answering(response()))
    proxy(
        """
        events { }
        http {
            upstream u { server @down@ down; server @up@; }
            server { listen 127.0.0.1:@port@; location / { proxy_pass http://u; health_check interval=50ms; } }
        }
        """,
        down=down.address,
        up=up.address,
    )
    up.request(3)
    assert down.connections == []


def test_two_checks_of_a_group_have_to_pass(checked):
    state = {"/a": "200 OK", "/b": "200 OK"}
    handler = answering(lambda request: response(b"one", status=state.get(request.target, "200 OK")))
    proxy, (server,) = checked(handler, check=f"health_check {QUICK} uri=/a match=a; health_check {QUICK} uri=/b match=b;", http="match a { status 200; } match b { status 200; }")
    state["/b"] = "500 Oh"
    proxy.logged(f"{UNHEALTHY} checking status code, {of(server, 'b')}")
    # The other one passes all the while.
    seen = len(server.requests)
    server.request(seen + 6)
    assert proxy.get("/").status == 502
    state["/b"] = "200 OK"
    proxy.logged(f"{HEALTHY} checking status code, {of(server, 'b')}")
    assert proxy.get("/").body == b"one"
    assert of(server, "a") not in proxy.error_log()


def test_servers_that_are_found_while_running(proxy, upstream):
    switch = Switch(b"one")
    server = upstream(switch)
    names = NameServer({"a.test": Answer(a=["127.0.0.1"])})
    try:
        started = proxy(
            """
            events { }
            http {
                resolver @dns@ valid=1s;
                upstream u { zone z 64k; server a.test:@backend@ resolve; }
                server {
                    listen 127.0.0.1:@port@;
                    location / { proxy_pass http://u; health_check interval=50ms mandatory; }
                }
            }
            """,
            dns=names.address,
            backend=server.port,
        )
        started.logged(f"{HEALTHY} checking status code, {of(server)}")
        assert started.get("/").body == b"one"
        switch.status = "500 Oh"
        started.logged(UNHEALTHY)
        assert started.get("/").status == 502
        # What is known outlives a reload, though the name is looked up by the shards.
        asked = switch.probes
        started.signal(1)
        eventually(lambda: switch.probes > asked + 3, "probes")
        assert started.get("/").status == 502
    finally:
        names.stop()


# Reload and end.


def threads(proxy) -> list[str]:
    from pathlib import Path

    found = []
    for task in Path(f"/proc/{proxy.pid}/task").iterdir():
        try:
            found.append((task / "comm").read_text().strip())
        except OSError:
            pass
    return found


def reload(proxy, text: str) -> None:
    """Loads `text`, in which /plain tells that it is there."""
    mark = str(time.monotonic_ns())
    proxy.write(text.replace("return 200 plain", f"return 200 {mark}"))
    proxy.signal(1)
    eventually(lambda: proxy.get("/plain").body == mark.encode(), "the new configuration is there")


def test_a_reload_without_the_check_forgets(checked):
    switch = Switch(b"one", "500 Oh")
    check = f"health_check {QUICK};"
    proxy, _ = checked(switch, check=check)
    eventually(lambda: "ringx health" in threads(proxy), "the prober runs")
    proxy.logged(UNHEALTHY)
    assert proxy.get("/").status == 502
    reload(proxy, proxy.text.replace(check, ""))
    eventually(lambda: proxy.get("/").body == b"one", "passed on to the server")
    eventually(lambda: "ringx health" not in threads(proxy), "nobody checks")
    # And one with it begins.
    reload(proxy, proxy.text)
    switch.probed(2)
    eventually(lambda: proxy.get("/").status == 502, "unhealthy again")


def test_a_reload_with_the_check_knows(checked):
    switch = Switch(b"one", "500 Oh")
    proxy, _ = checked(switch, check=f"health_check {QUICK} passes=1000;")
    proxy.logged(UNHEALTHY)
    switch.status = "200 OK"
    reload(proxy, proxy.text)
    switch.probed(3)
    assert proxy.get("/").status == 502
    assert threads(proxy).count("ringx health") == 1


@pytest.mark.parametrize(("word", "status"), [("", 502), (" persistent", 200)])
def test_mandatory_after_a_reload(checked, upstream, word, status):
    event = threading.Event()
    switch = Switch(b"one")
    # The first probe passes, the ones after it wait.
    first, then = script(request, send(response())), held(event, switch)
    probed = upstream(first, then)
    proxy, _ = checked(Switch(b"one"), check=f"health_check interval=1s port={probed.port} mandatory{word};")
    proxy.logged(HEALTHY)
    assert proxy.get("/").status == 200
    reload(proxy, proxy.text)
    probed.connection(2)
    eventually(lambda: proxy.get("/").status == status, f"{status} until it is asked again")
    event.set()
    eventually(lambda: proxy.get("/").status == 200, "healthy")


def test_a_reload_that_fails_changes_nothing(checked):
    switch = Switch(b"one")
    proxy, _ = checked(switch, check=f"health_check {QUICK};")
    proxy.expected_alerts.append("unknown directive")
    proxy.write("events { } nonsense;")
    proxy.signal(1)
    proxy.logged('unknown directive "nonsense"')
    switch.probed(3)


def test_nobody_checks_what_needs_no_check(checked):
    proxy, _ = checked(Switch(b"one"), check="")
    assert proxy.get("/").body == b"one"
    assert "ringx health" not in threads(proxy)


def test_the_end_does_not_wait_for_probes(checked):
    proxy, (server,) = checked(script(to_end), check=f"health_check {QUICK};")
    server.connection()
    began = time.monotonic()
    proxy.signal(3)
    assert proxy.wait() == 0
    assert time.monotonic() - began < 5


# What is refused.


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("health_check interval=x;", 'invalid parameter "interval=x"'),
        ("health_check interval=0;", 'invalid parameter "interval=0"'),
        ("health_check fails=0;", 'invalid parameter "fails=0"'),
        ("health_check passes=;", 'invalid parameter "passes="'),
        ("health_check port=70000;", 'invalid port in "port=70000"'),
        ("health_check uri=x;", 'invalid uri in "uri=x"'),
        ('health_check "uri=/a b";', 'invalid uri in "uri=/a b"'),
        ("health_check jitter=-1;", 'invalid parameter "jitter=-1"'),
        ("health_check keepalive_time=x;", 'invalid parameter "keepalive_time=x"'),
        ("health_check persistent;", 'parameter "persistent" should be placed after "mandatory"'),
        ("health_check foo;", 'invalid parameter "foo"'),
        ("health_check type=grpc;", '"type=grpc" is not supported: servers are asked by HTTP/1.1'),
        ("health_check match=m;", 'there is no "match" block "m"'),
    ],
)
def test_parameters(refused, location, text):
    http = "upstream u { server 127.0.0.1:1; }"
    assert refused(f"location / {{ proxy_pass http://u; {location} }}", http) == [f"[emerg] {text} in F:6"]


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("", '"health_check" needs a "proxy_pass" in the same location'),
        ("proxy_pass http://127.0.0.1:1;", 'is not supported with an address in "proxy_pass": it takes an "upstream"'),
        ("proxy_pass http://$host;", 'is not supported with variables in "proxy_pass": it takes an "upstream" block'),
        ("uwsgi_pass u;", 'is not supported with "uwsgi_pass": servers are asked by HTTP/1.1'),
        ("proxy_pass http://u; } health_check; location /x {", '"health_check" directive is not allowed here'),
    ],
)
def test_places(refused, location, text):
    http = "resolver 127.0.0.1; upstream u { server 127.0.0.1:1; }"
    (line,) = refused(f"location / {{ health_check; {location} }}" if "x {" not in location else f"location / {{ {location} }}", http)
    assert text in line and line.endswith(" in F:6")


@pytest.mark.parametrize(
    ("http", "text"),
    [
        ("match m { status x; }", 'invalid status "x" in F:3'),
        ("match m { status; }", 'invalid number of arguments in "status" in F:3'),
        ("match m { header a < b; }", 'invalid operator "<" in "header" in F:3'),
        ("match m { require $uri; }", '"require" is not supported: there is no client\'s request'),
        ("match m { foo; }", 'unknown directive "foo" in F:3'),
        ("match m { body ~ (; }", ' in F:3'),
        ("match m { } match m { }", 'duplicate match "m" in F:3'),
    ],
)
def test_matches(refused, http, text):
    (line,) = refused("", http)
    assert line.startswith("[emerg] ") and text in line
