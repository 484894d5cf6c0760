"""What becomes a tunnel and what does not: WebSocket handshakes, other protocols, and what is sent behind a refusal."""

import threading

import pytest

from harness.packet import read_packet
from harness.proxy import Proxy
from harness.upstream import answering, head, response, script, send, to_end, until
from harness.wire import Wire

differs = pytest.mark.differs_in_nginx
ringx_only = pytest.mark.ringx_only

LAX = "nginx looks at neither side of the handshake"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
VERSION = "Sec-WebSocket-Version: 13"
ACCEPT = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
WEBSOCKET = ["Upgrade: websocket", "Connection: Upgrade"]
H2C = ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"]
TUTORIAL = """
    proxy_http_version 1.1;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection "upgrade";
"""


def asking(*fields: str, start: str = "GET /chat HTTP/1.1") -> bytes:
    return "".join(f"{line}\r\n" for line in [start, "Host: example.com", *fields]).encode() + b"\r\n"


def switch(*fields: str) -> bytes:
    return "".join(f"{line}\r\n" for line in ["HTTP/1.1 101 Switching Protocols", *fields]).encode() + b"\r\n"


HANDSHAKE = asking(*WEBSOCKET, KEY, VERSION)
SWITCH = switch(*WEBSOCKET, ACCEPT)


def echoes(wire: Wire) -> None:
    """What a tunnel's server does here."""
    wire.send(wire.read_exactly(4))
    wire.read_to_end()


def note(wire) -> None:
    wire.read_request()


@pytest.fixture
def location(serve, upstream):
    """`location(directives, …steps)`: a location in front of a server that takes these steps; both of them."""

    def start(directives: str, *steps, more: str = "") -> tuple[Proxy, object]:
        server = upstream(script(*steps))
        proxy = serve(
            f"""
            server {{
                listen 127.0.0.1:@port@;
                location / {{ {directives} proxy_pass http://@upstream@; }}
                {more}
            }}
            """,
            upstream=server.address,
        )
        return proxy, server

    return start


def open_tunnel(proxy: Proxy, request: bytes = HANDSHAKE) -> Wire:
    """A client that has become a tunnel, both ways."""
    wire = proxy.connect()
    wire.send(request)
    assert wire.read_head().start == "HTTP/1.1 101 Switching Protocols"
    wire.send(b"ping")
    assert wire.read_exactly(4) == b"ping"
    return wire


# The client's side.

INVALID = {
    "no version": ([KEY], 'no "Sec-WebSocket-Version" header'),
    "another version": (["Sec-WebSocket-Version: 8", KEY], '"Sec-WebSocket-Version" is not 13'),
    "two versions": ([VERSION, VERSION, KEY], 'duplicate "Sec-WebSocket-Version" header'),
    "no key": ([VERSION], 'no "Sec-WebSocket-Key" header'),
    "a short key": (
        [VERSION, "Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="],
        '"Sec-WebSocket-Key" is not 16 bytes in base64',
    ),
    "two keys": ([VERSION, KEY, KEY], 'duplicate "Sec-WebSocket-Key" header'),
}


@pytest.mark.parametrize("fields, why", INVALID.values(), ids=INVALID)
@differs(LAX)
def test_a_bad_handshake_never_reaches_the_server(location, fields, why):
    proxy, server = location(TUTORIAL, head, send(SWITCH), to_end)
    wire = proxy.connect()
    wire.send(asking(*WEBSOCKET, *fields))
    answer = wire.read_response()
    assert (answer.status, answer.get("Connection")) == (400, "close")
    wire.expect_end()
    assert server.connections == []
    line = proxy.logged(f"client sent invalid WebSocket handshake: {why}, client: 127.0.0.1")
    assert "[info]" in line


@pytest.mark.parametrize(
    "start, why",
    [
        ("POST /chat HTTP/1.1", "the method is not GET"),
        ("GET /chat HTTP/1.0", "the protocol is not HTTP/1.1"),
    ],
)
@differs(LAX)
def test_a_handshake_is_a_get_of_http_1_1(location, start, why):
    proxy, server = location(TUTORIAL, head, send(SWITCH), to_end)
    body = ["Content-Length: 0"] if start.startswith("POST") else []
    assert proxy.ask(asking(*WEBSOCKET, KEY, VERSION, *body, start=start)).status == 400
    assert server.connections == []
    proxy.logged(f"client sent invalid WebSocket handshake: {why}")


