"""A socket for tests, at either end: every wait has a deadline, every byte received is kept.

Messages are read by hand and not by a library, so that a test sees what is on the wire: order and
spelling of fields, framing, chunk sizes, what came in one piece.
"""

import select
import socket
import struct
import time
from dataclasses import dataclass, field

from .ports import tcp_sockets

DEADLINE = 10.0


class WireError(AssertionError):
    """The peer did not do what the test waits for."""


class Closed(WireError):
    """The peer closed (or reset) before the awaited bytes had come."""


class Late(WireError):
    """The awaited bytes did not come in time."""


@dataclass
class Head:
    """A message head. Field values keep their bytes (as Latin-1)."""

    raw: bytes
    start: str
    fields: list[tuple[str, str]]

    @classmethod
    def parse(cls, raw: bytes) -> "Head":
        start, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        fields = []
        for line in lines:
            name, colon, value = line.partition(":")
            assert colon, f"a header line without a colon: {line!r} in {raw!r}"
            fields.append((name, value.removeprefix(" ")))
        return cls(raw, start, fields)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    def names(self) -> list[str]:
        return [name for name, _ in self.fields]

    def lines(self) -> list[str]:
        """The head as text lines, start line first."""
        return self.raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")


@dataclass
class Message(Head):
    """A head with its body; `framing` is none, length, chunked or close."""

    body: bytes = b""
    framing: str = "none"
    chunks: list[bytes] = field(default_factory=list)
    trailers: list[str] = field(default_factory=list)


@dataclass
class Request(Message):
    @property
    def method(self) -> str:
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        return self.start.split(" ")[1]


@dataclass
class Response(Message):
    @property
    def status(self) -> int:
        return int(self.start.split(" ")[1])

    @property
    def reason(self) -> str:
        return self.start.split(" ", 2)[2]


class Wire:
    def __init__(self, sock: socket.socket, deadline: float = DEADLINE):
        self.sock = sock
        self.deadline = deadline
        self.transcript = bytearray()
        self.unread = bytearray()
        self.ended = False
        self.was_reset = False
        sock.setblocking(False)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _is_ready(self, for_what: int, seconds: float) -> bool:
        """Waits for it. By poll, because select takes no descriptor above 1023."""
        poll = select.poll()
        poll.register(self.sock, for_what)
        return bool(poll.poll(max(0, seconds) * 1000))

    # Sending.

    def send(self, data: bytes | str) -> None:
        """Sends all of it, in as few segments as the kernel likes."""
        view = memoryview(data.encode("latin-1") if isinstance(data, str) else data)
        until = time.monotonic() + self.deadline
        while view:
            if not self._is_ready(select.POLLOUT, until - time.monotonic()):
                raise Late(f"{len(view)} bytes could not be sent in time")
            view = view[self.sock.send(view) :]

    def send_pieces(self, data: bytes, cuts: list[int]) -> None:
        """Sends `data` cut at these offsets, each piece in a segment of its own where possible."""
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, end in zip([0, *cuts], [*cuts, len(data)]):
            self.send(data[start:end])

    def finish(self) -> None:
        """Half-closes: FIN, and go on reading."""
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Closes with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def is_taken(self) -> bool:
        """Whether the peer, on this machine, has read all that was sent."""
        ours, theirs = self.sock.getsockname()[1], self.sock.getpeername()[1]
        return (theirs, ours, 0) in {(local, remote, unread) for local, remote, _, unread in tcp_sockets()}

    def is_held_up(self, seconds: float = 0.2) -> bool:
        """Whether nothing more could be sent for so long."""
        return not self._is_ready(select.POLLOUT, seconds)

    # Receiving.

    def _fill(self, until: float, wanted: str) -> None:
        if self.ended:
            how = "reset" if self.was_reset else "closed"
            raise Closed(f"{how} while waiting for {wanted}; unread: {bytes(self.unread[:2000])!r}")
        if not self._is_ready(select.POLLIN, until - time.monotonic()):
            raise Late(f"nothing came while waiting for {wanted}; unread: {bytes(self.unread[:2000])!r}")
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionResetError:
            self.was_reset, data = True, b""
        if data:
            self.unread += data
            self.transcript += data
        else:
            self.ended = True

    def _take(self, length: int) -> bytes:
        taken = bytes(self.unread[:length])
        del self.unread[:length]
        return taken

    def read_until(self, mark: bytes) -> bytes:
        until, seen = time.monotonic() + self.deadline, 0
        while (at := self.unread.find(mark, max(0, seen - len(mark)))) < 0:
            seen = len(self.unread)
            self._fill(until, repr(mark))
        return self._take(at + len(mark))

    def read_exactly(self, length: int) -> bytes:
        until = time.monotonic() + self.deadline
        while len(self.unread) < length:
            self._fill(until, f"{length} bytes ({len(self.unread)} are here)")
        return self._take(length)

    def read_some(self) -> bytes:
        """What is there, at least one byte; empty at the end."""
        until = time.monotonic() + self.deadline
        while not self.unread and not self.ended:
            self._fill(until, "anything")
        return self._take(len(self.unread))

    def read_to_end(self) -> bytes:
        until = time.monotonic() + self.deadline
        while not self.ended:
            self._fill(until, "the end")
        return self._take(len(self.unread))

    def expect_end(self) -> None:
        """The peer closes now, and says nothing before."""
        rest = self.read_to_end()
        assert rest == b"", f"bytes before the end: {rest!r}"

    def expect_silence(self, seconds: float) -> None:
        """Nothing comes for so long, no end either."""
        assert not self.unread, f"unread: {bytes(self.unread)!r}"
        assert not self._is_ready(select.POLLIN, seconds), f"not silent: {self.read_some()!r}"

    # Messages.

    def read_head(self) -> Head:
        return Head.parse(self.read_until(b"\r\n\r\n"))

    def read_chunked(self) -> tuple[list[bytes], list[str]]:
        """The chunks, and the trailer lines."""
        chunks = []
        while size := int(self.read_until(b"\r\n").split(b";")[0], 16):
            chunks.append(self.read_exactly(size))
            assert self.read_exactly(2) == b"\r\n"
        trailers = []
        while line := self.read_until(b"\r\n")[:-2]:
            trailers.append(line.decode("latin-1"))
        return chunks, trailers

    def _read_body(self, head: Head, kind: type, bodiless: bool, close_delimited: bool):
        message = kind(head.raw, head.start, head.fields)
        if bodiless:
            return message
        if head.get("Transfer-Encoding"):
            message.framing = "chunked"
            message.chunks, message.trailers = self.read_chunked()
            message.body = b"".join(message.chunks)
        elif (length := head.get("Content-Length")) is not None:
            message.framing = "length"
            message.body = self.read_exactly(int(length))
        elif close_delimited:
            message.framing = "close"
            message.body = self.read_to_end()
        return message

    def read_request(self) -> Request:
        return self._read_body(self.read_head(), Request, False, False)

    def read_response(self, method: str = "GET") -> Response:
        head = self.read_head()
        status = int(head.start.split(" ")[1])
        bodiless = method == "HEAD" or status < 200 or status in (204, 304)
        return self._read_body(head, Response, bodiless, True)


def connect(address: tuple[str, int] | str, deadline: float = DEADLINE, receive_buffer: int | None = None) -> Wire:
    """A client's wire to `(host, port)` or to a unix socket's path."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(deadline)
    sock.connect(address)
    return Wire(sock, deadline)
