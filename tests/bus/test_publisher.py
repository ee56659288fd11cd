"""The clock, history and replay of a bus; each test on the local one and on Redis."""

from __future__ import annotations

import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from urllib.parse import urlsplit

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gunicorn_realtime.bus.address import BusAddress
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Clock, Outgoing, Publisher, Received
from gunicorn_realtime.bus.message import decode
from gunicorn_realtime.errors import BusUnavailable
from gunicorn_realtime.protocols import resp
from tests.bus.conftest import TIMEOUT, follow
from tests.servers import RedisServer
from tests.waiting import wait_until

NEWS = Channel("site:news", history=100, ttl=60)
SPORTS = Channel("site:sports", history=100, ttl=60)
PLAIN = Channel("site:plain")

SECOND = 1_000_000


def id_of(cursor: str | None) -> int:
    assert cursor is not None
    epoch, _, id = cursor.partition("-")
    assert re.fullmatch("[a-z0-9]{6}", epoch)
    return int(id)


def send(publisher: Publisher, channel: Channel, *data: bytes) -> list[int]:
    return [id_of(cursor) for cursor in publisher.send([Outgoing(channel, part) for part in data])]


@pytest.fixture
def redis_client(only_redis: RedisServer) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(only_redis.url)) as client:
        yield client


# Ids


def test_ids_rise_across_channels_and_calls(publisher):
    cursors = []
    for _ in range(20):
        cursors += publisher.send([Outgoing(NEWS, b""), Outgoing(PLAIN, b""), Outgoing(SPORTS, b"")])

    assert cursors[1::3] == [None] * 20
    ids = [id_of(cursor) for cursor in cursors if cursor]
    assert ids == sorted(set(ids))
    assert abs(ids[-1] - time.time() * SECOND) < TIMEOUT * SECOND
    assert len({cursor.partition("-")[0] for cursor in cursors if cursor}) == 1


def test_ids_rise_also_while_the_clock_is_ahead_of_the_time(publisher, redis_client, bus_address):
    ahead = publisher.read_clock().id + 3600 * SECOND
    redis_client.hset(bus_address.clock_key, "id", ahead)

    first, second = send(publisher, NEWS, b"1", b"2")

    assert (first, second) == (ahead + 1, ahead + 2)
    assert publisher.tick("site:rt:hub:1").id == ahead + 3
    assert publisher.read_clock().id == ahead + 3


def test_clock_moves_with_the_time_and_never_back(publisher):
    clocks = [publisher.read_clock(), publisher.tick("site:rt:hub:1"), publisher.snapshot([NEWS]).clock]
    clocks += [publisher.read_after([NEWS], 0).clock, publisher.read_clock()]
    assert [clock.id for clock in clocks] == sorted(clock.id for clock in clocks)
    assert clocks[0].cursor == f"{clocks[0].epoch}-{clocks[0].id}"
    [id] = send(publisher, NEWS, b"")
    assert id > clocks[-1].id


def test_tick_is_received_behind_what_was_published_before(publisher, subscription):
    follow(subscription, NEWS.name, "site:rt:hub:1")
    send(publisher, NEWS, b"hello")

    clock = publisher.tick("site:rt:hub:1")

    assert subscription.read(TIMEOUT).channel == NEWS.name
    payload = f"{clock.epoch} {clock.id}".encode()
    assert subscription.read(TIMEOUT) == Received("site:rt:hub:1", payload)


# History


def test_message_on_the_channel_and_in_the_log_is_the_same(publisher, subscription):
    follow(subscription, NEWS.name)

    cursors = publisher.send([Outgoing(NEWS, b"a\n\x00\xff", "goal"), Outgoing(NEWS, b"plain")])

    log = publisher.snapshot([NEWS]).logs[NEWS.name]
    live = [decode(NEWS.name, subscription.read(TIMEOUT).payload) for _ in range(2)]
    assert [(m.data, m.event, m.stamp) for m in live] == [(m.data, m.event, m.stamp) for m in log.entries]
    assert [(m.data, m.event) for m in live] == [(b"a\n\x00\xff", "goal"), (b"plain", None)]
    assert [m.stamp.cursor for m in live] == cursors
    assert live[1].stamp.previous == live[0].stamp.id
    assert live[0].stamp.previous == live[0].stamp.id - 60 * SECOND


