"""`realtime.socketio` and `SocketIOView` as far as Django sees them."""

from __future__ import annotations

import json
import logging

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.http import Http404, HttpResponseRedirect
from django.urls import path

import django_realtime as realtime
from django_realtime.conf import conf
from django_realtime.socketio_state import MAX_ACKS
from django_realtime.socketio_view import method_name
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.bus.message import Emission, Outgoing
from gunicorn_realtime.plumbing.events import (
    ENVIRON_KEY,
    Accept,
    Close,
    Dismiss,
    Event,
    EventKind,
    Outcome,
    Publish,
    Refuse,
    Send,
    Subscribe,
    Unsubscribe,
    decode_effects,
    encode_effects,
)
from tests.django_realtime.conftest import names
from tests.django_realtime.test_engineio_view import POLLING, SESSION, refusal
from tests.django_realtime.test_members import with_users

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

__all__ = ["with_users"]  # a fixture


class Chat(realtime.SocketIOView):
    recovery = 120
    on_number = 5  # no method

    def connect(self, auth):
        match auth:
            case {"token": "wrong"}:
                raise realtime.ConnectionRefused("wrong token", {"retry": False})
            case {"token": "none"}:
                raise realtime.ConnectionRefused("no token")
            case {"token": "counted"}:
                realtime.emit("counted")
                raise realtime.ConnectionRefused("counted")
            case {"token": "denied"}:
                raise PermissionDenied
            case {"token": "unknown"}:
                raise Http404
            case {"token": "false"}:
                return False
        self.emit("welcome", auth, self.sid, self.recovered)
        self.enter("lobby")
        self.state["seen"] = 0
        return None

    def on_message(self, text):
        self.state["seen"] += 1
        self.emit("message", text, room="lobby", skip=self.sid)
        return text.upper()

    def on_echo(self, *args):
        self.emit("echo", *args)
        return args

    def on_quiet(self):
        pass

    def on_two_words(self, number=0):
        return [number]

    def on_targets(self):
        self.emit("direct", 1, to="other")
        self.emit("rooms", 2, room=["a", "b"], skip_rooms="c")
        self.emit("user", 3, user=7)
        self.emit("all", 4, everyone=True, volatile=True)
        self.emit("volatile", 5, volatile=True)

    def on_leave(self):
        self.leave("lobby")
        self.dismiss()
        self.close()

    def on_ask(self, count=1):
        for _ in range(count):
            self.emit("question", "?", ack="answered")

    def answered(self, *answers):
        self.state["answers"] = [str(answer) for answer in answers]

    def on_fail(self):
        raise RuntimeError("it fails")

    def disconnect(self, reason):
        self.emit("left", reason, room="lobby")
        self.emit("too late")
        self.enter("lobby")


class Admin(realtime.SocketIOView):
    def receive(self, event, *args):
        return {"event": event, "args": list(args)}


class Plain(realtime.SocketIOView):
    presence = "here"

    def member(self):
        return "me"


class Members(realtime.SocketIOView):
    """As with a mixin such as Django's LoginRequiredMixin."""

    def dispatch(self, request, *args, **kwargs):
        match request.GET.get("who"):
            case "anonymous":
                return HttpResponseRedirect("/login")
            case "stranger":
                raise PermissionDenied
        return super().dispatch(request, *args, **kwargs)


urlpatterns = [
    path("chat/", realtime.socketio(Chat)),
    path("both/<room>/", realtime.socketio({"/": Chat, "/admin": Admin}, timeout=5, ping_interval=1)),
    path("plain/", Plain.as_view(lifetime=60, connect_timeout=1.0, recovery=0.0)),
    path("members/", realtime.socketio({"/": Members, "/chat": Chat})),
    path("bridge/<room>/", realtime.socketio(subscribe="room-{room}", publish=["in", "all"], recovery=60)),
    path("listen/", realtime.socketio(subscribe=["a", "b"], presence="a", member=lambda request: "me")),
]


