"""Idle upstream connections that shards lend each other (`tunnel_rebalance`)."""

import json
import signal
import socket
import time

import pytest

from harness.proxy import Proxy, eventually
from harness.wire import Wire

pytestmark = pytest.mark.ringx_only("nginx's processes lend each other nothing")

CONF = """
worker_processes @shards@;
tunnel_rebalance @every@;
events { }
http {
    upstream group { server @up@; keepalive 8 @local@; }
    server {
        listen 127.0.0.1:@port@;
        location = /status { ringx_status; }
        location = /here { return 204; }
        location /other { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://group; }
        location / { proxy_http_version 1.1; proxy_set_header Connection ""; proxy_pass http://group; }
    }
}
"""


class Clients:
    """Clients of two shards, and the upstream server that holds its answers back until it has so many
    requests."""

    def __init__(self, proxy, upstream, every="100ms", local=""):
        self.awaited = 0
        self.server = upstream(self.answer)
        self.values = {"shards": 2, "every": every, "local": local, "up": self.server.address}
        self.proxy: Proxy = proxy(CONF, **self.values)
        self.watch = self.proxy.connect()
        # The first shard stays whatever happens to the second.
        self.watch = self.on(0)

    def answer(self, wire) -> None:
        while True:
            wire.read_request()
            self.server.request(self.awaited)
            wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    def shards(self) -> list[dict]:
        return json.loads(ask(self.watch, "/status"))["shards"]

    def on(self, shard: int) -> Wire:
        """A client of this shard: the kernel decides whose it is."""
        while True:
            before = self.shards()[shard]["accepted"]
            client = self.proxy.connect()
            ask(client, "/here", 204)
            if self.shards()[shard]["accepted"] > before:
                return client
            client.close()

    def ask_at_once(self, shard: int, count: int, target: str = "/") -> None:
        clients = [self.on(shard) for _ in range(count)]
        self.awaited = len(self.server.requests) + count
        for client in clients:
            client.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [client.read_response().body for client in clients] == [b"ok"] * count
        for client in clients:
            client.close()

    def counted(self, name: str) -> list[int]:
        return [shard[name] for shard in self.shards()]

    def are_lent(self, shard: int, count: int) -> None:
        eventually(lambda: self.counted("lent")[shard] == count, f"shard {shard} has lent {count}")

    def reload(self, **values) -> None:
        text = CONF
        for name, value in {**self.values, **values}.items():
            text = text.replace(f"@{name}@", str(value))
        self.proxy.write(text.replace("http {", "http { server_tokens off;"))
        self.proxy.signal(signal.SIGHUP)
        eventually(lambda: self.serves_as() == "ringx", "the first shard has it")

    def serves_as(self) -> str | None:
        self.watch.send("GET /here HTTP/1.1\r\nHost: a\r\n\r\n")
        return self.watch.read_response().get("Server")


def ask(wire: Wire, target: str, status: int = 200) -> bytes:
    wire.send(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")
    response = wire.read_response()
    assert response.status == status
    return response.body


def test_who_would_connect_has_what_another_shard_does_not_need(proxy, upstream):
    clients = Clients(proxy, upstream)
    clients.ask_at_once(1, 3)
    clients.are_lent(1, 3)
    clients.ask_at_once(0, 3)
    assert len(clients.server.connections) == 3
    assert clients.counted("borrowed") == [3, 0]
    # Theirs from now on, until they do not need them either.
    clients.are_lent(0, 3)
    clients.ask_at_once(0, 4)
    assert len(clients.server.connections) == 4
    assert clients.counted("borrowed") == [3, 0]


def test_nothing_is_lent_where_that_is_not_wanted(proxy, upstream):
    clients = Clients(proxy, upstream, every="off")
    clients.ask_at_once(1, 2)
    time.sleep(1.5)  # By default they would be lent after one second.
    clients.ask_at_once(0, 2)
    assert len(clients.server.connections) == 4
    assert clients.counted("lent") == [0, 0]


def test_what_is_a_location_s_own_stays_that(proxy, upstream):
    clients = Clients(proxy, upstream, local="local")
    clients.ask_at_once(1, 2)
    clients.are_lent(1, 2)
    clients.ask_at_once(0, 1, "/other")
    assert len(clients.server.connections) == 3
    clients.ask_at_once(0, 2)
    assert len(clients.server.connections) == 3
    assert clients.counted("borrowed") == [2, 0]


def test_one_that_its_server_has_closed_is_no_help(proxy, upstream):
    clients = Clients(proxy, upstream)
    clients.ask_at_once(1, 2)
    clients.are_lent(1, 2)
    clients.server.connections[1].sock.shutdown(socket.SHUT_RDWR)
    clients.ask_at_once(0, 2)
    assert len(clients.server.connections) == 3
    assert clients.counted("borrowed") == [1, 0]


def test_they_stay_through_a_reload(proxy, upstream):
    clients = Clients(proxy, upstream)
    clients.ask_at_once(1, 2)
    clients.are_lent(1, 2)
    clients.reload()
    clients.ask_at_once(0, 2)
    assert len(clients.server.connections) == 2


def test_a_shard_that_leaves_lends_what_it_has(proxy, upstream):
    clients = Clients(proxy, upstream, every="off")
    clients.ask_at_once(1, 2)
    clients.reload(shards=1)
    clients.are_lent(1, 2)
    clients.ask_at_once(0, 2)
    assert len(clients.server.connections) == 2
    assert clients.counted("borrowed")[0] == 2
