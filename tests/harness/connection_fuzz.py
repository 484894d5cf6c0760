"""Whole connections: generated streams of requests to the proxy, mangled, cut and broken off anywhere;
a scripted upstream behind it that answers as badly; and what must hold of both sides whatever was sent.

A case is a number under a seed, and the server that is asked: `seed/7` is for the one that speaks HTTP,
`seed/7/uwsgi` and `seed/7/unix` for one that speaks uwsgi, over TCP or a unix socket. The same name makes
the same bytes. Bodies and the ends of answers are full of requests, packets and responses of their own: none
of those may ever be taken for one.

Every wait has a bound, and one that is reached is a finding with the name of its case.
"""

import asyncio
import contextlib
import faulthandler
import random
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import strict
from .strict import Broken, Cut, Message

DEADLINE = 20.0
"""Seconds for each step of a case, several timeouts of the configuration among them: until all is sent, until
the proxy is done with the client, and until it is done with the upstream."""

STUCK = 30.0
"""Seconds without a turn of the event loop, after which it is told what is under way."""

LEFT = 90.0
"""Seconds for what is under way when the time is over: more than a case can take."""

LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

# The client's side of a case.

PLACES = ["/q/", "/q/", "/q/", "/stream/", "/plain/", "/old/"]
# Of the uwsgi server: `/on/` has uwsgi_keepalive on, /old/ and /once/ off, all others assume; and requests are
# streamed at /stream/, /once/ and /raw/, there in chunks if they came so. At /nested/ an answer's chunks are
# not decoded.
UWSGI_PLACES = ["/q/", "/q/", "/q/", "/stream/", "/stream/", "/plain/", "/old/", "/once/", "/on/", "/raw/", "/nested/"]
KEEPS_NONE = ("/old/", "/once/")
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
    connection: str = ""
    """The value of its field, of a uwsgi server's."""
    has_extra: bool = False
    """More than it frames comes with it."""
    chunks: bytes = b""
    """The body as it is sent, if it is sent in chunks."""
    is_framed: bool = True
    """Its end is told otherwise than by the close."""


SERVERS = ("http", "uwsgi", "unix")


def server_of(name: str) -> str:
    server = name.split("/")[2] if name.count("/") == 2 else "http"
    assert server in SERVERS, name
    return server


def names(seed: str, numbers: Iterable[int]) -> Iterator[str]:
    """A case for each kind of server, where the odd numbers have the unix socket."""
    for number in numbers:
        yield f"{seed}/{number}"
        yield f"{seed}/{number}/{'unix' if number % 2 else 'uwsgi'}"


def named(text: str) -> list[str]:
    """Cases as they are told on a command line: `a/7,b/9/unix,c/1-100`."""
    found = []
    for each in text.split(",") if text else []:
        if several := re.fullmatch(r"([^/]+)/([0-9]+)-([0-9]+)", each):
            found += names(several[1], range(int(several[2]), int(several[3]) + 1))
        else:
            found.append(each)
    return found


def case(name: str) -> Case:
    rng = random.Random(name)
    number, is_uwsgi = int(name.split("/")[1]), server_of(name) != "http"
    requests = [request(rng, number, n, is_uwsgi) for n in range(rng.choice([1, 1, 2, 3, 5]))]
    stream = b"".join(requests) + LAST
    for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 2, 4])):
        stream = mangled(rng, stream)
    ending = rng.choice(["reads"] * 10 + ["finishes", "finishes", "closes", "resets"])
    if ending != "reads" and rng.random() < 0.7:
        stream = stream[: rng.randrange(1, len(stream) + 1)]
    answers = [answer(rng, is_uwsgi) for _ in range(16)]
    return Case(name, cut(rng, stream, rng.choice([0, 0, 1, 2, 5, 9])), ending, answers)


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


