"""Feeds, and how their messages reach many connections.

A feed is one channel's log in a hub. An audience is all connections that follow the same feeds in
the same encoding: what one of them is sent, all are. A connection has one scalar position, the key
of the last message it has, whatever the number of its feeds. Who has kept up gets what is new in
one send(); who lags has a write watcher and merges its feeds from its position.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from time import perf_counter
from typing import TYPE_CHECKING

from ..bus.message import Message

if TYPE_CHECKING:
    from ..engines.base import Engine
    from .connection import Connection

    # Connections that a broadcast has ended: by the error that says that the client is gone, or
    # by None when they have had the one message that they came for.
    Ended = list[tuple[Connection, OSError | None]]

# A broadcast is cut into slices, between which the loop serves everything else.
SLICE = 0.002  # seconds
DELIVERIES_BETWEEN_CLOCKS = 16  # some 100 µs

# More than this is not joined for one send(): it would only wait in one connection's memory.
MAX_SEND_SIZE = 256 * 1024  # bytes


class Feed:
    """One channel's log: messages in the order of their keys, while somebody still needs them."""

    __slots__ = (
        "audiences",
        "channel",
        "floor",
        "idle_since",
        "is_confirmed",
        "last",
        "messages",
        "size",
        "waiting",
    )

    def __init__(self, channel: str, last: int) -> None:
        self.channel = channel
        self.messages: deque[tuple[int, Message]] | None = None
        self.size = 0  # bytes of data
        self.last = last  # key of the newest message
        self.floor = last  # key of the newest message that was dropped
        self.audiences: list[Audience] = []
        self.waiting: list[Connection] = []  # to be opened when the bus has confirmed
        self.is_confirmed = False
        self.idle_since: float | None = None

    def append(self, key: int, message: Message, max_size: int) -> None:
        if self.messages is None:
            self.messages = deque()
        self.messages.append((key, message))
        self.last = key
        self.size += len(message.data)
        while self.size > max_size and len(self.messages) > 1:
            self._drop_oldest()

    def drop_through(self, key: int) -> None:
        """Forget what everybody has."""
        while self.messages and self.messages[0][0] <= key:
            self._drop_oldest()

    def after(self, position: int) -> list[tuple[int, Message]]:
        if self.last <= position or not self.messages:
            return []
        if self.messages[0][0] > position:
            return list(self.messages)
        found = []
        for entry in reversed(self.messages):
            if entry[0] <= position:
                break
            found.append(entry)
        found.reverse()
        return found

    def _drop_oldest(self) -> None:
        assert self.messages
        self.floor, message = self.messages.popleft()
        self.size -= len(message.data)


