"""A consumer: handles what is published to channels, one message after the other, in one thread.

Its cursor is on the bus and says: everything up to here has been handled, on all its channels. So a
message of a channel with history is handled at least once, whatever ends the consumer or the bus's
connection; and twice only if it was being handled just then.

The bus sends what is published from the moment on at which it confirms the subscription. What was
published before is read from the logs then; what comes by both ways is known by its id. While a
message is handled the next wait in the connection, and if there are too many for the bus it cuts
the connection: then the logs have them.
"""

from __future__ import annotations

import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import assert_never

from ..errors import BusUnavailable, ProtocolError
from .address import BusAddress
from .channel import Channel, SlowClient
from .client import Clock, Page, Pong, Publisher, Received, Reply, Subscribed, Subscription, Unsubscribed
from .message import Message, decode

logger = logging.getLogger(__name__)

PAGE_SIZE = 256  # messages of each channel
TIMEOUT = 5.0  # seconds for one answer of the bus

# If no tick comes back for so long, the subscription is dead.
TICK_INTERVAL = 5.0  # seconds
TICK_TIMEOUT = 15.0  # seconds

# After a lost connection, so that all that were on the bus do not return in the same instant.
RECONNECT = (0.05, 0.25)  # seconds, the first time
MAX_RECONNECT = 2.0  # seconds

# Before a message that failed is handled again: 0.2, 1, 5, 25, 30, 30... seconds.
FIRST_RETRY = 0.2
RETRY_GROWTH = 5
MAX_RETRY = 30.0


@dataclass(frozen=True, slots=True)
class Receiver:
    """What is called with the messages of one channel.

    Args:
        channel: Without history it gets what comes live, at most once.
        handle: Called with each message.
        on_reset: Called with the channel's name on the bus and a reason where messages are missing:
            "expired" if its history does not go back so far, "restarted" if the bus has lost its memory.
        retries: How often a call that fails is repeated before it is given up; may be `math.inf`.
    """

    channel: Channel
    handle: Callable[[Message], object]
    on_reset: Callable[[str, str], object] | None = None
    retries: float = 3


