"""A chat in rooms whose messages are handled in Django: it knows who speaks, and may answer."""

from __future__ import annotations

import random

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

import django_realtime as realtime

MAX_LENGTH = 1000  # characters


def room(request: HttpRequest, room: str) -> HttpResponse:
    if not request.session.get("name"):
        return redirect("chat")
    return render(request, "room.html", {"room": room, "name": request.session["name"]})


class Room(realtime.WebSocketView):
    envelope = "json"

    def connect(self) -> None:
        if not self.request.session.get("name"):
            raise PermissionDenied
        self.subscribe(self.channel)
        self.say("has come")

    def receive(self, data: str | bytes) -> None:
        text = str(data).strip()[:MAX_LENGTH]
        if text == "/roll":
            self.state["rolls"] = self.state.get("rolls", 0) + 1
            self.send({"text": f"You roll a {random.randint(1, 6)}, roll number {self.state['rolls']}."})
        elif text:
            self.say(text)

    def disconnect(self, code: int) -> None:
        self.say("has left")

    def say(self, text: str) -> None:
        realtime.publish(self.channel, {"name": self.request.session.get("name", "?"), "text": text})

    @property
    def channel(self) -> str:
        return f"room-{self.kwargs['room']}"
