from __future__ import annotations

import hashlib
import time
from importlib import import_module

import pytest
from django.contrib.auth import SESSION_KEY
from django.core.exceptions import ImproperlyConfigured
from django.test import RequestFactory
from django.urls import path

import django_realtime as realtime
from django_realtime.conf import conf
from django_realtime.opening import MAX_RECEIVED_SIZE
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.plumbing.handover import channel_from
from gunicorn_realtime.plumbing.offload import Offload
from tests.django_realtime.conftest import Server, names

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]

# The request of RFC 6455, section 1.2, on our host.
HANDSHAKE = {
    "SERVER_PROTOCOL": "HTTP/1.1",
    "HTTP_HOST": "127.0.0.1",
    "HTTP_CONNECTION": "keep-alive, Upgrade",
    "HTTP_UPGRADE": "websocket",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
}
DEFLATE = {"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate; server_max_window_bits=10"}


def room_of(request, room):
    return f"room-{room}"


def use_session(request):
    request.session.get("room")
    return "news"


def half_an_hour(request):
    return 1800.0


urlpatterns = [
    path("echo", realtime.websocket("echo", publish="echo")),
    path("listen", realtime.websocket(["a", "b"])),
    path("send", realtime.websocket(publish=["a", "b"])),
    path("none", realtime.websocket(lambda request: None, publish=lambda request: [])),
    path(
        "room/<int:room>",
        realtime.websocket(
            "room-{room}", publish="moderation-{room}", prefix="{{{room}}} ", suffix=" ({room})"
        ),
    ),
    path(
        "function/<room>",
        realtime.websocket(
            room_of,
            publish=room_of,
            prefix=lambda request, room: f"{request.GET['name']}@{room}: ",
            suffix=lambda request, room: "!",
        ),
    ),
    path("name/<str:name>", realtime.websocket(publish="{name}")),
    path("options", realtime.websocket("a", envelope="json", max_size=10, compress=False, lifetime=60)),
    path("half-hour", realtime.websocket("a", lifetime=half_an_hour)),
    path("chat", realtime.websocket("a", subprotocols=["chat.v2", "chat.v1"])),
    path("one-subprotocol", realtime.websocket("a", subprotocols="chat.v2")),
    path(
        "partner", realtime.websocket("a", origins=["https://partner.example", "https://*.friends.example"])
    ),
    path("one-origin", realtime.websocket("a", origins="https://*.friends.example")),
    path("public", realtime.websocket("a", origins=["*"])),
    path("session", realtime.websocket(use_session)),
    path("session-sse", realtime.sse(use_session)),
]


def open_websocket(server: Server, path: str, **changed: str | None):
    fields = {name: value for name, value in (HANDSHAKE | changed).items() if value is not None}
    return server.get(path, **fields)


@pytest.fixture
def connect(hub_server):
    """Open a WebSocket, which must not be refused."""

    def connect(path: str, **changed: str | None) -> Offload:
        response = open_websocket(hub_server, path, **changed)
        assert response.status_code == 101, response.content
        return hub_server.offloaded.pop()

    return connect


def published(offload: Offload) -> list[str]:
    return [channel_from(fields).name for fields in offload.particulars["publish"]]


# The handshake.


def test_handshake_is_answered_and_the_connection_offloaded(hub_server, settings):
    settings.REALTIME = {"BUS": "redis://x", "PREFIX": "site:", "HEARTBEAT": 10}

    response = open_websocket(hub_server, "/echo")

    assert response.status_code == 101
    assert response.headers["Upgrade"] == "websocket"
    assert response.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    for absent in ("Connection", "Content-Type", "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"):
        assert absent not in response.headers
    options = {
        "envelope": None,
        "prefix": "site:",
        "heartbeat": 10.0,
        "max_size": MAX_RECEIVED_SIZE,
        "deflate": None,
    }
    channel = Channel("site:echo", 100, 300.0, SlowClient.RESUME)
    particulars = {"publish": [("site:echo", 100, 300.0, "resume")], "prefix": "", "suffix": ""}
    assert hub_server.offloaded == [Offload("websocket", (channel,), conf.bus, options, None, particulars)]


