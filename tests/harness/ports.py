"""Ports that nobody else takes: below the range the kernel gives to outgoing connections."""

import itertools
import os
import socket

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