def test_case_and_spaces_of_a_handshake_do_not_matter(location):
    proxy, _ = location(TUTORIAL, head, send(switch("upgrade: WebSocket", "connection: x", ACCEPT)), echoes)
    fields = ["UPGRADE:  WebSocket", "connection: keep-alive, Upgrade", "sec-websocket-version: 13 "]
    open_tunnel(proxy, asking(*fields, f"{KEY} "))


# The server's side.

BAD_SWITCH = {
    "no accept": (WEBSOCKET, 'no "Sec-WebSocket-Accept" header'),
    "another accept": (
        [*WEBSOCKET, "Sec-WebSocket-Accept: AAAALMBiTxaQ9kYGzzhZRbK+xOo="],
        '"Sec-WebSocket-Accept" does not match the key',
    ),
    "two accepts": ([*WEBSOCKET, ACCEPT, ACCEPT], 'duplicate "Sec-WebSocket-Accept" header'),
    "no upgrade": (["Connection: Upgrade", ACCEPT], 'no "Upgrade" header'),
    "another upgrade": (["Upgrade: foo/1", "Connection: Upgrade", ACCEPT], '"Upgrade" is not "websocket"'),
}


@pytest.mark.parametrize("fields, why", BAD_SWITCH.values(), ids=BAD_SWITCH)
@differs(LAX)
def test_a_101_that_is_no_answer_to_the_handshake(location, fields, why):
    proxy, server = location(TUTORIAL, head, send(switch(*fields)), to_end)
    wire = proxy.connect()
    wire.send(HANDSHAKE)
    assert wire.read_response().status == 502
    # The server has seen its end: `to_end` is over.
    server.threads[-1].join(10)
    assert not server.threads[-1].is_alive()
    line = proxy.logged(f"upstream sent invalid WebSocket handshake: {why} while reading response header from upstream")
    assert "[error]" in line and f'upstream: "http://{server.address}/chat"' in line


@differs("it goes by the client's Upgrade, sent on or not")
def test_a_101_that_was_not_asked_for(location):
    proxy, _ = location("", note, send(SWITCH), to_end)
    assert proxy.ask(HANDSHAKE).status == 502
    proxy.logged("upstream switched protocols without being asked while reading response header from upstream")


@differs("it is passed on as an ordinary response that never ends")
def test_a_101_to_a_request_without_upgrade(location):
    proxy, _ = location(TUTORIAL, note, send(SWITCH), to_end)
    assert proxy.get("/").status == 502
    proxy.logged("upstream switched protocols without being asked")


@ringx_only("nginx has no websocket_strict")
def test_without_strictness_any_101_will_do(location):
    proxy, server = location(f"websocket_strict off; {TUTORIAL}", note, send(switch("X: y")), echoes)
    open_tunnel(proxy, asking(*WEBSOCKET, "Sec-WebSocket-Version: 7", start="POST /chat HTTP/1.1"))
    assert server.request().get("Sec-WebSocket-Version") == "7"


def test_bytes_behind_a_good_handshake_are_the_tunnels(location):
    proxy, _ = location(TUTORIAL, head, send(SWITCH), echoes)
    wire = proxy.connect()
    wire.send(HANDSHAKE + b"ping")
    wire.read_head()
    assert wire.read_exactly(4) == b"ping"


# Other protocols.


def test_a_protocol_of_ones_own_is_tunnelled(location):
    proxy, server = location(TUTORIAL, note, send(switch("Upgrade: foo/1", "Connection: Upgrade")), echoes)
    open_tunnel(proxy, asking("Upgrade: foo/1", "Connection: Upgrade"))
    assert server.request().get("Upgrade") == "foo/1"


@differs("it asks the server for HTTP/2, and would tunnel it past every location")
def test_h2c_is_not_asked_for(serve, upstream):
    server = upstream(answering(response(b"plain")))
    proxy = serve(
        f"server {{ listen 127.0.0.1:@port@; location / {{ {TUTORIAL} proxy_pass http://@upstream@; }} }}",
        upstream=server.address,
    )
    wire = proxy.connect()
    for target in ["/one", "/two"]:
        wire.send(asking(*H2C, "X-Other: stays", start=f"GET {target} HTTP/1.1"))
        assert wire.read_response().body == b"plain"
    for number in (1, 2):
        assert server.request(number).fields == [("Host", server.address), ("X-Other", "stays")]
    wire.send(asking("Upgrade: TLS/1.2", "Connection: Upgrade", start="OPTIONS / HTTP/1.1"))
    assert wire.read_response().body == b"plain"
    assert server.request(3).fields == [("Host", server.address)]
    line = proxy.logged('upgrade to "h2c" is not passed on, see "proxy_upgrade_allow"')
    assert "[notice]" in line and 'request: "GET /one HTTP/1.1"' in line
    assert proxy.error_log().count("is not passed on") == 1


