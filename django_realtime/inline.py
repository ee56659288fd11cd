"""Streams under a development server: a thread each, written by the engines that the hub uses too.

`runserver` and Django's live test server have no hub. They serve the first example and a site's own
browser tests; nobody would run a site on them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from io import BytesIO
from operator import attrgetter
from typing import Any

from django.core.signals import setting_changed
from django.db import connections

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.bus.client import Clock, Publisher, Received, Subscribed, Subscription
from gunicorn_realtime.bus.local import LocalBus, own_local_bus
from gunicorn_realtime.bus.message import Message, decode, parse_cursor
from gunicorn_realtime.engines.base import Engine, make_engine
from gunicorn_realtime.errors import BusUnavailable, ProtocolError
from gunicorn_realtime.plumbing.offload import Offload

from .conf import conf
from .publishing import publisher

logger = logging.getLogger(__name__)

PAGE_SIZE = 256  # messages of each channel


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
    names = {channel.name for channel in offload.followed}
    try:
        _own_bus(offload.bus)
        with closing(Subscription(offload.bus, conf.bus_timeout)) as subscription:
            early = _follow(subscription, names, offload.bus)
            missed, position = _replay(engine, offload)
            yield engine.goodbye() + engine.beat()  # sends the head, and for SSE says when to return
            yield from missed
            yield from _encoded(engine, early, position)
            while True:
                match subscription.read(timeout=engine.heartbeat):
                    case None:
                        yield engine.beat()
                    case Received(channel) as received if channel in names:
                        yield from _encoded(engine, [received], position)
    except BusUnavailable as exc:
        logger.warning("no stream of %s, or no longer: %s", ", ".join(names), exc)
        yield engine.goodbye()


def _follow(subscription: Subscription, names: Collection[str], bus: BusAddress) -> list[Received]:
    """Subscribe and wait until that is confirmed, so that who sees the stream open misses nothing.

    Returns:
        What has come meanwhile.

    Raises:
        BusUnavailable: Not confirmed in time.
    """
    # A development server counts as a hub: `rt_publish` asks who follows this channel.
    missing = {*names, bus.hubs_channel}
    deadline = time.monotonic() + conf.bus_timeout
    early = []
    subscription.connect()
    subscription.subscribe(sorted(missing))
    while missing:
        match subscription.read(timeout=max(0.0, deadline - time.monotonic())):
            case Subscribed(channel):
                missing.discard(channel)
            case Received(channel) as received if channel in names:
                early.append(received)
            case None:
                raise BusUnavailable(f"no answer to SUBSCRIBE within {conf.bus_timeout:g} s")
    return early


def _encoded(engine: Engine, messages: Iterable[Received], position: int) -> Iterator[bytes]:
    """Yield messages but those that the client has from the history."""
    for received in messages:
        try:
            message = decode(received.channel, received.payload)
        except ProtocolError as exc:
            logger.warning("a message on %s was dropped: %s", received.channel, exc)
        else:
            if message.stamp is None or message.stamp.id > position:
                yield engine.encode(message)


def _replay(engine: Engine, offload: Offload) -> tuple[list[bytes], int]:
    """Return what the channels' history has for the client, and the position behind it.

    A client that returns gets what came after its cursor; of a channel whose rule is `latest` any
    client gets the newest message, unless it has it.
    """
    channels = {channel.name: channel for channel in offload.followed if channel.history}
    if not channels:
        return [], 0
    client = publisher(offload.bus)
    clock = client.read_clock()
    after = _id_of(offload.cursor, clock) if offload.cursor else None
    if after is not None:
        history = _read_history(client, channels, after)
        # Who wants the latest message misses none of those before it.
        missed = {
            name for name in history.gaps if not (_is_latest(channels[name]) and history.messages[name])
        }
        reason = "expired"
    else:
        after = clock.id
        history = _read_history(client, channels, 0)
        missed = {name for name in channels if not _is_latest(channels[name])} if offload.cursor else set()
        reason = "unknown"
    messages: list[Message] = []
    for name, found in history.messages.items():
        is_latest = _is_latest(channels[name])
        messages += found[-1:] if is_latest else [message for message in found if message.id > after]
    messages.sort(key=attrgetter("id"))
    encoded = [engine.encode(message) for message in messages]
    if missed:
        # Just before what follows, so that who is cut here returns to it.
        cursor = replace(clock, id=messages[0].id - 1 if messages else history.position).cursor
        names = sorted(name.removeprefix(offload.bus.prefix) for name in missed)
        encoded.insert(0, engine.reset(names, reason, cursor))
    return encoded, history.position


def _is_latest(channel: Channel) -> bool:
    return channel.slow_client is SlowClient.LATEST


def _id_of(cursor: str, clock: Clock) -> int | None:
    """Return a cursor's id; None if this bus has not given it."""
    match parse_cursor(cursor):
        case (clock.epoch, id) if id <= clock.id:
            return id
    return None


@dataclass
class _History:
    messages: dict[str, list[Message]]
    gaps: set[str] = field(default_factory=set)
    position: int = 0


def _read_history(client: Publisher, channels: Mapping[str, Channel], after: int) -> _History:
    history = _History({name: [] for name in channels})
    while True:
        page = client.read_after(list(channels.values()), after, PAGE_SIZE)
        for name, log in page.logs.items():
            history.messages[name] += [message for message in log.entries if message.id <= page.bound]
            if log.floor > after:
                history.gaps.add(name)
        history.position = after = page.bound
        if page.bound >= page.clock.id:
            return history


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
