"""Socket.IO (revision 5, and 4 for clients of the 2.x line) over Engine.IO's sessions.

Options, beside those of `engineio`:
    namespaces       those that there are
    connect_timeout  seconds in which a client must be in one
    recovery         seconds in which a client that was cut gets back what it had; 0 is never

Particulars, where no application is called:
    subscribe        the channels that a client follows: each message is an event
    publish          the channels that its events go to

A message of one of Socket.IO's own channels (see `bus.rooms`) is the JSON of an event's arguments. One of any
other channel is the only argument: an object or an array of JSON as such, all else as text or bytes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from ..bus.channel import Channel
from ..bus.message import Emission
from ..bus.rooms import namespace_of
from ..errors import ProtocolError
from ..plumbing.events import Accept, Dismiss, Effect, Event, EventKind, Outcome, Refuse, Unsubscribe
from ..plumbing.handover import channel_from
from ..protocols import socketio
from ..protocols.socketio import (
    Packet,
    PacketType,
    ack_packet,
    decode_arguments,
    encode_arguments,
    event_packet,
    with_last_argument,
)
from ..protocols.websocket_close import CloseCode
from .engineio import Content, EngineIO

if TYPE_CHECKING:
    from ..bus.message import Message
    from ..hub.connection import Connection
    from ..hub.feed import Feed
    from ..hub.sessions import Session
    from ..plumbing.handover import Handover

SOCKET_ID_SIZE = 15  # bytes, random

MAX_EVENT_SIZE = 200  # bytes of the name of an event that is published


class Socket:
    """A client in one namespace.

    Args:
        id: By which others may know it.
    """

    __slots__ = ("channels", "id", "is_in", "namespace")

    def __init__(self, namespace: str, id: str) -> None:
        self.namespace = namespace
        self.id = id
        self.channels: tuple[Channel, ...] = ()  # what it follows as long as it is there
        self.is_in = False  # else its application has not answered yet


class Client:
    """What a session needs for Socket.IO."""

    __slots__ = ("parser", "sockets", "subscribe", "timer")

    def __init__(self, parser: socketio.Parser) -> None:
        self.parser = parser
        self.sockets: dict[str, Socket] = {}  # by namespace
        self.subscribe: tuple[Channel, ...] = ()
        self.timer: Any = None  # until it is in a namespace

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.stop()
            self.timer.close()
            self.timer = None


class SocketIO(EngineIO):
    name = "socketio"

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.namespaces = frozenset(options.get("namespaces", ("/",)))
        self.connect_timeout = float(options.get("connect_timeout", 45.0))
        if not self.connect_timeout > 0:
            raise ValueError(f"connect_timeout={self.connect_timeout} must be more than 0 seconds")
        self.recovery = float(options.get("recovery", 0.0)) if self.revision == 4 else 0.0
        self.encoding = ("socketio", self.revision, self.prefix, self.recovery > 0)

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        session: Session = connection.conversation
        client = session.conversation = Client(socketio.Parser(max_size=self.max_payload))
        client.subscribe = tuple(map(channel_from, handover.offload.particulars.get("subscribe", ())))
        client.timer = session.hub.loop.timer(self.connect_timeout)
        client.timer.start(partial(self._on_connect_timeout, connection))
        super().open(connection, handover, cursor)
        if self.revision == 3:  # its clients are in "/" without asking
            self._take_packet(connection, session, Packet(PacketType.CONNECT))

    def _on_connect_timeout(self, connection: Connection) -> None:
        reason = f"it was in no namespace after {self.connect_timeout:g} s"
        self.disconnect(connection, CloseCode.POLICY_VIOLATION, reason)

    # What is sent.

    def encode(self, message: Message) -> bytes:
        if message.reset is not None:
            return b""  # there is no place for it
        namespace = namespace_of(message.channel.removeprefix(self.prefix)) or "/"
        data, attachments = _arguments_of(message)
        name = json.dumps(message.event or "message", ensure_ascii=False).encode("utf-8", "backslashreplace")
        data = b"[%b,%b" % (name, data[1:]) if data != b"[]" else b"[%b]" % name
        packet = event_packet(namespace, data, attachments)
        text = socketio.encode(packet)
        if self.recovery and message.stamp is not None:
            text = with_last_argument(text, message.stamp.cursor)
        return self._frames(text, attachments)

    def _send(self, connection: Connection, packet: Packet) -> None:
        connection.answer(self._frames(socketio.encode(packet), packet.attachments))

    def _frames(self, text: bytes, attachments: Iterable[bytes]) -> bytes:
        frames = [self.tell(text, is_binary=False)]
        frames += [self.tell(attachment, is_binary=True) for attachment in attachments]
        return b"".join(frames)

    # What comes.

    def take_message(self, connection: Connection, session: Session, data: bytes, *, is_binary: bool) -> None:
        client: Client = session.conversation
        packet = client.parser.feed(data, is_binary=is_binary)
        if packet is not None:
            self._take_packet(connection, session, packet)

    def _take_packet(self, connection: Connection, session: Session, packet: Packet) -> None:
        client: Client = session.conversation
        socket = client.sockets.get(packet.namespace)
        match packet.type:
            case PacketType.CONNECT:
                if socket is None:
                    self._connect(connection, session, packet)
            case PacketType.DISCONNECT:
                if socket is not None:
                    self._leave(connection, socket, "client namespace disconnect")
            case PacketType.EVENT | PacketType.BINARY_EVENT:
                if socket is not None and socket.is_in:
                    self._take_event(connection, session, socket, packet)
            case PacketType.ACK | PacketType.BINARY_ACK:
                if socket is not None and socket.is_in and connection.dialogue is not None:
                    connection.dialogue.tell(_event_of("ack", socket, packet))
            case PacketType.CONNECT_ERROR:
                raise ProtocolError("a client must not refuse a namespace")
            case _:
                assert_never(packet.type)

    def _take_event(self, connection: Connection, session: Session, socket: Socket, packet: Packet) -> None:
        if connection.dialogue is not None:
            connection.dialogue.tell(_event_of("event", socket, packet))
            return
        if not session.publish:
            raise ProtocolError("nothing is to be sent here")
        name, *arguments = decode_arguments(packet.data, packet.attachments)
        name = str(name)
        if len(name.encode("utf-8", "replace")) > MAX_EVENT_SIZE or not name.isprintable():
            raise ProtocolError(f"an event's name is not one line of up to {MAX_EVENT_SIZE} bytes")
        acknowledge = None
        if packet.id is not None:
            acknowledge = partial(
                self._acknowledge, connection, ack_packet(socket.namespace, b"[]", id=packet.id)
            )
        match arguments:
            case [str(text)]:
                message = Content(text.encode("utf-8", "replace"))
            case [bytes(data)]:
                message = Content(data, is_binary=True)
            case [value] if not packet.attachments:
                message = Content(
                    json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
                )
            case _:
                data, attachments = encode_arguments(arguments)
                emission = Emission(tuple(map(len, (data, *attachments))))
                message = Content(data + b"".join(attachments), emission=emission)
        self.publish(connection, session.publish, message, name, acknowledge)

    def _acknowledge(self, connection: Connection, packet: Packet) -> None:
        if not connection.is_over:
            self._send(connection, packet)

    # Namespaces.

    def _connect(self, connection: Connection, session: Session, packet: Packet) -> None:
        namespace = packet.namespace
        if namespace not in self.namespaces:
            self._refuse(connection, namespace, {"message": "Invalid namespace"})
            return
        if self.revision == 3:
            id = session.id if namespace == "/" else f"{namespace}#{session.id}"  # as its clients think
        else:
            id = secrets.token_urlsafe(SOCKET_ID_SIZE)
        client: Client = session.conversation
        socket = client.sockets[namespace] = Socket(namespace, id)
        if connection.dialogue is not None:
            connection.dialogue.tell(_event_of("connect", socket, packet))
        else:
            self._accept(connection, socket, client.subscribe)

    def perform(self, connection: Connection, effect: Effect) -> None:
        session: Session = connection.conversation
        client: Client = session.conversation
        match effect:
            case Accept(namespace, channels):
                if (socket := client.sockets.get(namespace)) is not None:
                    self._accept(connection, socket, channels)
            case Refuse(namespace, error):
                client.sockets.pop(namespace, None)
                self._refuse(connection, namespace, json.loads(error))
            case Dismiss(namespace):
                if (socket := client.sockets.get(namespace)) is not None:
                    self._send(connection, Packet(PacketType.DISCONNECT, namespace))
                    self._leave(connection, socket, "server namespace disconnect")
            case _:
                raise ValueError(f"nothing that this engine knows: {effect!r}")

    def may_follow(self, connection: Connection, channel: str) -> bool:
        namespace = namespace_of(channel.removeprefix(self.prefix))
        session: Session = connection.conversation
        client: Client = session.conversation
        return namespace is None or namespace in client.sockets  # else the client has left it meanwhile

    def _accept(self, connection: Connection, socket: Socket, channels: tuple[Channel, ...]) -> None:
        socket.channels = channels
        connection.hub.effects.wait(connection)
        connection.hub.subscriptions.gather(connection, channels, partial(self._enter, connection, socket))

    def _enter(self, connection: Connection, socket: Socket, feeds: tuple[Feed, ...]) -> None:
        """A client's channels are followed, so it misses nothing from here on."""
        hub = connection.hub
        session: Session = connection.conversation
        client: Client = session.conversation
        if not connection.is_over and client.sockets.get(socket.namespace) is socket:
            socket.is_in = True
            client.stop_timer()
            data = {"sid": socket.id}
            encoded = json.dumps(data, separators=(",", ":")).encode() if self.revision == 4 else b""
            self._send(connection, Packet(PacketType.CONNECT, socket.namespace, data=encoded))
            connection.audience.following.fanout.sockets[socket.id] = connection
            hub.subscriptions.join(connection, feeds)
        hub.effects.go_on(connection)

    def _refuse(self, connection: Connection, namespace: str, error: Mapping[str, Any]) -> None:
        data: object = error if self.revision == 4 else error.get("data") or error.get("message")
        encoded = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        self._send(connection, Packet(PacketType.CONNECT_ERROR, namespace, data=encoded))

    def _leave(self, connection: Connection, socket: Socket, reason: str) -> None:
        """A client is in a namespace no longer, and follows nothing there."""
        session: Session = connection.conversation
        client: Client = session.conversation
        del client.sockets[socket.namespace]
        connection.audience.following.fanout.sockets.pop(socket.id, None)
        names = {channel.name for channel in socket.channels}
        subscriptions = connection.hub.subscriptions
        for feed in subscriptions.feeds_of(connection):
            if (
                feed.channel in names
                or namespace_of(feed.channel.removeprefix(self.prefix)) == socket.namespace
            ):
                subscriptions.change(connection, [Unsubscribe(feed.channel)])
        if connection.dialogue is not None and connection.fd >= 0:
            connection.dialogue.tell(_closed(socket, reason))

    # It ends.

    def closing_events(self, connection: Connection, code: int) -> list[Event]:
        session: Session = connection.conversation
        client: Client | None = session.conversation
        sockets = client.sockets.values() if client is not None else ()
        reason = "server shutting down" if connection.hub.is_stopping else session.reason
        return [_closed(socket, reason, code) for socket in sockets]

    def left(self, connection: Connection) -> None:
        session: Session = connection.conversation
        client: Client | None = session.conversation
        if client is not None:
            client.stop_timer()
            for socket in client.sockets.values():
                connection.audience.following.fanout.sockets.pop(socket.id, None)
        super().left(connection)

    def failed(
        self, connection: Connection, event: Event, outcome: Outcome | None, code: int, reason: str
    ) -> None:
        kind, namespace = event.details.get("type"), event.details.get("namespace", "/")
        session: Session = connection.conversation
        client: Client = session.conversation
        if outcome is Outcome.REFUSED or (outcome is None and kind == "connect"):
            self.disconnect(connection, code, reason)  # it comes back, and is let in or told why not
        elif kind == "connect":
            client.sockets.pop(namespace, None)
            self._refuse(connection, namespace, {"message": "Internal server error"})