@pytest.mark.parametrize("value", ["websocket, h2c", "H2C", "h2c-14", "websocket;h2"])
@differs("it asks the server for HTTP/2")
def test_h2c_does_not_hide_in_a_list(location, value):
    proxy, server = location(TUTORIAL, note, send(response(b"plain")), to_end)
    answer = proxy.ask(asking(f"Upgrade: {value}", "Connection: Upgrade", KEY, VERSION))
    assert answer.body == b"plain"
    assert server.request().all("Upgrade") == server.request().all("Connection") == []


@differs("it asks the server for HTTP/2")
def test_other_options_of_connection_stay(location):
    through = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $http_connection;"
    proxy, server = location(through, note, send(response(b"plain")), to_end)
    proxy.ask(asking("Upgrade: h2c", "Connection: keep-alive, Upgrade, HTTP2-Settings", "HTTP2-Settings: AA"))
    assert server.request().fields == [("Host", server.address), ("Connection", "keep-alive")]


@differs("it tunnels HTTP/2")
def test_a_server_cannot_choose_h2c_by_itself(location):
    proxy, _ = location(TUTORIAL, note, send(switch("Upgrade: h2c", "Connection: Upgrade")), to_end)
    assert proxy.ask(asking("Upgrade: foo/1", "Connection: Upgrade")).status == 502
    proxy.logged('upstream switched to "h2c", see "proxy_upgrade_allow"')


@differs("it tunnels HTTP/2")
def test_a_101_to_a_request_for_h2c(location):
    proxy, _ = location(TUTORIAL, note, send(switch("Upgrade: h2c", "Connection: Upgrade")), to_end)
    assert proxy.ask(asking(*H2C)).status == 502
    proxy.logged("upstream switched protocols without being asked")


@ringx_only("nginx allows every protocol")
def test_h2c_may_be_allowed(location):
    switched = send(switch("Upgrade: h2c", "Connection: Upgrade"))
    proxy, server = location(f"proxy_upgrade_allow H2C; {TUTORIAL}", note, switched, echoes)
    open_tunnel(proxy, asking(*H2C))
    asked = server.request()
    assert (asked.get("Upgrade"), asked.get("Connection")) == ("h2c", "upgrade")
    assert asked.get("HTTP2-Settings") is not None
    assert "is not passed on" not in proxy.error_log()


# What is sent behind a handshake that the server does not take.

FORBIDDEN = "location /forbidden { return 403; }"


