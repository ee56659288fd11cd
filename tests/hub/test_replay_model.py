"""Whatever happens to clients, hubs and the bus: every message comes once and in order, or a reset says that not.

Each round is a seeded random story: one or two real hubs with real sockets on a bus in memory, whose
connections stall, break and lose messages, and which itself is flushed or comes back from an older state.
A client is a chain of connections, each of which continues behind the cursor of the one before.
"""

from __future__ import annotations

import copy
import logging
import os
import random
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import gevent
import pytest
from gevent.event import Event

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.bus.client import (
    Clock,
    Log,
    Page,
    Pong,
    Received,
    Reply,
    Snapshot,
    Subscribed,
    Unsubscribed,
)
from gunicorn_realtime.bus.history import History, LogRead, make_epoch
from gunicorn_realtime.bus.message import MAGIC, Message, Stamp, decode_body, encode_body, parse_cursor
from gunicorn_realtime.engines.base import Engine
from gunicorn_realtime.errors import BusUnavailable
from gunicorn_realtime.hub import audience as audience_module
from gunicorn_realtime.hub import fanout, following, histories
from gunicorn_realtime.hub.connection import Connection
from gunicorn_realtime.hub.following import Following
from gunicorn_realtime.plumbing.handover import Handover
from gunicorn_realtime.plumbing.lines import Lines
from gunicorn_realtime.plumbing.offload import Offload
from gunicorn_realtime.settings import Settings
from tests.hub.conftest import TIMEOUT, Client, HubUnderTest

Answer = TypeVar("Answer")
Thing = TypeVar("Thing")

ROUNDS = int(os.environ.get("REPLAY_ROUNDS", "1000"))
ROUNDS_PER_TEST = 100

ADDRESS = BusAddress("redis://bus.invalid")
TTL = 60.0  # seconds
SECOND = 1_000_000  # microseconds

# What the kernel holds for a client is some 5 KB, so two of the larger messages make one lag.
MESSAGE_SIZES = (10, 10, 10, 300, 3000)
LIMITS = Settings(feed_size=1, message_size=3200, write_timeout=1e9)

A_TURN = 1e-9  # seconds: longer than now, shorter than anything


class MemoryBus:
    """A bus without a network: what the scripts in `bus/scripts/` do, on the local bus's logs."""

    def __init__(self, choices: random.Random) -> None:
        self.choices = choices
        self.now = 1_700_000_000 * SECOND
        self.history = History()
        self.newest = Clock("", 0)
        self.epochs: list[str] = []
        self.inherited: list[int | None] = []  # the value with which each epoch began
        self.saved = copy.deepcopy(self.history)
        self.is_up = True
        self.lives = 0  # connections of one life are lost with it
        self.subscriptions: list[MemorySubscription] = []
        self.answers = Event()  # cleared while commands wait for their answer
        self.answers.set()

    def advance(self, step: int, seen: Clock) -> Clock:
        self.now += self.choices.choice((0, 1, 1000))
        history = self.history
        if self.has_gone_back_behind(seen):
            history.epoch = make_epoch()
            self.save()  # an older epoch does not come back: nobody could tell
        if history.epoch not in self.epochs:
            self.epochs.append(history.epoch)
            self.inherited.append(self.value())
        self.newest = Clock(history.epoch, history.advance(self.now, step))
        return self.newest

    def value(self) -> int | None:
        """Return the number of the current value."""
        entries = self.history.snapshot(self.now, b"latest", 1, round(TTL * SECOND)).entries
        return _number(decode_body("latest", entries[0].body).data.decode()) if entries else None

    def publish(self, channel: Channel, data: bytes) -> Stamp:
        name = channel.name.encode()
        self.advance(0, self.newest)
        body = encode_body(data)
        entry = self.history.add(self.now, name, body, b"", channel.history, round(channel.ttl * SECOND))
        stamp = Stamp(self.history.epoch, entry.id, entry.previous)
        self.newest = Clock(stamp.epoch, stamp.id)
        self.push(
            channel.name, MAGIC + b"%b %d %d\n" % (stamp.epoch.encode(), stamp.id, stamp.previous) + body
        )
        return stamp

    def push(self, channel: str, payload: bytes) -> None:
        for subscription in self.subscriptions:
            if channel in subscription.channels:
                if subscription.loses:
                    subscription.loses = False
                else:
                    subscription.put(Received(channel, payload))

    def stop(self) -> None:
        self.is_up = False
        self.lives += 1
        for subscription in list(self.subscriptions):
            subscription.close()

    def flush(self) -> None:
        self.history = History()
        self.save()

    def save(self) -> None:
        self.saved = copy.deepcopy(self.history)

    def restore(self, seconds: int) -> None:
        """Come back from what was saved, so many seconds ago by its own clock."""
        self.stop()
        self.history = copy.deepcopy(self.saved)
        self.now -= seconds * SECOND
        self.is_up = True

    def has_gone_back_behind(self, clock: Clock) -> bool:
        return self.history.epoch == clock.epoch and self.history.id < clock.id


