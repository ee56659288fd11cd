"""Publishing, from wherever Django runs: a view, a task, a command, a shell."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.core.serializers.json import DjangoJSONEncoder
from django.core.signals import setting_changed
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.client import Outgoing, Publisher
from gunicorn_realtime.errors import BusUnavailable, TooLarge

from .conf import conf

logger = logging.getLogger(__name__)

# A cursor: a client that names it has this message and all before it. Opaque to clients.
MessageId = str

# A name, not content.
MAX_EVENT_SIZE = 200  # bytes


def publish(
    channel: str, data: Any, *, event: str | None = None, using: str | None = None, immediately: bool = False
) -> MessageId | None:
    """Send one message to every connection that follows a channel.

    Within a transaction the message waits for the commit, and a rollback drops it, also that of a
    savepoint. What one transaction publishes goes in one round trip. The data is committed by then, so
    a failure is no longer raised but logged, and counted by `lost_after_commit`.

    Args:
        channel: Its name, 1 to 200 bytes.
        data: Text, bytes (of which a WebSocket makes a binary message), or what Django's JSON encoder
            takes; at most
            `REALTIME["MAX_MESSAGE_SIZE"]` bytes.
        event: SSE event type (WHATWG HTML, section 9.2), one line.
        using: The database whose transaction counts.
        immediately: Do not wait for the commit.

    Returns:
        The message's id; None if it waits for the commit, or its channel keeps no history.

    Raises:
        TypeError: `data` can't be encoded.
        ValueError: `channel` (ChannelNameError), `event` or `data` breaks the rules above.
        TooLarge: `data` has too many bytes.
        BusUnavailable: No answer within `REALTIME["BUS_TIMEOUT"]` seconds; the message may or may
            not have been sent. Not raised while a transaction is open.
    """
    [message_id] = publish_many([(channel, data, event)], using=using, immediately=immediately)
    return message_id


def publish_many(
    messages: Iterable[tuple[str, Any] | tuple[str, Any, str | None]],
    *,
    using: str | None = None,
    immediately: bool = False,
) -> list[MessageId | None]:
    """Send several messages in order and in one round trip; all the rest is as with `publish`.

    Args:
        messages: `(channel, data)` or `(channel, data, event)` each.
        using: The database whose transaction counts.
        immediately: Do not wait for the commit.

    Returns:
        What `publish` returns, for each message.
    """
    return send([_encode(*message) for message in messages], using=using, immediately=immediately)


def send(outgoing: list[Outgoing], *, using: str | None, immediately: bool) -> list[MessageId | None]:
    """Publish what is encoded already, now or after the commit."""
    bus = conf.bus
    connection = transaction.get_connection(using)
    if connection.in_atomic_block and not immediately:
        _send_after_commit(connection, bus, outgoing)
        return [None] * len(outgoing)
    return publisher(bus).send(outgoing)


apublish = sync_to_async(publish, thread_sensitive=True)


def lost_after_commit() -> int:
    """Return how many messages this process could not send after their transaction had committed."""
    return _lost.value


def publisher(bus: BusAddress) -> Publisher:
    """Return this process's client of `bus`, which connects when it is first used."""
    key = bus, conf.bus_timeout
    with _publishers_lock:
        if key not in _publishers:
            _publishers[key] = Publisher(*key)
        return _publishers[key]


_publishers: dict[tuple[BusAddress, float], Publisher] = {}
_publishers_lock = threading.Lock()


def _close_publishers(*, setting: str, **kwargs: Any) -> None:
    if setting == "REALTIME":
        with _publishers_lock:
            while _publishers:
                _publishers.popitem()[1].close()


setting_changed.connect(_close_publishers)


def _encode(channel: str, data: Any, event: str | None = None) -> Outgoing:
    if event is not None:
        check_event(event)
    encoded = to_bytes(data)
    if len(encoded) > conf.max_message_size:
        raise TooLarge(f"a message of {len(encoded)} bytes, and REALTIME allows {conf.max_message_size}")
    is_binary = isinstance(data, bytes | bytearray | memoryview)
    return Outgoing(conf.channel(channel), encoded, event, is_binary)


def check_event(event: str) -> None:
    if "\n" in event or "\r" in event:
        raise ValueError(f"an event's name must be one line: {event!r}")
    if len(event.encode()) > MAX_EVENT_SIZE:
        raise ValueError(f"an event's name has more than {MAX_EVENT_SIZE} bytes: {event[:40]!r}…")


def to_bytes(data: Any) -> bytes:
    """Return data as it goes over the wire.

    Raises:
        TypeError: Django's JSON encoder does not take it.
    """
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    try:
        text = json.dumps(
            data, cls=DjangoJSONEncoder, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except TypeError as exc:
        raise TypeError(f"data must be str, bytes, or what Django's JSON encoder takes: {exc}") from exc
    return text.encode()


class _AfterCommit:
    """What one call publishes after the commit: a callback of `transaction.on_commit`.

    Calls that follow one another within the same savepoints form a chain, and the first that Django
    runs sends for all behind it. Each registers a callback all the same: thus a savepoint's rollback
    drops what belongs to it, other callbacks keep their place in the order, and Django's
    `captureOnCommitCallbacks` finds what was published inside it.
    """

    def __init__(self, bus: BusAddress, messages: Sequence[Outgoing]) -> None:
        self.bus = bus
        self.messages = messages
        self.next: _AfterCommit | None = None

    def __call__(self) -> None:
        if messages := self._take_chain():
            try:
                publisher(self.bus).send(messages)
            except BusUnavailable:
                _lost.add(len(messages))
                logger.exception("%d messages were lost after their transaction's commit", len(messages))

    def _take_chain(self) -> list[Outgoing]:
        messages: list[Outgoing] = []
        link: _AfterCommit | None = self
        while link is not None:
            messages += link.messages
            link.messages = ()
            link = link.next
        return messages


def _send_after_commit(
    connection: BaseDatabaseWrapper, bus: BusAddress, messages: Sequence[Outgoing]
) -> None:
    callback = _AfterCommit(bus, messages)
    if connection.run_on_commit:
        savepoints, last = connection.run_on_commit[-1][:2]
        if isinstance(last, _AfterCommit) and last.bus == bus and savepoints == set(connection.savepoint_ids):
            last.next = callback
    transaction.on_commit(callback, using=connection.alias, robust=True)


class _Counter:
    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, number: int) -> None:
        with self._lock:
            self.value += number


_lost = _Counter()
