from __future__ import annotations

from contextlib import closing
from dataclasses import astuple
from io import StringIO
from types import SimpleNamespace

import pytest
from django.contrib.auth import SESSION_KEY
from django.core.management import CommandError, call_command
from django.urls import path

import django_realtime as realtime
from django_realtime.conf import conf
from gunicorn_realtime.bus.client import Publisher
from gunicorn_realtime.bus.presence import Presence
from gunicorn_realtime.plumbing.offload import Offload
from tests.django_realtime.conftest import TIMEOUT, Server, names
from tests.django_realtime.test_websocket_view import HANDSHAKE

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

LONG = 3600.0  # seconds


def nickname(request, **kwargs):
    return request.GET.get("name")


def number(request):
    return 7


def room_of(request):
    return request.GET.getlist("room")


def logged_in(get_response):
    """A middleware in place of Django's: the query says who it is."""

    def middleware(request):
        name = request.GET.get("user")
        request.user = SimpleNamespace(pk=int(name) if name else None, is_authenticated=bool(name))
        if name:
            request.session[SESSION_KEY] = name
        return get_response(request)

    return middleware


class Room(realtime.WebSocketView):
    presence = "room-{room}"


class NamedRoom(Room):
    def member(self):
        return nickname(self.request)


urlpatterns = [
    path("rooms/<int:room>", realtime.sse("news", presence="room-{room}")),
    path("ws/rooms/<int:room>", realtime.websocket("news", presence="room-{room}")),
    path("named/<int:room>", realtime.sse("room-{room}", presence="room-{room}", member=nickname)),
    path("ws/named", realtime.websocket(publish="room", presence="room", member=nickname)),
    path("function", realtime.sse("news", presence=room_of, member=nickname)),
    path("name/<str:name>", realtime.sse("news", presence="{name}", member=lambda request, name: "ada")),
    path("number", realtime.sse("news", presence="room", member=number)),
    path("handled/rooms/<int:room>", Room.as_view()),
    path("handled/named/<int:room>", NamedRoom.as_view()),
    path("nobody", realtime.sse("news")),
]


@pytest.fixture
def with_users(settings):
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.logged_in"]


@pytest.fixture
def connect(hub_server: Server):
    """Open a stream or a WebSocket, which must not be refused."""

    def offload(path: str) -> Offload:
        assert hub_server.get(path, **HANDSHAKE).status_code in (101, 200)
        return hub_server.offloaded[-1]

    return offload


def test_connection_counts_in_the_channel_with_its_rules(connect, settings):
    settings.REALTIME = {"PREFIX": "site:", "CHANNELS": {"room-*": {"history": 7, "ttl": 60}}}

    offload = connect("/named/7?name=ada")

    assert astuple(offload.presence) == ("site:room-7", "ada", 7, 60.0)
    assert names(offload) == ["site:room-7"]


def test_method_says_who_a_handler_s_client_is(connect):
    assert connect("/handled/named/7?name=ada").presence == Presence("room-7", "ada")
    assert connect("/handled/named/7").presence is None


def test_connection_may_count_in_a_channel_that_it_does_not_follow(connect):
    offload = connect("/ws/named?name=ada")

    assert offload.presence == Presence("room", "ada")
    assert offload.channels == ()


@pytest.mark.parametrize("path", ["/rooms/7", "/ws/rooms/7", "/handled/rooms/7"])
def test_member_is_who_is_logged_in_if_nothing_else_is_said(connect, with_users, path):
    offload = connect(f"{path}?user=42")

    assert offload.presence == Presence("room-7", "42")
    assert "user:42" in offload.labels


@pytest.mark.parametrize("path", ["/rooms/7", "/ws/rooms/7", "/handled/rooms/7"])
def test_who_is_not_logged_in_connects_and_does_not_count(connect, with_users, path):
    assert connect(path).presence is None


def test_without_users_nobody_is_logged_in(connect):
    assert connect("/rooms/7").presence is None


def test_function_may_count_nobody(connect):
    assert connect("/named/7").presence is None


def test_view_without_presence_counts_nobody(connect, with_users):
    assert connect("/nobody?user=42").presence is None


def test_function_names_the_channel(connect):
    assert connect("/function?name=ada&room=a").presence == Presence("a", "ada")
    assert connect("/function?name=ada").presence is None


def test_name_that_no_channel_can_have_is_not_found(hub_server):
    response = hub_server.get("/name/rt:clock")

    assert response.status_code == 404
    assert not hub_server.offloaded


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/function?name=ada&room=a&room=b", ValueError, "`presence` names one channel, not 2"),
        ("/number", TypeError, "a member's name is a str or None, not 7"),
        ("/named/7?name=", ValueError, "a member's name is empty"),
        (f"/named/7?name={'x' * 201}", ValueError, "has 201 bytes, more than 200"),
        ("/named/7?name=a%0Ab", ValueError, "has control characters"),
    ],
)
def test_function_s_mistake_is_an_error_that_says_which(hub_server, settings, path, error, message):
    settings.DEBUG_PROPAGATE_EXCEPTIONS = True

    with pytest.raises(error, match=message):
        hub_server.get(path)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"presence": ""}, realtime.ChannelNameError, "a channel's name is empty"),
        ({"presence": "rt:hubs"}, realtime.ChannelNameError, "are reserved"),
        ({"presence": ["a"]}, TypeError, "give one or more channel names"),
        ({"member": nickname}, TypeError, "`member` says who is there, and `presence` where: give both"),
    ],
)
@pytest.mark.parametrize("factory", [realtime.sse, realtime.websocket])
def test_what_cannot_be_meant_is_refused(factory, arguments, error, message):
    with pytest.raises(error, match=message):
        factory("news", **arguments)


def test_handlers_cannot_count_in_what_is_no_channel():
    with pytest.raises(realtime.ChannelNameError, match="are reserved"):
        Room.as_view(presence="rt:hubs")


# Who is there.


@pytest.fixture
def enter(local_bus):
    """Do what a hub does with the connections of members."""
    with closing(Publisher(conf.bus, TIMEOUT)) as publisher:

        def enter(channel: str, *members: str) -> None:
            name = conf.channel(channel).name
            publisher.enter("hub", [Presence(name, member) for member in members], LONG)

        yield enter


@pytest.fixture
def prefix(settings):
    settings.REALTIME = {**settings.REALTIME, "PREFIX": "site:"}


def test_members_are_told_sorted_and_each_once(prefix, enter):
    enter("room", "eve", "ada", "bob")
    enter("room", "ada")

    assert realtime.presence("room") == ["ada", "bob", "eve"]
    assert realtime.presence("other") == []


def test_presence_of_no_channel_is_refused():
    with pytest.raises(realtime.ChannelNameError):
        realtime.presence("rt:clock")


def test_presence_without_a_bus_fails():
    with pytest.raises(realtime.BusUnavailable):
        realtime.presence("room")


def test_development_server_counts_nobody(client, local_bus):
    response = client.get("/named/7?name=ada")
    next(iter(response))

    assert realtime.presence("room-7") == []
    response.close()


def rt_presence(channel: str) -> str:
    out = StringIO()
    call_command("rt_presence", channel, stdout=out)
    return out.getvalue()


def test_command_prints_a_member_a_line(enter):
    enter("room", "größe", "ada")

    assert rt_presence("room") == "ada\ngröße\n"
    assert rt_presence("other") == ""


@pytest.mark.parametrize(("channel", "message"), [("rt:clock", "are reserved"), ("room", "is unavailable")])
def test_command_says_what_is_wrong(channel, message):
    with pytest.raises(CommandError, match=message):
        rt_presence(channel)