class Audience:
    """All connections that follow the same feeds in the same encoding."""

    __slots__ = (
        "_batch",
        "_batch_position",
        "connections",
        "cursor",
        "engine",
        "feeds",
        "is_queued",
        "remaining",
    )

    def __init__(self, engine: Engine, feeds: tuple[Feed, ...]) -> None:
        self.engine = engine
        self.feeds = feeds
        self.connections: list[Connection] = []
        self.is_queued = False
        self.cursor = 0  # whose turn it is
        self.remaining = 0  # how many have not had their turn since the last message came
        self._batch_position = -1
        self._batch: tuple[bytes, int, int] = (b"", -1, 0)

    @property
    def last(self) -> int:
        return max(feed.last for feed in self.feeds)

    @property
    def floor(self) -> int:
        return max(feed.floor for feed in self.feeds)

    def add(self, connection: Connection) -> None:
        connection.index = len(self.connections)
        self.connections.append(connection)

    def remove(self, connection: Connection) -> None:
        last = self.connections.pop()
        if last is not connection:
            self.connections[connection.index] = last
            last.index = connection.index
        if self.remaining:
            self.remaining = len(self.connections)  # the moved one may have lost its turn
        connection.index = -1

    def wake(self) -> None:
        """A message came: everybody gets a turn, beginning with who comes next in the circle."""
        self.remaining = len(self.connections)
        self._batch_position = -1

    def batch(self, position: int) -> tuple[bytes, int, int]:
        """Return what follows a position: the joined bytes, the key of the last message, their number."""
        if position != self._batch_position:
            self._batch = self._join(position)
            self._batch_position = position
        return self._batch

    def _join(self, position: int) -> tuple[bytes, int, int]:
        if len(self.feeds) == 1:
            entries = self.feeds[0].after(position)
        else:
            entries = sorted(
                (entry for feed in self.feeds for entry in feed.after(position)), key=_key_of_entry
            )
        if len(entries) == 1 or (entries and self.engine.is_one_shot):
            key, message = entries[0]
            return message.encoded(self.engine.encoding, self.engine.encode), key, 1
        parts = []
        size = 0
        for key, message in entries:
            part = message.encoded(self.engine.encoding, self.engine.encode)
            if parts and size + len(part) > MAX_SEND_SIZE:
                break
            parts.append(part)
            size += len(part)
            position = key
        return b"".join(parts), position, len(parts)

    def serve(self, deadline: float) -> Ended:
        """Send what is new to those who have kept up, until all have it or time is up."""
        ended: Ended = []
        start = self.cursor
        circle = self.connections[start:] + self.connections[:start]
        turns = min(self.remaining, len(circle))
        served = 0
        while served < turns:
            chunk = circle[served : min(served + DELIVERIES_BETWEEN_CLOCKS, turns)]
            self._deliver(chunk, ended)
            served += len(chunk)
            if perf_counter() > deadline:
                break
        self.remaining = turns - served
        if circle:
            # Whoever was first is not first again.
            rotation = 0 if self.remaining else len(circle) // 3
            self.cursor = (start + served + rotation) % len(circle)
        return ended

    def _deliver(self, connections: list[Connection], ended: Ended) -> None:
        """Bring each of these up to date by one write; what is in this loop is what a delivery costs."""
        write = os.write
        last = self.last
        is_one_shot = self.engine.is_one_shot
        batch_position = -1
        data, key, count, size = b"", -1, 0, 0
        for connection in connections:
            position = connection.position
            if position >= last or connection.lag is not None:
                continue
            if position != batch_position:
                data, key, count = self.batch(position)
                batch_position, size = position, len(data)
            connection.position = key
            connection.messages += count
            try:
                sent = write(connection.fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                ended.append((connection, exc))
                continue
            connection.bytes += sent
            if sent == size and key == last and not is_one_shot:
                continue
            if is_one_shot and sent == size:
                ended.append((connection, None))
            else:
                connection.start_lagging(data, sent)


def _key_of_entry(entry: tuple[int, Message]) -> int:
    return entry[0]


class Fanout:
    """Brings new messages to all audiences, slice by slice.

    Args:
        feed_size: Bytes of messages that a feed keeps for those who lag.
    """

    def __init__(self, feed_size: int) -> None:
        self.feed_size = feed_size
        self.key = 0  # of the newest message of all feeds
        self.queue: deque[Audience] = deque()
        self.touched: set[Feed] = set()  # those that hold messages
        self.backlog_size = 0  # bytes that have come since the queue was last empty

    def append(self, feed: Feed, message: Message) -> None:
        """Add a message to its feed; `run_slice` must be called afterwards."""
        self.key += 1
        feed.append(self.key, message, self.feed_size)
        self.touched.add(feed)
        self.backlog_size += len(message.data)
        for audience in feed.audiences:
            audience.wake()
            if not audience.is_queued:
                audience.is_queued = True
                self.queue.append(audience)

    @property
    def is_behind(self) -> bool:
        """So much waits for its turn that the bus should not be read for now."""
        return self.backlog_size > self.feed_size // 4

    def run_slice(self) -> Ended:
        """Serve audiences for the time of one slice; there is more to do while `queue` is not empty."""
        deadline = perf_counter() + SLICE
        ended: Ended = []
        while self.queue:
            audience = self.queue[0]
            ended += audience.serve(deadline)
            if audience.remaining:
                break
            audience.is_queued = False
            self.queue.popleft()
            if perf_counter() > deadline:
                break
        if not self.queue:
            self.backlog_size = 0
        return ended

    def forget(self, lagging: Iterable[Connection]) -> None:
        """Drop the messages that nobody needs any more; to be called while `queue` is empty."""
        if not self.touched:
            return
        needed: dict[Feed, int] = {}
        for connection in lagging:
            for feed in connection.audience.feeds:
                needed[feed] = min(connection.position, needed.get(feed, connection.position))
        for feed in list(self.touched):
            feed.drop_through(needed.get(feed, feed.last))
            if not feed.messages:
                self.touched.discard(feed)
