"""Streams under a development server: a thread each, written by the engines that the hub uses too.

`runserver` and Django's live test server have no hub. They serve the first example and a site's own
browser tests; nobody would run a site on them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from functools import cache
from io import BytesIO
from typing import Any

from django.core.signals import setting_changed
from django.db import connections

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.client import Received, Subscribed, Subscription
from gunicorn_realtime.bus.local import LocalBus, own_local_bus
from gunicorn_realtime.bus.message import Message, decode
from gunicorn_realtime.engines.base import make_engine
from gunicorn_realtime.errors import BusUnavailable, ProtocolError
from gunicorn_realtime.plumbing.offload import Offload

from .conf import conf

logger = logging.getLogger(__name__)


def serves_inline(environ: Mapping[str, Any]) -> bool:
    """Tell whether a request came from `runserver`, the live test server or the test client."""
    # PEP 3333 wants a text stream for errors, which every server gives; the test client gives bytes.
    return _is_development_server(environ) or isinstance(environ.get("wsgi.errors"), BytesIO)


def _is_development_server(environ: Mapping[str, Any]) -> bool:
    software: str = environ.get("SERVER_SOFTWARE", "")
    return software.startswith("WSGIServer/")


def stream(offload: Offload) -> Iterator[bytes]:
    """Yield a response's body for as long as the client takes it."""
    _warn_once()
    _close_database_connections()
    engine = make_engine(offload.engine, offload.options)
    try:
        _own_bus(offload.bus)
        with closing(Subscription(offload.bus, conf.bus_timeout)) as subscription:
            early = _follow(subscription, offload)
            yield engine.goodbye() + engine.beat()  # sends the head, and for SSE says when to return
            yield from map(engine.encode, _decoded(early))
            while True:
                match subscription.read(timeout=engine.heartbeat):
                    case None:
                        yield engine.beat()
                    case Received(channel) as received if channel in offload.channels:
                        yield from map(engine.encode, _decoded([received]))
    except BusUnavailable as exc:
        logger.warning("no stream of %s, or no longer: %s", ", ".join(offload.channels), exc)
        yield engine.goodbye()


def _follow(subscription: Subscription, offload: Offload) -> list[Received]:
    """Subscribe and wait until that is confirmed, so that who sees the stream open misses nothing.

    Returns:
        What has come meanwhile.

    Raises:
        BusUnavailable: Not confirmed in time.
    """
    # A development server counts as a hub: `rt_publish` asks who follows this channel.
    missing = {*offload.channels, offload.bus.hubs_channel}
    deadline = time.monotonic() + conf.bus_timeout
    early = []
    subscription.connect()
    subscription.subscribe(sorted(missing))
    while missing:
        match subscription.read(timeout=max(0.0, deadline - time.monotonic())):
            case Subscribed(channel):
                missing.discard(channel)
            case Received(channel) as received if channel in offload.channels:
                early.append(received)
            case None:
                raise BusUnavailable(f"no answer to SUBSCRIBE within {conf.bus_timeout:g} s")
    return early


def _decoded(messages: Iterable[Received]) -> Iterator[Message]:
    for received in messages:
        try:
            yield decode(received.channel, received.payload)
        except ProtocolError as exc:
            logger.warning("a message on %s was dropped: %s", received.channel, exc)


@cache
def _warn_once() -> None:
    logger.warning(
        "Streams take a thread each here: for development only. Use gunicorn -k gunicorn_realtime.Worker"
    )


def _close_database_connections() -> None:
    """Close what the view used: the request's end, when Django does it, is the stream's end."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:  # the test client's, within a TestCase
            connection.close()


def own_bus_of_development_server(environ: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
    """Make `publish` work under `runserver` before the first stream is open.

    A receiver of Django's `request_started`.
    """
    if environ is not None and _is_development_server(environ):
        with suppress(BusUnavailable):  # who publishes or listens is told
            _own_bus(conf.bus)


def _own_bus(address: BusAddress) -> None:
    """Serve the local bus from this process, if it is the bus and nobody serves it."""
    if address.is_local:
        with _owned_lock:
            if address not in _owned and (bus := own_local_bus(address)):
                _owned[address] = bus


_owned: dict[BusAddress, LocalBus] = {}
_owned_lock = threading.Lock()


def _leave_buses(*, setting: str, **kwargs: Any) -> None:
    if setting == "REALTIME":
        with _owned_lock:
            while _owned:
                _owned.popitem()[1].close()


setting_changed.connect(_leave_buses)
