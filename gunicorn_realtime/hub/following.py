"""A hub's side of one bus: one subscription for all its feeds, kept alive and proved alive.

Two connections, whatever the number of channels and clients: one listens, one reads histories and
ticks. What nobody follows any more is unsubscribed from after a while.

The tick is liveness and frontier in one. It advances the bus's clock and comes back on the hub's own
channel: when it has, everything published before it on all that this hub follows has been seen.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import assert_never

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from ..bus.address import BusAddress
from ..bus.channel import Channel
from ..bus.client import (
    Clock,
    Page,
    Pong,
    Publisher,
    Received,
    Snapshot,
    Subscribed,
    Subscription,
    Unsubscribed,
)
from ..bus.local import LocalBus, own_local_bus
from ..bus.message import Message, decode
from ..errors import BusUnavailable, ProtocolError, TooLarge
from .fanout import KEY_BITS, Fanout
from .feed import Feed

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

# Histories that are read in one command, and messages of each.
CHANNELS_PER_READ = 256
MESSAGES_PER_READ = 256


class Following:
    """Follows channels of one bus.

    Args:
        address: The bus.
        fanout: Brings its messages to the hub's clients.
        delivered: Called after a message has been added to the fan-out.
        confirm: Called with a feed from whose last message on nothing is missed.
        max_message_size: Bytes; larger messages are dropped and logged.
    """

    def __init__(
        self,
        address: BusAddress,
        fanout: Fanout,
        delivered: Callable[[], None],
        confirm: Callable[[Feed], None],
        max_message_size: int,
    ) -> None:
        self.address = address
        self.fanout = fanout
        self.delivered = delivered
        self.confirm = confirm
        self.max_message_size = max_message_size
        self.feeds: dict[str, Feed] = {}
        self.local_bus: LocalBus | None = None
        self.own_channel = f"{address.prefix}rt:hub:{secrets.token_hex(8)}"
        self.epoch: str | None = None  # of the ids in the feeds
        self.frontier = 0  # the newest id up to which all has been seen
        self.tick_seen = time.monotonic()
        self._subscription: Subscription | None = None
        self._publisher = Publisher(address, TIMEOUT)
        self._commands = BoundedSemaphore()  # one connection, whoever reads
        self._subscribe: list[str] = []
        self._unsubscribe: list[str] = []
        self._unread: dict[Feed, None] = {}  # subscribed to, and their history not read yet
        self._interrupted: set[Feed] = set()  # to be subscribed to again, before any of them goes on
        self._clock_calls: list[Callable[[], None]] = []
        self._pings: dict[bytes, Event] = {}
        self._wanted = Event()
        self._to_read = Event()
        self._drained = Event()
        self._greenlets = [
            gevent.spawn(run)
            for run in (self._read_forever, self._ask, self._read_histories, self._tick_forever)
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
        feed.idle_since = None
        return feed

    def unfollow_idle(self, before: float) -> None:
        """Forget the feeds that nobody has followed since a moment."""
        for feed in [feed for feed in self.feeds.values() if (feed.idle_since or before) < before]:
            del self.feeds[feed.channel]
            self._unread.pop(feed, None)
            self._interrupted.discard(feed)
            self._to_read.set()
            self._unsubscribe.append(feed.channel)
            self._wanted.set()

    def resume(self) -> None:
        """The hub is not behind any more."""
        self._drained.set()

    def cursor(self, position: int) -> str | None:
        """Return a position as a client keeps it; None before the clock is known."""
        id_ = self.fanout.id_of(position)
        return f"{self.epoch}-{id_}" if self.epoch and id_ else None

    @property
    def seen(self) -> int:
        """The newest id up to which all that concerns the feeds has come."""
        return self.fanout.id_of(self.fanout.key)

    def call_at_clock(self, call: Callable[[], None]) -> None:
        """Call when everything has come that was published before now."""
        self._clock_calls.append(call)
        self._to_read.set()

    def read_after(self, channels: Iterable[Channel], id: int) -> Page:
        """Read a page of histories behind an id; blocks the greenlet.

        Raises:
            BusUnavailable: The bus refused or was too slow.
        """
        with self._commanding() as publisher:
            return publisher.read_after(list(channels), id, MESSAGES_PER_READ)

    def close(self) -> None:
        gevent.killall(self._greenlets)
        if self._subscription is not None:
            self._subscription.close()
        self._publisher.close()
        if self.local_bus is not None:
            self.local_bus.close()

    @contextmanager
    def _commanding(self) -> Iterator[Publisher]:
        """Speak to the bus, which is told how far we have seen it: it may have come back from an older state."""
        with self._commands:
            if self.epoch is not None:
                self._publisher.note_seen(Clock(self.epoch, self.seen))
            yield self._publisher

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
        self._unread.clear()
        self._interrupted = {feed for feed in self.feeds.values() if feed.keeps and feed.is_confirmed}
        for feed in self.feeds.values():
            if feed.keeps:
                feed.held = []  # what comes now comes after what we have missed
        self.tick_seen = time.monotonic()
        self._subscription = subscription  # from here on `_ask` sees to what is followed meanwhile
        subscription.subscribe([self.own_channel, self.address.hubs_channel, *self.feeds])

    def _disconnect(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()
        for pong in self._pings.values():
            pong.set()

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
                    self._subscribed(reply.channel)
                case Pong():
                    if reply.token in self._pings:
                        self._pings[reply.token].set()
                case Unsubscribed() | None:
                    pass
                case _:
                    assert_never(reply)
            if self.fanout.is_behind:
                self._drained.clear()
                self._drained.wait()
            if time.perf_counter() > turn_ends:
                gevent.sleep(0)

    def _subscribed(self, channel: str) -> None:
        feed = self.feeds.get(channel)
        if feed is None:
            return
        if feed.keeps:
            self._unread[feed] = None
            self._interrupted.discard(feed)
            self._to_read.set()
        elif not feed.is_confirmed:
            self.confirm(feed)

    def _receive(self, channel: str, payload: bytes) -> None:
        if channel == self.own_channel:
            self._tick_came(payload)
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
        self._check(feed, message)
        self.fanout.append(feed, message)
        self.delivered()

    def _check(self, feed: Feed, message: Message) -> None:
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

    def _tick_came(self, payload: bytes) -> None:
        """All that was published before a tick has come.

        Raises:
            BusUnavailable: The bus has begun anew: connect again, and say so.
        """
        epoch, _, digits = payload.decode().partition(" ")
        self.tick_seen = time.monotonic()
        if self._unread or self._interrupted:
            return  # reading histories meets the clock as well
        if epoch == self.epoch:
            self.frontier = int(digits)
            self.fanout.advance(self.frontier)
        elif any(feed.keeps and feed.is_confirmed for feed in self.feeds.values()):
            raise BusUnavailable(f"its epoch is {epoch}, no longer {self.epoch}")

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

    def _read_histories(self) -> None:
        """Read the history of what was subscribed to, new or again, many channels in one command."""
        while True:
            self._to_read.wait()
            self._to_read.clear()
            subscription = self._subscription
            feeds = list(self._unread)
            if subscription is None or self._interrupted or not (feeds or self._clock_calls):
                continue
            try:
                known = [feed for feed in feeds if feed.is_confirmed]
                if known:  # at once, and first: what is new after them is in order
                    self._read_missed(subscription, known)
                else:
                    self._read_new(subscription, feeds[:CHANNELS_PER_READ])
            except BusUnavailable as exc:
                logger.warning("Histories could not be read: %s", exc)
                subscription.close()  # the reader connects again
            except Exception:
                logger.exception("Reading histories failed")
                subscription.close()
            if self._unread or self._clock_calls:
                self._to_read.set()

    def _read_new(self, subscription: Subscription, feeds: list[Feed]) -> None:
        """Begin feeds with what the bus has kept; everything before it has come, also for who only waits for that."""
        count = len(self._clock_calls)
        with self._commanding() as publisher:
            snapshot = publisher.snapshot([feed.rules for feed in feeds])
        self._await_all_before(subscription)
        self._meet_clock(subscription, snapshot.clock)
        self.fanout.advance(snapshot.clock.id)
        for feed in feeds:
            if feed in self._unread:  # else nobody follows it any more
                self._begin(feed, snapshot)
        calls, self._clock_calls = self._clock_calls[:count], self._clock_calls[count:]
        for call in calls:
            call()
        for feed in feeds:
            if feed.held is None:
                self.confirm(feed)

    def _begin(self, feed: Feed, snapshot: Snapshot) -> None:
        """Begin a feed, of which nobody has been sent anything, with its history and what came meanwhile."""
        fanout = self.fanout
        self._load(feed, snapshot)
        del self._unread[feed]
        held, feed.held = feed.held or [], None
        for message in held:
            # What has no id is for those who were there when it came, and nobody was.
            if message.stamp and message.stamp.epoch == self.epoch and message.id > feed.last_id:
                self._check(feed, message)
                feed.append(fanout.key_of(message.id), message, fanout.feed_size)
                fanout.advance(message.id)
                fanout.touched.add(feed)

    def _load(self, feed: Feed, snapshot: Snapshot) -> None:
        """Fill a feed with what the bus has kept of it."""
        fanout, log = self.fanout, snapshot.logs[feed.channel]
        feed.clear(min(fanout.behind(log.floor), fanout.key))
        for message in log.entries:
            feed.append(fanout.key_of(message.id), message, fanout.feed_size)
        feed.last_id = snapshot.clock.id

    def _read_missed(self, subscription: Subscription, feeds: list[Feed]) -> None:
        """Continue feeds after the connection was lost; who follows them gets what was missed, or a reset."""
        missed: list[tuple[Feed, Message]] = []
        holes: defaultdict[int, list[Feed]] = defaultdict(list)  # by the id up to which messages are missing
        clock_ids: dict[Feed, int] = {}
        for start in range(0, len(feeds), CHANNELS_PER_READ):
            part = feeds[start : start + CHANNELS_PER_READ]
            position = self.seen
            while True:
                page = self.read_after([feed.rules for feed in part], position)
                if self._is_another_bus(page.clock):
                    self._begin_anew(subscription, page.clock)
                    return
                for feed in part:
                    log = page.logs[feed.channel]
                    missed += [(feed, message) for message in log.entries if message.id <= page.bound]
                    if position < log.floor <= page.bound and not feed.is_latest:
                        holes[log.floor].append(feed)
                position = page.bound
                if position >= page.clock.id:
                    break
            clock_ids |= dict.fromkeys(part, position)
        self._await_all_before(subscription)
        self._release([feed for feed in feeds if feed in self._unread], missed, holes, clock_ids)
        self.fanout.advance(min(clock_ids.values()))
        self.delivered()

    def _await_all_before(self, subscription: Subscription) -> None:
        """Wait until everything has come that was published before now.

        Raises:
            BusUnavailable: The connection has been lost meanwhile.
        """
        token = secrets.token_hex(8).encode()
        pong = self._pings[token] = Event()
        try:
            subscription.ping(token)
            if not pong.wait(TICK_TIMEOUT) or self._subscription is not subscription:
                raise BusUnavailable("the subscription does not answer")
        finally:
            del self._pings[token]

    def _release(
        self,
        feeds: list[Feed],
        read: list[tuple[Feed, Message]],
        holes: dict[int, list[Feed]],
        clock_ids: dict[Feed, int],
    ) -> None:
        """Continue feeds with what was read, up to a clock, and what came meanwhile: in one order.

        Not faster than the clients of the hub are served, lest those who keep up fall off a feed's end.

        Raises:
            BusUnavailable: The connection has been lost meanwhile.
        """
        subscription = self._subscription
        order = [(message.id, feed, message) for feed, message in read]
        holes_left = sorted(holes.items(), key=itemgetter(0))
        while True:
            for feed in feeds:
                held, feed.held = feed.held or [], []
                order += self._order_held(feed, held, clock_ids[feed])
            if not order:
                break
            try:
                self._append_in_order(subscription, order, holes_left, clock_ids)
            finally:
                self.delivered()
            order = []
        for hole in holes_left:
            self._append_resets("expired", *hole)
        for feed in feeds:
            feed.last_id = max(feed.last_id, clock_ids[feed])
            feed.held = None
            self._unread.pop(feed, None)

    def _append_in_order(
        self,
        subscription: Subscription | None,
        order: list[tuple[int, Feed, Message]],
        holes: list[tuple[int, list[Feed]]],
        clock_ids: dict[Feed, int],
    ) -> None:
        for id_, feed, message in sorted(order, key=itemgetter(0)):
            while holes and holes[0][0] < id_:
                self._append_resets("expired", *holes.pop(0))
            if message.stamp is not None and id_ > clock_ids[feed]:
                feed.last_id = max(feed.last_id, clock_ids[feed])
                self._check(feed, message)
            self.fanout.append(feed, message)
            if self.fanout.is_behind:
                self.delivered()
                self._drained.clear()
                self._drained.wait()
                if self._subscription is not subscription:
                    raise BusUnavailable("the subscription was lost")

    def _order_held(self, feed: Feed, held: list[Message], clock_id: int) -> list[tuple[int, Feed, Message]]:
        """Return what came behind a clock by its ids, and what has none just before what came next."""
        order = []
        next_id = max([clock_id, *(message.id for message in held)]) + 1
        for message in reversed(held):
            if message.stamp is None:
                order.append((next_id - 1, feed, message))
            elif message.stamp.epoch == self.epoch:
                next_id = message.id
                if next_id > clock_id:
                    order.append((next_id, feed, message))
        order.reverse()
        return order

    def _is_another_bus(self, clock: Clock) -> bool:
        return self.epoch is not None and clock.epoch != self.epoch

    def _meet_clock(self, subscription: Subscription, clock: Clock) -> None:
        if self.epoch is None:
            self.epoch = clock.epoch
        elif self._is_another_bus(clock):
            self._begin_anew(subscription, clock)
        self.frontier = max(self.frontier, clock.id)

    def _begin_anew(self, subscription: Subscription, clock: Clock) -> None:
        """The bus has lost its memory: so do we, and say so to everybody who relied on it."""
        latest = [feed for feed in self.feeds.values() if feed.keeps and feed.is_confirmed and feed.is_latest]
        with self._commanding() as publisher:
            snapshot = publisher.snapshot([feed.rules for feed in latest])
        if snapshot.clock.epoch != clock.epoch:
            raise BusUnavailable(f"its epoch is {snapshot.clock.epoch}, no longer {clock.epoch}")
        clock = snapshot.clock
        self._await_all_before(subscription)
        # Nothing waits from here on: who comes meanwhile would find half of either life.
        logger.warning("The bus has begun anew (epoch %s, was %s)", clock.epoch, self.epoch)
        self.epoch = clock.epoch
        self.frontier = clock.id
        # Keys go on rising, whatever the new clock says.
        self.fanout.shift = max(0, (self.fanout.key >> KEY_BITS) + 1 - clock.id)
        self.fanout.advance(clock.id)
        followed = [feed for feed in self.feeds.values() if feed.keeps and feed.is_confirmed]
        without_value = []
        for feed in followed:
            if feed in latest:
                self._load(feed, snapshot)
                # Nobody knows whether what came meanwhile without an id is newer.
                feed.held = [message for message in feed.held or () if message.stamp]
            else:
                feed.clear(self.fanout.key)
                feed.last_id = clock.id
        for feed in followed:
            if value := feed.value:
                # Without its id, which is older than where the client stands.
                self.fanout.append(feed, value.without_id())
            else:
                without_value.append(feed)
        self._append_resets("restarted", clock.id, without_value)
        self._release(followed, [], {}, dict.fromkeys(followed, clock.id))
        self.delivered()

    def _append_resets(self, reason: str, id_: int, feeds: list[Feed]) -> None:
        """Say that messages up to an id are missing.

        A reset moves nobody's cursor: who is cut before it has been told all is told again.
        """
        self.fanout.advance(id_)
        for feed in feeds:
            name = feed.channel.removeprefix(self.address.prefix)
            self.fanout.append(feed, Message(name, b"", reset=reason))

    def _tick_forever(self) -> None:
        while True:
            gevent.sleep(TICK_INTERVAL)
            self._tick()

    def _tick(self) -> None:
        """Tick, and drop a subscription that does not bring it back."""
        subscription = self._subscription
        if subscription is None:
            return
        try:
            with self._commanding() as publisher:
                publisher.tick(self.own_channel)
        except BusUnavailable as exc:
            logger.warning("The bus's clock could not be advanced: %s", exc)
        silence = time.monotonic() - self.tick_seen
        if silence > TICK_TIMEOUT:
            logger.warning("The subscription has been silent for %.0f s: connecting again", silence)
            subscription.close()
