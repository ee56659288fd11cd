"""How the cost of a delivery grows: one thing varied at a time, the hub and `limit` in turn, a plot each."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .load import PACE, Load, Result, per_cpu
from .runs import Bench, say
from .servers import HUB, LIMIT, Server, hub_with, limit_with
from .svg import Line, line_plot

# Of large messages there are fewer, or the load client's reading would be what is measured.
MOST_BYTES_PER_SECOND = 40_000_000


@dataclass(frozen=True, slots=True)
class Point:
    """What is measured at one place of the x axis."""

    x: int
    load: Load
    servers: tuple[Server, Server] = (HUB, LIMIT)


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one plot shows; `name` is that of the file."""

    name: str
    title: str
    x_title: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of a server's CPU for each delivery, one value a round."""

    sweep: str
    server: str
    x: int
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


def sweeps(seconds: float) -> Iterator[Sweep]:
    yield Sweep(
        "connections",
        f"{PACE:,} deliveries/s to all that follow one channel",
        "connections",
        [Point(n, Load.paced(n, seconds)) for n in (100, 300, 1000, 3000, 10_000)],
    )
    yield Sweep(
        "channels",
        f"{PACE:,} deliveries/s to 1,000 connections",
        "channels that they follow, one each",
        [
            Point(n, Load.paced(1000, seconds).over(n), (hub_with(n), limit_with(n)))
            for n in (1, 10, 100, 1000)
        ],
    )
    yield Sweep(
        "rate",
        "100 connections that follow one channel",
        "messages a second",
        [Point(rate, Load.paced(100, seconds, 100 * rate)) for rate in (10, 30, 100, 300, 1000)],
    )
    yield Sweep(
        "size",
        "1,000 connections that follow one channel",
        "bytes of a message",
        [
            Point(size, Load.paced(1000, seconds, min(PACE, MOST_BYTES_PER_SECOND // size), size=size))
            for size in (100, 300, 1000, 3000, 10_000, 30_000)
        ],
    )


def plot(bench: Bench, sweep: Sweep, directory: Path) -> list[Cost]:
    """Measure a sweep and draw it."""
    costs = list(_costs(bench, sweep))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{sweep.name}.svg"
    path.write_text(_draw(sweep, costs))
    say(f"wrote {path}")
    return costs


def _costs(bench: Bench, sweep: Sweep) -> Iterator[Cost]:
    cases = [(point, server) for point in sweep.points for server in point.servers]
    takes = [partial(bench.measure, f"plot of {sweep.name}", server, point.load) for point, server in cases]
    rounds = list(bench.in_turns(*takes))
    for (point, server), results in zip(cases, zip(*rounds, strict=True), strict=True):
        yield Cost(sweep.name, server.name, point.x, [_microseconds(result) for result in results])


def _microseconds(result: Result) -> float:
    return 1e6 / per_cpu(result)


def _draw(sweep: Sweep, costs: Sequence[Cost]) -> str:
    lines = [
        Line(name, [(cost.x, cost.median) for cost in costs if cost.server == name])
        for name in (HUB.name, LIMIT.name)
    ]
    return line_plot(sweep.title, sweep.x_title, "µs of CPU for each delivery", lines)
