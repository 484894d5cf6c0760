"""The same generated requests to ringx and to nginx: same answers, same bytes for the upstream.

`INTENDED` is the whole list of what may differ, each with its reason. RINGX_TEST_FULL=1 runs 20,000
cases, RINGX_TEST_CASES as many as it says; RINGX_TEST_SEED takes the place of the seed `ringx`.
"""

import asyncio
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import differential
from harness.differential import Case, Difference, Lane, Recorder
from harness.proxy import Binary, Proxy

FULL = bool(os.environ.get("RINGX_TEST_FULL"))
CASES = int(os.environ.get("RINGX_TEST_CASES", 20_000 if FULL else 4_000))
SEED = os.environ.get("RINGX_TEST_SEED", "ringx")
LANES = 8
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"

pytestmark = [
    pytest.mark.timeout(1800 if FULL else 300),
    pytest.mark.ringx_only("compares ringx with nginx"),
    pytest.mark.skipif(not Path(NGINX).exists(), reason="there is no nginx to compare with"),
]

CONFIGURATION = """
events {{ }}
http {{
    server_tokens off;
    access_log off;
    client_header_timeout 1s;
    client_body_timeout 1s;
    lingering_timeout 500ms;
    lingering_time 1s;
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Connection "";
    proxy_set_header X-Uri $request_uri;
{servers}
}}
"""

SERVERS = """
    upstream up{n} {{ server 127.0.0.1:@upstream{n}@; keepalive 4; }}
    server {{
        listen 127.0.0.1:@port_{c}@;
        server_name example.com;
        error_page 404 /r/404page;
        error_page 413 = @big;
        location / {{ proxy_pass http://up{n}; }}
        location /uri/ {{ proxy_pass http://up{n}/base/; }}
        location /uri/deep/ {{ proxy_pass http://up{n}/b?x=; }}
        location ~ ^/re/(.*)\\.php$ {{ @level@ proxy_set_header X-Cap $1; proxy_pass http://up{n}; }}
        location ~* ^/case/ {{ return 200 "case $uri $is_args$args\\n"; }}
        location /files/ {{ alias @root@/; }}
        location /ret {{ return 200 "ret $uri|$args|$host|$request_method|$http_x_a|$http_cookie\\n"; }}
        location /rw/ {{ rewrite ^/rw/(.*)$ /uri/$1 last; }}
        location /rb/ {{ rewrite ^/rb/(.*)$ /new/$1 break; proxy_pass http://up{n}; }}
        location /named/ {{ try_files /none @named; }}
        location @named {{ @level@ proxy_set_header X-Named 1; proxy_pass http://up{n}; }}
        location @big {{ return 200 "too big\\n"; }}
        location /small/ {{ client_max_body_size 16; proxy_pass http://up{n}; }}
        location /stream/ {{ proxy_request_buffering off; proxy_pass http://up{n}; }}
        location = /exact {{ return 204; }}
        location /if/ {{
            if ($request_method = POST) {{ return 405; }}
            if ($args ~ "a=(\\w)") {{ set $got $1; }}
            return 200 "if $got\\n";
        }}
        location /try/ {{ root @root@; try_files $uri $uri/ /uri/tried?u=$uri; }}
        location /redir/ {{ return 301 /to$uri?$args; }}
        location /err/ {{ return 404; }}
        location /args/ {{ set $args "fixed=1"; proxy_pass http://up{n}; }}
        location /set/ {{ @level@ proxy_set_header X-B $arg_b; proxy_set_header X-C $cookie_c; proxy_pass http://up{n}; }}
        location = /last {{ return 200 "last\\n"; }}
    }}
    server {{
        listen 127.0.0.1:@port_{c}@;
        server_name other.example *.wild.example;
        merge_slashes off;
        underscores_in_headers on;
        ignore_invalid_headers off;
        location / {{ proxy_pass http://up{n}; }}
        location = /last {{ return 200 "other last\\n"; }}
    }}
"""


# What may differ: (the reason, when it is meant).

def asks(pattern: bytes) -> Callable[[Difference], bool]:
    """The stream holds this, anywhere."""
    return lambda difference: bool(re.search(pattern, difference.case.stream, re.MULTILINE))


def is_cut_short(difference: Difference) -> bool:
    """The answers of one are the first of the other's, and then it reset the connection: what comes behind
    a last request, later than the close, is answered so by the kernel, and the answer may be lost."""
    ours, theirs = difference.ours, difference.theirs
    shorter, longer = sorted([ours, theirs], key=lambda outcome: len(outcome.answers))
    return (
        shorter.reset
        and shorter.answers == longer.answers[: len(shorter.answers)]
        and shorter.upstream == longer.upstream
    )


