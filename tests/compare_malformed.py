"""Prints the rows of the two tables in which ringx, nginx and HAProxy differ, with the reason for what
ringx does: `compare_malformed.py RINGX [NGINX]`."""

import os
import re
import sys
import tempfile
from pathlib import Path

import test_malformed_requests
import test_malformed_responses
from harness.malformed import Haproxy, Recorder, Teller, ask, in_front_of_recorder, in_front_of_teller, relay
from harness.proxy import Binary

PATIENCE = 0.5


def plain(got: str) -> str:
    """HAProxy writes names in lower case, is not told to add X-Host, and passes chunks on."""
    return re.sub(r"; (x-host|host|transfer-encoding|content-length): [^;]*", "", got.lower())


def results(program: str, folder: Path) -> dict[str, str]:
    got = {}
    binary = None if program == "haproxy" else Binary(Path(program).resolve())
    recorder = Recorder()
    folder.mkdir()
    proxy = in_front_of_recorder(binary, folder / "requests", recorder) if binary else Haproxy(folder, recorder.address)
    for name, row in test_malformed_requests.ROWS.items():
        got[f"request, {name}"] = ask(proxy.port, recorder, row, PATIENCE)
        if recorder.faults:
            got[f"request, {name}"] += " (what is sent on, a second parser may stumble over)"
            recorder.faults = []
    proxy.stop()
    rows = test_malformed_responses.ROWS
    teller = Teller(list(rows.values()), False)
    proxy = in_front_of_teller(binary, folder / "responses", teller) if binary else Haproxy(folder, teller.address)
    for number, name in enumerate(rows):
        try:
            told = relay(proxy.port, teller, number, "HEAD" if name.startswith("HEAD") else "GET", PATIENCE)
        except (AssertionError, OSError) as error:
            told = f"broken: {str(error)[:60]}"
        got[f"response, {name}"] = told
    proxy.stop()
    return got


def main() -> None:
    programs = {"ringx": sys.argv[1], "nginx": (sys.argv[2:] or ["/usr/sbin/nginx"])[0], "haproxy": "haproxy"}
    with tempfile.TemporaryDirectory() as folder:
        by_program = {name: results(path, Path(folder) / name) for name, path in programs.items()}
    why = {f"request, {name}": row.why for name, row in test_malformed_requests.ROWS.items()}
    why |= {f"response, {name}": row.why for name, row in test_malformed_responses.ROWS.items()}
    differing = [name for name in why if len({plain(got[name]) for got in by_program.values()}) > 1]
    print(f"{len(differing)} of {len(why)} rows differ")
    for name in differing:
        print(f"\n{name}")
        for program, got in by_program.items():
            print(f"    {program:8}{got[name]}")
        print(f"    why     {why[name]}")
    sys.stdout.flush()
    # The servers' threads need not be waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
