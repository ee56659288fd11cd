"""Taking turns: what is compared is measured alternately, since no machine is the same a minute later."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from .load import SIZE, Load, Result, faults, measure, per_cpu
from .servers import Server

# What is measured while something else uses more of the machine's cores than this is measured again.
MOST_NOISE = 0.10

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pair:
    """What two servers, or two loads, came to in one round."""

    reference: Result
    measured: Result

    def ratio(self, figure: Callable[[Result], float]) -> float:
        return figure(self.measured) / figure(self.reference)

    @property
    def is_noisy(self) -> bool:
        return is_noisy(self.reference) or is_noisy(self.measured)


@dataclass(slots=True)
class Bench:
    """One call of the bench.

    Args:
        rounds: How often each is measured.
        seconds: How long messages are sent each time.
        connections: How many, in the place of what a run usually takes.
        size: Bytes of a message in the table of servers.
        attempts: How often at most a measurement is repeated until the machine is quiet.
        reconnect: Milliseconds after which clients that were cut return.
        outage: Seconds without Redis.
        rows: All results so far, the noisy ones too.
    """

    rounds: int
    seconds: float = 5
    connections: tuple[int, ...] = ()
    size: int = SIZE
    attempts: int = 3
    reconnect: float = 100
    outage: float = 1
    rows: list[Result] = field(default_factory=list)

    def sizes(self, *usual: int) -> tuple[int, ...]:
        return self.connections or usual

    def pairs(self, run: str, reference: tuple[Server, Load], measured: tuple[Server, Load]) -> list[Pair]:
        """Measure two as often as there are rounds: one, other, other, one, and so on."""
        takes = [partial(self.measure, run, *case) for case in (reference, measured)]
        return [Pair(*results) for results in self.in_turns(*takes)]

    def in_turns(self, *takes: Callable[[], T]) -> Iterator[list[T]]:
        """Take all in each round, every other time beginning with the last."""
        for number in range(self.rounds):
            if number % 2:
                yield [take() for take in reversed(takes)][::-1]
            else:
                yield [take() for take in takes]

    def measure(self, run: str, server: Server, load: Load) -> Result:
        """Start a server and put a load on it; all over again if the machine was not quiet."""

        def take() -> Result:
            with server.start() as target:
                return measure(target, load, server.mode)

        return self.when_quiet(run, server.name, take)

    def when_quiet(self, run: str, name: str, take: Callable[[], Result]) -> Result:
        for _ in range(self.attempts):
            result = take()
            self.record(run, name, result)
            if not is_noisy(result):
                break
        return result

    def record(self, run: str, name: str, result: Result) -> None:
        """Keep a result for the JSON, and say on standard error how it goes."""
        self.rows.append({"run": run, "server": name, **result})
        say(f"{run}, {name}: {_describe(result)}")


def is_noisy(result: Result) -> bool:
    return float(result["other_share"]) > MOST_NOISE


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _describe(result: Result) -> str:
    noise = f"; something else used {result['other_share']:.0%} of the machine" if is_noisy(result) else ""
    return (
        f"{result['connections']:,} connections, {per_cpu(result):,.0f} deliveries per CPU-second,"
        f" {result['deliveries_per_s']:,} a second, p50 {result['p50_ms']} ms,"
        f" {faults(result)} faults{noise}"
    )
