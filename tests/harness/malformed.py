"""What a proxy makes of malformed messages, as one line of text that a table can hold.

The same code asks ringx, nginx and HAProxy: each stands in front of a recording server that reads as
the strictest of servers would, so that whatever two parsers could take for two things is an error here.
"""

import re
import subprocess
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .packet import read_body, read_packet
from .ports import free_port
from .proxy import Binary, Proxy, eventually
from .upstream import ServerWire, Upstream
from .wire import Closed, Head, Late, Wire, connect

HAPROXY = Path("/usr/sbin/haproxy")
# Comes behind each request of the table: it is answered if, and only if, it is clear where that ends.
BEHIND = b"GET /behind HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
MARK = b"<>"
# What proxies add or say differently, and what carries nothing here.
UNSAID = {"host: h", "x-host: h", "connection: keep-alive", "connection: close"}
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class Row:
    """A message, and what comes of it.

    `got` for a request: the statuses of the answers (`close` if there is none), `+` if what came behind
    was served too, and each request that the server was sent. For a response: the answer that the client
    gets, and whether the connection to the server was used again. `but` tells where another program, or
    another protocol, differs.
    """

    name: str
    raw: bytes
    got: str
    but: dict[str, str]
    # The peer ends behind the message: nothing else comes.
    ends: bool
    why: str

    def expected(self, is_nginx: bool, is_uwsgi: bool = False) -> str:
        got = self.but.get("uwsgi", self.got) if is_uwsgi else self.got
        if not is_nginx:
            return got
        if is_uwsgi:
            # It keeps no connections to uwsgi servers.
            return self.but.get("nginx uwsgi", got.removesuffix(" & reused"))
        return self.but.get("nginx", got)


def table(title: str, why: str, form: bytes, *rows: tuple, ends: bool = False) -> list[Row]:
    """Rows of one form: `(what stands for <> in it, got)`, or `(…, got, but)`."""
    made = []
    for value, got, *but in rows:
        name = f"{title}: {text(value)}"
        made.append(Row(name, form.replace(MARK, value), got, but[0] if but else {}, ends, why))
    return made


def shorten(value: bytes) -> bytes:
    return value if len(value) <= 160 else b"%s...(%d)" % (value[:60], len(value))


def text(value: bytes | str) -> str:
    """Printable, on one line, not long."""
    value = value.encode("latin-1") if isinstance(value, str) else value
    return shorten(value).decode("latin-1").encode("unicode_escape").decode()


def brief(line: str) -> str:
    return line if len(line) <= 300 else f"{line[:100]}...({len(line)})"


def by_name(tables: Iterable[list[Row]]) -> dict[str, Row]:
    """By their names, which must be different."""
    rows = [row for rows in tables for row in rows]
    found = {row.name: row for row in rows}
    assert len(found) == len(rows), [row.name for row in rows if found[row.name] is not row]
    return found


def told(head: Head, unsaid: Iterable[str] = UNSAID) -> list[str]:
    lines = (f"{name}: {value}" for name, value in head.fields)
    return [text(line) for line in lines if line.lower() not in unsaid]


def strict(head: Head) -> None:
    """Says what a second parser could stumble over."""
    assert not re.search(rb"[\r\n]", head.raw.replace(b"\r\n", b"")), f"lone CR or LF: {head.raw!r}"
    assert b"\0" not in head.raw, f"NUL: {head.raw!r}"
    assert all(TOKEN.fullmatch(name) for name in head.names()), f"no token: {head.raw!r}"
    assert len(head.all("Content-Length") + head.all("Transfer-Encoding")) <= 1, f"two lengths: {head.raw!r}"
    for value in head.all("Content-Length"):
        assert re.fullmatch(r"0|[1-9][0-9]*", value), f"odd length: {head.raw!r}"
    for value in head.all("Transfer-Encoding"):
        assert value == "chunked", f"odd coding: {head.raw!r}"


