"""`realtime.emit`: what goes to the bus, and what can't."""

from __future__ import annotations

import datetime
from types import SimpleNamespace

import pytest
from django.db import transaction

import django_realtime as realtime
from django_realtime.emitting import Target
from gunicorn_realtime.bus.message import Emission
from tests.django_realtime.conftest import run_async


def outgoing(*args, **target):
    return Target("/", **target).outgoing("message", args, (), (), is_volatile=False)


@pytest.mark.parametrize(
    ("target", "channel"),
    [
        ({}, "socketio:/"),
        ({"namespace": "/admin"}, "socketio:/admin"),
        ({"to": "abc"}, "socketio:/!abc"),
        ({"room": "lobby"}, "socketio:/#lobby"),
        ({"user": 7}, "socketio:/@7"),
        ({"user": SimpleNamespace(pk=8), "namespace": "/admin"}, "socketio:/admin@8"),
    ],
)
def test_event_is_published_to_the_channel_of_its_target(local_bus, listen, target, channel):
    listener = listen(channel)

    realtime.emit("message", "größe", {"at": datetime.date(2026, 1, 2)}, **target)

    message = listener.next()
    assert message.event == "message"
    assert message.data.decode() == '["größe",{"at":"2026-01-02"}]'
    assert message.emission == Emission((len(message.data),))


def test_bytes_are_attached_behind_the_json(local_bus, listen):
    listener = listen("socketio:/")

    realtime.emit("file", b"one", {"deep": [bytearray(b"two!")]})

    message = listener.next()
    arguments, attachments = message.emission.split(message.data)
    assert arguments == (b'[{"_placeholder":true,"num":0},{"deep":[{"_placeholder":true,"num":1}]}]')
    assert attachments == (b"one", b"two!")


def test_event_without_arguments_has_an_empty_list(local_bus, listen):
    listener = listen("socketio:/")

    realtime.emit("ping")

    assert listener.next().data == b"[]"


def test_who_is_in_several_rooms_gets_an_event_once(local_bus, listen, settings):
    settings.REALTIME = {**settings.REALTIME, "PREFIX": "site:"}
    listener = listen("socketio:/#a", "socketio:/#b")

    realtime.emit("message", 1, room=["a", "b", "a"], skip="me", skip_rooms=["quiet"])

    first, second = listener.next(), listener.next()
    assert (first.channel, second.channel) == ("site:socketio:/#a", "site:socketio:/#b")
    quiet = "site:socketio:/#quiet"
    assert first.emission == Emission((3,), ("me",), (quiet,))
    assert second.emission == Emission((3,), ("me",), (quiet, "site:socketio:/#a"))


def test_volatile_event_is_not_kept(local_bus, listen):
    listener = listen("socketio:/")

    realtime.emit("kept")
    realtime.emit("volatile", volatile=True)

    kept, volatile = listener.next(), listener.next()
    assert kept.stamp is not None
    assert volatile.stamp is None
    assert volatile.emission.is_volatile


@pytest.mark.django_db(transaction=True)
def test_event_waits_for_the_commit(local_bus, listen):
    listener = listen("socketio:/")

    with transaction.atomic():
        realtime.emit("after")
        realtime.emit("before", immediately=True)

    assert [listener.next().event, listener.next().event] == ["before", "after"]


@pytest.mark.django_db(transaction=True)
def test_event_can_be_emitted_by_a_coroutine(local_bus, listen):
    listener = listen("socketio:/#lobby")

    run_async(realtime.aemit, "message", 1, room="lobby")

    assert listener.next().data == b"[1]"


@pytest.mark.parametrize(
    "event", ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
)
def test_reserved_event_is_refused(event):
    with pytest.raises(ValueError, match=f"the event '{event}' is reserved"):
        realtime.emit(event)


@pytest.mark.parametrize(
    ("event", "error", "message"),
    [
        ("two\nlines", ValueError, "must be one line"),
        ("x" * 201, ValueError, "more than 200 bytes"),
        (7, TypeError, "an event's name must be text, not 7"),
    ],
)
def test_wrong_event_is_refused(event, error, message):
    with pytest.raises(error, match=message):
        realtime.emit(event)


def test_argument_that_json_does_not_take_is_refused():
    with pytest.raises(TypeError, match="arguments must be bytes, or what Django's JSON encoder takes"):
        realtime.emit("message", object())
    with pytest.raises(ValueError, match="JSON compliant"):
        realtime.emit("message", float("nan"))


@pytest.mark.parametrize(
    "namespace", ["", "admin", "/a b", "/a#b", "/a!b", "/a@b", "/a?b", "/a,b", "/a\x00", "/" + "x" * 200]
)
def test_wrong_namespace_is_refused(namespace):
    with pytest.raises(ValueError, match=r"namespace .* must begin with|more than 200"):
        realtime.emit("message", namespace=namespace)


@pytest.mark.parametrize("room", ["", "two\nlines", "x" * 200])
def test_wrong_room_is_refused(room):
    with pytest.raises(realtime.ChannelNameError):
        realtime.emit("message", room=room)


def test_user_without_a_primary_key_is_refused():
    with pytest.raises(ValueError, match="has no primary key"):
        realtime.emit("message", user=SimpleNamespace(pk=None))


def test_event_has_one_kind_of_target():
    with pytest.raises(TypeError, match="to one of to and room"):
        realtime.emit("message", to="abc", room="lobby")


def test_event_above_a_limit_is_refused(settings):
    settings.REALTIME = {**settings.REALTIME, "MAX_MESSAGE_SIZE": 20}

    assert outgoing("x" * 16)
    with pytest.raises(realtime.TooLarge, match="an event of 21 bytes, and REALTIME allows 20"):
        outgoing("x" * 17)
    with pytest.raises(realtime.TooLarge, match="an event of"):
        outgoing(b"x" * 17)


def test_event_has_at_most_ten_attachments():
    assert outgoing(*[b""] * 10)
    with pytest.raises(realtime.TooLarge, match="11 attachments, and clients take 10"):
        outgoing(*[b""] * 11)


def test_at_most_a_hundred_sockets_and_rooms_are_skipped():
    skip = [f"socket-{number}" for number in range(99)]

    with pytest.raises(realtime.TooLarge, match="skips more than 100 sockets and rooms"):
        realtime.emit("message", skip=skip, skip_rooms=["a", "b"])
    with pytest.raises(realtime.TooLarge, match="skips more than 100 sockets and rooms"):
        realtime.emit("message", room=[f"room-{number}" for number in range(102)])
