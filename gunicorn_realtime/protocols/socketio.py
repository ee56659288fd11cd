"""Socket.IO's packets in Engine.IO's messages (socket.io-protocol, revision 5, and 4 of the 2.x clients).

https://socket.io/docs/v4/socket-io-protocol. A packet's text is, without spaces:

    <type> [<attachments> -] [<namespace> ,] [<id>] [<JSON>]

Its attachments follow as binary messages; `{"_placeholder":true,"num":0}` in the JSON is where the
first belongs. What is refused is what socket.io-parser 4.2 refuses, and what no client of theirs sends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NoReturn

from ..errors import ProtocolError, TooLarge

MAX_ATTACHMENTS = 10  # as in socket.io-parser
MAX_SIZE = 1_000_000  # bytes of text and attachments; the official server's `maxHttpBufferSize`
MAX_NAMESPACE_SIZE = 200  # bytes, as a channel's name
MAX_ID_DIGITS = 15  # JavaScript has no exact number beyond


class PacketType(IntEnum):
    """https://socket.io/docs/v4/socket-io-protocol#packet-encoding-1"""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


BINARY_TYPES = {PacketType.BINARY_EVENT, PacketType.BINARY_ACK}

# Names of events that mean something else on one of the two sides.
RESERVED_EVENTS = {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}


@dataclass(frozen=True, slots=True)
class Packet:
    type: PacketType
    namespace: str = "/"
    id: int | None = None  # by which an event is acknowledged
    data: bytes = b""  # JSON, with placeholders for the attachments
    attachments: tuple[bytes, ...] = ()
    query: str = ""  # of revision 4's CONNECT, behind the namespace and "?"


HEADER = re.compile(
    rb"""(?: ([01234]) | ([56]) ([0-9]{1,9}) - )  # the type, and how many attachments
    (?: (/[^,]*) (?: , | \Z ) )?  # the namespace
    ([0-9]{0,16})  # the id""",
    re.VERBOSE,
)
TYPES = {b"%d" % packet_type: packet_type for packet_type in PacketType}
CONTROL_CHARACTER = re.compile("[\x00-\x1f\x7f]")


class Parser:
    """Put a client's packets together from Engine.IO's messages. After an error it is done with.

    Args:
        max_attachments: Of one packet.
        max_size: Bytes of one packet's text and attachments together.
    """

    __slots__ = ("_attachments", "_max_attachments", "_max_size", "_missing", "_packet", "_size")

    def __init__(self, max_attachments: int = MAX_ATTACHMENTS, max_size: int = MAX_SIZE) -> None:
        self._max_attachments = max_attachments
        self._max_size = max_size
        self._packet: Packet | None = None  # whose attachments are arriving
        self._attachments: list[bytes] = []
        self._missing = 0  # attachments that have not arrived
        self._size = 0  # bytes of the packet so far

    def feed(self, data: bytes, *, is_binary: bool) -> Packet | None:
        """Take one message, and return the packet that it completes.

        Raises:
            ProtocolError: No client may send this.
            TooLarge: More attachments or bytes than allowed.
        """
        if is_binary:
            return self._attach(data)
        if self._packet is not None:
            raise ProtocolError(f"a text came where {self._missing} attachments were expected")
        if len(data) > self._max_size:
            raise TooLarge(f"a packet has {len(data)} bytes, more than {self._max_size}")
        if data.startswith(b"2["):  # most packets: an event of "/" that needs no answer
            arguments = data[1:]
            _check_event(_decode_json(DECODER, arguments))
            return Packet(PacketType.EVENT, data=arguments)
        packet, attachments = _parse_header(data)
        if attachments > self._max_attachments:
            raise TooLarge(f"a packet has {attachments} attachments, more than {self._max_attachments}")
        _check_data(packet, attachments)
        if not attachments:
            return packet
        self._packet, self._missing, self._size = packet, attachments, len(data)
        return None

    def _attach(self, data: bytes) -> Packet | None:
        if self._packet is None:
            raise ProtocolError("a binary message came where a text was expected")
        self._size += len(data)
        if self._size > self._max_size:
            raise TooLarge(f"a packet has {self._size} bytes, more than {self._max_size}")
        self._attachments.append(data)
        self._missing -= 1
        if self._missing:
            return None
        packet = replace(self._packet, attachments=tuple(self._attachments))
        self._packet = None
        self._attachments.clear()
        return packet


def _parse_header(text: bytes) -> tuple[Packet, int]:
    """Return a packet and how many attachments it has. Its data is not checked yet."""
    match = HEADER.match(text)
    if match is None:
        raise ProtocolError(f"a packet begins with {text[:10]!r}, expected a type and its attachments")
    plain_type, binary_type, attachments, address, digits = match.groups()
    if binary_type and not int(attachments):
        raise ProtocolError("a binary packet has no attachments")
    if len(digits) > MAX_ID_DIGITS:
        raise ProtocolError(f"a packet's id has more than {MAX_ID_DIGITS} digits")
    packet_type = TYPES[plain_type or binary_type]
    namespace, query = _parse_address(address or b"/", packet_type)
    packet_id = int(digits) if digits else None
    packet = Packet(packet_type, namespace, packet_id, text[match.end() :], query=query)
    return packet, int(attachments or 0)


def _parse_address(address: bytes, packet_type: PacketType) -> tuple[str, str]:
    """Return namespace and query."""
    namespace, query = _decode(address), ""
    if packet_type == PacketType.CONNECT:
        namespace, _, query = namespace.partition("?")
    if len(namespace.encode()) > MAX_NAMESPACE_SIZE:
        raise ProtocolError(f"a namespace has more than {MAX_NAMESPACE_SIZE} bytes")
    if CONTROL_CHARACTER.search(namespace) or CONTROL_CHARACTER.search(query):
        raise ProtocolError("a namespace has control characters")
    return namespace, query


