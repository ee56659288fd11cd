from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

import django_realtime as realtime
import testproject.receivers  # noqa: F401 - so that the fixture does not take it for a test's own
from django_realtime import receivers

# Connections that earlier tests have opened are looked at before each call.
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_other_receivers(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(receivers, "_registrations", [])
    yield


def rt_consume(*arguments: str, **options) -> str:
    out = StringIO()
    call_command("rt_consume", *arguments, stdout=out, **options)
    return out.getvalue()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def receive(local_bus) -> Callable[..., list[str]]:
    """Note what comes on a channel, and send SIGTERM while "last" is handled."""

    def register(channel: str, **options) -> list[str]:
        handled: list[str] = []

        @realtime.receiver(channel, **options)
        def note(message: realtime.ReceivedMessage) -> None:
            if message.text == "last":
                terminate()
            handled.append(message.text)

        return handled

    return register


def test_what_is_published_is_handled_until_sigterm_which_waits_for_the_handler(receive):
    handled = receive("news")
    assert rt_consume("--once") == "Consuming news as default, once.\n"
    for text in ("1", "last", "2"):
        realtime.publish("news", text)

    assert rt_consume() == "Consuming news as default. Ctrl-C ends it.\n"
    assert handled == ["1", "last"]
    rt_consume("--once")
    assert handled == ["1", "last", "2"]


def test_channels_that_are_named_are_handled_by_their_own_process(receive):
    news, sports = receive("news"), receive("sports")
    rt_consume("--once", "news", name="news")
    rt_consume("--once", "sports", name="sports")
    realtime.publish("news", "1")
    realtime.publish("sports", "2")

    rt_consume("--once", "sports", "--name", "sports")
    assert (news, sports) == ([], ["2"])
    rt_consume("--once", "news", "--name", "news")
    assert (news, sports) == (["1"], ["2"])


def test_receiver_may_publish(receive, listen):
    handled = receive("out")

    @realtime.receiver("in")
    def invert(message):
        realtime.publish("out", message.text[::-1])

    rt_consume("--once")
    realtime.publish("in", "tsal")

    rt_consume()

    assert handled == ["last"]


def test_receiver_that_fails_is_logged_and_stops_nothing(receive, caplog):
    handled = receive("news")

    @realtime.receiver("news", retries=0)
    def fail(message):
        raise RuntimeError("never")

    rt_consume("--once")
    realtime.publish("news", "1")
    realtime.publish("news", "2")
    rt_consume("--once")

    assert handled == ["1", "2"]
    assert caplog.text.count("RuntimeError: never") == 2


def test_handlers_of_signals_are_those_of_before(receive):
    receive("news")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    rt_consume("--once")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_quiet(receive):
    receive("news")
    assert rt_consume("--once", verbosity=0) == ""


def test_site_without_receivers_is_told_how_to_have_some(local_bus):
    with pytest.raises(CommandError, match=r'^There are no receivers: .*the module "receivers"'):
        rt_consume()


def test_channel_that_has_no_receiver_is_told(receive):
    receive("news")
    receive("sports")
    with pytest.raises(CommandError, match=r"^No receiver of nwes: there are some of news, sports\.$"):
        rt_consume("news", "nwes")


@pytest.mark.parametrize("name", ["", "a b", "a:b", 101 * "x", "ä"])
def test_name_that_cannot_be_is_refused(receive, name):
    receive("news")
    with pytest.raises(CommandError, match="1 to 100 letters"):
        rt_consume("--once", "--name", name)


def test_once_without_a_bus_fails(bus_directory):
    realtime.receiver("news")(print)
    with pytest.raises(CommandError, match=rf"^the bus at local:{bus_directory} is unavailable"):
        rt_consume("--once")
