"""A feed: one channel's log in a hub, read by many connections."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from ..bus.message import Message

if TYPE_CHECKING:
    from .connection import Connection
    from .fanout import Audience

# A message and its key: its number in the order of arrival, over all feeds of the hub. A position
# is the key of the last message that somebody has.
Entry = tuple[int, Message]

# A message's objects, without its data.
OVERHEAD = 500  # bytes


def cost(message: Message) -> int:
    """Return what a message takes, in bytes: also empty ones add up."""
    return len(message.data) + OVERHEAD


class Feed:
    """One channel's messages, in the order of their keys, while somebody still needs them."""

    __slots__ = (
        "audiences",
        "channel",
        "entries",
        "floor",
        "idle_since",
        "is_confirmed",
        "last",
        "size",
        "waiting",
    )

    def __init__(self, channel: str, last: int) -> None:
        self.channel = channel
        self.entries: deque[Entry] | None = None  # made with the first message
        self.size = 0  # bytes that the messages take
        self.last = last  # key of the newest message
        self.floor = last  # key of the newest message that was dropped
        self.audiences: list[Audience] = []
        self.waiting: dict[Connection, None] = {}  # to be opened when the bus has confirmed
        self.is_confirmed = False
        self.idle_since: float | None = None

    def append(self, key: int, message: Message, max_size: int) -> None:
        if self.entries is None:
            self.entries = deque()
        self.entries.append((key, message))
        self.last = key
        self.size += cost(message)
        while self.size > max_size and len(self.entries) > 1:
            self._drop_oldest()

    def drop_through(self, key: int) -> None:
        """Forget what everybody has."""
        while self.entries and self.entries[0][0] <= key:
            self._drop_oldest()

    def after(self, position: int) -> list[Entry]:
        """Return what is newer than a position."""
        if self.last <= position or not self.entries:
            return []
        if self.entries[0][0] > position:
            return list(self.entries)
        found = []
        for entry in reversed(self.entries):
            if entry[0] <= position:
                break
            found.append(entry)
        found.reverse()
        return found

    def _drop_oldest(self) -> None:
        assert self.entries
        self.floor, message = self.entries.popleft()
        self.size -= cost(message)
