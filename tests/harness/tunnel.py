"""What goes through tunnels: handshakes, WebSocket frames as bytes, and floods that can be checked.

A flood is a row of pieces that follows from a seed, so that whoever reads can make the same row anew and
compare: nothing that is lost, doubled, swapped or changed goes unseen.
"""

import itertools
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .proxy import Proxy
from .wire import Wire

RAW = "raw/1"
WEBSOCKET = "websocket"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def handshake(protocol: str = WEBSOCKET) -> bytes:
    lines = ["GET /tunnel HTTP/1.1", "Host: example.com", f"Upgrade: {protocol}", "Connection: Upgrade"]
    if protocol == WEBSOCKET:
        lines += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def switch(protocol: str = WEBSOCKET) -> bytes:
    """The 101 that accepts `handshake(protocol)`."""
    lines = ["HTTP/1.1 101 Switching Protocols", f"Upgrade: {protocol}", "Connection: Upgrade"]
    if protocol == WEBSOCKET:
        lines.append("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


# Frames.


def frame_header(opcode: int, length: int, masked: bool, fin: bool = True) -> bytes:
    """A masked one with the mask 0: the payload is as it is without."""
    first, mask_bit = (0x80 if fin else 0) | opcode, 0x80 if masked else 0
    if length < 126:
        header = struct.pack(">BB", first, mask_bit | length)
    elif length < 1 << 16:
        header = struct.pack(">BBH", first, mask_bit | 126, length)
    else:
        header = struct.pack(">BBQ", first, mask_bit | 127, length)
    return header + (b"\0\0\0\0" if masked else b"")


def frame(opcode: int, payload: bytes = b"", masked: bool = False, fin: bool = True) -> bytes:
    return frame_header(opcode, len(payload), masked, fin) + payload


def close_frame(code: int, masked: bool = False) -> bytes:
    return frame(CLOSE, struct.pack(">H", code), masked)


@dataclass
class Frame:
    opcode: int
    fin: bool
    masked: bool
    payload: bytes

    @property
    def code(self) -> int:
        """Of a Close frame."""
        assert self.opcode == CLOSE, self
        return struct.unpack(">H", self.payload[:2])[0]


def read_frame(wire: Wire) -> Frame:
    first, second = wire.read_exactly(2)
    assert not first & 0x70, f"reserved bits: {first:#x}"
    masked, length = bool(second & 0x80), second & 0x7F
    if length >= 126:
        length = int.from_bytes(wire.read_exactly(2 if length == 126 else 8), "big")
    mask = wire.read_exactly(4) if masked else b"\0\0\0\0"
    payload = wire.read_exactly(length)
    if any(mask):
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return Frame(first & 0x0F, bool(first & 0x80), masked, payload)


# Floods.

_NOISE = random.Random("noise").randbytes(3 << 20)
_PIECE_MAX = 1 << 20


@dataclass
class Piece:
    data: bytes
    # Seconds that the sender waits before it.
    pause: float = 0.0


def _noise(chance: random.Random, size: int) -> bytes:
    start = chance.randrange(len(_NOISE) - size)
    return _NOISE[start : start + size]


def _sizes(chance: random.Random, total: int) -> Iterator[tuple[int, float]]:
    """Large pieces without a pause and tiny ones with, in turns: a proxy has to change its ways."""
    left = total
    while left > 0:
        flood = min(left, chance.randrange(4 << 20, 16 << 20))
        left -= flood
        while flood > 0:
            size = min(flood, chance.randrange(_PIECE_MAX + 1))
            flood -= size
            yield size, 0.0
        for _ in range(min(left, 40)):
            size = min(left, chance.randrange(1, 2000))
            left -= size
            yield size, 0.001


def raw_flood(seed: int, total: int) -> Iterator[Piece]:
    chance = random.Random(seed)
    for size, pause in _sizes(chance, total):
        yield Piece(_noise(chance, size), pause)


def frame_flood(seed: int, total: int, masked: bool) -> Iterator[Piece]:
    """Binary messages, some of them in fragments, some with a Ping between these; a frame a piece."""
    chance = random.Random(seed)
    fragmented = False
    for size, pause in _sizes(chance, total):
        opcode = CONTINUATION if fragmented else BINARY
        fragmented = chance.random() < 0.3
        header = frame_header(opcode, size, False, fin=not fragmented)
        if masked:
            header = header[:1] + bytes([header[1] | 0x80]) + header[2:] + chance.randbytes(4)
        yield Piece(header + _noise(chance, size), pause)
        if chance.random() < 0.1:
            yield Piece(frame(PING, _noise(chance, chance.randrange(126)), masked))
    if fragmented:
        yield Piece(frame(CONTINUATION, b"", masked))


def write_flood(sock: socket.socket, pieces: Iterator[Piece]) -> int:
    """How many bytes it was."""
    total = 0
    for piece in pieces:
        if piece.pause:
            time.sleep(piece.pause)
        sock.sendall(piece.data)
        total += len(piece.data)
    return total


def read_flood(sock: socket.socket, pieces: Iterator[Piece], stalls: random.Random | None = None) -> int:
    """Reads what `pieces` are and not a byte more; now and then, if there are `stalls`, not for a while."""
    total, next_stall = 0, stalls.randrange(1 << 20, 8 << 20) if stalls else None
    received, at = b"", 0
    for piece in pieces:
        data, compared = piece.data, 0
        while compared < len(data):
            if at == len(received):
                received, at = sock.recv(1 << 18), 0
                assert received, f"it ended after {total} bytes"
                if next_stall and total >= next_stall:
                    time.sleep(stalls.uniform(0.02, 0.15))
                    next_stall += stalls.randrange(4 << 20, 20 << 20)
            length = min(len(received) - at, len(data) - compared)
            if not data.startswith(memoryview(received)[at : at + length], compared):
                pairs = zip(received[at : at + length], data[compared : compared + length])
                first = next(i for i, (got, wanted) in enumerate(pairs) if got != wanted)
                raise AssertionError(f"byte {total + first} is another than the one that was sent")
            compared, at, total = compared + length, at + length, total + length
    assert at == len(received), f"{len(received) - at} bytes more than were sent"
    return total


def together(*calls) -> list:
    """Runs all at once, a thread each; their values, or what the first of them raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(*call) for call in calls]
        return [each.result() for each in running]


# What the kernel knows of the proxy.


def processes(proxy: Proxy) -> list[int]:
    """Those that have the tunnels: its own, and an nginx's workers."""
    children = Path(f"/proc/{proxy.pid}/task/{proxy.pid}/children").read_text().split()
    return [proxy.pid, *map(int, children)]


def resident(proxy: Proxy) -> int:
    """Bytes."""

    def one(pid: int) -> int:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) << 10

    return sum(map(one, processes(proxy)))