@pytest.mark.parametrize(
    ("changed", "status", "text"),
    [
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, 400, "opened over HTTP/1.1 or higher, not over HTTP/1.0"),
        ({"HTTP_UPGRADE": None}, 400, "the request has no 'Upgrade: websocket'"),
        ({"HTTP_CONNECTION": "keep-alive"}, 400, "the request has no 'Connection: Upgrade'"),
        ({"HTTP_SEC_WEBSOCKET_KEY": "short"}, 400, "Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, 426, "Sec-WebSocket-Version is '8', not 13"),
        ({"HTTP_SEC_WEBSOCKET_PROTOCOL": "a b"}, 400, "Sec-WebSocket-Protocol is not a list of tokens"),
    ],
)
def test_wrong_handshake_is_told_what_is_wrong(hub_server, changed, status, text):
    response = open_websocket(hub_server, "/echo", **changed)

    assert response.status_code == status
    assert response.text.startswith("This is a WebSocket: ")
    assert text in response.text
    assert ("Sec-WebSocket-Version" in response.headers) == (status == 426)
    assert not hub_server.offloaded


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "OPTIONS"])
def test_other_methods_are_not_allowed(hub_server, method):
    response = hub_server.get("/echo", method, **HANDSHAKE)

    assert (response.status_code, response["Allow"]) == (405, "GET")


@pytest.mark.parametrize("server_software", ["gunicorn/27.0", "WSGIServer/0.2"])
def test_server_without_a_hub_is_told_what_to_run(other_server, server_software):
    response = open_websocket(other_server, "/echo", SERVER_SOFTWARE=server_software)

    assert response.status_code == 501
    assert "gunicorn -k gunicorn_realtime.Worker" in response.text


@pytest.mark.parametrize(
    ("path", "offered", "chosen"),
    [
        ("/chat", "chat.v1, chat.v2", "chat.v1"),
        ("/chat", "chat.v3, chat.v2", "chat.v2"),
        ("/chat", "chat.v3", None),
        ("/chat", "chat", None),
        ("/chat", None, None),
        ("/one-subprotocol", "chat", None),
        ("/one-subprotocol", "chat, chat.v2", "chat.v2"),
        ("/echo", "chat.v1", None),
    ],
)
def test_subprotocol_is_the_one_that_the_client_likes_best_of_ours(hub_server, path, offered, chosen):
    response = open_websocket(hub_server, path, HTTP_SEC_WEBSOCKET_PROTOCOL=offered)

    assert response.status_code == 101
    assert response.headers.get("Sec-WebSocket-Protocol") == chosen


def test_compression_is_agreed_on_where_the_view_wants_it(hub_server):
    response = open_websocket(hub_server, "/echo", **DEFLATE)
    refused = open_websocket(hub_server, "/options", **DEFLATE)

    assert response.headers["Sec-WebSocket-Extensions"] == (
        "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10"
    )
    assert "Sec-WebSocket-Extensions" not in refused.headers
    assert [offload.options["deflate"] for offload in hub_server.offloaded] == [[10], None]


# Pages of other sites.

