"""What the test tells an application while it works on a request: no event is made before its cue."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterator


def cues(port: int) -> Iterator[str]:
    """Says who works here; then each line that the test says, until it ends."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(b"%d\n" % os.getpid())
        with sock.makefile() as lines:
            for line in lines:
                yield line.rstrip("\n")


async def cues_async(port: int) -> AsyncIterator[str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"%d\n" % os.getpid())
    while line := await reader.readline():
        yield line.decode().rstrip("\n")
    writer.close()
