"""`ringx_status`: what the shards have counted, as JSON."""

import json
import signal

import pytest

from harness.proxy import Proxy, eventually

pytestmark = pytest.mark.ringx_only("nginx has stub_status")

CONF = """
worker_processes @shards@;
events { }
http {
    access_log off;
    server {
        listen 127.0.0.1:@port@;
        location /x { return 200 x; }
        location /status { ringx_status; }
        location /slash/ { ringx_status; }
    }
}
"""


@pytest.fixture
def started(proxy):
    def start(shards: int = 1) -> Proxy:
        return proxy(CONF, shards_by_default=True, shards=shards)

    return start


def shards(proxy: Proxy) -> list[dict]:
    return json.loads(proxy.get("/status").body)["shards"]


def total(proxy: Proxy, name: str) -> int:
    return sum(shard[name] for shard in shards(proxy))


def test_the_response(started):
    proxy = started()
    # The harness has looked whether the port is open.
    eventually(lambda: total(proxy, "connections") == 1, "nobody else is connected")
    seen = total(proxy, "requests")
    response = proxy.get("/status")
    assert response.status == 200
    assert response.get("Content-Type") == "application/json"
    assert response.get("Cache-Control") == "no-store"
    assert response.get("Content-Length") == str(len(response.body))
    (shard,) = json.loads(response.body)["shards"]
    tunnels = shard.pop("tunnels")
    accepted = shard["accepted"]
    assert shard == {
        "shard": 0,
        "connections": 1,
        "reading": 0,
        "writing": 1,
        "accepted": accepted,
        "dropped": 0,
        "requests": seen + 1,
        "queued": 0,
        "lent": 0,
        "borrowed": 0,
        "panics": 0,
        "restarts": 0,
    }
    assert accepted > seen
    assert tunnels == dict.fromkeys(
        [
            "open",
            "opened",
            "bytes_copied",
            "bytes_spliced",
            "mode_switches",
            "pipes_in_use",
            "backlog_bytes",
            "closes_sent",
            "websocket_frames",
            "websocket_messages",
            "taken_over",
            "bytes_per_second",
        ],
        0,
    )


def test_head_has_no_body(started):
    proxy = started()
    wire = proxy.connect()
    wire.send(b"HEAD /status HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n")
    head = wire.read_response(method="HEAD")
    assert (head.status, head.get("Content-Type")) == (200, "application/json")
    assert int(head.get("Content-Length")) > 0
    assert wire.read_response().body == b"x"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(started, method):
    proxy = started()
    assert proxy.get("/status", method=method).status == 405


def test_a_body_must_be_one(started):
    proxy = started()
    head = b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert proxy.ask(head + b"1\r\nx\r\n0\r\n\r\n").status == 200
    assert proxy.ask(head + b"x\r\n").status == 400


def test_a_location_with_a_slash_is_not_redirected_to(started):
    """As with nginx's own handlers that pass nothing on."""
    proxy = started()
    assert proxy.get("/slash").status == 404
    assert proxy.get("/slash/").status == 200


def test_requests_of_two_shards_add_up(started):
    proxy = started(2)
    before = total(proxy, "requests")
    for _ in range(40):
        wire = proxy.connect()
        for _ in range(3):
            wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            assert wire.read_response().body == b"x"
        wire.close()
    after = shards(proxy)
    assert [shard["shard"] for shard in after] == [0, 1]
    # This request is one of them.
    assert sum(shard["requests"] for shard in after) == before + 120 + 1
    assert all(shard["requests"] > 0 for shard in after)


def test_open_connections_are_seen_from_any_shard(started):
    proxy = started(2)
    wires = [proxy.connect() for _ in range(20)]
    for wire in wires:
        wire.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
        wire.read_response()
    eventually(lambda: total(proxy, "connections") == 21, "each connection counts, and the one that asks")
    for wire in wires:
        wire.close()
    eventually(lambda: total(proxy, "connections") == 1, "none is left but the one that asks")
    assert total(proxy, "accepted") >= 21


def test_a_reload_keeps_the_counts(started):
    proxy = started()
    for _ in range(5):
        proxy.get("/x")
    before = total(proxy, "requests")
    proxy.write(CONF.replace("return 200 x;", "return 200 y;"))
    proxy.signal(signal.SIGHUP)
    eventually(lambda: proxy.get("/x").body == b"y", "the new configuration holds")
    assert total(proxy, "requests") > before >= 6