class MemoryPublisher:
    """Stands in for `Publisher`."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self._seen = Clock("", 0)

    def snapshot(self, channels: Sequence[Channel]) -> Snapshot:
        def read(clock: Clock, history: History, now: int) -> Snapshot:
            reads = {
                channel: history.snapshot(now, channel.name.encode(), channel.history, _ttl(channel))
                for channel in channels
            }
            return Snapshot(
                clock, {channel.name: _log(clock, channel, read) for channel, read in reads.items()}
            )

        return self._ask(read)

    def read_after(self, channels: Sequence[Channel], after: int, count: int) -> Page:
        def read(clock: Clock, history: History, now: int) -> Page:
            reads = {
                channel: history.range(now, channel.name.encode(), after, count, _ttl(channel))
                for channel in channels
            }
            lasts = (read.entries[-1].id for read in reads.values() if len(read.entries) >= count)
            bound = min(lasts, default=clock.id)
            return Page(
                clock, {channel.name: _log(clock, channel, read) for channel, read in reads.items()}, bound
            )

        return self._ask(read)

    def tick(self, channel: str) -> Clock:
        def tick(clock: Clock, history: History, now: int) -> Clock:
            self.bus.push(channel, f"{clock.epoch} {clock.id}".encode())
            return clock

        return self._ask(tick, step=1)

    def sweep(self, count: int, until: int) -> tuple[bool, int]:
        return False, until  # nobody is counted here

    def note_seen(self, clock: Clock) -> None:
        if clock.epoch == self._seen.epoch and clock.id > self._seen.id:
            self._seen = clock

    def close(self) -> None:
        pass

    def _ask(self, run: Callable[[Clock, History, int], Answer], step: int = 0) -> Answer:
        """Run a command on the bus, some way off."""
        bus, life = self.bus, self.bus.lives
        self._travel(life)
        clock = bus.advance(step, self._seen)
        answer = run(clock, bus.history, bus.now)
        self._travel(life)
        self._seen = clock
        return answer

    def _travel(self, life: int) -> None:
        self.bus.answers.wait()
        gevent.sleep(A_TURN)
        if not self.bus.is_up or life != self.bus.lives:
            raise BusUnavailable("the connection is lost")


def _ttl(channel: Channel) -> int:
    return round(channel.ttl * SECOND)


def _log(clock: Clock, channel: Channel, read: LogRead) -> Log:
    entries = [
        decode_body(channel.name, entry.body, Stamp(clock.epoch, entry.id, entry.previous))
        for entry in read.entries
    ]
    return Log(entries, read.floor)


class MemorySubscription:
    """Stands in for `Subscription`."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        self.channels: set[str] = set()
        self.replies: deque[Reply] = deque()
        self.loses = False  # the next message, without a word
        self.is_closed = False
        self.is_waiting = False
        self.stalls = False
        self._changed = Event()

    def connect(self) -> None:
        if not self.bus.is_up:
            raise BusUnavailable("it is down")
        self.bus.subscriptions.append(self)

    def subscribe(self, channels: Iterable[str]) -> None:
        self._check()
        for channel in channels:
            self.channels.add(channel)
            self.put(Subscribed(channel))

    def unsubscribe(self, channels: Iterable[str]) -> None:
        self._check()
        for channel in channels:
            self.channels.discard(channel)
            self.put(Unsubscribed(channel))

    def ping(self, token: bytes) -> None:
        self._check()
        self.put(Pong(token))

    def read_all(self) -> list[Reply]:
        while self.stalls or not self.replies:
            self._check()
            self.is_waiting = True
            self._changed.clear()
            self._changed.wait()
            self.is_waiting = False
        return [self.replies.popleft()]

    def put(self, reply: Reply) -> None:
        self.replies.append(reply)
        self._changed.set()

    def stall(self, stalls: bool) -> None:
        self.stalls = stalls
        self._changed.set()

    def close(self) -> None:
        """What is on its way may come, or not."""
        self.is_closed = True
        if self.bus.choices.random() < 0.5:
            self.replies.clear()
        if self in self.bus.subscriptions:
            self.bus.subscriptions.remove(self)
        self.stall(False)

    def _check(self) -> None:
        if self.is_closed:
            raise BusUnavailable("the connection is lost")