def call(server, kind, data=b"", *, path="/chat/", state="{}", attachments=(), **details):
    """Let the application handle an event of a client whose socket is "s1"; return the event."""
    details = {
        "type": kind,
        "namespace": "/",
        "socket": "s1",
        "id": None,
        "sizes": [len(data), *map(len, attachments)],
        "recovered": False,
        "reason": "",
        **details,
    }
    event_kind = EventKind.CLOSED if kind == "disconnect" else EventKind.RECEIVED
    event = Event(event_kind, b"".join((data, *attachments)), state=state, details=details)
    server.get(f"{path}?{POLLING}", **{ENVIRON_KEY: event})
    return event


def effects(event: Event) -> list:
    assert event.answer is not None
    assert event.answer.outcome == Outcome.DONE
    crossed = json.loads(json.dumps(encode_effects(event.answer.effects)))
    assert tuple(decode_effects(crossed)) == event.answer.effects  # so they reach the hub as they are
    return list(event.answer.effects)


def channel(name: str) -> Channel:
    return conf.channel(f"socketio:{name}")


# Requests for a connection.


def test_handshake_is_offloaded_with_its_namespaces(hub_server):
    response = hub_server.get(f"/both/lobby/?{POLLING}")

    assert response.status_code == 200
    [offload] = hub_server.offloaded
    assert (offload.engine, names(offload)) == ("socketio", [])
    assert offload.options == {
        "revision": 4,
        "prefix": "",
        "ping_interval": 1,
        "ping_timeout": 20.0,
        "max_payload": 1_000_000,
        "transports": ["polling", "websocket"],
        "direct": True,
        "connect_timeout": 45.0,
        "recovery": 120,
        "namespaces": ["/", "/admin"],
    }
    assert offload.particulars == {"transport": "polling", "b64": False}
    assert offload.events.kinds == ("received", "closed")
    assert (offload.events.timeout, offload.events.state) == (5, "{}")


def test_one_class_is_the_main_namespace(hub_server):
    for url in ("/chat/", "/plain/"):
        hub_server.get(f"{url}?{POLLING}")

    chat, plain = hub_server.offloaded
    assert chat.options["namespaces"] == plain.options["namespaces"] == ["/"]
    assert (plain.options["connect_timeout"], plain.options["recovery"]) == (1.0, 0.0)
    assert (plain.presence.channel, plain.presence.member) == ("here", "me")
    assert plain.expires is not None


def test_user_of_the_handshake_is_known(hub_server, with_users):
    hub_server.get(f"/chat/?{POLLING}&user=42")

    assert "user:42" in hub_server.offloaded[0].labels


def test_session_goes_on_and_errors_are_those_of_engineio(hub_server):
    assert hub_server.get(f"/chat/?{POLLING}&sid={SESSION}").status_code == 200
    assert hub_server.offloaded[0].session == SESSION
    assert refusal(hub_server.get(f"/chat/?{POLLING}&sid=x")) == (400, 1, "Session ID unknown")
    assert hub_server.get("/chat/", "OPTIONS").status_code == 204


def test_bridge_is_offloaded_with_its_channels(hub_server):
    hub_server.get(f"/bridge/lobby/?{POLLING}")
    hub_server.get(f"/listen/?{POLLING}")

    bridge, listening = hub_server.offloaded
    assert (bridge.engine, bridge.events, bridge.channels) == ("socketio", None, ())
    assert [Channel(*fields).name for fields in bridge.particulars["subscribe"]] == ["room-lobby"]
    assert [Channel(*fields).name for fields in bridge.particulars["publish"]] == ["in", "all"]
    assert (bridge.options["namespaces"], bridge.options["recovery"]) == (["/"], 60)
    assert [Channel(*fields).name for fields in listening.particulars["subscribe"]] == ["a", "b"]
    assert listening.particulars["publish"] == []
    assert (listening.presence.channel, listening.presence.member) == ("a", "me")


# Connecting to a namespace.


def test_client_that_connects_is_accepted_before_all_else(hub_server):
    event = call(hub_server, "connect", b'{"token":"right"}')

    accept, sent, entered = effects(event)
    assert accept == Accept("/", (channel("/"), channel("/!s1")))
    assert sent == Send(b'2["welcome",{"token":"right"},"s1",false]')
    assert entered == Subscribe(channel("/#lobby"))
    assert json.loads(event.answer.state) == {"/": {"state": {"seen": 0}}}