def test_message_without_history_is_plain_and_kept_nowhere(publisher, subscription):
    follow(subscription, PLAIN.name)
    assert publisher.send([Outgoing(PLAIN, b"hello")]) == [None]
    assert subscription.read(TIMEOUT) == Received(PLAIN.name, b"hello")
    snapshot = publisher.snapshot([PLAIN])
    assert snapshot.logs[PLAIN.name].entries == []
    assert publisher.read_after([PLAIN], 0).logs == {}


def test_snapshot_has_the_newest_and_its_floor_tells_of_the_others(publisher):
    short = Channel("site:short", history=3, ttl=60)
    ids = send(publisher, short, *(b"%d" % n for n in range(500)))

    log = publisher.snapshot([short]).logs[short.name]

    assert [message.data for message in log.entries] == [b"497", b"498", b"499"]
    assert log.floor == ids[496]
    page = publisher.read_after([short], ids[0]).logs[short.name]
    assert page.floor > ids[0]  # trimmed: a gap
    assert len(page.entries) < 400
    assert publisher.read_after([short], ids[496]).logs[short.name].floor == ids[496]


def test_pages_are_complete_up_to_their_bound(publisher):
    ids = send(publisher, NEWS, *(b"%d" % n for n in range(5)))
    [other] = send(publisher, SPORTS, b"last")

    page = publisher.read_after([NEWS, SPORTS], ids[0], count=2)

    assert page.bound == ids[2]
    assert [message.stamp.id for message in page.logs[NEWS.name].entries] == ids[1:3]
    assert page.logs[NEWS.name].floor == ids[0]
    assert [message.stamp.id for message in page.logs[SPORTS.name].entries] == [other]
    rest = publisher.read_after([NEWS, SPORTS], ids[2], count=256)
    assert rest.bound == rest.clock.id
    assert len(rest.logs[NEWS.name].entries) == 2
    end = publisher.read_after([NEWS, SPORTS], rest.bound)
    assert [log.floor for log in end.logs.values()] == [rest.bound] * 2


def test_channel_without_a_log_is_complete_for_its_ttl(publisher):
    snapshot = publisher.snapshot([NEWS])
    assert snapshot.logs[NEWS.name].floor == snapshot.clock.id - 60 * SECOND
    page = publisher.read_after([NEWS], 0)
    assert page.logs[NEWS.name].floor == page.clock.id - 60 * SECOND


def test_log_outlives_its_newest_message_by_its_ttl(publisher):
    brief = Channel("site:brief", history=10, ttl=0.05)
    [id] = send(publisher, brief, b"gone soon")

    snapshot = wait_until(
        lambda: (read := publisher.snapshot([brief])) and not read.logs[brief.name].entries and read
    )

    assert snapshot.logs[brief.name].floor >= id


def test_snapshot_is_complete_up_to_its_clock_while_others_publish(publisher, bus_address):
    channels = [Channel(f"site:room-{n}", history=10_000, ttl=60) for n in range(3)]
    published: list[tuple[str, int]] = []

    def publish(channel: Channel) -> None:
        with closing(Publisher(bus_address, TIMEOUT)) as own:
            for _ in range(100):
                published.extend((channel.name, id) for id in send(own, channel, b"1", b"2"))

    threads = [threading.Thread(target=publish, args=(channel,)) for channel in channels]
    for thread in threads:
        thread.start()
    snapshots = [publisher.snapshot(channels)]
    while any(thread.is_alive() for thread in threads):
        snapshots.append(publisher.snapshot(channels))
    for thread in threads:
        thread.join(TIMEOUT)

    for snapshot in snapshots:
        for channel in channels:
            seen = [message.stamp.id for message in snapshot.logs[channel.name].entries]
            assert seen == sorted(
                id for name, id in published if name == channel.name and id <= snapshot.clock.id
            )


def test_history_of_many_megabytes_is_read_at_once(publisher):
    channel = Channel("site:large", history=100, ttl=60)
    data = bytes(1_000_000)
    for _ in range(12):
        send(publisher, channel, data)

    log = publisher.snapshot([channel]).logs[channel.name]

    assert [message.data for message in log.entries] == [data] * 12
    assert len(publisher.read_after([channel], 0).logs[channel.name].entries) == 12


# Failures