def request(rng: random.Random, number: int, n: int, is_uwsgi: bool) -> bytes:
    method, version = rng.choice(METHODS), rng.choice(VERSIONS)
    target = f"{rng.choice(UWSGI_PLACES if is_uwsgi else PLACES)}{number}-{n}"
    if rng.random() < 0.05:
        target = f"http://a{target}"
    end = "\n" if rng.random() < 0.03 else "\r\n"
    fields = ["Host: a", *rng.sample(FIELDS, rng.choice([0, 0, 1, 2]))]
    if rng.random() < 0.15:
        fields.append(rng.choice(ODD_FIELDS))
    body = b""
    if method in ("POST", "PUT") or rng.random() < 0.1:
        evil = b"GET /evil/%d-%d HTTP/1.1\r\nHost: a\r\n\r\n" % (number, n)
        texts = [b"", b"a", b"0\r\n\r\n" + evil, evil * 3, bytes(rng.randrange(256) for _ in range(90)), b"x" * 20000]
        if is_uwsgi:
            evil = packet(b"/evil/%d-%d" % (number, n))
            texts += [evil, evil * 3, b"0\r\n\r\n" + evil, b"\0" * 9]
        text = rng.choice(texts)
        if rng.random() < 0.5:
            fields.append("Transfer-Encoding: chunked")
            body = chunked(rng, text, b"\r\n")
        else:
            off = rng.choice([0] * 12 + [-1, 1, 7])
            fields.append(f"Content-Length: {max(0, len(text) + off)}")
            body = text
    rng.shuffle(fields)
    return end.join([f"{method} {target} {version}", *fields, "", ""]).encode("latin-1") + body


def packet(target: bytes) -> bytes:
    """A whole one of uwsgi."""
    values = {b"REQUEST_METHOD": b"GET", b"REQUEST_URI": target, b"PATH_INFO": target, b"REMOTE_ADDR": b"127.0.0.1"}
    texts = [text for key in strict.PARAMS for text in (key, values.get(key, b""))]
    block = b"".join(struct.pack("<H", len(text)) + text for text in texts)
    return struct.pack("<BHB", 0, len(block), 0) + block


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
# By CGI's rules there may be a status line, a field for it, or none.
CGI_STATUS = ["HTTP/1.1 200 OK"] * 6 + ["HTTP/1.0 200 OK", "Status: 200 OK", "Status: 200", None]
CGI_ODD_STATUS = [*ODD_STATUS, "Status: abc", "Status: ", "Status: 4", "Status: 404 None", "Location: /x", "hello world"]
CGI_ODD_STATUS += ["HTTP/1.1 200 OK\r\nStatus: 500 X", "Status: 200 OK\r\nStatus: 404 N", "Status: 204", "Status: 304 Not"]
CGI_ODD_STATUS += ["Status: 101 Switching\r\nUpgrade: websocket", "HTTP/1.1 103 Early Hints", "Status: 100 Go"]


