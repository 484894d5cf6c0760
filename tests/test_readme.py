"""README's "In front of Django and Flask", line by line, as a newcomer would copy it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from harness.ports import free_port
from harness.proxy import Binary, eventually

pytestmark = pytest.mark.ringx_only("README is ringx's")

SECTION = re.search(r"^## In front of Django and Flask\n(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.M | re.S)


class Newcomer:
    """Copies from README into a shell; the ports are free ones, and what is installed already is taken."""

    def __init__(self, home: Path, binary: Binary):
        self.environment = os.environ | {"HOME": str(home), "PATH": f"{binary.path.parent}:{os.environ['PATH']}"}
        self.folder = ROOT
        self.ports = {port: str(free_port()) for port in ("8080", "3031")}

    def copy(self, text: str) -> str:
        """Runs these lines; answers what they print."""
        for port, free in self.ports.items():
            text = text.replace(port, free)
        text = re.sub("^cargo build.*$|^export PATH=.*$", "", text, flags=re.M)
        text = re.sub("^python3 -m venv venv .*$", f"ln -s '{sys.prefix}' venv", text, flags=re.M)
        if os.geteuid() == 0:
            # Nobody else may look into the folder of a test.
            text = text.replace("ringx -p", "ringx -g 'user root;' -p")
        script = f"set -euo pipefail\n{text}\npwd > '{self.environment['HOME']}/pwd'"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        self.folder = Path(self.environment["HOME"], "pwd").read_text().strip()
        return done.stdout + done.stderr


def test_a_newcomer_gets_there(tmp_path, binary):
    *set_up, requests, end = BLOCKS
    newcomer = Newcomer(tmp_path, binary)
    try:
        for block in set_up:
            newcomer.copy(block)
        commands = [line for line in requests.replace("\\\n", " ").splitlines() if line]
        assert len(commands) == requests.count("  # ")
        for line in commands:
            command, expected = line.split("  # ")
            assert expected.strip() in newcomer.copy(command), command
    finally:
        newcomer.copy(end)
    pids = tmp_path / "site"
    eventually(lambda: not (pids / "logs/ringx.pid").exists(), "ringx has ended")
    eventually(lambda: not [pid for pid in pids.glob("*.pid") if _runs(int(pid.read_text()))], "the servers have ended")
    said = (pids / "logs/error.log").read_text()
    assert "largest HTTP_A 7000 bytes" in said and "[alert]" not in said, said


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
