from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO, StringIO
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from asgiref.sync import async_to_sync
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse

from django_realtime.conf import conf
from gunicorn_realtime.bus.client import Received, Subscribed, Subscription
from gunicorn_realtime.bus.local import LocalBus
from gunicorn_realtime.bus.message import Message, decode
from gunicorn_realtime.plumbing.offload import ENVIRON_KEY, Offload

TIMEOUT = 30.0


class Listener:
    """Follows channels of the site's bus, named without its prefix."""

    def __init__(self, *channels: str) -> None:
        self._subscription = Subscription(conf.bus, TIMEOUT)
        self._subscription.connect()
        self._subscription.subscribe(map(conf.bus.channel, channels))
        for _ in channels:
            assert isinstance(self._subscription.read(TIMEOUT), Subscribed)

    def next(self) -> Message:
        received = self._subscription.read(TIMEOUT)
        assert isinstance(received, Received), received
        return decode(received.channel, received.payload)

    def texts(self, count: int) -> list[str]:
        return [self.next().data.decode() for _ in range(count)]

    def close(self) -> None:
        self._subscription.close()


class Server:
    """A WSGI server as far as Django sees it, which can take connections over or not."""

    def __init__(self, *, offloads: bool) -> None:
        self.offloads = offloads
        self.offloaded: list[Offload] = []

    def offload(self, offload):
        self.offloaded.append(offload)
        return []

    def get(self, path: str, method: str = "GET", **environ) -> HttpResponse:
        path, _, query = path.partition("?")
        environ = {
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": method,
            "SERVER_SOFTWARE": "gunicorn/27.0",
            "wsgi.errors": StringIO(),
            "wsgi.input": BytesIO(),
            **environ,
        }
        setup_testing_defaults(environ)
        if self.offloads:
            environ[ENVIRON_KEY] = self.offload
        head: dict = {}

        def start_response(status, headers, exc_info=None):
            head.update(status=int(status.split()[0]), headers=dict(headers))

        before = list(self.offloaded)
        body = WSGIHandler()(environ, start_response)
        assert self.offloaded == before  # nothing happens before the server asks for the body
        response = HttpResponse(b"".join(body), **head)
        if "Content-Type" not in head["headers"]:
            del response.headers["Content-Type"]
        body.close()
        return response


def names(offload: Offload) -> list[str]:
    return [channel.name for channel in offload.followed]


def run_async(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a coroutine function in a thread: Playwright may keep an event loop in this one."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(async_to_sync(function), *args, **kwargs).result(TIMEOUT)


@pytest.fixture(autouse=True)
def bus_directory(settings) -> Iterator[str]:
    """The site's bus is local, in a directory of the test's own, and nobody serves it yet."""
    directory = tempfile.mkdtemp(prefix="rt-")
    settings.REALTIME = {"BUS": f"local:{directory}"}
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def local_bus(bus_directory) -> Iterator[LocalBus]:
    bus = LocalBus(bus_directory)
    assert bus.try_own()
    yield bus
    bus.close()


@pytest.fixture
def listen() -> Iterator[Callable[..., Listener]]:
    listeners = []

    def start(*channels: str) -> Listener:
        listeners.append(Listener(*channels))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def hub_server() -> Server:
    return Server(offloads=True)


@pytest.fixture
def other_server() -> Server:
    return Server(offloads=False)
