from __future__ import annotations

import hashlib
import uuid
from types import SimpleNamespace

import pytest
from django.db import transaction

import django_realtime as realtime
from django_realtime.conf import conf
from gunicorn_realtime.bus.client import Received, Subscribed, Subscription
from gunicorn_realtime.bus.control import Disconnect, decode
from tests.django_realtime.conftest import TIMEOUT

database = pytest.mark.django_db(transaction=True)


class Undo(Exception):
    """Leaves an atomic block with a rollback."""


@pytest.fixture
def hub(local_bus):
    """What hubs are told: hub() returns the next."""
    bus = conf.bus
    subscription = Subscription(bus, TIMEOUT)
    subscription.connect()
    subscription.subscribe([bus.hubs_channel])
    assert isinstance(subscription.read(TIMEOUT), Subscribed)

    def next_control() -> Disconnect:
        received = subscription.read(TIMEOUT)
        assert isinstance(received, Received), received
        return decode(received.payload)

    yield next_control
    subscription.close()


UUID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.mark.parametrize(
    ("user", "label"),
    [
        (7, "user:7"),
        ("7", "user:7"),
        (UUID, f"user:{UUID}"),
        (SimpleNamespace(pk=7), "user:7"),
        (SimpleNamespace(pk=UUID), f"user:{UUID}"),
    ],
    ids=repr,
)
def test_user_is_named_by_the_primary_key(hub, user, label):
    realtime.disconnect(user=user)

    assert hub() == Disconnect((label,), None, 4401)


def test_session_s_key_is_not_sent(hub):
    realtime.disconnect(session="secret")

    assert hub().labels == (f"session:{hashlib.sha256(b'secret').hexdigest()[:32]}",)


def test_all_that_is_given_must_match(hub):
    realtime.disconnect(user=7, session="a", channel="news", code=4000)

    control = hub()
    assert len(control.labels) == 2
    assert (control.channel, control.code) == ("news", 4000)


@pytest.fixture
def prefix(settings):
    settings.REALTIME = {**settings.REALTIME, "PREFIX": "site:"}


def test_channel_is_named_as_the_bus_knows_it(prefix, hub):
    realtime.disconnect(channel="news")

    assert hub() == Disconnect((), "site:news", 4401)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "say whose connections are to end: user, session or channel"),
        ({"user": None, "code": 4000}, "say whose connections are to end"),
        ({"user": SimpleNamespace(pk=None)}, "has no primary key: it was never saved, or is deleted by now"),
        ({"user": 7, "code": 1005}, "a close frame must not have the code 1005"),
        ({"user": 7, "code": 42}, "a close frame must not have the code 42"),
        ({"channel": "rt:hubs"}, "names that begin with 'rt:' are reserved"),
        ({"channel": ""}, "a channel's name is empty"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        realtime.disconnect(**arguments)


@database
def test_disconnect_waits_for_the_commit(hub):
    with transaction.atomic():
        realtime.disconnect(user=1)
        with transaction.atomic():
            realtime.disconnect(user=2)

    assert [hub().labels, hub().labels] == [("user:1",), ("user:2",)]


@database
def test_disconnect_is_dropped_by_a_rollback(hub):
    with pytest.raises(Undo), transaction.atomic():
        realtime.disconnect(user=1)
        raise Undo
    with transaction.atomic():
        with pytest.raises(Undo), transaction.atomic():
            realtime.disconnect(user=2)
            raise Undo
        realtime.disconnect(user=3)

    assert hub().labels == ("user:3",)


def test_disconnect_without_a_bus_fails_at_once():
    with pytest.raises(realtime.BusUnavailable):
        realtime.disconnect(user=1)


@database
def test_disconnect_that_fails_after_the_commit_is_logged(caplog):
    with transaction.atomic():
        realtime.disconnect(user=1)

    assert "BusUnavailable" in caplog.text
