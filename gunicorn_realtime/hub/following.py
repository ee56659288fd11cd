"""A hub's side of one bus: one subscription for all its feeds, kept alive and proved alive.

Two connections, whatever the number of channels and clients: one listens, one publishes the
canary. What nobody follows any more is unsubscribed from after a while.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable
from typing import assert_never

import gevent
from gevent.event import Event

from ..bus.address import BusAddress
from ..bus.client import Pong, Publisher, Received, Subscribed, Subscription, Unsubscribed
from ..bus.local import LocalBus, own_local_bus
from ..bus.message import Message, decode
from ..errors import BusUnavailable, ProtocolError
from .feed import Feed

logger = logging.getLogger(__name__)

# A canary is published this often; if none comes back for so long, the subscription is dead.
CANARY_INTERVAL = 5.0  # seconds
CANARY_TIMEOUT = 15.0  # seconds

# After a lost connection, so that a thousand hubs do not return in the same instant.
RECONNECT = (0.05, 0.25)  # seconds, the first time
MAX_RECONNECT = 2.0  # seconds

TIMEOUT = 5.0  # seconds for one answer of the bus

# The reader gives the loop a turn after so long, also when it always finds more to read.
READ_SLICE = 0.002  # seconds


class Following:
    """Follows channels of one bus.

    Args:
        address: The bus.
        deliver: Called with each message and its feed.
        confirm: Called with a feed when the bus has confirmed its subscription.
        is_behind: Says whether the bus should not be read for now.
        max_message_size: Bytes; larger messages are dropped and logged.
    """

    def __init__(
        self,
        address: BusAddress,
        deliver: Callable[[Feed, Message], None],
        confirm: Callable[[Feed], None],
        is_behind: Callable[[], bool],
        max_message_size: int,
    ) -> None:
        self.address = address
        self.deliver = deliver
        self.confirm = confirm
        self.is_behind = is_behind
        self.max_message_size = max_message_size
        self.feeds: dict[str, Feed] = {}
        self.local_bus: LocalBus | None = None
        self.own_channel = f"{address.prefix}rt:hub:{secrets.token_hex(8)}"
        self.canary_seen = time.monotonic()
        self.reconnects = 0
        self._subscription: Subscription | None = None
        self._publisher = Publisher(address, TIMEOUT)
        self._subscribe: list[str] = []
        self._unsubscribe: list[str] = []
        self._wanted = Event()
        self._drained = Event()
        self._greenlets = [gevent.spawn(run) for run in (self._read_forever, self._ask, self._sing)]

    # Called from the loop.

    def follow(self, channel: str, last: int) -> Feed:
        """Return the channel's feed; it is new, and not confirmed, if nobody followed the channel."""
        feed = self.feeds.get(channel)
        if feed is None:
            feed = self.feeds[channel] = Feed(channel, last)
            self._subscribe.append(channel)
            self._wanted.set()
        feed.idle_since = None
        return feed

    def unfollow_idle(self, before: float) -> None:
        """Forget the feeds that nobody has followed since a moment."""
        for feed in [feed for feed in self.feeds.values() if (feed.idle_since or before) < before]:
            del self.feeds[feed.channel]
            self._unsubscribe.append(feed.channel)
            self._wanted.set()

    def resume(self) -> None:
        """The hub is not behind any more."""
        self._drained.set()

    def close(self) -> None:
        gevent.killall(self._greenlets)
        if self._subscription is not None:
            self._subscription.close()
        self._publisher.close()
        if self.local_bus is not None:
            self.local_bus.close()

    # Greenlets.

    def _read_forever(self) -> None:
        pause = random.uniform(*RECONNECT)
        while True:
            try:
                self._connect()
                pause = random.uniform(*RECONNECT)
                self._read()
            except BusUnavailable as exc:
                logger.warning("The bus is out of reach: %s", exc)
            except Exception:
                logger.exception("Reading from the bus failed")
            self._disconnect()
            self.reconnects += 1
            gevent.sleep(pause)
            pause = min(MAX_RECONNECT, pause * 2)

    def _connect(self) -> None:
        if self.address.is_local and self.local_bus is None:
            self.local_bus = own_local_bus(self.address)
        subscription = Subscription(self.address, TIMEOUT)
        subscription.connect()
        self._subscribe.clear()
        self._unsubscribe.clear()
        self.canary_seen = time.monotonic()
        self._subscription = subscription  # from here on `_ask` sees to what is followed meanwhile
        subscription.subscribe([self.own_channel, self.address.hubs_channel, *self.feeds])

    def _disconnect(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    def _read(self) -> None:
        subscription = self._subscription
        assert subscription is not None
        loop = gevent.get_hub().loop
        turn, turn_ends = loop.iteration, time.perf_counter() + READ_SLICE
        while True:
            reply = subscription.read()
            if loop.iteration != turn:  # the loop has had its turn while we waited
                turn, turn_ends = loop.iteration, time.perf_counter() + READ_SLICE
            match reply:
                case Received():
                    self._receive(reply.channel, reply.payload)
                case Subscribed():
                    feed = self.feeds.get(reply.channel)
                    if feed is not None:
                        self.confirm(feed)
                case Unsubscribed() | Pong() | None:
                    pass
                case _:
                    assert_never(reply)
            if self.is_behind():
                self._drained.clear()
                self._drained.wait()
            if time.perf_counter() > turn_ends:
                gevent.sleep(0)

    def _receive(self, channel: str, payload: bytes) -> None:
        if channel == self.own_channel:
            self.canary_seen = time.monotonic()
            return
        feed = self.feeds.get(channel)
        if feed is None:
            return
        if len(payload) > self.max_message_size:
            logger.warning(
                "A message of %d bytes on %r was dropped: more than %d",
                len(payload),
                channel,
                self.max_message_size,
            )
            return
        try:
            self.deliver(feed, decode(channel, payload))
        except ProtocolError as exc:
            logger.warning("A message on %r was dropped: %s", channel, exc)

    def _ask(self) -> None:
        """Tell the bus what is followed and what not, many channels in one command."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            subscription = self._subscription
            if subscription is None:
                continue  # connecting subscribes to everything
            subscribe, self._subscribe = self._subscribe, []
            unsubscribe, self._unsubscribe = self._unsubscribe, []
            try:
                # A channel may be in both, dropped and followed again: unsubscribe first.
                if unsubscribe:
                    subscription.unsubscribe(unsubscribe)
                wanted = [channel for channel in [*unsubscribe, *subscribe] if channel in self.feeds]
                if wanted:
                    subscription.subscribe(dict.fromkeys(wanted))
            except BusUnavailable:
                pass  # the reader sees it too, and connects again

    def _sing(self) -> None:
        """Publish the canary, and drop a subscription that does not bring it back."""
        while True:
            gevent.sleep(CANARY_INTERVAL)
            subscription = self._subscription
            if subscription is None:
                continue
            try:
                self._publisher.publish(self.own_channel, b"")
            except BusUnavailable as exc:
                logger.warning("The canary could not be published: %s", exc)
            silence = time.monotonic() - self.canary_seen
            if silence > CANARY_TIMEOUT:
                logger.warning("The subscription has been silent for %.0f s: connecting again", silence)
                subscription.close()
