"""Ports that nobody else takes: below the range the kernel gives to outgoing connections. And what the
kernel knows of the sockets at ports."""

import itertools
import os
import socket
from pathlib import Path

TCP_SYN_SENT = 2

# Runs side by side start at different places; each of them goes round.
_FIRST, _COUNT = 10240, 20000
_next = itertools.count(os.getpid() * 97 % _COUNT)


def free_port() -> int:
    for step in itertools.islice(_next, _COUNT):
        port = _FIRST + step % _COUNT
        with socket.socket() as probe:
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def tcp_sockets() -> list[tuple[int, int, int, int]]:
    """This machine's sockets over IPv4: local port, remote port, state (`TCP_…`), bytes not yet read."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, queues, *_ = line.split()
        port = lambda address: int(address.split(":")[1], 16)
        found.append((port(local), port(remote), int(state, 16), int(queues.split(":")[1], 16)))
    return found


def connecting_to(port: int) -> set[int]:
    """The local ports of connections that are being made to this one."""
    return {local for local, remote, state, _ in tcp_sockets() if (remote, state) == (port, TCP_SYN_SENT)}
