"""WebSocket (RFC 6455): channels in both directions.

Options:
    envelope  "json": each message is `{"id", "channel", "event", "data"}`; else it is its data alone
    prefix    the bus's, which clients do not see
    heartbeat  seconds between two pings; a client that says nothing from one to the next is gone
    max_size  bytes of the largest message that a client may send
    deflate   [server_max_window_bits], as agreed (RFC 7692), or None

Particulars:
    publish   the channels that the client's messages go to
    prefix, suffix  what is put before and behind each of them
    effects   what the application wants at once, see `plumbing.events`

Where the application wants to be called for what the client sends, nothing is published.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..bus.channel import Channel
from ..bus.client import Outgoing
from ..errors import ProtocolError
from ..plumbing.events import Event, EventKind, decode_effects
from ..plumbing.handover import channel_from
from ..protocols import websocket as protocol
from ..protocols.websocket import BinaryMessage, Close, Ping, Pong, TextMessage
from ..protocols.websocket_close import CloseCode
from ..protocols.websocket_deflate import Deflate
from .base import Engine, heartbeat_of

if TYPE_CHECKING:
    from ..bus.message import Message
    from ..hub.connection import Connection
    from ..plumbing.handover import Handover

# Between two pings of ours; each is answered. Libraries send one every few seconds.
MAX_PINGS = 100

# What a client may send before it has our answer to its request, which no client does.
MAX_EARLY_SIZE = 64 * 1024  # bytes


class Conversation:
    """What a WebSocket needs beyond what every connection has."""

    __slots__ = ("early", "is_heard", "parser", "pings", "prefix", "publish", "suffix")

    def __init__(self, parser: protocol.Parser) -> None:
        self.parser = parser
        self.early = b""  # what came before the connection was open
        self.is_heard = True  # since our last ping
        self.pings = 0  # likewise
        self.publish: tuple[Channel, ...] = ()
        self.prefix = b""
        self.suffix = b""


class WebSocket(Engine):
    name = "websocket"

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__(options)
        self.envelope = options.get("envelope")
        self.prefix = str(options.get("prefix", ""))
        self.heartbeat = heartbeat_of(options)
        self.max_size = int(options.get("max_size", protocol.MAX_MESSAGE_SIZE))
        deflate = options.get("deflate")
        self.deflate = None if deflate is None else Deflate(*deflate)
        self.encoding = ("websocket", self.envelope, self.prefix, self.deflate)

    # What is sent.

    def open(self, connection: Connection, handover: Handover, cursor: str | None) -> None:
        particulars = handover.offload.particulars
        conversation = self._conversation(connection)
        conversation.publish = tuple(channel_from(channel) for channel in particulars.get("publish", ()))
        conversation.prefix = particulars.get("prefix", "").encode()
        conversation.suffix = particulars.get("suffix", "").encode()
        connection.send(handover.head + b"Connection: Upgrade\r\n\r\n" + self._cursor(cursor))
        connection.hub.effects.apply(connection, decode_effects(particulars.get("effects", ())))
        early, conversation.early = handover.rest + conversation.early, b""
        if early and not connection.is_over:
            self._converse(connection, conversation, early)

    def encode(self, message: Message) -> bytes:
        if message.reset is not None:
            return self.reset([message.channel], message.reset)
        if self.envelope is None:
            return self._encode_data(message.data, is_binary=message.is_binary)
        fields: dict[str, Any] = {
            "id": message.stamp.cursor if message.stamp else None,
            "channel": message.channel.removeprefix(self.prefix),
            "event": message.event,
            **_as_fields(message.data, message.is_binary),
        }
        return self._encode_fields(fields)

    def tell(self, data: bytes, *, is_binary: bool) -> bytes:
        if self.envelope is None:
            return self._encode_data(data, is_binary=is_binary)
        return self._encode_fields(
            {"id": None, "channel": None, "event": "message", **_as_fields(data, is_binary)}
        )

    def beat(self, cursor: str | None = None) -> bytes:
        return protocol.encode_ping() + self._cursor(cursor)

    def reset(self, channels: Iterable[str], reason: str, cursor: str | None = None) -> bytes:
        if self.envelope is None:
            return b""  # it has no place for it
        data = {"channels": list(channels), "reason": reason}
        return self._encode_fields({"id": cursor, "channel": None, "event": "reset", "data": data})

    def goodbye(self) -> bytes:
        return protocol.encode_close(CloseCode.GOING_AWAY)

    def disconnect(self, connection: Connection, code: int, reason: str) -> None:
        self._note_end(connection, code)
        connection.hub.end(connection, protocol.encode_close(code, reason), reason)

    def _note_end(self, connection: Connection, code: int) -> None:
        """The connection ends with this code, unless it does with another already."""
        if connection.dialogue is not None and connection.ending is None:
            connection.dialogue.code = code

    def _cursor(self, cursor: str | None) -> bytes:
        """Return the message that only says where the client stands."""
        if cursor is None or self.envelope is None:
            return b""
        return self._encode_fields({"id": cursor, "channel": None, "event": "cursor", "data": None})

    def _encode_data(self, data: bytes, *, is_binary: bool) -> bytes:
        encode = protocol.encode_binary if is_binary else protocol.encode_text
        return encode(data, self.deflate)

    def _encode_fields(self, fields: Mapping[str, Any]) -> bytes:
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
        return protocol.encode_text(text.encode("utf-8", "replace"), self.deflate)

    # What comes.

    def received(self, connection: Connection, data: bytes) -> None:
        conversation = self._conversation(connection)
        conversation.is_heard = True
        if connection.is_open:
            self._converse(connection, conversation, data)
            return
        conversation.early += data
        if len(conversation.early) > MAX_EARLY_SIZE:
            connection.hub.close(connection, f"the client sent more than {MAX_EARLY_SIZE} bytes too early")

    def resumed(self, connection: Connection) -> None:
        if connection.is_open and not connection.is_over:
            self._converse(connection, self._conversation(connection), b"")

    def is_gone(self, connection: Connection) -> bool:
        if not connection.is_read:
            return False  # it cannot be heard
        conversation = self._conversation(connection)
        is_heard, conversation.is_heard, conversation.pings = conversation.is_heard, False, 0
        return not is_heard

    def _conversation(self, connection: Connection) -> Conversation:
        if connection.conversation is None:
            connection.conversation = Conversation(protocol.Parser(self.max_size, self.deflate))
        conversation: Conversation = connection.conversation
        return conversation

    def _converse(self, connection: Connection, conversation: Conversation, data: bytes) -> None:
        conversation.parser.feed(data)
        try:
            for event in conversation.parser.events():
                self._act(connection, conversation, event)
                if connection.is_over:
                    return
                if not connection.is_read:
                    return  # the rest waits in the parser
        except ProtocolError as exc:
            self.disconnect(connection, protocol.close_code(exc), str(exc))

    def _act(self, connection: Connection, conversation: Conversation, event: protocol.Event) -> None:
        match event:
            case TextMessage(data):
                self._take(connection, conversation, data, is_binary=False)
            case BinaryMessage(data):
                self._take(connection, conversation, data, is_binary=True)
            case Ping(payload):
                conversation.pings += 1
                if conversation.pings > MAX_PINGS:
                    self.disconnect(connection, CloseCode.POLICY_VIOLATION, "too many pings")
                else:
                    connection.answer(protocol.encode_pong(payload))
            case Pong():
                pass
            case Close(code):
                self._note_end(connection, code)
                connection.hub.end(connection, protocol.encode_close(code), "the client closed")

    def _take(
        self, connection: Connection, conversation: Conversation, data: bytes, *, is_binary: bool
    ) -> None:
        if connection.dialogue is None:
            self._publish(connection, conversation, data, is_binary=is_binary)
        else:
            connection.dialogue.tell(Event(EventKind.RECEIVED, data, is_binary))

    def _publish(
        self, connection: Connection, conversation: Conversation, data: bytes, *, is_binary: bool
    ) -> None:
        if not conversation.publish:
            self.disconnect(connection, CloseCode.UNSUPPORTED_DATA, "nothing is to be sent here")
            return
        data = conversation.prefix + data + conversation.suffix
        following = connection.audience.following
        if len(data) > (most := following.max_message_size):
            # The bus would not take it, or no hub from the bus.
            reason = f"a message has {len(data)} bytes, more than {most}"
            self.disconnect(connection, CloseCode.MESSAGE_TOO_BIG, reason)
            return
        following.outbox.put(
            connection, [Outgoing(channel, data, is_binary=is_binary) for channel in conversation.publish]
        )


def _as_fields(data: bytes, is_binary: bool) -> dict[str, Any]:
    """Return data as the envelope has it."""
    if is_binary:
        return {"data": base64.b64encode(data).decode(), "base64": True}
    return {"data": data.decode("utf-8", "replace")}


ENGINE = WebSocket
