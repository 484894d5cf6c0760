"""An application without a framework: what is left is how its server passes bodies, answers and accidents on.

An argument `cue` is the port on which the test gives its cues (cues.py).
"""

import hashlib
import json
from urllib.parse import parse_qs

from cues import cues

BLOCK = bytes(range(256)) * 256


def application(env, start_response):
    page, _, argument = env["PATH_INFO"][1:].partition("/")
    query = {key: value for key, (value, *_) in parse_qs(env["QUERY_STRING"]).items()}
    return PAGES[page](env, start_response, argument, query)


def hello(env, start_response, argument, query):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    return [b"hello\n"]


def protocol(env, start_response, argument, query):
    body = env.get("SERVER_PROTOCOL", "none").encode()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [body]


def status(env, start_response, argument, query):
    start_response(f"{argument} Said So", [("X-From", "application")])
    return []


def upload(env, start_response, argument, query):
    """Reads what CONTENT_LENGTH says."""
    digest, length, left = hashlib.sha256(), 0, int(env.get("CONTENT_LENGTH") or 0)
    while left and (piece := env["wsgi.input"].read(min(left, 65536))):
        digest.update(piece)
        length += len(piece)
        left -= len(piece)
    body = json.dumps({"length": length, "sha256": digest.hexdigest()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def download(env, start_response, argument, query):
    """So many bytes, the length not told."""
    size = int(argument)
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    return (BLOCK[: min(len(BLOCK), size - at)] for at in range(0, size, len(BLOCK)))


def events(env, start_response, argument, query):
    start_response("200 OK", [("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no")])
    return (f"data: {cue}\n\n".encode() for cue in cues(int(query["cue"])))


def held(env, start_response, argument, query):
    """Answers when its cues end."""
    for _ in cues(int(query["cue"])):
        pass
    return hello(env, start_response, argument, query)


def half(env, start_response, argument, query):
    """10 bytes of 20, and the rest on cue. `/half/open`: without saying how many."""
    start_response("200 OK", [] if argument == "open" else [("Content-Length", "20")])
    yield b"0123456789"
    for _ in cues(int(query["cue"])):
        pass
    yield b"0123456789"


def refuse(env, start_response, argument, query):
    """Answers without a look at the body. `/refuse/open`: the answer ends by close."""
    body = b"this is too large\n"
    start_response("413 Too Large", [] if argument == "open" else [("Content-Length", str(len(body)))])
    return [body]


def crash(env, start_response, argument, query):
    """Raises before the answer, before its first byte, or (`late`) after half of it."""
    if argument == "before":
        raise RuntimeError("on purpose")
    start_response("200 OK", [("Content-Length", "10")])
    if argument == "late":
        return late()
    raise RuntimeError("on purpose")


def late():
    yield b"01234"
    raise RuntimeError("on purpose")


PAGES = {
    "": hello,
    "protocol": protocol,
    "status": status,
    "upload": upload,
    "download": download,
    "events": events,
    "held": held,
    "half": half,
    "refuse": refuse,
    "crash": crash,
}
