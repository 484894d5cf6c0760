"""Counts over all processes of the server how many requests are worked on at the same time."""

import multiprocessing
import time

from cues import cues

# Made before the server forks, so all workers have the same.
lock = multiprocessing.Lock()
busy = multiprocessing.Value("i", 0, lock=False)
most = multiprocessing.Value("i", 0, lock=False)


def application(env, start_response):
    body = b"done"
    if env["PATH_INFO"] == "/most":
        with lock:
            body = b"%d" % most.value
            most.value = 0
    else:
        with lock:
            busy.value += 1
            most.value = max(most.value, busy.value)
        work(env)
        with lock:
            busy.value -= 1
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def work(env):
    """For 10 ms; or until the cues on the port of the query end."""
    if not env["QUERY_STRING"]:
        time.sleep(0.01)
        return
    for _ in cues(int(env["QUERY_STRING"])):
        pass
