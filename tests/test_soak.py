"""scripts/soak for half a minute: all loads and faults at once, every response right or explained."""

import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parent.parent / "scripts/soak"


@pytest.mark.ringx_only("asks for ringx_status, queue and uwsgi_keepalive")
@pytest.mark.timeout(300)
def test_half_a_minute(binary):
    # So short a time is no measure of memory, but for a great leak.
    command = [sys.executable, SOAK, "0.5", "--seed", "1", "--memory", "30", "--binary", binary.path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
