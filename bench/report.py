"""What the bench prints: tables in Markdown, also of what has changed since an earlier run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .bars import Bar
from .load import LoadError, Result
from .plots import Cost
from .ranking import Standing

Cell = str | float | None


@dataclass(slots=True)
class Report:
    """What has been measured.

    Args:
        machine: See `describe_machine`.
        rows: All results of the load client.
        problems: Runs that ended without a result, and why.
    """

    machine: dict[str, str]
    rows: list[Result]
    standings: list[Standing] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def take_bars(self, run: str, bars: Iterable[Bar]) -> None:
        """Add a run's bars; if it fails, the others go on."""
        try:
            self.bars.extend(bars)
        except (LoadError, AssertionError) as exc:
            self.problems.append(f"{run}: {exc}")

    @property
    def exit_status(self) -> int:
        return 1 if self.problems or any(bar.verdict == "FAILED" for bar in self.bars) else 0

    def text(self) -> str:
        parts = [machine_line(self.machine)]
        if self.standings:
            parts.append(_table(STANDING_HEADERS, map(_standing_cells, self.standings)))
        if self.bars:
            parts.append(_table(BAR_HEADERS, map(_bar_cells, self.bars)))
        if self.costs:
            parts.append(_table(COST_HEADERS, map(_cost_cells, self.costs)))
        return "\n\n".join([*parts, *self.problems]) + "\n"

    def as_json(self) -> dict[str, Any]:
        bars = [{**asdict(bar), "median": bar.median, "verdict": bar.verdict} for bar in self.bars]
        return {**asdict(self), "bars": bars}


def machine_line(machine: Mapping[str, str]) -> str:
    processor, system, *versions = machine.items()
    return ", ".join([processor[1], system[1], *(f"{name} {value}" for name, value in versions if value)])


STANDING_HEADERS = (
    *("server", "mode", "connections", "k deliveries per CPU-s", "to limit", "p50 ms", "p99 ms"),
    *("flood: k/s", "flood: k per CPU-s", "KB per idle connection", "lost", "remarks"),
)


def _standing_cells(row: Standing) -> list[Cell]:
    return [
        *(row.title, row.mode, row.connections, _thousands(row.per_cpu), row.ratio, row.p50_ms, row.p99_ms),
        *(_thousands(row.flood_per_s), _thousands(row.flood_per_cpu)),
        *(_kilobytes(row.bytes_per_idle_connection), row.lost, row.remark),
    ]


BAR_HEADERS = (
    "run",
    "connections",
    "figure",
    "aim",
    "bound",
    "median",
    "quartiles",
    "rounds",
    "faults",
    "verdict",
)


def _bar_cells(bar: Bar) -> list[Cell]:
    low, high = bar.quartiles
    noisy = f" ({bar.noisy} noisy)" if bar.noisy else ""
    return [
        *(bar.run, bar.connections, bar.figure, bar.aim, bar.bound, bar.median),
        *(f"{_text(low)} to {_text(high)}", f"{len(bar.values)}{noisy}", bar.faults, bar.verdict),
    ]


COST_HEADERS = ("plot", "x", "server", "µs of CPU for each delivery", "least", "most")


def _cost_cells(cost: Cost) -> list[Cell]:
    return [cost.sweep, cost.x, cost.server, cost.median, min(cost.values), max(cost.values)]


def comparison(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a table of what two reports in JSON have both measured; of servers, what machines have in common."""
    before = dict(_comparable(earlier))
    rows = [
        (*name, before[name], value, f"{value / before[name] - 1:+.0%}" if before[name] else None)
        for name, value in _comparable(now)
        if name in before
    ]
    table = _table(["what", "connections", "figure", "earlier", "now", "change"], rows)
    if earlier["machine"] != now["machine"]:
        table = f"The earlier run was on {machine_line(earlier['machine'])}.\n\n{table}"
    return table


def _comparable(report: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int, str], float]]:
    for bar in report["bars"]:
        yield (bar["run"], bar["connections"], bar["figure"]), bar["median"]
    for row in report["standings"]:
        for figure in ("ratio", "flood_per_cpu", "bytes_per_idle_connection", "lost"):
            if row[figure] is not None:
                yield (row["name"], row["connections"], figure), row[figure]


def _table(headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Lay out a Markdown table that can be read as it is."""
    lines = [list(headers), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, int) or abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"


def _thousands(value: float | None) -> float | None:
    return None if value is None else value / 1000


def _kilobytes(value: float | None) -> float | None:
    return None if value is None else value / 1024