class Recorder(Upstream):
    """Keeps a line of text of each request, and what is wrong with it."""

    def __init__(self):
        self.seen: list[str] = []
        self.faults: list[str] = []
        super().__init__(self.record)

    def record(self, wire: ServerWire) -> None:
        while True:
            try:
                head = wire.read_head()
                strict(head)
                assert re.fullmatch(r"[A-Z_-]+ [^ ]+ HTTP/1\.1", head.start), f"odd request line: {head.raw!r}"
            except Closed:
                # What is no head was not sent by mistake.
                if wire.unread:
                    self.faults.append(f"no head: {bytes(wire.unread)!r}")
                return
            except Late:
                return
            except AssertionError as error:
                self.faults.append(str(error))
                return
            body = b""
            if head.get("Transfer-Encoding"):
                body = b"".join(wire.read_chunked()[0])
            elif length := head.get("Content-Length"):
                body = wire.read_exactly(int(length))
            parts = [text(head.start.removesuffix(" HTTP/1.1")), *told(head), *([text(body)] if body else [])]
            self.seen.append(brief("; ".join(parts)))
            wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def ask(port: int, recorder: Recorder, row: Row, patience: float = 3) -> str:
    """Sends a malformed request, and something behind it."""
    before = len(recorder.seen)
    with connect(("127.0.0.1", port), patience) as wire:
        try:
            wire.send(row.raw if row.ends else row.raw + BEHIND)
            if row.ends:
                wire.finish()
        except OSError:
            pass  # Refused before its end.
        statuses = []
        try:
            while True:
                statuses.append(str(wire.read_response().status))
        except Closed:
            if wire.unread:
                statuses.append("0.9")
        except Late:
            statuses.append("waits")
        except ValueError:
            statuses.append("0.9")
    seen = recorder.seen[before:]
    got = " ".join(statuses) or "close"
    if seen and seen[-1] == "GET /behind" and len(statuses) > 1:
        got, seen = " ".join(statuses[:-1]) + "+", seen[:-1]
    return " < ".join([got, *seen])


# Responses.


