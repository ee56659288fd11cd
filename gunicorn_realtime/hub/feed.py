"""A feed: one channel's log in a hub, read by many connections."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import TYPE_CHECKING

from ..bus.channel import Channel, SlowClient
from ..bus.message import Message

if TYPE_CHECKING:
    from .audience import Audience

# A message and its key. Keys rise with the order of arrival, over all feeds of a bus, and with the
# ids of messages that have one. A position is the key of the last message that somebody has.
Entry = tuple[int, Message]


# A message's objects, without its data.
OVERHEAD = 500  # bytes


def cost(message: Message) -> int:
    """Return what a message takes, in bytes: also empty ones add up."""
    return len(message.data) + OVERHEAD


class Feed:
    """One channel's messages, in the order of their keys: those that somebody still needs, and its history."""

    __slots__ = (
        "absent",
        "audiences",
        "channel",
        "entries",
        "floor",
        "followers",
        "held",
        "is_confirmed",
        "last",
        "last_id",
        "rules",
        "size",
        "turn",
    )

    def __init__(self, rules: Channel, last: int) -> None:
        self.rules = rules
        self.channel = rules.name
        self.entries: deque[Entry] | None = None  # made with the first message
        self.size = 0  # bytes that the messages take
        self.last = last  # key of the newest message
        self.last_id = 0  # id of the newest message that has one, or of the clock when all was read
        self.floor = last  # nothing newer than this key was dropped
        self.held: list[Message] | None = [] if rules.history else None  # until the history is read
        self.audiences: list[Audience] = []  # those to be told of a message
        self.followers = 0  # audiences, told or not
        self.absent = 0  # connections that follow it and are in no array, as those who lag
        self.is_confirmed = False
        self.turn = -1  # of the fan-out, when a message was last sent at once

    @property
    def keeps(self) -> bool:
        return self.rules.history > 0

    @property
    def is_latest(self) -> bool:
        return self.rules.slow_client is SlowClient.LATEST

    def append(self, key: int, message: Message, max_size: int) -> None:
        if self.entries is None:
            self.entries = deque()
        self.entries.append((key, message))
        self.last = key
        if message.stamp:
            self.last_id = message.stamp.id
        self.size += cost(message)
        while self.size > max_size and len(self.entries) > 1:
            self._drop_oldest()

    def pass_by(self, key: int, message: Message) -> None:
        """Note a message that everybody has, and nobody will ask for."""
        self.last = self.floor = key
        if message.stamp:
            self.last_id = message.stamp.id

    def clear(self, last: int) -> None:
        """Begin anew: nothing up to a key can be had any more."""
        self.entries = None
        self.size = 0
        self.last = self.floor = last

    def trim(self, needed: int | None) -> bool:
        """Forget what everybody has and the history does not keep.

        Args:
            needed: The position of the slowest of those who lag; None if nobody does.

        Returns:
            Whether there is nothing left that will be forgotten later.
        """
        if not self.entries:
            return True
        if needed is None or needed > self.last:  # of another feed
            needed = self.last
        history = self.rules.history
        if history and needed == self.last and any(not message.stamp for _, message in self.entries):
            # What has no id is not replayed; a hole stays one, also when its notice is gone.
            self.floor = max([self.floor, *(key for key, message in self.entries if message.reset)])
            self.entries = deque(entry for entry in self.entries if entry[1].stamp and entry[0] > self.floor)
            self.size = sum(cost(message) for _, message in self.entries)
        while len(self.entries) > history and self.entries[0][0] <= needed:
            if needed < self.last and self.is_latest and self.entries[0][1] is self.value:
                break  # what is newer and needed has no id
            self._drop_oldest()
        return len(self.entries) <= history

    def after(self, position: int) -> list[Entry]:
        """Return what is newer than a position; only the newest if the channel is one of latest values."""
        if self.last <= position or not self.entries:
            return []
        if self.is_latest:
            return [self.entries[-1]] if self.entries[-1][0] > position else []
        if self.entries[0][0] > position:
            return list(self.entries)
        found = []
        for entry in reversed(self.entries):
            if entry[0] <= position:
                break
            found.append(entry)
        found.reverse()
        return found

    def missed(self, position: int, came: int) -> list[Entry]:
        """Return, in any order, what is newer than a position for a client that came at another.

        What was published without an id before it came is not for it.
        """
        newer = takewhile(lambda entry: entry[0] > position, reversed(self.entries or ()))
        missed = [entry for entry in newer if entry[0] > came or entry[1].stamp or entry[1].reset]
        return missed[:1] if self.is_latest else missed

    @property
    def value(self) -> Message | None:
        """The newest message that has an id."""
        return next((message for _, message in reversed(self.entries or ()) if message.stamp), None)

    def _drop_oldest(self) -> None:
        assert self.entries
        self.floor, message = self.entries.popleft()
        self.size -= cost(message)
