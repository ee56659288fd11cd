"""Who is there, as a bus knows it; each test on the local one and on Redis.

Where time is to pass, something expires at once: a lifetime or a linger of 0 seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher, Subscription
from gunicorn_realtime.bus.message import Message, decode
from gunicorn_realtime.bus.presence import Presence, decode_member, encode_member
from tests.bus.conftest import TIMEOUT, LocalServer, follow
from tests.servers import RedisServer

LONG = 3600.0  # seconds
SECOND = 1_000_000
ROOM = "site:room"
KEPT = Channel("site:kept", history=100, ttl=60)


def in_room(member: str) -> Presence:
    return Presence(ROOM, member)


def in_kept(member: str) -> Presence:
    return Presence(KEPT.name, member, KEPT.history, KEPT.ttl)


class Room:
    """Reads what is published to a channel."""

    def __init__(self, publisher: Publisher, subscription: Subscription, channel: str) -> None:
        self._publisher = publisher
        self._subscription = subscription
        self._channel = channel
        follow(subscription, channel)

    def next_message(self) -> Message:
        received = self._subscription.read(TIMEOUT)
        assert received.channel == self._channel
        return decode(received.channel, received.payload)

    def news(self) -> list[str]:
        """Return who has joined (+) and left (-) since the last time."""
        self._publisher.publish(self._channel, b"now")
        news = []
        while (message := self.next_message()).data != b"now":
            assert message.event == "presence"
            fields = json.loads(message.data)
            news.append({"join": "+", "leave": "-"}[fields["type"]] + fields["member"])
        return news


@pytest.fixture
def subscription(bus_address: BusAddress) -> Iterator[Subscription]:
    with closing(Subscription(bus_address, TIMEOUT)) as subscription:
        subscription.connect()
        yield subscription


@pytest.fixture
def room(publisher, subscription) -> Room:
    return Room(publisher, subscription, ROOM)


@pytest.fixture
def kept(publisher, subscription) -> Room:
    return Room(publisher, subscription, KEPT.name)


def kept_by(server: LocalServer | RedisServer) -> list[object]:
    """Return what a bus on which only presence was used keeps of it."""
    if isinstance(server, LocalServer):
        return list(server.bus.attendances.channels)
    with server.client() as client:
        return [key for key in client.scan_iter() if key != "site:rt:clock"]


def sweep(publisher: Publisher, count: int = 100) -> None:
    while publisher.sweep(count)[0]:
        pass


def test_first_entry_of_a_member_is_published_and_no_other(publisher, room):
    publisher.enter("hub1", [in_room("ada")], LONG)
    publisher.enter("hub1", [in_room("ada")], LONG)
    publisher.enter("hub2", [in_room("ada"), in_room("bob")], LONG)

    assert room.news() == ["+ada", "+bob"]
    assert publisher.members(ROOM) == ["ada", "bob"]


def test_member_leaves_when_the_linger_is_over(publisher, room):
    publisher.enter("hub1", [in_room("ada"), in_room("bob")], LONG)
    publisher.leave("hub1", [in_room("ada")], LONG)
    sweep(publisher)
    assert publisher.members(ROOM) == ["ada", "bob"]
    assert room.news() == ["+ada", "+bob"]

    publisher.leave("hub1", [in_room("ada")], 0)
    sweep(publisher)

    assert publisher.members(ROOM) == ["bob"]
    assert room.news() == ["-ada"]


def test_member_that_comes_back_in_time_has_not_left(publisher, room):
    publisher.enter("hub1", [in_room("ada")], LONG)
    publisher.leave("hub1", [in_room("ada")], 0)
    publisher.enter("hub1", [in_room("ada")], LONG)
    publisher.leave("hub1", [in_room("ada")], 0)
    publisher.enter("hub2", [in_room("ada")], LONG)
    sweep(publisher)

    assert room.news() == ["+ada"]
    assert publisher.members(ROOM) == ["ada"]


def test_member_leaves_with_the_last_hub(publisher, room):
    publisher.enter("hub1", [in_room("ada")], LONG)
    publisher.enter("hub2", [in_room("ada")], LONG)
    publisher.leave("hub1", [in_room("ada")], 0)
    sweep(publisher)
    assert room.news() == ["+ada"]

    publisher.leave("hub2", [in_room("ada")], 0)
    sweep(publisher)

    assert room.news() == ["-ada"]


def test_entries_of_a_hub_that_died_expire(publisher, room):
    publisher.enter("dead", [in_room("ada"), in_room("bob")], 0)
    publisher.enter("alive", [in_room("bob")], LONG)
    assert publisher.members(ROOM) == ["bob"]  # also if nobody sweeps
    assert room.news() == ["+ada", "+bob"]

    sweep(publisher)

    assert room.news() == ["-ada"]


def test_entry_that_is_renewed_lives_on(publisher, room):
    publisher.enter("hub1", [in_room("ada")], 0)
    publisher.enter("hub1", [in_room("ada")], LONG)
    sweep(publisher)

    assert room.news() == ["+ada"]
    assert publisher.members(ROOM) == ["ada"]


def test_leave_of_who_was_never_there_is_nothing(publisher, room):
    publisher.leave("hub1", [in_room("ada")], LONG)
    sweep(publisher)

    assert room.news() == []
    assert publisher.members(ROOM) == []


def test_sweep_removes_only_so_many_at_a_time(publisher, room):
    publisher.enter("hub1", [in_room(f"user-{n}") for n in range(7)], 0)
    publisher.enter("hub1", [Presence(f"site:room-{n}", "ada") for n in range(3)], 0)
    room.news()

    rounds = 1
    while publisher.sweep(2)[0]:
        rounds += 1

    assert rounds >= 5
    assert sorted(room.news()) == [f"-user-{n}" for n in range(7)]


def test_sweep_removes_only_what_had_expired_by_a_time(publisher, room):
    _, before = publisher.sweep(100)
    publisher.enter("hub1", [in_room("ada")], 0)
    _, after = publisher.sweep(100, until=before - 1)
    assert room.news() == ["+ada"]

    publisher.sweep(100, until=after + 60 * SECOND)  # not what is yet to expire

    assert room.news() == ["-ada"]
    assert abs(after - time.time() * SECOND) < TIMEOUT * SECOND


def test_channels_do_not_mix(publisher, room):
    publisher.enter("hub1", [in_room("ada"), Presence("site:other", "bob")], LONG)

    assert publisher.members("site:other") == ["bob"]
    assert publisher.members("site:third") == []
    assert room.news() == ["+ada"]


def test_sites_do_not_mix(publisher, bus_address):
    publisher.enter("hub1", [in_room("ada")], LONG)
    with closing(Publisher(BusAddress(bus_address.url, "other:"), TIMEOUT)) as other:
        assert other.members("other:room") == []


def test_news_of_a_channel_with_history_have_ids_and_are_kept(publisher, kept):
    publisher.enter("hub1", [in_kept("ada"), in_kept("bob")], LONG)
    [cursor] = publisher.send([Outgoing(KEPT, b"hello")])
    publisher.leave("hub1", [in_kept("ada")], 0)
    sweep(publisher)

    live = [kept.next_message() for _ in range(4)]
    log = publisher.snapshot([KEPT]).logs[KEPT.name]
    assert [(m.data, m.event, m.stamp) for m in live] == [(m.data, m.event, m.stamp) for m in log.entries]
    assert [m.event for m in live] == ["presence", "presence", None, "presence"]
    assert live[0].data == b'{"type":"join","member":"ada"}'
    assert live[2].stamp.cursor == cursor
    assert [m.stamp.previous for m in live[1:]] == [m.stamp.id for m in live[:-1]]
    assert not live[0].is_binary


def test_whoever_sweeps_knows_the_channel_s_rules(publisher, bus_address, kept):
    publisher.enter("dead", [in_kept("ada")], 0)

    with closing(Publisher(bus_address, TIMEOUT)) as other:
        other.sweep(100)

    assert len(publisher.snapshot([KEPT]).logs[KEPT.name].entries) == 2


@pytest.mark.parametrize("member", ["a", 'a"b\\c/d', "größe 🎉", "x" * 200, "7", "[1]"])
def test_any_name_goes_there_and_back(publisher, room, member):
    publisher.enter("hub1", [in_room(member)], 0)
    sweep(publisher)
    assert room.news() == [f"+{member}", f"-{member}"]

    publisher.enter("hub1", [in_room(member)], LONG)

    assert publisher.members(ROOM) == [member]
    assert decode_member(encode_member(member)) == member


MEMBERS, HUBS = ("ada", "bob", "eve"), ("hub1", "hub2")
steps = st.tuples(
    st.sampled_from(["enters", "expires", "leaves", "sweep"]), st.sampled_from(MEMBERS), st.sampled_from(HUBS)
)


@given(st.lists(steps))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_joins_and_leaves_alternate_and_say_who_is_there(publisher, room, steps):
    for step, member, hub in steps:
        match step:
            case "enters":
                publisher.enter(hub, [in_room(member)], LONG)
            case "expires":
                publisher.enter(hub, [in_room(member)], 0)
            case "leaves":
                publisher.leave(hub, [in_room(member)], 0)
            case "sweep":
                publisher.sweep(1)
    sweep(publisher)

    there: set[str] = set()
    for news in room.news():
        assert news.startswith("-" if news[1:] in there else "+")
        there ^= {news[1:]}
    assert publisher.members(ROOM) == sorted(there)

    for hub in HUBS:
        publisher.leave(hub, list(map(in_room, MEMBERS)), 0)
    sweep(publisher)
    assert {news[1:] for news in room.news()} == there


def test_nothing_remains_of_who_has_left(publisher, server):
    publisher.enter("hub1", [in_room("ada"), Presence("site:other", "bob")], LONG)
    assert kept_by(server)
    publisher.leave("hub1", [in_room("ada"), Presence("site:other", "bob")], 0)
    sweep(publisher)

    assert kept_by(server) == []
    assert not publisher.sweep(100)[0]


def test_bus_that_was_emptied_is_told_anew(publisher, server, room):
    publisher.enter("hub1", [in_room("ada")], LONG)
    if isinstance(server, RedisServer):
        with server.client() as client:
            client.flushall()
        publisher.enter("hub1", [in_room("ada")], LONG)
        assert room.news() == ["+ada", "+ada"]
    else:
        server.restart()
        assert publisher.members(ROOM) == []


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("", "a member's name is empty"),
        ("x" * 201, "has 201 bytes, more than 200"),
        ("ü" * 101, "has 202 bytes, more than 200"),
        ("two\nlines", "has control characters"),
        ("\ud800", "is not valid Unicode"),
    ],
)
def test_name_that_is_none_is_refused(member, message):
    with pytest.raises(ValueError, match=message):
        Presence(ROOM, member)


def test_rules_do_not_make_another_presence_of_it():
    assert Presence(ROOM, "ada", 100, 60.0) == Presence(ROOM, "ada")
