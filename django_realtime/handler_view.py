"""What views have in common whose connections' messages are handled in Django: methods, state, effects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from django.core.serializers.json import DjangoJSONEncoder
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import classonlymethod
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import View

from gunicorn_realtime.bus.presence import Presence
from gunicorn_realtime.plumbing.events import (
    MAX_STATE_SIZE,
    Answer,
    Close,
    Effect,
    Event,
    EventKind,
    Outcome,
    Send,
    Subscribe,
    Unsubscribe,
)
from gunicorn_realtime.plumbing.offload import Events
from gunicorn_realtime.protocols.websocket_close import CloseCode, may_be_sent

from .conf import conf
from .members import presence_function, user_key
from .publishing import to_bytes
from .views import Lifetime

# A close frame's has at most so many bytes.
MAX_REASON_LENGTH = 123  # characters


class HandlerView(View):
    """The base of those views. Their attributes are described where they are used."""

    origins: str | Iterable[str] = ()
    lifetime: Lifetime = None
    presence: str | None = None
    timeout: float | None = None

    request: HttpRequest
    state: dict[str, Any]

    @classonlymethod
    def as_view(cls, **initkwargs: Any) -> Any:
        check_values(cls, initkwargs)
        # Without csrf_exempt a POST would be answered 403.
        return csrf_exempt(super().as_view(**initkwargs))

    def member(self) -> str | None:
        """Return as whom the client is there, 1 to 200 bytes; None counts nobody.

        Runs after `connect`, in the same request.
        """
        return user_key(self.request)

    def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """End the connection, behind what was sent.

        Args:
            code: 1000, or of your own 3000 to 4999.
            reason: At most 123 bytes, for the client's script and the log.

        Raises:
            ValueError: The code may not be sent.
        """
        if not may_be_sent(code):
            raise ValueError(f"a close frame must not have the code {code!r}")
        self._effects.append(Close(int(code), " ".join(str(reason).split())[:MAX_REASON_LENGTH]))

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self.state = {}
        self._effects: list[Effect] = []

    def _events(self, state: str) -> Events:
        """Return what the application is called for."""
        timeout = conf.event_timeout if self.timeout is None else float(self.timeout)
        return Events((EventKind.RECEIVED, EventKind.CLOSED), timeout, state)

    def _presence(self) -> Presence | None:
        if self.presence is None:
            return None
        presence_of = presence_function(self.presence, lambda request, **kwargs: self.member())
        return presence_of(self.request, **self.kwargs)


class MessageView(HandlerView):
    """The base of views of connections that carry messages, text or bytes."""

    # What a site overrides.

    def connect(self) -> HttpResponseBase | None:
        """The client asks for the connection.

        Runs in that request. Whoever may not connect is refused by an exception (`PermissionDenied`, `Http404`)
        or by a response that is returned.
        """

    def receive(self, data: str | bytes) -> None:
        """The client has sent a message: text, or bytes."""

    def disconnect(self, code: int) -> None:
        """The connection is gone.

        Args:
            code: Of the close frame that the client sent, or that it was sent; 1005 if it had none, 1006 if
                there was no frame.
        """

    # What its methods call.

    def send(self, data: Any) -> None:
        """Send a message to this client alone: text, bytes, or what Django's JSON encoder takes as text."""
        is_binary = isinstance(data, bytes | bytearray | memoryview)
        self._effects.append(Send(to_bytes(data), is_binary))

    def subscribe(self, channel: str, *, since: str | None = None) -> None:
        """Let the client have what is published to a channel from now on.

        Args:
            since: A cursor (`realtime.cursor()`): what the channel's history has since then comes first.

        Raises:
            ChannelNameError: No channel can have that name.
        """
        self._effects.append(Subscribe(conf.channel(channel), since))

    def unsubscribe(self, channel: str) -> None:
        """Let the client have nothing more of a channel."""
        self._effects.append(Unsubscribe(conf.channel(channel).name))

    # The requests.

    def _handle(self, event: Event) -> HttpResponse:
        """Answer an event."""
        self.state = json.loads(event.state)
        match event.kind:
            case EventKind.RECEIVED:
                self.receive(event.data if event.is_binary else event.data.decode())
            case EventKind.CLOSED:
                self.disconnect(event.code)
            case EventKind.OPENED:
                pass  # `connect` has seen to it
            case _:
                assert_never(event.kind)
        event.answer = Answer(Outcome.DONE, tuple(self._effects), encode_state(self.state))
        return HttpResponse(status=204)


def check_values(view: type[HandlerView], values: Mapping[str, Any]) -> None:
    """Complain of attributes, of which `values` change some, that can't be right whatever the URL is.

    Raises:
        ChannelNameError, ValueError: One can't.
    """
    timeout = values.get("timeout", view.timeout)
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout={timeout!r} must be more than 0 seconds")
    presence_function(values.get("presence", view.presence), None)


def roll_back() -> None:
    """Let the request's transactions be rolled back, as an exception that left the view would."""
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
            connection.set_rollback(True)


def encode_state(state: Mapping[str, Any]) -> str:
    """Return what goes to the hub and comes back with the next event."""
    try:
        encoded = json.dumps(state, cls=DjangoJSONEncoder, separators=(",", ":"))
    except TypeError as exc:
        raise TypeError(f"self.state must be JSON-able: {exc}") from exc
    if len(encoded) > MAX_STATE_SIZE:
        raise ValueError(f"self.state has {len(encoded)} bytes, more than {MAX_STATE_SIZE}")
    return encoded


def split_effects(effects: list[Effect]) -> tuple[list[Effect], list[Subscribe]]:
    """Take apart what a handshake brings: what the hub does behind the head, and what it follows anyway.

    What is to be had since a cursor is subscribed to behind the head.
    """
    followed: dict[str, Subscribe] = {}
    at_once: list[Effect] = []
    for effect in effects:
        match effect:
            case Subscribe(channel, None):
                followed.setdefault(channel.name, effect)
            case Unsubscribe(name):
                followed.pop(name, None)
                at_once = [other for other in at_once if not _subscribes_to(other, name)]
            case _:
                at_once.append(effect)
    return at_once, list(followed.values())


def _subscribes_to(effect: Effect, channel: str) -> bool:
    return isinstance(effect, Subscribe) and effect.channel.name == channel