class LineEngine(Engine):
    """A line is a message, a reset or a cursor: its kind, the cursor, and the rest."""

    name = "line"
    encoding = "line"
    heartbeat = 1.0

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        connection.send(self.beat(cursor))

    def encode(self, message: Message) -> bytes:
        if message.reset:
            return self.reset([message.channel], message.reset)
        cursor = message.stamp.cursor if message.stamp else ""
        return b"message;%b;%b\n" % (cursor.encode(), message.data)

    def beat(self, cursor: str | None = None) -> bytes:
        return f"cursor;{cursor or ''};\n".encode()

    def reset(self, channels: Iterable[str], reason: str, cursor: str | None = None) -> bytes:
        return f"reset;{cursor or ''};{reason},{','.join(channels)}\n".encode()


class Chain:
    """A client that comes back, each time with its last cursor, and what it has seen."""

    def __init__(self, channels: tuple[Channel, ...]) -> None:
        self.channels = channels
        self.client: Client | None = None
        self.reads = True
        self.cursors: list[str] = []
        self.seen: list[tuple[str, str, str]] = []  # kind, cursor, the rest
        self.parsed = 0

    def connect(self, hub: HubUnderTest, place: int, engine: Engine) -> None:
        self.client = Client()
        self.parsed = 0
        self.reads = True
        self.seen.append(("connection", "", str(place)))
        offload = Offload("sse", self.channels, ADDRESS, {}, self.cursors[-1] if self.cursors else None)
        hub.take(
            self.client.give_to_hub(), engine, Handover(offload, ("", 0), ("", 0), False, False, b"", b"")
        )

    def read(self) -> None:
        client = self.client
        if client is None:
            return
        received = client.read()
        end = received.rfind(b"\n") + 1
        for line in received[self.parsed : end].decode().splitlines():
            kind, cursor, rest = line.split(";")
            self.seen.append((kind, cursor, rest))
            if cursor:
                self.cursors.append(cursor)
        self.parsed = max(self.parsed, end)
        if client.is_at_end:
            self.leave()

    def leave(self) -> None:
        if self.client is not None:
            self.client.close()
            self.client = None
        if not self.cursors:
            self.seen.clear()  # it comes back as a new one


