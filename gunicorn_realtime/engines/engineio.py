"""Engine.IO (revision 4, and 3 for clients of the 2.x line): messages both ways by polling or WebSocket.

Options:
    revision      4 or 3
    prefix        the bus's, which clients do not see
    ping_interval, ping_timeout  seconds between two pings, and in which each is answered
    max_payload   bytes of the largest message, and of the largest body of a POST
    transports    "polling", "websocket" or both
    direct        a worker brings requests of a session to its hub before the application sees them

Particulars:
    transport     the one that the session begins with
    publish       the channels that the client's messages go to, see `websocket`
    effects       what the application wants at once, see `plumbing.events`

A session is one connection of the hub. A client that polls has a *mailbox*: its connection is one end of a
socket pair, and what is sent waits in the other, in the frames of a WebSocket, until a poll fetches it. So a
broadcast makes no difference between the transports, the kernel bounds what waits, who does not poll lags
like any slow client, and an upgrade only changes the connection's descriptor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from ..bus.channel import Channel
from ..bus.message import Emission, Outgoing
from ..errors import ProtocolError, TooLarge
from ..plumbing.events import Event, EventKind, decode_effects
from ..plumbing.handover import channel_from
from ..protocols import websocket
from ..protocols.engineio import Packet, PacketType, encode_open, encode_packet, parse_packet
from ..protocols.websocket import BinaryMessage, Close, Ping, Pong, TextMessage
from ..protocols.websocket_close import CloseCode
from .base import Engine

if TYPE_CHECKING:
    from ..bus.message import Message
    from ..hub.connection import Connection
    from ..hub.process import Hub
    from ..hub.sessions import Session
    from ..plumbing.handover import Handover


@dataclass(frozen=True, slots=True)
class Content:
    """What a client publishes."""

    data: bytes
    is_binary: bool = False
    emission: Emission | None = None


class EngineIO(Engine):
    name = "engineio"

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.revision = int(options.get("revision", 4))
        if self.revision not in (3, 4):
            raise ValueError(f"revision={self.revision} is neither 3 nor 4")
        self.prefix = str(options.get("prefix", ""))
        self.ping_interval = float(options.get("ping_interval", 25.0))
        self.ping_timeout = float(options.get("ping_timeout", 20.0))
        if not (self.ping_interval > 0 and self.ping_timeout > 0):
            raise ValueError("pings must be more than 0 seconds apart, and answered in more than 0")
        self.max_payload = int(options.get("max_payload", 1_000_000))
        self.transports = tuple(options.get("transports", ("polling", "websocket")))
        self.is_direct = bool(options.get("direct", True))
        self.encoding: object = ("engineio", self.revision)

    # A session begins.

    def admit(self, hub: Hub, fd: int, handover: Handover) -> None:
        hub.sessions.begin(self, fd, handover)

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        session: Session = connection.conversation
        particulars = handover.offload.particulars
        session.publish = tuple(map(channel_from, particulars.get("publish", ())))
        session.open(handover)
        connection.hub.effects.apply(connection, decode_effects(particulars.get("effects", ())))

    def open_packet(self, session: Session) -> Packet:
        may_upgrade = session.is_polling and "websocket" in self.transports
        return encode_open(
            session.id,
            upgrades=["websocket"] if may_upgrade else [],
            ping_interval=self.ping_interval,
            ping_timeout=self.ping_timeout,
            max_payload=self.max_payload,
        )

    # What is sent.

    def frame(self, packet: Packet) -> bytes:
        """Return a packet as the frame of a WebSocket."""
        data, is_binary = encode_packet(packet, self.revision)
        return websocket.encode_binary(data) if is_binary else websocket.encode_text(data)

    def encode(self, message: Message) -> bytes:
        if message.reset is not None:
            return b""  # there is no place for it
        return self.tell(message.data, is_binary=message.is_binary)

    def tell(self, data: bytes, *, is_binary: bool) -> bytes:
        return self.frame(Packet(PacketType.MESSAGE, data, is_binary))

    def goodbye(self) -> bytes:
        return self.farewell(CloseCode.GOING_AWAY)

    def farewell(self, code: int, reason: str = "") -> bytes:
        """Return what ends a connection: the packet is for who polls, the frame for who does not."""
        return self.frame(Packet(PacketType.CLOSE)) + websocket.encode_close(code, reason)

    def disconnect(self, connection: Connection, code: int, reason: str) -> None:
        if connection.dialogue is not None and connection.ending is None:
            connection.dialogue.code = code
        session: Session = connection.conversation
        session.reason = "forced close"
        connection.hub.end(connection, self.farewell(code, reason), reason)
        session.deliver()

    # What comes.

    def received(self, connection: Connection, data: bytes) -> None:
        session: Session = connection.conversation
        if session.is_polling:
            return  # nobody writes into the mailbox's other end
        session.parser.feed(data)
        if session.is_begun:
            self._read_frames(connection, session)
        elif session.parser.pending_size > self.max_payload:
            connection.hub.close(connection, "the client sent too much too early")

    def resumed(self, connection: Connection) -> None:
        session: Session = connection.conversation
        if not connection.is_open or connection.is_over or not session.is_begun:
            return
        if session.is_polling:
            session.post_resumed()
        else:
            self._read_frames(connection, session)

    def handled(self, connection: Connection) -> None:
        session: Session = connection.conversation
        if not connection.is_over:
            session.post_resumed()

    def left(self, connection: Connection) -> None:
        session: Session = connection.conversation
        session.end()

    def _read_frames(self, connection: Connection, session: Session) -> None:
        try:
            for event in session.parser.events():
                self._act(connection, session, event)
                if connection.is_over or not connection.is_read:
                    return
        except ProtocolError as exc:
            self.disconnect(connection, websocket.close_code(exc), str(exc))

    def _act(self, connection: Connection, session: Session, event: websocket.Event) -> None:
        match event:
            case TextMessage(data):
                self.take(connection, session, parse_packet(data, self.revision, is_binary=False))
            case BinaryMessage(data):
                self.take(connection, session, parse_packet(data, self.revision, is_binary=True))
            case Ping(payload):
                session.count_ping()
                connection.answer(websocket.encode_pong(payload))
            case Pong():
                pass
            case Close(code):
                if connection.dialogue is not None:
                    connection.dialogue.code = code
                connection.hub.end(connection, websocket.encode_close(code), "the client closed")
            case _:
                assert_never(event)

    def take(self, connection: Connection, session: Session, packet: Packet) -> None:
        """Act on one packet of the client.

        Raises:
            ProtocolError: It must not come.
        """
        match packet.type:
            case PacketType.MESSAGE:
                self.take_message(connection, session, packet.data, is_binary=packet.is_binary)
            case PacketType.PONG if self.revision == 4:
                session.heard()
            case PacketType.PING if self.revision == 3:
                session.count_ping()
                session.heard()
                connection.answer(self.frame(Packet(PacketType.PONG, packet.data)))
            case PacketType.CLOSE:
                session.is_client_done = True
                connection.hub.close(connection, "the client closed")
            case PacketType.NOOP:
                pass
            case _:
                raise ProtocolError(f"a client must not send a packet {packet.type.name} now")

    def take_message(self, connection: Connection, session: Session, data: bytes, *, is_binary: bool) -> None:
        if connection.dialogue is not None:
            connection.dialogue.tell(Event(EventKind.RECEIVED, data, is_binary))
        elif session.publish:
            self.publish(connection, session.publish, Content(data, is_binary))
        else:
            raise ProtocolError("nothing is to be sent here")

    def publish(
        self,
        connection: Connection,
        channels: tuple[Channel, ...],
        content: Content,
        event: str | None = None,
        sent: Callable[[], None] | None = None,
    ) -> None:
        """Send what a client says to channels.

        Args:
            sent: Called when the bus has it.

        Raises:
            TooLarge: The bus would not take it.
        """
        following = connection.audience.following
        if len(content.data) > (most := following.max_message_size):
            raise TooLarge(f"a message has {len(content.data)} bytes, more than {most}")
        messages = [
            Outgoing(channel, content.data, event, content.is_binary, content.emission)
            for channel in channels
        ]
        following.outbox.put(connection, messages, sent)


ENGINE = EngineIO
