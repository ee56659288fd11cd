"""Requests for Engine.IO as far as Django sees them: what is refused, and what the hub is asked for."""

from __future__ import annotations

import json

import pytest
from django.core.exceptions import PermissionDenied
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import path

import django_realtime as realtime
from django_realtime.conf import conf
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
    decode_effects,
)
from gunicorn_realtime.plumbing.sessions import Home
from tests.django_realtime.conftest import names
from tests.django_realtime.test_websocket_view import HANDSHAKE

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

POLLING = "EIO=4&transport=polling"
WEBSOCKET = "EIO=4&transport=websocket"
ORIGIN = "https://friend.example"
CORS = {
    "Access-Control-Allow-Origin": ORIGIN,
    "Access-Control-Allow-Credentials": "true",
    "Vary": "Origin",
}
SESSION = Home("m1", 0, "g1").make_session_id(is_direct=False)


class Echo(realtime.EngineIOView):
    origins = ORIGIN
    presence = "room-{room}"

    def connect(self):
        match self.kwargs["room"]:
            case "forbidden":
                raise PermissionDenied
            case "answered":
                return HttpResponse("no", status=418)
        self.subscribe(f"room-{self.kwargs['room']}")
        self.subscribe("since", since="e-7")
        self.send("welcome")
        self.state["room"] = self.kwargs["room"]
        return None

    def member(self):
        return "me"

    def receive(self, data):
        self.send(data)
        self.close(4000, "done")

    def disconnect(self, code):
        self.state["code"] = code


class Plain(realtime.EngineIOView):
    pass


def to_login(view):
    """As `login_required` does with who is not logged in."""
    return lambda request, **kwargs: HttpResponseRedirect("/login")


urlpatterns = [
    path("engine.io/<room>/", Echo.as_view(timeout=5, lifetime=60)),
    path("plain/", Plain.as_view(ping_interval=1, ping_timeout=2, max_payload=3, direct=False)),
    path("polling/", Plain.as_view(transports="polling")),
    path("public/", Plain.as_view(origins="*")),
    path("private/", to_login(Plain.as_view())),
    path("bridge/<room>/", realtime.engineio("room-{room}", publish=["in-{room}", "all"], lifetime=60)),
]


def refusal(response: HttpResponse) -> tuple[int, int, str]:
    assert response["Content-Type"] == "application/json"
    error = json.loads(response.content)
    return response.status_code, error["code"], error["message"]


def cors_of(response: HttpResponse) -> dict[str, str]:
    return {name: response[name] for name in CORS if name in response.headers}


def test_polling_handshake_is_offloaded_with_what_connect_wanted(hub_server):
    response = hub_server.get(f"/engine.io/lobby/?{POLLING}")

    assert response.status_code == 200
    assert "Content-Type" not in response.headers
    assert response["Cache-Control"] == "no-store"
    [offload] = hub_server.offloaded
    assert offload.engine == "engineio"
    assert names(offload) == ["room-lobby"]
    assert offload.options == {
        "revision": 4,
        "prefix": "",
        "ping_interval": 25.0,
        "ping_timeout": 20.0,
        "max_payload": 1_000_000,
        "transports": ["polling", "websocket"],
        "direct": True,
    }
    effects = decode_effects(offload.particulars["effects"])
    assert effects == [Subscribe(conf.channel("since"), "e-7"), Send(b"welcome")]
    assert (offload.particulars["transport"], offload.particulars["b64"]) == ("polling", False)
    assert offload.events.kinds == ("received", "closed")
    assert (offload.events.timeout, offload.events.state) == (5, '{"room":"lobby"}')
    assert offload.expires is not None
    assert (offload.presence.channel, offload.presence.member) == ("room-lobby", "me")


