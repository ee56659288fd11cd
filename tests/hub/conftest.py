"""A real hub on real sockets, whose bus is in the test's hand and whose loop turns when the test says so."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing
from gunicorn_realtime.bus.message import Message
from gunicorn_realtime.bus.presence import Presence
from gunicorn_realtime.engines.base import Engine
from gunicorn_realtime.hub.connection import Connection
from gunicorn_realtime.hub.fanout import Fanout
from gunicorn_realtime.hub.feed import OVERHEAD, Feed
from gunicorn_realtime.hub.process import Hub
from gunicorn_realtime.plumbing.handover import Handover
from gunicorn_realtime.plumbing.lines import Line, Lines
from gunicorn_realtime.plumbing.offload import Offload
from gunicorn_realtime.settings import Settings

BUS = BusAddress("local:/nowhere")
TIMEOUT = 20.0  # seconds; far more than a slow machine needs


class Sent:
    """Stands in for `Outbox`, which would need a greenlet: keeps what clients publish."""

    def __init__(self) -> None:
        self.messages: list[Outgoing] = []

    def put(self, connection: Connection, messages: Iterable[Outgoing]) -> None:
        self.messages += messages


class Present:
    """Stands in for `Presences`, which would need greenlets: keeps whose connections there are."""

    def __init__(self) -> None:
        self.presences: dict[Connection, Presence] = {}

    def enter(self, connection: Connection, presence: Presence) -> None:
        self.presences[connection] = presence

    def leave(self, connection: Connection) -> None:
        self.presences.pop(connection, None)


class Bus:
    """Stands in for `Following`, which would connect: it confirms channels when the test says so."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.address = BUS
        self.fanout = Fanout(max(hub.settings.feed_size, 2 * (hub.settings.message_size + OVERHEAD)))
        self.feeds: dict[str, Feed] = {}
        self.idle: dict[Feed, float] = {}
        self.is_in_reach = True
        self.epoch: str | None = None
        self.max_message_size = hub.settings.message_size
        self.outbox = Sent()
        self.presences = Present()

    def follow(self, channel: Channel) -> Feed:
        feed = self.feeds.get(channel.name)
        if feed is None:
            feed = self.feeds[channel.name] = Feed(channel, self.fanout.key)
            feed.is_confirmed = self.is_in_reach
        self.idle.pop(feed, None)
        return feed

    def confirm(self) -> None:
        self.is_in_reach = True
        for feed in self.feeds.values():
            self.hub.confirm(feed)

    def publish(self, channel: str, data: bytes, *, is_binary: bool = False, is_first: bool = False) -> None:
        """Bring a message; `is_first`: the first that came from the bus now, which is sent at once to a few."""
        feed = self.feeds.get(channel)
        if feed is None:
            return
        feed.turn = self.fanout.turn
        self.fanout.turn += is_first
        if self.fanout.append(feed, Message(channel, data, is_binary=is_binary)):
            self.hub.delivered()

    def unfollow_idle(self, before: float) -> None:
        for feed in [feed for feed, since in self.idle.items() if since < before]:
            del self.idle[feed]
            del self.feeds[feed.channel]

    def resume(self) -> None:
        pass

    def close(self) -> None:
        pass


class LineEngine(Engine):
    """A message is a line. A one-shot connection is closed behind its line."""

    name = "line"

    def __init__(self, options: Any = None, *, is_one_shot: bool = False) -> None:
        super().__init__(options or {})
        self.is_one_shot = is_one_shot
        self.encoding = "line"
        self.encoded: list[bytes] = []

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        connection.send(handover.head)

    def encode(self, message: Message) -> bytes:
        self.encoded.append(message.data)
        return message.data + b"\n"

    def finish(self, connection: Connection) -> None:
        connection.hub.close(connection, "answered")

    def received(self, connection: Connection, data: bytes) -> None:
        pass