OWN = "http://127.0.0.1"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),  # no browser
        (OWN, 101),
        ("https://127.0.0.1", 403),
        ("http://127.0.0.1:8000", 403),
        ("http://localhost", 403),
        ("null", 403),
        ("", 403),
        ("*", 403),
        ("http://[", 403),
        ("https://trusted.example", 101),
        ("http://trusted.example", 403),
        ("https://trusted.example:8443", 403),
        ("https://trusted.example.attacker.example", 403),
        ("https://a.wild.example", 101),
        ("https://a.b.wild.example", 101),
        ("https://wild.example", 101),  # as Django has it
        ("https://notwild.example", 403),
        ("http://a.wild.example", 403),
        ("https://a.wild.example:444", 403),
        ("https://realtime.example", 101),
        ("https://partner.example", 403),  # another view's
    ],
)
def test_page_of_another_site_may_not_connect_unless_it_is_trusted(hub_server, settings, origin, status):
    settings.CSRF_TRUSTED_ORIGINS = ["https://trusted.example", "https://*.wild.example"]
    settings.REALTIME = {"ORIGINS": ["https://realtime.example"]}

    response = open_websocket(hub_server, "/echo", HTTP_ORIGIN=origin)

    assert response.status_code == status
    assert bool(hub_server.offloaded) == (status == 101)
    if status == 403:
        assert response.text == "Pages of this origin may not open the WebSocket.\n"


def test_site_behind_a_proxy_with_tls_knows_its_own_pages(hub_server, settings):
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    settings.USE_X_FORWARDED_HOST = True
    settings.ALLOWED_HOSTS = ["site.example"]
    proxied = {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_HOST": "site.example"}

    for origin, status in [("https://site.example", 101), ("http://site.example", 403), (OWN, 403)]:
        assert open_websocket(hub_server, "/echo", HTTP_ORIGIN=origin, **proxied).status_code == status


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [
        ("/partner", "https://partner.example", 101),
        ("/partner", "https://a.friends.example", 101),
        ("/partner", "https://attacker.example", 403),
        ("/one-origin", "https://a.friends.example", 101),
        ("/one-origin", "https://attacker.example", 403),
        ("/public", "https://attacker.example", 101),
        ("/public", "null", 101),
    ],
)
def test_view_may_trust_more_sites(hub_server, path, origin, status):
    assert open_websocket(hub_server, path, HTTP_ORIGIN=origin).status_code == status


def test_setting_that_is_no_list_does_not_let_everybody_in(hub_server, settings):
    settings.REALTIME = {"ORIGINS": "https://*.example"}

    for origin, status in [("https://a.example", 101), ("https://attacker.test", 403)]:
        assert open_websocket(hub_server, "/echo", HTTP_ORIGIN=origin).status_code == status


# Channels and texts.


def test_client_may_only_listen_only_send_or_neither(connect):
    listens, sends, neither = (connect(path) for path in ("/listen", "/send", "/none"))

    assert (names(listens), published(listens)) == (["a", "b"], [])
    assert (names(sends), published(sends)) == ([], ["a", "b"])
    assert (names(neither), published(neither)) == ([], [])


def test_templates_are_filled_with_the_url_s_arguments(connect):
    offload = connect("/room/7")

    assert (names(offload), published(offload)) == (["room-7"], ["moderation-7"])
    assert (offload.particulars["prefix"], offload.particulars["suffix"]) == ("{7} ", " (7)")


def test_functions_know_the_request(connect):
    offload = connect("/function/blue?name=Ann{room}")

    assert (names(offload), published(offload)) == (["room-blue"], ["room-blue"])
    assert (offload.particulars["prefix"], offload.particulars["suffix"]) == ("Ann{room}@blue: ", "!")


def test_channels_that_are_sent_to_have_the_site_s_rules(connect, settings):
    settings.REALTIME = {"CHANNELS": {"b": {"history": 0}}}

    histories = [channel_from(fields).history for fields in connect("/send").particulars["publish"]]

    assert histories == [100, 0]


def test_name_that_no_channel_can_have_is_not_found(hub_server):
    assert open_websocket(hub_server, "/name/rt:hubs").status_code == 404
    assert not hub_server.offloaded


@pytest.mark.parametrize("query", ["since=e-7", "last_event_id=e-7"])
def test_client_says_where_it_has_stopped(connect, query):
    assert connect(f"/listen?{query}").cursor == "e-7"


