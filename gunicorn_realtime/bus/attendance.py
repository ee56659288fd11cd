"""Who is there, in the local bus's memory.

What the scripts in `scripts/` do in Redis, without I/O: the time is passed in, in microseconds.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice


@dataclass(frozen=True, slots=True)
class Announcement:
    """A member has joined a channel, or left it.

    Args:
        channel: Without the site's prefix, which is apart.
        member: As JSON.
        history: How many messages of the channel are kept.
        ttl: For how long, in microseconds.
    """

    kind: str
    prefix: bytes
    channel: bytes
    member: bytes
    history: int
    ttl: int

    @property
    def body(self) -> bytes:
        return b'{"event": "presence"}\n{"type":"%b","member":%b}' % (self.kind.encode(), self.member)


@dataclass(slots=True)
class Attendance:
    """Who is in one channel.

    Args:
        entries: By (member, hub), when they expire.
        members: How many entries each has.
        next_expiry: Nothing expires before.
    """

    prefix: bytes
    channel: bytes
    history: int = 0
    ttl: int = 0
    entries: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    members: Counter[bytes] = field(default_factory=Counter)
    next_expiry: float = math.inf

    def put(self, entry: tuple[bytes, bytes], expiry: int) -> None:
        self.entries[entry] = expiry
        self.next_expiry = min(self.next_expiry, expiry)

    def expired(self, now: int) -> Iterator[tuple[bytes, bytes]]:
        return (entry for entry, expiry in self.entries.items() if expiry <= now)

    def announcement(self, kind: str, member: bytes) -> Announcement:
        return Announcement(kind, self.prefix, self.channel, member, self.history, self.ttl)


class Attendances:
    """Who is in which channel."""

    def __init__(self) -> None:
        self.channels: dict[tuple[bytes, bytes], Attendance] = {}  # by prefix and name

    def enter(
        self, prefix: bytes, channel: bytes, member: bytes, hub: bytes, expiry: int, history: int, ttl: int
    ) -> Announcement | None:
        """A hub has a connection of a member, or still has; return what is to be published."""
        attendance = self.channels.setdefault((prefix, channel), Attendance(prefix, channel))
        attendance.history, attendance.ttl = history, ttl
        is_new = (member, hub) not in attendance.entries
        attendance.put((member, hub), expiry)
        attendance.members[member] += is_new
        if is_new and attendance.members[member] == 1:
            return attendance.announcement("join", member)
        return None

    def leave(self, prefix: bytes, channel: bytes, member: bytes, hub: bytes, expiry: int) -> None:
        """A hub has no connection of a member any more."""
        attendance = self.channels.get((prefix, channel))
        if attendance and (member, hub) in attendance.entries:
            attendance.put((member, hub), expiry)

    def sweep(self, now: int, limit: int) -> tuple[list[Announcement], bool]:
        """Remove what has expired, `limit` entries at most.

        Returns:
            What is to be published, and whether there may be more to remove.
        """
        left: list[Announcement] = []
        for key, attendance in list(self.channels.items()):
            if attendance.next_expiry > now:
                continue
            for member, hub in list(islice(attendance.expired(now), limit)):
                limit -= 1
                del attendance.entries[member, hub]
                attendance.members[member] -= 1
                if not attendance.members[member]:
                    del attendance.members[member]
                    left.append(attendance.announcement("leave", member))
            attendance.next_expiry = min(attendance.entries.values(), default=math.inf)
            if not attendance.entries:
                del self.channels[key]
            if limit <= 0:
                return left, True
        return left, False

    def members(self, prefix: bytes, channel: bytes, now: int) -> list[bytes]:
        attendance = self.channels.get((prefix, channel))
        if attendance is None:
            return []
        return list({member: None for (member, _), expiry in attendance.entries.items() if expiry > now})
