"""Generated connections against the invariants of harness/connection_fuzz.py: a few seconds of them, or as
many as RINGX_TEST_FUZZ_SECONDS says (`scripts/fuzz connection SECONDS`). RINGX_TEST_SEED takes the place
of the seed, and RINGX_TEST_FUZZ_CASES=NAME,NAME runs these cases alone (`scripts/fuzz connection --case`)."""

import asyncio
import contextlib
import json
import os
import struct
import tempfile
import time
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from harness import connection_fuzz, strict
from harness.connection_fuzz import SERVERS, Result, Upstream
from harness.proxy import Proxy, eventually
from harness.wire import DEADLINE

SECONDS = float(os.environ.get("RINGX_TEST_FUZZ_SECONDS", "5"))
SEED = os.environ.get("RINGX_TEST_SEED", "ringx")
CASES = connection_fuzz.named(os.environ.get("RINGX_TEST_FUZZ_CASES", ""))
LANES = 20

# Of its findings, what was mended.
KNOWN = ["d/7228", "k2/8026", "p2/38376/uwsgi", "p3/33960/uwsgi", "q1/2534", "q1/26665"]

CONFIGURATION = """
events {{ }}
http {{
    access_log off;
    keepalive_timeout 400ms;
    client_header_timeout 400ms;
    client_body_timeout 400ms;
    lingering_timeout 300ms;
    lingering_time 1s;
    proxy_read_timeout 3s;
    proxy_next_upstream error timeout;
    uwsgi_read_timeout 3s;
    uwsgi_next_upstream error timeout;
    uwsgi_keepalive assume;
{params}
    server {{
        listen 127.0.0.1:@port_status@;
        location / {{ ringx_status; }}
    }}
{servers}
}}
"""

SERVER = """
    upstream http_{c} {{ server @http_{c}@ max_fails=0; keepalive 4; }}
    server {{
        listen 127.0.0.1:@port_http_{c}@;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location / {{ proxy_pass http://http_{c}; }}
        location /stream/ {{ proxy_request_buffering off; proxy_pass http://http_{c}; }}
        location /plain/ {{ proxy_buffering off; proxy_pass http://http_{c}; }}
        location /old/ {{ proxy_http_version 1.0; proxy_set_header Connection close; proxy_pass http://http_{c}; }}
        location = /last {{ return 200 "last\\n"; }}
    }}
"""

UWSGI_SERVER = """
    upstream {kind}_{c} {{ server @{kind}_{c}@ max_fails=0; keepalive 4; }}
    server {{
        listen 127.0.0.1:@port_{kind}_{c}@;
        location / {{ uwsgi_pass {kind}_{c}; }}
        location /stream/ {{ uwsgi_request_buffering off; uwsgi_pass {kind}_{c}; }}
        location /plain/ {{ uwsgi_buffering off; uwsgi_pass {kind}_{c}; }}
        location /on/ {{ uwsgi_keepalive on; uwsgi_pass {kind}_{c}; }}
        location /old/ {{ uwsgi_keepalive off; uwsgi_pass {kind}_{c}; }}
        location /once/ {{ uwsgi_keepalive off; uwsgi_request_buffering off; uwsgi_pass {kind}_{c}; }}
        location /raw/ {{ uwsgi_request_buffering off; uwsgi_chunked_body raw; uwsgi_pass {kind}_{c}; }}
        location /nested/ {{ uwsgi_decode_chunked off; uwsgi_pass {kind}_{c}; }}
        location = /last {{ return 200 "last\\n"; }}
    }}
"""

VALUES = {
    b"QUERY_STRING": "$query_string",
    b"REQUEST_METHOD": "$request_method",
    b"CONTENT_TYPE": "$content_type",
    b"CONTENT_LENGTH": "$content_length",
    b"REQUEST_URI": "$request_uri",
    b"PATH_INFO": "$document_uri",
    b"SERVER_PROTOCOL": "$server_protocol",
    b"REMOTE_ADDR": "$remote_addr",
}
PARAMS = "".join(f"    uwsgi_param {key.decode()} {VALUES[key]};\n" for key in strict.PARAMS)


def names() -> list[str]:
    return [chr(ord("a") + n) for n in range(LANES)]