def test_client_without_auth_has_an_empty_one(hub_server):
    assert effects(call(hub_server, "connect"))[1] == Send(b'2["welcome",{},"s1",false]')
    assert effects(call(hub_server, "connect", recovered=True))[1] == Send(b'2["welcome",{},"s1",true]')


def test_user_has_a_channel_of_all_sockets(hub_server, with_users):
    event = call(hub_server, "connect", path="/both/x/", namespace="/admin")
    assert effects(event) == [Accept("/admin", (channel("/admin"), channel("/admin!s1")))]

    details = {"type": "connect", "namespace": "/", "socket": "s1", "recovered": False}
    event = Event(EventKind.RECEIVED, details=details)
    hub_server.get(f"/plain/?{POLLING}&user=42", **{ENVIRON_KEY: event})
    assert effects(event) == [Accept("/", (channel("/"), channel("/!s1"), channel("/@42")))]


@pytest.mark.parametrize(
    ("token", "error"),
    [
        ("wrong", '{"message":"wrong token","data":{"retry":false}}'),
        ("none", '{"message":"no token"}'),
        ("denied", '{"message":"Forbidden"}'),
        ("unknown", '{"message":"Not found"}'),
    ],
)
def test_client_is_refused_by_an_exception(hub_server, token, error):
    event = call(hub_server, "connect", json.dumps({"token": token}).encode())

    assert effects(event) == [Refuse("/", error)]
    assert event.answer.state == "{}"


def test_connect_that_returns_something_fails(hub_server, caplog):
    assert call(hub_server, "connect", b'{"token":"false"}').answer is None
    assert "connect() returned False; who may not connect is refused by an exception" in caplog.text


@pytest.mark.parametrize("who", ["anonymous", "stranger"])
def test_what_stands_before_a_handler_refuses_its_namespace(hub_server, who):
    details = {"type": "connect", "namespace": "/", "socket": "s1", "recovered": False}
    event = Event(EventKind.RECEIVED, details=details)
    hub_server.get(f"/members/?{POLLING}&who={who}", **{ENVIRON_KEY: event})
    assert effects(event) == [Refuse("/", '{"message":"Forbidden"}')]

    late = Event(EventKind.RECEIVED, b'["x"]', details={**details, "type": "event", "sizes": [5], "id": None})
    hub_server.get(f"/members/?{POLLING}&who={who}", **{ENVIRON_KEY: late})
    assert late.answer is None


def test_what_stands_before_the_first_handler_sees_the_handshake(hub_server):
    assert hub_server.get(f"/members/?{POLLING}&who=anonymous").status_code == 302
    assert refusal(hub_server.get(f"/members/?{POLLING}&who=stranger")) == (403, 4, "Forbidden")
    assert hub_server.get("/members/?who=anonymous", "OPTIONS").status_code == 204
    assert not hub_server.offloaded
    assert hub_server.get(f"/members/?{POLLING}").status_code == 200


def test_namespace_that_is_not_served_any_more_is_not_answered(hub_server):
    assert call(hub_server, "event", b'["message","x"]', namespace="/gone").answer is None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_atomic", [True, False])
def test_refusal_rolls_a_request_of_its_own_transaction_back(
    hub_server, local_bus, listen, monkeypatch, is_atomic
):
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", is_atomic)
    listener = listen("socketio:/")

    event = call(hub_server, "connect", b'{"token":"counted"}')
    realtime.emit("marker")

    assert effects(event) == [Refuse("/", '{"message":"counted"}')]
    assert listener.next().event == ("marker" if is_atomic else "counted")


# Events.

SEEN = '{"/":{"state":{"seen":1}},"/admin":{"state":{"a":1}}}'


def test_event_calls_its_method_and_is_acknowledged(hub_server):
    event = call(hub_server, "event", b'["message","hi"]', state=SEEN, id=7)

    published, sent = effects(event)
    emission = Emission((6,), ("s1",))
    assert published == Publish(Outgoing(channel("/#lobby"), b'["hi"]', "message", emission=emission))
    assert sent == Send(b'37["HI"]')
    assert json.loads(event.answer.state) == {"/": {"state": {"seen": 2}}, "/admin": {"state": {"a": 1}}}


