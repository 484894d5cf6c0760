"""WebSocket through conf/examples/websocket.conf, with real servers and clients and with raw bytes."""

import asyncio
import json
import os
import random
import signal
import subprocess
import threading

import pytest
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosedOK
from websockets.sync.client import connect as ws_connect_sync

from harness.proxy import Proxy
from harness.servers import NODE_MODULES, TESTS
from harness.upstream import close, head, reset, script, send, to_end, until
from harness.wire import Wire

differs = pytest.mark.differs_in_nginx

HANDSHAKE = (
    b"GET /chat HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


@pytest.fixture
def tunnels(example):
    """`tunnels(address, directives…)`: the example in front of this upstream, with more lines in its location."""

    def start(address: str, *more: str) -> Proxy:
        changes = {"listen 9000;": "listen 127.0.0.1:@port@;", "127.0.0.1:8800": address}
        if more:
            changes["location / {"] = "location / {\n" + "\n".join(more)
        return example("websocket.conf", changes)

    return start


@pytest.fixture(params=["python", "node"])
def echo(request, python_echo, node_echo):
    return {"python": python_echo, "node": node_echo}[request.param]


def url(proxy: Proxy) -> str:
    return f"ws://127.0.0.1:{proxy.port}/"


def open_client(proxy: Proxy, **options):
    return ws_connect_sync(url(proxy), proxy=None, compression=None, max_size=None, **options)


def upgrade(proxy: Proxy, more: bytes = b"", **options) -> Wire:
    """A raw client that has asked to upgrade."""
    wire = proxy.connect(**options)
    wire.send(HANDSHAKE + more)
    return wire


# Real servers, real clients.


def test_text_and_binary_messages_are_echoed(tunnels, echo):
    with open_client(tunnels(echo.address)) as client:
        for message in ["", "hello", "grüße, 世界", b"", b"\x00\xff" * 100, os.urandom(70000)]:
            client.send(message)
            assert client.recv(timeout=10) == message


def test_a_message_of_one_mebibyte_is_echoed(tunnels, echo):
    message = os.urandom(1 << 20)
    with open_client(tunnels(echo.address)) as client:
        client.send(message)
        assert client.recv(timeout=20) == message


def test_a_ping_is_answered_by_the_server(tunnels, echo):
    with open_client(tunnels(echo.address)) as client:
        assert client.ping(b"are you there?").wait(10)


def test_the_client_closes(tunnels, echo):
    with open_client(tunnels(echo.address)) as client:
        client.close(1000, "done")
    assert (client.close_code, client.protocol.close_rcvd_then_sent) == (1000, False)


def test_the_server_closes(tunnels, echo):
    with open_client(tunnels(echo.address)) as client:
        client.send("close 1000")
        with pytest.raises(ConnectionClosedOK):
            client.recv(timeout=10)
        assert (client.close_code, client.close_reason) == (1000, "as asked")
        assert client.protocol.close_rcvd_then_sent


def test_200_tunnels_at_once(tunnels, echo):
    async def talk(address: str) -> int:
        opened = [await ws_connect(address, proxy=None, compression=None) for _ in range(200)]

        async def one(number: int, client) -> int:
            for turn in range(5):
                message = f"tunnel {number}, message {turn}"
                await client.send(message)
                assert await client.recv() == message
            await client.close()
            return 5

        return sum(await asyncio.gather(*(one(number, client) for number, client in enumerate(opened))))

    proxy = tunnels(echo.address)
    assert asyncio.run(asyncio.wait_for(talk(url(proxy)), 50)) == 1000
    assert len(proxy.accessed(200, "ws.log")) == 200


@pytest.mark.parametrize("count, messages, size", [(1, 20, 100), (1, 2, 1 << 20), (200, 4, 128)])
def test_a_node_client_is_served(tunnels, echo, count, messages, size):
    command = ["node", TESTS / "servers/ws_client.cjs", url(tunnels(echo.address)), count, messages, size]
    done = subprocess.run(
        [str(part) for part in command],
        env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"echoed": count * messages, "pongs": count, "codes": {"1000": count}}


# The handshake, byte by byte.


def test_the_upgrade_is_asked_for_upstream(tunnels, upstream):
    server = upstream(script(lambda wire: wire.read_request(), send(SWITCH), to_end))
    wire = upgrade(tunnels(server.address))
    wire.read_head()
    request = server.request()
    assert request.start == "GET /chat HTTP/1.1"
    assert sorted(request.fields) == [
        ("Connection", "upgrade"),
        ("Host", server.address),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("Sec-WebSocket-Version", "13"),
        ("Upgrade", "websocket"),
    ]


def test_the_switch_reaches_the_client_in_nginx_order(tunnels, upstream):
    server = upstream(script(head, send(SWITCH), to_end))
    response = upgrade(tunnels(server.address)).read_head()
    assert response.start == "HTTP/1.1 101 Switching Protocols"
    assert response.names() == ["Server", "Date", "Connection", "Upgrade", "Sec-WebSocket-Accept"]
    assert response.get("Connection") == "upgrade"
    assert response.get("Upgrade") == "websocket"


def test_the_server_speaks_right_behind_its_101(tunnels, upstream):
    server = upstream(script(head, send(SWITCH + b"\x81\x05hello"), to_end))
    wire = upgrade(tunnels(server.address))
    wire.read_head()
    assert wire.read_exactly(7) == b"\x81\x05hello"


def test_the_client_speaks_right_behind_its_request(tunnels, upstream):
    server = upstream(script(head, send(SWITCH), lambda wire: wire.send(wire.read_exactly(9)), to_end))
    wire = upgrade(tunnels(server.address), more=b"too early")
    wire.read_head()
    assert wire.read_exactly(9) == b"too early"


def test_64_kib_behind_the_request_wait_for_the_101(tunnels, upstream):
    early = os.urandom(1 << 16)
    go = threading.Event()
    server = upstream(script(head, until(go), send(SWITCH), lambda wire: wire.send(wire.read_exactly(1 << 16)), to_end))
    wire = upgrade(tunnels(server.address), more=early)
    server.connection()
    go.set()
    wire.read_head()
    assert wire.read_exactly(len(early)) == early


def test_another_status_is_an_ordinary_response(tunnels, upstream):
    refusal = b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nno"
    server = upstream(script(head, send(refusal), to_end))
    wire = upgrade(tunnels(server.address))
    response = wire.read_response()
    assert (response.start, response.body) == ("HTTP/1.1 426 Upgrade Required", b"no")
    assert response.get("Upgrade") == "websocket"


def test_a_request_without_upgrade_is_an_ordinary_request(tunnels, upstream):
    server = upstream(script(head, send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"), to_end))
    response = tunnels(server.address).get("/")
    assert (response.status, response.body) == (200, b"hi")


def test_an_upstream_that_refuses_is_a_502(tunnels, upstream):
    server = upstream(close)
    server.stop()
    proxy = tunnels(server.address)
    assert upgrade(proxy).read_response().status == 502
    line = proxy.logged("connect() failed (111: Connection refused) while connecting to upstream")
    assert f'upstream: "http://{server.address}/chat"' in line


# Ends.


def test_read_timeout_closes_a_silent_tunnel(tunnels, upstream):
    server = upstream(script(head, send(SWITCH), to_end))
    proxy = tunnels(server.address, "proxy_read_timeout 500ms;")
    wire = upgrade(proxy)
    wire.read_head()
    wire.expect_end()
    proxy.logged("upstream timed out (110: Connection timed out) while proxying upgraded connection")
    assert '" 101 0 ' in proxy.accessed(1, "ws.log")[0]


def test_traffic_of_either_side_keeps_the_tunnel_open(tunnels, upstream):
    """Five times the timeout in steps of less than it, only the client speaking."""
    server = upstream(script(head, send(SWITCH), to_end))
    wire = upgrade(tunnels(server.address, "proxy_read_timeout 1s;"))
    wire.read_head()
    for _ in range(5):
        wire.expect_silence(0.5)
        wire.send(b"x")
    wire.expect_end()
    assert bytes(server.connection().transcript).endswith(b"\r\n\r\nxxxxx")


def test_the_end_of_the_server_ends_the_tunnel_after_its_last_bytes(tunnels, upstream):
    goodbye = os.urandom(1 << 18)
    server = upstream(script(head, send(SWITCH + goodbye), close))
    wire = upgrade(tunnels(server.address))
    wire.read_head()
    assert wire.read_to_end() == goodbye


def test_the_end_of_the_client_reaches_the_server_after_its_last_bytes(tunnels, upstream):
    goodbye = os.urandom(1 << 18)
    seen = []
    server = upstream(script(head, send(SWITCH), lambda wire: seen.append(wire.read_to_end())))
    proxy = tunnels(server.address)
    wire = upgrade(proxy)
    wire.read_head()
    wire.send(goodbye)
    wire.close()
    proxy.accessed(1, "ws.log")
    server.stop()
    assert seen == [goodbye]


def test_a_reset_of_the_server_ends_the_tunnel(tunnels, upstream):
    server = upstream(script(head, send(SWITCH), lambda wire: wire.read_exactly(2), reset))
    proxy = tunnels(server.address)
    wire = upgrade(proxy)
    wire.read_head()
    wire.send(b"go")
    assert wire.read_to_end() == b""
    assert '" 101 0 ' in proxy.accessed(1, "ws.log")[0]


@differs("nginx closes both ways at the first FIN (proxy.md 10); ringx passes it on")
def test_a_half_closed_client_still_gets_the_answer(tunnels, upstream):
    answer = os.urandom(1 << 20)
    asked = []

    def serve(wire):
        wire.read_head()
        wire.send(SWITCH)
        asked.append(wire.read_to_end())
        wire.send(answer)

    wire = upgrade(tunnels(upstream(serve).address))
    wire.read_head()
    wire.send(b"a question")
    wire.finish()
    assert wire.read_to_end() == answer
    assert asked == [b"a question"]


@differs("nginx closes both ways at the first FIN (proxy.md 10); ringx passes it on")
def test_a_half_closed_server_still_hears_the_client(tunnels, upstream):
    heard = []

    def serve(wire):
        wire.read_head()
        wire.send(SWITCH + b"that was all")
        wire.finish()
        heard.append(wire.read_to_end())

    server = upstream(serve)
    wire = upgrade(tunnels(server.address))
    wire.read_head()
    assert wire.read_to_end() == b"that was all"
    wire.send(b"but listen")
    wire.finish()
    server.threads[-1].join(10)
    assert heard == [b"but listen"]


def test_the_access_log_tells_the_whole_tunnel(tunnels, upstream):
    server = upstream(script(head, send(SWITCH), lambda wire: wire.read_exactly(10), send(b"y" * 12345), to_end))
    proxy = tunnels(server.address)
    wire = upgrade(proxy)
    wire.read_head()
    wire.send(b"x" * 10)
    wire.read_exactly(12345)
    assert proxy.log("ws.log") == "", "logged before the tunnel's end"
    wire.close()
    (line,) = proxy.accessed(1, "ws.log")
    assert line.startswith("127.0.0.1 - - [")
    assert line.endswith('] "GET /chat HTTP/1.1" 101 12345 "-" "-"')


def test_the_byte_counts_of_a_tunnel(serve, upstream):
    server = upstream(script(head, send(SWITCH), lambda wire: wire.read_exactly(10), send(b"y" * 1000), to_end))
    proxy = serve(
        """
        log_format tunnel '$status $bytes_sent $body_bytes_sent $request_length '
                          '$upstream_bytes_received $upstream_bytes_sent $upstream_status $upstream_response_length';
        access_log logs/access.log tunnel;
        server {
            listen 127.0.0.1:@port@;
            location / {
                proxy_http_version 1.1;
                proxy_set_header Upgrade $http_upgrade;
                proxy_set_header Connection "upgrade";
                proxy_pass http://@upstream@;
            }
        }
        """,
        upstream=server.address,
    )
    wire = upgrade(proxy)
    client_head = wire.read_head()
    wire.send(b"x" * 10)
    wire.read_exactly(1000)
    wire.close()
    (line,) = proxy.accessed()
    server.stop()
    upstream_request = len(server.connection().transcript)
    counts = [101, len(client_head.raw) + 1000, 1000, len(HANDSHAKE), len(SWITCH) + 1000, upstream_request, 101, 0]
    assert [int(word) for word in line.split()] == counts


# Bulk.


def test_bulk_both_ways_with_slow_readers_is_byte_exact(tunnels, upstream):
    """16 MiB each way at once, both ends reading later than writing: back-pressure must hold both, and lose nothing."""
    size = 16 << 20
    down, up = random.Random(1).randbytes(size), random.Random(2).randbytes(size)
    got = []

    def serve(wire):
        wire.read_head()
        wire.send(SWITCH)
        writer = threading.Thread(target=wire.send, args=(down,))
        writer.start()
        slow = bytearray()
        while len(slow) < size:
            slow += wire.read_exactly(min(1 << 20, size - len(slow)))
            writer.join(0.005)
        got.append(bytes(slow))
        writer.join()
        wire.read_to_end()

    server = upstream(serve)
    wire = upgrade(tunnels(server.address), receive_buffer=1 << 14)
    wire.deadline = server.connection().deadline = 40
    wire.read_head()
    writer = threading.Thread(target=wire.send, args=(up,))
    writer.start()
    writer.join(0.3)
    received = bytearray()
    while len(received) < size:
        received += wire.read_exactly(min(1 << 20, size - len(received)))
        writer.join(0.005)
    writer.join()
    assert received == down
    wire.close()
    server.threads[-1].join(10)
    assert got == [up]


def test_a_receiver_that_does_not_read_stops_the_sender(tunnels, upstream):
    """What a client does not read stays with the server: the proxy and two kernels hold a bounded part."""
    chunk, sent = b"z" * (1 << 16), []

    def serve(wire):
        wire.read_head()
        wire.send(SWITCH)
        wire.deadline = 0.7
        try:
            while len(sent) < 2000:  # 125 MiB, if nothing stops it
                wire.send(chunk)
                sent.append(len(chunk))
        finally:
            stalled.set()

    stalled = threading.Event()
    wire = upgrade(tunnels(upstream(serve).address), receive_buffer=1 << 14)
    wire.read_head()
    assert stalled.wait(30)
    assert sum(sent) < 64 << 20
    assert wire.read_exactly(sum(sent)) == b"z" * sum(sent)


def test_a_tunnel_survives_a_reload(tunnels, python_echo):
    proxy = tunnels(python_echo.address)
    with open_client(proxy) as client:
        client.send("before")
        assert client.recv(timeout=10) == "before"
        proxy.signal(signal.SIGHUP)
        proxy.logged("reconfiguring")
        with open_client(proxy) as fresh:
            fresh.send("new")
            assert fresh.recv(timeout=10) == "new"
        client.send("after")
        assert client.recv(timeout=10) == "after"
