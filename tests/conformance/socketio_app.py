"""A Django site that the official suites of Engine.IO and Socket.IO can be run against.

Environment: BUS.
"""

from __future__ import annotations

import os

import django
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.urls import path

settings.configure(
    ALLOWED_HOSTS=["*"],
    INSTALLED_APPS=["django_realtime"],
    REALTIME={"BUS": os.environ["BUS"]},
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this test only",
)
django.setup()

import django_realtime as realtime  # noqa: E402

# As the suites expect them; in seconds.
OPTIONS = {"ping_interval": 0.3, "ping_timeout": 0.2, "max_payload": 1_000_000, "origins": "*"}


class Echo(realtime.EngineIOView):
    def receive(self, data):
        self.send(data)


class Custom(realtime.SocketIOView):
    def connect(self, auth):
        self.emit("auth", auth)


class Main(Custom):
    def on_message(self, *args):
        self.emit("message-back", *args)

    def on_message_with_ack(self, *args):
        return args


urlpatterns = [
    path("engine.io/", Echo.as_view(**OPTIONS)),
    path("socket.io/", realtime.socketio({"/": Main, "/custom": Custom}, **OPTIONS, connect_timeout=1.0)),
]
application = WSGIHandler()