class Story:
    """One round."""

    def __init__(self, seed: int, lines: Lines, patch: pytest.MonkeyPatch) -> None:
        random.seed(seed)
        self.choices = choices = random.Random(seed)
        self.lines = lines
        self.is_calm = seed % 4 == 0  # nothing happens by which anything could be lost
        self.bus = bus = MemoryBus(choices)
        patch.setattr(following, "Publisher", lambda address, timeout: MemoryPublisher(bus))
        patch.setattr(following, "Subscription", lambda address, timeout: MemorySubscription(bus))
        patch.setattr(following, "READ_SLICE", choices.choice((-1.0, 1000.0)))
        sizes = (1000,) if self.is_calm else (1, 3, 10, 30)
        self.channels = [
            Channel("a", choices.choice(sizes), TTL),
            Channel("b", choices.choice(sizes), TTL),
            choices.choice(
                (
                    Channel("c", choices.choice(sizes), TTL),
                    Channel("latest", choices.choice((1, 5)), TTL, SlowClient.LATEST),
                    Channel("none"),
                )
            ),
        ]
        self.log: list[tuple[Channel, Stamp | None]] = []  # what was published, by its number
        self.chains = [
            Chain(tuple(choices.sample(self.channels, choices.randint(1, 3))))
            for _ in range(choices.randint(1, 4))
        ]
        self.engine = LineEngine({})
        self.second = 0
        self.later = 0.0  # seconds that have passed only for the hub
        self.told: list[str] = []
        self.hubs = [self.start_hub() for _ in range(choices.choice((1, 1, 2)))]

    def start_hub(self) -> HubUnderTest:
        hub = HubUnderTest(LIMITS, self.lines)
        hub.followings.clear()
        hub.announced = ADDRESS
        hub._following(ADDRESS)
        return hub

    @property
    def followings(self) -> list[Following]:
        return [hub.followings[ADDRESS] for hub in self.hubs]

    # What happens.

    def publish(self) -> None:
        if self.bus.is_up:
            for _ in range(self.choices.choice((1, 1, 1, 5))):
                self.publish_to(self.choice(self.channels))

    def publish_to(self, channel: Channel, is_plain: bool = False) -> None:
        data = b"%d %b" % (len(self.log), b"x" * self.choice(MESSAGE_SIZES))
        stamp = None
        if is_plain or not channel.history:
            self.bus.push(channel.name, data)
        else:
            stamp = self.bus.publish(channel, data)
        self.log.append((channel, stamp))

    def publish_plainly(self) -> None:
        if self.bus.is_up:
            self.publish_to(self.choice(self.channels), is_plain=True)

    def publish_after_a_loss(self) -> None:
        """The subscription loses a message; the next one of its channel shows it."""
        channel = self.choice(self.channels[:2])
        if not self.bus.is_up or not self.bus.subscriptions:
            return
        subscription = self.choice(self.bus.subscriptions)
        subscription.loses = channel.name in subscription.channels
        self.publish_to(channel)
        self.publish_to(channel)

    def client_comes(self) -> None:
        if away := [chain for chain in self.chains if chain.client is None]:
            self.connect(self.choice(away))

    def connect(self, chain: Chain) -> None:
        place = self.choices.randrange(len(self.hubs))
        chain.connect(self.hubs[place], place, self.engine)

    def client_is_cut(self) -> None:
        if chain := self.connected():
            if self.choices.random() < 0.5:
                chain.read()
            chain.leave()

    def client_stops_reading(self) -> None:
        if chain := self.connected():
            chain.reads = False

    def client_reads_again(self) -> None:
        if chain := self.connected():
            chain.reads = True

    def hub_is_killed(self) -> None:
        place = self.choices.randrange(len(self.hubs))
        self.end_hub(self.hubs[place])
        self.hubs[place] = self.start_hub()
        self.see_that_it_can_be_noticed()

    def subscription_is_cut(self) -> None:
        if self.bus.subscriptions:
            self.choice(self.bus.subscriptions).close()

    def subscription_stalls(self) -> None:
        if self.bus.subscriptions:
            self.choice(self.bus.subscriptions).stall(True)

    def subscription_goes_on(self) -> None:
        for subscription in self.bus.subscriptions:
            subscription.stall(False)

    def answers_stall(self) -> None:
        self.bus.answers.clear()

    def answers_go_on(self) -> None:
        self.bus.answers.set()

    def bus_stops(self) -> None:
        self.bus.stop()

    def bus_starts(self) -> None:
        self.bus.is_up = True

    def tick(self) -> None:
        gevent.spawn(self.choice(self.followings)._tick)

    def second_passes(self) -> None:
        self.second += 1
        self.later += self.choice((0.0, 0.0, 100.0))
        for hub in self.hubs:
            hub._tick(self.second, time.monotonic() + self.later)

    def time_passes(self) -> None:
        self.bus.now += self.choice((SECOND, 30 * SECOND, 100 * SECOND))

    def bus_is_flushed(self) -> None:
        if self.bus.is_up:
            self.bus.flush()
            if self.choices.random() < 0.5:
                self.subscription_is_cut()

    def bus_is_saved(self) -> None:
        self.bus.save()

    def bus_is_restored(self) -> None:
        self.bus.restore(self.choice((0, 5, 200)))
        self.see_that_it_can_be_noticed()

    def see_that_it_can_be_noticed(self) -> None:
        """Who speaks first to a bus that has gone back must have seen more of it: else nobody can tell."""
        hubs_know = [self.bus.has_gone_back_behind(_seen_by(each)) for each in self.followings]
        if self.bus.has_gone_back_behind(self.bus.newest) and not all(hubs_know):
            self.bus.advance(0, self.bus.newest)  # a publisher does

    def turn(self) -> None:
        for _ in range(self.choice((1, 1, 2, 5, 20))):
            gevent.sleep(A_TURN)
            self.all_read()

    def connected(self) -> Chain | None:
        chains = [chain for chain in self.chains if chain.client is not None]
        return self.choice(chains) if chains else None

    def choice(self, things: Sequence[Thing]) -> Thing:
        return self.choices.choice(things)

    def all_read(self) -> None:
        for chain in self.chains:
            if chain.reads:
                chain.read()

    # From beginning to end.

    def run(self) -> None:
        calm = {
            self.publish: 12,
            self.publish_plainly: 2,
            self.publish_after_a_loss: 1,
            self.client_comes: 6,
            self.client_is_cut: 3,
            self.client_stops_reading: 1,
            self.client_reads_again: 1,
            self.hub_is_killed: 1,
            self.subscription_is_cut: 1,
            self.subscription_stalls: 1,
            self.subscription_goes_on: 2,
            self.answers_stall: 1,
            self.answers_go_on: 2,
            self.bus_stops: 1,
            self.bus_starts: 3,
            self.tick: 3,
            self.second_passes: 3,
            self.turn: 16,
        }
        wild = {self.time_passes: 2, self.bus_is_flushed: 1, self.bus_is_saved: 1, self.bus_is_restored: 1}
        events = calm if self.is_calm else calm | wild
        for event in self.choices.choices(
            list(events), list(events.values()), k=self.choices.randint(30, 90)
        ):
            self.told.append(event.__name__)
            event()
            self.all_read()
        self.settle()
        self.check()

    def settle(self) -> None:
        """Everything is connected again, and everybody has what there is to have."""
        self.bus.is_up = True
        self.answers_go_on()
        self.subscription_goes_on()
        for chain in self.chains:
            chain.reads = True
        self.turn_until(self.is_settled)
        for hub in self.hubs:
            hub.followings[ADDRESS]._tick()
        self.turn_until(self.is_settled)

    def is_settled(self) -> bool:
        self.all_read()
        for chain in self.chains:
            if chain.client is None:
                self.connect(chain)
        return (
            not any(_is_busy(hub) for hub in self.hubs)
            and all(feed.held is None for each in self.followings for feed in each.feeds.values())
            and sum(s.is_waiting and not s.replies for s in self.bus.subscriptions) == len(self.hubs)
            and not any(chain.client is None for chain in self.chains)
        )

    def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT
        held = 0
        while held < 6:  # what is on its way arrives meanwhile
            assert time.monotonic() < deadline, "it never settled"
            gevent.sleep(A_TURN)
            held = held + 1 if condition() else 0

    def end_hub(self, hub: HubUnderTest) -> None:
        hub.followings[ADDRESS].close()
        hub.close_all()

    def end(self) -> None:
        for hub in self.hubs:
            self.end_hub(hub)
        for chain in self.chains:
            chain.leave()

    # What must be so.

    def check(self) -> None:
        for chain in self.chains:
            for channel in chain.channels:
                if channel.slow_client is SlowClient.LATEST:
                    self.check_latest(chain, channel)
                elif channel.history:
                    self.check_complete(chain, channel)
            self.check_order(chain)
            if self.is_calm:
                assert not [event for event in chain.seen if event[0] == "reset"]

    def begin(self, chain: Chain) -> int:
        """Return the number of the first message published behind the chain's first cursor.

        Before that comes nothing but current values and what has no id.
        """
        if not chain.cursors:
            return len(self.log)
        first_kind = next(kind for kind, cursor, _ in chain.seen if cursor)
        assert first_kind != "message"
        epoch, id_ = parse_cursor(chain.cursors[0])
        first = self.bus.epochs.index(epoch), id_
        for number, (_, stamp) in enumerate(self.log):
            if stamp and (self.bus.epochs.index(stamp.epoch), stamp.id) > first:
                return number
        return len(self.log)

    def check_complete(self, chain: Chain, channel: Channel) -> None:
        begin = self.begin(chain)
        published = [number for number, (_, stamp) in enumerate(self.log) if stamp and number >= begin]
        expected = deque(number for number in published if self.log[number][0] is channel)
        is_reset = False
        for kind, cursor, rest in chain.seen:
            if kind == "reset" and channel.name in rest.split(",")[1:]:
                is_reset = True
            elif kind == "message" and cursor and self.log[number := _number(rest)][0] is channel:
                missing = []
                while expected and expected[0] < number:
                    missing.append(expected.popleft())
                assert is_reset or not missing, f"{channel.name}: {missing} missing before {number}"
                assert expected and expected.popleft() == number, f"{number} is twice, or older than {begin}"
                is_reset = False
        assert is_reset or not expected, f"{channel.name}: {list(expected)} missing at the end"

    def check_order(self, chain: Chain) -> None:
        kept: list[int] = []
        # Of what has no id a hub cannot know that another, which was ahead of it, has sent it already.
        plain: defaultdict[tuple[str, Channel], list[int]] = defaultdict(list)
        place = ""  # of the hub
        for kind, cursor, rest in chain.seen:
            if kind == "connection":
                place = rest
            elif kind == "message":
                number = _number(rest)
                channel, stamp = self.log[number]
                if channel.slow_client is SlowClient.LATEST:
                    continue
                assert bool(cursor) == bool(stamp)
                if stamp:
                    kept.append(number)
                else:
                    plain[place, channel].append(number)
        for numbers in (kept, *plain.values()):
            assert numbers == sorted(set(numbers)), f"not in order, or twice: {numbers}"

    def check_latest(self, chain: Chain, channel: Channel) -> None:
        numbers = [_number(rest) for kind, _, rest in chain.seen if kind == "message"]
        numbers = [number for number in numbers if self.log[number][0] is channel]
        values = [number for number in numbers if self.log[number][1]]  # what has no id never is one
        value = self.bus.value()
        if value is not None:
            last = max(numbers[-1:], default=-1)
            is_hidden = last > value and last not in values  # by a newer message, which has no id
            assert values[-1:] == [value] or is_hidden, f"the last value is {value}, not {last}"
        # A bus that has gone back has an older value, which is the current one then: an epoch begins with
        # what was found. Nothing else that is older may come.
        epoch, newest = 0, -1
        for number in values:
            while number < newest or not self.was_value(number, epoch):
                epoch, newest = epoch + 1, -1
                assert epoch < len(self.bus.epochs), f"{number} is older than those before it: {values}"
            newest = number

    def was_value(self, number: int, epoch: int) -> bool:
        """Return whether a value was the current one at some time of an epoch."""
        _, stamp = self.log[number]
        assert stamp
        return stamp.epoch == self.bus.epochs[epoch] or number == self.bus.inherited[epoch]


