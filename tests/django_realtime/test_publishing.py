from __future__ import annotations

import datetime
import logging
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from django.db import transaction

import django_realtime as realtime
from django_realtime.conf import conf
from django_realtime.publishing import lost_after_commit, publisher
from tests.django_realtime.conftest import run_async

database = pytest.mark.django_db(transaction=True)


class Undo(Exception):
    """Leaves an atomic block with a rollback."""


@pytest.fixture
def news(local_bus, listen):
    return listen("news")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("hello", b"hello"),
        ("", b""),
        ("a\r\nb", b"a\r\nb"),
        (b"bytes", b"bytes"),
        (bytearray(b"\xff\x00"), b"\xff\x00"),
        (memoryview(b"view"), b"view"),
        ({"größe": [1, None]}, '{"größe":[1,null]}'.encode()),
        (7, b"7"),
        (Decimal("1.50"), b'"1.50"'),
        (datetime.date(2026, 1, 2), b'"2026-01-02"'),
    ],
)
def test_data_is_text_bytes_or_json(news, data, text):
    realtime.publish("news", data)

    assert news.next().data == text


def test_an_event_has_a_name(news):
    realtime.publish("news", "a", event="größe")
    realtime.publish("news", "b")

    assert [news.next().event, news.next().event] == ["größe", None]


def test_a_message_s_id_is_the_one_that_clients_see(news):
    message_id = realtime.publish("news", "a")

    assert message_id == news.next().stamp.cursor


def test_ids_ascend(local_bus):
    ids = [realtime.publish("news", "a"), *realtime.publish_many([("news", "b"), ("weather", "c")])]

    assert len(set(ids)) == 3
    assert ids == sorted(ids)


def test_a_channel_without_history_gives_no_ids(local_bus, listen, settings):
    settings.REALTIME = {**settings.REALTIME, "CHANNELS": {"typing-*": {"history": 0}}}
    typing = listen("typing-7")

    ids = realtime.publish_many([("typing-7", "a"), ("news", "b"), ("typing-7", "c")])

    assert [message_id is None for message_id in ids] == [True, False, True]
    assert [typing.next().stamp for _ in range(2)] == [None, None]


@database
def test_a_message_that_waits_has_no_id_yet(news):
    with transaction.atomic():
        assert realtime.publish("news", "waits") is None
        assert realtime.publish("news", "does not wait", immediately=True) == news.next().stamp.cursor

    assert news.next().stamp is not None


@database
def test_what_waits_keeps_its_order_with_and_without_history(local_bus, listen, settings):
    settings.REALTIME = {**settings.REALTIME, "CHANNELS": {"live": {"history": 0}}}
    both = listen("kept", "live")

    with transaction.atomic():
        for number in range(20):
            realtime.publish("live" if number % 3 else "kept", str(number))

    assert both.texts(20) == [str(number) for number in range(20)]


def test_the_prefix_is_put_before_names(local_bus, listen, settings):
    settings.REALTIME = {**settings.REALTIME, "PREFIX": "site:"}
    news = listen("news")

    realtime.publish("news", "a")

    assert news.next().channel == "site:news"


def test_many_messages_keep_their_order(local_bus, listen):
    both = listen("a", "b")

    realtime.publish_many([("a", "1"), ("b", "2", "named"), ("a", "3", None)])

    received = [both.next() for _ in range(3)]
    assert [(m.channel, m.data, m.event) for m in received] == [
        ("a", b"1", None),
        ("b", b"2", "named"),
        ("a", b"3", None),
    ]


def test_many_may_be_none():
    assert realtime.publish_many([]) == []


def test_async_code_publishes(news):
    run_async(realtime.apublish, "news", "from a coroutine", event="x")

    assert news.next().data == b"from a coroutine"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("news", object()), TypeError, "data must be str, bytes, or what Django's JSON encoder takes"),
        (("news", {1, 2}), TypeError, "data must be str, bytes"),
        (("news", float("nan")), ValueError, "not JSON compliant"),
        (("news", "\ud800"), ValueError, "surrogates not allowed"),
        (("", "x"), realtime.ChannelNameError, "a channel's name is empty"),
        (("rt:hubs", "x"), realtime.ChannelNameError, "reserved"),
        (("news", (1024 * 1024 + 1) * "x"), realtime.TooLarge, "1048577 bytes, and REALTIME allows 1048576"),
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        realtime.publish(*arguments)


@pytest.mark.parametrize("event", ["a\nb", "a\rb", 201 * "x"])
def test_an_event_s_name_is_one_short_line(event):
    with pytest.raises(ValueError, match="an event's name"):
        realtime.publish("news", "x", event=event)