def _event_of(kind: str, socket: Socket, packet: Packet) -> Event:
    details = {
        "type": kind,
        "namespace": socket.namespace,
        "socket": socket.id,
        "id": packet.id,
        "sizes": list(map(len, (packet.data, *packet.attachments))),
        "recovered": False,
        "reason": "",
    }
    return Event(EventKind.RECEIVED, packet.data + b"".join(packet.attachments), details=details)


def _closed(socket: Socket, reason: str, code: int = CloseCode.NORMAL_CLOSURE) -> Event:
    details = {
        "type": "disconnect",
        "namespace": socket.namespace,
        "socket": socket.id,
        "id": None,
        "sizes": [0],
        "recovered": False,
        "reason": reason,
    }
    return Event(EventKind.CLOSED, code=code, details=details)


def _arguments_of(message: Message) -> tuple[bytes, tuple[bytes, ...]]:
    """Return the JSON of an event's arguments, and its attachments."""
    data = message.data
    if message.emission is not None:
        return message.emission.split(data)
    if message.is_binary:
        return encode_arguments([data])
    if data[:1] in (b"{", b"["):
        try:
            return encode_arguments([json.loads(data)])
        except (ValueError, RecursionError):
            pass  # a text that only begins like it
    return encode_arguments([data.decode("utf-8", "replace")])


ENGINE = SocketIO
