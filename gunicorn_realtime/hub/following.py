"""A hub's side of one bus: one subscription for all its feeds, kept alive and proved alive.

Two connections, whatever the number of channels and clients: one listens, one reads histories (see
`histories`) and ticks. What nobody follows any more is unsubscribed from after a while.

The tick is liveness and frontier in one. It advances the bus's clock and comes back on the hub's own
channel: when it has, everything published before it on all that this hub follows has been seen.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, assert_never

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from ..bus import control
from ..bus.address import BusAddress
from ..bus.channel import Channel
from ..bus.client import (
    Clock,
    Outgoing,
    Pong,
    Publisher,
    Received,
    Reply,
    Subscribed,
    Subscription,
    Unsubscribed,
)
from ..bus.control import Disconnect
from ..bus.local import MAX_MESSAGE_SIZE, LocalBus, own_local_bus
from ..bus.message import Message, decode
from ..bus.presence import PresenceTimes
from ..errors import BusUnavailable, ProtocolError, TooLarge
from .fanout import KEY_BITS, Fanout
from .feed import Feed
from .histories import Histories
from .outbox import Outbox
from .presence import Presences

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

# If no tick comes back for so long, the subscription is dead.
TICK_INTERVAL = 5.0  # seconds
TICK_TIMEOUT = 15.0  # seconds

# After a lost connection, so that a thousand hubs do not return in the same instant.
RECONNECT = (0.05, 0.25)  # seconds, the first time
MAX_RECONNECT = 2.0  # seconds

TIMEOUT = 5.0  # seconds for one answer of the bus

# The reader gives the loop a turn after so long, also when it always finds more to read.
READ_SLICE = 0.002  # seconds

# Waking up costs more than a message: what comes within this time of the last is taken together.
COALESCE = 0.002  # seconds
MANY_REPLIES = 64


class Following:
    """Follows channels of one bus.

    Args:
        address: The bus.
        fanout: Brings its messages to the hub's clients.
        delivered: Called after a message has been added to the fan-out.
        confirm: Called with a feed from whose last message on nothing is missed.
        disconnect: Called with this and what the site wants to be ended.
        not_published: Called with a connection whose messages may not have been sent, and the reason.
        max_message_size: Bytes; larger messages are dropped and logged.
        presence_times: How long the bus takes somebody for present.
    """

    def __init__(
        self,
        address: BusAddress,
        fanout: Fanout,
        delivered: Callable[[], None],
        confirm: Callable[[Feed], None],
        disconnect: Callable[[Following, Disconnect], None],
        not_published: Callable[[Connection, str], None],
        max_message_size: int,
        presence_times: PresenceTimes,
    ) -> None:
        self.address = address
        self.fanout = fanout
        self.delivered = delivered
        self.confirm = confirm
        self.disconnect = disconnect
        self.max_message_size = (
            min(max_message_size, MAX_MESSAGE_SIZE) if address.is_local else max_message_size
        )
        self.feeds: dict[str, Feed] = {}
        self.idle: dict[Feed, float] = {}  # those that nobody follows any more, and since when
        self.local_bus: LocalBus | None = None
        self.hubs_channel = address.hubs_channel
        self.own_channel = f"{address.prefix}rt:hub:{secrets.token_hex(8)}"
        self.epoch: str | None = None  # of the ids in the feeds
        self.frontier = 0  # the newest id up to which all has been seen
        self.tick_seen = time.monotonic()
        self.subscription: Subscription | None = None
        self.histories = Histories(self)
        self._publisher = Publisher(address, TIMEOUT)
        self._commands = BoundedSemaphore()  # one connection, whoever asks
        self.outbox = Outbox(self._publish, not_published)
        self.presences = Presences(self.commanding, presence_times)
        self._subscribe: list[str] = []
        self._unsubscribe: list[str] = []
        self._pings: dict[bytes, Event] = {}
        self._wanted = Event()
        self._drained = Event()
        self._greenlets = [
            gevent.spawn(run)
            for run in (self._read_forever, self._ask, self.histories.run, self._tick_forever)
        ]

    # Called from the loop.

    def follow(self, channel: Channel) -> Feed:
        """Return the channel's feed; it is new, and not confirmed, if nobody followed the channel."""
        feed = self.feeds.get(channel.name)
        if feed is None:
            feed = self.feeds[channel.name] = Feed(channel, self.fanout.key)
            self._subscribe.append(channel.name)
            self._wanted.set()
        elif feed.keeps == (channel.history > 0):
            feed.rules = channel
        self.idle.pop(feed, None)
        return feed

    def unfollow_idle(self, before: float) -> None:
        """Forget the feeds that nobody has followed since a moment."""
        for feed in [feed for feed, since in self.idle.items() if since < before]:
            del self.idle[feed]
            del self.feeds[feed.channel]
            self.histories.forget(feed)
            self._unsubscribe.append(feed.channel)
            self._wanted.set()

    def resume(self) -> None:
        """The hub is not behind any more."""
        self._drained.set()

    # How far the bus has been seen.

    @property
    def seen(self) -> int:
        """The newest id up to which all that concerns the feeds has come, and is in them."""
        return self.fanout.id_of(self.fanout.key)

    def see(self, clock: Clock) -> None:
        """All that was published up to a clock is in the feeds."""
        self.epoch = clock.epoch
        self.frontier = max(self.frontier, clock.id)
        self.fanout.advance(clock.id)

    def begin_epoch(self, clock: Clock) -> None:
        """The bus has begun anew. Keys go on rising, whatever the new clock says."""
        logger.warning("The bus has begun anew (epoch %s, was %s)", clock.epoch, self.epoch)
        self.fanout.shift = max(0, (self.fanout.key >> KEY_BITS) + 1 - clock.id)
        self.frontier = 0
        self.see(clock)

    def cursor(self, position: int) -> str | None:
        """Return a position as a client keeps it; None before the clock is known."""
        id_ = self.fanout.id_of(position)
        return f"{self.epoch}-{id_}" if self.epoch and id_ else None

    @contextmanager
    def commanding(self) -> Iterator[Publisher]:
        """Speak to the bus. It is told how far we have seen it, for it may come back from an older state."""
        with self._commands:
            if self.epoch is not None:
                self._publisher.note_seen(Clock(self.epoch, self.seen))
            yield self._publisher

    def await_all_before(self, subscription: Subscription) -> None:
        """Wait until everything has come that was published before now.

        Raises:
            BusUnavailable: The connection has been lost meanwhile.
        """
        token = secrets.token_hex(8).encode()
        pong = self._pings[token] = Event()
        try:
            subscription.ping(token)
            if not pong.wait(TICK_TIMEOUT):
                raise BusUnavailable("the subscription does not answer")
            self.check_is_current(subscription)
        finally:
            del self._pings[token]

    def check_is_current(self, subscription: Subscription) -> None:
        """Raise BusUnavailable unless what comes still comes by this subscription."""
        if self.subscription is not subscription:
            raise BusUnavailable("the subscription was lost")

    def check(self, feed: Feed, message: Message) -> None:
        """See that nothing is missing before a message.

        Raises:
            BusUnavailable: Something is, or the bus has begun anew: connect again and read what was missed.
        """
        stamp = message.stamp
        if stamp is None or not feed.keeps:
            return
        if stamp.epoch != self.epoch:
            raise BusUnavailable(f"its epoch is {stamp.epoch}, no longer {self.epoch}")
        if stamp.previous > max(feed.last_id, self.frontier):
            raise BusUnavailable(f"a message on {feed.channel!r} did not come")

    def await_drained(self) -> None:
        """Wait until the hub's clients are served, lest those who keep up fall off a feed's end."""
        self.delivered()
        self._drained.clear()
        self._drained.wait()

    def close(self) -> None:
        self.presences.close()
        gevent.killall(self._greenlets)
        self.outbox.close()
        if self.subscription is not None:
            self.subscription.close()
        self._publisher.close()
        if self.local_bus is not None:
            self.local_bus.close()

    def _publish(self, messages: Sequence[Outgoing]) -> None:
        with self.commanding() as publisher:
            publisher.send(messages)

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
            gevent.sleep(pause)
            pause = min(MAX_RECONNECT, pause * 2)

    def _connect(self) -> None:
        if self.address.is_local and self.local_bus is None:
            self.local_bus = own_local_bus(self.address)
        subscription = Subscription(self.address, TIMEOUT)
        subscription.connect()
        self._subscribe.clear()
        self._unsubscribe.clear()
        self.histories.interrupt([feed for feed in self.feeds.values() if feed.keeps])
        self.tick_seen = time.monotonic()
        self.subscription = subscription  # from here on `_ask` sees to what is followed meanwhile
        self.presences.bus_is_back()
        subscription.subscribe([self.own_channel, self.hubs_channel, *self.feeds])

    def _disconnect(self) -> None:
        subscription, self.subscription = self.subscription, None
        if subscription is not None:
            subscription.close()
        for pong in self._pings.values():
            pong.set()

    def _read(self) -> None:
        subscription = self.subscription
        assert subscription is not None
        loop = gevent.get_hub().loop
        turn, turn_ends = loop.iteration, time.perf_counter() + READ_SLICE
        woken = 0.0
        while True:
            replies = subscription.read_all()
            last_woken, woken = woken, time.perf_counter()
            # What has come while we slept goes on like this; else one that comes alone is not held up.
            are_many = loop.iteration == turn or woken - last_woken < COALESCE
            if loop.iteration != turn:  # the loop has had its turn while we waited
                turn, turn_ends = loop.iteration, woken + READ_SLICE
            self.fanout.turn += 1
            for reply in replies:
                if type(reply) is Received:
                    self._receive(reply.channel, reply.payload)
                else:
                    self._take(reply)
                if self.fanout.is_behind:
                    self.await_drained()
                if time.perf_counter() > turn_ends:
                    gevent.sleep(0)
                    turn, turn_ends = loop.iteration, time.perf_counter() + READ_SLICE
            if are_many and len(replies) < MANY_REPLIES:
                gevent.sleep(COALESCE)
                turn, turn_ends = loop.iteration, time.perf_counter() + READ_SLICE

    def _take(self, reply: Reply) -> None:
        match reply:
            case Received():
                self._receive(reply.channel, reply.payload)
            case Subscribed():
                self._subscribed(reply.channel)
            case Pong():
                if reply.token in self._pings:
                    self._pings[reply.token].set()
            case Unsubscribed():
                pass
            case _:
                assert_never(reply)

    def _subscribed(self, channel: str) -> None:
        feed = self.feeds.get(channel)
        if feed is None:
            return
        if feed.keeps:
            self.histories.read(feed)
        elif not feed.is_confirmed:
            self.confirm(feed)

    def _receive(self, channel: str, payload: bytes) -> None:
        if channel == self.own_channel:
            self._tick_came(payload)
            return
        if channel == self.hubs_channel:
            self._control_came(payload)
            return
        feed = self.feeds.get(channel)
        if feed is None:
            return
        try:
            message = decode(channel, payload)
            if len(message.data) > self.max_message_size:
                raise TooLarge(f"it has {len(message.data)} bytes, more than {self.max_message_size}")
        except ProtocolError as exc:
            logger.warning("A message on %r was dropped: %s", channel, exc)
            return
        if feed.held is not None:
            feed.held.append(message)
            return
        if message.stamp is not None:
            self.check(feed, message)
        if self.fanout.append(feed, message):
            self.delivered()

    def _tick_came(self, payload: bytes) -> None:
        """All that was published before a tick has come.

        Raises:
            BusUnavailable: The bus has begun anew: connect again, and say so.
        """
        epoch, _, digits = payload.decode().partition(" ")
        self.tick_seen = time.monotonic()
        if self.histories.are_behind:
            return  # reading them meets the clock as well
        if epoch == self.epoch:
            self.see(Clock(epoch, int(digits)))
        elif any(feed.keeps and feed.is_confirmed for feed in self.feeds.values()):
            raise BusUnavailable(f"its epoch is {epoch}, no longer {self.epoch}")

    def _control_came(self, payload: bytes) -> None:
        try:
            self.disconnect(self, control.decode(payload))
        except ProtocolError as exc:
            logger.warning("%s", exc)

    def _ask(self) -> None:
        """Tell the bus what is followed and what not, many channels in one command."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            subscription = self.subscription
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

    def _tick_forever(self) -> None:
        while True:
            gevent.sleep(TICK_INTERVAL)
            self._tick()

    def _tick(self) -> None:
        """Tick, and drop a subscription that does not bring it back."""
        subscription = self.subscription
        if subscription is None:
            return
        try:
            with self.commanding() as publisher:
                publisher.tick(self.own_channel)
        except BusUnavailable as exc:
            logger.warning("The bus's clock could not be advanced: %s", exc)
        silence = time.monotonic() - self.tick_seen
        if silence > TICK_TIMEOUT:
            logger.warning("The subscription has been silent for %.0f s: connecting again", silence)
            subscription.close()
