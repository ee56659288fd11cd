"""Handlers for what a WebSocket's client sends: plain methods, each a short request of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import classonlymethod

from gunicorn_realtime.plumbing.events import ENVIRON_KEY, Event, encode_effects

from .handler_view import MessageView, encode_state, split_effects
from .opening import MAX_RECEIVED_SIZE, open_websocket, take_handshake, tuple_of
from .views import expiry_of


class WebSocketView(MessageView):
    """A WebSocket whose messages are handled in Django.

    Each method is a request through the site's middleware, with the user and the session as they are at that
    moment, on a thread that it has for itself; between two of them nothing is held. The messages of one client
    are handled one at a time, in order. What a method sends or changes takes effect when its request has ended, after
    its transaction, and not at all if it fails: then the connection is closed (1011).

        class Chat(realtime.WebSocketView):
            def connect(self):
                self.subscribe(f"chat-{self.kwargs['room']}")

            def receive(self, data):
                realtime.publish(f"chat-{self.kwargs['room']}", f"{self.request.user}: {data}")

        path("ws/chat/<room>/", login_required(Chat.as_view()))

    Attributes:
        request, args, kwargs: As in every view of Django's: the request that opened the WebSocket, made anew.
        state: A small dictionary that lives as long as the connection: JSON-able, at most 16 KiB.
        envelope, subprotocols, origins, max_size, compress, lifetime: As with `realtime.websocket`.
        presence: The channel that the client is in while it is connected, in which `{room}` stands for the
            URL's argument; None is none. `member` says as whom.
        timeout: Seconds that a method may take before the connection is closed; None is
            `REALTIME["EVENT_TIMEOUT"]`.
    """

    http_method_names = ["get"]  # noqa: RUF012 (Django's own is a list)

    envelope: Literal["json"] | None = None
    subprotocols: str | Iterable[str] = ()
    max_size: int = MAX_RECEIVED_SIZE
    compress: bool = True

    @classonlymethod
    def as_view(cls, **initkwargs: Any) -> Any:
        envelope = initkwargs.get("envelope", cls.envelope)
        if envelope not in (None, "json"):
            raise ValueError(f'envelope={envelope!r} is neither None nor "json"')
        return super().as_view(**initkwargs)

    def get(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        event: Event | None = request.META.get(ENVIRON_KEY)
        return self._open() if event is None else self._handle(event)

    def _open(self) -> HttpResponseBase:
        """Answer the handshake."""
        handshake = take_handshake(self.request, origins=tuple_of(self.origins), compress=self.compress)
        if isinstance(handshake, HttpResponse):
            return handshake
        if (response := self.connect()) is not None:
            return response
        at_once, followed = split_effects(self._effects)
        return open_websocket(
            self.request,
            handshake,
            [subscribe.channel for subscribe in followed],
            {"effects": encode_effects(at_once)},
            envelope=self.envelope,
            subprotocols=tuple_of(self.subprotocols),
            max_size=self.max_size,
            expires=expiry_of(self.lifetime, self.request, self.kwargs),
            events=self._events(encode_state(self.state)),
            presence=self._presence(),
        )
