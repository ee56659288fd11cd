"""How messages reach many connections: in broadcasts, slice by slice."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import TYPE_CHECKING

from ..bus.message import Emission, Message
from .audience import DELIVERIES_BETWEEN_CLOCKS, Audience
from .feed import Feed, cost

if TYPE_CHECKING:
    from .audience import Ended
    from .connection import Connection

# A broadcast is cut into slices, between which the loop serves everything else.
SLICE = 0.002  # seconds

# Room for what comes without an id between two that have one (microseconds).
KEY_BITS = 20


class Fanout:
    """Brings new messages to all audiences of one bus, slice by slice.

    Keys are ids with room between them: what has no id gets the next key behind what came before it.

    Args:
        feed_size: Bytes of messages that a feed keeps for those who lag.
        connections: The hub's, of all buses.

    Attributes:
        sockets: Connections by the names by which a message may skip them.
    """

    def __init__(self, feed_size: int, connections: Mapping[int, Connection] | None = None) -> None:
        self.feed_size = feed_size
        self.connections: Mapping[int, Connection] = {} if connections is None else connections
        self.sockets: dict[str, Connection] = {}
        self.key = 0  # of the newest message of all feeds
        self.shift = 0  # added to ids, so that keys rise also when the bus's clock has gone back
        self.queue: deque[Audience] = deque()
        self.strays: deque[Connection] = deque()  # without a place, and not lagging
        self.touched: set[Feed] = set()  # those that hold messages that will be forgotten
        self.backlog_size = 0  # bytes that have come since the queue was last empty
        self.turn = 0  # counts what comes from the bus together
        self._ended: Ended = []

    def key_of(self, id: int) -> int:
        return (id + self.shift) << KEY_BITS

    def id_of(self, position: int) -> int:
        """Return the newest id that somebody at a position has."""
        return max(0, (position >> KEY_BITS) - self.shift)

    def behind(self, id: int) -> int:
        """Return the position of who has everything up to an id, and all that came without one before the next."""
        return self.key_of(id + 1) - 1

    def advance(self, id: int) -> None:
        """The bus's clock is at an id, and everything up to it has come."""
        self.key = max(self.key, self.key_of(id))

    def append(self, feed: Feed, message: Message) -> bool:
        """Add a message to its feed; return whether `run_slice` must be called."""
        if message.emission is not None and message.emission.is_selective:
            return self._append_selectively(feed, message, message.emission)
        return self._append(feed, message)

    def _append_selectively(self, feed: Feed, message: Message, emission: Emission) -> bool:
        """Add a message that not all are to have who follow its feed."""
        skipped = self._skipped_by(feed, emission)
        for connection in skipped:
            if connection.has_place:
                connection.audience.leave(connection)
                self.strays.append(connection)
        before = self.key
        is_due = self._append(feed, message)
        if self.key != before:  # else the feed has had it already
            for connection in skipped:
                connection.skip(self.key)
        return is_due or bool(skipped)

    def _skipped_by(self, feed: Feed, emission: Emission) -> list[Connection]:
        named = [self.sockets[name] for name in emission.skip if name in self.sockets]
        skipped = [connection for connection in named if feed in connection.audience.feeds]
        if emission.skip_channels:
            channels = set(emission.skip_channels)
            skipped += [
                connection
                for connection in self.connections.values()
                if feed in connection.audience.feeds
                and any(other.channel in channels for other in connection.audience.feeds)
            ]
        return skipped

    def _append(self, feed: Feed, message: Message) -> bool:
        if not feed.absent and self._is_for_few(feed):
            self._send_at_once(feed, message)
            return bool(self._ended)
        if self.queue:
            self._let_stray(feed)
        before = self.key
        if self.append_quietly(feed, message):
            for audience in feed.audiences:
                if audience.wake(message, before):
                    self.queue.append(audience)
        return True

    def append_quietly(self, feed: Feed, message: Message) -> bool:
        """Add a message to a feed that nobody follows yet; return False if the feed has it already."""
        if not self._take_key(feed, message):
            return False
        feed.append(self.key, message, self.feed_size)
        self.touched.add(feed)
        self.backlog_size += cost(message)
        return True

    def _take_key(self, feed: Feed, message: Message) -> bool:
        """Move `key` on to a message that is new; return False if the feed has it already."""
        key = self.key + 1
        if message.stamp:
            if message.stamp.id <= feed.last_id:
                return False
            key = max(key, self.key_of(message.stamp.id))
        self.key = key
        return True

    def _is_for_few(self, feed: Feed) -> bool:
        """Tell whether those in the arrays have all there is, and are so few that they need no slice."""
        if feed.turn == self.turn:
            return False  # more to come: the others are joined
        count = 0
        for audience in feed.audiences:
            if audience.runs is not None or (audience.guests and self.queue):
                return False
            count += len(audience.fds)
        return count <= DELIVERIES_BETWEEN_CLOCKS

    def _send_at_once(self, feed: Feed, message: Message) -> None:
        """Send a message to the few who follow its feed, as on a channel of a room or of one user.

        Waking up to send it later would cost more than that.
        """
        feed.turn = self.turn
        if not self._take_key(feed, message):
            return
        if feed.entries or feed.keeps:
            feed.append(self.key, message, self.feed_size)
            self.touched.add(feed)
        else:
            feed.pass_by(self.key, message)
        for audience in feed.audiences:
            if audience.fds:
                audience.send_at_once(message, self._ended)

    def _let_stray(self, feed: Feed) -> None:
        """Take those out of their places who would be in the middle of two broadcasts.

        They catch up by themselves: the order of messages holds over all feeds of a connection.
        """
        for audience in feed.audiences:
            if not audience.guests:
                continue
            if len(audience.fds) <= len(self.queue):
                guests = audience.all_guests()
            else:
                others = [other for other in self.queue if other.guests and other is not audience]
                guests = [guest for other in others for guest in other.waiting_guests()]
            for guest in guests:
                own = guest.audience
                if guest.places and audience in own.parts and own.lacks_other_than(guest, audience):
                    own.leave(guest)
                    self.strays.append(guest)

    @property
    def is_busy(self) -> bool:
        """Somebody lacks something who keeps up."""
        return bool(self.queue or self.strays)

    @property
    def is_behind(self) -> bool:
        """So much waits for its turn that the bus should not be read for now.

        Far below `feed_size`, so that nobody who keeps up falls off a feed's end.
        """
        return self.backlog_size > self.feed_size // 4

    def run_slice(self) -> Ended:
        """Serve audiences for the time of one slice; there is more to do while the fan-out is busy."""
        deadline = perf_counter() + SLICE
        ended, self._ended = self._ended, []
        while self.is_busy:
            for _ in range(min(len(self.strays), DELIVERIES_BETWEEN_CLOCKS)):
                self.strays.popleft().catch_up()
            if self.queue:
                audience = self.queue.popleft()
                if not audience.serve(deadline, ended):
                    self.queue.append(audience)  # behind the others: it may never be done
            if perf_counter() > deadline:
                break
        if not self.is_busy:
            self.backlog_size = 0
        return ended

    def forget(self, lagging: Iterable[Connection]) -> None:
        """Drop what nobody needs any more, unless a broadcast is under way."""
        if self.is_busy or not self.touched:
            return
        needed: dict[Feed, int] = {}
        for connection in lagging:
            for feed in connection.audience.feeds:
                needed[feed] = min(connection.position, needed.get(feed, connection.position))
        for feed in list(self.touched):
            if feed.trim(needed.get(feed)):
                self.touched.discard(feed)
