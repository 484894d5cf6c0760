"""A scripted name server: answers from a table, over UDP and TCP, on one port of loopback.

A row is what is said of a name: `Answer(a=…, aaaa=…, cname=…, srv=…)`, or a code for a refusal. What
was asked is kept in `asked`, in the order of arrival.
"""

import ipaddress
import socket
import struct
import threading
from dataclasses import dataclass, field

from .ports import free_port
from .wire import DEADLINE, Late

A, CNAME, AAAA, SRV = 1, 5, 28, 33
KINDS = {A: "A", AAAA: "AAAA", SRV: "SRV"}
FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(1, 6)


@dataclass
class Answer:
    """What the server says of one name."""

    a: list[str] = field(default_factory=list)
    aaaa: list[str] = field(default_factory=list)
    # Priority, weight, port, target.
    srv: list[tuple[int, int, int, str]] = field(default_factory=list)
    # Further aliases are looked up in the table, unless `alone`.
    cname: str | None = None
    alone: bool = False
    ttl: int = 60
    code: int = 0
    # The code for AAAA, where it is another.
    code6: int | None = None
    # Over UDP only the head, with the bit that says so.
    truncated: bool = False
    # Nothing is said until it is set.
    after: threading.Event | None = None
    # Other answers, sent before the good one: "id", "question", "kind", "query", "garbage".
    before: tuple[str, ...] = ()
    # Over UDP nothing but answers with another id, until the name has another row.
    flood: bool = False
    silent: bool = False
    # Turns the order with every answer.
    rotate: bool = False


def wire_name(name: str) -> bytes:
    labels = name.encode().split(b".") if name else []
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def read_question(data: bytes) -> tuple[str, int, bytes]:
    at, labels = 12, []
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    kind = struct.unpack(">H", data[at + 1 : at + 3])[0]
    return b".".join(labels).decode(), kind, data[12 : at + 5]


@dataclass(frozen=True)
class Question:
    name: str
    kind: str
    transport: str
    id: int
    port: int


class NameServer:
    def __init__(self, table: dict[str, Answer] | None = None, port: int | None = None):
        self.table = dict(table or {})
        self.asked: list[Question] = []
        self.changed = threading.Condition()
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []
        self.turn = 0
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        self.tcp = socket.socket()
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.tcp.bind(("127.0.0.1", self.port))
        self.tcp.listen()
        self.stopped = False
        self._start(self._serve_udp)
        self._start(self._serve_tcp)

    def _start(self, target, *args) -> None:
        def run():
            try:
                target(*args)
            except OSError:
                pass  # It was closed.
            except BaseException as error:
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _serve_udp(self) -> None:
        while True:
            data, peer = self.udp.recvfrom(4096)
            if self.stopped:
                return
            self._start(self._answer_udp, data, peer)

    def _answer_udp(self, data: bytes, peer) -> None:
        for message in self._messages(data, "udp", peer[1]):
            self.udp.sendto(message, peer)

    def _serve_tcp(self) -> None:
        while True:
            sock, peer = self.tcp.accept()
            self._start(self._answer_tcp, sock, peer)

    def _answer_tcp(self, sock: socket.socket, peer) -> None:
        with sock:
            sock.settimeout(DEADLINE)
            stream = sock.makefile("rb")
            while head := stream.read(2):
                data = stream.read(struct.unpack(">H", head)[0])
                for message in self._messages(data, "tcp", peer[1]):
                    # In two pieces, as TCP may.
                    whole = struct.pack(">H", len(message)) + message
                    sock.sendall(whole[:1])
                    sock.sendall(whole[1:])

    def _messages(self, data: bytes, transport: str, port: int):
        """What is sent back, in order."""
        name, kind, question = read_question(data)
        id_ = struct.unpack(">H", data[:2])[0]
        with self.changed:
            self.asked.append(Question(name, KINDS.get(kind, str(kind)), transport, id_, port))
            self.changed.notify_all()
            row = self.table.get(name, Answer(code=NXDOMAIN))
        if row.silent:
            return
        if row.after:
            assert row.after.wait(DEADLINE), "the test never let the name server go on"
        while row.flood and transport == "udp" and self.table.get(name) is row:
            yield self._message(id_ ^ 1, question, name, kind, row, False)
        good = self._message(id_, question, name, kind, row, row.truncated and transport == "udp")
        for bad in row.before if transport == "udp" else ():
            wrong = Answer(a=["127.0.0.99"], ttl=60)
            other = wire_name("other.test") + question[-4:]
            yield {
                "id": lambda: self._message(id_ ^ 1, question, name, kind, wrong, False),
                "question": lambda: self._message(id_, other, "other.test", kind, wrong, False),
                "kind": lambda: self._message(id_, question[:-4] + b"\0\x0f\0\x01", name, A, wrong, False),
                "query": lambda: data[:2] + b"\x01\0" + good[4:],
                "garbage": lambda: data[:2] + b"\x81\x80" + b"\xff" * 40,
            }[bad]()
        yield good

    def _message(self, id_: int, question: bytes, name: str, kind: int, row: Answer, truncated: bool) -> bytes:
        code = row.code6 if kind == AAAA and row.code6 is not None else row.code
        records = [] if truncated or code else self._records(name, kind, row)
        flags = 0x8180 | code | (0x0200 if truncated else 0)
        return struct.pack(">HHHHHH", id_, flags, 1, len(records), 0, 0) + question + b"".join(records)

    def _records(self, name: str, kind: int, row: Answer, depth: int = 0) -> list[bytes]:
        def record(type_: int, data: bytes) -> bytes:
            return wire_name(name) + struct.pack(">HHIH", type_, 1, row.ttl, len(data)) + data

        if row.cname is not None:
            alias = [record(CNAME, wire_name(row.cname))]
            target = self.table.get(row.cname)
            if row.alone or target is None or depth > 20:
                return alias
            return alias + self._records(row.cname, kind, target, depth + 1)
        records = []
        if kind == A:
            records = [record(A, ipaddress.IPv4Address(ip).packed) for ip in row.a]
        if kind == AAAA:
            records = [record(AAAA, ipaddress.IPv6Address(ip).packed) for ip in row.aaaa]
        if kind == SRV:
            records = [record(SRV, struct.pack(">HHH", *srv[:3]) + wire_name(srv[3])) for srv in row.srv]
        if row.rotate and records:
            self.turn += 1
            first = self.turn % len(records)
            records = records[first:] + records[:first]
        return records

    # For tests.

    def set(self, name: str, row: Answer) -> None:
        with self.changed:
            self.table[name] = row

    def count(self, name: str | None = None, kind: str | None = None, transport: str | None = None) -> int:
        """How often was asked."""
        with self.changed:
            return sum(
                (name is None or asked.name == name)
                and (kind is None or asked.kind == kind)
                and (transport is None or asked.transport == transport)
                for asked in self.asked
            )

    def wait(self, count: int, name: str, kind: str = "A", deadline: float = DEADLINE) -> None:
        """Waits until a name was asked for so often."""
        with self.changed:
            enough = lambda: sum(q.name == name and q.kind == kind for q in self.asked) >= count
            if not self.changed.wait_for(enough, deadline):
                raise Late(f"{name} was not asked for {count} times: {self.asked}")

    def stop(self) -> None:
        self.stopped = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wake:
            wake.sendto(b"\0" * 12, ("127.0.0.1", self.port))
        try:
            self.tcp.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.tcp.close()
        self.threads[0].join(DEADLINE)
        self.udp.close()
        if self.errors:
            raise self.errors[0]
