"""The real servers, each a child process that lives for the whole session."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from .ports import free_port
from .proxy import eventually

TESTS = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("RINGX_TEST_TARGET", TESTS.parent / "target"))
NODE_MODULES = TARGET / "node" / "node_modules"
# Beside the newer one of the virtual environment, which scripts/test puts it in.
GUNICORN_26 = Path(sys.prefix) / "gunicorn-26"


class Server:
    """`port` is what it listens on, `path` its unix socket if it has one."""

    def __init__(self, folder: Path, command: list[str | Path], port: int, path: Path | None = None):
        self.port, self.path = port, path
        self.address = f"127.0.0.1:{port}"
        self.log = folder / "server.log"
        self.interrupted = False
        environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment |= {"NODE_PATH": str(NODE_MODULES), "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=folder,
            )
        try:
            eventually(self._is_up, f"{command[0]} listens", 30)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}\n{self.log.read_text()}") from None

    def _is_up(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.process.args} ended:\n{self.log.read_text()}")
        socket.create_connection(("127.0.0.1", self.port), 1).close()
        return self.path is None or self.path.exists()

    def interrupt(self) -> None:
        """Tells it to end. uWSGI takes TERM for a reload; INT ends it, and all others here."""
        if not self.interrupted and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.interrupted = True

    def stop(self) -> None:
        self.interrupt()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def python_echo(folder: Path) -> Server:
    port = free_port()
    return Server(folder, [sys.executable, TESTS / "servers/ws_echo.py", port], port)


def node_echo(folder: Path) -> Server:
    port = free_port()
    return Server(folder, ["node", TESTS / "servers/ws_echo.cjs", port], port)


def uwsgi(folder: Path, app: str, processes: int, *options: str) -> Server:
    """pyuwsgi on a TCP and a unix socket; `app` is module:callable in tests/apps."""
    return _uwsgi(folder, [Path(sys.executable).parent / "pyuwsgi"], app, processes, options)


def system_uwsgi(folder: Path, app: str, processes: int, *options: str) -> Server:
    """The distribution's uWSGI: with TLS, and so with WebSocket, but without the packages of the venv."""
    return _uwsgi(folder, ["uwsgi", "--plugin", "python3"], app, processes, options)


def _uwsgi(folder: Path, program: list[str | Path], app: str, processes: int, options: tuple[str, ...]) -> Server:
    port, path = free_port(), folder / "u.sock"
    command = [*program, "--socket", f"127.0.0.1:{port}", "--socket", path, "--chmod-socket=666"]
    command += ["--chdir", TESTS / "apps", "--module", app, "--need-app", "--master"]
    command += ["--processes", processes, "--disable-logging", "--die-on-term", *options]
    return Server(folder, command, port, path)


def gunicorn(folder: Path, app: str, worker: str = "gthread", *options: str, before: tuple = ()) -> Server:
    """Two workers of this kind; `before` is what the command begins with."""
    port, path = free_port(), folder / "g.sock"
    command = [*before, sys.executable, "-m", "gunicorn", "--protocol", "uwsgi", "--no-control-socket"]
    command += ["-b", f"127.0.0.1:{port}", "-b", f"unix:{path}", "-w", "2", "-k", worker]
    command += ["--graceful-timeout", "0", *options, "--chdir", TESTS / "apps", app]
    return Server(folder, command, port, path)


def gunicorn_26(folder: Path, app: str) -> Server:
    """The last one that sends a response without Content-Length in chunks."""
    return gunicorn(folder, app, "gthread", "--threads", "4", before=("env", f"PYTHONPATH={GUNICORN_26}"))


def gunicorn_http(folder: Path, app: str, *options: str) -> Server:
    """The application by plain HTTP, in one process with many threads."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", f"127.0.0.1:{port}"]
    command += ["-w", "1", "-k", "gthread", "--threads", "16", "--graceful-timeout", "1"]
    return Server(folder, [*command, *options, "--chdir", TESTS / "apps", app], port)


def jupyter(folder: Path, token: str) -> Server:
    """A Jupyter server with terminals; all that it writes is in its folder."""
    port = free_port()
    (folder / "notebooks").mkdir()
    command = ["env", f"HOME={folder}", "SHELL=/bin/sh", sys.executable, "-m", "jupyter_server"]
    command += ["--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"]
    command += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}/notebooks"]
    command += [f"--IdentityProvider.token={token}", "--ServerApp.allow_remote_access=True"]
    return Server(folder, command, port)


def home_assistant(folder: Path) -> Server:
    port = free_port()
    return Server(folder, [sys.executable, TESTS / "servers/home_assistant.py", port], port)


def socketio(folder: Path, name: str) -> Server:
    port = free_port()
    return Server(folder, ["node", TESTS / "servers/socketio.cjs", port, name], port)
