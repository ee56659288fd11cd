"""What the bench starts: `limit`, the hub, and gunicorn's own gevent worker. The peers are in `peers/`."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gunicorn_realtime.protocols.websocket_deflate import MIN_COMPRESSED_SIZE
from tests.clients import connect
from tests.servers import GunicornServer, RedisServer, free_port
from tests.waiting import wait_until

from .load import Target

LIMIT_PROGRAM = Path(__file__).parent / "limit"
PLAIN_APP = "tests.e2e.plain_app:application"
DJANGO_APP = "tests.e2e.django_app:application"
CHANNEL = "bench"


@dataclass(frozen=True, slots=True)
class Server:
    """What a row of a table is about.

    Args:
        name: On the command line, and in the JSON.
        title: In the table.
        start: Runs it on 127.0.0.1 as long as the context lasts.
        missing: Returns what is not installed, in a sentence, or nothing.
        window: Most messages in flight when it is flooded.
        least_size: Bytes of the smallest message that shows what is particular to it.
    """

    name: str
    title: str
    start: Callable[[], AbstractContextManager[Target]]
    mode: str = "sse"
    missing: Callable[[], str] = lambda: ""
    window: int = 64
    least_size: int = 0


@contextmanager
def limit(channels: int = 1) -> Iterator[Target]:
    """The C program that does nothing but one `send()` for each delivery."""
    port = _two_free_ports()
    with subprocess.Popen([LIMIT_PROGRAM, "-p", str(port), "-c", str(channels)]) as process:
        try:
            wait_until(lambda: listens(port), what="limit")
            yield Target(f"http://127.0.0.1:{port}/%d", ("--line", f"127.0.0.1:{port + 1}"), (process.pid,))
        finally:
            process.kill()


def _two_free_ports() -> int:
    """Return the first of two neighbours, below those that the system gives to clients."""
    while True:
        port = random.randrange(20_000, 32_000, 2)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port


@contextmanager
def hub(
    app: str = PLAIN_APP,
    path: str = "/sse/bench",
    channel: str = CHANNEL,
    hubs: int = 1,
    deflate: bool = False,
) -> Iterator[Target]:
    """gunicorn with our worker, and a Redis that is published to plainly."""
    with ExitStack() as stack:
        server, redis = start_gunicorn(stack, app, env={"GUNICORN_REALTIME_HUBS": str(hubs)})
        wait_for_hubs(redis, hubs)
        pids = tuple(server.hub_pids())
        yield Target(server.url(path), to_redis(redis, channel), pids, redis.pid, deflate=deflate)


@contextmanager
def hub_with_history(path: str = "/sse/bench?history=100") -> Iterator[Target]:
    """The same, published to with history."""
    with ExitStack() as stack:
        server, redis = start_gunicorn(stack, PLAIN_APP)
        wait_for_hubs(redis)
        publisher = stack.enter_context(line_publisher(redis, CHANNEL, history=100))
        yield Target(server.url(path), publisher.options, tuple(server.hub_pids()), redis.pid)


@contextmanager
def gevent_worker() -> Iterator[Target]:
    """The same site without us: gunicorn's gevent worker and a streaming response."""
    with ExitStack() as stack:
        server, redis = start_gunicorn(stack, DJANGO_APP, worker_class="gevent")
        yield Target(server.url("/plain_stream"), to_redis(redis, "news"), (server.pid,), redis.pid)


LIMIT = Server("limit", "`limit` (the reference, in C)", limit)
HUB = Server("hub", "gunicorn-realtime", hub)
HUB_WITH_HISTORY = Server("hub-history", "gunicorn-realtime, with history", hub_with_history)
HUB_WEBSOCKET = Server(
    "hub-ws", "gunicorn-realtime, WebSocket", partial(hub, path="/websocket/bench"), mode="ws"
)
HUB_WEBSOCKET_DEFLATE = Server(
    "hub-ws-deflate",
    "gunicorn-realtime, WebSocket, deflate",
    partial(hub, path="/websocket/bench", deflate=True),
    mode="ws",
    least_size=MIN_COMPRESSED_SIZE,
)
GEVENT_WORKER = Server("gevent", "gunicorn's gevent worker", gevent_worker)


def limit_with(channels: int) -> Server:
    return Server("limit", f"limit, {channels} channels", partial(limit, channels))


def hub_with(channels: int) -> Server:
    """The hub, whose client number I follows channel I modulo `channels`."""
    start = partial(hub, path=f"/sse/{CHANNEL}-%d", channel=f"{CHANNEL}-%d")
    return Server("hub", f"hub, {channels} channels", start)


def start_gunicorn(
    stack: ExitStack,
    app: str,
    *options: str,
    worker_class: str = "gunicorn_realtime.Worker",
    env: dict[str, str] | None = None,
    redis_options: tuple[str, ...] = (),
) -> tuple[GunicornServer, RedisServer]:
    """Start a site, and a Redis of its own for its bus."""
    directory = temporary_directory(stack)
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
            **(env or {}),
        },
        worker_class=worker_class,
        bind=f"127.0.0.1:{free_port()}",
    )
    return stack.enter_context(server), redis


def wait_for_hubs(redis: RedisServer, hubs: int = 1) -> None:
    """Hubs are ready when they follow the channel of all hubs."""
    with redis.client() as client:
        wait_until(lambda: dict(client.pubsub_numsub("rt:hubs"))["rt:hubs"] == hubs, what="the hubs")


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
        self.options = ("--line", f"127.0.0.1:{int(self._stdout.readline())}")

    def counts(self) -> dict[str, Any]:
        """What it says at the end of its connection."""
        counts: dict[str, Any] = json.loads(self._stdout.readline())
        return counts


def to_redis(redis: RedisServer, channel: str) -> tuple[str, ...]:
    """The load client's options that publish by PUBLISH."""
    return ("--redis", f"127.0.0.1:{redis.port}", "--channel", channel)


def temporary_directory(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))


def listens(port: int) -> bool:
    try:
        connect(port, timeout=1).close()
    except OSError:
        return False
    return True
