"""Whatever happens in whatever order: everybody gets exactly what was published while they were there."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.hub import audience as audience_module
from gunicorn_realtime.hub import fanout
from gunicorn_realtime.hub.connection import Connection
from gunicorn_realtime.plumbing.events import Subscribe, Unsubscribe
from gunicorn_realtime.plumbing.lines import Lines
from gunicorn_realtime.settings import Settings
from tests.hub.conftest import Client, HubUnderTest, LineEngine, close_lines, handover

CHANNELS = ("a", "b", "c")
AUDIENCES = (("a",), ("b",), ("a", "b"), ("b", "c"), ("a", "b", "c"))
HEAD = b"head\n"

# What the kernel holds for a client is some 5 KB, so that the larger messages make one lag.
MESSAGE_SIZES = (10, 10, 300, 2500, 7000)
FEED_SIZE = 40_000


class Follower:
    """A client and what it should get."""

    def __init__(self, client: Client, connection: Connection, channels: tuple[str, ...]) -> None:
        self.client = client
        self.connection = connection
        self.channels = channels
        self.is_one_shot = connection.audience.engine.is_one_shot
        self.expected: list[bytes] = []
        self.is_opened = False
        self.is_gone = False  # by its own wish or ours

    @property
    def stream(self) -> bytes:
        lines = self.expected[:1] if self.is_one_shot else self.expected
        return HEAD + b"".join(line + b"\n" for line in lines)

    def count_whole_messages(self) -> int:
        return max(0, self.client.received.count(b"\n") - 1)


class FanoutMachine(RuleBasedStateMachine):
    @initialize(places=st.integers(1, 3), few=st.sampled_from([0, 1, 100]))
    def start(self, places: int, few: int) -> None:
        self.patch = pytest.MonkeyPatch()
        # Time is up after every few deliveries, so that everything happens in the middle of a broadcast.
        self.patch.setattr(fanout, "SLICE", -1.0)
        for module in (audience_module, fanout):
            self.patch.setattr(module, "DELIVERIES_BETWEEN_CLOCKS", places)
        self.patch.setattr(audience_module, "MAX_WRITE_SIZE", 6000)
        self.patch.setattr(audience_module, "FEW", few)
        self.lines = Lines(1, os.getuid(), os.getgid())
        limits = Settings(feed_size=FEED_SIZE, message_size=10_000, write_timeout=1e9)
        self.hub = HubUnderTest(limits, self.lines)
        self.engines = [LineEngine(), LineEngine(is_one_shot=True)]
        self.followers: list[Follower] = []
        self.number = 0
        self.second = 0

    def alive(self) -> list[Follower]:
        return [
            follower for follower in self.followers if follower.connection.fd >= 0 and not follower.is_gone
        ]

    def pick(self, index: int) -> Follower | None:
        alive = self.alive()
        return alive[index % len(alive)] if alive else None

    @rule(channels=st.sampled_from(AUDIENCES), is_one_shot=st.sampled_from([False, False, False, True]))
    def join(self, channels: tuple[str, ...], is_one_shot: bool) -> None:
        client = Client()
        fd = client.give_to_hub()
        self.hub.take(fd, self.engines[is_one_shot], handover(*channels, head=HEAD))
        self.followers.append(Follower(client, self.hub.connections[fd], channels))
        self.note_opened()

    @rule(count=st.integers(2, 12))
    def many_join(self, count: int) -> None:
        for _ in range(count):
            self.join(("a",), False)

    @rule()
    def bus_is_lost(self) -> None:
        self.hub.bus.is_in_reach = False

    @rule()
    def bus_returns(self) -> None:
        self.hub.bus.confirm()
        self.note_opened()

    def note_opened(self) -> None:
        for follower in self.followers:
            follower.is_opened = follower.connection.opening is None

    @rule(
        channel=st.sampled_from(CHANNELS),
        size=st.sampled_from(MESSAGE_SIZES),
        count=st.sampled_from([1, 1, 1, 4]),
        is_first=st.booleans(),
    )
    def publish(self, channel: str, size: int, count: int, is_first: bool) -> None:
        if self.hub.bus.fanout.is_behind:
            return  # the hub would not read the bus
        for number in range(count):
            self.number += 1
            data = b"%d %s " % (self.number, channel.encode()) + b"x" * size
            for follower in self.alive():
                if follower.is_opened and channel in follower.channels:
                    follower.expected.append(data)
            self.hub.bus.publish(channel, data, is_first=is_first and number == 0)

    @rule()
    def turn(self) -> None:
        self.hub.turn()

    @rule()
    def settle(self) -> None:
        self.hub.settle()

    @rule(seconds=st.sampled_from([0.0, 0.0, 100.0]))
    def tick(self, seconds: float) -> None:
        self.second += 1
        self.hub._tick(self.second, time.monotonic() + seconds)
        self.note_opened()

    @rule(index=st.integers(0, 100))
    def read(self, index: int) -> None:
        if follower := self.pick(index):
            follower.client.read()

    @rule()
    def all_read(self) -> None:
        for follower in self.alive():
            follower.client.read()

    @rule(index=st.integers(0, 100), channel=st.sampled_from(CHANNELS))
    def subscribe(self, index: int, channel: str) -> None:
        follower = self.pick(index)
        if not follower or not follower.is_opened or follower.is_one_shot or not self.hub.bus.is_in_reach:
            return  # without the bus it would begin later
        self.hub.effects.apply(follower.connection, [Subscribe(Channel(channel))])
        follower.channels = tuple({*follower.channels, channel})

    @rule(index=st.integers(0, 100), channel=st.sampled_from(CHANNELS))
    def unsubscribe(self, index: int, channel: str) -> None:
        follower = self.pick(index)
        if not follower or follower.is_one_shot or not follower.connection.has_place:
            return  # it depends on how far it is what a slow one still gets
        if follower.connection.audience.is_settled:
            self.hub.effects.apply(follower.connection, [Unsubscribe(channel)])
            follower.channels = tuple({*follower.channels} - {channel})

    @rule(index=st.integers(0, 100))
    def client_leaves(self, index: int) -> None:
        if follower := self.pick(index):
            follower.client.read()
            follower.client.close()
            follower.is_gone = True

    @rule(index=st.integers(0, 100), count=st.sampled_from([1, 1, 2, 5]))
    def hub_closes(self, index: int, count: int) -> None:
        for follower in [follower for _ in range(count) if (follower := self.pick(index))]:
            if follower.connection.fd < 0:
                continue
            is_lagging = follower.connection.lag is not None
            self.hub.close(follower.connection, "closed by the test")
            follower.client.read()
            assert follower.client.is_at_end
            if not is_lagging and follower.is_opened:
                assert follower.connection.messages == follower.count_whole_messages()

    @precondition(lambda self: hasattr(self, "hub"))
    @invariant()
    def everything_is_bounded(self) -> None:
        for feed in self.hub.bus.feeds.values():
            assert feed.size <= FEED_SIZE
            assert len(self.hub.waiting.get(feed, ())) <= len(self.hub.opening)
        assert set(self.hub.opening) | set(self.hub.lagging) <= set(self.hub.connections.values())

    def teardown(self) -> None:
        if not hasattr(self, "hub"):
            return
        try:
            self.finish()
            self.check()
        finally:
            self.patch.undo()
            for follower in self.followers:
                follower.client.close()
            self.hub.close_all()
            close_lines(self.lines)

    def finish(self) -> None:
        """Everybody reads until there is no more."""
        self.bus_returns()

        def is_done() -> bool:
            self.all_read()
            return not (self.hub.slice_is_due or self.hub.lagging)

        self.hub.turn_until(is_done)
        self.hub.turn()  # to see who has left
        self.hub._tick(0, time.monotonic())
        for follower in self.followers:
            if not follower.is_gone:
                follower.client.read()

    def check(self) -> None:
        for follower in self.followers:
            connection, received = follower.connection, bytes(follower.client.received)
            reason = self.hub.reasons.get(connection)
            assert follower.stream.startswith(received) or not follower.is_opened
            if reason is None or reason == "answered":
                assert received == follower.stream
                assert (reason == "answered") == (follower.is_one_shot and bool(follower.expected))
            elif reason == "slow client":
                assert received != follower.stream
            else:
                assert follower.is_gone or reason == "closed by the test"
            if reason is None:
                connection.audience.leave(connection)
                assert connection.messages == len(follower.expected)
            assert connection.bytes == len(received)
        assert not any(feed.entries for feed in self.hub.bus.feeds.values())


TestFanout = FanoutMachine.TestCase
TestFanout.settings = settings(
    max_examples=300, stateful_step_count=60, deadline=None, report_multiple_bugs=False
)
