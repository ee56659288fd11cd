"""Measure the hub: ``python -m bench paced|busy|connects|shared|storm|failures``.

Figures of one machine are only good for each other, so what has a reference takes turns between
the two and prints the ratio of each pair. `make bench` compiles the load client.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from gunicorn_realtime.bus.script import SCRIPTS
from tests.clients import allow_open_files, http_get
from tests.servers import GunicornServer, RedisServer, free_port
from tests.waiting import wait_until

HERE = Path(__file__).parent
PLAIN_APP = "tests.e2e.plain_app:application"
DJANGO_APP = "tests.e2e.django_app:application"

# Time for the streams to be opened before the views begin to burn.
BEFORE_BURNING = 3.0  # seconds

Result = dict[str, Any]


def fanout(*arguments: object) -> Result:
    """Run the load client and return what it measured."""
    command = [str(HERE / "fanout"), *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    result: Result = json.loads(process.stdout)
    return result


@contextmanager
def limit() -> Iterator[list[object]]:
    """The C program that sends once for each delivery; gives the arguments that load it."""
    port = 20_000 + free_port() % 10_000  # it takes the next one too, so neither may be ephemeral
    with subprocess.Popen([str(HERE / "limit"), "-p", str(port)]) as process:
        try:
            wait_until(lambda: _listens(port))
            yield [
                "--url",
                f"http://127.0.0.1:{port}/",
                "--line",
                f"127.0.0.1:{port + 1}",
                "--pid",
                process.pid,
            ]
        finally:
            process.kill()


@contextmanager
def hub(app: str = PLAIN_APP, path: str = "/sse/bench", *options: str) -> Iterator[list[object]]:
    """gunicorn with our worker on a Redis of its own; gives the arguments that load its hub."""
    with ExitStack() as stack:
        server, redis = _start(stack, app, "gunicorn_realtime.Worker", *options)
        with redis.client() as client:  # it is ready when it follows the channel of all hubs
            wait_until(lambda: dict(client.pubsub_numsub("rt:hubs"))["rt:hubs"] == 1)
        (pid,) = server.hub_pids()
        yield ["--url", server.url(path), "--redis", f"127.0.0.1:{redis.port}", "--pid", pid]


@contextmanager
def gevent_worker() -> Iterator[list[object]]:
    """The same site with gunicorn's gevent worker and a streaming response."""
    with ExitStack() as stack:
        server, redis = _start(stack, DJANGO_APP, "gevent")
        yield [
            "--url",
            server.url("/plain_stream"),
            "--redis",
            f"127.0.0.1:{redis.port}",
            "--pid",
            server.pid,
        ]


