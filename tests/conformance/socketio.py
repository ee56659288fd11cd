"""The protocol suites of Engine.IO and Socket.IO against the engine, on a real server.

    python -m tests.conformance.socketio SUITES [APP]

SUITES is a directory that has, each with what it needs of npm installed, the folders
`engineio-v3`, `engineio-v4` and `socketio-v5`: the test suites of https://github.com/socketio/socket.io at
commit d2d753f, where they are docs/engine.io-protocol/v3-test-suite, docs/engine.io-protocol/v4-test-suite
and docs/socket.io-protocol/v5-test-suite. They are in no package registry, and others' code has no place
in this repository, so whoever runs them checks them out and says where they are.

APP is the application that the suites want: an echo with short heartbeats. `-` stands for a server that
runs already. The suites know no other port than 3000, so make sure that it is that server's: whoever listens
there is what is judged.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.servers import GunicornServer, RedisServer

APP = "tests.conformance.socketio_app:application"
PORT = 3000
TIMEOUT = 120  # seconds, where a suite takes some 6


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tests of a suite passed, were left out by the suite itself, and failed."""

    passing: int
    pending: int = 0
    failing: int = 0

    def __str__(self) -> str:
        return f"{self.passing} passing, {self.pending} pending, {self.failing} failing"


# A suite that ran half of its tests has not passed.
SUITES = {
    "engineio-v4": Outcome(25),
    "engineio-v3": Outcome(23, pending=1),
    "socketio-v5": Outcome(32),
}


def main(suites: str, app: str = APP) -> int:
    """Run the suites, print what came out, and return the exit status."""
    with ExitStack() as stack:
        if app != "-":
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            redis = stack.enter_context(RedisServer(directory))
            arguments = ("-w", "4")
            bind = f"127.0.0.1:{PORT}"
            stack.enter_context(GunicornServer(directory, app, *arguments, bind=bind, env={"BUS": redis.url}))
        outcomes = {name: run_suite(Path(suites) / name) for name in SUITES}
    problems = problems_of(outcomes)
    print(*(f"{name}: {outcome}" for name, outcome in outcomes.items()), *problems, sep="\n")
    return 1 if problems else 0


def run_suite(directory: Path) -> Outcome:
    """Run a suite, and show what it prints."""
    # Without --exit the suite of version 3 passes and then hangs.
    command = ["node_modules/.bin/mocha", "--exit", "--reporter", "spec", "test-suite.js"]
    done = subprocess.run(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT
    )
    print(f"{directory.name}:\n{done.stdout}")
    outcome = outcome_of(done.stdout)
    if done.returncode != outcome.failing:
        raise RuntimeError(f"mocha ended with status {done.returncode}, and told of {outcome}")
    return outcome


def outcome_of(output: str) -> Outcome:
    """Read the counts at the end of what mocha prints."""
    counts = dict.fromkeys(("passing", "pending", "failing"), 0)
    for count, name in re.findall(r"^ +(\d+) (passing|pending|failing)\b", output, re.MULTILINE):
        counts[name] = int(count)
    return Outcome(**counts)


def problems_of(outcomes: Mapping[str, Outcome]) -> list[str]:
    """Return what keeps the outcomes from being good."""
    return [
        f"{name}: {outcomes[name]}, expected {expected}"
        for name, expected in SUITES.items()
        if outcomes[name] != expected
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its servers end with it
    sys.exit(main(*sys.argv[1:]))
