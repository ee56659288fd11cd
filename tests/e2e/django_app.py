"""A Django site in one file whose views use the database or the session before they offload.

Environment: DATABASE (path of an SQLite file) and BUS.
"""

from __future__ import annotations

import os
import threading
import time
import uuid

import django
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["DATABASE"],
            "CONN_MAX_AGE": None,  # one for each thread, kept
        }
    },
    INSTALLED_APPS=["django_realtime"],
    MIDDLEWARE=["django.contrib.sessions.middleware.SessionMiddleware"],
    REALTIME={"BUS": os.environ["BUS"]},
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this test only",
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
)
django.setup()

import django_realtime as realtime  # noqa: E402


def query() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def channels(request):
    query()
    return "news"


released = threading.Event()


def gated_channels(request):
    """Hold the view's thread until somebody requests `/release`."""
    released.wait()
    return "news"


def release(request):
    released.set()
    return HttpResponse("released")


def page(request):
    query()
    return HttpResponse("pong")


def burn(request):
    """Use a core for as long as the client asks for, in seconds."""
    until = time.monotonic() + float(request.GET["seconds"])
    while time.monotonic() < until:
        sum(range(1000))
    return HttpResponse("done")


def publish(request):
    realtime.publish(request.GET.get("channel", "news"), request.GET["data"])
    return HttpResponse("published")


def login(request):
    request.session[SESSION_KEY] = request.GET["user"]
    request.session["id"] = uuid.uuid4().hex  # or two sessions of a user could be the same cookie
    return HttpResponse("logged in")


def own_channels(request):
    return ["news", f"user-{request.session[SESSION_KEY]}"]


def name(request):
    return f"{request.session[SESSION_KEY]}: "


def disconnect(request):
    """End the connections of a user, or of whoever asks."""
    if user := request.GET.get("user"):
        realtime.disconnect(user=user)
    else:
        realtime.disconnect(session=request.session.session_key, code=4000)
    return HttpResponse("disconnected")


def echo(request):
    text = request.GET["text"].encode()
    return HttpResponse(text, headers={"Content-Length": len(text)})


class Echo(realtime.WebSocketView):
    def receive(self, data):
        self.send(data)


def nickname(request):
    """Believe who the client says it is; one that does not say only watches."""
    return request.GET.get("name")


def members(request):
    return JsonResponse(realtime.presence("room"), safe=False)


def plain_stream(request):
    """What a site does without us: one greenlet or thread for each client."""
    import redis

    def stream():
        pubsub = redis.Redis.from_url(os.environ["BUS"]).pubsub()
        pubsub.subscribe("news")
        for message in pubsub.listen():
            if message["type"] == "message":
                yield b"data: " + message["data"] + b"\n\n"
            else:
                yield b":\n"

    return StreamingHttpResponse(stream(), content_type="text/event-stream")


urlpatterns = [
    path("", page),
    path("events", realtime.sse(channels)),
    path("gated", realtime.sse(gated_channels)),
    path("release", release),
    path("burn", burn),
    path("publish", publish),
    path("login", login),
    path("own/events", realtime.sse(own_channels)),
    path("own/websocket", realtime.websocket(own_channels, publish="news", prefix=name)),
    path("disconnect", disconnect),
    path("echo", echo),
    path("echo/websocket", Echo.as_view()),
    path("room/events", realtime.sse("room", presence="room", member=nickname)),
    path("room/websocket", realtime.websocket(presence="room", member=nickname)),
    path("room/members", members),
    path("plain_stream", plain_stream),
]
application = WSGIHandler()