def _check_data(packet: Packet, attachments: int) -> None:
    match packet.type:
        case PacketType.CONNECT:
            if packet.data:
                _load(packet.data, b"{")
        case PacketType.DISCONNECT:
            if packet.data:
                raise ProtocolError("a DISCONNECT has data")
        case PacketType.EVENT | PacketType.BINARY_EVENT:
            _check_event(_load(packet.data, b"[", attachments))
        case PacketType.ACK | PacketType.BINARY_ACK:
            if packet.id is None:
                raise ProtocolError("an ACK has no id")
            _load(packet.data, b"[", attachments)
        case PacketType.CONNECT_ERROR:
            raise ProtocolError("a client sent CONNECT_ERROR")


def _check_event(arguments: list[Any]) -> None:
    name = arguments[0] if arguments else None
    if isinstance(name, str):
        if name in RESERVED_EVENTS:
            raise ProtocolError(f"an event has a reserved name: {name}")
    elif not isinstance(name, int | float) or isinstance(name, bool):
        raise ProtocolError("an event has no name")


def _load(data: bytes, start: bytes, attachments: int = 0) -> Any:
    """Return what JSON means, with the number of its attachment in each placeholder's stead."""
    if not data.startswith(start):
        raise ProtocolError(f"a packet's data begins with {data[:1]!r}, expected {start!r}")
    if not attachments:
        return _decode_json(DECODER, data)
    placeholders = _Placeholders(range(attachments))
    loaded = _decode_json(placeholders.decoder(), data)
    if placeholders.missing:
        raise ProtocolError(f"an attachment has no placeholder: {min(placeholders.missing)}")
    return loaded


def _decode_json(decoder: json.JSONDecoder, data: bytes) -> Any:
    text = _decode(data)
    try:
        return decoder.decode(text)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError(f"a packet's data is not JSON: {exc}") from exc


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ProtocolError("a text is not UTF-8") from exc


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


class _Placeholders:
    """Replaces them while JSON is decoded. Each is used once.

    Twice is not what a client sends, and who echoes it would send the attachment as often.
    """

    def __init__(self, attachments: Sequence[Any]) -> None:
        self.attachments = attachments
        self.missing = set(range(len(attachments)))

    def decoder(self) -> json.JSONDecoder:
        return json.JSONDecoder(object_hook=self.replace, parse_constant=_refuse_constant)

    def replace(self, fields: dict[str, Any]) -> Any:
        if fields.get("_placeholder") is not True:
            return fields
        number = fields.get("num")
        if type(number) is not int or number not in self.missing:
            raise ProtocolError(f"a placeholder has no attachment of its own: {number!r:.20}")
        self.missing.remove(number)
        return self.attachments[number]


def encode(packet: Packet) -> bytes:
    """Return a packet's text. Its attachments are to be sent behind it, as binary messages."""
    text = b"%d" % packet.type
    if packet.type in BINARY_TYPES:
        text += b"%d-" % len(packet.attachments)
    if packet.query:
        text += f"{packet.namespace}?{packet.query},".encode()
    elif packet.namespace != "/":
        text += packet.namespace.encode() + b","
    if packet.id is not None:
        text += b"%d" % packet.id
    return text + packet.data


def event_packet(
    namespace: str, data: bytes, attachments: Sequence[bytes] = (), id: int | None = None
) -> Packet:
    """Return an event, given what `encode_arguments` returns for its name and arguments."""
    packet_type = PacketType.BINARY_EVENT if attachments else PacketType.EVENT
    return Packet(packet_type, namespace, id, data, tuple(attachments))


def ack_packet(
    namespace: str, data: bytes, attachments: Sequence[bytes] = (), id: int | None = None
) -> Packet:
    """Return what acknowledges the event with that id, given what `encode_arguments` returns."""
    packet_type = PacketType.BINARY_ACK if attachments else PacketType.ACK
    return Packet(packet_type, namespace, id, data, tuple(attachments))


def encode_arguments(
    arguments: Sequence[Any], encoder: type[json.JSONEncoder] = json.JSONEncoder
) -> tuple[bytes, tuple[bytes, ...]]:
    """Return JSON of a list, and the bytes that its placeholders stand for.

    Args:
        arguments: They may hold bytes anywhere but as keys.
        encoder: Encodes what JSON does not know.

    Raises:
        ValueError, TypeError: As `json` does, also for NaN and infinity.
    """
    attachments: list[bytes] = []
    json_encoder = encoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    default = json_encoder.default

    def default_or_placeholder(value: Any) -> Any:
        if isinstance(value, bytes | bytearray | memoryview):
            attachments.append(bytes(value))
            return {"_placeholder": True, "num": len(attachments) - 1}
        return default(value)

    json_encoder.default = default_or_placeholder  # type: ignore[assignment, method-assign]
    text = json_encoder.encode(list(arguments))
    # Half a surrogate pair has no UTF-8. What replaces it is just its escape in JSON.
    return text.encode("utf-8", "backslashreplace"), tuple(attachments)


def decode_arguments(data: bytes, attachments: Sequence[bytes]) -> list[Any]:
    """Return the list that JSON and attachments of a packet mean.

    Raises:
        ProtocolError: It is not JSON, or the placeholders are not those of the attachments.
    """
    decoder = _Placeholders(attachments).decoder() if attachments else DECODER
    arguments = _decode_json(decoder, data)
    if not isinstance(arguments, list):
        raise ProtocolError("a packet's data is no list")
    return arguments


def with_last_argument(text: bytes, argument: str) -> bytes:
    """Return an encoded event with one more argument."""
    return b"%b,%b]" % (text[:-1], json.dumps(argument).encode())