def answer(rng: random.Random, is_uwsgi: bool) -> Answer:
    body = rng.choice([b"", b"ok", EVIL_RESPONSE, b"0\r\n\r\n" + EVIL_RESPONSE, b"y" * 5000, b"z" * 70000])
    framing = rng.choice(["length", "length", "chunked", "chunked", "close"])
    status, more = "HTTP/1.1 200 OK", []
    connection = ""
    if is_uwsgi:
        status = rng.choice(CGI_STATUS)
        if connection := rng.choice(["", "", "keep-alive", "keep-alive", "Keep-Alive", "close"]):
            more.append(f"Connection: {connection}")
    kind = "whole"
    odd = rng.choice([""] * 8 + ["head", "status", "mangled", "extra", "extra", "cut", "cut", "early"])
    if odd == "extra":
        # What comes too late may be taken for the answer to the next request: it comes at once.
        body = body[:5000]
    if odd == "head":
        more, kind = [rng.choice(ODD_HEADS)], "odd"
    if odd == "status":
        status, kind = rng.choice(CGI_ODD_STATUS if is_uwsgi else ODD_STATUS), "odd"
    if framing == "length":
        more.append(f"Content-Length: {len(body)}")
        text = body
    elif framing == "chunked":
        more.append("Transfer-Encoding: chunked")
        text = chunked(rng, body, b"\r\n")
    else:
        text = body
    chunks = text if framing == "chunked" else b""
    lines = [status] if status is not None else []
    head = "\r\n".join([*lines, "X-Id: @ID@", "Content-Type: text/x", *more, "", ""]).encode("latin-1")
    has_interim = rng.random() < (0.02 if is_uwsgi else 0.1)
    if has_interim:
        head = rng.choice([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"]) + head
    data = head + text
    ending = "closes" if framing == "close" else rng.choice(["goes on"] * 5 + ["closes"])
    if is_uwsgi and has_interim:
        # There is no interim response: it is the final one, up to the end.
        kind, ending = "odd", "closes"
    if odd == "extra":
        data += rng.choice([EVIL_RESPONSE, b"\r\n", b"x", EVIL_RESPONSE * 3])
        # Up to its end a response that is closed has no extra.
        kind = "odd" if framing == "close" or (is_uwsgi and has_interim) else "whole"
    if odd == "cut":
        data, ending = data[: rng.randrange(len(data))], rng.choice(["closes", "closes", "resets"])
        # The end of the trailer is all that can be missing of the body.
        kind = "odd" if framing == "close" or (is_uwsgi and has_interim) else "cut"
    if odd == "mangled":
        data, kind = mangled(rng, data[:600]) + data[600:], "odd"
    pieces = 1 if odd == "extra" or kind == "odd" else rng.choice([1, 1, 1, 2, 4])
    return Answer(data, kind, body, ending, odd == "early", pieces, connection.lower(), odd == "extra", chunks, framing != "close")


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

    def __init__(self, server: str) -> None:
        self.server_kind = server
        self.is_uwsgi = server != "http"
        self.reused = 0
        """Requests on a connection that had carried one before."""
        self.case: Case | None = None
        self.left: deque[tuple[bytes, bytes]] = deque(maxlen=50)
        """What the clients of the last cases had asked: it may come when they have left."""
        self.seen: list[Seen] = []
        self.faults: list[str] = []
        self.under_way: set[asyncio.StreamWriter] = set()
        self.writers: set[asyncio.StreamWriter] = set()

    async def start(self, folder: Path) -> str:
        """Its address, as a configuration has it."""
        if self.server_kind == "unix":
            path = folder / f"{id(self)}.sock"
            self.server = await asyncio.start_unix_server(self._serve, path)
            return f"unix:{path}"
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return "127.0.0.1:%d" % self.server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.server.close()
        for writer in list(self.writers):
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            async for seen, rest_is_read in self._requests(reader, writer):
                data = with_id(seen)
                # A uwsgi server's application need not know what HEAD is.
                if seen.message.method == b"HEAD" and seen.answer.kind == "whole" and not self.is_uwsgi:
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
                if seen.answer.ending != "goes on" or is_tunnel(seen) or is_nested(seen):
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
        before: Seen | None = None
        read_one = strict.one_packet if self.is_uwsgi else strict.one_request
        while piece := await reader.read(65536):
            unread += piece
            while unread:
                try:
                    message, end = read_one(unread, 0)
                except Cut:
                    break
                if message.path.startswith(b"/q/accel"):
                    # The target is still that of the client.
                    message.start = message.path
                if seen is None:
                    number = len(self.seen)
                    answers = self.case.answers if self.case else []
                    seen = Seen(message, answers[number % len(answers)] if answers else PLAIN)
                    self.seen.append(seen)
                    self.under_way.add(writer)
                    is_early_done = False
                    if before:
                        self.reused += 1
                        if self.is_uwsgi and (why := closes_after(before, seen)):
                            self.faults.append(f"{ident(message)} came on a connection that was to be closed: {why}")
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
                before, seen = seen, None


def closes_after(before: Seen, seen: Seen) -> str:
    """Why this must not have come on the uwsgi connection that carried the one before it, if it must not."""
    places = [str(re.match(rb"/[^/]*/|", each.message.path)[0], "latin-1") for each in (before, seen)]
    if any(place in KEEPS_NONE for place in places):
        return f"no connection is kept at {places}"
    if before.message.method == b"HEAD":
        return "the body of a HEAD may follow"
    if before.answer.kind != "whole":
        return ""
    if before.answer.connection == "close":
        return "the server said so"
    if before.answer.connection == "" and places[0] == "/on/":
        return "the server did not say that it stays open"
    return "there was more than the answer" if before.answer.has_extra else ""


def is_tunnel(seen: Seen) -> bool:
    """Whether it may have been one behind the answer, and what comes is no request."""
    return b" 101 " in seen.answer.data[:40] and b"HTTP_UPGRADE" in dict(seen.message.fields)


def is_nested(seen: Seen) -> bool:
    """Whether the end of the answer is the close, and its chunks are its body."""
    return seen.message.path.startswith(b"/nested/") and bool(seen.answer.chunks)


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
    writer: asyncio.StreamWriter | None = None
    doing = "connecting"
    try:
        async with asyncio.timeout(DEADLINE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        doing = "sending"
        reading = asyncio.create_task(read(reader, outcome))
        async with asyncio.timeout(DEADLINE):
            await send(one, writer, outcome)
        doing = "reading to the end"
        async with asyncio.timeout(DEADLINE):
            await reading
        doing = "waiting for the proxy to be done with the upstream"
        async with asyncio.timeout(DEADLINE):
            while upstream.under_way:
                await asyncio.sleep(0.002)
    except TimeoutError:
        outcome.faults.append(f"still {doing} after {DEADLINE} s")
    except OSError as error:
        outcome.faults.append(f"{doing}: {error}")
    finally:
        if writer:
            # Whatever it has not sent yet would keep it open.
            writer.transport.abort() if outcome.faults else writer.close()
    outcome.seen = [each for each in upstream.seen if ident(each.message) not in upstream.left]
    outcome.faults += upstream.faults
    upstream.left += [(message.method, own_target(message)) for message in strict.requests(outcome.sent)]
    return outcome


async def send(one: Case, writer: asyncio.StreamWriter, outcome: Outcome) -> None:
    with contextlib.suppress(OSError):
        for piece in one.pieces:
            outcome.sent += piece
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if one.ending == "finishes":
            writer.write_eof()
    if one.ending == "resets":
        reset(writer)
    if one.ending == "closes":
        writer.close()


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
    is_uwsgi = server_of(one.name) != "http"
    # Of the bytes that may have come to the proxy, nothing more can be a request.
    asked = strict.requests(outcome.sent)
    found += passed_on(asked, outcome.seen)
    try:
        # What has no status line has a head all the same, for uwsgi.
        odd = [with_id(each) for each in outcome.seen if each.answer.kind == "odd"] if not is_uwsgi else []
        odd += [strict.behind_hints(answer) for answer in odd]
        got = strict.responses(outcome.received, asked, odd, tunnels=is_uwsgi)
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


def may_be_repeated(seen: Seen) -> bool:
    return seen.message.method not in (b"POST", b"PATCH", b"LOCK") and not has_head(seen.answer)


def own_target(message: Message) -> bytes:
    """As the proxy passes it on: without scheme and host."""
    return re.sub(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", b"", message.start) or b"/"


def passed_on(asked: list[Message], seen: list[Seen]) -> list[str]:
    """Every request the upstream saw was sent by the client, in this order, and once, unless it was sent
    again because a kept connection had gone."""
    found = []
    at = 0
    last: Seen | None = None
    # Of the same one asked several times, any may be the one that was sent again.
    again: Counter[tuple[bytes, bytes]] = Counter()
    for each in seen:
        message = each.message
        told = ident(message)
        # An answer's X-Accel-Redirect makes a request of the proxy's own.
        if message.start.startswith(b"/q/accel"):
            continue
        next_at = next((n for n in range(at, len(asked)) if (asked[n].method, own_target(asked[n])) == told), None)
        is_last = bool(last) and ident(last.message) == told
        # Or another of its name that was asked later, which the body tells.
        is_again = is_last and bool(again[told]) and message.body == last.message.body
        if next_at is None or (is_again and message.body != asked[next_at].body):
            if is_last:
                if not again[told]:
                    found.append(f"passed on twice: {told}")
                again[told] += may_be_repeated(each) - 1
                continue
            found.append(f"passed on, but never asked: {told}; asked was {[(m.method, own_target(m)) for m in asked]}")
            continue
        at, last = next_at + 1, each
        again[told] += may_be_repeated(each)
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
        if ids[0] == b"evil" and not any(answers_evil(each) for each in outcome.seen):
            found.append(f"an answer from within another: {ids}")
        each = seen_of.get(ids[0])
        if not each or response.framing == "close" or status != b"200" or asked[n].method == b"HEAD":
            continue
        body = each.answer.body
        if is_nested(each):
            if each.answer.kind == "cut" or each.answer.has_extra:
                continue
            body = each.answer.chunks
        if not each.answer.is_framed and not each.is_answered:
            # Closed before all of the request was read, which the kernel makes a reset of: it ends the answer
            # all the same, and what was on its way is lost.
            continue
        if response.is_whole and each.answer.kind == "cut" and not is_all_there(each):
            found.append(f"an answer that was cut was made whole: {ids}")
        if each.answer.kind == "whole" and not body.startswith(response.body):
            found.append(f"another body than the upstream's: {ids} {response.body[:100]!r}")
        if response.is_whole and each.answer.kind == "whole" and response.body != body:
            found.append(f"a part of the upstream's body as the whole: {ids}")
        if not response.is_whole and each.answer.kind == "whole" and each.is_answered and stayed(one, outcome):
            found.append(f"a part of the upstream's body: {ids}")
    for n, response in enumerate(got[:-1]):
        if not response.is_whole:
            found.append(f"response {n} is cut, and others follow")
    return found


def answers_evil(seen: Seen) -> bool:
    """Whether what looks like another response within the answer is the answer: in its own head, where it was
    mangled so, or behind an interim one, that has no body whatever it says."""
    rest = strict.behind_hints(with_id(seen))
    return b"X-Id: evil\r\n" in re.split(rb"\n\r*\n", rest, maxsplit=1)[0] + b"\n"


def is_all_there(seen: Seen) -> bool:
    """All of the body, cut or not: only of the end of the chunks something is missing."""
    return seen.message.method == b"HEAD"


def stayed(one: Case, outcome: Outcome) -> bool:
    # One that finishes is taken for one that left, by nginx's lights (`proxy_ignore_client_abort`).
    return one.ending == "reads" and outcome.is_closed and not outcome.was_reset


# Many.


@dataclass
class Result:
    count: int = 0
    passed_on: int = 0
    answered: int = 0
    reused: int = 0
    """Requests on a uwsgi connection that had carried another."""
    found: list[str] = field(default_factory=list)


Lane = dict[str, tuple[int, Upstream]]
"""Per kind of server the proxy's port and what is behind it."""


async def many(names: Iterable[str], seconds: float | None, lanes: list[Lane]) -> Result:
    """These cases, until the time is over or ten have failed."""
    result = Result()
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds if seconds is not None else None
    queue = iter(names)
    watch = Watch()

    async def lane(ways: Lane) -> None:
        for name in queue:
            one = case(name)
            port, upstream = ways[server_of(name)]
            watch.under_way[name] = loop.time()
            outcome = await run(one, port, upstream)
            del watch.under_way[name]
            result.count += 1
            result.passed_on += len(outcome.seen)
            result.answered += outcome.received.count(b"\r\nX-Id:")
            if told := faults(one, outcome):
                result.found.append(report(one, outcome, told))
            if (until is not None and loop.time() > until) or len(result.found) >= 10:
                return

    with watch:
        beat = asyncio.create_task(watch.beat())
        try:
            async with asyncio.timeout_at(until + LEFT if until is not None else None):
                await asyncio.gather(*(lane(ways) for ways in lanes))
        except TimeoutError:
            result.found.append(f"still under way {LEFT} s after the end: {watch.told()}")
        finally:
            beat.cancel()
    result.reused = sum(up.reused for ways in lanes for _, up in ways.values() if up.is_uwsgi)
    result.found += watch.found
    return result


class Watch:
    """Tells from outside of the event loop when that does not turn: a deadline within cannot be reached then.
    If it was this process that did not let it, it is a finding; a machine that had no time for it is none."""

    def __init__(self) -> None:
        self.under_way: dict[str, float] = {}
        """Names of cases, and when they began."""
        self.found: list[str] = []
        self.turned = (time.monotonic(), time.process_time())
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.is_over.set()
        self.thread.join()

    async def beat(self) -> None:
        while True:
            self.turned = (time.monotonic(), time.process_time())
            await asyncio.sleep(0.5)

    def told(self) -> str:
        # It is changed meanwhile.
        return ", ".join(list(self.under_way)) or "nothing"

    def _run(self) -> None:
        told_of = None
        while not self.is_over.wait(1):
            turned = self.turned
            waited, worked = time.monotonic() - turned[0], time.process_time() - turned[1]
            if waited < STUCK or told_of == turned:
                continue
            told_of = turned
            what = f"the event loop has not turned for {waited:.0f} s ({worked:.0f} s of work), under way: {self.told()}"
            print(what, file=sys.stderr, flush=True)
            faulthandler.dump_traceback(sys.__stderr__)
            if worked > STUCK / 2:
                self.found.append(what)


def report(one: Case, outcome: Outcome, told: list[str]) -> str:
    lines = [f"case {one.name}, the client {one.ending}:", *(f"  {each}" for each in told)]
    lines.append(f"  sent {[piece[:1500] for piece in one.pieces]}")
    for each in outcome.seen:
        head = f"{each.message.method.decode()} {each.message.start!r} body {each.message.body[:200]!r}"
        lines.append(f"  upstream: {head}, whole {each.message.is_whole}")
        lines.append(f"    answers ({each.answer.kind}, {each.answer.ending}): {each.answer.data[:600]!r}")
    lines.append(f"  received {outcome.received[:3000]!r}, reset {outcome.was_reset}")
    return "\n".join(lines)
