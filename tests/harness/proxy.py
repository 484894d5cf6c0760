"""The binary under test, run with a configuration in a folder of its own."""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .ports import free_port
from .seccomp import deny_io_uring
from .wire import DEADLINE, Late, Response, Wire, connect

# Debian's nginx is built with absolute paths: these bring it back under the prefix. They come on the
# line of `http {`, so that line numbers stay what they are.
DEBIAN_PATHS = (
    " client_body_temp_path client_body_temp; proxy_temp_path proxy_temp; uwsgi_temp_path uwsgi_temp;"
    " fastcgi_temp_path fastcgi_temp; scgi_temp_path scgi_temp;"
)


def eventually(condition: Callable[[], object], what: str, deadline: float = DEADLINE):
    """Polls until `condition` holds (is true, does not raise); answers its value."""
    until = time.monotonic() + deadline
    while True:
        try:
            if value := condition():
                return value
            error = None
        except (AssertionError, OSError) as failed:
            error = failed
        if time.monotonic() > until:
            raise Late(f"not in {deadline} s: {what}") from error
        time.sleep(0.01)


class Binary:
    """The program: ringx, or an nginx to check the tests against."""

    def __init__(self, path: Path, without_io_uring: bool = False):
        self.path = path
        self.without_io_uring = without_io_uring
        # `nginx version: nginx/1.22.1` or `nginx version: ringx/0.1.0`
        told = self.run("-v").stderr
        match = re.match(r"nginx version: (\w+)/(\S+)", told)
        assert match, f"{path} -v says {told!r}"
        self.name, self.version = match.groups()
        self.is_nginx = self.name == "nginx"

    @property
    def product(self) -> str:
        """As in `Server` and at the foot of the built-in pages."""
        return f"{self.name}/{self.version}"

    def run(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.path, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            **options,
        )


class Refused(RuntimeError):
    """The program does not know, or does not have, this directive."""

    def __init__(self, directive: str, text: str):
        super().__init__(text)
        self.directive = directive


