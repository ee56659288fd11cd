"""What the hub is held to: runs whose figures have an aim, and a bound beyond which they fail.

Whatever has something to compare with is a ratio of two that took turns, and the median of the rounds counts.
"""

from __future__ import annotations

import resource
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from urllib.parse import urlsplit

from tests.clients import http_get

from .load import Load, Result, Target, faults, measure, per_cpu, per_cpu_with_redis
from .runs import Bench, Pair
from .servers import (
    DJANGO_APP,
    GEVENT_WORKER,
    HUB,
    HUB_WITH_HISTORY,
    LIMIT,
    Server,
    hub,
    hub_with,
    hub_with_history,
)

PER_CPU = "deliveries per hub-CPU-second"

# Time for the streams to be opened before the views begin to burn.
BEFORE_BURNING = 3.0  # seconds

Value = Callable[[Pair], float]


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure, measured once a round.

    Args:
        run, connections, figure: Together its name, by which it is found in an earlier run's JSON.
        aim: What it should be.
        bound: What it must reach; where less is better, what it must not exceed.
        noisy: How many of its values come from a machine that was not quiet.
        faults: Deliveries that went wrong meanwhile; a single one fails the bar.
    """

    run: str
    connections: int
    figure: str
    values: list[float]
    aim: float | None = None
    bound: float | None = None
    noisy: int = 0
    faults: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.values, n=4)
        return low, high

    @property
    def verdict(self) -> str:
        if self.faults or self._falls_short_of(self.bound):
            return "FAILED"
        if self.aim is None:
            return ""
        return "short of the aim" if self._falls_short_of(self.aim) else "met"

    def _falls_short_of(self, value: float | None) -> bool:
        if value is None or self.aim is None or self.bound is None:
            return False
        return self.median < value if self.bound < self.aim else self.median > value


def paced(bench: Bench) -> Iterator[Bar]:
    """10,000 deliveries/s, one message at a time: CPU, time to the last listener, memory."""
    for connections in bench.sizes(1000, 10_000):
        load = Load.paced(connections, bench.seconds)
        pairs = bench.pairs("paced", (LIMIT, load), (HUB, load))
        bar = partial(_bar, "paced", connections, pairs)
        yield bar(f"{PER_CPU}, to limit's", _ratio(per_cpu), 0.90, 0.80)
        yield bar("time to the last listener, to limit's", _ratio(_last_p50), 1.2, 1.4)
        if connections >= 10_000:  # fewer weigh less than what comes and goes
            yield bar("bytes (Pss) per idle connection", _of(_memory), 1229, 1843)


def history(bench: Bench) -> Iterator[Bar]:
    """The same with history, and Redis' CPU counted as well."""
    for connections in bench.sizes(1000):
        load = Load.paced(connections, bench.seconds)
        pairs = bench.pairs("history", (LIMIT, load), (HUB_WITH_HISTORY, load))
        bar = partial(_bar, "history", connections, pairs)
        yield bar(
            "deliveries per CPU-second of hub and Redis, to limit's", _ratio(per_cpu_with_redis), 0.85, 0.75
        )


def flood(bench: Bench) -> Iterator[Bar]:
    """As many messages as go, at most 64 of them on their way: what joining them brings."""
    for connections in bench.sizes(1000):
        load = Load.flood(connections, bench.seconds)
        pairs = bench.pairs("flood", (LIMIT, load), (HUB, load))
        bar = partial(_bar, "flood", connections, pairs)
        yield bar(PER_CPU, _of(per_cpu), 800_000, 500_000)


def delivery(bench: Bench) -> Iterator[Bar]:
    """Every message once and in order, at up to 19,000 connections, as fast as it goes."""
    _, open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    for connections in bench.sizes(1000, 10_000, min(19_000, open_files - 1000)):
        take = partial(bench.measure, "delivery", HUB, Load.flood(connections, bench.seconds))
        results = [result for [result] in bench.in_turns(take)]
        values = list(map(faults, results))
        yield Bar("delivery", connections, "lost, doubled, out of order or cut", values, 0, 0)


def busy(bench: Bench) -> Iterator[Bar]:
    """100 streams beside four views that burn CPU, to the same with idle views; gunicorn's gevent worker, once."""
    hub_in_django = Server("hub", "hub", partial(hub, DJANGO_APP, "/events", "news"))
    load = Load(100, round(50 * bench.seconds), rate=50)
    pairs = [_idle_and_busy(bench, hub_in_django, load) for _ in range(bench.rounds)]
    bar = partial(_bar, "busy", 100, pairs)
    yield bar("p50, busy to idle views", _ratio(_p50), 1.5, 2)
    yield bar("p99, busy to idle views", _ratio(_p99), 5, 8)
    yield bar("p99 beside busy views, ms", _of(_p99), 30, 30)
    yield _bar(
        "busy", 100, [_idle_and_busy(bench, GEVENT_WORKER, load)], "p99 of the gevent worker, ms", _of(_p99)
    )