def test_options_are_handed_over(connect):
    options = connect("/options", **DEFLATE).options

    assert (options["envelope"], options["max_size"], options["deflate"]) == ("json", 10, None)


@pytest.mark.parametrize(("path", "lifetime"), [("/options", 60.0), ("/half-hour", 1800.0)])
def test_lifetime_is_handed_over_as_the_time_when_it_ends(connect, path, lifetime):
    before = time.time()

    expires = connect(path).expires

    assert before + lifetime <= expires <= time.time() + lifetime


def test_sse_may_have_a_lifetime_too(hub_server):
    view = realtime.sse("a", lifetime=half_an_hour)

    offload = view(RequestFactory().get("/")).offload

    assert offload.expires == pytest.approx(time.time() + 1800, abs=60)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"subscribe": "rt:hubs"}, realtime.ChannelNameError, "names that begin with 'rt:' are reserved"),
        ({"publish": ["a", "b-{}"]}, realtime.ChannelNameError, "'' can't be the name of a URL argument"),
        ({"prefix": "{"}, ValueError, "Single '{' encountered"),
        ({"suffix": "{0}"}, ValueError, "'0' can't be the name of a URL argument"),
        ({"envelope": "xml"}, ValueError, "envelope='xml' is neither None nor \"json\""),
    ],
)
def test_what_can_t_be_right_fails_when_the_urlconf_is_read(arguments, error, message):
    with pytest.raises(error) as caught:
        realtime.websocket(**arguments)

    assert message in str(caught.value)


def test_prefix_must_find_its_arguments_in_the_url():
    view = realtime.websocket("a", prefix="{user}")
    request = RequestFactory().get("/", **HANDSHAKE)
    request.META["gunicorn_realtime.offload"] = None

    with pytest.raises(ImproperlyConfigured, match=r"needs 'user' of the URL, which has \[\]"):
        view(request)


def test_view_is_named_after_what_it_follows():
    view = realtime.websocket(["a", "room-{n}"], publish="b")

    assert view.__name__ == "websocket(a, room-{n})"
    assert view.__doc__ == "WebSocket of a, room-{n}."
    assert realtime.websocket(room_of).__name__ == "websocket(room_of)"


# Whose it is.


@pytest.fixture
def sessions(settings):
    """Sessions are on, and make one: sessions(user key or None) returns its key."""
    settings.MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.cache"

    def make(user: str | None) -> str:
        session = import_module(settings.SESSION_ENGINE).SessionStore()
        if user is not None:
            session[SESSION_KEY] = user
        session["room"] = "blue"
        session.save()
        return session.session_key

    return make


@pytest.mark.parametrize("path", ["/session", "/session-sse"])
def test_labels_say_user_and_session_and_the_session_s_key_goes_nowhere(hub_server, sessions, path):
    key = sessions("7")

    open_websocket(hub_server, path, HTTP_COOKIE=f"sessionid={key}")

    [offload] = hub_server.offloaded
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    assert offload.labels == ("user:7", f"session:{digest}")
    assert key not in repr(offload)


def test_visitor_who_is_not_logged_in_has_a_session_alone(connect, sessions):
    [label] = connect("/session", HTTP_COOKIE=f"sessionid={sessions(None)}").labels

    assert label.startswith("session:")


def test_session_that_nothing_has_used_is_not_used_for_the_labels(hub_server, sessions):
    response = open_websocket(hub_server, "/echo", HTTP_COOKIE=f"sessionid={sessions('7')}")

    assert hub_server.offloaded[0].labels == ()
    assert "Vary" not in response.headers


def test_visitor_without_a_session_and_site_without_sessions_have_no_labels(connect, sessions, settings):
    assert connect("/session").labels == ()
    assert connect("/session", HTTP_COOKIE="sessionid=unknown").labels == ()
    settings.MIDDLEWARE = []
    assert connect("/echo").labels == ()
