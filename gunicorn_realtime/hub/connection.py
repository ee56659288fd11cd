"""One client's socket and its state, as small as can be: thousands only listen."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from gevent import monkey

if TYPE_CHECKING:
    from gevent.event import Event

    from ..bus.client import Page
    from ..bus.message import Message
    from ..plumbing.handover import Handover
    from .audience import Audience
    from .events import Dialogue
    from .feed import Entry, Feed
    from .process import Hub

READ, WRITE = 1, 2  # libev's EV_READ and EV_WRITE
READ_SIZE = 16 * 1024  # bytes

# Answers that a client may ask for and not read.
MAX_UNREAD_SIZE = 512 * 1024  # bytes

# The loop is patched for everything but this: these sockets are read and written in callbacks.
blocking_socket: Any = monkey.get_original("socket", "socket")

NOTHING: Mapping[Any, int] = {}


class Lag:
    """What a connection needs while its client reads more slowly than messages come."""

    __slots__ = ("answers_size", "data", "sent", "since", "watcher")

    def __init__(self, watcher: Any, data: bytes, sent: int) -> None:
        self.watcher = watcher
        self.data = data  # shared with all that were sent the same
        self.sent = sent  # how much of it the kernel has
        self.answers_size = 0  # bytes of it that the client has asked for
        self.since = time.monotonic()  # when the client last took something


class Connection:
    """A client's socket in a hub.

    It has no greenlet: a read watcher shows what the client sends and when it leaves, a write
    watcher exists only while it lags. While it keeps up it has a place in its audience's array,
    which knows its position; else `position` is the key of the last message that it has, or is in
    the middle of.
    """

    __slots__ = (
        "address",
        "audience",
        "bytes",
        "came",
        "conversation",
        "dialogue",
        "ending",
        "fd",
        "hub",
        "index",
        "is_open",
        "labels",
        "lag",
        "messages",
        "opened",
        "opening",
        "pager",
        "places",
        "position",
        "reader",
        "received",
        "since",
        "skipped",
    )

    def __init__(self, hub: Hub, fd: int, audience: Audience, address: str, opening: Handover) -> None:
        self.hub = hub
        self.fd = fd
        self.audience = audience
        self.address = address
        self.opening: Handover | None = opening  # until the bus has confirmed its channels
        self.is_open = False  # the response's head has been sent
        self.labels = opening.offload.labels
        self.conversation: Any = None  # its engine's own
        self.dialogue: Dialogue | None = None  # if its application wants to know what happens to it
        self.ending: str | None = None  # why, when only the last bytes are still on their way
        self.pager: Event | None = None  # set whenever it can take more of its history
        self.position = 0
        self.came = 0  # the newest key then: what is older and has no id is not for it
        self.since: dict[Feed, int] | None = None  # the newest key when it joined a feed while behind
        self.skipped: set[int] | None = None  # keys of messages that are not for it
        self.index = -1  # in the audience's array
        self.places: list[int] | None = None  # or in the arrays of the audience's parts
        self.lag: Lag | None = None
        self.bytes = 0  # right when it has left the array
        self.messages = 0
        self.received = 0  # bytes from the client
        self.opened = time.monotonic()
        self.reader: Any = hub.loop.io(fd, READ)
        self.reader.start(self.on_readable)

    def send(self, data: bytes) -> None:
        """Send bytes that belong to no feed; if it lags, behind what is on its way already.

        Nothing comes behind the last bytes of a connection that ends.

        Raises:
            OSError: The client is gone.
        """
        if self.ending is not None:
            return
        if self.lag is not None:
            self.lag.data += data
            return
        try:
            sent = os.write(self.fd, data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self.audience.leave(self)
            self._wait_until_writable(data, sent)
        self.bytes += sent

    def answer(self, data: bytes) -> None:
        """Send bytes that answer what the client sent; who has not read the answers before is cut."""
        if self.lag is not None and self.lag.answers_size > MAX_UNREAD_SIZE:
            self.hub.close(self, "slow client")
            return
        if not data:
            return
        try:
            self.send(data)
        except OSError as exc:
            self.hub.close(self, left(exc))
        if self.lag is not None:
            self.lag.answers_size += len(data)

    def send_reset(self, feeds: list[Feed], reason: str, cursor: str | None = None) -> None:
        """Say that messages of these feeds are missing for good."""
        self.send(self.reset_notice(feeds, reason, cursor))

    def reset_notice(self, feeds: list[Feed], reason: str, cursor: str | None = None) -> bytes:
        prefix = self.audience.following.address.prefix
        names = [feed.channel.removeprefix(prefix) for feed in feeds]
        return self.audience.engine.reset(names, reason, cursor)

    def send_page(self, page: Page, bound: int) -> None:
        """Send messages that were read from the bus, in the order of their ids, up to one."""
        messages = [message for log in page.logs.values() for message in log.entries]
        self.send_messages(sorted((m for m in messages if m.id <= bound), key=attrgetter("id")))

    def send_messages(self, messages: list[Message]) -> None:
        """Send messages that come from no feed, or the first if the client came for one."""
        if self.audience.engine.is_one_shot:
            messages = messages[:1]
        if messages:
            self.messages += len(messages)
            self.send(b"".join(map(self.audience.engine.encode, messages)))

    def wait_until_sent(self) -> None:
        """Wait, in a greenlet, until the kernel has everything."""
        while self.lag is not None and self.pager is not None:
            self.pager.clear()
            self.pager.wait()

    def start_lagging(self, data: bytes, sent: int) -> None:
        """The client did not take all of a broadcast: go on at its own pace."""
        self.audience.leave(self)
        self.bytes -= len(data) - sent
        self._wait_until_writable(data, sent)

    def _wait_until_writable(self, data: bytes, sent: int) -> None:
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
            self.hub.close(self, left(exc))
            return
        self.bytes += sent
        lag.sent += sent
        lag.since = time.monotonic()
        if lag.sent == len(lag.data):
            self._take_next(lag)

    def _take_next(self, lag: Lag) -> None:
        """Take the next messages from the feeds, or stop lagging if there are none."""
        if self.ending is not None:
            self._stop_lagging(lag)
            shut_down(self.fd)
            return
        if self.pager is not None:
            self._stop_lagging(lag)
            self.pager.set()
            return
        if self.is_answered:
            self._stop_lagging(lag)
            self.hub.finish(self)
            return
        if self.has_fallen_off:
            self.hub.close(self, "slow client")
            return
        data = self._take_batch()
        if data:
            lag.data, lag.sent, lag.answers_size = data, 0, 0
            return
        self._stop_lagging(lag)
        if self.opening is None:
            self.audience.join(self)

    def note_joined(self, feed: Feed) -> None:
        """It follows one more feed from now on, wherever it stands in the others."""
        if self.since is None:
            self.since = {}
        self.since[feed] = self.audience.following.fanout.key

    @property
    def is_over(self) -> bool:
        """Nothing is taken from its client any more, and nothing said to it but what is on its way."""
        return self.ending is not None or self.fd < 0

    @property
    def has_place(self) -> bool:
        """It keeps up with its audience."""
        return self.index >= 0 or self.places is not None

    def catch_up(self) -> None:
        """Get what has come since `position`, then join the others."""
        if self.fd < 0 or self.has_place or self.ending is not None:
            return  # it has left since it was to do so, or is back already
        while self.lag is None:
            if self.is_answered:
                self.hub.finish(self)
                return
            data = self._take_batch()
            if not data:
                self.audience.join(self)
                return
            try:
                self.send(data)
            except OSError as exc:
                self.hub.close(self, left(exc))
                return

    def _take_batch(self) -> bytes:
        """Return what is sent next, and move on behind it."""
        audience = self.audience
        is_usual = self.position >= self.came and self.since is None
        if is_usual:
            entries = audience.after(self.position)
        else:
            entries = audience.missed(self.position, self.came, self.since or NOTHING)
        if self.skipped is not None or (self.lag is not None and any(map(_is_volatile, entries))):
            entries = self._without_skipped(entries)
            is_usual = False
        if is_usual:
            data, position = audience.batch(self.position)
        else:
            data, position = audience.join_encoded(entries, self.position)
        if data:
            self.messages += sum(key <= position for key, _ in entries)
            self.position = position
        return data

    def skip(self, key: int) -> None:
        """The message with this key is not for it."""
        if self.skipped is None:
            self.skipped = set()
        self.skipped.add(key)

    def _without_skipped(self, entries: list[Entry]) -> list[Entry]:
        """Leave out what is not for it, and what it need not have while it lags; go past that where it is all."""
        skipped, lags = self.skipped or (), self.lag is not None
        kept = [entry for entry in entries if entry[0] not in skipped and not (lags and _is_volatile(entry))]
        if entries and not kept:
            self.position = entries[-1][0]
        if self.skipped is not None:
            self.skipped = {key for key in self.skipped if key > self.position} or None
        return kept

    def _stop_lagging(self, lag: Lag) -> None:
        lag.watcher.stop()
        lag.watcher.close()
        self.lag = None
        self.hub.lagging.pop(self, None)

    @property
    def is_answered(self) -> bool:
        """It came for one message, and that is in its hands or on its way. Asked outside the array."""
        return self.audience.engine.is_one_shot and self.messages > 0

    @property
    def has_fallen_off(self) -> bool:
        """It lags, and messages that it has not had are no longer there."""
        return (
            self.lag is not None
            and self.pager is None
            and self.ending is None
            and self.audience.has_dropped(self.position, self.since or NOTHING)
            and not self.is_answered
        )

    def on_readable(self) -> None:
        try:
            data = os.read(self.fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as exc:
            self.hub.close(self, left(exc))
            return
        if not data:
            self.hub.close(self, "the client left")
            return
        self.received += len(data)
        if self.ending is None:
            self.audience.engine.received(self, data)

    @property
    def is_read(self) -> bool:
        return bool(self.reader.active)

    def stop_reading(self) -> None:
        """Let the client wait: what it sends stays in the kernel."""
        self.reader.stop()

    def read_on(self) -> None:
        if self.fd >= 0:
            self.reader.start(self.on_readable)
            self.audience.engine.resumed(self)

    def move_to(self, fd: int, unsent: bytes) -> int:
        """Go on with another descriptor; return the old one, which the caller owns now.

        Args:
            unsent: What was sent by the old one, and has not come to the client.
        """
        self.audience.leave(self)
        if self.lag is not None:
            unsent += bytes(self.lag.data[self.lag.sent :])
            self._stop_lagging(self.lag)
        is_read = self.is_read
        self.reader.stop()
        self.reader.close()
        old, self.fd = self.fd, fd
        del self.hub.connections[old]
        self.hub.connections[fd] = self
        self.reader = self.hub.loop.io(fd, READ)
        if is_read:
            self.reader.start(self.on_readable)
        try:
            self.send(unsent)
        except OSError as exc:
            self.hub.close(self, left(exc))
        if self.opening is None and self.pager is None:
            self.catch_up()
        return old

    def release(self) -> int:
        """Stop watching; return the descriptor, which the caller owns now."""
        self.reader.stop()
        self.reader.close()
        if self.lag is not None:
            self._stop_lagging(self.lag)
        if self.pager is not None:
            self.pager.set()
        fd, self.fd = self.fd, -1
        return fd


def _is_volatile(entry: Entry) -> bool:
    emission = entry[1].emission
    return emission is not None and emission.is_volatile


def shut_down(fd: int) -> None:
    """Tell a client that nothing more comes. Only we have its socket by now."""
    sock = blocking_socket(fileno=fd)
    try:
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it is gone, as the reader will see
    finally:
        sock.detach()


def left(exc: OSError) -> str:
    """Return why a connection ends whose client is gone, for the log."""
    return f"the client left ({os.strerror(exc.errno or 0)})"
