"""All connections that are sent the same.

An audience is all connections that follow the same feeds in the same encoding: what one of them is
sent, all are. Those who have kept up are an array of descriptors, so that a delivery is little
more than a write(); what one of them lacks follows from its place in the array. Who cannot take
what it is sent leaves the array, and reads its feeds at its own pace until it has caught up.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING

from ..bus.message import Message
from .feed import Entry, Feed

if TYPE_CHECKING:
    from ..engines.base import Engine
    from .connection import Connection
    from .following import Following

    # Connections that a broadcast has ended: by the error that says that the client is gone, or
    # by None when they have had the one message that they came for.
    Ended = list[tuple[Connection, OSError | None]]

DELIVERIES_BETWEEN_CLOCKS = 32  # some 200 µs

# More than this is not joined for one write: it would only wait in one connection's memory.
MAX_WRITE_SIZE = 256 * 1024  # bytes

NOBODY = array("i")
VACANT = -1  # a place in the array whose connection has left

# So many connections with the same feeds sit in the arrays of each single feed; more have their own.
FEW = 4


class Audience:
    """All connections that follow the same feeds in the same encoding.

    Between two broadcasts everybody in the array has everything: it is settled. During a broadcast
    the array is a circle in which `cursor` goes round: `runs` says, from the cursor on, how many
    connections have which position. Who leaves meanwhile makes its place vacant; who comes has
    everything, and takes a place behind the last.

    A few connections that nobody shares all their feeds with (many sites give each user a channel of
    its own, beside one for all) sit as guests in the arrays of each feed's own audience. A guest is
    in the middle of one broadcast at most: see `Fanout.append`.

    Args:
        engine: Gives the encoding.
        feeds: What they follow.
        connections: The hub's, by descriptor.
        following: What brings the messages.
    """

    __slots__ = (
        "_batch",
        "_batch_position",
        "_batch_until",
        "away",
        "bytes",
        "connections",
        "cursor",
        "engine",
        "fds",
        "feeds",
        "followers",
        "following",
        "guests",
        "messages",
        "parts",
        "runs",
        "vacant",
    )

    def __init__(
        self,
        engine: Engine,
        feeds: tuple[Feed, ...],
        connections: dict[int, Connection],
        following: Following,
    ) -> None:
        self.engine = engine
        self.feeds = feeds
        self.connections = connections
        self.following = following
        self.fds = NOBODY  # until its feeds know it
        self.vacant = 0
        self.followers = 0  # all its own connections, in an array or not
        self.guests = 0  # in the array, from other audiences
        self.away = 0  # its own, in the arrays of its parts
        self.parts: tuple[Audience, ...] = ()  # the audiences of each single feed, while somebody is away
        self.runs: list[tuple[int, int]] | None = None  # None while settled
        self.cursor = 0
        self.messages = 0  # that have come while the array was not empty, and the bytes they make
        self.bytes = 0
        self._batch_position = self._batch_until = -1
        self._batch: tuple[bytes, int] = (b"", -1)

    @property
    def last(self) -> int:
        return max([feed.last for feed in self.feeds], default=0)

    def has_dropped(self, position: int, since: Mapping[Feed, int]) -> bool:
        """Tell whether somebody at a position has missed something for good.

        Args:
            since: Where it joined feeds later than that.
        """
        return any(
            feed.floor > max(position, since.get(feed, 0)) for feed in self.feeds if not feed.is_latest
        )

    @property
    def is_used(self) -> bool:
        return bool(self.followers or self.guests)

    @property
    def is_settled(self) -> bool:
        """Nothing is on its way to those who have kept up."""
        return self.runs is None and all(part.runs is None for part in self.parts)

    def enter(self) -> None:
        """A connection of this audience has come; it has no place yet."""
        self.followers += 1
        for feed in self.feeds:
            feed.absent += 1

    def exit(self) -> None:
        """A connection that has no place any more has gone."""
        self.followers -= 1
        for feed in self.feeds:
            feed.absent -= 1

    def join(self, connection: Connection) -> None:
        """Take a connection that has everything."""
        connection.since = None
        for feed in self.feeds:
            feed.absent -= 1
        if len(self.feeds) > 1 and not self.fds and self.away < FEW:
            if not self.away:
                audience_of = connection.hub.audience_of
                self.parts = tuple(audience_of(self.engine, (feed,), self.following) for feed in self.feeds)
            self.away += 1
            connection.places = [part._take_in(connection) for part in self.parts]
            for part in self.parts:
                part.guests += 1
        else:
            connection.index = self._take_in(connection)

    def leave(self, connection: Connection) -> None:
        """Let a connection go, with its position and what it has had."""
        if not connection.has_place:
            return
        for feed in self.feeds:
            feed.absent += 1
        if connection.places is not None:
            places, connection.places = connection.places, None
            self.away -= 1
            for part in self.parts:
                part.guests -= 1
            connection.position = self.last
            for part, index in zip(self.parts, places, strict=True):
                # It lacks something of one part at most, and has had nothing of the others since.
                if (position := part._let_go(connection, index)) < part.last:
                    connection.position = position
            if not self.away:
                connection.hub.deserted.update(self.parts)
                self.parts = ()
        else:
            index, connection.index = connection.index, -1
            connection.position = self._let_go(connection, index)

    def lacks_other_than(self, connection: Connection, part: Audience) -> bool:
        """Return whether one of our guests waits for something from another array than this part's."""
        assert connection.places is not None
        return any(
            other is not part and other.runs is not None and other._position(index) < other.last
            for other, index in zip(self.parts, connection.places, strict=True)
        )

    def waiting_guests(self) -> list[Connection]:
        """Return the guests whom this broadcast has not reached."""
        found = []
        turn, last = self.cursor, self.last
        for count, position in self.runs or ():
            if position < last:
                found += self._guests(self.fds[place % len(self.fds)] for place in range(turn, turn + count))
            turn += count
        return found

    def all_guests(self) -> list[Connection]:
        return self._guests(self.fds)

    def _guests(self, fds: Iterable[int]) -> list[Connection]:
        return [connection for connection in self._connections(fds) if connection.places is not None]

    def _connections(self, fds: Iterable[int]) -> list[Connection]:
        return [self.connections[fd] for fd in fds if fd != VACANT]

    def _take_in(self, connection: Connection) -> int:
        """Give a connection a place in the array."""
        if self.fds is NOBODY:
            self.fds = array("i")
            for feed in self.feeds:
                feed.audiences.append(self)
        index = len(self.fds)
        self.fds.append(connection.fd)
        if self.runs is not None:
            self._insert_run(index - self.cursor, self.last)
        # The difference to what the audience has had when it leaves is what it has had itself.
        connection.messages -= self.messages
        connection.bytes -= self.bytes
        return index

    def _insert_run(self, turn: int, last: int) -> None:
        """Note that so many turns from the cursor somebody has everything who was not there before."""
        assert self.runs is not None
        for at, (count, position) in enumerate(self.runs):
            if turn <= count:
                parts = [(turn, position), (1, last), (count - turn, position)]
                if position == last:
                    parts = [(count + 1, last)]
                self.runs[at : at + 1] = [part for part in parts if part[0]]
                return
            turn -= count
        self.runs.append((1, last))

    def _let_go(self, connection: Connection, index: int) -> int:
        """Take a connection's place away; return its position."""
        position = self._position(index)
        lacking = self.after(position)
        connection.messages += self.messages - len(lacking)
        connection.bytes += self.bytes - sum(len(self._encoded(message)) for _, message in lacking)
        if self.runs is None:
            self._take_out(index)
        else:
            self.fds[index] = VACANT
            self.vacant += 1
        return position

    def _take_out(self, index: int) -> None:
        last_fd = self.fds.pop()
        if index < len(self.fds):
            self.fds[index] = last_fd
            if last_fd != VACANT:
                self._move(self.connections[last_fd], index)

    def _move(self, connection: Connection, index: int) -> None:
        if connection.places is None:
            connection.index = index
        else:
            connection.places[connection.audience.parts.index(self)] = index

    def _position(self, index: int) -> int:
        if self.runs is None:
            return self.last
        turn = (index - self.cursor) % len(self.fds)
        for count, position in self.runs:
            if turn < count:
                return position
            turn -= count
        raise AssertionError("the runs cover the circle")

    # A broadcast.

    def send_at_once(self, message: Message, ended: Ended) -> None:
        """Send a message, which is the feeds' last by now, to a few who have all that came before it."""
        data = self._encoded(message)
        self.messages += 1
        self.bytes += len(data)
        self._write(0, len(self.fds), data, ended)

    def wake(self, message: Message, position: int) -> bool:
        """A message has come, before which everybody was at `position`; return whether this begins a broadcast."""
        count = len(self.fds)
        if not count:
            return False
        self.messages += 1
        self.bytes += len(self._encoded(message))
        if self.runs is not None:
            return False
        self.runs = [(count, position)]
        # Whoever was first is not first again. Places have gone since, so this also keeps it in the circle.
        self.cursor = (self.cursor + count // 3) % count
        return True

    def serve(self, deadline: float, ended: Ended) -> bool:
        """Send what is new, until all have it or time is up; return whether all have it."""
        last = self.last
        assert self.runs is not None
        while any(position < last for _, position in self.runs):
            count, position = self.runs.pop(0)
            data, key = self.batch(position)
            turns = min(count, DELIVERIES_BETWEEN_CLOCKS, len(self.fds) - self.cursor)
            if turns < count:
                self.runs.insert(0, (count - turns, position))
            if self.runs and self.runs[-1][1] == key:
                self.runs[-1] = (self.runs[-1][0] + turns, key)
            else:
                self.runs.append((turns, key))
            start, self.cursor = self.cursor, (self.cursor + turns) % len(self.fds)
            if data:
                self._write(start, start + turns, data, ended)
            if self.cursor == 0 and self.vacant > len(self.fds) // 2:
                self._close_gaps()
            if perf_counter() > deadline:
                return False
        self._settle()
        return True

    def _write(self, start: int, end: int, data: bytes, ended: Ended) -> None:
        """Write the same to some of the array; what is in this loop is what a delivery costs."""
        write = os.write
        size = len(data)
        fds = self.fds[start:end]
        for fd in fds:
            try:
                sent = write(fd, data)
            except BlockingIOError:
                sent = 0
            except OSError as exc:
                if fd != VACANT:
                    connection = self.connections[fd]
                    connection.audience.leave(connection)
                    connection.bytes -= size
                    ended.append((connection, exc))
                continue
            if sent == size:
                continue
            self.connections[fd].start_lagging(data, sent)
        if self.engine.is_one_shot:
            for connection in self._connections(fds):
                if connection.has_place:  # it is neither gone nor lagging
                    connection.audience.leave(connection)
                    ended.append((connection, None))

    def _settle(self) -> None:
        """The broadcast has ended: close the gaps."""
        self.runs = None
        index = 0
        while self.vacant:
            index = self.fds.index(VACANT, index)
            self._take_out(index)
            self.vacant -= 1
        self._batch, self._batch_position = (b"", -1), -1  # an idle audience holds no message

    def _close_gaps(self) -> None:
        """Close them in a broadcast that does not end; the cursor is at the first place."""
        assert self.runs is not None
        fds, self.fds = self.fds, array("i")
        runs, self.runs = self.runs, []
        start = 0
        for count, position in runs:
            kept = [fd for fd in fds[start : start + count] if fd != VACANT]
            start += count
            if kept:
                self.runs.append((len(kept), position))
            for connection in self._connections(kept):
                self._move(connection, len(self.fds))
                self.fds.append(connection.fd)
        self.vacant = 0

    # What is sent.

    def after(self, position: int) -> list[Entry]:
        """Return what is newer than a position in all feeds, in order."""
        if len(self.feeds) == 1:
            return self.feeds[0].after(position)
        return sorted((entry for feed in self.feeds for entry in feed.after(position)), key=_key)

    def missed(self, position: int, came: int, since: Mapping[Feed, int]) -> list[Entry]:
        """Return what is newer than a position for a client that came at another, in order.

        Args:
            since: Where it joined feeds later than that.
        """
        entries = (feed.missed(max(position, since.get(feed, 0)), came) for feed in self.feeds)
        return sorted((entry for some in entries for entry in some), key=_key)

    def batch(self, position: int) -> tuple[bytes, int]:
        """Return what follows a position as it goes over the wire, and the position behind it."""
        last = self.last
        if position != self._batch_position or last != self._batch_until:
            self._batch = self.join_encoded(self.after(position), position)
            self._batch_position, self._batch_until = position, last
        return self._batch

    def join_encoded(self, entries: list[Entry], position: int) -> tuple[bytes, int]:
        """Return the first of what follows a position as they go over the wire, and the position behind them."""
        if len(entries) == 1 or (entries and self.engine.is_one_shot):
            key, message = entries[0]
            return self._encoded(message), key
        parts: list[bytes] = []
        size = 0
        for key, message in entries:
            part = self._encoded(message)
            if parts and size + len(part) > MAX_WRITE_SIZE:
                break
            parts.append(part)
            size += len(part)
            position = key
        return b"".join(parts), position

    def _encoded(self, message: Message) -> bytes:
        return message.encoded(self.engine.encoding, self.engine.encode)


def _key(entry: Entry) -> int:
    return entry[0]
