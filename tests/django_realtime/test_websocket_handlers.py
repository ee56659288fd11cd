"""`realtime.WebSocketView` as far as Django sees it: what it asks of the hub, and what it answers to events."""

from __future__ import annotations

import json

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse
from django.urls import path

import django_realtime as realtime
from django_realtime.handler_view import encode_state
from django_realtime.signals import connected, disconnected
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.plumbing.events import (
    ENVIRON_KEY,
    Answer,
    Close,
    Event,
    EventKind,
    Outcome,
    Send,
    Subscribe,
    Unsubscribe,
    decode_effects,
)
from tests.django_realtime.conftest import names
from tests.django_realtime.test_websocket_view import HANDSHAKE

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

KEPT = {"history": 100, "ttl": 300.0}  # as the settings have it


class View(realtime.WebSocketView):
    envelope = "json"
    lifetime = 60
    timeout = 5

    def connect(self):
        match self.kwargs["room"]:
            case "forbidden":
                raise PermissionDenied
            case "answered":
                return HttpResponse("no", status=418)
        self.subscribe("all")
        self.subscribe("left")
        self.unsubscribe("left")
        self.subscribe(f"room-{self.kwargs['room']}")
        self.subscribe("since", since="e-7")
        self.send("welcome")
        self.state["room"] = self.kwargs["room"]
        return None

    def receive(self, data):
        if data == "fail":
            raise RuntimeError("it fails")
        self.send(data)
        self.send({"state": self.state})
        self.subscribe("more")
        self.unsubscribe("all")
        self.close(4000, "done")
        self.state["seen"] = self.state.get("seen", 0) + 1

    def disconnect(self, code):
        self.state["code"] = code


class Silent(realtime.WebSocketView):
    pass


def room_page(request):
    return HttpResponse("a page like any other")


urlpatterns = [
    path("ws/<room>", View.as_view()),
    path("silent", Silent.as_view(envelope="json", max_size=10, compress=False)),
    path("page", room_page),
    path("events", realtime.sse("news")),
    path("told", realtime.sse("news", signals=True)),
]


def handle(server, path: str, event: Event) -> HttpResponse:
    return server.get(path, **{ENVIRON_KEY: event})


def test_handshake_is_offloaded_with_what_connect_wanted(hub_server):
    response = hub_server.get("/ws/lobby?since=e-9", **HANDSHAKE)

    assert response.status_code == 101
    [offload] = hub_server.offloaded
    assert offload.engine == "websocket"
    assert names(offload) == ["all", "room-lobby"]
    assert decode_effects(offload.particulars["effects"]) == [
        Subscribe(Channel("since", **KEPT), "e-7"),
        Send(b"welcome"),
    ]
    assert offload.cursor == "e-9"
    assert offload.options["envelope"] == "json"
    assert offload.expires is not None
    assert offload.events.kinds == ("received", "closed")
    assert offload.events.timeout == 5
    assert json.loads(offload.events.state) == {"room": "lobby"}


def test_handler_may_do_nothing(hub_server, settings):
    settings.REALTIME = {**settings.REALTIME, "EVENT_TIMEOUT": 7}
    assert hub_server.get("/silent", **HANDSHAKE).status_code == 101

    [offload] = hub_server.offloaded
    assert offload.particulars["effects"] == []
    assert (offload.events.timeout, offload.events.state) == (7, "{}")
    assert offload.options["max_size"] == 10
    for kind in EventKind:
        event = Event(kind, b"hello")
        assert handle(hub_server, "/silent", event).status_code == 204
        assert event.answer == Answer(Outcome.DONE, (), "{}")


@pytest.mark.parametrize(("room", "status"), [("forbidden", 403), ("answered", 418)])
def test_connect_refuses_by_an_answer(hub_server, room, status):
    assert hub_server.get(f"/ws/{room}", **HANDSHAKE).status_code == status
    assert not hub_server.offloaded


def test_page_of_another_site_is_refused_before_connect(hub_server):
    origin = {"HTTP_ORIGIN": "https://elsewhere.example"}

    assert hub_server.get("/ws/lobby", **HANDSHAKE, **origin).status_code == 403


