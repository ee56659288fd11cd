"""Fixtures of the end-to-end tests: the plain application behind the real worker."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.client import Publisher
from gunicorn_realtime.errors import BusUnavailable
from tests.servers import GunicornServer

PLAIN_APP = "tests.e2e.plain_app:application"
DJANGO_APP = "tests.e2e.django_app:application"


class Flow:
    """Publishes numbered messages at a steady rate, in a thread."""

    def __init__(self, address: BusAddress, channel: str, rate: float) -> None:
        self.published: list[str] = []  # those whose publish returned
        self.failed: list[str] = []  # those that may or may not have been sent
        self._publisher = Publisher(address)
        self._channel = channel
        self._interval = 1 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flow", daemon=True)

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._interval):
            data = f"message {number}"
            number += 1
            try:
                self._publisher.publish(self._channel, data.encode())
            except BusUnavailable:
                self.failed.append(data)
            else:
                self.published.append(data)

    def start(self) -> Flow:
        self._thread.start()
        return self

    def stop(self) -> list[str]:
        """Stop, and return the messages whose publish returned."""
        self._stop.set()
        self._thread.join(30)
        self._publisher.close()
        return self.published


@contextmanager
def flowing(server: GunicornServer, channel: str = "news", rate: float = 20) -> Iterator[Flow]:
    flow = Flow(bus_of(server), channel, rate).start()
    try:
        yield flow
    finally:
        flow.stop()


def bus_of(server: GunicornServer) -> BusAddress:
    """Return the bus that a server was told of by the environment."""
    return BusAddress(server.env["BUS"])


@pytest.fixture
def bus_directory() -> Iterator[str]:
    """A directory for a local bus; its socket's path must be short."""
    directory = tempfile.mkdtemp(prefix="rt-")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def plain(bus_directory, gunicorn) -> Callable[..., GunicornServer]:
    """Start the plain application, on a local bus unless `bus` names another."""

    def start(*arguments: str, bus: str | None = None, env: dict[str, str] | None = None, **options):
        environment = {"BUS": bus or f"local:{bus_directory}", **(env or {})}
        server = gunicorn(PLAIN_APP, *arguments, env=environment, **options)
        if bus is None:
            server.wait_for_log("serving the local bus")
        return server

    return start


@pytest.fixture
def site(bus_directory, gunicorn, tmp_path) -> Callable[..., GunicornServer]:
    """Start the Django site, on a local bus."""

    def start(*arguments: str, env: dict[str, str] | None = None, **options) -> GunicornServer:
        database = str(tmp_path / "site.sqlite3")
        environment = {"BUS": f"local:{bus_directory}", "DATABASE": database, **(env or {})}
        server = gunicorn(DJANGO_APP, *arguments, env=environment, **options)
        server.wait_for_log("serving the local bus")
        return server

    return start


@pytest.fixture
def publish() -> Iterator[Callable[..., None]]:
    """Publish on a server's bus: publish(server, channel, data)."""
    publishers: dict[BusAddress, Publisher] = {}

    def send(server: GunicornServer, channel: str, data: str | bytes) -> int:
        address = bus_of(server)
        if address not in publishers:
            publishers[address] = Publisher(address)
        return publishers[address].publish(channel, data if isinstance(data, bytes) else data.encode())

    yield send
    for publisher in publishers.values():
        publisher.close()
