"""A chat in rooms whose messages are handled in Django: it knows who speaks, may answer, and says who is there."""

from __future__ import annotations

import random

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

import django_realtime as realtime

MAX_LENGTH = 1000  # characters


def room(request: HttpRequest, room: str) -> HttpResponse:
    if not (name := request.session.get("name")):
        return redirect("chat")
    try:
        members = realtime.presence(f"room-{room}")
    except realtime.BusUnavailable:
        members = []  # the page says that it has no connection
    return render(request, "room.html", {"room": room, "name": name, "members": members})


class Room(realtime.WebSocketView):
    envelope = "json"
    presence = "room-{room}"

    def member(self) -> str | None:
        return self.request.session.get("name")

    def connect(self) -> None:
        if not self.member():
            raise PermissionDenied
        self.subscribe(self.channel)

    def receive(self, data: str | bytes) -> None:
        text = str(data).strip()[:MAX_LENGTH]
        if text == "/roll":
            self.state["rolls"] = self.state.get("rolls", 0) + 1
            self.send({"text": f"You roll a {random.randint(1, 6)}, roll number {self.state['rolls']}."})
        elif text:
            realtime.publish(self.channel, {"name": self.member(), "text": text})

    @property
    def channel(self) -> str:
        return f"room-{self.kwargs['room']}"
