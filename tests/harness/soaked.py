"""The HTTP server behind scripts/soak: `soaked.py PORT`. What it answers follows from the request's
number, so that whoever asks knows every byte:

    GET /get?id=N&size=S&how=length|chunked|close     the bytes of N; 304 if the client has them
    GET /get?id=N&size=S&how=…&reset=K                K of them, then a reset
    GET /events?id=N&count=C                          C events
    POST /post?id=N                                   the length and the SHA-256 of what came
"""

import asyncio
import hashlib
import random
import socket
import struct
import sys
from urllib.parse import parse_qsl, urlsplit

SIZE_MAX = 8 << 20
_STARTS = 1 << 20
_NOISE = memoryview(random.Random("soak").randbytes(SIZE_MAX + _STARTS))
CHUNK = 32 << 10
EVENT_SECONDS = 0.05


def noise(number: int, size: int) -> memoryview:
    """The bytes of this number."""
    start = number * 7919 % _STARTS
    return _NOISE[start : start + size]


def told(number: int, body: bytes) -> bytes:
    """What an upload is answered with."""
    return f"{number} {len(body)} {hashlib.sha256(body).hexdigest()}\n".encode()


def event(number: int, nth: int) -> bytes:
    return f"id: {nth}\ndata: {number}\n\n".encode()


def chunks(body: bytes, size: int) -> list[bytes]:
    """The body in chunks, and the last one."""
    pieces = [bytes(body[at : at + size]) for at in range(0, len(body), size)]
    return [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces] + [b"0\r\n\r\n"]


async def read_chunked(reader: asyncio.StreamReader, body: bytearray) -> None:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")


def read_fields(head: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the fields by their names in lower case."""
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    return first, {name.lower(): value.strip() for name, value in pairs}


def reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """One request; whether the connection can carry another."""
    first, fields = read_fields(await reader.readuntil(b"\r\n\r\n"))
    method, target, _ = first.split(" ")
    parts = urlsplit(target)
    query = dict(parse_qsl(parts.query))
    number = int(query["id"])
    body = bytearray()
    if "chunked" in fields.get("transfer-encoding", ""):
        await read_chunked(reader, body)
    else:
        body += await reader.readexactly(int(fields.get("content-length", 0)))
    if parts.path == "/post":
        response = told(number, body)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n" % (number, len(response)) + response)
    elif parts.path == "/events":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for nth in range(int(query["count"])):
            writer.write(chunks(event(number, nth), CHUNK)[0])
            await writer.drain()
            await asyncio.sleep(EVENT_SECONDS)
        writer.write(b"0\r\n\r\n")
    else:
        return await give(writer, method, number, query, fields)
    await writer.drain()
    return True


async def give(writer: asyncio.StreamWriter, method: str, number: int, query: dict, fields: dict) -> bool:
    tag = f'"{number}"'
    if fields.get("if-none-match") == tag:
        writer.write(f"HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\n\r\n".encode())
        await writer.drain()
        return True
    size, how = int(query["size"]), query["how"]
    framing = {
        "length": f"Content-Length: {size}",
        "chunked": "Transfer-Encoding: chunked",
        "close": "Connection: close",
    }[how]
    writer.write(f"HTTP/1.1 200 OK\r\nX-Id: {number}\r\nETag: {tag}\r\n{framing}\r\n\r\n".encode())
    if method == "HEAD":
        await writer.drain()
        return how != "close"
    body = noise(number, size)
    stop = int(query["reset"]) if "reset" in query else None
    if how == "chunked":
        pieces = chunks(body[:stop], CHUNK)
        if stop is not None:
            pieces.pop()
    else:
        pieces = [body[:stop][at : at + CHUNK] for at in range(0, len(body[:stop]), CHUNK)]
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
    if stop is not None:
        reset(writer)
        return False
    return how != "close"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while await answer(reader, writer):
            pass
    except (EOFError, OSError):
        pass  # The proxy went away: whether it may is for the soak to say.
    finally:
        writer.close()


async def main(port: int) -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1])))
    except KeyboardInterrupt:
        pass
