"""Generated request streams to two servers with the same configuration: what do they answer, and what
does the upstream get to see? A case is a number under a seed; the same pair makes the same bytes."""

import asyncio
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

DEADLINE = 6.0
"""Seconds for one case, several timeouts of the configuration among them."""

LAST = b"GET /last HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n\r\n"
"""What ends every stream, so that the server closes a connection which is still open then."""

# The generator.

METHODS = ["GET"] * 14 + ["POST"] * 6 + ["HEAD"] * 3 + ["PUT", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "M-SEARCH"]
ODD_METHODS = ["get", "G_T", "TRACE", "CONNECT", "GET1", "A" * 60, "", "G\x01T", "PO ST", "M\xc3"]
PREFIXES = ["/", "/uri/", "/uri/deep/", "/re/", "/re/x.php", "/files/", "/files/a.txt", "/ret", "/rw/", "/rb/", "/named/"]
PREFIXES += ["/small/", "/stream/", "/exact", "/exact/", "/CASE/", "/if/", "/try/", "/redir/", "/err/", "/args/", "/set/"]
PREFIXES += ["/r/chunked", "/r/close", "/r/404", "/r/204", "/r/304", "/r/location", "/r/cookie", "/r/accel", "/r/500"]
SEGMENTS = ["a", "b.c", "..", ".", "", "x y", "%20", "%2f", "%2F", "%2e%2e", "%2E", "%41", "%zz", "%", "%4", "%00", "%0a"]
SEGMENTS += ["é", "~", "a;b", "a+b", "(x)", "...", "..b", "%3f", "%23", "%25", "\\", "a\tb", "a\x7fb", '"', "<", "|", "{}", "^"]
QUERIES = ["", "", "", "?", "?a=1", "?a=1&b=2", "?x%20y", "?a=b?c", "?%zz", "?é", "?a#b", "#frag", "?a=../x", "??", "?&", "?+ "]
HOSTS = ["example.com"] * 12 + ["other.example", "OTHER.example", "other.example.", "example.com:80", "a.wild.example"]
HOSTS += ["wild.example", "127.0.0.1", "[::1]", "[::1]:80", "localhost", "example.com:", "x_y.example"]
ODD_HOSTS = ["", ".", "a..b", "a b", "a/b", "a@b", "é", "[::1", "[::1]x", "a:x", "a:99999", "a\x01b", 'a"b', "a\\b", "a,b", "*"]
VERSIONS = ["HTTP/1.1"] * 30 + ["HTTP/1.0"] * 4
ODD_VERSIONS = ["HTTP/1.2", "HTTP/2.0", "HTTP/0.9", "http/1.1", "HTTP/1.1 ", "HTTP/1.", "HTTP/11", "HTTP/1.10", "", "HTTP/1.1x"]
FIELDS = ["Accept: */*", "User-Agent: differential/1", "Cookie: a=1", "Cookie: b=2; c=3", "X-A: 1", "X-A: 2", "x-low: v"]
FIELDS += ["Accept-Encoding: gzip", "Referer: http://r.example/", "X-Forwarded-For: 10.0.0.1", "Range: bytes=0-3"]
FIELDS += ["Range: bytes=2-", "Range: bytes=-2", "Range: bytes=9-1", "Range: bytes=0-1,3-4", "If-None-Match: *", "TE: trailers"]
FIELDS += ["If-Modified-Since: Thu, 01 Jan 2037 00:00:00 GMT", "If-Match: \"x\"", "Keep-Alive: 300", "Upgrade: h2c"]
FIELDS += ["Proxy-Connection: close", "Content-Type: text/plain", "Authorization: Basic YTpi", "X-Empty:", "X-Spaces:   v  "]
ODD_FIELDS = ["X_Under: 1", "X Space: 1", "X-Sp : 1", " Folded: 1", "\tTab: 1", ": empty", "NoColon", "X-Nul: a\x00b", "X(y): 1"]
ODD_FIELDS += ["X-Ctl: a\x01b", "X-Tab:\tv\t", "X-Cr: a\rb", "X-é: 1", "X-Val: é", "X-Long: " + "v" * 300, "\x01: x", "X-Del\x7f: 1"]
ODD_FIELDS += ["If-Match: a\r\nIf-Match: b", "Authorization: a\r\nAuthorization: b", "Expect: 200-ok", "Content-Range: bytes 0-1/2"]
CONNECTIONS = [None] * 12 + ["close", "keep-alive", "Close", "X-A", "close, keep-alive", "upgrade", ""]


