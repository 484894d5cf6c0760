"""The program in the background, where its processes replace each other."""

import ctypes
import os
import signal
import subprocess
import threading
from pathlib import Path

from .proxy import Binary, Proxy, eventually
from .wire import Closed, connect

_PR_SET_CHILD_SUBREAPER = 36

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
GET_ONCE = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


def adopt_orphans() -> None:
    """Processes whose parents end become children of this one, which can wait for them."""
    assert ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


class Daemon(Proxy):
    """Run by a link to the program, so that the link can be changed. Ended by `stop`."""

    def __init__(self, binary: Binary, prefix: Path, text: str, **values: object):
        super().__init__(binary, prefix, text, **values)
        adopt_orphans()
        self.program = prefix / "program"
        self.program.symlink_to(binary.path)
        self.pid_file = prefix / "logs/nginx.pid"
        self.old_pid_file = prefix / "logs/nginx.pid.oldbin"
        self.started_pids: set[int] = set()
        self.codes: dict[int, int] = {}
        self.user = "root"

    def arguments(self) -> list[str]:
        *rest, main = super().arguments()
        return [*rest, main.replace("daemon off; ", "").replace("user root;", f"user {self.user};")]

    def start(self, **environment: str) -> "Daemon":
        done = subprocess.run(
            [self.program, *self.arguments()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            cwd=self.prefix,
            env=os.environ | environment,
        )
        assert done.returncode == 0, done.stderr
        self.started = True
        eventually(lambda: self.pid, "the pid file is written")
        self.logged("start worker processes")  # nginx sleeps over a signal that comes before
        self.started_pids.add(self.pid)
        return self

    @property
    def pid(self) -> int:
        """Of the process that the pid file names."""
        text = self.pid_file.read_text()
        assert text.endswith("\n"), "it is being written"
        return int(text)

    def signal(self, number: int, pid: int | None = None) -> None:
        os.kill(pid or self.pid, number)

    def serving(self, port: int | None = None) -> int:
        """The process, or the parent of the worker, that answers a new connection: `return 200 $pid`."""
        pid = int(self.get("/", port=port).body)
        return parent_of(pid) if self.binary.is_nginx else pid

    def begin(self) -> tuple[int, int]:
        """USR2: the old process and the new one, both of which serve."""
        old = self.pid
        self.signal(signal.SIGUSR2, old)
        eventually(lambda: self.pid != old and self.old_pid_file.exists(), "a new process writes its pid file")
        new = self.pid
        self.started_pids.add(new)
        eventually(lambda: self.serving() == new, "the new process serves")
        return old, new

    def upgrade(self) -> tuple[int, int]:
        old, new = self.begin()
        self.signal(signal.SIGQUIT, old)
        self.wait_for(old)
        return old, new

    def has_ended(self, pid: int) -> bool:
        if pid not in self.codes:
            try:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
            except ChildProcessError:  # it has another parent
                return not Path(f"/proc/{pid}").exists()
        return pid in self.codes

    def wait_for(self, pid: int) -> None:
        eventually(lambda: self.has_ended(pid), f"process {pid} ends; error log:\n{self.error_log()}", 20)
        assert self.codes.get(pid, 0) == 0, f"exit code {self.codes[pid]}\n{self.error_log()}"

    def stop(self) -> None:
        """QUIT must end them, with 0, and without a cry in the log."""
        for wire in self.wires:
            wire.close()
        if not self.started:
            return
        if self.pid_file.exists():
            self.started_pids.add(self.pid)
        try:
            # The newest is the child of the one before: first, so that each can be waited for.
            for pid in sorted(self.started_pids, reverse=True):
                if not self.has_ended(pid):
                    self.signal(signal.SIGQUIT, pid)
            for pid in self.started_pids:
                self.wait_for(pid)
        finally:
            for pid in self.started_pids:
                if not self.has_ended(pid):
                    os.kill(pid, signal.SIGKILL)
        for line in self.error_log().splitlines():
            loud = "panicked" in line or any(level in line for level in ("[alert]", "[emerg]", "[crit]"))
            assert not loud or any(text in line for text in self.expected_alerts), line


class Clients:
    """Ask on and on, on new connections and on kept ones, while the context lasts; `failed` is what went
    wrong. A kept connection may be closed between two requests, never within one."""

    def __init__(self, address, count: int = 2):
        self.address = address
        self.failed: list[str] = []
        self.answers = 0
        self.pids: set[bytes] = set()
        self.stopping = threading.Event()
        work = [self.ask_anew, self.ask_again] * count
        self.threads = [threading.Thread(target=self.run, args=(each,)) for each in work]

    def __enter__(self) -> "Clients":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()

    def run(self, work) -> None:
        while not self.stopping.is_set():
            try:
                work()
            except Exception as error:  # noqa: BLE001
                self.failed.append(f"{work.__name__}: {error!r}")
                return

    def took(self, response) -> None:
        assert response.status == 200, response
        self.pids.add(response.body)
        self.answers += 1

    def ask_anew(self) -> None:
        with connect(self.address) as wire:
            wire.send(GET_ONCE)
            self.took(wire.read_response())

    def ask_again(self) -> None:
        with connect(self.address) as wire:
            for turn in range(50):
                try:
                    wire.send(GET)
                    response = wire.read_response()
                except (Closed, BrokenPipeError, ConnectionResetError):
                    # Between two requests, which crossed the end.
                    assert turn > 0 and not wire.unread, "closed within an exchange"
                    return
                self.took(response)
                if response.get("Connection") == "close":
                    return

    def wait_for(self, count: int) -> None:
        """Until so many more have been answered."""
        until = self.answers + count
        eventually(lambda: self.failed or self.answers >= until, f"{count} answers", 30)
        assert not self.failed, self.failed