def test_event_that_asks_for_no_acknowledgement_gets_none(hub_server):
    assert effects(call(hub_server, "event", b'["two words",3]')) == []


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b'["quiet"]', b"37[]"),
        (b'["echo",1,"2"]', b'37[1,"2"]'),
        (b'["echo"]', b"37[]"),
        (b'["two words"]', b"37[[0]]"),
        (b'["two-words",5]', b"37[[5]]"),
    ],
)
def test_acknowledgement_has_what_the_method_returns(hub_server, data, answer):
    assert effects(call(hub_server, "event", data, id=7))[-1] == Send(answer)


def test_bytes_stay_bytes(hub_server):
    event = call(
        hub_server,
        "event",
        b'["echo",{"_placeholder":true,"num":0},{"x":{"_placeholder":true,"num":1}}]',
        attachments=[b"\x00one", b"\xfftwo"],
        id=7,
    )

    assert effects(event) == [
        Send(b'52-["echo",{"_placeholder":true,"num":0},{"x":{"_placeholder":true,"num":1}}]'),
        Send(b"\x00one", True),
        Send(b"\xfftwo", True),
        Send(b'62-7[{"_placeholder":true,"num":0},{"x":{"_placeholder":true,"num":1}}]'),
        Send(b"\x00one", True),
        Send(b"\xfftwo", True),
    ]


def test_text_that_has_no_utf8_comes_back_as_it_was(hub_server):
    data = rb'["echo","\ud800"]'

    assert effects(call(hub_server, "event", data)) == [Send(b"2" + data)]


def test_event_of_another_namespace_goes_to_its_handler(hub_server):
    event = call(hub_server, "event", b'["x",1]', path="/both/room/", namespace="/admin", id=0)

    assert effects(event) == [Send(b'3/admin,0[{"event":"x","args":[1]}]')]


def test_event_may_have_a_number_for_a_name(hub_server):
    event = call(hub_server, "event", b"[42,1]", path="/both/room/", namespace="/admin", id=0)

    assert effects(event) == [Send(b'3/admin,0[{"event":"42","args":[1]}]')]


@pytest.mark.parametrize("name", ["nothing", "number"])
def test_event_without_a_method_is_logged(hub_server, caplog, name):
    caplog.set_level(logging.INFO, "django_realtime")

    assert effects(call(hub_server, "event", json.dumps([name, 1]).encode())) == []
    assert f"Chat has no method for the event '{name}'" in caplog.text


def test_arguments_that_the_method_does_not_take_are_logged(hub_server, caplog):
    event = call(hub_server, "event", b'["message",1,2,3]', state=SEEN, id=7)

    assert effects(event) == []
    [record] = [record for record in caplog.records if record.name.startswith("django_realtime")]
    assert record.getMessage() == (
        "Chat.on_message does not take what a client sent: too many positional arguments"
    )
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)


def test_method_that_fails_has_no_answer(hub_server, caplog):
    assert call(hub_server, "event", b'["fail"]').answer is None
    assert "it fails" in caplog.text


def test_event_goes_where_it_is_emitted_to(hub_server):
    def published(name, number, event, *, volatile=False, skip_channels=()):
        kept = Channel(f"socketio:{name}", 0, 300.0) if volatile else channel(name)
        emission = Emission((3,), (), skip_channels, volatile)
        return Publish(Outgoing(kept, b"[%d]" % number, event, emission=emission))

    assert effects(call(hub_server, "event", b'["targets"]')) == [
        published("/!other", 1, "direct"),
        published("/#a", 2, "rooms", skip_channels=("socketio:/#c",)),
        published("/#b", 2, "rooms", skip_channels=("socketio:/#c", "socketio:/#a")),
        published("/@7", 3, "user"),
        published("/", 4, "all", volatile=True),
        published("/!s1", 5, "volatile", volatile=True),
    ]


def test_client_leaves_room_namespace_and_connection(hub_server):
    assert effects(call(hub_server, "event", b'["leave"]')) == [
        Unsubscribe("socketio:/#lobby"),
        Dismiss("/"),
        Close(1000),
    ]