class Proxy:
    """In `text`, `@port@` (`@port_b@`, …) stands for a free port, another `@name@` for a given value."""

    def __init__(
        self, binary: Binary, prefix: Path, text: str, shards_by_default: bool = False, **values: object
    ):
        self.binary = binary
        self.text = text
        self.shards_by_default = shards_by_default
        self.prefix = prefix
        self.values = {name: str(value) for name, value in values.items()}
        self.process: subprocess.Popen | None = None
        self.started = False
        self.wires: list[Wire] = []
        self.expected_alerts: list[str] = []
        self.conf = prefix / "conf" / "nginx.conf"
        self.conf.parent.mkdir(parents=True, exist_ok=True)
        (prefix / "logs").mkdir(exist_ok=True)
        (prefix / "html").mkdir(exist_ok=True)
        self.write(text)

    def write(self, text: str) -> None:
        """Sets the configuration; the ports stay what they are."""
        self.conf.write_text(self.fill(text))

    def fill(self, text: str) -> str:
        if self.binary.is_nginx:
            log = "" if "access_log" in text else " access_log logs/access.log;"
            text = re.sub(r"(?m)^(\s*http\s*\{)", lambda m: m[1] + DEBIAN_PATHS + log, text, count=1)

        def value(match: re.Match) -> str:
            name = match[1]
            if name not in self.values:
                assert name.startswith("port"), f"no value for @{name}@"
                self.values[name] = str(free_port())
            return self.values[name]

        return re.sub(r"@([a-z][a-z_0-9]*)@", value, text)

    @property
    def port(self) -> int:
        return int(self.values["port"])

    def ports(self) -> list[int]:
        return [int(value) for name, value in self.values.items() if name.startswith("port")]

    # Running.

    def arguments(self) -> list[str]:
        user = "user root; " if os.geteuid() == 0 else ""
        # As many as nginx has by default, for what each worker counts by itself; the examples, which are
        # used as they are, run on as many as the program chooses.
        one = "" if self.shards_by_default or "worker_processes" in self.text else "worker_processes 1; "
        main = f"{user}{one}daemon off; pid logs/nginx.pid; error_log logs/error.log info;"
        return ["-p", f"{self.prefix}/", "-c", str(self.conf), "-e", "logs/error.log", "-g", main]

    def start(self) -> "Proxy":
        self.stderr = self.prefix / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [self.binary.path, *self.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                cwd=self.prefix,
                preexec_fn=deny_io_uring if self.binary.without_io_uring else None,
            )
        try:
            eventually(self._is_up, f"{self.binary.path} listens")
        except BaseException:
            self._kill()
            raise
        self.started = True
        return self

    def _is_up(self) -> bool:
        if self.process.poll() is not None:
            told = self.stderr.read_text()
            if match := re.search(
                r'\[emerg\] (?:unknown directive "(\w+)"|"(\w+)" directive is not supported).*', told
            ):
                raise Refused(match[1] or match[2], match[0])
            raise RuntimeError(f"ended with {self.process.returncode}: {told}")
        for port in self.ports():
            socket.create_connection(("127.0.0.1", port), 1).close()
        return (self.prefix / "logs/nginx.pid").exists()

    @property
    def pid(self) -> int:
        return self.process.pid

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def reload(self, text: str) -> None:
        """Has it take another configuration, and waits until new connections are served with that: it
        turns `server_tokens` off, which the one before does not."""
        self.write(text)
        self.signal(signal.SIGHUP)
        plain = "nginx" if self.binary.is_nginx else "ringx"
        eventually(lambda: self.get("/").get("Server") == plain, "the new configuration serves")

    def wait(self, deadline: float = DEADLINE) -> int:
        """The exit code."""
        try:
            return self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise Late(f"still running after {deadline} s; error log:\n{self.error_log()}") from None

    def stop(self) -> None:
        """QUIT must end it, with 0, and without a cry in the log."""
        for wire in self.wires:
            wire.close()
        if not self.started:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGQUIT)
            try:
                self.wait()
            except Late:
                self._kill()
                raise
        assert self.process.returncode == 0, f"exit code {self.process.returncode}\n{self.error_log()}"
        output = self.stderr.read_text(errors="replace")
        assert "panicked" not in output, output
        for line in self.error_log().splitlines():
            loud = re.search(r"\[(alert|emerg)\]|panicked", line)
            assert not loud or any(text in line for text in self.expected_alerts), line

    def _kill(self) -> None:
        if self.process.poll() is not None:
            return
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        for pid in [*workers, self.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(DEADLINE)

    # Talking to it.

    def connect(self, port: int | None = None, **options) -> Wire:
        """A client's connection, closed with the proxy at the latest."""
        wire = connect(("127.0.0.1", port or self.port), **options)
        self.wires.append(wire)
        return wire

    def ask(self, request: bytes | str, port: int | None = None, method: str | None = None) -> Response:
        """Sends these bytes on a new connection and reads one response."""
        data = request.encode("latin-1") if isinstance(request, str) else request
        with self.connect(port) as wire:
            wire.send(data)
            return wire.read_response(method or data.split(b" ")[0].decode())

    def get(
        self,
        target: str,
        *fields: str,
        method: str = "GET",
        body: bytes | None = None,
        host: str = "example.com",
        port: int | None = None,
    ) -> Response:
        """One request on a connection of its own."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        return self.ask("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""), port)

    # Its logs.

    def log(self, name: str) -> str:
        path = self.prefix / "logs" / name
        return path.read_text(errors="surrogateescape") if path.exists() else ""

    def error_log(self) -> str:
        return self.log("error.log")

    def logged(self, text: str) -> str:
        """Waits for a line of the error log that holds `text`; answers the line."""

        def find() -> str | None:
            return next((line for line in self.error_log().splitlines() if text in line), None)

        try:
            return eventually(find, f"error log says {text!r}")
        except Late as late:
            raise Late(f"{late}; it says:\n{self.error_log()}") from None

    def accessed(self, count: int = 1, name: str = "access.log") -> list[str]:
        """Waits for so many lines of the access log; answers all that are there."""

        def lines() -> list[str] | None:
            text = self.log(name)
            found = text.splitlines() if text.endswith("\n") else []
            return found if len(found) >= count else None

        return eventually(lines, f"{count} lines in {name}: {self.log(name)!r}")
