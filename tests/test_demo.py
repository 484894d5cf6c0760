"""`--demo`: a hello from the uwsgi application, and the WebSocket page in a real browser."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.proxy import Binary, eventually

pytestmark = pytest.mark.ringx_only("--demo is ringx's")

PAGE, HELLO = "http://127.0.0.1:9000/", "http://127.0.0.1:7001/"


@pytest.fixture(scope="module")
def demo(binary: Binary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("demo")
    output = folder / "output"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [binary.path, "--demo", "-p", f"{folder}/"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder
        )

    def is_up() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the demo ended: {output.read_text()}")
        for port in (9000, 7001):
            socket.create_connection(("127.0.0.1", port), 1).close()
        return True

    try:
        eventually(is_up, "the demo listens")
        yield
    except BaseException:
        process.kill()
        raise
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    assert "panicked" not in output.read_text()


def test_curl_gets_a_hello(demo):
    done = subprocess.run(["curl", "-isS", "-m", "10", HELLO], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "HTTP/1.1 200 OK"
    assert done.stdout.endswith("hello world\n")


def test_the_page_shows_echoes(demo, browser):
    browser.open(PAGE)
    eventually(lambda: browser.text("status") == "open", "the WebSocket is open", 20)
    eventually(lambda: int(browser.text("echoes")) >= 3, "three echoes came back", 20)
    milliseconds, unit = browser.text("rtt").split()
    assert unit == "ms"
    assert 0 <= float(milliseconds) < 5000
