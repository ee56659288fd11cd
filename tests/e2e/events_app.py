"""A Django site in one file whose WebSockets are handled in Django.

Environment: DATABASE (path of an SQLite file), BUS, and LOG (a directory, in which it notes what it handles).
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import django
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.core.exceptions import PermissionDenied
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, transaction
from django.dispatch import receiver
from django.http import HttpResponse, HttpResponseForbidden
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"]}},
    INSTALLED_APPS=["django_realtime"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "tests.e2e.events_app.only_while_welcome",
    ],
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": {"class": "logging.StreamHandler"}},
        "loggers": {"django.request": {"handlers": ["stderr"]}},
    },
    REALTIME={"BUS": os.environ["BUS"], "EVENT_TIMEOUT": float(os.environ.get("EVENT_TIMEOUT", 30))},
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this test only",
    SESSION_ENGINE="django.contrib.sessions.backends.file",
    SESSION_FILE_PATH=os.environ["LOG"],
)
django.setup()

import django_realtime as realtime  # noqa: E402
from django_realtime.signals import connected, disconnected  # noqa: E402

LOG = Path(os.environ["LOG"])


def note(name: str, **fields) -> None:
    """Append a line to a log that all processes share."""
    with (LOG / name).open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), "thread": threading.get_ident(), **fields}) + "\n")


def only_while_welcome(get_response):
    """Redirect whoever has been logged out, as `login_required` would."""

    def middleware(request):
        if "/private/" in request.path and SESSION_KEY not in request.session:
            return HttpResponse(status=302, headers={"Location": "/login"})
        return get_response(request)

    return middleware


class Room(realtime.WebSocketView):
    """All that a handler can do: the client says what it wants as JSON."""

    envelope = None

    def connect(self):
        room = self.kwargs["room"]
        if room == "forbidden":
            raise PermissionDenied
        if room == "refused":
            return HttpResponseForbidden("no")
        if room == "closed":
            self.send("so long")
            self.close(4403, "closed room")
        self.subscribe(f"room-{room}")
        self.state["count"] = 0
        self.send(f"welcome to {room}")
        return None

    def receive(self, data):
        if isinstance(data, bytes):
            self.send(data[::-1])
            return
        self.state["count"] += 1
        command, _, argument = data.partition(" ")
        getattr(self, f"do_{command}")(argument)

    def disconnect(self, code):
        note("disconnect", room=self.kwargs["room"], code=code, count=self.state.get("count"))

    def do_echo(self, text):
        self.send(text)

    def do_count(self, _):
        self.send(str(self.state["count"]))

    def do_who(self, _):
        request = self.request
        self.send(
            {
                "user": request.session.get(SESSION_KEY),
                "path": request.path,
                "agent": request.META["HTTP_USER_AGENT"],
                "address": request.META["REMOTE_ADDR"],
                "method": request.method,
                "kwargs": self.kwargs,
            }
        )

    def do_publish(self, text):
        realtime.publish(f"room-{self.kwargs['room']}", text)

    def do_subscribe(self, room):
        self.subscribe(f"room-{room}")
        self.send(f"subscribed {room}")

    def do_since(self, argument):
        room, _, cursor = argument.partition(" ")
        self.subscribe(f"room-{room}", since=cursor or realtime.cursor())

    def do_unsubscribe(self, room):
        self.unsubscribe(f"room-{room}")
        self.send(f"unsubscribed {room}")

    def do_close(self, code):
        self.send("bye")
        self.close(int(code), "as you wish")

    def do_fail(self, _):
        self.state["count"] = 1000
        self.send("never sent")
        self.subscribe("room-never")
        raise RuntimeError("the handler fails")

    def do_rollback(self, _):
        with transaction.atomic():
            realtime.publish(f"room-{self.kwargs['room']}", "never published")
            raise RuntimeError("rolled back")

    def do_sleep(self, seconds):
        note("sleep")
        time.sleep(float(seconds))
        self.send("slept")

    def do_note(self, text):
        note("notes", room=self.kwargs["room"], text=text)
        self.send("noted")

    def do_cookie(self, _):
        self.request.session["cookie"] = "set"
        self.send("session changed")

    def do_large(self, size):
        self.send("x" * int(size))

    def do_leave(self, _):
        raise SystemExit("the handler leaves")

    def do_exit(self, _):
        note("exit")
        os._exit(1)

    def do_state(self, size):
        self.state["filler"] = "x" * int(size)

    def do_query(self, _):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        self.send("queried")


def login(request):
    request.session[SESSION_KEY] = request.GET["user"]
    return HttpResponse("logged in")


def logout(request):
    request.session.flush()
    return HttpResponse("logged out")


def page(request):
    return HttpResponse("pong")


def hold(request):
    """Keep the page's thread until the file `released` is there."""
    note("held")
    while not (LOG / "released").exists():
        time.sleep(0.01)
    return HttpResponse("released")


def show_event(request):
    """Tell whether this request is taken for an event."""
    found = {
        name: str(value) for name, value in request.META.items() if "gunicorn_realtime.event" in name.lower()
    }
    return HttpResponse(json.dumps(found))


@receiver(connected)
@receiver(disconnected)
def note_signal(signal, request, **kwargs):
    name = "connected" if signal is connected else "disconnected"
    note("signals", signal=name, user=request.session.get(SESSION_KEY), **request.resolver_match.kwargs)


urlpatterns = [
    path("", page),
    path("login", login),
    path("logout", logout),
    path("hold", hold),
    path("event", show_event),
    path("ws/<room>/", Room.as_view()),
    path("private/<room>/", Room.as_view()),
    path("events/<room>/", realtime.sse("room-{room}", signals=True)),
]
application = WSGIHandler()
