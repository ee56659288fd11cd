"""Changing what an open connection follows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..bus.message import parse_cursor
from ..plumbing.events import Subscribe, Unsubscribe
from ..protocols.websocket_close import CloseCode

if TYPE_CHECKING:
    from ..bus.message import Message
    from .connection import Connection
    from .feed import Feed
    from .process import Hub

# Each costs a place in an audience of its own; who needs more wants one channel for several things.
MAX_CHANNELS = 200


class Subscriptions:
    """Adds channels to a hub's connections, and takes them away."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        # For the bus to confirm a feed: who does, and from which cursors on each wants them.
        self._waiting: defaultdict[Feed, dict[Connection, None]] = defaultdict(dict)
        self._wanted: defaultdict[Connection, dict[Feed, str | None]] = defaultdict(dict)

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

    def confirm(self, feed: Feed) -> None:
        """From here on nothing is missed of this feed."""
        for connection in list(self._waiting.get(feed, ())):
            cursor = self._wanted[connection][feed]
            self._move(connection, (*connection.audience.feeds, feed), {feed: cursor})
            if connection.fd >= 0:  # else it was found to be gone, and is forgotten already
                self._wait_no_longer(connection, feed)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
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