@contextmanager
def line_publisher(redis: RedisServer, channel: str, history: int) -> Iterator[LinePublisher]:
    """A process that publishes lines with history, see `publisher.py`."""
    command = [sys.executable, "-m", "bench.publisher", redis.url, channel, str(history), "300"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield LinePublisher(process)
        finally:
            process.kill()


class LinePublisher:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._stdout = process.stdout
        self.target = f"127.0.0.1:{int(self._stdout.readline())}"

    def counts(self) -> Result:
        """What it says at the end of its connection."""
        counts: Result = json.loads(self._stdout.readline())
        return counts


def _start(
    stack: ExitStack, app: str, worker_class: str, *options: str, redis_options: tuple[str, ...] = ()
) -> tuple[GunicornServer, RedisServer]:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    redis = stack.enter_context(RedisServer(directory, *redis_options))
    server = GunicornServer(
        directory,
        app,
        *("--threads", "4", "--backlog", "4096"),
        *options,
        env={
            "BUS": redis.url,
            "DATABASE": str(directory / "site.sqlite3"),
            "GUNICORN_REALTIME_CONNECTIONS_PER_ADDRESS": "0",
        },
        worker_class=worker_class,
        bind=f"127.0.0.1:{free_port()}",
    )
    return stack.enter_context(server), redis


def _listens(port: int) -> bool:
    try:
        http_get(port, "/", timeout=0.2)
    except TimeoutError:
        return True
    except OSError:
        return False
    return True


def paced(options: argparse.Namespace) -> None:
    """Deliveries per CPU-second at 10,000 deliveries/s, one message at a time."""
    rate = 10_000 / options.connections
    load = ["-n", options.connections, "-m", options.messages, "-s", 200, "-r", rate, "--channel", "bench"]
    ratios: list[float] = []
    latencies: list[float] = []
    for pair in range(options.pairs):
        results = {}
        for name in ("limit", "hub") if pair % 2 else ("hub", "limit"):
            with limit() if name == "limit" else hub() as target:
                results[name] = fanout(*target, *load)
        ratios.append(_per_cpu(results["hub"]) / _per_cpu(results["limit"]))
        latencies.append(results["hub"]["p50_ms"] / results["limit"]["p50_ms"])
        print(
            f"pair {pair}: limit {_per_cpu(results['limit']):,.0f}, hub {_per_cpu(results['hub']):,.0f}"
            f" deliveries per CPU-second, ratio {ratios[-1]:.2f};"
            f" p50 {results['limit']['p50_ms']} and {results['hub']['p50_ms']} ms;"
            f" {results['hub']['bytes_per_idle_conn']} bytes per idle connection;"
            f" lost {results['hub']['lost']}, doubled {results['hub']['duplicated']},"
            f" out of order {results['hub']['out_of_order']};"
            f" elsewhere {results['hub']['other_cpu_s']:.1f} CPU-seconds"
        )
    _print_quartiles("deliveries per CPU-second, hub to limit", ratios)
    _print_quartiles("median latency, hub to limit", latencies)


def busy(options: argparse.Namespace) -> None:
    """Latency of 100 streams at 50 messages/s, idle and beside four views that burn CPU."""
    for name, start in (("hub", lambda: hub(DJANGO_APP, "/events")), ("gevent worker", gevent_worker)):
        load = ["-n", 100, "-m", 50 * options.seconds, "-s", 200, "-r", 50, "--channel", "news"]
        with start() as target:
            idle = fanout(*target, *load)
            with _burning(int(urlsplit(str(target[1])).port or 0)):
                burning = fanout(*target, *load, "--settle", 2 * BEFORE_BURNING)
        for state, result in (("idle", idle), ("busy", burning)):
            print(
                f"{name}, {state}: p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms, lost {result['lost']}"
            )
        for quantile in ("p50_ms", "p99_ms"):
            print(f"{name}: {quantile} busy to idle {burning[quantile] / idle[quantile]:.1f}")


@contextmanager
def _burning(port: int) -> Iterator[None]:
    """Keep four requests for `/burn` running."""
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


def connects(options: argparse.Namespace) -> None:
    """Connections a second through Django: a stream, and an ordinary small answer of the same view's work."""
    load = ["-n", options.connections, "-m", 1, "--settle", 0.2, "--drain", 0.5, "--channel", "news"]
    ratios: list[float] = []
    for pair in range(options.pairs):
        rates = {}
        for path in ("/events", "/") if pair % 2 else ("/", "/events"):
            with hub(DJANGO_APP, path) as target:
                rates[path] = fanout(*target, *load)["connect_rate"]
        ratios.append(rates["/events"] / rates["/"])
        print(f"pair {pair}: {rates['/events']} streams/s, {rates['/']} answers/s, ratio {ratios[-1]:.2f}")
    _print_quartiles("connects, streams to answers", ratios)


def shared(options: argparse.Namespace) -> None:
    """CPU per delivery of a message that all get, if each follows a channel of its own as well."""
    load = ["-n", options.connections, "-m", options.messages, "-s", 200, "-r", 2, "--settle", 15]
    load += ["--reconnect", 1000]  # reads ids and events, though nobody is cut
    ratios: list[float] = []
    for pair in range(options.pairs):
        results = {}
        alone, own = "/sse/bench?history=100", "/sse/bench/own-%d?history=100"
        for path in (own, alone) if pair % 2 else (alone, own):
            with ExitStack() as stack:
                server, redis = _start(stack, PLAIN_APP, "gunicorn_realtime.Worker")
                publisher = stack.enter_context(line_publisher(redis, "bench", 100))
                (pid,) = server.hub_pids()
                results[path] = fanout(
                    "--url", server.url(path), "--line", publisher.target, "--pid", pid, *load
                )
        ratios.append(_per_cpu(results[alone]) / _per_cpu(results[own]))
        for path, result in results.items():
            print(
                f"pair {pair}: {path}: {1e6 / _per_cpu(result):.1f} µs of CPU per delivery,"
                f" {result['bytes_per_idle_conn'] / 1024:.2f} KB per connection,"
                f" {result['connect_rate']} connects/s, {_describe_loss(result)}"
            )
        print(f"pair {pair}: ratio {ratios[-1]:.3f}", flush=True)
    _print_quartiles("CPU per delivery, with a channel of their own to without", ratios)


def storm(options: argparse.Namespace) -> None:
    """The hub is killed, and all its clients return at once with their last id."""
    load = ["-n", options.connections, "-m", 300, "-s", 200, "-r", 10, "--drain", 60]
    load += ["--reconnect", options.reconnect]
    for run in range(options.pairs):
        with ExitStack() as stack:
            server, redis = _start(stack, DJANGO_APP, "gunicorn_realtime.Worker", "-w", "2")
            publisher = stack.enter_context(line_publisher(redis, "news", 100))
            with _loading(server.url("/events"), publisher, *load) as client:
                _wait_for_messages(redis, "news", 50)
                (hub,) = server.hub_pids()
                with _counting_commands(redis) as commands:
                    os.kill(hub, signal.SIGKILL)
                    result = client()
        seconds = result["storm_ms"] / 1000
        publishes = commands.pop("publish", 0)
        print(
            f"run {run}: all {result['reconnects']} back {seconds:.2f} s after the first was cut"
            f" (mean {result['reconnect_mean_ms']} ms, slowest {result['reconnect_max_ms']} ms),"
            f" {result['reconnects'] / seconds:,.0f} a second, {result['refusals']} refusals;"
            f" {_describe_loss(result)}; Redis: {commands.total()} commands from the kill to the end"
            f" without {publishes} publishes: {dict(commands)}",
            flush=True,
        )


def failures(options: argparse.Namespace) -> None:
    """The hub is killed at a third of the run, and Redis at two thirds, under 100 messages/s."""
    messages = 100 * options.seconds
    load = ["-n", options.connections, "-m", messages, "-s", 200, "-r", 100, "--drain", 20]
    load += ["--reconnect", options.reconnect]
    for run in range(options.pairs):
        with ExitStack() as stack:
            server, redis = _start(
                stack,
                PLAIN_APP,
                "gunicorn_realtime.Worker",
                *("-w", "2"),
                redis_options=("--appendonly", "yes"),
            )
            publisher = stack.enter_context(line_publisher(redis, "bench", 10_000))
            with _loading(server.url("/sse/bench?history=10000"), publisher, *load) as client:
                _wait_for_messages(redis, "bench", messages // 3)
                (hub,) = server.hub_pids()
                os.kill(hub, signal.SIGKILL)
                _wait_for_messages(redis, "bench", messages * 2 // 3)
                redis.kill()
                time.sleep(options.outage)
                redis.start()
                result = client()
            counts = publisher.counts()
        print(
            f"run {run}: {result['messages']} messages, {result['deliveries']} deliveries,"
            f" {_describe_loss(result)}; {result['reconnects']} returns after {result['reconnect_mean_ms']} ms,"
            f" slowest {result['reconnect_max_ms']} ms, {result['refusals']} refusals;"
            f" latency p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms, max {result['max_ms']} ms;"
            f" publisher: {counts}",
            flush=True,
        )


@contextmanager
def _loading(url: str, publisher: LinePublisher, *load: object) -> Iterator[Callable[[], Result]]:
    """Run the load client meanwhile; gives what waits for its result."""
    command = [str(HERE / "fanout"), "--url", url, "--line", publisher.target, *map(str, load)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield lambda: json.loads(process.communicate()[0])
        finally:
            process.kill()


def _wait_for_messages(redis: RedisServer, channel: str, count: int) -> None:
    with redis.client() as client:
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


def _describe_loss(result: Result) -> str:
    return (
        f"lost {result['lost']}, doubled {result['duplicated']}, out of order {result['out_of_order']},"
        f" resets {result['resets']}, not back {result['closed']}"
    )


def _per_cpu(result: Result) -> float:
    return float(result["deliveries_per_server_cpu_s"])


def _print_quartiles(what: str, ratios: list[float]) -> None:
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"{what}: median {median:.2f} (quartiles {low:.2f}, {high:.2f}; {len(ratios)} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run in (paced, busy, connects, shared, storm, failures):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--pairs", type=int, default=8)
        command.add_argument("--connections", "-n", type=int, default=1000)
        command.add_argument("--messages", "-m", type=int, default=50)
        command.add_argument("--seconds", type=int, default=10)
        command.add_argument("--reconnect", type=float, default=100, help="milliseconds")
        command.add_argument("--outage", type=float, default=1, help="seconds without Redis")
    options = parser.parse_args()
    allow_open_files(options.connections + 200)
    run: Callable[[argparse.Namespace], None] = options.run
    run(options)


if __name__ == "__main__":
    sys.exit(main())