@database
def test_what_cannot_be_sent_is_refused_within_a_transaction_too():
    with transaction.atomic(), pytest.raises(TypeError):
        realtime.publish("news", object())


def test_an_unreachable_bus_is_an_error(bus_directory):
    with pytest.raises(realtime.BusUnavailable):
        realtime.publish("news", "x")


def test_a_silent_bus_is_an_error_in_time(settings, redis_server):
    settings.REALTIME = {"BUS": redis_server.url, "BUS_TIMEOUT": 0.2}
    redis_server.pause()

    with pytest.raises(realtime.BusUnavailable):
        realtime.publish("news", "x")
    redis_server.resume()


@database
def test_a_message_waits_for_the_commit(news):
    with transaction.atomic():
        realtime.publish("news", "in the transaction")
        realtime.publish("news", "at once", immediately=True)

    assert news.texts(2) == ["at once", "in the transaction"]


@database
def test_a_rollback_drops_messages(news):
    with pytest.raises(Undo), transaction.atomic():
        realtime.publish("news", "dropped")
        raise Undo
    realtime.publish("news", "kept")

    assert news.texts(1) == ["kept"]


@database
def test_a_savepoint_s_rollback_drops_its_messages_alone(news):
    with transaction.atomic():
        realtime.publish("news", "1")
        with pytest.raises(Undo), transaction.atomic():
            realtime.publish("news", "dropped")
            with transaction.atomic():
                realtime.publish("news", "dropped too")
            raise Undo
        realtime.publish("news", "2")
        with transaction.atomic():
            realtime.publish("news", "3")
        realtime.publish("news", "4")

    assert news.texts(4) == ["1", "2", "3", "4"]


@database
def test_other_callbacks_keep_their_place_between_messages(news):
    with transaction.atomic():
        realtime.publish("news", "1")
        realtime.publish("news", "2")
        transaction.on_commit(lambda: realtime.publish("news", "callback"))
        realtime.publish("news", "3")

    assert news.texts(4) == ["1", "2", "callback", "3"]


@database
def test_messages_of_one_transaction_travel_in_one_round_trip(settings, redis_server, listen):
    # redis-py connects, and so reads and writes more, at the first message only; and it writes 6 KB at a time.
    settings.REALTIME = {"BUS": redis_server.unix_url}
    news = listen("news")
    realtime.publish("news", "first")
    with redis_server.client() as client:
        before = client.info("stats")["total_reads_processed"]
        with transaction.atomic():
            for number in range(10):
                realtime.publish("news", str(number))
        reads = client.info("stats")["total_reads_processed"] - before

    assert news.texts(11) == ["first", *map(str, range(10))]
    assert reads == 2  # the messages, and the second INFO


@database
def test_a_failure_after_the_commit_is_logged_and_counted(bus_directory, caplog):
    lost = lost_after_commit()
    committed = []

    with transaction.atomic():
        realtime.publish_many([("news", "a"), ("news", "b")])
        transaction.on_commit(lambda: committed.append(True))

    assert committed == [True]
    assert lost_after_commit() == lost + 2
    [record] = [record for record in caplog.records if record.name.startswith("django_realtime")]
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "2 messages were lost after their transaction's commit"


@database
def test_immediately_fails_within_a_transaction(bus_directory):
    with transaction.atomic(), pytest.raises(realtime.BusUnavailable):
        realtime.publish("news", "x", immediately=True)


@pytest.mark.django_db
def test_commit_callbacks_can_be_captured_in_a_test_case(news, django_capture_on_commit_callbacks):
    realtime.publish("news", "never committed")

    with django_capture_on_commit_callbacks(execute=True) as first:
        realtime.publish("news", "1")
        realtime.publish("news", "2")
    with django_capture_on_commit_callbacks(execute=True):
        realtime.publish("news", "3")

    assert len(first) == 2
    assert news.texts(3) == ["1", "2", "3"]


def test_publishing_needs_no_database(news, bus_directory):
    code = f"""
import django
from django.conf import settings
settings.configure(REALTIME={{"BUS": "local:{bus_directory}"}}, INSTALLED_APPS=["django_realtime"])
django.setup()
import django_realtime
django_realtime.publish("news", "without a database")
"""

    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)

    assert news.texts(1) == ["without a database"]


def test_a_bus_has_one_publisher_until_settings_change(settings, bus_directory):
    first = publisher(conf.bus)
    assert publisher(conf.bus) is first

    settings.REALTIME = {**settings.REALTIME, "BUS_TIMEOUT": 1.0}

    assert publisher(conf.bus) is not first
