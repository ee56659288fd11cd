from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
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
        realtime.publish("lotofnews", "hello", immediately=True)
        event = next(iter(response))
        response.close()

        assert first.startswith(b"retry: ")
        assert event == b"data: hello\n\n"
        assert connection.in_atomic_block


class LiveServerTests(StaticLiveServerTestCase):
    def test_stream_of_a_live_server_test_case(self):
        with open_stream(self.server_thread.port, "/news") as client:
            realtime.publish("lotofnews", "hello")

            assert client.next_event().data == "hello"
