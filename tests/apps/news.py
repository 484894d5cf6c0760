"""Server-sent events: what is posted to /publish reaches every reader, also one that was away for a while."""

import threading

from flask import Flask, Response, request

app = Flask(__name__)
changed = threading.Condition()
news: list[str] = []
drops = 0

PAGE = """<!doctype html><title>News</title>
<p id="state"></p><p id="opened">0</p><p id="news"></p>
<script>
const shown = (id) => document.getElementById(id);
const source = new EventSource("/events");
source.onopen = () => { shown("state").textContent = "open"; shown("opened").textContent++; };
source.onerror = () => { shown("state").textContent = "away"; };
source.onmessage = (event) => { shown("news").textContent += `${event.lastEventId}:${event.data};`; };
</script>
"""


def since(last: int):
    """The events after this one; ends when it is dropped, breathes when nothing happens."""
    dropped = drops
    yield "retry: 50\n\n"
    while True:
        with changed:
            if len(news) <= last and drops == dropped:
                changed.wait(5)
            fresh, ended = news[last:], drops != dropped
        if ended:
            return
        for text in fresh:
            last += 1
            yield f"id: {last}\ndata: {text}\n\n"
        if not fresh:
            yield ": still here\n\n"


@app.get("/")
def page():
    return PAGE


@app.get("/events")
def events():
    last = int(request.headers.get("Last-Event-ID", len(news)))
    return Response(since(last), mimetype="text/event-stream", headers={"Cache-Control": "no-cache"})


@app.get("/stream")
def stream():
    answer = events()
    answer.headers["X-Accel-Buffering"] = "no"
    return answer


@app.post("/publish")
def publish():
    with changed:
        news.append(request.get_data(as_text=True))
        changed.notify_all()
    return str(len(news))


@app.post("/drop")
def drop():
    global drops
    with changed:
        drops += 1
        changed.notify_all()
    return "dropped"
