"""The Autobahn testsuite against the WebSocket engine: its fuzzing client, and an echo on a real server.

    python -m tests.conformance.autobahn WSTEST [CASE...]

WSTEST is the suite's program, a CASE is a group such as "7.*", or one of its cases such as "7.1.1";
`scripts/autobahn` installs the one and has all of the other by default.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.e2e.conftest import PLAIN_APP
from tests.servers import GunicornServer, RedisServer

# How many cases each group has. The suite's exit status is 0 whatever comes out, also if it ran none.
CASES = {1: 16, 2: 11, 3: 7, 4: 10, 5: 20, 6: 145, 7: 37, 9: 54, 10: 1, 12: 90, 13: 126}

# UNIMPLEMENTED, for want of an extension, is not among them: permessage-deflate is agreed on.
GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}

# The largest of group 9, which the local bus does not take; hence Redis.
MESSAGE_SIZE = 16 * 1024 * 1024  # bytes

AGENT = "hub"

# A case takes 2 seconds on the average. The suite hangs when it is asked for one that it does not have.
TIMEOUT = 120  # seconds
TIMEOUT_PER_CASE = 10  # seconds

# What the suite found of each case.
Report = dict[str, dict[str, Any]]


def main(wstest: str, *patterns: str) -> int:
    """Run the cases, print what came out, and return the exit status."""
    patterns = patterns or tuple(f"{group}.*" for group in CASES)
    report = run_cases(wstest, patterns)
    print(describe(report))
    problems = problems_of(report, count_cases(patterns))
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


def count_cases(patterns: Sequence[str]) -> int:
    """Return how many cases there must be in a report.

    Raises:
        ValueError: A pattern is neither a group nor a case.
    """
    groups = {f"{group}.*": count for group, count in CASES.items()}
    wrong = [pattern for pattern in patterns if "*" in pattern and pattern not in groups]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is neither a case nor one of {', '.join(groups)}")
    return sum(groups.get(pattern, 1) for pattern in patterns)


def run_cases(wstest: str, patterns: Sequence[str]) -> Report:
    environment = {"GUNICORN_REALTIME_MESSAGE_SIZE": str(MESSAGE_SIZE)}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with (
            RedisServer(directory) as redis,
            GunicornServer(directory, PLAIN_APP, env={"BUS": redis.url, **environment}) as server,
        ):
            # No ping of ours comes in between: some cases count frames.
            url = f"ws://127.0.0.1:{server.port}/websocket?max_size={MESSAGE_SIZE}&heartbeat=3600"
            specification = {
                "outdir": str(directory / "report"),
                "servers": [{"agent": AGENT, "url": url}],
                "cases": list(patterns),
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
            path = directory / "fuzzingclient.json"
            path.write_text(json.dumps(specification))
            done = subprocess.run(
                [wstest, "--mode", "fuzzingclient", "--spec", str(path)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=TIMEOUT + TIMEOUT_PER_CASE * count_cases(patterns),
            )
        if done.returncode:
            raise RuntimeError(f"wstest ended with status {done.returncode}: {done.stdout[-2000:]}")
        index = json.loads((directory / "report" / "index.json").read_text())
        report: Report = index.get(AGENT, {})
        return report


def describe(report: Report) -> str:
    """Return a table of what came out, by group."""
    groups: dict[str, Counter[str]] = {}
    for case, result in report.items():
        groups.setdefault(case.partition(".")[0], Counter())[result["behavior"]] += 1
    lines = [
        f"group {group:>2}: " + ", ".join(f"{count} {behavior}" for behavior, count in groups[group].items())
        for group in sorted(groups, key=int)
    ]
    return "\n".join([*lines, f"{len(report)} cases"])


def problems_of(report: Report, count: int) -> list[str]:
    """Return what keeps a report from being good; it must have so many cases."""
    problems = [
        f"case {case}: {result['behavior']}, at its end {result['behaviorClose']}"
        for case, result in report.items()
        if not {result["behavior"], result["behaviorClose"]} <= GOOD
    ]
    if len(report) != count:
        problems.append(f"there are {len(report)} cases, not {count}")
    return problems


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its servers end with it
    sys.exit(main(*sys.argv[1:]))
