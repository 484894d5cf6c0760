"""Whole connections: generated streams of requests to the proxy, mangled, cut and broken off anywhere;
a scripted upstream behind it that answers as badly; and what must hold of both sides whatever was sent.

A case is a number under a seed, and the same pair makes the same bytes. Bodies and the ends of answers
are full of requests and responses of their own: none of those may ever be taken for one.
"""

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from . import strict
from .strict import Broken, Cut, Message

DEADLINE = 20.0
"""Seconds for the proxy to be done with a client, several timeouts of the configuration among them."""

LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

# The client's side of a case.

PLACES = ["/q/", "/q/", "/q/", "/stream/", "/plain/", "/old/"]
METHODS = ["GET"] * 10 + ["POST"] * 6 + ["HEAD", "HEAD", "PUT", "DELETE", "OPTIONS"]
FIELDS = ["Accept: */*", "X-A: 1", "Cookie: a=1", "TE: trailers", "Expect: 100-continue", "Connection: keep-alive"]
FIELDS += ["Connection: close", "Connection: X-A", "X_Under: 1", "Upgrade: h2c", "Accept-Encoding: gzip", "Keep-Alive: 1"]
ODD_FIELDS = ["Content-Length : 3", "Content-Length: 3", "Content-Length: +3", "Content-Length: 0, 0", "Content-Length:"]
ODD_FIELDS += ["Transfer-Encoding: chunked", "Transfer-Encoding: identity", "Transfer-Encoding: chunked, chunked"]
ODD_FIELDS += ["Transfer-Encoding : chunked", "Transfer-Encoding:\tchunked", "Transfer_Encoding: chunked", "Host: b"]
ODD_FIELDS += [" Transfer-Encoding: chunked", "X: a\r\n Transfer-Encoding: chunked", "X: a\rTransfer-Encoding: chunked"]
ODD_FIELDS += ["X: a\nTransfer-Encoding: chunked", "Content-Length: 99999999999999999999", "Content-Length: 0x3"]
ODD_FIELDS += ["X: a\0b", "NoColon", ": x", "X-Long: " + "v" * 3000, "Connection: Content-Length", "Connection: Host"]
ODD_FIELDS += ["Connection: Transfer-Encoding", "Connection: upgrade\r\nUpgrade: websocket", "Transfer-Encoding: \x0bchunked"]
VERSIONS = ["HTTP/1.1"] * 20 + ["HTTP/1.0"] * 3
SPLICES = [b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"0\r\n\r\n", b"\r\n\r\n", b"chunked", b"HTTP/1.1", b"\xff", b"\t", b"ffff"]
SPLICES += [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"GET /evil/0 HTTP/1.1\r\nHost: a\r\n\r\n", b"\x0b", b"-"]


@dataclass
class Case:
    name: str
    pieces: list[bytes]
    ending: str
    """What the client does behind the last: reads, finishes (and reads), closes or resets."""
    answers: list["Answer"]

    @property
    def stream(self) -> bytes:
        return b"".join(self.pieces)


@dataclass
class Answer:
    """What the upstream says to the n-th request of a case, before `X-Id` is filled in."""

    data: bytes
    kind: str
    """whole, cut, or odd: then it is not known what should come of it."""
    body: bytes
    ending: str
    """What it does then: goes on, closes or resets."""
    is_early: bool = False
    """It does not wait for the body."""
    pieces: int = 1


def case(seed: str, number: int) -> Case:
    rng = random.Random(f"{seed}/{number}")
    requests = [request(rng, number, n) for n in range(rng.choice([1, 1, 2, 3, 5]))]
    stream = b"".join(requests) + LAST
    for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 2, 4])):
        stream = mangled(rng, stream)
    ending = rng.choice(["reads"] * 10 + ["finishes", "finishes", "closes", "resets"])
    if ending != "reads" and rng.random() < 0.7:
        stream = stream[: rng.randrange(1, len(stream) + 1)]
    answers = [answer(rng) for _ in range(16)]
    return Case(f"{seed}/{number}", cut(rng, stream, rng.choice([0, 0, 1, 2, 5, 9])), ending, answers)


def cut(rng: random.Random, data: bytes, count: int) -> list[bytes]:
    places = sorted(rng.randrange(len(data) + 1) for _ in range(count))
    pieces = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return [piece for piece in pieces if piece]


