"""HTTP/1 read a second time, by the letter: what the proxy made of bytes is compared with what these
make of them. They share nothing with it, nor with harness.wire, which believes what it reads.

`requests` reads what a client sent, in nginx's terms (a line may end with LF, lines with odd names count
as absent), because those decide where the next request begins. `one_request`, `one_packet` and `responses`
read what the proxy sends, and that must be the grammar of RFC 9112, or of uwsgi, without any of its allowances.
"""

import re
import struct
from dataclasses import dataclass, field

TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# By nginx's lights any visible byte may be in a name that an upstream sent, and any control in a value of
# either side, but for the three that end something.
NAME = re.compile(rb"[^\x00-\x20:\x7f]+")
VALUE = re.compile(rb"[^\0\r\n]*")
# What the upstream says behind its status is passed on as it is, by nginx's lights: any byte, or not even the
# space of RFC 9112 section 4: a dot may be there, too.
STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2})(?:[ .][^\r\n]*)?")
REQUEST_LINE = re.compile(rb"([A-Z_-]+) ([\x21-\x7e\x80-\xff]+) HTTP/1\.([01])")


class Broken(AssertionError):
    """Not to be read."""


class Cut(Broken):
    """The bytes end too early."""


@dataclass
class Message:
    """A request or a response: `start` is a client's target, or the proxy's start line."""

    start: bytes
    method: bytes = b""
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    framing: str = "none"
    is_whole: bool = True
    """Otherwise the body is cut, or its framing is broken; `body` is what came before."""
    is_old: bool = False
    """A request without a version, whose response has no head."""
    path: bytes = b""
    """PATH_INFO of a uwsgi packet: it tells the location when the target is no longer the client's."""

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.fields if key.lower() == name]


# What the client sent.


def requests(stream: bytes) -> list[Message]:
    """The requests, up to the first bytes that are none."""
    found: list[Message] = []
    at = 0
    while True:
        while stream[at : at + 1] in (b"\r", b"\n"):
            at += 1
        try:
            message, at = client_head(stream, at)
        except Broken:
            return found
        found.append(message)
        if message.is_old:
            return found
        codings, lengths = message.all(b"transfer-encoding"), message.all(b"content-length")
        try:
            if codings:
                message.framing = "chunked"
                at = read_chunks(message, stream, at)
            elif lengths:
                message.framing = "length"
                at = read_length(message, stream, at, int(lengths[0]))
        except Broken:
            message.is_whole = False
            return found


def client_head(stream: bytes, at: int) -> tuple[Message, int]:
    line, at = client_line(stream, at)
    # Without a version there are no fields.
    if old := re.fullmatch(rb"GET +([^ ]+) *", line):
        return Message(old[1], b"GET", is_old=True), at
    match = re.fullmatch(rb"([A-Z_-]+) +(\S[^ ]*) +HTTP/1\.([0-9]{1,3}) *", line)
    if not match:
        raise Broken("no request line")
    message = Message(match[2], match[1])
    while True:
        line, at = client_line(stream, at)
        if not line:
            break
        name, colon, value = line.partition(b":")
        if colon and TOKEN.fullmatch(name):
            message.fields.append((name, value.strip(b" \t")))
    codings, lengths = message.all(b"transfer-encoding"), message.all(b"content-length")
    if len(codings) + len(lengths) > 1:
        raise Broken("framed twice")
    if codings and (codings[0].lower() != b"chunked" or int(match[3]) == 0):
        raise Broken("not chunked")
    if lengths and not (re.fullmatch(rb"[0-9]+", lengths[0]) and int(lengths[0]) < 1 << 63):
        raise Broken("no length")
    return message, at


def client_line(stream: bytes, at: int) -> tuple[bytes, int]:
    end = stream.find(b"\n", at)
    if end < 0:
        raise Cut("in the head")
    # More than one before the LF are one, for nginx.
    line = stream[at:end].rstrip(b"\r")
    if b"\r" in line or b"\0" in line:
        raise Broken(f"a control in {line!r}")
    return line, end + 1


# Bodies, of both.


def read_length(message: Message, stream: bytes, at: int, length: int) -> int:
    message.body = stream[at : at + length]
    if len(message.body) < length:
        raise Cut(f"{len(message.body)} of {length} bytes")
    return at + length


