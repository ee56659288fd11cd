from __future__ import annotations

from http import HTTPStatus

import pytest
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpResponse
from django.test import AsyncClient, RequestFactory
from django.urls import path, reverse

import django_realtime as realtime
from django_realtime.conf import conf
from gunicorn_realtime.bus.channel import Channel, SlowClient
from gunicorn_realtime.plumbing.offload import Offload
from tests.django_realtime.conftest import Server, names, run_async

pytestmark = [pytest.mark.urls(__name__), pytest.mark.django_db]


def two_rooms(request, room):
    return [f"room-{room}", f"room-{room}-{request.GET['side']}", f"room-{room}"]


def page(request):
    return HttpResponse("page " * 100)


urlpatterns = [
    path("news", realtime.sse("lotofnews"), name="news"),
    path("room/<int:room>", realtime.sse("room-{room}", "all-{{rooms}}", raw=True, event="said")),
    path("name/<str:name>", realtime.sse("{name}")),
    path("callable/<room>", realtime.sse(two_rooms)),
    path("one", realtime.sse(lambda request: "one")),
    path("none", realtime.sse(lambda request: None)),
    path("empty", realtime.sse(lambda request: [])),
    path("headers", realtime.sse("news", headers={"X-Site": "1", "Cache-Control": "private"})),
    path("decorated", login_not_required(realtime.sse("news"))),
    path("page", page),
]


def test_stream_is_offloaded_when_the_server_asks_for_the_body(hub_server, settings):
    settings.REALTIME = {"BUS": "redis://x", "PREFIX": "site:", "HEARTBEAT": 10, "RETRY": (2, 4)}

    response = hub_server.get("/news")

    assert response.status_code == 200
    assert response.content == b""
    options = {"raw": False, "event": None, "heartbeat": 10.0, "retry": [2.0, 4.0]}
    channels = (Channel("site:lotofnews", 100, 300.0, SlowClient.RESUME),)
    assert hub_server.offloaded == [Offload("sse", channels, conf.bus, options, cursor=None)]


def test_channels_have_the_site_s_rules(hub_server, settings):
    settings.REALTIME = {"CHANNELS": {"room-*": {"history": 1, "ttl": 60, "slow_client": "latest"}}}

    hub_server.get("/room/7")

    [offload] = hub_server.offloaded
    assert offload.channels == (
        Channel("room-7", 1, 60.0, SlowClient.LATEST),
        Channel("all-{rooms}", 100, 300.0, SlowClient.RESUME),
    )


@pytest.mark.parametrize(
    ("query", "header", "cursor"),
    [
        ("", None, None),
        ("?last_event_id=", "", None),
        ("", "abc123-17", "abc123-17"),
        ("?last_event_id=abc123-17", None, "abc123-17"),
        ("?since=abc123-17", None, "abc123-17"),
        ("?since=s-1&last_event_id=l-1", None, "l-1"),
        ("?since=s-1&last_event_id=l-1", "h-1", "h-1"),
        ("?last_event_id=&since=s-1", None, "s-1"),
        ("", 100 * "x", 100 * "x"),
        ("", 101 * "x", "invalid"),
        ("", "größe".encode().decode("latin-1"), "invalid"),
        ("?since=%C3%BC", None, "invalid"),
        ("?since=%FF", None, "invalid"),
        ("?since=a%0Ab", None, "invalid"),
        ("?since=a%00b", None, "invalid"),
    ],
)
def test_a_client_says_where_it_has_stopped(hub_server, query, header, cursor):
    hub_server.get(f"/news{query}", **({} if header is None else {"HTTP_LAST_EVENT_ID": header}))

    assert hub_server.offloaded[0].cursor == cursor


def test_ids_in_a_raw_stream_are_no_cursors_of_ours(hub_server):
    hub_server.get("/room/7", HTTP_LAST_EVENT_ID="7")

    assert hub_server.offloaded[0].cursor is None


def test_headers_keep_the_stream_from_caches_buffers_and_encodings(hub_server):
    headers = hub_server.get("/news").headers

    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Content-Encoding"] == "identity"
    assert "Vary" not in headers
    assert "Content-Length" not in headers


def test_a_site_adds_headers_of_its_own(hub_server):
    headers = hub_server.get("/headers").headers

    assert headers["X-Site"] == "1"
    assert headers["Cache-Control"] == "private"


def test_names_are_made_of_the_url(hub_server):
    hub_server.get("/room/7")

    [offload] = hub_server.offloaded
    assert names(offload) == ["room-7", "all-{rooms}"]
    assert offload.options["raw"] is True
    assert offload.options["event"] == "said"


def test_braces_in_the_url_are_text(hub_server):
    hub_server.get("/name/{request}")

    assert names(hub_server.offloaded[0]) == ["{request}"]


def test_a_function_names_the_channels_and_each_is_followed_once(hub_server):
    hub_server.get("/callable/7?side=left")

    assert names(hub_server.offloaded[0]) == ["room-7", "room-7-left"]


