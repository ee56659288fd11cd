"""A bus to test with: the local one and a real Redis, each test on both."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.client import Publisher, Subscribed, Subscription
from gunicorn_realtime.bus.local import LocalBus
from tests.servers import RedisServer

# Far more than a slow machine needs.
TIMEOUT = 20.0


class LocalServer:
    """The local bus, started and stopped as `RedisServer` is."""

    def __init__(self, directory: Path) -> None:
        self.url = f"local:{directory}"
        self.bus = LocalBus(str(directory))

    def start(self) -> None:
        assert self.bus.try_own()

    def stop(self) -> None:
        self.bus.close()

    def restart(self) -> None:
        self.stop()
        self.start()


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where a local bus can be: a name short enough for a socket, not made yet."""
    parent = Path(tempfile.mkdtemp(prefix="rt-"))
    yield parent / "bus"
    shutil.rmtree(parent)


@pytest.fixture(params=["local", "redis"])
def server(
    request: pytest.FixtureRequest, tmp_path: Path, directory: Path
) -> Iterator[LocalServer | RedisServer]:
    server = LocalServer(directory) if request.param == "local" else RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
    if isinstance(server, RedisServer):
        shutil.rmtree(server.runtime_directory)


@pytest.fixture
def bus_address(server: LocalServer | RedisServer) -> BusAddress:
    return BusAddress(server.url, prefix="site:")


@pytest.fixture
def publisher(bus_address: BusAddress) -> Iterator[Publisher]:
    publisher = Publisher(bus_address, TIMEOUT)
    yield publisher
    publisher.close()


@pytest.fixture(params=["hiredis", "redis-py"])
def subscription(
    request: pytest.FixtureRequest, bus_address: BusAddress, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Subscription]:
    """Reads by hiredis or, where that is not installed, by redis-py."""
    if request.param == "redis-py":
        monkeypatch.setattr("gunicorn_realtime.bus.subscription.hiredis", None)
    subscription = Subscription(bus_address, TIMEOUT)
    subscription.connect()
    yield subscription
    subscription.close()


def follow(subscription: Subscription, *channels: str) -> None:
    """Subscribe and wait for the confirmations."""
    subscription.subscribe(channels)
    for channel in channels:
        assert subscription.read(TIMEOUT) == Subscribed(channel)