class CuttingRelay:
    """Stands between a client and Redis, and can swallow the answer to a command, and cut."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cuts = 0  # how many connections are still to be cut
        self.seen: list[list[bytes]] = []
        self._sockets: list[socket.socket] = []
        self._accept_thread = threading.Thread(target=self._accept)
        self._threads: list[threading.Thread] = []
        self._accept_thread.start()

    @property
    def address(self) -> BusAddress:
        return BusAddress(f"redis://127.0.0.1:{self._listener.getsockname()[1]}", prefix="site:")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accept_thread.join(TIMEOUT)
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(TIMEOUT)
        for sock in (self._listener, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._target.hostname, self._target.port))
            self._sockets += (client, server)
            asked = threading.Event()
            for run, source, target in (
                (self._pass_commands, client, server),
                (self._pass_answers, server, client),
            ):
                thread = threading.Thread(target=run, args=(source, target, asked))
                self._threads.append(thread)
                thread.start()

    def _pass_commands(self, client: socket.socket, server: socket.socket, asked: threading.Event) -> None:
        parser = resp.CommandParser()
        with suppress(OSError):
            while data := client.recv(65536):
                parser.feed(data)
                for command in parser.commands():
                    if command[0].startswith((b"EVAL", b"PUBLISH")):
                        self.seen.append(command)
                        asked.set()
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _pass_answers(self, server: socket.socket, client: socket.socket, asked: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if asked.is_set() and self.cuts:
                    self.cuts -= 1
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(data)


@pytest.fixture
def relay(only_redis: RedisServer) -> Iterator[CuttingRelay]:
    relay = CuttingRelay(only_redis.url)
    yield relay
    relay.close()


@pytest.fixture
def cut_publisher(relay: CuttingRelay, publisher: Publisher) -> Iterator[Publisher]:
    """A publisher behind the relay, to a Redis that has the scripts."""
    send(publisher, SPORTS, b"")
    with closing(Publisher(relay.address, TIMEOUT)) as behind_relay:
        yield behind_relay


@pytest.mark.parametrize("count", [1, 200])
def test_kept_messages_whose_answer_was_lost_are_there_once(relay, cut_publisher, publisher, count):
    channel = Channel("site:news", history=1000, ttl=60)
    relay.cuts = 1

    ids = send(cut_publisher, channel, *(b"%d" % n for n in range(count)))

    entries = publisher.snapshot([channel]).logs[channel.name].entries
    assert [message.data for message in entries] == [b"%d" % n for n in range(count)]
    assert [message.stamp.id for message in entries] == ids
    assert sum(b"retry" in command for command in relay.seen) == count


def test_answer_that_is_lost_twice_is_an_error(relay, cut_publisher, publisher):
    relay.cuts = 2
    with pytest.raises(BusUnavailable):
        send(cut_publisher, NEWS, b"hello")
    assert len(relay.seen) == 2
    assert len(publisher.snapshot([NEWS]).logs[NEWS.name].entries) == 1


def test_batch_with_a_message_that_is_not_kept_is_sent_once(relay, cut_publisher):
    relay.cuts = 1
    with pytest.raises(BusUnavailable):
        cut_publisher.send([Outgoing(NEWS, b"1"), Outgoing(PLAIN, b"2")])
    assert len(relay.seen) == 2


def test_server_that_forgot_the_scripts_is_given_them_again(publisher, redis_client):
    ids = send(publisher, NEWS, b"1")
    redis_client.script_flush()
    ids += send(publisher, NEWS, b"2")
    redis_client.script_flush()
    ids += send(publisher, NEWS, b"3", b"4")
    redis_client.script_flush()
    log = publisher.snapshot([NEWS]).logs[NEWS.name]
    assert [message.data for message in log.entries] == [b"1", b"2", b"3", b"4"]
    assert [message.stamp.id for message in log.entries] == ids


def test_bus_that_lost_everything_begins_a_new_epoch(publisher, server):
    before = publisher.read_clock()
    send(publisher, NEWS, b"lost")
    server.restart()
    if isinstance(server, RedisServer):
        with closing(redis.Redis.from_url(server.url)) as client:
            client.flushall()

    after = publisher.snapshot([NEWS])

    assert after.clock.epoch != before.epoch
    assert after.clock.id > before.id
    assert after.logs[NEWS.name].entries == []


def test_redis_that_is_behind_what_was_seen_begins_a_new_epoch(publisher, redis_client, bus_address):
    before = publisher.read_clock()
    redis_client.hset(bus_address.clock_key, "id", before.id - 1)  # as in an older dump
    [cursor] = publisher.send([Outgoing(NEWS, b"")])
    assert not cursor.startswith(before.epoch)
    with closing(Publisher(bus_address, TIMEOUT)) as ignorant:
        same = ignorant.tick("site:rt:hub:1")
        assert cursor.startswith(same.epoch)
        ignorant.note_seen(Clock(same.epoch, same.id + 3600 * SECOND))
        assert ignorant.tick("site:rt:hub:1").epoch != same.epoch


def test_clock_that_was_deleted_does_not_stop_the_logs(publisher, redis_client, bus_address):
    redis_client.hset(bus_address.clock_key, "id", publisher.read_clock().id + 3600 * SECOND)
    [id] = send(publisher, NEWS, b"1")
    redis_client.delete(bus_address.clock_key)
    assert send(publisher, NEWS, b"2") == [id + 1]


def test_foreign_entry_in_a_log_is_skipped(publisher, redis_client, bus_address, caplog):
    [id] = send(publisher, NEWS, b"1")
    fields = {"p": id, "b": b"no header", "t": "x"}
    redis_client.xadd(bus_address.log_key(NEWS.name), fields, id=f"{id + 1}-0")
    page = publisher.read_after([NEWS], id - 1, count=2)
    assert [message.data for message in page.logs[NEWS.name].entries] == [b"1"]
    assert page.bound == id + 1
    assert "A message in the history of 'site:news' was dropped" in caplog.text


def test_eviction_is_a_question_of_the_policy(publisher, redis_client):
    assert not publisher.may_evict()
    redis_client.config_set("maxmemory", "100mb")
    redis_client.config_set("maxmemory-policy", "noeviction")
    assert not publisher.may_evict()
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    assert publisher.may_evict()
    redis_client.config_set("maxmemory", "0")
    assert not publisher.may_evict()


def test_local_bus_does_not_evict_beyond_its_floors(directory):
    assert not Publisher(BusAddress(f"local:{directory}")).may_evict()


# Cursors of consumers


def test_cursor_that_a_consumer_has_saved_is_its_own(publisher, bus_address):
    position = publisher.read_clock()
    publisher.save_cursor("mail", Clock("abc123", 1))
    publisher.save_cursor("mail", position)

    with closing(Publisher(bus_address, TIMEOUT)) as other:
        assert other.load_cursor("mail") == position
        assert other.load_cursor("search") is None


def test_what_is_no_cursor_in_a_consumer_s_place_is_none(publisher, redis_client, bus_address):
    redis_client.set(bus_address.consumer_key("mail"), "garbage")
    assert publisher.load_cursor("mail") is None


# Any sequence of operations: a model in a few lines, which both buses must be like.

operations = st.one_of(
    st.tuples(st.just("send"), st.lists(st.integers(0, 2), min_size=1, max_size=5)),
    st.tuples(st.just("snapshot"), st.integers(1, 5)),
    st.tuples(st.just("range"), st.floats(0, 1), st.integers(1, 5)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operations, max_size=20))
def test_bus_keeps_all_that_was_sent_in_order(publisher, operations):
    run = secrets.token_hex(4)
    names = [f"site:{run}-{n}" for n in range(3)]
    channels = [Channel(name, history=1000, ttl=60) for name in names]
    sent: list[tuple[int, str]] = []
    for operation, *arguments in operations:
        if operation == "send":
            cursors = publisher.send([Outgoing(channels[n], b"%d" % n) for n in arguments[0]])
            sent += [(id_of(cursor), names[n]) for cursor, n in zip(cursors, arguments[0], strict=True)]
        elif operation == "snapshot":
            count = arguments[0]
            snapshot = publisher.snapshot([Channel(name, count, 60) for name in names])
            for name in names:
                ids = [id for id, of in sent if of == name]
                log = snapshot.logs[name]
                assert [message.stamp.id for message in log.entries] == ids[-count:]
                before = ids[:-count]
                assert not before or log.floor == before[-1]
        else:
            share, count = arguments
            after = sent[int(share * (len(sent) - 1))][0] if sent else 0
            page = publisher.read_after(channels, after, count)
            complete = [(id, name) for id, name in sent if after < id <= page.bound]
            got = [(message.stamp.id, name) for name in names for message in page.logs[name].entries]
            assert sorted(pair for pair in got if pair[0] <= page.bound) == complete
            assert not sent or all(log.floor <= after for log in page.logs.values())
    assert [id for id, _ in sent] == sorted({id for id, _ in sent})