def is_framed_otherwise(difference: Difference) -> bool:
    def unframed(requests: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        framing = rb"(?m)^(Content-Length: \d+|Transfer-Encoding: chunked)\r$"
        return [(re.sub(framing, b"<framing>", head), body) for head, body in requests]

    ours, theirs = difference.ours, difference.theirs
    is_same = ours.answers == theirs.answers and unframed(ours.upstream) == unframed(theirs.upstream)
    return is_same and len(difference.case.pieces) > 1


def is_closed_after_412(difference: Difference) -> bool:
    """If bytes are still to come, that may be a reset, and the 412 lost."""
    ours, theirs = difference.ours.answers, difference.theirs.answers
    last = ours[: len(theirs) + 1] if difference.theirs.reset else theirs
    return any(answer[0] == 412 for answer in last[-2:]) and theirs == ours[: len(theirs)]


def is_escaped_in_the_target(difference: Difference) -> bool:
    """All is the same but for spaces in the targets of requests to the upstream."""

    def escaped(head: bytes) -> bytes:
        line, end, rest = head.partition(b" HTTP/1.")
        method, space, target = line.partition(b" ")
        return method + space + target.replace(b" ", b"%20") + end + rest

    ours, theirs = difference.ours, difference.theirs
    spaced = [(escaped(head), body) for head, body in theirs.upstream]
    return ours.answers == theirs.answers and ours.upstream == spaced


def is_stricter_about_chunks(difference: Difference) -> bool:
    """Chunks that were made wrong: up to there all is the same, and the connection ends no later. Of an
    unbuffered body the upstream may have got a part."""
    ours, theirs = difference.ours, difference.theirs
    before = ours.statuses[:-1]
    seen = ours.upstream[:-1] if b"/stream/" in difference.case.stream else ours.upstream
    is_same_so_far = before == theirs.statuses[: len(before)] and seen == theirs.upstream[: len(seen)]
    return difference.case.chunks_are_broken and ours.closed and is_same_so_far


ODD_HOST = rb"^Host: (a@b|a/b|a\\b|a\"b|a:x|a:99999|\xe9|\[::1\]x|\[::1|a\.\.b)\r?$"
INTENDED: list[tuple[str, Callable[[Difference], bool]]] = [
    ("CONNECT with a target other than host:port is a 400 since 1.31, not a 405", asks(rb"CONNECT ")),
    ("Proxy-Connection is not passed on since 1.29", asks(rb"^Proxy-Connection:")),
    ("hosts that RFC 3986 does not allow are refused since 1.29", asks(ODD_HOST)),
    ("a line's end out of `$uri` is escaped in URIs and Location, and is a space in other fields", asks(rb"%0a")),
    ("a connection closed with bytes still to come is reset, and the last answer may be lost", is_cut_short),
    ("a space out of `$uri` is escaped in the request line", is_escaped_in_the_target),
    ("nginx closes after a 412, whatever it said", is_closed_after_412),
    ("repeated lines are joined in `$http_x` since 1.23", asks(rb"(?s)X-A: \d.*X-A: \d")),
    ("an unbuffered body has a length if it came whole with its head, as it may or may not", is_framed_otherwise),
    ("lines of chunks that end with LF alone are refused since 1.29.4", is_stricter_about_chunks),
]


def intended(difference: Difference) -> str | None:
    return next((why for why, applies in INTENDED if applies(difference)), None)


@pytest.fixture
def servers(binary: Binary, tmp_path: Path):
    """`start(ports)`: ringx and nginx with the same configuration, each in front of its own upstreams."""
    started: list[Proxy] = []

    def start(name: str, program: Binary, upstreams: list[int]) -> list[int]:
        root = tmp_path / "root"
        (root / "try/dir").mkdir(parents=True, exist_ok=True)
        for file, text in {"a.txt": "0123456789", "try/f.txt": "file", "b.c": "no type"}.items():
            (root / file).write_text(text)
            os.utime(root / file, (1_700_000_000, 1_700_000_000))
        text = CONFIGURATION.format(
            servers="".join(SERVERS.format(n=n, c=chr(ord("a") + n)) for n in range(LANES))
        )
        # In Debian's nginx these two have other defaults, and the order is the configuration's.
        level = 'proxy_set_header Host $proxy_host; proxy_set_header Connection "";'
        values = {f"upstream{n}": port for n, port in enumerate(upstreams)}
        started.append(Proxy(program, tmp_path / name, text, root=root, level=level, **values))
        proxy = started[-1].start()
        return [int(proxy.values[f"port_{chr(ord('a') + n)}"]) for n in range(LANES)]

    yield start
    for each in started:
        each.stop()


async def differences(binary: Binary, start: Callable, cases: list[Case]) -> tuple[list[Difference], dict[str, int]]:
    ours, theirs = [[Recorder() for _ in range(LANES)] for _ in range(2)]
    our_ports = start("ringx", binary, [await each.start() for each in ours])
    their_ports = start("nginx", Binary(Path(NGINX)), [await each.start() for each in theirs])
    lanes: list[Lane] = list(zip(our_ports, ours, their_ports, theirs, strict=True))
    result = await differential.compare(cases, lanes, intended)
    strange = [head for each in ours for head in each.strange]
    assert not strange, f"requests with more than one reading were passed on: {strange[:3]}"
    return result


def test_generated_requests(binary: Binary, servers) -> None:
    cases = [differential.case(SEED, number) for number in range(CASES)]
    found, counted = asyncio.run(differences(binary, servers, cases))
    print(f"{len(cases)} cases of seed {SEED!r}; intended differences: {counted}")
    told = "\n".join(str(each) for each in found[:20])
    assert not found, f"{len(found)} of {len(cases)} cases differ:\n{told}"
