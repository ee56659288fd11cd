"""Whose connections a hub holds: with real connections, and a bus that answers when the test says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Channel, Queue

from gunicorn_realtime.bus.presence import Presence, PresenceTimes
from gunicorn_realtime.errors import BusUnavailable
from gunicorn_realtime.hub import presence as module
from gunicorn_realtime.hub.presence import BATCH, NOTHING, Presences
from tests.hub.conftest import TIMEOUT, LineEngine, handover

ADA, BOB = Presence("room", "ada"), Presence("room", "bob")
NEVER = 1e6  # seconds

Call = tuple[str, list[Presence]]


class SlowBus:
    """Takes one call at a time, and answers when it is told to."""

    def __init__(self) -> None:
        self.calls: Queue[Call] = Queue()
        self.answers: Channel[Exception | None] = Channel()  # taken as they are put
        self.swept: Queue[tuple[int, int]] = Queue()  # how many, and until when
        self.sweeps_left = 0
        self.time = 1_700_000_000_000_000  # microseconds
        self.fails = False  # to sweep
        self.has_failed = Event()
        self.hubs: set[str] = set()

    @contextmanager
    def commanding(self) -> Iterator[SlowBus]:
        yield self

    def enter(self, hub: str, presences: Sequence[Presence], lifetime: float) -> None:
        self._take("enter", hub, presences)

    def leave(self, hub: str, presences: Sequence[Presence], linger: float) -> None:
        self._take("leave", hub, presences)

    def sweep(self, count: int, until: int) -> tuple[bool, int]:
        self.swept.put((count, until))
        if self.fails:
            self.has_failed.set()
            raise BusUnavailable("away")
        self.sweeps_left -= 1
        return self.sweeps_left > 0, self.time

    def _take(self, name: str, hub: str, presences: Sequence[Presence]) -> None:
        self.hubs.add(hub)
        self.calls.put((name, list(presences)))
        if (error := self.answers.get()) is not None:
            raise error

    def next(self) -> Call:
        """Return the next call, which waits for its answer."""
        return self.calls.get(timeout=TIMEOUT)

    def answer(self, error: Exception | None = None) -> None:
        self.answers.put(error)

    def answer_next(self) -> Call:
        call = self.next()
        self.answer()
        return call


@pytest.fixture
def bus():
    return SlowBus()


@pytest.fixture
def make_presences(bus):
    made = []

    def make(lifetime: float) -> Presences:
        made.append(Presences(bus.commanding, PresenceTimes(lifetime, 8.0)))
        return made[-1]

    yield make
    for presences in made:
        gevent.killall(presences._greenlets)


@pytest.fixture
def presences(make_presences):
    return make_presences(NEVER)


@pytest.fixture
def connect(hub, make_client):
    return lambda: hub.give(make_client(), handover("a"), LineEngine())


def test_first_connection_of_a_member_enters_and_the_last_leaves(presences, bus, connect):
    one, two = connect(), connect()
    presences.enter(one, ADA)
    assert bus.answer_next() == ("enter", [ADA])
    presences.enter(two, ADA)
    presences.leave(one)
    presences.leave(two)

    assert bus.answer_next() == ("leave", [ADA])
    assert len(bus.hubs) == 1


def test_connection_that_does_not_count_leaves_nothing(presences, bus, connect):
    presences.leave(connect())
    presences.enter(connect(), ADA)

    assert bus.answer_next() == ("enter", [ADA])


def test_those_who_come_together_are_told_together(presences, bus, connect):
    presences.enter(connect(), ADA)
    bus.next()
    presences.enter(connect(), BOB)
    presences.enter(connect(), Presence("other", "ada"))
    bus.answer()

    assert bus.answer_next() == ("enter", [BOB, Presence("other", "ada")])


def test_call_has_a_limit(presences, bus, connect):
    connection = connect()
    everybody = [Presence("room", f"user-{n}") for n in range(BATCH + 1)]
    for each in everybody:
        presences.enter(connection, each)

    assert bus.answer_next() == ("enter", everybody[:BATCH])
    assert bus.answer_next() == ("enter", everybody[BATCH:])


def test_member_that_comes_and_goes_while_the_bus_is_busy_is_told_as_it_is_then(presences, bus, connect):
    one, two = connect(), connect()
    presences.enter(one, ADA)
    bus.next()
    presences.leave(one)
    presences.enter(two, ADA)
    presences.leave(two)
    presences.enter(connect(), BOB)
    bus.answer()

    assert bus.answer_next() == ("leave", [ADA])
    assert bus.answer_next() == ("enter", [BOB])


def test_what_the_bus_did_not_take_is_said_again(presences, bus, connect, caplog, monkeypatch):
    monkeypatch.setattr(module, "RETRY_PAUSE", (0.0, 0.0))
    one = connect()
    presences.enter(one, ADA)
    for _ in range(3):
        assert bus.next() == ("enter", [ADA])
        bus.answer(BusUnavailable("away"))
    assert bus.answer_next() == ("enter", [ADA])

    presences.leave(one)
    assert bus.answer_next() == ("leave", [ADA])
    assert [record.getMessage() for record in caplog.records] == ["The bus does not know who is here: away"]


def test_leave_that_the_bus_did_not_take_is_forgotten_when_the_entry_has_expired(
    make_presences, bus, connect, monkeypatch
):
    monkeypatch.setattr(module, "RETRY_PAUSE", (0.0, 0.0))
    monkeypatch.setattr(module, "SWEEP", NEVER)
    presences = make_presences(0.0)
    one = connect()
    presences.enter(one, ADA)
    bus.answer_next()
    presences.leave(one)
    bus.next()
    bus.answer(BusUnavailable("away"))
    presences.enter(connect(), BOB)

    assert bus.answer_next() == ("enter", [BOB])
    assert bus.calls.empty()


def test_everybody_enters_anew_when_the_bus_is_back(presences, bus, connect):
    one = connect()
    presences.enter(one, ADA)
    presences.enter(connect(), BOB)
    presences.enter(connect(), Presence("other", "eve"))
    bus.answer_next()
    presences.leave(one)
    bus.answer_next()

    presences.bus_is_back()

    assert bus.answer_next() == ("enter", [BOB, Presence("other", "eve")])


def test_everybody_is_renewed_again_and_again(make_presences, bus, connect):
    presences = make_presences(0.03)
    presences.enter(connect(), ADA)

    assert [bus.answer_next() for _ in range(5)] == [("enter", [ADA])] * 5


def test_sweep_goes_on_until_nothing_is_left(make_presences, bus):
    bus.sweeps_left = 10
    make_presences(0.03)

    assert [bus.swept.get(timeout=TIMEOUT)[0] for _ in range(15)] == [BATCH] * 15
    assert bus.sweeps_left <= -5


def next_sweep(bus: SlowBus) -> int:
    """Return the time until which the bus is to sweep."""
    return bus.swept.get(timeout=TIMEOUT)[1]


def test_bus_is_asked_for_its_time_and_sweeps_until_then(make_presences, bus):
    make_presences(0.03)

    assert next_sweep(bus) == NOTHING
    for _ in range(3):
        assert bus.time <= next_sweep(bus) < bus.time + TIMEOUT * 1_000_000


@pytest.mark.parametrize("what", ["is back", "was not told", "did not sweep"])
def test_bus_that_may_have_been_away_is_not_swept_at_once(make_presences, bus, connect, monkeypatch, what):
    presences = make_presences(0.03)
    assert [next_sweep(bus), next_sweep(bus)] != [NOTHING, NOTHING]
    monkeypatch.setattr(module, "QUIET", NEVER)
    match what:
        case "is back":
            presences.bus_is_back()
        case "was not told":
            presences.enter(connect(), ADA)
            bus.next()
            bus.answer(BusUnavailable("away"))
        case "did not sweep":
            bus.fails = True
            assert bus.has_failed.wait(TIMEOUT)
            bus.fails = False

    while next_sweep(bus) != NOTHING:
        pass

    for _ in range(5):
        presences._sweep()
    assert bus.swept.empty()


def test_hub_that_stops_says_who_has_gone(presences, bus, connect):
    one = connect()
    presences.enter(one, ADA)
    bus.answer_next()
    presences.leave(one)

    closing = gevent.spawn(presences.close)

    assert bus.answer_next() == ("leave", [ADA])
    closing.get(timeout=TIMEOUT)


def test_hub_that_stops_does_not_wait_for_a_bus_that_is_away(presences, bus, connect, caplog, monkeypatch):
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.01)
    one = connect()
    presences.enter(one, ADA)
    bus.answer_next()
    presences.leave(one)

    presences.close()

    assert "1 members may seem to be here a little longer" in caplog.text


# In a hub.


def test_connection_counts_from_its_handover_to_its_end(hub, client):
    connection = hub.give(client, handover("a", presence=ADA), LineEngine())
    assert hub.bus.presences.presences == {connection: ADA}

    client.close()
    hub.turn_until(lambda: connection.fd < 0)

    assert hub.bus.presences.presences == {}


def test_connection_that_is_refused_does_not_count(make_hub, make_client):
    hub = make_hub(connections=1)
    hub.give(make_client(), handover("a"), LineEngine())

    hub.take(make_client().give_to_hub(), LineEngine(), handover("a", presence=ADA))

    assert hub.bus.presences.presences == {}
