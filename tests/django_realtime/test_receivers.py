from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from django.db import connection, transaction

import django_realtime as realtime
from django_realtime import receivers
from django_realtime.receivers import received_channels
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.message import Message, Stamp

# Connections that earlier tests have opened are looked at before each call.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_other_receivers(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(receivers, "_registrations", [])
    yield


def receive(message: Message) -> None:
    """Give a message to the receivers of its channel, as a consumer does."""
    for receiver in receivers.receivers(received_channels()):
        if receiver.channel.name == message.channel:
            receiver.handle(message)


def test_receiver_is_registered_for_each_of_its_channels_and_stays_a_function():
    got = []

    @realtime.receiver("news", "sports")
    def note(message):
        got.append((message.channel, message.text))

    receive(Message("news", b"1"))
    receive(Message("sports", b"2"))
    receive(Message("weather", b"3"))
    note(realtime.ReceivedMessage("called", b"directly", None, None, is_binary=False))

    assert received_channels() == ["news", "sports"]
    assert got == [("news", "1"), ("sports", "2"), ("called", "directly")]


def test_channel_has_the_prefix_and_the_rules_of_the_settings(settings):
    settings.REALTIME = {"PREFIX": "site:", "CHANNELS": {"news": {"history": 7, "ttl": 9}}}
    got = []
    realtime.receiver("news", retries=math.inf)(got.append)

    [receiver] = receivers.receivers(["news"])
    receiver.handle(Message("site:news", b"hello"))

    assert (receiver.channel, receiver.retries) == (Channel("site:news", 7, 9.0), math.inf)
    assert [message.channel for message in got] == ["news"]


def test_message_has_what_was_published():
    got = []
    realtime.receiver("news")(got.append)

    receive(Message("news", b'{"a": 1}', "edited", Stamp("abc123", 17, 16)))
    receive(Message("news", b"\xff", is_binary=True))

    json, binary = got
    assert json == realtime.ReceivedMessage("news", b'{"a": 1}', "edited", "abc123-17", is_binary=False)
    assert (json.text, json.json()) == ('{"a": 1}', {"a": 1})
    assert (binary.id, binary.event, binary.text, binary.is_binary) == (None, None, "�", True)
    with pytest.raises(ValueError, match="can't decode"):
        binary.json()


def test_hook_is_called_with_the_channel_s_name(settings):
    settings.REALTIME = {"PREFIX": "site:"}
    got = []

    @realtime.receiver("news", on_reset=lambda *reset: got.append(reset))
    def ignore(message):
        pass

    [receiver] = receivers.receivers(["news"])
    assert receiver.on_reset
    receiver.on_reset("site:news", "expired")

    assert got == [("news", "expired")]


@pytest.mark.parametrize("name", ["", "rt:hubs", "a\nb", 201 * "x"])
def test_channel_that_cannot_be_is_refused_at_import(name):
    with pytest.raises(realtime.ChannelNameError):
        realtime.receiver("news", name)


@pytest.mark.parametrize("arguments", [(), (7,), (print,)])
def test_receiver_of_no_channel_is_refused(arguments):
    with pytest.raises(TypeError, match="give one or more channel names"):
        realtime.receiver(*arguments)


def test_coroutine_function_is_refused():
    with pytest.raises(TypeError, match=r"wait is a coroutine function: a receiver is a plain one"):

        @realtime.receiver("news")
        async def wait(message):
            pass


def test_receiver_runs_in_no_transaction_and_without_the_queries_of_the_one_before(settings):
    settings.DEBUG = True  # so that queries are noted
    seen = []

    @realtime.receiver("news")
    def query(message):
        seen.append((transaction.get_autocommit(), len(connection.queries)))
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    receive(Message("news", b"1"))
    receive(Message("news", b"2"))

    assert seen == [(True, 0), (True, 0)]
