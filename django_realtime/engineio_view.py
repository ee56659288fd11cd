"""Handlers for what a client of Engine.IO sends: plain methods, each a short request of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import classonlymethod

from gunicorn_realtime.plumbing.events import ENVIRON_KEY, Event, encode_effects
from gunicorn_realtime.protocols.engineio import Refusal

from .engineio_opening import TRANSPORTS, EngineIOOptions, Opening, open_session, refuse, take_opening
from .handler_view import MessageView, encode_state, roll_back, split_effects


class EngineIOView(MessageView):
    """A connection of Engine.IO, by polling or WebSocket, whose messages are handled in Django.

    Its methods are those of `realtime.WebSocketView`, and run as those do.

        class Echo(realtime.EngineIOView):
            def receive(self, data):
                self.send(data)

        path("engine.io/", Echo.as_view())

    Attributes:
        request, args, kwargs, state, presence, timeout: As with `realtime.WebSocketView`.
        origins: More sites whose pages may connect, beside `REALTIME["ORIGINS"]` and Django's
            CSRF_TRUSTED_ORIGINS, and written as there.
        transports: Those that clients may use, "polling" and "websocket".
        ping_interval: Seconds between two heartbeats.
        ping_timeout: Seconds that the other side has to answer one.
        max_payload: Bytes that a client may send at a time.
        lifetime: As with `realtime.sse`.
        direct: Requests of a session that has begun go to its hub without this view, as its id cannot be
            guessed. False lets the view, its decorators and the middleware see each.
    """

    transports: str | Iterable[str] = TRANSPORTS
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    max_payload: int = 1_000_000
    direct: bool = True

    @classonlymethod
    def as_view(cls, **initkwargs: Any) -> Any:
        EngineIOOptions.of(cls, initkwargs)  # complains of what is wrong
        return super().as_view(**initkwargs)

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        event: Event | None = request.META.get(ENVIRON_KEY)
        if event is not None:
            return self._handle(event)
        options = EngineIOOptions.of(self, {})
        opening = take_opening(request, options)
        return self._open(options, opening) if isinstance(opening, Opening) else opening

    def _open(self, options: EngineIOOptions, opening: Opening) -> HttpResponseBase:
        try:
            response = self.connect()
        except PermissionDenied:
            roll_back()
            return refuse(Refusal.FORBIDDEN)
        if response is not None:
            return response
        at_once, followed = split_effects(self._effects)
        return open_session(
            self.request,
            opening,
            "engineio",
            options,
            {"effects": encode_effects(at_once)},
            channels=[subscribe.channel for subscribe in followed],
            kwargs=self.kwargs,
            events=self._events(encode_state(self.state)),
            presence=self._presence(),
        )
