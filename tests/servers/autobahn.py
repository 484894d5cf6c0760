"""Autobahn's cases, run by kosoku: `autobahn.py client URL AT_ONCE CASE… -CASE…` against a server,
`autobahn.py server PORT CASE… -CASE…` for a client that asks for them. A CASE is a name or a glob, with a
minus in front it is left out. Prints a JSON object at the end: what came of each case.

A process of its own, because kosoku changes modules of the interpreter that it runs in.
"""

import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient, run_fuzzingserver


async def client(url: str, at_once: str, *cases: str) -> list:
    return await run_fuzzingclient(url, *chosen(cases), concurrency=int(at_once))


async def server(port: str, *cases: str) -> list:
    async with run_fuzzingserver(*chosen(cases), host="127.0.0.1", port=int(port)) as running:
        return await running.get_result()


def chosen(cases: tuple[str, ...]) -> tuple[list[str] | None, list[str]]:
    included = [case for case in cases if not case.startswith("-")]
    return included or None, [case[1:] for case in cases if case.startswith("-")]


def report(results: list) -> dict[str, dict]:
    """What was seen on the wire is as telling as the verdict: both must be the same through a proxy."""
    return {
        each.case_id: {
            "behavior": each.behavior.value,
            "behavior_close": each.behavior_close.value,
            "received": repr(each.received),
            "close": [each.remote_close_code, each.remote_close_reason],
            "clean": each.was_clean,
            "why": [each.result, each.result_close, each.was_not_clean_reason],
        }
        for each in results
    }


try:
    results = asyncio.run({"client": client, "server": server}[sys.argv[1]](*sys.argv[2:]))
except FailureError as failure:
    results = failure.results
json.dump(report(results), sys.stdout)
sys.stdout.flush()
# kosoku's threads may outlive the interpreter's shutdown, and then abort.
os._exit(0)
