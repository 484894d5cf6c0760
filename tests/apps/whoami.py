"""Tells what it was asked, and which of several it is: NAME of the environment."""

import os

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.route("/", defaults={"path": ""}, methods=["GET", "POST"])
@app.route("/<path:path>", methods=["GET", "POST"])
def whoami(path):
    return jsonify(
        name=os.environ.get("NAME"),
        method=request.method,
        target=request.environ["RAW_URI"],
        headers=dict(request.headers),
        body=request.get_data(as_text=True),
    )
