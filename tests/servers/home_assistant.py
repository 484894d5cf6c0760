"""A stand-in for Home Assistant: `home_assistant.py PORT`. Its API's shapes, and nothing behind them.

GET /api/ wants a bearer's token, /api/websocket asks for it in its first message, and GET / sends the
browser to the page where one logs in, by an absolute address as behind a proxy.
"""

import asyncio
import json
import sys
from http import HTTPStatus

from websockets.asyncio.server import serve

TOKEN, VERSION = "a-long-lived-token", "2026.11.2"


def answer(connection, request):
    """Plain requests; None lets the handshake go on."""
    headers = request.headers
    if request.path == "/api/websocket":
        return None
    if request.path == "/":
        response = connection.respond(HTTPStatus.FOUND, "")
        response.headers["Location"] = f"http://{headers['Host']}/auth/authorize"
        return response
    if request.path != "/api/":
        return connection.respond(HTTPStatus.NOT_FOUND, "404: Not Found")
    if headers.get("Authorization") != f"Bearer {TOKEN}":
        return connection.respond(HTTPStatus.UNAUTHORIZED, "401: Unauthorized")
    told = {"message": "API running.", "for": headers.get("X-Forwarded-For"), "by": headers.get("X-Forwarded-Proto")}
    response = connection.respond(HTTPStatus.OK, json.dumps(told))
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = "application/json"
    return response


async def converse(socket):
    async def say(**message):
        await socket.send(json.dumps(message))

    await say(type="auth_required", ha_version=VERSION)
    first = json.loads(await socket.recv())
    if first.get("type") != "auth" or first.get("access_token") != TOKEN:
        await say(type="auth_invalid", message="Invalid access token or password")
        return
    await say(type="auth_ok", ha_version=VERSION)
    subscribers = []
    async for text in socket:
        message = json.loads(text)
        match message["type"]:
            case "ping":
                await say(id=message["id"], type="pong")
            case "subscribe_events":
                subscribers.append(message["id"])
                await say(id=message["id"], type="result", success=True, result=None)
            case "fire_event":
                event = {"event_type": message["event_type"], "data": message["event_data"], "origin": "LOCAL"}
                for number in subscribers:
                    await say(id=number, type="event", event=event)
                await say(id=message["id"], type="result", success=True, result={})
            case _:
                error = {"code": "unknown_command", "message": "Unknown command."}
                await say(id=message["id"], type="result", success=False, error=error)


async def main():
    async with serve(converse, "127.0.0.1", int(sys.argv[1]), process_request=answer) as server:
        await server.serve_forever()


try:
    asyncio.run(main())
except KeyboardInterrupt:
    pass
