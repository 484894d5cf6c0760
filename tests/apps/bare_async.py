"""bare.py for an ASGI server: the same pages, as far as they make sense there."""

import hashlib
import json
from urllib.parse import parse_qs

from cues import cues_async

BLOCK = bytes(range(256)) * 256


async def application(scope, receive, send):
    if scope["type"] == "lifespan":
        return await lifespan(receive, send)
    page, _, argument = scope["path"][1:].partition("/")
    query = {key: value for key, (value, *_) in parse_qs(scope["query_string"].decode()).items()}
    await PAGES[page](receive, send, argument, query)


async def lifespan(receive, send):
    for _ in range(2):
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


async def start(send, status=200, **fields):
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def write(send, body, more=False):
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def hello(receive, send, argument, query):
    await start(send, content_type="text/plain", content_length="6")
    await write(send, b"hello\n")


async def status(receive, send, argument, query):
    await start(send, int(argument), x_from="application")
    await write(send, b"")


async def upload(receive, send, argument, query):
    digest, length, more = hashlib.sha256(), 0, True
    while more:
        message = await receive()
        piece, more = message.get("body", b""), message.get("more_body", False)
        digest.update(piece)
        length += len(piece)
    body = json.dumps({"length": length, "sha256": digest.hexdigest()}).encode()
    await start(send, content_type="application/json", content_length=str(len(body)))
    await write(send, body)


async def download(receive, send, argument, query):
    size = int(argument)
    await start(send, content_type="application/octet-stream")
    for at in range(0, size, len(BLOCK)):
        await write(send, BLOCK[: min(len(BLOCK), size - at)], more=True)
    await write(send, b"")


async def events(receive, send, argument, query):
    await start(send, content_type="text/event-stream", x_accel_buffering="no")
    async for cue in cues_async(int(query["cue"])):
        await write(send, f"data: {cue}\n\n".encode(), more=True)
    await write(send, b"")


async def held(receive, send, argument, query):
    async for _ in cues_async(int(query["cue"])):
        pass
    await hello(receive, send, argument, query)


PAGES = {"": hello, "status": status, "upload": upload, "download": download, "events": events, "held": held}
