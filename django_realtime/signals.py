"""Signals of connections, for views that ask for them: `realtime.sse("news", signals=True)`.

They are sent in a request of their own, as a WebSocket's handlers are: through the site's middleware, with the
user and the session as they are at that moment. Receivers get

    sender    the class `Streams`
    request   of the client, made anew; `request.resolver_match` says which view, and with which arguments
"""

from __future__ import annotations

from django.dispatch import Signal
from django.http import HttpRequest, HttpResponse

from gunicorn_realtime.plumbing.events import Answer, Event, EventKind, Outcome
from gunicorn_realtime.plumbing.offload import Events

from .conf import conf

connected = Signal()
disconnected = Signal()


class Streams:
    """The sender of both signals."""


def wanted_events() -> Events:
    """Return what a hub is to tell of a stream whose view asks for signals."""
    return Events((EventKind.OPENED, EventKind.CLOSED), conf.event_timeout)


def send_signal(request: HttpRequest, event: Event) -> HttpResponse:
    """Answer an event of a stream; receivers that fail are logged by Django and change nothing."""
    signal = connected if event.kind is EventKind.OPENED else disconnected
    signal.send_robust(Streams, request=request)
    event.answer = Answer(Outcome.DONE)
    return HttpResponse(status=204)
