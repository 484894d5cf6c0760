"""What only an application of uWSGI's own can do: read a body's chunks, and be killed for being slow."""

import hashlib
import json
import time

import uwsgi


def application(env, start_response):
    start, answer = {"/chunks": chunks, "/hang": hang, "/raise": fail}[env["PATH_INFO"]](env)
    start_response(start, [("Content-Length", str(len(answer)))])
    return [answer]


def chunks(env):
    pieces = []
    while piece := uwsgi.chunked_read(10):
        pieces.append(piece)
    body = b"".join(pieces)
    told = {"length": len(body), "sha256": hashlib.sha256(body).hexdigest(), "pieces": len(pieces)}
    told |= {"coding": env.get("HTTP_TRANSFER_ENCODING"), "content_length": env.get("CONTENT_LENGTH")}
    return "200 OK", json.dumps(told).encode()


def hang(env):
    time.sleep(60)
    return "200 OK", b""


def fail(env):
    raise RuntimeError("before any answer")