def test_a_function_may_return_one_name(hub_server):
    hub_server.get("/one")

    assert names(hub_server.offloaded[0]) == ["one"]


@pytest.mark.parametrize("path", ["/none", "/empty"])
def test_no_channel_sends_the_client_away_for_good(hub_server, path):
    response = hub_server.get(path)

    assert response.status_code == 204
    assert response["Cache-Control"] == "no-store"
    assert not hub_server.offloaded


def test_head_answers_the_headers_alone(hub_server):
    response = hub_server.get("/news", "HEAD")

    assert response.status_code == 200
    assert response["Content-Type"] == "text/event-stream"
    assert "Content-Length" not in response.headers
    assert not hub_server.offloaded


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed(hub_server, method):
    response = hub_server.get("/news", method)

    assert response.status_code == HTTPStatus.METHOD_NOT_ALLOWED
    assert response["Allow"] == "GET, HEAD"
    assert not hub_server.offloaded


@pytest.mark.parametrize("name", ["rt:hubs", "a\tb", 201 * "x", 67 * "€"])
def test_a_name_that_no_channel_can_have_is_not_found(hub_server, name):
    response = hub_server.get(f"/name/{name}".encode().decode("latin-1"))

    assert response.status_code == 404
    assert not hub_server.offloaded


def test_a_template_must_find_its_arguments_in_the_url():
    with pytest.raises(ImproperlyConfigured, match=r"needs 'elsewhere' of the URL, which has \['room'\]"):
        realtime.sse("{elsewhere}")(RequestFactory().get("/"), room=7)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "a channel's name is empty"),
        ("rt:hubs", "names that begin with 'rt:' are reserved"),
        ("a\nb", "has control characters"),
        (201 * "x", "has 201 bytes, more than 200"),
        ("room-{", "Single '{' encountered"),
        ("room-}", "Single '}' encountered"),
        ("room-{}", "'' can't be the name of a URL argument"),
        ("room-{0}", "'0' can't be the name of a URL argument"),
        ("room-{room.id}", "'room.id' can't be the name of a URL argument"),
    ],
)
def test_a_wrong_template_fails_when_the_urlconf_is_read(template, message):
    with pytest.raises(realtime.ChannelNameError) as caught:
        realtime.sse(template)

    assert message in str(caught.value)


@pytest.mark.parametrize("channels", [(), (1,), ("a", 1), ("a", two_rooms), (two_rooms, two_rooms)])
def test_channels_are_names_or_one_function(channels):
    with pytest.raises(TypeError, match="one or more channel names, or one function"):
        realtime.sse(*channels)


def test_an_event_name_of_two_lines_is_refused():
    with pytest.raises(ValueError, match="must be one line"):
        realtime.sse("news", event="a\nid: 1")


def test_a_view_has_a_name_and_can_be_reversed_and_decorated(hub_server):
    view = realtime.sse("lotofnews", "room-{n}")

    assert view.__name__ == "sse(lotofnews, room-{n})"
    assert view.__doc__ == "Server-sent events of lotofnews, room-{n}."
    assert realtime.sse(two_rooms).__name__ == "sse(two_rooms)"
    assert reverse("news") == "/news"
    hub_server.get("/decorated")
    assert len(hub_server.offloaded) == 1


def test_another_server_is_told_what_to_run(other_server):
    response = other_server.get("/news")

    assert response.status_code == 501
    assert response["Content-Type"] == "text/plain; charset=utf-8"
    assert response.text == (
        "This server cannot hold long-lived connections. "
        "Run the site with: gunicorn -k gunicorn_realtime.Worker\n"
    )


def test_asgi_is_told_what_to_run():
    response = run_async(AsyncClient().get, "/news")

    assert response.status_code == 501


def replace_response(get_response):
    def middleware(request):
        get_response(request).close()
        return HttpResponse("something else")

    return middleware


def set_cookie(get_response):
    def middleware(request):
        response = get_response(request)
        response.set_cookie("seen", "1")
        return response

    return middleware


def test_a_middleware_that_replaces_the_response_prevents_the_offload(settings):
    settings.MIDDLEWARE = [f"{__name__}.replace_response"]
    server = Server(offloads=True)

    response = server.get("/news")

    assert response.content == b"something else"
    assert not server.offloaded


def test_a_middleware_adds_to_the_response(settings):
    settings.MIDDLEWARE = [f"{__name__}.set_cookie"]
    server = Server(offloads=True)

    response = server.get("/news")

    assert "seen=1" in response["Set-Cookie"]
    assert len(server.offloaded) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_gzip_leaves_streams_alone(settings, method):
    settings.MIDDLEWARE = ["django.middleware.gzip.GZipMiddleware"]

    response = Server(offloads=True).get("/news", method, HTTP_ACCEPT_ENCODING="gzip")
    page = Server(offloads=True).get("/page", HTTP_ACCEPT_ENCODING="gzip")

    assert response["Content-Encoding"] == "identity"
    assert response.content == b""
    assert page["Content-Encoding"] == "gzip"