def _seen_by(following: Following) -> Clock:
    return Clock(following.epoch or "", following.seen)


def _is_busy(hub: HubUnderTest) -> bool:
    is_paging = any(connection.pager for connection in hub.connections.values())
    return bool(hub.slice_is_due or hub.lagging or hub.opening or is_paging)


def _number(data: str) -> int:
    return int(data.split()[0])


@pytest.fixture
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        # Everything happens at once, and in the middle of everything else.
        patch.setattr(fanout, "SLICE", -1.0)
        for module in (audience_module, fanout):
            patch.setattr(module, "DELIVERIES_BETWEEN_CLOCKS", 1)
        patch.setattr(audience_module, "MAX_WRITE_SIZE", 4000)
        patch.setattr(following, "RECONNECT", (A_TURN, A_TURN))
        patch.setattr(following, "MAX_RECONNECT", A_TURN)
        patch.setattr(following, "TICK_INTERVAL", 1e9)  # when the story says so
        patch.setattr(histories, "CHANNELS_PER_READ", 2)
        patch.setattr(histories, "MESSAGES_PER_READ", 3)
        yield patch


@pytest.fixture(autouse=True)
def busy_loop() -> Iterator[None]:
    """While a loop has an idle watcher it never waits, so that a turn takes microseconds."""
    logging.disable(logging.WARNING)
    watcher = gevent.get_hub().loop.idle()
    watcher.start(lambda: None)
    yield
    watcher.stop()
    watcher.close()
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, ROUNDS, ROUNDS_PER_TEST))
def test_chain_of_cursors_has_every_message_once_and_in_order_or_a_reset_at_the_hole(
    first: int, lines: Lines, patch: pytest.MonkeyPatch
) -> None:
    for seed in range(first, min(ROUNDS, first + ROUNDS_PER_TEST)):
        story = Story(seed, lines, patch)
        try:
            story.run()
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}, after {', '.join(story.told)}: {exc}") from exc
        finally:
            story.end()
