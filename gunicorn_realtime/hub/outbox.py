"""What clients publish, on its way to the bus."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from ..bus.client import Outgoing
from ..errors import BusUnavailable
from .feed import OVERHEAD

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

# Sent in one round trip.
BATCH = 256  # messages
BATCH_SIZE = 1024 * 1024  # bytes

# While so much waits, those who add to it are not read.
MAX_SIZE = 4 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Waiting:
    connection: Connection | None
    message: Outgoing
    sent: Callable[[], None] | None = None


class Outbox:
    """Sends what clients publish: in their order, and many messages in one round trip.

    Args:
        send: Sends messages to the bus; blocks the greenlet, and raises `BusUnavailable`.
        failed: Called with a connection whose messages may not have been sent, and the reason.
    """

    def __init__(
        self, send: Callable[[Sequence[Outgoing]], object], failed: Callable[[Connection, str], None]
    ) -> None:
        self._send = send
        self._failed = failed
        self._queue: deque[Waiting] = deque()
        self._size = 0  # bytes in the queue
        self._held: set[Connection] = set()  # not read until there is room again
        self._filled = Event()
        self._greenlet = gevent.spawn(self._send_forever)

    def put(
        self,
        connection: Connection | None,
        messages: Iterable[Outgoing],
        sent: Callable[[], None] | None = None,
    ) -> None:
        """Send messages.

        Args:
            connection: Waits while too much is on its way, and is told if they could not be sent.
            sent: Called when they have been.
        """
        for message in messages:
            self._queue.append(Waiting(connection, message))
            self._size += _cost(message)
        if sent is not None:
            self._queue[-1] = replace(self._queue[-1], sent=sent)
        self._filled.set()
        if self._size > MAX_SIZE and connection is not None:
            self._held.add(connection)
            connection.stop_reading()

    def close(self) -> None:
        self._greenlet.kill()

    def _send_forever(self) -> None:
        while True:
            self._filled.wait()
            self._filled.clear()
            while self._queue:
                self._send_batch(self._take_batch())
                if self._size <= MAX_SIZE // 2:
                    self._release()

    def _take_batch(self) -> list[Waiting]:
        batch: list[Waiting] = []
        size = 0
        while self._queue and len(batch) < BATCH and size < BATCH_SIZE:
            batch.append(self._queue.popleft())
            size += _cost(batch[-1].message)
        self._size -= size
        return batch

    def _send_batch(self, batch: list[Waiting]) -> None:
        try:
            self._send([waiting.message for waiting in batch])
        except BusUnavailable as exc:
            logger.warning("%d messages of clients may not have been published: %s", len(batch), exc)
            reason = "the bus is unavailable"
        except Exception:
            logger.exception("%d messages of clients could not be published", len(batch))
            reason = "its message could not be published"
        else:
            for waiting in batch:
                if waiting.sent is not None:
                    self._call(waiting.sent)
            return
        for connection in dict.fromkeys(waiting.connection for waiting in batch):
            if connection is not None:
                self._call(self._failed, connection, reason)

    def _call(self, call: Callable[..., None], *arguments: object) -> None:
        try:
            call(*arguments)
        except Exception:
            logger.exception("A client could not be told what became of its messages")

    def _release(self) -> None:
        held, self._held = self._held, set()
        for connection in held:
            connection.read_on()


def _cost(message: Outgoing) -> int:
    """Return what a message takes while it waits, in bytes: also empty ones add up."""
    return len(message.data) + OVERHEAD