class Teller(Upstream):
    """Answers `/N` with the response of row N, anything else properly; by HTTP, or by uwsgi."""

    def __init__(self, rows: list[Row], is_uwsgi: bool):
        self.rows = rows
        self.is_uwsgi = is_uwsgi
        # Target and number of the connection.
        self.asked: list[tuple[str, int]] = []
        super().__init__(self.tell)

    def tell(self, wire: ServerWire) -> None:
        while True:
            if self.is_uwsgi:
                packet = read_packet(wire)
                read_body(wire, packet)
                target = packet.get("REQUEST_URI")
            else:
                target = wire.read_request().target
            self.asked.append((target, self.connections.index(wire)))
            if not target[1:].isdigit():
                wire.send(b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 4\r\n\r\nnext")
                continue
            row = self.rows[int(target[1:])]
            wire.send(row.raw)
            if row.ends:
                # FIN, not RST: the rest of the request is not of interest, but is read.
                wire.finish()


UNTOLD = ("server: ", "date: ", "connection: ", "content-type: text/html", "cache-control: no-cache")


def answered(wire: Wire, method: str = "GET") -> str:
    """One response as text: status line, fields, body. `raw` if it is none, `cut` if it has no end."""
    try:
        raw = wire.read_until(b"\r\n\r\n")
    except Closed:
        return f"raw {text(bytes(wire.unread[:24]))}" if wire.unread else "close"
    except Late:
        return "waits"
    if not re.match(rb"HTTP/1\.1 [0-9]{3}[ .\r]", raw) or re.search(rb"[\r\n\0]", raw.replace(b"\r\n", b"")):
        return f"raw {text(raw[:24])}"
    head = Head.parse(raw)
    for name in ("Content-Length", "Transfer-Encoding"):
        assert len(head.all(name)) <= 1, f"two lengths: {raw!r}"
    parts = [text(head.start.split(" ", 1)[1])]
    parts += [line for line in told(head) if not line.lower().startswith(UNTOLD)]
    code = int(head.start.split(" ")[1][:3])
    body, end = b"", ""
    try:
        if method == "HEAD" or code in (204, 304):
            pass
        elif 100 <= code < 200:
            body = wire.read_to_end()
        elif head.get("Transfer-Encoding"):
            while size := int(wire.read_until(b"\r\n"), 16):
                body += wire.read_exactly(size)
                assert wire.read_exactly(2) == b"\r\n"
            wire.read_until(b"\r\n")
        elif (length := head.get("Content-Length")) is not None:
            body = wire.read_exactly(int(length))
        else:
            body = wire.read_to_end()
    except Closed:
        body, end = body + bytes(wire.unread), "cut"
    except Late:
        end = "waits"
    if code in (502, 504):
        # A page of the proxy's own.
        return str(code)
    return brief("; ".join([*parts, *([text(body)] if body else []), *([end] if end else [])]))


def relay(port: int, teller: Teller, number: int, method: str = "GET", patience: float = 3) -> str:
    """Has the server tell a row, then asks for something else."""
    request = "%s %s HTTP/1.1\r\nHost: h\r\n\r\n"
    with connect(("127.0.0.1", port), patience) as wire:
        wire.send(request % (method, f"/{number}"))
        got = answered(wire, method)
    with connect(("127.0.0.1", port), 3) as wire:
        wire.send(request % ("GET", "/next"))
        # Poisoned, or what the row left over.
        follows = answered(wire)
        assert follows.lower() == "200 ok; content-length: 4; next", follows
    connections = dict(teller.asked)
    used = connections[f"/{number}"] == connections["/next"]
    return f"{got} & reused" if used else got


REQUESTS = """
events { }
http {
    access_log off;
    client_header_timeout 2s;
    client_body_timeout 2s;
    lingering_time 300ms;
    lingering_timeout 100ms;
    upstream u { server @server@; keepalive 4; }
    server {
        listen 127.0.0.1:@port@;
        server_name h;
        location / {
            proxy_pass http://u;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Host $http_host;
        }
        location = /own { return 200 own; }
    }
}
"""
RESPONSES = """
events { }
http {
    access_log off;
    proxy_read_timeout 500ms;
    uwsgi_read_timeout 500ms;
    upstream u { server @server@ max_fails=0; keepalive 4; }
    server { listen 127.0.0.1:@port@; location / { @pass@ } }
}
"""


def in_front_of_recorder(binary: Binary, folder: Path, recorder: Recorder) -> Proxy:
    return Proxy(binary, folder, REQUESTS, server=recorder.address).start()


def in_front_of_teller(binary: Binary, folder: Path, teller: Teller) -> Proxy:
    """Connections to uwsgi servers are kept by ringx alone."""
    if teller.is_uwsgi:
        kept = "" if binary.is_nginx else "uwsgi_keepalive assume;"
        pass_ = f"uwsgi_pass u; uwsgi_param REQUEST_URI $request_uri; uwsgi_param REQUEST_METHOD $request_method; {kept}"
    else:
        pass_ = 'proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection "";'
    text = RESPONSES.replace("@pass@", pass_)
    return Proxy(binary, folder, text, server=teller.address).start()


class Haproxy:
    """A minimal one, in front of one server."""

    def __init__(self, folder: Path, server: str):
        self.port = free_port()
        self.conf = folder / "haproxy.cfg"
        self.conf.write_text(
            f"""
global
    maxconn 200
defaults
    mode http
    timeout connect 2s
    timeout client 2s
    timeout server 2s
    timeout http-request 1s
    http-reuse always
frontend f
    bind 127.0.0.1:{self.port}
    default_backend b
backend b
    server s {server}
"""
        )
        self.process = subprocess.Popen(
            [HAPROXY, "-db", "-f", self.conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(lambda: connect(("127.0.0.1", self.port)).close() is None, "HAProxy listens")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()
