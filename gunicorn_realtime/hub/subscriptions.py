"""Changing what an open connection follows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ..bus.message import parse_cursor
from ..plumbing.events import Subscribe, Unsubscribe
from ..protocols.websocket_close import CloseCode

if TYPE_CHECKING:
    from ..bus.channel import Channel
    from ..bus.message import Message
    from .connection import Connection
    from .feed import Feed
    from .process import Hub

# Each costs a place in an audience of its own; who needs more wants one channel for several things.
MAX_CHANNELS = 200


class Gathering:
    """Feeds that a connection is to follow at once, when the bus has confirmed the last of them."""

    __slots__ = ("feeds", "missing", "ready")

    def __init__(self, feeds: tuple[Feed, ...], ready: Callable[[tuple[Feed, ...]], None]) -> None:
        self.feeds = feeds
        self.missing = {feed for feed in feeds if not feed.is_confirmed}
        self.ready = ready


class Subscriptions:
    """Adds channels to a hub's connections, and takes them away."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        # For the bus to confirm a feed: who does, and from which cursors on each wants them.
        self._waiting: defaultdict[Feed, dict[Connection, None]] = defaultdict(dict)
        self._wanted: defaultdict[Connection, dict[Feed, str | None]] = defaultdict(dict)
        self._settled: defaultdict[Connection, list[Callable[[], None]]] = defaultdict(list)
        self._gatherings: defaultdict[Connection, list[Gathering]] = defaultdict(list)
        self._gathering: defaultdict[Feed, dict[Connection, None]] = defaultdict(dict)

    def change(self, connection: Connection, changes: Iterable[Subscribe | Unsubscribe]) -> None:
        """Follow other channels, in one step."""
        feeds = dict.fromkeys(connection.audience.feeds)
        joined: dict[Feed, str | None] = {}
        for change in changes:
            if isinstance(change, Unsubscribe):
                self._give_up_channel(connection, change.channel)
                for feed in [feed for feed in feeds if feed.channel == change.channel]:
                    del feeds[feed]
                    joined.pop(feed, None)
                continue
            names = {feed.channel for feed in (*feeds, *self._wanted.get(connection, ()))}
            if change.channel.name in names:
                continue
            if len(names) >= MAX_CHANNELS:
                reason = f"it follows {MAX_CHANNELS} channels, as many as it may"
                connection.audience.engine.disconnect(connection, CloseCode.INTERNAL_ERROR, reason)
                return
            feed = connection.audience.following.follow(change.channel)
            if feed.is_confirmed:
                feeds[feed] = None
                joined[feed] = change.cursor
            else:
                self._wait(connection, feed, change.cursor)
        self._move(connection, tuple(feeds), joined)

    def feeds_of(self, connection: Connection) -> list[Feed]:
        """Return what it follows, or will when the bus has confirmed it."""
        return [*connection.audience.feeds, *self._wanted.get(connection, ())]

    def is_settled(self, connection: Connection) -> bool:
        """Tell whether it follows all that it was to follow."""
        return connection not in self._wanted

    def call_when_settled(self, connection: Connection, call: Callable[[], None]) -> None:
        """Call when the bus has confirmed what it is to follow, unless it ends before."""
        self._settled[connection].append(call)

    def gather(
        self,
        connection: Connection,
        channels: Iterable[Channel],
        ready: Callable[[tuple[Feed, ...]], None],
    ) -> None:
        """Call with the feeds of channels when the bus has confirmed them all, unless the connection ends before."""
        following = connection.audience.following
        gathering = Gathering(tuple(dict.fromkeys(map(following.follow, channels))), ready)
        for feed in gathering.feeds:
            feed.followers += 1  # or it would be left as one that nobody follows
        self._gatherings[connection].append(gathering)
        for feed in gathering.missing:
            self._gathering[feed][connection] = None
        if not gathering.missing:
            self._gathered(connection, gathering)

    def join(self, connection: Connection, feeds: Iterable[Feed]) -> None:
        """Follow feeds that are confirmed."""
        joined = dict.fromkeys(feeds)
        self._move(connection, tuple(dict.fromkeys((*connection.audience.feeds, *joined))), joined)

    def _gathered(self, connection: Connection, gathering: Gathering) -> None:
        self._gatherings[connection].remove(gathering)
        if not self._gatherings[connection]:
            del self._gatherings[connection]
        gathering.ready(gathering.feeds)
        self._release(connection, gathering)

    def _release(self, connection: Connection, gathering: Gathering) -> None:
        for feed in gathering.feeds:
            feed.followers -= 1
            if not feed.followers:
                connection.audience.following.idle[feed] = time.monotonic()

    def confirm(self, feed: Feed) -> None:
        """From here on nothing is missed of this feed."""
        for connection in self._gathering.pop(feed, ()):
            for gathering in list(self._gatherings.get(connection, ())):
                gathering.missing.discard(feed)
                if not gathering.missing:
                    self._gathered(connection, gathering)
        for connection in list(self._waiting.get(feed, ())):
            cursor = self._wanted[connection][feed]
            self._move(connection, (*connection.audience.feeds, feed), {feed: cursor})
            if connection.fd >= 0:  # else it was found to be gone, and is forgotten already
                self._wait_no_longer(connection, feed)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        self._settled.pop(connection, None)
        for gathering in self._gatherings.pop(connection, ()):
            self._release(connection, gathering)
            for feed in gathering.missing:
                self._gathering[feed].pop(connection, None)
        for feed in list(self._wanted.get(connection, ())):
            self._wait_no_longer(connection, feed)

    def _wait(self, connection: Connection, feed: Feed, cursor: str | None) -> None:
        if feed not in self._waiting:
            feed.followers += 1  # or it would be left as one that nobody follows
        self._waiting[feed][connection] = None
        self._wanted[connection][feed] = cursor

    def _wait_no_longer(self, connection: Connection, feed: Feed) -> None:
        del self._wanted[connection][feed]
        if not self._wanted[connection]:
            del self._wanted[connection]
            for call in self._settled.pop(connection, ()):
                self.hub.loop.run_callback(call)
        del self._waiting[feed][connection]
        if not self._waiting[feed]:
            del self._waiting[feed]
            feed.followers -= 1
            if not feed.followers:
                connection.audience.following.idle[feed] = time.monotonic()

    def _give_up_channel(self, connection: Connection, channel: str) -> None:
        for feed in [feed for feed in self._wanted.get(connection, ()) if feed.channel == channel]:
            self._wait_no_longer(connection, feed)

    def _move(self, connection: Connection, feeds: tuple[Feed, ...], joined: dict[Feed, str | None]) -> None:
        """Take a connection to the audience of these feeds, some of which it has joined now."""
        old = connection.audience
        if feeds == old.feeds:
            return
        had_place = connection.has_place
        old.leave(connection)
        old.exit()
        self.hub.deserted.add(old)
        connection.audience = self.hub.audience_of(old.engine, feeds, old.following)
        connection.audience.enter()
        for feed in joined:
            connection.note_joined(feed)
        if had_place:
            connection.catch_up()
        for feed, cursor in joined.items():
            if connection.fd >= 0:
                self._send_missed(connection, feed, cursor)

    def _send_missed(self, connection: Connection, feed: Feed, cursor: str | None) -> None:
        """Send the channel's current value, or what it has had since a cursor.

        Without their ids: those are older than where the client stands.
        """
        if not feed.keeps:
            return
        if feed.is_latest:
            self._send(connection, [feed.value] if feed.value else [])
            return
        if cursor is None:
            return
        following = connection.audience.following
        epoch, id_ = parse_cursor(cursor) or (None, 0)
        position = following.fanout.behind(id_)
        if epoch != following.epoch:
            connection.answer(connection.reset_notice([feed], "unknown"))
            return
        if feed.floor > position:
            connection.answer(connection.reset_notice([feed], "expired"))
        missed = reversed(feed.missed(position, following.fanout.key))
        self._send(connection, [message for _, message in missed if message.stamp])

    def _send(self, connection: Connection, messages: list[Message]) -> None:
        connection.messages += len(messages)
        encode = connection.audience.engine.encode
        connection.answer(b"".join(encode(message.without_id()) for message in messages))
