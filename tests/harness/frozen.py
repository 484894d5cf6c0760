"""One thread of a process, stopped while the others go on: as if it hung."""

import ctypes
import os
from pathlib import Path

from .proxy import eventually

SEIZE, INTERRUPT, DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000


def ptrace(request: int, thread: int) -> None:
    call = ctypes.CDLL(None, use_errno=True).ptrace
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if call(request, thread, None, None) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace({request:#x})")


class Frozen:
    """From the start of the `with` to its end, or to that of the process."""

    def __init__(self, pid: int, name: str):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        self.thread = next(int(task.name) for task in tasks if (task / "comm").read_text() == f"{name}\n")

    def __enter__(self) -> "Frozen":
        ptrace(SEIZE, self.thread)
        ptrace(INTERRUPT, self.thread)
        os.waitpid(self.thread, WALL)
        return self

    def ends(self) -> None:
        """Waits for somebody to kill the process: until it is seen here, it is not gone for others."""

        def has_ended() -> bool:
            changed, status = os.waitpid(self.thread, WALL | os.WNOHANG)
            return changed != 0 and (os.WIFSIGNALED(status) or os.WIFEXITED(status))

        eventually(has_ended, "the process is ended", 30)
        self.thread = 0

    def __exit__(self, *_) -> None:
        if self.thread:
            ptrace(DETACH, self.thread)
