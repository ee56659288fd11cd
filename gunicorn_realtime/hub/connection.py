"""One client's socket and its state, as small as can be: thousands only listen."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..plumbing.handover import Address, Handover
    from .feed import Audience
    from .process import Hub

READ, WRITE = 1, 2  # libev's EV_READ and EV_WRITE
READ_SIZE = 16 * 1024  # bytes


class Lag:
    """What a connection needs while its client reads more slowly than messages come."""

    __slots__ = ("data", "sent", "since", "watcher")

    def __init__(self, watcher: Any, data: bytes, sent: int) -> None:
        self.watcher = watcher
        self.data = data  # shared with all that were sent the same
        self.sent = sent  # how much of it the kernel has
        self.since = time.monotonic()  # when the client last took something


class Connection:
    """A client's socket in a hub.

    It has no greenlet: a read watcher shows what the client sends and when it leaves, a write
    watcher exists only while it lags. `position` is the key of the last message it has, or is in
    the middle of.
    """

    __slots__ = (
        "address",
        "audience",
        "bytes",
        "fd",
        "hub",
        "index",
        "lag",
        "messages",
        "opened",
        "opening",
        "position",
        "reader",
        "received",
    )

    def __init__(self, hub: Hub, fd: int, audience: Audience, address: str) -> None:
        self.hub = hub
        self.fd = fd
        self.audience = audience
        self.address = address
        self.position = 0
        self.index = -1  # in the audience
        self.lag: Lag | None = None
        self.bytes = 0
        self.messages = 0
        self.received = 0  # bytes from the client
        self.opened = time.monotonic()
        self.opening: Handover | None = None  # until the bus has confirmed its channels
        self.reader = hub.loop.io(fd, READ)
        self.reader.start(self.on_readable)

    def send(self, data: bytes) -> None:
        """Send bytes that belong to no feed: before anything from there, or while it has kept up.

        Raises:
            OSError: The client is gone.
        """
        try:
            sent = os.write(self.fd, data)
        except BlockingIOError:
            sent = 0
        self.bytes += sent
        if sent < len(data):
            self.start_lagging(data, sent)

    def start_lagging(self, data: bytes, sent: int) -> None:
        """The kernel takes no more: remember the rest, and wait until it does."""
        self.lag = Lag(self.hub.loop.io(self.fd, WRITE), data, sent)
        self.lag.watcher.start(self.on_writable)
        self.hub.lagging[self] = None

    def on_writable(self) -> None:
        lag = self.lag
        if lag is None:
            return
        try:
            sent = os.write(self.fd, memoryview(lag.data)[lag.sent :])
        except BlockingIOError:
            return
        except OSError as exc:
            self.hub.close(self, f"the client left ({os.strerror(exc.errno or 0)})")
            return
        self.bytes += sent
        lag.sent += sent
        lag.since = time.monotonic()
        if lag.sent == len(lag.data):
            self._catch_up(lag)

    def _catch_up(self, lag: Lag) -> None:
        """Take the next messages from the feeds, or stop lagging if there are none."""
        if self.audience.engine.is_one_shot and self.messages:
            self._stop_lagging(lag)
            self.audience.engine.finish(self)
            return
        if self.has_fallen_off:
            self.hub.close(self, "slow client")
            return
        data, self.position, count = self.audience.batch(self.position)
        if count:
            self.messages += count
            lag.data, lag.sent = data, 0
        else:
            self._stop_lagging(lag)

    def _stop_lagging(self, lag: Lag) -> None:
        lag.watcher.stop()
        lag.watcher.close()
        self.lag = None
        self.hub.lagging.pop(self, None)

    @property
    def has_fallen_off(self) -> bool:
        """Messages that it has not had are no longer there."""
        return self.position < self.audience.floor and self.index >= 0

    def on_readable(self) -> None:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self.hub.close(self, f"the client left ({os.strerror(exc.errno or 0)})")
            return
        if not data:
            self.hub.close(self, "the client left")
            return
        self.received += len(data)
        self.audience.engine.received(self, data)

    def release(self) -> int:
        """Stop watching; return the descriptor, which the caller owns now."""
        self.reader.stop()
        self.reader.close()
        if self.lag is not None:
            self._stop_lagging(self.lag)
        fd, self.fd = self.fd, -1
        return fd