def mangled(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data))
    to = min(len(data), at + rng.choice([1, 1, 2, 7, 40]))
    match rng.randrange(5):
        case 0:
            return data[:at] + rng.choice(SPLICES) + data[at:]
        case 1:
            return data[:at] + rng.choice(SPLICES) + data[to:]
        case 2:
            return data[:at] + data[to:] or b"x"
        case 3:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case _:
            other = rng.randrange(len(data))
            return data[:other] + data[at:to] + data[other:]


def request(rng: random.Random, number: int, n: int) -> bytes:
    method, version = rng.choice(METHODS), rng.choice(VERSIONS)
    target = f"{rng.choice(PLACES)}{number}-{n}"
    if rng.random() < 0.05:
        target = f"http://a{target}"
    end = "\n" if rng.random() < 0.03 else "\r\n"
    fields = ["Host: a", *rng.sample(FIELDS, rng.choice([0, 0, 1, 2]))]
    if rng.random() < 0.15:
        fields.append(rng.choice(ODD_FIELDS))
    body = b""
    if method in ("POST", "PUT") or rng.random() < 0.1:
        evil = b"GET /evil/%d-%d HTTP/1.1\r\nHost: a\r\n\r\n" % (number, n)
        text = rng.choice([b"", b"a", b"0\r\n\r\n" + evil, evil * 3, bytes(rng.randrange(256) for _ in range(90)), b"x" * 20000])
        if rng.random() < 0.5:
            fields.append("Transfer-Encoding: chunked")
            body = chunked(rng, text, b"\r\n")
        else:
            off = rng.choice([0] * 12 + [-1, 1, 7])
            fields.append(f"Content-Length: {max(0, len(text) + off)}")
            body = text
    rng.shuffle(fields)
    return end.join([f"{method} {target} {version}", *fields, "", ""]).encode("latin-1") + body


def chunked(rng: random.Random, text: bytes, end: bytes) -> bytes:
    out = b""
    while text:
        size = rng.randrange(1, len(text) + 1)
        extension = rng.choice([b""] * 6 + [b";a=b", b';a="b"', b" ;x"])
        out += b"%x%s\r\n%s\r\n" % (size, extension, text[:size])
        text = text[size:]
    trailer = rng.choice([b""] * 5 + [b"X-T: 1\r\n", b"Content-Length: 3\r\n"])
    return out + b"0\r\n" + trailer + end


# The upstream's.

