"""Compare the hub with what it is measured by, in one run: ``python -m bench paced|busy|connects``.

Figures of one machine are only good for each other, so every command takes turns between the
hub and its reference and prints the ratio of each pair. `make bench` compiles the load client.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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


def _start(
    stack: ExitStack, app: str, worker_class: str, *options: str
) -> tuple[GunicornServer, RedisServer]:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
    redis = stack.enter_context(RedisServer(directory))
    server = GunicornServer(
        directory,
        app,
        *("--threads", "4", "--backlog", "4096"),
        *options,
        env={"BUS": redis.url, "DATABASE": str(directory / "site.sqlite3")},
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


def _per_cpu(result: Result) -> float:
    return float(result["deliveries_per_server_cpu_s"])


def _print_quartiles(what: str, ratios: list[float]) -> None:
    low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"{what}: median {median:.2f} (quartiles {low:.2f}, {high:.2f}; {len(ratios)} pairs)")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for run in (paced, busy, connects):
        command = commands.add_parser(run.__name__, help=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument("--pairs", type=int, default=8)
        command.add_argument("--connections", "-n", type=int, default=1000)
        command.add_argument("--messages", "-m", type=int, default=50)
        command.add_argument("--seconds", type=int, default=10)
    options = parser.parse_args()
    allow_open_files(options.connections + 200)
    run: Callable[[argparse.Namespace], None] = options.run
    run(options)


if __name__ == "__main__":
    sys.exit(main())