def status(proxy: Proxy) -> dict[str, int]:
    (shard,) = json.loads(proxy.get("/", port=int(proxy.values["port_status"])).body)["shards"]
    return shard


def descriptors(proxy: Proxy) -> Counter[str]:
    """What the open descriptors are, without the numbers of sockets and pipes."""
    found = Counter()
    for path in Path(f"/proc/{proxy.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[os.readlink(path).split(":[")[0]] += 1
    return found


@pytest.mark.ringx_only("asks ringx_status for panics and connections")
@pytest.mark.timeout(SECONDS + 180)
def test_generated_connections(proxy) -> None:
    async def run(folder: Path) -> Result:
        upstreams = {f"{kind}_{c}": Upstream(kind) for c in names() for kind in SERVERS}
        addresses = {name: await upstream.start(folder) for name, upstream in upstreams.items()}
        servers = "".join(SERVER.format(c=c) for c in names())
        servers += "".join(UWSGI_SERVER.format(kind=kind, c=c) for c in names() for kind in SERVERS[1:])
        text = CONFIGURATION.format(params=PARAMS, servers=servers)
        started = await asyncio.to_thread(proxy, text, **addresses)
        await asyncio.to_thread(eventually, lambda: status(started)["connections"] == 1, "nobody else is connected")
        # Until the question itself is closed: the last of what was open for the start.
        before = min((descriptors(started) for _ in range(100)), key=Counter.total)
        lanes = [
            {kind: (int(started.values[f"port_{kind}_{c}"]), upstreams[f"{kind}_{c}"]) for kind in SERVERS}
            for c in names()
        ]
        if CASES:
            result = await connection_fuzz.many(CASES, None, lanes)
        else:
            known = await connection_fuzz.many(KNOWN, None, lanes)
            result = await connection_fuzz.many(connection_fuzz.names(SEED, count()), SECONDS, lanes)
            result.found += known.found
        for upstream in upstreams.values():
            await upstream.stop()
        await asyncio.to_thread(is_clean, started, before)
        return result

    def is_clean(started: Proxy, before: Counter[str]) -> None:
        """Whatever was opened is closed again."""
        eventually(lambda: status(started)["connections"] == 1, "all clients are gone")
        assert status(started)["panics"] == 0
        eventually(lambda: all_closed(started, before), "all descriptors are closed")

    def all_closed(started: Proxy, before: Counter[str]) -> bool:
        left = descriptors(started) - before
        assert not left, f"still open: {left}"
        return True

    # The name of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="ringx-") as folder:
        result = asyncio.run(run(Path(folder)))
    print(
        f"{result.count} cases of seed {SEED!r}: {result.passed_on} requests passed on, "
        f"{result.reused} on a uwsgi connection that was kept, {result.answered} answers"
    )
    told = "\n".join(result.found)
    assert not result.found, f"of {result.count} cases of seed {SEED!r} {len(result.found)} failed:\n{told}"
    assert CASES or result.passed_on > result.count / 4, "hardly anything was passed on"
    assert CASES or result.reused > result.count / 50, "hardly any uwsgi connection was used again"


# The harness itself.

EVIL = connection_fuzz.EVIL_RESPONSE


@pytest.mark.parametrize(
    "answer, rest",
    [
        (b"HTTP/1.1 103 Early Hin\r\nContent-Length: 54\r\n\r\n" + EVIL, EVIL),
        (b"HTTP/1.1 103 A\n\nHTTP/1.0 103\r\nTransfer-Encoding: chunked\r\n\r\n" + EVIL, EVIL),
        (EVIL, EVIL),
        (b"HTTP/1.1 1030 A\r\n\r\n" + EVIL, b"HTTP/1.1 1030 A\r\n\r\n" + EVIL),
        (b"HTTP/1.1 103 A\r\nLink: <", b"HTTP/1.1 103 A\r\nLink: <"),
    ],
)
def test_early_hints_have_no_body(answer, rest) -> None:
    assert strict.behind_hints(answer) == rest


def packet(*pairs: tuple[bytes, bytes], modifiers: bytes = b"\0\0", tail: bytes = b"", **values: bytes) -> bytes:
    given = {b"REQUEST_METHOD": b"GET", b"REQUEST_URI": b"/a", b"PATH_INFO": b"/a"}
    given |= {key.encode(): value for key, value in values.items()}
    block = b"".join(
        struct.pack("<H", len(text)) + text
        for pair in [*((key, given.get(key, b"")) for key in strict.PARAMS), *pairs]
        if b"\0left out" not in pair
        for text in pair
    )
    return modifiers[:1] + struct.pack("<H", len(block + tail)) + modifiers[1:] + block + tail


def test_packets_are_read() -> None:
    two = packet(CONTENT_LENGTH=b"3") + b"abc" + packet((b"HTTP_X", b"1"))
    first, end = strict.one_packet(two, 0)
    assert (first.method, first.start, first.path, first.body, first.is_whole) == (b"GET", b"/a", b"/a", b"abc", True)
    second, end = strict.one_packet(two, end)
    assert (second.fields[-1], second.body, end) == ((b"HTTP_X", b"1"), b"", len(two))
    in_chunks = packet((b"HTTP_TRANSFER_ENCODING", b"chunked"), CONTENT_LENGTH=b"\0left out")
    message, _ = strict.one_packet(in_chunks + b"3\r\nabc\r\n0\r\n\r\n", 0)
    assert (message.body, message.is_whole) == (b"abc", True)
    message, _ = strict.one_packet(in_chunks + b"3\r\nabc\r\n0\r\n", 0)
    assert (message.body, message.is_whole) == (b"abc", False)
    assert not strict.one_packet(packet(CONTENT_LENGTH=b"3") + b"ab", 0)[0].is_whole


@pytest.mark.parametrize("length", [0, 3, 4, 60])
def test_half_a_packet_is_no_packet(length) -> None:
    with pytest.raises(strict.Cut):
        strict.one_packet(packet()[:length], 0)


@pytest.mark.parametrize(
    "broken",
    [
        packet(modifiers=b"\1\0"),
        packet(modifiers=b"\0\1"),
        packet((b"REQUEST_METHOD", b"GET")),
        packet((b"HTTP_X", b"1"), (b"HTTP_X", b"1")),
        packet((b"", b"1")),
        packet((b"UWSGI_FILE", b"1")),
        packet((b"HTTP_X", b"a\nb")),
        packet(tail=b"\5"),
        packet(tail=b"\5\0abcd"),
        packet(tail=b"\1\0a"),
        packet(REQUEST_METHOD=b""),
        packet(REQUEST_URI=b"/a b"),
        packet(CONTENT_LENGTH=b"-1"),
        packet(CONTENT_LENGTH=b"\0left out"),
        packet((b"HTTP_TRANSFER_ENCODING", b"chunked")),
        packet((b"HTTP_TRANSFER_ENCODING", b"gzip"), CONTENT_LENGTH=b"\0left out"),
        packet((b"HTTP_TRANSFER_ENCODING", b"chunked"), CONTENT_LENGTH=b"\0left out") + b"x\r\n",
    ],
)
def test_broken_packets_are_refused(broken) -> None:
    with pytest.raises(strict.Broken) as refused:
        strict.one_packet(broken, 0)
    assert refused.type is strict.Broken


@pytest.mark.parametrize("name", ["x/1", "x/1/uwsgi"])
def test_a_wait_that_has_no_end_is_a_finding(name, monkeypatch) -> None:
    """In front of a proxy that never answers."""
    monkeypatch.setattr(connection_fuzz, "DEADLINE", 0.2)

    async def run() -> Result:
        held = []
        silent = await asyncio.start_server(lambda *both: held.append(both), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        result = await connection_fuzz.many([name], None, [{kind: (port, Upstream(kind)) for kind in SERVERS}])
        for _, writer in held:
            writer.close()
        silent.close()
        return result

    (told,) = asyncio.run(run()).found
    assert f"case {name}," in told and "still reading to the end after 0.2 s" in told


def test_an_event_loop_that_does_not_turn_is_a_finding(monkeypatch) -> None:
    monkeypatch.setattr(connection_fuzz, "STUCK", 0.2)
    watch = connection_fuzz.Watch()
    watch.under_way["x/1"] = 0
    with watch:
        until = time.monotonic() + DEADLINE
        while not watch.found and time.monotonic() < until:
            pass
    (told,) = watch.found
    assert "under way: x/1" in told
