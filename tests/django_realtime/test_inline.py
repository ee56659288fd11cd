from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import pytest
from django.contrib.staticfiles.testing import StaticLiveServerTestCase
from django.db import connection
from django.test import Client, TestCase
from django.urls import path

import django_realtime as realtime
from django_realtime import inline
from django_realtime.conf import conf
from gunicorn_realtime.bus.client import Publisher
from gunicorn_realtime.bus.local import LocalBus
from tests.clients import SSEClient, http_get
from tests.servers import ROOT, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.urls(__name__)


def news_after_a_query(request):
    connection.ensure_connection()
    return "lotofnews"


urlpatterns = [
    path("news", realtime.sse("lotofnews")),
    path("raw", realtime.sse("lotofnews", raw=True)),
    path("named", realtime.sse("lotofnews", event="news")),
    path("both", realtime.sse("channel_1", "channel_2")),
    path("query", realtime.sse(news_after_a_query)),
]


@pytest.fixture
def port(live_server) -> int:
    return live_server.thread.port


def open_stream(port: int, path: str) -> SSEClient:
    """Open a stream and wait until the bus has confirmed that it follows its channels."""
    client = SSEClient(port, path)
    client.read_until(lambda: client.comments)
    return client


def test_stream_has_what_is_published_after_it_opened(port):
    with open_stream(port, "/news") as client:
        realtime.publish("lotofnews", "hello")
        realtime.publish("lotofnews", "two\r\nlines", event="said")
        realtime.publish("elsewhere", "not for us")
        realtime.publish("lotofnews", {"größe": 1})

        events = [(event.event, event.data) for event in client.next_events(3)]

    assert client.status == 200
    assert client.headers["Content-Type"] == "text/event-stream"
    assert events == [("message", "hello"), ("said", "two\nlines"), ("message", '{"größe":1}')]


def test_stream_says_at_once_when_to_come_back(port, settings):
    settings.REALTIME = {**settings.REALTIME, "RETRY": (3, 4)}

    with open_stream(port, "/news") as client:
        assert client.retry is not None
        assert 3000 <= client.retry <= 4000


def test_stream_follows_several_channels(port):
    with open_stream(port, "/both") as client:
        realtime.publish_many([("channel_2", "a"), ("channel_1", "b")])

        assert [event.data for event in client.next_events(2)] == ["a", "b"]


def test_raw_passes_messages_on_and_event_names_those_without_a_name(port):
    with open_stream(port, "/raw") as raw, open_stream(port, "/named") as named:
        realtime.publish("lotofnews", "id: 7\ndata: hello\n\n")
        realtime.publish("lotofnews", "data: x\n\n", event="own")

        assert raw.next_event().id == "7"
        assert [event.event for event in named.next_events(2)] == ["news", "own"]


def returning(port: int, path: str, cursor: str) -> SSEClient:
    return SSEClient(port, path, headers={"Last-Event-ID": cursor})


def reset_of(client: SSEClient) -> dict:
    event = client.next_event()
    assert event.event == "reset"
    return json.loads(event.data)


@pytest.fixture(params=["local", "redis"])
def bus(request, settings) -> None:
    """A bus of each kind, with a prefix; the local one belongs to the live server."""
    settings.REALTIME = {**settings.REALTIME, "PREFIX": "site:"}
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        settings.REALTIME = {**settings.REALTIME, "BUS": server.url}


def test_events_have_the_ids_that_publish_returned(port, bus):
    with open_stream(port, "/both") as client:
        ids = realtime.publish_many([("channel_2", "a"), ("channel_1", "b"), ("channel_2", "c")])

        assert [(event.data, event.id) for event in client.next_events(3)] == list(
            zip("abc", ids, strict=True)
        )


def test_a_client_that_returns_gets_what_it_has_missed_in_order_and_once(port, bus):
    http_get(port, "/none")  # owns the local bus
    first, *_ = realtime.publish_many([(f"channel_{n % 2 + 1}", str(n)) for n in range(20)])

    with returning(port, "/both", first) as client:
        missed = client.next_events(19)
        realtime.publish("channel_1", "live")

        assert [event.data for event in [*missed, client.next_event()]] == [*map(str, range(1, 20)), "live"]


