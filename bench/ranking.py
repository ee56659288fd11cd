"""The table of servers: the hub and its peers under the same load in turn, with `limit` as the reference."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from .load import PACE, Load, LoadError, Result, faults, per_cpu
from .peers import peers
from .runs import Bench, is_noisy, say
from .servers import HUB, HUB_WEBSOCKET, HUB_WEBSOCKET_DEFLATE, HUB_WITH_HISTORY, LIMIT, Server

# A server that delivers less than this of what it is given has not kept up.
KEPT_UP = 0.95


class Taken(NamedTuple):
    paced: Result
    flood: Result


@dataclass(frozen=True, slots=True)
class Standing:
    """One server's row: medians of all rounds.

    Args:
        per_cpu, p50_ms, p99_ms, bytes_per_idle_connection: At 10,000 deliveries/s, one message at a time.
        ratio: Of `per_cpu`, to that of `limit` in the same round; None without `limit`.
        flood_per_s, flood_per_cpu: As fast as it goes, where servers may join messages.
        lost: Deliveries that were lost, doubled, out of order or cut, of all rounds together.
        remark: What else there is to know; all there is of a server that was left out.
    """

    name: str
    title: str
    mode: str
    connections: int
    per_cpu: float | None = None
    ratio: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    flood_per_s: float | None = None
    flood_per_cpu: float | None = None
    bytes_per_idle_connection: float | None = None
    lost: int | None = None
    remark: str = ""


def all_servers(mode: str | None = None, size: int | None = None) -> list[Server]:
    """Return all, or those of a mode and `limit`, the reference of both, that messages of a size make sense for."""
    known = (LIMIT, HUB, HUB_WITH_HISTORY, HUB_WEBSOCKET, HUB_WEBSOCKET_DEFLATE, *peers())
    return [
        server
        for server in known
        if (mode in (None, server.mode) or server is LIMIT) and (size is None or size >= server.least_size)
    ]


def rank(bench: Bench, servers: Sequence[Server]) -> list[Standing]:
    """Measure all in each round; what is not installed gets a remark instead."""
    return [row for connections in bench.sizes(1000) for row in _rank_at(bench, servers, connections)]


def _rank_at(bench: Bench, servers: Sequence[Server], connections: int) -> list[Standing]:
    present = [server for server in servers if not server.missing()]
    takes = [partial(_take, bench, server, connections) for server in present]
    names = [server.name for server in present]
    rounds = [dict(zip(names, taken, strict=True)) for taken in bench.in_turns(*takes)]
    return [_standing(server, connections, rounds) for server in servers]


def _take(bench: Bench, server: Server, connections: int) -> Taken | str:
    """Measure one server once, paced and flooded; return why if that fails."""
    try:
        return Taken(
            bench.measure("peers, paced", server, Load.paced(connections, bench.seconds, size=bench.size)),
            bench.measure(
                "peers, flood",
                server,
                Load.flood(connections, bench.seconds, server.window, size=bench.size),
            ),
        )
    except (LoadError, AssertionError) as exc:
        say(f"{server.name}: {exc}")
        return str(exc)


def _standing(server: Server, connections: int, rounds: list[dict[str, Taken | str]]) -> Standing:
    row = partial(Standing, server.name, server.title, server.mode, connections)
    if missing := server.missing():
        return row(remark=f"left out: {missing}")
    taken = [results[server.name] for results in rounds]
    good = [both for both in taken if isinstance(both, Taken)]
    if not good:
        return row(remark=f"failed: {taken[0]}")
    ratios = [
        per_cpu(both.paced) / per_cpu(reference.paced)
        for both, results in zip(taken, rounds, strict=True)
        if isinstance(both, Taken) and isinstance(reference := results.get(LIMIT.name), Taken)
    ]

    def median(of: Callable[[Taken], float]) -> float:
        return statistics.median(map(of, good))

    return row(
        per_cpu=median(lambda both: per_cpu(both.paced)),
        ratio=statistics.median(ratios) if ratios else None,
        p50_ms=median(lambda both: both.paced["p50_ms"]),
        p99_ms=median(lambda both: both.paced["p99_ms"]),
        flood_per_s=median(lambda both: both.flood["deliveries_per_s"]),
        flood_per_cpu=median(lambda both: per_cpu(both.flood)),
        bytes_per_idle_connection=median(lambda both: both.paced["bytes_per_idle_conn"]),
        lost=sum(faults(result) for both in good for result in both),
        remark="; ".join(_remarks(taken, good)),
    )


def _remarks(taken: list[Taken | str], good: list[Taken]) -> Iterator[str]:
    if failed := len(taken) - len(good):
        yield f"failed in {failed} of {len(taken)} rounds"
    pace = statistics.median(both.paced["deliveries_per_s"] for both in good)
    if pace < KEPT_UP * PACE:
        yield f"did not keep up: {pace:,.0f} of {PACE:,} deliveries/s"
    if noisy := sum(is_noisy(result) for both in good for result in both):
        yield f"something else used the machine in {noisy} of {2 * len(good)} measurements"