def cpu_seconds(proxy: Proxy) -> float:
    """What its processes have used so far, by the scheduler's account (clock_getcpuclockid(3))."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in processes(proxy))


def threads(proxy: Proxy) -> list[str]:
    """Their names."""
    return [
        comm.read_text().strip() for pid in processes(proxy) for comm in Path(f"/proc/{pid}/task").glob("*/comm")
    ]


def open_pipes(proxy: Proxy) -> int:
    """Ends of pipes among its descriptors."""

    def target(link: Path) -> str:
        try:
            return str(link.readlink())
        except FileNotFoundError:
            return ""  # closed since

    links = [link for pid in processes(proxy) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(target(link).startswith("pipe:") for link in links)


class Watch:
    """`with Watch(probe) as seen`: what `probe()` said, every few milliseconds, in `seen.values`."""

    def __init__(self, probe, interval: float = 0.02):
        self.probe, self.interval = probe, interval
        self.values: list = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while True:
            self.values.append(self.probe())
            if self.done.wait(self.interval):
                return

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()


# Tunnels that never rest.


class Talk:
    """Every tunnel says numbers, one after the other, and hears each again."""

    def __init__(self, proxy: Proxy, count: int):
        self.clients = []
        for _ in range(count):
            client = proxy.connect()
            client.send(handshake(RAW))
            assert client.read_head().start.startswith("HTTP/1.1 101 ")
            self.clients.append(client)
        # Answers so far.
        self.count = 0
        self.said = [0] * count
        self.heard = [b""] * count
        self.errors: list[str] = []
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Talk":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopping.set()
        self.thread.join()

    def _run(self) -> None:
        selector = selectors.DefaultSelector()
        numbers = itertools.count(1)
        for at, client in enumerate(self.clients):
            client.sock.setblocking(False)
            selector.register(client.sock, selectors.EVENT_READ, at)
            self._say(at, next(numbers))
        while any(self.said) and not self.errors:
            for key, _ in selector.select(1):
                at = key.data
                data = self.clients[at].sock.recv(4096)
                if not data:
                    self.errors.append(f"tunnel {at} was closed")
                    return
                self.heard[at] += data
                if len(self.heard[at]) < 16:
                    continue
                if self.heard[at] != b"%016d" % self.said[at]:
                    self.errors.append(f"tunnel {at} heard {self.heard[at]} and had said {self.said[at]}")
                    return
                self.heard[at], self.said[at] = b"", 0
                if not self.stopping.is_set():
                    self._say(at, next(numbers))
                self.count += 1

    def _say(self, at: int, number: int) -> None:
        self.said[at] = number
        self.clients[at].sock.sendall(b"%016d" % number)