def test_history_of_several_pages_keeps_its_order(port, local_bus, settings):
    settings.REALTIME = {**settings.REALTIME, "CHANNELS": {"*": {"history": 2000}}}
    count = 3 * inline.PAGE_SIZE
    first, *_ = realtime.publish_many(
        [("channel_1" if n % 3 else "channel_2", str(n)) for n in range(count + 1)]
    )

    with returning(port, "/both", first) as client:
        assert [event.data for event in client.next_events(count)] == [str(n + 1) for n in range(count)]


def test_what_arrives_while_a_stream_opens_is_delivered_once(port, local_bus):
    """Each publisher's messages are a chain, whichever part of it comes from the history."""
    first = realtime.publish("lotofnews", "start")
    with ThreadPoolExecutor(1) as executor:
        publishing = executor.submit(
            lambda: [realtime.publish("lotofnews", str(number)) for number in range(90)]
        )
        clients = [returning(port, "/news", first) for _ in range(5)]
        publishing.result(30)

    for client in clients:
        with client:
            assert [event.data for event in client.next_events(90)] == [str(number) for number in range(90)]


def test_a_hole_is_told_with_the_channel_s_name_before_what_is_left(port, bus, settings):
    settings.REALTIME = {
        **settings.REALTIME,
        "CHANNELS": {"channel_1": {"ttl": 0.001}, "channel_2": {"ttl": 60}},
    }
    http_get(port, "/none")
    first, _, kept = realtime.publish_many([("channel_1", "a"), ("channel_1", "b"), ("channel_2", "c")])
    wait_until(lambda: _id(realtime.cursor()) > _id(first) + 2000, what="the history's end")

    with returning(port, "/both", first) as client:
        assert reset_of(client) == {"channels": ["channel_1"], "reason": "expired"}
        assert client.next_event().id == kept


def _id(cursor: str) -> int:
    return int(cursor.split("-")[1])


@pytest.mark.parametrize(
    "cursor",
    ["nonsense", "0", "-", "{epoch}-", "{epoch}-x", "other-1", "{epoch}-9999999999999999", 200 * "x"],
)
def test_a_cursor_that_is_not_the_bus_s_is_answered_with_a_reset(port, local_bus, cursor):
    old = realtime.publish("lotofnews", "old")
    epoch = old.split("-")[0]

    with returning(port, "/news", cursor.format(epoch=epoch)) as client:
        assert reset_of(client) == {"channels": ["lotofnews"], "reason": "unknown"}
        assert client.last_event_id.startswith(f"{epoch}-")
        assert client.last_event_id > old
        realtime.publish("lotofnews", "new")
        assert client.next_event().data == "new"


def test_another_life_of_the_local_bus_is_told_by_a_reset(port, bus_directory):
    with open_stream(port, "/news") as client:
        cursor = realtime.publish("lotofnews", "a")
        client.next_event()
        inline._leave_buses(setting="REALTIME")
        client.wait_closed()

    with returning(port, "/news", cursor) as client:
        assert reset_of(client)["channels"] == ["lotofnews"]


def test_a_new_client_gets_nothing_old(port, local_bus):
    realtime.publish("lotofnews", "old")

    with open_stream(port, "/news") as client:
        realtime.publish("lotofnews", "new")

        assert client.next_event().data == "new"


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (None, ["3", "4"]),
        (0, ["x", "3", "4"]),
        (2, ["3", "4"]),
        (3, ["4"]),
    ],
)
def test_who_wants_the_latest_gets_the_current_value_at_once(port, local_bus, settings, position, expected):
    rules = {"channel_1": {"history": 1, "slow_client": "latest"}}
    settings.REALTIME = {**settings.REALTIME, "CHANNELS": rules}
    ids = realtime.publish_many(
        [("channel_1", "1"), ("channel_1", "2"), ("channel_2", "x"), ("channel_1", "3")]
    )

    with returning(port, "/both", "" if position is None else ids[position]) as client:
        realtime.publish("channel_1", "4")

        assert [event.data for event in client.next_events(len(expected))] == expected


def test_current_value_needs_no_reset(port, local_bus, settings):
    settings.REALTIME = {**settings.REALTIME, "CHANNELS": {"*": {"history": 1, "slow_client": "latest"}}}
    realtime.publish_many([("lotofnews", "1"), ("lotofnews", "2")])

    with returning(port, "/news", "nonsense") as client:
        event = client.next_event()
        assert (event.event, event.data) == ("message", "2")


