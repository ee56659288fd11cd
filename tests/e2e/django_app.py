"""A Django site in one file whose views use the database before they offload, for load tests.

Environment: DATABASE (path of an SQLite file) and BUS.
"""

from __future__ import annotations

import os
import threading
import time

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
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
    REALTIME={"BUS": os.environ["BUS"]},
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this test only",
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
    realtime.publish("news", request.GET["data"])
    return HttpResponse("published")


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
    path("plain_stream", plain_stream),
]
application = WSGIHandler()