def test_end_is_handled_and_its_state_forgotten(hub_server):
    event = call(hub_server, "disconnect", reason="transport close", state=SEEN)

    [published] = effects(event)
    assert published.message.data == b'["transport close"]'
    assert json.loads(event.answer.state) == {"/admin": {"state": {"a": 1}}}


# Acknowledgements of the client.


def test_answer_of_the_client_calls_the_method_that_waits(hub_server):
    asked = call(hub_server, "event", b'["ask"]', state=SEEN)
    assert effects(asked) == [Send(b'20["question","?"]')]

    answered = call(hub_server, "ack", b'["yes",1]', state=asked.answer.state, id=0)
    state = json.loads(answered.answer.state)["/"]
    assert state["state"] == {"seen": 1, "answers": ["yes", "1"]}
    assert "acks" not in state

    again = call(hub_server, "ack", b'["no"]', state=answered.answer.state, id=0)
    assert again.answer.state == answered.answer.state
    asked_again = call(hub_server, "event", b'["ask"]', state=again.answer.state)
    assert effects(asked_again) == [Send(b'21["question","?"]')]


def test_answer_may_have_bytes(hub_server):
    asked = call(hub_server, "event", b'["ask"]')
    data = b'[{"_placeholder":true,"num":0}]'

    answered = call(hub_server, "ack", data, state=asked.answer.state, attachments=[b"x"], id=0)

    assert json.loads(answered.answer.state)["/"]["state"] == {"answers": ["b'x'"]}


def test_answers_that_are_waited_for_longest_are_forgotten(hub_server):
    event = call(hub_server, "event", b'["ask",%d]' % (MAX_ACKS + 1))

    waiting = json.loads(event.answer.state)["/"]["acks"]
    assert len(waiting) == MAX_ACKS
    assert "0" not in waiting
    assert str(MAX_ACKS) in waiting


# What is refused.


@pytest.fixture
def view():
    view = Chat()
    view.setup(None)
    return view


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ack": "nowhere"}, ValueError, "ack='nowhere' is no method of Chat"),
        ({"ack": "answered", "room": "a"}, TypeError, "only the client whose event is handled"),
        ({"ack": "answered", "everyone": True}, TypeError, "only the client whose event is handled"),
        ({"everyone": True, "room": "a"}, TypeError, "to everyone, or to one of to, room and user"),
        ({"to": "a", "user": 1}, TypeError, "to one of to and user"),
        ({"skip": "a"}, TypeError, "skip and skip_rooms need everyone=True, a room or a user"),
        ({"room": ""}, realtime.ChannelNameError, "a room's name is empty"),
    ],
)
def test_emit_with_wrong_options_is_refused(view, options, error, message):
    with pytest.raises(error, match=message):
        view.emit("message", **options)


def test_wrong_event_and_room_and_state_are_refused(view):
    with pytest.raises(ValueError, match="the event 'connect' is reserved"):
        view.emit("connect")
    with pytest.raises(TypeError, match="arguments must be bytes"):
        view.emit("message", object())
    with pytest.raises(realtime.ChannelNameError):
        view.enter("two\nlines")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ([{"admin": Chat}], ValueError, "must begin with"),
        ([{}], TypeError, "at least one namespace"),
        ([Chat, "x"], TypeError, "positional"),
    ],
)
def test_wrong_namespaces_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        realtime.socketio(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"subscribe": "a"}, TypeError, "handlers have methods for what subscribe"),
        ({"recover": 1}, TypeError, "Chat has no attribute 'recover'"),
        ({"timeout": 0}, ValueError, "timeout=0 must be more than 0 seconds"),
        ({"connect_timeout": 0}, ValueError, "connect_timeout=0 must be more than 0 seconds"),
        ({"recovery": -1}, ValueError, "recovery=-1 must be 0 seconds or more"),
        ({"presence": "rt:x"}, realtime.ChannelNameError, "reserved"),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        realtime.socketio(Chat, **options)


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ("message", "on_message"),
        ("message-with ack", "on_message_with_ack"),
        ("größe", "on_größe"),
        ("42", "on_42"),
        ("__class__", "on___class__"),
        ("", "on_"),
        ("x" * 300, "on_" + "x" * 200),
    ],
)
def test_method_is_named_after_the_event(event, name):
    assert method_name(event) == name