def read_chunks(message: Message, stream: bytes, at: int) -> int:
    while True:
        line, at = crlf_line(stream, at)
        # What follows a blank is an extension, too, by nginx's lights, and may be anything on this line.
        match = re.fullmatch(rb"([0-9A-Fa-f]+)([ \t;].*)?", line, re.DOTALL)
        if not match:
            raise Broken(f"no size of a chunk: {line!r}")
        size = int(match[1], 16)
        if not size:
            break
        piece = stream[at : at + size]
        message.body += piece
        if len(piece) < size:
            raise Cut("in a chunk")
        at += size
        end = stream[at : at + 2]
        if end != b"\r\n":
            raise Cut("behind a chunk") if b"\r\n".startswith(end) else Broken(f"{end!r} behind a chunk")
        at += 2
    while True:
        line, at = crlf_line(stream, at)
        if not line:
            return at


def crlf_line(stream: bytes, at: int) -> tuple[bytes, int]:
    end = stream.find(b"\r\n", at)
    if end < 0:
        raise Cut("in a line")
    line = stream[at:end]
    if re.search(rb"[\r\n]", line):
        raise Broken(f"a control in {line!r}")
    return line, end + 2


# What the proxy sent.


def own_head(stream: bytes, at: int) -> tuple[Message, int]:
    """A start line, not looked at, and fields."""
    line, at = crlf_line(stream, at)
    message = Message(line)
    while True:
        line, at = crlf_line(stream, at)
        if not line:
            return message, at
        name, colon, value = line.partition(b":")
        if not (colon and NAME.fullmatch(name) and VALUE.fullmatch(value)):
            raise Broken(f"no field: {line!r}")
        message.fields.append((name, value.strip(b" \t")))


def own_body(message: Message, stream: bytes, at: int) -> int | None:
    """Where it ends, or None when nothing frames it."""
    codings, lengths = message.all(b"transfer-encoding"), message.all(b"content-length")
    if len(codings) + len(lengths) > 1:
        raise Broken(f"framed twice: {message.fields}")
    try:
        if codings:
            if codings[0] != b"chunked":
                raise Broken(f"a coding: {codings[0]!r}")
            message.framing = "chunked"
            return read_chunks(message, stream, at)
        if lengths:
            if not re.fullmatch(rb"[0-9]+", lengths[0]):
                raise Broken(f"a length: {lengths[0]!r}")
            message.framing = "length"
            return read_length(message, stream, at, int(lengths[0]))
    except Cut:
        message.is_whole = False
        return len(stream)
    return None


def one_request(stream: bytes, at: int) -> tuple[Message, int]:
    """What an upstream got. `Cut` in its head is for the caller; a cut body is told by `is_whole`."""
    message, at = own_head(stream, at)
    match = REQUEST_LINE.fullmatch(message.start)
    if not match:
        raise Broken(f"no request line: {message.start!r}")
    message.method, message.start = match[1], match[2]
    end = own_body(message, stream, at)
    return message, at if end is None else end


# The variables of a packet that the configuration sets, in its order; all others are out of the head.
PARAMS = [b"QUERY_STRING", b"REQUEST_METHOD", b"CONTENT_TYPE", b"CONTENT_LENGTH", b"REQUEST_URI", b"PATH_INFO"]
PARAMS += [b"SERVER_PROTOCOL", b"REMOTE_ADDR"]


def one_packet(stream: bytes, at: int) -> tuple[Message, int]:
    """What a uwsgi server got, as `one_request`. `fields` are the variables."""
    if len(stream) < at + 4:
        raise Cut("in the header of a packet")
    modifier1, size, modifier2 = struct.unpack_from("<BHB", stream, at)
    if modifier1 or modifier2:
        raise Broken(f"no header of a packet: {stream[at : at + 60]!r}")
    at += 4
    block = stream[at : at + size]
    if len(block) < size:
        raise Cut("in the block of a packet")
    at += size
    variables = pairs(block)
    values = dict(variables)
    if len(values) < len(variables):
        raise Broken(f"a variable twice: {variables}")
    message = Message(values.get(b"REQUEST_URI", b""), values.get(b"REQUEST_METHOD", b""), variables)
    message.path = values.get(b"PATH_INFO", b"")
    coding, length = values.get(b"HTTP_TRANSFER_ENCODING"), values.get(b"CONTENT_LENGTH")
    wanted = [key for key in PARAMS if coding is None or key != b"CONTENT_LENGTH"]
    if [key for key, _ in variables[: len(wanted)]] != wanted:
        raise Broken(f"not the variables that are configured: {variables}")
    for key, value in variables[len(wanted) :]:
        if not re.fullmatch(rb"HTTP_[A-Z0-9_]+", key) or re.search(rb"[\0\r\n]", value):
            raise Broken(f"no variable out of a head: {key!r} {value!r}")
    if not REQUEST_LINE.fullmatch(b"%s %s HTTP/1.1" % (message.method, message.start)) or not message.path.startswith(b"/"):
        raise Broken(f"no request: {variables}")
    try:
        if coding is not None:
            if coding != b"chunked" or length is not None:
                raise Broken(f"a coding: {variables}")
            message.framing = "chunked"
            return message, read_chunks(message, stream, at)
        if length:
            if not re.fullmatch(rb"[0-9]+", length):
                raise Broken(f"a length: {length!r}")
            message.framing = "length"
            return message, read_length(message, stream, at, int(length))
    except Cut:
        message.is_whole = False
        return message, len(stream)
    return message, at


