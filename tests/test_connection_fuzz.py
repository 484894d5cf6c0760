"""Generated connections against the invariants of harness/connection_fuzz.py: a few seconds of them, or as
many as RINGX_TEST_FUZZ_SECONDS says (`scripts/fuzz connection SECONDS`). RINGX_TEST_SEED takes the place
of the seed, and RINGX_TEST_FUZZ_CASES=NAME,NAME runs these cases alone (`scripts/fuzz connection --case`)."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from harness import connection_fuzz, strict
from harness.connection_fuzz import SERVERS, Result, Upstream
from harness.proxy import Proxy, eventually

SECONDS = float(os.environ.get("RINGX_TEST_FUZZ_SECONDS", "5"))
SEED = os.environ.get("RINGX_TEST_SEED", "ringx")
CASES = connection_fuzz.named(os.environ.get("RINGX_TEST_FUZZ_CASES", ""))
LANES = 20

# Of its findings, what was mended.
KNOWN = ["d/7228"]

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
