"""Handlers for events of Socket.IO's clients: plain methods, each a short request of its own."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.decorators import classonlymethod

from gunicorn_realtime.bus import rooms
from gunicorn_realtime.bus.channel import Channel
from gunicorn_realtime.errors import ProtocolError
from gunicorn_realtime.plumbing.events import (
    ENVIRON_KEY,
    Accept,
    Answer,
    Close,
    Dismiss,
    Event,
    Outcome,
    Publish,
    Refuse,
    Send,
    Subscribe,
    Unsubscribe,
)
from gunicorn_realtime.protocols.socketio import Packet, ack_packet, encode, event_packet

from .conf import conf
from .emitting import Target, encode_args, encode_event, room_channel
from .engineio_opening import TRANSPORTS, Opening, open_session, take_opening
from .handler_view import HandlerView, encode_state, roll_back
from .members import user_key
from .opening import tuple_of
from .socketio_endpoint import ConnectionRefused, Endpoint, error_of
from .socketio_state import KeptState, arguments_of

logger = logging.getLogger(__name__)

# As an event's name may have where it is emitted; what follows in a longer one is not looked at.
MAX_NAME_LENGTH = 200  # characters


class SocketIOView(HandlerView):
    """A namespace of Socket.IO, whose clients' events are handled in Django.

    Each method is a request through the site's middleware, with the user and the session as they are at that
    moment, on a thread that it has for itself; between two of them nothing is held. The events of one client
    are handled one at a time, in order. What a method emits or changes takes effect when its request has ended,
    after its transaction, and not at all if it fails.

        class Chat(realtime.SocketIOView):
            def connect(self, auth):
                if not self.request.user.is_authenticated:
                    raise realtime.ConnectionRefused("log in first")
                self.enter("lobby")

            def on_message(self, text):
                self.emit("message", str(self.request.user), text, room="lobby")
                return "ok"

        path("socket.io/", realtime.socketio(Chat))

    An event "message" calls `on_message`; where its name has characters that no Python name has, the method's
    has "_". What a method returns acknowledges the event if the client asks for that: None is no argument, a
    tuple several. Arguments that the method does not take are logged, and dropped.

    Attributes:
        request, args, kwargs: As in every view of Django's: the request that opened the connection, made anew.
        namespace: That of this client, such as "/".
        sid: The socket's id in the namespace, which others may know.
        recovered: The client was interrupted, and has the id and the rooms that it had.
        state: A small dictionary that lives as long as the client is in the namespace: JSON-able, at most
            16 KiB for all namespaces of a connection.
        presence: As with `realtime.WebSocketView`, for the connection as a whole.
        timeout: Seconds that a method may take before the connection is closed; None is
            `REALTIME["EVENT_TIMEOUT"]`.
        origins, transports, ping_interval, ping_timeout, max_payload, lifetime, direct: As with
            `realtime.EngineIOView`. Of several namespaces those of the first count.
        connect_timeout: Seconds that a client has to connect to a namespace.
        recovery: Seconds within which a client that was interrupted may recover; 0 is off.
    """

    transports: str | Iterable[str] = TRANSPORTS
    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    max_payload: int = 1_000_000
    connect_timeout: float = 45.0
    recovery: float = 0.0
    direct: bool = True

    namespace: str
    sid: str
    recovered: bool
    endpoint: Endpoint

    @classonlymethod
    def as_view(cls, **initkwargs: Any) -> Any:
        return Endpoint.of({"/": cls}, initkwargs).view()

    # What a site overrides, beside `on_<event>`.

    def connect(self, auth: Any) -> None:
        """The client asks to be let into the namespace.

        Args:
            auth: What it says of itself (`io(url, {auth: ...})`); {} if nothing, or if it is of version 2.

        Raises:
            ConnectionRefused: It may not. `PermissionDenied` and `Http404` refuse it as well.
        """

    def receive(self, event: str, *args: Any) -> Any:
        """The client has emitted an event for which there is no method."""
        logger.info("%s has no method for the event %r", type(self).__name__, event[:MAX_NAME_LENGTH])

    def disconnect(self, reason: str) -> None:
        """The client has left the namespace, or is gone.

        Args:
            reason: As the official server words it, such as "transport close".
        """

    # What its methods call.

    def emit(
        self,
        event: str,
        *args: Any,
        to: str | None = None,
        room: str | Iterable[str] | None = None,
        user: Any = None,
        everyone: bool = False,
        skip: str | Iterable[str] = (),
        skip_rooms: str | Iterable[str] = (),
        volatile: bool = False,
        ack: str | None = None,
    ) -> None:
        """Send an event: to this client alone if nothing else is said, or to others in its namespace.

        Args:
            event, args, to, room, user, skip, skip_rooms, volatile: As with `realtime.emit`. To a room that
                this client is in, it gets it too, unless `skip=self.sid`.
            everyone: To all in the namespace.
            ack: Name of the method that is called with what this client answers.

        Raises:
            TypeError: An argument can't be encoded, or more than one of `to`, `room`, `user` and `everyone`
                is given, or `ack` or `skip` with none or one of them.
            ValueError, TooLarge: As with `realtime.emit`.
        """
        skipped, skipped_rooms = tuple_of(skip), tuple_of(skip_rooms)
        is_named = not (to is None and room is None and user is None)
        if everyone and is_named:
            raise TypeError("an event goes to everyone, or to one of to, room and user")
        if (everyone or is_named) and ack is not None:
            raise TypeError("only the client whose event is handled can be asked to acknowledge")
        if not (everyone or is_named):
            if skipped or skipped_rooms:
                raise TypeError("skip and skip_rooms need everyone=True, a room or a user")
            if ack is not None or not volatile:
                self._send(event_packet(self.namespace, *encode_event(event, args), self._await(ack)))
                return
            to = self.sid  # what is volatile can be left out only of what is published
        target = Target(self.namespace, to, room, user)
        outgoing = target.outgoing(event, args, skipped, skipped_rooms, is_volatile=volatile)
        self._effects.extend(map(Publish, outgoing))

    def enter(self, room: str) -> None:
        """Let the client into a room: it gets what is emitted to it from now on.

        Raises:
            ChannelNameError: No room can have that name.
        """
        self._effects.append(Subscribe(room_channel(self.namespace, room)))

    def leave(self, room: str) -> None:
        """Let the client be in a room no longer."""
        self._effects.append(Unsubscribe(room_channel(self.namespace, room).name))

    def dismiss(self) -> None:
        """End the client's being in this namespace, behind what was emitted; others of its remain."""
        self._effects.append(Dismiss(self.namespace))

    # The requests.

    def setup(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().setup(request, *args, **kwargs)
        self.namespace, self.sid, self.recovered = "/", "", False
        self._kept = KeptState()

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        event: Event | None = request.META.get(ENVIRON_KEY)
        return self._open() if event is None else self._handle(event)

    def _open(self) -> HttpResponseBase:
        """Answer a request that is no event."""
        opening = take_opening(self.request, self.endpoint.options)
        if not isinstance(opening, Opening):
            return opening
        user_key(self.request)  # so that `disconnect(user=...)` finds the connection
        return open_session(
            self.request,
            opening,
            "socketio",
            self.endpoint.options,
            more_options={"namespaces": list(self.endpoint.handlers)},
            kwargs=self.kwargs,
            events=self._events("{}"),
            presence=self._presence(),
        )

    def _handle(self, event: Event) -> HttpResponse:
        """Answer an event."""
        details = event.details
        self.namespace, self.sid = details["namespace"], details["socket"]
        self.recovered = details["recovered"]
        self._kept = KeptState.load(event.state, self.namespace)
        self.state = self._kept.state
        match details["type"]:
            case "connect":
                self._connect(json.loads(event.data or b"{}"))
            case "event":
                self._receive(arguments_of(event), details["id"])
            case "ack":
                self._acknowledge(arguments_of(event), details["id"])
            case "disconnect":
                self.disconnect(details["reason"])
                # What else it may have asked for is for a client that is there.
                self._effects = [effect for effect in self._effects if isinstance(effect, Publish | Close)]
                self._kept.is_over = True
            case unknown:
                raise ProtocolError(f"an event call is of the type {unknown!r}")
        self._kept.state = self.state
        event.answer = Answer(Outcome.DONE, tuple(self._effects), encode_state(self._kept.dump()))
        return HttpResponse(status=204)

    def _connect(self, auth: Any) -> None:
        if not self.recovered:
            self.state = {}
            self._kept.acks.clear()
        try:
            if (returned := self.connect(auth)) is not None:  # type: ignore[func-returns-value]
                raise TypeError(
                    f"connect() returned {returned!r}; who may not connect is refused by an exception"
                )
        except (ConnectionRefused, PermissionDenied, Http404) as exc:
            roll_back()
            self._effects = [Refuse(self.namespace, error_of(exc))]
            self._kept.is_over = True
        else:
            self._effects.insert(0, Accept(self.namespace, self._channels()))

    def _channels(self) -> tuple[Channel, ...]:
        """Return what the client follows as long as it is in the namespace."""
        names = [rooms.namespace_channel(self.namespace), rooms.socket_channel(self.namespace, self.sid)]
        if (user := user_key(self.request)) is not None:
            names.append(rooms.user_channel(self.namespace, user))
        return tuple(map(conf.channel, names))

    def _receive(self, arguments: list[Any], packet_id: int | None) -> None:
        name, *args = arguments
        event = str(name)
        method = method_name(event)
        if not callable(getattr(self, method, None)):
            method, args = "receive", [event, *args]
        is_called, answer = self._call(method, args)
        if is_called and packet_id is not None:
            answers = () if answer is None else answer if isinstance(answer, tuple) else (answer,)
            self._send(ack_packet(self.namespace, *encode_args(answers), packet_id))

    def _acknowledge(self, args: list[Any], packet_id: int) -> None:
        name = self._kept.acks.pop(str(packet_id), None)
        if name is None:
            logger.debug("%s does not wait for the answer %d", type(self).__name__, packet_id)
        else:
            self._call(name, args)

    def _call(self, name: str, args: list[Any]) -> tuple[bool, Any]:
        """Return whether a method takes the arguments, and what it returns."""
        method = getattr(self, name)
        try:
            inspect.signature(method).bind(*args)
        except TypeError as exc:
            logger.warning("%s.%s does not take what a client sent: %s", type(self).__name__, name, exc)
            return False, None
        return True, method(*args)

    def _await(self, method: str | None) -> int | None:
        """Return the id by which the client acknowledges."""
        if method is None:
            return None
        if not callable(getattr(self, method, None)):
            raise ValueError(f"ack={method!r} is no method of {type(self).__name__}")
        return self._kept.expect(method)

    def _send(self, packet: Packet) -> None:
        self._effects.append(Send(encode(packet)))
        self._effects.extend(Send(attachment, is_binary=True) for attachment in packet.attachments)


def method_name(event: str) -> str:
    """Return the name of the method that an event calls."""
    return "on_" + "".join(
        character if f"_{character}".isidentifier() else "_" for character in event[:MAX_NAME_LENGTH]
    )
