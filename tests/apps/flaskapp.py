"""Flask behind uwsgi: what an application does with requests, bodies and long answers."""

import hashlib
import os
import signal

from cues import cues
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
BLOCK = bytes(range(256)) * 256


@app.get("/")
def hello():
    return f"hello {request.args.get('name', 'world')}"


@app.post("/form")
def form():
    return jsonify(request.form.to_dict())


@app.post("/file")
def file():
    content = request.files["file"].read()
    return jsonify(
        name=request.files["file"].filename,
        text=request.form["text"],
        length=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


@app.post("/upload")
def upload():
    digest, length = hashlib.sha256(), 0
    while piece := request.stream.read(65536):
        digest.update(piece)
        length += len(piece)
    return jsonify(length=length, sha256=digest.hexdigest())


@app.get("/download/<int:size>")
def download(size):
    blocks = (BLOCK[: min(len(BLOCK), size - at)] for at in range(0, size, len(BLOCK)))
    return Response(blocks, mimetype="application/octet-stream", headers={"Content-Length": str(size)})


@app.get("/stream/<int:count>")
def stream(count):
    lines = (f"line {number}\n" for number in range(count))
    return Response(lines, mimetype="text/plain", headers={"X-Accel-Buffering": "no"})


@app.get("/events")
def events():
    lines = (f"data: {cue}\n\n" for cue in cues(int(request.args["cue"])))
    return Response(lines, mimetype="text/event-stream", headers={"X-Accel-Buffering": "no"})


@app.post("/refuse")
def refuse():
    return "this is too large\n", 413


@app.get("/raise")
def raise_():
    raise RuntimeError("on purpose")


@app.get("/who")
def who():
    return jsonify(
        pid=os.getpid(),
        remote=request.remote_addr,
        scheme=request.scheme,
        host=request.host,
        url=request.url,
        path=request.path,
        agent=request.headers.get("User-Agent"),
    )


@app.get("/die")
def die():
    os.kill(os.getpid(), signal.SIGKILL)
