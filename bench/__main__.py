"""Measure the hub and its peers.

Figures of one machine are only good for each other. So what is compared takes turns, tables have
ratios to `limit` (a program in C that does nothing but send), and what was measured while
something else used more than a tenth of the machine is measured again.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from . import bars, crashes, echoes
from .bars import Bar
from .load import SIZE, compile_programs
from .machine import describe_machine
from .plots import plot, sweeps
from .ranking import all_servers, rank
from .report import Report, comparison
from .runs import Bench

PLOTS_DIRECTORY = Path("docs/performance")

Run = Callable[[Bench], Iterator[Bar]]
T = TypeVar("T")


def _by_name(*runs: Run) -> dict[str, Run]:
    return {run.__name__: run for run in runs}


BARS = _by_name(
    *(bars.paced, bars.history, bars.flood, bars.delivery, bars.busy, bars.slow, bars.channels, bars.hubs)
)
OTHER_RUNS = _by_name(bars.connects, bars.shared, echoes.events, crashes.storm, crashes.failures)


def main() -> int:
    options = _parser().parse_args()
    rounds = options.pairs or (3 if options.run in ("peers", "plots") else 8)
    bench = Bench(
        rounds,
        seconds=options.seconds,
        connections=options.connections,
        size=options.size,
        attempts=options.attempts,
        reconnect=options.reconnect,
        outage=options.outage,
    )
    report = Report(describe_machine(), bench.rows)
    earlier = json.loads(options.compare.read_text()) if options.compare else None
    _allow_open_files()
    compile_programs()
    try:
        _take(options, bench, report)
    finally:  # if somebody has lost patience, what there is
        print(report.text())
        if options.json:
            options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if earlier:
        print(comparison(earlier, report.as_json()))
    return report.exit_status


def _take(options: argparse.Namespace, bench: Bench, report: Report) -> None:
    """Do what is asked for, into the report."""
    if options.run == "peers":
        known = {server.name: server for server in all_servers(options.mode, options.size)}
        report.standings.extend(rank(bench, _chosen(known, options.only)))
    elif options.run == "plots":
        known = {sweep.name: sweep for sweep in sweeps(bench.seconds)}
        for sweep in _chosen(known, options.only):
            report.costs.extend(plot(bench, sweep, PLOTS_DIRECTORY))
    elif options.run == "bars":
        for run in _chosen(BARS, options.only):
            report.take_bars(run.__name__, run(bench))
    else:
        run = {**BARS, **OTHER_RUNS}[options.run]
        report.take_bars(options.run, run(bench))


def _chosen(known: Mapping[str, T], names: list[str]) -> list[T]:
    for name in names:
        if name not in known:
            sys.exit(f"There is no {name!r}; there are {', '.join(known)}.")
    return [value for name, value in known.items() if not names or name in names]


def _parser() -> argparse.ArgumentParser:
    runs = [(name, (run.__doc__ or "").strip()) for name, run in (*BARS.items(), *OTHER_RUNS.items())]
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="what to measure:\n"
        + "\n".join(
            f"  {name:<9} {what}"
            for name, what in [
                (
                    "peers",
                    "The same load on each, one table: "
                    + ", ".join(s.name for s in all_servers())
                    + "; `-deflate` from --size 256 on.",
                ),
                ("bars", f"What the hub is held to: {', '.join(BARS)}."),
                ("plots", f"How cost grows: {PLOTS_DIRECTORY}/*.svg."),
                *runs,
            ]
        ),
    )
    parser.add_argument(
        "run",
        nargs="?",
        default="peers",
        choices=["peers", "bars", "plots", *BARS, *OTHER_RUNS],
        metavar="WHAT",
        help="what to measure, see below (peers)",
    )
    add = parser.add_argument
    add("--only", type=_names, default=[], metavar="A,B", help="only these servers, bars or plots")
    add("--mode", choices=["sse", "ws"], help="only the servers that speak this")
    add("--connections", "-n", type=_numbers, default=(), metavar="N,N", help="how many, one after the other")
    add("--size", type=int, default=SIZE, metavar="BYTES", help=f"of a message to servers ({SIZE})")
    add("--pairs", type=int, metavar="N", help="how often each is measured (bars 8, otherwise 3)")
    add("--seconds", type=float, default=5, help="how long messages are sent each time (5)")
    add("--attempts", type=int, default=3, metavar="N", help="again, while the machine is not quiet (3)")
    add("--json", type=Path, metavar="FILE", help="write all results there")
    add("--compare", type=Path, metavar="FILE", help="say what has changed since that was written")
    add("--reconnect", type=float, default=100, metavar="MS", help="when the clients of crashes return (100)")
    add("--outage", type=float, default=1, metavar="SECONDS", help="without Redis, in `failures` (1)")
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _allow_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