def test_websocket_handshake_is_offloaded_with_its_headers(hub_server):
    response = hub_server.get(f"/engine.io/lobby/?{WEBSOCKET}", **HANDSHAKE)

    assert response.status_code == 101
    assert response["Upgrade"] == "websocket"
    assert response["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert "Connection" not in response.headers
    assert hub_server.offloaded[0].particulars["transport"] == "websocket"


def test_client_of_revision_3_may_ask_for_base64(hub_server):
    hub_server.get("/plain/?EIO=3&transport=polling&b64=1")

    [offload] = hub_server.offloaded
    options = {"revision": 3, "ping_interval": 1, "ping_timeout": 2, "max_payload": 3, "direct": False}
    assert offload.options.items() >= options.items()
    assert offload.particulars["b64"] is True
    assert offload.presence is None


@pytest.mark.parametrize(
    ("query", "method", "expected"),
    [
        ("EIO=4", "GET", (400, 0, "Transport unknown")),
        ("EIO=4&transport=webtransport&sid=x", "POST", (400, 0, "Transport unknown")),
        (f"{POLLING}&sid=unknown", "GET", (400, 1, "Session ID unknown")),
        (f"{POLLING}&sid=unknown", "POST", (400, 1, "Session ID unknown")),
        (POLLING, "POST", (400, 2, "Bad handshake method")),
        (POLLING, "PUT", (400, 2, "Bad handshake method")),
        (WEBSOCKET, "GET", (400, 3, "Bad request")),
        (f"{WEBSOCKET}&sid={SESSION}", "GET", (400, 3, "Bad request")),
        ("transport=polling", "GET", (400, 5, "Unsupported protocol version")),
        ("EIO=2&transport=polling", "GET", (400, 5, "Unsupported protocol version")),
    ],
)
def test_wrong_request_is_refused_as_by_the_official_server(hub_server, query, method, expected):
    response = hub_server.get(f"/engine.io/lobby/?{query}", method, HTTP_ORIGIN=ORIGIN)

    assert refusal(response) == expected
    assert cors_of(response) == CORS  # so that the page can read why
    assert not hub_server.offloaded


def test_transport_that_the_site_does_not_allow_is_unknown(hub_server):
    assert refusal(hub_server.get(f"/polling/?{WEBSOCKET}", **HANDSHAKE))[1] == 0
    assert hub_server.get(f"/polling/?{POLLING}").status_code == 200


@pytest.mark.parametrize("query", [POLLING, WEBSOCKET])
def test_page_of_another_site_is_forbidden(hub_server, query):
    response = hub_server.get(
        f"/engine.io/lobby/?{query}", **HANDSHAKE, HTTP_ORIGIN="https://elsewhere.example"
    )

    assert refusal(response) == (403, 4, "Forbidden")
    assert cors_of(response) == {}


def test_welcome_page_of_another_site_gets_cors_headers(hub_server):
    response = hub_server.get(f"/engine.io/lobby/?{POLLING}", HTTP_ORIGIN=ORIGIN)
    assert (response.status_code, cors_of(response)) == (200, CORS)

    response = hub_server.get(f"/public/?{POLLING}", HTTP_ORIGIN="https://any.example")
    assert response["Access-Control-Allow-Origin"] == "https://any.example"

    assert cors_of(hub_server.get(f"/engine.io/lobby/?{POLLING}")) == {}


def test_preflight_is_answered(hub_server):
    response = hub_server.get(
        "/engine.io/lobby/", "OPTIONS", HTTP_ORIGIN=ORIGIN, HTTP_ACCESS_CONTROL_REQUEST_HEADERS="x-token"
    )
    assert response.status_code == 204
    assert response["Access-Control-Allow-Origin"] == ORIGIN
    assert response["Access-Control-Allow-Methods"] == "GET, POST"
    assert response["Access-Control-Allow-Headers"] == "x-token"

    elsewhere = hub_server.get("/engine.io/lobby/", "OPTIONS", HTTP_ORIGIN="https://elsewhere.example")
    assert refusal(elsewhere) == (403, 4, "Forbidden")


def test_connect_refuses_by_an_exception_or_an_answer(hub_server):
    assert refusal(hub_server.get(f"/engine.io/forbidden/?{POLLING}")) == (403, 4, "Forbidden")
    assert hub_server.get(f"/engine.io/answered/?{POLLING}").status_code == 418
    assert hub_server.get(f"/private/?{POLLING}").status_code == 302
    assert not hub_server.offloaded


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_request_of_a_session_goes_to_its_hub(hub_server, method):
    response = hub_server.get(
        f"/engine.io/lobby/?{POLLING}&sid={SESSION}", method, CONTENT_LENGTH="5", HTTP_ORIGIN=ORIGIN
    )

    assert (response.status_code, cors_of(response)) == (200, CORS)
    [offload] = hub_server.offloaded
    assert offload.session == SESSION
    assert offload.particulars == {"method": method, "transport": "polling", "length": 5, "is_binary": False}


def test_session_goes_on_by_websocket(hub_server):
    response = hub_server.get(f"/engine.io/lobby/?{WEBSOCKET}&sid={SESSION}", **HANDSHAKE)

    assert response.status_code == 101
    assert response["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert hub_server.offloaded[0].session == SESSION


@pytest.mark.parametrize("query", [POLLING, f"{POLLING}&sid={SESSION}"])
def test_server_without_a_hub_answers_501(other_server, query):
    response = other_server.get(f"/engine.io/lobby/?{query}")

    assert response.status_code == 501
    assert b"gunicorn -k gunicorn_realtime.Worker" in response.content


def test_messages_and_the_end_are_handled(hub_server):
    message = Event(EventKind.RECEIVED, b"\xff", is_binary=True)
    hub_server.get(f"/engine.io/lobby/?{POLLING}", **{ENVIRON_KEY: message})
    assert message.answer == Answer(Outcome.DONE, (Send(b"\xff", True), Close(4000, "done")), "{}")

    end = Event(EventKind.CLOSED, code=1006, state='{"room":"lobby"}')
    hub_server.get(f"/engine.io/lobby/?{POLLING}", **{ENVIRON_KEY: end})
    assert end.answer == Answer(Outcome.DONE, (), '{"room":"lobby","code":1006}')


def test_bridge_follows_and_publishes(hub_server):
    assert hub_server.get(f"/bridge/lobby/?{POLLING}").status_code == 200

    [offload] = hub_server.offloaded
    assert (offload.engine, names(offload), offload.events) == ("engineio", ["room-lobby"], None)
    published = [Channel(*fields).name for fields in offload.particulars["publish"]]
    assert published == ["in-lobby", "all"]
    assert "subscribe" not in offload.particulars
    assert "namespaces" not in offload.options
    assert offload.expires is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transports": ["polling", "carrier pigeon"]}, "must be of polling, websocket"),
        ({"transports": []}, "must be of polling, websocket"),
        ({"ping_interval": 0}, "ping_interval=0 must be more than 0 seconds"),
        ({"ping_timeout": float("inf")}, "ping_timeout=inf must be more than 0 seconds"),
        ({"max_payload": -1}, "max_payload=-1 must be more than 0 bytes"),
    ],
)
def test_wrong_option_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Plain.as_view(**options)
    with pytest.raises(ValueError, match=message):
        realtime.engineio("news", **options)


def test_unknown_option_and_wrong_timeout_are_refused():
    with pytest.raises(TypeError, match="recovery"):
        realtime.engineio("news", recovery=1)
    with pytest.raises(ValueError, match="timeout=0 must be more than 0 seconds"):
        Plain.as_view(timeout=0)