class Consumer:
    """Calls receivers with what is published to their channels.

    Args:
        address: The bus.
        name: Of its cursor. Two consumers with one name at the same time would move it for each other.
        receivers: Of a channel that has several, each gets every message.

    Raises:
        ValueError: The address names no bus.
    """

    def __init__(self, address: BusAddress, name: str, receivers: Sequence[Receiver]) -> None:
        self.address = address
        self.name = name
        self.position = Clock("", 0)  # everything up to here has been handled; no epoch: not known yet
        self._receivers: defaultdict[str, list[Receiver]] = defaultdict(list)
        for receiver in receivers:
            self._receivers[receiver.channel.name].append(receiver)
        channels = {receiver.channel.name: receiver.channel for receiver in receivers}
        self._kept = {name: channel for name, channel in channels.items() if channel.history}
        self._own_channel = address.consumer_key(name)
        self._publisher = Publisher(address, TIMEOUT)
        self._started: Callable[[], object] | None = None
        self._is_following = False
        self._is_asked = False  # something must come on the subscription
        self._next_tick = 0.0
        self._is_waiting = False
        self._is_stopping = False

    def run(self, started: Callable[[], object]) -> None:
        """Handle messages until `stop` is called; a bus that is out of reach is waited for.

        Args:
            started: Called once, as soon as nothing that is published any more can be missed.
        """
        self._started = started
        pauses = _reconnect_pauses()
        with closing(self._publisher), suppress(_Stopped):
            while not self._is_stopping:
                try:
                    with closing(Subscription(self.address, TIMEOUT)) as subscription:
                        self._follow(subscription)
                except BusUnavailable as exc:
                    logger.warning("The bus is out of reach: %s", exc)
                    if self._is_following:
                        pauses = _reconnect_pauses()
                    self._pause(next(pauses))

    def run_once(self) -> None:
        """Handle what the channels' histories have behind the cursor.

        Raises:
            BusUnavailable: The bus refused or did not answer.
        """
        with closing(self._publisher), suppress(_Stopped):
            self._find_position()
            self._catch_up()

    def stop(self) -> None:
        """End `run` as soon as the message that is being handled has been; for signal handlers.

        Called by the thread that runs, which leaves at once where it only waits.
        """
        self._is_stopping = True
        if self._is_waiting:
            raise _Stopped

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Wait for something in here: `stop` ends that."""
        self._is_waiting = True
        try:
            if self._is_stopping:
                raise _Stopped
            yield
        finally:
            self._is_waiting = False

    def _pause(self, seconds: float) -> None:
        with self._waiting():
            time.sleep(seconds)

    # Following.

    def _follow(self, subscription: Subscription) -> None:
        self._is_following, self._is_asked = False, True
        with self._waiting():
            subscription.connect()
        subscription.subscribe([*self._receivers, self._own_channel])
        while not self._is_stopping:
            if self._is_following and time.monotonic() >= self._next_tick:
                self._tick()
            with self._waiting():
                reply = subscription.read(TICK_TIMEOUT if self._is_asked else TICK_INTERVAL)
            if reply is not None:
                self._take(reply)
            elif self._is_asked:
                raise BusUnavailable("the subscription does not answer")

    def _take(self, reply: Reply) -> None:
        match reply:
            case Received(channel, payload) if channel == self._own_channel:
                self._tick_came(payload)
            case Received(channel, payload):
                self._receive(channel, payload)
            case Subscribed(channel):
                if channel == self._own_channel:  # the last one
                    self._begin()
            case Pong() | Unsubscribed():
                pass
            case _:
                assert_never(reply)

    def _begin(self) -> None:
        """All that is published from now on comes: handle what was published before."""
        self._find_position()
        if self._started is not None:
            self._warn_if_not_alone()
            self._started()
            self._started = None
        self._catch_up()
        self._is_following, self._is_asked = True, False
        self._next_tick = time.monotonic() + TICK_INTERVAL

    def _warn_if_not_alone(self) -> None:
        if self._publisher.count_followers(self._own_channel) > 1:
            logger.warning(
                "Another process consumes as %r too: both handle every message, and move one cursor",
                self.name,
            )

    def _receive(self, channel: str, payload: bytes) -> None:
        if not self._is_following:
            return  # the logs have it, if anything has
        try:
            message = decode(channel, payload)
        except ProtocolError as exc:
            logger.warning("A message on %r was dropped: %s", channel, exc)
            return
        stamp = message.stamp
        if stamp is None or channel not in self._kept:
            self._call_receivers(message)
        elif stamp.epoch != self.position.epoch or stamp.previous > self.position.id:
            self._catch_up()
        elif stamp.id > self.position.id:  # else it came from the log
            self._handle(message)

    def _tick(self) -> None:
        """Advance the bus's clock: when the subscription brings that, all before it has been handled."""
        self._publisher.note_seen(self.position)
        self._publisher.tick(self._own_channel)
        self._is_asked = True
        self._next_tick = time.monotonic() + TICK_INTERVAL

    def _tick_came(self, payload: bytes) -> None:
        epoch, _, digits = payload.decode().partition(" ")
        self._is_asked = False
        if not self._is_following:
            return
        if epoch != self.position.epoch:
            self._catch_up()
        elif int(digits) > self.position.id:
            self._move(Clock(epoch, int(digits)))

    # The position, and the logs behind it.

    def _find_position(self) -> None:
        """Begin where the cursor is, or now if there is none."""
        saved = self._publisher.load_cursor(self.name)
        if not self.position.epoch:
            self._move(saved or self._publisher.read_clock())
        elif saved and saved.epoch == self.position.epoch and saved.id > self.position.id:
            self.position = saved  # another process has taken over meanwhile

    def _move(self, position: Clock) -> None:
        self.position = position
        self._publisher.save_cursor(self.name, position)

    def _catch_up(self) -> None:
        """Handle what the logs have behind the position, page by page."""
        while True:
            self._publisher.note_seen(self.position)
            page = self._publisher.read_after(list(self._kept.values()), self.position.id, PAGE_SIZE)
            self._tell_of_holes(page)
            for message in _in_order(page):
                if self._is_stopping:
                    return
                self._handle(message)
            self._move(Clock(page.clock.epoch, page.bound))
            if page.bound >= page.clock.id or self._is_stopping:
                return

    def _tell_of_holes(self, page: Page) -> None:
        """Tell where messages are missing; of latest values nothing is as long as there is one."""
        if page.clock.epoch != self.position.epoch:
            reason, holes = "restarted", list(self._kept)
        else:
            floors = {name: log.floor for name, log in page.logs.items()}
            reason, holes = "expired", [n for n in floors if self.position.id < floors[n] <= page.bound]
        holes = [name for name in holes if self._kept[name].slow_client is not SlowClient.LATEST]
        if not holes:
            return
        logger.warning("Messages are missing on %s (%s)", ", ".join(holes), reason)
        for name in holes:
            for receiver in self._receivers[name]:
                if receiver.on_reset is not None:
                    self._call(receiver, "The reset", partial(receiver.on_reset, name, reason))

    # Handling.

    def _handle(self, message: Message) -> None:
        self._call_receivers(message)
        assert message.stamp is not None
        self._move(Clock(message.stamp.epoch, message.stamp.id))

    def _call_receivers(self, message: Message) -> None:
        for receiver in self._receivers[message.channel]:
            what = f"Message {message.id}" if message.id else "A message"
            self._call(receiver, what, partial(receiver.handle, message))

    def _call(self, receiver: Receiver, what: str, call: Callable[[], object]) -> None:
        """Make a call until it succeeds, or has failed too often."""
        for failures, pause in enumerate(_retry_pauses(), start=1):
            try:
                call()
                return
            except Exception:
                is_given_up = failures > receiver.retries
                outcome = "given up" if is_given_up else f"tried again in {pause:g} s"
                logger.exception("%s on %r failed and is %s", what, receiver.channel.name, outcome)
            if is_given_up:
                return
            self._pause(pause)
            self._await_bus()  # the call may have needed it

    def _await_bus(self) -> None:
        for pause in _reconnect_pauses():
            try:
                self._publisher.read_clock()
                return
            except BusUnavailable as exc:
                logger.warning("The bus is out of reach: %s", exc)
            self._pause(pause)


class _Stopped(BaseException):
    """`Consumer.stop` was called while it waited. No error: what catches those must let it through."""


def _in_order(page: Page) -> list[Message]:
    messages = [m for log in page.logs.values() for m in log.entries if m.id <= page.bound]
    return sorted(messages, key=attrgetter("id"))


def _reconnect_pauses() -> Iterator[float]:
    pause = random.uniform(*RECONNECT)
    while True:
        yield pause
        pause = min(MAX_RECONNECT, pause * 2)


def _retry_pauses() -> Iterator[float]:
    pause = FIRST_RETRY
    while True:
        yield pause
        pause = min(MAX_RETRY, pause * RETRY_GROWTH)
