"""A real browser, for what only browsers do."""

import json
import subprocess
import urllib.request
from pathlib import Path

from .ports import free_port
from .proxy import eventually


class Browser:
    """Headless Chromium by the plain WebDriver protocol."""

    def __init__(self, folder: Path):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        with (folder / "chromedriver.log").open("wb") as log:
            self.driver = subprocess.Popen(
                ["chromedriver", f"--port={port}"], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self.session = self.start(folder)
        except BaseException:
            self.stop()
            raise

    def start(self, folder: Path) -> str:
        eventually(lambda: self.call("GET", "/status")["ready"], "chromedriver is ready", 30)
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={folder}/profile",
        ]
        options = {"args": arguments}
        wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
        return f"/session/{self.call('POST', '/session', wanted)['sessionId']}"

    def call(self, method: str, path: str, body: object = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.call("POST", f"{self.session}/url", {"url": url})

    def text(self, element: str) -> str:
        script = {"script": "return document.getElementById(arguments[0]).textContent", "args": [element]}
        return self.call("POST", f"{self.session}/execute/sync", script)

    def stop(self) -> None:
        try:
            if hasattr(self, "session"):
                self.call("DELETE", self.session)
        finally:
            self.driver.terminate()
            self.driver.wait(10)