class HubUnderTest(Hub):
    """Remembers why connections ended."""

    def __init__(self, settings: Settings, lines: Lines) -> None:
        line = lines.lines[0]
        ends = (line.hand_hub, lines.back_hub, lines.events_hub)
        super().__init__(
            settings,
            *(os.dup(end.fileno()) for end in ends),
            lifeline=line.lifeline_hub,
            drain_timeout=TIMEOUT,
        )
        self.reasons: dict[Connection, str] = {}
        self.bus = Bus(self)
        self.followings[BUS] = self.bus  # type: ignore[assignment]
        self.announced = BUS

    def _log_end(self, connection: Connection, reason: str) -> None:
        super()._log_end(connection, reason)
        self.reasons[connection] = reason

    def give(self, client: Client, handover: Handover, engine: Engine | None = None) -> Connection:
        """Hand a client over, which must not be refused."""
        fd = client.give_to_hub()
        self.take(fd, engine or self._engine(handover), handover)
        return self.connections[fd]

    def turn(self) -> None:
        """Let the loop turn once: callbacks, timers that are due, and descriptors."""
        self.loop.run(nowait=True, once=True)

    def turn_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, "the hub never got there"
            self.turn()

    def settle(self) -> None:
        """Turn until nobody lacks anything, or nobody takes anything more."""
        self.turn()
        self.turn_until(lambda: not self.slice_is_due)
        self.turn()

    def close_all(self) -> None:
        for connection in list(self.connections.values()):
            self.close(connection, "the test is over")
        self.hand_watcher.stop()
        self.hand_watcher.close()
        self.hand.close()
        self.back.close()
        self.calls.close()


class Client:
    """One end of a stream, whose other end a hub has. It reads when it is told to.

    Args:
        buffer_size: Bytes that the kernel holds for it, about; it rounds up to some 5 KB.
    """

    def __init__(self, buffer_size: int = 1) -> None:
        self.sock, self.server_end = socket.socketpair()
        self.sock.setblocking(False)
        self.server_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_size)
        self.received = bytearray()
        self.is_at_end = False

    def give_to_hub(self) -> int:
        return self.server_end.detach()

    def read(self) -> bytes:
        """Read all that is there; return all that ever came."""
        try:
            while data := self.sock.recv(1 << 16):
                self.received += data
        except BlockingIOError:
            return bytes(self.received)
        except ConnectionResetError:
            pass
        self.is_at_end = True
        return bytes(self.received)

    def close(self) -> None:
        self.sock.close()


def handover(
    *channels: str, head: bytes = b"", rest: bytes = b"", keep_alive: bool = False, **options: Any
) -> Handover:
    engine = options.pop("engine", "sse")
    client = options.pop("client", ("192.0.2.1", 50000))
    presence = options.pop("presence", None)
    offload = Offload(engine, channels, BUS, options, presence=presence)
    return Handover(offload, client, ("192.0.2.2", 80), True, keep_alive, head, rest)


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines(1, os.getuid(), os.getgid())
    yield lines
    close_lines(lines)


def close_lines(lines: Lines) -> None:
    lines.close(0)
    for line in lines.lines:
        close_line(line)
    for end in (lines.back_worker, lines.back_hub, lines.events_worker, lines.events_hub):
        end.close()


def close_line(line: Line) -> None:
    line.hand_worker.close()
    line.hand_hub.close()
    os.close(line.lifeline_hub)
    os.close(line.lock)


@pytest.fixture
def make_hub(lines: Lines) -> Iterator[Callable[..., HubUnderTest]]:
    """Make a hub with settings."""
    made = []

    def make(**settings: Any) -> HubUnderTest:
        made.append(HubUnderTest(Settings(**settings), lines))
        return made[-1]

    yield make
    for hub in made:
        hub.close_all()


@pytest.fixture
def hub(make_hub: Callable[..., HubUnderTest]) -> HubUnderTest:
    return make_hub()


@pytest.fixture
def make_client() -> Iterator[Callable[..., Client]]:
    made = []

    def make(**options: int) -> Client:
        made.append(Client(**options))
        return made[-1]

    yield make
    for client in made:
        client.close()
        client.server_end.close()


@pytest.fixture
def client(make_client: Callable[..., Client]) -> Client:
    return make_client()
