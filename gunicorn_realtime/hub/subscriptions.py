"""Changing what an open connection follows."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

from ..bus.channel import Channel
from ..bus.message import parse_cursor
from ..protocols.websocket_close import CloseCode
from .connection import left

if TYPE_CHECKING:
    from .connection import Connection
    from .feed import Feed
    from .process import Hub

# Each costs a place in an audience of its own when it is joined; who needs more wants another channel.
MAX_CHANNELS = 1000


class Subscriptions:
    """Adds channels to a hub's connections, and takes them away."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        # For the bus to confirm a feed, with the cursors from which on they want it.
        self._waiting: defaultdict[Feed, dict[Connection, str | None]] = defaultdict(dict)

    def add(self, connection: Connection, channel: Channel, cursor: str | None) -> None:
        """Follow one more channel.

        Args:
            cursor: What the channel's history has since then comes first.
        """
        feed = connection.audience.following.follow(channel)
        if feed in connection.audience.feeds:
            return
        if len(connection.audience.feeds) >= MAX_CHANNELS:
            reason = f"it follows {MAX_CHANNELS} channels, as many as it may"
            connection.audience.engine.disconnect(connection, CloseCode.INTERNAL_ERROR, reason)
        elif feed.is_confirmed:
            self._join(connection, feed, cursor)
        else:
            self._waiting[feed][connection] = cursor

    def drop(self, connection: Connection, channel: str) -> None:
        """Follow a channel no more; what is on its way to a slow client may still come."""
        for feed in [feed for feed in self._waiting if feed.channel == channel]:
            self._give_up(connection, feed)
        feeds = connection.audience.feeds
        kept = tuple(feed for feed in feeds if feed.channel != channel)
        if len(kept) < len(feeds):
            self._move(connection, kept)

    def confirm(self, feed: Feed) -> None:
        """From here on nothing is missed of this feed."""
        for connection, cursor in self._waiting.pop(feed, {}).items():
            self._join(connection, feed, cursor)

    def forget(self, connection: Connection) -> None:
        """The connection is gone."""
        for feed in list(self._waiting):
            self._give_up(connection, feed)

    def _give_up(self, connection: Connection, feed: Feed) -> None:
        waiting = self._waiting[feed]
        if waiting.pop(connection, "") == "":
            return
        if not waiting:
            del self._waiting[feed]
            if not feed.followers:
                connection.audience.following.idle[feed] = time.monotonic()

    def _join(self, connection: Connection, feed: Feed, cursor: str | None) -> None:
        connection.note_joined(feed)
        self._move(connection, (*connection.audience.feeds, feed))
        try:
            self._send_missed(connection, feed, cursor)
        except OSError as exc:
            self.hub.close(connection, left(exc))

    def _move(self, connection: Connection, feeds: tuple[Feed, ...]) -> None:
        """Take a connection to the audience of these feeds."""
        old = connection.audience
        had_place = connection.has_place
        old.leave(connection)
        old.exit()
        self.hub.deserted.add(old)
        connection.audience = self.hub.audience_of(old.engine, feeds, old.following)
        connection.audience.enter()
        if had_place:
            connection.catch_up()

    def _send_missed(self, connection: Connection, feed: Feed, cursor: str | None) -> None:
        """Send the channel's current value, or what it has had since a cursor.

        Without their ids: those are older than where the client stands.
        """
        if not feed.keeps:
            return
        if feed.is_latest:
            connection.send_messages([feed.value.without_id()] if feed.value else [])
            return
        if cursor is None:
            return
        following = connection.audience.following
        epoch, id_ = parse_cursor(cursor) or (None, 0)
        position = following.fanout.behind(id_)
        if epoch != following.epoch:
            connection.send_reset([feed], "unknown")
            return
        if feed.floor > position:
            connection.send_reset([feed], "expired")
        missed = reversed(feed.missed(position, following.fanout.key))
        connection.send_messages([message.without_id() for _, message in missed if message.stamp])