EVIL_RESPONSE = b"HTTP/1.1 200 OK\r\nX-Id: evil\r\nContent-Length: 4\r\n\r\nevil"
ODD_HEADS = ["Content-Length: 3\r\nContent-Length: 3", "Content-Length: 3\r\nTransfer-Encoding: chunked", "Content-Length: x"]
ODD_HEADS += ["Content-Length: -1", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: identity", "X: a\0b", "X : y"]
ODD_HEADS += ["X: a\rY: b", "X: a\r\n Y: b", "NoColon", "X-Long: " + "v" * 9000, "X-Accel-Redirect: /q/accel", "Connection: X-Id"]
ODD_HEADS += ["X-Accel-Redirect: /last", "X-Accel-Buffering: no", "X-Accel-Limit-Rate: 100000", "Upgrade: websocket", "Trailer: X"]
ODD_STATUS = ["HTTP/1.1 101 Switching", "HTTP/1.1 204 No", "HTTP/1.1 304 No", "HTTP/1.0 200 OK", "HTTP/1.1 200", "HTTP/1.1 20", "HTTP/2 200"]
ODD_STATUS += ["HTTP/1.1 99 x", "HTTP/1.1 999 x", "http/1.1 200 OK", "ICY 200 OK", "HTTP/1.1 200 a\rb", "HTTP/1.1 100 Continue", ""]


def answer(rng: random.Random) -> Answer:
    body = rng.choice([b"", b"ok", EVIL_RESPONSE, b"0\r\n\r\n" + EVIL_RESPONSE, b"y" * 5000, b"z" * 70000])
    framing = rng.choice(["length", "length", "chunked", "chunked", "close"])
    status, more = "HTTP/1.1 200 OK", []
    kind = "whole"
    odd = rng.choice([""] * 8 + ["head", "status", "mangled", "extra", "extra", "cut", "cut", "early"])
    if odd == "extra":
        # What comes too late may be taken for the answer to the next request: it comes at once.
        body = body[:5000]
    if odd == "head":
        more, kind = [rng.choice(ODD_HEADS)], "odd"
    if odd == "status":
        status, kind = rng.choice(ODD_STATUS), "odd"
    if framing == "length":
        more.append(f"Content-Length: {len(body)}")
        text = body
    elif framing == "chunked":
        more.append("Transfer-Encoding: chunked")
        text = chunked(rng, body, b"\r\n")
    else:
        text = body
    head = "\r\n".join([status, "X-Id: @ID@", "Content-Type: text/x", *more, "", ""]).encode("latin-1")
    if rng.random() < 0.1:
        head = rng.choice([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]) + head
    data = head + text
    ending = "closes" if framing == "close" else rng.choice(["goes on"] * 5 + ["closes"])
    if odd == "extra":
        data += rng.choice([EVIL_RESPONSE, b"\r\n", b"x", EVIL_RESPONSE * 3])
        # Up to its end a response that is closed has no extra.
        kind = "odd" if framing == "close" else "whole"
    if odd == "cut":
        data, ending = data[: rng.randrange(len(data))], rng.choice(["closes", "closes", "resets"])
        # The end of the trailer is all that can be missing of the body.
        kind = "odd" if framing == "close" else "cut"
    if odd == "mangled":
        data, kind = mangled(rng, data[:600]) + data[600:], "odd"
    pieces = 1 if odd == "extra" or kind == "odd" else rng.choice([1, 1, 1, 2, 4])
    return Answer(data, kind, body, ending, odd == "early", pieces)


@dataclass
class Seen:
    """A request as it came to the upstream."""

    message: Message
    answer: Answer
    is_answered: bool = False
    """All of the answer was sent."""
    sent: int = 0


class Upstream:
    """One lane's. It knows which case is under way by what it is told."""

    def __init__(self) -> None:
        self.case: Case | None = None
        self.left: deque[tuple[bytes, bytes]] = deque(maxlen=50)
        """What the clients of the last cases had asked: it may come when they have left."""
        self.seen: list[Seen] = []
        self.faults: list[str] = []
        self.under_way: set[asyncio.StreamWriter] = set()
        self.writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        for writer in list(self.writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            async for seen, rest_is_read in self._requests(reader, writer):
                data = with_id(seen)
                if seen.message.method == b"HEAD" and seen.answer.kind == "whole":
                    data = data[: body_begins(data)]
                size = len(data) // seen.answer.pieces + 1
                for at in range(0, len(data), size):
                    writer.write(data[at : at + size])
                    seen.sent = at + size
                    await writer.drain()
                    await asyncio.sleep(0)
                seen.is_answered = rest_is_read
                if seen.answer.ending == "resets":
                    reset(writer)
                if seen.answer.ending != "goes on":
                    return
        except Cut:
            pass
        except Broken as fault:
            self.faults.append(f"the upstream was sent what cannot be read: {fault}")
        except ConnectionError:
            pass
        finally:
            self.writers.discard(writer)
            self.under_way.discard(writer)
            writer.close()

    async def _requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> AsyncIterator[tuple[Seen, bool]]:
        """Each, when it shall be answered, and whether its body has come."""
        unread, seen, is_early_done = b"", None, False
        while piece := await reader.read(65536):
            unread += piece
            while unread:
                try:
                    message, end = strict.one_request(unread, 0)
                except Cut:
                    break
                if seen is None:
                    number = len(self.seen)
                    answers = self.case.answers if self.case else []
                    seen = Seen(message, answers[number % len(answers)] if answers else PLAIN)
                    self.seen.append(seen)
                    self.under_way.add(writer)
                    is_early_done = False
                seen.message = message
                if seen.answer.is_early and not is_early_done:
                    is_early_done = True
                    yield seen, message.is_whole
                if not message.is_whole:
                    break
                unread = unread[end:]
                if not is_early_done:
                    yield seen, True
                self.under_way.discard(writer)
                seen = None


def reset(writer: asyncio.StreamWriter) -> None:
    # It may be closed already.
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


PLAIN = Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "odd", b"", "goes on")


def with_id(seen: Seen) -> bytes:
    """The answer to this request."""
    return seen.answer.data.replace(b"@ID@", seen.message.start)


def body_begins(data: bytes) -> int:
    """Behind the last of the heads of an answer that is whole."""
    at = 0
    while True:
        end = data.index(b"\r\n\r\n", at) + 4
        if not data.startswith(b"HTTP/1.1 1", at):
            return end
        at = end


# A case, run.


@dataclass
class Outcome:
    received: bytes = b""
    is_closed: bool = False
    was_reset: bool = False
    sent: bytes = b""
    seen: list[Seen] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


async def run(one: Case, port: int, upstream: Upstream) -> Outcome:
    upstream.case, upstream.seen, upstream.faults = one, [], []
    outcome = Outcome()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reading = asyncio.create_task(read(reader, outcome))
    try:
        for piece in one.pieces:
            outcome.sent += piece
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if one.ending == "finishes":
            writer.write_eof()
    except (ConnectionError, OSError):
        pass
    if one.ending == "resets":
        reset(writer)
    if one.ending == "closes":
        writer.close()
    try:
        async with asyncio.timeout(DEADLINE):
            await reading
    except TimeoutError:
        outcome.faults.append(f"the connection is still open after {DEADLINE} s")
    writer.close()
    # What was passed on of a client that left.
    until = asyncio.get_running_loop().time() + DEADLINE
    while upstream.under_way:
        await asyncio.sleep(0.002)
        if asyncio.get_running_loop().time() > until:
            outcome.faults.append("a request to the upstream is still under way")
            break
    outcome.seen = [each for each in upstream.seen if ident(each.message) not in upstream.left]
    outcome.faults += upstream.faults
    upstream.left += [(message.method, own_target(message)) for message in strict.requests(outcome.sent)]
    return outcome


def ident(message: Message) -> tuple[bytes, bytes]:
    return message.method, message.start


async def read(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    try:
        while piece := await reader.read(65536):
            outcome.received += piece
        outcome.is_closed = True
    except ConnectionError:
        outcome.was_reset = True


# What must hold.


def faults(one: Case, outcome: Outcome) -> list[str]:
    found = list(outcome.faults)
    # Of the bytes that may have come to the proxy, nothing more can be a request.
    asked = strict.requests(outcome.sent)
    found += passed_on(asked, outcome.seen)
    try:
        odd = [with_id(each) for each in outcome.seen if each.answer.kind == "odd"]
        odd += [answer.partition(b"\r\n\r\n")[2] for answer in odd if answer.startswith(b"HTTP/1.1 103")]
        got = strict.responses(outcome.received, asked, odd)
    except Broken as broken:
        return [*found, f"the client was sent what cannot be read: {broken}"]
    found += answered(one, outcome, asked, got)
    return found


def has_head(answer: Answer) -> bool:
    """Whether it surely comes so far that another server is not asked: an odd one may have no status line."""
    try:
        return answer.kind != "odd" and answer.ending != "resets" and body_begins(answer.data) > 0
    except ValueError:
        return False


def own_target(message: Message) -> bytes:
    """As the proxy passes it on: without scheme and host."""
    return re.sub(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", b"", message.start) or b"/"


def passed_on(asked: list[Message], seen: list[Seen]) -> list[str]:
    """Every request the upstream saw was sent by the client, in this order, and once, unless it was sent
    again because a kept connection had gone."""
    found = []
    at = 0
    last: Seen | None = None
    for each in seen:
        message = each.message
        told = ident(message)
        # An answer's X-Accel-Redirect makes a request of the proxy's own.
        if message.start.startswith(b"/q/accel"):
            continue
        next_at = next((n for n in range(at, len(asked)) if (asked[n].method, own_target(asked[n])) == told), None)
        if next_at is None:
            if last and (last.message.method, last.message.start) == told:
                if message.method in (b"POST", b"PATCH", b"LOCK") or has_head(last.answer):
                    found.append(f"passed on twice: {told}")
                continue
            found.append(f"passed on, but never asked: {told}; asked was {[(m.method, own_target(m)) for m in asked]}")
            continue
        at, last = next_at + 1, each
        wanted = asked[next_at]
        if message.is_whole and not wanted.is_whole:
            found.append(f"passed on as whole, which it was not: {told}, {message.body[:200]!r}")
        elif message.is_whole and message.body != wanted.body:
            found.append(f"another body than was sent: {told}, {message.body[:200]!r} for {wanted.body[:200]!r}")
        elif not wanted.body.startswith(message.body):
            found.append(f"a part of another body: {told}, {message.body[:200]!r} for {wanted.body[:200]!r}")
    return found


def answered(one: Case, outcome: Outcome, asked: list[Message], got: list[Message]) -> list[str]:
    """Every answer is that to its request, and one that was cut is never made whole."""
    found = []
    targets = Counter(each.message.start for each in outcome.seen)
    seen_of = {each.message.start: each for each in outcome.seen if targets[each.message.start] == 1}
    for n, response in enumerate(got):
        status = response.start[9:12]
        ids = response.all(b"x-id")
        if not ids:
            continue
        if n >= len(asked):
            found.append(f"an upstream's answer to no request: {response.start!r} {ids}")
            continue
        wanted = own_target(asked[n])
        if b"accel" not in ids[0] and ids[0] != wanted and not any(each.answer.kind == "odd" for each in outcome.seen):
            found.append(f"the answer to {ids[0]!r} came for {wanted!r}")
        if ids[0] == b"evil":
            found.append(f"an answer from within another: {ids}")
        each = seen_of.get(ids[0])
        if not each or response.framing == "close" or status != b"200" or asked[n].method == b"HEAD":
            continue
        if response.is_whole and each.answer.kind == "cut" and not is_all_there(each):
            found.append(f"an answer that was cut was made whole: {ids}")
        if each.answer.kind == "whole" and not each.answer.body.startswith(response.body):
            found.append(f"another body than the upstream's: {ids} {response.body[:100]!r}")
        if response.is_whole and each.answer.kind == "whole" and response.body != each.answer.body:
            found.append(f"a part of the upstream's body as the whole: {ids}")
        if not response.is_whole and each.answer.kind == "whole" and each.is_answered and stayed(one, outcome):
            found.append(f"a part of the upstream's body: {ids}")
    for n, response in enumerate(got[:-1]):
        if not response.is_whole:
            found.append(f"response {n} is cut, and others follow")
    return found


def is_all_there(seen: Seen) -> bool:
    """All of the body, cut or not: only of the end of the chunks something is missing."""
    return seen.message.method == b"HEAD"


def stayed(one: Case, outcome: Outcome) -> bool:
    return one.ending in ("reads", "finishes") and outcome.is_closed and not outcome.was_reset


# Many.


@dataclass
class Result:
    count: int = 0
    passed_on: int = 0
    answered: int = 0
    found: list[str] = field(default_factory=list)


async def many(seed: str, seconds: float, lanes: list[tuple[int, Upstream]], numbers: list[int] | None = None) -> Result:
    """Cases from 0 on, until the time is over or ten have failed; or those of these numbers."""
    result = Result()
    until = asyncio.get_running_loop().time() + seconds
    queue = iter(numbers if numbers is not None else range(1 << 62))

    async def lane(port: int, upstream: Upstream) -> None:
        for number in queue:
            one = case(seed, number)
            outcome = await run(one, port, upstream)
            result.count += 1
            result.passed_on += len(outcome.seen)
            result.answered += outcome.received.count(b"\r\nX-Id:")
            if told := faults(one, outcome):
                result.found.append(report(one, outcome, told))
            late = numbers is None and asyncio.get_running_loop().time() > until
            if late or len(result.found) >= 10:
                return

    await asyncio.gather(*(lane(port, upstream) for port, upstream in lanes))
    return result


def report(one: Case, outcome: Outcome, told: list[str]) -> str:
    lines = [f"case {one.name}, the client {one.ending}:", *(f"  {each}" for each in told)]
    lines.append(f"  sent {[piece[:1500] for piece in one.pieces]}")
    for each in outcome.seen:
        head = f"{each.message.method.decode()} {each.message.start!r} body {each.message.body[:200]!r}"
        lines.append(f"  upstream: {head}, whole {each.message.is_whole}")
        lines.append(f"    answers ({each.answer.kind}, {each.answer.ending}): {each.answer.data[:600]!r}")
    lines.append(f"  received {outcome.received[:3000]!r}, reset {outcome.was_reset}")
    return "\n".join(lines)
