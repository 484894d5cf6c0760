"""The test's end of apps/cues.py: an application at work says who it is, and waits for what it is told."""

import socket

from .ports import free_port
from .wire import DEADLINE, Late, Wire


class Actor:
    """One request at work in an application; `pid` is its process."""

    def __init__(self, sock: socket.socket):
        self.wire = Wire(sock)
        self.pid = int(self.wire.read_until(b"\n"))

    def say(self, line: str) -> None:
        self.wire.send(f"{line}\n")

    def end(self) -> None:
        self.wire.close()


class Cues:
    """Applications connect to `port`, each request once."""

    def __init__(self):
        self.port = free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
        self.listener.settimeout(DEADLINE)
        self.actors: list[Actor] = []

    def actor(self) -> Actor:
        """Waits for the next request that is at work."""
        try:
            sock, _ = self.listener.accept()
        except TimeoutError:
            raise Late(f"{len(self.actors)} requests are at work, one more was awaited") from None
        self.actors.append(Actor(sock))
        return self.actors[-1]

    def stop(self) -> None:
        self.listener.close()
        for actor in self.actors:
            actor.end()