@pytest.mark.parametrize("refusal", [response(b"no"), response(b"no", "Upgrade: websocket", status="426 Upgrade Required")])
def test_a_request_behind_a_refused_handshake_meets_its_own_location(location, refusal):
    proxy, server = location(TUTORIAL, note, send(refusal), to_end, more=FORBIDDEN)
    wire = proxy.connect()
    wire.send(HANDSHAKE + b"GET /forbidden HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert wire.read_response().body == b"no"
    assert wire.read_response().status == 403
    wire.expect_end()
    # The server has seen nothing but the handshake.
    server.threads[-1].join(10)
    assert bytes(server.connection().transcript) == server.request().raw


def test_frames_behind_a_refused_handshake_are_a_bad_request(location):
    proxy, server = location(TUTORIAL, note, send(response(b"no")), to_end)
    wire = proxy.connect()
    wire.send(HANDSHAKE + b"\x81\x85\x01\x02\x03\x04ifooo")
    assert wire.read_response().body == b"no"
    # Until its line ends it may become a request.
    wire.send(b"\r\n\r\n")
    assert wire.read_response().status == 400
    wire.expect_end()
    server.threads[-1].join(10)
    assert bytes(server.connection().transcript) == server.request().raw


@differs(LAX)
def test_a_request_behind_a_bad_101_meets_its_own_location(location):
    proxy, server = location(TUTORIAL, note, send(switch(*WEBSOCKET)), to_end, more=FORBIDDEN)
    wire = proxy.connect()
    wire.send(HANDSHAKE + b"GET /forbidden HTTP/1.1\r\nHost: a\r\n\r\n")
    assert wire.read_response().status == 502
    assert wire.read_response().status == 403
    server.threads[-1].join(10)
    assert bytes(server.connection().transcript) == server.request().raw


def test_426_tells_the_versions(location):
    refusal = response(b"", "Upgrade: websocket", "Sec-WebSocket-Version: 13", status="426 Upgrade Required")
    proxy, _ = location(TUTORIAL, note, send(refusal), to_end)
    answer = proxy.ask(HANDSHAKE)
    assert answer.start == "HTTP/1.1 426 Upgrade Required"
    assert (answer.get("Upgrade"), answer.get("Sec-WebSocket-Version")) == ("websocket", "13")


# `websocket on`: one line for three.


@pytest.fixture
def short(serve, upstream):
    """A server that takes WebSockets, and other requests too, behind `websocket on` and these directives."""

    def start(directives: str = "") -> tuple[Proxy, object]:
        def handler(wire) -> None:
            while True:
                if wire.read_request().get("Upgrade"):
                    wire.send(SWITCH)
                    return echoes(wire)
                wire.send(response(b"plain"))

        server = upstream(handler)
        proxy = serve(
            f"""
            server {{
                listen 127.0.0.1:@port@;
                location / {{ websocket on; {directives} proxy_pass http://@upstream@; }}
            }}
            """,
            upstream=server.address,
        )
        return proxy, server

    return start


@ringx_only("nginx has no websocket")
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_websocket_on_needs_no_other_line(short, version):
    proxy, server = short(f"proxy_http_version {version};")
    open_tunnel(proxy)
    asked = server.request()
    assert asked.start == "GET /chat HTTP/1.1"
    assert asked.fields == [
        ("Host", server.address),
        ("Upgrade", "websocket"),
        ("Connection", "upgrade"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
    ]


@ringx_only("nginx has no websocket")
@pytest.mark.parametrize("fields", [[], ["Upgrade: foo/1", "Connection: Upgrade"], H2C[:2], ["Upgrade: websocket, h2c"]])
def test_websocket_on_leaves_other_requests_alone(short, fields):
    proxy, server = short("proxy_http_version 1.0;")
    assert proxy.ask(asking(*fields)).body == b"plain"
    asked = server.request()
    assert (asked.start, asked.fields) == ("GET /chat HTTP/1.0", [("Host", server.address)])


@ringx_only("nginx has no websocket")
def test_lines_of_ones_own_win_over_websocket_on(short):
    proxy, server = short('proxy_set_header Connection "Upgrade, x"; proxy_set_header Upgrade $http_upgrade;')
    open_tunnel(proxy, HANDSHAKE.replace(b"Upgrade: websocket", b"Upgrade: WebSocket"))
    asked = server.request()
    assert (asked.all("Upgrade"), asked.all("Connection")) == (["WebSocket"], ["Upgrade, x"])


@ringx_only("nginx has no websocket")
def test_websocket_on_goes_with_upstream_keepalive(short):
    """`proxy_set_header Connection ""` says nothing, so it says nothing against the upgrade."""
    proxy, server = short('proxy_set_header Connection "";')
    open_tunnel(proxy)
    assert server.request().all("Connection") == ["upgrade"]


@ringx_only("nginx has no websocket")
def test_websocket_on_is_strict(short):
    proxy, server = short()
    assert proxy.ask(asking(*WEBSOCKET, KEY)).status == 400
    assert server.connections == []


# uwsgi: its variables tell of an upgrade by themselves.


@pytest.fixture
def application(serve, upstream):
    """`application(directives, answer, …steps)`: a uwsgi server; the proxy, the server, and the packets it got."""

    def start(directives: str, *steps) -> tuple[Proxy, object, list]:
        packets = []
        server = upstream(script(lambda wire: packets.append(read_packet(wire)), *steps))
        proxy = serve(
            f"server {{ listen 127.0.0.1:@port@; location / {{ {directives} uwsgi_pass @upstream@; }} }}",
            upstream=server.address,
        )
        return proxy, server, packets

    return start


@pytest.mark.parametrize("directives", ["", pytest.param("websocket on;", marks=ringx_only("nginx has no websocket"))])
def test_a_uwsgi_application_switches(application, directives):
    proxy, _, packets = application(directives, send(SWITCH), echoes)
    open_tunnel(proxy)
    assert packets[0].get("HTTP_UPGRADE") == "websocket"


@differs(LAX)
def test_a_bad_handshake_never_reaches_a_uwsgi_application(application):
    proxy, server, _ = application("", send(SWITCH), to_end)
    assert proxy.ask(asking(*WEBSOCKET, VERSION)).status == 400
    assert server.connections == []


@differs(LAX)
def test_a_uwsgi_application_that_does_not_accept_the_key(application):
    proxy, _, _ = application("", send(switch(*WEBSOCKET)), to_end)
    assert proxy.ask(HANDSHAKE).status == 502
    proxy.logged('upstream sent invalid WebSocket handshake: no "Sec-WebSocket-Accept" header')


@pytest.mark.parametrize("directives", ["uwsgi_pass_request_headers off;", 'uwsgi_param HTTP_UPGRADE "";'])
@differs("it goes by the client's Upgrade, sent on or not")
def test_a_uwsgi_application_that_was_not_asked(application, directives):
    proxy, _, packets = application(directives, send(SWITCH), to_end)
    assert proxy.ask(HANDSHAKE).status == 502
    assert packets[0].get("HTTP_UPGRADE") is None
    proxy.logged("upstream switched protocols without being asked")


@pytest.mark.parametrize("directives", ["", "uwsgi_param HTTP_UPGRADE $http_upgrade;"])
@differs("it passes the wish for HTTP/2 on")
def test_a_uwsgi_application_is_not_asked_for_h2c(application, directives):
    plain = send(b"HTTP/1.1 200 OK\r\n\r\nplain")
    proxy, _, packets = application(directives, plain)
    assert proxy.ask(asking(*H2C, "X-Other: stays")).body == b"plain"
    assert packets[0].get("HTTP_UPGRADE") is packets[0].get("HTTP_HTTP2_SETTINGS") is None
    assert packets[0].get("HTTP_X_OTHER") == "stays"
    proxy.logged('upgrade to "h2c" is not passed on')


def test_an_upgrade_of_the_configurations_own_is_no_handshake_of_the_client(location):
    """A client that asks for nothing gets its answer, and no tunnel."""
    own = 'proxy_set_header Upgrade websocket; proxy_set_header Connection "upgrade";'
    proxy, _ = location(own, head, send(response(b"plain")))
    assert proxy.get("/").body == b"plain"


@differs(LAX)
def test_a_switch_that_the_client_has_not_asked_for_is_a_502(location):
    own = 'proxy_set_header Upgrade foo/1; proxy_set_header Connection "upgrade";'
    proxy, _ = location(own, head, send(switch("Upgrade: foo/1", "Connection: upgrade")), to_end)
    assert proxy.get("/").status == 502


@pytest.mark.parametrize("asked", ["h2c", "foo/1"])
def test_another_wish_is_none_for_the_websocket_of_the_configuration(location, asked):
    own = 'proxy_set_header Upgrade websocket; proxy_set_header Connection "upgrade";'
    proxy, _ = location(own, head, send(response(b"plain")))
    assert proxy.ask(asking(f"Upgrade: {asked}", "Connection: Upgrade")).body == b"plain"


@differs(LAX)
def test_another_wish_is_not_answered_with_a_websocket(location):
    own = 'proxy_set_header Upgrade websocket; proxy_set_header Connection "upgrade";'
    proxy, _ = location(own, head, send(SWITCH), to_end)
    assert proxy.ask(asking("Upgrade: foo/1", "Connection: Upgrade")).status == 502
    proxy.logged("upstream switched protocols without being asked")


@differs(LAX)
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_switch_in_the_middle_of_the_body(location, buffering):
    """The server would take what comes next for the rest of it."""
    answered = threading.Event()
    lines = f"{TUTORIAL} client_max_body_size 0; proxy_request_buffering {buffering};"
    proxy, _ = location(lines, head, send(switch("Upgrade: foo/1", "Connection: upgrade")), until(answered), to_end)
    length = 12 << 20
    upload = asking("Upgrade: foo/1", f"Content-Length: {length}", start="POST /chat HTTP/1.1")
    assert proxy.ask(upload + bytes(length)).status == 502
    answered.set()
    proxy.logged("upstream switched protocols before it had the request body")


@ringx_only("proxy_upgrade_allow")
def test_a_websocket_among_other_wishes_is_checked(location):
    """Also beside one that is allowed, and would be refused elsewhere."""
    proxy, _ = location(f"{TUTORIAL} proxy_upgrade_allow h2c;", head, send(SWITCH), echoes)
    wishes = ["Upgrade: websocket, h2c", "Connection: Upgrade", VERSION]
    assert proxy.ask(asking(*wishes)).status == 400
    open_tunnel(proxy, asking(*wishes, KEY))
