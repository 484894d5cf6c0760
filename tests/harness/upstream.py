"""A scripted server: keeps the bytes it was sent, answers what the test says, when it says.

A handler is called with each connection's wire in a thread of its own; when it returns, the
connection is closed. `answering` and `script` make handlers.
"""

import socket
import threading
import time
from collections.abc import Callable

from .ports import free_port
from .wire import DEADLINE, Late, Request, Wire, WireError

Handler = Callable[["ServerWire"], None]


class ServerWire(Wire):
    """A connection the proxy made; its requests are noted in arrival order."""

    def __init__(self, sock: socket.socket, upstream: "Upstream"):
        super().__init__(sock)
        self.upstream = upstream

    def read_request(self) -> Request:
        request = super().read_request()
        self.upstream.note(request)
        return request


class Upstream:
    """Handlers are used up one per connection; the last one stays for all further connections."""

    def __init__(self, *handlers: Handler, path: str | None = None, backlog: int = 511):
        self.handlers = handlers
        self.connections: list[ServerWire] = []
        self.addresses: list[tuple] = []
        self.requests: list[Request] = []
        self.errors: list[BaseException] = []
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []
        if path:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(path)
            self.address = f"unix:{path}"
        else:
            self.listener = socket.socket()
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.port = free_port()
            self.listener.bind(("127.0.0.1", self.port))
            self.address = f"127.0.0.1:{self.port}"
        self.listener.listen(backlog)
        self._start(self._accept)

    def _start(self, target: Callable, *args) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self.listener.accept()
            except OSError:
                return
            with self.changed:
                wire = ServerWire(sock, self)
                handler = self.handlers[min(len(self.connections), len(self.handlers) - 1)]
                self.connections.append(wire)
                self.addresses.append(peer)
                self.changed.notify_all()
            self._start(self._serve, handler, wire)

    def _serve(self, handler: Handler, wire: ServerWire) -> None:
        try:
            handler(wire)
        except (WireError, OSError):
            pass  # The proxy went away: what that means is for the test to say.
        except BaseException as error:
            self.errors.append(error)
        finally:
            wire.close()

    def note(self, request: Request) -> None:
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()

    def _wait(self, list_: list, count: int, what: str):
        with self.changed:
            if not self.changed.wait_for(lambda: len(list_) >= count, DEADLINE):
                raise Late(f"{count} {what} awaited, {len(list_)} came")
            return list_[count - 1]

    def request(self, number: int = 1) -> Request:
        """Waits for the n-th request, counted from 1 over all connections."""
        return self._wait(self.requests, number, "requests")

    def connection(self, number: int = 1) -> ServerWire:
        """Waits for the n-th connection."""
        return self._wait(self.connections, number, "connections")

    def peers(self, port: bool = False) -> list[str]:
        """Where the connections came from, with or without the port."""
        return [f"{peer[0]}:{peer[1]}" if port else peer[0] for peer in self.addresses]

    def stop(self) -> None:
        # shutdown wakes the accept; close alone would not.
        try:
            self.listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.listener.close()
        for wire in self.connections:
            try:
                wire.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        until = time.monotonic() + DEADLINE
        for thread in self.threads:
            thread.join(max(0, until - time.monotonic()))
        if self.errors:
            raise self.errors[0]


def answering(answer: bytes | Callable[[Request], bytes]) -> Handler:
    """Answers request after request, until the proxy closes."""

    def handler(wire: ServerWire) -> None:
        while True:
            request = wire.read_request()
            wire.send(answer if isinstance(answer, bytes) else answer(request))

    return handler


def script(*steps: Callable[[ServerWire], object]) -> Handler:
    """Takes these steps on each connection, then closes it."""

    def handler(wire: ServerWire) -> None:
        for step in steps:
            step(wire)

    return handler


# Steps.


def request(wire: ServerWire) -> None:
    wire.read_request()


def head(wire: ServerWire) -> None:
    wire.read_head()


def send(data: bytes) -> Callable[[ServerWire], None]:
    return lambda wire: wire.send(data)


def pause(seconds: float) -> Callable[[ServerWire], None]:
    return lambda wire: time.sleep(seconds)


def until(event: threading.Event) -> Callable[[ServerWire], None]:
    def step(wire: ServerWire) -> None:
        assert event.wait(DEADLINE), "the test never let the upstream go on"

    return step


def to_end(wire: ServerWire) -> None:
    wire.read_to_end()


def close(wire: ServerWire) -> None:
    wire.close()


def reset(wire: ServerWire) -> None:
    wire.reset()


# Responses.


def response(body: bytes = b"", *fields: str, status: str = "200 OK") -> bytes:
    """A response with Content-Length."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + end
