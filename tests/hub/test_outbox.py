"""What clients publish, on its way: with real connections, and a bus that answers when the test says so."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from gevent.queue import Queue

from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing
from gunicorn_realtime.errors import BusUnavailable
from gunicorn_realtime.hub.connection import Connection
from gunicorn_realtime.hub.feed import OVERHEAD
from gunicorn_realtime.hub.outbox import BATCH, BATCH_SIZE, MAX_SIZE, Outbox
from tests.hub.conftest import TIMEOUT, LineEngine, handover

NEWS = Channel("news")


class SlowBus:
    """Takes one batch at a time, and answers when it is told to."""

    def __init__(self) -> None:
        self.batches: Queue[list[bytes]] = Queue()  # as they come
        self.answers: Queue[Exception | None] = Queue()
        self.failed: Queue[tuple[Connection, str]] = Queue()
        self.outbox = Outbox(self._send, lambda *failure: self.failed.put(failure))

    def _send(self, messages: Sequence[Outgoing]) -> None:
        self.batches.put([message.data for message in messages])
        if (error := self.answers.get()) is not None:
            raise error

    def take(self) -> list[bytes]:
        """Return the next batch, which waits for its answer."""
        return self.batches.get(timeout=TIMEOUT)

    def answer(self, error: Exception | None = None) -> None:
        self.answers.put(error)

    def take_all(self) -> list[bytes]:
        """Answer until nothing is left to be sent."""
        messages = []
        while self.outbox._queue or not self.batches.empty():
            messages += self.take()
            self.answer()
        return messages


@pytest.fixture
def bus():
    bus = SlowBus()
    yield bus
    bus.outbox.close()


@pytest.fixture
def connect(hub, make_client):
    return lambda: hub.give(make_client(), handover("a"), LineEngine())


def put(bus: SlowBus, connection: Connection, *data: bytes) -> None:
    bus.outbox.put(connection, [Outgoing(NEWS, each) for each in data])


def test_messages_keep_their_order_whoever_sends_them(bus, connect):
    one, two = connect(), connect()
    put(bus, one, b"1")
    sent = bus.take()
    for number in range(2, 1000):
        put(bus, one if number % 3 else two, b"%d" % number)
    bus.answer()

    sent += bus.take_all()

    assert sent == [b"%d" % number for number in range(1, 1000)]


def test_what_waits_goes_in_one_round_trip(bus, connect):
    connection = connect()
    put(bus, connection, b"first")
    assert bus.take() == [b"first"]
    for number in range(10):
        put(bus, connection, b"%d" % number)

    bus.answer()

    assert bus.take() == [b"%d" % number for number in range(10)]
    bus.answer()


@pytest.mark.parametrize(("size", "expected"), [(0, BATCH), (BATCH_SIZE // 4, 4), (2 * BATCH_SIZE, 1)])
def test_round_trip_has_a_limit(bus, connect, size, expected):
    put(bus, connect(), *[b"x" * size] * 300)

    assert len(bus.take()) == expected
    bus.answer()


def test_client_that_sends_faster_than_the_bus_takes_has_to_wait(bus, connect):
    quick, other = connect(), connect()
    put(bus, quick, b"x" * (MAX_SIZE - OVERHEAD))
    assert quick.is_read  # just as much as may wait
    put(bus, quick, b"x" * (MAX_SIZE // 2 - 2 * OVERHEAD))
    assert not quick.is_read
    assert other.is_read  # until it adds to it
    put(bus, other, b"x")
    assert not other.is_read

    bus.take()
    bus.answer()
    bus.take()  # what remains is less than half of what may wait
    bus.answer()

    bus.take()
    assert quick.is_read and other.is_read
    bus.answer()


def test_messages_without_data_make_their_client_wait_too(bus, connect):
    connection = connect()

    put(bus, connection, *[b""] * (MAX_SIZE // OVERHEAD + 1))

    assert not connection.is_read


def test_client_that_waited_is_read_on_where_it_was(hub, bus, connect, make_client):
    """What it sends meanwhile stays in the kernel."""
    client = make_client()
    connection = hub.give(client, handover("a"), LineEngine())
    put(bus, connection, b"x" * (MAX_SIZE + 1))
    client.sock.sendall(b"hello")
    received = Queue()
    connection.audience.engine.received = lambda connection, data: received.put(data)
    bus.take()
    assert not connection.is_read

    bus.answer()

    assert received.get(timeout=TIMEOUT) == b"hello"


def test_client_that_left_while_it_waited_is_let_go(hub, bus, connect):
    connection = connect()
    put(bus, connection, b"x" * (MAX_SIZE + 1))
    hub.close(connection, "")

    bus.take()
    bus.answer()
    put(bus, connect(), b"next")

    assert bus.take() == [b"next"]
    bus.answer()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BusUnavailable("no answer"), "the bus is unavailable"),
        (ValueError("a defect"), "its message could not be published"),
    ],
)
def test_all_whose_messages_may_be_lost_are_told_once_and_the_next_are_sent(
    bus, connect, caplog, error, reason
):
    one, two, three = connect(), connect(), connect()
    put(bus, one, b"first")
    bus.take()
    put(bus, one, b"1", b"2")
    put(bus, two, b"3")
    bus.answer()
    assert bus.take() == [b"1", b"2", b"3"]
    put(bus, three, b"4")

    bus.answer(error)

    assert [bus.failed.get(timeout=TIMEOUT) for _ in range(2)] == [(one, reason), (two, reason)]
    assert bus.take() == [b"4"]
    bus.answer()
    assert bus.failed.empty()
    [record] = caplog.records
    assert record.getMessage().startswith("3 messages of clients ")


def test_client_that_cannot_be_told_harms_nobody(bus, connect, monkeypatch):
    monkeypatch.setattr(bus.outbox, "_failed", "nothing that can be called")
    put(bus, connect(), b"lost")
    bus.take()
    bus.answer(BusUnavailable("no answer"))
    put(bus, connect(), b"next")

    assert bus.take() == [b"next"]
    bus.answer()