def test_channels_without_history_have_no_ids_and_no_resets(port, local_bus, settings):
    settings.REALTIME = {**settings.REALTIME, "CHANNELS": {"*": {"history": 0}}}

    with returning(port, "/news", "nonsense") as client:
        client.read_until(lambda: client.comments)
        realtime.publish("lotofnews", "a")

        assert (client.next_event().data, client.last_event_id) == ("a", "")


def test_silence_is_broken_by_a_comment(port, settings):
    settings.REALTIME = {**settings.REALTIME, "HEARTBEAT": 0.05}

    with open_stream(port, "/news") as client:
        client.read_until(lambda: len(client.comments) >= 3)


def test_garbage_on_the_bus_is_dropped_and_the_stream_goes_on(port, caplog):
    with open_stream(port, "/news") as client:
        publisher = Publisher(conf.bus)
        publisher.publish("lotofnews", b"\xffRT1 nonsense")
        publisher.publish("lotofnews", b"plain")
        publisher.close()

        assert client.next_event().data == "plain"
    assert "a message on lotofnews was dropped" in caplog.text


def test_stream_ends_with_the_bus_and_can_be_opened_again(port, local_bus: LocalBus):
    with open_stream(port, "/news") as client:
        local_bus.close()
        client.wait_closed()
    with open_stream(port, "/news") as client:
        realtime.publish("lotofnews", "back")

        assert client.next_event().data == "back"


def test_unreachable_bus_is_refused_in_the_client_s_protocol(port, settings):
    settings.REALTIME = {"BUS": "unix:///nowhere/redis.sock"}

    with SSEClient(port, "/news") as client:
        client.wait_closed()

    assert client.status == 200
    assert re.fullmatch(rb"retry: \d+\n\n", client.body)


@pytest.mark.django_db(transaction=True)
def test_stream_holds_no_database_connection(monkeypatch):
    """The test client runs the view in this thread, whose connection can be looked at."""
    closed = []
    monkeypatch.setattr(connection, "close", lambda: closed.append(True))

    response = Client().get("/query")
    next(iter(response))
    closed_while_open = list(closed)
    response.close()

    assert closed_while_open == [True]


def test_redis_serves_development_as_well(port, settings, redis_server):
    settings.REALTIME = {"BUS": redis_server.url, "PREFIX": "site:"}

    with open_stream(port, "/news") as client:
        redis_server.cli("publish", "site:lotofnews", "from redis-cli")

        assert client.next_event().data == "from redis-cli"
    redis_server.stop()


@pytest.fixture
def runserver(bus_directory) -> Iterator[int]:
    """The port of the demo under `manage.py runserver`, a process of its own."""
    port = free_port()
    command = [sys.executable, "manage.py", "runserver", f"127.0.0.1:{port}", "--noreload"]
    env = {**os.environ, "REALTIME_BUS": f"local:{bus_directory}"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(partial(_answers, port), what="an answer of runserver")
            yield port
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    with suppress(ConnectionError):
        return http_get(port, "/ping").text == "pong"
    return False


def test_runserver_streams_what_another_process_publishes(runserver):
    with open_stream(runserver, "/events/news") as client:
        realtime.publish("lotofnews", "hello")

        assert client.next_event().data == "hello"


def test_warning_is_logged_once(port, caplog):
    inline._warn_once.cache_clear()

    with open_stream(port, "/news"), open_stream(port, "/news"):
        pass

    warnings = [record for record in caplog.records if "for development only" in record.message]
    assert [warning.levelno for warning in warnings] == [logging.WARNING]


def test_publishing_works_before_the_first_stream(port):
    assert http_get(port, "/none").status == 404

    realtime.publish("lotofnews", "nobody listens")  # and that is no error


class TestClientTests(TestCase):
    def test_stream_of_the_test_client(self):
        response = self.client.get("/news")
        first = next(iter(response))
        message_id = realtime.publish("lotofnews", "hello", immediately=True)
        event = next(iter(response))
        response.close()

        assert first.startswith(b"retry: ")
        assert event == f"id: {message_id}\ndata: hello\n\n".encode()
        assert connection.in_atomic_block


class LiveServerTests(StaticLiveServerTestCase):
    def test_stream_of_a_live_server_test_case(self):
        with open_stream(self.server_thread.port, "/news") as client:
            realtime.publish("lotofnews", "hello")

            assert client.next_event().data == "hello"