def _idle_and_busy(bench: Bench, server: Server, load: Load) -> Pair:
    with server.start() as target:
        idle = bench.when_quiet("busy", f"{server.name}, idle views", partial(measure, target, load))
        with _burning(target):
            later = replace(load, settle=2 * BEFORE_BURNING)
            return Pair(idle, bench.when_quiet("busy", server.name, partial(measure, target, later)))


@contextmanager
def _burning(target: Target) -> Iterator[None]:
    """Keep four requests for `/burn` running."""
    port = urlsplit(target.url).port or 0
    stop = threading.Event()

    def burn() -> None:
        stop.wait(BEFORE_BURNING)
        while not stop.is_set():
            http_get(port, "/burn?seconds=0.25", timeout=300)

    burners = [threading.Thread(target=burn) for _ in range(4)]
    for burner in burners:
        burner.start()
    try:
        yield
    finally:
        stop.set()
        for burner in burners:
            burner.join()


def slow(bench: Bench) -> Iterator[Bar]:
    """100 more clients that never read: what it takes from the others."""
    for connections in bench.sizes(1000):
        load = Load.flood(connections, bench.seconds)
        with_slow = Load.flood(connections + 100, bench.seconds, slow=100)
        pairs = bench.pairs("slow", (HUB, load), (HUB, with_slow))
        bar = partial(_bar, "slow", connections, pairs)
        yield bar("deliveries/s of the others, with slow clients to without", _ratio(_per_second), 0.95, 0.85)


def channels(bench: Bench) -> Iterator[Bar]:
    """1,000 channels instead of one, with the same connections and deliveries/s."""
    for connections in bench.sizes(10_000):
        load = Load.paced(connections, bench.seconds)
        pairs = bench.pairs("channels", (HUB, load), (hub_with(1000), load.over(1000)))
        bar = partial(_bar, "channels", connections, pairs)
        yield bar(f"{PER_CPU}, 1,000 channels to one", _ratio(per_cpu), 1 / 1.3, 1 / 1.5)


def hubs(bench: Bench) -> Iterator[Bar]:
    """Two hubs instead of one, with the same connections and deliveries/s."""
    two = Server("two hubs", "two hubs", partial(hub, hubs=2))
    for connections in bench.sizes(10_000):
        load = Load.paced(connections, bench.seconds)
        pairs = bench.pairs("hubs", (HUB, load), (two, load))
        bar = partial(_bar, "hubs", connections, pairs)
        yield bar(f"{PER_CPU}, two hubs to one", _ratio(per_cpu), 1.0, 0.95)


def connects(bench: Bench) -> Iterator[Bar]:
    """Connections/s through Django: streams, to ordinary small answers of the same work."""
    page = Server("page", "page", partial(hub, DJANGO_APP, "/", "news"))
    streams = Server("stream", "stream", partial(hub, DJANGO_APP, "/events", "news"))
    for connections in bench.sizes(1000):
        load = Load(connections, messages=1, settle=0.2, drain=0.5)  # a page gets no message
        pairs = bench.pairs("connects", (page, load), (streams, load))
        bar = partial(_bar, "connects", connections, pairs)
        yield bar("connects/s, streams to answers", _ratio(_connects_per_second))
        yield bar("connects/s", _of(_connects_per_second))


def shared(bench: Bench) -> Iterator[Bar]:
    """A message that all get, if each follows a channel of its own as well, to if nobody does."""
    own = Server("own channels", "own channels", partial(hub_with_history, "/sse/bench/own-%d?history=100"))
    for connections in bench.sizes(10_000):
        # Ids and events are read as those of clients that return, though nobody is cut.
        load = Load(connections, max(10, round(2 * bench.seconds)), rate=2, settle=15, reconnect=1000)
        pairs = bench.pairs("shared", (HUB_WITH_HISTORY, load), (own, load))
        bar = partial(_bar, "shared", connections, pairs)
        yield bar(f"{PER_CPU}, with channels of their own to without", _ratio(per_cpu), 1 / 1.1)
        yield bar("bytes (Pss) per connection with a channel of its own", _of(_memory), 2560)


def _bar(
    run: str,
    connections: int,
    pairs: list[Pair],
    figure: str,
    value: Value,
    aim: float | None = None,
    bound: float | None = None,
) -> Bar:
    noisy = sum(pair.is_noisy for pair in pairs)
    wrong = sum(faults(pair.measured) for pair in pairs)
    return Bar(run, connections, figure, list(map(value, pairs)), aim, bound, noisy, wrong)


def _ratio(figure: Callable[[Result], float]) -> Value:
    return lambda pair: pair.ratio(figure)


def _of(figure: Callable[[Result], float]) -> Value:
    return lambda pair: figure(pair.measured)


_p50 = itemgetter("p50_ms")
_p99 = itemgetter("p99_ms")
_last_p50 = itemgetter("last_p50_ms")
_memory = itemgetter("bytes_per_idle_conn")
_per_second = itemgetter("deliveries_per_s")
_connects_per_second = itemgetter("connect_rate")