@dataclass
class Case:
    """One client connection: these pieces, sent one after the other."""

    name: str
    pieces: list[bytes]
    chunks_are_broken: bool = False

    @property
    def stream(self) -> bytes:
        return b"".join(self.pieces)


def case(seed: str, number: int) -> Case:
    rng = random.Random(f"{seed}/{number}")
    requests = [request(rng) for _ in range(rng.choice([1, 1, 1, 2, 2, 3]))]
    stream = b"".join(text for text, _ in requests) + LAST
    cuts = sorted(rng.randrange(1, len(stream)) for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 4])))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    return Case(f"{seed}/{number}", pieces, any(broken for _, broken in requests))


def request(rng: random.Random) -> tuple[bytes, bool]:
    """The bytes of one, and whether it has a body whose chunks are broken."""
    # Most requests have no more than one thing that is odd about them: two odd ones hide each other.
    odd = rng.choice(["", "", "", "", "method", "target", "version", "host", "field", "field", "body", "body", "line"])
    method = rng.choice(ODD_METHODS if odd == "method" else METHODS)
    version = rng.choice(ODD_VERSIONS if odd == "version" else VERSIONS)
    end = rng.choice(["\n", "\r\n", "\r\r\n", "\r"]) if odd == "line" else "\r\n"
    space = rng.choice(["  ", "\t", " \t"]) if odd == "line" and rng.random() < 0.3 else " "
    head = [f"{method}{space}{target(rng, odd == 'target')}{space}{version}".rstrip(" ") if not version else ""]
    head[0] = head[0] or f"{method}{space}{target(rng, odd == 'target')}{space}{version}"
    fields = [rng.choice(FIELDS) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    if odd == "host":
        match rng.randrange(4):
            case 0:
                pass
            case 1:
                fields += ["Host: example.com", "Host: other.example"]
            case _:
                fields.append(f"Host: {rng.choice(ODD_HOSTS)}")
    else:
        fields.append(f"Host: {rng.choice(HOSTS)}")
    if odd == "field":
        fields.append(rng.choice(ODD_FIELDS))
    if (connection := rng.choice(CONNECTIONS)) is not None:
        fields.append(f"Connection: {connection}")
    framing, body, is_broken = content(rng, method, odd == "body")
    fields += framing
    rng.shuffle(fields)
    text = end.join([*head, *fields, "", ""])
    return text.encode("latin-1", "replace") + body, is_broken


def target(rng: random.Random, odd: bool) -> str:
    path = rng.choice(PREFIXES)
    if odd or rng.random() < 0.3:
        path = path.rstrip("/") + "/" + "/".join(rng.choice(SEGMENTS) for _ in range(rng.choice([1, 1, 2, 3])))
    path += rng.choice(QUERIES)
    if odd and rng.random() < 0.5:
        form = rng.choice(["http://example.com", "http://OTHER.example", "HTTP://x", "http://", "http:/", "h_p://x", "http://a@b"])
        path = rng.choice([form + path, form, form + "?q", "*", "rel", path[1:], "http://x:81" + path, "/" + path])
    return path.encode("utf-8").decode("latin-1")


def content(rng: random.Random, method: str, odd: bool) -> tuple[list[str], bytes, bool]:
    """The fields that frame a body, the body, and whether its chunks are broken."""
    wants = odd or method in ("POST", "PUT", "PATCH") or rng.random() < 0.05
    if not wants:
        return [], b"", False
    body = bytes(rng.choice(b"abcdefgh01 \r\n") for _ in range(rng.choice([0, 1, 5, 17, 40, 200])))
    fields = ["Expect: 100-continue"] if rng.random() < 0.1 else []
    chunked = rng.random() < 0.5
    if not odd:
        if chunked:
            return [*fields, rng.choice(["Transfer-Encoding: chunked", "transfer-encoding: Chunked"])], chunks(rng, body), False
        return [*fields, f"Content-Length: {len(body)}"], body, False
    if chunked:
        framings = [["Transfer-Encoding: gzip, chunked"], ["Transfer-Encoding: identity"], ["Transfer-Encoding:"]]
        framings += [["Transfer-Encoding: chunked", f"Content-Length: {len(body)}"], ["Transfer-Encoding: chunked"] * 2]
        framings += [["Transfer-Encoding: chunked"]] * 6
        is_broken = rng.random() < 0.7
        return fields + rng.choice(framings), (broken_chunks if is_broken else chunks)(rng, body), is_broken
    lengths = [f"{len(body)},{len(body)}", f"+{len(body)}", f"-{len(body)}", "", "x", f" {len(body)} ", f"0{len(body)}", "1" * 25]
    framings = [[f"Content-Length: {length}"] for length in lengths]
    framings += [[f"Content-Length: {len(body)}"] * 2, [f"Content-Length: {len(body)}", f"content-length: {len(body) + 1}"]]
    framings += [[f"Content-Length: {max(len(body) - 1, 0)}"], [f"Content-Length: {len(body) + len(LAST) + 7}"]]
    return fields + rng.choice(framings), body, False


def chunks(rng: random.Random, body: bytes) -> bytes:
    """`body` in chunks of every correct form."""
    out = []
    while body:
        take = rng.randrange(1, len(body) + 1)
        size = rng.choice([f"{take:x}", f"{take:X}", f"00{take:x}"]) + rng.choice(["", "", ";a=b", ";x", " ;q"])
        out.append(size.encode() + b"\r\n" + body[:take] + b"\r\n")
        body = body[take:]
    out.append(rng.choice([b"0\r\n\r\n", b"0\r\n\r\n", b"000\r\n\r\n", b"0;x\r\n\r\n", b"0\r\nX-Trailer: 1\r\n\r\n"]))
    return b"".join(out)


def broken_chunks(rng: random.Random, body: bytes) -> bytes:
    good = chunks(rng, body or b"abc")
    at = good.index(b"\r\n")
    return rng.choice(
        [
            good[:at] + b"\n" + good[at + 2 :],
            b"0x" + good,
            b" " + good,
            b"-" + good,
            b"g" + good,
            b"fffffffffffffffff\r\n" + good,
            good[:at] + b"\r" + good[at + 2 :],
            good[:-2] + b"\n",
            b"\r\n" + good,
            good[:at] + b";" + b"e" * 200 + good[at:],
            good[:at] + b"\x00" + good[at:],
            good.replace(b"\r\n0", b"0", 1),
            good.replace(b"\r\n0", b"\n0", 1),
            good.replace(b"\r\n0", b"x\r\n0", 1),
        ]
    )


# The upstream, which writes down what it gets.


@dataclass
class Seen:
    """A request as the upstream got it, its body without the framing of chunks."""

    head: bytes
    body: bytes


class Recorder:
    """One upstream server: strict about what it reads, plain in what it answers."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.under_way = 0
        self.strange: list[bytes] = []

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer_one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = await reader.read(1)
        if not first:
            return False
        self.under_way += 1
        try:
            head = first + await reader.readuntil(b"\r\n\r\n")
            lines = head[:-4].split(b"\r\n")
            if any(b"\n" in line or b"\r" in line for line in lines):
                self.strange.append(head)
            fields = [line.split(b":", 1) for line in lines[1:]]
            named = [(name.lower(), value.strip()) for name, value in (f for f in fields if len(f) == 2)]
            lengths = [value for name, value in named if name == b"content-length"]
            codings = [value for name, value in named if name == b"transfer-encoding"]
            if len(lengths) + len(codings) > 1:
                self.strange.append(head)
            body = b""
            seen = Seen(head, body)
            self.seen.append(seen)
            if codings:
                while size := int(await reader.readuntil(b"\r\n"), 16):
                    seen.body += await reader.readexactly(size)
                    assert await reader.readexactly(2) == b"\r\n"
                assert await reader.readexactly(2) == b"\r\n"
            elif lengths:
                seen.body = await reader.readexactly(int(lengths[0]))
        finally:
            self.under_way -= 1
        answer, goes_on = reply(lines[0])
        writer.write(answer)
        await writer.drain()
        return goes_on


def reply(line: bytes) -> tuple[bytes, bool]:
    """What the upstream says to a request line, and whether the connection goes on."""
    method, _, rest = line.partition(b" ")
    bodiless = method == b"HEAD"

    def plain(status: bytes, body: bytes, *fields: bytes) -> tuple[bytes, bool]:
        head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields, b"", b""]
        return b"\r\n".join(head) + (b"" if bodiless else body), True

    if b"/r/chunked" in rest:
        body = b"" if bodiless else b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-B: 1\r\n\r\n" + body, True
    if b"/r/close" in rest:
        return b"HTTP/1.1 200 Fine\r\nContent-Type: text/x\r\nServer: up\r\n\r\n" + (b"" if bodiless else b"to the end"), bodiless
    if b"/r/404" in rest:
        return plain(b"404 No", b"none", b"X-Accel-Buffering: no")
    if b"/r/204" in rest:
        return b"HTTP/1.1 204 No Content\r\nX-C: 1\r\n\r\n", True
    if b"/r/304" in rest:
        return b"HTTP/1.1 304 Not Modified\r\nETag: \"e\"\r\n\r\n", True
    if b"/r/location" in rest:
        return plain(b"302 Found", b"moved", b"Location: http://up.example/x y", b"Refresh: 3; url=/z")
    if b"/r/cookie" in rest:
        return plain(b"200 OK", b"c", b"Set-Cookie: a=1; Path=/", b"Set-Cookie: b=2", b"Vary: X", b"Date: now", b"Connection: X-B")
    if b"/r/accel" in rest:
        return plain(b"200 OK", b"not seen", b"X-Accel-Redirect: /uri/accel?q=1", b"Set-Cookie: k=1", b"X-D: lost")
    if b"/r/500" in rest:
        return plain(b"500 Oops", b"broken", b"Content-Type: text/html")
    return plain(b"200 OK", b"hello from the upstream", b"Content-Type: text/plain", b"X-Up: yes")


# The client.


@dataclass
class Outcome:
    """What came of a case."""

    answers: list[tuple[int, list[str], bytes]] = field(default_factory=list)
    """Status, head lines without what names the server or the time, body without framing."""
    rest: bytes = b""
    """What could not be read as a response."""
    closed: bool = False
    reset: bool = False
    """By a reset, which may have thrown away what was sent before it."""
    seen: list[Seen] = field(default_factory=list)

    @property
    def statuses(self) -> list[int]:
        return [status for status, _, _ in self.answers]

    @property
    def upstream(self) -> list[tuple[bytes, bytes]]:
        return [(seen.head, seen.body) for seen in self.seen]


async def run(one: Case, port: int, recorder: Recorder) -> Outcome:
    """Sends a case and reads until the server closes."""
    recorder.seen = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(read_all(reader))
    try:
        for piece in one.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
    except ConnectionError:
        pass
    raw, closed, reset = await reading
    raw = raw.replace(b":%d/" % port, b":PORT/")
    if boundary := re.search(rb"boundary=(\d{20})", raw):
        raw = raw.replace(boundary[1], b"B" * 20)
    writer.close()
    until = asyncio.get_running_loop().time() + 0.5
    while recorder.under_way and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.005)
    outcome = parse(raw, one.stream)
    outcome.closed, outcome.reset = closed, reset
    outcome.seen = recorder.seen
    return outcome


async def read_all(reader: asyncio.StreamReader) -> tuple[bytes, bool, bool]:
    raw = b""
    try:
        async with asyncio.timeout(DEADLINE):
            while piece := await reader.read(65536):
                raw += piece
    except TimeoutError:
        return raw, False, False
    except ConnectionError:
        return raw, True, True
    return raw, True, False


UNTOLD = re.compile(rb"^(Server: (nginx|ringx)|Date: [A-Z][a-z][a-z], .*)$")


def parse(raw: bytes, stream: bytes) -> Outcome:
    """Reads responses one behind the other; what a HEAD asked for is known by its missing body."""
    outcome = Outcome()
    while raw:
        end = raw.find(b"\r\n\r\n")
        if not raw.startswith(b"HTTP/1.1 ") or end < 0:
            break
        lines = raw[:end].split(b"\r\n")
        raw = raw[end + 4 :]
        status = int(lines[0][9:12])
        values = {line.split(b": ")[0].lower(): line.partition(b": ")[2] for line in lines[1:]}
        body = b""
        bodiless = status in (204, 304) or status < 200
        follows = raw[:9] == b"HTTP/1.1 " or not raw
        if b"transfer-encoding" in values and not bodiless and not follows:
            body, raw = dechunk(raw)
        elif b"content-length" in values and not bodiless:
            length = int(values[b"content-length"])
            if not (follows and length and b"HEAD" in stream):
                body, raw = raw[:length], raw[length:]
        elif not bodiless and not follows and b"content-length" not in values:
            body, raw = raw, b""
        told = [line.decode("latin-1") for line in lines if not UNTOLD.match(line)]
        outcome.answers.append((status, told, body.replace(b"ringx", b"nginx")))
    outcome.rest = raw.replace(b"ringx", b"nginx")
    return outcome


def dechunk(raw: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        line, _, rest = raw.partition(b"\r\n")
        if not re.fullmatch(rb"[0-9a-f]+", line):
            return body + b"<cut>", raw
        size = int(line, 16)
        if not size:
            return body, rest[2:]
        body += rest[:size]
        raw = rest[size + 2 :]


# Many cases, two servers.


@dataclass
class Difference:
    case: Case
    ours: Outcome
    theirs: Outcome

    def __str__(self) -> str:
        lines = [f"case {self.case.name}: {self.case.stream[: -len(LAST)]!r} in {len(self.case.pieces)} pieces"]
        for name in ("answers", "rest", "closed", "upstream"):
            ours, theirs = getattr(self.ours, name), getattr(self.theirs, name)
            if ours != theirs:
                lines += [f"  {name}: ringx {ours!r}", f"  {' ' * len(name)}  nginx {theirs!r}"]
        return "\n".join(lines)


def differ(ours: Outcome, theirs: Outcome) -> bool:
    names = ("answers", "rest", "closed", "upstream")
    return any(getattr(ours, name) != getattr(theirs, name) for name in names)


Lane = tuple[int, Recorder, int, Recorder]
"""Ports and upstreams that one case at a time uses: ours, theirs."""


async def compare(
    cases: Iterable[Case], lanes: list[Lane], intended: Callable[[Difference], str | None]
) -> tuple[list[Difference], dict[str, int]]:
    """Runs the cases, as many at a time as there are lanes. Answers the differences that nobody intends,
    and how often each intended one was met."""
    waiting = iter(cases)
    found: list[Difference] = []
    counted: dict[str, int] = {}

    async def work(lane: Lane) -> None:
        our_port, our_upstream, their_port, their_upstream = lane
        for one in waiting:
            ours = await run(one, our_port, our_upstream)
            theirs = await run(one, their_port, their_upstream)
            if differ(ours, theirs):
                difference = Difference(one, ours, theirs)
                if why := intended(difference):
                    counted[why] = counted.get(why, 0) + 1
                else:
                    found.append(difference)

    await asyncio.gather(*(work(lane) for lane in lanes))
    return found, counted
