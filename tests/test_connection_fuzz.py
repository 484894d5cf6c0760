"""Generated connections against the invariants of harness/connection_fuzz.py: a few seconds of them, or as
many as RINGX_TEST_FUZZ_SECONDS says (`scripts/fuzz connection SECONDS`). RINGX_TEST_SEED takes the place
of the seed, and RINGX_TEST_FUZZ_CASES=N,N runs these numbers alone."""

import asyncio
import contextlib
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from harness import connection_fuzz
from harness.connection_fuzz import Result, Upstream
from harness.proxy import Proxy, eventually

SECONDS = float(os.environ.get("RINGX_TEST_FUZZ_SECONDS", "5"))
SEED = os.environ.get("RINGX_TEST_SEED", "ringx")
NUMBERS = [int(number) for number in os.environ.get("RINGX_TEST_FUZZ_CASES", "").split(",") if number]
LANES = 20

pytestmark = [pytest.mark.timeout(SECONDS + 120), pytest.mark.ringx_only("asks ringx_status for panics and connections")]

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
    server {{
        listen 127.0.0.1:@port_status@;
        location / {{ ringx_status; }}
    }}
{servers}
}}
"""

SERVER = """
    upstream up{n} {{ server 127.0.0.1:@upstream{n}@ max_fails=0; keepalive 4; }}
    server {{
        listen 127.0.0.1:@port_{c}@;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        location / {{ proxy_pass http://up{n}; }}
        location /stream/ {{ proxy_request_buffering off; proxy_pass http://up{n}; }}
        location /plain/ {{ proxy_buffering off; proxy_pass http://up{n}; }}
        location /old/ {{ proxy_http_version 1.0; proxy_set_header Connection close; proxy_pass http://up{n}; }}
        location = /last {{ return 200 "last\\n"; }}
    }}
"""


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


def test_generated_connections(proxy) -> None:
    async def run() -> Result:
        upstreams = [Upstream() for _ in range(LANES)]
        ports = {f"upstream{n}": await upstream.start() for n, upstream in enumerate(upstreams)}
        servers = "".join(SERVER.format(n=n, c=c) for n, c in enumerate(names()))
        started = await asyncio.to_thread(proxy, CONFIGURATION.format(servers=servers), **ports)
        eventually(lambda: status(started)["connections"] == 1, "nobody else is connected")
        # Until the question itself is closed: the last of what was open for the start.
        before = min((descriptors(started) for _ in range(100)), key=Counter.total)
        lanes = [(int(started.values[f"port_{c}"]), upstream) for c, upstream in zip(names(), upstreams, strict=True)]
        result = await connection_fuzz.many(SEED, SECONDS, lanes, NUMBERS or None)
        for upstream in upstreams:
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

    result = asyncio.run(run())
    print(f"{result.count} cases of seed {SEED!r}: {result.passed_on} requests passed on, {result.answered} answers")
    told = "\n".join(result.found)
    assert not result.found, f"of {result.count} cases of seed {SEED!r} {len(result.found)} failed:\n{told}"
    assert NUMBERS or result.passed_on > result.count / 4, "hardly anything was passed on"
