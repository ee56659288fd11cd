"""What happens when a hub or Redis is killed under load."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import redis

from gunicorn_realtime.bus.script import SCRIPTS
from tests.servers import RedisServer
from tests.waiting import wait_until

from .bars import Bar
from .load import Load, Result, Target, faults, loading
from .runs import Bench, say
from .servers import DJANGO_APP, PLAIN_APP, line_publisher, start_gunicorn


def storm(bench: Bench) -> Iterator[Bar]:
    """The hub is killed, and all its clients return at once with their last id."""
    for connections in bench.sizes(1000):
        load = Load(connections, 300, rate=10, settle=1, drain=60, reconnect=bench.reconnect)
        results, commands = [], []
        for _ in range(bench.rounds):
            with ExitStack() as stack:
                server, redis_server = start_gunicorn(stack, DJANGO_APP, "-w", "2")
                publisher = stack.enter_context(line_publisher(redis_server, "news", 100))
                target = Target(server.url("/events"), publisher.options, ())
                with loading(target, load) as result:
                    _wait_for_messages(redis_server, "news", 50)
                    (hub,) = server.hub_pids()
                    with _counting_commands(redis_server) as counter:
                        os.kill(hub, signal.SIGKILL)
                        results.append(result())
            bench.record("storm", "hub", results[-1])
            publishes = counter.pop("publish", 0)
            say(f"storm: Redis had {dict(counter)} from the kill to the end, without {publishes} publishes")
            commands.append(counter.total())
        bar = partial(Bar, "storm", connections, faults=sum(map(faults, results)))
        yield bar("seconds until all were back", [value / 1000 for value in _values(results, "storm_ms")])
        yield bar("milliseconds until one was back, mean", _values(results, "reconnect_mean_ms"))
        yield bar("refusals", _values(results, "refusals"))
        yield bar("resets", _values(results, "resets"))
        yield bar("commands of Redis without publishes", commands)


def failures(bench: Bench) -> Iterator[Bar]:
    """The hub is killed at a third of the run, and Redis at two thirds, under 100 messages/s."""
    messages = round(100 * max(10, bench.seconds))
    for connections in bench.sizes(1000):
        load = Load(connections, messages, rate=100, settle=1, drain=20, reconnect=bench.reconnect)
        results, unclear = [], []
        for _ in range(bench.rounds):
            with ExitStack() as stack:
                server, redis_server = start_gunicorn(
                    stack, PLAIN_APP, "-w", "2", redis_options=("--appendonly", "yes")
                )
                publisher = stack.enter_context(line_publisher(redis_server, "bench", 10_000))
                target = Target(server.url("/sse/bench?history=10000"), publisher.options, ())
                with loading(target, load) as result:
                    _wait_for_messages(redis_server, "bench", messages // 3)
                    (hub,) = server.hub_pids()
                    os.kill(hub, signal.SIGKILL)
                    _wait_for_messages(redis_server, "bench", messages * 2 // 3)
                    redis_server.kill()
                    time.sleep(bench.outage)
                    redis_server.start()
                    results.append(result())
                counts = publisher.counts()
            bench.record("failures", "hub", results[-1])
            say(f"failures: the publisher: {counts}")
            unclear.append(counts["unclear"])
        bar = partial(Bar, "failures", connections, faults=sum(map(faults, results)))
        yield bar("milliseconds until one was back, mean", _values(results, "reconnect_mean_ms"))
        yield bar("milliseconds until one was back, slowest", _values(results, "reconnect_max_ms"))
        yield bar("refusals", _values(results, "refusals"))
        yield bar("resets", _values(results, "resets"))
        yield bar("messages that may have been published twice", unclear)


def _values(results: Sequence[Result], key: str) -> list[float]:
    return [float(result[key]) for result in results]


def _wait_for_messages(redis_server: RedisServer, channel: str, count: int) -> None:
    with redis_server.client() as client:
        wait_until(lambda: client.xlen(f"rt:log:{channel}") >= count, timeout=120)


@contextmanager
def _counting_commands(redis_server: RedisServer) -> Iterator[Counter[str]]:
    """Count what clients ask Redis; publishes of ours are called "publish"."""
    commands: Counter[str] = Counter()
    is_publish = SCRIPTS["publish"].sha

    def count() -> None:
        with redis_server.client() as client, client.monitor() as monitor:
            ready.set()
            try:
                for command in monitor.listen():
                    if command["client_type"] != "lua":
                        words = command["command"].split(" ", 2)
                        commands["publish" if is_publish in words else words[0].lower()] += 1
            except (redis.RedisError, OSError):
                pass  # it has stopped

    ready = threading.Event()
    threading.Thread(target=count, daemon=True).start()
    ready.wait()
    yield commands
