"""Consumers that end in any way, whatever is published meanwhile: nothing is lost without a word."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gunicorn_realtime.bus import consumer as module
from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher
from gunicorn_realtime.bus.consumer import Consumer, Receiver
from gunicorn_realtime.bus.message import Message
from tests.bus.conftest import LocalServer
from tests.servers import RedisServer


class Killed(BaseException):
    """Ends a consumer as a crash would: nothing is saved."""


@dataclass
class Life:
    """What happens to a consumer from one start to the next.

    Args:
        missed: To which of the channels a message each is published before it starts.
        happenings: What else happens, by the number of the message that it handles then: it is
            killed or stopped, its connection is cut, or so many messages are published.
    """

    missed: list[int]
    happenings: dict[int, str | list[int]]


bursts = st.lists(st.integers(0, 2), max_size=20)
happenings = st.sampled_from(["kill", "cut", "stop"]) | bursts
lives = st.builds(Life, bursts, st.dictionaries(st.integers(1, 20), happenings, max_size=5))


@dataclass
class Run:
    """Consumers of three channels, one after the other, and all that is published and handled."""

    address: BusAddress
    publisher: Publisher
    cut: Callable[[], None]
    history: int
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    sent: list[tuple[str, int]] = field(default_factory=list)
    handled: list[tuple[str, int]] = field(default_factory=list)
    kills: int = 0
    resets: set[str] = field(default_factory=set)

    @property
    def channels(self) -> list[Channel]:
        return [Channel(f"site:{self.name}-{n}", self.history, 60) for n in range(3)]

    def send(self, numbers: list[int]) -> None:
        messages = [(self.channels[n], len(self.sent) + place) for place, n in enumerate(numbers)]
        self.sent += [(channel.name, number) for channel, number in messages]
        self.publisher.send([Outgoing(channel, b"%d" % number) for channel, number in messages])

    def live(self, life: Life) -> None:
        """Let a consumer live until it is killed or stopped, or there is nothing more to handle."""
        self.send(life.missed)
        self.consume(dict(life.happenings), self.publish_last)

    def publish_last(self) -> None:
        self.send([0])

    def consume(self, happenings: dict[int, str | list[int]], started: Callable[[], None]) -> None:
        handled_before = len(self.handled)

        def handle(message: Message) -> None:
            self.handled.append((message.channel, int(message.data)))
            happening = happenings.pop(len(self.handled) - handled_before, None)
            if happening == "kill":
                self.kills += 1
                raise Killed
            elif happening == "cut":
                self.cut()
            elif isinstance(happening, list):
                self.send(happening)
            if happening == "stop" or self.handled[-1] == self.sent[-1]:
                consumer.stop()

        receivers = [
            Receiver(channel, handle, lambda name, _: self.resets.add(name)) for channel in self.channels
        ]
        consumer = Consumer(self.address, self.name, receivers)
        try:
            consumer.run(started)
        except Killed:
            pass


@pytest.fixture
def cut(server: LocalServer | RedisServer) -> Callable[[], None]:
    """Cut the connections of all who follow channels."""

    def cut() -> None:
        if isinstance(server, RedisServer):
            with server.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        else:
            server.cut_subscribers()

    return cut


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(lives, max_size=4), st.sampled_from([2, 1000]))
def test_all_that_was_sent_is_handled_in_order_or_told_to_be_missing(
    bus_address, publisher, cut, monkeypatch, lives, history
):
    monkeypatch.setattr(module, "PAGE_SIZE", 3)
    monkeypatch.setattr(module, "RECONNECT", (0.0, 0.0))
    run = Run(bus_address, publisher, cut, history)
    run.live(Life([], {}))

    for life in lives:
        run.live(life)
    run.live(Life([], {}))

    assert len(run.handled) <= len(run.sent) + run.kills
    handled = [message for message, _ in groupby(run.handled)]
    assert handled == sorted(handled, key=run.sent.index)
    missing = set(run.sent) - set(handled)
    assert {channel for channel, _ in missing} <= run.resets
    assert history == 2 or not run.resets