def pairs(block: bytes) -> list[tuple[bytes, bytes]]:
    strings, at = [], 0
    while at < len(block):
        if len(block) < at + 2:
            raise Broken(f"half a length ends the block: {block!r}")
        (size,) = struct.unpack_from("<H", block, at)
        text = block[at + 2 : at + 2 + size]
        if len(text) < size:
            raise Broken(f"a string of {size} bytes at {at} passes the end of the block: {block!r}")
        strings.append(text)
        at += 2 + size
    if len(strings) % 2:
        raise Broken(f"a name without a value: {strings}")
    found = list(zip(strings[::2], strings[1::2], strict=True))
    if any(not key for key, _ in found):
        raise Broken(f"an empty name: {found}")
    return found


# What an upstream said.

EARLY_HINTS = re.compile(rb"HTTP/[1-9][0-9]*\.[0-9]+ +103[ .\r\n]")


def behind_hints(answer: bytes) -> bytes:
    """An upstream's answer without the 103s before it. An interim response ends with its head, whatever
    length or coding it may have (RFC 9110 section 15.2, RFC 9112 section 6.3): what follows is the next."""
    while EARLY_HINTS.match(answer) and (end := re.search(rb"\n\r*\n", answer)):
        answer = answer[end.end() :]
    return answer


def responses(stream: bytes, asked: list[Message], headless: list[bytes], tunnels: bool = False) -> list[Message]:
    """What a client got for these requests, the interim ones left out. There may be one more, for what was
    no request. A last head that is cut is left out.

    Two things are nginx's way with servers that are none. What has no status line, one of `headless`, is
    passed on as it is, and the close is its end. And a 1xx that should have been followed by a response is
    passed on as one; then, too, the connection must end. With `tunnels` a request for an upgrade may be
    granted, and no more than the head can be read then."""
    found: list[Message] = []
    at = 0
    while at < len(stream):
        of = asked[len(found)] if len(found) < len(asked) else None
        rest = stream[at:]
        if any(answer.startswith(rest) for answer in headless) and not STATUS_LINE.fullmatch(rest.split(b"\r\n")[0]):
            found.append(Message(b"", body=rest, framing="close"))
            return found
        # So a line without a version is refused, too.
        if (of and of.is_old) or (not of and stream.startswith(b"<html>", at)):
            found.append(Message(b"", body=stream[at:], framing="close"))
            return found
        if len(found) > len(asked):
            raise Broken(f"more responses than requests: {stream[at : at + 200]!r}")
        try:
            message, behind = own_head(stream, at)
        except Cut:
            if not b"HTTP/1.1 "[: len(stream) - at] == stream[at : at + 9]:
                raise Broken(f"no response: {stream[at : at + 200]!r}") from None
            return found
        match = STATUS_LINE.fullmatch(message.start)
        if not match:
            raise Broken(f"no status line: {message.start!r}")
        status = int(match[1])
        if status == 101 and tunnels and of and of.all(b"upgrade"):
            found.append(Message(message.start, body=stream[behind:], framing="close"))
            return found
        if status < 200:
            if status != 101 and message.all(b"connection") == [b"close"]:
                found.append(Message(message.start, body=stream[behind:], framing="close"))
                return found
            if message.all(b"connection") or message.all(b"transfer-encoding") or message.all(b"content-length") or status == 101:
                raise Broken(f"an interim response with a body: {message}")
            at = behind
            continue
        found.append(message)
        message.method = of.method if of else b""
        # What is refused may be refused before its method is known.
        is_head = message.method == b"HEAD" or (not of and stream[behind : behind + 5] in (b"", b"HTTP/"))
        if is_head or status in (204, 304):
            at = behind
            continue
        end = own_body(message, stream, behind)
        if end is None:
            message.framing, message.body = "close", stream[behind:]
            return found
        at = end
    return found
