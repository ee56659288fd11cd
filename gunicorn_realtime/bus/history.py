"""The local bus's clock and the history of its channels, in memory.

What the scripts in `scripts/` do in Redis, without I/O: the time is passed in.
"""

from __future__ import annotations

import heapq
import random
import string
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

EPOCH_ALPHABET = string.ascii_lowercase + string.digits
EPOCH_SIZE = 6

# All messages that are kept, so that a site cannot fill its owner's memory with many channels.
MAX_SIZE = 64 * 1024 * 1024  # bytes

# What an entry and its place in a log cost beside its body.
ENTRY_OVERHEAD = 300  # bytes

# When there are too many bytes, so much is dropped at once, for all logs are looked through.
DROPPED_SHARE = 1 / 16

# How often logs that nobody has written to for their ttl are looked for.
SWEEP_INTERVAL = 10_000_000  # microseconds


def make_epoch() -> str:
    return "".join(random.choices(EPOCH_ALPHABET, k=EPOCH_SIZE))


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in a log.

    Args:
        id: Microseconds.
        previous: Id of the message before it.
        body: See `message.encode_body`.
        token: The publisher's own name of it.
    """

    id: int
    previous: int
    body: bytes
    token: bytes

    @property
    def size(self) -> int:
        return len(self.body) + ENTRY_OVERHEAD


@dataclass(frozen=True, slots=True)
class LogRead:
    """A part of a log.

    Args:
        floor: Nothing newer than this, up to the last of the entries, is missing.
        entries: In ascending order.
    """

    floor: int
    entries: list[Entry]


@dataclass(slots=True)
class Log:
    """The history of one channel; it outlives its newest entry by `ttl` microseconds."""

    last: int = 0
    ttl: int = 0
    entries: deque[Entry] = field(default_factory=deque)

    def is_over(self, now: int) -> bool:
        return now > self.last + self.ttl

    def newest(self, count: int) -> list[Entry]:
        return [self.entries[-position] for position in range(min(count, len(self.entries)), 0, -1)]

    def after(self, id: int) -> list[Entry]:
        newer = []
        for entry in reversed(self.entries):
            if entry.id <= id:
                break
            newer.append(entry)
        newer.reverse()
        return newer


class History:
    """A clock, and the logs that it orders.

    Args:
        max_size: Of all entries, in bytes; the oldest are dropped.
    """

    def __init__(self, max_size: int = MAX_SIZE) -> None:
        self.max_size = max_size
        self.epoch = make_epoch()
        self.id = 0
        self.logs: dict[bytes, Log] = {}
        self.size = 0  # bytes
        self._next_sweep = 0

    def advance(self, now: int, step: int) -> int:
        """Move the clock to `now`, and by `step` at least, and return it."""
        self.id = max(now, self.id + step)
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL
            for key in [key for key, log in self.logs.items() if log.is_over(self.id)]:
                self._forget(key)
        return self.id

    def find(self, now: int, key: bytes, token: bytes, age: int) -> int | None:
        """Return the id of the message with this token, if it came at most `age` microseconds ago."""
        log = self._log(key, self.advance(now, 0))
        newer = log.after(max(now, self.id) - age - 1) if log else []
        return next((entry.id for entry in reversed(newer) if entry.token == token), None)

    def add(self, now: int, key: bytes, body: bytes, token: bytes, count: int, ttl: int) -> Entry:
        """Keep a message as the newest of its log, and of `count`."""
        id = self.advance(now, 1)
        log = self._log(key, id)
        if log is None:
            log = self.logs[key] = Log(last=max(id - ttl, 0))
        entry = Entry(id, log.last, body, token)
        log.last, log.ttl = id, ttl
        log.entries.append(entry)
        self.size += entry.size
        while len(log.entries) > count:
            self._drop_first(log)
        if self.size > self.max_size:
            self._make_room()
        return entry

    def snapshot(self, now: int, key: bytes, count: int, ttl: int) -> LogRead:
        """Return the newest entries of a log."""
        id = self.advance(now, 0)
        log = self._log(key, id)
        if log is None:
            return LogRead(max(id - ttl, 0), [])
        entries = log.newest(count)
        return LogRead(entries[0].previous if entries else log.last, entries)

    def range(self, now: int, key: bytes, after: int, count: int, ttl: int) -> LogRead:
        """Return the oldest entries of a log after an id."""
        id = self.advance(now, 0)
        log = self._log(key, id)
        if log is None:
            return LogRead(max(id - ttl, 0), [])
        entries = log.after(after)[:count]
        if entries:
            return LogRead(entries[0].previous, entries)
        return LogRead(after if log.entries else max(after, log.last), [])

    def _log(self, key: bytes, id: int) -> Log | None:
        log = self.logs.get(key)
        if log is not None and log.is_over(id):
            self._forget(key)
            return None
        return log

    def _forget(self, key: bytes) -> None:
        self.size -= sum(entry.size for entry in self.logs.pop(key).entries)

    def _drop_first(self, log: Log) -> None:
        self.size -= log.entries.popleft().size

    def _make_room(self) -> None:
        """Drop the oldest entries. A log that loses all of them stays, to know what it has lost."""
        wanted = self.max_size * (1 - DROPPED_SHARE)
        for _, log in heapq.merge(*(_ids(log) for log in self.logs.values()), key=lambda pair: pair[0]):
            if self.size <= wanted:
                break
            self._drop_first(log)


def _ids(log: Log) -> Iterator[tuple[int, Log]]:
    for entry in tuple(log.entries):
        yield entry.id, log
