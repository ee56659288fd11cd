"""How feeds are brought to where the bus is.

A new feed begins with what the bus has kept. One that was followed when the connection was lost goes
on with what it has missed, or with a reset at the hole. If the bus has lost its memory all feeds begin
anew. What comes while a history is read is held, and follows it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

from gevent.event import Event

from ..bus.channel import Channel
from ..bus.client import Clock, Page, Snapshot, Subscription
from ..bus.message import Message
from ..errors import BusUnavailable
from .feed import Feed

if TYPE_CHECKING:
    from .following import Following

logger = logging.getLogger(__name__)

# Histories that are read in one command, and messages of each.
CHANNELS_PER_READ = 256
MESSAGES_PER_READ = 256

# A message that is to be appended to a feed, behind those with lower ids.
Ordered = tuple[int, Feed, Message]


@dataclass
class Missed:
    """What was published to feeds while the connection was lost.

    Args:
        messages: Those that the bus still has.
        holes: The feeds in which messages are missing for good, by the id of the last that is.
        clock_ids: Up to which that is all, of each feed.
    """

    messages: list[Ordered] = field(default_factory=list)
    holes: defaultdict[int, list[Feed]] = field(default_factory=lambda: defaultdict(list))
    clock_ids: dict[Feed, int] = field(default_factory=dict)


class Histories:
    """Reads the histories of what is followed on one bus, in a greenlet of its own."""

    def __init__(self, following: Following) -> None:
        self.following = following
        self.fanout = following.fanout
        self._unread: dict[Feed, None] = {}  # subscribed to, and not read yet
        self._interrupted: set[Feed] = set()  # to be subscribed to again, before any of them goes on
        self._clock_calls: list[Callable[[], None]] = []
        self._wanted = Event()

    @property
    def are_behind(self) -> bool:
        """Something is to be read that comes before what comes now."""
        return bool(self._unread or self._interrupted)

    def interrupt(self, feeds: list[Feed]) -> None:
        """The connection was lost: from here on hold what comes, for it comes after what was missed."""
        self._unread.clear()
        self._interrupted = {feed for feed in feeds if feed.is_confirmed}
        for feed in feeds:
            feed.held = []

    def read(self, feed: Feed) -> None:
        """What is published from now on comes: read what was before."""
        self._unread[feed] = None
        self._interrupted.discard(feed)
        self._wanted.set()

    def forget(self, feed: Feed) -> None:
        self._unread.pop(feed, None)
        self._interrupted.discard(feed)
        self._wanted.set()

    def call_at_clock(self, call: Callable[[], None]) -> None:
        """Call when everything has come that was published before now."""
        self._clock_calls.append(call)
        self._wanted.set()

    def read_after(self, channels: Iterable[Channel], id: int) -> Page:
        """Read a page of histories behind an id; blocks the greenlet.

        Raises:
            BusUnavailable: The bus refused or was too slow.
        """
        with self.following.commanding() as publisher:
            return publisher.read_after(list(channels), id, MESSAGES_PER_READ)

    def run(self) -> None:
        """Read what was subscribed to, new or again, many channels in one command; never returns."""
        while True:
            self._wanted.wait()
            self._wanted.clear()
            subscription = self.following.subscription
            if subscription is None or self._interrupted or not (self._unread or self._clock_calls):
                continue
            try:
                self._read_next(subscription)
            except BusUnavailable as exc:
                logger.warning("Histories could not be read: %s", exc)
                subscription.close()  # the reader connects again
            except Exception:
                logger.exception("Reading histories failed")
                subscription.close()
            if self._unread or self._clock_calls:
                self._wanted.set()

    def _read_next(self, subscription: Subscription) -> None:
        known = [feed for feed in self._unread if feed.is_confirmed]
        if known:  # at once, and first: what is new after them is in order
            self._read_missed(subscription, known)
        else:
            self._read_new(subscription, list(self._unread)[:CHANNELS_PER_READ])

    # New feeds.

    def _read_new(self, subscription: Subscription, feeds: list[Feed]) -> None:
        """Begin feeds with what the bus has kept, and call who waits for the clock."""
        following = self.following
        count = len(self._clock_calls)
        snapshot = self._read_snapshot(feeds)
        if self._is_another_bus(snapshot.clock):
            self._begin_anew(subscription)
            return  # and read these again
        following.await_all_before(subscription)
        following.see(snapshot.clock)
        for feed in feeds:
            if feed in self._unread:  # else nobody follows it any more
                self._begin(feed, snapshot)
        calls, self._clock_calls = self._clock_calls[:count], self._clock_calls[count:]
        for call in calls:
            call()
        for feed in feeds:
            if feed.held is None:
                following.confirm(feed)

    def _begin(self, feed: Feed, snapshot: Snapshot) -> None:
        """Begin a feed, of which nobody has been sent anything, with its history and what came meanwhile."""
        self._load(feed, snapshot)
        del self._unread[feed]
        held, feed.held = feed.held or [], None
        for message in held:
            # What has no id is for those who were there when it came, and nobody was.
            if message.stamp and message.stamp.epoch == self.following.epoch and message.id > feed.last_id:
                self.following.check(feed, message)
                feed.append(self.fanout.key_of(message.id), message, self.fanout.feed_size)
                self.fanout.advance(message.id)
                self.fanout.touched.add(feed)

    def _load(self, feed: Feed, snapshot: Snapshot) -> None:
        """Fill a feed with what the bus has kept of it."""
        log = snapshot.logs[feed.channel]
        feed.clear(min(self.fanout.behind(log.floor), self.fanout.key))
        for message in log.entries:
            feed.append(self.fanout.key_of(message.id), message, self.fanout.feed_size)
        feed.last_id = snapshot.clock.id

    def _read_snapshot(self, feeds: list[Feed]) -> Snapshot:
        with self.following.commanding() as publisher:
            return publisher.snapshot([feed.rules for feed in feeds])

    # Known feeds, after the connection was lost.

    def _read_missed(self, subscription: Subscription, feeds: list[Feed]) -> None:
        """Continue feeds with what they have missed."""
        missed = Missed()
        for start in range(0, len(feeds), CHANNELS_PER_READ):
            if not self._read_part(feeds[start : start + CHANNELS_PER_READ], missed):
                self._begin_anew(subscription)
                return
        self.following.await_all_before(subscription)
        self._release(subscription, [feed for feed in feeds if feed in self._unread], missed)

    def _read_part(self, feeds: list[Feed], missed: Missed) -> bool:
        """Read what some feeds have missed; return False if the bus has begun anew."""
        position = self.following.seen
        while True:
            page = self.read_after([feed.rules for feed in feeds], position)
            if self._is_another_bus(page.clock):
                return False
            for feed in feeds:
                log = page.logs[feed.channel]
                missed.messages += [(m.id, feed, m) for m in log.entries if m.id <= page.bound]
                if position < log.floor <= page.bound and not feed.is_latest:
                    missed.holes[log.floor].append(feed)
            position = page.bound
            if position >= page.clock.id:
                missed.clock_ids |= dict.fromkeys(feeds, position)
                return True

    def _release(self, subscription: Subscription, feeds: list[Feed], missed: Missed) -> None:
        """Continue feeds with what they have missed, and then with what was held: in one order.

        Raises:
            BusUnavailable: The connection has been lost meanwhile, or something is missing.
        """
        messages = missed.messages + self._take_held(feeds, missed.clock_ids)
        holes = sorted(missed.holes.items())
        try:
            while messages:
                for id_, feed, message in sorted(messages, key=itemgetter(0)):
                    while holes and holes[0][0] < id_:
                        self._append_resets("expired", *holes.pop(0))
                    self._append(subscription, feed, message, missed.clock_ids[feed])
                messages = self._take_held(feeds, missed.clock_ids)  # while clients were served
            for hole in holes:
                self._append_resets("expired", *hole)
        finally:
            self.following.delivered()
        for feed in feeds:
            feed.last_id = max(feed.last_id, missed.clock_ids[feed])
            feed.held = None
            self._unread.pop(feed, None)
        self.fanout.advance(min(missed.clock_ids.values(), default=0))

    def _append(self, subscription: Subscription, feed: Feed, message: Message, clock_id: int) -> None:
        if message.id > clock_id:
            feed.last_id = max(feed.last_id, clock_id)
            self.following.check(feed, message)
        self.fanout.append(feed, message)
        if self.fanout.is_behind:
            self.following.await_drained()
            self.following.check_is_current(subscription)

    def _take_held(self, feeds: list[Feed], clock_ids: dict[Feed, int]) -> list[Ordered]:
        return [ordered for feed in feeds for ordered in self._take_held_of(feed, clock_ids[feed])]

    def _take_held_of(self, feed: Feed, clock_id: int) -> Iterator[Ordered]:
        """Take what was held of a feed and came behind a clock; what has no id, just before what came next."""
        held, feed.held = feed.held or [], []
        next_id = max([clock_id, *(message.id for message in held)]) + 1
        ids = []
        for message in reversed(held):
            next_id = message.id or next_id
            ids.append(message.id or next_id - 1)
        for id_, message in zip(reversed(ids), held, strict=True):
            if message.stamp is None or (message.stamp.epoch == self.following.epoch and id_ > clock_id):
                yield id_, feed, message

    # All feeds, of a bus that has lost its memory.

    def _is_another_bus(self, clock: Clock) -> bool:
        return self.following.epoch not in (None, clock.epoch)

    def _begin_anew(self, subscription: Subscription) -> None:
        """Forget everything, as the bus has, and say so to everybody who relied on it."""
        following = self.following
        latest = [feed for feed in self._confirmed() if feed.is_latest]
        snapshot = self._read_snapshot(latest)
        following.await_all_before(subscription)
        # Nothing waits from here on until all is said: who came meanwhile would find half of either life.
        following.begin_epoch(snapshot.clock)
        feeds = self._confirmed()
        for feed in feeds:
            feed.clear(self.fanout.key)
            feed.last_id = snapshot.clock.id
            if feed in latest:
                self._load(feed, snapshot)
                # Nobody knows whether what came meanwhile without an id is newer.
                feed.held = [message for message in feed.held or () if message.stamp]
        for feed in feeds:
            if feed.value:
                # Without its id, which is older than where the client stands then.
                self.fanout.append(feed, feed.value.without_id())
        without_value = [feed for feed in feeds if not feed.value]
        self._append_resets("restarted", snapshot.clock.id, without_value)
        self._release(subscription, feeds, Missed(clock_ids=dict.fromkeys(feeds, snapshot.clock.id)))

    def _confirmed(self) -> list[Feed]:
        return [feed for feed in self.following.feeds.values() if feed.keeps and feed.is_confirmed]

    def _append_resets(self, reason: str, id_: int, feeds: list[Feed]) -> None:
        """Say that messages up to an id are missing.

        A reset moves nobody's cursor: who is cut before all has been told is told all again.
        """
        self.fanout.advance(id_)
        for feed in feeds:
            name = feed.channel.removeprefix(self.following.address.prefix)
            self.fanout.append(feed, Message(name, b"", reset=reason))
