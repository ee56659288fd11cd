"""How a client is brought to where its feeds are: it gets what it has missed, from them or from the bus, or a reset.

A cursor comes behind all that it stands for. Who is cut before has the older one, and is sent all of it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gevent
from gevent.event import Event

from ..bus.message import parse_cursor
from ..errors import BusUnavailable
from .connection import left

if TYPE_CHECKING:
    from ..bus.message import Message
    from .connection import Connection


class Replay:
    """Brings one connection to where its feeds are.

    Of latest values nothing can be missing as long as there is one.

    Args:
        connection: Its channels are followed.
        cursor: Where the client has stopped; None if it is new.
    """

    def __init__(self, connection: Connection, cursor: str | None) -> None:
        self.connection = connection
        self.following = connection.audience.following
        self.fanout = self.following.fanout
        kept = [feed for feed in connection.audience.feeds if feed.keeps]
        self.feeds = [feed for feed in kept if not feed.is_latest]
        self.latest = [feed for feed in kept if feed.is_latest]
        self.is_needed = bool(kept)
        self.is_new = cursor is None
        self.epoch: str | None
        self.epoch, self.id = parse_cursor(cursor or "") or (None, 0)

    @property
    def is_known(self) -> bool:
        """This hub has seen the bus where the client has stopped."""
        return self.epoch == self.following.epoch and self.id <= self.following.seen

    @property
    def may_be_ahead(self) -> bool:
        """Another hub may have told the client of what this one has not seen yet."""
        return self.is_needed and self.epoch is not None and not self.is_known

    @property
    def first_cursor(self) -> str | None:
        """Where the client stands if it is new, and nothing is to be sent before that."""
        if not self.is_needed or not self.is_new or self._values():
            return None
        return self.following.cursor(self.fanout.key)

    def begin(self, is_told: bool) -> None:
        """Send what comes before the live messages, and then those.

        Args:
            is_told: The client has got `first_cursor` already.

        Raises:
            OSError: The client is gone.
        """
        connection = self.connection
        connection.position = connection.came = self.fanout.key
        if self.is_needed:
            if not self.is_new:
                self._resume()
            elif not is_told:
                self._begin_now()
        if connection.pager is None:
            connection.catch_up()

    def _resume(self) -> None:
        """Continue behind the client's cursor: from the feeds, else from the bus, else with a reset."""
        connection = self.connection
        if not self.is_known:
            self._begin_now("unknown")
            return
        connection.position = min(self.fanout.behind(self.id), self.fanout.key)
        if self._is_behind_feeds():
            connection.pager = Event()
            gevent.spawn(self._send_pages)

    def _begin_now(self, reason: str | None = None) -> None:
        """Send the current values, and first the notice that all else is missing if there is a reason."""
        connection = self.connection
        connection.position = self.fanout.key
        cursor = self.following.cursor(self.fanout.key)
        values = self._values()
        if reason and self.feeds:
            connection.send_reset(self.feeds, reason, None if values else cursor)
        connection.send_messages(values)
        connection.send(connection.audience.engine.beat(cursor))

    def _values(self) -> list[Message]:
        """Return the current values, without their ids: those are older than where the client stands."""
        return [value.without_id() for feed in self.latest if (value := feed.value)]

    def _is_behind_feeds(self) -> bool:
        return any(feed.floor > self.connection.position for feed in self.feeds)

    def _send_pages(self) -> None:
        """Bring a client whose cursor is older than the feeds up to them, page by page from the bus."""
        connection = self.connection
        try:
            while connection.fd >= 0 and self._is_behind_feeds() and not connection.is_answered:
                self._send_page()
                connection.wait_until_sent()
        except OSError as exc:
            connection.hub.close(connection, left(exc))
        except BusUnavailable as exc:
            connection.hub.close(connection, f"its history could not be read: {exc}")
        finally:
            connection.pager = None
        if connection.fd >= 0:
            connection.catch_up()

    def _send_page(self) -> None:
        connection, following = self.connection, self.following
        rules = [feed.rules for feed in (*self.feeds, *self.latest)]
        page = following.histories.read_after(rules, self.id)
        if connection.fd < 0:
            return
        if following.epoch != self.epoch or page.clock.epoch != self.epoch:
            self._begin_now("restarted")
            return
        gaps = [feed for feed in self.feeds if page.logs[feed.channel].floor > self.id]
        if gaps:
            connection.send_reset(gaps, "expired")
        # What this hub has not seen itself yet comes from its feeds.
        self.id = min(page.bound, following.seen)
        connection.position = min(self.fanout.behind(self.id), self.fanout.key)
        connection.send_page(page, self.id)
