"""Handlers for what a WebSocket's client sends: plain methods, each a short request of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, assert_never

from django.core.serializers.json import DjangoJSONEncoder
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import classonlymethod
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import View

from gunicorn_realtime.bus.presence import Presence
from gunicorn_realtime.plumbing.events import (
    ENVIRON_KEY,
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
    encode_effects,
)
from gunicorn_realtime.plumbing.offload import Events
from gunicorn_realtime.protocols.websocket_close import CloseCode, may_be_sent

from .conf import conf
from .members import presence_function, user_key
from .opening import MAX_RECEIVED_SIZE, open_websocket, take_handshake, tuple_of
from .publishing import to_bytes
from .views import Lifetime, expiry_of

# A close frame's has at most so many bytes.
MAX_REASON_LENGTH = 123  # characters


class WebSocketView(View):
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
    origins: str | Iterable[str] = ()
    max_size: int = MAX_RECEIVED_SIZE
    compress: bool = True
    lifetime: Lifetime = None
    presence: str | None = None
    timeout: float | None = None

    request: HttpRequest
    state: dict[str, Any]

    @classonlymethod
    def as_view(cls, **initkwargs: Any) -> Any:
        envelope = initkwargs.get("envelope", cls.envelope)
        if envelope not in (None, "json"):
            raise ValueError(f'envelope={envelope!r} is neither None nor "json"')
        timeout = initkwargs.get("timeout", cls.timeout)
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout!r} must be more than 0 seconds")
        presence_function(initkwargs.get("presence", cls.presence), None)
        # Without csrf_exempt a POST would be answered 403, not 405.
        return csrf_exempt(super().as_view(**initkwargs))

    # What a site overrides.

    def connect(self) -> HttpResponseBase | None:
        """The client asks for the WebSocket.

        Runs in that request. Whoever may not connect is refused by an exception (`PermissionDenied`, `Http404`)
        or by a response that is returned.
        """

    def member(self) -> str | None:
        """Return as whom the client is there, 1 to 200 bytes; None counts nobody.

        Runs after `connect`, in the same request.
        """
        return user_key(self.request)

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

    # The requests.

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self.state = {}
        self._effects: list[Effect] = []

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
        at_once, followed = _split(self._effects)
        timeout = conf.event_timeout if self.timeout is None else float(self.timeout)
        kinds = (EventKind.RECEIVED, EventKind.CLOSED)
        return open_websocket(
            self.request,
            handshake,
            [subscribe.channel for subscribe in followed],
            {"effects": encode_effects(at_once)},
            envelope=self.envelope,
            subprotocols=tuple_of(self.subprotocols),
            max_size=self.max_size,
            expires=expiry_of(self.lifetime, self.request, self.kwargs),
            events=Events(kinds, timeout, self._encode_state()),
            presence=self._presence(),
        )

    def _presence(self) -> Presence | None:
        if self.presence is None:
            return None
        presence_of = presence_function(self.presence, lambda request, **kwargs: self.member())
        return presence_of(self.request, **self.kwargs)

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
        event.answer = Answer(Outcome.DONE, tuple(self._effects), self._encode_state())
        return HttpResponse(status=204)

    def _encode_state(self) -> str:
        try:
            state = json.dumps(self.state, cls=DjangoJSONEncoder, separators=(",", ":"))
        except TypeError as exc:
            raise TypeError(f"self.state must be JSON-able: {exc}") from exc
        if len(state) > MAX_STATE_SIZE:
            raise ValueError(f"self.state has {len(state)} bytes, more than {MAX_STATE_SIZE}")
        return state


def _split(effects: list[Effect]) -> tuple[list[Effect], list[Subscribe]]:
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
