"""The load client `fanout`: what it is told, and what it has measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FANOUT = HERE / "fanout"

# Deliveries a second of all connections together: little enough for every server to keep up.
PACE = 10_000

SIZE = 200  # bytes of a message

# At fewer messages than this a median over messages says little.
FEWEST_MESSAGES = 10

MOST_MESSAGES = 2_000_000  # the load client has 20 bytes for each

Result = dict[str, Any]
"""What the load client prints; README.md explains the keys."""


class LoadError(Exception):
    """The load client gave up before it had measured anything."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that runs.

    Args:
        url: Where clients connect; `%d` as the load client takes it.
        publish: The load client's options that say how messages get to the server.
        pids: Processes that are the server; their descendants count too.
        redis_pid: The Redis that serves it.
    """

    url: str
    publish: tuple[str, ...]
    pids: tuple[int, ...]
    redis_pid: int | None = None
    hello: str = ""  # a text frame that a WebSocket client begins with
    deflate: bool = False  # WebSocket clients offer compression

    @property
    def arguments(self) -> list[str]:
        pids = [argument for pid in self.pids for argument in ("--pid", str(pid))]
        redis = ["--aux-pid", str(self.redis_pid)] if self.redis_pid else []
        hello = ["--ws-hello", self.hello] if self.hello else []
        deflate = ["--deflate"] if self.deflate else []
        return ["--url", self.url, *self.publish, *pids, *redis, *hello, *deflate]


@dataclass(frozen=True, slots=True)
class Load:
    """What connects and what is published; README.md explains the load client's options.

    Args:
        messages: At most so many.
        rate: Messages a second; 0: as fast as `window` allows.
        seconds: How long to publish; 0: until all messages are sent.
        settle: Seconds between the last connect and the first message; None: as many as it takes to be idle.
        drain: Seconds without a delivery after which it gives up.
        reconnect: Milliseconds after which a client that is cut returns; None: never.
    """

    connections: int
    messages: int
    rate: float = 0
    seconds: float = 0
    window: int = 0
    size: int = SIZE
    channels: int = 0
    slow: int = 0
    settle: float | None = None
    drain: float = 5
    reconnect: float | None = None

    @classmethod
    def paced(cls, connections: int, seconds: float, pace: float = PACE, **more: Any) -> Load:
        """`pace` deliveries a second over all connections, one message at a time: nothing can be joined."""
        rate = pace / connections
        return cls(connections, max(FEWEST_MESSAGES, round(rate * seconds)), rate, **more)

    def over(self, channels: int) -> Load:
        """The same deliveries, but each message goes to one of so many channels."""
        return replace(self, channels=channels, messages=self.messages * channels, rate=self.rate * channels)

    @classmethod
    def flood(cls, connections: int, seconds: float, window: int = 64, **more: Any) -> Load:
        """As fast as it goes, with at most `window` messages that not all have."""
        return cls(connections, MOST_MESSAGES, seconds=seconds, window=window, **more)

    @property
    def arguments(self) -> list[str]:
        options: dict[str, object] = {
            **{"-n": self.connections, "-m": self.messages, "-r": self.rate, "-s": self.size},
            **{"--seconds": self.seconds},
            **{"--window": self.window, "--channels": self.channels, "--slow": self.slow},
            **{"--settle": 1 + self.connections / 5000 if self.settle is None else self.settle},
            **{"--drain": self.drain, "--connect-timeout": 180},
        }
        if self.window:
            options["--depth"] = self.window
        if self.reconnect is not None:
            options["--reconnect"] = self.reconnect
        return [str(part) for option in options.items() for part in option]


def compile_programs() -> None:
    """Compile the load client and `limit` where they are older than their sources."""
    if subprocess.run(["make", "--silent", "-C", HERE]).returncode:
        sys.exit("The load client does not compile. On Debian: apt-get install gcc libc6-dev make zlib1g-dev")


def measure(target: Target, load: Load, mode: str = "sse") -> Result:
    """Put a load on a server.

    Args:
        mode: "sse" or "ws", what the clients speak.

    Raises:
        LoadError: There is no result, or the server has ended.
    """
    with loading(target, load, mode) as result:
        measured = result()
    for pid in target.pids:
        if not Path(f"/proc/{pid}").exists():
            raise LoadError(f"process {pid} of the server has ended under the load")
    return measured


@contextmanager
def loading(target: Target, load: Load, mode: str = "sse") -> Iterator[Callable[[], Result]]:
    """Put a load on a server meanwhile; gives what waits for the result."""
    # All that runs for the bench descends from this process.
    own = ["--mode", mode, "--own-pid", str(os.getpid())]
    command = [str(FANOUT), *target.arguments, *load.arguments, *own]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:

        def result() -> Result:
            output, errors = process.communicate()
            if not output:
                raise LoadError(errors.strip() or f"fanout ended with status {process.returncode}")
            measured: Result = json.loads(output)
            return measured

        try:
            yield result
        finally:
            process.kill()


def per_cpu(result: Result) -> float:
    """Deliveries per CPU-second of the server."""
    return float(result["deliveries_per_server_cpu_s"])


def per_cpu_with_redis(result: Result) -> float:
    """Deliveries per CPU-second of the server and its Redis."""
    return float(result["deliveries"] / (result["server_cpu_s"] + result["aux_cpu_s"]))


def faults(result: Result) -> int:
    """Deliveries that were lost, doubled, out of order or not for this client, and connections that ended."""
    keys = ("lost", "duplicated", "out_of_order", "foreign", "closed", "failed")
    return sum(int(result[key]) for key in keys)