def test_request_that_is_no_handshake_is_answered_as_the_rfc_says(hub_server):
    old = {**HANDSHAKE, "HTTP_SEC_WEBSOCKET_VERSION": "8"}
    assert hub_server.get("/ws/lobby").status_code == 400
    assert hub_server.get("/ws/lobby", **old).status_code == 426
    assert hub_server.get("/ws/lobby", "POST", **HANDSHAKE).status_code == 405


def test_server_without_a_hub_answers_501(other_server):
    assert other_server.get("/ws/lobby", **HANDSHAKE).status_code == 501


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        (Event(EventKind.RECEIVED, "größe".encode(), state='{"seen":1}'), Send("größe".encode())),
        (Event(EventKind.RECEIVED, b"\xff", True, state='{"seen":1}'), Send(b"\xff", True)),
    ],
)
def test_message_is_handled_and_answered(hub_server, event, sent):
    response = handle(hub_server, "/ws/lobby", event)

    assert response.status_code == 204
    assert event.answer == Answer(
        Outcome.DONE,
        (
            sent,
            Send(b'{"state":{"seen":1}}'),
            Subscribe(Channel("more", **KEPT)),
            Unsubscribe("all"),
            Close(4000, "done"),
        ),
        '{"seen":2}',
    )


def test_end_is_handled(hub_server):
    event = Event(EventKind.CLOSED, code=1006)
    handle(hub_server, "/ws/lobby", event)

    assert event.answer == Answer(Outcome.DONE, (), '{"code":1006}')


def test_handler_that_fails_has_no_answer(hub_server, caplog):
    event = Event(EventKind.RECEIVED, b"fail")

    assert handle(hub_server, "/ws/lobby", event).status_code == 500
    assert event.answer is None
    assert "it fails" in caplog.text


@pytest.mark.parametrize("path", ["/page", "/nowhere"])
def test_view_of_no_handlers_does_not_answer_an_event(hub_server, path):
    event = Event(EventKind.RECEIVED, b"hello")
    handle(hub_server, path, event)

    assert event.answer is None
    assert not hub_server.offloaded


@pytest.mark.parametrize("code", [0, 999, 1005, 1006, 1015, 2999, 5000])
def test_code_that_may_not_be_sent_is_refused(code):
    view = View()
    view.setup(None)

    with pytest.raises(ValueError, match=f"must not have the code {code}"):
        view.close(code)


def test_wrong_channel_and_wrong_state_and_wrong_envelope_are_refused():
    view = View()
    view.setup(None)

    with pytest.raises(realtime.ChannelNameError):
        view.subscribe("rt:hubs")
    with pytest.raises(TypeError, match="must be str, bytes"):
        view.send(object())
    view.state["x"] = object()
    with pytest.raises(TypeError, match=r"self\.state must be JSON-able"):
        encode_state(view.state)
    view.state["x"] = "x" * 20_000
    with pytest.raises(ValueError, match=r"self\.state has 20008 bytes, more than 16384"):
        encode_state(view.state)
    with pytest.raises(ValueError, match="envelope='xml' is neither None nor"):
        View.as_view(envelope="xml")


# Signals.


@pytest.fixture
def signalled():
    """What the signals have said, in order."""
    seen = []

    def note(signal, request, **kwargs):
        seen.append((signal, request.resolver_match.route))
        raise RuntimeError("a receiver that fails changes nothing")

    for signal in (connected, disconnected):
        signal.connect(note)
    yield seen
    for signal in (connected, disconnected):
        signal.disconnect(note)


def test_stream_whose_view_asks_is_told_of_by_signals(hub_server, signalled):
    hub_server.get("/told")
    hub_server.get("/events")
    told, events = hub_server.offloaded
    assert told.events.kinds == ("opened", "closed")
    assert events.events is None

    for kind in told.events.kinds:
        event = Event(EventKind(kind))
        handle(hub_server, "/told", event)
        assert event.answer == Answer(Outcome.DONE)
    assert signalled == [(connected, "told"), (disconnected, "told")]
