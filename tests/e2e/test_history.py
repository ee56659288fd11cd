"""Nothing is lost without a word: ids, replay by cursor, resets, whatever breaks in between."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest
import redis

from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.client import Outgoing, Publisher
from gunicorn_realtime.errors import BusUnavailable
from tests.clients import SSEClient, Swarm, connect
from tests.e2e.conftest import bus_of
from tests.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

KEPT = "?history=1000"


class KeptFlow:
    """Publishes numbered messages to a channel with history, at a steady rate, in a thread."""

    def __init__(self, server, channel: str = "news", rate: float = 20, history: int = 1000) -> None:
        self.published: list[str] = []  # those whose publish returned
        self._channel = Channel(channel, history, 300.0)
        self._publisher = Publisher(bus_of(server))
        self._interval = 1 / rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def send(self, *texts: str) -> list[str | None]:
        return self._publisher.send([Outgoing(self._channel, text.encode()) for text in texts])

    def cursor(self) -> str:
        return self._publisher.read_clock().cursor

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self._interval):
            text = f"message {number}"
            number += 1
            try:
                self.send(text)
            except BusUnavailable:
                continue
            self.published.append(text)

    def __enter__(self) -> KeptFlow:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> list[str]:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(30)
        self._publisher.close()
        return self.published


@pytest.fixture(params=["local", "redis"])
def site(request, plain):
    if request.param == "local":
        return plain()
    return plain(bus=request.getfixturevalue("redis_server").url)


def resume(server, cursor: str, path: str = "/sse/news" + KEPT) -> SSEClient:
    return SSEClient(server.address, path, {"Last-Event-ID": cursor})


def id_of(cursor: str) -> int:
    return int(cursor.partition("-")[2])


def test_every_event_has_an_id_and_a_returning_client_gets_what_it_missed(site):
    flow = KeptFlow(site)
    with SSEClient(site.address, "/sse/news" + KEPT) as client:
        flow.send("one")
        event = client.next_event()

    flow.send("two", "three")
    with resume(site, event.id) as client:
        flow.send("four")
        received = client.next_events(3)

    assert [event.data for event in received] == ["two", "three", "four"]
    assert received[0].id > event.id
    flow.stop()


def test_client_that_had_no_event_yet_can_return_too(site):
    flow = KeptFlow(site)
    flow.send("before")
    with SSEClient(site.address, "/sse/news" + KEPT) as client:
        client.read_until(lambda: client.last_event_id)

    flow.send("while away")
    with resume(site, client.last_event_id) as client:
        assert client.next_event().data == "while away"
    flow.stop()


def test_one_cursor_serves_several_channels(site):
    one, two = KeptFlow(site, "one"), KeptFlow(site, "two")
    path = "/sse/one/two" + KEPT
    with SSEClient(site.address, path) as client:
        one.send("1")
        two.send("2")
        cursor = client.next_events(2)[1].id

    one.send("3")
    two.send("4")
    one.send("5")
    with resume(site, cursor, path) as client:
        assert [event.data for event in client.next_events(3)] == ["3", "4", "5"]
    one.stop()
    two.stop()


@pytest.mark.parametrize("cursor", ["garbage", "abcdef-1234567890123456", "ä", "x" * 100, "-"])
def test_cursor_that_means_nothing_here_gets_a_reset_and_then_lives(site, cursor):
    flow = KeptFlow(site)
    flow.send("before")

    with resume(site, cursor.encode().decode("latin-1")) as client:
        reset = client.next_event()
        flow.send("after")

        assert reset.event == "reset"
        assert json.loads(reset.data) == {"channels": ["news"], "reason": "unknown"}
        assert client.next_event().data == "after"
    with resume(site, reset.id) as client:
        assert client.next_event().data == "after"
    flow.stop()


def test_client_that_was_away_for_too_long_is_told_of_the_hole(site):
    flow = KeptFlow(site, history=10)
    path = "/sse/news?history=10"
    with SSEClient(site.address, path) as client:
        flow.send("first")
        cursor = client.next_event().id

    for number in range(300):
        flow.send(str(number))
    with resume(site, cursor, path) as client:
        first = client.next_event()
        assert first.event == "reset"
        assert json.loads(first.data)["reason"] == "expired"
        flow.send("last")
        received = []
        while not received or received[-1] != "last":
            received.append(client.next_event().data)
    # What is left comes behind the reset, without another hole.
    assert received == [str(number) for number in range(301 - len(received), 300)] + ["last"]
    flow.stop()


def test_history_older_than_the_hub_is_read_page_by_page(plain, redis_server):
    server = plain(bus=redis_server.url)
    flow = KeptFlow(server, history=5000)
    path = "/sse/news?history=5000"
    with SSEClient(server.address, path) as client:
        flow.send("first")
        cursor = client.next_event().id
    texts = [f"{number} " + "x" * 5000 for number in range(1500)]  # more than a feed keeps
    for start in range(0, 1500, 100):
        flow.send(*texts[start : start + 100])

    with resume(server, cursor, path) as client:
        flow.send("live")
        received = [event.data for event in client.next_events(1501)]
    assert received == [*texts, "live"]
    flow.stop()


def test_current_value_comes_at_once(site):
    flow = KeptFlow(site, "quote", history=1)
    flow.send("1", "2", "3")

    with SSEClient(site.address, "/sse/quote?history=1&latest=1") as client:
        assert client.next_event().data == "3"
        flow.send("4")
        assert client.next_event().data == "4"
    flow.stop()


def test_current_value_comes_without_a_reset_to_who_returns_with_any_cursor(site):
    flow = KeptFlow(site, "quote", history=1)
    flow.send("1", "2", "3")

    for cursor in ("garbage", "abcdef-1"):
        with resume(site, cursor, "/sse/quote?history=1&latest=1") as client:
            event = client.next_event()
            assert (event.event, event.data) == ("message", "3")
    flow.stop()


def test_poll_of_several_current_values_is_answered_with_one(site):
    one, two = KeptFlow(site, "one"), KeptFlow(site, "two")
    one.send("1")
    two.send("2")

    with connect(site.address) as sock:
        sock.sendall(b"GET /poll/one/two?history=1&latest=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.endswith(b"Content-Length: 1\r\n\r\n1")
    one.stop()
    two.stop()


def test_slow_client_of_latest_values_gets_the_newest(site):
    flow = KeptFlow(site, "quote", history=1)
    path = "/sse/quote?history=1&latest=1"
    with SSEClient(site.address, path, receive_buffer=4096) as slow:
        for number in range(2000):
            flow.send(f"{number} " + "x" * 5000)
        flow.send("last")

        received = []
        while not received or received[-1] != "last":
            received.append(slow.next_event().data.split()[0])
    assert len(received) < 1000
    assert received[:-1] == sorted(received[:-1], key=int)
    flow.stop()


def test_heartbeat_moves_the_cursor(site):
    flow = KeptFlow(site, "other")
    with SSEClient(site.address, "/sse/news?history=100&heartbeat=1") as client:
        client.read_until(lambda: client.last_event_id)
        first = client.last_event_id
        flow.send("elsewhere")
        client.read_until(lambda: client.last_event_id > first)
    flow.stop()


def test_cursor_of_a_page_that_is_made_now_is_no_hole_on_a_quiet_bus(plain, redis_server):
    server = plain(bus=redis_server.url)
    publisher = Publisher(bus_of(server))
    with SSEClient(server.address, "/sse/news" + KEPT) as first:
        first.read_until(lambda: first.last_event_id)
        told = int(first.last_event_id.split("-")[1])
        # Far beyond what the hub has seen, if its next tick is not just due.
        page = wait_until(lambda: (clock := publisher.read_clock()).id > told + 2_000_000 and clock)

        with SSEClient(server.address, f"/sse/news{KEPT}", headers={"Last-Event-ID": page.cursor}) as second:
            second.read_until(lambda: second.last_event_id)
            publisher.send([Outgoing(Channel("news", 100, 300.0), b"hello")])
            assert second.next_event().data == "hello"
    publisher.close()


def test_killed_hub_loses_nothing_for_who_returns_with_a_cursor(plain, redis_server):
    server = plain(bus=redis_server.url)
    path = "/sse/news" + KEPT

    with Swarm(server.address, path, 200, reconnect_after=0.05) as swarm, KeptFlow(server) as flow:
        swarm.wait_all(10)
        os.kill(server.hub_pids()[0], signal.SIGKILL)
        swarm.wait_until(lambda: all(len(client.connects) == 2 for client in swarm.clients))
        swarm.wait_all(len(flow.published) + 10)
        published = flow.stop()
        swarm.wait_all(len(published))

        assert swarm.differences(published) == []


def test_killed_redis_loses_nothing_it_has_acknowledged(plain, tmp_path):
    appendonly = ["--appendonly", "yes", "--appendfsync", "always"]
    with RedisServer(tmp_path, *appendonly) as redis_server:
        server = plain(bus=redis_server.url)
        path = "/sse/news" + KEPT
        with Swarm(server.address, path, 200, reconnect_after=0.05) as swarm, KeptFlow(server) as flow:
            swarm.wait_all(10)
            redis_server.kill()
            redis_server.start()
            swarm.wait_all(len(flow.published) + 10)
            published = flow.stop()
            swarm.wait_until(lambda: all(client.data[-1] == published[-1] for client in swarm.clients))

            for client in swarm.clients:
                # Some may have been stored though their publish failed; none is missing or twice.
                numbers = [int(text.removeprefix("message ")) for text in client.data]
                assert numbers == sorted(set(numbers))
                assert set(published) <= set(client.data)


def test_redis_that_comes_back_empty_is_a_reset_for_all(plain, redis_server):
    server = plain(bus=redis_server.url)
    flow = KeptFlow(server)
    with SSEClient(server.address, "/sse/news" + KEPT) as client:
        flow.send("before")
        assert client.next_event().data == "before"

        redis_server.kill()
        redis_server.start()
        reset = client.next_event()
        wait_until(lambda: redis_server.cli("pubsub", "numsub", "news").split()[-1] == "1")
        flow.send("after")

        assert reset.event == "reset"
        assert json.loads(reset.data) == {"channels": ["news"], "reason": "restarted"}
        assert client.next_event().data == "after"
    flow.stop()


def test_flushed_redis_is_noticed(plain, redis_server):
    server = plain(bus=redis_server.url)
    flow = KeptFlow(server)
    with SSEClient(server.address, "/sse/news" + KEPT) as client:
        flow.send("before")
        client.next_event()

        redis_server.cli("flushall")
        flow.send("after")

        assert client.next_event().event == "reset"
    flow.stop()


def test_flushed_redis_is_noticed_also_while_nothing_is_published(plain, redis_server):
    server = plain(bus=redis_server.url)
    with SSEClient(server.address, "/sse/news" + KEPT) as client:
        client.read_until(lambda: client.last_event_id)

        redis_server.cli("flushall")

        assert client.next_event().event == "reset"


def test_cursor_that_is_newer_than_what_the_hub_has_seen_is_waited_for(site):
    flow = KeptFlow(site)
    with SSEClient(site.address, "/sse/news" + KEPT) as client:
        client.read_until(lambda: client.last_event_id)
        since = id_of(client.last_event_id)
        wait_until(lambda: id_of(flow.cursor()) > since + 2_000_000)  # so long nothing is published

        with resume(site, flow.cursor()) as later:  # as of a page that is new
            flow.send("after")
            assert later.next_event().data == "after"
    flow.stop()


def test_plain_messages_are_live_only(plain, redis_server):
    server = plain(bus=redis_server.url)
    flow = KeptFlow(server)
    with SSEClient(server.address, "/sse/news" + KEPT) as client:
        flow.send("kept")
        redis_server.cli("publish", "news", "plain")
        flow.send("kept too")
        events = client.next_events(3)

    assert [event.data for event in events] == ["kept", "plain", "kept too"]
    with resume(server, events[0].id) as client:
        assert client.next_event().data == "kept too"
    flow.stop()


def test_local_bus_whose_owner_is_killed_goes_on_with_a_reset(plain):
    server = plain(env={"GUNICORN_REALTIME_HUBS": "2"})
    wait_until(lambda: len(server.hub_pids()) == 2, what="two hubs")
    (owner,) = [pid for pid in server.hub_pids() if f"[{pid}] [INFO] serving the local bus" in server.log()]
    flow = KeptFlow(server)

    with Swarm(server.address, "/sse/news" + KEPT, 10, reconnect_after=0.05) as swarm:
        swarm.wait_streaming()
        flow.send("before")
        swarm.wait_all(1)
        end = len(server.log())
        os.kill(owner, signal.SIGKILL)
        server.wait_for_log("serving the local bus", after=end)
        swarm.wait_all(2)
        wait_until(lambda: count_subscribers(server) == 2, what="both hubs on the new bus")
        flow.send("after", "and after")
        swarm.wait_all(4)

    assert {len(client.connects) for client in swarm.clients} == {1, 2}  # those of either hub
    for client in swarm.clients:
        before, reset, *after = client.data
        assert (before, after) == ("before", ["after", "and after"])
        assert json.loads(reset)["channels"] == ["news"]
    flow.stop()


def count_subscribers(server) -> int:
    """How many hubs follow the channel "news" on a local bus."""
    with redis.Redis(unix_socket_path=f"{bus_of(server).directory}/bus.sock", protocol=2) as client:
        try:
            [(_, count)] = client.pubsub_numsub("news")
        except redis.ConnectionError:
            return 0
        return count
